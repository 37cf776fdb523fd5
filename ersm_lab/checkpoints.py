"""Files that are whole or absent: a kill while writing leaves the old one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


def save_atomically(content: Any, path: Path) -> Path:
    """`torch.save` to a temporary neighbour, then rename; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        torch.save(content, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
