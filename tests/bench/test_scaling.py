"""The page on scale: counts are exact, projections follow their formula, tables their records."""

import pytest
from torch import nn

from ersm_lab import scaling
from ersm_lab.networks.backbones import SMOKE, CifarNetSettings
from ersm_lab.results import records
from ersm_lab.scaling import Hardware, Work


def test_multiply_adds_of_a_convolution_are_counted_without_computing_anything():
    def make():
        return nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Flatten(), nn.Linear(5 * 64, 7))

    assert scaling.multiply_adds(make, 8) == 64 * 5 * 3 * 9 + 5 * 64 * 7


def test_a_projection_is_operations_by_rate(monkeypatch):
    work = Work(name="w", multiply_adds=1e6, images=1_000, epochs=10, runs=2)
    assert work.operations == 6 * 1e6 * 1_000 * 10 * 2
    monkeypatch.setattr(scaling, "works", lambda: [work])
    slow = Hardware(name="slow", operations=1e8, share=0.5, price=3.0)  # 2,400 s
    (row,) = scaling.projected([slow]).rows
    assert row == ["w", "1", r"40.0 min, \$2.00"]


def test_the_measured_rate_is_that_of_the_records():
    dense = {"config": {"train": {"epochs": 2}}, "seconds": {"train": 10.0}}
    rate = scaling.measured_rate([dense, dense], SMOKE)
    per_image = scaling.multiply_adds(lambda: scaling.CifarNet(SMOKE), 32)
    assert rate == pytest.approx(6 * per_image * 45_000 * 2 / 10)
    assert scaling.measured_rate([], CifarNetSettings()) is None


def test_what_was_measured_is_summed_by_kind_and_machine(monkeypatch):
    def record(method, seconds, **config):
        device = {"name": "a machine"}
        return {"method": method, "seconds": seconds, "config": config, "device": device}

    found = [
        record("dense", {"train": 3_000.0, "evaluate": 600.0}),
        record("ersm", {"train": 3_600.0}),
        record("dense.occlusion", {"train": 0.0, "judge": 360.0}, judged="x"),
        record("published-open", {"train": 720.0}),
    ]
    monkeypatch.setattr(records, "read_all", lambda **where: found)
    rows = scaling.measured("laptop").rows
    assert ["networks trained and evaluated", "a machine", "2", "2.0", "60.0"] in rows
    assert ["networks asked what they do", "a machine", "1", "0.1", "6.0"] in rows
    assert ["heads and masks on frozen maps", "a machine", "1", "0.2", "12.0"] in rows


def test_the_page_says_what_is_measured_and_what_is_projected(monkeypatch):
    monkeypatch.setattr(records, "read_all", lambda **where: [])
    text = scaling.page()
    assert "{" not in text.replace("{term}", "") and "not yet measured" in text
    assert "Projected, not measured." in text and "$" not in text.replace(r"\$", "")
