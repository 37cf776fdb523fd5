"""What the interactive pictures share: HTML that a static page shows without a kernel."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Widget:
    """HTML that a notebook shows."""

    html: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return f"Widget({len(self.html) // 1024} KiB of HTML)"


def fill(template: str, values: dict[str, str]) -> Widget:
    """A template of this folder with every __KEY__ replaced by its value, all at once."""
    html = Path(__file__).with_name(template).read_text(encoding="utf-8")
    return Widget(html=re.sub(r"__([A-Z]+)__", lambda match: values[match[1]], html))


def checked_name(name: str) -> str:
    """The name, if it can be the id of an element.

    Raises:
        ValueError: it is not a letter followed by letters, digits or hyphens.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", name):
        raise ValueError(
            f"name must be a letter followed by letters, digits or hyphens, got {name!r}"
        )
    return name


def script_json(content: dict) -> str:
    """JSON that can stand in a <script>: a label cannot end it."""
    return json.dumps(content).replace("<", "\\u003c")


def base64_text(content: bytes) -> str:
    """Bytes as base64 text."""
    return base64.b64encode(content).decode()


def png(image: np.ndarray) -> bytes:
    """A PNG file of an image, uint8 (H, W, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def png_source(content: bytes) -> str:
    """A PNG file as the source of an <img>, so that the page needs no other file."""
    return "data:image/png;base64," + base64_text(content)
