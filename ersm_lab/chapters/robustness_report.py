"""Occlusion, corruption, low resolution and attacks: what the records say, and two explorers.

The records are those that `judging.judge` writes, `<method>.<suite>`, of every seed that is there. A
method without one is shown as "not yet run". Conditions are chosen by patterns of their names, as in
a shell: "random.*" are all occluders at random places, "*.5" all corruptions of severity 5, "clean"
alone is the untouched image.
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from ersm_lab.evaluation import inference
from ersm_lab.images import corruptions, occlusion
from ersm_lab.images.data import ImageSet
from ersm_lab.results import answer_bits
from ersm_lab.results import statistics as lab_statistics
from ersm_lab.results.claims import better
from ersm_lab.results.statistics import Difference
from ersm_lab.views import figures
from ersm_lab.views.frames import frame_slider
from ersm_lab.views.tables import NOT_RUN, Table, mean_sd
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
    return lab_statistics.of(f"{method}.{suite}", dataset=dataset, scale=scale)


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
    return answer_bits.share_right(record, matching(record, pattern))


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
        suite: of `card.SUITES`.
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
        suite: of `card.SUITES`.
        columns: heading -> pattern of the conditions.
        dataset, scale: which records.
    """
    patterns = {"clean": CLEAN, **columns}
    groups = _groups(methods, suite, dataset, scale)
    rows = [
        [method, str(len(group))]
        + [
            mean_sd([100 * share_right(r, pattern).mean() for r in group])
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
        suite: of `card.SUITES`.
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
        rows.append([method, str(len(group)), *map(mean_sd, columns)])
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
        suite: of `card.SUITES`.
        pattern: of the conditions whose mean is taken, image by image.
        right_when_clean: as in `gap`; then the rule, which speaks of all images, is not shown.
        dataset, scale: which records.
    """
    where: dict[str, Any] = dict(dataset=dataset, scale=scale)
    rows = []
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
            row += [f"{clean.mean:+.2f}" if clean else "–", better(under)[0]]
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
    """Whether there is a gradient to follow, mean over seeds of `gradients.GradientCheck.summary`."""
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


# --- pictures --------------------------------------------------------------------------------------


def occluder_slider(
    model: nn.Module,
    data: ImageSet,
    *,
    sizes: Sequence[int] = occlusion.OCCLUDERS,
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
        for fill in occlusion.FILLS:
            shown = data
            if size:
                covered = occlusion.occlude(data.images, size=size, position=position, fill=fill)
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
        captions=occlusion.FILLS,
        name=name,
        width=frames[0].shape[1],
    )


def corruption_slider(
    models: Mapping[str, nn.Module],
    data: ImageSet,
    *,
    kinds: Sequence[str] = corruptions.KINDS,
    seed: int = 0,
    name: str = "occlusion-corruptions",
) -> Widget:
    """One image under every corruption, a frame a severity, and who still gets it right.

    Args:
        models: label -> network; the answers are below each picture.
        data: one image.
        kinds: of `corruptions.KINDS`.
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
    for severity in (0, *corruptions.SEVERITIES):
        images = data.images
        if severity:
            images = torch.cat(
                [corruptions.corrupt(data.images, kind, severity, seed=seed) for kind in kinds]
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
