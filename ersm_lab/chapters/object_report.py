"""Tables and pictures of the chapter on objects: does the mask see them, and does a background lie?

Tables are drawn from the records of the suites `objects` (on textured shapes) and `spurious` (on those
whose background tells the class in most training images); see `judging`. Two of the paper's claims are
judged here by the criteria of the ledger, with intervals paired over seeds and images:

    (d) masks isolate objects      AUC of the logit against the centre prior and against Grad-CAM of the
                                   dense network; IoU of the mask against that of keeping everything
    (f) less use of backgrounds    accuracy where the background lies, against the dense network

Pictures are drawn from networks. Shares of the object and the background that a mask keeps, t and f,
say all about it once the object's share r of the image is known:

    IoU = r t / (r + (1 - r) f)        AUC = (1 + t - f) / 2

Where a record is missing, a table says "not yet run".
"""

from __future__ import annotations

import io
import math
import statistics as plain_statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from ersm_lab import judging, ledger
from ersm_lab.evaluation import inference, object_masks
from ersm_lab.evaluation.deletion_insertion import resize
from ersm_lab.images import data as lab_data
from ersm_lab.images import shapes
from ersm_lab.images.data import ImageSet
from ersm_lab.results import records, statistics
from ersm_lab.results.statistics import Difference
from ersm_lab.views import energy_theory, figures
from ersm_lab.views.frames import frame_slider
from ersm_lab.views.tables import Table
from ersm_lab.views.widgets import Widget

NOT_RUN = ledger.NOT_RUN
DENSE, MASKED = "ablation-dense", "ablation-ersm"

MAPS = {  # of the suite "objects" -> words
    "mask": "keep mask, 0 or 1",
    "logit": "logit, -z",
    "energy": "energy, -e",
    "magnitude": "magnitude",
    "magnitude_masked": "magnitude, masked",
    "grad_cam": "Grad-CAM",
    "centre": "centre prior",
    "edges": "edges",
    "random": "random",
}
CONTROLS = ("centre", "edges", "random")  # none of them looks at a network
OF_DENSE = ("magnitude", "grad_cam")  # a network without a mask has these
SCORES = {  # of a map -> heading
    "auc": "ROC AUC",
    "pointing": "pointing game",
    "inside": "inside the object",
    "iou_top_k": "IoU, top k",
    "iou": "IoU of the mask",
}
CONDITIONS = {  # of the suite "spurious" -> heading
    "truth": "tells the truth",
    "lies": "lies",
    "unmarked": "is unmarked",
}


