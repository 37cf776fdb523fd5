"""Masks in networks that others wrote: a mask runs once a pass, or attaching names another layer."""

import pytest
import torch
import torchvision

from ersm_attach import attach_energy_mask, detach_energy_mask
from ersm_core import EnergyMask, energy_loss, energy_states

timm = pytest.importorskip("timm")
vision = torchvision.models


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def small(name, **settings):
    return timm.create_model(name, pretrained=False, num_classes=10, **settings)


def of_torchvision(name, **settings):
    return getattr(vision, name)(weights=None, num_classes=10, **settings)


MASKED = [  # builder, name of the network, its layers that carry a mask
    (of_torchvision, "resnet18", ["bn1", "layer2", "layer3.0", "layer3.1.conv2"]),
    (of_torchvision, "squeezenet1_1", ["features.3", "features.6.squeeze"]),
    (of_torchvision, "shufflenet_v2_x0_5", ["stage3", "stage3.1"]),
    (of_torchvision, "convnext_tiny", ["features.1", "features.1.0.block"]),
    (of_torchvision, "regnet_y_400mf", ["trunk_output.block2", "trunk_output.block1.block1-0"]),
    (of_torchvision, "efficientnet_b0", ["features.2", "features.3.0"]),
    (small, "regnety_002", ["s3.b1", "stem"]),
    (small, "resnet10t", ["layer2", "layer3.0"]),
    (small, "mobilenetv3_small_050", ["blocks.1", "blocks.2.0"]),
    (small, "convnext_atto", ["stages.1", "stages.2.blocks.0", "stem"]),
    (
        small,
        "tresnet_m",
        ["body.layer1", "body.layer2.0"],
    ),  # its first convolution sees 48 channels
    (small, "ghostnet_050", ["blocks.2", "blocks.4.0"]),
    (small, "efficientvit_b0", ["stages.0", "stages.1.blocks.0"]),
]
REFUSED = [  # builder, name of the network, layer, what is wrong with it, a layer that is named
    (of_torchvision, "resnet18", "layer3.0.relu", "runs 2 times in a pass", "layer3.0"),
    (
        of_torchvision,
        "convnext_tiny",
        "features.1.0.block.2",
        r"\(1, 8, 8, 96\) and \(1, 16",
        "block",
    ),
    (
        of_torchvision,
        "swin_t",
        "features.1",
        r"\(1, 8, 8, 96\) and \(1, 16, 16, 96\)",
        "features.0.0",
    ),
    (small, "swin_tiny_patch4_window7_224", "layers.1", r"\(1, 28, 28, 192\), which", "layers.1"),
    (small, "vit_tiny_patch16_224", "blocks.1", r"\(1, 197, 192\), which", "patch_embed"),
    (small, "regnety_002", "s2", "loops over its children", "s2.b1"),
    (small, "regnety_002", "head.fc", r"returns \(1, 10\) and \(1, 10\), which", ".fc2"),
]


def mask_of(network):
    (mask,) = (module for module in network.modules() if isinstance(module, EnergyMask))
    return mask


def output_of(network, layer, x):
    """(what the layer hands on, what the network returns)"""
    seen = []
    handle = network.get_submodule(layer).register_forward_hook(
        lambda module, args, output: seen.append(output.clone())
    )
    result = network(x)
    handle.remove()
    return seen[0], result


@pytest.mark.parametrize(
    ("builder", "name", "layers"), MASKED, ids=[f"{b.__name__}-{n}" for b, n, _ in MASKED]
)
def test_a_layer_is_masked_exactly_once(builder, name, layers):
    network = builder(name).eval()
    saved = {key: value.clone() for key, value in network.state_dict().items()}
    x = torch.randn(2, 3, 64, 64)
    for layer in layers:
        with torch.no_grad():
            dense_map, dense = output_of(network, layer, x)
            attach_energy_mask(network, layer, bias_init=1.0)
            masked_map, masked = output_of(network, layer, x)
            assert torch.equal(masked_map, dense_map * energy_states(network)[layer].mask)
            assert not torch.equal(masked, dense)
        loss = network.train()(x).square().mean() + energy_loss(network)
        (mask,) = (module for module in network.modules() if isinstance(module, EnergyMask))
        assert all(g.abs().max() > 0 for g in torch.autograd.grad(loss, [mask.weight, mask.bias]))
        detach_energy_mask(network).load_state_dict(saved)  # names as before, statistics too
        with torch.no_grad():
            assert torch.equal(network.eval()(x), dense)


@pytest.mark.parametrize(
    ("builder", "name", "layer", "wrong", "other"),
    REFUSED,
    ids=[f"{row[0].__name__}-{row[1]}-{row[2]}" for row in REFUSED],
)
def test_a_layer_that_cannot_be_masked_is_refused_with_one_that_can(
    builder, name, layer, wrong, other
):
    network = builder(name)
    before = list(network.state_dict())
    for channels in (None, 8):
        with pytest.raises(ValueError, match=rf"layer '{layer}' .*{wrong}.* such as .*{other}"):
            attach_energy_mask(network, layer, channels=channels)
    assert list(network.state_dict()) == before
    with pytest.raises(ValueError, match="no attached energy mask"):
        detach_energy_mask(network)
