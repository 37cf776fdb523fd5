"""The checks of chapter 9's exercises: right is called right, and what is wrong is named."""

import pytest
import torch
import torch.nn.functional as F

from ersm_lab.exercises import attempt, sparse_coding


def smallest(x, dictionary, nonnegative):
    match = F.conv2d(x, dictionary, padding=1).flatten(1)
    return (match if nonnegative else match.abs()).amax(1)


def code(x, dictionary, step, lambda_l1, steps, *, momentum=True, at_code=False, cut=True):
    c = previous = torch.zeros(len(x), len(dictionary), *x.shape[2:], dtype=x.dtype)
    y, t = c, 1.0
    for _ in range(steps):
        rest = x - F.conv_transpose2d(c if at_code else y, dictionary, padding=1)
        c = y + step * F.conv2d(rest, dictionary, padding=1) - step * lambda_l1
        c = c.clamp_min(0) if cut else c
        before, t = t, (1 + (1 + 4 * t * t) ** 0.5) / 2
        y = c + (before - 1) / t * (c - previous) if momentum else c
        previous = c
    return c


def test_right_answers_are_right():
    assert attempt(smallest, sparse_coding.check_smallest_lambda).kind == "right"
    assert attempt(code, sparse_coding.check_unrolled).kind == "right"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda x, d, n: smallest(x, d, n).max().expand(len(x)), "of the batch"),
        (lambda x, d, n: smallest(x, d, False), "cannot be negative"),
        (lambda x, d, n: smallest(x, d, True), "take the absolute value"),
        (lambda x, d, n: 0.9 * smallest(x, d, n), "are not zero"),
        (lambda x, d, n: 1.1 * smallest(x, d, n), "too large"),
        (lambda x, d, n: sparse_coding._step(d, x) * smallest(x, d, n), "Cancel it"),
        (lambda x, d, n: 1.0, "not float"),
        (lambda x, d, n: F.conv2d(x, d, padding=1), "one number for each image"),
    ],
)
def test_a_wrong_lambda_is_told_what_is_wrong(wrong, told):
    answer = attempt(wrong, sparse_coding.check_smallest_lambda)
    assert answer.kind == "wrong" and told in answer.text


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda x, d, s, w, n: code(x, d, s, w, n, momentum=False), "that is ISTA"),
        (lambda x, d, s, w, n: code(x, d, s, w, n, at_code=True), "that of y_k"),
        (lambda x, d, s, w, n: code(x, d, s, w, n, cut=False), "negative"),
        (lambda x, d, s, w, n: code(x, d, s, w / s, n), "not lambda"),
        (lambda x, d, s, w, n: code(x, d, s, 0.0, n), "no threshold"),
        (lambda x, d, s, w, n: code(x, d, s, w, n + 1), "it takes 2"),
        (lambda x, d, s, w, n: code(x, d, s / 2, w, n), "away from"),
        (lambda x, d, s, w, n: x, "give a tensor of shape"),
        (lambda x, d, s, w, n: code(x.mul_(2), d, s, w, n), "changes the input"),
    ],
)
def test_a_wrong_code_is_told_what_is_wrong(wrong, told):
    answer = attempt(wrong, sparse_coding.check_unrolled)
    assert answer.kind == "wrong" and told in answer.text


def restate(model, batches, *, reset=True, momentum=None, train=True, end=True):
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            if reset:
                module.reset_running_stats()
            module.momentum = momentum
    model.train(train)
    with torch.no_grad():
        for x in batches:
            model(x)
    if end:
        model.eval()


def trained(model, batches):
    restate(model, batches)
    with torch.no_grad():
        model[0].weight += 1


def scaled(model, batches):
    restate(model, batches)
    model[1].running_var *= 2


def test_right_statistics_are_right():
    assert attempt(restate, sparse_coding.check_restate).kind == "right"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda m, b: restate(m, b, reset=False), "old statistics still count"),
        (lambda m, b: restate(m, b, momentum=0.1), "moving average"),
        (lambda m, b: restate(m, b, train=False, reset=False), "only counted in training mode"),
        (lambda m, b: restate(m, b, end=False), "call eval()"),
        (lambda m, b: restate(m, b[:1]), "only the first batch"),
        (lambda m, b: restate(m, b[-1:]), "only the last batch"),
        (trained, "the weights have changed"),
        (scaled, "away from the means"),
    ],
)
def test_wrong_statistics_are_told_what_is_wrong(wrong, told):
    answer = attempt(wrong, sparse_coding.check_restate)
    assert answer.kind == "wrong" and told in answer.text


def test_unsolved_is_open():
    def unsolved(*args):
        raise NotImplementedError

    assert attempt(unsolved, sparse_coding.check_restate).kind == "open"
    assert attempt(unsolved, sparse_coding.check_smallest_lambda).kind == "open"
    assert attempt(unsolved, sparse_coding.check_unrolled).kind == "open"
