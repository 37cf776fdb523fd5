"""Tensors in files that are whole or absent, and known by their hash."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from ersm_lab.files import Damaged, write_whole


def as_bytes(content: Any) -> bytes:
    """What `torch.save` writes of it."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def save_atomically(content: Any, path: Path) -> Path:
    """`torch.save` as `files.write_whole`; raises as it does."""
    return write_whole(path, as_bytes(content))


def load(path: Path, *, sha256: str | None = None) -> Any:
    """What was saved, on the CPU.

    Args:
        path: the file.
        sha256: of its content, where that is known.

    Raises:
        FileNotFoundError: it is not there.
        Damaged: it cannot be read, or its content is another.
    """
    content = path.read_bytes()
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise Damaged(f"{path} is not the file that was recorded")
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch has a dozen for a file that is cut, empty or overwritten
        raise Damaged(f"{path} cannot be read ({type(error).__name__})") from error
