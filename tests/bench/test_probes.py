"""Probes see what code does: they move with a formula and with nothing else."""

import dataclasses

import pytest
import torch

import ersm_core
from ersm_lab import probes
from ersm_lab.images import corruptions
from ersm_lab.results import provenance, standing
from ersm_lab.training import experiments, loop

PLACE = "laptop/cifar10"


# The twelve steps and all severities of a probe, on fewer images.
FEW = {"TRAIN_IMAGES": 64, "BATCH": 16, "TEST_IMAGES": 16, "SUITE_IMAGES": 4}


def measured(method, suite=None):
    """What a probe gives, on few images."""
    experiment = experiments.find(f"{PLACE}/{method}/seed0")
    with pytest.MonkeyPatch.context() as patch:
        for name, few in FEW.items():
            patch.setattr(probes, name, few)
        return probes.measure(probes.of(experiment, suite)[0])


@pytest.fixture(scope="module")
def before():
    """What some probes give."""
    asked = [("dense", None), ("ersm", None), ("ablation-ersm", "corruption")]
    asked += [("ablation-ersm", "occlusion")]
    return {place: measured(*place) for place in asked}


def moved(before):
    """Which of them give something else now."""
    return {place for place, then in before.items() if standing.differences(then, measured(*place))}


def test_the_same_code_gives_the_same_numbers_on_any_number_of_threads(before):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert measured("ersm") == before["ersm", None]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_a_changed_schedule_moves_what_has_a_mask_and_nothing_else(before, monkeypatch):
    ramp = loop.mask_ramp

    def slower(progress, settings):
        weight = ramp(progress, settings)
        return weight and 0.9 * weight

    monkeypatch.setattr(loop, "mask_ramp", slower)
    assert moved(before) == {("ersm", None)}


def test_a_changed_learning_rate_moves_every_training(before, monkeypatch):
    rate = loop.rate_factor
    monkeypatch.setattr(loop, "rate_factor", lambda *a: 1.01 * rate(*a))
    assert moved(before) == {("dense", None), ("ersm", None)}


def test_a_changed_energy_moves_what_has_a_mask(before, monkeypatch):
    agreement = ersm_core._agreement
    monkeypatch.setattr(ersm_core, "_agreement", lambda *a: agreement(*a) + 0.1)
    assert moved(before) == {("ersm", None)}  # a judged hard mask depends on the logit alone


def test_a_changed_gate_moves_judgements_too(before, monkeypatch):
    logit = ersm_core._logit
    monkeypatch.setattr(ersm_core, "_logit", lambda *a: logit(*a) - 0.2)
    assert moved(before) == before.keys() - {("dense", None)}


def test_one_severity_of_one_corruption_moves_that_suite(before, monkeypatch):
    corrupt = corruptions.corrupt

    def stronger(images, kind, severity, *, seed):
        louder = kind == "contrast" and severity == 3
        return corrupt(images, kind, 4 if louder else severity, seed=seed)

    monkeypatch.setattr(corruptions, "corrupt", stronger)
    assert moved(before) == {("ablation-ersm", "corruption")}


def test_names_seeds_and_widths_share_a_probe_and_settings_do_not():
    ersm = experiments.find(f"{PLACE}/ersm/seed0")
    same = [f"{PLACE}/ersm/seed2", f"{PLACE}/ablation-ersm/seed1", "laptop/shapes/ersm/seed0"]
    assert {probes.of(experiments.find(name))[0].id for name in same} == {probes.of(ersm)[0].id}
    train = dataclasses.replace(ersm.config.train, mask_ramp=0.2)
    other = dataclasses.replace(ersm, config=dataclasses.replace(ersm.config, train=train))
    assert probes.of(other)[0].id != probes.of(ersm)[0].id


def test_a_record_made_now_stands_when_the_code_has_changed_in_words_only(monkeypatch, tmp_path):
    monkeypatch.setenv("ERSM_HOME", str(tmp_path))
    experiment = experiments.find("smoke/shapes/dense/seed0")
    taken = probes.taken(experiment)
    record = {"probe": taken, "sources": {"ersm_core.py": "0"}, "source_hash": "of another text"}
    assert standing.of(record).state == standing.UNVERIFIED
    found, failed = probes.take_all(probes.of(experiment), jobs=1, progress=False)
    standing.keep(found, provenance.code_hash())
    assert not failed and standing.of(record).state == standing.CURRENT
