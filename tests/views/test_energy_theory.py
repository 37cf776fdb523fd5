"""The closed forms of one token's energy, against autograd, a root search and simulated descent."""

import math

import pytest
import torch

from ersm_core import EnergyMask
from ersm_lab.views import energy_theory as theory
from ersm_lab.views.energy_theory import Landscape

LANDSCAPES = [
    Landscape(lambda_unary=1.0),
    Landscape(lambda_unary=0.05),
    Landscape(lambda_unary=1.0, temperature=0.5),
    Landscape(lambda_unary=0.3, temperature=0.97),
    Landscape(lambda_unary=1.0, temperature=1.02),
    Landscape(lambda_unary=0.3, temperature=2.0),
    Landscape(lambda_unary=2.0, temperature=5.0),
    Landscape(lambda_unary=1.0, gate="energy"),
    Landscape(lambda_unary=0.4, gate="energy"),
]

STEP = Landscape(lambda_unary=0.7, gate="straight-through", temperature=0.5)


def name(landscape):
    return f"{landscape.gate}, l={landscape.lambda_unary:g}, T={landscape.temperature:g}"


every = pytest.mark.parametrize("landscape", LANDSCAPES, ids=name)
every_and_step = pytest.mark.parametrize("landscape", [*LANDSCAPES, STEP], ids=name)


@pytest.fixture
def tokens():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 5, 6, 7, dtype=torch.float64, generator=generator)


@every
@pytest.mark.parametrize("neighbourhood", [4, 8])
def test_slope_is_that_of_the_layer(landscape, neighbourhood, tokens):
    torch.manual_seed(0)
    mask = EnergyMask(
        5,
        lambda_unary=landscape.lambda_unary,
        lambda_pair=0.2,
        neighbourhood=neighbourhood,
        gate=landscape.gate,
        temperature=landscape.temperature,
        bias_init=0.3,
    ).double()
    with torch.no_grad():
        mask.weight.mul_(8)  # logits of both signs
    mask(tokens)
    (gradient,) = torch.autograd.grad(mask.loss(), mask.state.logit)  # (B, 1, H, W)
    cost = theory.pair_cost(tokens, lambda_pair=0.2, neighbourhood=neighbourhood)
    z = mask.state.logit.detach()
    slope = landscape.slope(z, cost) / z.numel()  # L_reg is a mean
    assert z.min() < -2 and z.max() > 2
    assert (slope - gradient).abs().max() < 1e-14 < gradient.abs().max()
    assert (landscape.mask(z) - mask.state.mask).abs().max() < 1e-14
    assert torch.allclose(landscape.value(z, cost).mean(), mask.loss(), rtol=1e-13, atol=0)


def test_slope_of_the_step_is_that_of_the_stable_layer(tokens):
    torch.manual_seed(0)
    mask = EnergyMask.stable(5, dim=None, lambda_unary=0.7, lambda_pair=0.2, bias_init=0.3).double()
    with torch.no_grad():
        mask.weight.mul_(8)  # logits of both signs
    mask(tokens)
    (gradient,) = torch.autograd.grad(mask.loss(), mask.state.logit)  # (B, 1, H, W)
    cost = theory.pair_cost(tokens, lambda_pair=0.2, neighbourhood=4)
    z = mask.state.logit.detach()
    assert z.min() < -2 and z.max() > 2
    slope = STEP.slope(z, cost) / z.numel()  # L_reg is a mean
    assert (slope - gradient).abs().max() < 1e-15 < gradient.abs().max()
    assert torch.equal(STEP.mask(z), mask.state.mask.detach().double())


def test_potential_of_the_step_is_the_integral_of_its_slope():
    z = torch.linspace(-12, 12, 240_001, dtype=torch.float64)
    middle = (z[:-1] + z[1:]) / 2
    for cost in (-0.7, 0.0, 0.4, 3.0):
        risen = STEP.value(z, cost) - STEP.value(z[0], cost)
        summed = (STEP.slope(middle, cost) * z.diff()).cumsum(0)  # midpoint rule, step 1e-4
        assert (risen[1:] - summed).abs().max() < 1e-8
    assert STEP.value(-60.0, 0.4) == pytest.approx(0.4)
    assert STEP.value(60.0, 0.4) == pytest.approx(0.7 * (math.log(2) - math.pi / 4))


