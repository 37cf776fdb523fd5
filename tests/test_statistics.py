"""Paired differences: the mean is exact, the interval is honest, the pairing is used."""

import numpy as np
import pytest
import torch

from ersm_lab import runs, statistics
from ersm_lab.statistics import difference


def record(right, seed, **config):
    """What `difference` reads of a record."""
    answers = runs.pack(torch.as_tensor(right))
    config = {"test_images": len(right)} | config
    return {"name": f"r{seed}", "dataset": "d", "seed": seed, "answers": answers, "config": config}


def lots(p, count, rng):
    return rng.random(count) < p


def test_mean_and_seeds_are_those_of_the_records():
    a = [record([True] * 6 + [False] * 2, 0), record([True] * 8, 1), record([True] * 8, 5)]
    b = [record([True] * 4 + [False] * 4, 0), record([False] + [True] * 7, 1)]
    found = difference(a, b)
    assert found.seeds == (0, 1) and found.by_seed == (25.0, 12.5)
    assert found.mean == pytest.approx(18.75)
    assert found.low <= found.mean <= found.high


def test_the_same_answers_differ_by_exactly_nothing():
    right = lots(0.9, 1_000, np.random.default_rng(0))
    found = difference([record(right, s) for s in range(3)], [record(right, s) for s in range(3)])
    assert (found.mean, found.low, found.high) == (0, 0, 0) and not found.excludes_zero


def test_with_one_seed_the_interval_is_that_of_the_paired_images():
    rng = np.random.default_rng(1)
    a, b = lots(0.9, 4_000, rng), lots(0.88, 4_000, rng)
    found = difference([record(a, 0)], [record(b, 0)])
    gap = a.astype(float) - b
    half = 1.96 * gap.std() / np.sqrt(len(gap))
    assert found.low == pytest.approx(100 * (gap.mean() - half), abs=0.15)
    assert found.high == pytest.approx(100 * (gap.mean() + half), abs=0.15)


def test_pairing_narrows_the_interval_where_images_are_hard_for_both():
    rng = np.random.default_rng(2)
    easy = lots(0.8, 2_000, rng)
    flipped = lots(0.02, 2_000, rng)
    paired = difference([record(easy ^ flipped, 0)], [record(easy, 0)])
    apart = difference([record(rng.permutation(easy ^ flipped), 0)], [record(easy, 0)])
    assert paired.high - paired.low < 0.5 * (apart.high - apart.low)


def test_seeds_that_disagree_widen_the_interval():
    rng = np.random.default_rng(3)
    base = [lots(0.8, 2_000, rng) for _ in range(4)]
    alike = [record(b ^ lots(0.1, 2_000, rng), s) for s, b in enumerate(base)]
    apart = [record(b ^ lots(0.05 + 0.1 * (s % 2), 2_000, rng), s) for s, b in enumerate(base)]
    bases = [record(b, s) for s, b in enumerate(base)]
    narrow, wide = difference(alike, bases), difference(apart, bases)
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    rng, held = np.random.default_rng(4), 0
    for _ in range(40):
        a, b = lots(0.9, 500, rng), lots(0.85, 500, rng)
        found = difference([record(a, 0)], [record(b, 0)], resamples=300)
        held += found.low <= 5 <= found.high
    assert 32 <= held <= 40


@pytest.mark.parametrize(
    ("method", "base", "message"),
    [
        ([record([True], 0)], [record([True], 1)], "no seed in common"),
        ([record([True], 0)], [record([True] * 2, 0)], "different test images"),
        ([record([True], 0) | {"answers": None}], [record([True], 0)], "holds no answers"),
    ],
)
def test_what_cannot_be_compared_is_an_error(method, base, message):
    with pytest.raises(ValueError, match=message):
        difference(method, base)


def test_records_of_a_method_that_has_none(tmp_path, monkeypatch):
    monkeypatch.setenv("ERSM_HOME", str(tmp_path))
    assert statistics.of("dense", dataset="shapes", scale="smoke") == []
