"""Occlusion, corruption, low resolution and attacks: what the records say, and what a mask does there.

The first part reads the records that `judging.judge` writes, `<method>.<suite>`, of every seed that is
there. A method without one is shown as "not yet run". Conditions are chosen by patterns of their
names, as in a shell: "random.*" are all occluders at random places, "*.5" all corruptions of severity
5, "clean" alone is the untouched image.

The second part looks at networks: pictures of what they are shown, whether a mask avoids an occluder,
what a mask could gain by it, what becomes of the tokens it drops, and what an attack does to it.
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor, nn

from ersm_core import EnergyMask
from ersm_lab import judging
from ersm_lab.evaluation import inference
from ersm_lab.evaluation.inference import evaluating, only_mask
from ersm_lab.images import perturbations
from ersm_lab.images.data import ImageSet
from ersm_lab.ledger import NOT_RUN, better
from ersm_lab.results import records
from ersm_lab.results import statistics as lab_statistics
from ersm_lab.results.statistics import Difference
from ersm_lab.views import figures
from ersm_lab.views.frames import frame_slider
from ersm_lab.views.tables import Table
from ersm_lab.views.widgets import Widget

CLEAN = "clean"
ATTACKS = {"fgsm": "FGSM", "pgd": "PGD-20", "autoattack": "AutoAttack"}
MARKERS = figures.MARKERS + "X*<>"
GAP = 6  # pixels between the pictures of a frame

Pattern = str | Sequence[str]


# --- records ---------------------------------------------------------------------------------------


def judged(
    method: str, suite: str, *, dataset: str = "cifar10", scale: str = "laptop"
) -> list[dict]:
    """The records of a suite of all seeds of a method, in order; none is an empty list."""
    folder = records.results_dir() / scale / dataset / f"{method}.{suite}"
    found = [records.read(path) for path in folder.glob("seed*.json")]
    return sorted(found, key=lambda record: record["seed"])


def matching(record: Mapping, pattern: Pattern) -> list[str]:
    """The conditions of a record that a pattern, or one of several, names.

    Raises:
        ValueError: none does.
    """
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    known = record["config"]["conditions"]
    names = [
        name
        for name in known
        if any(fnmatchcase(name, each) for each in patterns)
        and (name != CLEAN or CLEAN in patterns)
    ]
    if not names:
        raise ValueError(
            f"no condition of {record['name']} is named {pattern!r}: there are "
            f"{', '.join(known[:4])} and so on"
        )
    return names


def share_right(record: Mapping, pattern: Pattern) -> np.ndarray:
    """Share of the chosen conditions under which each image is classified rightly, (N,)."""
    right = judging.answers_by_condition(record)
    return np.mean([right[name].numpy() for name in matching(record, pattern)], axis=0)


def gap(
    method: str,
    base: str,
    suite: str,
    pattern: Pattern = "*",
    *,
    right_when_clean: bool = False,
    dataset: str = "cifar10",
    scale: str = "laptop",
) -> Difference | None:
    """Mean accuracy of one method minus that of another, paired over seeds and images.

    Args:
        method, base: of the records.
        suite: of `judging.SUITES`.
        pattern: of the conditions whose mean is taken, image by image.
        right_when_clean: only of the images that every network of both methods classifies rightly
            when they are untouched.
        dataset, scale: which records.

    Returns:
        The difference in points with its 95 % interval; None where no seed is recorded for both.
    """
    where = dict(dataset=dataset, scale=scale)
    groups = [{r["seed"]: r for r in judged(name, suite, **where)} for name in (method, base)]
    common = sorted(groups[0].keys() & groups[1].keys())
    if not common:
        return None
    shares = [{seed: share_right(group[seed], pattern) for seed in common} for group in groups]
    if right_when_clean:
        clean = [share_right(group[seed], CLEAN) for group in groups for seed in common]
        missed = np.min(clean, axis=0) < 1  # (N,)
        shares = [{s: np.where(missed, np.nan, v) for s, v in each.items()} for each in shares]
    return lab_statistics.paired(*shares)


# --- tables ----------------------------------------------------------------------------------------


def accuracy_table(
    methods: Sequence[str],
    suite: str,
    columns: Mapping[str, Pattern],
    *,
    dataset: str = "cifar10",
    scale: str = "laptop",
) -> Table:
    """Mean accuracy over groups of conditions beside that of untouched images, mean ± sd over seeds.

    Args:
        methods: one row each.
        suite: of `judging.SUITES`.
        columns: heading -> pattern of the conditions.
        dataset, scale: which records.
    """
    patterns = {"clean": CLEAN, **columns}
    groups = _groups(methods, suite, dataset, scale)
    rows = [
        [method, str(len(group))]
        + [
            _mean_sd([100 * share_right(r, pattern).mean() for r in group])
            for pattern in patterns.values()
        ]
        for method, group in groups.items()
    ]
    where = f"{suite.capitalize()}, {dataset}, {scale} scale"
    return Table(
        header=["method", "seeds", *patterns],
        rows=_say_not_run(rows),
        caption=f"{where}: accuracy in percent, mean ± sd over seeds{_of_images(groups)}",
    )


def drop_table(
    methods: Sequence[str],
    suite: str,
    pattern: Pattern = "*",
    *,
    dataset: str = "cifar10",
    scale: str = "laptop",
) -> Table:
    """What is lost against untouched images, in points, as a share, and among what was right before.

    Args:
        methods: one row each.
        suite: of `judging.SUITES`.
        pattern: of the conditions whose mean is taken.
        dataset, scale: which records.
    """
    groups, rows = _groups(methods, suite, dataset, scale), []
    for method, group in groups.items():
        columns: list[list[float]] = [[], [], [], [], []]
        for record in group:
            clean, under = share_right(record, CLEAN), share_right(record, pattern)  # (N,), (N,)
            a, b = clean.mean(), under.mean()
            stays = (clean * under).sum() / clean.sum()
            for column, value in zip(columns, (a, b, a - b, b / a, stays), strict=True):
                column.append(100 * value)
        rows.append([method, str(len(group)), *map(_mean_sd, columns)])
    header = ["method", "seeds", "clean [%]", "under it [%]", "lost [points]", "of clean [%]"]
    caption = (
        f"{suite.capitalize()}, {_said(pattern)}, {dataset}, {scale} scale: mean ± sd over seeds"
    )
    return Table(
        header=[*header, "right stays right [%]"],
        rows=_say_not_run(rows),
        caption=caption + _of_images(groups),
    )


def difference_table(
    pairs: Sequence[tuple[str, str]],
    suite: str,
    pattern: Pattern = "*",
    *,
    right_when_clean: bool = False,
    dataset: str = "cifar10",
    scale: str = "laptop",
) -> Table:
    """Paired differences with 95 % intervals and, of all images, what the ledger's rule calls them.

    Args:
        pairs: (method, the one that is subtracted), one row each.
        suite: of `judging.SUITES`.
        pattern: of the conditions whose mean is taken, image by image.
        right_when_clean: as in `gap`; then the rule, which speaks of all images, is not shown.
        dataset, scale: which records.
    """
    where, rows = dict(dataset=dataset, scale=scale), []
    for method, base in pairs:
        under = gap(method, base, suite, pattern, right_when_clean=right_when_clean, **where)
        row = [f"{method} − {base}"]
        if under is None:
            rows.append([*row, "0", NOT_RUN, *["–"] * (2 if right_when_clean else 4)])
            continue
        each = ", ".join(f"{value:+.2f}" for value in under.by_seed)
        row += [str(len(under.seeds)), f"{under.mean:+.2f}", _interval(under), each]
        if not right_when_clean:
            clean = gap(method, base, suite, CLEAN, **where)
            row += [f"{clean.mean:+.2f}", better(under)[0]]
        rows.append(row)
    header = ["difference", "seeds", "under it", "95 % interval", "seed by seed"]
    which = ", images that all of a row's networks classify rightly when clean"
    caption = (
        f"{suite.capitalize()}, {_said(pattern)}, {dataset}, {scale} scale: percentage points, "
        f"paired over seeds and images{which if right_when_clean else ''}"
    )
    groups = _groups([m for pair in pairs for m in pair], suite, dataset, scale)
    return Table(
        header=header if right_when_clean else [*header, "clean", "better?"],
        rows=rows,
        caption=caption + ("" if right_when_clean else _of_images(groups)),
    )


def attack_table(
    methods: Sequence[str], *, dataset: str = "cifar10", scale: str = "laptop"
) -> Table:
    """Accuracy under each attack and level, mean over seeds with Wilson's 95 % interval.

    The interval is that of one network and so many images: seeds, whose images are the same, do not
    narrow it.
    """
    groups = _groups(methods, "attacks", dataset, scale)
    conditions = _attack_conditions(groups)
    rows = []
    for method, group in groups.items():
        cells = []
        for name in conditions if group else ():
            right = np.mean([share_right(r, name).mean() for r in group])
            low, high = wilson(right, group[0]["metrics"]["images"])
            cells.append(f"{100 * right:.1f} ({100 * low:.0f} to {100 * high:.0f})")
        rows.append([method, str(len(group)), *(cells or ["–"] * len(conditions))])
    caption = (
        f"Attacks, {dataset}, {scale} scale: accuracy in percent, worst case over the direct attack and "
        "the surrogates, with 95 % intervals; levels in 1/255"
    )
    return Table(
        header=["method", "seeds", *map(_attack_words, conditions)],
        rows=_say_not_run(rows),
        caption=caption + _of_images(groups),
    )


def route_table(
    methods: Sequence[str], *, dataset: str = "cifar10", scale: str = "laptop"
) -> Table:
    """What surrogates add: accuracy by the route of the gradient, at each level, mean over seeds.

    "only by surrogates" counts images, of all seeds together, that the direct attack left.
    """
    groups, rows = _groups(methods, "attacks", dataset, scale), []
    routes = ("direct", "soft", "bpda")
    for method, group in groups.items():
        if not group:
            rows.append([method, "0", NOT_RUN, *["–"] * (len(routes) + 1)])
        for attack in ATTACKS if group else ():
            for level in group[0]["metrics"]["by_route"].get(attack, {}):
                seen = [r["metrics"]["by_route"][attack][level] for r in group]
                cells = [
                    f"{100 * statistics.fmean(s[route] for s in seen):.1f}"
                    if all(route in s for s in seen)
                    else "–"
                    for route in routes
                ]
                added = sum(r["metrics"]["only_by_surrogate"][attack][level] for r in group)
                of_all = sum(r["metrics"]["images"] for r in group)
                row = [method, str(len(group)), f"{ATTACKS[attack]} {level}/255", *cells]
                rows.append([*row, f"{added} of {of_all:,}"])
    header = ["method", "seeds", "attack", "direct [%]", "soft gate [%]", "passes all [%]"]
    return Table(
        header=[*header, "only by surrogates"],
        rows=rows,
        caption=f"Routes of the gradient, {dataset}, {scale} scale: accuracy under attack",
    )


def gradient_table(
    methods: Sequence[str], *, dataset: str = "cifar10", scale: str = "laptop"
) -> Table:
    """Whether there is a gradient to follow, mean over seeds of `attacks.GradientCheck.summary`."""
    groups, rows = _groups(methods, "attacks", dataset, scale), []
    for method, group in groups.items():
        found = [r["metrics"]["gradients"] for r in group]
        if not found:
            rows.append([method, "0", NOT_RUN, *["–"] * 3])
            continue
        steps = range(len(found[0]["agreement"]))
        cells = [_mean(found, "zero_share", 100, ".1f")]
        cells += [
            _mean([f["agreement"][i] for f in found], "median", 1, ".2f") for i in (*steps,)[:2]
        ]
        cells += [_mean(found, "through_mask_median", 1, ".2f")]
        rows.append([method, str(len(group)), *cells])
    header = ["method", "seeds", "no gradient [% of images]", "slope kept, tiny step"]
    caption = (
        "Median over images. Slope kept: measured over promised slope of the loss along its gradient; "
        "1 is a true derivative. Through the mask: part of the gradient that it passes back"
    )
    return Table(
        header=[*header, "slope kept, step of 1/255", "through the mask"],
        rows=rows,
        caption=caption,
    )


def left_after_table(
    methods: Sequence[str], *, dataset: str = "cifar10", scale: str = "laptop"
) -> Table:
    """Accuracy that is left after each part of the direct AutoAttack, mean over seeds, in percent."""
    groups, rows = _groups(methods, "attacks", dataset, scale), []
    parts = ("apgd-ce", "apgd-t", "fab-t", "square")
    for method, group in groups.items():
        if not group:
            rows.append([method, "0", NOT_RUN, *["–"] * len(parts)])
        for level in group[0]["metrics"]["left_after"].get("autoattack", {}) if group else ():
            found = [
                (r["metrics"]["left_after"]["autoattack"][level]["direct"], r["metrics"]["images"])
                for r in group
            ]
            cells = [
                f"{100 * statistics.fmean(left[part] / images for left, images in found):.1f}"
                for part in parts
            ]
            rows.append([method, str(len(group)), f"{level}/255", *cells])
    return Table(
        header=["method", "seeds", "within", *(f"after {part}" for part in parts)],
        rows=rows,
        caption=f"AutoAttack's four parts, {dataset}, {scale} scale: accuracy in percent",
    )


def wilson(share: float, images: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of an accuracy, 0 to 1, measured on so many images."""
    found = stats.binomtest(round(share * images), images).proportion_ci(confidence, "wilson")
    return float(found.low), float(found.high)


