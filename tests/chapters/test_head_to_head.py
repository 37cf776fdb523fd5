"""The head-to-head: numbers of made-up records, marks, and the sliders."""

import json

import numpy as np
import pytest
from bs4 import BeautifulSoup

from ersm_lab.chapters import head_to_head as h

SEEDS = (0, 1, 2)


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


def test_budgets_count_every_setting_once_and_dense_networks_not_at_all():
    shown = cells(h.budget_table())
    assert shown["SDNet"]["settings"] == "2" and shown["SDNet"]["networks"] == "6"
    assert shown["pruning"]["settings"] == shown["Cutout"]["settings"] == "1"
    assert int(shown["ERSM"]["networks"]) > int(shown["ERSM"]["settings"]) > 20


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
