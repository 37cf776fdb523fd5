"""Test images at a lower resolution: shrunk and enlarged again."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from ersm_lab.common import checks

LOW_RESOLUTIONS = (24, 16, 12, 8)  # pixels a side


def low_resolution(images: Tensor, size: int) -> Tensor:
    """Shrink to `size` pixels a side and enlarge again, both bilinear, the first with antialiasing.

    Args:
        images: uint8 (N, H, W, 3).
        size: pixels a side; the book's are in `LOW_RESOLUTIONS`. The images' own changes nothing.

    Returns:
        uint8 (N, H, W, 3) on the same device; the small images are rounded to whole levels too.

    Raises:
        ValueError: images of another type or shape or none, or a size they cannot be shrunk to.
    """
    checks.images("images", images)
    whole = list(images.shape[1:3])
    checks.whole("size", size, most=min(whole))
    x = images.cpu().permute(0, 3, 1, 2)  # (N, 3, H, W)
    small = transforms.resize(x, [size, size], antialias=True)  # (N, 3, size, size)
    back = transforms.resize(small, whole, antialias=True)  # (N, 3, H, W)
    return back.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format).to(images.device)
