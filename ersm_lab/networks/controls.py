"""Masks without the energy: what every mask that claims to know something is compared with.

`RandomMask` knows nothing, `NormMask` only how long a token is, and `RatioMask` learns which tokens
to keep, but is told how many.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ersm_attach import attach_energy_mask
from ersm_core import EnergyMask, EnergyState
from ersm_lab.common import checks


class RandomMask(EnergyMask):
    """Keeps every token by lot with the same probability, in training and in evaluation.

    It is an `EnergyMask` whose logits are noise and whose energies are zero, so that it trains, is
    measured and has its mask replaced like one. In evaluation the lots are the same in every pass
    over a batch of the same shape.

    Args:
        channels: C, of the feature map.
        keep: probability that a token is kept, 0 < keep < 1.

    Raises:
        ValueError: keep is not between 0 and 1.
    """

    def __init__(self, channels: int, *, keep: float) -> None:
        checks.whole("channels", channels, most=checks.MOST)
        _check_share(keep)
        bias = -math.log(keep / (1 - keep))
        super().__init__(
            channels, lambda_unary=0.0, lambda_pair=0.0, hard=True, noise=0.0, bias_init=bias
        )
        self.requires_grad_(False)

    def compute(self, x: Tensor) -> EnergyState:
        """Logits by lot for a feature map x (B, C, H, W); P(logit < 0) = keep."""
        lots = None
        if not self.training:
            lots = torch.Generator(device=x.device).manual_seed(x.shape[0])
        shape = (x.shape[0], 1, *x.shape[2:])
        even = torch.rand(shape, device=x.device, generator=lots).clamp(1e-6, 1 - 1e-6)
        z = self.bias + torch.logit(even)  # (B, 1, H, W)
        zero = torch.zeros_like(z)
        return EnergyState(z, zero, zero, zero, (z < 0).to(z.dtype))


class NormMask(EnergyMask):
    """Keeps the tokens of largest Euclidean norm, the same share of every image; it learns nothing.

    Args:
        channels: C, of the feature map.
        keep: share of the tokens that are kept, 0 < keep < 1, to the nearest token.

    Raises:
        ValueError: keep is not between 0 and 1.
    """

    def __init__(self, channels: int, *, keep: float) -> None:
        checks.whole("channels", channels, most=checks.MOST)
        _check_share(keep)
        super().__init__(channels, lambda_unary=0.0, lambda_pair=0.0, hard=True, noise=0.0)
        self.keep = keep
        self.requires_grad_(False)

    def compute(self, x: Tensor) -> EnergyState:
        """Logits that are below zero for the longest tokens of a feature map x (B, C, H, W)."""
        norms = x.detach().float().norm(dim=1, keepdim=True)  # (B, 1, H, W)
        order = norms.flatten(1).argsort(dim=1, descending=True, stable=True)  # (B, N)
        rank = order.argsort(1).view_as(norms)  # 0 for the longest
        # the bias is 0; at minus infinity, as in every mask, all are kept
        z = rank + 0.5 - round(self.keep * order.shape[1]) + self.bias  # (B, 1, H, W)
        zero = torch.zeros_like(z)
        return EnergyState(z, zero, zero, zero, (z < 0).to(z.dtype))


class RatioMask(EnergyMask):
    """A learned mask without an energy: it is told how many tokens of an image to keep.

    Its loss is that of DynamicViT (Rao et al., 2021, arXiv:2106.02034, eq. 10), the mean over images of
    weight * (keep - share kept)^2; gate and scores are those of `EnergyMask`.

    Args:
        channels: C, of the feature map.
        keep: share of the tokens to be kept, 0 < keep < 1.
        weight: of the loss.
        settings: of `EnergyMask`.

    Raises:
        ValueError: keep is not between 0 and 1, a weight that is no number, or what `EnergyMask`
            refuses.
    """

    def __init__(self, channels: int, *, keep: float, weight: float = 2.0, **settings) -> None:
        _check_share(keep)
        checks.number("weight", weight, least=0)
        super().__init__(channels, **settings)
        self.keep, self.weight_of_ratio = keep, weight

    def loss(self) -> Tensor:
        """Of the last forward, a scalar >= 0."""
        super().loss()  # an error where there was no forward
        share = checks.state(self).mask.mean((1, 2, 3))  # (B,)
        return self.weight_of_ratio * (share - self.keep).square().mean()


def _check_share(keep: float) -> None:
    checks.number("keep", keep)
    if not 0 < keep < 1:
        raise ValueError(f"keep must be between 0 and 1, got {keep}")


KINDS: dict[str, Callable[..., EnergyMask]] = {
    "random": RandomMask,
    "norm": NormMask,
    "ratio": RatioMask.stable,
}


def attach(model: nn.Module, layer: str, kind: str, **settings) -> nn.Module:
    """Put a control's mask after a stage that is an `nn.Sequential`, in place; returns the model.

    Args:
        model: the network.
        layer: name of the stage.
        kind: of `KINDS`.
        settings: of that kind.

    Raises:
        ValueError: an unknown layer or kind, a layer that is no `nn.Sequential`, or settings that the
            kind refuses.
    """
    checks.network("model", model)
    checks.text("layer", layer)
    checks.choice("kind", kind, KINDS)
    attach_energy_mask(model, layer)
    stage = model.get_submodule(layer)
    if not isinstance(stage, nn.Sequential):
        raise ValueError(f"layer {layer!r} is a {type(stage).__name__}, not an nn.Sequential")
    own = stage.energy_mask
    assert isinstance(own, EnergyMask)  # which has just been put there
    mask = KINDS[kind](own.channels, **settings).to(own.weight.device)
    mask.attached_to = layer
    stage.energy_mask = mask
    return model
