"""The tables of deletion and the slider have the numbers of their records, and name gaps."""

import base64
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from PIL import Image
from torch import nn

from ersm_attach import attach_energy_mask
from ersm_lab.chapters import deletion_report as report
from ersm_lab.evaluation import deletion, inference, rankings
from ersm_lab.evaluation import deletion_insertion as di
from ersm_lab.images import data
from ersm_lab.networks import backbones
from ersm_lab.results import answer_bits
from ersm_lab.suites import deleted

SHARES = (0, 50, 90)
LEVELS = {"logit": 0.9, "unary": 0.9, "magnitude": 0.8, "energy": 0.6, "random": 0.7}


def made(method, seed=0, *, shift=0.0, images=80, blank=(), levels=LEVELS):
    """A record in which each ranking is right on a share of the images that falls as tokens go."""
    right = {}
    for number, (name, level) in enumerate(levels.items()):
        for place, share in enumerate(SHARES):
            count = round(images * (level + shift - 0.2 * place))
            right[f"{name}.{share}"] = torch.arange(images).roll(7 * number) < count  # (N,)
    area, minus = {}, {}
    for unit in ("token", "pixel"):
        area[unit], minus[unit] = {}, {}
        for convention, game in report._places():
            good = -1 if game == "deletion" else 1
            here = {n: 0.5 + good * (level + shift - 0.5) / 2 for n, level in levels.items()}
            if unit == "pixel":  # there the order is turned round
                here = {n: 1 - value for n, value in here.items()}
            area[unit].setdefault(convention.name, {})[game] = {
                n: {
                    "mean": value,
                    "standard_error": 0.01,
                    "undefined": 0,
                    "blank": 8 if n in blank else 0,
                }
                for n, value in here.items()
            }
            minus[unit].setdefault(convention.name, {})[game] = {
                n: {"mean": value - here["random"], "standard_error": 0.04, "undefined": 0}
                for n, value in here.items()
            }
    accuracy = {name: {} for name in levels}
    for condition, answer in right.items():
        name, _, share = condition.partition(".")
        accuracy[name][share] = answer.double().mean().item()
    return {
        "name": f"laptop/cifar10/{method}.deletion/seed{seed}",
        "method": f"{method}.deletion",
        "seed": seed,
        "config": {"conditions": list(right)},
        "answers": answer_bits.pack(torch.stack([*right.values()]).flatten()),
        "metrics": {
            "images": images,
            "curve_images": 8,
            "unit_images": 2,
            "accuracy": accuracy,
            "mean": {name: float(np.mean([*accuracy[name].values()])) for name in levels},
            "area": area,
            "minus_random": minus,
        },
    }


@pytest.fixture
def groups():
    """A masked network ahead of a dense one in three seeds, and one that is not recorded."""
    dense = {"magnitude": 0.7, "random": 0.6}
    return {
        "dense": [made("dense", seed, levels=dense) for seed in range(3)],
        "masked": [made("masked", seed, shift=0.025 * seed) for seed in range(3)],
        "missing": [],
    }


# --- reading ---------------------------------------------------------------------------------------


def test_records_are_read_by_method(monkeypatch):
    every = {"a.deletion": [made("a", 0), made("a", 1)]}
    asked = []

    def of(method, **where):
        asked.append(where)
        return every.get(method, [])

    monkeypatch.setattr(report.statistics, "of", of)
    found = report.recorded(("a", "c"), scale="smoke", dataset="shapes")
    assert {name: len(group) for name, group in found.items()} == {"a": 2, "c": 0}
    assert asked[0] == {"scale": "smoke", "dataset": "shapes"} and len(asked) == 2


# --- our test --------------------------------------------------------------------------------------


