"""Photographs with a grey square, and objects on another image's background.

All work on the middle squares that the networks see, uint8 (N, 3, S, S), with the true masks of the
same squares, and draw from a seed of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

GREY = 128
SIZES = (0.05, 0.10, 0.20, 0.35, 0.50)  # of the image that a square covers


def occluded(pictures: Tensor, on: Tensor, *, size: float, place: str, seed: int = 0) -> Tensor:
    """A grey square in every picture.

    Args:
        pictures: uint8 (N, 3, S, S).
        on: bool (N, S, S), the objects.
        size: share of the picture that is covered.
        place: "random", or "object": centred on a random pixel of the object, as far as the picture
            reaches; a picture without an object keeps its random place.
        seed: of the places.
    """
    count, _, side, _ = pictures.shape
    length = round(size**0.5 * side)
    rng = torch.Generator().manual_seed(seed)
    corner = torch.randint(side - length + 1, (count, 2), generator=rng)  # (N, 2) row, column
    out = pictures.clone()
    for number in range(count):
        if place == "object" and on[number].any():
            pixels = on[number].nonzero()  # (P, 2)
            centre = pixels[torch.randint(len(pixels), (1,), generator=rng)[0]]
            corner[number] = (centre - length // 2).clamp(0, side - length)
        row, column = corner[number].tolist()
        out[number, :, row : row + length, column : column + length] = GREY
    return out


def swapped(pictures: Tensor, on: Tensor, off: Tensor, labels: Tensor, *, seed: int = 0) -> Tensor:
    """Every object, with its border, on the ground of a picture of another class.

    Where that picture had its own object, its ground is continued by a wide blur.

    Args:
        pictures: uint8 (N, 3, S, S).
        on, off: bool (N, S, S), objects and grounds; a border is neither, and goes with the object.
        labels: (N,), of two classes at least.
        seed: of who gets whose ground.

    Returns:
        uint8 (N, 3, S, S).
    """
    rng = torch.Generator().manual_seed(seed)
    out = pictures.clone()
    for number in range(len(pictures)):
        others = (labels != labels[number]).nonzero()[:, 0]
        other = others[torch.randint(len(others), (1,), generator=rng)[0]]
        ground = continued(pictures[other], off[other])  # (3, S, S)
        out[number] = torch.where(off[number], ground, pictures[number])
    return out


def continued(picture: Tensor, off: Tensor) -> Tensor:
    """A picture (3, S, S) whose ground fills all of it: a blur of the ground alone where it was not."""
    side = picture.shape[-1]
    width = 2 * (side // 4) + 1
    both = torch.cat([picture.float() * off, off[None].float()])  # (4, S, S)
    blurred = transforms.gaussian_blur(both, [width, width], [side / 10, side / 10])
    fill = blurred[:3] / blurred[3:].clamp_min(1e-4)
    return torch.where(off, picture.float(), fill.clamp(0, 255)).round().to(torch.uint8)
