"""Checks of chapter 4, the training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ersm_lab.chapters.collapse import CRITERIA, KINDS, kind_of, variance_shares

TOLERANCE = 1e-6


def check_variance_shares(function: Callable) -> str | None:
    """shares(masks) -> (position, image, both): what the variance of masks (N, 1, H, W) is made of."""
    generator = torch.Generator().manual_seed(0)
    fixed = torch.rand(1, 1, 5, 7, generator=generator).expand(6, 1, 5, 7)  # one pattern for all
    levels = torch.rand(6, 1, 1, 1, generator=generator).expand(6, 1, 5, 7)  # uniform in each image
    mixed = torch.rand(6, 1, 5, 7, generator=generator) + fixed + 0.5 * levels
    cases = {
        "one pattern for all images": fixed,
        "every image uniform": levels,
        "a mixture": mixed,
    }
    for name, masks in cases.items():
        masks = masks.double().contiguous()
        answer = function(masks.clone())
        try:
            given = torch.tensor([float(value) for value in answer], dtype=torch.float64)
        except (TypeError, ValueError):
            return "give three numbers: position, image, both"
        if len(given) != 3:
            return f"give three numbers: position, image, both; got {len(given)}"
        right = torch.tensor(list(variance_shares(masks).values()), dtype=torch.float64)
        if (given - right).abs().max() < TOLERANCE:
            continue
        if (given[[1, 0, 2]] - right).abs().max() < TOLERANCE:
            return "position and image are exchanged: the mean *over images* is a map of positions"
        if abs(given.sum() - 1) > TOLERANCE:
            if (given - right.sqrt()).abs()[:2].max() < TOLERANCE:
                return (
                    "these are ratios of standard deviations: variances add up, deviations do not"
                )
            unbiased = masks.flatten(1)
            position = unbiased.mean(0).var() / unbiased.var()
            if (given[0] - position).abs() < TOLERANCE:
                return "divide by the number of values, not by one less: correction=0"
            return f"{name}: the three add up to {given.sum():.4f}, not to 1"
        return f"{name}: it gives {_shown(given)}, it should be {_shown(right)}"
    return None


def check_keep_probability(function: Callable) -> str | None:
    """keep_probability(logit, noise) -> the chance that the noisy hard gate keeps a token."""
    z = torch.linspace(-3, 3, 13, dtype=torch.float64)  # (13,)
    for noise in (1.0, 0.5, 2.0, 0.0):
        answer = function(z.clone(), noise)
        if not isinstance(answer, Tensor) or answer.shape != z.shape:
            kind = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            return f"give a tensor of the logits' shape {tuple(z.shape)}, not {kind}"
        answer = answer.detach().double()
        off = z != 0  # at z = 0 without noise either answer will do
        right = torch.sigmoid(-z / noise) if noise else (z < 0).double()
        if (answer - right).abs()[off].max() < TOLERANCE:
            continue
        if noise == 0:
            return "without noise the gate is a step: 1 below zero, 0 above; mind the division"
        if (answer - (1 - right)).abs().max() < TOLERANCE:
            return "that is the chance to be dropped: a *low* logit is kept"
        if (answer - torch.sigmoid(-z * noise)).abs().max() < TOLERANCE:
            return "more noise must bring the chance nearer to 1/2: divide by it"
        if (answer - torch.sigmoid(-z)).abs().max() < TOLERANCE:
            return "right for a noise of 1 only: its scale is missing"
        if (answer - torch.sigmoid(-z / 0.5)).abs().max() < TOLERANCE:
            return "the temperature shapes the gradient only; the lot is drawn on z and the noise"
        at = (answer - right).abs().nan_to_num(torch.inf).argmax()
        return (
            f"at z = {z[at]:g} with noise {noise:g} it gives {answer[at]:.4f}; of many draws a share "
            f"of {right[at]:.4f} is kept"
        )
    return None


MASKS = (  # mean mask, sd within an image, cost of another's in points, share of the position
    (0.995, 0.01, 0.0, 0.1),
    (0.008, 0.001, 0.0, 0.1),
    (0.500, 0.001, 0.0, 0.1),
    (0.300, 0.001, 0.0, 0.1),
    (0.250, 0.430, 0.0, 1.0),
    (0.500, 0.500, 0.1, 0.02),
    (0.530, 0.487, 4.3, 0.1),
    (0.530, 0.487, 0.6, 0.1),
    (0.008, 0.002, 1.8, 0.07),  # a trap each, from here on
    (0.300, 0.001, 1.8, 0.1),
    (0.500, 0.500, -0.6, 0.02),
    (0.400, 0.450, 4.0, 0.9),
)


def check_verdict(function: Callable) -> str | None:
    """verdict(kept, within, cost, share) -> one of `KINDS`, by the criteria of the chapter."""
    for kept, within, cost, share in MASKS:
        given, right = function(kept, within, cost, share), kind_of(kept, within, cost, share)
        if given == right:
            continue
        if given not in KINDS:
            return f"give one of {', '.join(KINDS)}, not {given!r}"
        numbers = f"mean {kept}, sd {within}, another's mask costs {cost} points, share {share}"
        if right in ("all off", "uniform") and cost > CRITERIA.adaptive:
            return f"{numbers}: the level and the spread come first, whatever another's mask costs"
        if cost < 0:
            return f"{numbers}: a mask that another's betters is not the same: mind the sign"
        if right == "adaptive" and given == "fixed pattern":
            return f"{numbers}: a pattern is fixed only if another image's mask costs nothing"
        if {given, right} == {"at its cap", "uniform"}:
            return f"{numbers}: at its cap is next to 1/2, uniform is any other level"
        if {given, right} == {"fixed pattern", "interchangeable"}:
            return f"{numbers}: what the mean by position explains tells these two apart"
        return f"{numbers}: this mask is {right}, not {given}"
    return None


def _shown(values: Tensor) -> str:
    return ", ".join(f"{value:.4f}" for value in values.tolist())
