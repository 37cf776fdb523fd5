"""The pictures of the layer's chapter: a diagram of the layer, and maps of tokens side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ersm_core import EnergyState
from ersm_lab.views.figures import shade

# name -> left and bottom of its picture, in units of a picture's side; then title and formula
_BOXES = {
    "x": (0.0, 1.05, "feature map", "$x$,  (B, C, H, W)"),
    "p": (1.9, 1.05, "unit tokens", r"$\hat p_i = p_i\,/\,\|p_i\|$"),
    "z": (3.8, 2.1, "logit", r"$z_i = w^\top \hat p_i + b_i$"),
    "a": (3.8, 0.0, "agreement", r"$a_i = \sum_{j \in N(i)} \hat p_i^\top \hat p_j$"),
    "m": (5.7, 2.1, "mask", r"$m_i = \sigma(-z_i / T)$"),
    "e": (5.7, 0.0, "energy", r"$\lambda_u\,\mathrm{sp}(z_i) + \lambda_p\,\mathrm{sp}(a_i)$"),
    "y": (7.6, 2.1, "what is passed on", r"$m_i\, p_i$"),
    "l": (7.6, 0.0, "what is paid", r"$m_i\, e_i$,  its mean is $L_{reg}$"),
}
# from, to: where an arrow starts and ends, as (box, share of its width, share of its height)
_ARROWS = [
    (("x", 1.14, 0.5), ("p", 0, 0.5)),
    (("p", 1.14, 0.72), ("z", 0, 0.4)),
    (("p", 1.14, 0.28), ("a", 0, 0.6)),
    (("z", 1, 0.5), ("m", 0, 0.5)),
    (("z", 1, 0.15), ("e", 0, 0.85)),
    (("a", 1, 0.5), ("e", 0, 0.5)),
    (("m", 1, 0.5), ("y", 0, 0.5)),
    (("m", 1, 0.15), ("l", 0, 0.85)),
    (("e", 1, 0.5), ("l", 0, 0.5)),
]


def layer_diagram(
    x: Tensor, state: EnergyState, agreement: Tensor, *, channels: Sequence[int] = (0, 1, 2)
) -> Figure:
    """The Energy-Mask Layer, its steps drawn with the maps of one image.

    Args:
        x: (1, C, H, W), the feature map that came in.
        state: of the layer, its maps (1, 1, H, W).
        agreement: (1, 1, H, W), a of every token.
        channels: three channels of x, to stand for all.
    """
    p = x / x.norm(dim=1, keepdim=True).clamp_min(1e-6)  # (1, C, H, W)
    figure = plt.figure(figsize=(9.6, 4.5), layout="none")
    canvas = figure.add_axes((0, 0, 1, 1))
    canvas.set(xlim=(-0.25, 9.05), ylim=(-0.55, 3.9))
    canvas.axis("off")
    for name, tokens in (("x", x), ("p", p)):
        left, bottom = _BOXES[name][:2]
        for number, channel in enumerate(reversed(channels)):
            shift = 0.07 * (len(channels) - 1 - number)
            _put(canvas, tokens[0, channel], left + shift, bottom + shift, cmap="Greys_r")
    bound = state.logit.abs().max().item()
    masked = (x * state.mask.to(x)).norm(dim=1)  # (1, H, W)
    pictures: dict[str, tuple[Tensor, dict[str, Any]]] = {
        "z": (state.logit, {"cmap": "RdBu_r", "vmin": -bound, "vmax": bound}),
        "a": (agreement, {"cmap": "cividis"}),
        "m": (state.mask, {"cmap": "Greys_r", "vmin": 0, "vmax": 1}),
        "e": (state.energy, {"cmap": "cividis"}),
        "y": (masked, {"cmap": "Greys_r"}),
        "l": (state.mask * state.energy, {"cmap": "cividis"}),
    }
    for name, (values, settings) in pictures.items():
        _put(canvas, values.reshape(values.shape[-2:]), *_BOXES[name][:2], **settings)
    for name, (left, bottom, title, formula) in _BOXES.items():
        lift = 0.2 if name in "xp" else 0.06
        canvas.text(left + 0.5, bottom + 1 + lift, title, ha="center", va="bottom", weight="bold")
        canvas.text(left + 0.5, bottom - 0.08, formula, ha="center", va="top", fontsize=10)
    for start, end in _ARROWS:
        _arrow(canvas, _point(*start), _point(*end))
    # x itself goes on to the multiplication, over the top
    _arrow(canvas, _point("x", 0.5, 1.5), _point("y", 0.5, 1.3), corner=(0.5, 3.62))
    canvas.text(4.3, 3.66, "the tokens themselves, not normalised", ha="center", va="bottom")
    legend = "sp is softplus. Logit: red is above 0,\nblue below. Other maps: light is high."
    canvas.text(0.0, -0.47, legend, ha="left", va="bottom", fontsize=9)
    return figure


def _put(canvas: Axes, values: Tensor, left: float, bottom: float, **settings) -> None:
    extent = (left, left + 1, bottom, bottom + 1)
    style: dict[str, Any] = {"origin": "upper", "aspect": "auto", "zorder": 2} | settings
    canvas.imshow(values.detach().cpu().float().numpy(), extent=extent, **style)
    canvas.add_patch(plt.Rectangle((left, bottom), 1, 1, fill=False, linewidth=0.8, zorder=2))


def _point(box: str, across: float, up: float) -> tuple[float, float]:
    left, bottom = _BOXES[box][:2]
    return left + across, bottom + up


def _arrow(
    canvas: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    corner: tuple[float, float] | None = None,
) -> None:
    style = {"arrowstyle": "-|>", "color": "0.25", "linewidth": 1.3, "shrinkA": 3, "shrinkB": 3}
    if corner:
        height = corner[1]
        canvas.plot(
            [start[0], start[0], end[0]],
            [start[1], height, height],
            color="0.25",
            linewidth=1.3,
            linestyle="-",
        )
        start = (end[0], height)
        style["shrinkA"] = 0
    canvas.annotate("", xy=end, xytext=start, arrowprops=style)


def token_maps(
    maps: dict[str, Tensor], *, image: Tensor | None = None, suptitle: str | None = None
) -> Figure:
    """Maps of numbers, one a token, in a row, each with its own scale of colours.

    Args:
        maps: title -> (H, W). A map with values of both signs is drawn red above and blue below 0.
        image: uint8 (H, W, 3), to stand first.
        suptitle: over all of them.
    """
    count = len(maps) + (image is not None)
    rows = 2.35 + (0.3 if suptitle else 0)
    figure, grid = plt.subplots(1, count, figsize=(1.95 * count, rows), squeeze=False)
    axes = list(grid[0])
    if image is not None:
        axes[0].imshow(image.cpu().numpy())
        axes[0].set_title("image", fontsize=10)
    for axis, (title, values) in zip(axes[count - len(maps) :], maps.items(), strict=True):
        values = values.detach().cpu().float()
        settings: dict = {"cmap": "cividis"}
        if values.min() < 0 < values.max():
            bound = values.abs().max().item()
            settings = {"cmap": "RdBu_r", "vmin": -bound, "vmax": bound}
        picture = axis.imshow(values.numpy(), **settings)
        axis.set_title(title, fontsize=10)
        bar = figure.colorbar(picture, ax=axis, orientation="horizontal", pad=0.04)
        bar.ax.tick_params(labelsize=8)
        bar.ax.locator_params(nbins=4)
    _bare(axes)
    if suptitle:
        figure.suptitle(suptitle, fontsize=11)
    return figure


def numbered_maps(maps: dict[str, Tensor], *, label: str) -> Figure:
    """Small maps with the number of every token written in it, on one scale of colours.

    Args:
        maps: title -> (H, W).
        label: of the colours, with the unit.
    """
    low = min(values.min().item() for values in maps.values())
    high = max(values.max().item() for values in maps.values())
    figure, axes = plt.subplots(1, len(maps), figsize=(4.2 * len(maps), 2.9), squeeze=False)
    for axis, (title, values) in zip(axes[0], maps.items(), strict=True):
        picture = axis.imshow(values.numpy(), cmap="cividis", vmin=low, vmax=high)
        for (row, column), value in np.ndenumerate(values.numpy()):
            colour = "white" if value < (low + high) / 2 else "black"
            axis.text(column, row, f"{value:g}", ha="center", va="center", color=colour, fontsize=9)
        axis.set_title(title, fontsize=10)
    _bare(axes.flat)
    figure.colorbar(picture, ax=axes, label=label, shrink=0.9)
    return figure


def mask_row(images: Tensor, masks: dict[str, Tensor]) -> Figure:
    """One row a mask: the images with their dropped tokens faded and striped.

    Args:
        images: uint8 (N, H, W, 3).
        masks: label -> (N, 1, h, w) between 0 and 1; h and w may differ from row to row.
    """
    count = len(images)
    size = (1.25 * count + 0.9, 1.3 * (len(masks) + 1) + 0.5)
    figure, axes = plt.subplots(len(masks) + 1, count, figsize=size, squeeze=False)
    for column in range(count):
        axes[0, column].imshow(images[column].cpu().numpy())
    axes[0, 0].set_ylabel("image")
    figure.suptitle("Kept as it is, dropped faded and striped", fontsize=11)
    for row, (label, mask) in enumerate(masks.items(), start=1):
        for column in range(count):
            axes[row, column].imshow(shade(images[column], mask[column, 0]))
        axes[row, 0].set_ylabel(label)
    _bare(axes.flat)
    return figure


def _bare(axes: Iterable[Axes]) -> None:
    for axis in axes:
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
        axis.spines[:].set_visible(False)