# --- records ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The records of a masked network and its dense twin, one a seed; none is an empty list.

    Attributes:
        dense, masked: of the suite `objects`.
        dense_spurious, masked_spurious: of the suite `spurious`.
    """

    dense: Sequence[Mapping] = ()
    masked: Sequence[Mapping] = ()
    dense_spurious: Sequence[Mapping] = ()
    masked_spurious: Sequence[Mapping] = ()


def read(*, scale: str = "laptop", dense: str = DENSE, masked: str = MASKED) -> Judged:
    """The records of both suites; all files are read once.

    Args:
        scale: of the records.
        dense, masked: methods.
    """
    found = records.read_all(scale=scale)

    def of(dataset: str, method: str) -> list[dict]:
        return [r for r in found if (r["dataset"], r["method"]) == (dataset, method)]

    return Judged(
        dense=of("shapes", f"{dense}.objects"),
        masked=of("shapes", f"{masked}.objects"),
        dense_spurious=of("shapes-spurious", f"{dense}.spurious"),
        masked_spurious=of("shapes-spurious", f"{masked}.spurious"),
    )


def score_table(judged: Judged) -> Table:
    """Every score of every map, mean over images and seeds ± standard deviation over seeds.

    In brackets, how many images have no such score, most of any seed; a dash where none has one.
    """
    header = ["map of", "map", "seeds", *SCORES.values()]
    rows = [_score_row(network, name, group) for network, name, group in _places(judged)]
    known = judged.masked or judged.dense
    overlap = _mean_sd([r["metrics"]["keep_everything"]["mean"] for r in known])
    rows.append(["no network", "keep everything", str(len(known)), *["–"] * 4, overlap])
    caption = "Maps against the true objects of textured shapes"
    if known:
        caption += f", {known[0]['metrics']['images']:,} test images: mean ± sd over seeds"
    return Table(header=header, rows=rows, caption=caption)


def _places(judged: Judged) -> list[tuple[str, str, Sequence[Mapping]]]:
    """Every map with whose it is and the records that have it."""
    own = [("masked network", name, judged.masked) for name in MAPS if name not in CONTROLS]
    dense = [("dense network", name, judged.dense) for name in OF_DENSE]
    known = judged.masked or judged.dense
    return own + dense + [("no network", name, known) for name in CONTROLS]


def _score_row(network: str, name: str, group: Sequence[Mapping]) -> list[str]:
    row = [network, MAPS[name], str(len(group))]
    if not group:
        return [*row, NOT_RUN, *["–"] * (len(SCORES) - 1)]
    for score in SCORES:
        found = [r["metrics"]["scores"][name].get(score) for r in group]
        found = [each for each in found if each is not None]
        missing = max((each["undefined"] for each in found), default=0)
        values = [each["mean"] for each in found if each["mean"] is not None]
        text = _mean_sd(values)
        row.append(f"{text} ({missing})" if values and missing else text)
    return row


def _mean_sd(values: Sequence[float], *, factor: float = 1, digits: int = 3) -> str:
    if not values:
        return "–"
    values = [factor * value for value in values]
    spread = f" ± {plain_statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{plain_statistics.fmean(values):.{digits}f}{spread}"


def draw_auc(judged: Judged) -> Figure:
    """ROC AUC of every map, a mark for each seed, best at the top; without records it says so."""
    found = [
        (network, f"{MAPS[name]} ({network})", [_auc(record, name) for record in group])
        for network, name, group in _places(judged)
        if group
    ]
    found.sort(key=lambda place: plain_statistics.fmean(place[2]))
    figure, axis = plt.subplots(figsize=(7.2, 4.0))
    marks = {"masked network": "o", "dense network": "s", "no network": "^"}
    for height, (network, _, values) in enumerate(found):
        colour = f"C{list(marks).index(network)}"
        axis.plot(values, [height] * len(values), marks[network], color=colour, linestyle="none")
    axis.set_yticks(range(len(found)), [label for _, label, _ in found])
    axis.axvline(0.5, color="0.4", linestyle=":")
    axis.set(
        title="How well a map tells object from background, a mark a seed",
        xlabel="ROC AUC over the pixels of an image, mean over images  (dotted: by lot)",
    )
    if not found:
        axis.text(0.5, 0.5, NOT_RUN, ha="center", transform=axis.transAxes)
    return figure


def _auc(record: Mapping, name: str) -> float:
    return record["metrics"]["scores"][name]["auc"]["mean"]


# --- claim (d) -------------------------------------------------------------------------------------

_WORDS_D = {
    "centre": "AUC of the logit − of the centre prior",
    "grad_cam": "AUC of the logit − of the dense network's Grad-CAM",
    "everything": "IoU of the mask − of keeping everything",
    "own_grad_cam": "beside it: AUC of the logit − of its own network's Grad-CAM",
}


def gaps_d(judged: Judged) -> dict[str, Difference | None]:
    """Differences in hundredths, paired over seeds and images; None where no seed has both records.

    "centre", "grad_cam" and "everything" are what the ledger's criterion asks; "own_grad_cam" stands
    beside it.
    """
    dense, masked = judged.dense, judged.masked
    return {
        "centre": _paired(masked, "logit.auc", masked, "centre.auc"),
        "grad_cam": _paired(masked, "logit.auc", dense, "grad_cam.auc"),
        "everything": _paired(masked, "mask.iou", masked, "everything.iou"),
        "own_grad_cam": _paired(masked, "logit.auc", masked, "grad_cam.auc"),
    }


def _paired(
    method: Sequence[Mapping], one: str, base: Sequence[Mapping], other: str
) -> Difference | None:
    first = {record["seed"]: by_image(record, one) for record in method}
    second = {record["seed"]: by_image(record, other) for record in base}
    if not first.keys() & second.keys():
        return None
    return statistics.paired(first, second)


def by_image(record: Mapping, score: str) -> np.ndarray:
    """A score of each image, such as "logit.auc", (N,) float64; NaN where it is undefined.

    Raises:
        ValueError: the record does not list it.
    """
    kind, _, name = score.partition(".")
    listed = record["metrics"].get("by_image", {}).get(kind, {})
    if name not in listed:
        raise ValueError(
            f"{record['name']} does not list {score!r} image by image: judge the network again"
        )
    return np.array([math.nan if value is None else value for value in listed[name]])


def table_d(judged: Judged) -> Table:
    """What claim (d) asks, and what it does not; the verdict is the ledger's."""
    gaps = gaps_d(judged)
    rows = [_gap_row(words, gaps[name]) for name, words in _WORDS_D.items()]
    return Table(header=_gap_header("hundredths"), rows=rows, caption="Claim (d), textured shapes")


def _gap_header(unit: str) -> list[str]:
    return [
        "comparison",
        "seeds",
        f"difference [{unit}]",
        "95 % interval",
        "above zero",
        "seed by seed",
    ]


def _gap_row(words: str, gap: Difference | None) -> list[str]:
    if gap is None:
        return [words, "0", NOT_RUN, "–", "–", "–"]
    return [
        words,
        str(len(gap.seeds)),
        f"{gap.mean:+.1f}",
        f"{gap.low:+.1f} to {gap.high:+.1f}",
        "yes" if gap.low > 0 else "no",
        ", ".join(f"{each:+.1f}" for each in gap.by_seed),
    ]


