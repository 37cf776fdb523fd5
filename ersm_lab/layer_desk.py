"""The layer's settings under sliders, in a page without a kernel: the gate is computed in the page."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ersm_lab.data import ImageSet
from ersm_lab.explorer import _png
from ersm_lab.frames import checked_name, fill, script_json


@dataclass(frozen=True, kw_only=True)
class LayerDesk:
    """HTML that a notebook shows."""

    html: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return f"LayerDesk({len(self.html) // 1024} KiB of HTML)"


def layer_desk(
    data: ImageSet, logit: Tensor, agreements: dict[int, Tensor], *, name: str = "ersm-desk"
) -> LayerDesk:
    """Energies, mask and loss of a few images while their settings are moved.

    Args:
        data: a few square images.
        logit: (N, 1, h, h), z of every token; the desk's bias is added to it.
        agreements: {4: (N, 1, h, h), 8: (N, 1, h, h)}, a for each neighbourhood.
        name: id of the element; a page with two desks needs two.

    Raises:
        ValueError: maps whose shapes do not belong together, a name that is no id.
    """
    maps = {"logit": logit, **{str(count): agreements.get(count) for count in (4, 8)}}
    shape = (len(data), 1, logit.shape[-1], logit.shape[-1])
    for what, values in maps.items():
        if values is None or tuple(values.shape) != shape:
            got = None if values is None else tuple(values.shape)
            raise ValueError(f"{what} must have the shape {shape}, got {got}")
    images = [
        {
            "src": _png(data.images[number]),
            "label": data.classes[data.labels[number]],
            "maps": {what: _floats(values[number]) for what, values in maps.items()},
        }
        for number in range(len(data))
    ]
    content = {"grid": shape[-1], "images": images}
    filled = {"ID": checked_name(name), "DATA": script_json(content)}
    return LayerDesk(html=fill("layer_desk.html", filled))


def _floats(values: Tensor) -> str:
    return base64.b64encode(
        values.detach().cpu().numpy().astype(np.dtype("<f4")).tobytes()
    ).decode()
