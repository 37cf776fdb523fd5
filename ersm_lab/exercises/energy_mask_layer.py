"""Checks of chapter 2, the Energy-Mask Layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ersm_core import energy_terms

TOLERANCE = 1e-9


def check_box_agreement(function: Callable) -> str | None:
    """agreement(p) of unit tokens (B, D, H, W), 8 neighbours inside the map -> (B, 1, H, W)."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((2, 5, 6, 7), (1, 3, 1, 4), (3, 4, 1, 1)):
        p = torch.randn(shape, dtype=torch.float64, generator=generator)  # (B, D, H, W)
        p = p / p.norm(dim=1, keepdim=True)
        expected = _agreement(p, 8)  # (B, 1, H, W)
        given = p.clone()
        answer = function(given)
        if problem := _not_a_map(answer, expected):
            return problem
        if not torch.equal(given, p):
            return "it changes the tokens it was given: work on a copy"
        difference = (answer - expected).detach()  # (B, 1, H, W)
        if difference.abs().max() < TOLERANCE:
            continue
        if (difference - 1).abs().max() < TOLERANCE:
            return "1 too much everywhere: the token itself stands in its box, take it out"
        if min(shape[2:]) == 1:
            size = f"{shape[2]} x {shape[3]}"
            return f"wrong on a map of {size}: its tokens have fewer neighbours, none wraps around"
        if (answer - _agreement(p, 4)).abs().max() < TOLERANCE:
            return "these are the 4 neighbours at the edges: the corners belong to the 8, too"
        if difference[:, :, 1:-1, 1:-1].abs().max() < TOLERANCE:
            return (
                "right inside, wrong at the border of the map: sum (not average) what is there, "
                "and count only neighbours inside the map"
            )
        if (answer * 9 - 1 - expected)[:, :, 1:-1, 1:-1].abs().max() < TOLERANCE:
            return "this is the mean over the box, the token itself among them: it asks for a sum"
        at = tuple(int(i) for i in torch.unravel_index(difference.abs().argmax(), answer.shape))
        return f"at {at} it gives {answer[at]:.4f}, the definition {expected[at]:.4f}"
    return None


def check_topk_gate(function: Callable) -> str | None:
    """topk_gate(z, k): logits (B, 1, H, W) -> 0/1 mask of the k lowest of each image.

    Its gradient is that of sigmoid(-z), as in `EnergyMask(hard=True)` without noise at T = 1.
    """
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3, 1, 4, 5, dtype=torch.float64, generator=generator)  # (B, 1, H, W)
    z[0] -= 3  # its tokens are the lowest of the batch
    for k in (7, 1, 20):
        free = z.clone().requires_grad_()
        m = function(free, k)
        if problem := _not_a_map(m, z):
            return problem
        if not torch.equal(free.detach(), z):
            return "it changes the logits it was given: work on a copy"
        kept = (m.detach() - 1).abs() < TOLERANCE  # (B, 1, H, W)
        if not (kept | (m.detach().abs() < TOLERANCE)).all():
            return "the mask must be exactly 0 or 1"
        each = kept.sum((1, 2, 3)).tolist()  # (B,)
        if sum(each) == len(z) * k and set(each) != {k}:
            return f"k is for each image, not for the batch: with k = {k} they keep {each}"
        if set(each) != {k}:
            return f"with k = {k} the images keep {each} tokens"
        highest = torch.where(kept, z, -torch.inf).amax((1, 2, 3))  # (B,)
        lowest = torch.where(kept, torch.inf, z).amin((1, 2, 3))  # (B,)
        if not (highest <= lowest).all():
            return "keep the tokens of lowest logit: low is kept"
        if not m.requires_grad:
            return "no gradient passes: add soft - soft.detach(), with soft = sigmoid(-z)"
        towards = torch.randn(z.shape, dtype=torch.float64, generator=generator)  # (B, 1, H, W)
        (slope,) = torch.autograd.grad((m * towards).sum(), free, allow_unused=True)
        soft = torch.sigmoid(-z)
        expected = -soft * (1 - soft) * towards
        if slope is None or not (slope - expected).abs().max() < TOLERANCE:
            if slope is not None and (slope + expected).abs().max() < TOLERANCE:
                return "the gradient has the wrong sign: the mask falls as the logit rises"
            return "the values are right, the gradient is not that of sigmoid(-z)"
    tied = function(torch.zeros(2, 1, 3, 3, dtype=torch.float64), 4)
    if tied.detach().sum((1, 2, 3)).tolist() != [4, 4]:
        return "with equal logits it must still keep exactly k"
    return None


def _agreement(p: Tensor, neighbourhood: int) -> Tensor:
    weight, bias = p.new_zeros(p.shape[1]), p.new_zeros(())
    return energy_terms(p, weight, bias, neighbourhood=neighbourhood)[1]


def _not_a_map(answer: object, like: Tensor) -> str | None:
    if isinstance(answer, Tensor) and answer.shape == like.shape:
        return None
    got = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
    return f"give a tensor of shape {tuple(like.shape)}, not {got}"