def test_areas_are_the_means_of_the_records(groups):
    (record, *_) = groups["masked"]
    found = report.areas_by_image(record)
    assert set(found) == set(LEVELS)
    for name in LEVELS:
        assert found[name].mean() == pytest.approx(record["metrics"]["mean"][name])
        assert set(np.round(3 * found[name])) <= {0, 1, 2, 3}
    rows = {row[0]: row[1:] for row in report.areas(groups).rows}
    assert rows["logit z"] == ["–", "72.50 ± 2.50", "not yet run"]
    assert rows["magnitude"] == ["50.00 ± 0.00", "62.50 ± 2.50", "not yet run"]
    table = report.areas(groups)
    assert table.header[1:] == ["dense (3 seeds)", "masked (3 seeds)", "missing (0 seeds)"]
    assert "0 to 90 %" in table.caption


def test_a_constant_map_is_no_ranking(groups):
    group = [made("m", 0, blank=("energy",)), made("m", 1, blank=("energy",))]
    assert report.is_constant(group, "energy") and not report.is_constant(group, "logit")
    rows = {row[0]: row[1] for row in report.areas({"m": group}).rows}
    assert rows["full energy e"] == "constant" and rows["logit z"] == "70.00 ± 0.00"
    assert "energy" not in report.scores({"m": group}, "m")[report.OURS]
    rows = {row[0]: row[1:] for row in report.conventions({"m": group}, "m", unit="token").rows}
    assert set(rows["full energy e"]) == {"constant"}
    assert not report.is_constant([], "energy")


def test_a_gap_is_paired_and_none_without_a_pair(groups):
    found = report.gap(groups, ("masked", "logit"), ("masked", "magnitude"))
    assert found.mean == pytest.approx(10.0) and found.seeds == (0, 1, 2)
    found = report.gap(groups, ("masked", "magnitude"), ("dense", "magnitude"))
    assert found.by_seed == pytest.approx((10.0, 12.5, 15.0))
    assert report.gap(groups, ("masked", "logit"), ("missing", "logit")) is None
    assert report.gap(groups, ("dense", "logit"), ("dense", "magnitude")) is None
    with pytest.raises(ValueError, match="no ranking 'norm'"):
        report.gap(groups, ("masked", "norm"), ("dense", "magnitude"))


def test_total_is_training_plus_ranking(groups):
    total, training, ranking = (
        report.gap(groups, one, other).mean
        for one, other in [
            (("masked", "logit"), ("dense", "magnitude")),
            (("masked", "magnitude"), ("dense", "magnitude")),
            (("masked", "logit"), ("masked", "magnitude")),
        ]
    )
    assert total == pytest.approx(training + ranking)


def test_differences_name_both_sides_and_what_is_missing(groups):
    pairs = [
        (("masked", "logit"), ("masked", "magnitude")),
        (("missing", "logit"), ("masked", "logit")),
    ]
    table = report.differences(groups, pairs, caption="Within")
    first, second = table.rows
    assert first[:4] == ["masked, logit z", "masked, magnitude", "3", "+10.00"]
    assert first[-2:] == ["+10.0, +10.0, +10.0", "ahead"]
    assert second[2:] == ["0", "not yet run", "–", "–", "–"]
    pairs = [(two, one) for one, two in pairs[:1]] + [(pairs[0][0], ("masked", "unary"))]
    said = [row[-1] for row in report.differences(groups, pairs, caption="").rows]
    assert said == ["behind", "not told apart"]
    assert table.caption.startswith("Within; ")


def test_the_best_ranking_is_chosen_on_the_other_half():
    record = made("m", images=40, levels={"logit": 0.9, "random": 0.7})
    right = {f"{name}.{share}": torch.zeros(40) for name in ("logit", "random") for share in SHARES}
    for share in SHARES:
        right[f"logit.{share}"][::2] = 1  # right on every even image, on no odd one
        right[f"random.{share}"][1:20:2] = 1  # right on half of the odd ones
    record["config"]["conditions"] = list(right)
    record["answers"] = answer_bits.pack(torch.stack([*right.values()]).bool().flatten())
    even = np.arange(40) % 2 == 0
    assert report.best([record], even) == "logit" and report.best([record], ~even) == "random"
    values, chosen = report.under_its_best([record])
    assert chosen == ("random", "logit")
    assert values[0].mean() == 0.0  # what looked best on one half is worst on the other


