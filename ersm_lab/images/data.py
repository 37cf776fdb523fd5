"""Image data: CIFAR-10 and CIFAR-100 from disk or a checksummed download, textured shapes from a seed.

Images stay uint8 in the memory of the training device; flips, crops and cutout are one gather per
batch (`Batches`), with no per-image Python. The split is fixed: of the 50,000 training images the
last 5,000 are for validation, where every setting is chosen; the test set is for reporting only.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from numbers import Integral
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torchvision
from torch import Tensor
from torchvision.datasets.utils import calculate_md5

from ersm_lab.common import checkpoints
from ersm_lab.common.checkpoints import save_atomically
from ersm_lab.common.files import Damaged
from ersm_lab.images import download, shapes
from ersm_lab.results import records

VALIDATION = 5_000  # images, the last of the training set
CIFAR = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}
DATASETS = (*CIFAR, "shapes", "shapes-spurious")
SHAPES_SIZE = {"train": 45_000, "val": VALIDATION, "test": 10_000}
SHAPES_SEED = {"train": 101, "val": 102, "test": 103}
SPURIOUS_SHARE = 0.9  # of the training images of "shapes-spurious"; none of its test images


class DataNotFound(FileNotFoundError):
    """The data set is not on this machine and cannot be fetched; the message names the ways out."""


class DataDamaged(OSError):
    """The only copy is damaged, and there is no other to be had; the message names its files."""


class Labelled(Protocol):
    """What a network can be asked: an `ImageSet`, or maps that take its place."""

    @property
    def labels(self) -> Tensor: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice | Tensor) -> Labelled: ...

    def inputs(self, size: int = ...) -> Iterator[tuple[Tensor, Tensor]]: ...


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Images in memory.

    Attributes:
        name: one of `DATASETS`.
        images: uint8 (N, H, W, 3); channels last, so that a gathered batch is a channels_last view.
        labels: int64 (N,).
        classes: class names.
        masks: bool (N, H, W), True on the object; None where unknown (CIFAR).
        mean, std: per channel, in units of 0 to 1, of the training images;
            round numbers for shapes.
    """

    name: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: slice | Tensor) -> ImageSet:
        masks = None if self.masks is None else self.masks[index]
        return replace(self, images=self.images[index], labels=self.labels[index], masks=masks)

    def to(self, device: str | torch.device) -> ImageSet:
        masks = None if self.masks is None else self.masks.to(device)
        return replace(
            self, images=self.images.to(device), labels=self.labels.to(device), masks=masks
        )

    def batches(self, **settings) -> Batches:
        """Training batches of these images; settings as in `Batches`."""
        return Batches(self, **settings)

    def inputs(self, size: int = 1_000) -> Iterator[tuple[Tensor, Tensor]]:
        """All images in order, for evaluation: x (B, 3, H, W) float32 and labels (B,)."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield self.normalise(self.images[part]), self.labels[part]

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) -> float32 (B, 3, H, W), zero mean and unit variance, channels_last."""
        shift, scale = _to_unit(self.mean, self.std, images.device)  # (3,), (3,)
        x = torch.addcmul(shift, images.float(), scale)  # (B, H, W, 3)
        return x.permute(0, 3, 1, 2)  # (B, 3, H, W)


