"""Files that are whole or absent: whatever happens while one is written, the old one stays."""

from __future__ import annotations

import os
import uuid
import warnings
from pathlib import Path


class Damaged(ValueError):
    """A file that cannot be read, or that is not the one that was written."""


def write_whole(path: Path, content: bytes) -> Path:
    """Write a file as a whole or not at all, on the disk before it has its name; makes the folder.

    Raises:
        OSError: the disk is full or read-only; what was there before is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with draft.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        advice = "make room there, or name another home by ERSM_HOME"
        words = f"{error.strerror or error}: {path} was not written; {advice}"
        raise OSError(error.errno, words) from error
    finally:
        draft.unlink(missing_ok=True)
    return path


def set_aside(path: Path, reason: Exception) -> None:
    """Rename a damaged file, so that another can be made in its place, and say so."""
    aside = path.with_name(f"{path.name}.damaged")
    os.replace(path, aside)
    warnings.warn(f"{reason}: set aside as {aside.name}, and made again", stacklevel=3)