def test_watershed_of_the_step():
    """Found on a fine grid of its slope, without the factor that underflows."""
    z = torch.linspace(-20, 20, 40_000, dtype=torch.float64)  # never 0
    s = torch.sigmoid(-2 * z)
    for ratio in (-3.0, -0.8, -0.6, 0.0, 0.3, 0.31, 0.7, 2.0, 50.0, 1e4):
        bracket = (z < 0) * torch.sigmoid(z) / (2 * s * (1 - s))
        bracket = bracket - torch.nn.functional.softplus(z) - ratio
        falls = (bracket[:-1] > 0) & (bracket[1:] <= 0)
        (place,) = z[:-1][falls]
        assert abs(STEP.watershed(0.7 * ratio) - place) < 0.0011, ratio
        assert STEP.phase(0.7 * ratio) == "bistable"
    assert STEP.watershed(0.7 * 0.3) == pytest.approx(0, abs=1e-12)  # up to 1 - ln 2
    assert STEP.resting(0.3) == -torch.inf


@every_and_step
def test_slope_is_the_derivative_of_the_value(landscape):
    z = torch.linspace(-30, 30, 400, dtype=torch.float64, requires_grad=True)
    for cost in (-0.7, 0.0, 0.4, 3.0):
        (gradient,) = torch.autograd.grad(landscape.value(z, cost).sum(), z)
        assert (landscape.slope(z, cost) - gradient).abs().max() < 1e-14


def test_the_regulariser_is_an_entropy():
    landscape = Landscape(lambda_unary=0.7)
    z = torch.linspace(-20, 20, 101, dtype=torch.float64)
    m = landscape.mask(z)
    entropy = -0.7 * m * m.log() + 0.2 * m
    assert torch.allclose(landscape.value(z, 0.2), entropy, rtol=1e-12, atol=1e-15)


@every
def test_watershed_is_where_the_slope_falls_through_zero(landscape):
    """Found on a fine grid, without the formulas of the watershed."""
    z = torch.linspace(-80, 80, 80_001, dtype=torch.float64)
    for ratio in (-0.8, 0.0, 0.3, 0.8, 0.97, 1.01, 1.25, 2.5, 8.0):
        cost = ratio * landscape.lambda_unary
        found = landscape.watershed(cost)
        if landscape.gate == "energy":
            bracket = 1 - torch.sigmoid(landscape.unary(z)) * (landscape.unary(z) + cost)
        else:  # the slope without its factor m (1 - m), which underflows
            t = landscape.temperature
            bracket = t * torch.sigmoid(z) / torch.sigmoid(z / t)
            bracket = bracket - torch.nn.functional.softplus(z) - ratio
        falls = (bracket[:-1] > 0) & (bracket[1:] <= 0)
        assert falls.sum() <= 1
        assert bool(falls.any()) == (landscape.phase(cost) == "bistable"), ratio
        if falls.any():
            assert abs(found - z[:-1][falls]) < 0.0021, ratio
        else:
            assert found.isnan(), ratio


def test_watershed_in_closed_form():
    landscape = Landscape(lambda_unary=0.5)
    assert landscape.watershed(0.0) == pytest.approx(math.log(math.e - 1))
    assert landscape.mask(landscape.watershed(0.2)) == pytest.approx(math.exp(0.4 - 1))
    top = landscape.value(landscape.watershed(0.2), 0.2)
    assert top == pytest.approx(0.5 * math.exp(0.4 - 1))  # the barrier's height
    assert landscape.watershed(0.5).isnan() and landscape.watershed(0.7).isnan()


@every_and_step
def test_both_sides_of_the_watershed(landscape):
    cost = 0.6 * landscape.lambda_unary
    ridge = landscape.watershed(cost)
    start = torch.stack([ridge - 0.1, ridge + 0.1])
    time = 40 / landscape.lambda_unary
    path = theory.evolve(landscape, start, cost, steps=1000, step_size=time / 200)  # (1001, 2)
    assert landscape.keeps(start, cost).tolist() == [True, False]
    assert path[-1, 0] < ridge - 0.2 and path[-1, 1] > ridge + 0.2


