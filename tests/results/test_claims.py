"""The criteria: each side of every threshold, and what too few seeds do."""

import numpy as np
import pytest
import torch

from ersm_lab.results import answer_bits, claims
from ersm_lab.results.claims import accuracy_is_preserved, decided, sparsity_adapts
from ersm_lab.results.statistics import Difference

IMAGES = 4_000


def dense(seed):
    return answering(np.arange(IMAGES) % 10 > 0, seed)  # 90 %


def answering(right, seed):
    answers = answer_bits.pack(torch.as_tensor(right))
    config = {"test_images": IMAGES}
    return {"name": "r", "dataset": "d", "seed": seed, "answers": answers, "config": config}


def worse(seed, points):
    """The dense network, wrong on so many further points of a hundred of the images."""
    right = np.arange(IMAGES) % 10 > 0
    right[np.flatnonzero(right)[: round(IMAGES * points / 100)]] = False
    return answering(right, seed)


@pytest.mark.parametrize(
    ("points", "outcome"), [(0.0, "holds"), (0.05, "holds"), (0.5, "open"), (2.0, "fails")]
)
def test_accuracy_is_preserved_if_the_interval_lies_above_the_margin(points, outcome):
    seeds = range(3)
    verdict = accuracy_is_preserved([worse(s, points) for s in seeds], [dense(s) for s in seeds])
    assert verdict.outcome == outcome
    assert f"{-points:+.2f} points" in verdict.reason or points == 0


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [(0.1, 9, "holds"), (0, 9, "open"), (-9, 1, "open"), (-9, 0.9, "fails"), (-9, -2, "fails")],
)
def test_an_interval_decides_on_either_side_of_two_lines(low, high, outcome):
    found = Difference(
        mean=0.5, low=low, high=high, seeds=(0, 1, 2), by_seed=(0.5,) * 3, p_value=0.5
    )
    assert decided(found, above=0, gone=1) == outcome
    assert decided(found, above=0, gone=1, seeds=4) == "open"


def test_two_seeds_leave_accuracy_open():
    verdict = accuracy_is_preserved([worse(s, 5) for s in range(2)], [dense(s) for s in range(2)])
    assert verdict.outcome == "open" and "2 seeds of 3" in verdict.reason


def masked(kept=0.5, between=0.1, cost=0.05):
    metrics = {
        "test_accuracy": 0.9,
        "mask": {"kept_fraction": kept, "between_images_sd": between},
        "accuracy_with_mask_replaced": {"other_image": 0.9 - cost},
    }
    return {"name": "m", "metrics": metrics}


def test_sparsity_holds_if_every_seed_meets_every_criterion():
    verdict = sparsity_adapts([masked(), masked(kept=0.6), masked()])
    assert verdict.outcome == "holds" and "kept 50.0 to 60.0 %" in verdict.reason


@pytest.mark.parametrize("missed", [dict(kept=0.99), dict(between=0.001), dict(cost=0.002)])
def test_sparsity_fails_if_every_seed_misses_one_criterion_and_is_open_if_one_does(missed):
    assert sparsity_adapts([masked(**missed)] * 3).outcome == "fails"
    assert sparsity_adapts([masked(**missed), masked(), masked()]).outcome == "open"


def test_sparsity_of_one_seed_or_of_no_mask():
    assert sparsity_adapts([masked()]).outcome == "open"
    with pytest.raises(ValueError, match="no records"):
        sparsity_adapts([])
    with pytest.raises(ValueError, match="has no mask"):
        sparsity_adapts([{"name": "dense", "metrics": {"test_accuracy": 0.9}}])


def test_the_criteria_are_those_of_the_text():
    text = claims.__doc__
    c = claims.CRITERIA
    assert f"-{c.margin} points" in text and f"{100 * c.kept:.0f} % of the mask" in text
    assert f"{100 * c.between_images:.0f}\n    points" in text
    assert f"at least {c.other_image:.0f} point of accuracy" in text
