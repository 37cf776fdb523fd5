"""Tensors in files that are whole or absent, and known by their hash."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from ersm_lab.common.files import Damaged, write_whole

DIGEST = hashlib.sha256().digest_size  # bytes


def as_bytes(content: Any) -> bytes:
    """What `torch.save` writes of it."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def save_atomically(content: Any, path: Path) -> Path:
    """`torch.save` as `files.write_whole`, with its SHA-256 behind it: torch itself looks at no
    checksum, and reads a turned bit of a weight as another weight. Raises as `write_whole`."""
    whole = as_bytes(content)
    return write_whole(path, whole + hashlib.sha256(whole).digest())


def load(path: Path, *, sha256: str | None = None) -> Any:
    """What was saved, on the CPU.

    Args:
        path: the file.
        sha256: of the whole file, where that is recorded; None for one of `save_atomically`, which
            holds its own.

    Raises:
        FileNotFoundError: it is not there.
        Damaged: it cannot be read, or its content is another.
    """
    content = path.read_bytes()
    told = "recorded"
    if sha256 is None:
        content, sha256, told = content[:-DIGEST], content[-DIGEST:].hex(), "written"
    if hashlib.sha256(content).hexdigest() != sha256:
        raise Damaged(f"{path} is not the file that was {told}")
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch has a dozen for what it cannot read
        raise Damaged(f"{path} cannot be read ({type(error).__name__})") from error
