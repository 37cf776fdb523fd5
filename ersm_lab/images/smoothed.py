"""Images simplified to a level of sparsity, or by frequency to the same energy; kept in `data/cache`."""

from __future__ import annotations

import torch
from torch import Tensor

from ersm_lab.images import inverse_scale
from ersm_lab.images.inverse_scale import PathSettings
from ersm_lab.results import records


def at_level(
    images: Tensor,
    level: float,
    *,
    path: PathSettings | None = None,
    low_pass: bool = False,
    progress: bool = True,
) -> Tensor:
    """Images sparsified to a level, or with `low_pass` smoothed by frequency to the same energy.

    A low-pass overshoots at edges; what leaves the range of grey levels is clipped, and some energy
    with it.

    Args:
        images: uint8 (N, H, W, C).
        level: of sparsity, 0 to 1; 0 leaves the images as they are.
        path: settings of the path.
        low_pass: see above.
        progress: show a bar.

    Returns:
        uint8 (N, H, W, C).
    """
    if level == 0:
        return images
    cache = records.home() / "data" / "cache" / "inverse-scale"
    flat = inverse_scale.sparsify_dataset(
        images, level, cache=cache, settings=path, progress=progress
    )
    if not low_pass:
        return flat
    parts = [_low_pass(x, y) for x, y in zip(images.split(1_000), flat.split(1_000), strict=True)]
    return torch.cat(parts)


def _low_pass(images: Tensor, like: Tensor) -> Tensor:
    x, y = (t.permute(0, 3, 1, 2).float() / 255 for t in (images, like))  # (N, C, H, W)
    energy = inverse_scale.retained_energy(x, y).clamp(0, 1)  # (N,)
    smooth = inverse_scale.low_pass(x, energy)  # (N, C, H, W)
    return (smooth.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous()
