"""The checks of chapter 8's exercises: right is called right, and what is wrong is named."""

import math

import pytest
import torch
import torch.nn.functional as F

from ersm_lab.exercises import attempt
from ersm_lab.exercises.inverse_scale import (
    check_flatten,
    check_largest_step,
    check_price,
)
from ersm_lab.images import flat_regions, inverse_scale, path_steps


def flatten(u, opened, shift=1):
    run = F.pad(opened.long().cumsum(0), (1, 0) if shift else (0, 1))  # (W,)
    if not shift:
        run[-1] = run[-2]
    count = torch.bincount(run)
    return (torch.zeros(len(count), dtype=u.dtype).index_add_(0, run, u) / count)[run]


def by_median(u, opened):
    run = F.pad(opened.long().cumsum(0), (1, 0))
    return torch.stack([u[run == r].median() for r in run])


def sums(u, opened):
    run = F.pad(opened.long().cumsum(0), (1, 0))
    return torch.stack([u[run == r].sum() for r in run])


def in_place(u, opened):
    u *= 1.5
    return flatten(u, opened)


def unsolved(*args):
    raise NotImplementedError


def test_the_right_projection_is_right():
    assert attempt(flatten, check_flatten).kind == "right"

    def by_the_lab(u, opened):
        down = torch.zeros(1, 1, 0, len(u), dtype=torch.bool)
        return flat_regions.project(u.view(1, 1, 1, -1), opened.view(1, 1, 1, -1), down).flatten()

    assert attempt(by_the_lab, check_flatten).kind == "right"


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda u, o: flatten(u, ~o), "closed ones join"),
        (sums, "divide by the number"),
        (by_median, "take the mean"),
        (lambda u, o: u.mean().expand_as(u), "the whole row"),
        (lambda u, o: u.clone(), "nothing was averaged"),
        (in_place, "work on a copy"),
        (lambda u, o: flatten(u, o)[:-1], "shape (7,)"),
        (lambda u, o: u.mean().item(), "not float"),
        (lambda u, o: flatten(u, o) * torch.nan, "its run has the mean"),
        (lambda u, o: 2 * flatten(u, o), "its run has the mean"),
    ],
)
def test_a_wrong_projection_is_told_what_is_wrong(function, told):
    answer = attempt(function, check_flatten)
    assert answer.kind == "wrong" and told in answer.text


def test_a_projection_off_by_one_is_not_right():
    assert attempt(lambda u, o: flatten(u, o, shift=0), check_flatten).kind == "wrong"


def largest_step(height, width, nu, kappa, grown=None):
    if grown is None:
        grown = sum(4 * math.cos(math.pi / (2 * n)) ** 2 for n in (height, width))
    trace = 1 + (1 + grown) / nu
    return 4 / (kappa * (trace + math.sqrt(trace**2 - 4 / nu)))


def test_the_right_step_is_right():
    assert attempt(largest_step, check_largest_step).kind == "right"


def usual(height, width, nu, kappa):
    grown = sum(4 * math.cos(math.pi / (2 * n)) ** 2 for n in (height, width))
    return 2 / (kappa * (1 + grown / nu))


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (usual, "with every edge closed"),
        (lambda h, w, n, k: inverse_scale.stability_bound(h, w, nu=n, kappa=k), "not the largest"),
        (lambda h, w, n, k: largest_step(h, w, n, k, grown=8.0), "limit of large images"),
        (lambda h, w, n, k: k * largest_step(h, w, n, k), "kappa is missing"),
        (lambda *a: largest_step(*a) / 2, "half of it"),
        (lambda *a: 1.0, "second derivatives says"),
        (lambda *a: math.nan, "second derivatives says"),
        (lambda *a: None, "give one number"),
    ],
)
def test_a_wrong_step_is_told_what_is_wrong(function, told):
    answer = attempt(function, check_largest_step)
    assert answer.kind == "wrong" and told in answer.text


def price(x, nu, level):
    settings = path_steps.PathSettings(nu=nu)
    path = inverse_scale.inverse_scale_path(x, levels=[level], settings=settings)
    error = 255 * (x - path.images[0]).square().mean().sqrt()
    return path.steps.double().median(), error


def changed(steps=lambda s: s, error=lambda e: e):
    def function(x, nu, level):
        s, e = price(x, nu, level)
        return steps(s), error(e)

    return function


def test_the_right_price_is_right():
    assert attempt(price, check_price).kind == "right"


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda x, n, v: price(x, 0.3, v), "nu is not used"),
        (lambda x, n, v: price(x, n, 1 - v), "share of closed edges"),
        (changed(error=lambda e: e / 255), "times 255"),
        (changed(error=lambda e: 255 * (e / 255) ** 2), "root of the mean square"),
        (changed(error=lambda e: e**2), "root first"),
        (changed(error=lambda e: e + 1), "grey levels, not"),
        (changed(error=lambda e: e * math.nan), "grey levels, not"),
        (changed(steps=lambda s: s + 1), "median of the steps"),
        (lambda *a: 1.0, "two numbers"),
        (lambda *a: None, "two numbers"),
    ],
)
def test_a_wrong_price_is_told_what_is_wrong(function, told):
    answer = attempt(function, check_price)
    assert answer.kind == "wrong" and told in answer.text


def test_unsolved_is_open():
    assert attempt(unsolved, check_price).kind == "open"
    assert attempt(unsolved, check_flatten).kind == "open"
    assert attempt(unsolved, check_largest_step).kind == "open"
