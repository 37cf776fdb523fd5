"""What dropped tokens leave behind: closed forms, the networks that have it, and their records."""

import functools
import json
from dataclasses import replace

import pytest
import torch

from ersm_core import EnergyMask, energy_loss
from ersm_lab.evaluation import inference
from ersm_lab.evaluation.inference import only_mask, replaced_mask
from ersm_lab.images import data
from ersm_lab.networks.backbones import CifarNetSettings
from ersm_lab.networks.filled_mask import KINDS, FilledMask, fill
from ersm_lab.results import records
from ersm_lab.training import runs
from ersm_lab.training.build import build
from ersm_lab.training.config import Config, Experiment, MaskPlace
from ersm_lab.training.loop import TrainSettings, make_optimiser

NET = CifarNetSettings(widths=(8, 12), depth=1, stem_channels=16)
SHORT = TrainSettings(
    epochs=2, batch_size=32, learning_rate=0.1, mask_start=0.5, precision="32-true"
)
HALF = MaskPlace(
    layer="group1", preset="stable", settings={"bias_init": 0.0}
)  # drops from the start
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)

pytestmark = pytest.mark.usefixtures("on_the_cpu")


@pytest.fixture(scope="module")
def records_of(home):
    """kind -> the record of one tiny run, made when it is first asked for."""
    return functools.cache(lambda kind: runs.run(tiny(kind), root=home, progress=False))


def tiny(kind, **changes):
    """A small experiment; kind None is plain ERSM."""
    parts = dict(backbone=NET, train=SHORT, train_images=64, test_images=50)
    parts |= dict(mask=HALF) | changes
    config = Config(**parts, dropped=kind)
    return Experiment(
        method=f"filled-{kind}", dataset="shapes", scale="smoke", seed=0, config=config
    )


def made(kind, **settings):
    """A mask that keeps about half of the tokens, and tokens."""
    torch.manual_seed(0)
    settings = dict(dropped=kind, dim=None, bias_init=0.0) | settings
    return FilledMask.stable(4, **settings), torch.randn(3, 4, 5, 5)


def images(count=50):
    return data.load("shapes", "test", limit=count)


# --- closed forms ----------------------------------------------------------------------------------

X = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]], [[0.0, -4.0], [8.0, 1.0]]]])  # (1, 2, 2, 2)
M = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])  # (1, 1, 2, 2)


def test_a_dropped_token_becomes_the_mean_of_the_kept():
    found = fill(X * M, M, "mean")
    assert torch.equal(found, torch.tensor([[[[1.0, 2.0], [3.0, 2.0]], [[0.0, 4.0], [8.0, 4.0]]]]))


def test_a_dropped_token_becomes_the_learned_one():
    found = fill(X * M, M, "token", token=torch.tensor([7.0, -1.0]))
    assert torch.equal(
        found, torch.tensor([[[[1.0, 7.0], [3.0, 7.0]], [[0.0, -1.0], [8.0, -1.0]]]])
    )


def test_kept_tokens_are_scaled_by_the_share_that_is_kept():
    assert torch.equal(fill(X * M, M, "normalised"), 2 * X * M)


def test_a_uniform_mask_is_scaled_away():
    m = torch.full_like(M, 0.25)
    assert torch.equal(fill(X * m, m, "normalised"), X)
    mean = X.mean((2, 3), keepdim=True)
    torch.testing.assert_close(fill(X * m, m, "mean"), 0.25 * X + 0.75 * mean)


def test_images_of_a_batch_are_filled_each_by_its_own_tokens():
    x, m = torch.cat([X, 3 * X]), torch.cat([M, 1 - M])
    for kind in ("mean", "normalised"):
        whole = fill(x * m, m, kind)
        assert torch.equal(whole[:1], fill(X * M, M, kind))
        assert torch.equal(whole[1:], fill(3 * X * (1 - M), 1 - M, kind))


def test_a_map_that_keeps_nothing_stays_finite_and_so_do_its_gradients():
    for kind in ("mean", "normalised"):
        m = torch.zeros_like(M, requires_grad=True)
        found = fill(X * m, m, kind)
        assert not found.any()
        found.square().sum().add(found.sum()).backward()
        assert m.grad.isfinite().all() and m.grad.any()


def test_no_token_grows_more_than_tenfold():
    m = torch.zeros(1, 1, 8, 8)
    m[..., 0, 0] = 1  # one of 64
    x = torch.ones(1, 2, 8, 8)
    assert fill(x * m, m, "normalised").max().item() == pytest.approx(10)


