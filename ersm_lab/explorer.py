"""An occluder to drag over an image, in a page without a kernel: every position is computed before."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ersm_core import EnergyMask
from ersm_lab.data import ImageSet
from ersm_lab.evaluation import evaluating


@dataclass(frozen=True, kw_only=True)
class Explorer:
    """HTML that a notebook shows."""

    html: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return f"Explorer({len(self.html) // 1024} KiB of HTML)"


def occluder_stops(size: int, side: int, step: int) -> list[int]:
    """First pixels of an occluder that slides over `size` pixels, the last flush with the border."""
    return sorted({*range(0, size - side + 1, step), size - side})


def occluded(image: Tensor, *, side: int, step: int) -> Tensor:
    """The image, then the image under a black square at every stop, row by row.

    Args:
        image: uint8 (H, W, 3), square.
        side, step: of the occluder, in pixels.

    Returns:
        uint8 (1 + S * S, H, W, 3), S the number of stops.
    """
    stops = occluder_stops(image.shape[0], side, step)
    frames = [image]
    for top in stops:
        for left in stops:
            frame = image.clone()
            frame[top : top + side, left : left + side] = 0
            frames.append(frame)
    return torch.stack(frames)


def occluder_explorer(
    networks: Mapping[str, nn.Module],
    data: ImageSet,
    *,
    side: int = 10,
    step: int = 2,
    name: str = "ersm-explorer",
) -> Explorer:
    """Predictions of every network, and the mask of the one that has one, for every position.

    Args:
        networks: name -> network in evaluation mode; exactly one with a hard energy mask.
        data: a few images.
        side, step: of the occluder, in pixels.
        name: id of the element; a page with two explorers needs two.

    Raises:
        ValueError: not exactly one of the networks has an energy mask.
    """
    masks = [m for net in networks.values() for m in net.modules() if isinstance(m, EnergyMask)]
    if len(masks) != 1:
        raise ValueError(f"exactly one network must have an energy mask, got {len(masks)}")
    images = []
    for number in range(len(data)):
        frames = occluded(data.images[number], side=side, step=step)  # (F, H, W, 3)
        x = data.normalise(frames)  # (F, 3, H, W)
        probabilities = []
        for network in networks.values():
            with evaluating(network):
                probabilities.append((255 * network(x).softmax(1)).round().byte())  # (F, classes)
        kept = masks[0].state.mask > 0.5  # (F, 1, h, w)
        images.append(
            {
                "src": _png(data.images[number]),
                "label": data.classes[data.labels[number]],
                "probabilities": [_base64(p.numpy().tobytes()) for p in probabilities],
                "masks": _base64(np.packbits(kept.numpy()).tobytes()),
            }
        )
    content = {
        "networks": list(networks),
        "classes": list(data.classes),
        "size": data.images.shape[1],
        "side": side,
        "stops": occluder_stops(data.images.shape[1], side, step),
        "grid": kept.shape[-1],
        "images": images,
    }
    html = Path(__file__).with_name("explorer.html").read_text(encoding="utf-8")
    html = html.replace("__ID__", name).replace("__SIDE__", f"{side} × {side}")
    return Explorer(html=html.replace("__DATA__", json.dumps(content)))


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _png(image: Tensor) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image.numpy()).save(buffer, "PNG")
    return "data:image/png;base64," + _base64(buffer.getvalue())
