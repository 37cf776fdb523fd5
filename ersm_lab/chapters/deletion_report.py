"""Tables of deletion, drawn from the records of the suite `deletion`, and the slider of its chapter.

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

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from scipy import stats
from torch import Tensor, nn

from ersm_core import EnergyMask
from ersm_lab.evaluation import rankings
from ersm_lab.evaluation.deletion import keep_masks
from ersm_lab.evaluation.deletion_insertion import CONVENTIONS, GAMES, Convention
from ersm_lab.evaluation.inference import evaluating, replaced_mask
from ersm_lab.evaluation.rankings import RANKINGS
from ersm_lab.images.data import ImageSet
from ersm_lab.results import answer_bits, statistics
from ersm_lab.results.statistics import Difference, marks, paired
from ersm_lab.views import figures
from ersm_lab.views.frames import frame_slider
from ersm_lab.views.tables import NOT_RUN, Table, mean_sd
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
    "random": "random order",
    "centre": "centre prior",
    "edges": "edge strength",
}
CONSTANT = "constant"  # a map that is the same everywhere is no ranking
OURS = "our test"
STANDARD_ERRORS = 2.0  # beyond so many, a ranking is told apart from a random order
SLIDER = tuple(k / 20 for k in range(20))  # shares of the tokens, 0 to 95 %
BATCH = 250  # images a pass
BAR, GAP = 28, 6  # pixels: a strip below an image, and between the images of a frame

Groups = Mapping[str, Sequence[dict]]
Choice = tuple[str, str]  # a method and a ranking


def recorded(
    methods: Sequence[str] = METHODS, *, dataset: str = "cifar10", scale: str = "laptop"
) -> dict[str, list[dict]]:
    """The suite's records of several methods, {method: those of its seeds}; empty where none is."""
    where = dict(dataset=dataset, scale=scale)
    return {method: statistics.of(f"{method}.deletion", **where) for method in methods}


# --- our test: areas and their differences ---------------------------------------------------------


def areas_by_image(record: Mapping) -> dict[str, np.ndarray]:
    """Share of the fractions at which each image is classified rightly, {ranking: (N,)}.

    Its mean over images is the AUC of our test.
    """
    found: dict[str, list[np.ndarray]] = {}
    for condition, right in answer_bits.by_condition(record).items():
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
                cells.append(mean_sd(values, factor=100, digits=2))
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


# --- the published conventions ---------------------------------------------------------------------


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
        areas = {name: _over_seeds(group, "area", *place, name)[0] for name in names}
        found[test] = {name: sign * area for name, area in areas.items() if area is not None}
    return found


def apart_from_random(groups: Groups, method: str) -> dict[str, dict[str, bool]]:
    """Whether each test tells a ranking from a random order, {test: {ranking: bool}}.

    By our test: the paired difference is marked, corrected for the number of rankings. By the others:
    the mean difference, image by image, is beyond two standard errors over images.
    """
    group = groups[method]
    names = _ordering(group)
    chance = (method, "random")
    gaps = [gap(groups, (method, name), chance) if name != "random" else None for name in names]
    told = [mark != "" for mark in marks(gaps, least_seeds=1)]
    found = {OURS: dict(zip(names, told, strict=True))}
    for test, place in _tests().items():
        pairs = {name: _over_seeds(group, "minus_random", *place, name) for name in names}
        found[test] = {
            name: minus is not None and error is not None and abs(minus) > STANDARD_ERRORS * error
            for name, (minus, error) in pairs.items()
        }
    return found


def order(groups: Groups, method: str, *, unit: str) -> Table:
    """The place of every ranking by our test and by the conventions on tokens or on pixels.

    1 is the best; in brackets if not told apart from a random order. The last row is Kendall's tau of
    each test's order with that of our test, 1 for the same.

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
    apart = apart_from_random(groups, method)
    rows = []
    for name in sorted(places[OURS], key=places[OURS].__getitem__):
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
    caption += "; in brackets: not told apart from a random order"
    header = ["ranking", *[test.removeprefix(f"{unit}, ") for test in found]]
    return Table(header=header, rows=rows, caption=caption)


def ranks(values: Mapping[str, float]) -> dict[str, int]:
    """{ranking: its place}, 1 for the highest score; ties share the better place."""
    places = stats.rankdata([-value for value in values.values()], method="min")
    return dict(zip(values, places.astype(int).tolist(), strict=True))


def kendall(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Kendall's tau-b of two tests' scores of the same rankings, -1 to 1."""
    return float(stats.kendalltau([*one.values()], [other[name] for name in one]).statistic)


# --- a network at work ----------------------------------------------------------------------------


def answers(
    model: nn.Module,
    data: ImageSet,
    layer: str,
    importance: Tensor,
    *,
    fractions: Sequence[float],
) -> Tensor:
    """What a network says while its least important tokens are deleted, from a mask of ones.

    Args:
        model: with or without an energy mask at the layer.
        data: images.
        layer: whose tokens, as in `rankings`.
        importance: (N, h, w), low is deleted first.
        fractions: of the tokens, each from 0 to 1.

    Returns:
        Probabilities (fractions, N, classes).
    """
    stage = rankings.token_stage(model, layer)
    mask = stage if isinstance(stage, EnergyMask) else None
    keep = [keep_masks(importance, fraction) for fraction in fractions]  # (N, h, w) each
    found, begin = [], 0
    with evaluating(model):
        for x, _ in data.inputs(BATCH):
            with replaced_mask(mask, torch.ones_like) if mask else nullcontext():
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


def _fill(fill: str | None) -> str:
    words: dict[str | None, str] = {
        "zero": "0",
        "blur": "the blurred image's",
        "minimum": "the least value",
    }
    return words[fill]


def _step(convention: Convention) -> str:
    kind, size = convention.step
    if kind == "units":
        return "one unit" if size == 1 else f"{size} units"
    if kind == "rows":
        return "as many as a row has" if size == 1 else f"as many as {size} rows have"
    return f"1/{size} of all"


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


def _seeds(group: Sequence[dict]) -> str:
    return f"{len(group)} seed{'s' if len(group) != 1 else ''}"