# --- claim (f) -------------------------------------------------------------------------------------


def background_table(judged: Judged) -> Table:
    """Accuracy by what the background does, and the share that is taken for the background's class."""
    rows = []
    groups = {"dense": judged.dense_spurious, "masked": judged.masked_spurious}
    for network, group in groups.items():
        row = [f"{network} network", str(len(group))]
        if not group:
            rows.append([*row, NOT_RUN, *["–"] * len(CONDITIONS)])
            continue
        shares = [[r["metrics"]["accuracy"][name] for r in group] for name in CONDITIONS]
        shares.append([r["metrics"]["follows_background"] for r in group])
        rows.append([*row, *[_mean_sd(each, factor=100, digits=1) for each in shares]])
    known = [*judged.dense_spurious, *judged.masked_spurious]
    caption = "Accuracy in %, the same objects on three backgrounds: mean ± sd over seeds"
    if known:
        caption += f", {known[0]['metrics']['images']:,} images"
    header = ["network", "seeds", *CONDITIONS.values(), "lies, and is followed"]
    return Table(header=header, rows=rows, caption=caption)


def gaps_f(judged: Judged) -> dict[str, Difference | None]:
    """Accuracy of the masked network minus the dense one's, in points, paired over seeds and images.

    Keys are "lies", which the criterion asks, "truth", "unmarked", and "cost": what a lie costs, the
    accuracy at the truth minus that at the lie.
    """
    answers = {
        network: {r["seed"]: judging.answers_by_condition(r) for r in group}
        for network, group in (
            ("masked", judged.masked_spurious),
            ("dense", judged.dense_spurious),
        )
    }
    if not answers["masked"].keys() & answers["dense"].keys():
        return dict.fromkeys(("lies", "truth", "unmarked", "cost"))

    def gap(value: Callable[[Mapping[str, Tensor]], Tensor]) -> Difference:
        sides = [
            {seed: value(right).double().numpy() for seed, right in answers[network].items()}
            for network in ("masked", "dense")
        ]
        return statistics.paired(*sides)

    return {
        "lies": gap(lambda right: right["lies"]),
        "truth": gap(lambda right: right["truth"]),
        "unmarked": gap(lambda right: right["unmarked"]),
        "cost": gap(lambda right: right["truth"].double() - right["lies"].double()),
    }


def table_f(judged: Judged) -> Table:
    """What claim (f) asks, and what it does not; the verdict is the ledger's."""
    gaps = gaps_f(judged)
    words = {
        "lies": "accuracy where the background lies",
        "truth": "beside it: where it tells the truth",
        "unmarked": "beside it: where it is unmarked",
        "cost": "beside it: what a lie costs, truth minus lies",
    }
    rows = [_gap_row(text, gaps[name]) for name, text in words.items()]
    caption = "Claim (f): masked network minus dense network, shapes with marked backgrounds"
    return Table(header=_gap_header("points"), rows=rows, caption=caption)


def kept_table(judged: Judged) -> Table:
    """Where masks and maps lie, by what the background does, in %: mean ± sd over seeds."""
    masked, dense = judged.masked_spurious, judged.dense_spurious
    asked = {
        "object kept": (masked, "mask", "kept_on_object"),
        "background kept": (masked, "mask", "kept_on_background"),
        "share of the mask on the background": (masked, "mask", "on_background"),
        "share of its Grad-CAM there": (masked, "grad_cam", "on_background"),
        "share of the dense network's Grad-CAM there": (dense, "grad_cam", "on_background"),
    }
    rows = []
    for words, (group, kind, score) in asked.items():
        if not group:
            rows.append([words, "0", NOT_RUN, *["–"] * (len(CONDITIONS) - 1)])
            continue
        cells = []
        for name in CONDITIONS:
            values = [r["metrics"]["maps"][name][kind][score]["mean"] for r in group]
            values = [value for value in values if value is not None]
            cells.append(_mean_sd(values, factor=100, digits=1))
        rows.append([words, str(len(group)), *cells])
    header = ["in %", "seeds", *[f"background {words}" for words in CONDITIONS.values()]]
    return Table(header=header, rows=rows, caption="What is kept, and where the maps lie")


