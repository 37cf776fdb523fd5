"""Normalisation after the mask: what each kind undoes, its closed form, and its runs."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from ersm_lab.evaluation import inference
from ersm_lab.images import data
from ersm_lab.networks.backbones import CifarNet, CifarNetSettings
from ersm_lab.networks.norms import KINDS, ChannelBias, StandardisedWeight, replace_norms
from ersm_lab.results import records
from ersm_lab.training import runs
from ersm_lab.training.build import build
from ersm_lab.training.config import Config, Experiment, MaskPlace
from ersm_lab.training.loop import TrainSettings, make_optimiser

NET = CifarNetSettings(widths=(8, 12, 8), depth=1, stem_channels=16)
SHORT = TrainSettings(
    epochs=2, batch_size=16, learning_rate=0.1, precision="32-true", mask_start=0.5
)
HALF = MaskPlace(
    layer="group1", preset="stable", settings=dict(dim=None, bias_init=0.0)
)  # drops from the start
PLACE = dict(backbone=NET, train=SHORT, train_images=70, test_images=50)  # 2 x 4 steps

pytestmark = pytest.mark.usefixtures("on_the_cpu")


def tiny(norm="weights", **changes):
    config = Config(norm=norm, after="group1", **(PLACE | dict(mask=HALF) | changes))
    return Experiment(method=f"{norm}-norm", dataset="shapes", scale="smoke", seed=0, config=config)


def built(norm="weights", **changes):
    return build(tiny(norm, **changes), classes=10)


@pytest.fixture(scope="module")
def record(home):
    """The record of one tiny run."""
    return runs.run(tiny(), root=home, progress=False)


# --- what a normalisation undoes -------------------------------------------------------------------


def group(kind, *, kernel=1):
    """A later group of a network with that normalisation, in training mode, in float64."""
    torch.manual_seed(0)
    model = replace_norms(CifarNet(NET), kind, after="group1")
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
    [
        ("batch", {"batch"}),
        ("image", {"batch", "image"}),
        ("token", {"batch", "image", "token"}),
        ("weights", set()),
    ],
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


def test_standardised_weights_are_their_closed_form():
    weight, standardise = torch.randn(5, 3, 2, 2, dtype=torch.float64) + 0.7, StandardisedWeight()
    own = standardise(weight)
    for out, w in zip(own, weight, strict=True):
        expected = (w - w.mean()) / (w.std(correction=0) * w.numel() ** 0.5)
        gain = (2 / (1 - 1 / torch.pi)) ** 0.5
        torch.testing.assert_close(out, gain * expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(standardise(3 * weight), own, rtol=1e-4, atol=1e-8)
    assert torch.autograd.gradcheck(standardise, (weight[:2].requires_grad_(),))
    assert not standardise(torch.ones(1, 3, 2, 2)).any()  # a constant filter: no division by zero


def test_standardised_weights_keep_the_variance_of_a_map():
    torch.manual_seed(0)
    x = torch.randn(8, 64, 16, 16).relu()
    for _ in range(6):
        conv = nn.Conv2d(64, 64, 3, padding=1, padding_mode="circular", bias=False)
        conv.weight.data = StandardisedWeight()(conv.weight.data)
        y = conv(x)  # (8, 64, 16, 16)
        x = y.relu()
    assert 0.7 < y.std() < 1.4


def test_a_bias_without_normalisation_is_trained_like_a_weight():
    layer = ChannelBias(3)
    layer.bias.data = torch.tensor([1.0, -2.0, 0.5])
    assert torch.equal(layer(torch.zeros(1, 3, 1, 1)).flatten(), layer.bias)
    rates = {group["lr"] for group in make_optimiser(layer, SHORT).param_groups}
    assert rates == {SHORT.learning_rate}


# --- networks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [kind for kind in KINDS if kind != "batch"])
def test_only_groups_after_the_mask_change_and_weights_start_the_same(norm):
    own = built(norm)
    plain = build(replace(tiny(), config=Config(**PLACE, mask=HALF)), classes=10)
    assert type(own.group1[1]) is nn.BatchNorm2d
    assert type(own.group2[2]) is type(own.group3[2]) is not nn.BatchNorm2d
    names = {
        name.replace("parametrizations.weight.original", "weight"): name
        for name in own.state_dict()
    }
    trained = {name: p for name, p in plain.named_parameters() if p.requires_grad}
    mine = dict(own.named_parameters())
    for name, p in trained.items():
        assert torch.equal(mine[names[name]], p) and mine[names[name]].requires_grad
    assert len(trained) == sum(p.requires_grad for p in own.parameters())


def test_batch_normalisation_is_the_network_of_the_other_runs(tmp_path):
    plain = replace(tiny(), method="plain", config=Config(**PLACE, mask=HALF))
    own = runs.run(tiny("batch"), root=tmp_path, progress=False)
    other = runs.run(plain, root=tmp_path, progress=False)
    assert own["metrics"] == other["metrics"] and own["answers"] == other["answers"]


@pytest.mark.parametrize("norm", KINDS)
def test_until_the_mask_is_on_training_is_that_of_its_dense_network(tmp_path, norm):
    curves = [
        runs.run(each, root=tmp_path, progress=False)["curve"]
        for each in (tiny(norm), replace(tiny(norm, mask=None), method="dense"))
    ]
    assert curves[0][0]["loss"] == curves[1][0]["loss"]
    assert curves[0][1]["loss"] != curves[1][1]["loss"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "layer"}, "one of batch, image, token, weights, got 'layer'"),
        ({"after": "group3"}, "no group comes after 'group3': choose one of group1 to group2"),
        ({"after": "stem"}, "no group comes after 'stem'"),
        ({"after": "group2"}, "sits after group1 and normalisation is replaced after group2"),
    ],
)
def test_bad_settings_are_an_error_that_says_what_to_do(settings, message):
    with pytest.raises(ValueError, match=message):
        Config(**(PLACE | dict(norm="image", after="group1", mask=HALF) | settings))


# --- runs ------------------------------------------------------------------------------------------


def test_a_run_leaves_a_record_and_the_network_that_was_scored(home, record):
    assert records.read(tiny().name, root=home) == json.loads(json.dumps(record))
    assert "ersm_lab/networks/norms.py" in record["sources"]
    model = runs.restore(tiny(), record, root=home)
    assert not any(module.training for module in model.modules())
    metrics = inference.evaluate(model, data.load("shapes", "test", limit=50))
    assert metrics == {k: v for k, v in record["metrics"].items() if not k.startswith("val")}


def test_a_killed_run_goes_on_and_ends_the_same(killed_once, record):
    again = killed_once(runs.run, tiny())
    assert again["metrics"] == record["metrics"]
    assert again["checkpoint"] == record["checkpoint"]
