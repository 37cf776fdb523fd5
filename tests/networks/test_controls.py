"""The random mask: right share, no knowledge, same lots in every evaluation."""

import pytest
import torch
from torch import nn

from ersm_lab.evaluation import inference
from ersm_lab.images import data
from ersm_lab.networks import backbones, controls
from ersm_lab.networks.controls import NormMask, RandomMask


def test_keeps_the_share_it_was_told_in_training_and_evaluation():
    mask, x = RandomMask(4, keep=0.3), torch.randn(64, 4, 16, 16)
    for training in (True, False):
        mask.train(training)
        kept = (mask(x) != 0).any(1).double()  # (B, H, W)
        assert kept.mean().item() == pytest.approx(0.3, abs=0.02)
        assert kept.mean(0).std().item() < 0.1  # no position is preferred


def test_lots_are_new_in_training_and_the_same_in_evaluation():
    mask, x = RandomMask(4, keep=0.5), torch.randn(8, 4, 8, 8)
    assert not torch.equal(mask(x), mask(x))
    mask.eval()
    first, unlike = mask(x), mask(x)
    assert torch.equal(first, unlike)
    assert not torch.equal(mask.state.mask[0], mask.state.mask[1])


def test_costs_nothing_learns_nothing_and_is_evaluated_like_a_mask():
    torch.manual_seed(0)
    model = controls.attach(backbones.CifarNet(backbones.SMOKE), "group1", "random", keep=0.5)
    images = data.load("shapes", "test", limit=500)
    metrics = inference.evaluate(model, images, validation=images)
    assert metrics["mask"]["kept_fraction"] == pytest.approx(0.5, abs=0.01)
    assert metrics["validation"]["mask"]["kept_fraction"] == metrics["mask"]["kept_fraction"]
    mask = inference.only_mask(model)
    assert mask.loss() == 0 and not any(p.requires_grad for p in mask.parameters())


@pytest.mark.parametrize("keep", [0.0, 1.0, 2.0])
def test_a_share_outside_0_to_1_is_an_error(keep):
    with pytest.raises(ValueError, match="keep must be between 0 and 1"):
        RandomMask(4, keep=keep)


def test_a_stage_it_cannot_follow_is_an_error():
    with pytest.raises(ValueError, match=r"not an nn\.Sequential"):
        controls.attach(nn.Sequential(nn.Conv2d(3, 4, 1)), "0", "random", keep=0.5)


def test_the_longest_tokens_are_kept_the_same_share_of_every_image():
    torch.manual_seed(0)
    mask, x = NormMask(4, keep=0.25).eval(), torch.randn(8, 4, 6, 6)
    kept = mask(x) != 0
    norms = x.norm(dim=1)  # (B, H, W)
    for image in range(8):
        chosen = kept[image].any(0)
        assert chosen.sum() == 9
        assert norms[image][chosen].min() > norms[image][~chosen].max()


def test_a_mask_that_is_told_its_share_is_trained_to_it():
    torch.manual_seed(0)
    mask, x = controls.KINDS["ratio"](4, keep=0.3), torch.randn(16, 4, 8, 8)
    optimiser = torch.optim.Adam(mask.parameters(), lr=0.1)
    for _ in range(300):
        mask(x)
        optimiser.zero_grad()
        mask.loss().backward()
        optimiser.step()
    mask(x)
    share = mask.state.mask.mean((1, 2, 3))  # (B,)
    assert share.mean().item() == pytest.approx(0.3, abs=0.05)
    expected = 2 * (share - 0.3).square().mean()
    assert mask.loss().item() == pytest.approx(expected.item())


@pytest.mark.parametrize("kind", ["norm", "ratio"])
def test_every_control_checks_its_share(kind):
    with pytest.raises(ValueError, match="keep must be between 0 and 1"):
        controls.KINDS[kind](4, keep=1.0)