# --- what a masked network sees --------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a masked network makes of images.

    Attributes:
        predicted: (N,), the class it says.
        mask, logit: (N, 1, h, w).
        cost: (N, 1, h, w), softplus of the agreement: the pairwise energy at lambda_pair = 1.
    """

    predicted: Tensor
    mask: Tensor
    logit: Tensor
    cost: Tensor


def look(model: nn.Module, data: ImageSet) -> Seen:
    """One pass over all images.

    Raises:
        ValueError: a network without a mask, with several, or with lambda_pair = 0.
    """
    mask = inference.only_mask(model)
    if mask.lambda_pair == 0:
        raise ValueError("the mask has lambda_pair = 0, so its pairwise energy says nothing")
    parts: dict[str, list[Tensor]] = {name: [] for name in ("predicted", "mask", "logit", "cost")}
    with inference.evaluating(model):
        for x, _ in data.inputs():
            parts["predicted"].append(model(x).argmax(1))
            parts["mask"].append(mask.state.mask)
            parts["logit"].append(mask.state.logit)
            parts["cost"].append(mask.state.pairwise / mask.lambda_pair)
    return Seen(**{name: torch.cat(found).cpu() for name, found in parts.items()})


def auc_table(maps: Mapping[str, Tensor], objects: Tensor) -> Table:
    """ROC AUC and pointing game of maps of tokens, mean and standard error over images.

    Args:
        maps: {words: (N, h, w)}, larger where the object should be; stretched as in the records.
        objects: bool (N, H, W).
    """
    rows = []
    for words, values in maps.items():
        pixels = resize(values, tuple(objects.shape[1:]))  # (N, H, W)
        cells = []
        for score in (object_masks.auc, object_masks.pointing):
            found = object_masks.summary(score(pixels, objects))
            cells.append(f"{found['mean']:.3f} ± {found['standard_error']:.3f}")
        rows.append([words, *cells])
    caption = f"{len(objects):,} images, one network: mean ± standard error over images"
    return Table(header=["map", "ROC AUC", "pointing game"], rows=rows, caption=caption)


# --- pictures --------------------------------------------------------------------------------------


def outline(axis: Axes, mask: Tensor) -> None:
    """Draw the border of an object, bool (H, W), black on white, so that it shows on any ground."""
    for width, colour in ((2.6, "white"), (1.1, "black")):
        axis.contour(mask.cpu().float().numpy(), levels=[0.5], colors=colour, linewidths=width)


def _show(axis: Axes, picture: np.ndarray | Tensor, side: int, **style):
    """A picture of any resolution in the coordinates of an image of so many pixels a side."""
    edge = side - 0.5
    return axis.imshow(np.asarray(picture), extent=(-0.5, edge, edge, -0.5), **style)


def _bare(axes: np.ndarray) -> None:
    for axis in axes.flat:
        figures.bare(axis)


def gallery(images: ImageSet, seen: Seen, cams: Tensor) -> Figure:
    """Four rows: images, tokens kept, logit, Grad-CAM; objects outlined where they are known.

    Args:
        images: N of them, a column each.
        seen: of `look`, on these images.
        cams: (N, h, w), Grad-CAM of the dense network; each image has a scale of its own.
    """
    count, side = len(images), images.images.shape[1]
    figure, axes = plt.subplots(4, count, figsize=(1.25 * count + 0.9, 5.6), squeeze=False)
    bound = seen.logit.abs().max().item()
    overlap = None
    if images.masks is not None:
        kept = object_masks.to_pixels(seen.mask, (side, side), smooth=False)  # (N, H, W)
        overlap = object_masks.iou(kept, images.masks)  # (N,)
    for column in range(count):
        axes[0, column].imshow(images.images[column].numpy())
        axes[0, column].set_title(images.classes[images.labels[column]], fontsize=9)
        _show(axes[1, column], figures.shade(images.images[column], seen.mask[column, 0]), side)
        words = f"{100 * seen.mask[column].mean():.0f} % kept"
        if overlap is not None:
            words += f"\nIoU {overlap[column]:.2f}"
        axes[1, column].set_xlabel(words, fontsize=8)
        logit = _show(
            axes[2, column], seen.logit[column, 0], side, cmap="RdBu_r", vmin=-bound, vmax=bound
        )
        _show(axes[3, column], cams[column].cpu(), side, cmap="viridis")
        if images.masks is not None:
            for row in range(4):
                outline(axes[row, column], images.masks[column])
    _bare(axes)
    labels = ("image", "tokens kept", "logit z", "Grad-CAM,\ndense network")
    for row, label in enumerate(labels):
        axes[row, 0].set_ylabel(label, fontsize=9)
    title = "What the mask keeps" + (", true objects outlined" if overlap is not None else "")
    figure.suptitle(title, fontsize=11)
    figure.colorbar(logit, ax=axes[2, :], label="z  (kept below 0)", shrink=0.95)
    return figure


def draw_roc(maps: Mapping[str, Tensor], target: Tensor) -> Figure:
    """ROC curves of maps of one image, the area under each in the legend.

    Args:
        maps: {words: (H, W)}, larger where the object should be.
        target: bool (H, W), the object.
    """
    figure, axis = plt.subplots(figsize=(4.8, 4.2))
    for words, values in maps.items():
        area = object_masks.auc(values[None], target[None]).item()
        axis.plot(*(100 * share for share in roc(values, target)), label=f"{words}: {area:.2f}")
    axis.plot([0, 100], [0, 100], color="0.4", linestyle=":", linewidth=1)
    axis.set(
        title="ROC curves of one image",
        xlabel="background above the threshold [%]",
        ylabel="object above the threshold [%]",
        aspect="equal",
    )
    axis.legend(title="area (1 = all)", loc="lower right", fontsize=8, title_fontsize=8)
    return figure


def roc(values: Tensor, target: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the background and of the object above each threshold, from none to all of both.

    Args:
        values: (H, W); tied pixels come at once, so that the curve rises straight over them.
        target: bool (H, W).

    Returns:
        Two (thresholds + 1,) arrays, rising from 0 to 1.
    """
    flat, on = values.flatten().double().numpy(), target.flatten().numpy()
    order = np.argsort(-flat, kind="stable")
    last = np.append(np.diff(flat[order]) != 0, True)  # of each run of ties
    hits, misses = np.cumsum(on[order])[last], np.cumsum(~on[order])[last]
    return np.append(0, misses / (~on).sum()), np.append(0, hits / on.sum())


