"""Photographs with true object masks: Oxford-IIIT Pets, Flowers-17, Caltech-101.

Two layouts are understood. The official one, as torchvision downloads it (`OxfordIIITPet`,
`Caltech101`), and a reduced one, `photos/` of one of the data folders (`ERSM_DATA_DIR`, then the
project's own `data/`), with the same names and lists:

    pets/       images/*.jpg  trimaps/*.png  pets3_trainval.txt  pets3_test.txt      official split
    flowers17/  images/*.jpg  labels/*.png   train.txt  test.txt       every fourth is a test image
    caltech24/  images/*/*.jpg  masks/*/*.png  train.txt  test.txt     every third is a test image

Flowers-17 has no torchvision data set, and some of its images no mask. Of the official Caltech-101
all images of the 24 classes are taken: more than the reduced copy holds, so its numbers differ.
Splits for validation are drawn from the training images, class by class (`split`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy.io import loadmat
from torch import Tensor
from torchvision import datasets

from ersm_lab.common import checks
from ersm_lab.images.data import DataNotFound, data_folders

BREEDS = {1: "Abyssinian", 2: "American bulldog", 6: "Bengal"}  # of pets3, by the official numbers
CALTECH24 = (
    "airplanes anchor ant barrel beaver binocular bonsai brain brontosaurus butterfly camera car_side "
    "ceiling_fan cellphone crab crayfish crocodile dolphin dragonfly elephant emu flamingo kangaroo "
    "panda"
).split()

# Of each set: value of the object, of the ground in its masks; all others are neither.
OBJECT, GROUND = 1, {"pets3": 2, "flowers17": 3, "caltech24": 2}
SETS = tuple(GROUND)
CREDITS = {
    "pets3": "Oxford-IIIT Pet, Parkhi et al. 2012, CC BY-SA 4.0",
    "caltech24": "Caltech-101, Li et al. 2003, CC BY 4.0",
}  # Flowers-17 states no licence: its photographs are not shown
SOURCES = {
    "pets3": "https://www.robots.ox.ac.uk/~vgg/data/pets/",
    "flowers17": "https://www.robots.ox.ac.uk/~vgg/data/flowers/17/",
    "caltech24": "https://data.caltech.edu/records/mzrjq-6wc02",
}


@dataclass(frozen=True, kw_only=True)
class Photo:
    """One photograph.

    Attributes:
        path: of the image.
        label: number of its class.
        mask: of the file that holds its true mask; None where there is none.
    """

    path: Path
    label: int
    mask: Path | None = None


@dataclass(frozen=True, kw_only=True)
class PhotoSet:
    """Photographs of one set, in the order of its lists.

    Attributes:
        name: of `SETS`.
        classes: their names.
        train, test: the photographs.
    """

    name: str
    classes: tuple[str, ...]
    train: tuple[Photo, ...]
    test: tuple[Photo, ...]


def find(name: str, *, root: str | Path | None = None, download: bool = False) -> PhotoSet:
    """The photographs of a set, wherever they are.

    Args:
        name: of `SETS`.
        root: the folder to look in, official or reduced; None is `data.data_folders()`.
        download: fetch Pets (800 MB) or Caltech-101 (140 MB) by torchvision if they are not there.

    Raises:
        ValueError: an unknown set.
        DataNotFound: it is nowhere; the message names the ways out.
    """
    checks.text("name", name)
    if name not in SETS:
        raise ValueError(f"no set {name!r} of photographs: choose of {', '.join(SETS)}")
    folders = [Path(root)] if root else data_folders()
    for folder in folders:
        for place in (folder, folder / "photos"):
            if found := _reduced(name, place) or _official(name, place):
                return found
    if download and name != "flowers17":
        kind = datasets.OxfordIIITPet if name == "pets3" else datasets.Caltech101
        more = {"target_type": "annotation"} if name == "caltech24" else {}
        kind(str(folders[-1]), download=True, **more)
        if found := _official(name, folders[-1]):
            return found
    by_itself = "" if name == "flowers17" else ", or pass download=True"
    raise DataNotFound(
        f"no photographs of {name} in {', '.join(map(str, folders))}: put the reduced copy under "
        f"photos/ there, or fetch {SOURCES[name]}{by_itself}. Recorded results are shown without them."
    )


def split(photos: tuple[Photo, ...], *, share: float = 0.2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Indices of training and validation images: of every class the same share, drawn by the seed.

    Args:
        photos: the training images.
        share: of each class that is for validation, rounded, one image at least.
        seed: of the draw.

    Returns:
        Two sorted int64 tensors, which together are all images.
    """
    checks.number("share", share, above=0, below=1)
    checks.seed("seed", seed)
    rng = torch.Generator().manual_seed(seed)
    labels = torch.tensor([photo.label for photo in photos])  # (N,)
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        mine = (labels == label).nonzero()[:, 0]
        count = max(1, round(share * len(mine)))
        held[mine[torch.randperm(len(mine), generator=rng)[:count]]] = True
    return (~held).nonzero()[:, 0], held.nonzero()[:, 0]


