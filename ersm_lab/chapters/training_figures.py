"""The pictures of the training chapter: curves of several experiments, masks as they are, and
accuracy with the mask replaced. Experiments that are not recorded yet are named, not drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ersm_lab.results.statistics import of
from ersm_lab.views.figures import MARKERS

COLUMNS = {  # of a record's curve -> label of the axis; shares are drawn as they are, 0 to 1
    "loss": "cross-entropy  (nats)",
    "regulariser": "L_reg  (dimensionless)",
    "kept": "mean mask in training",
    "val_kept_fraction": "mean mask",
    "val_within_image_sd": "sd within an image",
    "val_between_images_sd": "sd between images",
    "val_position_sd": "sd of the mean mask",
    "val_accuracy": "validation accuracy",
}
REPLACED = {  # metric -> words, marker
    "test_accuracy": ("own mask", "o"),
    "accuracy_with_mask_replaced.other_image": ("another image's", "s"),
    "accuracy_with_mask_replaced.position_mean": ("mean by position", "^"),
    "accuracy_with_mask_replaced.uniform": ("uniform mean", "D"),
    "accuracy_with_mask_replaced.ones": ("ones", "x"),
}

CIFAR10 = (
    "airplane", "automobile", "bird", "cat", "deer",
    "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


def curves(
    methods: Sequence[str],
    columns: Sequence[str],
    *,
    dataset: str = "cifar10",
    scale: str = "laptop",
    title: str = "",
    log: Sequence[str] = (),
) -> Figure:
    """Columns of the training curves of several rows, one panel each: mean over seeds, range as a band.

    Args:
        methods: drawn in this order, each with a marker and line style of its own.
        columns: of `COLUMNS`.
        dataset, scale: which records.
        title: of the figure.
        log: those columns whose axis is logarithmic.
    """
    across = 2 if len(columns) == 4 else len(columns)
    down = -(-len(columns) // across)
    size = (3.1 * across + 0.6, 2.6 * down + 0.9)
    figure, axes = plt.subplots(down, across, figsize=size, squeeze=False)
    absent = []
    styles = list(zip(cycle(MARKERS), plt.rcParams["axes.prop_cycle"], strict=False))
    for number, method in enumerate(methods):
        group = of(method, dataset=dataset, scale=scale)
        if not group:
            absent.append(method)
            continue
        marker, style = styles[number % len(styles)]
        for axis, column in zip(axes.flat, columns, strict=True):
            label = f"{method} ({len(group)} seed{'s' if len(group) > 1 else ''})"
            draw_curve(axis, group, column, marker=marker, label=label, **style)
    for axis, column in zip(axes.flat, columns, strict=True):
        axis.set(xlabel="epoch", ylabel=COLUMNS[column])
        axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        if column in log:
            axis.set_yscale("log")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9)
    words = [title] if title else []
    words += [f"(not recorded yet: {', '.join(absent)})"] if absent else []
    figure.suptitle("\n".join(words), fontsize=11)
    return figure


def draw_curve(axis: Axes, group: Sequence[Mapping], column: str, **style) -> None:
    """One column of a method's curves on an axis; epochs in which it was not measured are left out."""
    epochs = np.array([row["epoch"] for row in group[0]["curve"]])  # (E,)
    values = np.array(
        [[row.get(column, np.nan) for row in record["curve"]] for record in group], dtype=float
    )  # (seeds, E)
    there = ~np.isnan(values).any(0)  # (E,)
    if not there.any():
        return
    epochs, values = epochs[there], values[:, there]
    (line,) = axis.plot(epochs, values.mean(0), **style)
    axis.fill_between(
        epochs, values.min(0), values.max(0), color=line.get_color(), alpha=0.18, linewidth=0
    )


