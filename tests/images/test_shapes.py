"""Textured shapes: reproducible, balanced, with masks that tell object from background."""

import pytest
import torch
import torch.nn.functional as F

from ersm_lab.images import shapes
from ersm_lab.images.shapes import BACKGROUNDS, CLASSES, textured_shapes


@pytest.fixture(scope="module")
def plain():
    return textured_shapes(1000, seed=0)


@pytest.fixture(scope="module")
def marked():
    return {share: textured_shapes(2000, seed=0, spurious=share) for share in (0.0, 0.9, 1.0)}


def _same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def _grown(masks, pixels):
    """Masks (N, S, S) grown by a number of pixels."""
    return F.max_pool2d(masks.float(), 2 * pixels + 1, stride=1, padding=pixels) > 0


def _shrunk(masks, pixels):
    """Masks (N, S, S) less a rim of so many pixels; what lies outside the image is no mask."""
    outside = F.pad(~masks, 2 * [pixels] + 2 * [pixels], value=True)
    return ~_grown(outside, pixels)[:, pixels:-pixels, pixels:-pixels]


def test_shapes_and_types(plain):
    assert plain.images.shape == (1000, 3, 32, 32) and plain.images.dtype == torch.uint8
    assert plain.labels.shape == (1000,) and plain.labels.dtype == torch.int64
    assert plain.masks.shape == (1000, 32, 32) and plain.masks.dtype == torch.bool
    assert plain.backgrounds.dtype == torch.int64 and (plain.backgrounds == -1).all()
    assert len(CLASSES) == len(BACKGROUNDS) == 10


@pytest.mark.parametrize("size", [16, 48])
def test_other_sizes(size):
    data = textured_shapes(20, seed=0, size=size)
    assert data.images.shape == (20, 3, size, size) and data.masks.shape == (20, size, size)


def test_same_seed_same_images_other_seed_other_images(plain):
    assert _same(plain, textured_shapes(1000, seed=0))
    other = textured_shapes(1000, seed=1)
    assert (plain.images != other.images).flatten(1).any(1).all()


@pytest.mark.parametrize("count", [1, 250, 251, 613])
def test_a_shorter_draw_is_the_start_of_a_longer_one(plain, count):
    short = textured_shapes(count, seed=0)
    assert len(short.labels) == count
    assert _same(short, [whole[:count] for whole in plain])


def test_global_generator_is_left_alone():
    before = torch.get_rng_state()
    textured_shapes(10, seed=0, spurious=0.5)
    assert torch.equal(before, torch.get_rng_state())


def test_progress_bar_changes_nothing(plain, capsys):
    assert _same(textured_shapes(300, seed=0, progress=True), [whole[:300] for whole in plain])
    assert "textured shapes" in capsys.readouterr().err
    textured_shapes(300, seed=0)
    assert capsys.readouterr().err == ""


def test_classes_are_balanced(plain):
    assert plain.labels.bincount().tolist() == [100] * 10
    assert plain.labels[:250].bincount().tolist() == [25] * 10
    assert plain.labels[:20].unique().numel() > 4  # shuffled, not sorted


def test_objects_cover_their_share_and_stay_inside(plain):
    share = plain.masks.float().mean((1, 2))
    assert 0.07 < share.min() < 0.1 and 0.3 < share.max() < 0.35
    for label in range(10):  # size does not tell the class
        assert abs(share[plain.labels == label].mean() - share.mean()) < 0.03
    reached = plain.masks.any(0)  # (S, S)
    assert reached.any(0).all() and reached.any(1).all()  # every row and column


def test_masks_separate_object_from_background(marked):
    """The same objects on other backgrounds: equal inside the mask, different outside."""
    one, other = marked[0.0], marked[1.0]
    assert torch.equal(one.labels, other.labels) and torch.equal(one.masks, other.masks)
    differs = (one.images != other.images).any(1)  # (N, S, S)
    changed = one.backgrounds != other.backgrounds  # (N,)
    assert not differs[~changed].any()
    inside, outside = _shrunk(one.masks, 2), ~_grown(one.masks, 1)
    assert inside.sum() > 100_000 and not differs[inside].any()
    assert differs[changed][outside[changed]].float().mean() > 0.98


