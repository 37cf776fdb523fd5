"""The checks of chapter 4's exercises: right is called right, and what is wrong is named."""

import pytest
import torch

from ersm_lab.exercises import attempt, training


def shares(masks, correction=0, root=False):
    m = masks.flatten(1)
    whole = m.var(correction=correction)
    position = m.mean(0).var(correction=correction) / whole
    image = m.mean(1).var(correction=correction) / whole
    if root:
        position, image = position.sqrt(), image.sqrt()
    return position, image, 1 - position - image


def test_the_right_shares_are_right():
    assert attempt(shares, training.check_variance_shares).kind == "right"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda m: [shares(m)[i] for i in (1, 0, 2)], "exchanged"),
        (lambda m: (*[s.sqrt() for s in shares(m)[:2]], 0.3), "standard deviations"),
        (lambda m: (*shares(m, correction=1)[:2], 0.5), "correction=0"),
        (lambda m: shares(m)[:2], "three numbers"),
        (lambda m: 0.5, "three numbers"),
        (lambda m: (0.2, 0.3, 0.5), "it should be"),
        (lambda m: (0.2, 0.3, 0.6), "add up to"),
    ],
)
def test_wrong_shares_are_told_what_is_wrong(wrong, told):
    answer = attempt(wrong, training.check_variance_shares)
    assert answer.kind == "wrong" and told in answer.text


def keep(z, noise):
    return torch.sigmoid(-z / noise) if noise else (z < 0).double()


def test_the_right_probability_is_right():
    assert attempt(keep, training.check_keep_probability).kind == "right"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda z, noise: 1 - keep(z, noise), "dropped"),
        (lambda z, noise: torch.sigmoid(-z * noise), "divide by it"),
        (lambda z, noise: torch.sigmoid(-z / 0.5), "temperature"),
        (lambda z, noise: torch.sigmoid(-z / noise) if noise else z * torch.nan, "step"),
        (lambda z, noise: (z < 0).double(), "of many draws"),
        (lambda z, noise: 0.5, "not float"),
    ],
)
def test_a_wrong_probability_is_told_what_is_wrong(wrong, told):
    answer = attempt(wrong, training.check_keep_probability)
    assert answer.kind == "wrong" and told in answer.text


def test_the_check_agrees_with_draws_of_the_layer():
    from ersm_core import EnergyMask

    torch.manual_seed(0)
    layer = EnergyMask(2, hard=True, noise=1.0, temperature=0.5, bias_init=0.8)
    torch.nn.init.zeros_(layer.weight)
    kept = layer(torch.ones(1, 2, 200, 200))[0, 0].mean().item()
    assert kept == pytest.approx(keep(torch.tensor(0.8), 1.0).item(), abs=0.01)


def test_unsolved_is_open():
    def unsolved(*args):
        raise NotImplementedError

    assert attempt(unsolved, training.check_variance_shares).kind == "open"
    assert attempt(unsolved, training.check_keep_probability).kind == "open"


# ---------------------------------------------------------------------------------- verdicts


def verdict(kept, within, cost, share, *, level_first=True, flat=0.02):
    if cost > 1 and not level_first:
        return "adaptive"
    if kept > 0.99:
        return "all on"
    if kept < 0.02:
        return "all off"
    if within < flat:
        return "at its cap" if abs(kept - 0.5) <= 0.02 else "uniform"
    if abs(cost) < 0.3:
        return "fixed pattern" if share > 0.5 else "interchangeable"
    return "adaptive" if cost > 1 else "undecided"


def test_the_right_verdict_is_right():
    assert training.check_verdict(verdict) is None


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda *mask: verdict(*mask, level_first=False), "come first"),
        (lambda kept, within, cost, share: verdict(kept, within, max(cost, 0), share), "the sign"),
        (
            lambda kept, within, cost, share: verdict(
                kept, within, 0 if share > 0.5 else cost, share
            ),
            "only if another image's mask costs nothing",
        ),
        (lambda k, w, c, s: verdict(0.5 if w < 0.01 and k == 0.3 else k, w, c, s), "next to 1/2"),
        (lambda k, w, c, s: verdict(k, w, c, 0.0), "tells these two apart"),
        (lambda *mask: verdict(*mask, flat=0.0), "this mask is"),
        (lambda *mask: "good", "not 'good'"),
    ],
)
def test_a_wrong_verdict_is_told_what_is_wrong(wrong, told):
    assert told in training.check_verdict(wrong)