def test_half_precision_is_summed_in_full():
    x, m = torch.ones(1, 2, 40, 40, dtype=torch.bfloat16), torch.ones(1, 1, 40, 40)
    m[..., 0] = 0
    m = m.bfloat16()
    found = fill(x * m, m, "mean")
    assert found.dtype == torch.bfloat16 and torch.equal(found, x)


@EVERY_KIND
def test_gradients_of_what_is_put_in_are_those_of_the_formula(kind):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    m = (0.2 + 0.6 * torch.rand(2, 1, 4, 4, dtype=torch.float64)).requires_grad_()
    token = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *a: fill(a[0] * a[1], a[1], kind, token=a[2]), (x, m, token)
    )


# --- the layer -------------------------------------------------------------------------------------


@EVERY_KIND
def test_the_layer_fills_by_its_own_mask(kind):
    mask, x = made(kind)
    if kind == "token":
        mask.token.data.normal_()
    found, m = mask(x), mask.state.mask
    assert 0.2 < m.mean() < 0.8 and set(m.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(found, fill(x * m, m, kind, token=mask.token))
    assert not torch.equal(found, x * m) and found.shape == x.shape


@EVERY_KIND
def test_energies_are_those_of_the_plain_mask(kind):
    mask, x = made(kind)
    plain = EnergyMask.stable(4, dim=None, bias_init=0.0)
    plain.load_state_dict(mask.state_dict(), strict=False)
    mask(x), plain(x)
    for own, expected in zip(mask.state, plain.state, strict=True):
        torch.testing.assert_close(own, expected)
    torch.testing.assert_close(mask.loss(), plain.loss())
    for own, expected in zip(mask.compute(x), plain.state, strict=True):
        torch.testing.assert_close(own, expected)


@EVERY_KIND
def test_a_mask_that_keeps_all_or_is_off_is_the_identity_bit_for_bit(kind):
    mask, x = made(kind, bias_init=float("-inf"))
    if kind == "token":
        mask.token.data.normal_()
    assert torch.equal(mask(x), x) and mask.state.mask.all()
    mask.enabled = False
    assert mask(x) is x and mask.state is None


@EVERY_KIND
def test_a_replaced_mask_is_filled_too(kind):
    mask, x = made(kind)
    if kind == "token":
        mask.token.data.normal_()
    m = torch.full((3, 1, 5, 5), 0.5)
    with replaced_mask(mask, lambda own: m):
        assert torch.equal(mask(x), fill(x * m, m, kind, token=mask.token))
    with replaced_mask(mask, torch.ones_like):
        assert torch.equal(mask(x), x)


@EVERY_KIND
def test_patches_are_filled_position_by_position(kind):
    mask, x = made(kind, patch_size=2)
    x = torch.randn(2, 4, 6, 6)
    found = mask(x)
    m = mask.state.mask.repeat_interleave(2, 2).repeat_interleave(2, 3)  # (2, 1, 6, 6)
    assert mask.state.mask.shape == (2, 1, 3, 3)
    assert torch.equal(found, fill(x * m, m, kind, token=mask.token))


@EVERY_KIND
def test_gradients_reach_the_mask_through_what_is_put_in(kind):
    mask, x = made(kind)
    if kind == "token":
        mask.token.data.normal_()
    g = torch.randn_like(x)
    z = mask.compute(x).logit.detach()
    bias = torch.zeros((), requires_grad=True)
    soft = torch.sigmoid(-(z + bias) / mask.temperature)
    m = (z < 0).float() + soft - soft.detach()  # 0 or 1, with the gradient of soft
    (expected,) = torch.autograd.grad((fill(x * m, m, kind, token=mask.token) * g).sum(), bias)
    m = (z < 0).float() + torch.sigmoid(-(z + bias) / mask.temperature) - soft.detach()
    (bare,) = torch.autograd.grad((x * m * g).sum(), bias)
    (mask(x) * g).sum().backward()
    torch.testing.assert_close(mask.bias.grad, expected)
    assert not torch.allclose(mask.bias.grad, bare)


def test_the_token_is_learned_at_the_rate_of_the_mask():
    model = build(tiny("token"), classes=10)
    token = only_mask(model).token
    optimiser = make_optimiser(model, SHORT)
    (group,) = [g for g in optimiser.param_groups if any(p is token for p in g["params"])]
    assert group["lr"] == SHORT.learning_rate * SHORT.mask_lr_factor
    assert group["weight_decay"] == SHORT.mask_weight_decay
    model(torch.randn(8, 3, 32, 32)).square().sum().backward()
    assert token.grad.any()


def test_a_map_that_does_not_fit_is_explained_as_for_any_energy_mask():
    mask, x = made("mean")
    with pytest.raises(ValueError, match="made for 4 channels, got a map of 5"):
        mask(torch.cat([x, x[:, :1]], 1))
    with pytest.raises(ValueError, match="expects a feature map"):
        mask(x[0])


# --- networks --------------------------------------------------------------------------------------


@EVERY_KIND
def test_the_network_starts_as_the_ersm_network_of_its_seed(kind):
    own = build(tiny(kind), classes=10).state_dict()
    expected = build(tiny(None), classes=10).state_dict()
    assert set(own) - set(expected) == ({"group1.energy_mask.token"} if kind == "token" else set())
    assert all(torch.equal(own[name], value) for name, value in expected.items())
    assert not own.get("group1.energy_mask.token", torch.zeros(1)).any()


@EVERY_KIND
def test_with_its_mask_off_the_network_is_the_dense_one_bit_for_bit(kind):
    own = build(tiny(kind), classes=10)
    dense = build(tiny(None, mask=None), classes=10)
    masked = inference.predict(own, images())
    only_mask(own).enabled = False
    assert torch.equal(inference.predict(own, images()), inference.predict(dense, images()))
    assert not torch.equal(masked, inference.predict(dense, images()))


def test_settings_presets_and_several_places_reach_the_masks():
    place = MaskPlace(layer=("group1", "group2"), settings={"lambda_pair": 0.25, "hard": True})
    model = build(tiny("mean", mask=place), classes=10)
    plain = build(tiny(None, mask=place), classes=10)
    masks = inference.energy_masks(model)
    assert list(masks) == ["group1", "group2"]
    for layer, own in masks.items():
        assert isinstance(own, FilledMask) and own.lambda_pair == 0.25 and own.hard
        assert torch.equal(own.weight, inference.energy_masks(plain)[layer].weight)
    model(torch.randn(2, 3, 32, 32))
    assert energy_loss(model) > 0


def test_an_unknown_kind_or_a_control_is_an_error_that_says_what_to_do():
    with pytest.raises(ValueError, match="one of mean, token, normalised, got 'zero'"):
        tiny("zero")
    with pytest.raises(ValueError, match="one of mean, token, normalised, got 'noise'"):
        fill(X, M, "noise")
    with pytest.raises(ValueError, match="not the control 'random': choose the preset"):
        tiny("mean", mask=MaskPlace(layer="group1", preset="random", settings={"keep": 0.5}))
    with pytest.raises(ValueError, match=r"'group1\.0' is a Conv2d, not an nn\.Sequential"):
        build(tiny("mean", mask=MaskPlace(layer="group1.0")), classes=10)


# --- runs ------------------------------------------------------------------------------------------


@EVERY_KIND
def test_a_run_leaves_a_record_and_the_network_that_was_scored(kind, home, records_of):
    record = records_of(kind)
    assert records.read(tiny(kind).name, root=home) == json.loads(json.dumps(record))
    assert record["config"]["dropped"] == kind
    names = {path.rpartition("/")[2] for path in record["sources"]}
    assert {"filled_mask.py", "ersm_core.py", "loop.py", "shapes.py"} <= names
    model = runs.restore(tiny(kind), record, root=home)
    assert not any(module.training for module in model.modules())
    metrics = inference.evaluate(model, images())
    assert metrics == {k: v for k, v in record["metrics"].items() if not k.startswith("val")}
    if kind == "token":
        assert only_mask(model).token.any()  # it has learned


def test_before_the_mask_is_on_training_is_that_of_the_dense_network(tmp_path, records_of):
    dense = runs.run(tiny(None, mask=None), root=tmp_path, progress=False)
    for kind in KINDS:
        first, second = records_of(kind)["curve"]
        assert first["loss"] == dense["curve"][0]["loss"] and first["kept"] == 1.0
        assert second["loss"] != dense["curve"][1]["loss"] and second["regulariser"] > 0


def test_a_killed_run_goes_on_and_ends_the_same(tmp_path, killed_once, records_of):
    again = killed_once(runs.run, tiny("token"))
    assert again["metrics"] == records_of("token")["metrics"]
    assert again["checkpoint"] == records_of("token")["checkpoint"]
    other = replace(tiny("token"), seed=1)
    assert runs.run(other, root=tmp_path, progress=False)["checkpoint"] != again["checkpoint"]
