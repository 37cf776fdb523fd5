"""Gradual magnitude pruning of a dense network's weights: a control that spends less in another way.

Zhu & Gupta (2017, arXiv:1710.01878), eq. 1, with no weight pruned at first: at a share p of the steps

    s(p) = s_f (1 - (1 - (p - p_0) / r)^3)    for p_0 <= p <= p_0 + r,    0 before, s_f after

of the weights are zero. At every step of the ramp those of smallest magnitude, over all layers at once,
are added to the zeros until there are so many; what is zero stays zero. Then the rest trains on.
Weights are those of convolutions and of the head; the fixed whitening filters of the stem,
normalisation and biases are left alone. Masks are held by `torch.nn.utils.prune`; `plain_state` is that
of a plain network with the zeros in its weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from ersm_lab.common import checks


def sparsity_at(progress: float, *, sparsity: float, start: float, ramp: float) -> float:
    """Share of the weights that are zero at a progress of 0 to 1 (eq. 1).

    Args:
        progress: p, share of the steps that are done.
        sparsity: s_f, of the weights.
        start, ramp: p_0 and r, of the steps.
    """
    checks.number("progress", progress, least=0)
    if progress < start:
        return 0.0
    if progress >= start + ramp:
        return sparsity
    left = 1 - (progress - start) / ramp  # 1 to 0
    return sparsity * (1 - left**3)


def prunable(model: nn.Module) -> dict[str, nn.Module]:
    """{name: layer} of all whose weights are pruned."""
    checks.network("model", model)
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and name != "stem.0"
    }


def attach(model: nn.Module) -> nn.Module:
    """Give a network masks of ones to be pruned with, in place; returns the model."""
    for layer in prunable(model).values():
        prune.identity(layer, "weight")  # weight = weight_orig * weight_mask, in every pass
    return model


@torch.no_grad()
def prune_to(model: nn.Module, sparsity: float) -> None:
    """Add the smallest weights to the zeros until this share is zero, in place; zeros stay zero.

    Args:
        model: of `attach`.
        sparsity: share of the weights of all `prunable` layers together, to the nearest weight.

    Raises:
        ValueError: a network without masks, or a share outside of 0 to 1.
    """
    checks.number("sparsity", sparsity, least=0, most=1)
    layers = prunable(model).values()
    if not all(hasattr(layer, "weight_mask") for layer in layers):
        raise ValueError("the layers of model have no masks to prune with: `attach` them first")
    masks = [layer.get_buffer("weight_mask") for layer in layers]
    kept = torch.cat([mask.flatten() for mask in masks])  # (N,)
    count = round(sparsity * len(kept))
    if count <= len(kept) - int(kept.sum()):
        return
    sizes = torch.cat(
        [layer.get_parameter("weight_orig").abs().flatten() for layer in layers]
    )  # (N,)
    sizes[kept == 0] = -1  # these come first
    kept[sizes.argsort(stable=True)[:count]] = 0
    for mask, part in zip(masks, kept.split([mask.numel() for mask in masks]), strict=True):
        mask.copy_(part.view(mask.shape))


def plain_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of a pruned network as that of a plain one with zeros in its weights."""
    checks.a("state", state, Mapping)
    plain = {}
    for name, value in state.items():
        if name.endswith("_orig"):
            bare = name.removesuffix("_orig")
            plain[bare] = value * state[f"{bare}_mask"]
        elif not name.endswith("_mask") and name != "pruning_step":  # which old checkpoints have
            plain[name] = value
    return plain
