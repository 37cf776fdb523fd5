"""Normalisation after the mask: what each kind undoes, when "frozen" is frozen, and its runs."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import Killed
from torch import nn

from ersm_lab import data, evaluation, normalisation, records, runs
from ersm_lab.backbones import CifarNet, CifarNetSettings
from ersm_lab.normalisation import KINDS, FreezingBatchNorm2d, NormConfig, replace_norms
from ersm_lab.runs import Experiment, MaskPlace, RunConfig
from ersm_lab.training import TrainSettings

NET = CifarNetSettings(widths=(8, 12, 8), depth=1, stem_channels=16)
SHORT = TrainSettings(
    epochs=2, batch_size=16, learning_rate=0.1, precision="32-true", mask_start=0.375
)
HALF = MaskPlace(
    layer="group1", preset="stable", settings=dict(dim=None, bias_init=0.0)
)  # drops from the start
PLACE = dict(backbone=NET, train=SHORT, train_images=70, test_images=50)  # 2 x 4 steps

pytestmark = pytest.mark.usefixtures("on_the_cpu")


def tiny(norm="frozen", **changes):
    config = NormConfig(norm=norm, **(PLACE | dict(mask=HALF) | changes))
    return Experiment(method=f"{norm}-norm", dataset="shapes", scale="smoke", seed=0, config=config)


def built(norm="frozen", **changes):
    return normalisation.build(tiny(norm, **changes), classes=10)


@pytest.fixture(scope="module")
def record(home):
    """The record of one tiny run."""
    return normalisation.run(tiny(), root=home, progress=False)


# --- what a normalisation undoes -------------------------------------------------------------------


def group(kind, *, kernel=1):
    """A later group of a network with that normalisation, in training mode, in float64."""
    torch.manual_seed(0)
    model = replace_norms(CifarNet(NET), kind, after="group1", steps=0)
    stage = model.group2.double().train()
    conv = stage[0]
    stage[0] = nn.Conv2d(
        conv.in_channels, conv.out_channels, kernel, padding=kernel // 2, bias=False
    ).double()
    stage[1] = nn.Identity()  # pooling
    for layer in stage:
        if hasattr(layer, "eps"):
            layer.eps = 1e-12
    return stage


def tokens():
    torch.manual_seed(1)
    return torch.randn(3, 8, 4, 4, dtype=torch.float64)


@pytest.mark.parametrize(
    ("kind", "undone"),
    [("image", {"batch", "image"}), ("token", {"batch", "image", "token"}), ("frozen", set())],
)
def test_a_kind_undoes_the_factors_it_is_said_to(kind, undone):
    stage, x = group(kind), tokens()
    factors = {
        "batch": torch.tensor(0.01, dtype=torch.float64),
        "image": torch.tensor([0.01, 0.5, 2.0], dtype=torch.float64)[:, None, None, None],
        "token": torch.rand(3, 1, 4, 4, dtype=torch.float64) + 0.1,
    }
    for name, s in factors.items():
        same = torch.allclose(stage(s * x), stage(x), rtol=1e-6, atol=1e-8)
        assert same == (name in undone), name


def test_a_convolution_that_mixes_tokens_hides_their_factors_from_token_normalisation():
    stage, x = group("token", kernel=3), tokens()
    s = torch.rand(3, 1, 4, 4, dtype=torch.float64) + 0.1
    assert not torch.allclose(stage(s * x), stage(x), rtol=0.1)
    assert torch.allclose(stage(0.01 * x), stage(x), rtol=1e-6)


@pytest.mark.parametrize(("kind", "axes"), [("image", (1, 2, 3)), ("token", (1,))])
def test_layer_normalisation_is_its_closed_form(kind, axes):
    layer = replace_norms(CifarNet(NET), kind, after="group2").group3[2].double()
    layer.bias.data = torch.linspace(-1, 1, 8, dtype=torch.float64)
    x = torch.randn(3, 8, 4, 4, dtype=torch.float64)
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    expected = (x - mean) / (variance + 1e-5).sqrt() + layer.bias.detach()[:, None, None]
    torch.testing.assert_close(layer(x), expected)


def test_statistics_move_until_they_are_frozen_and_not_after():
    torch.manual_seed(0)
    own = FreezingBatchNorm2d(4, steps=2, momentum=0.4)
    plain = nn.BatchNorm2d(4, momentum=0.4)
    batches = torch.randn(4, 6, 4, 3, 3).unbind()
    for x in batches[:2]:
        assert torch.equal(own(x), plain(x))
    for x in batches[2:]:
        assert torch.equal(own(x), plain.eval()(x))
        assert torch.equal(own.running_mean, plain.running_mean)
    assert torch.equal(own.eval()(batches[0]), plain(batches[0]))
    assert int(own.num_batches_tracked) == 2


def test_gradients_pass_frozen_statistics():
    layer = FreezingBatchNorm2d(2, steps=0).double()
    layer.running_mean += 0.5
    layer.running_var *= 3
    x = torch.randn(2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))


# --- networks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", KINDS)
def test_only_groups_after_the_mask_change_and_weights_start_the_same(norm):
    own = built(norm)
    plain = runs.build(replace(tiny(), config=RunConfig(**PLACE, mask=HALF)), classes=10)
    kinds = {name: type(m) for name, m in own.named_modules() if "Norm" in type(m).__name__}
    assert kinds["group1.1"] is nn.BatchNorm2d
    assert kinds["group2.2"] is kinds["group3.2"] is not nn.BatchNorm2d and len(kinds) == 3
    for (name, p), (other, q) in zip(own.named_parameters(), plain.named_parameters(), strict=True):
        assert name == other and torch.equal(p, q) and p.requires_grad == q.requires_grad


def test_until_statistics_are_frozen_training_is_that_of_batch_normalisation(tmp_path):
    late = tiny(train=replace(SHORT, mask_start=0.5))  # after the first of two epochs
    dense = replace(late, method="dense", config=RunConfig(**PLACE))
    own = normalisation.run(late, root=tmp_path, progress=False)["curve"]
    other = runs.run(dense, root=tmp_path, progress=False)["curve"]
    assert own[0]["loss"] == other[0]["loss"] and own[1]["loss"] != other[1]["loss"]


def test_statistics_freeze_at_the_step_at_which_the_mask_is_switched_on(monkeypatch):
    model, seen = built(), []
    model.group1.energy_mask.register_forward_pre_hook(
        lambda mask, _: seen.append((mask.enabled, int(model.group2[2].num_batches_tracked)))
    )
    normalisation.runs.train(
        model, data.load("shapes", "train", limit=70), SHORT, seed=0, progress=False
    )
    tracked = [count for enabled, count in seen if enabled]
    assert [enabled for enabled, _ in seen] == [False] * 3 + [True] * 5
    assert set(tracked) == {3} == {tiny().config.frozen_after}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "batch"}, "one of image, token, frozen, got 'batch'"),
        ({"after": "group3"}, "no group comes after 'group3': choose one of group1 to group2"),
        ({"after": "stem"}, "no group comes after 'stem'"),
        ({"after": "group2"}, "sits after group1 and normalisation is replaced after group2"),
    ],
)
def test_bad_settings_are_an_error_that_says_what_to_do(settings, message):
    with pytest.raises(ValueError, match=message):
        NormConfig(**(PLACE | dict(norm="image", mask=HALF) | settings))


# --- runs ------------------------------------------------------------------------------------------


def test_a_run_leaves_a_record_and_the_network_that_was_scored(home, record):
    assert records.read(tiny().name, root=home) == json.loads(json.dumps(record))
    names = {path.rpartition("/")[2] for path in record["sources"]}
    own = {"normalisation.py", "shapes.py", "ersm_core.py"}
    assert names == own | {f"{name}.py" for name in runs.SOURCES}
    model = normalisation.restore(tiny(), record, root=home)
    assert not any(module.training for module in model.modules())
    metrics = evaluation.evaluate(model, data.load("shapes", "test", limit=50))
    assert metrics == {k: v for k, v in record["metrics"].items() if not k.startswith("val")}


def test_a_dense_network_with_another_normalisation_needs_no_core(home):
    names = {path.name for path in normalisation.sources(tiny("token", mask=None))}
    assert "normalisation.py" in names and "ersm_core.py" not in names


def test_a_killed_run_goes_on_and_ends_the_same(tmp_path, record, monkeypatch):
    with monkeypatch.context() as patch:
        seen = []

        def die(model, validation):
            seen.append(model)
            if len(seen) == 2:
                raise Killed
            return {"val_accuracy": 0.125}

        patch.setattr(evaluation, "progress", die)
        with pytest.raises(Killed):
            normalisation.run(tiny(), root=tmp_path, progress=False)
    again = normalisation.run(tiny(), root=tmp_path, progress=False)
    assert again["curve"][0]["val_accuracy"] == 0.125  # from before the kill
    assert again["metrics"] == record["metrics"]
    assert again["checkpoint"] == record["checkpoint"]