# --- conventions -----------------------------------------------------------------------------------


def test_a_step_of_another_size_is_named():
    assert report._step(replace(di.TORCHCAM, step=("units", 4))) == "4 units"
    assert report._step(replace(di.TORCHCAM, step=("rows", 2))) == "as many as 2 rows have"


def test_conventions_side_by_side_have_mean_and_error(groups):
    table = report.conventions(groups, "masked", unit="token")
    rows = {row[0]: row[1:] for row in table.rows}
    assert [name.split(", ")[1] for name in table.header[1:]] == [
        "deletion",
        "insertion",
        "deletion",
        "insertion",
        "deletion",
    ]
    assert rows["better"] == ["lower", "higher", "lower", "higher", "lower"]
    assert rows["images"] == ["8", "8", "8", "8", "2"]
    assert rows["starts"][4] == "whole, after one step"
    assert rows["logit z"][0] == "0.287 ± 0.010"  # 0.5 - (0.9 + 0.025 - 0.5) / 2
    assert rows["logit z"][1] == "0.713 ± 0.010"
    assert rows["logit z"][4] == "0.3 ± 0.0"
    assert "Grad-CAM" not in rows
    missing = report.conventions(groups, "missing", unit="pixel")
    assert missing.rows[-1][0] == "not yet run" and len(missing.rows[-1]) == len(missing.header)
    with pytest.raises(ValueError, match='"token" or "pixel"'):
        report.conventions(groups, "masked", unit="patch")


def test_errors_of_seeds_on_the_same_images_do_not_average_out(groups):
    group = [made("m", seed) for seed in range(3)]
    for record, error in zip(group, (0.01, 0.01, 0.04), strict=True):
        record["metrics"]["area"]["token"]["RISE"]["deletion"]["logit"]["standard_error"] = error
    mean, error = report._over_seeds(group, "area", "token", di.RISE, "deletion", "logit")
    assert mean == pytest.approx(0.3) and error == pytest.approx(0.06**0.5 / 10)
    record["metrics"]["area"]["token"]["RISE"]["deletion"]["logit"]["mean"] = None
    found = report._over_seeds(group, "area", "token", di.RISE, "deletion", "logit")
    assert found == (None, None)


# --- the order -------------------------------------------------------------------------------------


def test_places_follow_the_scores_and_turn_with_them(groups):
    tokens, pixels = (report.order(groups, "masked", unit=unit) for unit in ("token", "pixel"))
    assert tokens.header[:3] == ["ranking", "our test", "RISE, deletion"]
    assert tokens.header == pixels.header and len(tokens.header) == 7
    rows = {row[0]: row[1:] for row in tokens.rows}
    assert list(rows) == [
        "logit z",
        "magnitude",
        "random order",
        "full energy e",
        "τ with our test",
    ]
    assert rows["logit z"][:2] == ["1", "1"]
    assert rows["random order"][0] == "3"
    assert rows["full energy e"][:2] == ["4", "(4)"]  # there 0.05 apart, with an error of 0.04
    assert rows["τ with our test"] == ["+1.00"] * 6
    rows = {row[0]: row[1:] for row in pixels.rows}
    assert rows["logit z"][:2] == ["1", "4"]  # on pixels the made-up order is turned round
    assert rows["τ with our test"] == ["+1.00", *["-1.00"] * 5]
    assert report.order(groups, "missing", unit="token").rows == [["not yet run"]]
    with pytest.raises(ValueError, match='"token" or "pixel"'):
        report.order(groups, "masked", unit="patch")


def test_ties_share_the_better_place():
    found = report.ranks({"a": 0.5, "b": 0.9, "c": 0.5, "d": 0.1})
    assert found == {"a": 2, "b": 1, "c": 2, "d": 4}


# --- a network at work -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shapes():
    return data.load("shapes", "test", limit=6)


@pytest.fixture(scope="module")
def masked():
    torch.manual_seed(0)
    model = backbones.CifarNet(backbones.SMOKE)
    attach_energy_mask(model, "group1", preset="stable", bias_init=0.0)
    return model.eval()


