"""Token deletion against a slow reference, and what it ranks by."""

import math

import pytest
import torch
from torch import nn

from ersm_attach import attach_energy_mask
from ersm_core import EnergyMask
from ersm_lab.evaluation import deletion, inference
from ersm_lab.images import data
from ersm_lab.networks import backbones


def slow_curve(tokens, importance, labels, fractions):
    """One image, one token at a time: tokens (N, h, w, K) are summed where they are kept."""
    accuracy = []
    for fraction in fractions:
        right = 0
        for image, rank, label in zip(tokens, importance, labels, strict=True):
            height, width = rank.shape
            places = [(rank[i, j].item(), i, j) for i in range(height) for j in range(width)]
            count = math.floor(fraction * len(places) + 0.5)
            kept = sorted(places)[count:]
            logits = sum((image[i, j] for _, i, j in kept), torch.zeros(tokens.shape[-1]))
            right += logits.argmax().item() == label.item()
        accuracy.append(right / len(labels))
    return accuracy


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (1, 1)])
def test_curve_against_a_slow_reference(shape):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(40, *shape, 3, generator=generator)  # (N, h, w, K)
    labels = tokens.sum((1, 2)).argmax(1)
    importance = torch.randint(5, (40, *shape), generator=generator).float()  # with ties

    def predict(keep):
        return (tokens * keep[..., None]).sum((1, 2))

    curve = deletion.deletion_curve(predict, importance, labels)
    assert curve.fractions == tuple(k / 10 for k in range(10))
    assert curve.accuracy == pytest.approx(slow_curve(tokens, importance, labels, curve.fractions))
    assert curve.accuracy[0] == 1.0
    assert curve.auc == pytest.approx(sum(curve.accuracy) / 10)


def test_a_ranking_that_knows_the_needed_token_loses_nothing():
    needed = torch.randint(16, (50,), generator=torch.Generator().manual_seed(1))  # (N,)
    place = torch.nn.functional.one_hot(needed, 16).view(50, 4, 4)
    labels = torch.ones(50, dtype=torch.long)

    def predict(keep):
        seen = (keep * place).sum((1, 2)).float()  # (N,)
        return torch.stack([0.5 - seen, seen], 1)

    best = deletion.deletion_curve(predict, place.float(), labels)
    worst = deletion.deletion_curve(predict, -place.float(), labels)
    assert best.auc == 1.0
    assert worst.accuracy == (1.0, *[0.0] * 9)


def test_one_importance_map_serves_all_images():
    seen = []

    def predict(keep):
        seen.append(keep)
        return torch.zeros(3, 2)

    labels = torch.zeros(3, dtype=torch.long)
    deletion.deletion_curve(predict, deletion.centre_prior(4, 4), labels, fractions=[0.75])
    centre = torch.zeros(4, 4, dtype=torch.bool)
    centre[1:3, 1:3] = True
    assert torch.equal(seen[0], centre.expand(3, 4, 4))


@pytest.mark.parametrize(("fraction", "left"), [(0, 16), (0.1, 14), (0.5, 8), (0.9, 2), (1, 0)])
def test_whole_tokens_are_deleted_and_as_many_in_every_image(fraction, left):
    keep = deletion.keep_masks(torch.rand(5, 4, 4), fraction)
    assert keep.sum((1, 2)).tolist() == [left] * 5


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"within 0 and 1, got 1\.5"):
        deletion.keep_masks(torch.rand(2, 3, 3), 1.5)
    with pytest.raises(ValueError, match="holds NaN"):
        deletion.keep_masks(torch.full((2, 3, 3), torch.nan), 0.5)


def test_norm_of_a_patch_is_that_of_its_flattened_token():
    x = torch.randn(2, 3, 4, 6)
    for size in (1, 2):
        tokens = nn.functional.pixel_unshuffle(x, size)  # (2, 3 s s, 4 / s, 6 / s)
        torch.testing.assert_close(deletion.token_norms(x, size), tokens.norm(dim=1))


def test_rankings_by_lot_are_the_same_for_the_same_seed():
    first, again = (deletion.random_ranking((2, 3, 3), seed=4) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, deletion.random_ranking((2, 3, 3), seed=5))


def test_a_network_predicts_under_the_mask_it_is_given():
    torch.manual_seed(0)
    images = data.load("shapes", "test", limit=30)
    network = backbones.CifarNet(backbones.SMOKE)
    attach_energy_mask(network, "group2", preset="stable")
    predict = deletion.network_predictor(network, images)
    ones = predict(torch.ones(30, 8, 8, dtype=torch.bool))
    inference.only_mask(network).enabled = False
    assert torch.equal(ones, inference.predict(network, images))
    inference.only_mask(network).enabled = True
    keep = deletion.keep_masks(torch.rand(30, 8, 8), 0.5)
    x = images.normalise(images.images)
    map_ = network.eval().group2[:-1](network.group1(network.stem(x)))  # (N, D, 8, 8)
    by_hand = network.classify(network.group3(map_ * keep[:, None]))
    torch.testing.assert_close(predict(keep), by_hand)
    assert isinstance(network.group2[-1], EnergyMask)
