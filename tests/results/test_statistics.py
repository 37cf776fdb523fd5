"""Paired differences: the mean is exact, the interval is honest, the pairing is used."""

import numpy as np
import pytest
import torch

from ersm_lab.results import answer_bits, statistics
from ersm_lab.results.statistics import difference, gap


def record(right, seed, **config):
    """What `difference` reads of a record."""
    answers = answer_bits.pack(torch.as_tensor(right))
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


def test_a_case_by_hand():
    # gaps 0 4 / 2 10: seeds 2 and 6, images 1 and 7, mean 4
    # MS_s = 2 (4 + 4) / 1 = 16, MS_i = 2 (9 + 9) / 1 = 36, rest +1 -1 / -1 +1: MS_e = 4
    # V = 48, variance 48 / 4 = 12; freedom 48^2 / (16^2 + 36^2 + 4^2) = 1.47
    error, freedom = statistics.standard_error(np.array([[0.0, 4.0], [2.0, 10.0]]))
    assert error == pytest.approx(12**0.5)
    assert freedom == pytest.approx(48**2 / (16**2 + 36**2 + 4**2))


def test_where_images_add_nothing_it_is_the_t_test_over_seeds():
    gaps = np.array([[3.0, 1.0], [0.0, 2.0], [4.0, 2.0]])  # MS_i = 1/6 below MS_e = 13/6
    error, freedom = statistics.standard_error(gaps)
    assert freedom == 2
    assert error == pytest.approx(gaps.mean(1).std(ddof=1) / np.sqrt(3))


def test_no_interval_is_without_bound():
    rng = np.random.default_rng(6)
    for _ in range(300):
        gaps = dict(enumerate(rng.standard_normal((3, 50))))
        found = statistics.paired(gaps, dict.fromkeys(range(3), np.zeros(50)))
        assert found.high - found.low < 400  # percent; the deviation of 150 draws is 8


@pytest.mark.parametrize("images", [200, 2_000])
@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("ratio", [0, 0.5, 5])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(seeds, images, ratio):
    """`ratio` is that of the seeds' to the images' standard error."""
    rng, draws, held = np.random.default_rng(0), 400, 0
    for _ in range(draws):
        of_seeds = ratio * np.sqrt(seeds / images) * rng.standard_normal((seeds, 1))
        gaps = of_seeds + rng.standard_normal(images) + rng.standard_normal((seeds, images))
        zeros = np.zeros(images)
        found = statistics.paired(dict(enumerate(gaps)), dict.fromkeys(range(seeds), zeros))
        held += not found.excludes_zero
    spread = np.sqrt(0.95 * 0.05 / draws)
    assert 0.92 - 2 * spread <= held / draws <= 0.97 + 2 * spread


def test_three_seeds_that_disagree_say_little():
    rng = np.random.default_rng(5)
    gaps = np.array([[2.0], [3.0], [7.0]]) / 100 + 0.1 * rng.standard_normal((3, 5_000))
    found = statistics.paired(dict(enumerate(gaps)), dict.fromkeys(range(3), np.zeros(5_000)))
    assert found.mean == pytest.approx(4, abs=0.3) and not found.excludes_zero


