"""Maps against object masks: a slow reference, scikit-learn's AUC, and what is undefined."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from ersm_lab.evaluation import object_masks

SCORES = ("iou_top_k", "pointing", "inside", "on_background", "auc")


def made(count=12, side=5, *, levels=None, seed=0):
    """Maps (N, side, side), with ties if there are few levels, and objects."""
    lots = torch.Generator().manual_seed(seed)
    maps = torch.randn(count, side, side, generator=lots)
    if levels:
        maps = torch.randint(-1, levels, maps.shape, generator=lots).float()
    objects = torch.rand(count, side, side, generator=lots) < 0.4
    objects[:, 0, 0], objects[:, -1, -1] = True, False  # both kinds in every image
    return maps, objects


def by_lot(maps, objects, score):
    """Mean of `score(order, objects)` over all orders in which ties can be broken; tiny images."""
    found = []
    for values, truth in zip(maps.flatten(1).tolist(), objects.flatten(1).tolist(), strict=True):
        orders = [
            order
            for order in itertools.permutations(range(len(values)))
            if all(values[a] >= values[b] for a, b in itertools.pairwise(order))
        ]
        found.append(np.mean([score(order, truth) for order in orders]))
    return found


# --- against slow references -----------------------------------------------------------------------


@pytest.mark.parametrize("levels", [None, 3, 1])
def test_auc_is_that_of_scikit_learn(levels):
    maps, objects = made(levels=levels)
    slow = [roc_auc_score(o.flatten(), m.flatten()) for m, o in zip(maps, objects, strict=True)]
    assert object_masks.auc(maps, objects).tolist() == pytest.approx(slow, abs=1e-12)


@pytest.mark.parametrize("levels", [None, 2])
def test_pointing_is_the_mean_over_the_ways_to_break_ties(levels):
    maps, objects = made(6, 2, levels=levels)
    slow = by_lot(maps, objects, lambda order, truth: float(truth[order[0]]))
    assert object_masks.pointing(maps, objects).tolist() == pytest.approx(slow, abs=1e-12)


@pytest.mark.parametrize("levels", [None, 2])
def test_the_overlap_of_the_top_k_is_that_of_the_mean_over_the_ways_to_break_ties(levels):
    maps, objects = made(8, 2, levels=levels)
    shared = by_lot(maps, objects, lambda order, truth: sum(truth[i] for i in order[: sum(truth)]))
    area = objects.flatten(1).sum(1).tolist()
    slow = [s / (2 * k - s) for s, k in zip(shared, area, strict=True)]
    assert object_masks.iou_top_k(maps, objects).tolist() == pytest.approx(slow, abs=1e-12)


def test_shares_and_overlap_pixel_by_pixel():
    maps, objects = made()
    masks = (maps > 0).float()
    found = object_masks.mask_scores(masks, objects)
    shares = object_masks.inside(maps, objects)
    for n, (mask, values, truth) in enumerate(zip(masks, maps, objects, strict=True)):
        pixels = list(zip(mask.flatten().tolist(), truth.flatten().tolist(), strict=True))
        both = sum(m == 1 and t for m, t in pixels)
        either = sum(m == 1 or t for m, t in pixels)
        on = sum(t for _, t in pixels)
        kept = sum(m == 1 for m, _ in pixels)
        assert found["iou"][n].item() == pytest.approx(both / either)
        assert found["inside"][n].item() == pytest.approx(both / kept)
        assert found["on_background"][n].item() == pytest.approx(1 - both / kept)
        assert found["kept_on_object"][n].item() == pytest.approx(both / on)
        assert found["kept_on_background"][n].item() == pytest.approx((kept - both) / (25 - on))
        positive = [
            (max(v, 0), t) for v, t in zip(values.flatten().tolist(), truth.flatten(), strict=True)
        ]
        share = sum(v for v, t in positive if t) / sum(v for v, _ in positive)
        assert shares[n].item() == pytest.approx(share)
    torch.testing.assert_close(found["iou"], object_masks.iou(masks, objects))


# --- known answers ---------------------------------------------------------------------------------


def test_the_object_itself_is_perfect_and_its_opposite_is_not():
    _, objects = made()
    best = object_masks.mask_scores(objects.float(), objects)
    worst = object_masks.mask_scores(1 - objects.float(), objects)
    for name in ("iou", "iou_top_k", "pointing", "inside", "auc", "kept_on_object"):
        assert best[name].tolist() == [1.0] * 12, name
        if name != "iou_top_k":  # where the rest is smaller than the object, some of it is reached
            assert worst[name].tolist() == [0.0] * 12, name
    assert best["on_background"].tolist() == best["kept_on_background"].tolist() == [0.0] * 12
    assert worst["on_background"].tolist() == worst["kept_on_background"].tolist() == [1.0] * 12


def test_a_constant_map_knows_nothing():
    _, objects = made()
    area = objects.double().mean((1, 2))  # (N,)
    found = object_masks.mask_scores(torch.ones(12, 5, 5), objects)
    assert found["auc"].tolist() == [0.5] * 12
    for name in ("pointing", "inside", "iou"):
        torch.testing.assert_close(found[name], area)
    torch.testing.assert_close(found["iou_top_k"], area / (2 - area))


def test_a_soft_mask_keeps_what_is_above_one_half():
    _, objects = made()
    soft = torch.where(objects, 0.6, 0.4)
    found = object_masks.mask_scores(soft, objects)
    assert found["iou"].tolist() == [1.0] * 12
    torch.testing.assert_close(found["kept_on_background"], torch.full((12,), 0.4).double())


@pytest.mark.parametrize("channel", [True, False])
def test_tokens_give_all_their_pixels_their_value(channel):
    masks = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])  # (1, 2, 2)
    wide = object_masks.to_pixels(masks[:, None] if channel else masks, (4, 6), smooth=False)
    assert torch.equal(wide, masks.repeat_interleave(2, 1).repeat_interleave(3, 2))
    smooth = object_masks.to_pixels(masks, (4, 4), smooth=True)
    assert smooth[0, 0].tolist() == [0.0, 0.25, 0.75, 1.0]


# --- what is undefined -----------------------------------------------------------------------------


def test_an_empty_object_is_undefined_everywhere():
    maps, objects = made(3)
    objects[1] = False
    found = object_masks.mask_scores(maps.sigmoid(), objects)
    assert set(found) == {*SCORES, "iou", "kept_on_object", "kept_on_background"}
    for name, values in found.items():
        assert values.isnan().tolist() == [False, True, False], name


def test_an_object_that_fills_the_image_has_no_background_to_tell_it_from():
    maps, objects = made(2)
    objects[0] = True
    found = object_masks.mask_scores(maps.sigmoid(), objects)
    undefined = {name for name, values in found.items() if values[0].isnan()}
    assert undefined == {"auc", "kept_on_background"}
    assert found["iou_top_k"][0] == found["pointing"][0] == found["inside"][0] == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_map_that_is_not_finite_is_undefined_and_spoils_no_other(value):
    maps, objects = made(3)
    alone = object_masks.saliency_scores(maps, objects)
    maps[1, 2, 2] = value
    found = object_masks.saliency_scores(maps, objects)
    assert tuple(found) == SCORES
    for name, values in found.items():
        assert values.isnan().tolist() == [False, True, False], name
        assert torch.equal(values[::2], alone[name][::2])


def test_a_map_without_a_positive_value_has_no_share():
    maps, objects = made(2)
    found = object_masks.saliency_scores(-maps.abs(), objects)
    assert found["inside"].isnan().all() and found["on_background"].isnan().all()
    assert found["auc"].isfinite().all()
    assert object_masks.iou(torch.zeros(2, 5, 5), objects).tolist() == [0.0, 0.0]


def test_summaries_count_what_is_undefined():
    found = object_masks.summary(torch.tensor([1.0, math.nan, 2.0, 4.0]))
    assert found["undefined"] == 1
    assert found["mean"] == pytest.approx(7 / 3)
    assert found["standard_error"] == pytest.approx(np.std([1, 2, 4], ddof=1) / math.sqrt(3))
    nothing = {"mean": None, "standard_error": None, "undefined": 1}
    assert object_masks.summary(torch.tensor([math.nan])) == nothing
    assert object_masks.summary(torch.tensor([3.0]))["standard_error"] is None


# --- bad input -------------------------------------------------------------------------------------


def test_bad_input_is_refused():
    maps, objects = made(2)
    with pytest.raises(ValueError, match="objects are bool"):
        object_masks.auc(maps, objects.float())
    with pytest.raises(ValueError, match=r"stretch maps by to_pixels, got \(2, 5, 5\) and"):
        object_masks.auc(maps, objects[:1])
    with pytest.raises(ValueError, match="threshold a soft one"):
        object_masks.iou(maps.sigmoid(), objects)
    with pytest.raises(ValueError, match="within 0 and 1: score other maps by saliency_scores"):
        object_masks.mask_scores(maps, objects)
    with pytest.raises(ValueError, match=r"got \(2, 3, 5, 5\)"):
        object_masks.to_pixels(torch.zeros(2, 3, 5, 5), (10, 10), smooth=True)
