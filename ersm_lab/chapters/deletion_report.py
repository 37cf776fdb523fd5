"""Tables and pictures of the deletion chapter, drawn from the records of the suite `deletion`.

Two tests stand side by side. *Our test* (`deletion`) deletes the least important tokens first, from a
mask of ones, and follows the accuracy; its area, AUC, is the mean accuracy over the fractions, higher
is better. The *conventions* (`deletion_insertion`) change the most important units first and follow a
probability; each has its own start, fill, step and area.

Two comparisons are kept apart: rankings within one network, where nothing but the order differs, and
networks against each other, each under a ranking of its own, where training differs as well. All
differences are paired over seeds and images (`statistics.paired`), 95 % intervals.

Every function takes `groups`, {method: the records of its seeds}, as `recorded` reads them, and says
"not yet run" where a method has none.
"""

from __future__ import annotations

import math
import statistics as plain_statistics
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from scipy import stats
from torch import Tensor, nn

from ersm_core import EnergyMask
from ersm_lab import judging
from ersm_lab.evaluation import inference, rankings
from ersm_lab.evaluation.deletion import keep_masks
from ersm_lab.evaluation.deletion_insertion import CONVENTIONS, GAMES, Convention, blurred
from ersm_lab.evaluation.inference import evaluating, replaced_mask
from ersm_lab.evaluation.rankings import RANKINGS
from ersm_lab.images.data import ImageSet
from ersm_lab.results import records
from ersm_lab.results.statistics import Difference, marks, paired
from ersm_lab.views import figures
from ersm_lab.views.figures import MARKERS
from ersm_lab.views.frames import frame_slider
from ersm_lab.views.tables import Table
from ersm_lab.views.widgets import Widget

METHODS = ("ablation-dense", "ablation-ersm", "gentle", "random-half")
WORDS = {
    "energy": "full energy e",
    "unary": "its unary part u",
    "logit": "logit z",
    "magnitude": "magnitude",
    "magnitude_masked": "magnitude after the mask",
    "grad_cam": "Grad-CAM",
    "integrated_gradients": "integrated gradients, image",
    "token_integrated_gradients": "integrated gradients, tokens",
    "random": "by lot",
    "centre": "centre prior",
    "edges": "edge strength",
}
NOT_RUN = "not yet run"
CONSTANT = "constant"  # a map that is the same everywhere is no ranking
OURS = "our test"
MARGIN = 1.0  # points that another mask must cost, and that a mask of ones may cost
STANDARD_ERRORS = 2.0  # beyond so many, a ranking is told apart from lots
FILLS = {"zero": "mean colour (0)", "blur": "blurred", "minimum": "least value"}
SLIDER = tuple(k / 20 for k in range(20))  # shares of the tokens, 0 to 95 %
BATCH = 250  # images a pass
BAR, GAP = 28, 6  # pixels: a strip below an image, and between the images of a frame

Groups = Mapping[str, Sequence[dict]]
Choice = tuple[str, str]  # a method and a ranking


def recorded(
    methods: Sequence[str] = METHODS,
    *,
    suite: str | None = "deletion",
    dataset: str = "cifar10",
    scale: str = "laptop",
) -> dict[str, list[dict]]:
    """The records of several methods, read once: {method: those of its seeds}, empty where none is.

    Args:
        methods: names of the trained networks.
        suite: of `judging`; None takes the records of the trainings themselves.
        dataset, scale: which records.
    """
    names = {method: method if suite is None else f"{method}.{suite}" for method in methods}
    every = records.read_all(scale=scale, dataset=dataset)
    return {m: [r for r in every if r["method"] == name] for m, name in names.items()}


# --- whether a mask may be shown -------------------------------------------------------------------


def mask_costs(record: Mapping) -> dict[str, float]:
    """What it costs to replace a trained network's mask, in points of accuracy.

    Args:
        record: of the training of a network with a mask.

    Returns:
        mean: by the mean mask, overall or at each position, whichever costs less; other: by another
            image's; ones: by ones.

    Raises:
        ValueError: a record of a network without a mask.
    """
    metrics = record["metrics"]
    if "accuracy_with_mask_replaced" not in metrics:
        raise ValueError(f"{record['name']} has no mask to replace: give one of a masked network")
    replaced = metrics["accuracy_with_mask_replaced"]
    own = metrics["test_accuracy"]
    return {
        "mean": 100 * (own - max(replaced["uniform"], replaced["position_mean"])),
        "other": 100 * (own - replaced["other_image"]),
        "ones": 100 * (own - replaced["ones"]),
    }


def may_be_shown(record: Mapping, *, margin: float = MARGIN) -> bool:
    """Whether a picture of a network's mask says something about the image.

    The mean mask and another image's must each cost at least `margin` points, or the mask is a
    pattern; a mask of ones must cost less than `margin`, or the network is off its scale where
    the deletion test starts.
    """
    costs = mask_costs(record)
    return costs["mean"] >= margin and costs["other"] >= margin and costs["ones"] < margin


