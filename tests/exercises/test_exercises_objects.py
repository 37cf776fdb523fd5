"""The checks of chapter 12 know right from wrong."""

import numpy as np
import pytest

from ersm_lab.exercises import attempt, objects


def overlap(share, on, off):
    return share * on / (share + (1 - share) * off)


def roc_auc(values, on):
    above, below = values[on][:, None], values[~on][None, :]
    return (above > below).mean() + (above == below).mean() / 2


@pytest.mark.parametrize(
    ("right", "check"), [(overlap, objects.check_overlap), (roc_auc, objects.check_roc_auc)]
)
def test_a_right_answer_is_right(right, check):
    assert check(right) is None
    assert "right" in str(attempt(right, check)).lower()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda r, t, f: 2 * r * t / (r * t + (1 - r) * f + r), "Dice"),
        (lambda r, t, f: r * t / (r * t + (1 - r) * f), "divide by the union, not the mask"),
        (lambda r, t, f: t, "of the background is missing"),
        (lambda r, t, f: r * t / (r + f), "1 - share"),
        (lambda r, t, f: 0.123, "is not right"),
        (lambda r, t, f: None, "a number was expected"),
    ],
)
def test_a_wrong_overlap_is_told_what_is_wrong(wrong, told):
    assert told in objects.check_overlap(wrong)


def strict(values, on):
    return (values[on][:, None] > values[~on]).mean()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda v, on: 1 - roc_auc(v, on), "turned round"),
        (strict, "a map of 0 and 1: ties count for nothing"),
        (lambda v, on: (v[on][:, None] >= v[~on]).mean(), "ties count in full"),
        (lambda v, on: roc_auc(v, on) * on.sum() * (~on).sum(), "number of pairs"),
        (lambda v, on: 0.123, "is not right"),
        (lambda v, on: "no", "a number was expected"),
    ],
)
def test_a_wrong_area_is_told_what_is_wrong(wrong, told):
    assert told in objects.check_roc_auc(wrong)


def test_the_area_is_that_of_all_pairs():
    rng = np.random.default_rng(1)
    values, on = rng.integers(0, 5, 100).astype(float), rng.random(100) < 0.3
    assert objects._area(values, on) == pytest.approx(roc_auc(values, on))
