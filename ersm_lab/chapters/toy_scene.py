"""A small made-up scene of tokens: an object and clutter on a smooth ground, drawn in code."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ersm_lab.views.figures import shade

SIZE, DIM = 24, 6  # tokens a side; features of a token


@dataclass(frozen=True, kw_only=True)
class ToyScene:
    """Features and what they belong to.

    Attributes:
        tokens: (1, D, H, W), float64 unit vectors.
        usefulness: (H, W), 1 on the object and 0 elsewhere, which the features do not say.
        regions: name -> bool (H, W): ground, object's rim, object's inside, clutter.
        image: uint8 (H, W, 3), three of the features as colours.
    """

    tokens: Tensor
    usefulness: Tensor
    regions: dict[str, Tensor]
    image: Tensor


def toy_scene(*, seed: int = 0) -> ToyScene:
    """A disc with a textured rim and a smooth inside, and a textured patch that is no object.

    Smooth tokens turn slowly from place to place, textured ones point anywhere.
    """
    generator = torch.Generator().manual_seed(seed)
    row, column = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")  # (H, W)
    radius = ((row - 10).square() + (column - 9).square()).sqrt()
    disc, inside = radius < 7.6, radius < 4.2
    clutter = (row >= 17) & (column >= 16) & (row < 22) & (column < 22)
    regions = {
        "ground": ~(disc | clutter),
        "object's rim": disc & ~inside,
        "object's inside": inside,
        "clutter": clutter,
    }

    def smooth(first: int) -> Tensor:  # (D, H, W): turns from one axis towards the next
        angle = (row + column).double() * math.pi / 4 / (2 * SIZE)
        tokens = torch.zeros(DIM, SIZE, SIZE, dtype=torch.float64)
        tokens[first], tokens[first + 1] = angle.cos(), angle.sin()
        return tokens

    textured = torch.randn(DIM, SIZE, SIZE, dtype=torch.float64, generator=generator)
    textured = textured / textured.norm(dim=0)
    tokens = torch.where(disc | clutter, textured, smooth(0))
    tokens = torch.where(inside, smooth(2), tokens)  # (D, H, W)
    colours = (0.55 + 0.42 * tokens[[2, 0, 1]]).clamp(0, 1).permute(1, 2, 0)  # (H, W, 3)
    return ToyScene(
        tokens=tokens[None],
        usefulness=disc.double(),
        regions=regions,
        image=(255 * colours).round().byte(),
    )


def beside(scene: ToyScene, masks: list[Tensor], *, gap: int = 8) -> np.ndarray:
    """The scene and, right of it, the scene under each mask, its dropped tokens faded and striped.

    Args:
        masks: each (H, W), between 0 and 1.
        gap: white pixels between two pictures.

    Returns:
        uint8 (8 H, (1 + len(masks)) 8 W + gaps, 3).
    """
    everything = torch.ones(SIZE, SIZE)
    pictures = [shade(scene.image, mask) for mask in [everything, *masks]]
    white = np.ones((pictures[0].shape[0], gap, 3))
    row = [part for picture in pictures for part in (white, picture)][1:]
    return np.round(255 * np.concatenate(row, 1)).astype(np.uint8)