def mask_tests(trained: Groups, *, margin: float = MARGIN) -> Table:
    """The three tests of every mask, lowest to highest cost over seeds.

    Args:
        trained: {method: records of the trainings}, of `recorded(..., suite=None)`.
        margin: as in `may_be_shown`.
    """
    rows = []
    for method, group in trained.items():
        if not group:
            rows.append([method, "0", *[NOT_RUN] * 3, "–"])
            continue
        costs = [mask_costs(record) for record in group]
        cells = [_span([cost[name] for cost in costs]) for name in ("mean", "other", "ones")]
        passed = all(may_be_shown(record, margin=margin) for record in group)
        rows.append([method, str(len(group)), *cells, "yes" if passed else "no"])
    header = ["network", "seeds", "mean mask", "another image's", "ones", "may be shown"]
    caption = (
        f"What the replaced mask costs, points of test accuracy, lowest to highest over seeds; shown "
        f"if the first two cost at least {margin:g} and ones less than {margin:g}, in every seed"
    )
    return Table(header=header, rows=rows, caption=caption)


def _span(values: Sequence[float]) -> str:
    low, high = _signed(min(values), 1), _signed(max(values), 1)
    return low if low == high else f"{low} to {high}"


# --- our test: areas and their differences ---------------------------------------------------------


def areas_by_image(record: Mapping) -> dict[str, np.ndarray]:
    """Share of the fractions at which each image is classified rightly, {ranking: (N,)}.

    Its mean over images is the AUC of our test.
    """
    found: dict[str, list[np.ndarray]] = {}
    for condition, right in judging.answers_by_condition(record).items():
        found.setdefault(condition.partition(".")[0], []).append(right.numpy())
    return {ranking: np.mean(points, axis=0) for ranking, points in found.items()}


def is_constant(group: Sequence[dict], ranking: str) -> bool:
    """Whether a ranking's map is the same everywhere, for every image of every seed.

    Tokens then go in reading order. So it is with the energies of a mask by lot.
    """
    for record in group:
        found = record["metrics"]["area"]["token"][CONVENTIONS[0].name]["deletion"].get(ranking)
        if found is None or found["blank"] < record["metrics"]["curve_images"]:
            return False
    return bool(group)


def areas(groups: Groups) -> Table:
    """AUC of our test, a row a ranking and a column a network, mean ± sd over seeds, in percent."""
    rows = []
    for ranking in RANKINGS:
        cells = [WORDS[ranking]]
        for group in groups.values():
            values = [r["metrics"]["mean"].get(ranking) for r in group]
            if not group:
                cells.append(NOT_RUN)
            elif None in values:
                cells.append("–")
            elif is_constant(group, ranking):
                cells.append(CONSTANT)
            else:
                cells.append(_spread([100 * value for value in values]))
        rows.append(cells)
    header = ["ranking", *[f"{method} ({_seeds(group)})" for method, group in groups.items()]]
    caption = (
        f"AUC, mean accuracy while {_share_deleted(groups)} of the tokens are deleted, least important "
        "first, from a mask of ones; percent, mean ± standard deviation over seeds; higher is better"
    )
    return Table(header=header, rows=rows, caption=caption)


def gap(groups: Groups, first: Choice, second: Choice) -> Difference | None:
    """AUC of one network under one ranking minus that of another pair, in points; None without a pair.

    Args:
        groups: of `recorded`.
        first, second: (method, ranking) each.
    """
    one, other = (_areas_by_seed(groups, choice) for choice in (first, second))
    return paired(one, other) if one.keys() & other.keys() else None


def differences(groups: Groups, pairs: Sequence[tuple[Choice, Choice]], *, caption: str) -> Table:
    """Paired differences of AUC, a row for each pair of (method, ranking).

    Args:
        groups: of `recorded`.
        pairs: what is compared with what.
        caption: says what the table is for.
    """
    rows = []
    for first, second in pairs:
        cells = [_named(first), _named(second)]
        found = gap(groups, first, second)
        rows.append([*cells, *_in_words(found), _says(found)])
    header = ["network, ranking", "minus", "seeds", "difference", "95 % interval", "seed by seed"]
    header.append("the first is")
    caption = f"{caption}; AUC of our test, percentage points, paired over seeds and images"
    return Table(header=header, rows=rows, caption=caption)


def best(group: Sequence[dict], images: np.ndarray, *, of: Collection[str] = RANKINGS) -> str:
    """The ranking with the highest AUC, mean over seeds, on some of the images.

    Args:
        group: records of one network's seeds.
        images: bool (N,), those to choose by.
        of: rankings to choose from.
    """
    by_seed = [areas_by_image(record) for record in group]
    return max(
        [name for name in _ordering(group) if name in of],
        key=lambda name: np.mean([found[name][images].mean() for found in by_seed]),
    )


