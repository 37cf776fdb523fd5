"""What the corruptions are made of: levels, blurs along a line, zooms, plasma, bending, edges.

Everything here is for whole batches of 32 x 32 images.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from ersm_lab.images.lots import Lots, uniform

SIDE = 32  # pixels, of the images that these parameters are for


def unit(images: np.ndarray) -> np.ndarray:
    """Levels of 0 to 255 -> float32 of 0 to 1."""
    return images.astype(np.float32) / 255


def levels(x: np.ndarray) -> np.ndarray:
    """Values of 0 to 1, clipped -> whole levels of 0 to 255, fractions cut off.

    A thousandth of a level is added, lest a rounding error just below a whole level cost it.
    """
    return (np.clip(x, 0, 1) * 255 + 1e-3).astype(np.uint8)


def smooth(x: np.ndarray, sd: float) -> np.ndarray:
    """Gaussian blur of (B, H, W, 3), four standard deviations wide, the border's pixels repeated."""
    return ndimage.gaussian_filter(x, sd, mode="nearest", axes=(1, 2))


def drag(images: np.ndarray, radius: int, sd: float, angle: np.ndarray) -> np.ndarray:
    """ImageMagick's motion blur: half a Gaussian of 2 radius + 1 pixels from each pixel onwards.

    Args:
        images: uint8 (B, H, W, C).
        radius, sd: pixels.
        angle: (B,), degrees; 0 is to the right, 90 downwards.
    """
    steps = np.arange(2 * radius + 1)  # (K,)
    weights = np.exp(-(steps**2) / (2 * sd**2))
    weights = (weights / weights.sum()).astype(np.float32)
    turn = np.deg2rad(angle)[:, None]
    down = np.ceil(steps * np.sin(turn) - 0.5).astype(int)  # (B, K)
    right = np.ceil(steps * np.cos(turn) - 0.5).astype(int)  # (B, K)
    number = np.arange(len(images))[:, None, None]
    height, width = images.shape[1:3]
    out = np.zeros(images.shape, np.float32)
    for k, weight in enumerate(weights):
        rows = np.clip(np.arange(height) + down[:, k, None], 0, height - 1)  # (B, H)
        columns = np.clip(np.arange(width) + right[:, k, None], 0, width - 1)  # (B, W)
        out += weight * images[number, rows[:, :, None], columns[:, None, :]]
    return (out + 0.5).astype(np.uint8)


def zoom_matrix(factor: float) -> np.ndarray:
    """The matrix (32, 32) that enlarges the middle of a line of pixels, linearly, to the whole line."""
    part = int(np.ceil(SIDE / factor))
    start = (SIDE - part) // 2
    enlarged = ndimage.zoom(np.eye(part), (factor, 1), order=1)  # (32 or a little more, part)
    trim = (len(enlarged) - SIDE) // 2
    matrix = np.zeros((SIDE, SIDE))
    matrix[:, start : start + part] = enlarged[trim : trim + SIDE]
    return matrix


@cache
def zoom_mean(largest: float) -> np.ndarray:
    """All of a zoom blur as one matrix (32 32, 32 32), as it is linear."""
    factors = 1 + 0.01 * np.arange(round((largest - 1) / 0.01) + 1)
    matrix = np.eye(SIDE**2)
    for zoom in map(zoom_matrix, factors):
        matrix += np.kron(zoom, zoom)
    return matrix / (len(factors) + 1)


def plasma(lots: Lots, decay: float) -> np.ndarray:
    """Plasma fractals (B, 32, 32) from 0 to 1 on a torus, by the diamond-square algorithm.

    Its lots shrink by `decay` squared a level: the released generator multiplies its range by its
    amplitude, and so takes the decay twice.
    """
    count = len(lots)
    height = np.zeros((count, SIDE, SIDE), np.float32)
    amplitude, step = 1.0, SIDE
    while step > 1:
        half = step // 2
        corners = height[:, ::step, ::step]
        shape = corners.shape[1:]

        def lot(shape: tuple[int, ...] = shape, amplitude: float = amplitude) -> np.ndarray:
            return amplitude * (2 * uniform(lots, shape) - 1)

        sideways = corners + np.roll(corners, -1, 2)
        downwards = corners + np.roll(corners, -1, 1)
        middle = (sideways + np.roll(sideways, -1, 1)) / 4 + lot()
        height[:, half::step, half::step] = middle
        height[:, ::step, half::step] = (sideways + middle + np.roll(middle, 1, 1)) / 4 + lot()
        height[:, half::step, ::step] = (downwards + middle + np.roll(middle, 1, 2)) / 4 + lot()
        amplitude /= decay**2
        step = half
    height -= height.min((1, 2), keepdims=True)
    return height / height.max((1, 2), keepdims=True)


