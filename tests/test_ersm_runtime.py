"""Masks under autocast, compilation, DDP, another memory format, and outside of PyTorch."""

import copy
import io
import warnings
from importlib.util import find_spec

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from ersm_core import EnergyMask, attach_energy_mask, energy_loss, energy_states

SETTINGS = [
    {},
    {"gate": "energy", "lambda_unary": 0.5},
    {"hard": True},
    {"patch_size": 2, "dim": 4},
    {"preset": "stable"},
    {"preset": "published", "grid": (8, 8)},
]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


def masked_cnn(**settings):
    """x (B, 3, 8, 8) -> logits (B, 5), with a mask after the activation of the first convolution."""
    cnn = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    return attach_energy_mask(cnn, "2", **settings)


def step(network, x):
    """Output, loss and gradients of one training step, from the same random numbers."""
    torch.manual_seed(1)
    network.zero_grad()
    y = network(x)
    loss = F.cross_entropy(y, torch.arange(len(x)) % 5) + 10 * energy_loss(network)
    loss.backward()
    return y.detach(), loss.detach(), [p.grad.clone() for p in network.parameters()]


def assert_same_step(one, other, atol=1e-6):
    torch.testing.assert_close(one, other, rtol=1e-5, atol=atol)


# --- precision and memory format -------------------------------------------------------------------


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_autocast_computes_the_layers_in_bfloat16_and_energies_in_float32(settings):
    network = masked_cnn(**settings).eval()
    x = torch.randn(2, 3, 8, 8)
    full = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        half = network(x)
        loss = energy_loss(network)
    assert half.dtype == torch.bfloat16 and loss.dtype == torch.float32
    assert all(part.dtype == torch.float32 for part in energy_states(network)["2"])
    if not network[2].energy_mask.hard:  # a hard token next to the threshold may flip
        torch.testing.assert_close(half.float(), full, rtol=0.05, atol=0.05)
    (half.float().sum() + loss).backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_autocast_does_not_change_the_energies_of_float32_tokens():
    mask, x = EnergyMask(4, lambda_pair=1.0), torch.randn(2, 4, 5, 6)
    mask(x)
    outside = mask.state
    with torch.autocast("cpu", torch.bfloat16):
        mask(x)
        loss = mask.loss()
    for one, other in zip(outside, mask.state, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(loss, (outside.mask * outside.energy).mean())


@pytest.mark.parametrize("settings", [{}, {"preset": "stable"}])
def test_a_network_in_bfloat16_trains(settings):
    network = masked_cnn().bfloat16()
    y, loss, gradients = step(network, torch.randn(2, 3, 8, 8, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16 and loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize(
    "settings", [{}, {"dim": 2}, {"hard": True}, {"patch_size": 2}, {"enabled": False}], ids=str
)
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_the_memory_format_is_kept(memory_format, settings):
    enabled = settings.pop("enabled", True) if settings else True
    mask = EnergyMask(4, **settings).eval()
    mask.enabled = enabled
    x = torch.randn(2, 4, 6, 8)
    y = mask(x.contiguous(memory_format=memory_format))
    assert y.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(y, mask(x))


# --- torch.compile ---------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_compiled_step_is_the_same_step_in_one_graph(settings, backend, fresh_compiler):
    network = masked_cnn(**settings)
    compiled = torch.compile(copy.deepcopy(network), backend=backend, fullgraph=True)
    for x in (torch.randn(3, 3, 8, 8), torch.randn(3, 3, 8, 8)):  # the state follows every pass
        assert_same_step(step(compiled, x), step(network, x))
        states = energy_states(compiled)["2"], energy_states(network)["2"]
        for one, other in zip(*states, strict=True):
            torch.testing.assert_close(one, other)


def test_a_compiled_network_sees_its_mask_switched_and_its_weight_changed(fresh_compiler):
    network = masked_cnn().eval()
    twin = copy.deepcopy(network)
    compiled = torch.compile(twin, backend="eager")
    x = torch.randn(2, 3, 8, 8)
    for enabled, lambda_pair in ((False, 0.1), (True, 0.1), (True, 0.7)):
        for masked in (twin, network):
            masked[2].energy_mask.enabled = enabled
            masked[2].energy_mask.lambda_pair = lambda_pair
        torch.testing.assert_close(compiled(x), network(x))
        assert len(energy_states(compiled)) == int(enabled)
        if enabled:
            torch.testing.assert_close(energy_loss(compiled), energy_loss(network))


# --- distributed -----------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_step_under_ddp_is_the_same_step(settings, one_process):
    network = masked_cnn(**settings)
    parallel = nn.parallel.DistributedDataParallel(copy.deepcopy(network))
    for _ in range(2):  # the second step fails if a parameter had no gradient in the first
        x = torch.randn(3, 3, 8, 8)
        assert_same_step(step(parallel, x), step(network, x))
    assert list(energy_states(parallel)) == ["2"]


# --- export ----------------------------------------------------------------------------------------

EXPORTED = [
    {},
    {"gate": "energy", "lambda_unary": 0.5},
    {"hard": True},
    {"hard": True, "gate": "energy"},
    {"patch_size": 2},
    {"preset": "stable"},
    {"preset": "published", "grid": (8, 8)},
]


def exportable(settings):
    """A masked network in evaluation mode with a varied 0/1 or soft mask, an image, its state."""
    network, x = masked_cnn(**settings), torch.randn(2, 3, 8, 8)
    for _ in range(20):  # statistics of the batch normalisation
        network(torch.randn(8, 3, 8, 8))
    mask = network.eval()[2].energy_mask
    network(x)
    z = mask.state.logit.detach().flatten().sort().values
    z = z[len(z) // 4 : -len(z) // 4]
    widest = z.diff().argmax()  # the threshold goes where rounding moves no token across it
    mask.bias.data -= (z[widest] + z[widest + 1]) / 2
    network(x)
    return network, x, mask.state


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
@pytest.mark.parametrize("settings", EXPORTED, ids=str)
def test_onnx_gives_the_same_output(settings, exporter):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    if exporter == "dynamo" and not find_spec("onnxscript"):
        pytest.skip("torch.onnx.export(dynamo=True) needs onnxscript")
    network, x, state = exportable(settings)
    expected = network(x).detach()
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that exporters change, and that sizes are fixed
        if exporter == "dynamo":
            torch.onnx.export(network, (x,), dynamo=True).save(file)
        else:
            torch.onnx.export(network, (x,), file, dynamo=False)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), expected, rtol=1e-5, atol=1e-6)
    assert 0.01 < state.mask.mean() < 0.99  # the mask had something to do
    network[2].energy_mask.enabled = False
    assert (network(x) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("settings", EXPORTED, ids=str)
def test_torch_export_gives_the_same_output_and_leaves_the_state(settings):
    network, x, _ = exportable(settings)
    expected = network(x)
    before = energy_states(network)["2"]
    exported = torch.export.export(network, (x,)).module()
    torch.testing.assert_close(exported(x), expected)
    for one, other in zip(energy_states(network)["2"], before, strict=True):
        assert torch.equal(one, other)  # no traced tensors in it
