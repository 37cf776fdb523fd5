"""Gradual magnitude pruning: its law, what becomes zero, and the records of pruned networks."""

import json

import pytest
import torch

from ersm_lab.evaluation import inference
from ersm_lab.images import data
from ersm_lab.networks import pruning
from ersm_lab.networks.backbones import CifarNet, CifarNetSettings
from ersm_lab.networks.pruning import plain_state, prunable, prune_to, sparsity_at
from ersm_lab.results import records
from ersm_lab.training import runs
from ersm_lab.training.build import build
from ersm_lab.training.config import Config, Experiment
from ersm_lab.training.loop import TrainSettings

NET = CifarNetSettings(widths=(8, 12), depth=1, stem_channels=16)
SHORT = TrainSettings(epochs=2, batch_size=16, learning_rate=0.1, precision="32-true")
PLACE = dict(backbone=NET, train=SHORT, train_images=70, test_images=50)  # 2 x 4 steps
LAW = dict(sparsity=0.5, start=0.375, ramp=0.375)

pytestmark = pytest.mark.usefixtures("on_the_cpu")


@pytest.fixture(scope="module")
def record(home):
    """The record of one tiny run."""
    return runs.run(tiny(), root=home, progress=False)


def tiny(**changes):
    """A small experiment that prunes from the fourth step to the seventh of eight."""
    config = Config(**(PLACE | LAW | changes))
    return Experiment(method="pruned", dataset="shapes", scale="smoke", seed=0, config=config)


def dense():
    return Experiment(
        method="dense", dataset="shapes", scale="smoke", seed=0, config=Config(**PLACE)
    )


def built(**changes):
    return build(tiny(**changes), classes=10)


def zeros(model):
    """How many weights are zero, and of how many, in the layers that are pruned."""
    weights = [layer.weight.detach().flatten() for layer in prunable(model).values()]
    weights = torch.cat(weights)
    return int((weights == 0).sum()), len(weights)


# --- the law ---------------------------------------------------------------------------------------


def test_sparsity_rises_by_the_cubic_law_between_its_ends():
    law = dict(sparsity=0.8, start=0.5, ramp=0.2)
    assert sparsity_at(0.0, **law) == sparsity_at(0.499, **law) == sparsity_at(0.5, **law) == 0
    assert sparsity_at(0.6, **law) == pytest.approx(0.8 * 7 / 8)  # half way, 1 - 1/8
    assert sparsity_at(0.55, **law) == pytest.approx(0.8 * (1 - 27 / 64))
    assert sparsity_at(0.7, **law) == sparsity_at(1.0, **law) == 0.8


def test_without_a_ramp_all_is_pruned_at_once():
    law = dict(sparsity=0.5, start=0.5, ramp=0.0)
    assert sparsity_at(0.49, **law) == 0 and sparsity_at(0.5, **law) == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 1.0}, "share of the weights below 1, got 1.0"),
        ({"sparsity": -0.1}, "share of the weights below 1"),
        ({"start": 0.9, "ramp": 0.1}, r"start \+ ramp < 1, got 0.9 and 0.1"),
        ({"start": -0.1}, "start must be a finite number at least 0, got -0.1"),
        ({"ramp": float("nan")}, "ramp must be a finite number at least 0, got nan"),
        ({"train": TrainSettings(epochs=1, ema_decay=0.9)}, "set ema_decay=0"),
    ],
)
def test_bad_settings_are_an_error_that_says_what_to_do(settings, message):
    with pytest.raises(ValueError, match=message):
        Config(**(PLACE | LAW | settings))


# --- what becomes zero -----------------------------------------------------------------------------


def test_convolutions_and_head_are_pruned_and_nothing_else():
    model = built()
    assert list(prunable(model)) == ["group1.0", "group2.0", "head"]
    masked = {name for name in model.state_dict() if name.endswith("_mask")}
    assert masked == {"group1.0.weight_mask", "group2.0.weight_mask", "head.weight_mask"}


