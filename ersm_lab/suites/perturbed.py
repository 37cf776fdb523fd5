"""Suites of perturbed images: behind squares, under corruptions, at low resolution."""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ersm_lab.common.files import write_whole
from ersm_lab.images import (
    corruption_kinds,
    corruption_parts,
    corruptions,
    lots,
    occlusion,
    resolution,
)
from ersm_lab.images import data as lab_data
from ersm_lab.images.data import ImageSet
from ersm_lab.results import records
from ersm_lab.results.provenance import source_hash
from ersm_lab.suites.finding import Conditions, Finding, joined, under

KEPT_FROM = 5_000  # images: so many are not perturbed anew for every network
MAKERS = (corruption_kinds, corruption_parts, corruptions, lots, occlusion)  # of what is kept


@dataclass(frozen=True, kw_only=True)
class Occlusion:
    """Every size at every place with every fill, as `occlusion.occlude` explains them.

    Attributes:
        images: the first so many; None is all.
        sizes: sides in pixels.
        positions, fills: of `occlusion.POSITIONS` and `FILLS`. When sliding, each image is
            seen at one place, its neighbour at the next.
        seed: of places, noise and patches.
    """

    images: int | None
    sizes: tuple[int, ...] = occlusion.OCCLUDERS
    positions: tuple[str, ...] = occlusion.POSITIONS
    fills: tuple[str, ...] = occlusion.FILLS
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """Every kind at every severity, as `corruptions.corrupt` makes them.

    Attributes:
        images: the first so many; None is all.
        kinds: of `corruptions.KINDS`.
        severities: 1 to 5.
        seed: of everything drawn by lot.
    """

    images: int | None
    kinds: tuple[str, ...] = corruptions.KINDS
    severities: tuple[int, ...] = corruptions.SEVERITIES
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """Images shrunk and enlarged again.

    Attributes:
        images: the first so many; None is all.
        sizes: pixels a side.
    """

    images: int | None
    sizes: tuple[int, ...] = resolution.LOW_RESOLUTIONS


def under_occlusion(
    model: nn.Module, data: ImageSet, settings: Occlusion, *, progress: bool = False
) -> Finding:
    """Conditions "clean" and "<position>.<fill>.<size>".

    `mean` is over all but "clean" (`occluded`), and over those of each position, fill and size.
    """
    grid = _occlusions(settings)
    groups = {"occluded": [joined(place) for place in grid]}
    for part in range(3):
        for value in dict.fromkeys(place[part] for place in grid):
            groups[str(value)] = [joined(place) for place in grid if place[part] == value]
    conditions = _occluded(data, settings)
    return under(model, data, conditions, groups, title="occlusion", progress=progress)


def _occlusions(settings: Occlusion) -> list[tuple[str, str, int]]:
    places = (settings.positions, settings.fills, settings.sizes)
    return list(itertools.product(*places))


def _occluded(data: ImageSet, settings: Occlusion) -> Conditions:
    found, kept, seed = {"clean": lambda: data.images}, _Kept.of(data.images), settings.seed
    for position, fill, size in _occlusions(settings):
        make = partial(
            occlusion.occlude, data.images, position=position, fill=fill, size=size, seed=seed
        )
        name = f"{position}.{fill}.{size}"
        found[name] = partial(kept, name, seed, make)
    return found


def under_corruption(
    model: nn.Module, data: ImageSet, settings: Corruption, *, progress: bool = False
) -> Finding:
    """Conditions "clean" and "<kind>.<severity>".

    `mean` is over `all` but "clean", over the kinds whose mean is usually reported (`corruptions`,
    `corruptions.CORRUPTIONS`), and over each group of kinds, each kind and each severity.
    """
    grid = list(itertools.product(settings.kinds, settings.severities))
    kinds = {"all": settings.kinds, "corruptions": corruptions.CORRUPTIONS}
    kinds |= corruptions.GROUPS | {kind: (kind,) for kind in settings.kinds}
    groups = {
        name: [joined(place) for place in grid if place[0] in members]
        for name, members in kinds.items()
    }
    for severity in settings.severities:
        groups[str(severity)] = [joined(place) for place in grid if place[1] == severity]
    groups = {name: members for name, members in groups.items() if members}
    conditions = _corrupted(data, settings)
    return under(model, data, conditions, groups, title="corruption", progress=progress)


def _corrupted(data: ImageSet, settings: Corruption) -> Conditions:
    found, kept, seed = {"clean": lambda: data.images}, _Kept.of(data.images), settings.seed
    for kind, severity in itertools.product(settings.kinds, settings.severities):
        make = partial(corruptions.corrupt, data.images, kind, severity, seed=seed)
        found[f"{kind}.{severity}"] = partial(kept, f"{kind}.{severity}", seed, make)
    return found


def at_low_resolution(
    model: nn.Module, data: ImageSet, settings: Resolution, *, progress: bool = False
) -> Finding:
    """Conditions "clean" and "<pixels a side>"; `mean` is over all but "clean" (`lower`)."""
    lower = {
        str(size): partial(resolution.low_resolution, data.images, size) for size in settings.sizes
    }
    conditions = {"clean": lambda: data.images} | lower
    groups = {"lower": list(lower)}
    return under(model, data, conditions, groups, title="resolution", progress=progress)


# --- kept on disk ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """Perturbed images of a large set, made once for all networks and kept in `data/cache`.

    Attributes:
        folder: where; None for a set so small that it is made each time.
        device: of the images.
    """

    folder: Path | None
    device: torch.device

    @classmethod
    def of(cls, images: Tensor) -> _Kept:
        if len(images) < KEPT_FROM:
            return cls(folder=None, device=images.device)
        code = source_hash([str(module.__file__) for module in MAKERS])[0]
        content = hashlib.sha256(images.cpu().numpy().data).hexdigest()
        folder = records.home() / "data" / "cache" / "perturbed" / f"{code[:8]}-{content[:12]}"
        return cls(folder=folder, device=images.device)

    def __call__(self, name: str, seed: int, make: Callable[[], Tensor]) -> Tensor:
        if self.folder is None:
            return make()
        path = self.folder / f"{name}-seed{seed}.npy"
        try:
            return torch.from_numpy(np.load(path)).to(self.device)
        except (OSError, ValueError):  # not there yet, or cut short
            pass
        made, content = make(), io.BytesIO()
        np.save(content, made.cpu().numpy())
        write_whole(path, content.getvalue())
        return made


def prepare(suite: str, dataset: str, settings: Occlusion | Corruption) -> None:
    """Make the perturbed test images of a suite beforehand, where they are kept; on the CPU."""
    data = lab_data.load(dataset, "test", limit=settings.images)
    if isinstance(settings, Occlusion):
        conditions = _occluded(data, settings)
    else:
        conditions = _corrupted(data, settings)
    for make in conditions.values():
        make()