@pytest.mark.parametrize(
    ("method", "base", "message"),
    [
        ([record([True], 0)], [record([True], 1)], "no seed in common"),
        ([record([True], 0)], [record([True], 0)], "needs two images"),
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


# ----------------------------------------------------------------------------- many comparisons


def test_the_p_value_says_what_the_interval_says():
    rng = np.random.default_rng(5)
    first = {s: rng.random(200) for s in range(4)}
    second = {s: rng.random(200) - 0.05 for s in range(4)}
    p = statistics.paired(first, second).p_value
    edge = statistics.paired(first, second, confidence=1 - p)  # the interval that ends at zero
    assert min(abs(edge.low), abs(edge.high)) < 1e-9


def test_holms_adjusted_values_are_those_of_a_known_example():
    # Wikipedia, Holm-Bonferroni method; by hand 4 x .005, 3 x .01, 2 x .03, and no less for .04
    np.testing.assert_allclose(statistics.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([]).shape == (0,) and statistics.holm([0.7, 0.8]).tolist() == [1, 1]


def test_a_table_of_true_zeros_is_marked_one_time_in_twenty_at_most():
    rng = np.random.default_rng(6)
    base = {s: np.zeros(60) for s in range(5)}
    tables = [
        statistics.marks(
            statistics.paired({s: rng.normal(size=60) for s in range(5)}, base) for _ in range(12)
        )
        for _ in range(300)
    ]
    assert np.mean([any(table) for table in tables]) < 0.08  # 0.46 without the correction


def test_few_seeds_and_empty_cells_have_no_mark_and_no_part_in_the_family():
    rng = np.random.default_rng(7)
    far = {s: 1 + 0.05 * rng.normal(size=40) for s in range(3)}
    near = {s: np.zeros(40) for s in range(3)}
    up, down = statistics.paired(far, near), statistics.paired(near, far)
    alone = statistics.paired({0: far[0]}, {0: near[0]})
    assert statistics.marks([up, None, down, alone]) == ["▲", "", "▼", ""]
    assert statistics.marks([alone], least_seeds=1) == ["▲"]


# --- over conditions -------------------------------------------------------------------------------


def judged(seed, answers):
    """What `gap` reads of a judgement's record."""
    metrics = {"images": len(next(iter(answers.values())))}
    name, config = f"laptop/cifar10/some.smoothing/seed{seed}", {"conditions": list(answers)}
    packed = answer_bits.pack(torch.cat([*answers.values()]))
    return {"name": name, "seed": seed, "metrics": metrics, "answers": packed, "config": config}


def drawn(seed, share, n=211):
    generator = np.random.default_rng(seed)
    return {k: torch.from_numpy(generator.random(n) < share) for k in ("a", "b", "c")}


def test_answers_come_back():
    answers = drawn(0, 0.6, n=13)  # no multiple of eight
    back = answer_bits.by_condition(judged(0, answers))
    assert list(back) == list(answers)
    assert all(torch.equal(back[name], answers[name]) for name in answers)
    with pytest.raises(ValueError, match="holds no answers"):
        answer_bits.by_condition(judged(0, answers) | {"answers": None})


def test_one_condition_differs_as_statistics_says():
    ours, theirs = ([drawn(10 * s + share, share / 10) for s in range(3)] for share in (8, 6))
    found = gap(*([judged(s, a) for s, a in enumerate(group)] for group in (ours, theirs)), ["b"])
    plain = [
        [
            {
                "name": "x",
                "seed": s,
                "answers": answer_bits.pack(a["b"]),
                "config": {"test_images": 211},
            }
            for s, a in enumerate(group)
        ]
        for group in (ours, theirs)
    ]
    assert found == difference(*plain)


def test_the_mean_over_conditions_is_paired_by_image():
    ours = drawn(0, 0.5)
    ours["b"] = ~ours["a"]  # a and b together: always one of two right
    base = drawn(1, 0.5)
    base["b"] = ~base["a"]
    found = gap([judged(0, ours)], [judged(0, base)], ["a", "b"])
    assert found.mean == found.low == found.high == 0


def test_conditions_of_the_base_may_be_others():
    answers = drawn(0, 0.5)
    found = gap(
        [judged(0, answers)], [judged(0, answers | {"c": answers["a"]})], ["a"], base_names=["c"]
    )
    assert found.mean == found.low == found.high == 0


def test_what_cannot_be_compared_is_refused():
    one, other = judged(0, drawn(0, 0.5)), judged(1, drawn(1, 0.5))
    assert gap([one], [other], ["a"]) is None  # no seed in common
    with pytest.raises(ValueError, match="nothing"):
        gap([one], [one], ["nothing"])
