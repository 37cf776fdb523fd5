"""Textured shapes: an image data set that needs no download and knows where its objects are.

Every image shows one shape (the class) of random position, size, rotation, colours and texture on
a coloured 1/f background, the spectrum of natural images (Field 1987). Colours, texture, size and
background are drawn independently of the class, so that only the outline tells it; in the
`spurious` variant the background tells it too, in a chosen share of the images.

How an image is made: the signed distance to each class's outline is tabulated once; a rotated and
scaled look-up of that table gives every pixel its distance to the object's edge in pixels, from
which follow the mask (distance < 0) and the coverage that blends texture into background.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ersm_lab.common import checks

CLASSES = (
    "disc", "square", "triangle", "star", "cross",
    "ring", "crescent", "heart", "arrow", "hourglass",
)  # fmt: skip

# The marked backgrounds of the spurious variant, one per class:
# red, green, blue (mean colour, 0 to 1), slope (amplitude falls as 1/f^slope), angle of the grain
# (degrees, 0 = horizontal), stretch (length of the grain over its width).
_MARKED = {
    "sky": (0.55, 0.70, 0.85, 2.0, 0, 1.5),
    "grass": (0.30, 0.50, 0.20, 0.7, 90, 4.0),
    "sand": (0.80, 0.70, 0.50, 0.3, 0, 1.0),
    "water": (0.15, 0.40, 0.60, 1.2, 0, 5.0),
    "wood": (0.50, 0.32, 0.18, 1.2, 90, 6.0),
    "rust": (0.70, 0.30, 0.15, 1.0, 0, 1.0),
    "slate": (0.35, 0.37, 0.42, 1.0, 45, 4.0),
    "silk": (0.72, 0.45, 0.62, 2.0, 135, 4.0),
    "moss": (0.45, 0.48, 0.15, 1.3, 0, 1.0),
    "night": (0.16, 0.12, 0.28, 0.5, 0, 1.0),
}
BACKGROUNDS = tuple(_MARKED)

MOST_SIDE = 512  # pixels along a side of an image
_AREA = (0.08, 0.33)  # share of the image the object covers, smallest and largest
_BLOCK = 250  # images drawn together; part of the definition of the data: other value, other images
_TABLE = 96  # side of a signed-distance table, which spans [-1, 1]; shapes have area 1
_SPREAD = 0.4  # share of an unmarked background's variation that a marked kind keeps
_TEXTURES = 5  # stripes, checks, dots, noise, gradient


class TexturedShapes(NamedTuple):
    """N labelled images of textured shapes with their true object masks.

    Attributes:
        images: (N, 3, size, size) uint8, RGB.
        labels: (N,) int64, index into `CLASSES`.
        masks: (N, size, size) bool, true on the object.
        backgrounds: (N,) int64, index into `BACKGROUNDS`; -1 where the background is unmarked.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor
    backgrounds: Tensor


def textured_shapes(
    count: int,
    *,
    seed: int,
    spurious: float | None = None,
    size: int = 32,
    progress: bool = False,
) -> TexturedShapes:
    """Draws `count` images; image i depends on the seed, i, `size` and `spurious` only.

    The first images of a longer draw are therefore those of a shorter one. The value of `spurious`
    changes nothing but the backgrounds: the same seed gives the same objects in the same places,
    so that two draws are pairs of one object on two backgrounds. Use different seeds for training
    and test images. Labels are balanced: 25 of each class in every 250 images.

    Args:
        count: number of images, at least 1.
        seed: of the draw's own generator; torch's global generator is left alone.
        spurious: None for 1/f backgrounds of random colour and grain; a share in [0, 1] for the
            ten marked `BACKGROUNDS`, where kind == label with this probability and any of the ten
            otherwise (so that kind == label in spurious + (1 - spurious) / 10 of the images).
            0 makes the test images that belong to a training set with a high share.
        size: side of the images in pixels, at least 16.
        progress: show a progress bar.

    Returns:
        `TexturedShapes` on the CPU.

    Raises:
        ValueError: `count`, `spurious` or `size` is out of range.
    """
    checks.seed("seed", seed)
    checks.flag("progress", progress)
    checks.whole("count", count, most=checks.MOST)
    if spurious is not None:
        checks.number("spurious", spurious, least=0, most=1)
    checks.whole("size", size, most=MOST_SIDE)
    if size < 16:
        raise ValueError(f"size is {size}: shapes cannot be told apart below 16 pixels")
    generator = torch.Generator().manual_seed(seed)
    tables, vertices = _shape_tables()
    data = TexturedShapes(
        torch.empty(count, 3, size, size, dtype=torch.uint8),
        torch.empty(count, dtype=torch.int64),
        torch.empty(count, size, size, dtype=torch.bool),
        torch.empty(count, dtype=torch.int64),
    )
    # Whole blocks are drawn from one generator and the last is cut: hence the prefix property.
    for start in tqdm(range(0, count, _BLOCK), "textured shapes", disable=not progress):
        block = _draw_block(generator, tables, vertices, spurious, size)
        for whole, part in zip(data, block, strict=True):
            whole[start : start + _BLOCK] = part[: count - start]
    return data


