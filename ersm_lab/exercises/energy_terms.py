"""Checks of chapter 3, the energy terms."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ersm_lab.views.energy_theory import Landscape, evolve

TOLERANCE = 1e-9


def check_slope(function: Callable) -> str | None:
    """slope(logit, cost, lambda_unary, temperature) -> dR/dz of the logit gate, against autograd."""
    generator = torch.Generator().manual_seed(0)
    z = 3 * torch.randn(40, dtype=torch.float64, generator=generator)  # (40,)
    cost = torch.rand(40, dtype=torch.float64, generator=generator)  # (40,)
    answers: dict[float, Tensor] = {}
    for t in (1.0, 0.5, 2.0):
        answer = function(z.clone(), cost.clone(), 0.7, t)
        if not isinstance(answer, Tensor) or answer.shape != z.shape:
            kind = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            return f"give a tensor of the logits' shape {tuple(z.shape)}, not {kind}"
        answers[t] = answer.detach()

    def is_all(formula: Callable[[float], Tensor]) -> bool:
        return all((answers[t] - formula(t)).abs().max() < TOLERANCE for t in answers)

    u, u_slope = 0.7 * F.softplus(z), 0.7 * torch.sigmoid(z)

    def m(t: float) -> Tensor:
        return torch.sigmoid(-z / t)

    def first(t: float) -> Tensor:  # the mask's part of the product rule
        return -m(t) * (1 - m(t)) / t * (u + cost)

    def right(t: float) -> Tensor:
        free = z.clone().requires_grad_()
        value = torch.sigmoid(-free / t) * (0.7 * F.softplus(free) + cost)
        return torch.autograd.grad(value.sum(), free)[0]

    if is_all(right):
        return None
    wrong = {
        "the sign is turned round": lambda t: -right(t),
        "the temperature is not in it: at T = 1 it is right": lambda t: right(1.0),
        "the factor 1 / T is missing: the derivative of -z / T is -1 / T": (
            lambda t: t * first(t) + m(t) * u_slope
        ),
        "softplus'(z) = sigmoid(z) is 1 - m only at T = 1": (
            lambda t: first(t) + 0.7 * m(t) * (1 - m(t))
        ),
        "the unary energy depends on z, too: a term of the product rule is missing": first,
        "the mask depends on z, too: a term of the product rule is missing": lambda t: (
            m(t) * u_slope
        ),
        "the cost c is missing from the energy": lambda t: (
            first(t) * u / (u + cost) + m(t) * u_slope
        ),
    }
    for what, formula in wrong.items():
        if is_all(formula):
            return what
    for t, answer in answers.items():
        expected = right(t)
        at = (answer - expected).abs().nan_to_num(torch.inf).argmax()
        if not (answer - expected).abs().max() < TOLERANCE:
            return (
                f"at z = {z[at]:.3f}, c = {cost[at]:.3f}, lambda_unary = 0.7, T = {t:g} it gives "
                f"{answer[at]:.5f}, autograd {expected[at]:.5f}"
            )
    raise AssertionError("unreachable: some temperature must be wrong")


def check_usefulness(function: Callable) -> str | None:
    """usefulness_to_reopen(start, cost, lambda_unary) -> the v above which the token opens again.

    Descent decides: a little more must open it, a little less must not.
    """
    for start, cost, weight in ((6.0, 0.004, 1e-3), (2.0, 0.8, 1.0), (0.0, 1.5, 0.5)):
        try:
            v = float(function(start, cost, weight))
        except (TypeError, ValueError):
            return "give one number"
        case = f"start z = {start:g}, c = {cost:g}, lambda_unary = {weight:g}"
        if not abs(v) < 1e6:
            return f"{case}: {v} is no finite usefulness"
        landscape = Landscape(lambda_unary=weight)
        costs = cost - torch.tensor([v - 0.05 * weight, v + 0.05 * weight], dtype=torch.float64)
        z = torch.tensor(start, dtype=torch.float64)
        path = evolve(landscape, z, costs, steps=400, step_size=0.5 / weight)  # (401, 2)
        opens = (path[-1] < path[0]).tolist()
        if opens[0]:
            return f"{case}: less than v = {v:.4g} opens the token already"
        if not opens[1]:
            return f"{case}: slightly more than v = {v:.4g} does not open the token"
    return None
