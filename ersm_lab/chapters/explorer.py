"""An occluder to drag over an image, in a page without a kernel: every position is computed before."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ersm_core import EnergyMask
from ersm_lab.common import checks
from ersm_lab.evaluation.inference import evaluating
from ersm_lab.images.data import ImageSet
from ersm_lab.views.widgets import (
    Widget,
    base64_text,
    checked_name,
    fill,
    png,
    png_source,
    script_json,
)


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
) -> Widget:
    """Predictions of every network, and the mask of the one that has one, for every position.

    Args:
        networks: name -> network in evaluation mode; exactly one with a hard energy mask.
        data: a few images.
        side, step: of the occluder, in pixels.
        name: id of the element; a page with two explorers needs two.

    Raises:
        ValueError: not exactly one of the networks has an energy mask, or a name that is no id.
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
        kept = checks.state(masks[0]).mask > 0.5  # (F, 1, h, w)
        images.append(
            {
                "src": png_source(png(data.images[number].numpy())),
                "label": data.classes[data.labels[number]],
                "probabilities": [base64_text(p.numpy().tobytes()) for p in probabilities],
                "masks": base64_text(np.packbits(kept.numpy()).tobytes()),
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
    filled = {
        "ID": checked_name(name),
        "SIDE": f"{side} × {side}",
        "DATA": script_json(content),
    }
    return fill("explorer.html", filled)