def _draw_block(
    generator: torch.Generator, tables: Tensor, vertices: Tensor, spurious: float | None, size: int
) -> TexturedShapes:
    labels = torch.randperm(_BLOCK, generator=generator) % len(CLASSES)  # (B,)
    distance = _draw_distance(generator, tables[labels], vertices[labels], size)  # (B, 1, S, S)
    texture = _draw_texture(generator, size)  # (B, 3, S, S)
    background, kinds = _draw_background(generator, labels, spurious, size)  # (B, 3, S, S), (B,)
    coverage = (0.5 - distance).clamp(0, 1)  # (B, 1, S, S), share of the pixel inside the edge
    images = torch.lerp(background, texture, coverage).clamp(0, 1)  # (B, 3, S, S)
    return TexturedShapes((images * 255).round().byte(), labels, distance[:, 0] < 0, kinds)


def _draw_distance(
    generator: torch.Generator, tables: Tensor, vertices: Tensor, size: int
) -> Tensor:
    """Signed distance in pixels (B, 1, S, S), negative inside, of shapes placed at random."""
    angle = _uniform(generator, 0, 2 * math.pi)  # (B, 1)
    least, most = (math.sqrt(area) * size for area in _AREA)
    scale = _uniform(generator, least, most)  # (B, 1), pixels per unit
    place = torch.rand(_BLOCK, 2, generator=generator)  # (B, 2)
    cos, sin = angle.cos(), angle.sin()
    x, y = vertices.unbind(-1)  # (B, V) each
    corners = torch.stack((cos * x - sin * y, sin * x + cos * y), -1) * scale[..., None]
    low, high = corners.amin(1), corners.amax(1)  # (B, 2): the bounding box, kept in the image
    centre = -low + place * (size - high + low)  # (B, 2)
    pixels = torch.arange(size) + 0.5  # (S,)
    dx = ((pixels - centre[:, :1]) / scale)[:, None, :]  # (B, 1, S)
    dy = ((pixels - centre[:, 1:]) / scale)[:, :, None]  # (B, S, 1)
    cos, sin = cos[..., None], sin[..., None]
    grid = torch.stack((cos * dx + sin * dy, cos * dy - sin * dx), -1)  # (B, S, S, 2)
    units = F.grid_sample(tables[:, None], grid, padding_mode="border", align_corners=True)
    return units * scale[..., None, None]  # (B, 1, S, S)


def _draw_texture(generator: torch.Generator, size: int) -> Tensor:
    """Two random colours mixed by a random pattern, over the whole image: (B, 3, S, S)."""
    kind = torch.randint(_TEXTURES, (_BLOCK,), generator=generator)  # (B,)
    angle = _uniform(generator, 0, 2 * math.pi)[..., None]  # (B, 1, 1)
    period = _uniform(generator, 0.12, 0.35)[..., None]  # (B, 1, 1), in image sides
    phase = _uniform(generator, 0, 2 * math.pi, 2)[..., None, None]  # (B, 2, 1, 1)
    colours = _uniform(generator, 0.1, 0.9, 2)[..., None]  # (B, 2, 1), two brightnesses
    colours = colours + 0.2 * torch.randn(_BLOCK, 2, 3, generator=generator)  # (B, 2, 3)
    noise = torch.randn(_BLOCK, size, size, generator=generator)  # (B, S, S)
    side = (torch.arange(size) + 0.5) / size - 0.5  # (S,)
    u = angle.cos() * side + angle.sin() * side[:, None]  # (B, S, S), along the pattern
    v = angle.cos() * side[:, None] - angle.sin() * side  # (B, S, S), across it
    wave_u = (2 * math.pi * u / period + phase[:, 0]).sin()
    wave_v = (2 * math.pi * v / period + phase[:, 1]).sin()
    patterns = torch.stack(
        (
            (3 * wave_u).tanh(),
            (5 * wave_u * wave_v).tanh(),
            (3 * (wave_u + wave_v - 0.7)).tanh(),
            noise.clamp(-1, 1),
            (3 * u).clamp(-1, 1),
        )
    )  # (textures, B, S, S)
    pattern = patterns[kind, torch.arange(_BLOCK)][:, None]  # (B, 1, S, S)
    one, other = colours[..., None, None].unbind(1)  # (B, 3, 1, 1) each
    return torch.lerp(one, other, (pattern + 1) / 2)


