"""Figures with controls where a kernel runs, the figure alone where none does: never both."""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

VIEW = "application/vnd.jupyter.widget-view+json"  # what a front end with a kernel shows
DPI = 100  # pixels an inch


class Live:
    """A figure that is drawn again when a control moves.

    What a cell shows has two forms. JupyterLab and Colab take the controls; a page without a kernel
    takes the still one. `tools/execute_notebooks.py` stores only the still one.
    """

    def __init__(
        self,
        draw: Callable[..., Figure],
        controls: Mapping[str, ipywidgets.Widget],
        *,
        still: Any = None,
        button: str | None = None,
    ) -> None:
        """
        Args:
            draw: takes the controls' values under their names, returns a figure.
            controls: name -> widget with a value.
            still: what a page without a kernel shows, with `_repr_html_`; None for `draw` at the start.
            button: its label, if `draw` takes long and waits to be told; None: each move draws.
        """
        self._draw, self._controls, self._still = draw, dict(controls), still
        self.image = ipywidgets.Image(format="png", layout={"max_width": "100%"})
        self.notice = ipywidgets.HTML()
        self._first = self._painted()
        self.image.value = self._first
        panel = ipywidgets.VBox(list(self._controls.values()))
        self.button = None
        if button is None:
            for control in self._controls.values():
                control.observe(self._moved, names="value")
        else:
            self.button = ipywidgets.Button(description=button, layout={"width": "auto"})
            self.button.on_click(self._moved)
            panel.children += (self.button,)
        self.box = ipywidgets.VBox([panel, self.notice, self.image])

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        if self._still is not None:
            bundle: dict[str, Any] = {"text/html": self._still._repr_html_()}
        else:
            bundle = {"image/png": self._first}
        bundle["text/plain"] = "a figure with controls"
        return bundle | {VIEW: self.box._repr_mimebundle_()[VIEW]}

    def _painted(self) -> bytes:
        figure = self._draw(**{name: control.value for name, control in self._controls.items()})
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight")
        plt.close(figure)
        return buffer.getvalue()

    def _moved(self, _: Any) -> None:
        self.notice.value = "<em>computing …</em>"
        if self.button is not None:
            self.button.disabled = True
        try:
            self.image.value = self._painted()
            self.notice.value = ""
        except Exception as error:  # a callback has no cell of its own that would show it
            text = html.escape(f"{type(error).__name__}: {error}")
            self.notice.value = f"<strong role='alert'>{text}</strong>"
        finally:
            if self.button is not None:
                self.button.disabled = False


def upload(what: str = "An image of your own") -> ipywidgets.FileUpload:
    """A control with which a reader chooses one image file; `uploaded` reads its value."""
    return ipywidgets.FileUpload(
        accept="image/*", multiple=False, description=what, layout={"width": "auto"}
    )


def uploaded(value: tuple[Mapping[str, Any], ...], *, size: int) -> Tensor | None:
    """The image that a reader chose, cut to its middle square and scaled down.

    Args:
        value: of an `upload` control.
        size: side of the image in pixels.

    Returns:
        uint8 (size, size, 3), or None while nothing is chosen.

    Raises:
        ValueError: the file is no image that can be read.
    """
    if not value:
        return None
    try:
        with Image.open(io.BytesIO(bytes(value[0]["content"]))) as opened:
            upright = ImageOps.exif_transpose(opened).convert("RGB")
            square = ImageOps.fit(upright, (size, size), Image.Resampling.LANCZOS)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{value[0]['name']} cannot be read as an image: {error}") from error
    pixels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8)
    return pixels.view(size, size, 3)  # (size, size, 3)