def _groups(methods: Sequence[str], suite: str, dataset: str, scale: str) -> dict[str, list[dict]]:
    return {m: judged(m, suite, dataset=dataset, scale=scale) for m in methods}


def _mean_sd(values: Sequence[float]) -> str:
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


def _mean(found: Sequence[Mapping], name: str, factor: float, form: str) -> str:
    values = [f[name] for f in found if f.get(name) is not None]
    return format(factor * statistics.fmean(values), form) if values else "–"


def _say_not_run(rows: Sequence[list[str]]) -> list[list[str]]:
    """Rows whose second cell, the number of seeds, is 0 say so in their third."""
    return [[*row[:2], NOT_RUN, *row[3:]] if row[1] == "0" else row for row in rows]


def _of_images(groups: Mapping[str, Sequence[Mapping]]) -> str:
    counts = sorted({r["metrics"]["images"] for group in groups.values() for r in group})
    if not counts:
        return f" ({NOT_RUN})"
    return f"; the first {' or '.join(f'{n:,}' for n in counts)} test images"


def _said(pattern: Pattern) -> str:
    names = [pattern] if isinstance(pattern, str) else list(pattern)
    return "mean of all conditions" if names == ["*"] else f"mean of {', '.join(names)}"


def _interval(found: Difference) -> str:
    return f"{found.low:+.2f} to {found.high:+.2f}"


