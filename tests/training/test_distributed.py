"""Two CPU processes compute what one does."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ersm_attach import attach_energy_mask
from ersm_lab.images import data
from ersm_lab.networks.backbones import CifarNet, CifarNetSettings
from ersm_lab.training.distributed import CpuSyncBatchNorm2d, synchronise_batch_norm
from ersm_lab.training.loop import TrainSettings, make_fabric, train

SETTINGS = TrainSettings(
    epochs=2, batch_size=32, learning_rate=0.1, mask_start=0.25, mask_ramp=0.25, precision="32-true"
)
KINDS = ("dense", "soft")

# Run by torchrun in each of two processes, which import this file for what they share.
SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import torch
import torch.distributed as dist
import test_distributed as shared

fabric = shared.make_fabric(precision="32-true", device="cpu", processes=2)
rank = fabric.global_rank
found = dict(norm=shared.normalise(shared.CpuSyncBatchNorm2d(3), *shared.halves(rank)))
for kind in shared.KINDS:
    found[kind] = shared.trained(kind, fabric)
torch.manual_seed(0)
_, curve = shared.trained("hard", fabric)
found["noise"] = torch.rand(4)  # where the last epoch left the generator of mask noise
torch.save(found, {folder!r} + f"/{{rank}}.pt")
dist.barrier()
dist.destroy_process_group()
"""


def trained(kind, fabric):
    """Final weights and curve of a small network with BatchNorm."""
    images = data.load("shapes", "train", limit=64)
    torch.manual_seed(0)
    model = CifarNet(CifarNetSettings(widths=(8, 12), depth=1, stem_channels=16))
    model.whiten(images.normalise(images.images))
    if kind != "dense":
        attach_energy_mask(model, "group1", preset="stable", hard=kind == "hard")
    curve = train(model, images, SETTINGS, seed=0, fabric=fabric, progress=False)
    return {name: value.clone() for name, value in model.state_dict().items()}, curve


def halves(rank):
    """This process's half of a batch x, and of the gradient that comes back; (4, 3, 5, 6) each."""
    lots = torch.Generator().manual_seed(0)
    x, gradient = torch.randn(2, 8, 3, 5, 6, generator=lots)
    part = slice(None) if rank is None else slice(4 * rank, 4 * rank + 4)
    return (3 * x + torch.arange(8.0)[:, None, None, None])[part], gradient[part]


def normalise(norm, x, gradient):
    """One training step's worth of a norm: what it returns, its gradients, its running statistics."""
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, -0.5]))
        norm.bias.copy_(torch.tensor([0.0, 1.0, 3.0]))
    x = x.clone().requires_grad_()
    y = norm(x)
    y.backward(gradient)
    state = {name: value.clone() for name, value in norm.state_dict().items()}
    return y.detach(), x.grad, norm.weight.grad, norm.bias.grad, state


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two processes under torchrun found, in the order of their ranks."""
    folder = tmp_path_factory.mktemp("two")
    script = folder / "script.py"
    tests = str(Path(__file__).parent)
    script.write_text(SCRIPT.format(tests=tests, folder=str(folder)), encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--master-addr=127.0.0.1", f"--master-port={port}", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(tests).parents[1]), tests])
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_the_network_of_one(two, kind):
    one, curve = trained(kind, make_fabric(precision="32-true", device="cpu"))
    weights, curve_of_two = two[0][kind]
    assert weights.keys() == one.keys()
    for name in one:
        torch.testing.assert_close(weights[name], one[name], atol=1e-4, rtol=1e-3, msg=name)
    for row, expected in zip(curve_of_two, curve, strict=True):
        for key in ("epoch", "loss", "regulariser", "kept", "learning_rate"):
            assert row[key] == pytest.approx(expected[key], rel=1e-4, abs=1e-5), key
    assert (curve[-1]["kept"] < 1) == (kind == "soft")


@pytest.mark.parametrize("kind", KINDS)
def test_both_processes_end_with_the_same_network(two, kind):
    (first, _), (second, _) = (found[kind] for found in two)
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_the_noise_of_a_hard_mask_differs_between_processes(two):
    first, second = (found["noise"] for found in two)
    assert not torch.equal(first, second)


def test_a_synchronised_norm_is_that_of_the_whole_batch(two):
    whole = normalise(nn.BatchNorm2d(3), *halves(None))
    parts = [found["norm"] for found in two]
    for y, part in ((torch.cat([p[i] for p in parts]), whole[i]) for i in (0, 1)):
        torch.testing.assert_close(y, part, atol=1e-5, rtol=1e-4)  # output, gradient of the input
    for i in (2, 3):  # gradients of scale and shift: each process has those of its own images
        torch.testing.assert_close(parts[0][i] + parts[1][i], whole[i], atol=1e-4, rtol=1e-4)
    for *_, state in parts:
        for name, value in whole[4].items():
            torch.testing.assert_close(state[name], value, atol=1e-5, rtol=1e-5, msg=name)


def test_alone_and_in_evaluation_a_synchronised_norm_is_the_ordinary_one():
    x, gradient = halves(None)
    ordinary, synchronised = nn.BatchNorm2d(3), CpuSyncBatchNorm2d(3)
    for a, b in zip(
        normalise(ordinary, x, gradient)[:4], normalise(synchronised, x, gradient)[:4], strict=True
    ):
        assert torch.equal(a, b)
    assert torch.equal(ordinary.eval()(x), synchronised.eval()(x))


def test_every_batch_norm_of_a_network_is_exchanged_and_its_names_stay():
    model = CifarNet(CifarNetSettings(widths=(8, 12), depth=2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = list(model.parameters())
    same = synchronise_batch_norm(model)
    assert same is model
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [type(norm) for norm in norms] == [CpuSyncBatchNorm2d] * 4
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
