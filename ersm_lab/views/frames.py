"""Pictures to step through with a slider, in a page without a kernel: every frame is stored in it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from ersm_lab.views.widgets import Widget, checked_name, fill, png, png_source, script_json

PNG = b"\x89PNG\r\n\x1a\n"  # how every PNG file begins


def frame_slider(
    frames: Sequence[np.ndarray | bytes],
    *,
    labels: Sequence[str],
    title: str,
    alt: str,
    name: str,
    captions: Sequence[str] = (),
    width: int = 640,
    milliseconds: int = 350,
) -> Widget:
    """A slider over frames that were all computed before, with a button that plays them.

    Args:
        frames: at least two, each uint8 (H, W, 3) or the bytes of a PNG file, all of one size.
        labels: what each frame is, such as "time 5".
        title: stands above.
        alt: what the frames show, for those who do not see them; the frame's label is added to it.
        name: id of the element: a letter, then letters, digits or hyphens; one of its own for every
            slider on a page.
        captions: of equally wide columns of the frames, left to right; none for none.
        width: at most this many pixels wide on the page; enlarged pixels keep their edges.
        milliseconds: a frame lasts when played.

    Raises:
        ValueError: fewer than two frames, frames of several sizes or of another kind, labels that do
            not count as many, an empty title or text alternative, a name that is no id.
    """
    if len(frames) < 2:
        raise ValueError(f"give at least two frames to slide over, got {len(frames)}")
    if len(labels) != len(frames):
        raise ValueError(f"give one label a frame: {len(frames)} frames, {len(labels)} labels")
    for what, text in {"title": title, "alt": alt}.items():
        if not text.strip():
            raise ValueError(f"{what} must say what the frames show, it is empty")
    if width < 1 or milliseconds < 1:
        raise ValueError(f"width and milliseconds must be >= 1, got {width} and {milliseconds}")
    pictures = [_png(frame, number) for number, frame in enumerate(frames)]
    sizes = {Image.open(io.BytesIO(picture)).size for picture in pictures}
    if len(sizes) > 1:
        raise ValueError(f"all frames must have one size, got {sorted(sizes)} (width, height)")
    ((across, down),) = sizes
    sources = [png_source(picture) for picture in pictures]
    columns = "".join(f"<span>{escape(caption)}</span>" for caption in captions)
    filled = {
        "ID": checked_name(name),
        "TITLE": escape(title),
        "ALT": escape(f"{alt} {labels[0]}."),
        "FIRST": sources[0],
        "LABEL": escape(labels[0]),
        "LAST": str(len(frames) - 1),
        "ACROSS": str(across),
        "DOWN": str(down),
        "WIDTH": str(width),
        "COLUMNS": f'<div class="columns">{columns}</div>' if columns else "",
        "DATA": script_json(
            {"frames": sources, "labels": list(labels), "alt": alt, "milliseconds": milliseconds}
        ),
    }
    return fill("frames.html", filled)


def _png(frame: np.ndarray | bytes, number: int) -> bytes:
    if isinstance(frame, bytes):
        if not frame.startswith(PNG):
            raise ValueError(f"frame {number} holds bytes that are not those of a PNG file")
        return frame
    frame = np.asarray(frame)
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise ValueError(
            f"frame {number} must be uint8 (H, W, 3) or the bytes of a PNG file, "
            f"got {frame.dtype} {frame.shape}"
        )
    return png(frame)
