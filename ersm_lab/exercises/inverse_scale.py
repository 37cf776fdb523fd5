"""Checks of chapter 8, the inverse scale path."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ersm_lab.images import inverse_scale, path_steps


def check_flatten(function: Callable[[Tensor, Tensor], Tensor]) -> str | None:
    """Whether function(u, opened) is the projection of Proposition 1 in one row of pixels.

    u is (W,), opened bool (W - 1,), True where the edge to the right is open; it should give (W,), the
    mean of u over each run of pixels between open edges. Returns None if it is right, else what is
    wrong.
    """
    generator = torch.Generator().manual_seed(0)
    cases = {
        "some edges are open": torch.tensor([0, 0, 1, 0, 1, 0]).bool(),
        "the first and the last edge are open": torch.tensor([1, 0, 0, 0, 0, 1]).bool(),
        "no edge is open": torch.zeros(6, dtype=torch.bool),
        "every edge is open": torch.ones(6, dtype=torch.bool),
    }
    for words, opened in cases.items():
        u = torch.randn(7, dtype=torch.float64, generator=generator)  # (W,)
        given_u, given_opened = u.clone(), opened.clone()
        answer = function(given_u, given_opened)
        if not isinstance(answer, Tensor) or answer.shape != u.shape:
            kind = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            return f"give a tensor of u's shape {tuple(u.shape)}, not {kind}"
        if not (torch.equal(given_u, u) and torch.equal(given_opened, opened)):
            return "it changes what it is given: work on a copy"
        right = _flat(u, opened)
        if torch.allclose(answer.double(), right, rtol=0, atol=1e-6):
            continue
        wrong = {
            "these are the means of the runs between closed edges: open edges part, closed ones join": (
                _flat(u, ~opened)
            ),
            "these are sums: divide by the number of pixels": _flat(u, opened, torch.sum),
            "the median is not the nearest in squares: take the mean": _flat(
                u, opened, torch.median
            ),
            "the whole row has one mean: only pixels that closed edges join share one": (
                u.mean().expand_as(u)
            ),
            "nothing was averaged": u,
        }
        for what, values in wrong.items():
            if torch.allclose(answer.double(), values, rtol=0, atol=1e-6):
                return f"where {words}: {what}"
        at = int((answer - right).abs().nan_to_num(torch.inf).argmax())
        return (
            f"where {words}: pixel {at} is {answer[at]:.4f}, its run has the mean {right[at]:.4f}"
        )
    return None


def _flat(u: Tensor, opened: Tensor, value: Callable[[Tensor], Tensor] = torch.mean) -> Tensor:
    """The value of each run of pixels, at each of its pixels, (W,)."""
    ends = [e + 1 for e, is_open in enumerate(opened.tolist()) if is_open]
    runs = np.split(np.arange(len(u)), ends)
    return torch.cat([value(u[run]).expand(len(run)) for run in map(torch.from_numpy, runs)])


def check_largest_step(function: Callable[[int, int, float, float], float]) -> str | None:
    """Whether function(height, width, nu, kappa) is the step size at which a path with all edges open
    stops to be stable, 2 over kappa times the largest eigenvalue of the Hessian of l.

    Returns None if it is right, else what is wrong.
    """
    for height, width, nu, kappa in ((3, 4, 0.3, 3.0), (5, 1, 2.0, 1.0), (4, 4, 0.05, 10.0)):
        right = 2 / (kappa * _largest_of_hessian(height, width, nu))
        case = f"{height} x {width} pixels, nu = {nu:g}, kappa = {kappa:g}"
        try:
            given = float(function(height, width, nu, kappa))
        except (TypeError, ValueError):
            return f"{case}: give one number"
        if math.isclose(given, right, rel_tol=1e-6):
            continue
        grown = inverse_scale.largest_eigenvalue(height, width)
        wrong = {
            "that is the bound with every edge closed: gamma moves as well where edges are open": (
                2 / (kappa * (1 + grown / nu))
            ),
            "that is safe and not the largest: 1 + (1 + lambda) / nu bounds the eigenvalue from above": (
                inverse_scale.stability_bound(height, width, nu=nu, kappa=kappa)
            ),
            "lambda = 8 is the limit of large images: take lambda of this one": (
                2 / (kappa * _largest_from(8.0, nu))
            ),
            "kappa is missing: u moves by kappa alpha": right * kappa,
            "half of it: descent on a parabola is stable up to 2 / curvature": right / 2,
        }
        for what, value in wrong.items():
            if math.isclose(given, value, rel_tol=1e-6):
                return f"{case}: {what}"
        return f"{case}: {given:.6g}, and a matrix of all second derivatives says {right:.6g}"
    return None


def check_price(function: Callable[[Tensor, float, float], tuple[float, float]]) -> str | None:
    """Whether function(x, nu, level) gives the median steps of the paths of x (B, C, H, W) to a level,
    and the root of the mean squared error there, in grey levels of 0 to 255.

    Returns None if it is right, else what is wrong.
    """
    x = torch.rand(3, 3, 6, 7, generator=torch.Generator().manual_seed(0)) ** 2
    for nu, level in ((1.0, 0.8), (0.1, 0.7)):
        case = f"nu = {nu:g}, level {level:g}"
        try:
            steps, error = map(float, function(x.clone(), nu, level))
        except (TypeError, ValueError):
            return f"{case}: give two numbers, the steps and the error"
        right_steps, right_error = _price(x, nu, level)
        square = (right_error / 255) ** 2
        for words, (other_steps, other_error) in {
            "nu is not used: give the path settings=PathSettings(nu=nu)": _price(x, 0.3, level),
            "the level is the share of closed edges, not of open ones": _price(x, nu, 1 - level),
        }.items():
            if math.isclose(steps, other_steps) and math.isclose(error, other_error, rel_tol=1e-4):
                return f"{case}: {words}"
        wrong = {
            "the error is in units of 0 to 1: times 255": right_error / 255,
            "take the root of the mean square": 255 * square,
            "take the root first, then times 255": 255**2 * square,
        }
        for words, value in wrong.items():
            if math.isclose(error, value, rel_tol=1e-4):
                return f"{case}: {words}"
        if not math.isclose(error, right_error, rel_tol=1e-4):
            return f"{case}: the error is {right_error:.2f} grey levels, not {error:.2f}"
        if not math.isclose(steps, right_steps):
            return f"{case}: the median of the steps is {right_steps:g}, not {steps:g}"
    return None


def _price(x: Tensor, nu: float, level: float) -> tuple[float, float]:
    settings = path_steps.PathSettings(nu=nu)
    path = inverse_scale.inverse_scale_path(x, levels=[level], settings=settings)
    error = 255 * (x - path.images[0]).square().mean().sqrt().item()
    return path.steps.double().median().item(), error


def _largest_from(eigenvalue: float, nu: float) -> float:
    trace = 1 + (1 + eigenvalue) / nu
    return (trace + math.sqrt(trace**2 - 4 / nu)) / 2


def _largest_of_hessian(height: int, width: int, nu: float) -> float:
    """Of l(u, gamma), from the matrix of its second derivatives."""
    pixel = np.arange(height * width).reshape(height, width)
    ends = np.concatenate(
        [
            np.stack([pixel[:, :-1].ravel(), pixel[:, 1:].ravel()], 1),
            np.stack([pixel[:-1].ravel(), pixel[1:].ravel()], 1),
        ]
    )  # (edges, 2)
    d = np.zeros((len(ends), height * width))
    d[np.arange(len(ends)), ends[:, 0]] = -1
    d[np.arange(len(ends)), ends[:, 1]] = 1
    pixels, edges = np.eye(height * width), np.eye(len(ends))
    hessian = np.block([[pixels + d.T @ d / nu, -d.T / nu], [-d / nu, edges / nu]])
    return float(np.linalg.eigvalsh(hessian)[-1])
