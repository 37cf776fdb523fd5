"""Structured occlusion: one square of every test image is covered.

Images are uint8 (N, H, W, 3), as an `ImageSet` holds them, before and after. What is drawn by lot
for image i depends on the seed, the purpose and i alone (`lots`), so that a large set can be handed
over in parts, `first` being the number of a part's first image.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ersm_lab.common import checks
from ersm_lab.images.lots import lots_of, stack

POSITIONS = ("centre", "random", "sliding")
FILLS = ("black", "mean", "noise", "patch")
OCCLUDERS = (4, 8, 12, 16, 20)  # sides in pixels of a 32 x 32 image
MOST_SIDE = 1_000  # pixels along a side of an image


def occlude(
    images: Tensor,
    *,
    size: int,
    position: str | tuple[int, int] = "centre",
    fill: str | tuple[float, float, float] = "black",
    seed: int = 0,
    first: int = 0,
) -> Tensor:
    """Cover one square of every image; the square lies wholly inside it.

    Args:
        images: uint8 (N, H, W, 3).
        size: side of the square in pixels; 4 to 20 of 32 is the range of the book (`OCCLUDERS`).
        position: "centre"; "random", every place alike, with places that correspond for all sizes;
            "sliding", image i at place i + seed, cyclically, of `sliding_places`, so that as many
            successive seeds as there are places show every image every place; or (top, left) for all.
        fill: "black"; "mean", the mean colour of the image itself; "noise", uniform and independent
            for each pixel and channel; "patch", the same square of another of `images`, as in CutMix
            (arXiv:1905.04899); or a colour, red, green, blue from 0 to 255, such as a data set's mean.
        seed: of places, noise and the choice of other images.
        first: number of the first image, where `images` is a part of a larger set. The other images
            of "patch" come from the part: only there do the parts not give what the whole gives.

    Returns:
        uint8 (N, H, W, 3) on the same device.

    Raises:
        ValueError: images of another type or shape or none, a square that does not fit, an unknown
            position or fill, or "patch" with a single image.
    """
    checks.images("images", images)
    checks.seed("seed", seed)
    checks.whole("first", first, least=0, most=checks.MOST_SEED)
    count, height, width = images.shape[:3]
    checks.whole("size", size, most=min(height, width))
    top, left = _places(position, count, height, width, size, seed, first)  # (N,), (N,)
    return cover(images, _filling(images, fill, seed, first), top=top, left=left, size=size)


def cover(images, filling, *, top, left, size):
    """Images (N, H, W, 3) with the filling in a square of each, whose corner is at top, left (N,)."""
    height, width = images.shape[1:3]
    rows, columns = (
        (pixel >= start[:, None]) & (pixel < start[:, None] + size)  # (N, H), (N, W)
        for start, pixel in ((top, np.arange(height)), (left, np.arange(width)))
    )
    covered = rows[:, :, None, None] & columns[:, None, :, None]  # (N, H, W, 1)
    covered = torch.from_numpy(covered).to(images.device)
    return torch.where(covered, filling, images)


def sliding_places(height: int, width: int, size: int) -> list[tuple[int, int]]:
    """(top, left) of the fewest squares of `size` pixels a side that cover the image, evenly spread."""
    checks.whole("height", height, most=MOST_SIDE)
    checks.whole("width", width, most=MOST_SIDE)
    checks.whole("size", size, most=min(height, width))
    tops, lefts = (
        np.linspace(0, side - size, -(-side // size)).round().astype(int).tolist()
        for side in (height, width)
    )
    return [(top, left) for top in tops for left in lefts]


def _places(
    position: str | tuple[int, int],
    count: int,
    height: int,
    width: int,
    size: int,
    seed: int,
    first: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Top row and left column of each image's square, (N,) and (N,)."""
    room = np.array([height - size, width - size])
    if not isinstance(position, str):
        checks.several("position", position, least=2, most=2)
        for pixel in position:
            checks.whole("position", pixel, least=0)
    if position == "centre":
        place = np.broadcast_to(room // 2, (count, 2))
    elif position == "random":
        lots = lots_of(seed, "occluder place", range(first, first + count))
        share = stack(rng.random(2) for rng in lots)  # (N, 2)
        place = (share * (room + 1)).astype(int)
    elif position == "sliding":
        places = np.array(sliding_places(height, width, size))  # (P, 2)
        place = places[(np.arange(first, first + count) + seed) % len(places)]
    elif isinstance(position, str):
        raise ValueError(
            f"no position {position!r}: choose one of {', '.join(POSITIONS)}, or give (top, left)"
        )
    else:
        if not all(0 <= p <= r for p, r in zip(position, room, strict=True)):
            raise ValueError(
                f"position: a square of {size} pixels at {position} reaches over the border: top is at "
                f"most {room[0]}, left at most {room[1]}"
            )
        place = np.broadcast_to(np.array(position), (count, 2))
    return place[:, 0], place[:, 1]


def _filling(
    images: Tensor, fill: str | tuple[float, float, float], seed: int, first: int
) -> Tensor:
    """What is seen inside the squares, uint8, of a shape that broadcasts to the images'."""
    count = len(images)
    numbers = range(first, first + count)
    if fill == "black":
        return images.new_zeros(1)
    if fill == "mean":
        return images.double().mean((1, 2), keepdim=True).round().byte()  # (N, 1, 1, 3)
    if fill == "noise":
        lots = lots_of(seed, "occluder noise", numbers)
        noise = stack(rng.integers(0, 256, images.shape[1:], dtype=np.uint8) for rng in lots)
        return torch.from_numpy(noise).to(images.device)  # (N, H, W, 3)
    if fill == "patch":
        if count == 1:
            raise ValueError("a patch of another image needs two images or more")
        further = stack(rng.integers(1, count) for rng in lots_of(seed, "occluder patch", numbers))
        return images[torch.from_numpy((np.arange(count) + further) % count)]  # (N, H, W, 3)
    if isinstance(fill, str):
        raise ValueError(f"no fill {fill!r}: choose one of {', '.join(FILLS)}, or give a colour")
    checks.several("fill", fill, least=3, most=3)
    for channel in fill:
        checks.number("fill", channel)
    if not all(0 <= channel <= 255 for channel in fill):
        raise ValueError(f"fill: a colour is red, green, blue from 0 to 255, got {fill}")
    return torch.tensor([round(channel) for channel in fill]).to(images)  # (3,)