def test_answers_from_ones_are_those_of_the_deletion_module(masked, shapes):
    importance = deletion.random_ranking((6, 16, 16), seed=3)
    found = report.answers(masked, shapes, "group1", importance, fractions=(0.0, 0.5))
    predict = deletion.network_predictor(masked, shapes)
    for number, fraction in enumerate((0.0, 0.5)):
        expected = predict(deletion.keep_masks(importance, fraction)).softmax(1)
        torch.testing.assert_close(found[number], expected)


def test_a_dense_network_answers_too(shapes):
    torch.manual_seed(0)
    model = backbones.CifarNet(backbones.SMOKE).eval()
    importance = deletion.centre_prior(16, 16).expand(6, 16, 16)
    found = report.answers(model, shapes, "group1", importance, fractions=(0.0,))
    torch.testing.assert_close(found[0], inference.predict(model, shapes).softmax(1))


def test_the_slider_removes_tokens_and_says_what_the_network_says(masked, shapes):
    importance = torch.arange(256.0).view(1, 16, 16).expand(2, 16, 16)
    column = report.Column(caption="rows", model=masked, layer="group1", importance=importance)
    shown = report.token_slider([column, column], shapes[:2], fractions=(0.0, 0.5), zoom=4)
    page = BeautifulSoup(shown.html, "html.parser")
    held = json.loads(page.find("script", type="application/json").string)
    assert held["labels"] == ["0 % deleted", "50 % deleted"]
    whole, half = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(f.partition(",")[2]))).convert("RGB"))
        for f in held["frames"]
    )
    row = 128 + report.BAR
    assert whole.shape == (2 * row + report.GAP, 256 + report.GAP, 3)
    assert np.array_equal(whole[:128:4, :128:4], shapes.images[0].numpy())
    grey = np.isin(half[:64, :128], (150, 205)).all()
    assert grey and np.array_equal(half[64:128, :128], whole[64:128, :128])
    said = report.answers(masked, shapes[:2], "group1", importance, fractions=(0.0,))[0, 0]
    filled = (whole[134, :128] == (0, 90, 150)).all(1).sum()
    assert filled == pytest.approx(1 + 127 * said[shapes.labels[0]].item(), abs=1)


class Tiny(nn.Module):
    """4 x 4 tokens of an image of 8 x 8, whose mean is classified."""

    def __init__(self):
        super().__init__()
        self.group1 = nn.Sequential(nn.Conv2d(3, 4, 2, stride=2))
        self.head = nn.Linear(4, 10)

    def forward(self, x):
        return self.head(self.group1(x).mean((2, 3)))


def test_a_real_card_can_be_read(shapes):
    torch.manual_seed(0)
    model = attach_energy_mask(Tiny(), "group1", preset="stable", bias_init=0.0).eval()
    small = replace(shapes, images=shapes.images[:, ::4, ::4], masks=None)
    settings = deleted.Deletion(images=6, curve_images=2, unit_images=1, fractions=(0.0, 0.5))
    finding = deleted.deletion(model, small, settings)
    record = {
        "name": "card",
        "seed": 0,
        "config": {"conditions": list(finding.conditions)},
        "answers": answer_bits.pack(finding.right.flatten()),
        "metrics": finding.metrics,
    }
    groups = {"masked": [record]}
    assert set(report.scores(groups, "masked")[report.OURS]) == set(rankings.RANKINGS) - {"unary"}
    rows = {row[0]: row[1] for row in report.areas(groups).rows}
    for name, words in report.WORDS.items():
        assert float(rows[words]) == pytest.approx(100 * finding.metrics["mean"][name], abs=0.01)
        own = report.areas_by_image(record)[name].mean()
        assert own == pytest.approx(finding.metrics["mean"][name])
    table = report.conventions(groups, "masked", unit="pixel")
    assert len(table.rows) == 6 + len(rankings.RANKINGS)
    assert all(cell != "–" for row in table.rows for cell in row)
