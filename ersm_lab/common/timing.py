"""Timing several things fairly: all of them in turn, round by round."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

WARM_UP = 2  # rounds that are not counted

Name = TypeVar("Name", bound=Hashable)


def side_by_side(
    variants: Mapping[Name, Callable[[], object]], rounds: int
) -> dict[Name, list[float]]:
    """Seconds of every variant in every round, one after the other within a round, after a warm-up.

    Whatever else the machine does in a round falls on all of them: compare within a round.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in variants}
    for number in range(rounds + WARM_UP):
        for name, run in variants.items():
            begun = time.perf_counter()
            run()
            if number >= WARM_UP:
                seconds[name].append(time.perf_counter() - begun)
    return seconds
