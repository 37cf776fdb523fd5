"""Tables and pictures of the chapter on objects: does the mask see them, and does a background lie?

Tables are drawn from the records of the suite `objects` (on textured shapes). Claim (d),
masks isolate objects, is judged by the criterion of the ledger, with intervals paired over seeds and
images: AUC of the logit against the centre prior and against Grad-CAM of the dense network; IoU of the
mask against that of keeping everything. Pictures are drawn from networks.

Where a record is missing, a table says "not yet run".
"""

from __future__ import annotations

import io
import math
import statistics as plain_statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from ersm_lab.common import checks
from ersm_lab.evaluation import inference, object_masks
from ersm_lab.images.data import ImageSet
from ersm_lab.results import answer_bits, records, statistics
from ersm_lab.results.statistics import Difference
from ersm_lab.views import figures
from ersm_lab.views.frames import frame_slider
from ersm_lab.views.tables import NOT_RUN, Table, mean_sd
from ersm_lab.views.widgets import Widget

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
    overlap = mean_sd([r["metrics"]["keep_everything"]["mean"] for r in known], digits=3)
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
        text = mean_sd(values, digits=3)
        row.append(f"{text} ({missing})" if values and missing else text)
    return row


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
        xlabel="ROC AUC over the pixels of an image, mean over images  (dotted: at random)",
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
    first = {record["seed"]: answer_bits.by_image(record, one) for record in method}
    second = {record["seed"]: answer_bits.by_image(record, other) for record in base}
    if not first.keys() & second.keys():
        return None
    return statistics.paired(first, second)


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
            state = checks.state(mask)
            parts["mask"].append(state.mask)
            parts["logit"].append(state.logit)
            parts["cost"].append(state.pairwise / mask.lambda_pair)
    return Seen(**{name: torch.cat(found).cpu() for name, found in parts.items()})


# --- pictures --------------------------------------------------------------------------------------


def outline(axis: Axes, mask: Tensor) -> None:
    """Draw the border of an object, bool (H, W), black on white, so that it shows on any ground."""
    for width, colour in ((2.6, "white"), (1.1, "black")):
        axis.contour(mask.cpu().float().numpy(), levels=[0.5], colors=colour, linewidths=width)


def show(axis: Axes, picture: np.ndarray | Tensor, side: int, **style):
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
        show(axes[1, column], figures.shade(images.images[column], seen.mask[column, 0]), side)
        words = f"{100 * seen.mask[column].mean():.0f} % kept"
        if overlap is not None:
            words += f"\nIoU {overlap[column]:.2f}"
        axes[1, column].set_xlabel(words, fontsize=8)
        logit = show(
            axes[2, column], seen.logit[column, 0], side, cmap="RdBu_r", vmin=-bound, vmax=bound
        )
        show(axes[3, column], cams[column].cpu(), side, cmap="viridis")
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
    objects = _objects(images)
    if steps < 3 or steps % 2 == 0:
        raise ValueError(f"steps must be odd and at least 3, so that 0 is among them, got {steps}")
    low, high = (torch.quantile(logits.flatten()[:1_000_000], q).item() for q in (0.02, 0.98))
    half = steps // 2 + 1
    low, high = min(low, -0.1), max(high, 0.1)  # a mask that keeps all or nothing has a slider, too
    cuts = [*np.linspace(low, 0, half), *np.linspace(0, high, half)[1:]]
    side = images.images.shape[1]
    pixels = object_masks.to_pixels(logits, (side, side), smooth=False)  # (N, H, W)
    truth = objects.double()  # (N, H, W)
    kept = [(pixels < cut).double() for cut in cuts]
    overlap = [object_masks.iou(each, objects) for each in kept]  # (N,) each
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


def _objects(images: ImageSet) -> Tensor:
    """Where the objects are, bool (N, H, W)."""
    if images.masks is None:
        raise ValueError("where the objects are is not known: take textured shapes")
    return images.masks


def _slider_canvas(images: ImageSet, shown: int, off: np.ndarray, on: np.ndarray):
    """Figure, axes of the images, axis of the curve and its dot: frames differ in what they hold."""
    columns = max(math.ceil(shown / 2), 1)
    figure = plt.figure(figsize=(7.0, 3.2), dpi=100)
    grid = figure.add_gridspec(2, columns + 2, width_ratios=[*[1] * columns, 1.1, 1.1])
    axes = []
    side, masks = images.images.shape[1], _objects(images)
    for column in range(shown):
        axis = figure.add_subplot(grid[column // columns, column % columns])
        show(axis, figures.shade(images.images[column], torch.ones(side, side)), side)
        outline(axis, masks[column])
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


# --- backgrounds that lie --------------------------------------------------------------------------


def draw_backgrounds(
    sets: Mapping[str, ImageSet], kinds: Tensor, *, masked: nn.Module, dense: nn.Module
) -> Figure:
    """Each object on its three backgrounds, what is kept of it, and what both networks say.

    Args:
        sets: {condition of `CONDITIONS`: the same N objects}.
        kinds: the class that each lying background stands for, (N,).
        masked, dense: networks trained on backgrounds that mostly tell the truth.
    """
    (first, *_) = sets.values()
    count, side = len(first), first.images.shape[1]
    figure, axes = plt.subplots(
        2 * len(sets), count, figsize=(1.45 * count + 0.6, 3.4 * len(sets)), squeeze=False
    )
    for part, (name, images) in enumerate(sets.items()):
        seen = look(masked, images)
        said, masks = inference.predict(dense, images).argmax(1), _objects(images)
        top, bottom = axes[2 * part], axes[2 * part + 1]
        for column in range(count):
            top[column].imshow(images.images[column].numpy())
            show(bottom[column], figures.shade(images.images[column], seen.mask[column, 0]), side)
            outline(bottom[column], masks[column])
            if part == 0:
                top[column].set_title(first.classes[first.labels[column]], fontsize=9)
            words = []
            for network, answers in (("dense", said), ("masked", seen.predicted)):
                answer = int(answers[column])
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
