"""The tasks of a scale: what comes first, what waits for what, and a smoke queue that works."""

import pytest

from ersm_lab import plan, queue, tasks
from ersm_lab.queue import Clock
from ersm_lab.results import records


@pytest.fixture
def full():
    return tasks.missing("full", dataset="cifar10")


def test_a_suite_waits_for_its_network_and_for_what_is_made_beforehand(full):
    named = {t.name: t for t in full}
    asked = named["full/cifar10/gentle.corruption/seed1"]
    assert "full/cifar10/gentle/seed1" in asked.needs and "cifar10: fog" in asked.needs
    assert all(need in named for t in full for need in t.needs)
    smoothed = named["full/cifar10/isvs-iterative/seed0"].needs
    assert {name.rsplit(" at ", 1)[1] for name in smoothed} == {"0.6", "0.8"}


def test_compared_networks_come_before_their_cards_and_these_before_all_others(full):
    place = {t.name: number for number, t in enumerate(full)}
    compared = [m for m, card in plan.CARDS.items() if "attacks" in card and "resnet" not in m]
    last_network = max(place[f"full/cifar10/{m}/seed4"] for m in compared)
    assert last_network < place["full/cifar10/ablation-ersm.occlusion/seed0"]
    assert place["full/cifar10/ablation-ersm.occlusion/seed4"] < place["full/cifar10/literal/seed0"]


def test_a_smoke_queue_trains_and_asks_and_a_second_one_has_nothing_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("ERSM_HOME", str(tmp_path))
    asked = {"dataset": "shapes", "methods": ["pruned"]}
    todo = [t for t in tasks.missing("smoke", **asked) if t.like[1] in ("train", "resolution")]
    found = queue.work(todo, workers=2, within=300, clock=Clock(guess=1.0), progress=False)
    assert not found.failed and len(found.done) == 2
    kept = records.read("smoke/shapes/pruned.resolution/seed0")
    assert kept["device"]["workers"] == 2
    assert not {t.name for t in tasks.missing("smoke", **asked)} & {*found.done}
