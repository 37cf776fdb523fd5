"""Networks: named stages, sizes of their maps, and a stem that whitens."""

import pytest
import torch
from torch import nn

from ersm_attach import attach_energy_mask
from ersm_core import energy_states
from ersm_lab.images import data
from ersm_lab.networks.backbones import FULL, LAPTOP, SMOKE, CifarNet, CifarNetSettings, resnet18

STAGES = ["stem", "group1", "group2", "group3"]


@pytest.fixture(scope="module")
def small():
    """A smoke network whose stem whitens textured shapes."""
    torch.manual_seed(0)
    model = CifarNet(SMOKE)
    model.whiten(inputs("train", 1_000))
    return model.eval()


def inputs(split, count):
    part = data.load("shapes", split, limit=count)
    return part.normalise(part.images)  # (N, 3, 32, 32)


def map_sizes(model, stages, images):
    """{stage: (channels, height, width)} of its output."""
    seen = {}
    for stage in stages:
        model.get_submodule(stage).register_forward_hook(
            lambda module, args, output, stage=stage: seen.update({stage: tuple(output.shape[1:])})
        )
    with torch.no_grad():
        model.eval()(images)
    return seen


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        (SMOKE, [(48, 16, 16), (16, 16, 16), (32, 8, 8), (32, 4, 4)]),
        (LAPTOP, [(48, 16, 16), (64, 16, 16), (128, 8, 8), (256, 4, 4)]),
        (FULL, [(24, 32, 32), (64, 16, 16), (256, 8, 8), (256, 4, 4)]),
    ],
    ids=["smoke", "laptop", "full"],
)
def test_each_preset_has_named_stages_of_known_sizes(settings, sizes):
    model = CifarNet(settings)
    assert [name for name, _ in model.named_children()] == [*STAGES, "head"]
    assert map_sizes(model, STAGES, torch.zeros(2, 3, 32, 32)) == dict(
        zip(STAGES, sizes, strict=True)
    )


def test_a_stem_that_learns_keeps_the_sizes_of_all_maps_and_is_not_whitened():
    torch.manual_seed(0)
    model = CifarNet(CifarNetSettings(widths=(16, 32, 32), depth=1, stem_learned=True))
    assert map_sizes(model, STAGES, torch.zeros(2, 3, 32, 32)) == dict(
        zip(STAGES, [(48, 16, 16), (16, 16, 16), (32, 8, 8), (32, 4, 4)], strict=True)
    )
    before = model.stem[0].weight.clone()
    model.whiten(inputs("train", 100))
    assert torch.equal(model.stem[0].weight, before) and model.stem[0].weight.requires_grad


def test_widths_and_depth_are_settings():
    model = CifarNet(CifarNetSettings(widths=(8, 12), depth=3))
    assert [name for name, _ in model.named_children()] == ["stem", "group1", "group2", "head"]
    for number, width in ((1, 8), (2, 12)):
        group = model.get_submodule(f"group{number}")
        assert [m.out_channels for m in group if isinstance(m, nn.Conv2d)] == [width] * 3
    assert model.features(torch.zeros(1, 3, 32, 32)).shape == (1, 12, 8, 8)


@pytest.mark.parametrize("classes", [10, 100])
def test_there_is_one_logit_a_class(classes):
    x = torch.zeros(3, 3, 32, 32)
    assert CifarNet(SMOKE, classes=classes).eval()(x).shape == (3, classes)
    assert resnet18(classes=classes).fc.out_features == classes


@pytest.mark.parametrize(("head", "pooled"), [("max", 7.0), ("mean", 2.5)])
def test_the_head_pools_scores_and_scales(head, pooled):
    model = CifarNet(CifarNetSettings(widths=(2,), depth=1, head=head, logit_scale=0.5), classes=2)
    model.head.weight.data = torch.tensor([[1.0, 0.0], [0.0, -2.0]])
    features = torch.tensor([1.0, 0.0, 2.0, 7.0]).view(1, 1, 2, 2).expand(1, 2, 2, 2)
    assert model.classify(features).tolist() == [[0.5 * pooled, -pooled]]


def test_an_unknown_head_is_an_error():
    with pytest.raises(ValueError, match='"max" or "mean", got \'sum\''):
        CifarNet(CifarNetSettings(head="sum"))


def test_the_network_is_head_after_features(small):
    x = inputs("val", 4)
    assert torch.equal(small.classify(small.features(x)), small(x))


def test_the_stem_whitens_images_it_has_not_seen(small):
    half = small.stem[0].out_channels // 2
    with torch.no_grad():
        z = small.stem[0](inputs("val", 1_000))[:, :, 1:-1, 1:-1]  # no padding in these patches
    before = z.transpose(0, 1).flatten(1).double()  # (48, patches)
    assert torch.equal(before[half:], -before[:half])
    moments = before[:8] @ before[:8].T / before.shape[1]  # (8, 8), of the leading filters
    torch.testing.assert_close(moments, torch.eye(8, dtype=torch.float64), atol=0.1, rtol=0)


def test_the_leading_filters_are_those_of_the_largest_variance(small):
    length = small.stem[0].weight[:24].flatten(1).norm(dim=1)  # 1 / standard deviation
    assert (length.diff() > 0).all()


def test_whitening_is_frozen_and_norms_have_no_scale_to_learn(small):
    frozen = {name for name, p in small.named_parameters() if not p.requires_grad}
    norms = {f"{n}.weight" for n, m in small.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert frozen == {"stem.0.weight"} | norms and len(norms) == 3
    assert small.stem[0].bias.requires_grad and not small.stem[0].bias.any()


def test_convolutions_start_as_the_identity():
    conv = CifarNet(LAPTOP).group1[0]  # 48 -> 64 channels
    x = torch.randn(1, 48, 5, 5)
    assert torch.equal(conv(x)[:, :48], x)
    assert conv.weight[48:].abs().amin((1, 2, 3)).gt(0).all()  # the rest is drawn


def test_resnet18_has_its_known_size_and_the_maps_of_a_cifar_stem():
    model = resnet18()
    assert sum(p.numel() for p in model.parameters()) == 11_173_962
    layers = ["layer1", "layer2", "layer3", "layer4"]
    sizes = [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]
    x = torch.zeros(1, 3, 32, 32)
    assert map_sizes(model, layers, x) == dict(zip(layers, sizes, strict=True))


@pytest.mark.parametrize("stage", STAGES)
def test_a_mask_can_follow_every_stage(stage):
    model = attach_energy_mask(CifarNet(SMOKE), stage).eval()
    x = torch.randn(2, 3, 32, 32)
    size = {"stem": 16, "group1": 16, "group2": 8, "group3": 4}[stage]
    assert model(x).shape == (2, 10)
    assert energy_states(model)[stage].mask.shape == (2, 1, size, size)


@pytest.mark.parametrize(("layer", "size"), [("layer1", 32), ("layer4", 4)])
def test_a_mask_can_follow_a_layer_of_resnet18(layer, size):
    model = attach_energy_mask(resnet18(), layer).eval()
    with torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))
    assert energy_states(model)[layer].mask.shape == (1, 1, size, size)
