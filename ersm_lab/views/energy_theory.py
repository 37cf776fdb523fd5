"""One token's energy as a function of its logit: slope, watershed, phase and gradient flow.

At fixed features the pairwise energy of a token is a constant, its cost c = lambda_pair *
softplus(agreement), and its share of the regulariser of arXiv:2604.06893 depends on its logit alone:

    R(z) = m (u + c)        u = lambda_unary softplus(z)        m = sigmoid(-z / T)    gate "logit"
                                                                m = sigmoid(-u)        gate "energy"

A task that rewards keeping the token by v per unit of mask adds -v m, which is the same as a cost of
c - v; so costs may be negative here. With r = c / lambda_unary:

    "logit"   dR/dz = lambda_unary / T * m (1 - m) [g(z) - r]
              with g(z) = T sigmoid(z) / sigmoid(z / T) - softplus(z)
              T = 1: g(z) = 1 - softplus(z), and R = -lambda_unary m ln m + c m
    "energy"  dR/dz = lambda_unary sigmoid(z) m [1 - (1 - m)(u + c)]

A hard gate, m = 1 where z < 0 and else 0, that passes the gradient of s = sigmoid(-z / T) on has

    "straight-through"  dR/dz = -s (1 - s) / T (u + c) + 1[z < 0] lambda_unary sigmoid(z)

It is not the slope of m (u + c), but of a potential of its own; at T = 1/2, as in `EnergyMask.stable`,

    R = s (u + c) + lambda_unary [softplus(min(z, 0)) - softplus(z) / 2 - arctan(e^z) / 2
                                  + softplus(2 z) / 4]

Derived in chapter 3 of the book; the paper does not discuss it. Everything is float64 and dimensionless.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ersm_core import energy_terms

HALVINGS = 80  # of an interval: what is left is below the resolution of float64


@dataclass(frozen=True, kw_only=True)
class Landscape:
    """R(z) of one token, for given weights.

    Args:
        lambda_unary: weight of the unary energy, > 0.
        gate: "logit" for m = sigmoid(-z / temperature), "energy" for m = sigmoid(-u) <= 1/2,
            "straight-through" for m = 1[z < 0] with the logit gate's gradient.
        temperature: T > 0 of the logit gate; 1/2 for "straight-through"; the energy gate has none.

    Its methods take logits and costs as tensors or numbers that broadcast, and return float64 tensors.
    """

    lambda_unary: float
    gate: str = "logit"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for name in ("lambda_unary", "temperature"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be finite and > 0, got {value}")
        if self.gate not in ("logit", "energy", "straight-through"):
            allowed = '"logit", "energy" or "straight-through"'
            raise ValueError(f"gate must be {allowed}, got {self.gate!r}")
        if self.gate == "straight-through" and self.temperature != 0.5:
            t = self.temperature
            raise ValueError(
                f"give a straight-through gate temperature=0.5, the only one here, not {t}"
            )

    def unary(self, logit: Tensor | float) -> Tensor:
        """u = lambda_unary softplus(z)."""
        return self.lambda_unary * _softplus(_float64(logit))

    def mask(self, logit: Tensor | float) -> Tensor:
        """m, between 0 and 1 ("logit"), 0 and 1/2 ("energy"), or 0 or 1 ("straight-through")."""
        if self.gate == "straight-through":
            return (_float64(logit) < 0).double()
        return self._soft(logit)

    def value(self, logit: Tensor | float, cost: Tensor | float) -> Tensor:
        """R, whose derivative is `slope`: m (u + c), but for the straight-through gate."""
        value = self._soft(logit) * (self.unary(logit) + _float64(cost))
        if self.gate != "straight-through":
            return value
        z = _float64(logit)
        own = (
            _softplus(z.clamp(max=0)) - _softplus(z) / 2 - z.exp().atan() / 2 + _softplus(2 * z) / 4
        )
        return value + self.lambda_unary * own

    def slope(self, logit: Tensor | float, cost: Tensor | float) -> Tensor:
        """dR/dz, equal to the formulas at the top; where it is positive, descent opens the mask."""
        z, cost, m, u = _float64(logit), _float64(cost), self._soft(logit), self.unary(logit)
        if self.gate == "energy":  # 1 - m is computed as the other sigmoid, to keep its digits
            bracket = 1 - torch.sigmoid(u) * (u + cost)
            return self.lambda_unary * torch.sigmoid(z) * m * bracket
        leaving = torch.sigmoid(z / self.temperature) / self.temperature * (u + cost)
        if self.gate == "straight-through":
            return self.mask(z) * self.lambda_unary * torch.sigmoid(z) - m * leaving
        return m * (self.lambda_unary * torch.sigmoid(z) - leaving)

    def highest_cost(self) -> float:
        """The cost from which on there is no barrier: descent drops the token from every start.

        lambda_unary at T = 1; lambda_unary [T - 1 + (T - 1)^(1 - 1/T) - ln T] at T > 1; none
        (infinite) at T < 1; 2 for the energy gate.
        """
        t = self.temperature
        if self.gate == "energy":
            return 2.0
        if t < 1:
            return math.inf
        top = 1.0 if t == 1 else t - 1 + (t - 1) ** (1 - 1 / t) - math.log(t)
        return self.lambda_unary * top

    def phase(self, cost: float) -> str:
        """What descent does: "bistable" (the start decides) or "drops" (the token goes, always)."""
        return "bistable" if cost < self.highest_cost() else "drops"

    def watershed(self, cost: Tensor | float) -> Tensor:
        """The logit above which descent drops the token and below which it keeps it.

        In closed form, ln(e^(1 - c / lambda_unary) - 1), for the logit gate at T = 1; by bisection at
        another T; by Newton's method on u + c - 1 = e^-u for the energy gate. The straight-through gate
        has its step, z = 0, wherever -ln 2 <= c / lambda_unary <= 1 - ln 2.

        Returns:
            float64 of the cost's shape; NaN where there is no barrier.
        """
        cost = _float64(cost)
        bistable = cost < self.highest_cost()
        ratio, t = cost / self.lambda_unary, self.temperature
        if self.gate == "energy":
            u = torch.zeros_like(cost)
            for _ in range(100):  # concave and increasing: from the left it never overshoots
                u = u - (u + cost - 1 - (-u).exp()) / (1 + (-u).exp())
            z = _inverse_softplus(u / self.lambda_unary)
        elif self.gate == "straight-through":
            left = -2 * (ratio.clamp(min=0) + 2).log()  # g > e^-z / 4 - ln 2 there
            z = _bisect(lambda z: self._pull(z) - ratio, left, torch.zeros_like(ratio))
            z = torch.where(ratio < -math.log(2), _inverse_softplus(-ratio), z)  # u + c = 0
        elif t == 1:
            z = _inverse_softplus((1 - ratio).clamp(min=0))
        else:
            high = 2 * t + ratio.abs() + 1  # beyond it, g < ratio
            if t > 1:
                low = torch.full_like(ratio, math.log(t - 1))  # where g is largest
            else:
                reach = (2 * (ratio.clamp(min=0) + math.log(2)) / t).log().clamp(min=0)
                low = -reach / (1 / t - 1) - 1
            z = _bisect(lambda z: self._pull(z) - ratio, low, high)
        return torch.where(bistable, z, torch.nan)

    def resting(self, cost: Tensor | float) -> Tensor:
        """The logit towards which a kept token moves: -inf, but finite for T > 1 and a cost > 0.

        Returns:
            float64 of the cost's shape; NaN where no token is kept.
        """
        cost = _float64(cost)
        ratio, t = cost / self.lambda_unary, self.temperature
        rest = torch.full_like(cost, -torch.inf)
        if self.gate == "logit" and t > 1:
            positive = ratio.clamp(min=1e-300)
            top = math.log(t - 1)  # where g is largest; left of it g rises from 0
            low = (positive / (2 * t)).log().clamp(max=min(top, 0)) / (1 - 1 / t) - 1
            found = _bisect(lambda z: positive - self._pull(z), low, torch.full_like(low, top))
            rest = torch.where(ratio > 0, found, rest)
        return torch.where(cost < self.highest_cost(), rest, torch.nan)

    def keeps(self, logit: Tensor | float, cost: Tensor | float) -> Tensor:
        """Whether descent from this logit keeps the token, bool."""
        return _float64(logit) < self.watershed(cost)  # False where the watershed is NaN

    def _soft(self, logit: Tensor | float) -> Tensor:
        """The gate whose gradient is used: m, or s of the straight-through gate."""
        if self.gate == "energy":
            return torch.sigmoid(-self.unary(logit))
        return torch.sigmoid(-_float64(logit) / self.temperature)

    def _pull(self, z: Tensor) -> Tensor:
        """g(z) of the logit gate, or left of 0 of the straight-through one: positive pulls open."""
        ratio = F.logsigmoid(z) - F.logsigmoid(z / self.temperature)
        if self.gate == "straight-through":
            ratio = ratio - F.logsigmoid(-z / self.temperature)
        return self.temperature * ratio.exp() - _softplus(z)


def evolve(
    landscape: Landscape,
    logit: Tensor,
    cost: Tensor | float,
    *,
    steps: int,
    step_size: float,
) -> Tensor:
    """Gradient descent of every token's R, z <- z - step_size dR/dz: the flow, by Euler's method.

    Every token has a logit of its own, as if the bias b_i of each position were trained on one image.

    Args:
        landscape: the regulariser.
        logit: start, any shape.
        cost: c of every token, or c - v with a task that rewards keeping it by v; broadcasts.
        steps: how many, >= 0.
        step_size: time of a step, in units of 1 / (energy per squared logit), > 0.

    Returns:
        float64 (steps + 1, ...), the start first.

    Raises:
        ValueError: a negative number of steps, a step size that is not positive.
    """
    if steps < 0 or not (math.isfinite(step_size) and step_size > 0):
        raise ValueError(f"give steps >= 0 and step_size > 0, got {steps} and {step_size}")
    z = _float64(logit) + torch.zeros_like(_float64(cost))
    path = [z]
    for _ in range(steps):
        path.append(path[-1] - step_size * landscape.slope(path[-1], cost))
    return torch.stack(path)


def pair_cost(tokens: Tensor, *, lambda_pair: float, neighbourhood: int = 8) -> Tensor:
    """c = lambda_pair softplus(agreement) of every token; tokens (B, D, H, W) -> (B, 1, H, W)."""
    tokens = _float64(tokens)
    nothing = tokens.new_zeros(tokens.shape[1])  # (D,): the logit is not asked for
    _, agreement = energy_terms(
        tokens, nothing, tokens.new_zeros(()), neighbourhood=neighbourhood
    )  # (B, 1, H, W)
    return lambda_pair * _softplus(agreement)


def pair_gradient(
    tokens: Tensor, mask: Tensor, *, lambda_pair: float, neighbourhood: int = 8
) -> Tensor:
    """Gradient of mean(m lambda_pair softplus(a)) in the tokens, at a fixed mask.

    With N tokens in all and s_j = m_j sigmoid(a_j), a unit token's gradient is
    lambda_pair / N * sum over its neighbours j of (s_i + s_j) p^_j; a token's is the part of it that
    is orthogonal to p^_i, over the token's length. Descent turns tokens away from their neighbours.

    Args:
        tokens: (B, D, H, W), none of them zero.
        mask: (B, 1, H, W).

    Returns:
        float64 (B, D, H, W).
    """
    tokens, mask = _float64(tokens), _float64(mask)
    length = tokens.norm(dim=1, keepdim=True)  # (B, 1, H, W)
    p = tokens / length  # (B, D, H, W)
    around = _sum_of_neighbours(p, neighbourhood)  # (B, D, H, W)
    s = mask * torch.sigmoid((p * around).sum(1, keepdim=True))  # (B, 1, H, W)
    grad = s * around + _sum_of_neighbours(s * p, neighbourhood)  # (B, D, H, W)
    grad = lambda_pair / mask.numel() * grad
    return (grad - (grad * p).sum(1, keepdim=True) * p) / length  # (B, D, H, W)


def _sum_of_neighbours(x: Tensor, neighbourhood: int) -> Tensor:
    """Each position's sum over its neighbours inside the map, (B, C, H, W) -> the same."""
    kernel = x.new_ones(3, 3) if neighbourhood == 8 else x.new_zeros(3, 3)
    kernel[1, :] = kernel[:, 1] = 1
    kernel[1, 1] = 0
    channels = x.shape[1]
    return F.conv2d(x, kernel.expand(channels, 1, 3, 3), padding=1, groups=channels)


def _float64(x: Tensor | float) -> Tensor:
    return torch.as_tensor(x, dtype=torch.float64)


def _softplus(z: Tensor) -> Tensor:
    return -F.logsigmoid(-z)  # torch's softplus rounds to z above its threshold


def _inverse_softplus(s: Tensor) -> Tensor:
    """The z with softplus(z) = s, for s >= 0; -inf for s = 0."""
    return s + (-torch.expm1(-s)).log()


def _bisect(function, low: Tensor, high: Tensor) -> Tensor:
    """Where a function that is positive at `low` and negative at `high` is zero."""
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        positive = function(middle) > 0
        low, high = torch.where(positive, middle, low), torch.where(positive, high, middle)
    return (low + high) / 2
