"""Check of the exercise of chapter 5."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def check_paired_error(function: Callable[[np.ndarray, np.ndarray], float]) -> str | None:
    """Whether function(a, b) is the standard error, in points, of a paired difference of accuracy.

    a, b are bools (N,): which of N test images two networks classify rightly. Returns None if it is
    right, else what is wrong.
    """
    rng = np.random.default_rng(0)
    hard = rng.random(4_000)
    a, b = hard > 0.10, (hard > 0.12) ^ (rng.random(4_000) < 0.02)
    right = 100 * (a.astype(float) - b).std() / np.sqrt(len(a))
    given = function(a.copy(), b.copy())
    try:
        given = float(given)
    except (TypeError, ValueError):
        return f"a number was expected, got {type(given).__name__}"
    if np.isclose(given, right, rtol=1e-3):
        return None
    apart = 100 * np.sqrt(a.var() / len(a) + b.var() / len(b))
    if np.isclose(given, apart, rtol=1e-3):
        return (
            "that is the error of two independent samples: subtract image by image first, then take "
            "the spread of the differences"
        )
    if np.isclose(100 * given, right, rtol=1e-3):
        return "that is a share: give it in percentage points"
    if np.isclose(given, right * np.sqrt(len(a)), rtol=1e-3):
        return (
            "that is the spread of one image's difference: the mean of N has it divided by sqrt(N)"
        )
    return f"{given:.4g} is not right: for images on which both agree the difference is 0"
