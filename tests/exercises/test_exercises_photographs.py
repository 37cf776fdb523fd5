"""The checks of the photographs' exercises: right is called right, and what is wrong is named."""

import pytest
import torch
import torch.nn.functional as F

from ersm_lab.exercises import attempt
from ersm_lab.exercises.photographs import check_agreement, check_attention_pool


def mean_agreement(p, *, unit=True, count=None):
    p = F.normalize(p, dim=0) if unit else p
    down, right = (p[:, :-1] * p[:, 1:]).sum(0), (p[:, :, :-1] * p[:, :, 1:]).sum(0)
    a, there = torch.zeros_like(p[0]), torch.zeros_like(p[0])
    for total, d, r in ((a, down, right), (there, torch.ones_like(down), torch.ones_like(right))):
        total[:-1] += d
        total[1:] += d
        total[:, :-1] += r
        total[:, 1:] += r
    return a / (count or there)


def attention_pool(p, m):
    return (m * p).sum((2, 3)) / m.sum((2, 3))


def test_right_solutions_are_right():
    assert attempt(mean_agreement, check_agreement).kind == "right"
    assert attempt(attention_pool, check_attention_pool).kind == "right"


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda p: mean_agreement(p, count=1), "border tokens have fewer terms"),
        (lambda p: mean_agreement(p, count=4), "not by four"),
        (lambda p: mean_agreement(p, unit=False), "normalise the tokens first"),
        (lambda p: mean_agreement(p)[None], "shape (h, w) = (3, 4)"),
        (lambda p: mean_agreement(p) + 1, "a loop gives"),
    ],
)
def test_a_wrong_agreement_is_told_what_is_wrong(function, told):
    answer = attempt(function, check_agreement)
    assert answer.kind == "wrong" and told in answer.text


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda p, m: (m * p).mean((2, 3)), "mean pooling"),
        (lambda p, m: (m * p).sum((2, 3)) / m.sum(), "all images are added"),
        (lambda p, m: (m * p).sum((2, 3)), "divide by the sum"),
        (lambda p, m: p.mean((2, 3)), "one open token"),
        (lambda p, m: m, "shape (B, C)"),
    ],
)
def test_a_wrong_pooling_is_told_what_is_wrong(function, told):
    answer = attempt(function, check_attention_pool)
    assert answer.kind == "wrong" and told in answer.text