@cache
def _to_unit(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Shift and scale, (3,) and (3,), from grey levels to zero mean and unit variance."""
    scale = 1 / (255 * torch.tensor(std, device=device))
    return -torch.tensor(mean, device=device) * 255 * scale, scale


# --- finding ---------------------------------------------------------------------------------------


def named_folder() -> Path | None:
    """The user's own folder, which ERSM_DATA_DIR names."""
    named = os.environ.get("ERSM_DATA_DIR")
    return Path(named).expanduser() if named else None


def data_folders() -> list[Path]:
    """Where CIFAR is looked for: ERSM_DATA_DIR if set, then `data/downloads` and `data` at home."""
    named, home = named_folder(), records.home() / "data"
    return ([named] if named else []) + [home / "downloads", home]


def locate(name: str) -> Path | None:
    """The folder that holds the official files of "cifar10" or "cifar100", or None.

    A folder in which a file is damaged is passed over, with a warning that names the file.
    """
    for root in data_folders():
        wrong = damaged(name, root)
        if wrong == []:
            return root
        if wrong:
            told = ", ".join(map(str, wrong))
            warnings.warn(f"damaged, and therefore passed over: {told}", stacklevel=2)
    return None


def damaged(name: str, root: Path) -> list[Path] | None:
    """The files in a folder whose checksum is not the official one; None if not all files are there."""
    official = CIFAR[name]
    sums = dict([*official.train_list, *official.test_list])
    sums[official.meta["filename"]] = official.meta["md5"]
    paths = {root / official.base_folder / file: md5 for file, md5 in sums.items()}
    if not all(path.is_file() for path in paths):
        return None
    return [path for path, md5 in paths.items() if _md5(path) != md5]


def _md5(path: Path) -> str | None:
    """Of a file, read once a process and then again if it has changed; None if it cannot be read."""
    try:
        state = path.stat()
        return _md5_of_state(path, state.st_size, state.st_mtime_ns)
    except OSError:
        return None


@cache
def _md5_of_state(path: Path, size: int, changed: int) -> str:
    return calculate_md5(path)


def obtain(name: str, *, progress: bool = True) -> Path:
    """`locate`, or download to `data/downloads` from the first source that answers.

    A damaged copy in `data/downloads` is replaced; one in a folder of the user's is left as it is.

    Raises:
        DataNotFound: absent and no source can be reached.
        DataDamaged: damaged and no source can be reached, or the folder is the user's.
    """
    root = locate(name)
    if root is not None:
        return root
    target, named = records.home() / "data" / "downloads", named_folder()
    wrong = [path for folder in data_folders() for path in damaged(name, folder) or ()]
    try:
        if wrong and named is not None and named.resolve() == target.resolve():
            raise OSError("the folder of ERSM_DATA_DIR is left as it is")
        download.fetch_archive(
            download.ARCHIVES[name],
            target,
            needed=lambda: locate(name) is None,
            progress=progress,
        )
    except OSError as error:
        folder, url = CIFAR[name].base_folder, download.ARCHIVES[name].urls[0]
        ways = (
            f"(1) set ERSM_DATA_DIR to a folder that holds {folder}/; (2) put that folder, or the "
            f"unpacked archive {url}, under {target}; (3) use the embedded data set: "
            'dataset="shapes".'
        )
        if wrong:
            told = ", ".join(map(str, wrong))
            raise DataDamaged(
                f"{name} is damaged on this machine ({told}) and cannot be downloaded anew ({error}). "
                f"Delete {wrong[0].parent} and try again, or: {ways}"
            ) from error
        raise DataNotFound(
            f"{name} is neither on this machine nor can it be downloaded ({error}). Three ways out: "
            f"{ways}"
        ) from error
    return locate(name) or target


@cache
def default_dataset() -> str:
    """The name "cifar10" where it can be had (downloading it if need be), otherwise "shapes".

    Raises:
        DataDamaged: there is a damaged copy, which nothing may stand in for unseen.
    """
    if os.environ.get("ERSM_DATASET"):
        return os.environ["ERSM_DATASET"]
    try:
        obtain("cifar10")
    except DataNotFound:
        return "shapes"
    return "cifar10"


# --- loading ---------------------------------------------------------------------------------------


def load(
    name: str, split: str, *, limit: int | None = None, device: str | torch.device = "cpu"
) -> ImageSet:
    """Load a data set into memory.

    Args:
        name: one of `DATASETS`.
        split: "train" (45,000 images), "val" (5,000) or "test" (10,000).
        limit: the first so many images only.
        device: where images and labels are to live.

    Raises:
        ValueError: an unknown name or split, or a limit that is no whole number of at least 1.
        DataNotFound, DataDamaged: CIFAR that cannot be had.
    """
    if name not in DATASETS:
        raise ValueError(f"no data set {name!r}: choose one of {', '.join(DATASETS)}")
    if split not in ("train", "val", "test"):
        raise ValueError(f'split must be "train", "val" or "test", got {split!r}')
    if limit is not None and not (_is_whole(limit) and limit >= 1):
        raise ValueError(f"limit must be a whole number of at least 1, or None for all: {limit!r}")
    whole = _load_cifar(name, split) if name in CIFAR else _load_shapes(name, split, limit)
    return whole[:limit].to(device)


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _load_cifar(name: str, split: str) -> ImageSet:
    images, labels, classes = _official(name, obtain(name), split != "test")
    part = {"train": slice(0, -VALIDATION), "val": slice(-VALIDATION, None), "test": slice(None)}[
        split
    ]
    mean, std = {
        "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    }[name]
    return ImageSet(
        name=name,
        images=images[part],
        labels=labels[part],
        classes=classes,
        mean=mean,
        std=std,
    )


@lru_cache(maxsize=2)  # the training and the test images: a process may train many networks
def _official(name: str, root: Path, train: bool) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Images uint8 (N, 32, 32, 3), labels (N,), class names; nobody changes them in place."""
    source = CIFAR[name](root=str(root), train=train, download=False)
    return torch.from_numpy(source.data), torch.tensor(source.targets), tuple(source.classes)


def _load_shapes(name: str, split: str, limit: int | None) -> ImageSet:
    count = SHAPES_SIZE[split] if limit is None else min(int(limit), SHAPES_SIZE[split])
    spurious = None
    if name == "shapes-spurious":
        spurious = 0.0 if split == "test" else SPURIOUS_SHARE
    made = _textured_shapes(name, count, seed=SHAPES_SEED[split], spurious=spurious)
    return ImageSet(
        name=name,
        images=made.images.permute(0, 2, 3, 1).contiguous(),  # (N, H, W, 3)
        labels=made.labels,
        masks=made.masks,
        classes=shapes.CLASSES,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )


def _textured_shapes(
    name: str, count: int, *, seed: int, spurious: float | None
) -> shapes.TexturedShapes:
    """Draw the images, or take them from `data/cache` if they were drawn by the same source.

    Where that folder cannot be written, or what lies in it not be read, they are drawn again.
    """
    if count <= 5_000:  # seconds
        return _few_shapes(count, seed, spurious)
    source = records.source_hash([shapes.__file__])[0][:12]
    path = records.home() / "data" / "cache" / f"{name}-{seed}-{count}-{source}.pt"
    if path.is_file():
        try:
            return shapes.TexturedShapes(**checkpoints.load(path))
        except (OSError, Damaged) as error:
            warnings.warn(f"{path} cannot be read, and is made again: {error}", stacklevel=2)
    made = shapes.textured_shapes(count, seed=seed, spurious=spurious, progress=True)
    try:
        save_atomically(made._asdict(), path)
    except (OSError, RuntimeError) as error:  # RuntimeError: torch's, where the disk is full
        warnings.warn(
            f"{path} cannot be kept, so that these shapes are drawn each time: {error}. Set ERSM_HOME "
            "to a folder that can be written.",
            stacklevel=2,
        )
    return made


@lru_cache(maxsize=4)  # as of `_official`
def _few_shapes(count: int, seed: int, spurious: float | None) -> shapes.TexturedShapes:
    return shapes.textured_shapes(count, seed=seed, spurious=spurious)


# --- batches ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What is done to a training batch.

    Attributes:
        flip: mirror every image in every second epoch (Jordan, 2024), its first one by lot.
        crop: pad by so many reflected pixels on each side, then crop at random.
        cutout: side in pixels of a square set to the mean colour (DeVries & Taylor, 2017); 0 is none.
    """

    flip: bool = True
    crop: int = 2
    cutout: int = 0


class Batches:
    """Shuffled, augmented, normalised batches of an `ImageSet`, the same for the same seed and epoch.

    With several processes each one takes its share of every batch: the shares of all ranks together
    are the batch a single process would have seen.

    Args:
        data: the images.
        batch_size: images a batch, all processes together; the last, smaller batch is left out.
        augment: what is done to them.
        seed: of order and augmentation.
        rank, world_size: this process and their number; `world_size` must divide `batch_size`.
    """

    def __init__(
        self,
        data: ImageSet,
        *,
        batch_size: int,
        augment: Augment,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if len(data) < batch_size:
            raise ValueError(f"{len(data)} images are fewer than one batch of {batch_size}")
        if batch_size % world_size:
            raise ValueError(f"{world_size} processes do not divide a batch of {batch_size}")
        self.data, self.batch_size, self.augment, self.seed = data, batch_size, augment, seed
        self.share = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        pad = augment.crop
        padded = np.pad(
            data.images.cpu().numpy(), ((0, 0), (pad, pad), (pad, pad), (0, 0)), "reflect"
        )
        self.padded = torch.from_numpy(padded).to(
            data.images.device
        )  # (N, H + 2 pad, W + 2 pad, 3)

    def __len__(self) -> int:
        return len(self.data) // self.batch_size

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield x (B, 3, H, W) float32 channels_last and labels (B,) of one epoch."""
        lots = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        first = torch.Generator().manual_seed(self.seed)
        count, height, width = self.data.images.shape[:3]
        steps, size, device = len(self), self.batch_size, self.padded.device
        order = torch.randperm(count, generator=lots)  # (N,)
        mirror = torch.rand(count, generator=first) < 0.5  # (N,)
        mirror = (mirror ^ bool(epoch % 2)) & self.augment.flip
        index = order[: steps * size].view(steps, size)  # (S, B)
        span = 2 * self.augment.crop + 1
        drawn = [
            (torch.randint(span, (2, size), generator=lots), torch.rand(2, size, generator=lots))
            for _ in range(steps)
        ]
        shift, hole = (torch.stack(parts)[..., self.share] for parts in zip(*drawn, strict=True))
        index = index[:, self.share]
        parts = (index, mirror[index], shift, hole)  # (S, b), (S, b), (S, 2, b), (S, 2, b)
        index, flip, shift, hole = (part.to(device) for part in parts)  # here, so no step waits
        rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
        for step in range(steps):
            top, left = shift[step]  # (b,), (b,)
            across = torch.where(flip[step][:, None], width - 1 - columns, columns)  # (b, W)
            x = self._gather(index[step], rows + top[:, None], across + left[:, None])
            if self.augment.cutout:  # x is (b, 3, H, W)
                x = x * _holes(hole[step], height, width, self.augment.cutout)
            yield x, self.data.labels[index[step]]

    def _gather(self, index: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        picked = self.padded[index[:, None, None], rows[:, :, None], columns[:, None, :]]
        return self.data.normalise(picked)  # (B, 3, H, W)


def _holes(centre: Tensor, height: int, width: int, side: int) -> Tensor:
    """1 everywhere but in a square of `side` pixels around each centre, (2, B) -> (B, 1, H, W).

    Centres lie inside the image, so that squares may reach over its border.
    """
    inside = []
    for middle, size in zip(centre, (height, width), strict=True):
        start = (middle * size).long() - side // 2  # (B,)
        pixel = torch.arange(size, device=centre.device)  # (size,)
        inside.append((pixel >= start[:, None]) & (pixel < start[:, None] + side))  # (B, size)
    return (~(inside[0][:, None, :, None] & inside[1][:, None, None, :])).float()
