"""The cover figure: small scenes, the unary energy of their tokens, and what a network keeps.

Each scene is a stack of three sheets, seen from above and a little from the side: the image at the
bottom; over it a relief of the unary energy, a column a token, golden where the token is kept; on
top the tokens that are kept, as blocks of the image, and nothing where the mask is 0:

    u_i = lambda_unary * softplus(z_i)        m_i = 1 where z_i < 0, that is where u_i is low, else 0

The pairwise energy is left out, because it has no part in the mask. Energies and masks are those of a
recorded network on painted scenes (`painted_scenes`), so that no photograph is passed on. Written as
SVG on no ground of its own, to be read in light and in dark.

Source: arXiv:2604.06893, in the form at the top of `ersm_core.py`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.colors import to_hex, to_rgb
from PIL import Image
from torch import Tensor, nn

from ersm_lab.common import checks
from ersm_lab.demo_export import normalise
from ersm_lab.evaluation.inference import evaluating, only_mask
from ersm_lab.images.painted_scenes import painted_scene
from ersm_lab.results import records
from ersm_lab.training import experiments, runs
from ersm_lab.views.widgets import png_source

RECORD = "laptop/cifar10/ersm/seed0"
SCENES = ("aeroplane", "ship", "bird", "frog")  # from left to right
ALT = (
    "Four painted scenes, each a stack of three sheets: an aeroplane, a ship, a bird and a frog lie at "
    "the bottom; over each a relief of columns shows the unary energy of its tokens; on top are only "
    "the tokens that the network keeps, those over the valleys of the relief, many of them along the "
    "outlines of what is painted."
)
# Of energies, from the lowest to the highest: of tokens that are kept, and of those that are not.
_COLOURS = {"k": ("#d98a00", "#f7dfa8"), "d": ("#bccddd", "#33689a")}
_SHADES = 12  # of each
_INK = "#757c84"  # lines and words: on white and on black


@dataclass(frozen=True, kw_only=True)
class Look:
    """How the stacks are drawn. Lengths in units of the figure unless said otherwise."""

    token: float = 13.0  # a token's side
    gap: float = 0.12  # between columns, as a share of a token
    turn: float = 27.0  # degrees around the vertical
    tilt: float = 34.0  # degrees: the height from which one looks down
    relief: float = 42.0  # height of the highest column
    block: float = 7.0  # height of a kept token
    rise: float = 156.0  # from one sheet to the next
    between: float = 34.0  # from stack to stack
    left: float = 86.0  # room for the words
    margin: float = 14.0


@dataclass(frozen=True, kw_only=True)
class Stack:
    """One scene and what a network made of it.

    Attributes:
        image: uint8 (H, W, 3).
        unary: float (h, w), the unary energy; H and W are multiples of h and w.
        mask: (h, w), 1 where a token is kept, else 0.
    """

    image: np.ndarray
    unary: np.ndarray
    mask: np.ndarray


def write(path: Path | None = None) -> Path:
    """Draw the cover from the recorded network and write it.

    Args:
        path: of the SVG file; None is book/_static/cover.svg.

    Returns:
        The path.

    Raises:
        records.RecordNotFound: the network has no record.
        FileNotFoundError: it has no checkpoint.
    """
    path = path or records.home() / "book" / "_static" / "cover.svg"
    record = records.read(RECORD)
    model = runs.restore(experiments.find(RECORD), record)
    text = draw(stacks(model, SCENES), made_from=fingerprint(record))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def fingerprint(record: dict) -> str:
    """What the figure says of its origin: the record and the start of its checkpoint's hash."""
    return f"{record['name']} {record['checkpoint']['sha256'][:16]}"


def stacks(model: nn.Module, scenes: Sequence[str]) -> list[Stack]:
    """What a network with one energy mask makes of painted scenes, one after the other.

    Raises:
        ValueError: the network has no mask or several; a scene has no such name.
    """
    images = torch.from_numpy(np.stack([painted_scene(name) for name in scenes]))  # (N, H, W, 3)
    mask = only_mask(model)
    found = []
    for image in images:
        with evaluating(model):
            model(normalise(image[None]))
        state = checks.state(mask)
        unary = mask.lambda_unary * F.softplus(state.logit[0, 0])  # (h, w)
        kept = state.mask[0, 0]  # (h, w)
        found.append(Stack(image=_numpy(image), unary=_numpy(unary), mask=_numpy(kept)))
    return found


