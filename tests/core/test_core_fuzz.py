"""Made-up settings and maps: the core raises an error that says what to do, or its result is defined."""

import math

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("hypothesis")

from hypothesis import example, given, settings
from hypothesis import strategies as st

from ersm_attach import attach_energy_mask, detach_energy_mask
from ersm_core import EnergyMask, energy_loss, energy_states, energy_terms

FUZZ = settings(max_examples=150, derandomize=True, deadline=None, database=None)
HUGE = [2**31, 2**63, 10**30, 10**400, 1e10, 1e300]
FLOATS = st.floats(width=32) | st.sampled_from(
    [0.0, -0.0, 1e-9, 1e9, math.inf, -math.inf, math.nan]
)
JUNK = (
    st.none()
    | st.booleans()
    | st.integers(-3, 9)
    | st.sampled_from(HUGE)
    | FLOATS
    | st.text(max_size=3)
    | st.lists(st.integers(-1, 3), max_size=3)
    | st.builds(np.int64, st.integers(-1, 4))
    | st.builds(np.float32, FLOATS)
    | st.just(torch.ones(2))
)
WHOLE, WEIGHT, FLAG = st.integers(1, 3), st.floats(0, 1e9), st.booleans()
GOOD = {
    "channels": WHOLE,
    "dim": st.none() | WHOLE,
    "patch_size": WHOLE,
    "grid": st.none() | st.tuples(WHOLE, WHOLE),
    "lambda_unary": WEIGHT,
    "lambda_pair": WEIGHT,
    "neighbourhood": st.sampled_from([4, 8]),
    "gate": st.sampled_from(["logit", "energy"]),
    "temperature": st.floats(1e-9, 1e9),
    "noise": WEIGHT,
    "bias_init": st.floats(-1e9, 1e9) | st.just(-math.inf),
    **dict.fromkeys(["hard", "detach_pairwise", "detach_tokens", "train_bias"], FLAG),
}


@st.composite
def mixed(draw, good, most_bad=2):
    """Good values for some of the names, and for up to two of them whatever comes."""
    names = draw(st.sets(st.sampled_from(sorted(good)))) | {next(iter(good))}
    bad = draw(st.lists(st.sampled_from(sorted(names)), max_size=most_bad))
    return {name: draw(JUNK if name in bad else good[name]) for name in sorted(names)}


def assert_helps(error):
    """The message is ours: it names what was wrong and what is right."""
    assert any(word in str(error) for word in ("must be", "choose", "expects", "overflow", "NaN"))


@FUZZ
@given(mixed(GOOD), st.integers(0, 2), st.integers(0, 2**31 - 1))
@example({"channels": 2, "bias_init": -math.inf}, 1, 0)
@example({"channels": 2, "lambda_unary": 1e9, "bias_init": 1e9, "temperature": 1e-9}, 1, 0)
def test_a_mask_is_refused_or_works(chosen, images, seed):
    torch.manual_seed(seed)
    try:
        mask = EnergyMask(**chosen)
    except ValueError as error:
        assert_helps(error)
        return
    side = mask.patch_size
    height, width = mask.grid or (2, 3)
    x = torch.randn(images, mask.channels, height * side, width * side, requires_grad=True)
    y = mask(x)
    loss = mask.loss()
    assert y.shape == x.shape and y.isfinite().all() and loss.isfinite() and loss >= 0
    assert mask.state.mask.shape == (images, 1, height, width)
    assert ((0 <= mask.state.mask) & (mask.state.mask <= 1)).all()
    (y.sum() + loss).backward()
    assert x.grad.isfinite().all()
    for parameter in mask.parameters():
        assert parameter.grad.isfinite().all()


DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool]
VALUES = [1.0, 1e-30, 1e4, 1e15, 1e30, 3e38, math.nan, math.inf, 0.0]


@st.composite
def tensors(draw, shape):
    """Normal numbers at some scale, or one bad one among them, in any type."""
    scale, dtype = draw(st.sampled_from([1.0] * 8 + VALUES)), draw(st.sampled_from(DTYPES))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    return (x * scale).to(dtype)


@FUZZ
@given(st.data())
def test_terms_are_refused_or_finite(data):
    shape = data.draw(st.tuples(*[st.integers(0, 3)] * 4) | st.lists(st.integers(0, 2), max_size=5))
    shape = tuple(shape)
    tokens = data.draw(
        tensors(shape) | JUNK if data.draw(st.integers(0, 9)) == 0 else tensors(shape)
    )
    weight = data.draw(tensors(shape[1:2]) | tensors((2,)))
    bias = data.draw(tensors(()) | tensors(shape[2:]) | JUNK)
    neighbourhood = data.draw(st.sampled_from([4, 8]) | JUNK)
    try:
        terms = energy_terms(tokens, weight, bias, neighbourhood=neighbourhood)
    except ValueError as error:
        assert_helps(error)
        return
    for term in terms:
        assert term.shape == (shape[0], 1, *shape[2:]) and term.isfinite().all()
    assert (terms[1].abs() <= neighbourhood + 1e-3).all()


@FUZZ
@given(st.data())
def test_a_map_is_refused_or_masked(data):
    shape = data.draw(st.tuples(*[st.integers(0, 4)] * 4) | st.lists(st.integers(0, 2), max_size=5))
    x = data.draw(tensors(tuple(shape)))
    mask = EnergyMask.stable(2, patch_size=data.draw(WHOLE), dim=data.draw(st.none() | WHOLE))
    try:
        y = mask(x)
    except ValueError as error:
        assert any(word in str(error) for word in ("expects", "made for", "divide", "NaN", "empty"))
        return
    assert y.shape == x.shape and y.dtype == x.dtype
    assert y.isfinite().all() and mask.loss().isfinite()


NETWORK = {
    "layer": st.sampled_from(["0", "1", "1.0", "3", "1.1"]),
    "channels": st.none() | st.just(4),
    "preset": st.sampled_from([None, "stable", "published"]),
    "lambda_pair": WEIGHT,
    "dim": GOOD["dim"],
}


@FUZZ
@given(mixed(NETWORK))
def test_attaching_is_refused_or_undone(chosen):
    inner = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    network = nn.Sequential(nn.Conv2d(3, 4, 3), inner, nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    names, x = list(network.state_dict()), torch.randn(2, 3, 5, 5)
    try:
        attach_energy_mask(network, **chosen)
    except ValueError as error:
        assert any(
            word in str(error) for word in ("must be", "nearest names", "such as", "choose smaller")
        )
    else:
        network(x)
        assert list(energy_states(network)) == [chosen["layer"]]
        assert energy_loss(network).isfinite() and energy_loss(network).requires_grad
        detach_energy_mask(network)
    assert list(network.state_dict()) == names
    with pytest.raises(ValueError, match="no enabled energy mask"):
        energy_loss(network)
