"""What networks cost: counts against closed forms, memory against what is allocated."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ersm_lab import cost
from ersm_lab.common import timing
from ersm_lab.cost import CostSettings
from ersm_lab.networks.fista import CSCSettings
from ersm_lab.networks.sparse_coding import SparseCoding2d
from ersm_lab.results import records, standing

TINY = CostSettings(
    backbone=replace(cost.SMOKE, widths=(4, 4), stem_channels=8),
    batch=4,
    resnet_batch=0,
    rounds=1,
    size=16,
    precision="32-true",
)


def test_a_convolution_has_its_multiply_adds():
    conv, x = nn.Conv2d(3, 8, 3, padding=1, stride=2), torch.randn(2, 3, 8, 8)
    assert cost.multiply_adds(lambda: conv(x)) == 2 * 16 * 8 * 27
    line = nn.Linear(5, 7)
    assert cost.multiply_adds(lambda: line(torch.randn(3, 5))) == 3 * 5 * 7


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_code_has_two_convolutions_more_for_each_step_after_the_first(steps):
    code = SparseCoding2d(3, 8, 3, padding=1, settings=CSCSettings(steps=steps)).eval()
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        code(x)  # finds the step size, which is not counted again
        found = cost.multiply_adds(lambda: code(x))
    assert found == (2 * steps - 1) * 2 * 36 * 8 * 27


def test_peak_is_what_is_held_at_once():
    before = torch.empty(2_000_000)

    def run():
        nonlocal before
        first, second = torch.empty(1_000_000), torch.empty(500_000)
        before = None  # freed, but it was there before
        del first
        third = torch.empty(250_000)
        del second, third

    assert cost.peak_bytes(run) == pytest.approx(4 * 1_500_000, rel=0.01)


def test_every_round_times_every_variant_in_turn():
    order = []
    variants = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = timing.side_by_side(variants, 4)
    assert {name: len(values) for name, values in seconds.items()} == dict.fromkeys("abc", 4)
    assert order == list("abc") * (4 + timing.WARM_UP)


@pytest.fixture(scope="module")
def measured():
    return cost.measure(TINY, device="cpu")


def test_the_small_networks_are_measured_side_by_side(measured):
    assert list(measured) == ["ablation"]
    found = measured["ablation"]["networks"]
    assert list(found) == [
        "dense",
        "energy mask after group1",
        "sdnet",
        "sdnet-all",
        "dense, half of the weights zero",
    ]
    dense, masked, first, every, pruned = found.values()
    for name in ("parameters", "multiply_adds"):  # zeros are stored and multiplied all the same
        assert pruned[name] == dense[name]
    assert dense["parameters"] == first["parameters"] == every["parameters"] < masked["parameters"]
    assert dense["multiply_adds"] < first["multiply_adds"] < every["multiply_adds"]
    assert dense["train_ratio"] == dense["inference_ratio"] == 1
    for numbers in found.values():
        assert numbers["multiply_adds_training"] > 2 * numbers["multiply_adds"]
        assert numbers["memory_mib"] > numbers["memory_held_mib"] > 0
        assert numbers["train_ms"] > 0 and numbers["inference_ms"] > 0
    # in a dense network: parameters, running statistics, momentum of what trains
    network = cost.networks(TINY)["ablation"]["dense"]
    expected = sum(4 * p.numel() * (1 + p.requires_grad) for p in network.parameters())
    expected += sum(b.numel() * b.element_size() for b in network.buffers())
    assert dense["memory_held_mib"] * 2**20 == pytest.approx(expected)


def test_a_layer_that_is_a_code_counts_three_times(measured):
    found = measured["ablation"]["networks"]
    model = cost.networks(TINY)["ablation"]["dense"]
    places = 8 * 8  # of the first group, on 16 x 16 images
    one = model.group1[0].weight.numel() * places
    assert found["sdnet"]["multiply_adds"] - found["dense"]["multiply_adds"] == 2 * one


def test_numbers_fit_into_a_record(measured):
    assert records.plain(measured)["ablation"]["batch"] == 4


def test_the_table_keeps_counted_and_measured_apart(measured, monkeypatch):
    device = {"name": "machine", "type": "cpu", "threads": 1, "precision": "32-true"}
    old = {"metrics": {}, "device": device, "created": "2026-01-01", "name": "old"}
    new = old | {"metrics": measured, "created": "2026-01-02", "name": "new"}
    monkeypatch.setattr(records, "read_all", lambda **_: [new, old])
    table = cost.table("ablation", scale="smoke")
    assert [row[0] for row in table.rows] == list(measured["ablation"]["networks"])
    assert sum("counted" in head for head in table.header) == 1
    assert sum("by the clock" in head for head in table.header) == 2
    assert "machine, 1 thread," in table.caption and "load" not in table.caption
    with pytest.raises(ValueError, match=r"no family 'resnet'.*ablation"):
        cost.table("resnet", scale="smoke")


def test_a_record_is_what_was_measured(measured, monkeypatch, tmp_path):
    monkeypatch.setattr(cost, "measure", lambda *_, **__: measured)
    made = cost.record(TINY, scale="smoke", device="cpu", root=tmp_path)
    (found,) = records.read_all(root=tmp_path, scale="smoke", method="cost")
    assert found["name"] == made["name"] and standing.same_sources(found)
    assert found["metrics"] == records.plain(measured) and found["config"] == records.plain(TINY)
    assert found["device"]["precision"] == "32-true" and "ersm_lab/cost.py" in found["sources"]
    monkeypatch.setitem(found["device"], "load", 7.25)
    drawn = cost.drawn(found["metrics"]["ablation"], found["device"])
    assert "load average 7.2 on" in drawn.caption
    cells = dict(zip(drawn.header, drawn.rows[2], strict=True))
    numbers = measured["ablation"]["networks"]["sdnet"]
    assert cells["network"] == "sdnet" and cells["parameters"] == f"{numbers['parameters']:,}"
    assert cells["by the clock: ms a training step"] == f"{numbers['train_ms']:.1f}"


def test_an_unknown_scale_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no scale 'huge': choose one of smoke, laptop, full"):
        cost.record(scale="huge", root=tmp_path)


def test_without_a_record_the_table_says_so(monkeypatch):
    monkeypatch.setattr(records, "read_all", lambda **_: [])
    table = cost.table("ablation", scale="laptop")
    assert "not yet run: `python benchmarks/cost.py --scale laptop --record`" in table.caption
    assert not table.rows


def test_resnets_are_a_family_of_their_own():
    families = cost.networks(replace(TINY, resnet_batch=1))
    dense, masked, coded = families["resnet"].values()
    assert sum(p.numel() for p in dense.parameters()) == sum(p.numel() for p in coded.parameters())
    assert isinstance(coded.conv1, SparseCoding2d) and cost.has_mask(masked)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        CostSettings(rounds=0)
