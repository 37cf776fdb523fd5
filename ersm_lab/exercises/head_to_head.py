"""Checks of chapter 14, the head-to-head."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats


def check_dominated(function: Callable) -> str | None:
    """dominated(table) -> bool (M,), of a table (M, K) of M methods and K measures, more is better.

    A method is dominated if another one is at least as good in every measure and better in one.
    """
    fixed = np.array([[3.0, 1.0], [1.0, 3.0], [2.0, 1.0], [1.0, 1.0], [3.0, 1.0]])
    tables = [fixed, np.random.default_rng(0).integers(0, 4, (9, 3)).astype(float)]
    for table in tables:
        right = [
            any((other >= row).all() and (other > row).any() for other in table) for row in table
        ]
        answer = np.asarray(function(table.copy()))
        if answer.shape != (len(table),):
            return f"give one answer for each of the {len(table)} methods, got shape {answer.shape}"
        if (answer.astype(bool) == right).all():
            continue
        equal = [
            any((other >= row).all() for j, other in enumerate(table) if j != i)
            for i, row in enumerate(table)
        ]
        if (answer.astype(bool) == equal).all():
            return "two equal methods do not dominate each other: one must be better somewhere"
        wrong = int(np.flatnonzero(answer.astype(bool) != right)[0])
        return (
            f"in\n{table}\nthe method in row {wrong} is {'' if right[wrong] else 'not '}dominated"
        )
    return None


def check_agreement(function: Callable) -> str | None:
    """agreement(ranks) -> Kendall's W of ranks (M, S), those of M methods in the order of S seeds."""
    generator = np.random.default_rng(1)
    same = np.repeat(np.arange(1.0, 6.0)[:, None], 3, axis=1)
    lots = np.stack([generator.permutation(7) + 1.0 for _ in range(4)], axis=1)
    opposite = np.stack([np.arange(1.0, 5.0), np.arange(4.0, 0.0, -1)], axis=1)
    for ranks in (same, lots, opposite):
        methods, seeds = ranks.shape
        spread = ((ranks.sum(1) - seeds * (methods + 1) / 2) ** 2).sum()
        right = 12 * spread / (seeds**2 * (methods**3 - methods))
        found = float(function(ranks.copy()))
        if np.isclose(found, right, atol=1e-9):
            continue
        if np.isclose(found, right * seeds**2, atol=1e-9):
            return "divide by the number of seeds squared: the sums of ranks grow with the seeds"
        return f"for the ranks\n{ranks}\nW is {right:.4f}, got {found:.4f}"
    return None


def check_paired_error(function: Callable) -> str | None:
    """paired_error(first, second) -> standard error of a difference of accuracies, in points.

    Both bool (N,), which of the same images two networks classify rightly; of new images only.
    """
    generator = np.random.default_rng(2)
    first = generator.random(400) < 0.8
    second = np.where(generator.random(400) < 0.9, first, ~first)
    right = 100 * stats.sem(first.astype(float) - second.astype(float), ddof=0)
    found = float(function(first.copy(), second.copy()))
    if np.isclose(found, right, rtol=0.01):
        return None
    apart = 100 * np.hypot(stats.sem(first.astype(float)), stats.sem(second.astype(float)))
    if np.isclose(found, apart, rtol=0.01):
        return (
            "this is the error for two sets of images; these are the same images: pair them first"
        )
    if np.isclose(100 * found, right, rtol=0.01):
        return "the answer is wanted in points: times 100"
    return f"the error is {right:.3f} points, got {found:.3f}"
