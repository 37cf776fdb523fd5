"""What normalises a map after the mask: where can a soft mask live?

A convolution and an activation without bias, applied to s x with s > 0, give s times what they give for
x. A normalisation that follows divides by statistics of its own input, and s is gone. Which s it takes
away depends on where the statistics come from:

    batch    batch normalisation: a channel's, over the images and positions of a batch (`backbones`).
             Any factor that all tokens of the batch share is undone.
    image    layer normalisation over all channels and positions of one image (Ba et al., 2016,
             arXiv:1607.06450). Any factor that all tokens of an image share is undone.
    token    layer normalisation over the channels of one position (Liu et al., 2022, arXiv:2201.03545).
             Undoes the factor of each position, but for what the convolution before it mixes.
    weights  no statistics of the map: the weights are normalised instead, to zero mean and the variance
             that keeps a map's, filter by filter (Scaled Weight Standardization, Brock et al., 2021,
             arXiv:2101.08692). Nothing is undone.

The kind replaces the normalisation of all groups that come after the mask; the groups up to it keep
theirs, in the dense network too. Scales are fixed and biases learned, as everywhere in `CifarNet`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torchvision.models.convnext import LayerNorm2d

from ersm_lab.common import checks
from ersm_lab.networks.backbones import CifarNet

KINDS = ("batch", "image", "token", "weights")
RELU_GAIN = math.sqrt(2 / (1 - 1 / math.pi))  # 1 / std of relu(z) for a standard normal z
EPS = 1e-5


class StandardisedWeight(nn.Module):
    """Scaled Weight Standardization (Brock et al., 2021) of a convolution, as a parametrisation.

    w_hat = RELU_GAIN (w - mean) / (std sqrt(N)), mean and std over the N inputs of a filter.

    Shape:
        w (D, C, k, k) -> (D, C, k, k).
    """

    def forward(self, w: Tensor) -> Tensor:
        variance, mean = torch.var_mean(w, (1, 2, 3), correction=0, keepdim=True)  # (D, 1, 1, 1)
        inputs = w[0].numel()  # N
        return RELU_GAIN * (w - mean) / ((variance + EPS / inputs) * inputs).sqrt()


class ChannelBias(nn.Module):
    """A learned bias for each channel, trained like a weight: what nothing normalises afterwards does
    not stand a normalisation layer's learning rate.

    Shape:
        x (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int) -> None:
        checks.whole("channels", channels, most=checks.MOST)
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias.to(x.dtype)[:, None, None]


def replace_norms(model: CifarNet, kind: str, *, after: str) -> CifarNet:
    """Replace batch normalisation in all groups after one, in place; returns the model.

    Args:
        model: whose weights and biases stay as they are.
        kind: of `KINDS`.
        after: name of a group that others come after.

    Raises:
        ValueError: an unknown kind, or no group after this one.
    """
    checks.a("model", model, CifarNet)
    checks.choice("kind", kind, KINDS)
    checks.text("after", after)
    later = groups_after(after, len(model.settings.widths))
    if not later:
        raise ValueError(f'no group comes after {after!r}: choose an earlier group, as "group1"')
    for group in later if kind != "batch" else ():
        stage = model.get_submodule(group)
        for name, old in [*stage.named_children()]:
            if isinstance(old, nn.BatchNorm2d):
                new = _norm(kind, old)
                new.get_parameter("bias").data.copy_(old.bias.data)
                setattr(stage, name, new)
            elif isinstance(old, nn.Conv2d) and kind == "weights":
                parametrize.register_parametrization(old, "weight", StandardisedWeight())
    return model


def _norm(kind: str, old: nn.BatchNorm2d) -> nn.Module:
    if kind == "weights":
        return ChannelBias(old.num_features)
    new = (
        nn.GroupNorm(1, old.num_features, eps=old.eps)
        if kind == "image"
        else LayerNorm2d(old.num_features, eps=old.eps)
    )
    new.weight.requires_grad = old.weight.requires_grad
    return new


def groups_after(group: str, count: int) -> list[str]:
    """Names of the groups that come after one of `count`; none after what is no group."""
    names = [f"group{number}" for number in range(1, count + 1)]
    return names[names.index(group) + 1 :] if group in names else []
