"""Checks of chapter 13, milliseconds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

TOLERANCE = 1e-6


def check_speed_up(function: Callable[[float, float, float], float]) -> str | None:
    """speed_up(behind, kept, overhead) -> how many times as fast.

    behind is the share of the dense time that tokens can skip, kept the share of them that is computed,
    overhead what gathering and scattering add, as a share of the time behind the mask. Returns None
    if it is right, else what is wrong.
    """
    for behind, kept, overhead in (
        (0.8, 0.5, 0.0),
        (0.8, 0.5, 0.1),
        (0.5, 0.3, 0.05),
        (1.0, 1.0, 0.2),
    ):
        right = 1 / (1 - behind + behind * (kept + overhead))
        case = f"behind {behind:g}, kept {kept:g}, overhead {overhead:g}"
        try:
            given = float(function(behind, kept, overhead))
        except (TypeError, ValueError):
            return f"{case}: a number was expected"
        if abs(given - right) < TOLERANCE:
            continue
        wrong = {
            "that is the new time as a share of the old: turn it over": 1 / right,
            "what lies before the mask takes its time too": 1 / (behind * (kept + overhead)),
            "gathering and scattering take time": 1 / (1 - behind + behind * kept),
            "the overhead is a share of the time behind the mask, not of the whole": 1
            / (1 - behind + behind * kept + overhead),
            "kept tokens are computed, dropped ones are not": 1
            / (1 - behind + behind * (1 - kept + overhead)),
        }
        for words, value in wrong.items():
            if abs(given - value) < TOLERANCE:
                return f"{case}: {words}"
        return f"{case}: {given:.4g} is not right"
    return None


def check_skip(
    function: Callable[[Tensor, Callable[[Tensor], Tensor], Tensor], Tensor],
) -> str | None:
    """skip(x, f, m) -> x + m f(x) with f run on kept tokens only.

    x is (B, C, H, W), m 0/1 (B, 1, H, W), f takes tokens (K, C). Returns None if it is right, else what
    is wrong.
    """
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 5, 6, generator=rng)
    m = (torch.rand(3, 1, 5, 6, generator=rng) < 0.4).float()
    layer = nn.Linear(4, 4)
    computed = []

    def f(tokens: Tensor) -> Tensor:
        if tokens.dim() != 2 or tokens.shape[1] != 4:
            raise ValueError(f"f takes tokens (K, 4), got {tuple(tokens.shape)}")
        computed.append(len(tokens))
        return layer(tokens)

    with torch.no_grad():
        given = function(x.clone(), f, m.clone())
        whole = layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # (B, C, H, W)
    right = x + m * whole
    if not isinstance(given, Tensor) or given.shape != x.shape:
        return f"a tensor {tuple(x.shape)} was expected, got {getattr(given, 'shape', given)!r:.60}"
    if sum(computed) > m.sum():
        return f"f was given {sum(computed)} tokens where {int(m.sum())} are kept: gather first"
    if torch.allclose(given, right, atol=1e-5):
        return None
    if torch.allclose(given, m * (x + whole), atol=1e-5):
        return "dropped tokens keep what they had: start from x, not from zeros"
    if torch.allclose(given, m * whole, atol=1e-5):
        return "the residual x is missing"
    if torch.allclose(given.sum((1, 2, 3)), right.sum((1, 2, 3)), atol=1e-3):
        return "the numbers are there, in other places: scatter by the indices you gathered by"
    return "this is not x + m f(x)"


def check_line(function: Callable[[float, list[float], list[float]], float]) -> str | None:
    """line(time, times, accuracies) -> accuracy of dense networks at this time.

    times ascend; between two networks the line is straight, outside it is level. Returns None if it
    is right, else what is wrong.
    """
    times, accuracies = [1.0, 2.0, 4.0], [60.0, 70.0, 74.0]
    cases = {3.0: 72.0, 1.5: 65.0, 2.0: 70.0, 0.5: 60.0, 9.0: 74.0}
    for time, right in cases.items():
        try:
            given = float(function(time, list(times), list(accuracies)))
        except (TypeError, ValueError):
            return f"at {time:g}: a number was expected"
        if abs(given - right) < TOLERANCE:
            continue
        if time in (0.5, 9.0):
            return f"at {time:g}: beyond the last network the line is level, {right:g}, got {given:.4g}"
        if given in accuracies:
            return f"at {time:g}: between two networks the line is straight, {right:g}, not a step"
        return f"at {time:g}: {right:g} was expected, got {given:.4g}"
    return None
