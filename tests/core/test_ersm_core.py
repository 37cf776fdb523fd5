"""The Energy-Mask Layer against plain loops, closed forms, finite differences and its limits."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from ersm_core import EnergyMask, EnergyState, energy_terms

EDGES = [(0, 1), (0, -1), (1, 0), (-1, 0)]
CORNERS = [(1, 1), (1, -1), (-1, 1), (-1, -1)]
CHECKERBOARD = torch.tensor([[(-1.0) ** (i + j) for j in range(5)] for i in range(4)])  # (4, 5)
MAPS = {  # float64, (B, D, H, W)
    "random": torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)),
    "constant": torch.tensor([1.0, -2.0, 0.5]).view(1, 3, 1, 1).expand(1, 3, 3, 3),
    "checkerboard": torch.tensor([1.0, 2.0]).view(1, 2, 1, 1) * CHECKERBOARD,
    "one token": torch.tensor([3.0, 4.0]).view(1, 2, 1, 1),
    "row": torch.randn(1, 2, 1, 6, generator=torch.Generator().manual_seed(1)),
    "column": torch.randn(3, 2, 6, 1, generator=torch.Generator().manual_seed(2)),
    "one channel": torch.randn(1, 1, 3, 4, generator=torch.Generator().manual_seed(3)),
    "mostly zero": F.pad(torch.ones(1, 3, 1, 1), (1, 2, 2, 1)),
    "tiny and huge": torch.tensor([1e-4, 1e6, 1.0]).view(1, 1, 1, 3) * torch.ones(1, 2, 2, 3),
}
MAPS = {name: tokens.double() for name, tokens in MAPS.items()}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def loops(tokens, weight, bias, neighbourhood):
    """`energy_terms` written down literally, in Python floats."""
    images, channels, height, width = tokens.shape
    p = {}
    for b in range(images):
        for i in range(height):
            for j in range(width):
                token = tokens[b, :, i, j].tolist()
                length = max(math.sqrt(sum(v * v for v in token)), 1e-6)
                p[b, i, j] = [v / length for v in token]
    logit = torch.zeros(images, 1, height, width, dtype=torch.float64)
    agreement = torch.zeros_like(logit)
    for (b, i, j), token in p.items():
        own_bias = float(bias[i, j] if bias.dim() else bias)
        logit[b, 0, i, j] = own_bias + sum(float(weight[d]) * token[d] for d in range(channels))
        for down, right in EDGES + (CORNERS if neighbourhood == 8 else []):
            neighbour = p.get((b, i + down, j + right), [0.0] * channels)
            agreement[b, 0, i, j] += sum(u * v for u, v in zip(token, neighbour, strict=True))
    return logit, agreement


def softplus(v):
    return torch.log1p(torch.exp(v))


def tokens_with_logits(z, **settings):
    """A mask over z.numel() tokens in a row whose logits are exactly z, and its input."""
    mask = EnergyMask(2, grid=(1, z.numel()), **settings).double()
    mask.weight.data.zero_()
    mask.bias.data.copy_(z.view(1, -1))
    x = torch.randn(1, 2, 1, z.numel(), generator=torch.Generator().manual_seed(4)).double()
    return mask, x


# --- energy_terms ----------------------------------------------------------------------------------


@pytest.mark.parametrize("per_position", [False, True])
@pytest.mark.parametrize("neighbourhood", [4, 8])
@pytest.mark.parametrize("name", MAPS)
def test_terms_equal_plain_loops(name, neighbourhood, per_position):
    tokens = MAPS[name]
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(tokens.shape[1], generator=generator).double()
    shape = tokens.shape[2:] if per_position else ()
    bias = torch.randn(shape, generator=generator).double()
    logit, agreement = energy_terms(tokens, weight, bias, neighbourhood=neighbourhood)
    expected_logit, expected_agreement = loops(tokens, weight, bias, neighbourhood)
    assert logit.shape == agreement.shape == (tokens.shape[0], 1, *tokens.shape[2:])
    torch.testing.assert_close(logit, expected_logit, rtol=0, atol=1e-13)
    torch.testing.assert_close(agreement, expected_agreement, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("tokens", "neighbourhood", "expected"),
    [  # what each token of a 3 x 3 map sees, worked out by hand
        (torch.ones(1, 2, 3, 3), 4, [[2, 3, 2], [3, 4, 3], [2, 3, 2]]),
        (torch.ones(1, 2, 3, 3), 8, [[3, 5, 3], [5, 8, 5], [3, 5, 3]]),
        (CHECKERBOARD[None, None, :3, :3], 4, [[-2, -3, -2], [-3, -4, -3], [-2, -3, -2]]),
        (CHECKERBOARD[None, None, :3, :3], 8, [[-1, -1, -1], [-1, 0, -1], [-1, -1, -1]]),
    ],
)
def test_agreement_counts_the_neighbours_inside_the_map(tokens, neighbourhood, expected):
    _, agreement = energy_terms(
        tokens, torch.ones(tokens.shape[1]), torch.tensor(0.0), neighbourhood=neighbourhood
    )
    torch.testing.assert_close(agreement[0, 0], torch.tensor(expected).float())


def test_terms_do_not_depend_on_the_length_of_a_token():
    tokens, weight, bias = MAPS["random"], torch.ones(3).double(), torch.tensor(0.3).double()
    lengths = torch.rand(2, 1, 4, 5, dtype=torch.float64) + 0.1
    for one, other in zip(
        energy_terms(tokens, weight, bias),
        energy_terms(tokens * lengths, weight, bias),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_tokens_are_computed_in_float32(dtype):
    tokens = (500 * MAPS["random"]).to(dtype)  # squares above the largest float16
    terms = energy_terms(tokens, torch.ones(3, dtype=dtype), torch.zeros((), dtype=dtype))
    expected = energy_terms(tokens.double(), torch.ones(3).double(), torch.tensor(0.0).double())
    for term, exact in zip(terms, expected, strict=True):
        assert term.dtype == torch.float32
        torch.testing.assert_close(term.double(), exact, rtol=0, atol=1e-5)


def test_a_zero_token_has_its_bias_as_logit_and_a_finite_gradient():
    tokens = torch.zeros(1, 3, 2, 2, requires_grad=True)
    logit, agreement = energy_terms(tokens, torch.ones(3), torch.tensor(0.7))
    assert torch.equal(logit, torch.full((1, 1, 2, 2), 0.7))
    assert torch.equal(agreement, torch.zeros(1, 1, 2, 2))
    (logit + agreement).sum().backward()
    assert tokens.grad.isfinite().all()


@pytest.mark.parametrize("per_position", [False, True])
@pytest.mark.parametrize("neighbourhood", [4, 8])
@pytest.mark.parametrize("size", [(3, 2), (1, 1), (1, 3)])
def test_terms_pass_gradcheck(size, neighbourhood, per_position):
    tokens = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(size if per_position else (), dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(
        lambda *inputs: energy_terms(*inputs, neighbourhood=neighbourhood), (tokens, weight, bias)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": torch.ones(3, 4, 4)}, r"tokens must be \(B, D, H, W\), got shape \(3, 4, 4\)"),
        ({"weight": torch.ones(5)}, r"weight must be \(3,\) for these tokens, got \(5,\)"),
        ({"weight": torch.ones(1, 3)}, r"weight must be \(3,\)"),
        ({"bias": torch.ones(4, 3)}, r"bias must be \(\) or \(4, 4\), got \(4, 3\)"),
        ({"bias": torch.ones(1)}, r"bias must be \(\) or \(4, 4\), got \(1,\)"),
        ({"neighbourhood": 6}, "neighbourhood must be 4 or 8, got 6"),
        ({"tokens": torch.full((1, 3, 4, 4), torch.nan)}, "NaN or infinity in tokens"),
        ({"tokens": torch.full((1, 3, 4, 4), torch.inf)}, "NaN or infinity in tokens"),
        ({"weight": torch.tensor([1.0, torch.inf, 1.0])}, "NaN or infinity in weight"),
        ({"bias": torch.tensor(torch.nan)}, "NaN or infinity in bias"),
        ({"tokens": torch.full((1, 3, 4, 4), 1e25)}, "tokens or weight overflow: .*float64"),
        ({"weight": torch.full((3,), 3e38)}, "tokens or weight overflow"),
        ({"tokens": torch.ones(1, 3, 4, 4).cfloat()}, "tokens must be a tensor of real numbers"),
        ({"bias": 0.0}, "bias must be a tensor of real numbers, got 0.0"),
    ],
)
def test_terms_say_what_is_wrong(change, message):
    good = {"tokens": torch.ones(1, 3, 4, 4), "weight": torch.ones(3), "bias": torch.tensor(0.0)}
    with pytest.raises(ValueError, match=message):
        energy_terms(**(good | change))


# --- state and loss: the closed forms --------------------------------------------------------------


@pytest.mark.parametrize("neighbourhood", [4, 8])
@pytest.mark.parametrize(("gate", "temperature"), [("logit", 1.0), ("logit", 0.3), ("energy", 1.0)])
def test_state_holds_the_published_formulas(gate, temperature, neighbourhood):
    mask = EnergyMask(
        3,
        grid=(4, 5),
        lambda_unary=0.2,
        lambda_pair=0.7,
        neighbourhood=neighbourhood,
        gate=gate,
        temperature=temperature,
    ).double()
    torch.nn.init.normal_(mask.bias, generator=torch.Generator().manual_seed(6))
    x = MAPS["random"]
    y = mask(x)
    z, a = loops(x, mask.weight.detach(), mask.bias.detach(), neighbourhood)
    unary, pairwise = 0.2 * softplus(z), 0.7 * softplus(a)
    kept = 1 / (1 + torch.exp(z / temperature if gate == "logit" else unary))
    expected = EnergyState(z, unary, pairwise, unary + pairwise, kept)
    for name in EnergyState._fields:
        torch.testing.assert_close(getattr(mask.state, name), getattr(expected, name), msg=name)
    torch.testing.assert_close(y, x * kept)
    torch.testing.assert_close(mask.loss(), (kept * (unary + pairwise)).sum() / kept.numel())


def test_projected_tokens_are_scored_and_the_input_itself_is_masked():
    mask = EnergyMask(3, dim=2, lambda_pair=1.0).double()
    x = MAPS["random"]
    y = mask(x)
    projected = torch.einsum("dc,bchw->bdhw", mask.project.weight[:, :, 0, 0], x)
    z, a = loops(projected, mask.weight.detach(), mask.bias.detach(), 8)
    torch.testing.assert_close(mask.state.logit, z)
    torch.testing.assert_close(mask.state.pairwise, softplus(a))
    torch.testing.assert_close(y, x * torch.sigmoid(-z))


def test_slope_of_the_logit_gate_is_bistable_with_its_watershed_at_softplus_one():
    """dL_reg/dz_i = m(1 - m)[lambda_u(1 - softplus(z)) - c] / N for fixed tokens."""
    watershed = math.log(math.e - 1)  # softplus(z) = 1
    z = torch.tensor([-3.0, 0.0, watershed - 0.01, watershed + 0.01, 2.0]).double()
    mask, x = tokens_with_logits(z, lambda_unary=0.3, lambda_pair=0.0)
    mask(x)
    (slope,) = torch.autograd.grad(mask.loss(), mask.bias)
    assert (slope[0, :3] > 0).all() and (slope[0, 3:] < 0).all()  # descent: opens, closes

    mask.lambda_pair = 0.2
    mask(x)
    (slope,) = torch.autograd.grad(mask.loss(), mask.bias)
    m, c = torch.sigmoid(-z), mask.state.pairwise.detach().flatten()
    expected = m * (1 - m) * (0.3 * (1 - softplus(z)) - c) / z.numel()
    torch.testing.assert_close(slope.flatten(), expected)

    mask.lambda_pair = 2.0  # c > lambda_unary everywhere: no barrier left, every token closes
    mask(x)
    assert (mask.state.pairwise > 0.3).all()
    (slope,) = torch.autograd.grad(mask.loss(), mask.bias)
    assert (slope < 0).all()


def test_slope_of_the_literal_gate_drives_small_energies_to_the_cap():
    """dL_reg/dz_i = lambda_u sigmoid(z) m [1 - (1 - m) E] / N > 0: descent lowers z, raises m."""
    z = torch.tensor([-4.0, -1.0, 0.0, 1.5, 3.0]).double()
    mask, x = tokens_with_logits(z, gate="energy", lambda_unary=0.1, lambda_pair=0.1)
    mask(x)
    (slope,) = torch.autograd.grad(mask.loss(), mask.bias)
    m, e = mask.state.mask.detach().flatten(), mask.state.energy.detach().flatten()
    torch.testing.assert_close(
        slope.flatten(), 0.1 * torch.sigmoid(z) * m * (1 - (1 - m) * e) / z.numel()
    )
    assert (slope > 0).all()


def test_the_literal_gate_keeps_at_most_half_and_has_no_temperature():
    z = torch.tensor([-1e4, -5.0, 0.0, 5.0, 200.0]).double()
    masks = []
    for temperature in (0.1, 1.0, 10.0):
        mask, x = tokens_with_logits(z, gate="energy", lambda_unary=0.5, temperature=temperature)
        mask(x)
        masks.append(mask.state.mask.flatten())
    assert torch.equal(masks[0], masks[1]) and torch.equal(masks[1], masks[2])
    assert masks[0][0] == 0.5 and (masks[0].diff() < 0).all() and masks[0][-1] < 1e-40
    mask, x = tokens_with_logits(z, gate="energy", lambda_unary=0.0)
    mask(x)
    assert (mask.state.mask == 0.5).all()


def test_temperature_sharpens_the_logit_gate_around_one_half():
    z = torch.tensor([-2.0, 0.0, 2.0]).double()
    for temperature in (0.1, 1.0, 10.0):
        mask, x = tokens_with_logits(z, temperature=temperature)
        mask(x)
        torch.testing.assert_close(mask.state.mask.flatten(), 1 / (1 + torch.exp(z / temperature)))


# --- gradients -------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", ["logit", "energy"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dim": 2},
        {"patch_size": 2, "neighbourhood": 4},
        {"grid": (4, 2), "temperature": 0.5},
        {"patch_size": 2, "dim": 3, "grid": (2, 1)},
    ],
    ids=str,
)
def test_soft_masks_pass_gradcheck(settings, gate):
    mask = EnergyMask(3, lambda_unary=0.4, lambda_pair=0.6, gate=gate, **settings).double()
    names, parameters = zip(*mask.named_parameters(), strict=True)

    def outputs(x, *values):
        y = functional_call(mask, dict(zip(names, values, strict=True)), (x,))
        return y, mask.loss()

    x = torch.randn(2, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(outputs, (x, *parameters))


@pytest.mark.parametrize("gate", ["logit", "energy"])
@pytest.mark.parametrize("settings", [{}, {"dim": 2, "temperature": 0.5}, {"patch_size": 2}])
def test_a_hard_mask_has_the_gradient_of_the_soft_one(settings, gate):
    soft = EnergyMask(3, gate=gate, **settings).double().eval()
    hard = EnergyMask(3, gate=gate, hard=True, **settings).double().eval()
    hard.load_state_dict(soft.state_dict())
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    upstream = torch.randn_like(x)  # dL/dy
    gradients = []
    for mask in (soft, hard):
        (mask(x) * upstream).sum().backward()
        gradients.append([parameter.grad for parameter in mask.parameters()])
    assert torch.equal(hard.state.mask, (soft.state.logit < 0).double())  # exactly 0 or 1
    assert 0 < hard.state.mask.mean() < 1
    for of_soft, of_hard in zip(*gradients, strict=True):
        assert of_soft.abs().max() > 0
        assert torch.equal(of_hard, of_soft)


def test_a_hard_mask_keeps_the_tokens_below_a_logit_of_zero():
    mask, x = tokens_with_logits(torch.tensor([-30.0, -1e-9, 0.0, 1e-9, 30.0]).double(), hard=True)
    mask.eval()(x)
    assert mask.state.mask.flatten().tolist() == [1, 1, 0, 0, 0]


def test_with_noise_a_hard_mask_has_the_gradient_of_the_concrete_relaxation():
    z = torch.linspace(-3, 3, 7).double()
    mask, x = tokens_with_logits(z, hard=True, temperature=0.5)
    torch.manual_seed(0)
    mask(x)
    (slope,) = torch.autograd.grad(mask.state.mask.sum(), mask.bias)
    torch.manual_seed(0)
    uniform = torch.rand(7, dtype=torch.float64)
    s = torch.sigmoid(-(z - torch.log(uniform / (1 - uniform))) / 0.5)  # Maddison et al., 2017
    torch.testing.assert_close(slope.flatten(), -s * (1 - s) / 0.5)
    assert torch.equal(mask.state.mask.flatten(), (s > 0.5).double())


@pytest.mark.parametrize("settings", [{}, {"dim": 2}])
def test_detach_pairwise_stops_the_pairwise_gradient_only(settings):
    free = EnergyMask(3, **settings).double()
    held = EnergyMask(3, detach_pairwise=True, **settings).double()
    held.load_state_dict(free.state_dict())
    x = MAPS["random"].clone().requires_grad_()
    assert torch.equal(free(x), held(x))
    for one, other in zip(free.state, held.state, strict=True):
        assert torch.equal(one, other)
    assert torch.autograd.grad(free.state.pairwise.sum(), x)[0].abs().max() > 0
    assert not held.state.pairwise.requires_grad
    # L_reg itself still reaches the features and the projection, through mask and unary energy.
    (held.state.mask * held.state.pairwise).sum().backward(retain_graph=True)
    assert x.grad.abs().max() > 0
    held.loss().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in held.parameters())


@pytest.mark.parametrize("settings", [{}, {"dim": 2}, {"patch_size": 2}])
def test_detach_tokens_leaves_the_features_to_the_task(settings):
    free = EnergyMask(3, **settings).double()
    held = EnergyMask(3, detach_tokens=True, **settings).double()
    held.load_state_dict(free.state_dict())
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.equal(free(x), held(x))
    assert torch.autograd.grad(free.loss(), x)[0].abs().max() > 0
    output = held(x)
    grad = torch.autograd.grad(output.sum() + held.loss(), x, retain_graph=True)[0]
    s = held.patch_size
    spread = held.state.mask.repeat_interleave(s, 2).repeat_interleave(s, 3)
    assert torch.equal(grad, spread.expand_as(x))  # that of m * x alone
    (output.sum() + held.loss()).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in held.parameters())


# --- noise of the hard gate ------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("logit", [-2.0, -0.5, 0.0, 1.5])
def test_noise_keeps_a_token_with_probability_sigmoid_of_minus_its_logit(logit, temperature):
    mask = EnergyMask(1, hard=True, temperature=temperature, bias_init=logit)
    mask.weight.data.zero_()
    torch.manual_seed(0)
    mask(torch.randn(2, 1, 100, 100))
    expected = 1 / (1 + math.exp(logit))
    standard_error = math.sqrt(expected * (1 - expected) / 20_000)
    assert set(mask.state.mask.unique().tolist()) == {0.0, 1.0}
    assert abs(mask.state.mask.mean().item() - expected) < 4 * standard_error
    assert not torch.equal(mask.state.mask[0], mask.state.mask[1])  # every image its own draw


def test_noise_is_drawn_in_training_only_and_repeats_with_the_seed():
    mask, x = EnergyMask(3, hard=True), torch.randn(2, 3, 8, 8)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(mask(x))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])
    mask.eval()
    state_of_generator = torch.get_rng_state()
    assert torch.equal(mask(x), mask(x))
    assert torch.equal(torch.get_rng_state(), state_of_generator)


def test_the_scale_of_the_noise_is_a_setting():
    mask = EnergyMask(1, hard=True, noise=0.0)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(mask(x), mask.eval()(x))
    mask = EnergyMask(1, hard=True, noise=0.5, bias_init=-1.0)
    mask.weight.data.zero_()
    mask(torch.randn(64, 1, 32, 32))
    expected = 1 / (1 + math.exp(-1 / 0.5))  # P(-1 < 0.5 logistic)
    assert mask.state.mask.mean().item() == pytest.approx(expected, abs=0.01)


def test_a_soft_mask_has_no_noise_in_training():
    mask, x = EnergyMask(3), torch.randn(2, 3, 8, 8)
    assert torch.equal(mask.train()(x), mask.eval()(x))


# --- limits and invariants -------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [-1e4, -math.inf])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("hard", [False, True])
def test_without_energy_and_at_the_lowest_logit_the_layer_is_the_identity(hard, training, bias):
    mask = EnergyMask(3, lambda_unary=0, lambda_pair=0, bias_init=bias, hard=hard).train(training)
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    y = mask(x)
    upstream = torch.randn_like(y)
    (gradient,) = torch.autograd.grad((y * upstream).sum() + mask.loss(), x)
    assert torch.equal(y, x) and torch.equal(gradient, upstream)
    assert mask.loss() == 0


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e3])
@pytest.mark.parametrize(
    "settings", [{}, {"gate": "energy"}, {"hard": True}, {"hard": True, "gate": "energy"}], ids=str
)
def test_mask_and_energy_stay_in_their_range(settings, scale, training):
    mask = EnergyMask(8, lambda_unary=1.0, lambda_pair=1.0, **settings).train(training)
    mask.weight.data.mul_(scale)
    torch.manual_seed(0)
    y = mask(100 * torch.randn(4, 8, 7, 5))
    state = mask.state
    top = 0.5 if settings == {"gate": "energy"} else 1.0
    assert y.isfinite().all() and (state.mask >= 0).all() and (state.mask <= top).all()
    assert (state.unary >= 0).all() and (state.pairwise >= 0).all() and (state.energy >= 0).all()
    assert mask.loss() >= 0
    if mask.hard:
        assert set(state.mask.unique().tolist()) == {0.0, 1.0}
    assert all(part.shape == (4, 1, 7, 5) for part in state)


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (1, 3, 1, 7), (2, 3, 5, 1), (1, 3, 4, 6)])
@pytest.mark.parametrize("hard", [False, True])
def test_any_map_and_a_batch_of_one_train(shape, hard):
    mask = EnergyMask(3, hard=hard)
    y = mask(torch.randn(shape))
    (y.sum() + mask.loss()).backward()
    assert y.shape == shape
    assert all(parameter.grad.isfinite().all() for parameter in mask.parameters())


def test_images_of_a_batch_do_not_see_each_other():
    mask, x = EnergyMask(3, dim=2).eval(), torch.randn(3, 3, 4, 4)
    torch.testing.assert_close(mask(x)[1:2], mask(x[1:2]))


# --- patches and grid ------------------------------------------------------------------------------


def test_a_patch_is_one_token_and_its_mask_covers_it():
    mask = EnergyMask(3, patch_size=2, lambda_pair=1.0).double()
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    kept = mask(x) / x  # (2, 3, 4, 6)
    patches = x.reshape(2, 3, 2, 2, 3, 2).permute(0, 1, 3, 5, 2, 4).reshape(2, 12, 2, 3)
    z, a = loops(patches, mask.weight.detach(), mask.bias.detach(), 8)
    torch.testing.assert_close(mask.state.logit, z)
    torch.testing.assert_close(mask.state.pairwise, softplus(a))
    spread = torch.sigmoid(-z).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(kept, spread.expand(2, 3, 4, 6))


def test_patch_size_equal_to_the_map_leaves_one_token():
    mask = EnergyMask(3, patch_size=4, lambda_pair=1.0)
    mask(torch.randn(2, 3, 4, 4))
    assert mask.state.mask.shape == (2, 1, 1, 1)
    torch.testing.assert_close(mask.state.pairwise, torch.full((2, 1, 1, 1), math.log(2)))


def test_every_position_of_a_grid_has_its_own_bias_from_the_constructor_on():
    mask = EnergyMask(3, patch_size=2, grid=(2, 3), bias_init=6.0)
    assert dict(mask.named_parameters())["bias"].shape == (2, 3)
    assert (mask.bias == 6).all()
    optimiser = torch.optim.SGD(mask.parameters(), lr=1.0)
    before = mask.bias.detach().clone()
    mask(torch.randn(2, 3, 4, 6)).sum().backward()
    optimiser.step()
    assert (mask.bias != before).all()


def test_parameters_exist_before_the_first_forward_and_no_others_appear():
    mask = EnergyMask(3, dim=2)
    before = {name: p.shape for name, p in mask.named_parameters()}
    assert before == {"weight": (2,), "bias": (), "project.weight": (2, 3, 1, 1)}
    mask(torch.randn(1, 3, 4, 4))
    assert {name: p.shape for name, p in mask.named_parameters()} == before


def test_numbers_of_numpy_are_numbers():
    mask = EnergyMask(np.int64(8), dim=np.uint8(4), grid=(np.int32(2), 3), noise=np.float32(0.5))
    assert type(mask.channels) is int and mask.grid == (2, 3) and type(mask.noise) is float
    assert mask(torch.randn(1, 8, 2, 3)).shape == (1, 8, 2, 3)


def test_a_held_bias_is_saved_but_not_trained():
    mask = EnergyMask(3, grid=(2, 2), bias_init=6.0, train_bias=False)
    assert [name for name, _ in mask.named_parameters()] == ["weight"]
    assert torch.equal(mask.state_dict()["bias"], torch.full((2, 2), 6.0))


# --- presets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fixed_bias", [False, True])
def test_published_is_what_the_authors_released(fixed_bias):
    mask = EnergyMask.published(8, grid=(4, 4), fixed_bias=fixed_bias)
    assert (mask.lambda_unary, mask.lambda_pair, mask.neighbourhood) == (1e-3, 1e-3, 8)
    assert (mask.gate, mask.temperature, mask.hard) == ("logit", 1.0, False)
    assert isinstance(mask.project, torch.nn.Identity) and not mask.detach_pairwise
    assert torch.equal(mask.bias, torch.full((4, 4), 6.0))
    assert isinstance(mask.bias, torch.nn.Parameter) is not fixed_bias
    mask.weight.data.zero_()
    mask(torch.randn(1, 8, 4, 4))
    torch.testing.assert_close(mask.state.mask, torch.full((1, 1, 4, 4), 1 / (1 + math.exp(6))))


def test_stable_is_a_hard_projected_gate_without_noise_that_starts_open():
    mask = EnergyMask.stable(8)
    assert (mask.hard, mask.noise, mask.temperature, mask.gate) == (True, 0.0, 0.5, "logit")
    assert (mask.lambda_unary, mask.lambda_pair) == (0.02, 0.02)
    assert (mask.neighbourhood, mask.detach_pairwise) == (4, True)
    assert mask.project.weight.shape == (16, 8, 1, 1) and mask.bias == -1
    mask.eval()(torch.randn(8, 8, 6, 6))
    assert (mask.state.mask == 1).float().mean() > 0.9


def test_settings_take_precedence_over_a_preset():
    assert EnergyMask.stable(8, neighbourhood=8, dim=None).neighbourhood == 8
    assert EnergyMask.published(8, bias_init=0.0).bias == 0


# --- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 0}, "channels must be a whole number of at least 1, got 0"),
        ({"channels": True}, "channels must be a whole number of at least 1, got True"),
        ({"dim": 0}, "dim must be a whole number of at least 1, got 0"),
        ({"dim": False}, "dim must be a whole number of at least 1, got False"),
        ({"patch_size": 1.5}, "patch_size must be a whole number of at least 1, got 1.5"),
        ({"lambda_unary": -0.1}, "lambda_unary must be a number from 0 to 1e9, got -0.1"),
        ({"lambda_unary": True}, "lambda_unary must be a number from 0 to 1e9, got True"),
        ({"lambda_unary": 10**400}, "lambda_unary must be a number from 0 to 1e9, got 1000"),
        ({"lambda_pair": -1}, "lambda_pair must be a number from 0 to 1e9, got -1"),
        ({"lambda_pair": math.nan}, "lambda_pair must be a number from 0 to 1e9, got nan"),
        ({"lambda_pair": "0.1"}, "lambda_pair must be a number from 0 to 1e9, got '0.1'"),
        ({"noise": -1.0}, "noise must be a number from 0 to 1e9, got -1"),
        ({"temperature": 0.0}, "temperature must be a number from 1e-09 to 1e9, got 0.0"),
        ({"temperature": math.inf}, "temperature must be a number from 1e-09 to 1e9, got inf"),
        ({"bias_init": math.nan}, "bias_init must be a number from -inf to 1e9, got nan"),
        ({"bias_init": math.inf}, "bias_init must be a number from -inf to 1e9, got inf"),
        ({"gate": "sigmoid"}, 'gate must be "logit" or "energy", got \'sigmoid\''),
        ({"neighbourhood": 5}, "neighbourhood must be 4 or 8, got 5"),
        ({"hard": "no"}, "hard must be True or False, got 'no'"),
        ({"detach_tokens": 2}, "detach_tokens must be True or False, got 2"),
        ({"train_bias": None}, "train_bias must be True or False, got None"),
        ({"channels": 10**12}, "choose smaller channels, dim, patch_size or grid: 1000000000001 w"),
        ({"dim": 10**5, "patch_size": 10**5}, "choose smaller channels, dim, patch_size or grid"),
        ({"grid": (10**6, 10**6)}, "choose smaller channels, dim, patch_size or grid"),
        ({"grid": 8}, r"grid must be \(H, W\) of the token map or None, got 8"),
        ({"grid": (2, -2)}, "a side of grid must be a whole number of at least 1, got -2"),
        ({"grid": ()}, r"grid must be \(H, W\)"),
        ({"grid": (2, 2, 2)}, r"grid must be \(H, W\)"),
    ],
    ids=str,
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        EnergyMask(**({"channels": 3} | settings))


@pytest.mark.parametrize(
    ("settings", "x", "message"),
    [
        ({}, torch.ones(3, 4, 4), r"expects a feature map \(B, C, H, W\), got shape \(3, 4, 4\)"),
        ({}, (torch.ones(1, 3, 4, 4),), r"expects a feature map \(B, C, H, W\), got tuple"),
        ({}, torch.ones(1, 3, 4, 4, dtype=torch.uint8), "floating-point numbers, got torch.uint8"),
        ({}, torch.ones(1, 5, 4, 4), r"made for 3 channels, got a map of 5: .*EnergyMask\(5"),
        ({"patch_size": 2}, torch.ones(1, 3, 0, 4), "0 x 4 does not divide into patches"),
        ({"patch_size": 2}, torch.ones(1, 3, 4, 5), "4 x 5 does not divide into patches of 2 x 2"),
        ({"grid": (4, 4)}, torch.ones(1, 3, 4, 5), r"grid=\(4, 4\) .*with grid=\(4, 5\)"),
        (
            {"grid": (4, 4), "patch_size": 2},
            torch.ones(1, 3, 4, 4),
            r"has 2 x 2 tokens: make the mask with grid=\(2, 2\)",
        ),
    ],
)
def test_a_map_that_does_not_fit_is_refused(settings, x, message):
    with pytest.raises(ValueError, match=message):
        EnergyMask(3, **settings)(x)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("dim", [None, 2])
def test_nan_tokens_are_refused_unless_they_may_pass(value, dim):
    x = torch.ones(1, 3, 4, 4)
    x[0, 1, 2, 3] = value
    with pytest.raises(ValueError, match=r"NaN logits.*check_nan=False"):
        EnergyMask(3, dim=dim)(x)
    y = EnergyMask(3, dim=dim, check_nan=False)(x)
    assert y[0, :, 2, 3].isnan().all() and y.isnan().sum() == 3


def test_nan_parameters_are_refused():
    mask = EnergyMask(3)
    mask.bias.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN logits"):
        mask(torch.ones(1, 3, 4, 4))


def test_the_loss_needs_a_forward_first():
    mask = EnergyMask(3)
    with pytest.raises(RuntimeError, match="run a forward pass"):
        mask.loss()
    mask(torch.ones(1, 3, 4, 4))
    mask.loss()
    mask.enabled = False
    mask(torch.ones(1, 3, 4, 4))
    with pytest.raises(RuntimeError, match="run a forward pass"):  # not that of an older pass
        mask.loss()


def test_a_disabled_mask_is_the_identity():
    mask, x = EnergyMask(3), torch.randn(1, 3, 4, 4)
    mask.enabled = False
    assert mask(x) is x
    assert mask.state is None
