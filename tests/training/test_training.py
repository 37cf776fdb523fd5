"""The training loop: it learns, it is the same every time, and a kill does not change its result."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from conftest import Killed
from torch import nn

from ersm_attach import attach_energy_mask
from ersm_core import EnergyMask
from ersm_lab.evaluation import inference
from ersm_lab.images import data
from ersm_lab.images.data import Augment
from ersm_lab.networks.backbones import CifarNet, CifarNetSettings
from ersm_lab.training import loop
from ersm_lab.training.loop import (
    TrainSettings,
    make_fabric,
    make_optimiser,
    mask_ramp,
    rate_factor,
)

NET = CifarNetSettings(widths=(8, 12), depth=1, stem_channels=16)
SHORT = TrainSettings(
    epochs=4, batch_size=32, learning_rate=0.1, mask_start=0.5, mask_ramp=0.25, precision="32-true"
)
ROW = {"epoch", "steps", "loss", "regulariser", "kept", "learning_rate", "seconds"}


@pytest.fixture(scope="module")
def images():
    return data.load("shapes", "train", limit=96)


def network(images, mask=None, **settings):
    """A whitened network of seed 0, and its mask after group1 if one is asked for."""
    torch.manual_seed(0)
    model = CifarNet(NET)
    model.whiten(images.normalise(images.images))
    if mask:
        settings = {"hard": mask == "hard", "noise": 1.0} | settings
        attach_energy_mask(model, "group1", preset="stable", **settings)
    return model


def train(model, images, settings=SHORT, *, seed=0, **options):
    fabric = make_fabric(precision=settings.precision, device="cpu")
    options = {"progress": False, "fabric": fabric} | options
    return loop.train(model, images, settings, seed=seed, **options)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def without_seconds(curve):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in curve]


@pytest.fixture(scope="module")
def dense(images):
    """Final weights and curve of the dense network."""
    model = network(images)
    return model, train(model, images)


@pytest.fixture(scope="module")
def masked(images):
    """Final weights and curve of the network with a hard mask, unbroken."""
    model = network(images, "hard")
    return model, train(model, images)


# --- schedules -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("progress", "factor"), [(0, 0.2), (0.125, 0.6), (0.25, 1.0), (0.625, 0.55), (1, 0.1)]
)
def test_one_cycle_rises_to_the_peak_then_falls(progress, factor):
    settings = replace(SHORT, start=0.2, warm_up=0.25, end=0.1)
    assert rate_factor(progress, settings) == pytest.approx(factor)


def test_one_cycle_may_start_at_its_peak():
    settings = replace(SHORT, warm_up=0.0, end=0.0)
    assert [rate_factor(p, settings) for p in (0, 0.5, 1)] == [1, 0.5, 0]


@pytest.mark.parametrize(("progress", "factor"), [(0, 1), (1 / 3, 0.75), (0.5, 0.5), (1, 0)])
def test_cosine_falls_from_the_peak_to_0(progress, factor):
    assert rate_factor(progress, replace(SHORT, schedule="cosine")) == pytest.approx(factor)


def test_an_unknown_schedule_is_an_error(images):
    with pytest.raises(ValueError, match='"one-cycle" or "cosine", got \'step\''):
        train(network(images), images, replace(SHORT, schedule="step"))


@pytest.mark.parametrize(
    ("progress", "weight"), [(0, None), (0.599, None), (0.6, 0), (0.65, 0.5), (0.7, 1), (1, 1)]
)
def test_masks_are_off_until_their_start_then_the_weight_of_the_loss_ramps(progress, weight):
    ramp = mask_ramp(progress, replace(SHORT, mask_start=0.6, mask_ramp=0.1))
    assert ramp is None if weight is None else ramp == pytest.approx(weight)


@pytest.mark.parametrize(("start", "before", "after"), [(0.5, None, 1.0), (0.0, 1.0, 1.0)])
def test_without_a_ramp_the_loss_has_its_whole_weight_at_once(start, before, after):
    settings = replace(SHORT, mask_start=start, mask_ramp=0.0)
    assert [mask_ramp(p, settings) for p in (0.499, 0.5)] == [before, after]


# --- parameters ------------------------------------------------------------------------------------


def test_weights_norms_and_masks_have_rates_and_decays_of_their_own(images):
    model = network(images, "hard")
    settings = TrainSettings(
        epochs=1,
        learning_rate=0.5,
        weight_decay=0.02,
        norm_lr_factor=8.0,
        mask_lr_factor=0.25,
        mask_weight_decay=0.0,
    )
    optimiser = make_optimiser(model, settings)
    names = {p: name for name, p in model.named_parameters()}
    groups = {
        (g["lr"], g["weight_decay"]): {names[p] for p in g["params"]}
        for g in optimiser.param_groups
    }
    assert groups == {
        (0.5, 0.02): {"stem.0.bias", "group1.0.weight", "group2.0.weight", "head.weight"},
        (4.0, 0.0025): {"group1.1.bias", "group2.2.bias"},
        (0.125, 0.0): {f"group1.energy_mask.{n}" for n in ("weight", "bias", "project.weight")},
    }
    assert isinstance(optimiser, torch.optim.SGD)
    assert all(g["nesterov"] and g["momentum"] == settings.momentum for g in optimiser.param_groups)


def test_adamw_takes_the_same_groups(images):
    optimiser = make_optimiser(network(images, "soft"), replace(SHORT, optimiser="adamw"))
    assert isinstance(optimiser, torch.optim.AdamW)
    assert [g["lr"] for g in optimiser.param_groups] == pytest.approx([0.1, 6.4, 0.05])


def test_an_unknown_optimiser_is_an_error(images):
    with pytest.raises(ValueError, match='"sgd" or "adamw", got \'adam\''):
        make_optimiser(network(images), replace(SHORT, optimiser="adam"))


def test_sgd_without_momentum_is_plain(images):
    (group, *_) = make_optimiser(network(images), replace(SHORT, momentum=0.0)).param_groups
    assert group["momentum"] == 0 and not group["nesterov"]


@pytest.mark.parametrize(
    ("amx", "avx", "expected"),
    [(True, False, "bf16-mixed"), (False, True, "bf16-mixed"), (False, False, "32-true")],
)
def test_auto_is_bf16_only_where_the_cpu_has_units_for_it(monkeypatch, amx, avx, expected):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx, raising=False)
    assert loop.resolve_precision("auto", "cpu") == expected
    assert loop.resolve_precision("64-true", "cpu") == "64-true"


# --- runs ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def easy():
    """Images whose background agrees with the class in 91 %: learned in a second."""
    return [data.load("shapes-spurious", split, limit=500) for split in ("train", "val")]


@pytest.mark.parametrize("mask", [None, "hard"])
def test_a_short_run_learns_textured_shapes(easy, mask):
    images, held_out = easy
    torch.manual_seed(0)
    model = CifarNet(CifarNetSettings(widths=(16, 32, 32), depth=1))
    model.whiten(images.normalise(images.images))
    if mask:
        attach_energy_mask(model, "group1", preset="stable", noise=1.0, lambda_pair=0.05)
    before = inference.accuracy(model, held_out)
    curve = train(model, images, replace(SHORT, epochs=6, batch_size=25))
    assert before < 0.2
    assert inference.accuracy(model, held_out) > 0.4  # chance is 0.1, the background's share 0.91
    assert curve[-1]["loss"] < curve[0]["loss"] - 0.2
    assert (curve[-1]["kept"] < 0.95) == (mask is not None)


def test_the_curve_has_one_row_of_known_keys_an_epoch(images, masked):
    _, curve = masked
    assert [set(row) for row in curve] == [ROW] * 4
    assert [row["epoch"] for row in curve] == [1, 2, 3, 4]
    assert all(
        isinstance(v, (int, float)) and math.isfinite(v) for row in curve for v in row.values()
    )
    assert all(a["seconds"] < b["seconds"] for a, b in itertools.pairwise(curve))
    expected = [SHORT.learning_rate * rate_factor(p / 4, SHORT) for p in (1, 2, 3, 4)]
    assert [row["learning_rate"] for row in curve] == pytest.approx(expected)


def test_masks_are_off_in_the_first_half_and_on_from_then_on(masked):
    model, curve = masked
    for row in curve[:2]:
        assert row["kept"] == 1 and row["regulariser"] == 0
    for row in curve[2:]:
        assert 0 < row["kept"] < 1 and row["regulariser"] > 0
    assert [m.enabled for m in model.modules() if isinstance(m, EnergyMask)] == [True]


def test_the_loss_of_the_curve_is_the_mean_over_the_steps(images):
    settings = replace(SHORT, epochs=1, learning_rate=0.0, augment=Augment(flip=False, crop=0))
    model = network(images)
    (row,) = train(model, images, settings)
    x, labels = next(images.inputs())
    losses = []
    batches = images.batches(batch_size=32, augment=settings.augment, seed=0)
    model.train()
    for x, labels in batches.epoch(0):
        losses.append(nn.functional.cross_entropy(model(x), labels, label_smoothing=0.2))
    assert row["loss"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_what_is_measured_after_an_epoch_joins_its_row(images):
    seen = []

    def measure(model):
        seen.append(model.training)
        return {"val_accuracy": len(seen) / 10}

    curve = train(network(images), images, replace(SHORT, epochs=2), after_epoch=measure)
    assert [row["val_accuracy"] for row in curve] == [0.1, 0.2]
    assert seen == [False, False]


def test_a_trained_network_is_left_in_evaluation_mode_with_its_stem_as_it_was(images, dense):
    model, _ = dense
    assert not any(module.training for module in model.modules())
    before = weights(network(images))
    after = weights(model)
    assert torch.equal(before["stem.0.weight"], after["stem.0.weight"])
    assert not torch.equal(before["head.weight"], after["head.weight"])
    assert not torch.equal(before["group1.1.bias"], after["group1.1.bias"])


@pytest.mark.parametrize("kind", [None, "hard"])
def test_the_same_seed_gives_the_same_weights_bit_for_bit(images, dense, masked, kind):
    first, curve = masked if kind else dense
    torch.manual_seed(77)  # what ran before does not matter
    torch.rand(5)
    model = network(images, kind)
    again = train(model, images)
    assert_same(weights(model), weights(first))
    assert without_seconds(again) == without_seconds(curve)


def test_another_seed_gives_other_weights(images, dense):
    model = network(images)
    train(model, images, seed=1)
    assert not torch.equal(model.head.weight, dense[0].head.weight)


def test_masks_that_never_start_leave_the_dense_network_bit_for_bit(images, dense):
    model = network(images, "hard")
    before = weights(model)
    curve = train(model, images, replace(SHORT, mask_start=1.0))
    after = weights(model)
    of_masks = [name for name in after if "energy_mask" in name]
    assert len(of_masks) == 3
    for name in of_masks:
        assert torch.equal(after.pop(name), before[name])
    assert_same(after, weights(dense[0]))
    assert without_seconds(curve) == without_seconds(dense[1])


def test_a_wide_open_mask_without_energy_trains_the_dense_network_bit_for_bit(images, dense):
    settings = dict(lambda_unary=0.0, lambda_pair=0.0, bias_init=-1e4, train_bias=False)
    model = network(images, "hard", **settings)
    train(model, images, replace(SHORT, mask_start=0.0))
    after = {k: v for k, v in weights(model).items() if "energy_mask" not in k}
    assert_same(after, weights(dense[0]))


def test_the_energy_loss_reaches_the_mask(images):
    kept = {}
    for strength in (0.0, 3.0):
        model = network(images, "soft", lambda_unary=0.0, lambda_pair=strength)
        settings = replace(SHORT, mask_start=0.0, mask_ramp=0.0, mask_lr_factor=1.0)
        kept[strength] = train(model, images, settings)[-1]["kept"]
    assert kept[3.0] < kept[0.0] - 0.1  # the pairwise energy closes tokens like their neighbours


def test_adamw_on_a_cosine_learns_and_ends_at_rate_0(images):
    settings = replace(
        SHORT, optimiser="adamw", schedule="cosine", learning_rate=0.01, norm_lr_factor=1.0
    )
    curve = train(network(images), images, settings)
    assert curve[-1]["loss"] < curve[0]["loss"]
    assert curve[-1]["learning_rate"] == pytest.approx(0, abs=1e-9)


def test_bf16_trains_and_keeps_its_weights_in_float32(images):
    model = network(images, "hard")
    (row,) = train(model, images, replace(SHORT, epochs=1, mask_start=0.0, precision="bf16-mixed"))
    assert math.isfinite(row["loss"])
    assert {p.dtype for p in model.parameters()} == {torch.float32}


# --- moving average --------------------------------------------------------------------------------


def test_the_moving_average_of_the_weights_becomes_the_network(images):
    one_step = replace(SHORT, epochs=4, batch_size=96)  # so that every step can be looked at
    steps = []
    plain = network(images)
    train(plain, images, one_step, after_epoch=lambda m: steps.append(weights(m)) or {})
    average = {name: value.double() for name, value in steps[0].items()}
    for step in steps[1:]:
        average = {name: 0.7 * average[name] + 0.3 * step[name].double() for name in average}
    model = network(images)
    train(model, images, replace(one_step, ema_decay=0.7))
    for name, value in weights(model).items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(value.double(), average[name], atol=1e-5, rtol=1e-4)
    assert not torch.equal(model.head.weight, plain.head.weight)


# --- checkpoints -----------------------------------------------------------------------------------


def killed(model, images, settings, checkpoint, *, after):
    """Trains until the process dies in its evaluation after so many whole epochs."""
    epochs = []

    def die(model):
        epochs.append(model)
        if len(epochs) > after:
            raise Killed
        return {}

    with pytest.raises(Killed):
        train(model, images, settings, checkpoint=checkpoint, after_epoch=die)


@pytest.mark.parametrize("after", [1, 3])  # before the masks start, and while they train
def test_a_killed_run_goes_on_to_the_weights_of_an_unbroken_one(images, masked, tmp_path, after):
    file = tmp_path / "new folder" / "run.pt"
    killed(network(images, "hard"), images, SHORT, file, after=after)
    torch.manual_seed(99)  # another process
    model = network(images, "hard")
    curve = train(model, images, checkpoint=file)
    assert_same(weights(model), weights(masked[0]))
    assert without_seconds(curve) == without_seconds(masked[1])
    assert list(file.parent.iterdir()) == [file]


def test_a_killed_run_with_a_moving_average_goes_on_the_same(images, tmp_path):
    settings = replace(SHORT, ema_decay=0.8)
    unbroken = network(images, "hard")
    train(unbroken, images, settings)
    killed(network(images, "hard"), images, settings, tmp_path / "run.pt", after=3)
    model = network(images, "hard")
    train(model, images, settings, checkpoint=tmp_path / "run.pt")
    assert_same(weights(model), weights(unbroken))


def test_a_finished_run_is_taken_from_its_checkpoint(images, masked, tmp_path):
    first = train(network(images, "hard"), images, checkpoint=tmp_path / "run.pt")
    model = network(images, "hard")
    again = train(model, images, checkpoint=tmp_path / "run.pt")
    assert again == first  # its seconds too: nothing was trained
    assert_same(weights(model), weights(masked[0]))


@pytest.mark.parametrize("other", [{"learning_rate": 0.2}, {"augment": Augment(crop=1)}])
def test_a_checkpoint_of_other_settings_is_refused(images, tmp_path, other):
    file = tmp_path / "run.pt"
    train(network(images), images, replace(SHORT, epochs=1), checkpoint=file)
    with pytest.raises(ValueError, match=r"run\.pt is a checkpoint of another run: delete it"):
        train(network(images), images, replace(SHORT, epochs=1, **other), checkpoint=file)


def test_a_checkpoint_of_another_seed_is_refused(images, tmp_path):
    file = tmp_path / "run.pt"
    train(network(images), images, replace(SHORT, epochs=1), checkpoint=file)
    with pytest.raises(ValueError, match="checkpoint of another run"):
        train(network(images), images, replace(SHORT, epochs=1), checkpoint=file, seed=1)


# --- the trunk that networks share before their masks are on -----------------------------------------


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_a_network_that_branches_off_a_dense_trunk_is_the_one_trained_from_the_start(
    images, tmp_path, optimiser
):
    settings = replace(SHORT, optimiser=optimiser)
    trunk = tmp_path / "trunk.pt"
    train(network(images), images, settings, trunk=trunk)  # dense, writes it
    whole, branched = network(images, "hard"), network(images, "hard")
    long = train(whole, images, settings)
    short = train(branched, images, settings, trunk=trunk)
    assert [row.get("shared", False) for row in short] == [True, True, False, False]
    assert_same(weights(whole), weights(branched))
    shorn = [{k: v for k, v in row.items() if k != "shared"} for row in without_seconds(short)]
    assert shorn == without_seconds(long)


def test_a_masked_network_leaves_a_trunk_without_its_mask(images, tmp_path):
    trunk = tmp_path / "trunk.pt"
    train(network(images, "hard"), images, trunk=trunk)
    dense, branched = network(images), network(images)
    train(dense, images)
    train(branched, images, trunk=trunk)
    assert_same(weights(dense), weights(branched))


def test_there_is_no_trunk_where_the_mask_is_on_from_the_start_or_weights_are_averaged(
    images, tmp_path
):
    trunk = tmp_path / "trunk.pt"
    for changes in (dict(mask_start=0.0), dict(ema_decay=0.9)):
        train(network(images, "hard"), images, replace(SHORT, epochs=2, **changes), trunk=trunk)
        assert not trunk.exists()


def test_one_process_asks_nothing_of_a_cluster_around_it(monkeypatch):
    for name, value in {"JOB_ID": 1, "JOB_NAME": "x", "NTASKS": 4, "PROCID": 2}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    fabric = make_fabric(precision="32-true", device="cpu")
    assert (fabric.world_size, fabric.global_rank) == (1, 0)


# --- noise and averages --------------------------------------------------------------------------------


def test_noise_stops_when_told_and_is_back_afterwards(images, monkeypatch):
    model = network(images, "hard")
    mask, seen = inference.only_mask(model), []
    original = type(mask)._mask

    def spy(self, z):
        if self.training:
            seen.append(self.noise)
        return original(self, z)

    monkeypatch.setattr(type(mask), "_mask", spy)
    train(model, images, replace(SHORT, mask_noise_stop=0.75))  # 3 steps an epoch, masks on after 2
    assert seen == [1.0] * 3 + [0.0] * 3
    assert mask.noise == 1.0


def test_an_averaged_network_is_measured_dense_before_its_mask_is_on(images):
    on = []

    def look(model):
        on.append(inference.only_mask(model).enabled)
        return {}

    train(network(images, "hard"), images, replace(SHORT, ema_decay=0.9), after_epoch=look)
    assert on == [False, False, True, True]