def draw(shown: Sequence[Stack], *, look: Look | None = None, made_from: str = "") -> str:
    """The figure.

    Args:
        shown: the stacks, from left to right.
        look: how they are drawn.
        made_from: where energies and masks come from; stands in the file.

    Returns:
        The text of an SVG file. Energies are scaled by the lowest and highest of all stacks.

    Raises:
        ValueError: no stack; a grid that does not fit its image; a mask with other values than 0 and 1.
    """
    if not shown:
        raise ValueError("a cover needs at least one stack")
    for stack in shown:
        _check(stack)
    view = _View(look or Look())
    scale = _Scale(shown)
    rows, columns = shown[0].unary.shape
    width, depth, right = view.extent(rows, columns)  # of a sheet on the figure
    look = view.look
    step = width + look.between
    total = look.left + len(shown) * step - look.between + look.margin
    base = look.margin + look.block + 2 * look.rise  # of the lowest sheet's farthest corner
    height = base + depth + look.margin

    parts = []
    for number, stack in enumerate(shown):
        x = look.left + number * step + right
        parts.append(f'<g transform="translate({x:.1f} {base:.1f})">')
        parts += _stack(stack, view, scale)
        parts.append("</g>")
    middle = view.at(0, rows / 2)[1] + base
    for level, words in enumerate((["image"], ["unary", "energy"], ["kept"])):
        for line, word in enumerate(words):
            y = middle - level * look.rise + 20 * (line - (len(words) - 1) / 2)
            parts.append(f'<text x="{look.margin}" y="{y:.1f}">{word}</text>')
    return "\n".join([*_head(total, height, made_from), *parts, "</svg>\n"])


# ---------------------------------------------------------------------------------------- geometry


class _View:
    """Where a point of a sheet is on the figure: parallel rays, no vanishing point."""

    def __init__(self, look: Look) -> None:
        turn, tilt = math.radians(look.turn), math.radians(look.tilt)
        self.look = look
        self.x = (math.cos(turn) * look.token, math.sin(turn) * math.sin(tilt) * look.token)
        self.y = (-math.sin(turn) * look.token, math.cos(turn) * math.sin(tilt) * look.token)

    def at(self, column: float, row: float, height: float = 0.0) -> tuple[float, float]:
        """Of a point (column, row) in tokens and its height, seen from the sheet's farthest corner."""
        x = column * self.x[0] + row * self.y[0]
        return x, column * self.x[1] + row * self.y[1] - height

    def extent(self, rows: int, columns: int) -> tuple[float, float, float]:
        """Width and depth of a sheet, and how far it reaches to the left of its farthest corner."""
        left = -rows * self.y[0]
        return columns * self.x[0] + left, columns * self.x[1] + rows * self.y[1], left

    def path(self, *points: tuple[float, float, float]) -> str:
        """A closed outline through points (column, row, height)."""
        placed = np.array([self.at(*point) for point in points]).round(1)  # (n, 2)
        steps = [f"{x:.3g} {y:.3g}" for x, y in np.diff(placed, axis=0)]
        return f"M{placed[0, 0]:g} {placed[0, 1]:g}l" + " ".join(steps) + "z"

    def box(
        self, column: float, row: float, side: float, foot: float, top: float
    ) -> tuple[str, str, str]:
        """The three faces of a box that one sees: its top, its left front and its right front."""
        c, r, s = column, row, side
        return (
            self.path((c, r, top), (c + s, r, top), (c + s, r + s, top), (c, r + s, top)),
            self.path((c, r + s, top), (c + s, r + s, top), (c + s, r + s, foot), (c, r + s, foot)),
            self.path((c + s, r, top), (c + s, r + s, top), (c + s, r + s, foot), (c + s, r, foot)),
        )

    def picture(self, image: np.ndarray, rows: int, columns: int, height: float) -> str:
        """An image, (H, W, 3 or 4), lying on a sheet of so many tokens."""
        big = image.repeat(8, 0).repeat(8, 1)  # so that its pixels keep their edges
        tall, wide = big.shape[:2]
        a, b = (v * columns / wide for v in self.x)
        c, d = (v * rows / tall for v in self.y)
        return (
            f'<image width="{wide}" height="{tall}" transform="matrix({a:.5f} {b:.5f} {c:.5f} {d:.5f} '
            f'0 {-height:.1f})" href="{png_source(_png(big))}"/>'
        )


# ------------------------------------------------------------------------------------------- parts


