"""The layer's settings under sliders, in a page without a kernel: the gate is computed in the page."""

from __future__ import annotations

import numpy as np
from torch import Tensor

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


def layer_desk(
    data: ImageSet, logit: Tensor, agreements: dict[int, Tensor], *, name: str = "ersm-desk"
) -> Widget:
    """Energies, mask and loss of a few images while their settings are moved.

    Args:
        data: a few square images.
        logit: (N, 1, h, h), z of every token; the desk's bias is added to it.
        agreements: {4: (N, 1, h, h), 8: (N, 1, h, h)}, a for each neighbourhood.
        name: id of the element; a page with two desks needs two.

    Raises:
        ValueError: maps whose shapes do not belong together, a name that is no id.
    """
    given = {"logit": logit, **{str(count): agreements.get(count) for count in (4, 8)}}
    shape = (len(data), 1, logit.shape[-1], logit.shape[-1])
    maps: dict[str, Tensor] = {}
    for what, values in given.items():
        if values is None or tuple(values.shape) != shape:
            got = None if values is None else tuple(values.shape)
            raise ValueError(f"{what} must have the shape {shape}, got {got}")
        maps[what] = values
    images = [
        {
            "src": png_source(png(data.images[number].numpy())),
            "label": data.classes[data.labels[number]],
            "maps": {what: _floats(values[number]) for what, values in maps.items()},
        }
        for number in range(len(data))
    ]
    content = {"grid": shape[-1], "images": images}
    filled = {"ID": checked_name(name), "DATA": script_json(content)}
    return fill("layer_desk.html", filled)


def _floats(values: Tensor) -> str:
    return base64_text(values.detach().cpu().numpy().astype(np.dtype("<f4")).tobytes())
