"""Checks of chapter 12, what the mask sees."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats

TOLERANCE = 1e-6


def check_overlap(function: Callable[[float, float, float], float]) -> str | None:
    """overlap(share, on_object, on_background) -> IoU of a 0/1 mask and the object.

    share is the object's share of the image, the others how much of the object and of the background is
    kept, 0 to 1. Returns None if it is right, else what is wrong.
    """
    for share, on, off in ((0.2, 0.8, 0.1), (0.5, 1.0, 0.0), (0.1, 1.0, 1.0), (0.3, 0.0, 0.5)):
        right = share * on / (share + (1 - share) * off)
        case = f"share {share:g}, {on:g} of the object and {off:g} of the background kept"
        try:
            given = float(function(share, on, off))
        except (TypeError, ValueError):
            return f"{case}: a number was expected"
        if abs(given - right) < TOLERANCE:
            continue
        kept = share * on + (1 - share) * off
        wrong = {
            "that counts the intersection twice (Dice): divide by the union": (
                2 * share * on / (kept + share)
            ),
            "that is the share of the mask on the object: divide by the union, not the mask": (
                share * on / kept
            ),
            "that is the intersection over the object: what is kept of the background is missing": (
                on
            ),
            "the background is 1 - share of the image": share * on / (share + off),
        }
        for words, value in wrong.items():
            if abs(given - value) < TOLERANCE:
                return f"{case}: {words}"
        return f"{case}: {given:.4g} is not right"
    return None


def check_roc_auc(function: Callable[[np.ndarray, np.ndarray], float]) -> str | None:
    """roc_auc(values, on) -> area under the ROC curve, with ties counted as one half.

    values are numbers (P,), on bools (P,). Returns None if it is right, else what is wrong.
    """
    rng = np.random.default_rng(0)
    on = rng.random(300) < 0.2
    smooth = rng.normal(size=300) + on
    cases = {"a map without ties": smooth, "a map of 0 and 1": (smooth > 0.5).astype(float)}
    for words, values in cases.items():
        try:
            given = float(function(values.copy(), on.copy()))
        except (TypeError, ValueError):
            return f"{words}: a number was expected"
        above, below = values[on][:, None], values[~on][None, :]
        higher, tied = (above > below).mean(), (above == below).mean()
        right = _area(values, on)
        if abs(given - right) < TOLERANCE:
            continue
        if abs(given - (1 - right)) < TOLERANCE:
            return f"{words}: the sides are turned round: object pixels should be the higher ones"
        if abs(given - higher) < TOLERANCE:
            return f"{words}: ties count for nothing there: count each as one half"
        if abs(given - higher - tied) < TOLERANCE:
            return f"{words}: ties count in full there: count each as one half"
        if abs(given - right * on.sum() * (~on).sum()) < TOLERANCE:
            return f"{words}: that is a number of pairs: divide by how many there are"
        return f"{words}: {given:.4g} is not right"
    return None


def _area(values: np.ndarray, on: np.ndarray) -> float:
    """Mann and Whitney's U over the number of pairs."""
    found = stats.mannwhitneyu(values[on], values[~on], method="asymptotic")
    return float(found.statistic / (on.sum() * (~on).sum()))