def under_its_best(
    group: Sequence[dict], *, of: Collection[str] = RANKINGS
) -> tuple[dict[int, np.ndarray], tuple[str, str]]:
    """Each image scored under the ranking that is best on the other half of the images.

    Chosen and judged on the same images, the best of many rankings looks better than it is.

    Args:
        group: records of one network's seeds.
        of: rankings to choose from.

    Returns:
        {seed: (N,)}, and the rankings chosen by the odd and by the even images.
    """
    count = len(next(iter(areas_by_image(group[0]).values())))
    even = np.arange(count) % 2 == 0  # (N,)
    by_odd, by_even = best(group, ~even, of=of), best(group, even, of=of)
    values = {}
    for record in group:
        found = areas_by_image(record)
        values[record["seed"]] = np.where(even, found[by_odd], found[by_even])
    return values, (by_odd, by_even)


def own_best(groups: Groups, *, base: str) -> Table:
    """Each network under its own best ranking, minus the base network under its own."""
    rest = under_its_best(groups[base]) if groups[base] else None
    rows = []
    for method, group in groups.items():
        if not group:
            rows.append([method, NOT_RUN, "–", "0", "–", "–", "–"])
            continue
        values, chosen = under_its_best(group)
        mean = _spread([100 * each.mean() for each in values.values()])
        found = None
        if rest and method != base and values.keys() & rest[0].keys():
            found = paired(values, rest[0])
        words = " / ".join(WORDS[name] for name in dict.fromkeys(chosen))
        cells = [str(len(values)), "–", "–", "–"] if found is None else _in_words(found)
        rows.append([method, words, mean, *cells])
    header = ["network", "its best ranking", "AUC", "seeds", f"minus {base}", "95 % interval"]
    caption = (
        "Every network under the ranking that is best for it, chosen on one half of the images and "
        "scored on the other, then the halves exchanged; percent and percentage points"
    )
    return Table(header=[*header, "seed by seed"], rows=rows, caption=caption)


# --- the published conventions ---------------------------------------------------------------------


def stated(groups: Groups) -> Table:
    """How our test and each convention make a curve, as the code that made the records holds it."""
    images = _counts(groups)
    rows: dict[str, list[str]] = {
        "order": ["least important first"],
        "starts": ["at a mask of ones, nothing deleted"],
        "a deleted token becomes": ["0"],
        "insertion begins with": ["–"],
        "step": [f"tenths of the tokens, {_share_deleted(groups)}"],
        "score": ["accuracy"],
        "class": ["the label"],
        "area": ["mean over the fractions"],
        "better": ["higher"],
        "images": [images["images"]],
    }
    for convention in CONVENTIONS:
        insertion = convention.insertion_fill
        after = "at its own mask, nothing changed"
        rows["order"].append("most important first")
        rows["starts"].append(
            after if convention.includes_start else "at its own mask, after one step"
        )
        rows["a deleted token becomes"].append(_fill(convention.deletion_fill))
        rows["insertion begins with"].append(_fill(insertion) if insertion else "has none")
        rows["step"].append(_step(convention))
        rows["score"].append(convention.score)
        rows["class"].append(
            "the label" if convention.target == "label" else "predicted at the start"
        )
        rows["area"].append(convention.area)
        rows["better"].append("deletion lower" + (", insertion higher" if insertion else ""))
        rows["images"].append(images["unit" if convention.step == ("units", 1) else "curve"])
    header = ["", OURS, *[convention.name for convention in CONVENTIONS]]
    body = [[name, *cells] for name, cells in rows.items()]
    caption = (
        "How each curve is made. On pixels a unit is a pixel, its start the image as it is and its "
        "fill in the normalised space of the network, where 0 is the mean colour"
    )
    return Table(header=header, rows=body, caption=caption)


def conventions(groups: Groups, method: str, *, unit: str) -> Table:
    """The published conventions side by side for one network, each with how it is made.

    Args:
        groups: of `recorded`.
        method: whose rankings.
        unit: "token" or "pixel".

    Raises:
        ValueError: another unit.
    """
    _check_unit(unit)
    group, places = groups[method], _places()
    header = [f"{unit}s", *[f"{convention.name}, {game}" for convention, game in places]]
    caption = f"{method} ({_seeds(group)}): area under the curve by {unit}s"
    rows = [
        ["starts", *[_starts(*place) for place in places]],
        ["fill", *[_fill_of(*place) for place in places]],
        ["step", *[_step(convention) for convention, _ in places]],
        ["area", *[convention.area for convention, _ in places]],
        ["better", *["lower" if game == "deletion" else "higher" for _, game in places]],
    ]
    if not group:
        return Table(header=header, rows=[*rows, [NOT_RUN, *["–"] * len(places)]], caption=caption)
    counts = [
        "unit_images" if convention.step == ("units", 1) else "curve_images"
        for convention, _ in places
    ]
    rows.append(["images", *[str(group[0]["metrics"][count]) for count in counts]])
    for ranking in RANKINGS:
        cells = [_mean_and_error(group, unit, *place, ranking) for place in places]
        if any(cell != "–" for cell in cells):
            rows.append([WORDS[ranking], *cells])
    caption += (
        "; mean over seeds ± the standard error over images of one network. Do not compare columns"
    )
    return Table(header=header, rows=rows, caption=caption)


