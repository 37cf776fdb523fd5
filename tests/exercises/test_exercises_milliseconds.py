"""The checks of chapter 13 pass what is right and name what is wrong."""

import numpy as np
import pytest
import torch

from ersm_core import update_kept
from ersm_lab.exercises import milliseconds as checks


def test_right_answers_pass():
    assert checks.check_speed_up(lambda b, k, o: 1 / (1 - b + b * (k + o))) is None
    assert checks.check_skip(update_kept) is None
    assert checks.check_line(lambda t, ts, accs: np.interp(t, ts, accs)) is None


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda b, k, o: 1 - b + b * (k + o), "turn it over"),
        (lambda b, k, o: 1 / (1 - b + b * k), "gathering and scattering"),
        (lambda b, k, o: 1 / (b * (k + o)), "before the mask"),
        (lambda b, k, o: 1 / (1 - b + b * k + o), "not of the whole"),
        (lambda b, k, o: None, "a number"),
    ],
)
def test_wrong_bounds_are_named(function, words):
    assert words in checks.check_speed_up(function)


def gathered(x, f, m, start, inputs=None):
    order = x.permute(0, 2, 3, 1)  # (B, H, W, C)
    kept = m.permute(0, 2, 3, 1)[..., 0] > 0  # (B, H, W)
    out = start.permute(0, 2, 3, 1).clone()
    out[kept] += f(order[kept])
    return out.permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x, f, m: gathered(x, f, m, x * m), "keep what they had"),
        (lambda x, f, m: gathered(x, f, m, torch.zeros_like(x)), "residual"),
        (
            lambda x, f, m: (
                x + m * f(x.permute(0, 2, 3, 1).reshape(-1, 4)).view(3, 5, 6, 4).permute(0, 3, 1, 2)
            ),
            "gather first",
        ),
        (lambda x, f, m: gathered(x, f, m, x).flip(3), "in other places"),
        (lambda x, f, m: x[:1], "a tensor"),
    ],
)
def test_wrong_ways_to_skip_are_named(function, words):
    assert words in checks.check_skip(function)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda t, ts, accs: accs[int(np.searchsorted(ts, t, side="right")) - 1], "straight"),
        (lambda t, ts, accs: np.polyval(np.polyfit(ts, accs, 2), t), "expected"),
        (lambda t, ts, accs: float(np.interp(t, ts, accs)) if t <= 4 else 84.0, "level"),
    ],
)
def test_wrong_lines_are_named(function, words):
    assert words in checks.check_line(function)
