"""The checks of the exercises: right is called right, and what is wrong is named."""

import math

import pytest
import torch
import torch.nn.functional as F

from ersm_lab.exercises import Verdict, attempt, energy_terms


def double(x):
    return 2 * x


def check_double(function):
    return None if function(2) == 4 else "double(2) should be 4"


# ------------------------------------------------------------------------------------- attempt


def test_right_wrong_and_open_are_told_apart():
    def unsolved(x):
        raise NotImplementedError

    assert repr(attempt(double, check_double)) == "right"
    assert repr(attempt(lambda x: x, check_double)) == "not right yet: double(2) should be 4"
    answer = attempt(unsolved, check_double)
    assert answer.kind == "open" and repr(answer).startswith("not solved yet: ")
    assert "unsolved" in answer.text


def test_an_error_is_told_with_its_line():
    def stumbles(x):
        return x / 0

    answer = attempt(stumbles, check_double)
    assert answer.kind == "wrong"
    assert "ZeroDivisionError" in answer.text and "of stumbles" in answer.text


def test_a_verdict_shows_as_an_admonition():
    html = Verdict(kind="wrong", text="a < b")._repr_html_()
    assert 'class="admonition warning"' in html and "a &lt; b" in html
    assert "admonition tip" in Verdict(kind="right")._repr_html_()
    with pytest.raises(ValueError, match="kind must be one of"):
        Verdict(kind="great")


# ---------------------------------------------------------------------------------- energy_terms


def terms(z, cost, weight, t):
    m = torch.sigmoid(-z / t)
    energy = weight * F.softplus(z) + cost
    return m, energy, -m * (1 - m) / t * energy, m * weight * torch.sigmoid(z)


def test_the_right_slope_is_right():
    def slope(logit, cost, lambda_unary, temperature):
        return sum(terms(logit, cost, lambda_unary, temperature)[2:])

    assert attempt(slope, energy_terms.check_slope).kind == "right"


@pytest.mark.parametrize(
    ("slope", "told"),
    [
        (lambda z, c, w, t: -sum(terms(z, c, w, t)[2:]), "sign"),
        (lambda z, c, w, t: sum(terms(z, c, w, 1.0)[2:]), "temperature is not in it"),
        (lambda z, c, w, t: t * terms(z, c, w, t)[2] + terms(z, c, w, t)[3], "factor 1 / T"),
        (
            lambda z, c, w, t: (
                terms(z, c, w, t)[2] + w * torch.sigmoid(-z / t) * torch.sigmoid(z / t)
            ),
            "only at T = 1",
        ),
        (lambda z, c, w, t: terms(z, c, w, t)[2], "unary energy depends on z"),
        (lambda z, c, w, t: terms(z, c, w, t)[3], "mask depends on z"),
        (lambda z, c, w, t: sum(terms(z, 0 * c, w, t)[2:]), "cost c is missing"),
        (lambda z, c, w, t: z, "autograd"),
        (lambda z, c, w, t: z * math.nan, "autograd"),
        (lambda z, c, w, t: z.sum(), "shape (40,)"),
        (lambda z, c, w, t: 0.0, "not float"),
    ],
)
def test_a_wrong_slope_is_told_what_is_wrong(slope, told):
    answer = attempt(slope, energy_terms.check_slope)
    assert answer.kind == "wrong" and told in answer.text


def softplus(z):
    return math.log1p(math.exp(z))


@pytest.mark.parametrize(
    ("usefulness", "kind", "told"),
    [
        (lambda z, c, w: w * (softplus(z) - 1) + c, "right", ""),
        (lambda z, c, w: w * softplus(z) + c, "wrong", "opens the token already"),
        (lambda z, c, w: w * (softplus(z) - 1), "wrong", "does not open"),
        (lambda z, c, w: softplus(z) - 1 + c, "wrong", "opens the token already"),
        (lambda z, c, w: math.inf, "wrong", "no finite"),
        (lambda z, c, w: None, "wrong", "one number"),
    ],
)
def test_the_usefulness_is_judged_by_descent(usefulness, kind, told):
    answer = attempt(usefulness, energy_terms.check_usefulness)
    assert answer.kind == kind and told in answer.text
