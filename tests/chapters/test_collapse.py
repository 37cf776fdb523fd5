"""Verdicts on masks: every kind can be reached, and the numbers they rest on are what they say."""

import math

import pytest
import torch

from ersm_lab.chapters import collapse
from ersm_lab.chapters.collapse import Criteria, verdict
from ersm_lab.evaluation.inference import mask_statistics
from ersm_lab.results import records
from ersm_lab.training.loop import TrainSettings
from ersm_lab.views import tables


def record(*, kept=0.5, between=0.1, within=0.4, position=0.1, own=0.9, other=0.85, **more):
    metrics = {
        "test_accuracy": own,
        "mask": {
            "kept_fraction": kept,
            "between_images_sd": between,
            "within_image_sd": within,
            "position_sd": position,
        },
        "accuracy_with_mask_replaced": {"other_image": other},
    }
    return {
        "name": "laptop/cifar10/some/seed0",
        "method": "some",
        "seed": 0,
        "metrics": metrics,
    } | more


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("all on", dict(kept=0.995, within=0.05)),
        ("all off", dict(kept=0.01, within=0.05)),
        ("at its cap", dict(kept=0.49, within=0.01)),
        ("uniform", dict(kept=0.4, within=0.01)),
        ("fixed pattern", dict(position=0.39, between=0.01, other=0.8985)),
        ("interchangeable", dict(position=0.02, other=0.9)),
        ("interchangeable", dict(position=0.02, other=0.9025)),
        ("adaptive", dict(other=0.88)),
        ("undecided", dict(other=0.894)),
        ("undecided", dict(other=0.95)),  # worse with its own mask
    ],
)
def test_every_kind_has_its_verdict(kind, values):
    found = verdict(record(**values))
    assert found.kind == kind
    assert found.collapsed == (kind in collapse.COLLAPSED)
    assert "mean mask" in found.reason and "another image's mask costs" in found.reason


def test_the_spread_of_a_closed_mask_is_told_as_a_share_of_its_mean():
    found = verdict(record(kept=0.008, within=0.0016, other=0.88))
    assert found.kind == "all off" and "(20 % of the mean)" in found.reason
    assert "costs +2.0 points" in found.reason
    assert verdict(record(kept=0.0, within=0.0, between=0.0, position=0.0)).kind == "all off"


def test_other_criteria_give_other_verdicts():
    strict = Criteria(adaptive=10.0)
    assert verdict(record()).kind == "adaptive"
    assert verdict(record(), criteria=strict).kind == "undecided"


def test_a_dense_network_has_no_verdict():
    with pytest.raises(ValueError, match="no mask to judge"):
        verdict({"name": "laptop/cifar10/dense/seed0", "metrics": {"test_accuracy": 0.9}})


def test_position_share_is_that_of_the_masks():
    generator = torch.Generator().manual_seed(0)
    pattern = (torch.rand(1, 1, 8, 8, generator=generator) < 0.5).double()
    flips = (torch.rand(300, 1, 8, 8, generator=generator) < 0.2).double()
    masks = (pattern - flips).abs()  # (300, 1, 8, 8)
    found = mask_statistics(masks, torch.zeros(300, dtype=torch.long), 1)
    made = record() | {"metrics": {"mask": found}}
    shares = collapse.variance_shares(masks)
    assert collapse.position_share(made) == pytest.approx(shares["position"], abs=0.01)
    assert shares["position"] > 0.3 and sum(shares.values()) == pytest.approx(1)


def test_shares_of_a_constant_and_of_a_fixed_mask():
    assert collapse.variance_shares(torch.full((3, 1, 4, 4), 0.3)) == {
        "position": 0.0,
        "image": 0.0,
        "both": 0.0,
    }
    assert collapse.position_share(record(between=0.0, within=0.0, position=0.0)) == 0.0
    fixed = torch.rand(1, 1, 4, 4).expand(5, 1, 4, 4)
    shares = collapse.variance_shares(fixed)
    assert shares["position"] == pytest.approx(1) and shares["both"] == pytest.approx(0, abs=1e-12)
    levels = torch.rand(5, 1, 1, 1).expand(5, 1, 4, 4)
    assert collapse.variance_shares(levels)["image"] == pytest.approx(1)


def test_tally_counts_seeds():
    assert collapse.tally([record(), record()]) == "adaptive"
    three = [record(), record(), record(kept=1.0)]
    assert collapse.tally(three) == "adaptive (2), all on (1)"


def test_table_names_rows_that_are_not_recorded(monkeypatch):
    made = {"some": [record(), record(seed=1, kept=1.0, name="laptop/cifar10/some/seed1")]}
    monkeypatch.setattr(records, "read_all", lambda *, method, **_: made.get(method, []))
    table = collapse.table(["some", "other"])
    assert isinstance(table, tables.Table)
    assert table.rows[0][:3] == ["some", "2", "adaptive (1), all on (1)"]
    assert table.rows[0][6] == "5.00 ± 0.00"  # another image's mask costs 5 points
    assert table.rows[1][:3] == ["other", "0", "not recorded yet"]
    assert all(len(row) == len(table.header) for row in table.rows)
    assert collapse.missing(["some", "other"]) == ["other"]
    assert collapse.missing(["some"], seeds=3) == ["some"]


def test_predictions_are_counted(monkeypatch):
    made = {"some": [record(), record(seed=1, kept=1.0, name="laptop/cifar10/some/seed1")]}
    monkeypatch.setattr(records, "read_all", lambda *, method, **_: made.get(method, []))
    rows = collapse.against({"some": "adaptive", "other": "all on"}).rows
    assert [row[1] for row in rows] == ["adaptive", "all on"]
    assert rows[0][3] == "1 of 2" and rows[1][2:4] == ["not recorded yet", "–"]
    assert collapse.against({"some": ""}).rows[0][3] == "–"
    with pytest.raises(ValueError, match="no verdict"):
        collapse.against({"some": "great"})


# --------------------------------------------------------------------------------- the lone token


SETTINGS = TrainSettings(epochs=1, mask_lr_factor=1.0)


def test_a_lone_token_follows_the_watershed():
    no_cost = collapse.lone_token(SETTINGS, steps=300, lambda_unary=0.02, cost=0.0)
    costly = collapse.lone_token(SETTINGS, steps=300, lambda_unary=0.02, cost=0.1)
    assert no_cost[0] == costly[0] == 0.5
    assert (no_cost.diff() >= 0).all() and no_cost[-1] > 0.6
    assert (costly.diff() <= 0).all() and costly[-1] < 0.05


def test_a_closing_token_closes_like_one_over_time():
    plain = TrainSettings(epochs=1, mask_lr_factor=1.0, momentum=0.0, start=1.0, end=1.0)
    m = collapse.lone_token(plain, steps=4_000, lambda_unary=0.0, cost=0.1)
    time = 0.75 * torch.arange(4_000)
    expected = 1 / (1 / m[2_000] + 0.1 * (time[-1] - time[2_000]))
    assert m[-1].item() == pytest.approx(expected.item(), rel=0.02)


def test_the_literal_gate_opens_to_its_cap():
    m = collapse.lone_token(SETTINGS, steps=2_000, lambda_unary=0.5, cost=0.1, gate="energy")
    assert m[0].item() == pytest.approx(1 / (1 + math.exp(0.5 * math.log(2))))
    assert (m.diff() >= 0).all() and 0.45 < m[-1] <= 0.5
