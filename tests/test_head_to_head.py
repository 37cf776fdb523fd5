"""The head-to-head: numbers of made-up records, marks, places, and what is counted."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from torch import nn

from ersm_lab.chapters import head_to_head as h
from ersm_lab.results import records

SEEDS = (0, 1, 2)


@pytest.fixture(autouse=True)
def quick():
    """No figure is left open."""
    yield
    plt.close("all")


def right(share, *, images=100, seeds=SEEDS):
    """{seed: (N,)}: the first images are right, so that methods differ on the same ones."""
    return {s: (np.arange(images) < round(images * share) + s).astype(float) for s in seeds}


@pytest.fixture
def card():
    return {
        "base": {"clean": right(0.5), "fog": right(0.5)},
        "good": {"clean": right(0.5), "fog": right(0.7)},
        "bad": {"clean": right(0.3), "fog": right(0.4)},
        "one seed": {"clean": right(0.9, seeds=(0,)), "fog": {}},
    }


@pytest.fixture
def found(card):
    return h.gaps(card, base="base")


def cells(table):
    return {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}


def test_accuracies_are_means_over_seeds(card):
    table = h.accuracy_table(card)
    assert cells(table)["base"]["clean"] == "51.0 ± 1.0"
    assert cells(table)["one seed"] == {
        "method": "one seed",
        "clean": "90.0",
        "fog": "not yet run",
    }
    assert "clean 100, fog 100" in table.caption


def test_differences_are_paired_and_marked(found):
    table = h.difference_table(found, base="base")
    shown = cells(table)
    assert list(shown) == ["good", "bad", "one seed"]
    assert shown["good"]["clean"] == "+0.0 (+0.0 to +0.0)"  # the same images: no spread at all
    assert shown["good"]["fog"].startswith("+20.0 (") and shown["good"]["fog"].endswith("▲")
    assert shown["bad"]["clean"].startswith("-20.0 (") and shown["bad"]["clean"].endswith("▼")
    assert "were all 5 true zeros" in table.caption


def test_one_seed_is_never_marked(found):
    clean = found["one seed"]["clean"]
    assert clean.low > 0
    shown = cells(h.difference_table(found, base="base"))["one seed"]["clean"]
    assert shown.endswith("1 of 3 seeds)")


def test_the_balance_sorts_measures_into_three(found):
    shown = cells(h.balance_table(found, base="base"))
    assert shown["good"]["ahead"] == "fog" and shown["good"]["not told apart"] == "clean"
    assert shown["bad"]["behind"] == "clean, fog" and shown["bad"]["ahead"] == "–"
    assert shown["one seed"]["not yet run"] == "fog"


def test_every_difference_is_in_the_figure(found):
    figure = h.draw_differences(found, base="base")
    clean, fog, empty = figure.axes
    markers = [
        [line.get_marker() for line in a.lines if line.get_marker() != "None"] for a in (clean, fog)
    ]
    assert markers == [["o", "v", "o"], ["^", "v"]]
    assert [t.get_text() for t in fog.texts] == ["not yet run"] and not empty.get_visible()
    assert fog.lines[0].get_xdata()[0] == pytest.approx(20)


def test_places_are_those_of_methods_with_every_seed(card):
    assert {m: list(r) for m, r in h._ranked(card, "fog").items()} == {
        "base": [2, 2, 2],
        "good": [1, 1, 1],
        "bad": [3, 3, 3],
    }
    assert "one seed" not in h._ranked(card, "clean")
    tied = h._ranked(card, "clean")
    assert list(tied["base"]) == list(tied["good"]) == [1.5] * 3
    (axis,) = h.draw_ranks(card).axes
    words = [text.get_text() for text in axis.texts]
    assert words.count("–") == 2 and "1.5" in words


def test_agreement_of_seeds_is_kendalls(card):
    shown = cells(h.stability_table(card))
    assert (
        shown["fog"]["Kendall's W"] == "1.00" and shown["fog"]["first, by seed"] == "good (3 of 3)"
    )
    assert shown["fog"]["first, by images drawn again"] == "good: 100 %"
    # orders 1 2 3, 2 3 1, 3 1 2: no agreement
    circle = [(0.9, 0.6, 0.3), (0.6, 0.3, 0.9), (0.3, 0.9, 0.6)]
    turned = {
        str(i): {"clean": {s: right(level)[0] for s, level in enumerate(levels)}}
        for i, levels in enumerate(circle)
    }
    shown = cells(h.stability_table(turned))["clean"]
    assert shown["Kendall's W"] == "0.00"
    assert shown["first, by seed"] == "0 (1 of 3), 2 (1 of 3), 1 (1 of 3)"


def test_two_methods_have_no_agreement_to_test(card):
    few = {name: card[name] for name in ("base", "good")}
    assert cells(h.stability_table(few))["fog"]["Kendall's W"] == "not yet run"


def test_first_shares_are_those_of_resamples():
    even = {s: (np.arange(100) % 2).astype(float) for s in SEEDS}
    odd = {s: (np.arange(100) % 2 == 0).astype(float) for s in SEEDS}
    shares = h.first_shares({"a": {"clean": even}, "b": {"clean": odd}}, "clean")
    assert sum(shares.values()) == pytest.approx(1) and 0.35 < shares["a"] < 0.65


def test_records_become_values(monkeypatch):
    asked = []

    def judged(method, suite, **where):
        asked.append((method, suite))
        return [{"seed": 1}] if suite == "occlusion" else []

    monkeypatch.setattr(h, "judged", judged)
    monkeypatch.setattr(h, "share_right", lambda record, pattern: np.full(4, 0.5))
    monkeypatch.setattr(h.statistics, "of", lambda *_, **__: [])
    card = h.read(["x"])
    assert list(card["x"]) == list(h.MEASURES) and ("x", "deletion") in asked
    assert card["x"]["occlusion"][1].tolist() == [0.5] * 4
    assert card["x"]["clean"] == card["x"]["deletion"] == {}


# ----------------------------------------------------------------------------------------- counting


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.Conv2d(4, 2, 1, bias=False),
        nn.Flatten(),
        nn.Linear(2 * 64, 5),
    )


def test_operations_are_counted_by_hand(network):
    x = torch.zeros(2, 3, 8, 8)
    first, second, last = 64 * 4 * 27, 64 * 2 * 4, 5 * 128
    everything = first + second + last
    assert h.counted(network, x) == {"all": everything, "nonzero": everything}
    with torch.no_grad():
        network[0].weight[:2] = 0
    assert h.counted(network, x) == {"all": everything, "nonzero": everything - first / 2}
    found = h.counted(network, x, kept=0.25, behind="0")
    assert found["nonzero"] == first / 2 + (second + last) / 4
    assert not network[0]._forward_hooks and network.training


def test_budgets_count_every_setting_once_and_dense_networks_not_at_all():
    shown = cells(h.budget_table())
    assert shown["SDNet"]["settings"] == "2" and shown["SDNet"]["networks"] == "6"
    assert shown["pruning"]["settings"] == shown["Cutout"]["settings"] == "1"
    assert int(shown["ERSM"]["networks"]) > int(shown["ERSM"]["settings"]) > 20


def test_an_unknown_layer_is_named(network):
    with pytest.raises(ValueError, match="no layer 'gone': choose of 0, 1, 2, 3"):
        h.counted(network, torch.zeros(1, 3, 8, 8), behind="gone")


def test_counted_and_clocked_stay_apart(network, monkeypatch):
    numbers = {"inference_ratio": 1.25, "train_ratio": 1.5, "memory_mib": 7.0, "multiply_adds": 1e6}
    plain = numbers | {"inference_ratio": 1.0, "train_ratio": 1.0}
    family = {
        "batch": 4,
        "rounds": 3,
        "networks": {"dense": plain, "energy mask after group1": numbers},
    }
    device = {"name": "machine", "type": "cpu", "threads": 1, "precision": "32-true"}
    clock = {"created": "2026", "metrics": {"ablation": family}, "device": device}
    monkeypatch.setattr(records, "read_all", lambda **_: [clock])
    models = {h.DENSE: network, "ablation-ersm": network, "cutout": network}
    x = torch.zeros(1, 3, 8, 8)
    table = h.cost_table(models, x, kept={"ablation-ersm": ("0", 0.5)})
    shown = cells(table)
    skipped = "counted: without zeros and dropped tokens"
    assert shown[h.DENSE][skipped] == shown[h.DENSE]["counted: M multiply-adds"] == "0.0"
    assert shown["ablation-ersm"]["clock: inference to dense"] == "1.25×"
    assert shown["ablation-ersm"]["clock: inference time saved"] == "-25 %"
    assert shown[h.DENSE]["clock: inference time saved"] == "0 %"
    assert shown["cutout"]["clock: training step to dense"] == "–"
    assert "batches of 4 on machine" in table.caption
    monkeypatch.setattr(records, "read_all", lambda **_: [])
    assert "clock: not yet run" in h.cost_table(models, x).caption


# ----------------------------------------------------------------------------------------- widget


def test_the_sliders_hold_the_differences_by_seed(card):
    html = h.decide(card, base="base", weights={"fog": 0}, name="one").html
    page = BeautifulSoup(html, "html.parser")
    content = json.loads(page.find("script", type="application/json").string)
    assert content["measures"] == ["clean", "fog"] and content["weights"] == [1, 0]
    gaps = {method["name"]: method["gaps"] for method in content["methods"]}
    assert gaps["good"] == [[0, 0, 0], [20, 20, 20]] and gaps["base"] == [[0] * 3] * 2
    assert gaps["one seed"] == [None, None]  # a seed alone cannot stand beside three
    assert content["units"] == [1, 1]  # no seed moves anything
    assert page.div["id"] == "one" and "__" not in html.replace("ersm__", "")
    with pytest.raises(ValueError, match="name must be a letter"):
        h.decide(card, base="base", name="1")


def test_a_measure_is_weighed_in_what_another_seed_moves():
    # variances 4 and 1; the base does not differ from itself, and one seed says nothing
    assert h.seed_noise([[0, 0, 0], [8, 10, 12], [4, 5, 6], None, [3]]) == pytest.approx(
        2.5**0.5, abs=1e-3
    )
    assert h.seed_noise([[0.0, 0.0], None]) == 1


def test_without_records_there_is_a_sentence_and_no_picture(card):
    html = h.decide({"base": {measure: {} for measure in card["base"]}}, base="base").html
    assert "make reproduce" in html and "<svg" not in html and "<script" not in html