def _draw_background(
    generator: torch.Generator, labels: Tensor, spurious: float | None, size: int
) -> tuple[Tensor, Tensor]:
    """1/f noise (B, 3, S, S) and its marked kind (B,); every case uses up the same draws."""
    kinds = torch.randint(len(BACKGROUNDS), (_BLOCK,), generator=generator)  # (B,)
    agree = torch.rand(_BLOCK, generator=generator)  # (B,)
    bright = _uniform(generator, 0.2, 0.8)  # (B, 1)
    tint = torch.randn(_BLOCK, 3, generator=generator)  # (B, 3)
    slope = _uniform(generator, 0.7, 1.7)  # (B, 1)
    angle = _uniform(generator, 0, math.pi)  # (B, 1)
    stretch = _uniform(generator, 1, 4)  # (B, 1)
    contrast = _uniform(generator, 0.06, 0.18)  # (B, 1), standard deviation of the brightness
    white = torch.randn(_BLOCK, 3, size, size, generator=generator)  # (B, 3, S, S)
    mean = bright + 0.12 * tint  # (B, 3)
    if spurious is None:
        kinds = torch.full_like(kinds, -1)
    else:
        kinds = torch.where(agree < spurious, labels, kinds)
        style = torch.tensor(tuple(_MARKED.values()))[kinds]  # (B, 6)
        mean = style[:, :3] + _SPREAD * (bright - 0.5) + 0.12 * tint  # (B, 3)
        slope = style[:, 3:4] + _SPREAD * (slope - 1.2)
        angle = style[:, 4:5].deg2rad() + _SPREAD * (angle - math.pi / 2)
        stretch = style[:, 5:6] + _SPREAD * (stretch - 1)
    noise = _coloured_noise(white, slope, angle, stretch)  # (B, 3, S, S)
    return mean[..., None, None] + contrast[..., None, None] * noise, kinds


def _coloured_noise(white: Tensor, slope: Tensor, angle: Tensor, stretch: Tensor) -> Tensor:
    """White noise (B, 3, S, S) given amplitude 1/f^slope, f shortened along the grain's angle.

    The three planes become brightness (standard deviation 1) and two weaker colour contrasts.
    """
    size = white.shape[-1]
    fy = torch.fft.fftfreq(size)[:, None]  # (S, 1)
    fx = torch.fft.rfftfreq(size)  # (S/2 + 1,)
    cos, sin = angle.cos()[..., None], angle.sin()[..., None]  # (B, 1, 1)
    along, across = cos * fx + sin * fy, cos * fy - sin * fx  # (B, S, S/2 + 1)
    power = (stretch[..., None] * along).square() + across.square()
    amplitude = power.clamp_min(1 / size**2) ** (-slope[..., None] / 2)
    amplitude[:, 0, 0] = 0  # no mean: the mean colour is the style's
    planes = torch.fft.irfft2(torch.fft.rfft2(white) * amplitude[:, None], s=(size, size))
    planes = planes / planes.std((2, 3), keepdim=True)
    to_rgb = torch.tensor([[1.0, 0.2, 0.1], [1.0, 0.0, -0.2], [1.0, -0.2, 0.1]])
    return torch.einsum("rp,bphw->brhw", to_rgb, planes)


def _uniform(generator: torch.Generator, low: float, high: float, columns: int = 1) -> Tensor:
    return low + (high - low) * torch.rand(_BLOCK, columns, generator=generator)


