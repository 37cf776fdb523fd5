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
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint
from torchvision.models import resnet18
from torchvision.models.feature_extraction import create_feature_extractor

from ersm_attach import attach_energy_mask
from ersm_core import EnergyMask, energy_loss, energy_states, energy_terms

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


@pytest.mark.parametrize("of_mask", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("of_map", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("settings", [{}, {"dim": None}, {"patch_size": 2}], ids=str)
def test_maps_and_masks_of_any_precision_go_together(settings, of_map, of_mask):
    mask, x = EnergyMask.stable(4, hard=False, **settings).to(of_mask), torch.randn(2, 4, 6, 6)
    exact = copy.deepcopy(mask).double()
    y = mask(x.to(of_map).requires_grad_())
    assert y.dtype == of_map
    wanted = exact(x.to(of_map).double())
    half = {torch.float16, torch.bfloat16} & {of_map, of_mask}
    tolerance = {"rtol": 3e-2, "atol": 3e-2} if half else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(y.double(), wanted, **tolerance)
    (y.float().sum() + mask.loss()).backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in mask.parameters())


@pytest.mark.parametrize("settings", [*SETTINGS[:4], {"grid": (8, 8)}], ids=str)
def test_no_images_have_a_loss_of_zero_with_a_gradient(settings):
    mask = EnergyMask(4, **{k: v for k, v in settings.items() if k != "preset"})
    x = torch.randn(0, 4, 8, 8, requires_grad=True)
    y = mask(x)
    assert y.shape == x.shape and mask.state.mask.shape[0] == 0
    (mask.loss() + y.sum()).backward()
    assert mask.loss() == 0
    assert x.grad.shape == x.shape and not any(p.grad.any() for p in mask.parameters())


# --- checkpointing ---------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.stem, self.reentrant = nn.Conv2d(3, 4, 3), reentrant
        self.stage = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())

    def forward(self, x):
        return checkpoint(self.stage, self.stem(x), use_reentrant=self.reentrant)


def test_checkpointing_without_a_gradient_is_refused_in_training():
    network, x = attach_energy_mask(Checkpointed(True), "stage"), torch.randn(2, 3, 8, 8)
    network(x)
    with pytest.raises(RuntimeError, match=r"ran without gradients.*use_reentrant=False"):
        energy_loss(network)
    with torch.no_grad():
        assert energy_loss(network) > 0  # looked at
    other = attach_energy_mask(Checkpointed(False), "stage")
    other.load_state_dict(network.state_dict())
    plain = copy.deepcopy(other)
    plain.forward = lambda x: plain.stage(plain.stem(x))
    gradients = []
    for net in (other, plain):
        (net(x).mean() + energy_loss(net)).backward()
        gradients.append([p.grad for p in net.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("why", ["eval", "frozen", "no energy", "no gradient wanted", "new pass"])
def test_masks_that_need_no_gradient_may_do_without(why):
    settings = {"lambda_unary": 0, "lambda_pair": 0} if why == "no energy" else {}
    network, x = masked_cnn(**settings), torch.randn(2, 3, 8, 8)
    network.train(why != "eval").requires_grad_(why != "frozen")
    with torch.no_grad():
        network(x)
        if why == "no gradient wanted":
            assert energy_loss(network) > 0
            return
    if why == "new pass":
        network(x)
    assert energy_loss(network).requires_grad == (why == "new pass")


# --- transforms and tensors without values ---------------------------------------------------------


def test_vmap_masks_every_map():
    mask, x = EnergyMask.stable(4, dim=2), torch.randn(5, 2, 4, 6, 6)
    torch.testing.assert_close(torch.func.vmap(mask)(x), torch.stack([mask(maps) for maps in x]))
    weights, bias = torch.randn(5, 4), torch.randn(5)
    terms = torch.func.vmap(energy_terms)(x, weights, bias)
    for found, own in zip(
        zip(*terms, strict=True), zip(x, weights, bias, strict=True), strict=True
    ):
        torch.testing.assert_close(found, energy_terms(*own))


def test_gradients_per_image_add_up_to_that_of_the_batch():
    network, x = masked_cnn(preset="stable", hard=False).eval(), torch.randn(5, 3, 8, 8)
    parameters = {name: p.detach() for name, p in network.named_parameters()}

    def loss(parameters, image):
        y = torch.func.functional_call(network, parameters, (image[None],))
        return y.square().sum() + energy_loss(network)

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    (network(x).square().sum() + 5 * energy_loss(network)).backward()
    for name, p in network.named_parameters():
        torch.testing.assert_close(each[name].sum(0), p.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", ["bn1", "layer2", "layer3.0"])
def test_a_network_traced_by_fx_runs_its_mask(layer):
    network, x = attach_energy_mask(resnet18(), layer).eval(), torch.randn(2, 3, 32, 32)
    y = network(x)
    loss = energy_loss(network)
    traced = torch.fx.symbolic_trace(network)
    assert torch.equal(traced(x), y)
    assert list(energy_states(traced)) == [layer] and energy_loss(traced) == loss
    extractor = create_feature_extractor(network, ["layer4"])
    extractor(x)
    assert energy_loss(extractor) == loss


@pytest.mark.parametrize("preset", ["stable", "published"])
def test_meta_and_fake_tensors_have_shapes_for_results(preset):
    with torch.device("meta"):
        network = attach_energy_mask(resnet18(num_classes=10), "layer3", preset=preset)
        x = torch.randn(2, 3, 64, 64)
        assert network(x).shape == (2, 10) and energy_loss(network).shape == ()
        terms = energy_terms(torch.randn(2, 3, 4, 5), torch.randn(3), torch.zeros(()))
        assert terms[0].is_meta and terms[1].shape == (2, 1, 4, 5)
    with FakeTensorMode():
        mask = getattr(EnergyMask, preset)(4)
        assert mask(torch.randn(2, 4, 8, 8)).shape == (2, 4, 8, 8)
        mask.loss().backward()
        assert energy_terms(torch.randn(2, 3, 4, 5), torch.randn(3), torch.zeros(()))[0].dim() == 4


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


def test_ddp_finds_the_unused_parameters_of_a_mask_that_is_off(one_process):
    network = masked_cnn()
    parallel = nn.parallel.DistributedDataParallel(network, find_unused_parameters=True)
    for enabled in (False, False, True):
        network[2].energy_mask.enabled = enabled
        loss = parallel(torch.randn(3, 3, 8, 8)).square().mean()
        (loss + energy_loss(parallel) if enabled else loss).backward()
    assert network[2].energy_mask.weight.grad.abs().max() > 0


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
