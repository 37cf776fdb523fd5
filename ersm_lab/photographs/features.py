"""Maps of frozen layers, computed once: what every run of the chapter reads instead of photographs.

A photograph is resized to its shorter side (bicubic) and its middle square is taken; its true mask
goes the same way (nearest) and becomes, token by token, the share of object and of ground.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms
from tqdm import tqdm

from ersm_lab.common.files import set_aside, write_whole
from ersm_lab.photographs.backbones import Backbone
from ersm_lab.photographs.sets import Photo, PhotoSet, true_mask
from ersm_lab.results import records

PROTOCOL = 1  # raise it when the way from a photograph to a map changes


@dataclass(frozen=True, kw_only=True)
class Maps:
    """Photographs of one part of a set as a frozen layer sees them.

    Attributes:
        tokens: float16 (N, C, h, w).
        labels: int64 (N,).
        on, off: float32 (N, h, w), of each token the share that is object, that is ground; NaN where an
            image has no true mask. What is left, a border, is neither.
    """

    tokens: Tensor
    labels: Tensor
    on: Tensor
    off: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> Maps:
        parts = {name: getattr(self, name)[index] for name in ("tokens", "labels", "on", "off")}
        return replace(self, **parts)

    @property
    def marked(self) -> Tensor:
        """Which images have a true mask that shows both object and ground, bool (N,)."""
        return (self.on.flatten(1).sum(1) > 0) & (self.off.flatten(1).sum(1) > 0)


def picture(photo: Photo, size: int) -> Tensor:
    """The middle square of a photograph, uint8 (3, S, S)."""
    image = transforms.pil_to_tensor(Image.open(photo.path).convert("RGB"))  # (3, H, W)
    image = transforms.resize(image, [size], InterpolationMode.BICUBIC, antialias=True)
    return transforms.center_crop(image, [size, size])


def true_shares(photo: Photo, name: str, size: int) -> Tensor:
    """Object and ground of the same square, float32 (2, S, S) of 0 and 1; NaN without a mask."""
    if photo.mask is None:
        return torch.full((2, size, size), torch.nan)
    both = np.stack(true_mask(photo, name, Image.open(photo.path).size))  # (2, H, W)
    both = transforms.resize(torch.from_numpy(both).float(), [size], InterpolationMode.NEAREST)
    return transforms.center_crop(both, [size, size])


def normalised(pictures: Tensor, backbone: Backbone) -> Tensor:
    """uint8 (B, 3, S, S) -> what the network reads."""
    mean, std = (torch.tensor(value)[:, None, None] for value in (backbone.mean, backbone.std))
    return ((pictures.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def compute(
    photos: Sequence[Photo],
    name: str,
    backbone: Backbone,
    *,
    batch_size: int = 32,
    progress: bool = True,
) -> dict[str, Maps]:
    """The maps of all layers of a backbone, by the layers' short names.

    Args:
        photos: of one set.
        name: of the set.
        backbone: frozen; its device computes.
        batch_size: photographs at a time.
        progress: show a bar.
    """
    labels = torch.tensor([photo.label for photo in photos])  # (N,)
    shares = torch.stack([true_shares(photo, name, backbone.image_size) for photo in photos])
    parts: dict[str, list[Tensor]] = {layer: [] for layer in backbone.layers}
    with tqdm(total=len(photos), desc=f"{name}, {backbone.name}", disable=not progress) as bar:
        for start in range(0, len(photos), batch_size):
            some = photos[start : start + batch_size]
            x = torch.stack([picture(photo, backbone.image_size) for photo in some])  # (B, 3, S, S)
            for layer, found in backbone.maps(normalised(x, backbone)).items():
                parts[layer].append(found.half().contiguous())  # (B, C, h, w)
            bar.update(len(some))
    out = {}
    for layer, some_tokens in parts.items():
        tokens = torch.cat(some_tokens)  # (N, C, h, w)
        size = (tokens.shape[2], tokens.shape[3])
        on, off = F.adaptive_avg_pool2d(shares, size).unbind(1)  # (N, h, w)
        out[layer] = Maps(tokens=tokens, labels=labels, on=on, off=off)
    return out


def cached(
    photos: PhotoSet, part: str, layer: str, backbone: Backbone, *, progress: bool = True
) -> Maps:
    """Maps of a layer, from data/cache or computed now, those of all layers at once.

    The file is named after all that decides its content: protocol, set, part, network, weights, and
    the photographs' names and sizes. Beside it lies its SHA-256; a damaged file is set aside.

    Args:
        photos: the set.
        part: "train" or "test".
        layer: of `backbone.layers`.
        backbone: frozen.
        progress: show a bar if they are computed.
    """
    from safetensors.torch import save  # of the extra `photographs`, as timm

    chosen = getattr(photos, part)
    path = _path(photos.name, part, chosen, backbone)
    files = {name: path.with_name(f"{path.name}-{name}.safetensors") for name in backbone.layers}
    if found := _read(files[layer]):
        return found
    for name, maps in compute(chosen, photos.name, backbone, progress=progress).items():
        content = save({key: value.contiguous() for key, value in vars(maps).items()})
        write_whole(files[name], content)
        digest = hashlib.sha256(content).hexdigest()
        write_whole(files[name].with_suffix(".sha256"), digest.encode())
    found = _read(files[layer])
    if found is None:
        raise OSError(f"{files[layer]} was written and cannot be read: another process removed it")
    return found


def _path(name: str, part: str, chosen: Sequence[Photo], backbone: Backbone) -> Path:
    told = [PROTOCOL, backbone.weights, backbone.image_size, backbone.layers]
    told += [[photo.path.name, photo.label, photo.path.stat().st_size] for photo in chosen]
    digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]
    folder = records.home() / "data" / "cache" / "photographs"
    return folder / f"{name}-{part}-{backbone.name}-{digest}"


def _read(path: Path) -> Maps | None:
    from safetensors.torch import load_file

    seal = path.with_suffix(".sha256")
    if not (path.is_file() and seal.is_file()):
        return None
    if hashlib.sha256(path.read_bytes()).hexdigest() != seal.read_text():
        set_aside(path, ValueError(f"{path.name} is damaged"))
        return None
    return Maps(**load_file(path))
