"""The checks of chapter 11 know right from wrong, and name the usual mistakes."""

import numpy as np
import pytest

from ersm_lab.exercises import attempt
from ersm_lab.exercises.deletion import (
    check_best_importance,
    check_honest_best,
    check_three_areas,
)


def three_areas(scores, changed, count):
    heights = (scores[1:] + scores[:-1]) / 2
    return heights.mean(), (heights * np.diff(changed) / count).sum(), heights.sum()


def best_importance(x, fill, weight):
    return (weight * (x - fill)).sum(0)


def honest_best(right):
    even = np.arange(len(next(iter(right.values())))) % 2 == 0
    scored = np.zeros(len(even))
    for part in (even, ~even):
        best = max(right, key=lambda name: right[name][~part].mean())
        scored[part] = right[best][part]
    return scored.mean()


@pytest.mark.parametrize(
    ("function", "check"),
    [
        (three_areas, check_three_areas),
        (best_importance, check_best_importance),
        (lambda x, fill, weight: best_importance(x, fill, weight) ** 3, check_best_importance),
        (honest_best, check_honest_best),
    ],
)
def test_what_is_right_is_right(function, check):
    assert attempt(function, check).kind == "right"


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda s, c, n: (s.mean(), 0, s.sum()), "mean of the points"),
        (lambda s, c, n: ((s[1:] + s[:-1]).sum() / 2 / len(s), 0, 0), "one step less"),
        (lambda s, c, n: (*three_areas(s, c, n)[:1] * 2, three_areas(s, c, n)[2]), "over fraction"),
        (lambda s, c, n: 1.0, "give three numbers"),
        (lambda s, c, n: (1.0, 2.0), "got 2"),
    ],
)
def test_a_wrong_area_is_told_what_is_wrong(function, told):
    answer = attempt(function, check_three_areas)
    assert answer.kind == "wrong" and told in answer.text


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda x, fill, weight: (weight * x).sum(0), "fill of zeros"),
        (lambda x, fill, weight: -best_importance(x, fill, weight), "turned round"),
        (lambda x, fill, weight: weight * (x - fill), "sum over the channels"),
        (lambda x, fill, weight: x.square().sum(0), "another one"),
    ],
)
def test_a_wrong_ranking_is_told_what_is_wrong(function, told):
    answer = attempt(function, check_best_importance)
    assert answer.kind == "wrong" and told in answer.text


def test_a_flattered_choice_is_told_apart():
    def same_images(right):
        return max(values.mean() for values in right.values())

    def one_half(right):
        best = max(right, key=lambda name: right[name][::2].mean())
        return right[best][1::2].mean()

    def for_itself(right):
        return np.mean([max(v[k::2].mean() for v in right.values()) for k in (0, 1)])

    said = [attempt(f, check_honest_best).text for f in (same_images, one_half, for_itself)]
    for text, told in zip(said, ("by luck", "one half only", "for itself"), strict=True):
        assert told in text
    assert "is expected" in attempt(lambda right: 0.0, check_honest_best).text
    assert "one number" in attempt(lambda right: None, check_honest_best).text