# --- how the order changes -------------------------------------------------------------------------


def scores(groups: Groups, method: str) -> dict[str, dict[str, float]]:
    """How good each ranking is by every test, higher is better; areas of deletion change their sign.

    Rankings that are constant are left out, and so is the unary part, whose order is the logit's.

    Returns:
        {test: {ranking: mean over seeds}}; tests are `OURS` and "<unit>, <convention>, <game>".
    """
    group = groups[method]
    names = _ordering(group)
    if not names:
        return {}
    means = [r["metrics"]["mean"] for r in group]
    found = {OURS: {name: plain_statistics.fmean(m[name] for m in means) for name in names}}
    for test, place in _tests().items():
        sign = -1 if place[-1] == "deletion" else 1
        found[test] = {n: sign * _over_seeds(group, "area", *place, n)[0] for n in names}
    return found


def apart_from_lots(groups: Groups, method: str) -> dict[str, dict[str, bool]]:
    """Whether each test tells a ranking from lots, {test: {ranking: bool}}.

    By our test: the paired difference is marked, corrected for the number of rankings. By the others:
    the mean difference, image by image, is beyond two standard errors over images.
    """
    group = groups[method]
    names = _ordering(group)
    lots = (method, "random")
    gaps = [gap(groups, (method, name), lots) if name != "random" else None for name in names]
    told = [mark != "" for mark in marks(gaps, least_seeds=1)]
    found = {OURS: dict(zip(names, told, strict=True))}
    for test, place in _tests().items():
        pairs = {name: _over_seeds(group, "minus_random", *place, name) for name in names}
        found[test] = {
            name: error is not None and abs(minus) > STANDARD_ERRORS * error
            for name, (minus, error) in pairs.items()
        }
    return found


def order(groups: Groups, method: str, *, unit: str) -> Table:
    """The place of every ranking by our test and by the conventions on tokens or on pixels.

    1 is the best; in brackets if not told apart from lots. The last row is Kendall's tau of each
    test's order with that of our test, 1 for the same.

    Raises:
        ValueError: another unit.
    """
    _check_unit(unit)
    every = scores(groups, method)
    found = {test: each for test, each in every.items() if test == OURS or test.startswith(unit)}
    seeds = _seeds(groups[method])
    caption = f"{method} ({seeds}), conventions on {unit}s: places of the rankings, 1 is the best"
    if not found:
        return Table(header=["ranking"], rows=[[NOT_RUN]], caption=caption)
    places = {test: ranks(values) for test, values in found.items()}
    apart = apart_from_lots(groups, method)
    rows = []
    for name in sorted(places[OURS], key=places[OURS].get):
        cells = [
            str(places[test][name])
            if apart[test][name] or name == "random"
            else f"({places[test][name]})"
            for test in found
        ]
        rows.append([WORDS[name], *cells])
    rows.append(
        ["τ with our test", *[f"{kendall(found[OURS], each):+.2f}" for each in found.values()]]
    )
    caption += "; in brackets: not told apart from lots"
    header = ["ranking", *[test.removeprefix(f"{unit}, ") for test in found]]
    return Table(header=header, rows=rows, caption=caption)


def ranks(values: Mapping[str, float]) -> dict[str, int]:
    """{ranking: its place}, 1 for the highest score; ties share the better place."""
    places = stats.rankdata([-value for value in values.values()], method="min")
    return dict(zip(values, places.astype(int).tolist(), strict=True))