def threshold_slider(
    images: ImageSet,
    logits: Tensor,
    *,
    shown: int = 6,
    steps: int = 17,
    name: str = "threshold-of-the-logit",
) -> Widget:
    """A slider over the threshold below which a token's logit keeps it, with the overlap it gives.

    Left the first images under each threshold, right the shares of object and background that are kept,
    mean over all images: the ROC curve, point by point.

    Args:
        images: with objects; averages are over all of them.
        logits: (N, 1, h, w).
        shown: so many images are drawn, in two rows.
        steps: thresholds, odd: 0 is the middle one, where the network has its own.
        name: id of the element.

    Raises:
        ValueError: images without objects, or an even number of steps.
    """
    if images.masks is None:
        raise ValueError("where the objects are is not known: take textured shapes")
    if steps < 3 or steps % 2 == 0:
        raise ValueError(f"steps must be odd and at least 3, so that 0 is among them, got {steps}")
    low, high = (torch.quantile(logits.flatten()[:1_000_000], q).item() for q in (0.02, 0.98))
    half = steps // 2 + 1
    low, high = min(low, -0.1), max(high, 0.1)  # a mask that keeps all or nothing has a slider, too
    cuts = [*np.linspace(low, 0, half), *np.linspace(0, high, half)[1:]]
    side = images.images.shape[1]
    pixels = object_masks.to_pixels(logits, (side, side), smooth=False)  # (N, H, W)
    truth = images.masks.double()  # (N, H, W)
    kept = [(pixels < cut).double() for cut in cuts]
    overlap = [object_masks.iou(each, images.masks) for each in kept]  # (N,) each
    mean = [each.nanmean().item() for each in overlap]
    on, off = (
        100 * np.array([((each * part).sum((1, 2)) / part.sum((1, 2))).nanmean() for each in kept])
        for part in (truth, 1 - truth)
    )
    frames, labels = [], []
    figure, axes, curve, dot = _slider_canvas(images, min(shown, len(images)), off, on)
    for number, cut in enumerate(cuts):
        for column, axis in enumerate(axes):
            tokens = (logits[column, 0] < cut).float()  # (h, w)
            axis.images[0].set_data(figures.shade(images.images[column], tokens))
            axis.set_xlabel(f"IoU {overlap[number][column]:.2f}", fontsize=9)
        dot.set_data([off[number]], [on[number]])
        curve.set_title(f"mean IoU {mean[number]:.2f}", fontsize=10)
        frames.append(_small_png(figure))
        figure.set_layout_engine("none")  # that of the first frame stays
        own = " (the mask)" if cut == 0 else ""
        labels.append(
            f"z < {cut:.2f}{own}: keeps {on[number]:.0f} % of the object and {off[number]:.0f} % of "
            f"the background, mean IoU {mean[number]:.2f}"
        )
    plt.close(figure)
    return frame_slider(
        frames,
        labels=labels,
        title="Keep a token if its logit is below a threshold",
        alt=(
            "Images with outlined objects whose dropped tokens are striped; a curve of the share of "
            "the object that is kept over that of the background, with a dot at the threshold."
        ),
        name=name,
        width=700,  # that of a frame, so that its words stay sharp
    )


