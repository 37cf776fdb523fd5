"""The published protocol on photographs: Oxford-IIIT Pets or CUB-200-2011, on a pretrained ResNet.

For a machine with a GPU and a network connection (Colab). Nothing is downloaded unless asked for, and
no record is written. Tested on made-up images in the same layout, with random weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import datasets
from torchvision.transforms import v2
from tqdm import tqdm

from ersm_lab.common import checks
from ersm_lab.results import records
from ersm_lab.training import protocol_runs, protocols
from ersm_lab.training.config import PublishedConfig
from ersm_lab.training.loop import make_fabric
from ersm_lab.training.protocols import FeatureSet, PublishedProtocol
from ersm_lab.views.tables import Table, percent

MEAN, STD = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # of ImageNet, as torchvision's weights want
CUB = "CUB_200_2011"  # the folder in its archive
CUB_PAGE = "https://www.vision.caltech.edu/datasets/cub_200_2011/"


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Data sets that give an image (3, S, S) and its class number.

    Attributes:
        training, validation: the official training images; every tenth is for validation.
        test: the official test images.
        classes: class names.
    """

    training: Dataset
    validation: Dataset
    test: Dataset
    classes: tuple[str, ...]


def preprocessing(image_size: int = 224) -> Callable:
    """PIL image -> normalised float32 (3, S, S): shorter side to 8/7 S, then the middle of it."""
    checks.whole("image_size", image_size, most=protocols.MOST_SIDE)
    return v2.Compose(
        [
            v2.Resize(round(image_size * 8 / 7), antialias=True),
            v2.CenterCrop(image_size),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


def open_images(
    setting: str, root: str | Path, *, image_size: int = 224, download: bool = False
) -> Splits:
    """The images of a setting.

    Args:
        setting: "pets" (Oxford-IIIT Pets, below `root` as torchvision lays it out) or "cub"
            (CUB-200-2011, the unpacked folder `CUB_200_2011` below `root`).
        root: the folder.
        image_size: side in pixels.
        download: fetch Pets if it is not there; CUB has to be fetched by hand.

    Raises:
        ValueError: an unknown setting.
        FileNotFoundError: the images are not there.
    """
    checks.text("setting", setting)
    checks.a("root", root, (str, Path))
    checks.flag("download", download)
    if setting not in ("pets", "cub"):
        raise ValueError(f'setting must be "pets" or "cub", got {setting!r}')
    root, transform = Path(root), preprocessing(image_size)
    known, test, classes = (
        _cub(root, transform) if setting == "cub" else _pets(root, transform, download)
    )
    every = range(len(known))
    return Splits(
        training=Subset(known, [i for i in every if i % 10]),
        validation=Subset(known, [i for i in every if i % 10 == 0]),
        test=test,
        classes=classes,
    )


def _pets(
    root: Path, transform: Callable, download: bool
) -> tuple[datasets.VisionDataset, Dataset, tuple[str, ...]]:
    settings = {"root": str(root), "transform": transform, "download": download}
    try:
        known = datasets.OxfordIIITPet(split="trainval", **settings)
        test = datasets.OxfordIIITPet(split="test", **settings)
    except RuntimeError as error:
        raise FileNotFoundError(
            f"no Oxford-IIIT Pets in {root / 'oxford-iiit-pet'}: pass download=True (800 MB)"
        ) from error
    return known, test, tuple(known.classes)


def _cub(root: Path, transform: Callable) -> tuple[Subset, Dataset, tuple[str, ...]]:
    folder = root / CUB
    lists = [folder / name for name in ("images.txt", "train_test_split.txt")]
    if not all(path.is_file() for path in lists):
        raise FileNotFoundError(f"no CUB-200-2011 in {folder}: unpack {CUB_PAGE} below {root}")
    whole = datasets.ImageFolder(str(folder / "images"), transform=transform)
    paths, split = (
        dict(line.split() for line in path.read_text().splitlines() if line.strip())
        for path in lists
    )
    trains = {paths[number]: flag == "1" for number, flag in split.items()}  # by path
    images = Path(whole.root)
    flags = [trains[Path(path).relative_to(images).as_posix()] for path, _ in whole.samples]
    known = Subset(whole, [i for i, flag in enumerate(flags) if flag])
    test = Subset(whole, [i for i, flag in enumerate(flags) if not flag])
    return known, test, tuple(whole.classes)


def extract(
    model: PublishedProtocol,
    images: Dataset,
    classes: Sequence[str],
    *,
    batch_size: int = 64,
    workers: int = 2,
    progress: bool = True,
) -> FeatureSet:
    """Every image's frozen feature map, on the CPU; the model's device computes them.

    Raises:
        ValueError: no images.
    """
    checks.a("model", model, PublishedProtocol)
    if not hasattr(images, "__getitem__") or not hasattr(images, "__len__"):
        raise TypeError(f"images must be a Dataset with a length, got {checks.shown(images)}")
    if not len(images):
        raise ValueError("there are no images to extract maps from: give one at least")
    checks.several("classes", classes)
    checks.whole("batch_size", batch_size)
    checks.whole("workers", workers, least=0, most=1_000)
    checks.flag("progress", progress)
    device = next(model.parameters()).device
    loader = DataLoader(images, batch_size=batch_size, num_workers=workers)
    maps: Tensor | None = None
    labels = torch.empty(len(images), dtype=torch.long)  # (N,)
    start = 0
    model.eval()
    for x, y in tqdm(loader, unit="batch", disable=not progress):
        part = protocols.to_cache(model.maps(x.to(device))).cpu()  # (B, C, h, w)
        if maps is None:
            maps = torch.empty(
                len(images), *part.shape[1:], dtype=part.dtype, memory_format=torch.channels_last
            )
        maps[start : start + len(y)], labels[start : start + len(y)] = part, y
        start += len(y)
    assert maps is not None  # there are images
    return FeatureSet(maps=maps, labels=labels, classes=tuple(classes))


def compare(
    setting: str,
    root: str | Path,
    *,
    rows: Mapping[str, PublishedConfig],
    seeds: Sequence[int] = (0, 1, 2),
    backbone: nn.Module | None = None,
    layer: str = "layer4",
    image_size: int = 224,
    download: bool = False,
    workers: int = 2,
    progress: bool = True,
) -> list[dict]:
    """Train and measure readers on one frozen network.

    Args:
        setting, root, image_size, download: as in `open_images`.
        rows: settings by name; mask, learned_positions, train and deletion are read of each.
        seeds: of mask, head and order of the images; the backbone is the same for all.
        backbone: None is torchvision's ResNet-50 with its ImageNet weights, downloaded if need be.
        layer: whose output is masked.
        workers: processes that read images.
        progress: show bars.

    Returns:
        For every row and seed method, seed, metrics and curve, as in a record.
    """
    checks.a("rows", rows, Mapping)
    checks.several("seeds", seeds)
    for seed in seeds:
        checks.seed("seeds", seed)
    splits = open_images(setting, root, image_size=image_size, download=download)
    if backbone is None:
        backbone = torchvision.models.resnet50(weights="IMAGENET1K_V2")
    fabric = make_fabric(precision="32-true")
    shape: dict[str, Any] = {"classes": len(splits.classes), "image_size": image_size}
    frozen = protocols.published(backbone.to("cpu"), layer, **shape).to(fabric.device)
    parts = (splits.training, splits.validation, splits.test)
    training, validation, test = (
        extract(frozen, part, splits.classes, workers=workers, progress=progress).to(fabric.device)
        for part in parts
    )
    results = []
    for method, config in rows.items():
        for seed in seeds:
            reader = protocols.published(
                backbone.to("cpu"),
                layer,
                masked=config.mask is not None,
                learned_positions=config.learned_positions,
                seed=seed,
                **shape,
                **(config.mask or {}),
            ).reader
            curve = protocol_runs.fit(
                reader,
                training,
                validation,
                config.train,
                seed=seed,
                fabric=fabric,
                progress=progress,
            )
            metrics = protocol_runs.measure(
                reader, test, validation=validation, config=config, seed=seed
            )
            name = f"{setting}/{method}/seed{seed}"
            row = {"name": name, "method": method, "seed": seed, "curve": curve}
            results.append(records.plain(row | {"metrics": metrics}))
    return results


def summary(results: Sequence[dict], columns: Mapping[str, str]) -> Table:
    """One row a method, mean ± standard deviation over its seeds, in percent; as `tables.summary`."""
    checks.several("results", results, least=0)
    checks.a("columns", columns, Mapping)
    rows = []
    for method in dict.fromkeys(result["method"] for result in results):
        group = [result for result in results if result["method"] == method]
        shown = [percent(group, metric) for metric in columns.values()]
        rows.append([method, str(len(group)), *shown])
    return Table(
        header=["method", "seeds", *columns],
        rows=rows,
        caption="Mean ± standard deviation over seeds, in percent",
    )
