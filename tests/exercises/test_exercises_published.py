"""The checks of chapter 6's exercises: right is called right, and what is wrong is named."""

import pytest
import torch

from ersm_lab.exercises import attempt
from ersm_lab.exercises.published_protocol import check_keep_mask, check_usefulness


def keep_mask(logit, count):
    order = logit.flatten(1).argsort(1)  # (B, h w), lowest first
    keep = torch.ones_like(logit).flatten(1)
    first = order[:, order.shape[1] - count :]
    return keep.scatter(1, first, 0.0).view_as(logit)


def threshold(logit, count):
    if count == 0:
        return torch.ones_like(logit)
    bar = logit.flatten(1).topk(count).values[:, -1]  # (B,)
    return (logit < bar[:, None, None, None]).float()


def for_the_batch(logit, count):
    return keep_mask(logit.view(1, 1, -1, 1), count * len(logit)).view_as(logit)


def test_the_right_mask_is_right():
    assert attempt(keep_mask, check_keep_mask).kind == "right"
    assert attempt(lambda z, k: keep_mask(z, k).bool(), check_keep_mask).kind == "right"


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda z, k: keep_mask(-z, k), "wrong way round"),
        (lambda z, k: 1 - keep_mask(z, k), "it keeps 4 tokens"),
        (for_the_batch, "not for the batch"),
        (threshold, "equal logits"),
        (lambda z, k: keep_mask(z, k) * 0.5, "0/1 mask"),
        (lambda z, k: keep_mask(z.clone().zero_(), k), "highest logits"),
        (lambda z, k: keep_mask(z, max(k - 1, 0)), "it deletes [3, 3, 3, 3]"),
        (lambda z, k: keep_mask(z.mul_(2), k), "changes the logits"),
        (lambda z, k: keep_mask(z, k)[0], "shape (4, 1, 3, 5)"),
        (lambda z, k: 0, "not int"),
    ],
)
def test_a_wrong_mask_is_told_what_is_wrong(function, told):
    answer = attempt(function, check_keep_mask)
    assert answer.kind == "wrong" and told in answer.text


def parts(p, m, weight, bias, label):
    scores = weight @ (m * p).mean((1, 2)) + bias
    truth = torch.zeros_like(bias)
    truth[label] = 1
    return truth - scores.softmax(0), torch.einsum("kc,chw->khw", weight, p)  # (K,), (K, h, w)


def usefulness(p, m, weight, bias, label):
    share, adds = parts(p, m, weight, bias, label)
    return torch.einsum("k,khw->hw", share, adds)


def test_the_right_usefulness_is_right():
    assert attempt(usefulness, check_usefulness).kind == "right"


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda *a: -usefulness(*a), "sign"),
        (lambda p, m, *a: usefulness(p, m, *a) / m.numel(), "multiply by N"),
        (lambda p, m, *a: m * usefulness(p, m, *a), "in ln m"),
        (lambda p, m, *a: usefulness(p, torch.ones_like(m), *a), "not those of a mask of ones"),
        (lambda p, m, w, b, y: parts(p, m, w, b, y)[1][y], "true class alone"),
        (lambda p, m, *a: 2 * usefulness(p, m, *a), "autograd"),
        (lambda p, m, *a: usefulness(p, m, *a) * torch.nan, "autograd"),
        (lambda p, m, *a: p, "shape (h, w)"),
        (lambda p, m, *a: None, "not NoneType"),
    ],
)
def test_a_wrong_usefulness_is_told_what_is_wrong(function, told):
    answer = attempt(function, check_usefulness)
    assert answer.kind == "wrong" and told in answer.text