def _slider_canvas(images: ImageSet, shown: int, off: np.ndarray, on: np.ndarray):
    """Figure, axes of the images, axis of the curve and its dot: frames differ in what they hold."""
    columns = max(math.ceil(shown / 2), 1)
    figure = plt.figure(figsize=(7.0, 3.2), dpi=100)
    grid = figure.add_gridspec(2, columns + 2, width_ratios=[*[1] * columns, 1.1, 1.1])
    axes = []
    side = images.images.shape[1]
    for column in range(shown):
        axis = figure.add_subplot(grid[column // columns, column % columns])
        _show(axis, figures.shade(images.images[column], torch.ones(side, side)), side)
        outline(axis, images.masks[column])
        axes.append(axis)
    _bare(np.array(axes))
    curve = figure.add_subplot(grid[:, columns:])
    curve.plot(off, on, color="#0072B2")
    curve.plot([0, 100], [0, 100], color="0.4", linestyle=":", linewidth=1)
    (dot,) = curve.plot([], [], "o", color="#D55E00", markeredgecolor="black", markersize=9)
    curve.set(
        xlabel="background kept [%]", ylabel="object kept [%]", xlim=(-3, 103), ylim=(-3, 103)
    )
    return figure, axes, curve, dot


def _small_png(figure: Figure) -> bytes:
    """The figure as a PNG file of 256 colours, a third of its size."""
    buffer, small = io.BytesIO(), io.BytesIO()
    figure.savefig(buffer, format="png")
    Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
        small, "PNG", optimize=True
    )
    return small.getvalue()


# --- flat or rough ---------------------------------------------------------------------------------

SCENES = (("rough", "flat"), ("flat", "flat"), ("rough", "rough"), ("flat", "rough"))


def repaint(
    data: ImageSet, *, inside: str, outside: str, contrast: float = 0.3, seed: int = 0
) -> ImageSet:
    """The same objects in their mean colour on grounds of theirs, each flat or rough.

    Args:
        data: images with objects.
        inside, outside: "flat" or "rough", of the object and of the ground.
        contrast: standard deviation of the grey noise that makes a region rough, one number a pixel,
            in units of 0 to 1.
        seed: of the noise; the same in every scene.

    Raises:
        ValueError: images without objects, or another word.
    """
    if data.masks is None:
        raise ValueError("where the objects are is not known: take textured shapes")
    for word in (inside, outside):
        if word not in ("flat", "rough"):
            raise ValueError(f'a region is "flat" or "rough", got {word!r}')
    images = data.images.float() / 255  # (N, H, W, 3)
    on = data.masks[..., None].float()  # (N, H, W, 1)
    lots = torch.Generator().manual_seed(seed)
    noise = contrast * torch.randn(*on.shape, generator=lots)  # (N, H, W, 1)

    def painted(region: Tensor, word: str) -> Tensor:
        total = region.sum((1, 2), keepdim=True).clamp_min(1)
        colour = (images * region).sum((1, 2), keepdim=True) / total  # (N, 1, 1, 3)
        return region * (colour + (noise if word == "rough" else 0))

    made = painted(on, inside) + painted(1 - on, outside)  # (N, H, W, 3)
    return replace(data, images=(made.clamp(0, 1) * 255).round().byte())


def hand_made_cost(
    objects: Tensor, *, inside: str, outside: str, dim: int = 16, seed: int = 0
) -> Tensor:
    """softplus(agreement) of tokens made by hand: one direction all over a flat region, any in a rough.

    The directions of a flat object and of a flat ground are orthogonal; those of a rough region are
    drawn by lot. Four neighbours.

    Args:
        objects: bool (N, h, w).
        inside, outside: "flat" or "rough".
        dim: D, length of the tokens.
        seed: of the lots.

    Returns:
        (N, 1, h, w), float64.
    """
    lots = torch.Generator().manual_seed(seed)
    shape = (len(objects), dim, *objects.shape[1:])

    def region(word: str, axis: int) -> Tensor:
        if word == "rough":
            return F.normalize(torch.randn(*shape, dtype=torch.float64, generator=lots), dim=1)
        tokens = torch.zeros(*shape, dtype=torch.float64)
        tokens[:, axis] = 1
        return tokens  # (N, D, h, w)

    tokens = torch.where(objects[:, None], region(inside, 0), region(outside, 1))
    return energy_theory.pair_cost(tokens, lambda_pair=1.0, neighbourhood=4)


def draw_scenes(model: nn.Module, data: ImageSet, *, contrast: float = 0.3) -> Figure:
    """One object in four scenes: the image, the cost by hand, the cost in the network, what is kept.

    Args:
        model: a masked network.
        data: the first image is taken.
        contrast: as in `repaint`.
    """
    one, side = data[:1], data.images.shape[1]
    figure, axes = plt.subplots(4, len(SCENES), figsize=(7.2, 7.0))
    columns = [_scene(model, one, scene, contrast) for scene in SCENES]
    bounds = [(min(c[k].min() for c in columns), max(c[k].max() for c in columns)) for k in (1, 2)]
    for column, (scene, parts) in enumerate(zip(SCENES, columns, strict=True)):
        image, by_hand, cost, kept = parts
        axes[0, column].set_title(f"{scene[0]} object,\n{scene[1]} ground", fontsize=9)
        axes[0, column].imshow(image.numpy())
        shown = []
        for row, values, (low, high) in ((1, by_hand, bounds[0]), (2, cost, bounds[1])):
            shown.append(
                _show(axes[row, column], values, side, cmap="viridis", vmin=low, vmax=high)
            )
        _show(axes[3, column], figures.shade(image, kept), side)
        for row in range(4):
            outline(axes[row, column], one.masks[0])
    _bare(axes)
    labels = ("image", "cost, tokens\nby hand", "cost, in\nthe network", "tokens kept")
    for row, label in enumerate(labels):
        axes[row, 0].set_ylabel(label, fontsize=9)
    for row, picture in zip((1, 2), shown, strict=True):
        figure.colorbar(picture, ax=axes[row, :], label="softplus(a)", shrink=0.9)
    figure.suptitle("Which tokens resemble their neighbours, and which are kept", fontsize=11)
    return figure


def _scene(
    model: nn.Module, one: ImageSet, scene: tuple[str, str], contrast: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The image (H, W, 3), cost by hand (h, w), cost in the network (h, w), mask (h, w)."""
    inside, outside = scene
    painted = repaint(one, inside=inside, outside=outside, contrast=contrast)
    seen = look(model, painted)
    grid = tuple(seen.mask.shape[2:])
    objects = F.adaptive_avg_pool2d(one.masks[:, None].float(), grid)[:, 0] > 0.5  # (1, h, w)
    by_hand = hand_made_cost(objects, inside=inside, outside=outside)
    return painted.images[0], by_hand[0, 0], seen.cost[0, 0], seen.mask[0, 0]


def scene_table(model: nn.Module, data: ImageSet, *, contrast: float = 0.3) -> Table:
    """All objects in the four scenes and as they are: cost, what is kept, AUC of the logit, accuracy.

    Args:
        model: a masked network.
        data: images with objects.
        contrast: as in `repaint`.
    """
    sets = {"as they are": data}
    for inside, outside in SCENES:
        painted = repaint(data, inside=inside, outside=outside, contrast=contrast)
        sets[f"{inside} object, {outside} ground"] = painted
    rows = []
    for words, images in sets.items():
        seen, truth = look(model, images), images.masks
        size = tuple(truth.shape[1:])
        kept = object_masks.mask_scores(
            object_masks.to_pixels(seen.mask, size, smooth=False), truth
        )
        cost = object_masks.to_pixels(seen.cost, size, smooth=False).double()  # (N, H, W)
        area = object_masks.auc(resize(-seen.logit[:, 0], size), truth)
        means = [(cost * part).sum((1, 2)) / part.sum((1, 2)) for part in (truth, ~truth)]
        right = (seen.predicted == images.labels).double()
        rows.append(
            [
                words,
                *[f"{each.nanmean():.2f}" for each in means],
                f"{100 * kept['kept_on_object'].nanmean():.0f}",
                f"{100 * kept['kept_on_background'].nanmean():.0f}",
                f"{area.nanmean():.2f}",
                f"{100 * right.mean():.0f}",
            ]
        )
    header = [
        "scene",
        "cost, object",
        "cost, ground",
        "object kept [%]",
        "ground kept [%]",
        "AUC of the logit",
        "accuracy [%]",
    ]
    caption = f"{len(data):,} objects, one network; cost is softplus(a), noise of {contrast:g}"
    return Table(header=header, rows=rows, caption=caption)


def roughness(images: Tensor, region: Tensor) -> Tensor:
    """Mean absolute step of grey from a pixel to its right or lower neighbour, both in the region.

    Args:
        images: uint8 (N, H, W, 3).
        region: bool (N, H, W).

    Returns:
        (N,), in units of 0 to 1; 0 where the region has no such pair.
    """
    grey = images.float().mean(3) / 255  # (N, H, W)
    total, pairs = torch.zeros(len(grey)), torch.zeros(len(grey))
    for axis in (1, 2):
        size = grey.shape[axis] - 1
        first, second = grey.narrow(axis, 0, size), grey.narrow(axis, 1, size)
        both = region.narrow(axis, 0, size) & region.narrow(axis, 1, size)
        total += ((second - first).abs() * both).sum((1, 2))
        pairs += both.sum((1, 2))
    return total / pairs.clamp_min(1)


def roughness_table(data: ImageSet, seen: Seen, *, parts: int = 4) -> Table:
    """What is kept of images as they are, sorted by how much rougher the object is than its ground.

    Args:
        data: images with objects.
        seen: of `look`, on these images.
        parts: so many equal groups.
    """
    truth, size = data.masks, tuple(data.masks.shape[1:])
    gap = roughness(data.images, truth) - roughness(data.images, ~truth)  # (N,)
    kept = object_masks.mask_scores(object_masks.to_pixels(seen.mask, size, smooth=False), truth)
    area = object_masks.auc(resize(-seen.logit[:, 0], size), truth)  # (N,)
    rows = []
    for number, chosen in enumerate(gap.argsort().chunk(parts), 1):
        rows.append(
            [
                f"{number} of {parts}",
                f"{100 * gap[chosen].mean():+.1f}",
                f"{100 * kept['kept_on_object'][chosen].nanmean():.0f}",
                f"{100 * kept['kept_on_background'][chosen].nanmean():.0f}",
                f"{kept['iou'][chosen].nanmean():.2f}",
                f"{area[chosen].nanmean():.3f}",
            ]
        )
    header = [
        "group",
        "object rougher by [% of white]",
        "object kept [%]",
        "ground kept [%]",
        "IoU of the mask",
        "AUC of the logit",
    ]
    caption = f"{len(data):,} images as they are, from the smoothest object to the roughest"
    return Table(header=header, rows=rows, caption=caption)


# --- backgrounds that lie --------------------------------------------------------------------------


def ground_table(record: Mapping) -> Table:
    """Kept share by class of a network trained on marked backgrounds, with the ground of the class.

    Args:
        record: of the network itself, on "shapes-spurious"; in its validation images the ground is
            mostly that of the class, in its test images it is drawn by lot.
    """
    metrics = record["metrics"]
    columns = [part["mask"]["kept_by_class"] for part in (metrics["validation"], metrics)]
    order = sorted(range(len(shapes.CLASSES)), key=lambda k: -(columns[0][k] or 0))
    rows = [
        [
            shapes.BACKGROUNDS[k],
            shapes.CLASSES[k],
            *["–" if c[k] is None else f"{100 * c[k]:.0f}" for c in columns],
        ]
        for k in order
    ]
    header = ["ground", "of the class", "kept with its ground [%]", "kept on grounds by lot [%]"]
    return Table(header=header, rows=rows, caption=f"Tokens kept by class, {record['name']}")


def three_backgrounds(data: ImageSet, count: int) -> tuple[dict[str, ImageSet], Tensor]:
    """The same objects on backgrounds that tell the truth, lie, or are unmarked, as in the suite.

    Args:
        data: textured shapes, for their normalisation and classes.
        count: objects are drawn until so many have a background that lies.

    Returns:
        {condition of `CONDITIONS`: N images} and the class that each lying background stands for, (N,).
    """
    shares = {"truth": 1.0, "lies": 0.0, "unmarked": None}
    seed, side = lab_data.SHAPES_SEED["test"], data.images.shape[1]
    drawn = 2 * count + 20  # nine in ten lie
    made = {
        name: shapes.textured_shapes(drawn, seed=seed, spurious=share, size=side)
        for name, share in shares.items()
    }
    lying = (made["lies"].backgrounds != made["lies"].labels).nonzero()[:count, 0]  # (N,)
    sets = {
        name: replace(
            data,
            images=each.images.permute(0, 2, 3, 1).contiguous(),  # (drawn, H, W, 3)
            labels=each.labels,
            masks=each.masks,
        )[lying]
        for name, each in made.items()
    }
    return sets, made["lies"].backgrounds[lying]


def draw_backgrounds(
    sets: Mapping[str, ImageSet], kinds: Tensor, *, masked: nn.Module, dense: nn.Module
) -> Figure:
    """Each object on its three backgrounds, what is kept of it, and what both networks say.

    Args:
        sets, kinds: of `three_backgrounds`.
        masked, dense: networks trained on backgrounds that mostly tell the truth.
    """
    (first, *_) = sets.values()
    count, side = len(first), first.images.shape[1]
    figure, axes = plt.subplots(
        2 * len(sets), count, figsize=(1.45 * count + 0.6, 3.4 * len(sets)), squeeze=False
    )
    for part, (name, images) in enumerate(sets.items()):
        seen = look(masked, images)
        said = inference.predict(dense, images).argmax(1)
        top, bottom = axes[2 * part], axes[2 * part + 1]
        for column in range(count):
            top[column].imshow(images.images[column].numpy())
            _show(bottom[column], figures.shade(images.images[column], seen.mask[column, 0]), side)
            outline(bottom[column], images.masks[column])
            if part == 0:
                top[column].set_title(first.classes[first.labels[column]], fontsize=9)
            words = []
            for network, answer in (("dense", said), ("masked", seen.predicted)):
                answer = answer[column].item()
                mark = "✓" if answer == images.labels[column] else "✗"
                if name == "lies" and answer == kinds[column]:
                    mark = "✗ follows"
                words.append(f"{network}: {images.classes[answer]} {mark}")
            bottom[column].set_xlabel("\n".join(words), fontsize=7)
        top[0].set_ylabel(f"background\n{CONDITIONS[name]}", fontsize=9)
        bottom[0].set_ylabel("tokens kept", fontsize=9)
    _bare(axes)
    figure.suptitle("One object, three backgrounds, true objects outlined", fontsize=11)
    return figure