def _attack_conditions(groups: Mapping[str, Sequence[Mapping]]) -> list[str]:
    """Clean, and every attack at every level that the records have."""
    names = [n for group in groups.values() for r in group for n in r["config"]["conditions"]]
    return [n for n in dict.fromkeys([CLEAN, *names]) if not n.startswith("worst")]


def _attack_words(condition: str) -> str:
    attack, _, level = condition.partition(".")
    return f"{ATTACKS[attack]} {level}" if attack in ATTACKS else condition


# --- curves ----------------------------------------------------------------------------------------


def draw_occlusion(
    methods: Sequence[str],
    panels: Mapping[str, str],
    *,
    relative: bool = False,
    dataset: str = "cifar10",
    scale: str = "laptop",
) -> Figure:
    """Accuracy against the side of the square, one panel a group of conditions.

    Args:
        methods: one line each.
        panels: title -> pattern of place and fill, such as "random.black".
        relative: as a share of the accuracy on the untouched images.
        dataset, scale: which records.
    """
    groups = _groups(methods, "occlusion", dataset, scale)
    rows = -(-len(panels) // 2) if len(panels) > 3 else 1
    columns = -(-len(panels) // rows)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(7.4, 0.5 + 2.7 * rows),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for axis, (title, pattern) in zip(axes.flat, panels.items(), strict=False):
        _curves(
            axis,
            groups,
            lambda record, pattern=pattern: (
                {0: CLEAN} | {size: f"{pattern}.{size}" for size in record["config"]["sizes"]}
            ),
            relative=relative,
        )
        axis.set_title(title)
    for axis in axes[-1]:
        axis.set_xlabel("side of the square [pixels]")
    for axis in axes[:, 0]:
        axis.set_ylabel("accuracy [% of clean]" if relative else "accuracy [%]")
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    what = "of the accuracy on whole images" if relative else "accuracy behind a square"
    _finish(figure, axes[0, 0], groups, f"Occlusion: {what}")
    return figure


def draw_resolution(
    methods: Sequence[str], *, dataset: str = "cifar10", scale: str = "laptop"
) -> Figure:
    """Accuracy against the resolution to which images were shrunk before they were enlarged again."""
    groups = _groups(methods, "resolution", dataset, scale)
    figure, axis = plt.subplots(figsize=(7.2, 3.9))
    _curves(
        axis,
        groups,
        lambda record: {32: CLEAN} | {size: str(size) for size in record["config"]["sizes"]},
    )
    axis.set(xlabel="pixels a side that are left", ylabel="accuracy [%]")
    axis.invert_xaxis()
    _finish(figure, axis, groups, "Low resolution")
    return figure


def draw_attacks(
    methods: Sequence[str], *, dataset: str = "cifar10", scale: str = "laptop"
) -> Figure:
    """Accuracy against the size of the attack, one panel an attack; bars are Wilson's intervals."""
    groups = _groups(methods, "attacks", dataset, scale)
    figure, axes = plt.subplots(1, len(ATTACKS), figsize=(7.4, 3.4), sharey=True)
    for axis, (attack, words) in zip(axes, ATTACKS.items(), strict=True):
        _curves(
            axis,
            groups,
            lambda record, attack=attack: (
                {0: CLEAN} | {level: f"{attack}.{level}" for level in record["config"]["levels"]}
            ),
            intervals=True,
        )
        axis.set(title=words, xlabel="largest change [1/255]")
    axes[0].set_ylabel("accuracy [%]")
    _finish(figure, axes[0], groups, "Attacks, worst case over routes", bars="95 % intervals")
    return figure


def draw_corruptions(
    methods: Sequence[str],
    *,
    base: str,
    dataset: str = "cifar10",
    scale: str = "laptop",
) -> Figure:
    """Difference of accuracy to a base method by kind and severity, in points, written in each cell."""
    where = dict(dataset=dataset, scale=scale)
    rest = {r["seed"]: r for r in judged(base, "corruption", **where)}
    kinds = perturbations.KINDS
    tables: dict[str, tuple[np.ndarray, int]] = {}
    for method in methods:
        both = {r["seed"]: r for r in judged(method, "corruption", **where) if r["seed"] in rest}
        table = np.full((len(kinds), len(perturbations.SEVERITIES)), np.nan)
        for row, kind in enumerate(kinds):
            for column, severity in enumerate(perturbations.SEVERITIES):
                name = f"{kind}.{severity}"
                gaps = [
                    share_right(r, name).mean() - share_right(rest[seed], name).mean()
                    for seed, r in both.items()
                    if name in r["config"]["conditions"]
                ]
                if gaps:
                    table[row, column] = 100 * np.mean(gaps)
        tables[method] = (table, len(both))
    seen = [np.abs(t[~np.isnan(t)]) for t, _ in tables.values()]
    bound = max([1.0, *(float(values.max()) for values in seen if len(values))])
    figure, axes = plt.subplots(
        1, len(methods), figsize=(1.9 + 1.9 * len(methods), 6.4), sharey=True, squeeze=False
    )
    for axis, (method, (table, seeds)) in zip(axes[0], tables.items(), strict=True):
        shades = axis.imshow(
            table, cmap="RdBu", norm=TwoSlopeNorm(0, -bound, bound), aspect="auto", alpha=0.6
        )
        for (row, column), value in np.ndenumerate(table):
            if not np.isnan(value):
                axis.text(column, row, f"{value:+.1f}", ha="center", va="center", fontsize=7.5)
        if not seeds:
            axis.text(2, len(kinds) / 2, NOT_RUN, ha="center", va="center")
        axis.set_title(f"{method}\n({_seeds(seeds)})", fontsize=10)
        axis.set_xticks(range(len(perturbations.SEVERITIES)), perturbations.SEVERITIES)
        axis.set_xlabel("severity")
        axis.grid(False)
        end = -0.5
        for members in perturbations.GROUPS.values():
            end += len(members)
            axis.axhline(end, color="black", linewidth=1, linestyle="-")
    axes[0, 0].set_yticks(range(len(kinds)), [kind.replace("_", " ") for kind in kinds])
    figure.suptitle(f"Accuracy minus that of {base}, by kind and severity")
    figure.colorbar(shades, ax=axes[0, -1], label="difference [points]", shrink=0.6)
    return figure


def _curves(
    axis: Axes,
    groups: Mapping[str, Sequence[dict]],
    conditions: Callable[[dict], dict[float, str]],
    *,
    relative: bool = False,
    intervals: bool = False,
) -> None:
    """A line a method: mean over seeds; bars are the range over seeds, or Wilson's intervals."""
    if not any(groups.values()):
        axis.set_ylim(0, 100)
        axis.text(0.5, 0.5, NOT_RUN, ha="center", va="center", transform=axis.transAxes)
    for number, (group, marker) in enumerate(zip(groups.values(), MARKERS, strict=False)):
        if not group:
            axis.errorbar([], [], marker=marker)  # its colour stays its own
            continue
        places = conditions(group[0])
        values = np.array(
            [[100 * share_right(r, name).mean() for name in places.values()] for r in group]
        )  # (seeds, places)
        if relative:
            values = 100 * values / values[:, :1]
        mean = values.mean(0)
        low, high = values.min(0), values.max(0)
        if intervals:
            images = group[0]["metrics"]["images"]
            low, high = 100 * np.array([wilson(value / 100, images) for value in mean]).T
        width = max(places) - min(places)
        x = np.array([*places]) + width * 0.006 * (number - (len(groups) - 1) / 2)
        bars = np.clip([mean - low, high - mean], 0, None)
        axis.errorbar(x, mean, bars, marker=marker, markersize=5, capsize=2, elinewidth=1)


def _finish(
    figure: Figure,
    axis: Axes,
    groups: Mapping[str, Sequence[dict]],
    title: str,
    *,
    bars: str = "range over seeds",
) -> None:
    """One legend for all panels, with the number of seeds; a title with the number of images."""
    handles = [container[0] for container in axis.containers]
    labels = [f"{method} ({_seeds(len(group))})" for method, group in groups.items()]
    counts = sorted({r["metrics"]["images"] for group in groups.values() for r in group})
    of = f", {' or '.join(f'{n:,}' for n in counts)} images" if counts else f": {NOT_RUN}"
    figure.suptitle(f"{title}{of}; bars: {bars}", fontsize=11)
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8.5)


def _seeds(count: int) -> str:
    return f"{count} seed{'s' if count != 1 else ''}" if count else NOT_RUN


# --- pictures --------------------------------------------------------------------------------------


def occluder_slider(
    model: nn.Module,
    data: ImageSet,
    *,
    sizes: Sequence[int] = perturbations.OCCLUDERS,
    position: str = "random",
    name: str = "occlusion-squares",
) -> Widget:
    """Images behind squares that grow, one column a fill, and below each the tokens a mask keeps.

    Args:
        model: with one energy mask.
        data: a few images, at least two.
        sizes: sides in pixels, one frame each after that of the whole images.
        position: of the squares.
        name: id of the element.
    """
    frames, labels = [], []
    for size in (0, *sizes):
        columns, kept = [], []
        for fill in perturbations.FILLS:
            shown = data
            if size:
                covered = perturbations.occlude(
                    data.images, size=size, position=position, fill=fill
                )
                shown = replace(data, images=covered)
            masks = inference.collect_masks(model, shown)  # (N, 1, h, w)
            kept.append(masks.mean().item())
            cells = []
            for image, mask in zip(shown.images, masks[:, 0], strict=True):
                striped = (255 * figures.shade(image, mask)[::2, ::2]).round().astype(np.uint8)
                zoom = len(striped) // len(image)
                plain = image.numpy().repeat(zoom, 0).repeat(zoom, 1)
                cells.append(figures.beside([plain, striped], axis=0, gap=GAP, grey=255))
            columns.append(figures.beside(cells, axis=0, gap=GAP, grey=255))
        frames.append(figures.beside(columns, axis=1, gap=GAP, grey=255))
        what = f"square of {size} pixels" if size else "whole images"
        labels.append(f"{what}, kept {', '.join(f'{100 * k:.0f}' for k in kept)} %")
    return frame_slider(
        frames,
        labels=labels,
        title="Test images behind a square, and the tokens that the mask keeps (the rest is striped)",
        alt="Images behind a square with four fills; below each the same with dropped tokens striped.",
        captions=perturbations.FILLS,
        name=name,
        width=frames[0].shape[1],
    )


def corruption_slider(
    models: Mapping[str, nn.Module],
    data: ImageSet,
    *,
    kinds: Sequence[str] = perturbations.KINDS,
    seed: int = 0,
    name: str = "occlusion-corruptions",
) -> Widget:
    """One image under every corruption, a frame a severity, and who still gets it right.

    Args:
        models: label -> network; the answers are below each picture.
        data: one image.
        kinds: of `perturbations.KINDS`.
        seed: of the corruptions.
        name: id of the element.

    Raises:
        ValueError: more than one image.
    """
    if len(data) != 1:
        raise ValueError(
            f"one image is shown under every corruption, got {len(data)}: give data[:1]"
        )
    frames, labels = [], []
    for severity in (0, *perturbations.SEVERITIES):
        images = data.images
        if severity:
            images = torch.cat(
                [perturbations.corrupt(data.images, kind, severity, seed=seed) for kind in kinds]
            )
        images = images.expand(len(kinds), -1, -1, -1)  # (kinds, H, W, 3)
        shown = replace(data, images=images, labels=data.labels.expand(len(kinds)))
        right = {n: inference.answers(model, shown).tolist() for n, model in models.items()}
        frames.append(_corruption_frame(images, kinds, right))
        counts = ", ".join(f"{n} {sum(r)} of {len(kinds)}" for n, r in right.items())
        labels.append(f"{f'severity {severity}' if severity else 'untouched'}: right {counts}")
    return frame_slider(
        frames,
        labels=labels,
        title=f"A test image ({data.classes[data.labels[0]]}) under every corruption",
        alt="The same image under every corruption, with a tick or a cross for each network.",
        name=name,
        width=720,
        milliseconds=900,
    )


def _corruption_frame(
    images: Tensor, kinds: Sequence[str], right: Mapping[str, Sequence[bool]]
) -> bytes:
    """A PNG of fixed size: six pictures a row, the name above, ticks and crosses below."""
    rows = -(-len(kinds) // 6)
    figure, axes = plt.subplots(rows, 6, figsize=(7.2, 1.62 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for number, (axis, kind) in enumerate(zip(axes.flat, kinds, strict=False)):
        axis.imshow(images[number].cpu().numpy())
        axis.set_title(kind.replace("_", " "), fontsize=8)
        says = "  ".join(f"{name} {'✓' if r[number] else '✗'}" for name, r in right.items())
        axis.text(0.5, -0.04, says, ha="center", va="top", fontsize=8, transform=axis.transAxes)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()


def draw_resolutions(data: ImageSet, models: Mapping[str, nn.Module]) -> Figure:
    """Images at falling resolution, with the answers of networks below.

    Args:
        data: a few images, one row each.
        models: label -> network.
    """
    sizes = (data.images.shape[1], *perturbations.LOW_RESOLUTIONS)
    figure, axes = plt.subplots(
        len(data), len(sizes), figsize=(7.2, 1.75 * len(data)), squeeze=False
    )
    for column, size in enumerate(sizes):
        shown = replace(data, images=perturbations.low_resolution(data.images, size))
        said = {n: inference.predict(model, shown).argmax(1) for n, model in models.items()}
        axes[0, column].set_title(f"{size} × {size} pixels", fontsize=9)
        for row, axis in enumerate(axes[:, column]):
            axis.imshow(shown.images[row].cpu().numpy())
            words = [f"{n}: {data.classes[c[row]]}" for n, c in said.items()]
            figures.bare(axis)
            axis.set_xlabel("\n".join(words), fontsize=8)
    return figure


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """Images before and after an attack, and the masks of both.

    Attributes:
        before, after: pixels (N, 3, H, W), 0 to 1.
        masks_before, masks_after: (N, 1, h, w).
        logits_before, logits_after: of the network, (N, classes).
        labels: (N,).
    """

    before: Tensor
    after: Tensor
    masks_before: Tensor
    masks_after: Tensor
    logits_before: Tensor
    logits_after: Tensor
    labels: Tensor

    @property
    def fooled(self) -> Tensor:
        """Right before and wrong after, bool (N,)."""
        right = self.logits_before.argmax(1) == self.labels
        return right & (self.logits_after.argmax(1) != self.labels)

    @property
    def flipped(self) -> Tensor:
        """Share of the tokens whose mask changed sides of one half, (N,)."""
        return ((self.masks_before > 0.5) != (self.masks_after > 0.5)).float().mean((1, 2, 3))


def attacked(
    model: nn.Module, data: ImageSet, *, epsilon: float, noise: bool = False, seed: int = 0
) -> Attacked:
    """Attack a masked network by PGD-20, or change each value by as much with a random sign.

    Args:
        model: with one energy mask.
        data: images.
        epsilon: largest change of a pixel, in units of 0 to 1.
        noise: random signs in place of the attack.
        seed: of the start, or of the signs.
    """
    from ersm_lab.evaluation import attacks

    network, mask = attacks.PixelNetwork(model, data), only_mask(model)
    pixels = attacks.pixels_of(data)  # (N, 3, H, W)
    generator = torch.Generator(pixels.device).manual_seed(seed)
    if noise:
        signs = torch.randint(2, pixels.shape, generator=generator, device=pixels.device) * 2 - 1
        after = (pixels + epsilon * signs).clamp(0, 1)
    else:
        with evaluating(model):
            after = attacks.pgd(network, pixels, data.labels, epsilon=epsilon, generator=generator)
    seen = []
    with evaluating(model):
        for x in (pixels, after):
            logits = network(x)  # (N, classes)
            seen.append((logits, mask.state.mask.clone()))
    return Attacked(
        before=pixels,
        after=after,
        masks_before=seen[0][1],
        masks_after=seen[1][1],
        logits_before=seen[0][0],
        logits_after=seen[1][0],
        labels=data.labels,
    )


def draw_attacked(
    found: Attacked, classes: Sequence[str], *, count: int = 2, magnify: float = 20
) -> Figure:
    """The first images that an attack fooled: before, after, the change enlarged, the mask's tokens.

    Args:
        found: of `attacked`.
        classes: names.
        count: rows at most.
        magnify: factor on the change, shown around a middle grey.
    """
    chosen = found.fooled.nonzero()[:count, 0].tolist()
    if not chosen:
        figure, axis = plt.subplots(figsize=(7.2, 1.2))
        axis.axis("off")
        axis.text(0.5, 0.5, "no image was right before and wrong after", ha="center")
        return figure
    figure, axes = plt.subplots(
        len(chosen), 5, figsize=(7.4, 1.7 * len(chosen) + 0.25), squeeze=False
    )
    titles = ("image", "attacked", f"change, × {magnify:g}", "tokens kept", "kept, attacked")
    for row, number in enumerate(chosen):
        before, after = (x[number].permute(1, 2, 0) for x in (found.before, found.after))
        change = (0.5 + magnify * (after - before)).clamp(0, 1)
        levels = [(255 * x).round().byte() for x in (before, after)]
        masks = [found.masks_before[number, 0], found.masks_after[number, 0]]
        shown = [*(x.numpy() for x in levels), change.numpy()]
        shown += [figures.shade(x, m) for x, m in zip(levels, masks, strict=True)]
        words = [
            f"{classes[logits[number].argmax()]}, {100 * logits[number].softmax(0).max():.0f} %"
            for logits in (found.logits_before, found.logits_after)
        ]
        flips = f"{100 * found.flipped[number]:.0f} % flipped"
        words += ["", *(f"{100 * m.mean():.0f} %" for m in masks)]
        words[-1] += f"; {flips}"
        for axis, picture, text in zip(axes[row], shown, words, strict=True):
            axis.imshow(picture)
            figures.bare(axis)
            axis.set_xlabel(text, fontsize=8)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    return figure


# --- does the mask avoid the occluder? -------------------------------------------------------------


def cover(
    images: Tensor, grid: tuple[int, int], *, size: int, position: str = "random", seed: int = 0
) -> Tensor:
    """Share of each token's pixels that lie behind the square of `perturbations.occlude`, (N, 1, h, w).

    Args:
        images: uint8 (N, H, W, 3).
        grid: h, w of the tokens.
        size, position, seed: of the square.
    """
    place = dict(size=size, position=position, seed=seed)
    black = torch.zeros_like(images)
    white = perturbations.occlude(black, fill=(255, 255, 255), **place)  # (N, H, W, 3)
    behind = (white[..., 0] > 0).float()[:, None]  # (N, 1, H, W)
    return F.adaptive_avg_pool2d(behind, grid)


def kept_by_place(
    model: nn.Module,
    data: ImageSet,
    *,
    size: int,
    fill: str | tuple[float, float, float],
    seed: int = 0,
    whole: Tensor | None = None,
) -> dict[str, np.ndarray]:
    """Kept share of each image's tokens wholly behind a square and wholly outside of it.

    Args:
        model: with one energy mask.
        data: images.
        size, fill, seed: of the square, at a random place, as `perturbations.occlude` takes them.
        whole: masks of the whole images, (N, 1, h, w), where they are known.

    Returns:
        {"inside", "outside": with the square; "inside whole", "outside whole": the same tokens of
        the whole image}, each (N,), 0 to 1; NaN where no token lies there.
    """
    place = dict(size=size, position="random", seed=seed)
    covered = replace(data, images=perturbations.occlude(data.images, fill=fill, **place))
    whole = inference.collect_masks(model, data) if whole is None else whole
    masks = {"": inference.collect_masks(model, covered), " whole": whole}
    behind = cover(data.images, tuple(whole.shape[2:]), **place)  # (N, 1, h, w)
    places = {"inside": (behind == 1).float(), "outside": (behind == 0).float()}
    return {
        place + of: ((mask * where).sum((1, 2, 3)) / where.sum((1, 2, 3))).cpu().numpy()
        for of, mask in masks.items()
        for place, where in places.items()
    }


def avoidance_table(
    models: Mapping[int, nn.Module],
    data: ImageSet,
    *,
    sizes: Sequence[int] = (8, 16),
    fills: Sequence[str | tuple[float, float, float]] = perturbations.FILLS,
    seed: int = 0,
) -> Table:
    """Whether fewer tokens are kept behind a square than at the same place of the whole image.

    Args:
        models: seed -> network with one energy mask.
        data: images.
        sizes, fills: of the squares, at random places.
        seed: of the places.
    """
    rows = []
    whole = {s: inference.collect_masks(model, data) for s, model in models.items()}
    for fill in fills:
        for size in sizes:
            found = {
                s: kept_by_place(model, data, size=size, fill=fill, seed=seed, whole=whole[s])
                for s, model in models.items()
            }
            row = [str(fill), str(size)]
            for place in ("inside", "outside"):
                now, before = (
                    {s: f[place + of] for s, f in found.items()} for of in ("", " whole")
                )
                change = lab_statistics.paired(now, before)
                means = [100 * np.nanmean([*each.values()]) for each in (before, now)]
                row += [
                    f"{means[0]:.0f} → {means[1]:.0f}",
                    f"{change.mean:+.1f}",
                    _interval(change),
                ]
            rows.append(row)
    header = ["fill", "pixels", "kept behind it [%]", "change", "95 % interval"]
    caption = (
        f"{len(data):,} images of {data.name}, {_seeds(len(models))}: kept share of the same tokens "
        "without → with the square, averaged over images; changes in points, paired"
    )
    return Table(
        header=[*header, "kept elsewhere [%]", "change", "95 % interval"],
        rows=rows,
        caption=caption,
    )


def spoiled_table(
    models: Mapping[int, nn.Module], data: ImageSet, conditions: Mapping[str, Tensor]
) -> Table:
    """What a mask keeps of spoiled images, and whether the network is better off without it.

    Args:
        models: seed -> network with one energy mask.
        data: images.
        conditions: label -> the images spoiled, uint8 (N, H, W, 3).
    """
    rows = []
    for label, images in conditions.items():
        shown = replace(data, images=images)
        kept, own, opened = [], [], []
        for model in models.values():
            kept.append(100 * inference.collect_masks(model, shown).mean().item())
            own.append(100 * inference.accuracy(model, shown))
            with inference.replaced_mask(only_mask(model), torch.ones_like):
                opened.append(100 * inference.accuracy(model, shown))
        gaps = [b - a for a, b in zip(own, opened, strict=True)]
        rows.append([label, *map(_mean_sd, (kept, own, opened, gaps))])
    header = [
        "images",
        "kept [%]",
        "accuracy, own mask [%]",
        "no mask [%]",
        "gain without [points]",
    ]
    caption = f"{len(data):,} images of {data.name}, {_seeds(len(models))}: mean ± sd over seeds"
    return Table(header=header, rows=rows, caption=caption)


# --- what could a mask gain? -----------------------------------------------------------------------

Way = Callable[[Tensor, Tensor, "Scene"], Tensor]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a way of masking may know besides the tokens and the mask.

    Attributes:
        covered: share of each token behind the square, (N, 1, h, w); zeros without one.
        whole: the network's mask of the whole images, (N, 1, h, w).
        token: the mean token of other images before the mask, (1, C, 1, 1).
        kept: mean kept share of other images, 0 to 1.
    """

    covered: Tensor
    whole: Tensor
    token: Tensor
    kept: float


def as_trained(x: Tensor, m: Tensor, scene: Scene) -> Tensor:
    """m x, what the layer does."""
    return x * m


def divided_by_share(x: Tensor, m: Tensor, scene: Scene) -> Tensor:
    """m x divided by the image's kept share, and times the mean kept share of other images."""
    return x * m * (scene.kept / m.mean((1, 2, 3), keepdim=True).clamp_min(1e-3))


def mean_token(x: Tensor, m: Tensor, scene: Scene) -> Tensor:
    """The mean token of other images in place of zero."""
    return x * m + scene.token * (1 - m)


def image_token(x: Tensor, m: Tensor, scene: Scene) -> Tensor:
    """The mean of the image's own kept tokens in place of zero."""
    own = (x * m).sum((2, 3), keepdim=True) / m.sum((2, 3), keepdim=True).clamp_min(1)
    return x * m + own * (1 - m)


def all_ones(x: Tensor, m: Tensor, scene: Scene) -> Tensor:
    """No mask."""
    return x


def mask_of_whole(x: Tensor, m: Tensor, scene: Scene) -> Tensor:
    """The mask that the network has for the whole image, which knows nothing of the square."""
    return x * scene.whole


def without_square(x: Tensor, m: Tensor, scene: Scene) -> Tensor:
    """The network's own mask, and zero wherever a token lies wholly behind the square."""
    return x * m * (scene.covered < 1)


def only_square(x: Tensor, m: Tensor, scene: Scene) -> Tensor:
    """Zero wherever a token lies wholly behind the square; all other tokens are kept."""
    return x * (scene.covered < 1)


DROPPED: dict[str, Way] = {
    "zero, as trained": as_trained,
    "zero, divided by the kept share": divided_by_share,
    "mean token of other images": mean_token,
    "mean of the image's kept tokens": image_token,
}
KNOWING: dict[str, Way] = {
    "its own mask": as_trained,
    "no mask": all_ones,
    "mask of the whole image": mask_of_whole,
    "its own, and the square dropped": without_square,
    "only the square dropped": only_square,
}


@contextmanager
def masked_as(mask: EnergyMask, way: Way, scene: Scene) -> Iterator[None]:
    """While open, the layer gives way(x, m, scene) in place of x m."""

    def use_instead(module: EnergyMask, args: tuple[Tensor], output: Tensor) -> Tensor:
        return way(args[0], module.state.mask, scene)  # (B, C, h, w)

    handle = mask.register_forward_hook(use_instead)
    try:
        yield
    finally:
        handle.remove()


def ways_table(
    models: Mapping[int, nn.Module],
    data: ImageSet,
    others: ImageSet,
    ways: Mapping[str, Way],
    *,
    sizes: Sequence[int] = (8, 16),
    fills: Sequence[str] = perturbations.FILLS,
    seed: int = 0,
    what: str = "dropped tokens become",
) -> Table:
    """Accuracy, clean and behind squares at random places, where a mask is used in another way.

    Nothing is trained: the network behind the mask has learned the way it was trained with.

    Args:
        models: seed -> network with one energy mask on tokens of one position.
        data: some hundred images; they pass in one batch.
        others: images for the mean token and the mean kept share.
        ways: label -> way; the first is the one that the others are compared with.
        sizes, fills: of the squares; the mean of all is shown.
        seed: of the places.
        what: heading of the ways.
    """
    scenes = [(0, "")] + [(size, fill) for size in sizes for fill in fills]
    right = {way: {"clean": {}, "occluded": {}} for way in ways}
    for number, model in models.items():
        found = _right_by_way(model, data, others, ways, scenes, seed)  # {way: (scenes, N)}
        for way, flags in found.items():
            right[way]["clean"][number] = flags[0]
            right[way]["occluded"][number] = flags[1:].mean(0)
    first, rows = next(iter(right.values())), []
    for way, found in right.items():
        row = [way]
        for part in ("clean", "occluded"):
            row.append(_mean_sd([100 * values.mean() for values in found[part].values()]))
            if found is first:
                row += ["–", "–"]
                continue
            change = lab_statistics.paired(found[part], first[part])
            row += [f"{change.mean:+.2f}", _interval(change)]
        rows.append(row)
    header = [what, "clean [%]", "change", "95 % interval", "occluded [%]", "change"]
    caption = (
        f"Without training: {len(data):,} validation images of {data.name}, {_seeds(len(models))}; "
        f"squares of {' and '.join(map(str, sizes))} pixels, random places, "
        f"{len(fills)} fills. Changes in points, paired"
    )
    return Table(header=[*header, "95 % interval"], rows=rows, caption=caption)


def _right_by_way(
    model: nn.Module,
    data: ImageSet,
    others: ImageSet,
    ways: Mapping[str, Way],
    scenes: Sequence[tuple[int, str]],
    seed: int,
) -> dict[str, np.ndarray]:
    mask = only_mask(model)
    token, kept = _mean_token(model, mask, others)
    flags: dict[str, list[np.ndarray]] = {way: [] for way in ways}
    with evaluating(model):
        model(data.normalise(data.images))
        whole = mask.state.mask.clone()  # (N, 1, h, w)
        for size, fill in scenes:
            images, covered = data.images, torch.zeros_like(whole)
            if size:
                place = dict(size=size, position="random", seed=seed)
                covered = cover(images, tuple(whole.shape[2:]), **place)
                images = perturbations.occlude(images, fill=fill, **place)
            x = data.normalise(images)  # (N, 3, H, W)
            scene = Scene(covered=covered, whole=whole, token=token, kept=kept)
            for name, way in ways.items():
                with masked_as(mask, way, scene):
                    flags[name].append((model(x).argmax(1) == data.labels).cpu().numpy())
    return {name: np.stack(parts).astype(float) for name, parts in flags.items()}


def _mean_token(model: nn.Module, mask: EnergyMask, others: ImageSet) -> tuple[Tensor, float]:
    """Mean token before the mask, (1, C, 1, 1), and mean kept share, of these images."""
    seen: list[Tensor] = []
    handle = mask.register_forward_hook(
        lambda module, args, output: seen.append(args[0].mean((2, 3)))  # (B, C)
    )
    try:
        masks = inference.collect_masks(model, others)  # (N, 1, h, w)
    finally:
        handle.remove()
    return torch.cat(seen).mean(0)[None, :, None, None], masks.mean().item()


# --- what does an attack do to the mask? -----------------------------------------------------------


def flips_table(
    model: nn.Module, data: ImageSet, *, levels: Sequence[int] = (2, 4, 8), seed: int = 0
) -> Table:
    """How many tokens change sides under PGD and under noise of the same size.

    Args:
        model: with one energy mask.
        data: some hundred images.
        levels: largest change of a pixel, in 1/255.
        seed: of starts and signs.
    """
    rows = []
    for level in levels:
        for noise, words in ((True, "random signs"), (False, "PGD-20")):
            found = attacked(model, data, epsilon=level / 255, noise=noise, seed=seed)
            right = (found.logits_after.argmax(1) == found.labels).float().mean().item()
            kept = [100 * m.mean().item() for m in (found.masks_before, found.masks_after)]
            flipped = 100 * found.flipped.mean().item()
            row = [f"{level}/255", words, f"{100 * right:.0f}", f"{flipped:.1f}"]
            rows.append([*row, f"{kept[0]:.0f} → {kept[1]:.0f}"])
    header = ["change", "by", "accuracy [%]", "tokens that change sides [%]", "kept [%]"]
    return Table(
        header=header, rows=rows, caption=f"{len(data)} test images of {data.name}, one network"
    )