def test_objects_leave_the_pixels_outside_their_masks_alone(marked, monkeypatch):
    """Painted black instead of textured, an object changes its own pixels and no others."""
    draw = shapes._draw_texture
    monkeypatch.setattr(shapes, "_draw_texture", lambda *settings: 0 * draw(*settings))
    black = textured_shapes(250, seed=0, spurious=0.9)
    assert torch.equal(black.masks, marked[0.9].masks[:250])
    differs = (black.images != marked[0.9].images[:250]).any(1)  # (N, S, S)
    assert not differs[~_grown(black.masks, 2)].any()
    assert differs[_shrunk(black.masks, 1)].float().mean() > 0.98


def test_texture_and_background_do_not_tell_the_class():
    data = textured_shapes(3000, seed=2)
    images, masks = data.images.float() / 255, data.masks[:, None]
    inside = (images * masks).sum((2, 3)) / masks.sum((2, 3))  # (N, 3)
    outside = (images * ~masks).sum((2, 3)) / (~masks).sum((2, 3))  # (N, 3)
    for colour in (inside, outside):
        means = torch.stack([colour[data.labels == label].mean(0) for label in range(10)])
        assert (means - colour.mean(0)).abs().max() < 0.07  # 5 standard errors of a class's mean
    contrast = (inside - outside).norm(dim=1)
    assert contrast.quantile(0.1) < 0.2 and contrast.quantile(0.5) > 0.25  # not always trivial


@pytest.mark.parametrize(("share", "agreement"), [(0.0, 0.1), (0.9, 0.91), (1.0, 1.0)])
def test_share_of_spurious_backgrounds(marked, share, agreement):
    data = marked[share]
    agrees = (data.backgrounds == data.labels).float().mean().item()
    assert agrees == pytest.approx(agreement, abs=0.03 if agreement < 1 else 0)
    assert data.backgrounds.bincount(minlength=10).min() > 150  # each kind about 200 times in 2,000


def test_marked_backgrounds_look_different(marked):
    """A kind's mean colour and roughness tell it from the others far better than chance."""
    data = marked[0.0]
    images, free = data.images.float() / 255, ~_grown(data.masks, 1)[:, None]
    colour = (images * free).sum((2, 3)) / free.sum((2, 3))  # (N, 3)
    across = ((images[..., 1:] - images[..., :-1]).abs() * free[..., 1:]).mean((1, 2, 3))
    down = ((images[..., 1:, :] - images[..., :-1, :]).abs() * free[..., 1:, :]).mean((1, 2, 3))
    features = torch.cat((colour, 3 * across[:, None], 3 * down[:, None]), 1)  # (N, 5)
    fit, check = slice(0, 1000), slice(1000, None)
    means = torch.stack(
        [features[fit][data.backgrounds[fit] == kind].mean(0) for kind in range(10)]
    )
    guess = torch.cdist(features[check], means).argmin(1)
    assert (guess == data.backgrounds[check]).float().mean() > 0.4


def test_every_class_has_an_outline_of_its_own(plain):
    """Rotation-free profiles of the masks: nearest class mean gets most shapes right."""
    features = torch.stack([_profile(mask) for mask in plain.masks])  # (N, 16)
    fit, check = slice(0, 500), slice(500, None)
    means = torch.stack([features[fit][plain.labels[fit] == label].mean(0) for label in range(10)])
    assert torch.pdist(means).min() > 0.02
    guess = torch.cdist(features[check], means).argmin(1)
    right = guess == plain.labels[check]
    for label in range(10):
        assert right[plain.labels[check] == label].float().mean() > 0.5, CLASSES[label]


def _profile(mask):
    """Share of the object in 16 rings about its centroid, radii in units of its size."""
    points = mask.nonzero().float()  # (P, 2)
    radius = (points - points.mean(0)).norm(dim=1) / len(points) ** 0.5  # (P,)
    return torch.histc(radius, bins=16, min=0, max=1.2) / len(points)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 0}, "count must be a whole number of at least 1"),
        ({"count": 5, "spurious": 1.1}, "spurious must be .* at most 1, got 1.1"),
        ({"count": 5, "spurious": -0.1}, "spurious must be .* at least 0"),
        ({"count": 5, "spurious": float("nan")}, "spurious must be .*, got nan"),
        ({"count": 5, "size": 15}, "below 16 pixels"),
    ],
)
def test_errors_say_what_to_do(settings, message):
    with pytest.raises(ValueError, match=message):
        textured_shapes(**settings, seed=0)
