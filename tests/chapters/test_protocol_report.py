"""Verdicts of the published-protocol chapter: each can be reached, and each can be missed."""

import pytest

from ersm_lab.chapters import protocol_report
from ersm_lab.results import records


def made(method, **metrics):
    """Records of as many seeds as there are values; metrics are named with __ for a dot."""
    count = len(next(iter(metrics.values())))
    found = []
    for seed in range(count):
        flat = {name.replace("__", "."): values[seed] for name, values in metrics.items()}
        found.append(
            {"name": f"laptop/cifar10/{method}/seed{seed}", "method": method, "seed": seed}
            | {"metrics": flat}
        )
    return found


def kept(method, values):
    return made(method, mask__kept_fraction=values)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.30, 0.32, 0.31], "matters"),
        (
            [0.69, 0.71, 0.70],
            "detectable",
        ),  # below by the same in every seed, but less than their sd
        ([0.72, 0.68, 0.72], "not seen"),
        ([0.30, 0.32], "open"),
    ],
)
def test_whether_a_weight_matters(values, verdict):
    base = kept("base", [0.70, 0.72, 0.71])
    found = protocol_report.gap(kept("m", values), protocol_report.KEPT, base, protocol_report.KEPT)
    assert protocol_report.weight_matters(found) == verdict


@pytest.mark.parametrize(
    ("logit", "verdict"),
    [
        ([0.84, 0.86, 0.82], "better"),
        ([0.74, 0.76, 0.72], "worse"),
        ([0.79, 0.82, 0.78], "not told apart"),
        ([0.84], "open"),
    ],
)
def test_which_ranking_is_better(logit, verdict):
    norm = [0.80, 0.81, 0.78][: len(logit)]
    group = made("m", deletion__logit__auc=logit, deletion__norm__auc=norm)
    found = protocol_report.gap(group, "deletion.logit.auc", group, "deletion.norm.auc")
    assert protocol_report.ranking_is(found) == verdict


def test_a_gap_pairs_seeds_and_is_none_without_a_pair():
    first, second = kept("m", [0.5, 0.6, 0.9]), kept("base", [0.4, 0.4])
    found = protocol_report.gap(first, protocol_report.KEPT, second, protocol_report.KEPT)
    assert found.values == pytest.approx({0: 0.1, 1: 0.2})
    assert found.base_sd == 0.0 and found.in_points() == "+15.00 ± 7.07"
    assert protocol_report.gap(first, "none.such", second, protocol_report.KEPT) is None


@pytest.fixture
def recorded(monkeypatch):
    """Three seeds of a masked method and of one without energy, instead of the book's records."""
    curve = [{"epoch": e, "val_kept_fraction": 0.1 * e} for e in range(3)]
    groups = {}
    for method, names in {"masked": ("logit", "norm", "energy"), "zero": ("logit", "norm")}.items():
        groups[method] = [
            {
                "name": f"laptop/cifar10/{method}/seed{seed}",
                "method": method,
                "seed": seed,
                "curve": curve,
                "config": {"deletion": {"fractions": [0.0, 0.5]}},
                "metrics": {
                    "mask": {"kept_fraction": 0.5 + 0.01 * seed},
                    "deletion": {
                        name: {"auc": 0.7 + 0.05 * number, "accuracy": [0.9, 0.5]}
                        for number, name in enumerate(names)
                    },
                },
            }
            for seed in range(3)
        ]
    monkeypatch.setattr(records, "read_all", lambda *, method, **_: groups.get(method, []))
