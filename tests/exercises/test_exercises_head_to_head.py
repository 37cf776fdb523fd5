"""The checks of chapter 14: right answers pass, each usual mistake is told what it is."""

import numpy as np

from ersm_lab.exercises import head_to_head as exercise


def dominated(table):
    better = (table[None] >= table[:, None]).all(2) & (table[None] > table[:, None]).any(2)
    return better.any(1)


def test_dominated():
    assert exercise.check_dominated(dominated) is None

    def or_equal(table):
        at_least = (table[None] >= table[:, None]).all(2) & ~np.eye(len(table), dtype=bool)
        return at_least.any(1)

    assert "must be better somewhere" in exercise.check_dominated(or_equal)
    assert "is dominated" in exercise.check_dominated(lambda t: np.zeros(len(t), bool))
    assert "is not dominated" in exercise.check_dominated(lambda t: np.ones(len(t), bool))
    assert "got shape ()" in exercise.check_dominated(lambda t: True)


def agreement(ranks):
    methods, seeds = ranks.shape
    sums = ranks.sum(1)
    return 12 * ((sums - sums.mean()) ** 2).sum() / (seeds**2 * (methods**3 - methods))


def test_agreement():
    assert exercise.check_agreement(agreement) is None
    assert "divide by" in exercise.check_agreement(lambda r: agreement(r) * r.shape[1] ** 2)
    assert "W is 1.0000, got 0.0000" in exercise.check_agreement(lambda r: 0.0)


def paired_error(first, second):
    gaps = first.astype(float) - second
    return 100 * gaps.std() / np.sqrt(len(gaps))


def test_paired_error():
    def apart(first, second):
        return 100 * np.sqrt((first.var(ddof=1) + second.var(ddof=1)) / len(first))

    assert exercise.check_paired_error(paired_error) is None
    assert "pair them first" in exercise.check_paired_error(apart)
    assert "in points" in exercise.check_paired_error(lambda a, b: paired_error(a, b) / 100)
    assert "got 1.000" in exercise.check_paired_error(lambda a, b: 1.0)
