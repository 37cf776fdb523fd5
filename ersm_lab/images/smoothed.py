"""Images simplified to a level of sparsity, or by frequency to the same energy, in stages of a training.

Training on them is that of Zhou et al., arXiv:2409.18419 (`inverse_scale`). What was sparsified is kept
in `data/cache`.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ersm_lab.common import checks
from ersm_lab.common.checkpoints import save_atomically
from ersm_lab.images import flat_regions, inverse_scale, path_steps
from ersm_lab.images.data import Batches, ImageSet
from ersm_lab.images.frequency import low_pass, retained_energy
from ersm_lab.images.inverse_scale import sparsify
from ersm_lab.images.path_steps import PathSettings
from ersm_lab.results import records
from ersm_lab.results.provenance import source_hash

SPARSIFIERS = (flat_regions, inverse_scale, path_steps)  # whose code the files are named by


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
    flat = sparsify_dataset(images, level, cache=cache, settings=path, progress=progress)
    if not low_pass:
        return flat
    parts = [_low_pass(x, y) for x, y in zip(images.split(1_000), flat.split(1_000), strict=True)]
    return torch.cat(parts)


def _low_pass(images: Tensor, like: Tensor) -> Tensor:
    x, y = (t.permute(0, 3, 1, 2).float() / 255 for t in (images, like))  # (N, C, H, W)
    energy = retained_energy(x, y).clamp(0, 1)  # (N,)
    smooth = low_pass(x, energy)  # (N, C, H, W)
    return (smooth.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous()


# --- a whole data set ------------------------------------------------------------------------------


def sparsify_dataset(
    images: Tensor,
    level: float,
    *,
    cache: Path,
    settings: PathSettings | None = None,
    chunk: int | None = None,
    progress: bool = True,
) -> Tensor:
    """Every image at one level, computed once and kept on disk.

    The result is uint8, as the images are: half a grey level is lost, and an `ImageSet` with its
    augmentation takes it as it is, in half the space of float16. It is kept in chunks, each a file
    named by its images, level, settings and the code of the path, with the SHA-256 of its content: an
    interrupted run goes on where it was, and a damaged file is computed again.

    Args:
        images: uint8 (N, H, W, C), on the device that is to do the work.
        level: of sparsity, 0 to 1.
        cache: folder of the files; made if missing.
        settings: of the path, for images of 0 to 1; None is `PathSettings()`.
        chunk: images a file; None is 1,000 on a CPU, seconds of work, and 25,000 on a GPU, which
            small ones leave idle.
        progress: show a bar.

    Returns:
        uint8 (N, H, W, C) on the same device.

    Raises:
        ValueError: images of another type or shape or none, a level outside of 0 to 1.
    """
    checks.a("images", images, Tensor)
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(
            f"images must be uint8 (N, H, W, C), got {images.dtype} {tuple(images.shape)}"
        )
    if not images.numel():
        raise ValueError(f"images must be one or more, got {tuple(images.shape)}")
    checks.number("level", level, least=0, most=1)
    checks.a("cache", cache, (str, Path))
    settings = PathSettings() if settings is None else settings
    checks.a("settings", settings, PathSettings)
    if chunk is not None:
        checks.whole("chunk", chunk)
    checks.flag("progress", progress)
    chunk = chunk or (1_000 if images.device.type == "cpu" else 25_000)
    bar = tqdm(
        desc=f"sparsity {level:g}",
        total=len(images),
        unit="image",
        disable=not progress,
        leave=False,
    )
    results = []
    with bar:
        for part in images.split(chunk):
            path = Path(cache) / f"inverse-scale-{_fingerprint(part, level, settings)}.pt"
            result = _read(path)
            if result is None:
                x = part.permute(0, 3, 1, 2).float() / 255  # (n, C, H, W)
                y = sparsify(x, level, settings=settings)
                result = (y.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().cpu()
                with suppress(
                    OSError, RuntimeError
                ):  # cannot be written: no matter, but for the time
                    save_atomically({"images": result, "sha256": _sha256(result)}, path)
            results.append(result)
            bar.update(len(part))
    return torch.cat(results).to(images.device)


def _fingerprint(images: Tensor, level: float, settings: PathSettings) -> str:
    what = (_sha256(images), tuple(images.shape), float(level), astuple(settings))
    code = source_hash([str(module.__file__) for module in SPARSIFIERS])[0]
    return hashlib.sha256(repr((what, code)).encode()).hexdigest()[:16]


def _sha256(images: Tensor) -> str:
    return hashlib.sha256(images.cpu().contiguous().numpy().tobytes()).hexdigest()


def _read(path: Path) -> Tensor | None:
    """The images of a chunk; None where the file is absent or damaged."""
    if not path.is_file():
        return None
    try:
        content = torch.load(path, weights_only=True)
        whole = _sha256(content["images"]) == content["sha256"]
    except Exception as error:  # what a damaged file raises depends on where the damage is
        warnings.warn(f"{path.name} cannot be read ({error}): computed again", stacklevel=3)
        return None
    if not whole:
        warnings.warn(f"{path.name} has a wrong checksum: computed again", stacklevel=3)
    return content["images"] if whole else None