def true_mask(photo: Photo, name: str, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Object and ground of a photograph, each bool (H, W); a border belongs to neither.

    Args:
        photo: one that has a mask.
        name: of its set.
        size: (width, height) of the image, for contours that are drawn.
    """
    if photo.mask is None:
        raise ValueError(f"{photo.path.name} has no mask: ask only for photographs that have one")
    if photo.mask.suffix == ".mat":  # the outline of the official Caltech-101, inside a box
        told = loadmat(photo.mask)
        top, _, left, _ = told["box_coord"][0].astype(float)
        x, y = told["obj_contour"].astype(float)  # (points,) each
        picture = Image.new("1", size)
        outline = list(zip((x + left).tolist(), (y + top).tolist(), strict=True))
        ImageDraw.Draw(picture).polygon(outline, fill=1)
        drawn = np.array(picture)  # (H, W)
        return drawn, ~drawn
    values = np.array(Image.open(photo.mask))  # (H, W)
    return values == OBJECT, values == GROUND[name]


# --- the two layouts -------------------------------------------------------------------------------


def _reduced(name: str, place: Path) -> PhotoSet | None:
    folder = place / ("pets" if name == "pets3" else name)
    prefix = "pets3_" if name == "pets3" else ""
    lists = [folder / f"{prefix}{part}.txt" for part in (_first(name), "test")]
    if not all(path.is_file() for path in lists):
        return None
    masks = {"pets3": "trimaps", "flowers17": "labels", "caltech24": "masks"}[name]
    if name == "pets3":
        return _pets(lists, folder / "images", folder / masks)
    parts, classes = [], {}
    for path in lists:
        photos = []
        for line in path.read_text().splitlines():
            image, label, *more = line.split()
            mask = folder / masks / f"{image}.png"
            classes[int(label)] = more[0] if more else image.split("/")[0]
            photos.append(
                Photo(
                    path=folder / "images" / f"{image}.jpg",
                    label=int(label),
                    mask=mask if mask.is_file() else None,
                )
            )
        parts.append(tuple(photos))
    names = tuple(classes[label] for label in sorted(classes))
    return PhotoSet(name=name, classes=names, train=parts[0], test=parts[1])


def _first(name: str) -> str:
    return "trainval" if name == "pets3" else "train"


def _official(name: str, place: Path) -> PhotoSet | None:
    if name == "pets3":
        notes = place / "oxford-iiit-pet" / "annotations"
        lists = [notes / "trainval.txt", notes / "test.txt"]
        if all(path.is_file() for path in lists):
            return _pets(lists, notes.parent / "images", notes / "trimaps")
    home = place / "caltech101" / "101_ObjectCategories"
    if name == "caltech24" and home.is_dir():
        return _caltech(home)
    return None


def _pets(lists: list[Path], images: Path, trimaps: Path) -> PhotoSet:
    numbers = list(BREEDS)
    parts = []
    for path in lists:
        lines = [line.split()[:2] for line in path.read_text().splitlines() if line[:1] != "#"]
        parts.append(
            tuple(
                Photo(
                    path=images / f"{image}.jpg",
                    label=numbers.index(int(breed)),
                    mask=trimaps / f"{image}.png",
                )
                for image, breed in lines
                if int(breed) in numbers
            )
        )
    return PhotoSet(name="pets3", classes=tuple(BREEDS.values()), train=parts[0], test=parts[1])


def _caltech(home: Path) -> PhotoSet:
    folders = {"airplanes": "Airplanes_Side_2"}  # whose outlines lie in a folder of another name
    parts: dict[bool, list[Photo]] = {False: [], True: []}
    for label, kind in enumerate(CALTECH24):
        notes = home.parent / "Annotations" / folders.get(kind, kind)
        for path in sorted((home / kind).glob("image_*.jpg")):
            number = path.stem.removeprefix("image_")
            outline = notes / f"annotation_{number}.mat"
            mask = outline if outline.is_file() else None
            parts[int(number) % 3 == 0].append(Photo(path=path, label=label, mask=mask))
    return PhotoSet(
        name="caltech24",
        classes=tuple(CALTECH24),
        train=tuple(parts[False]),
        test=tuple(parts[True]),
    )
