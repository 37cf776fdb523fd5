"""The pictures of the book: one look, units on every axis, nothing told by colour alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from ersm_lab.views import figure_data

MARKERS = "os^Dvp"


def use_style() -> None:
    """The book's look, and figures with their numbers; call once at the top of a notebook."""
    plt.style.use(Path(__file__).with_name("ersm.mplstyle"))
    figure_data.offer()


def bare(axis: plt.Axes) -> None:
    """Take ticks, grid and frame from an axis that shows a picture."""
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    axis.spines[:].set_visible(False)


def beside(parts: Sequence[np.ndarray], *, axis: int, gap: int = 6, grey: int = 150) -> np.ndarray:
    """Pictures in a row (axis 1) or a column (axis 0), with gaps between them.

    Args:
        parts: uint8 (H, W, 3), of one height for a row, of one width for a column.
        axis: 0 or 1.
        gap: width of a gap in pixels.
        grey: of a gap, 0 to 255.
    """
    shape = list(parts[0].shape)
    shape[axis] = gap
    between = np.full(shape, grey, np.uint8)
    return np.concatenate([piece for part in parts for piece in (between, part)][1:], axis)


def shade(image: Tensor, mask: Tensor, *, strength: float = 0.78) -> np.ndarray:
    """An image with its dropped tokens faded towards grey and striped.

    Args:
        image: uint8 (H, W, 3).
        mask: (h, w) between 0 and 1, where H and W are multiples of h and w.
        strength: how much of a dropped token is covered, 0 to 1.

    Returns:
        float (S, S, 3) between 0 and 1, enlarged eight times so that the stripes show.
    """
    zoom = 8
    big = np.repeat(np.repeat(image.cpu().numpy(), zoom, 0), zoom, 1) / 255  # (8 H, 8 W, 3)
    scale = big.shape[0] // mask.shape[0]
    dropped = 1 - np.repeat(np.repeat(mask.cpu().float().numpy(), scale, 0), scale, 1)  # (8 H, 8 W)
    rows, columns = np.indices(dropped.shape)
    stripes = np.where((rows + columns) // 4 % 2, 0.62, 0.78)[..., None]  # (8 H, 8 W, 1)
    cover = (strength * dropped)[..., None]
    return big * (1 - cover) + stripes * cover


def mask_gallery(
    images: Tensor, masks: Tensor, logits: Tensor, titles: list[str]
) -> tuple[Figure, np.ndarray]:
    """Three rows: the images, the logit of every token, the images with dropped tokens shaded.

    Args:
        images: uint8 (N, H, W, 3).
        masks: (N, 1, h, w).
        logits: (N, 1, h, w); tokens with a negative logit are kept.
        titles: N of them.
    """
    count = len(images)
    figure, axes = plt.subplots(3, count, figsize=(1.25 * count + 0.9, 4.3), squeeze=False)
    bound = logits.abs().max().item()
    for column in range(count):
        axes[0, column].imshow(images[column].cpu().numpy())
        energy = axes[1, column].imshow(
            logits[column, 0].cpu().float().numpy(), cmap="RdBu_r", vmin=-bound, vmax=bound
        )
        axes[2, column].imshow(shade(images[column], masks[column, 0]))
        axes[0, column].set_title(titles[column], fontsize=9)
        axes[2, column].set_xlabel(f"{100 * masks[column].mean():.0f} % kept", fontsize=9)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
        axis.spines[:].set_visible(False)
    for row, label in enumerate(("image", "logit z", "tokens kept")):
        axes[row, 0].set_ylabel(label)
    figure.suptitle("Sorted by the share of tokens kept", fontsize=11)
    figure.colorbar(energy, ax=axes[1, :], label="z  (kept if below 0)", shrink=0.95)
    return figure, axes


def kept_histogram(masks: Tensor) -> Figure:
    """How the kept share differs between images; masks (N, 1, h, w)."""
    kept = 100 * masks.mean((1, 2, 3)).cpu().numpy()  # (N,)
    figure, axis = plt.subplots(figsize=(7.2, 2.9))
    axis.hist(kept, bins=list(np.linspace(0, 100, 51)), color="#0072B2", edgecolor="white")
    axis.axvline(kept.mean(), color="black", linestyle="--")
    axis.set(
        title=f"Kept share of {len(kept):,} test images; mean (dashed) {kept.mean():.1f} %",
        xlabel="tokens kept in an image [%]",
        ylabel="images",
        xlim=(0, 100),
    )
    return figure


def training_curves(runs: dict[str, list[dict]], *, metric: str, label: str) -> Figure:
    """A column of the training curves over epochs, mean over seeds with the range as a band.

    Args:
        runs: for each method the records of its seeds.
        metric: column of the curve, in 0 to 1; drawn in percent.
        label: of the axis.
    """
    figure, axis = plt.subplots()
    for (method, records), marker in zip(runs.items(), MARKERS, strict=False):
        values = 100 * np.array([[row[metric] for row in r["curve"]] for r in records])
        epochs = [row["epoch"] for row in records[0]["curve"]]  # values: (seeds, epochs)
        (line,) = axis.plot(epochs, values.mean(0), marker=marker, label=method)
        axis.fill_between(
            epochs, values.min(0), values.max(0), color=line.get_color(), alpha=0.18, linewidth=0
        )
    seeds = max(len(records) for records in runs.values())
    title = f"Mean over {seeds} seeds, range as a band"
    axis.set(title=title, xlabel="epoch", ylabel=label)
    axis.legend()
    return figure
