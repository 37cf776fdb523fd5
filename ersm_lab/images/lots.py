"""What is drawn by lot: for each image its own generator, by seed, purpose and the image's number.

So what is drawn for an image does not depend on the other images of a batch, and the severities of a
corruption, which are no part of the purpose, are alike. Everything is drawn on the CPU, the same for
every device (with one version of NumPy).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

Lots = Sequence[np.random.Generator]  # one generator for each image


def lots_of(seed: int, purpose: str, numbers: range) -> list[np.random.Generator]:
    """A generator for each image, by its number."""
    return [np.random.default_rng([seed, number, *purpose.encode()]) for number in numbers]


def stack(draws: Iterable[np.ndarray | float | np.number]) -> np.ndarray:
    return np.array(list(draws))


def normal(lots: Lots, shape: tuple[int, ...]) -> np.ndarray:
    return stack(rng.standard_normal(shape, dtype=np.float32) for rng in lots)  # (B, *shape)


def uniform(lots: Lots, shape: tuple[int, ...]) -> np.ndarray:
    return stack(rng.random(shape, dtype=np.float32) for rng in lots)  # (B, *shape)
