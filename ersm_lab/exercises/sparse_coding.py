"""Checks of chapter 9, convolutional sparse coding."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ersm_lab.networks.fista import analyse, largest_eigenvalue, sparse_code, synthesise
from ersm_lab.networks.sparse_coding import unit_atoms

TOLERANCE = 1e-9


def check_smallest_lambda(function: Callable) -> str | None:
    """smallest_lambda(x, dictionary, nonnegative) -> (B,), from which on each image's code is zero.

    x (B, C, H, W), dictionary (K, C, 3, 3), stride 1 and padding 1.
    """
    x, dictionary = _problem()
    x[0] *= 3  # images of several ranges
    x = torch.cat([x, -x])  # in one of each pair the largest match is negative
    for nonnegative in (True, False):
        answer = function(x.clone(), dictionary.clone(), nonnegative)
        if not isinstance(answer, Tensor) or answer.shape != (len(x),):
            kind = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            return f"give a tensor with one number for each image, ({len(x)},), not {kind}"
        answer = answer.detach().double()
        match = analyse(x, dictionary, padding=(1, 1)).flatten(1)  # (B, K h w)
        right = (match if nonnegative else match.abs()).amax(1)  # (B,)
        if (answer - right).abs().max() < TOLERANCE:
            continue
        if (answer - right.max()).abs().max() < TOLERANCE:
            return "that is the largest of the batch: each image has its own"
        if (answer - match.abs().amax(1)).abs().max() < TOLERANCE:
            return (
                "a code that cannot be negative does not answer to a negative match: no abs there"
            )
        if (answer - match.amax(1)).abs().max() < TOLERANCE:
            return "codes of either sign answer to negative matches, too: take the absolute value"
        step = _step(dictionary, x)
        if (answer - step * right).abs().max() < TOLERANCE:
            return "the step size is on both sides: s A^T x <= s lambda. Cancel it"
        at = (answer - right).abs().nan_to_num(torch.inf).argmax()
        codes = sparse_code(
            x,
            dictionary,
            step=step,
            lambda_l1=answer.nan_to_num(0).clamp_min(0),
            steps=50,
            nonnegative=nonnegative,
            padding=(1, 1),
        )
        share = (codes[at] != 0).double().mean()
        words = (
            f"{100 * share:.1f} % of its codes are not zero there" if share else "it is too large"
        )
        return f"image {int(at)}: you say {answer[at]:.4f}, but {words}"
    return None


def check_unrolled(function: Callable) -> str | None:
    """unrolled(x, dictionary, step, lambda_l1, steps) -> the non-negative code after steps of FISTA.

    x (B, C, H, W), dictionary (K, C, 3, 3), stride 1 and padding 1 -> (B, K, H, W).
    """
    x, dictionary = _problem()
    step, weight = _step(dictionary, x), 0.3
    settings: dict[str, Any] = dict(step=step, lambda_l1=weight, padding=(1, 1))
    for steps in (1, 2, 3, 7):
        given = x.clone()
        answer = function(given, dictionary.clone(), step, weight, steps)
        right = sparse_code(x, dictionary, steps=steps, **settings)
        if not isinstance(answer, Tensor) or answer.shape != right.shape:
            kind = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            return f"give a tensor of shape {tuple(right.shape)}, not {kind}"
        if not torch.equal(given, x):
            return "it changes the input it was given: work on a copy"
        answer = answer.detach()

        def near(other: Tensor, answer: Tensor = answer) -> bool:
            return bool((answer - other).abs().max() < TOLERANCE)

        if near(right):
            continue
        if (answer < 0).any():
            return f"{steps} step(s): some codes are negative: cut them off at zero in each step"
        for off in (-1, 1):
            if steps + off and near(sparse_code(x, dictionary, steps=steps + off, **settings)):
                return (
                    f"asked for {steps} step(s) it takes {steps + off}: the first starts from zero"
                )
        wrong: dict[str, dict[str, Any]] = {
            "the threshold is s lambda, not lambda": dict(lambda_l1=weight / step),
            "no threshold: subtract s lambda before you cut off at zero": dict(lambda_l1=0.0),
            "that is ISTA: the momentum is missing": dict(accelerate=False),
        }
        for what, changes in wrong.items():
            if near(sparse_code(x, dictionary, steps=steps, **(settings | changes))):
                return what
        if near(_as_released(x, dictionary, step, weight, steps)):
            return (
                "from the third step on, the residual is that of y_k, where the step starts, not of "
                "c_k (the authors' released code has it so, too)"
            )
        return f"{steps} step(s): up to {(answer - right).abs().max():.3g} away from `sparse_code`"
    return None


def check_restate(function: Callable) -> str | None:
    """restate(model, batches): running statistics of every BatchNorm2d become plain means over batches.

    The model is changed in place, keeps its weights and ends in evaluation mode.
    """
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(4, 3, 5, 5, generator=generator) + step for step in range(3)]
    before = _normalised()
    model = copy.deepcopy(before)
    function(model, [batch.clone() for batch in batches])
    if any(
        not torch.equal(a, b) for a, b in zip(before.parameters(), model.parameters(), strict=True)
    ):
        return "the weights have changed: only the statistics are estimated anew"
    if any(module.training for module in model.modules()):
        return "the model is left in training mode: call eval() at the end"

    def same(other: nn.Module) -> bool:
        pairs = zip(_running(model), _running(other), strict=True)
        return all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)

    if same(restated(before, batches)):
        return None
    wrong = {
        "no statistics have changed: batches are only counted in training mode": before,
        "the old statistics still count: reset_running_stats() first": restated(
            before, batches, reset=False
        ),
        "a moving average: with momentum = None it is the plain mean over batches": restated(
            before, batches, momentum=0.1
        ),
        "only the first batch was used": restated(before, batches[:1]),
        "only the last batch was used": restated(before, batches[-1:]),
    }
    for what, other in wrong.items():
        if same(other):
            return what
    right = _running(restated(before, batches))
    off = max((a - b).abs().max() for a, b in zip(_running(model), right, strict=True))
    return f"up to {off:.3g} away from the means over the batches"


def _normalised() -> nn.Module:
    """A small network with two batch normalisations whose statistics are of other images."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 2, 2),
        nn.BatchNorm2d(2),
    ]
    model = nn.Sequential(*layers)
    for _ in range(2):
        model(5 * torch.randn(8, 3, 5, 5))
    return model.eval()


