"""Which images were classified rightly, as the text that a record holds, and back."""

from __future__ import annotations

import base64
import zlib

import numpy as np
import torch

from ersm_lab.results import records


def pack(answers: torch.Tensor) -> str:
    """Bools (N,) as base64 text, eight of them a byte, deflated where there are many; `unpack` is the
    way back."""
    content = np.packbits(answers.numpy()).tobytes()
    if len(content) >= records.DEFLATED_FROM:
        content = min(content, zlib.compress(content, 9), key=len)
    return base64.b64encode(content).decode()


def unpack(text: str, count: int) -> torch.Tensor:
    """Bools (count,) of a record's answers: which test images it classified rightly."""
    bits = np.frombuffer(records.bits(text, count), np.uint8)
    return torch.from_numpy(np.unpackbits(bits, count=count).astype(bool))
