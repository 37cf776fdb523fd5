"""Checks of chapter 6, the published protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

TOLERANCE = 1e-9


def check_keep_mask(function: Callable) -> str | None:
    """keep_mask(logit, count): logits (B, 1, h, w) -> 0/1 mask without the `count` tokens of each
    image that the deletion test takes away first, those of highest logit."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4, 1, 3, 5, dtype=torch.float64, generator=generator)  # (B, 1, h, w)
    z[0] += 4  # its tokens are the first of the batch
    for count in (4, 0, 15):
        given = z.clone()
        answer = function(given, count)
        if not isinstance(answer, Tensor) or answer.shape != z.shape:
            kind = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            return f"give a tensor of the logits' shape {tuple(z.shape)}, not {kind}"
        if not torch.equal(given, z):
            return "it changes the logits it was given: work on a copy"
        if answer.is_floating_point() and not ((answer == 0) | (answer == 1)).all():
            return "a 0/1 mask is asked for: nothing between, and nothing re-scaled"
        kept = answer.bool()  # (B, 1, h, w)
        deleted = (~kept).sum((1, 2, 3)).tolist()  # (B,)
        if sum(deleted) == len(z) * count and set(deleted) != {count}:
            return f"count is for each image, not for the batch: with {count} it deletes {deleted}"
        if set(deleted) == {z[0].numel() - count} and count:
            return f"with count = {count} it keeps {count} tokens: it is to delete so many"
        if set(deleted) != {count}:
            return f"with count = {count} it deletes {deleted} tokens of the images"
        ends = {  # lowest and highest logit (B,) of what is kept and of what is deleted
            name: (
                torch.where(part, z, torch.inf).amin((1, 2, 3)),
                torch.where(part, z, -torch.inf).amax((1, 2, 3)),
            )
            for name, part in {"kept": kept, "deleted": ~kept}.items()
        }
        if (ends["deleted"][0] >= ends["kept"][1]).all():
            continue
        if (ends["deleted"][1] <= ends["kept"][0]).all():
            return "the wrong way round: a high logit means unimportant, so it is deleted first"
        return "what is deleted must have the highest logits of its image"
    tied = function(torch.zeros(2, 1, 3, 3, dtype=torch.float64), 4)
    if (~tied.bool()).sum((1, 2, 3)).tolist() != [4, 4]:
        return "with equal logits it must still delete exactly count: sort, do not compare"
    return None


def check_usefulness(function: Callable) -> str | None:
    """usefulness(p, m, weight, bias, label) -> v (h, w), minus N times the slope of the loss in m.

    One image: tokens p (C, h, w), mask m (h, w), head weight (K, C) and bias (K,), label a number.
    """
    generator = torch.Generator().manual_seed(0)
    like: dict[str, Any] = {"dtype": torch.float64, "generator": generator}
    for channels, height, width, classes, label in ((5, 3, 4, 3, 2), (2, 1, 6, 4, 0)):
        p, m = torch.randn(channels, height, width, **like), torch.rand(height, width, **like)
        weight, bias = torch.randn(classes, channels, **like), torch.randn(classes, **like)
        answer = function(p.clone(), m.clone(), weight.clone(), bias.clone(), label)
        if not isinstance(answer, Tensor) or answer.shape != m.shape:
            kind = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            return f"give a tensor of shape (h, w) = {tuple(m.shape)}, not {kind}"
        answer = answer.detach()
        free = m.clone().requires_grad_()
        count = height * width
        scores = weight @ (free * p).sum((1, 2)) / count + bias  # (K,)
        loss = torch.logsumexp(scores, 0) - scores[label]
        (slope,) = torch.autograd.grad(loss, free)
        expected = -count * slope  # (h, w)
        wrong = {
            "the sign is turned round: useful is what lowers the loss": -expected,
            "multiply by N: v is per token, the slope of the loss has 1/N": expected / count,
            "this is the slope in ln m: leave the factor m out": m * expected,
            "use the probabilities of this mask, not those of a mask of ones": _without_mask(
                p, weight, bias, label
            ),
            "the true class alone is not enough: subtract what the token adds to the others, "
            "weighted by their probabilities": torch.einsum("c,chw->hw", weight[label], p),
        }
        if (answer - expected).abs().max() < TOLERANCE:
            continue
        for what, formula in wrong.items():
            if (answer - formula).abs().max() < TOLERANCE:
                return what
        at = tuple(int(i) for i in torch.unravel_index((answer - expected).abs().argmax(), m.shape))
        return f"at {at} it gives {answer[at]:.4f}, autograd {expected[at]:.4f}"
    return None


def _without_mask(p: Tensor, weight: Tensor, bias: Tensor, label: int) -> Tensor:
    share = (weight @ p.mean((1, 2)) + bias).softmax(0)  # (K,)
    share = torch.nn.functional.one_hot(torch.tensor(label), len(bias)) - share
    return torch.einsum("k,kc,chw->hw", share, weight, p)