@torch.no_grad()
def restated(
    model: nn.Module, batches: list[Tensor], *, reset: bool = True, momentum: float | None = None
) -> nn.Module:
    model = copy.deepcopy(model).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            if reset:
                module.reset_running_stats()
            module.momentum = momentum
    for batch in batches:
        model(batch)
    return model.eval()


def _running(model: nn.Module) -> list[Tensor]:
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    values = [value for norm in norms for value in (norm.running_mean, norm.running_var)]
    return [value for value in values if value is not None]


def _as_released(x: Tensor, dictionary: Tensor, step: float, weight: float, steps: int) -> Tensor:
    """FISTA with the gradient at c_k instead of y_k."""
    code = previous = (step * (analyse(x, dictionary, padding=(1, 1)) - weight)).relu()
    t = 1.0
    for _ in range(steps - 1):
        before, t = t, (1 + (1 + 4 * t * t) ** 0.5) / 2
        y = code + (before - 1) / t * (code - previous)
        rest = x - synthesise(code, dictionary, size=(x.shape[2], x.shape[3]), padding=(1, 1))
        downhill = analyse(rest, dictionary, padding=(1, 1)) - weight
        previous, code = code, (y + step * downhill).relu()
    return code


def _problem() -> tuple[Tensor, Tensor]:
    """Three inputs (3, 2, 6, 7) and a dictionary (5, 2, 3, 3), in float64."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, 6, 7, dtype=torch.float64, generator=generator)
    return x, unit_atoms(torch.randn(5, 2, 3, 3, dtype=torch.float64, generator=generator))


def _step(dictionary: Tensor, x: Tensor) -> float:
    size = (int(x.shape[2]), int(x.shape[3]))
    return 0.9 / largest_eigenvalue(dictionary, size, padding=(1, 1))[0]
