"""Which images were classified rightly, as the text that a record holds."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ersm_lab.common import checks
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


def by_condition(record: Mapping) -> dict[str, torch.Tensor]:
    """Which images a judged network classified rightly, {condition: bool (N,)}.

    Raises:
        ValueError: a record without conditions.
    """
    checks.a("record", record, Mapping)
    names = record["config"].get("conditions")
    if record["answers"] is None or not names:
        raise ValueError(f"{record['name']} holds no answers by condition: judge the network again")
    count = record["metrics"]["images"]
    right = unpack(record["answers"], len(names) * count).view(len(names), count)
    return dict(zip(names, right, strict=True))


def share_right(record: Mapping, names: Sequence[str]) -> np.ndarray:
    """Share of some conditions under which each image is classified rightly, (N,).

    Raises:
        ValueError: no conditions, or such as the record does not hold.
    """
    checks.several("names", names)
    right = by_condition(record)
    missing = [name for name in names if name not in right]
    if missing:
        raise ValueError(
            f"names: {record['name']} holds no {checks.shown(missing)}, but {', '.join([*right][:4])} "
            "and so on"
        )
    return np.mean([right[name].numpy() for name in names], axis=0)


def by_image(record: Mapping, score: str) -> np.ndarray:
    """A score of each image, such as "logit.auc", (N,) float64; NaN where it is undefined.

    Raises:
        ValueError: the record does not list it.
    """
    kind, _, name = score.partition(".")
    listed = record["metrics"].get("by_image", {}).get(kind, {})
    if name not in listed:
        raise ValueError(
            f"{record['name']} does not list {score!r} image by image: judge the network again"
        )
    return np.array([np.nan if value is None else value for value in listed[name]])