@functools.cache
def _shape_tables() -> tuple[Tensor, Tensor]:
    """Signed distances (10, T, T) over [-1, 1]² and padded vertices (10, V, 2) of all classes."""
    outlines = [_normalised(_outline(name)) for name in CLASSES]
    side = torch.linspace(-1, 1, _TABLE)
    points = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1)  # (T, T, 2)
    tables = torch.stack([_signed_distance(points, loops) for loops in outlines])
    outer = torch.nn.utils.rnn.pad_sequence([loops[0].flip(0) for loops in outlines], True)
    return tables, outer


def _outline(name: str) -> list[Tensor]:
    """Closed loops of vertices (V, 2) in any unit, y pointing down; a second loop is a hole."""
    if name == "disc":
        return [_arc(1, 0, 360)]
    if name == "ring":
        return [_arc(1, 0, 360), _arc(0.55, 360, 0)]
    if name == "crescent":  # a disc of radius 1 less one of radius 0.85, 0.5 to its right
        x = (1 - 0.85**2 + 0.5**2) / (2 * 0.5)  # where the circles cross
        outer = math.degrees(math.acos(x))
        inner = math.degrees(math.acos((x - 0.5) / 0.85))
        cut = _arc(0.85, 360 - inner, inner) + torch.tensor([0.5, 0.0])
        return [torch.cat((_arc(1, outer, 360 - outer), cut))]
    if name == "heart":
        t = torch.linspace(0, 2 * math.pi, 49)[:-1]
        y = 13 * t.cos() - 5 * (2 * t).cos() - 2 * (3 * t).cos() - (4 * t).cos()
        return [torch.stack((16 * t.sin() ** 3, -y), -1)]
    if name == "star":
        t = torch.arange(10) * math.pi / 5
        radius = torch.tensor([1, 0.45]).repeat(5)
        return [torch.stack((radius * t.sin(), -radius * t.cos()), -1)]
    corners = {
        "square": [(0, 0), (1, 0), (1, 1), (0, 1)],
        "triangle": [(0, 0), (2, 0), (1, -math.sqrt(3))],
        "cross": [
            (1, 0), (2, 0), (2, 1), (3, 1), (3, 2), (2, 2),
            (2, 3), (1, 3), (1, 2), (0, 2), (0, 1), (1, 1),
        ],
        "arrow": [(0, 5), (5, 0), (10, 5), (7, 5), (7, 11), (3, 11), (3, 5)],
        "hourglass": [(0, 0), (8, 0), (5.5, 5), (8, 10), (0, 10), (2.5, 5)],
    }  # fmt: skip
    return [torch.tensor(corners[name], dtype=torch.float32)]


def _arc(radius: float, start: float, stop: float) -> Tensor:
    t = torch.linspace(math.radians(start), math.radians(stop), 48)
    return radius * torch.stack((t.cos(), t.sin()), -1)  # (48, 2)


def _normalised(loops: list[Tensor]) -> list[Tensor]:
    """Scaled to area 1 (shoelace formula; a hole runs the other way round) and centred."""
    area = 0.0
    for loop in loops:
        x, y = loop.unbind(-1)
        area += float((x * y.roll(-1) - y * x.roll(-1)).sum()) / 2
    centre = (loops[0].amin(0) + loops[0].amax(0)) / 2
    return [(loop - centre) / math.sqrt(abs(area)) for loop in loops]


def _signed_distance(points: Tensor, loops: list[Tensor]) -> Tensor:
    """Distance of points (T, T, 2) to the nearest edge, negative inside by the even-odd rule."""
    start = torch.cat(loops)  # (E, 2)
    stop = torch.cat([loop.roll(-1, 0) for loop in loops])  # (E, 2)
    edge = stop - start  # (E, 2)
    offset = points[:, :, None] - start  # (T, T, E, 2)
    share = (offset * edge).sum(-1) / edge.square().sum(-1).clamp_min(1e-12)  # (T, T, E)
    nearest = (offset - share.clamp(0, 1)[..., None] * edge).norm(dim=-1).amin(-1)  # (T, T)
    rise = torch.where(edge[:, 1] == 0, 1e-12, edge[:, 1])  # (E,), level edges are never crossed
    y = points[..., 1:]  # (T, T, 1)
    level = (y >= start[:, 1]) != (y >= stop[:, 1])  # (T, T, E), the edge passes the point's height
    right = offset[..., 1] / rise * edge[:, 0] > offset[..., 0]  # crossing right of the point
    inside = (level & right).sum(-1) % 2 == 1  # (T, T)
    return torch.where(inside, -nearest, nearest)