@pytest.mark.parametrize("temperature", [0.3, 0.5, 0.9])
def test_a_cold_gate_always_has_a_barrier(temperature):
    landscape = Landscape(lambda_unary=1.0, temperature=temperature)
    for cost in (1.5, 20.0, 1e4):
        assert landscape.phase(cost) == "bistable"
        assert landscape.slope(landscape.watershed(cost) - 0.5, cost) > 0


@pytest.mark.parametrize("temperature", [1.1, 1.7, 2.0, 2.6, 6.0])
def test_a_warm_gate_has_a_resting_point(temperature):
    landscape = Landscape(lambda_unary=0.5, temperature=temperature)
    z = torch.linspace(-200, 50, 100_001, dtype=torch.float64)
    top = (landscape._pull(z)).max()
    assert landscape.highest_cost() == pytest.approx(0.5 * top.item(), abs=1e-5)
    cost = 0.8 * landscape.highest_cost()
    rest, ridge = landscape.resting(cost), landscape.watershed(cost)
    assert rest < math.log(temperature - 1) < ridge
    assert abs(landscape.slope(rest, cost)) < 1e-12
    assert landscape.slope(rest - 0.1, cost) < 0 < landscape.slope(rest + 0.1, cost)
    assert landscape.resting(0.0) == -torch.inf
    assert landscape.resting(1.01 * landscape.highest_cost()).isnan()


def test_the_energy_gate_goes_to_its_cap():
    """For the weights in use, from every logit that a network could have."""
    landscape = Landscape(lambda_unary=1e-3, gate="energy")
    assert landscape.watershed(8e-3) > 1000
    assert (landscape.slope(torch.linspace(-50, 50, 101), 8e-3) > 0).all()
    assert landscape.mask(-40.0) == pytest.approx(0.5)
    assert landscape.phase(1.99) == "bistable" and landscape.phase(2.0) == "drops"


@every_and_step
def test_the_flow_never_climbs(landscape):
    generator = torch.Generator().manual_seed(0)
    start = 4 * torch.randn(50, dtype=torch.float64, generator=generator)
    cost = 2 * landscape.lambda_unary * torch.rand(50, dtype=torch.float64, generator=generator)
    step = 0.2 / landscape.lambda_unary * min(1, landscape.temperature)
    path = theory.evolve(landscape, start, cost, steps=300, step_size=step)  # (301, 50)
    values = landscape.value(path, cost)
    assert path.shape == (301, 50) and torch.equal(path[0], start)
    assert (values[1:] <= values[:-1] + 1e-15).all() and (values[-1] < values[0]).all()


def test_a_flow_without_steps_is_the_start():
    path = theory.evolve(LANDSCAPES[0], torch.zeros(3), 0.1, steps=0, step_size=1.0)
    assert path.shape == (1, 3) and not path.any()


@pytest.mark.parametrize("neighbourhood", [4, 8])
def test_pair_gradient_is_that_of_the_layer(neighbourhood, tokens):
    layer = EnergyMask(5, lambda_unary=0, lambda_pair=0.3, neighbourhood=neighbourhood).double()
    free = tokens.clone().requires_grad_()
    state = layer.compute(free)
    loss = (state.mask.detach() * state.pairwise).mean()
    (gradient,) = torch.autograd.grad(loss, free)  # (B, D, H, W)
    by_hand = theory.pair_gradient(
        tokens, state.mask.detach(), lambda_pair=0.3, neighbourhood=neighbourhood
    )
    assert (by_hand - gradient).abs().max() < 1e-15 < gradient.abs().max()


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="lambda_unary must be finite and > 0"):
        Landscape(lambda_unary=0)
    with pytest.raises(ValueError, match="temperature"):
        Landscape(lambda_unary=1, temperature=-1)
    with pytest.raises(ValueError, match="gate must be"):
        Landscape(lambda_unary=1, gate="soft")
    with pytest.raises(ValueError, match="give a straight-through gate temperature"):
        Landscape(lambda_unary=1, gate="straight-through")
    with pytest.raises(ValueError, match="steps >= 0"):
        theory.evolve(LANDSCAPES[0], torch.zeros(1), 0.1, steps=-1, step_size=1.0)
    with pytest.raises(ValueError, match="step_size > 0"):
        theory.evolve(LANDSCAPES[0], torch.zeros(1), 0.1, steps=1, step_size=0.0)
