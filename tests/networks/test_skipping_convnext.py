"""ConvNeXts that skip dropped tokens: the network they were, and exact where tokens are dropped."""

import copy

import pytest
import timm
import torch
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from ersm_core import energy_loss
from ersm_lab.evaluation.inference import evaluating, only_mask, replaced_mask
from ersm_lab.networks.skipping_convnext import skip_tokens

TORCHVISION, TIMM = "features.3.1", "stages.1.blocks.1"


def of_torchvision():
    stages = [CNBlockConfig(8, 16, 2), CNBlockConfig(16, 24, 4), CNBlockConfig(24, None, 2)]
    return spread(ConvNeXt(stages, num_classes=5))


def of_timm(conv_mlp=False):
    shape = {"depths": (2, 4, 2, 1), "dims": (8, 16, 24, 24), "conv_mlp": conv_mlp}
    model = timm.models.ConvNeXt(num_classes=5, **shape)
    return spread(model)


def spread(model):
    """Layer scales start at 1e-6, at which blocks hardly do anything."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith(("gamma", "layer_scale")):
            nn.init.normal_(parameter, 0.5, 0.2)
    return model.eval()


MODELS = {
    "torchvision": (of_torchvision, TORCHVISION),
    "timm": (of_timm, TIMM),
    "timm, 1 x 1 convolutions": (lambda: of_timm(conv_mlp=True), TIMM),
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize(("make", "after"), MODELS.values(), ids=MODELS.keys())
def test_with_all_tokens_kept_or_the_mask_off_it_is_the_network_it_was(make, after):
    plain, x = make(), torch.randn(2, 3, 64, 64)
    model = skip_tokens(copy.deepcopy(plain), after)
    with evaluating(model):
        expected = plain(x)
        with replaced_mask(only_mask(model), torch.ones_like):
            torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
        only_mask(model).bias.data.fill_(float("-inf"))
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
        only_mask(model).enabled = False
        assert torch.equal(model(x), expected)


@pytest.mark.parametrize(("make", "after"), MODELS.values(), ids=MODELS.keys())
def test_skipping_gives_what_computing_all_and_multiplying_gives(make, after):
    model, x = skip_tokens(make(), after), torch.randn(2, 3, 64, 64)
    only_mask(model).weight.data.normal_(std=3.0)
    with evaluating(model):
        sparse = model(x)
    mask = only_mask(model).state.mask
    assert 0 < mask.mean() < 1
    dense = model(x)  # with gradients the mask learns, and all tokens are computed
    torch.testing.assert_close(dense.detach(), sparse, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("make", "after"), MODELS.values(), ids=MODELS.keys())
def test_behind_the_mask_only_kept_tokens_are_computed(make, after):
    model, x = skip_tokens(make(), after), torch.randn(2, 3, 64, 64)
    only_mask(model).weight.data.normal_(std=3.0)
    computed = []
    names = [n for n, m in model.named_modules() if type(m).__name__ == "SkippingBlock"]
    for name in names:
        part = model.get_submodule(name).token_part
        norm = part.block.norm if hasattr(part.block, "norm") else part.block.block[2]
        norm.register_forward_hook(lambda module, args, output: computed.append(len(args[0])))
    with evaluating(model):
        model(x)
    m = only_mask(model).state.mask  # (B, 1, H, W)
    coarse = torch.nn.functional.max_pool2d(m, 2)
    assert computed[0] == m.sum() and coarse.sum() in computed
    assert computed[0] < m.numel()


def test_the_mask_trains_and_its_energy_counts():
    model, x = skip_tokens(of_timm().train(), TIMM), torch.randn(2, 3, 64, 64)
    (model(x).square().mean() + energy_loss(model)).backward()
    mask = only_mask(model)
    assert mask.weight.grad.abs().sum() > 0 and mask.bias.grad.abs() > 0


def test_a_copy_has_a_mask_of_its_own():
    model, x = skip_tokens(of_timm(), TIMM), torch.randn(1, 3, 64, 64)
    model.train()(x).sum().backward()
    other = copy.deepcopy(model)
    only_mask(other).bias.data.fill_(float("inf"))
    with evaluating(model), evaluating(other):
        other(x)
        model(x)
        assert only_mask(other).state.mask.sum() == 0 and only_mask(model).state.mask.sum() > 0
        assert not torch.equal(model(x), other(x))


@pytest.mark.parametrize(
    ("make", "after", "message"),
    [
        (of_timm, "stages.3.blocks.0", "choose one of"),
        (of_timm, "stages.1", "choose one of"),
        (lambda: nn.Sequential(nn.Conv2d(3, 3, 3)), "0", "which this is not"),
        (lambda: timm.models.ConvNeXt(dims=(8, 8, 8, 8), use_grn=True), TIMM, "V2"),
        (lambda: skip_tokens(of_timm(), TIMM), TIMM, "make the network anew"),
    ],
)
def test_what_cannot_skip_is_refused_with_what_can(make, after, message):
    with pytest.raises(ValueError, match=message):
        skip_tokens(make(), after)
