"""Images simplified to a level of sparsity, or by frequency to the same energy, in stages of a training.

Training on them is that of Zhou et al., arXiv:2409.18419 (`inverse_scale`). What was sparsified is kept
in `data/cache`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ersm_lab.images import inverse_scale
from ersm_lab.images.data import Batches, ImageSet
from ersm_lab.images.inverse_scale import PathSettings
from ersm_lab.results import records


@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """What training images are smoothed to, and when.

    Attributes:
        stages: pairs (share of the epochs from which, level of sparsity), rising from 0; level 0 is
            the image as it is.
        path: settings of the inverse scale path.
        low_pass: instead of its sparsified image take each image's low frequencies that hold the same
            share of its energy.
    """

    stages: tuple[tuple[float, float], ...]
    path: PathSettings = field(default_factory=PathSettings)
    low_pass: bool = False

    def __post_init__(self) -> None:
        starts = [start for start, _ in self.stages]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)) or starts[-1] >= 1:
            raise ValueError(
                "stages are pairs (start, level) whose starts rise from 0 and stay below 1, got "
                f"{self.stages}"
            )

    def level(self, progress: float) -> float:
        """The level at a share of the epochs, 0 to 1."""
        return [level for start, level in self.stages if start <= progress + 1e-9][-1]


def staged(
    images: ImageSet, smoothing: Smoothing, *, epochs: int, progress: bool = True
) -> StagedImages:
    """The images of every epoch; sparsified ones are computed once and kept in `data/cache`."""
    levels = [smoothing.level(epoch / epochs) for epoch in range(epochs)]
    sets = {
        level: replace(
            images,
            images=at_level(
                images.images,
                level,
                path=smoothing.path,
                low_pass=smoothing.low_pass,
                progress=progress,
            ),
        )
        for level in dict.fromkeys(levels)
    }
    return StagedImages(sets=sets, levels=tuple(levels))


@dataclass(frozen=True, kw_only=True)
class StagedImages:
    """Training images that are others in later epochs.

    Attributes:
        sets: {level: the images at that level}.
        levels: the level of each epoch.
    """

    sets: dict[float, ImageSet]
    levels: tuple[float, ...]

    def to(self, device: str | torch.device) -> StagedImages:
        return replace(self, sets={level: part.to(device) for level, part in self.sets.items()})

    def batches(self, **settings) -> StagedBatches:
        """Training batches; settings as in `Batches`."""
        batches = {level: part.batches(**settings) for level, part in self.sets.items()}
        return StagedBatches(batches, self.levels)


class StagedBatches:
    """In every epoch the batches of its level: order and augmentation are those of `Batches`."""

    def __init__(self, batches: dict[float, Batches], levels: tuple[float, ...]) -> None:
        self.batches, self.levels = batches, levels

    def __len__(self) -> int:
        return len(self.batches[self.levels[0]])

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        return self.batches[self.levels[epoch]].epoch(epoch)


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
