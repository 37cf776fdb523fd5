"""The ablation's tables and its grid: what is predicted, what is drawn, what is missing."""

import matplotlib.pyplot as plt
import pytest
import torch

from ersm_attach import attach_energy_mask
from ersm_core import energy_states
from ersm_lab.chapters import ablation
from ersm_lab.chapters.ablation import Cell, predicted
from ersm_lab.images import data
from ersm_lab.networks import backbones
from ersm_lab.results import answer_bits
from ersm_lab.views.energy_theory import Landscape


@pytest.mark.parametrize(
    ("unary", "pair", "start", "phase"),
    [
        (0.0, 0.0, -1.0, "keeps"),
        (0.1, 0.0, -1.0, "keeps"),  # the unary term alone favours keeping
        (0.1, 0.0, 1.0, "drops from its start"),  # beyond softplus(z) = 1
        (0.0, 0.1, -1.0, "drops"),  # nothing holds against the pairwise term
        (0.1, 0.1, -1.0, "drops"),  # c = 0.2 > lambda_unary
        (0.1, 0.045, -1.0, "drops from its start"),  # c = 0.09: watershed at softplus = 0.1
        (0.1, 0.02, -1.0, "keeps"),  # c = 0.04: watershed at softplus = 0.6
    ],
)
def test_prediction_follows_the_watershed(unary, pair, start, phase):
    assert predicted(unary, pair, cost=2.0, start=start, temperature=1.0) == phase


def test_a_colder_gate_has_a_barrier_at_every_cost():
    token = dict(cost=2.0, start=-1.0, temperature=0.5)
    assert predicted(0.1, 0.1, **token) == "drops from its start"  # at T = 1 it had no choice
    assert predicted(0.1, 0.1, **(token | {"start": -5.0})) == "keeps"
    ridge = Landscape(lambda_unary=0.1, temperature=0.5).watershed(0.2).item()
    assert predicted(0.1, 0.1, **(token | {"start": ridge - 1e-3})) == "keeps"
    assert predicted(0.1, 0.1, **(token | {"start": ridge + 1e-3})) == "drops from its start"


def test_a_step_with_the_soft_gradient_keeps_a_little_more():
    token = dict(cost=3.65, temperature=0.5)
    for gate, ridge in (("logit", -0.9392), ("straight-through", -0.7921)):
        for side, phase in ((-1e-3, "keeps"), (1e-3, "drops from its start")):
            assert predicted(0.05, 0.01, start=ridge + side, gate=gate, **token) == phase


@pytest.fixture
def masked():
    torch.manual_seed(0)
    model = backbones.CifarNet(backbones.SMOKE)
    return attach_energy_mask(model, "group1", preset="stable", lambda_pair=0.5).eval()


def test_median_pair_cost_is_that_of_the_tokens(masked):
    images = data.load("shapes", "test", limit=20)
    cost = ablation.median_pair_cost(masked, images)
    with torch.no_grad():
        masked(images.normalise(images.images))
    pairwise = energy_states(masked)["group1"].pairwise
    assert cost == pytest.approx(pairwise.median().item() / 0.5, rel=0.02)


def test_median_pair_cost_without_a_pairwise_energy_is_an_error(masked):
    masked.group1.energy_mask.lambda_pair = 0.0
    with pytest.raises(ValueError, match="lambda_pair = 0"):
        ablation.median_pair_cost(masked, data.load("shapes", "test", limit=20))


def made(accuracy, kept):
    metrics = {"test_accuracy": accuracy, "mask": {"kept_fraction": kept}}
    return {"seed": 0, "metrics": metrics}


CELLS = [
    Cell(lambda_unary=0.0, lambda_pair=0.0, method="no-energy", record=made(0.88, 1.0)),
    Cell(lambda_unary=0.1, lambda_pair=0.0, method="unary", record=None),
    Cell(lambda_unary=0.0, lambda_pair=0.1, method="pair", record=made(0.85, 0.25)),
    Cell(lambda_unary=0.1, lambda_pair=0.1, method="both", record=made(0.86, 0.95)),
]


def test_the_grid_shows_kept_share_accuracy_and_what_is_missing():
    dense = {"seed": 0, "metrics": {"test_accuracy": 0.88}}
    figure = ablation.draw_grid(CELLS, dense, cost=2.0, start=-1.0, temperature=1.0)
    (axis,) = figure.axes
    texts = [text.get_text() for text in axis.texts]
    assert "100 % kept\n+0.0 points" in texts and "25 % kept\n-3.0 points" in texts
    assert "not recorded\nyet" in texts
    hatches = {patch.get_hatch() for patch in axis.patches}
    assert {"", "xx"} <= hatches
    plt.close("all")


def test_agreement_counts_cells_by_prediction():
    table = ablation.agreement_with_prediction(CELLS, cost=2.0, start=-1.0, temperature=1.0)
    kept, dropped = table.rows
    assert kept[1:] == ["1", "1", "100 to 100 %"]
    assert dropped[1:] == ["2", "1", "25 to 95 %"]


