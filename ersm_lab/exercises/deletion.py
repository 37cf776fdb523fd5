"""Checks of chapter 11, deletion."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

TOLERANCE = 1e-9


def check_three_areas(function: Callable) -> str | None:
    """three_areas(scores, changed, count) -> (mean of steps, over fraction, sum of steps).

    scores (points,) are those of a curve, changed (points,) the units changed at each point, count the
    number of all units.
    """
    curves = [
        ([1.0, 0.5, 0.25, 0.0], [0, 4, 8, 10], 10),  # the last step is shorter
        ([0.9, 0.7, 0.1], [1, 2, 3], 3),  # does not start at 0
        ([0.2, 0.6, 0.7, 0.9, 1.0], [0, 2, 4, 6, 8], 8),
    ]
    for scores, changed, count in curves:
        given = np.array(scores)
        answer = function(given.copy(), np.array(changed), count)
        try:
            found = tuple(float(value) for value in answer)
        except (TypeError, ValueError):
            return f"give three numbers, got {type(answer).__name__}"
        if len(found) != 3:
            return f"give three numbers, got {len(found)}"
        heights = (given[1:] + given[:-1]) / 2
        widths = np.diff(changed) / count
        right = (heights.mean(), (heights * widths).sum(), heights.sum())
        if np.allclose(found, right, atol=TOLERANCE):
            continue
        if np.allclose(found[2], given.sum(), atol=TOLERANCE) or np.allclose(
            found[0], given.mean(), atol=TOLERANCE
        ):
            return "the mean of the points is not the area: a trapezoid has the mean of two points"
        if np.allclose(found[0], heights.sum() / len(given), atol=TOLERANCE):
            return "there is one step less than there are points: divide by the steps"
        names = ("mean of steps", "over fraction", "sum of steps")
        wrong = [
            f"{name}: {value:.4g}, should be {good:.4g}"
            for name, value, good in zip(names, found, right, strict=True)
            if not np.isclose(value, good, atol=TOLERANCE)
        ]
        return f"with {count} units, {list(changed)} of them changed: " + "; ".join(wrong)
    return None


def check_best_importance(function: Callable) -> str | None:
    """best_importance(x, fill, weight) -> (h, w), the ranking whose deletion curve lies lowest.

    The score is linear, the sum of weight * x; x, fill, weight (C, h, w). Deleting a token puts all
    of its channels to those of the fill. Checked against every order of six tokens.
    """
    generator = torch.Generator().manual_seed(0)
    for channels in (1, 3):
        shape = (channels, 2, 3)
        x, fill, weight = (
            torch.randn(shape, dtype=torch.float64, generator=generator) for _ in "xfw"
        )
        answer = function(x.clone(), fill.clone(), weight.clone())
        if not isinstance(answer, Tensor) or answer.shape != x.shape[1:]:
            kind = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            return f"give a map of tokens, {tuple(x.shape[1:])}, not {kind}: sum over the channels"
        lost = (weight * (x - fill)).sum(0).flatten()  # (6,)
        area = _area(lost, answer.detach().flatten().argsort(descending=True))
        best = min(_area(lost, torch.tensor(o)) for o in itertools.permutations(range(6)))
        if area <= best + TOLERANCE:
            continue
        if torch.allclose(answer.double(), (weight * x).sum(0), atol=TOLERANCE):
            return "right for a fill of zeros: what a token is worth is what the fill takes away"
        if torch.allclose(answer.double(), -lost.view(2, 3), atol=TOLERANCE):
            return "the sign is turned round: what lowers the score most is the most important"
        return (
            f"its order has the area {area:.3f} on {channels} channel(s), another one {best:.3f}: how "
            "much does the score fall when one token is replaced?"
        )
    return None


def _area(lost: Tensor, order: Tensor) -> float:
    """Sum over the steps of a curve that starts at 0 and loses lost[i] where token i is deleted."""
    return -float(lost[order].cumsum(0)[:-1].sum())


def check_honest_best(function: Callable) -> str | None:
    """honest_best(right) -> the AUC of the best ranking, chosen on other images than it is scored on.

    right {ranking: (N,)} has each image's share of the fractions at which it is classified rightly.
    Images 0, 2, 4, ... choose for 1, 3, 5, ... and the other way round; the result is one number.
    """
    rng = np.random.default_rng(0)
    noise = {f"ranking {k}": rng.random(40) for k in range(30)}  # none is better than another
    plain = {"a": np.linspace(0.5, 0.9, 20), "b": np.linspace(0.2, 0.6, 20)}
    for right in (plain, noise):
        found = function({name: values.copy() for name, values in right.items()})
        try:
            found = float(found)
        except (TypeError, ValueError):
            return f"give one number, the AUC, not {type(found).__name__}"
        expected = _honest(right)
        if np.isclose(found, expected, atol=TOLERANCE):
            continue
        if np.isclose(found, max(values.mean() for values in right.values()), atol=TOLERANCE):
            return "chosen and scored on the same images: the best of many is flattered by luck"
        halves = [_half(right, chooses) for chooses in (0, 1)]
        if any(np.isclose(found, half, atol=TOLERANCE) for half in halves):
            return "that is one half only: let the halves change places, too, and take all images"
        flattered = np.mean([max(values[k::2].mean() for values in right.values()) for k in (0, 1)])
        if np.isclose(found, flattered, atol=TOLERANCE):
            return "each half chooses for itself there: it must choose for the other"
        return f"{found:.4f} is not right, {expected:.4f} is expected"
    return None


def _half(right: Mapping[str, np.ndarray], chooses: int) -> float:
    """Choose on every other image from `chooses` on, score on the rest."""
    best = max(right, key=lambda name: right[name][chooses::2].mean())
    return float(right[best][1 - chooses :: 2].mean())


def _honest(right: Mapping[str, np.ndarray]) -> float:
    count = len(next(iter(right.values())))
    scored = {chooses: len(range(1 - chooses, count, 2)) for chooses in (0, 1)}
    return sum(_half(right, chooses) * scored[chooses] for chooses in (0, 1)) / count
