"""Sparse codes against explicit matrices, scikit-learn and the conditions of optimality."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import ElasticNet
from torch import nn

from ersm_lab.evaluation import inference
from ersm_lab.evaluation.sparse_lambda import (
    LabelFreeLambda,
    oracle_lambda,
    set_lambda,
    sparse_layers,
    using_lambda,
)
from ersm_lab.images import data
from ersm_lab.networks import backbones, fista
from ersm_lab.networks.fista import (
    PUBLISHED,
    CSCSettings,
    analyse,
    largest_eigenvalue,
    sparse_code,
    synthesise,
)
from ersm_lab.networks.sdnet import attach_sparse_coding, sdnet18
from ersm_lab.networks.sparse_coding import SparseCoding2d, unit_atoms
from ersm_lab.training import runs

# kernel, stride, padding, size of the input
SHAPES = [
    ((3, 3), (1, 1), (1, 1), (5, 5)),
    ((3, 3), (2, 2), (1, 1), (6, 7)),
    ((3, 2), (2, 3), (0, 1), (7, 8)),
    ((1, 1), (2, 2), (0, 0), (5, 4)),
    ((4, 4), (2, 2), (1, 1), (7, 9)),
]
every_shape = pytest.mark.parametrize(("kernel", "stride", "padding", "size"), SHAPES)
SIGNS = pytest.mark.parametrize("nonnegative", [True, False])


def problem(kernel=(3, 3), stride=(1, 1), padding=(1, 1), size=(5, 5), *, channels=2, atoms=3):
    """Two inputs, a dictionary, the matrix of A (C H W, K h w) and 1 / lambda_max, in float64."""
    generator = torch.Generator().manual_seed(3)
    shape = (2, channels, *size)
    x = torch.randn(shape, dtype=torch.float64, generator=generator)
    weight = torch.randn(atoms, channels, *kernel, dtype=torch.float64, generator=generator)
    dictionary = unit_atoms(weight)
    code = F.conv2d(x[:1], dictionary, stride=stride, padding=padding)
    basis = torch.eye(code.numel(), dtype=torch.float64).view(-1, *code.shape[1:])
    columns = synthesise(basis, dictionary, size=size, stride=stride, padding=padding)
    matrix = columns.flatten(1).T
    step = 1 / torch.linalg.eigvalsh(matrix.T @ matrix)[-1].item()
    return x, dictionary, matrix, step


def layer(channels=2, atoms=3, kernel=3, stride=1, padding=1, *, seed=0, **settings):
    torch.manual_seed(seed)
    return SparseCoding2d(
        channels, atoms, kernel, stride, padding, settings=CSCSettings(**settings)
    )


@pytest.fixture
def iterations(monkeypatch):
    """A list that grows by one with every iteration of a power iteration."""
    done = []

    power = fista._there_and_back

    def count(*args):
        done.append(1)
        return power(*args)

    monkeypatch.setattr(fista, "_there_and_back", count)
    return done


# --- the operator ----------------------------------------------------------------------------------


@every_shape
def test_synthesis_is_the_adjoint_of_a_convolution(kernel, stride, padding, size):
    x, dictionary, _, _ = problem(kernel, stride, padding, size)
    a_t_x = analyse(x, dictionary, stride=stride, padding=padding)
    assert torch.equal(a_t_x, F.conv2d(x, dictionary, stride=stride, padding=padding))
    code = torch.randn_like(a_t_x)
    a_c = synthesise(code, dictionary, size=size, stride=stride, padding=padding)
    assert a_c.shape == x.shape
    assert (a_c * x).sum().item() == pytest.approx((code * a_t_x).sum().item(), rel=1e-12)


def test_a_code_is_not_put_back_into_an_input_of_another_size():
    dictionary, code = torch.randn(3, 2, 3, 3), torch.randn(1, 3, 4, 4)
    kernel = {"stride": (2, 2), "padding": (1, 1)}
    for side in (7, 8):  # both have codes of 4 x 4
        assert synthesise(code, dictionary, size=(side, side), **kernel).shape[2:] == (side, side)
    for side in (6, 9):
        with pytest.raises(ValueError, match="give the size"):
            synthesise(code, dictionary, size=(8, side), **kernel)


@every_shape
def test_power_iteration_finds_the_largest_eigenvalue(kernel, stride, padding, size):
    _, dictionary, matrix, step = problem(kernel, stride, padding, size)
    place = {"stride": stride, "padding": padding, "max_iterations": 20_000}
    value, vector = largest_eigenvalue(dictionary, size, tolerance=1e-9, **place)
    assert value == pytest.approx(1 / step, rel=1e-9)
    assert vector.norm().item() == pytest.approx(1)
    image = vector.flatten()
    torch.testing.assert_close(matrix @ (matrix.T @ image), value * image, rtol=0, atol=1e-7)
    rough, _ = largest_eigenvalue(dictionary, size, **place)
    assert 1 - 2 * PUBLISHED.tolerance < rough * step <= 1 + 1e-12


def test_the_step_of_a_layer_is_stable():
    coder = layer(3, 64)
    small = unit_atoms(coder.weight).double().detach()
    exact, _ = largest_eigenvalue(
        small, (12, 12), padding=(1, 1), tolerance=1e-4, max_iterations=5_000
    )
    assert 0.9 <= coder.step_size((12, 12)).item() * exact < 0.9 * 1.015


def test_power_iteration_says_when_it_fails():
    weight = torch.randn(3, 2, 3, 3)
    with pytest.warns(RuntimeWarning, match="raise max_iterations or tolerance"):
        largest_eigenvalue(weight, (6, 6), tolerance=1e-6, max_iterations=3)
    with pytest.raises(ValueError, match="learning rate too high"):
        largest_eigenvalue(weight * torch.nan, (6, 6))


# --- the code --------------------------------------------------------------------------------------


def slow_fista(matrix, x, *, step, lambda_l1, mu, steps, nonnegative, accelerate):
    """One input (C H W,), the equations one by one with the matrix of A."""
    codes, y, t = [torch.zeros(matrix.shape[1], dtype=x.dtype)], None, 1.0
    y = codes[0]
    for _ in range(steps):
        z = y + step * matrix.T @ (x - matrix @ y)
        if nonnegative:
            shrunk = [max(v - step * lambda_l1, 0.0) for v in z.tolist()]
        else:
            shrunk = [math.copysign(max(abs(v) - step * lambda_l1, 0.0), v) for v in z.tolist()]
        codes.append(torch.tensor(shrunk, dtype=x.dtype) / (1 + step * mu))
        t_next = (1 + math.sqrt(1 + 4 * t**2)) / 2
        y = codes[-1]
        if accelerate:
            y = y + (t - 1) / t_next * (codes[-1] - codes[-2])
        t = t_next
    return codes[-1]


@every_shape
@SIGNS
@pytest.mark.parametrize(("mu", "accelerate"), [(0.0, True), (0.4, True), (0.0, False)])
def test_steps_are_those_of_a_slow_reference(
    kernel, stride, padding, size, nonnegative, mu, accelerate
):
    x, dictionary, matrix, step = problem(kernel, stride, padding, size)
    settings = {"step": step, "mu": mu, "nonnegative": nonnegative, "accelerate": accelerate}
    for steps in (1, 2, 3, 6):
        settings["steps"] = steps
        place = {"stride": stride, "padding": padding}
        code = sparse_code(x, dictionary, lambda_l1=0.2, **settings, **place)
        for image, own in zip(x, code, strict=True):
            slow = slow_fista(matrix, image.flatten(), lambda_l1=0.2, **settings)
            torch.testing.assert_close(own.flatten(), slow, rtol=0, atol=1e-13)


@SIGNS
def test_every_image_can_have_a_lambda_of_its_own(nonnegative):
    x, dictionary, _, step = problem()
    settings = {"step": step, "steps": 3, "padding": (1, 1), "nonnegative": nonnegative, "mu": 0.1}
    lambdas = torch.tensor([0.1, 0.7])
    code = sparse_code(x, dictionary, lambda_l1=lambdas, **settings)
    for k, value in enumerate(lambdas.tolist()):
        alone = sparse_code(x[k : k + 1], dictionary, lambda_l1=value, **settings)
        torch.testing.assert_close(code[k : k + 1], alone)
    assert (code[0] == 0).sum() < (code[1] == 0).sum()


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size", "mu"),
    [*((*shape, 0.0) for shape in SHAPES), *((*shape, 0.3) for shape in SHAPES[:2])],
)
@SIGNS
def test_the_converged_code_is_optimal_and_scikit_learns(
    kernel, stride, padding, size, mu, nonnegative
):
    value = 0.3
    x, dictionary, matrix, step = problem(kernel, stride, padding, size)
    code = sparse_code(
        x,
        dictionary,
        step=step,
        lambda_l1=value,
        mu=mu,
        steps=1_000,
        nonnegative=nonnegative,
        stride=stride,
        padding=padding,
    )
    a_c = synthesise(code, dictionary, size=size, stride=stride, padding=padding)
    slope = analyse(x - a_c, dictionary, stride=stride, padding=padding) - mu * code
    used = code != 0
    assert 0 < used.sum() < used.numel()
    torch.testing.assert_close(slope[used], value * code[used].sign(), rtol=0, atol=1e-6)
    assert (slope if nonnegative else slope.abs()).max() <= value + 1e-6
    assert not nonnegative or code.min() == 0

    count = matrix.shape[0]
    reference = ElasticNet(
        alpha=(value + mu) / count,
        l1_ratio=value / (value + mu),
        fit_intercept=False,
        positive=nonnegative,
        tol=1e-12,
        max_iter=200_000,
    )
    for image, own in zip(x, code, strict=True):
        found = torch.from_numpy(reference.fit(matrix, image.flatten()).coef_)
        torch.testing.assert_close(own.flatten(), found, rtol=0, atol=1e-5)


@SIGNS
@pytest.mark.parametrize("mu", [0.0, 0.3])
def test_the_objective_of_ista_never_rises(nonnegative, mu):
    coder = layer(stride=2).double().requires_grad_(False)
    x, values = torch.randn(3, 2, 7, 6, dtype=torch.float64), {}
    for accelerate, steps in itertools.product([False, True], range(1, 40)):
        coder.settings = CSCSettings(
            nonnegative=nonnegative, mu=mu, accelerate=accelerate, steps=steps
        )
        values[accelerate, steps] = coder.objective(x, coder(x))  # (B,)
    blank = coder.objective(x, torch.zeros_like(coder(x)))
    torch.testing.assert_close(blank, x.square().sum((1, 2, 3)) / 2)
    ista = torch.stack([blank, *(values[False, steps] for steps in range(1, 40))])
    assert (ista.diff(dim=0) < 0).all()
    assert (values[True, 39] <= values[False, 39]).all()  # what momentum is for


def test_the_objective_is_what_its_formula_says():
    coder, x = layer(mu=0.5, lambda_l1=0.2, nonnegative=False).double(), torch.randn(2, 2, 5, 5)
    x, code = x.double(), torch.randn(2, 3, 5, 5, dtype=torch.float64)
    for value, own, image in zip(coder.objective(x, code), code, x, strict=True):
        rest = image - coder.reconstruct(own[None], (5, 5))[0]
        by_hand = 0.2 * own.abs().sum() + 0.25 * (own**2).sum() + 0.5 * (rest**2).sum()
        assert value.item() == pytest.approx(by_hand.item())
        assert coder.rms_residual(image[None], own[None]).item() == pytest.approx(
            (rest**2).mean().sqrt().item()
        )


def test_without_lambda_an_overcomplete_code_gives_the_input_back():
    coder = layer(1, 9, lambda_l1=0.0, nonnegative=False, steps=3_000).double()
    x = torch.randn(2, 1, 6, 6, dtype=torch.float64)
    code = coder(x)
    torch.testing.assert_close(coder.reconstruct(code, (6, 6)), x, rtol=0, atol=1e-6)
    one = layer(1, 9, lambda_l1=0.0, nonnegative=False, steps=1).double()
    step = one.step_size((6, 6))
    torch.testing.assert_close(one(x), step * F.conv2d(x, one.dictionary(), padding=1))


@SIGNS
def test_from_some_lambda_on_the_code_is_zero(nonnegative):
    coder, x = layer(steps=5, nonnegative=nonnegative), torch.randn(1, 2, 6, 6)
    agreement = F.conv2d(x, coder.dictionary(), padding=1)
    highest = (agreement if nonnegative else agreement.abs()).max().item()
    for value, there in ((0.99 * highest, True), (1.01 * highest, False), (1e6, False)):
        with using_lambda(coder, value):
            assert coder(x).any().item() is there
    assert torch.equal(coder.residual(x, torch.zeros(1, 3, 6, 6)), x)


# --- gradients -------------------------------------------------------------------------------------


@SIGNS
@pytest.mark.parametrize(("mu", "stride"), [(0.0, 1), (0.2, 2)])
@pytest.mark.parametrize("lambda_l1", [0.1, torch.tensor([0.1, 0.2])], ids=["one", "each"])
def test_gradient_through_the_steps(nonnegative, mu, stride, lambda_l1):
    torch.manual_seed(0)
    x = torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)

    def code(x, weight):
        return sparse_code(
            x,
            unit_atoms(weight),
            step=0.2,
            lambda_l1=lambda_l1,
            mu=mu,
            steps=4,
            nonnegative=nonnegative,
            stride=(stride, stride),
            padding=(1, 1),
        )

    assert code(x, weight).any() and (code(x, weight) == 0).any()
    assert torch.autograd.gradcheck(code, (x, weight))


def test_the_layer_holds_its_step_constant_in_the_gradient():
    coder, x = layer(steps=3).double(), torch.randn(2, 2, 6, 5, dtype=torch.float64)
    coder(x).square().sum().backward()
    weight = coder.weight.detach().clone().requires_grad_()
    settings = {"lambda_l1": 0.1, "steps": 3, "padding": (1, 1)}
    step = coder.step_size((6, 5)).item()
    sparse_code(x, unit_atoms(weight), step=step, **settings).square().sum().backward()
    torch.testing.assert_close(coder.weight.grad, weight.grad)
    along = (coder.weight * coder.weight.grad).sum((1, 2, 3))  # an atom has no length to learn
    torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-10)


# --- the layer -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (32, 5)])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (1, 2, 0), ((5, 3), (2, 1), (2, 0))]
)
def test_it_is_a_drop_in_for_a_convolution(kernel, stride, padding, size):
    conv = nn.Conv2d(2, 6, kernel, stride, padding, bias=False)
    coder = SparseCoding2d(2, 6, kernel, stride, padding)
    x = torch.randn(2, 2, *size)
    assert coder(x).shape == conv(x).shape
    assert coder.weight.shape == conv.weight.shape
    assert [n for n, _ in coder.named_parameters()] == ["weight"]
    assert coder.reconstruct(coder(x), size).shape == x.shape
    taken = SparseCoding2d.from_conv(conv.eval())
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "training"):
        assert getattr(taken, name) == getattr(conv, name)
    torch.testing.assert_close(taken.weight, unit_atoms(conv.weight))


def test_atoms_have_unit_length_whatever_the_weights():
    coder, x = layer(), torch.randn(1, 2, 6, 6)
    lengths = torch.ones(3)
    torch.testing.assert_close(coder.weight.flatten(1).norm(dim=1), lengths)
    code = coder(x)
    with torch.no_grad():
        coder.weight *= torch.tensor([0.1, 3.0, 20.0]).view(3, 1, 1, 1)
    torch.testing.assert_close(coder.dictionary().flatten(1).norm(dim=1), lengths)
    torch.testing.assert_close(coder(x), code, rtol=1e-3, atol=1e-5)
    with torch.no_grad():
        coder.weight.zero_()
    assert not coder(x).any()


def test_the_step_is_kept_until_the_weights_change(iterations):
    coder, x = layer().eval(), torch.randn(1, 2, 8, 8)

    def spent(run):
        del iterations[:]
        run()
        return len(iterations)

    assert spent(lambda: coder(x)) > 3
    assert spent(lambda: coder(x)) == 0
    other = torch.randn(1, 2, 5, 8)
    assert spent(lambda: coder(other)) > 0
    assert spent(lambda: (coder(x), coder(other), coder.train()(x), coder.eval()(x))) == 0

    def all_atoms_alike():
        with torch.no_grad():
            coder.weight[:] = coder.weight[:1]

    before = coder.step_size((8, 8))
    all_atoms_alike()
    assert spent(lambda: coder(x)) > 0
    assert coder.step_size((8, 8)) < before
    state = layer(seed=1).state_dict()
    coder.load_state_dict(state)
    assert spent(lambda: coder(x)) > 0
    coder.weight.data = torch.randn_like(coder.weight)
    assert spent(lambda: coder(x)) > 0
    coder.weight.data += 0.1
    assert spent(lambda: coder(x)) > 0
    twin = copy.deepcopy(coder)
    assert spent(lambda: twin(x)) == 0 and torch.equal(twin(x), coder(x))
    with torch.no_grad():
        twin.weight += torch.randn_like(twin.weight)
    assert spent(lambda: coder(x)) == 0 < spent(lambda: twin(x))
    assert spent(lambda: coder.double()(x.double())) > 0


@pytest.mark.parametrize("fused", [False, True])
def test_in_training_the_power_iteration_goes_on_from_its_last_vector(iterations, fused):
    coder, x = layer(3, 16), torch.randn(4, 3, 12, 12)
    optimiser = torch.optim.SGD(coder.parameters(), lr=1e-3, fused=fused)
    spent = []
    for _ in range(4):
        del iterations[:]
        coder(x).square().mean().backward()
        optimiser.step()
        spent.append(len(iterations))
    assert spent[0] > 10
    assert all(1 <= count <= 3 for count in spent[1:])
    vector = coder._vector.clone()
    coder.eval()(x)
    coder(torch.randn(1, 3, 9, 9))
    assert torch.equal(coder._vector, vector)


def small_network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        SparseCoding2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 4)
    )


def trained(network, first, last, optimiser=None):
    optimiser = optimiser or torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for step in range(first, last):
        x = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(step))
        network.train()(x).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    return optimiser


@pytest.mark.parametrize("evaluated", [False, True])  # before it is saved, as after every epoch
def test_a_resumed_run_is_the_same_run(evaluated):
    def three_steps(network):
        optimiser = trained(network, 0, 3)
        if evaluated:
            network.eval()(torch.zeros(8, 3, 6, 6))
        return optimiser

    through = small_network()
    trained(through, 3, 6, three_steps(through))
    first = small_network()
    optimiser = three_steps(first)
    resumed = small_network(seed=1)
    resumed.load_state_dict(first.state_dict())
    again = torch.optim.SGD(resumed.parameters(), lr=0.1, momentum=0.9)
    again.load_state_dict(optimiser.state_dict())
    trained(resumed, 3, 6, again)
    for name, value in through.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_it_stands_averaging_halving_and_inference_mode():
    network, x = small_network(), torch.randn(2, 3, 6, 6)
    average = torch.optim.swa_utils.AveragedModel(network, use_buffers=True)
    with torch.inference_mode():
        network.eval()(x)  # its step must serve the training that follows
    optimiser = trained(network, 0, 2)
    average.update_parameters(network)
    trained(network, 2, 4, optimiser)
    average.update_parameters(network)
    average.module.eval()(x)
    network.load_state_dict(average.module.state_dict())
    trained(network, 4, 5)
    state = runs.halve(network)
    fresh = small_network(seed=1)
    fresh.load_state_dict(state)
    assert torch.equal(fresh.eval()(x), network.eval()(x))
    with torch.inference_mode():
        born = small_network().eval()
        assert torch.equal(born(x), small_network().eval()(x))


def test_under_autocast_convolutions_are_of_low_precision_and_atoms_are_not():
    coder, x = layer(3, 16, steps=3), torch.randn(2, 3, 8, 8)
    code, step = coder(x), coder.step_size((8, 8))
    with torch.autocast("cpu", torch.bfloat16):
        low = coder(x)
        assert low.dtype == F.conv2d(x, coder.weight).dtype == torch.bfloat16
        assert coder.dictionary().dtype == torch.float32
        assert coder.objective(x, low).dtype == coder.residual(x, low).dtype == torch.float32
        assert torch.equal(layer(3, 16, steps=3).step_size((8, 8)), step)
        low.float().sum().backward()
    assert coder.weight.grad.dtype == torch.float32
    torch.testing.assert_close(low.float(), code, rtol=0.03, atol=0.01)
    half = copy.deepcopy(coder).bfloat16()
    assert half(x.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(half(x.bfloat16()).float(), code, rtol=0.05, atol=0.02)


def test_a_compiled_layer_is_the_same_layer():
    torch._dynamo.reset()
    coder, x = layer(3, 8, steps=3), torch.randn(2, 3, 8, 8)
    twin = copy.deepcopy(coder)
    compiled = torch.compile(twin, backend="eager")
    for lambda_l1 in (0.1, 0.3):
        set_lambda(coder, lambda_l1)
        set_lambda(twin, lambda_l1)
        for own in (coder, compiled):
            own(x).square().sum().backward()
        torch.testing.assert_close(twin.weight.grad, coder.weight.grad)
        with torch.no_grad():
            for own in (coder, twin):
                own.weight -= 0.01 * own.weight.grad
        torch.testing.assert_close(compiled(x), coder(x))
    torch._dynamo.reset()


def test_it_leaves_the_random_numbers_alone_and_prints_nothing(capsys):
    torch.manual_seed(0)
    coder = layer()
    state = torch.get_rng_state()
    coder(torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), state)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lambda_l1": -0.1}, "lambda_l1 must be a finite number at least 0"),
        ({"lambda_l1": math.inf}, "lambda_l1 must be a finite number"),
        ({"mu": math.nan}, "mu must be a finite number"),
        ({"steps": 0}, "steps must be a whole number of at least 1 and at most .*, got 0"),
        ({"steps": 2.0}, "steps must be a whole number"),
        ({"step_factor": 1.2}, "step_factor must be a finite number above 0 and at most 1"),
        ({"tolerance": 0.0}, "tolerance must be a finite number above 0 and below 1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        CSCSettings(**settings)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="kernel_size must be a whole number of at least 1"):
        SparseCoding2d(3, 4, 0)
    with pytest.raises(ValueError, match="stride must be one number or two"):
        SparseCoding2d(3, 4, 3, (1, 1, 1))
    coder = layer(padding=0)
    with pytest.raises(ValueError, match=r"expected an input \(B, 2, H, W\), got shape \(1, 3,"):
        coder(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"got shape \(2, 8, 8\)"):
        coder(torch.zeros(2, 8, 8))
    with pytest.raises(ValueError, match="smaller than the kernel"):
        coder(torch.zeros(1, 2, 8, 2))
    set_lambda(coder, torch.tensor([0.1, 0.2]))
    with pytest.raises(ValueError, match=r"set for \(2,\) images and the batch has 3"):
        coder(torch.zeros(3, 2, 8, 8))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bias": True}, "a bias"),
        ({"groups": 2}, "2 groups"),
        ({"dilation": 2}, "dilation"),
        ({"padding": "same"}, "give it as numbers"),
        ({"padding": 1, "padding_mode": "reflect"}, "padding_mode='reflect'"),
    ],
)
def test_a_convolution_that_no_code_can_replace_is_refused(settings, message):
    conv = nn.Conv2d(4, 6, 3, **({"bias": False} | settings))
    with pytest.raises(ValueError, match=message):
        SparseCoding2d.from_conv(conv)


# --- networks --------------------------------------------------------------------------------------


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def seen_shapes(model, x):
    """{name: shape of its output} of the sparse coding layers, in evaluation mode."""
    shapes = {}
    for name, found in sparse_layers(model).items():
        found.register_forward_hook(
            lambda module, args, code, name=name: shapes.update({name: tuple(code.shape[1:])})
        )
    with torch.no_grad():
        model.eval()(x)
    return shapes


def test_sdnet18_is_the_resnet_with_a_code_for_its_first_layer():
    model = sdnet18()
    assert parameters(model) == parameters(backbones.resnet18()) == 11_173_962
    assert seen_shapes(model, torch.randn(1, 3, 32, 32)) == {"conv1": (64, 32, 32)}
    x = torch.randn(2, 3, 17, 23)  # no size is frozen
    assert model(x).shape == (2, 10) and sdnet18(classes=7).eval()(x).shape == (2, 7)
    assert model.conv1.settings == PUBLISHED == CSCSettings()
    stem = model.train().bn1(model.conv1(x))
    taken = []
    model.layer1.register_forward_pre_hook(lambda module, args: taken.append(args[0]))
    model(x)
    assert torch.equal(taken[0], stem) and (stem < 0).any()  # BatchNorm after it, no ReLU


@pytest.mark.parametrize(
    "settings",
    [backbones.SMOKE, backbones.CifarNetSettings(widths=(8,), stem_kernel=2, stem_stride=1)],
    ids=["no pooling", "pooling"],
)
def test_a_code_takes_the_place_of_the_first_learned_convolution(settings):
    torch.manual_seed(0)
    dense = backbones.CifarNet(settings)
    model = attach_sparse_coding(copy.deepcopy(dense))
    coder, conv = model.group1[0], dense.group1[0]
    assert list(sparse_layers(model)) == ["group1.0"]
    assert parameters(model) == parameters(dense)
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in dense.named_parameters()]
    identity = conv.weight[: conv.in_channels]
    assert torch.equal(coder.weight[: conv.in_channels], identity)  # one pixel of one channel
    kinds = [type(m) for m in model.group1]
    kept = [type(m) for m in attach_sparse_coding(copy.deepcopy(dense), keep_relu=True).group1]
    first = kept.index(nn.ReLU)
    assert kinds[first] is nn.Identity
    assert kinds[:first] == kept[:first] and kinds[first + 1 :] == kept[first + 1 :]
    x = torch.randn(4, 3, 32, 32)
    assert model(x).shape == dense(x).shape
    model(x).sum().backward()
    assert coder.weight.grad.any()


def test_attaching_names_what_is_wrong():
    model = backbones.CifarNet(backbones.SMOKE)
    with pytest.raises(ValueError, match=r"no convolution 'group1'.*group1\.0"):
        attach_sparse_coding(model, "group1")
    with pytest.raises(ValueError, match="a bias and frozen weights: name another"):
        attach_sparse_coding(model, "stem.0")
    assert not sparse_layers(model)
    with pytest.raises(ValueError, match="attach_sparse_coding puts one in"):
        set_lambda(model, 0.1)


# --- lambda at test time ---------------------------------------------------------------------------


def test_lambda_is_set_and_put_back():
    model = nn.Sequential(layer(), layer(3, 3, lambda_l1=0.4))
    first, second = model
    set_lambda(model, 0.2)
    assert (first.lambda_l1, second.lambda_l1) == (0.2, 0.2)
    set_lambda(model, 0.5, layer="1")
    assert (first.lambda_l1, second.lambda_l1) == (0.2, 0.5)
    with pytest.raises(RuntimeError, match="within"), using_lambda(model, 0.9):
        assert (first.lambda_l1, second.lambda_l1) == (0.9, 0.9)
        raise RuntimeError("within")
    assert (first.lambda_l1, second.lambda_l1) == (0.2, 0.5)
    assert second.settings.lambda_l1 == 0.4  # what it was made with
    for bad in (-0.1, math.nan, torch.tensor([0.1, -1.0]), torch.ones(2, 2)):
        with pytest.raises(ValueError, match="lambda must be"):
            set_lambda(model, bad)
    with pytest.raises(ValueError, match="no sparse coding layer '2'; there are: 0, 1"):
        set_lambda(model, 0.1, layer="2")


class Spikes(nn.Module):
    """Tells images of few or many spikes apart by the sum of codes of one pixel, max(x - lambda, 0)."""

    def __init__(self):
        super().__init__()
        self.code = SparseCoding2d(1, 1, 1, settings=CSCSettings(step_factor=1.0, steps=1))
        nn.init.ones_(self.code.weight)

    def forward(self, x):
        total = self.code(x).sum((1, 2, 3)) / 8  # (B,)
        return torch.stack([total, 2 - total], 1)  # (B, 2)


def spikes(count=60):
    generator = torch.Generator().manual_seed(0)
    place = torch.rand(count, 1, 8, 8, generator=generator)
    share = torch.linspace(0.1, 0.4, count).view(-1, 1, 1, 1)
    return 2.0 * (place < share)


def test_label_free_lambda_rises_with_the_noise():
    model, images = Spikes(), spikes()
    noise, grid = (0.0, 0.2, 0.4, 0.8), [0.1, 0.2, 0.4, 0.8, 1.2]
    chosen = LabelFreeLambda.fit(model, images, noise=noise, grid=grid, bins=6, batch_size=17)
    assert chosen.layer == "code" and chosen.reference == 0.1
    assert len(chosen.residuals) == len(chosen.lambdas) == 6
    assert list(chosen.residuals) == sorted(chosen.residuals)
    assert list(chosen.lambdas) == sorted(chosen.lambdas)
    assert grid[0] <= chosen.lambdas[0] < chosen.lambdas[-1] <= grid[-1]
    lots = torch.Generator().manual_seed(9)
    means = [
        chosen.choose(images + sigma * torch.randn(images.shape, generator=lots)).mean().item()
        for sigma in noise
    ]
    assert means == sorted(means) and means[0] < means[-1]
    assert model.code.lambda_l1 == 0.1 and model.training


def test_label_free_lambda_on_clean_images_is_that_of_training():
    chosen = LabelFreeLambda.fit(Spikes(), spikes(), noise=(0.0,), grid=[0.1, 0.3], bins=3)
    assert chosen.lambdas == pytest.approx((0.1, 0.1, 0.1))


def test_label_free_lambda_against_a_slow_reference():
    model, images = Spikes(), spikes(20)
    noise, grid, bins = (0.0, 0.5), [0.1, 0.5, 1.0], 4
    chosen = LabelFreeLambda.fit(model, images, noise=noise, grid=grid, bins=bins, seed=3)
    lots, rows = torch.Generator().manual_seed(3), []
    for sigma in noise:
        noisy = images + sigma * torch.randn(images.shape, generator=lots)
        for image, clean in zip(noisy, images, strict=True):
            rest = image - (image - 0.1).clamp(min=0)
            target = model(clean[None])[0].softmax(0)
            lost = []
            for value in grid:
                total = (image - value).clamp(min=0).sum() / 8
                logits = torch.stack([total, 2 - total]).log_softmax(0)
                lost.append((target * (target.log() - logits)).sum().item())
            rows.append(((rest**2).mean().sqrt().item(), lost))
    rows.sort()
    groups = [rows[k * 10 : k * 10 + 10] for k in range(bins)]
    assert chosen.residuals == pytest.approx([sum(r for r, _ in g) / 10 for g in groups], rel=1e-4)
    best = []
    for group in groups:
        mean = [sum(lost[k] for _, lost in group) for k in range(3)]
        best.append(grid[mean.index(min(mean))])
    for k in range(1, bins):  # pool neighbours that fall, by brute force
        assert chosen.lambdas[k] >= chosen.lambdas[k - 1]
    assert sum(chosen.lambdas) == pytest.approx(sum(best))
    if best == sorted(best):
        assert chosen.lambdas == pytest.approx(best)


def test_applied_codes_every_image_with_its_own_lambda():
    model, x = Spikes().eval(), spikes(6) + 0.3 * torch.randn(6, 1, 8, 8)
    chosen = LabelFreeLambda(
        model=model, layer="code", reference=0.1, residuals=(0.05, 0.35), lambdas=(0.1, 1.0)
    )
    lambdas = chosen.choose(x)
    assert len(set(lambdas.tolist())) > 1
    torch.testing.assert_close(chosen.choose(x, batch_size=4), lambdas)
    with chosen.applied():
        together = model(x)
    assert model.code.lambda_l1 == 0.1 and not model.code._forward_pre_hooks
    for k in range(6):
        with using_lambda(model, lambdas[k].item()):
            torch.testing.assert_close(together[k : k + 1], model(x[k : k + 1]))
    outside = chosen.of_residual(torch.tensor([0.0, 0.2, 5.0]))
    torch.testing.assert_close(outside, torch.tensor([0.1, 0.55, 1.0]))


def test_label_free_lambda_says_what_is_missing():
    with pytest.raises(ValueError, match="give more images"):
        LabelFreeLambda.fit(Spikes(), spikes(2), noise=(0.0,), bins=3)
    model = Spikes()
    set_lambda(model, 0.0)
    with pytest.raises(ValueError, match="give a grid"):
        LabelFreeLambda.fit(model, spikes(20))
    set_lambda(model, torch.ones(4))
    with pytest.raises(ValueError, match="the number it had in training"):
        LabelFreeLambda.fit(model, spikes(20))


def test_the_oracle_has_the_best_accuracy_of_its_grid():
    torch.manual_seed(0)
    images = data.load("shapes", "test", limit=60)
    model = attach_sparse_coding(backbones.CifarNet(backbones.SMOKE)).eval()
    best = oracle_lambda(model, images, [2.0, 0.1, 0.5])
    assert best.grid == (0.1, 0.5, 2.0)
    for value, share in zip(best.grid, best.accuracy, strict=True):
        with using_lambda(model, value):
            assert share == inference.accuracy(model, images)
    assert best.accuracy[best.grid.index(best.value)] == max(best.accuracy)
    assert model.group1[0].lambda_l1 == 0.1
    with pytest.raises(ValueError, match="grid of lambdas is empty"):
        oracle_lambda(model, images, [])