def test_missing_records_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("ERSM_HOME", str(tmp_path))
    table = ablation.differences(["ersm"], base="dense")
    assert table.rows[0][2] == "not recorded yet"
    assert "not recorded yet" in ablation.verdicts(["ersm"], base="dense").rows[0]
    cells = ablation.grid()
    assert len(cells) == 16 and all(cell.record is None for cell in cells)
    assert {(c.lambda_unary, c.lambda_pair) for c in cells if c.method == "unary-only"} == {
        (0.02, 0.0)
    }


TRAIN = {"epochs": 10, "mask_start": 0.6}
OTHERS = {  # what networks differ in that the search leaves out
    "longer": {"train": TRAIN | {"epochs": 20}},
    "other norm": {"norm": "image"},
}


def masked_record(seed, val, kept, between, other):
    controls = {"other_image": other}
    mask = {"kept_fraction": kept, "between_images_sd": between}
    validation = {"mask": mask, "accuracy_with_mask_replaced": controls}
    return {
        "seed": seed,
        "config": {
            "backbone": {},
            "mask": {"layer": "group1"},
            "train": TRAIN | {"mask_start": 0.3},
        },
        "metrics": {"val_accuracy": val, "validation": validation},
    }


def test_the_search_orders_by_validation_and_admits_only_masks_that_adapt(monkeypatch):
    made = {
        "adaptive": masked_record(0, 0.86, 0.5, 0.1, 0.80),
        "scaled": masked_record(0, 0.88, 0.01, 0.0007, 0.86),  # collapsed, and yet it "costs"
        "open": masked_record(0, 0.87, 1.0, 0.0, 0.87),
        "second seed": masked_record(1, 0.99, 0.5, 0.1, 0.80),
        "longer": masked_record(0, 0.99, 0.5, 0.1, 0.80),
        "other norm": masked_record(0, 0.99, 0.5, 0.1, 0.80),
    }
    made = {name: r | {"method": name} for name, r in made.items()}
    for name, changes in OTHERS.items():
        made[name]["config"] |= changes
    dense = {
        "seed": 0,
        "method": "dense",
        "config": {"backbone": {}, "mask": None, "train": TRAIN},
        "metrics": {"val_accuracy": 0.88, "validation": {}},
    }

    def read_all(*, scale, dataset, method=None):
        return [dense] if method == "dense" else [dense, *made.values()]

    monkeypatch.setattr(ablation.records, "read_all", read_all)
    table = ablation.search(base="dense")
    assert [(row[0], row[-1]) for row in table.rows] == [
        ("scaled", "no"),
        ("open", "no"),
        ("adaptive", "yes"),
    ]
    assert table.rows[2][1:4] == ["-2.00", "50 %", "6.0"]


def test_validation_is_compared_seed_by_seed_where_both_are(monkeypatch):
    def one(seed, val, kept):
        validation = {"mask": {"kept_fraction": kept}}
        validation["accuracy_with_mask_replaced"] = {"other_image": 0.85}
        return {"seed": seed, "metrics": {"val_accuracy": val, "validation": validation}}

    groups = {
        "dense": [one(0, 0.88, None), one(1, 0.90, None)],
        "masked": [one(0, 0.87, 0.5), one(1, 0.88, 0.7), one(2, 0.10, 0.0)],
    }
    monkeypatch.setattr(ablation, "of", lambda method, **place: groups.get(method, []))
    table = ablation.on_validation(["masked", "missing"], base="dense")
    assert table.rows[0] == ["masked", "2", "-1.50", "-1.00, -2.00", "60 %", "2.0, 3.0"]
    assert table.rows[1][:3] == ["missing", "0", "not recorded yet"]


def test_each_method_is_held_against_its_own_network(monkeypatch):
    def one(method, answers):
        packed = answer_bits.pack(torch.tensor(answers))
        return {"seed": 0, "name": method, "config": {"test_images": 4}, "answers": packed}

    truth = {"short": [1, 1, 0, 0], "masked": [1, 0, 0, 0], "long": [1, 1, 1, 0]}
    groups = {m: [one(m, [bool(a) for a in answers])] for m, answers in truth.items()}
    monkeypatch.setattr(ablation, "of", lambda method, **place: groups.get(method, []))
    table = ablation.against_own({"masked": "short", "long": "masked", "short": "none"})
    assert [row[:4] for row in table.rows] == [
        ["masked", "short", "1", "-25.00"],
        ["long", "masked", "1", "+50.00"],
        ["short", "none", "0", "not recorded yet"],
    ]


def test_the_spread_within_images_is_a_column_of_its_own():
    plain, more = (ablation.masks(["ablation-ersm"], within=w).header for w in (False, True))
    assert [name for name in more if name not in plain] == ["sd within an image"]