def test_the_smallest_weights_of_all_layers_go_first_and_stay_away():
    model = built()
    layers = list(prunable(model).values())
    for layer, factor in zip(layers, (1.0, 2.0, 3.0), strict=True):
        layer.weight_orig.data.normal_().mul_(factor)
    whole = torch.cat([layer.weight_orig.detach().abs().flatten() for layer in layers])
    prune_to(model, 0.3)
    kept = torch.cat([layer.weight_mask.flatten() for layer in layers]).bool()
    assert int((~kept).sum()) == round(0.3 * len(kept))
    assert whole[~kept].max() < whole[kept].min()
    shares = [layer.weight_mask.mean().item() for layer in layers]
    assert shares[0] < shares[1] < shares[2]
    for layer in layers:
        layer.weight_orig.data[layer.weight_mask == 0] = 100.0  # large, but gone
    prune_to(model, 0.6)
    later = torch.cat([layer.weight_mask.flatten() for layer in layers]).bool()
    assert int((~later).sum()) == round(0.6 * len(kept)) and not (later & ~kept).any()
    prune_to(model, 0.1)  # nothing comes back
    assert torch.equal(torch.cat([layer.weight_mask.flatten() for layer in layers]).bool(), later)


def test_a_run_prunes_by_the_law_before_every_step(tmp_path, monkeypatch):
    shares, prune = [], pruning.prune_to
    monkeypatch.setattr(pruning, "prune_to", lambda m, share: shares.append((m, share)))
    runs.run(tiny(), root=tmp_path, progress=False)
    assert [share for _, share in shares] == [sparsity_at(step / 8, **LAW) for step in range(8)]
    model = shares[0][0]
    for layer in prunable(model).values():
        layer.weight_orig.data.normal_()  # its start has zeros of its own
    for _, share in shares:
        prune(model, share)
        model(torch.randn(4, 3, 32, 32))  # the weights are those of the last pass
        found, count = zeros(model)
        assert found == round(share * count)
    assert found == round(0.5 * count)


def test_a_pruned_weight_has_no_gradient():
    model = built().train()
    prune_to(model, 0.5)
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    for layer in prunable(model).values():
        assert not layer.weight_orig.grad[layer.weight_mask == 0].any()
        assert layer.weight_orig.grad[layer.weight_mask == 1].any()


def test_before_it_is_pruned_the_network_is_the_dense_one_bit_for_bit():
    test = data.load("shapes", "test", limit=50)
    own, other = built(), build(dense(), classes=10)
    assert torch.equal(inference.predict(own, test), inference.predict(other, test))
    trained = {name.removesuffix("_orig"): p for name, p in own.named_parameters()}
    assert trained.keys() == dict(other.named_parameters()).keys()


def test_a_plain_network_has_the_zeros_and_the_same_answers():
    model = built()
    for layer in prunable(model).values():
        layer.weight_orig.data.normal_()
    prune_to(model, 0.5)
    state = runs.halve(model)
    plain = CifarNet(NET, classes=10)
    plain.load_state_dict(plain_state(state))
    found, count = zeros(plain)
    assert abs(found - 0.5 * count) <= 1
    test = data.load("shapes", "test", limit=50)
    assert torch.equal(inference.predict(model, test), inference.predict(plain, test))


# --- runs ------------------------------------------------------------------------------------------


def test_a_run_leaves_a_record_and_the_network_that_was_scored(home, record):
    assert records.read(tiny().name, root=home) == json.loads(json.dumps(record))
    assert "ersm_lab/networks/pruning.py" in record["sources"]
    model = runs.restore(tiny(), record, root=home)
    assert type(model) is CifarNet and not model._forward_pre_hooks
    assert not any(module.training or module._forward_pre_hooks for module in model.modules())
    found, count = zeros(model)
    assert abs(found - tiny().config.sparsity * count) <= 1
    metrics = inference.evaluate(model, data.load("shapes", "test", limit=50))
    assert metrics == {k: v for k, v in record["metrics"].items() if not k.startswith("val")}


def test_until_pruning_starts_training_is_that_of_the_dense_network(tmp_path):
    other = runs.run(dense(), root=tmp_path, progress=False)
    late = runs.run(tiny(start=0.5, ramp=0.25), root=tmp_path, progress=False)
    assert late["curve"][0]["loss"] == other["curve"][0]["loss"]
    assert late["curve"][1]["loss"] != other["curve"][1]["loss"]
    never = runs.run(tiny(sparsity=0.0), root=tmp_path, progress=False)
    assert never["metrics"] == other["metrics"] and never["answers"] == other["answers"]


def test_a_killed_run_goes_on_and_ends_the_same(killed_once, record):
    again = killed_once(runs.run, tiny())
    assert again["metrics"] == record["metrics"]
    assert again["checkpoint"] == record["checkpoint"]
