"""Checks of chapter 5, the ablation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ersm_lab.results.claims import CRITERIA
from ersm_lab.views.energy_theory import Landscape


def check_paired_error(function: Callable[[np.ndarray, np.ndarray], float]) -> str | None:
    """Whether function(a, b) is the standard error, in points, of a paired difference of accuracy.

    a, b are bools (N,): which of N test images two networks classify rightly. Returns None if it is
    right, else what is wrong.
    """
    rng = np.random.default_rng(0)
    hard = rng.random(4_000)
    a, b = hard > 0.10, (hard > 0.12) ^ (rng.random(4_000) < 0.02)
    right = 100 * (a.astype(float) - b).std() / np.sqrt(len(a))
    given = function(a.copy(), b.copy())
    try:
        given = float(given)
    except (TypeError, ValueError):
        return f"a number was expected, got {type(given).__name__}"
    if np.isclose(given, right, rtol=1e-3):
        return None
    apart = 100 * np.sqrt(a.var() / len(a) + b.var() / len(b))
    if np.isclose(given, apart, rtol=1e-3):
        return (
            "that is the error of two independent samples: subtract image by image first, then take "
            "the spread of the differences"
        )
    if np.isclose(100 * given, right, rtol=1e-3):
        return "that is a share: give it in percentage points"
    if np.isclose(given, right * np.sqrt(len(a)), rtol=1e-3):
        return (
            "that is the spread of one image's difference: the mean of N has it divided by sqrt(N)"
        )
    return f"{given:.4g} is not right: for images on which both agree the difference is 0"


def check_slope_in_use(function: Callable[..., Tensor]) -> str | None:
    """slope(z, cost, lambda_unary, temperature): dR/dz of the step with a soft gate's gradient.

    Logits and costs are float64 (N,), and so is the answer. Returns None if it is right, else what is
    wrong.
    """
    z = torch.linspace(-3, 3, 12, dtype=torch.float64)  # (12,), without 0
    cost = torch.linspace(0.01, 0.2, 12, dtype=torch.float64)  # (12,)
    weight, t = 0.05, 0.5
    given = function(z.clone(), cost.clone(), weight, t)
    if not isinstance(given, Tensor) or given.shape != z.shape:
        kind = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        return f"give a tensor of the logits' shape {tuple(z.shape)}, not {kind}"
    given = given.detach().double()
    use = Landscape(lambda_unary=weight, temperature=t, gate="straight-through")
    soft = Landscape(lambda_unary=weight, temperature=t, gate="logit")
    right, m = use.slope(z, cost), torch.sigmoid(-z / t)  # (12,), (12,)
    own = weight * torch.sigmoid(z) * (z < 0)  # (12,)
    energy = weight * torch.nn.functional.softplus(z) + cost  # (12,)
    wrong = {
        "this is the soft gate's slope: forward the gate is a step, so the energy's own slope "
        "counts where z < 0, and there in full": soft.slope(z, cost),
        "the sign of all is turned: the mask falls with z": -right,
        "the gate's slope has a factor 1 / T": own - m * (1 - m) * energy,
        "the unary energy depends on z: add its slope where the token is kept": right - own,
        "its own slope counts for kept tokens only, where z < 0": right
        + weight * torch.sigmoid(z) * (z > 0),
        "a step has no slope: backward the soft gate's slope stands in for it": own,
        "the cost c is missing": own - m * (1 - m) / t * (energy - cost),
    }
    if torch.allclose(given, right, atol=1e-9):
        return None
    for told, answer in wrong.items():
        if torch.allclose(given, answer, atol=1e-9):
            return told
    at = (given - right).abs().nan_to_num(torch.inf).argmax()
    return (
        f"at z = {z[at]:.2f} with cost {cost[at]:.2f} it gives {given[at]:.5f}; through the gate "
        f"autograd finds {right[at]:.5f}"
    )


def check_preserved(function: Callable[[float, float], str]) -> str | None:
    """preserved(low, high) -> "holds", "fails" or "open", claim (a) for an interval in points."""
    cases = {
        (-1.8, -0.6): "fails",
        (-0.2, 0.6): "holds",
        (-0.4, -0.1): "holds",
        (-1.1, -0.2): "open",
        (-0.7, 1.1): "open",
    }
    for (low, high), right in cases.items():
        given = function(low, high)
        if given == right:
            continue
        interval = f"from {low} to {high}"
        if given not in ("holds", "fails", "open"):
            return f'give "holds", "fails" or "open", not {given!r}'
        if (low, high) == (-0.4, -0.1):
            return (
                f"{interval}: a loss, but one below {CRITERIA.margin} points: zero is not the line"
            )
        if right == "open":
            return f"{interval}: it lies across -{CRITERIA.margin}, so nothing is decided"
        if given == {"holds": "fails", "fails": "holds"}.get(right):
            return f"{interval}: masked minus dense, so a loss is negative"
        return f"{interval}: the whole interval is on one side of -{CRITERIA.margin}: {right}"
    return None