def accuracy_by_mask(
    methods: Sequence[str], *, dataset: str = "cifar10", scale: str = "laptop", floor: float = 0.7
) -> Figure:
    """Test accuracy of each row with its own mask and with four others, mean and range over seeds.

    Args:
        methods: from top to bottom.
        dataset, scale: which records.
        floor: accuracies below it are drawn at the left edge, with an arrow.
    """
    figure, axis = plt.subplots(figsize=(7.6, 0.5 * len(methods) + 1.6))
    names = []
    for height, method in enumerate(methods):
        group = of(method, dataset=dataset, scale=scale)
        names.append(f"{method} ({len(group)})" if group else f"{method} (not recorded yet)")
        for number, (metric, (words, marker)) in enumerate(REPLACED.items()):
            known = [_metric(record, metric) for record in group]
            values = np.array([v for v in known if v is not None])
            colour, at = f"C{number}", height + 0.14 * (number - 2)
            label = words if height == 0 else None
            if not len(values):
                axis.plot([], [], marker, color=colour, linestyle="none", label=label)
                continue
            low = values.mean() < floor
            where = 100 * max(values.mean(), floor)
            axis.plot(where, at, "<" if low else marker, color=colour, linestyle="none", ms=6)
            axis.plot([], [], marker, color=colour, linestyle="none", label=label)
            ends = 100 * np.clip([values.min(), values.max()], floor, None)
            axis.plot(ends, [at, at], color=colour, linewidth=1, linestyle="-")
    axis.set_yticks(range(len(methods)), names)
    axis.set_ylim(len(methods) - 0.5, -0.5)
    axis.set(
        title="Accuracy with the mask and with another in its place",
        xlabel="test accuracy [%]   (arrow: below the axis)",
        xlim=(100 * floor - 1, None),
    )
    figure.legend(loc="outside lower center", ncols=5, fontsize=9)
    return figure


def masks(images: Tensor, rows: Mapping[str, Tensor], *, stretched: Sequence[str] = ()) -> Figure:
    """Images above their masks, on one grey scale from 0 to 1; the mean of each is written below it.

    Args:
        images: uint8 (N, H, W, 3).
        rows: label -> masks (N, 1, h, w).
        stretched: labels whose masks are stretched, each to its own least and largest value.
    """
    count = len(images)
    figure, axes = plt.subplots(
        1 + len(rows),
        count,
        figsize=(1.35 * count + 1.3, 1.45 * (1 + len(rows)) + 0.5),
        squeeze=False,
    )
    for column in range(count):
        axes[0, column].imshow(images[column].cpu().numpy())
    axes[0, 0].set_ylabel("image")
    for axis_row, (label, found) in zip(axes[1:], rows.items(), strict=True):
        for axis, mask in zip(axis_row, found[:, 0].cpu().float(), strict=True):
            limits = {"vmin": 0, "vmax": 1}
            words = f"mean {mask.mean():.3f}"
            if label in stretched:
                limits = {"vmin": mask.min().item(), "vmax": mask.max().item()}
                words = f"{limits['vmin']:.3f} to {limits['vmax']:.3f}"
            drawn = axis.imshow(mask.numpy(), cmap="gray", **limits)
            axis.set_xlabel(words, fontsize=8)
            if label not in stretched:
                scale = drawn
        axis_row[0].set_ylabel(label, fontsize=9)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
    figure.colorbar(scale, ax=axes[:, -1], label="mask m  (1: kept)", shrink=0.5)
    return figure


def spread_by_class(group: Sequence[Mapping], classes: Sequence[str]) -> Figure:
    """Kept share of every class: a mark for each seed, the mean as a bar; sorted by the mean."""
    kept = 100 * np.array(
        [r["metrics"]["mask"]["kept_by_class"] for r in group]
    )  # (seeds, classes)
    order = kept.mean(0).argsort()
    figure, axis = plt.subplots(figsize=(7.2, 3.2))
    axis.barh(range(len(order)), kept.mean(0)[order], color="0.85", height=0.7)
    for number, (record, marker) in enumerate(zip(group, cycle(MARKERS), strict=False)):
        label = f"seed {record['seed']}"
        axis.plot(
            kept[number, order], range(len(order)), marker, color=f"C{number}", linestyle="none",
            label=label,
        )  # fmt: skip
    axis.set_yticks(range(len(order)), [classes[c] for c in order])
    axis.set(
        title="Kept share by class and seed; bar: mean over seeds",
        xlabel="tokens kept [%]",
        xlim=(0, 100),
    )
    axis.legend(loc="lower right")
    return figure


def _metric(record: Mapping, name: str) -> float | None:
    value = record["metrics"]
    for part in name.split("."):
        if part not in value:
            return None
        value = value[part]
    return value
