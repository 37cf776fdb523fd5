"""Blocks that skip dropped tokens, against the dense form and against a loop over tokens."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

from ersm_core import EnergyMask, update_kept
from ersm_lab.evaluation import inference
from ersm_lab.evaluation.inference import evaluating, replaced_mask
from ersm_lab.images import data
from ersm_lab.networks import controls
from ersm_lab.networks.token_net import TokenNet, TokenNetSettings

SHARES = {"none": 0.0, "few": 0.1, "half": 0.5, "all": 1.0}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def block(channels=6, out=6):
    layers = nn.LayerNorm(channels), nn.Linear(channels, 9), nn.GELU(), nn.Linear(9, out)
    return nn.Sequential(*layers).double()


def loops(x, function, mask, inputs):
    out = x.clone()
    for b, i, j in mask[:, 0].nonzero().tolist():
        out[b, :, i, j] += mask[b, 0, i, j] * function(inputs[b, :, i, j][None])[0]
    return out


@pytest.mark.parametrize("share", SHARES.values(), ids=SHARES.keys())
@pytest.mark.parametrize("soft", [False, True])
def test_agrees_with_a_loop_over_tokens_and_with_the_dense_form(share, soft):
    x, inputs = torch.randn(3, 6, 4, 5).double(), torch.randn(3, 6, 4, 5).double()
    mask = (torch.rand(3, 1, 4, 5) < share).double()  # images keep unlike shares
    mask = mask * torch.rand_like(mask) if soft else mask
    function = block()
    found = update_kept(x, function, mask, inputs=inputs)
    dense = x + mask * function(inputs.movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(found, loops(x, function, mask, inputs), rtol=0, atol=1e-12)
    torch.testing.assert_close(found, dense, rtol=0, atol=1e-12)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_channels_last_and_channels_first_are_the_same(memory):
    x, mask = torch.randn(2, 6, 4, 5).double(), (torch.rand(2, 1, 4, 5) < 0.5).double()
    function = block()
    first = update_kept(x.contiguous(memory_format=memory), function, mask)
    last = update_kept(x.movedim(1, -1), function, mask.movedim(1, -1), channel_dim=-1)
    assert torch.equal(first.movedim(1, -1), last)


def test_dropped_tokens_are_never_given_to_the_function():
    x, mask = torch.randn(2, 6, 4, 5), (torch.rand(2, 1, 4, 5) < 0.3).float()
    seen = []
    update_kept(x, lambda tokens: seen.append(tokens) or tokens, mask)
    assert len(seen[0]) == mask.sum()
    kept = x.movedim(1, -1)[mask[:, 0] > 0]
    assert torch.equal(seen[0], kept)


@pytest.mark.parametrize("learns", [True, False])
def test_gradients_are_those_of_finite_differences(learns):
    x, mask = torch.randn(2, 3, 2, 2).double(), torch.tensor([0.0, 0.3, 1.0, 0.0] * 2).double()
    mask = mask.view(2, 1, 2, 2).requires_grad_(learns)
    function = block(3, 3)
    weights = {name: p.detach().requires_grad_() for name, p in function.named_parameters()}

    def run(x, mask, *values):
        named = dict(zip(weights, values, strict=True))
        return update_kept(x, lambda tokens: functional_call(function, named, (tokens,)), mask)

    assert torch.autograd.gradcheck(run, (x.requires_grad_(), mask, *weights.values()))


def test_a_mask_that_learns_hears_of_tokens_that_it_drops():
    x = torch.randn(2, 6, 3, 3)
    mask = torch.zeros(2, 1, 3, 3, requires_grad=True)
    update_kept(x, nn.Linear(6, 6), mask).square().sum().backward()
    assert (mask.grad != 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_near_the_float64_result(dtype):
    x, mask = torch.randn(2, 6, 4, 5).double(), (torch.rand(2, 1, 4, 5) < 0.5).double()
    function = block()
    whole = update_kept(x, function, mask)
    half = update_kept(x.to(dtype), copy.deepcopy(function).to(dtype), mask.to(dtype))
    assert half.dtype == dtype
    torch.testing.assert_close(half.double(), whole, rtol=0.05, atol=0.05)
    mixed = update_kept(x.float(), copy.deepcopy(function).to(dtype), mask, inputs=x.to(dtype))
    assert mixed.dtype == torch.float32


def test_an_empty_batch_stays_one():
    assert update_kept(torch.zeros(0, 6, 4, 5), nn.Linear(6, 6), torch.zeros(0, 1, 4, 5)).shape == (
        (0, 6, 4, 5)
    )


def test_a_compiled_block_gives_the_same():
    function, mask = nn.Linear(6, 6), (torch.rand(2, 1, 4, 5) < 0.5).float()
    x = torch.randn(2, 6, 4, 5)
    compiled = torch.compile(
        lambda x, m: update_kept(x, function, m), backend="aot_eager", dynamic=True
    )
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, mask), update_kept(x, function, mask))


def test_an_exported_network_computes_the_same(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = masked_net("ratio", keep=0.5, bias_init=0.0).eval()
    x = torch.randn(2, 3, 32, 32)
    file = tmp_path / "net.onnx"
    torch.onnx.export(model, (x,), file, dynamo=False, input_names=["x"])
    (found,) = onnxruntime.InferenceSession(file).run(None, {"x": x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), model(x), rtol=1e-4, atol=1e-4)
        assert 0 < model.gate[0].state.mask.mean() < 1


@pytest.mark.parametrize(
    ("shapes", "settings", "message"),
    [
        (((2, 6, 4, 5), (2, 1, 5, 4)), {}, "a mask of one channel"),
        (((2, 6, 4, 5), (2, 6, 4, 5)), {}, "a mask of one channel"),
        (((2, 6, 4, 5), (2, 4, 5, 1)), {}, "a mask of one channel"),
        (((6, 4, 5), (1, 4, 5)), {}, "four dimensions"),
        (((2, 6, 4, 5), (2, 1, 4, 5)), {"channel_dim": 2}, "channel_dim 1 or -1"),
        (((2, 6, 4, 5), (2, 1, 4, 5)), {"inputs": torch.zeros(2, 6, 8, 5)}, "same grid"),
    ],
)
def test_what_does_not_fit_is_an_error_that_says_what_does(shapes, settings, message):
    x, mask = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match=message):
        update_kept(x, nn.Linear(6, 6), mask, **settings)


# --- a network of such blocks ----------------------------------------------------------------------

SMALL = TokenNetSettings(width=16, blocks=2, expansion=2, early_width=8, stem_channels=12)


def masked_net(kind=None, settings=SMALL, **mask):
    model = TokenNet(settings)
    for parameter in model.blocks.parameters():  # they start as the identity
        nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        model.stem[0].weight.normal_(std=0.3)
    controls.attach(model, "gate", kind or "random", **(mask or {"keep": 0.5}))
    return model


def test_skipping_changes_no_answer_of_the_network():
    model, x = masked_net(), torch.randn(4, 3, 32, 32)
    with evaluating(model):
        sparse = model(x)
        for block in model.blocks:
            block.skips = False
        torch.testing.assert_close(model(x), sparse, rtol=1e-5, atol=1e-5)


def test_a_network_whose_mask_is_off_or_open_is_the_dense_one():
    model, x = masked_net(), torch.randn(4, 3, 32, 32)
    with evaluating(model):
        with replaced_mask(model.gate[0], torch.ones_like):
            opened = model(x)
        model.gate[0].enabled = False
        dense = model(x)
    torch.testing.assert_close(opened, dense, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dropped", ["skip", "zero"])
def test_what_replaces_a_mask_is_what_the_blocks_skip_by(dropped):
    model = masked_net(settings=TokenNetSettings(**vars(SMALL) | {"dropped": dropped}))
    x = torch.randn(4, 3, 32, 32)
    with evaluating(model), replaced_mask(model.gate[0], torch.zeros_like):
        empty = model(x)
        early = model.early(model.stem(x))
        skipped = model.head(model.norm(early.mean((2, 3))))
        zero = model.head(model.norm(torch.zeros_like(early.mean((2, 3)))))
    torch.testing.assert_close(empty, skipped if dropped == "skip" else zero)


@pytest.mark.parametrize("kind", ["random", "norm", "ratio"])
def test_such_a_network_is_evaluated_like_any_other(kind):
    images = data.load("shapes", "test", limit=100)
    found = inference.evaluate(masked_net(kind, keep=0.5), images, validation=images)
    assert found["accuracy_with_mask_replaced"].keys() >= {"position_mean", "uniform", "ones"}


def test_the_mask_learns_through_the_blocks_alone():
    model = TokenNet(SMALL)
    nn.init.normal_(model.blocks[0].mlp[-1].weight, std=0.3)
    controls.attach(model, "gate", "ratio", keep=0.5)
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert isinstance(model.gate[0], EnergyMask) and model.gate[0].weight.grad.abs().sum() > 0
