"""Files that are whole or absent: whatever happens while one is written, the old one stays."""

from __future__ import annotations

import os
import time
import uuid
import warnings
from contextlib import suppress
from pathlib import Path

DRAFTS = f".*.{'[0-9a-f]' * 32}.tmp"
STALE = 3600  # seconds after which a draft is one of a process that was killed


class Damaged(ValueError):
    """A file that cannot be read, or that is not the one that was written."""


def write_whole(path: Path, content: bytes) -> Path:
    """Write a file as a whole or not at all, on the disk before it has its name; makes the folder.

    Raises:
        OSError: the disk is full or read-only; what was there before is still there.
    """
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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
        with suppress(OSError):  # it has its name; or the disk is read-only, which was said
            draft.unlink()
    _sync_names(path.parent)
    _sweep(path.parent)
    return path


def set_aside(path: Path, reason: Exception) -> None:
    """Rename a damaged file, so that another can be made in its place, and say so.

    Where that is not possible it is left; where another process was faster nothing is said.
    """
    aside = path.with_name(f"{path.name}.damaged")
    try:
        os.replace(path, aside)
        done = f"set aside as {aside.name}"
    except FileNotFoundError:
        return
    except OSError as error:
        done = f"left there ({error.strerror})"
    warnings.warn(f"{reason}: {done}, and made again", stacklevel=3)


def _sync_names(folder: Path) -> None:
    """Put a folder's names on the disk, so that no later removal gets there before them."""
    with suppress(OSError):  # not every file system can, nor Windows
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _sweep(folder: Path) -> None:
    """Remove the drafts that killed processes left."""
    for draft in folder.glob(DRAFTS):
        with suppress(OSError):  # another process was faster
            if time.time() - draft.stat().st_mtime > STALE:
                draft.unlink()
