"""A plan holds what has no valid record, in an order that can be run."""

import pytest

from ersm_lab import judging, plan
from ersm_lab.results import records
from ersm_lab.suites import card
from ersm_lab.training import experiments
from ersm_lab.training.methods import experiments_of


@pytest.fixture
def done(monkeypatch, tmp_path):
    """Records that are there, by name; none at first."""
    monkeypatch.setenv("ERSM_HOME", str(tmp_path))
    there: set[str] = set()
    monkeypatch.setattr(plan, "is_done", lambda job: job.name in there)
    return there


def test_the_whole_grid_comes_in_an_order_that_can_be_run(done):
    jobs = plan.plan("full", dataset="cifar10")
    seen = set()
    for name, job in jobs.items():
        assert set(job.needs) <= seen and job.name == name
        seen.add(name)
    assert {e.name for e in experiments_of("full", dataset="cifar10")} <= seen
    assert "full/shapes-spurious/ablation-ersm.spurious/seed2" in seen


def test_what_needs_what(done):
    jobs = plan.plan("laptop", dataset="cifar10")

    def needs(name):
        return jobs[f"laptop/cifar10/{name}"].needs

    assert needs("dense/seed1") == ()
    assert needs("ersm/seed1") == ("laptop/cifar10/dense/seed1",)  # its first epochs
    assert needs("published-open/seed2") == ("laptop/cifar10/ablation-dense/seed2",)
    assert needs("sdnet/seed0") == ()
    assert needs("sdnet.lambda/seed0") == ("laptop/cifar10/sdnet/seed0",)
    assert jobs["laptop/cifar10/sdnet.lambda/seed0"].arguments == [
        "judge", "laptop/cifar10/sdnet/seed0", "--suites", "lambda"
    ]  # fmt: skip
    assert jobs["laptop/cifar10/dense/seed1"].arguments == ["run", "laptop/cifar10/dense/seed1"]


def test_what_is_done_is_left_and_waited_for_by_nobody(done):
    done |= {"laptop/cifar10/ablation-dense/seed0", "laptop/cifar10/cutout.occlusion/seed0"}
    jobs = plan.plan("laptop", dataset="cifar10")
    assert not done & jobs.keys()
    assert jobs["laptop/cifar10/published-open/seed0"].needs == ()
    assert jobs["laptop/cifar10/ablation-dense.occlusion/seed0"].needs == ()
    assert jobs["laptop/cifar10/cutout.corruption/seed0"].needs == ("laptop/cifar10/cutout/seed0",)


def test_a_choice_of_methods_without_their_cards(done):
    jobs = plan.plan("smoke", dataset="shapes", methods=["dense", "ersm"], cards=False)
    assert [*jobs] == ["smoke/shapes/dense/seed0", "smoke/shapes/ersm/seed0"]
    with pytest.raises(ValueError, match="no method 'erms': choose of ablation-dense"):
        plan.plan("smoke", dataset="shapes", methods=["erms"])


def test_only_trained_networks_are_asked_and_only_what_there_is_to_ask():
    kept = {e.method for e in experiments_of("laptop", dataset="cifar10") if e.checkpoint}
    assert {m for m in plan.CARDS if not m.startswith("resnet18")} <= kept  # these: full scale only
    for suites in plan.CARDS.values():
        assert set(suites) <= {*card.suites_of("cifar10"), *card.BY_NAME}
    for dataset, suite, methods in plan.ON_SHAPES:
        assert suite in card.suites_of(dataset) and set(methods) <= kept


def test_a_record_that_was_made_is_done(monkeypatch, tmp_path):
    monkeypatch.setenv("ERSM_HOME", str(tmp_path))
    jobs = plan.wanted("smoke", dataset="shapes", methods=["ablation-dense"])
    monkeypatch.setattr(experiments, "valid_record", lambda experiment: {"metrics": {}})
    monkeypatch.setattr(judging, "valid_judgement", lambda experiment, suite: None)
    assert [plan.is_done(job) for job in jobs] == [job.suite is None for job in jobs]
    assert any(job.suite for job in jobs)


def test_a_smoke_record_of_every_kind_of_method_is_verified_and_states_a_tolerance():
    known = experiments_of("smoke", dataset="shapes")
    verified = [e for e in known if e.method in plan.VERIFIED]
    assert len(verified) == len(plan.VERIFIED)
    assert {type(e.config) for e in verified} == {type(e.config) for e in known}
    for experiment in verified:
        record = records.read(experiment.name)
        assert not records.settings_off(record["config"], experiment.config)
        assert record["tolerance"] == experiment.tolerance != {}
        chance = 1 / 10  # of ten classes: a network that has learned nothing must not agree
        assert record["metrics"]["test_accuracy"] - record["tolerance"]["test_accuracy"] > chance