def sample(x: Tensor, places: np.ndarray, *, edge_twice: bool) -> Tensor:
    """Bilinear values of x (B, 3, 32, 32) at places (B, 32, 32, 2), x and y in pixels.

    Outside the image is its mirror image, with the border's pixels there twice or once.
    """
    places = (2 * places + 1) / SIDE - 1 if edge_twice else 2 * places / (SIDE - 1) - 1
    grid = torch.from_numpy(places)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=not edge_twice)


def relief(drops: np.ndarray) -> np.ndarray:
    """How strongly drops shine, (B, 32, 32) of 0 to 255: distance from their edges, lit from a side.

    Distances are capped at 20 pixels, spread evenly over the levels, embossed, and smoothed before
    and after.
    """
    outline = edges(drops)
    # The images lie so far apart that no distance leads from one to another.
    distance = ndimage.distance_transform_edt(~outline, sampling=(1_000, 1, 1))
    distance = _box(np.minimum(distance, 20)).astype(np.uint8)  # (B, 32, 32)
    flat = distance.reshape(len(drops), -1)  # (B, 32 32)
    at_most = (flat[:, :, None] <= np.arange(21)).sum(1)  # (B, 21) pixels
    lowest = np.take_along_axis(at_most, flat.min(1)[:, None].astype(int), 1)  # (B, 1)
    level = (at_most - lowest) / np.maximum(SIDE**2 - lowest, 1) * 255  # (B, 21)
    equalised = np.take_along_axis(level.round(), flat.astype(int), 1).reshape(drops.shape)
    emboss = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    lit = np.clip(ndimage.correlate(equalised, emboss[None], mode="mirror"), 0, 255)
    return _box(lit).round()


def _box(x: np.ndarray) -> np.ndarray:
    """Mean over 3 x 3 pixels, (B, H, W), mirrored at the border."""
    return ndimage.uniform_filter(x, 3, mode="mirror", axes=(1, 2))


def edges(layer: np.ndarray, low: float = 50, high: float = 150) -> np.ndarray:
    """Canny's edges (1986) of levels (B, H, W), as bool, for a whole batch.

    Sobel gradients, their size |gx| + |gy|; kept where no neighbour across the edge is larger, above
    `low`, and joined to a pixel above `high`.
    """
    x = layer.astype(np.float32)
    slope, mean = np.array([-1, 0, 1]), np.array([1, 2, 1])

    def sobel(along: int, across: int) -> np.ndarray:
        smoothed = ndimage.correlate1d(x, mean, across, mode="nearest")
        return ndimage.correlate1d(smoothed, slope, along, mode="nearest")

    down, right = sobel(1, 2), sobel(2, 1)  # (B, H, W)
    size = np.abs(down) + np.abs(right)
    padded = np.pad(size, ((0, 0), (1, 1), (1, 1)))
    height, width = layer.shape[1:]

    def near(rows: int, columns: int) -> np.ndarray:
        return padded[:, 1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]

    steepness = np.abs(down) / np.maximum(np.abs(right), 1e-6)
    peak = np.select(
        [steepness < np.tan(np.pi / 8), steepness > np.tan(3 * np.pi / 8), down * right < 0],
        [
            (size > near(0, -1)) & (size >= near(0, 1)),
            (size > near(-1, 0)) & (size >= near(1, 0)),
            (size > near(-1, 1)) & (size > near(1, -1)),
        ],
        (size > near(-1, -1)) & (size > near(1, 1)),
    )
    weak = peak & (size > low)
    in_plane = np.zeros((3, 3, 3), bool)
    in_plane[1] = True
    pieces, count = ndimage.label(weak, structure=in_plane)
    joined = np.zeros(count + 1, bool)
    joined[pieces[weak & (size > high)]] = True
    return joined[pieces]
