"""The checks of chapter 5 know right from wrong."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ersm_lab.exercises import ablation, attempt


def right(a, b):
    return 100 * (a.astype(float) - b).std() / np.sqrt(len(a))


def unpaired(a, b):
    return 100 * np.sqrt(a.var() / len(a) + b.var() / len(b))


def test_a_right_answer_is_right():
    assert ablation.check_paired_error(right) is None
    assert "right" in str(attempt(right, ablation.check_paired_error)).lower()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (unpaired, "independent samples"),
        (lambda a, b: right(a, b) / 100, "in percentage points"),
        (lambda a, b: right(a, b) * np.sqrt(len(a)), "divided by sqrt"),
        (lambda a, b: 1.0, "is not right"),
        (lambda a, b: None, "a number was expected"),
    ],
)
def test_a_wrong_answer_is_told_what_is_wrong(wrong, told):
    assert told in ablation.check_paired_error(wrong)


# --------------------------------------------------------------------------- the gate in use


def slope(z, cost, weight, t):
    soft = torch.sigmoid(-z / t)
    kept = weight * torch.sigmoid(z) * (z < 0)
    return -soft * (1 - soft) / t * (weight * F.softplus(z) + cost) + kept


def through_autograd(z, cost, weight, t):
    z = z.requires_grad_()
    soft = torch.sigmoid(-z / t)
    m = soft + ((z < 0).double() - soft).detach()
    (m * (weight * F.softplus(z) + cost)).sum().backward()
    return z.grad


def soft_slope(z, cost, weight, t):
    z = z.requires_grad_()
    (torch.sigmoid(-z / t) * (weight * F.softplus(z) + cost)).sum().backward()
    return z.grad


@pytest.mark.parametrize("right", [slope, through_autograd])
def test_a_right_slope_is_right(right):
    assert ablation.check_slope_in_use(right) is None


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (soft_slope, "soft gate's slope"),
        (lambda z, c, w, t: -slope(z, c, w, t), "sign"),
        (lambda z, c, w, t: slope(z, c, w, t) - w * torch.sigmoid(z) * (z < 0), "depends on z"),
        (lambda z, c, w, t: slope(z, c, w, t) + w * torch.sigmoid(z) * (z > 0), "kept tokens only"),
        (lambda z, c, w, t: w * torch.sigmoid(z) * (z < 0), "a step has no slope"),
        (lambda z, c, w, t: slope(z, 0 * c, w, t), "cost c is missing"),
        (lambda z, c, w, t: z * torch.nan, "autograd finds"),
        (lambda z, c, w, t: z.sum(), "shape (12,)"),
        (lambda z, c, w, t: 0.0, "not float"),
    ],
)
def test_a_wrong_slope_is_told_what_is_wrong(wrong, told):
    assert told in ablation.check_slope_in_use(wrong)


# ------------------------------------------------------------------------------- claim (a)


def preserved(low, high):
    return "holds" if low > -0.5 else "fails" if high < -0.5 else "open"


def test_a_right_outcome_is_right():
    assert ablation.check_preserved(preserved) is None


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda low, high: "holds" if low <= 0 <= high else "fails", "zero is not the line"),
        (lambda low, high: "holds" if (low + high) / 2 > -0.5 else "fails", "nothing is decided"),
        (lambda low, high: preserved(-high, -low), "a loss is negative"),
        (lambda low, high: "open", "on one side"),
        (lambda low, high: None, "not None"),
    ],
)
def test_a_wrong_outcome_is_told_what_is_wrong(wrong, told):
    assert told in ablation.check_preserved(wrong)
