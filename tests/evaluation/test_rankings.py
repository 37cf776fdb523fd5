"""What tokens are ranked by, against slow references and closed forms, and what changes no ranking."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from ersm_attach import attach_energy_mask
from ersm_lab.evaluation import deletion, inference, rankings
from ersm_lab.images import data
from ersm_lab.networks import backbones
from ersm_lab.training import protocols

COUNT = 6


class Scorer(nn.Module):
    """A linear network: class k is scored by a sum over the image weighted by `weight[k]`."""

    def __init__(self, side=32, classes=3):
        super().__init__()
        self.stage = nn.Identity()
        lots = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(classes, 3, side, side, generator=lots))

    def forward(self, x):
        return torch.einsum("bchw,kchw->bk", self.stage(x), self.weight)


@pytest.fixture(scope="module")
def images():
    return data.load("shapes", "test", limit=COUNT)


def network(**mask):
    """A small network, with a mask of these settings after its second stage if there are any."""
    torch.manual_seed(0)
    net = backbones.CifarNet(backbones.SMOKE)
    if mask:
        attach_energy_mask(net, "group2", **mask)
        inference.only_mask(net).weight.data.mul_(5)  # energies that differ
    return net


def order(importance):
    return importance.flatten(1).argsort(dim=1, stable=True)


def inputs(images):
    return images.normalise(images.images)


def entering_the_mask(net, images):
    """The maps that the mask of a network sees, which is made float64, (N, D, 8, 8)."""
    seen = []
    mask = inference.only_mask(net.double())
    handle = mask.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    with inference.evaluating(net):
        net(inputs(images).double())
    handle.remove()
    return seen[0]


# --- energies and magnitudes -----------------------------------------------------------------------


def slow_energy(tokens, weight, bias, lambda_unary, lambda_pair):
    """One map (D, h, w) in float64, token by token: unary part and full energy, (h, w) each."""
    height, width = tokens.shape[1:]
    unit = [[tokens[:, i, j] / tokens[:, i, j].norm() for j in range(width)] for i in range(height)]
    unary, energy = torch.zeros(2, height, width, dtype=torch.float64)
    for i in range(height):
        for j in range(width):
            agreement = 0.0
            for k, m in [(i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)]:
                if 0 <= k < height and 0 <= m < width:
                    agreement += (unit[i][j] @ unit[k][m]).item()
            z = (weight @ unit[i][j] + bias).item()
            unary[i, j] = lambda_unary * math.log1p(math.exp(z))
            energy[i, j] = unary[i, j] + lambda_pair * math.log1p(math.exp(agreement))
    return unary, energy


def test_energies_against_a_slow_reference(images):
    net = network(lambda_unary=0.3, lambda_pair=0.2, neighbourhood=4, bias_init=-0.2)
    found = rankings.energies(net, images, "group2")
    maps, mask = entering_the_mask(net, images), inference.only_mask(net)
    for n, tokens in enumerate(maps):
        unary, energy = slow_energy(tokens, mask.weight.data, mask.bias.data, 0.3, 0.2)
        torch.testing.assert_close(found["energy"][n].double(), -energy, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found["unary"][n].double(), -unary, rtol=1e-4, atol=1e-6)


def test_what_has_the_least_energy_is_deleted_last(images):
    net = network(lambda_unary=0.3, lambda_pair=0.2)
    found = rankings.energies(net, images, "group2")
    inference.predict(net, images)
    energy = inference.only_mask(net).state.energy[:, 0]  # (N, 8, 8)
    for fraction in (0.25, 0.5, 0.75):
        keep = deletion.keep_masks(found["energy"], fraction)
        highest_kept = energy.masked_fill(~keep, -torch.inf).amax((1, 2))
        lowest_deleted = energy.masked_fill(keep, torch.inf).amin((1, 2))
        assert (highest_kept <= lowest_deleted).all()


def test_the_unary_part_ranks_as_the_logit_and_the_mask_do(images):
    net = network(lambda_unary=0.3, lambda_pair=0.2)
    found = rankings.energies(net, images, "group2")
    masks = inference.collect_masks(net, images)[:, 0]
    assert torch.equal(order(found["unary"]), order(found["logit"]))
    assert torch.equal(order(found["logit"]), order(masks))
    assert not torch.equal(order(found["energy"]), order(found["unary"]))


def test_what_does_and_does_not_change_the_order_by_energy(images):
    net = network(lambda_unary=0.3, lambda_pair=0.2)
    mask = inference.only_mask(net)
    before = order(rankings.energies(net, images, "group2")["energy"])
    mask.lambda_unary, mask.lambda_pair = 8 * 0.3, 8 * 0.2  # exact in binary
    assert torch.equal(order(rankings.energies(net, images, "group2")["energy"]), before)
    mask.lambda_pair = 0.0
    alone = rankings.energies(net, images, "group2")
    assert torch.equal(order(alone["energy"]), order(alone["unary"]))


@pytest.mark.parametrize("size", [1, 2])
def test_magnitudes_of_tokens_before_and_after_the_mask(images, size):
    net = network(patch_size=size, bias_init=0.3)
    found = rankings.magnitudes(net, images, "group2")
    masks = inference.collect_masks(net, images)[:, 0]
    patches = nn.functional.pixel_unshuffle(entering_the_mask(net, images), size)
    raw = torch.zeros(patches[:, 0].shape, dtype=torch.float64)
    for place in np.ndindex(*raw.shape):
        token = patches[place[0], :, place[1], place[2]]
        raw[place] = math.sqrt(sum(value.item() ** 2 for value in token))
    torch.testing.assert_close(found["magnitude"].double(), raw, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["magnitude_masked"], masks * found["magnitude"])


# --- gradients -------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["predicted", "label"])
def test_gradients_of_a_linear_network_have_closed_forms(images, target):
    few = replace(images[:4], labels=torch.arange(4) % 3)
    net, x = Scorer(), inputs(few)
    index = few.labels if target == "label" else net(x).argmax(1)
    weight = net.weight.detach()[index]  # (N, 3, 32, 32)
    cam = rankings.grad_cam(net, few, "stage", target=target)
    torch.testing.assert_close(
        cam, (weight.mean((2, 3), keepdim=True) * x).sum(1), rtol=1e-4, atol=1e-6
    )
    shares = (weight * x).sum(1)  # of each pixel in the logit, (N, 32, 32)
    by_pixel = rankings.integrated_gradients(net, few, (32, 32), target=target)
    torch.testing.assert_close(by_pixel, shares, rtol=1e-4, atol=1e-5)
    by_token = rankings.token_integrated_gradients(net, few, "stage", patch_size=4, target=target)
    blocks = shares.unflatten(1, (8, 4)).unflatten(3, (8, 4)).mean((2, 4))
    torch.testing.assert_close(by_token, blocks, rtol=1e-4, atol=1e-5)
    on_tokens = rankings.integrated_gradients(net, few, (8, 8), target=target)
    torch.testing.assert_close(on_tokens, blocks, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask", [{}, {"preset": "stable"}])
def test_grad_cam_against_one_image_at_a_time(images, mask):
    net = network(**mask).eval()
    found = rankings.grad_cam(net, images, "group2", batch_size=4)
    for n, x in enumerate(inputs(images)):
        with torch.no_grad():
            tokens = net.group2(net.group1(net.stem(x[None])))  # (1, D, 8, 8), after the mask
        tokens.requires_grad_()
        logits = net.classify(net.group3(tokens))
        (gradient,) = torch.autograd.grad(logits.max(), tokens)
        slow = torch.zeros(8, 8)
        for channel in range(tokens.shape[1]):
            slow += gradient[0, channel].mean() * tokens[0, channel].detach()
        torch.testing.assert_close(found[n], slow, rtol=1e-3, atol=1e-6)


def test_tokens_that_a_hard_mask_drops_have_no_gradient_ranking(images):
    net = network(preset="stable", bias_init=0.2)
    dropped = inference.collect_masks(net, images)[:, 0] == 0  # (N, 8, 8)
    assert 0 < dropped.double().mean() < 1
    found = rankings.rank_tokens(net, images, "group2")
    for name in ("grad_cam", "token_integrated_gradients", "magnitude_masked"):
        assert (found[name][dropped] == 0).all(), name
        assert (found[name][~dropped] != 0).any(), name
    assert (found["magnitude"][dropped] > 0).all()


def test_a_gradient_ranking_does_not_see_what_is_added_to_all_logits(images):
    class Shifted(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return 2 * self.net(x) + 7  # an order-preserving change of every logit

    net = network()
    for name in ("grad_cam", "token_integrated_gradients"):
        method = getattr(rankings, name)
        plain, shifted = method(net, images, "group2"), method(Shifted(net), images, "net.group2")
        torch.testing.assert_close(shifted, 2 * plain, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("mask", [{}, {"bias_init": 0.1}])
def test_integrated_gradients_are_complete(images, mask):
    few, net = images[:3], network(**mask).eval()
    x = inputs(few)
    best = inference.predict(net, few).argmax(1)[:, None]
    with torch.no_grad():
        at_image = net(x).gather(1, best)[:, 0]
        at_zero = net(torch.zeros_like(x)).gather(1, best)[:, 0]
        tokens = rankings.layer_tokens(net, "group2", x)
        without_tokens = net.classify(net.group3(torch.zeros_like(tokens))).gather(1, best)[:, 0]
    by_image = rankings.integrated_gradients(net, few, (8, 8), steps=150)
    total = by_image.sum((1, 2)) * 16  # pixels a token
    torch.testing.assert_close(total, at_image - at_zero, rtol=0.02, atol=2e-3)
    by_token = rankings.token_integrated_gradients(net, few, "group2", steps=150)
    torch.testing.assert_close(
        by_token.sum((1, 2)), at_image - without_tokens, rtol=0.02, atol=2e-3
    )


# --- the image, and controls -----------------------------------------------------------------------


def test_edges_against_scipy(images):
    found = rankings.edge_strength(images, (8, 8))
    for n, image in enumerate(images.images.numpy() / 255):
        grey = image @ np.array([0.2989, 0.587, 0.114])
        slopes = [ndimage.sobel(grey, axis=axis, mode="nearest") for axis in (0, 1)]
        length = np.hypot(*slopes)
        slow = length.reshape(8, 4, 8, 4).mean((1, 3))
        np.testing.assert_allclose(found[n].numpy(), slow, rtol=1e-3, atol=1e-5)


def test_edges_turn_with_the_image_and_a_flat_one_has_none(images):
    found = rankings.edge_strength(images, (8, 8))
    turned = replace(images, images=images.images.rot90(1, (1, 2)).contiguous())
    torch.testing.assert_close(rankings.edge_strength(turned, (8, 8)), found.rot90(1, (1, 2)))
    flat = replace(images, images=torch.full_like(images.images, 90))
    torch.testing.assert_close(rankings.edge_strength(flat, (8, 8)), torch.zeros(COUNT, 8, 8))


def test_controls_do_not_look_at_the_network(images):
    first, other = network(preset="stable"), network(lambda_pair=0.4)
    for net in (first, other):
        net.head.weight.data.normal_()
    found = [
        rankings.rank_tokens(net, images, "group2", names=rankings.CONTROLS, seed=4)
        for net in (first, other)
    ]
    for name in rankings.CONTROLS:
        assert torch.equal(found[0][name], found[1][name]), name
    again = rankings.rank_tokens(first, images, "group2", names=["random"], seed=5)["random"]
    assert not torch.equal(found[0]["random"], again)
    centre = found[0]["centre"]
    assert torch.equal(centre, centre.flip(1)) and torch.equal(centre, centre.transpose(1, 2))


# --- all together ----------------------------------------------------------------------------------


def test_a_network_has_the_rankings_it_can_have(images):
    masked = rankings.rank_tokens(network(preset="stable"), images, "group2")
    assert tuple(masked) == rankings.RANKINGS
    dense = rankings.rank_tokens(network(), images, "group2", patch_size=2)
    assert set(rankings.RANKINGS) - set(dense) == {*rankings.ENERGIES, "magnitude_masked"}
    assert {tuple(map_.shape) for map_ in masked.values()} == {(COUNT, 8, 8)}
    assert {tuple(map_.shape) for map_ in dense.values()} == {(COUNT, 4, 4)}
    assert all(torch.isfinite(map_).all() for map_ in (*masked.values(), *dense.values()))


def test_the_network_is_left_as_it_was(images):
    net = network(preset="stable").train()
    hooks = [len(module._forward_hooks) for module in net.modules()]
    values = {name: value.clone() for name, value in net.state_dict().items()}
    rankings.rank_tokens(net, images, "group2")
    assert all(module.training for module in net.modules())
    assert [len(module._forward_hooks) for module in net.modules()] == hooks
    assert all(torch.equal(value, values[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_tokens_of_a_frozen_backbone_are_ranked_but_its_image_is_not(images):
    net = protocols.published(network(), "group3", classes=10, bias_init=0.0)
    names = [name for name in rankings.RANKINGS if name != "integrated_gradients"]
    found = rankings.rank_tokens(net, images, "reader.mask", names=names)
    assert {tuple(map_.shape) for map_ in found.values()} == {(COUNT, 4, 4)}
    with pytest.raises(ValueError, match="use token_integrated_gradients"):
        rankings.integrated_gradients(net, images, (4, 4))


def test_bad_input_is_refused(images):
    net = network()
    with pytest.raises(ValueError, match=r"no layer 'grup2' in CifarNet; nearest names: .*group2"):
        rankings.rank_tokens(net, images, "grup2")
    with pytest.raises(ValueError, match=r"no ranking 'norm': choose of energy, unary"):
        rankings.rank_tokens(net, images, "group2", names=["norm"])
    with pytest.raises(ValueError, match=r"no enabled energy mask at 'group2'"):
        rankings.energies(net, images, "group2")
    with pytest.raises(ValueError, match=r"'magnitude_masked' needs an enabled energy mask"):
        rankings.rank_tokens(net, images, "group2", names=["magnitude_masked"])
    with pytest.raises(ValueError, match=r'target must be "predicted" or "label"'):
        rankings.grad_cam(net, images, "group2", target="true")
    with pytest.raises(ValueError, match=r"5 x 5 does not divide an image of 32 x 32"):
        rankings.edge_strength(images, (5, 5))
    with pytest.raises(ValueError, match=r"'head' returns \(6, 10\), not a feature map"):
        rankings.magnitudes(net, images, "head")
    masked = network(preset="stable")
    inference.only_mask(masked).enabled = False
    with pytest.raises(ValueError, match="attach or enable one"):
        rankings.energies(masked, images, "group2")