def kendall(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Kendall's tau-b of two tests' scores of the same rankings, -1 to 1."""
    return float(stats.kendalltau([*one.values()], [other[name] for name in one]).statistic)


# --- pictures of the records -----------------------------------------------------------------------


def draw_curves(groups: Groups, panels: Mapping[str, Sequence[Choice]]) -> Figure:
    """Accuracy over the share of deleted tokens, mean over seeds with the range as a band.

    Args:
        groups: of `recorded`.
        panels: {title: its lines}, each line a (method, ranking), at most six different ones. Where
            each panel is of one method its lines are named, and look alike, by ranking.
    """
    alone = all(len({method for method, _ in lines}) == 1 for lines in panels.values())
    lines = [choice for choices in panels.values() for choice in choices]
    keys = list(dict.fromkeys(ranking if alone else (m, ranking) for m, ranking in lines))
    cycle = list(plt.rcParams["axes.prop_cycle"])
    rows, columns = -(-len(panels) // 2), min(2, len(panels))
    size = (4.6 * columns if columns > 1 else 7.2, 3.9 * rows)
    settings = dict(sharex=True, sharey=True, squeeze=False)
    figure, axes = plt.subplots(rows, columns, figsize=size, **settings)
    for axis, (title, choices) in zip(axes.flat, panels.items(), strict=False):
        for method, ranking in choices:
            number = keys.index(ranking if alone else (method, ranking))
            style = cycle[number % len(cycle)] | {"marker": MARKERS[number % len(MARKERS)]}
            label = WORDS[ranking] if alone else _named((method, ranking))
            group = [r for r in groups.get(method, []) if ranking in r["metrics"]["accuracy"]]
            if not group:
                axis.plot([], [], label=f"{label}: {NOT_RUN}", **style)
                continue
            deleted = _percents(group[0])  # (F,)
            values = 100 * np.array(
                [[r["metrics"]["accuracy"][ranking][f"{x:g}"] for x in deleted] for r in group]
            )  # (seeds, F)
            axis.plot(deleted, values.mean(0), label=label, **style)
            band = {"color": style["color"], "alpha": 0.18, "linewidth": 0}
            axis.fill_between(deleted, values.min(0), values.max(0), **band)
        axis.set(title=title, xlabel="tokens deleted, least important first [%]")
        axis.tick_params(labelbottom=True)
        axis.legend(fontsize=8, loc="lower left")
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for row in axes:
        row[0].set_ylabel("test accuracy [%]")
    return figure


def draw_places(groups: Groups, method: str, *, marked: Sequence[str]) -> Figure:
    """How the order of the rankings changes from test to test: a line a ranking, the best on top.

    Args:
        groups: of `recorded`.
        method: whose rankings.
        marked: rankings drawn with a marker, at most six; the others are thin and grey.
    """
    found = scores(groups, method)
    figure, axis = plt.subplots(figsize=(10.5, 4.8))
    title = f"Places of the rankings by every test, {method} ({_seeds(groups[method])})"
    axis.set(title=title, ylabel="place  (1: best)")
    if not found:
        axis.text(0.5, 0.5, NOT_RUN, ha="center", transform=axis.transAxes)
        return figure
    places = {test: ranks(values) for test, values in found.items()}
    across = range(len(places))
    for name in places[OURS]:
        if name not in marked:
            line = [values[name] for values in places.values()]
            axis.plot(across, line, color="0.75", linestyle="-", linewidth=0.9, zorder=1)
    for name, marker in zip(marked, MARKERS, strict=False):
        if name in places[OURS]:
            line = [values[name] for values in places.values()]
            axis.plot(across, line, marker=marker, markersize=8, label=WORDS[name])
    axis.set_xticks(across, [test.replace(", ", "\n") for test in places], fontsize=8)
    axis.set_yticks(range(1, len(places[OURS]) + 1))
    axis.invert_yaxis()
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    return figure


# --- pictures of a network at work -----------------------------------------------------------------


def answers(
    model: nn.Module,
    data: ImageSet,
    layer: str,
    importance: Tensor,
    *,
    fractions: Sequence[float],
    start: str = "ones",
) -> Tensor:
    """What a network says while its least important tokens are deleted.

    Args:
        model: with or without an energy mask at the layer.
        data: images.
        layer: whose tokens, as in `rankings`.
        importance: (N, h, w), low is deleted first.
        fractions: of the tokens, each from 0 to 1.
        start: "ones", every token kept as it is; or "mask", what the network's own mask passes on.

    Returns:
        Probabilities (fractions, N, classes).

    Raises:
        ValueError: another start.
    """
    if start not in ("ones", "mask"):
        raise ValueError(f'start must be "ones" or "mask", got {start!r}')
    stage = rankings.token_stage(model, layer)
    opened = start == "ones" and isinstance(stage, EnergyMask)
    keep = [keep_masks(importance, fraction) for fraction in fractions]  # (N, h, w) each
    found, begin = [], 0
    with evaluating(model):
        for x, _ in data.inputs(BATCH):
            with replaced_mask(stage, torch.ones_like) if opened else nullcontext():
                whole = rankings.layer_tokens(model, layer, x)  # (B, C, H, W)
            side = whole.shape[2] // importance.shape[1]
            with rankings.rest_of_network(model, layer, x) as rest:
                said = []
                for kept in keep:
                    part = kept[begin : begin + len(x), None].to(whole)  # (B, 1, h, w)
                    part = part.repeat_interleave(side, 2).repeat_interleave(side, 3)
                    said.append(rest(whole * part).float().softmax(1))  # (B, K)
            found.append(torch.stack(said))
            begin += len(x)
    return torch.cat(found, 1).cpu()


def deleted_before(importance: Tensor) -> Tensor:
    """Share of its image's tokens that are deleted before each token, (N, h, w) -> same, 0 to 1.

    Rankings have units of their own; the places have none. Ties go in reading order, as in deletion.
    """
    flat = importance.flatten(1)  # (N, h w)
    place = flat.argsort(dim=1, stable=True).argsort(dim=1)  # (N, h w)
    return (place / flat.shape[1]).view_as(importance)


def draw_maps(image: Tensor, maps: Mapping[str, Tensor], *, title: str) -> Figure:
    """One image and, for each ranking, how late each of its tokens is deleted.

    Args:
        image: uint8 (H, W, 3).
        maps: {ranking: importance (h, w)}.
        title: of the figure.
    """
    columns = math.ceil((1 + len(maps)) / 2)
    figure, axes = plt.subplots(2, columns, figsize=(1.75 * columns + 0.9, 4.3), squeeze=False)
    axes.flat[0].imshow(image.cpu().numpy())
    axes.flat[0].set_title("image", fontsize=9)
    for axis, (name, importance) in zip(axes.flat[1:], maps.items(), strict=False):
        late = 100 * deleted_before(importance[None])[0].cpu().numpy()  # (h, w)
        shown = axis.imshow(late, vmin=0, vmax=100)
        axis.set_title(WORDS[name].replace(" after", "\nafter").replace(", ", ",\n"), fontsize=9)
    for axis in axes.flat:
        figures.bare(axis)
    for axis in axes.flat[1 + len(maps) :]:
        axis.set_visible(False)
    figure.colorbar(shown, ax=axes, label="deleted before it [% of tokens]", shrink=0.85)
    figure.suptitle(title, fontsize=11)
    return figure


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the slider: a network whose tokens go in the order of a ranking.

    Attributes:
        caption: above the column.
        model, layer: whose tokens.
        importance: (N, h, w), low is deleted first.
    """

    caption: str
    model: nn.Module
    layer: str
    importance: Tensor


def token_slider(
    columns: Sequence[Column],
    data: ImageSet,
    *,
    fractions: Sequence[float] = SLIDER,
    name: str = "token-deletion",
    zoom: int = 4,
) -> Widget:
    """Images whose tokens go one ranking beside the other, and what the network says to each.

    Under each image a bar has the probability of the right class, and beside it the class that is
    likeliest where that is another one.

    Args:
        columns: rankings.
        data: a few images, a row each.
        fractions: of the tokens deleted, one frame each.
        name: id of the element.
        zoom: pixels a pixel of the image takes.
    """
    said = [
        answers(c.model, data, c.layer, c.importance, fractions=fractions) for c in columns
    ]  # (F, N, K) each
    frames, labels = [], []
    for number, fraction in enumerate(fractions):
        rows = []
        for n in range(len(data)):
            cells = []
            for column, probabilities in zip(columns, said, strict=True):
                keep = keep_masks(column.importance[n : n + 1], fraction)[0]  # (h, w)
                picture = _with_tokens(data.images[n].cpu().numpy(), keep.cpu().numpy(), zoom)
                bar = _bar(probabilities[number, n], int(data.labels[n]), data.classes, zoom)
                cells.append(np.concatenate([picture, bar]))
            rows.append(figures.beside(cells, axis=1, gap=GAP, grey=255))
        frames.append(figures.beside(rows, axis=0, gap=GAP, grey=255))
        labels.append(f"{100 * fraction:.0f} % deleted")
    return frame_slider(
        frames,
        labels=labels,
        title="Tokens deleted, least important first, from a mask of ones",
        alt=(
            "Images without the tokens that each ranking calls least important, in columns, and under "
            "each a bar of the probability that the network gives to the right class."
        ),
        captions=[column.caption for column in columns],
        name=name,
        width=frames[0].shape[1],
    )


def draw_starts(
    model: nn.Module,
    data: ImageSet,
    layer: str,
    maps: Mapping[str, Tensor],
    *,
    fractions: Sequence[float] = SLIDER,
) -> Figure:
    """The same rankings of a masked network from two starts: a mask of ones, and its own mask.

    Args:
        model, data, layer: as in `answers`.
        maps: {ranking: importance (N, h, w)}.
        fractions: of the tokens deleted.
    """
    figure, axes = plt.subplots(1, 2, figsize=(8.8, 3.8), sharey=True)
    dropped = 100 * (1 - inference.collect_masks(model, data).mean().item())
    titles = {"ones": "starts from a mask of ones", "mask": "starts from the network's own mask"}
    for axis, (start, title) in zip(axes, titles.items(), strict=True):
        for (name, importance), marker in zip(maps.items(), MARKERS, strict=False):
            settings = dict(fractions=fractions, start=start)
            said = answers(model, data, layer, importance, **settings).argmax(2)  # (F, N)
            right = 100 * (said == data.labels.cpu()).double().mean(1).numpy()  # (F,)
            deleted = [100 * fraction for fraction in fractions]
            axis.plot(deleted, right, marker=marker, markersize=4, label=WORDS[name])
        axis.set(title=title, xlabel="tokens deleted, least important first [%]")
        words = "share that the mask drops, mean"
        axis.axvline(dropped, color="0.35", linestyle=":", linewidth=1.2, label=words)
    axes[0].set_ylabel("accuracy [%]")
    axes[1].legend(fontsize=8, loc="lower left")
    return figure


def fills(data: ImageSet) -> dict[str, Tensor]:
    """What an image is when all of its pixels are deleted, {fill: (N, 3, H, W)}, normalised."""
    x = data.normalise(data.images)  # (N, 3, H, W)
    return {
        "zero": torch.zeros_like(x),
        "blur": blurred(x),
        "minimum": x.amin((1, 2, 3), keepdim=True).expand_as(x),
    }


def draw_fills(
    model: nn.Module, data: ImageSet, importance: Tensor, *, fraction: float = 0.5
) -> Figure:
    """One image with its most important pixels replaced by each fill, and replaced altogether.

    Above each: the likeliest class and its probability.

    Args:
        model: a network.
        data: one image.
        importance: (1, H, W), of its pixels.
        fraction: of the pixels that are replaced in the upper row.
    """
    x = data.normalise(data.images)  # (1, 3, H, W)
    gone = ~keep_masks(-importance, fraction)[:, None]  # (1, 1, H, W), the most important
    figure, axes = plt.subplots(2, 4, figsize=(8.2, 4.8))
    pictures = {"as it is": (x, None)}
    for name, empty in fills(data).items():
        pictures[FILLS[name]] = (torch.where(gone, empty, x), empty)
    with evaluating(model):
        for column, (title, pair) in enumerate(pictures.items()):
            for row, picture in enumerate(pair):
                if picture is None:
                    axes[row, column].set_visible(False)
                    continue
                probability, said = model(picture).float().softmax(1)[0].max(0)
                axes[row, column].imshow(_colours(picture, data)[0])
                words = f"{data.classes[said]} {100 * probability:.0f} %"
                axes[row, column].set_title(f"{title}\n{words}" if row == 0 else words, fontsize=9)
    for axis in axes.flat:
        figures.bare(axis)
    axes[0, 0].set_ylabel(f"{100 * fraction:.0f} % replaced")
    axes[1, 1].set_ylabel("all replaced")
    return figure


def empties(networks: Mapping[str, nn.Module], data: ImageSet) -> Table:
    """What networks say of images without a single pixel left, by fill.

    Args:
        networks: {name: model}.
        data: images.
    """
    rows = []
    for name, model in networks.items():
        for fill, empty in fills(data).items():
            with evaluating(model):
                parts = [model(part).float().softmax(1) for part in empty.split(BATCH)]
            said = torch.cat(parts)  # (N, K)
            counts = torch.bincount(said.argmax(1), minlength=len(data.classes))  # (K,)
            right = (said.argmax(1) == data.labels).double().mean().item()
            share = counts.max().item() / len(data)
            rows.append(
                [
                    name,
                    FILLS[fill],
                    f"{data.classes[counts.argmax()]}, {100 * share:.0f} %",
                    f"{100 * said.max(1).values.mean().item():.0f} %",
                    f"{100 * right:.0f} %",
                ]
            )
    header = ["network", "fill", "commonest answer", "mean probability of its answer", "right"]
    caption = f"Every pixel replaced: what is said of {len(data)} empty images, {data.name}"
    return Table(header=header, rows=rows, caption=caption)


def _with_tokens(image: np.ndarray, keep: np.ndarray, zoom: int) -> np.ndarray:
    """uint8 (H, W, 3) and bool (h, w) -> enlarged, its deleted tokens grey with a stroke across."""
    big = image.repeat(zoom, 0).repeat(zoom, 1)  # (H zoom, W zoom, 3)
    side = big.shape[0] // keep.shape[0]
    gone = ~keep.repeat(side, 0).repeat(side, 1)  # (H zoom, W zoom)
    rows, columns = np.indices(gone.shape)
    stripe = (rows + columns) % side == 0
    return np.where(gone[..., None], np.where(stripe, 150, 205)[..., None], big).astype(np.uint8)


def _bar(probabilities: Tensor, label: int, classes: Sequence[str], zoom: int) -> np.ndarray:
    """A strip with the probability of the right class, uint8 (BAR, 32 zoom, 3)."""
    width = 32 * zoom
    strip = Image.new("RGB", (width, BAR), "white")
    draw = ImageDraw.Draw(strip)
    share = probabilities[label].item()
    draw.rectangle((0, 2, width - 1, 10), outline=(90, 90, 90), fill=(240, 240, 240))
    draw.rectangle((0, 2, round(share * (width - 1)), 10), fill=(0, 90, 150))
    said = int(probabilities.argmax())
    words = f"{classes[label]} {100 * share:.0f} %"
    if said != label:
        words += f" ({classes[said]})"
    draw.text((1, 13), words, fill=(20, 20, 20), font=ImageFont.load_default(11))
    return np.asarray(strip)


def _colours(x: Tensor, data: ImageSet) -> np.ndarray:
    """Normalised (B, 3, H, W) -> (B, H, W, 3), 0 to 1."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (data.mean, data.std))
    return (x.cpu() * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()


# --- the small print -------------------------------------------------------------------------------


def _areas_by_seed(groups: Groups, choice: Choice) -> dict[int, np.ndarray]:
    method, ranking = choice
    if ranking not in WORDS:
        raise ValueError(f"no ranking {ranking!r}: choose of {', '.join(WORDS)}")
    found = {r["seed"]: areas_by_image(r) for r in groups.get(method, [])}
    return {seed: areas_[ranking] for seed, areas_ in found.items() if ranking in areas_}


def _over_seeds(
    group: Sequence[dict], what: str, unit: str, convention: Convention, game: str, ranking: str
) -> tuple[float | None, float | None]:
    """Mean over seeds of a mean over images, and the standard error over images of one network.

    All seeds see the same images, so their errors do not average out: the root of the mean square.
    """
    found = [r["metrics"][what][unit][convention.name][game].get(ranking) for r in group]
    if None in found or any(each["mean"] is None for each in found):
        return None, None
    mean = plain_statistics.fmean(each["mean"] for each in found)
    errors = [each["standard_error"] for each in found]
    if None in errors:
        return mean, None
    return mean, math.sqrt(plain_statistics.fmean(error**2 for error in errors))


def _mean_and_error(
    group: Sequence[dict], unit: str, convention: Convention, game: str, ranking: str
) -> str:
    if is_constant(group, ranking):
        return CONSTANT
    mean, error = _over_seeds(group, "area", unit, convention, game, ranking)
    if mean is None:
        return "–"
    digits = 1 if convention.area == "sum of steps" else 3
    return f"{mean:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def _check_unit(unit: str) -> None:
    if unit not in ("token", "pixel"):
        raise ValueError(f'unit must be "token" or "pixel", got {unit!r}')


def _ordering(group: Sequence[dict]) -> list[str]:
    """The rankings of a network with an order of their own."""
    if not group:
        return []
    there = group[0]["metrics"]["mean"]
    return [n for n in RANKINGS if n in there and n != "unary" and not is_constant(group, n)]


def _tests() -> dict[str, tuple[str, Convention, str]]:
    """{"<unit>, <convention>, <game>": (unit, convention, game)}."""
    return {
        f"{unit}, {convention.name}, {game}": (unit, convention, game)
        for unit in ("token", "pixel")
        for convention, game in _places()
    }


def _places() -> list[tuple[Convention, str]]:
    return [
        (convention, game)
        for convention in CONVENTIONS
        for game in GAMES
        if game == "deletion" or convention.insertion_fill is not None
    ]


def _starts(convention: Convention, game: str) -> str:
    whole = "whole" if game == "deletion" else "empty"
    return whole if convention.includes_start else f"{whole}, after one step"


def _fill_of(convention: Convention, game: str) -> str:
    return _fill(convention.deletion_fill if game == "deletion" else convention.insertion_fill)


def _fill(fill: str) -> str:
    return {"zero": "0", "blur": "the blurred image's", "minimum": "the least value"}[fill]


def _step(convention: Convention) -> str:
    kind, size = convention.step
    if kind == "units":
        return "one unit" if size == 1 else f"{size} units"
    if kind == "rows":
        return "as many as a row has" if size == 1 else f"as many as {size} rows have"
    return f"1/{size} of all"


def _counts(groups: Groups) -> dict[str, str]:
    group = next((group for group in groups.values() if group), None)
    if group is None:
        return dict.fromkeys(("images", "curve", "unit"), NOT_RUN)
    metrics = group[0]["metrics"]
    return {
        "images": str(metrics["images"]),
        "curve": str(metrics["curve_images"]),
        "unit": str(metrics["unit_images"]),
    }


def _share_deleted(groups: Groups) -> str:
    group = next((group for group in groups.values() if group), None)
    if group is None:
        return "a growing share"
    shares = _percents(group[0])
    return f"{shares[0]:g} to {shares[-1]:g} %"


def _percents(record: Mapping) -> list[float]:
    """Per cent deleted at each point of our test, rising."""
    names = {name.partition(".")[2] for name in record["config"]["conditions"]}
    return sorted(float(name) for name in names)


def _named(choice: Choice) -> str:
    method, ranking = choice
    return f"{method}, {WORDS[ranking]}"


def _in_words(found: Difference | None) -> list[str]:
    if found is None:
        return ["0", NOT_RUN, "–", "–"]
    each = ", ".join(_signed(value, 1) for value in found.by_seed)
    return [str(len(found.seeds)), _signed(found.mean), _interval(found), each]


def _says(found: Difference | None) -> str:
    """Where the interval puts the first of two."""
    if found is None:
        return "–"
    if not found.excludes_zero:
        return "not told apart"
    return "ahead" if found.mean > 0 else "behind"


def _interval(found: Difference) -> str:
    return f"{_signed(found.low)} to {_signed(found.high)}"


def _signed(value: float, digits: int = 2) -> str:
    """With its sign, and without one of zero's two signs."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def _spread(values: Sequence[float]) -> str:
    spread = f" ± {plain_statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{plain_statistics.fmean(values):.2f}{spread}"


def _seeds(group: Sequence[dict]) -> str:
    return f"{len(group)} seed{'s' if len(group) != 1 else ''}"
