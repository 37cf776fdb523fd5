"""What chapter 8 and the appendix show of the inverse scale path: the path to slide along, what lies
under a sparsified image, and what networks trained along it gain and lose, from records."""

from __future__ import annotations

import math
import statistics as plain_statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ersm_lab.images import flat_regions, frequency, inverse_scale, path_steps
from ersm_lab.images.data import ImageSet
from ersm_lab.images.path_steps import PathSettings
from ersm_lab.results.claims import better
from ersm_lab.results.statistics import Difference, gap, marks, of
from ersm_lab.suites import smoothing_suite
from ersm_lab.views import figures
from ersm_lab.views.frames import frame_slider
from ersm_lab.views.tables import NOT_MADE, NOT_RUN, Table, mean_sd
from ersm_lab.views.widgets import Widget

LEVELS = (1.0, 0.99, 0.97, 0.95, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5, 0.4, 0.2, 0.0)
GAP = 6  # pixels between the pictures of a frame


# --- the path --------------------------------------------------------------------------------------


def path_slider(
    test: ImageSet,
    *,
    levels: Sequence[float] = LEVELS,
    settings: PathSettings | None = None,
    name: str = "inverse-scale-path",
    zoom: int = 4,
) -> Widget:
    """Sparsified images above their contours, one frame a level, from flat to complete.

    A contour lies where two neighbouring pixels of the sparsified image differ.

    Args:
        test: a few images.
        levels: of sparsity, one frame each.
        settings: of the path.
        name: id of the element.
        zoom: pixels a pixel of the image takes.
    """
    x = test.images.permute(0, 3, 1, 2).float() / 255  # (N, 3, H, W)
    path = inverse_scale.inverse_scale_path(x, levels=levels, settings=settings)
    frames, labels = [], []
    for level, y in zip(levels, path.images, strict=True):  # y (N, 3, H, W)
        energy = frequency.retained_energy(x, y).mean().item()
        labels.append(f"sparsity {level:.2f}, {100 * energy:.0f} % of the energy")
        pictures = (y.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
        top = figures.beside([_enlarge(picture, zoom) for picture in pictures], axis=1, gap=GAP)
        bottom = figures.beside([contours(picture, zoom) for picture in y], axis=1, gap=GAP)
        frames.append(figures.beside([top, bottom], axis=0, gap=GAP))
    return frame_slider(
        frames,
        labels=labels,
        title="The inverse scale path: from flat to complete",
        alt="Images at one sparsity level, and below each the contours of its flat pieces.",
        captions=[test.classes[label] for label in test.labels.tolist()],
        name=name,
        width=(test.images.shape[2] * zoom + GAP) * len(test) - GAP,
    )


def contours(image: Tensor, zoom: int = 4) -> np.ndarray:
    """Dark lines where neighbouring pixels of an image differ, on white.

    Args:
        image: (C, H, W).
        zoom: pixels a pixel of the image takes, at least 2.

    Returns:
        uint8 (H zoom, W zoom, 3).
    """
    right, down = ((edge != 0).any(0).numpy() for edge in path_steps.differences(image))
    height, width = image.shape[-2:]
    picture = np.full((height * zoom, width * zoom), 255, np.uint8)
    rows, columns = np.nonzero(right)  # (edges,)
    for shift in range(zoom):
        picture[rows * zoom + shift, (columns + 1) * zoom - 1] = 25
    rows, columns = np.nonzero(down)
    for shift in range(zoom):
        picture[(rows + 1) * zoom - 1, columns * zoom + shift] = 25
    return picture[..., None].repeat(3, 2)


def _enlarge(image: np.ndarray, zoom: int) -> np.ndarray:
    return np.kron(image, np.ones((zoom, zoom, 1), np.uint8))


def _floats(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2).float() / 255  # (N, 3, H, W)


# --- one graph, or one for each channel ------------------------------------------------------------

GRAPHS: dict[Literal["shared", "own"], str] = {"shared": "one graph", "own": "own graphs"}


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Where paths are when they first reach a level.

    Attributes:
        u: (B, C, H, W), before the projection.
        image: (B, C, H, W), after it.
        zeros: share of zero entries of gamma, over all channels, 0 to 1.
        values: numbers that the images are made of: flat pieces times channels, a mean over images.
        within: share of the open edges whose two pixels are in one flat piece all the same.
        steps: median over graphs.
    """

    u: Tensor
    image: Tensor
    zeros: float
    values: float
    within: float
    steps: float


def stop_at(x: Tensor, level: float, *, settings: PathSettings | None = None) -> Stop:
    """Follow the paths of images to a level and look at what lies under the sparsified image.

    Args:
        x: (B, C, H, W), float32, 0 to 1.
        level: of sparsity.
        settings: of the path.
    """
    settings = settings or PathSettings()
    b, c, h, w = x.shape
    planes = x if settings.channels == "shared" else x.reshape(b * c, 1, h, w)
    edges = h * (w - 1) + (h - 1) * w
    state = path_steps.begin(planes)
    wanted = torch.full((len(planes),), math.ceil((1 - level) * edges - 1e-9 * edges))
    advance = inverse_scale.advance_by("auto", planes)
    advance(state, wanted, settings, inverse_scale.step_size(settings, h, w))
    right, down = path_steps.opened_edges(state)  # (N, 1, H, W - 1), (N, 1, H - 1, W)
    flat = flat_regions.project(state.u, right, down)
    label, pieces = flat_regions.components(~right[:, 0], ~down[:, 0])
    joined = [edge == 0 for edge in path_steps.differences(label.view(-1, 1, h, w))]
    opened = right.sum() + down.sum()
    within = sum((edge & same).sum() for edge, same in zip((right, down), joined, strict=True))
    entries = (state.right.abs() > 1).sum() + (state.down.abs() > 1).sum()
    return Stop(
        u=(state.u + state.mean).reshape(x.shape),
        image=(flat + state.mean).reshape(x.shape),
        zeros=1 - entries.item() / (b * c * edges),
        values=pieces * planes.shape[1] / b,
        within=(within / opened.clamp(min=1)).item(),
        steps=state.step.double().median().item(),
    )


def graph_table(images: Tensor, levels: Sequence[float]) -> Table:
    """One graph for all channels beside one for each, counted in three ways.

    Args:
        images: uint8 (N, H, W, 3).
        levels: of sparsity, the share of closed edges of each graph.
    """
    rows, x = [], _floats(images)
    for level in levels:
        for channels, words in GRAPHS.items():
            stop = stop_at(x, level, settings=PathSettings(channels=channels))
            counts = [f"{stop.zeros:.2f}", f"{stop.values:.0f}", f"{_error(x, stop.image):.1f}"]
            rows.append([words, f"{level:g}", *counts, f"{stop.steps:.0f}"])
    header = ["channels", "closed edges", "zeros of γ", "values", "error [grey levels]", "steps"]
    caption = (
        f"{len(images)} images. Values: flat pieces times channels, of {x[0].numel():,}; "
        "steps: median over graphs"
    )
    return Table(header=header, rows=rows, caption=caption)


def _error(x: Tensor, y: Tensor) -> float:
    """Root of the mean square, in grey levels of 0 to 255."""
    return 255 * (x - y).square().mean().sqrt().item()


# --- gains and losses, from the suite's records ----------------------------------------------------


def suite_records(method: str, *, dataset: str = "cifar10", scale: str = "laptop") -> list[dict]:
    """The suite's records of a method's seeds; none is an empty list."""
    return of(f"{method}.smoothing", dataset=dataset, scale=scale)


def condition_groups(record: Mapping) -> dict[str, list[str]]:
    """Rows of the tables: each smoothing and resolution, each corruption over its severities, all
    corruptions together, and those that are smoothed first beside the same as they are."""
    plain: dict[str, list[str]] = {}
    corrupted: dict[str, list[str]] = {}
    first: dict[str, list[str]] = {}
    for name in record["metrics"]["accuracy"]:
        base, _, smoothing = name.partition("+")
        kind = base.rpartition("-")[0]
        if smoothing:
            first.setdefault("some, as they are", []).append(base)
            first.setdefault(f"some, {smoothing} first", []).append(name)
        elif kind in ("", "resolution") or name.startswith(smoothing_suite.SMOOTHINGS):
            plain[name] = [name]
        else:
            corrupted.setdefault(kind, []).append(name)
    everything = [name for names in corrupted.values() for name in names]
    first = {row: list(dict.fromkeys(names)) for row, names in first.items()}
    return plain | corrupted | ({"all corruptions": everything} if corrupted else {}) | first


def suite_table(
    methods: Sequence[str], *, dataset: str = "cifar10", scale: str = "laptop"
) -> Table:
    """Accuracy under each condition, mean ± sd over seeds in percent, one column a method."""
    groups = {m: suite_records(m, dataset=dataset, scale=scale) for m in methods}
    seen = [records for records in groups.values() if records]
    caption = f"Suite of smoothings, {dataset}, {scale} scale, accuracy in percent"
    if not seen:
        return Table(header=["condition", *methods], rows=[], caption=f"{caption}: {NOT_MADE}")
    images = seen[0][0]["metrics"]["images"]
    rows = [["seeds", *[str(len(records)) for records in groups.values()]]]
    for row, names in condition_groups(seen[0][0]).items():
        rows.append([row, *[_mean_sd(records, names) for records in groups.values()]])
    return Table(
        header=["condition", *methods],
        rows=rows,
        caption=f"{caption}: mean ± sd over seeds, {images:,} test images",
    )


def _mean_sd(group: Sequence[Mapping], names: Sequence[str]) -> str:
    shares = [plain_statistics.fmean(r["metrics"]["accuracy"][n] for n in names) for r in group]
    return mean_sd(shares, factor=100, none=NOT_RUN)


def suite_differences(
    methods: Sequence[str], *, base: str, dataset: str = "cifar10", scale: str = "laptop"
) -> Table:
    """Accuracy minus the base's under each condition, with 95 % intervals, marked by `marks`."""
    rivals = suite_records(base, dataset=dataset, scale=scale)
    groups = {m: suite_records(m, dataset=dataset, scale=scale) for m in methods}
    caption = f"Accuracy minus that of {base}, {dataset}, {scale} scale, percentage points"
    if not rivals or not any(groups.values()):
        return Table(header=["condition", *methods], rows=[], caption=f"{caption}: {NOT_MADE}")
    conditions = condition_groups(rivals[0])
    found = [
        gap(records, rivals, names) for names in conditions.values() for records in groups.values()
    ]
    cells = iter(zip(found, marks(found), strict=True))
    rows = [[row, *(_marked(*next(cells)) for _ in groups)] for row in conditions]
    caption += (
        ", with 95 % intervals over seeds and images; ▲ above zero, ▼ below, "
        f"by Holm for the {sum(f is not None for f in found)} differences of the table"
    )
    return Table(header=["condition", *methods], rows=rows, caption=caption)


def _marked(found: Difference | None, mark: str) -> str:
    if found is None:
        return NOT_RUN
    return f"{found.mean:+.1f} ({found.low:+.1f} to {found.high:+.1f}) {mark}".rstrip()


def rival_verdicts(
    rivals: Sequence[tuple[tuple[str, str], tuple[str, str]]],
    *,
    dataset: str = "cifar10",
    scale: str = "laptop",
) -> Table:
    """Is the first of each pair better than the second? By the ledger's criterion, on the suite.

    Args:
        rivals: pairs of (method, row of `condition_groups`).
        dataset, scale: which records.
    """
    methods = dict.fromkeys(method for sides in rivals for method, _ in sides)
    groups = {m: suite_records(m, dataset=dataset, scale=scale) for m in methods}
    shown = []
    for sides in rivals:
        ours, theirs = (groups[method] for method, _ in sides)
        outcome, figure = NOT_MADE, "–"
        if ours and theirs:
            names = [condition_groups(ours[0])[row] for _, row in sides]
            found = gap(ours, theirs, names[0], base_names=names[1])
            outcome, figure = better(found) if found else (outcome, figure)
        words = [f"{method}: {row}" for method, row in sides]
        shown.append([*words, outcome, figure])
    header = ["is this", "better than this", "outcome", "difference"]
    return Table(header=header, rows=shown, caption=f"On the suite, {dataset}, {scale} scale")