def _stack(stack: Stack, view: _View, scale: _Scale) -> list[str]:
    rows, columns = stack.unary.shape
    sheet = [(0, 0), (columns, 0), (columns, rows), (0, rows)]
    rise, block = view.look.rise, view.look.block
    parts = [view.picture(stack.image, rows, columns, 0)]
    parts.append(f'<path class="s" d="{view.path(*[(c, r, 0) for c, r in sheet])}"/>')
    parts += _posts(view, sheet, 0, rise)
    parts += _relief(stack, view, scale, foot=rise)
    parts += _posts(view, sheet, rise, 2 * rise)
    parts.append(f'<path class="g" d="{view.path(*[(c, r, 2 * rise) for c, r in sheet])}"/>')
    tall, wide = stack.image.shape[0] // rows, stack.image.shape[1] // columns  # of a token, pixels
    tokens = stack.image.reshape(rows, tall, columns, wide, 3).mean((1, 3)) / 255  # (h, w, 3)
    for row in range(rows):  # from the farthest to the nearest
        for column in range(columns):
            if stack.mask[row, column]:
                _, left, right = view.box(column, row, 1, 2 * rise, 2 * rise + block)
                colour = tokens[row, column]
                if row + 1 == rows or not stack.mask[row + 1, column]:
                    parts.append(f'<path fill="{to_hex(colour * 0.72)}" d="{left}"/>')
                if column + 1 == columns or not stack.mask[row, column + 1]:
                    parts.append(f'<path fill="{to_hex(colour * 0.55)}" d="{right}"/>')
    kept = stack.mask.astype(bool).repeat(tall, 0).repeat(wide, 1)  # (H, W)
    alpha = (255 * kept).astype(np.uint8)[..., None]  # (H, W, 1)
    top = np.concatenate([stack.image * kept[..., None], alpha], 2).astype(np.uint8)  # (H, W, 4)
    parts.append(view.picture(top, rows, columns, 2 * rise + block))
    return parts


def _relief(stack: Stack, view: _View, scale: _Scale, *, foot: float) -> list[str]:
    """A column a token, from the farthest to the nearest."""
    rows, columns = stack.unary.shape
    side, inset = 1 - view.look.gap, view.look.gap / 2
    parts = []
    for row in range(rows):
        for column in range(columns):
            energy, kept = stack.unary[row, column], bool(stack.mask[row, column])
            top = foot + 1.5 + view.look.relief * scale.share(energy)
            shade = round((_SHADES - 1) * scale.share(energy, kept))
            faces = view.box(column + inset, row + inset, side, foot, top)
            kind = "k" if kept else "d"
            for face, outline in zip("tlr", faces, strict=True):
                parts.append(f'<path class="{kind}{face}{shade}" d="{outline}"/>')
    return parts


class _Scale:
    """Energies as shares of the way from the lowest to the highest of all stacks."""

    def __init__(self, shown: Sequence[Stack]) -> None:
        energy = np.concatenate([stack.unary.ravel() for stack in shown])
        kept = np.concatenate([stack.mask.ravel() for stack in shown]).astype(bool)
        groups = {None: energy, True: energy[kept], False: energy[~kept]}
        self.ends = {k: (float(e.min()), float(e.max())) for k, e in groups.items() if e.size}

    def share(self, energy: float, kept: bool | None = None) -> float:
        """0 to 1; if `kept` is given, among the tokens that are kept, or among those that are not."""
        low, high = self.ends[kept]
        return (float(energy) - low) / (high - low) if high > low else 0.0


def _posts(view: _View, sheet: list[tuple[int, int]], foot: float, top: float) -> list[str]:
    ends = [(view.at(c, r, foot), view.at(c, r, top)) for c, r in sheet[1:]]
    return [f'<path class="p" d="M{x:.1f} {y:.1f}V{up:.1f}"/>' for (x, y), (_, up) in ends]


def _head(width: float, height: float, made_from: str) -> list[str]:
    shades = []
    for shade in range(_SHADES):
        share = shade / (_SHADES - 1)
        for kind, ends in _COLOURS.items():
            low, high = (np.array(to_rgb(end)) for end in ends)
            for face, light in (("t", 1.0), ("l", 0.8), ("r", 0.62)):
                fill = to_hex((low + share * (high - low)) * light)
                shades.append(f".{kind}{face}{shade}{{fill:{fill}}}")
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-labelledby="cover-title cover-text">',
        '<title id="cover-title">Images, their unary energies, and what is kept</title>',
        f'<desc id="cover-text">{escape(ALT)}</desc>',
        f"<metadata>{escape(made_from)}</metadata>",
        "<style>",
        "".join(shades),
        f".s{{fill:none;stroke:{_INK};stroke-width:.6}}",
        f".g{{fill:{_INK};fill-opacity:.1;stroke:{_INK};stroke-width:.8}}",
        f".p{{fill:none;stroke:{_INK};stroke-width:.8;stroke-dasharray:2 4}}",
        f"text{{fill:{_INK};font:17px system-ui,sans-serif}}",
        "</style>",
    ]


def _check(stack: Stack) -> None:
    grid, image = stack.unary.shape, stack.image.shape
    if stack.mask.shape != grid or len(grid) != 2 or len(image) != 3 or image[2] != 3:
        raise ValueError(
            f"image (H, W, 3), unary energy (h, w) and mask (h, w) are wanted, got {image}, {grid} and "
            f"{stack.mask.shape}"
        )
    if image[0] % grid[0] or image[1] % grid[1]:
        raise ValueError(f"a grid of {grid} tokens does not divide an image of {image[:2]} pixels")
    if not np.isin(stack.mask, (0, 1)).all():
        raise ValueError("the mask has values between 0 and 1: the cover shows hard masks only")


def _numpy(value: Tensor) -> np.ndarray:
    return value.cpu().numpy()


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
