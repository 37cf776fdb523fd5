"""Occlusion, corruptions and low resolution against Pillow, closed forms and slow references."""

import colorsys
import io
import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from ersm_lab.images import corruption_parts, corruptions, data, occlusion, resolution
from ersm_lab.images.corruptions import KINDS, corrupt
from ersm_lab.images.occlusion import occlude
from ersm_lab.images.resolution import low_resolution

GROWING = sorted(
    {*KINDS} - {"motion_blur", "glass_blur", "elastic_transform", "spatter", "saturate"}
)
BY_LOT = {
    "gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "fog",
    "elastic_transform", "speckle_noise", "spatter",
}  # fmt: skip
BLACK, WHITE = 0, 255


@pytest.fixture(scope="module")
def images():
    return data.load("shapes", "test", limit=64).images


def plain(level, count=1, side=32):
    return torch.full((count, side, side, 3), level, dtype=torch.uint8)


def errors(images, kind):
    """Mean absolute error against the clean images, in levels, for severities 1 to 5."""
    clean = images.double()
    return [(corrupt(images, kind, s, seed=0) - clean).abs().mean().item() for s in range(1, 6)]


def cut(x):
    """Values of 0 to 1 as whole levels, fractions cut off."""
    return np.floor(np.clip(np.asarray(x, float), 0, 1) * 255 + 1e-3)


def lots(kind, seed=0, number=0):
    return np.random.default_rng([seed, number, *kind.encode()])


# --- all corruptions -------------------------------------------------------------------------------


def test_kinds_and_groups_are_those_of_cifar10_c():
    groups = corruptions.GROUPS
    assert list(groups) == ["noise", "blur", "weather", "digital", "extra"]
    assert sorted(itertools.chain(*groups.values())) == sorted(KINDS) == sorted({*KINDS})
    assert len(corruptions.CORRUPTIONS) == 14 and len(corruptions.EXTRA) == 4
    assert len(corruptions.PUBLISHED) == 19 and {*corruptions.PUBLISHED} - {*KINDS} == {"frost"}
    assert {*corruptions.PARAMETERS} == {*KINDS}
    assert {len(rows) for rows in corruptions.PARAMETERS.values()} == {5}


@pytest.mark.parametrize("kind", GROWING)
def test_the_error_grows_with_severity(images, kind):
    found = errors(images, kind)
    assert all(a < b for a, b in itertools.pairwise([0.5, *found]))


@pytest.mark.parametrize("kind", KINDS)
def test_type_shape_input_and_seed(images, kind):
    some, before = images[:12], images[:12].clone()
    first = corrupt(some, kind, 3, seed=1)
    assert first.dtype == torch.uint8 and first.shape == some.shape and first.is_contiguous()
    assert torch.equal(some, before)
    assert torch.equal(first, corrupt(some, kind, 3, seed=1))
    assert torch.equal(first, corrupt(some, kind, 3, seed=2)) == (kind not in BY_LOT)
    twice = corrupt(some[:1].repeat(2, 1, 1, 1), kind, 3, seed=1)
    assert torch.equal(twice[0], twice[1]) == (kind not in BY_LOT)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_does_not_depend_on_the_batch(images, kind, monkeypatch):
    whole = corrupt(images[:20], kind, 2, seed=5)
    monkeypatch.setattr(corruptions, "_CHUNK", 7)
    assert torch.equal(corrupt(images[:20], kind, 2, seed=5), whole)
    parts = [corrupt(images[k : k + 1], kind, 2, seed=5, first=k) for k in (0, 13)]
    assert torch.equal(torch.cat(parts), whole[[0, 13]])


@pytest.mark.parametrize(
    "kind", [*corruptions.BLUR, "gaussian_blur", "elastic_transform", "pixelate"]
)
@pytest.mark.parametrize("level", [0, 77, 255])
def test_what_only_moves_or_averages_leaves_a_plain_image(kind, level):
    for severity in corruptions.SEVERITIES:
        assert torch.equal(corrupt(plain(level), kind, severity, seed=0), plain(level))


# --- kinds whose published parameters do not make the error grow ---------------------------------


def test_motion_blur_grows_but_from_three_to_four(images):
    one, two, three, four, five = errors(images, "motion_blur")
    assert 0 < one < two < three < five
    assert four == pytest.approx(three, rel=0.01)


def test_glass_blur_grows_with_its_rounds(images):
    found = errors(images, "glass_blur")
    assert max(found[:3]) < min(found[3:])


def test_spatter_grows_within_water_and_within_mud(images):
    one, two, three, four, five = errors(images, "spatter")
    assert 0 < one < two < three and 0 < four < five
    water = corrupt(images, "spatter", 3, seed=0)
    assert (water >= images).all()
    brown = torch.tensor([63, 42, 20])
    for level in (BLACK, WHITE):
        mud = corrupt(plain(level, 20), "spatter", 5, seed=0).int()
        assert (mud - level).abs().sum() > 0
        between = (mud >= torch.minimum(brown, torch.tensor(level))) & (
            mud <= torch.maximum(brown, torch.tensor(level))
        )
        assert between.all()


def saturation(images):
    x = images.double()
    value = x.amax(3)
    return ((value - x.amin(3)) / value.clamp(min=1)).mean().item()


def test_saturate_takes_colour_away_then_adds_it(images):
    found = [saturation(corrupt(images, "saturate", s, seed=0)) for s in range(1, 6)]
    assert found[1] < found[0] < saturation(images) < found[2] < found[3] < found[4]


def test_elastic_bends_more_and_shifts_less():
    ramp = 8 * torch.arange(32, dtype=torch.uint8)  # 8 levels a pixel
    one = torch.stack(
        [ramp.expand(32, 32), ramp[:, None].expand(32, 32), torch.zeros(32, 32).byte()], 2
    )
    many = one.repeat(60, 1, 1, 1)
    inner = slice(7, 25)  # away from the mirrored border
    grid = np.mgrid[inner, inner].reshape(2, -1).T
    affine = np.column_stack([grid, np.ones(len(grid))])
    bending, shift = [], []
    for severity in range(1, 6):
        moved = corrupt(many, "elastic_transform", severity, seed=0)[:, inner, inner, :2].numpy()
        moved = (moved.astype(float) + 0.5).reshape(60, -1, 2).transpose(1, 0, 2).reshape(
            len(grid), -1
        ) / 8
        fit = affine @ np.linalg.lstsq(affine, moved, rcond=None)[0]
        bending.append((moved - fit).std())
        shift.append((fit - np.tile(grid[:, ::-1], 60)).std())
    assert all(a < b for a, b in itertools.pairwise(bending[1:])) and bending[0] < bending[2]
    assert all(a > b for a, b in itertools.pairwise(shift))


# --- exactly ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("severity", "quality"), [(1, 80), (3, 58), (5, 40)])
def test_jpeg_is_pillows(images, severity, quality):
    found = corrupt(images, "jpeg_compression", severity, seed=0).numpy()
    for clean, image in zip(images.numpy(), found, strict=True):
        file = io.BytesIO()
        Image.fromarray(clean).save(file, "JPEG", quality=quality)
        np.testing.assert_array_equal(image, np.array(Image.open(file)))


@pytest.mark.parametrize(("severity", "side"), [(1, 30), (2, 28), (3, 27), (4, 24), (5, 20)])
def test_pixelate_is_pillows_box_filter(images, severity, side):
    found = corrupt(images, "pixelate", severity, seed=0).numpy()
    for clean, image in zip(images.numpy(), found, strict=True):
        small = Image.fromarray(clean).resize((side, side), Image.Resampling.BOX)
        np.testing.assert_array_equal(image, np.array(small.resize((32, 32), Image.Resampling.BOX)))


@pytest.mark.parametrize(("severity", "factor"), [(1, 0.75), (5, 0.15)])
def test_contrast_is_its_formula(images, severity, factor):
    x = images.double().numpy() / 255
    mean = x.mean((1, 2), keepdims=True)
    found = corrupt(images, "contrast", severity, seed=0).numpy()
    np.testing.assert_array_equal(found, cut((x - mean) * factor + mean))


def by_hsv(images, change):
    """Change hue, saturation and value pixel by pixel with the standard library."""
    pixels = images.reshape(-1, 3).double().numpy() / 255
    changed = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel))) for pixel in pixels]
    return cut(changed).reshape(images.shape)


@pytest.mark.parametrize(("severity", "added"), [(1, 0.05), (5, 0.3)])
def test_brightness_adds_to_the_value(images, severity, added):
    some = torch.cat([images[:5], plain(BLACK), plain(WHITE), plain(90)])
    expected = by_hsv(some, lambda h, s, v: (h, s, min(v + added, 1)))
    np.testing.assert_array_equal(corrupt(some, "brightness", severity, seed=0).numpy(), expected)


@pytest.mark.parametrize(("severity", "factor", "added"), [(2, 0.1, 0), (4, 2, 0.1), (5, 2.5, 0.2)])
def test_saturate_changes_the_saturation(images, severity, factor, added):
    some = torch.cat([images[:5], plain(BLACK), plain(WHITE), plain(90)])  # grey turns red
    expected = by_hsv(some, lambda h, s, v: (h, min(factor * s + added, 1), v))
    np.testing.assert_array_equal(corrupt(some, "saturate", severity, seed=0).numpy(), expected)


# --- against slow references -----------------------------------------------------------------------


def test_gaussian_noise_is_added_in_units_of_one(images):
    noise = lots("gaussian_noise").standard_normal((32, 32, 3), dtype=np.float32)
    expected = cut(images[0].double().numpy() / 255 + 0.08 * noise)
    found = corrupt(images[:1], "gaussian_noise", 3, seed=0)[0].numpy()
    assert np.abs(found - expected).max() <= 1  # a fraction of a level at the very edge
    assert (found == expected).mean() > 0.999


@pytest.mark.parametrize(
    ("kind", "severity", "sd"),
    [
        ("gaussian_noise", 1, 0.04),
        ("speckle_noise", 2, 0.1 * 128 / 255),
        ("shot_noise", 3, math.sqrt(128 / 255 / 100)),
    ],
)
def test_noise_on_plain_grey_has_its_spread(kind, severity, sd):
    found = corrupt(plain(128, 40), kind, severity, seed=0).double() / 255
    assert found.std().item() == pytest.approx(sd, rel=0.02)
    assert found.mean().item() == pytest.approx(127.5 / 255, abs=0.001)  # half a level is cut off


def test_impulse_noise_hits_its_share_of_the_values_with_salt_and_pepper_alike():
    found = corrupt(plain(128, 40), "impulse_noise", 5, seed=0)
    for level in (BLACK, WHITE):
        assert (found == level).double().mean().item() == pytest.approx(0.035, abs=0.002)
    assert ((found == BLACK) | (found == WHITE) | (found == 128)).all()
    assert not (found == found[..., :1]).all()  # each channel by itself


def convolved(image, kernel):
    """Kernel (2 r + 1, 2 r + 1) over an image (H, W, 3), mirrored at the border, pixel by pixel."""
    reach = len(kernel) // 2
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), "reflect")
    out = np.zeros(image.shape)
    for i, j in itertools.product(range(len(kernel)), repeat=2):
        out += kernel[i, j] * padded[i : i + 32, j : j + 32]
    return out


@pytest.mark.parametrize(
    ("severity", "radius", "rim"), [(1, 0.3, 0.4), (3, 0.5, 0.6), (4, 1, 0.2), (5, 1.5, 0.1)]
)
def test_defocus_blur_against_a_slow_reference(images, severity, radius, rim):
    kernel = np.zeros((17, 17))
    taps = [math.exp(-(k**2) / (2 * rim**2)) for k in (-1, 0, 1)]
    for i, j, k, m in itertools.product(range(-7, 8), range(-7, 8), (-1, 0, 1), (-1, 0, 1)):
        kernel[8 + i + k, 8 + j + m] += (math.hypot(i, j) <= radius) * taps[k + 1] * taps[m + 1]
    expected = convolved(images[0].double().numpy() / 255, kernel / kernel.sum())
    found = corrupt(images[:1], "defocus_blur", severity, seed=0)[0].numpy()
    assert np.abs(found - cut(expected)).max() <= 1
    assert np.abs(found + 0.5 - 255 * expected).max() < 0.51


def test_gaussian_blur_of_a_point():
    point = plain(BLACK)
    point[0, 16, 16] = WHITE
    taps = np.exp(-(np.arange(-4, 5) ** 2) / 2)  # sd 1
    taps /= taps.sum()
    found = corrupt(point, "gaussian_blur", 5, seed=0)[0, 12:21, 12:21].numpy()
    np.testing.assert_array_equal(found, cut(np.outer(taps, taps))[..., None].repeat(3, 2))


@pytest.mark.parametrize(("severity", "sd", "rounds"), [(1, 0.05, 1), (3, 0.4, 1), (5, 0.4, 2)])
def test_glass_blur_is_the_published_loop(images, severity, sd, rounds):
    """Swap views of one array from the last pixel backwards."""
    draws = lots("glass_blur")
    blur = {"sigma": (sd, sd, 0), "mode": "nearest"}
    x = cut(ndimage.gaussian_filter(images[0].numpy() / 255, **blur))
    for _ in range(rounds):
        shifts = draws.integers(-1, 1, (2, 32, 32))
        for i, j in itertools.product(range(31, 1, -1), repeat=2):
            there = i + shifts[0, i, j], j + shifts[1, i, j]
            x[i, j], x[there] = x[there], x[i, j]
    expected = cut(ndimage.gaussian_filter(x / 255, **blur))
    found = corrupt(images[:1], "glass_blur", severity, seed=0)[0].numpy()
    assert np.abs(found - expected).max() <= 1
    assert (found == expected).mean() > 0.999


def dragged(image, radius, sd, degrees):
    """ImageMagick's motion blur of levels (H, W, C), pixel by pixel, not rounded."""
    angle = math.radians(degrees)
    weights = [math.exp(-(k**2) / (2 * sd**2)) for k in range(2 * radius + 1)]
    out = np.zeros(image.shape)
    for i, j in itertools.product(range(32), repeat=2):
        for k, weight in enumerate(weights):
            row = i + math.ceil(k * math.sin(angle) - 0.5)
            column = j + math.ceil(k * math.cos(angle) - 0.5)
            out[i, j] += weight * image[min(max(row, 0), 31), min(max(column, 0), 31)]
    return out / sum(weights)


def test_motion_blur_against_a_slow_reference(images):
    degrees = lots("motion_blur").uniform(-45, 45)
    expected = dragged(images[0].double().numpy(), 9, 2.5, degrees)
    found = corrupt(images[:1], "motion_blur", 5, seed=0)[0].numpy()
    assert np.abs(found - expected).max() < 0.501


def zoomed(image, factor):
    """The middle of an image (H, W, C), enlarged to all of it by SciPy."""
    part = math.ceil(32 / factor)
    start = (32 - part) // 2
    middle = image[start : start + part, start : start + part]
    larger = ndimage.zoom(middle, (factor, factor, 1), order=1)
    trim = (len(larger) - 32) // 2
    return larger[trim : trim + 32, trim : trim + 32]


def test_zoom_blur_against_scipy_image_by_image(images):
    clean = images[0].double().numpy() / 255
    factors = [1 + 0.01 * k for k in range(26)]
    total = clean + sum(zoomed(clean, factor) for factor in factors)
    found = corrupt(images[:1], "zoom_blur", 5, seed=0)[0].numpy()
    np.testing.assert_array_equal(found, cut(total / (len(factors) + 1)))


@pytest.mark.parametrize(
    ("severity", "mean", "sd", "zoom", "threshold", "radius", "drift", "weight"),
    [(1, 0.1, 0.2, 1, 0.6, 8, 3, 0.95), (5, 0.3, 0.3, 1.25, 0.65, 14, 12, 0.8)],
)
def test_snow_against_a_slow_reference(
    images, severity, mean, sd, zoom, threshold, radius, drift, weight
):
    draws = lots("snow")
    flakes = mean + sd * draws.standard_normal((32, 32), dtype=np.float32).astype(float)
    flakes = zoomed(flakes[..., None], zoom)
    flakes[flakes < threshold] = 0
    layer = np.rint(dragged(cut(flakes), radius, drift, draws.uniform(-135, -45))) / 255
    x = images[0].double().numpy() / 255
    grey = 0.299 * x[..., :1] + 0.587 * x[..., 1:2] + 0.114 * x[..., 2:]
    white = weight * x + (1 - weight) * np.maximum(x, 1.5 * grey + 0.5)
    found = corrupt(images[:1], "snow", severity, seed=0)[0].numpy()
    assert layer.max() > 0.1
    assert np.abs(found - cut(white + layer + np.rot90(layer, 2))).max() <= 1


@pytest.mark.parametrize(("severity", "amount", "decay"), [(1, 0.2, 3), (5, 1.5, 1.75)])
def test_fog_is_plasma_point_by_point(images, severity, amount, decay):
    draws = lots("fog")
    plasma, amplitude, step = np.zeros((32, 32)), 1.0, 32
    while step > 1:
        half = step // 2
        for down, right in ((half, half), (0, half), (half, 0)):
            lot = amplitude * (2 * draws.random((32 // step, 32 // step), dtype=np.float32) - 1.0)
            if down and right:
                around = [(-half, -half), (-half, half), (half, -half), (half, half)]
            else:
                around = [(0, -half), (0, half), (-half, 0), (half, 0)]
            for i, j in itertools.product(range(32 // step), repeat=2):
                row, column = i * step + down, j * step + right
                near = [plasma[(row + a) % 32, (column + b) % 32] for a, b in around]
                plasma[row, column] = sum(near) / 4 + lot[i, j]
        amplitude, step = amplitude / decay**2, half
    plasma = (plasma - plasma.min()) / (plasma.max() - plasma.min())
    x = images[0].double().numpy() / 255
    expected = (x + amount * plasma[..., None]) * x.max() / (x.max() + amount)
    found = corrupt(images[:1], "fog", severity, seed=0)[0].numpy()
    assert np.abs(found - cut(expected)).max() <= 1
    assert (found == cut(expected)).mean() > 0.99


@pytest.mark.parametrize(
    ("severity", "amplitude", "sd", "shift"), [(1, 0, 0, 2.56), (3, 2.56, 1.92, 1.92)]
)
def test_elastic_transform_against_scipy(images, severity, amplitude, sd, shift):
    draws = lots("elastic_transform")
    points = np.array([[26.0, 26], [26, 6], [6, 6]])  # x, y
    moved = points + draws.uniform(-shift, shift, (3, 2))
    back = np.linalg.solve(np.column_stack([moved, np.ones(3)]), points)  # (3, 2)
    rows, columns = np.mgrid[:32, :32]
    there = np.stack([columns, rows, np.ones((32, 32))], 2) @ back  # (32, 32, 2), x and y
    draw = draws.uniform(-1, 1, (2, 32, 32))
    bend = [amplitude * ndimage.gaussian_filter(d, sd, mode="reflect", truncate=3) for d in draw]
    expected = np.zeros((32, 32, 3))
    for channel in range(3):
        x = images[0, ..., channel].double().numpy() / 255
        x = ndimage.map_coordinates(x, [there[..., 1], there[..., 0]], order=1, mode="mirror")
        place = [rows + bend[1], columns + bend[0]]
        expected[..., channel] = ndimage.map_coordinates(x, place, order=1, mode="reflect")
    found = corrupt(images[:1], "elastic_transform", severity, seed=0)[0].numpy()
    assert np.abs(found - cut(expected)).max() <= 1
    assert (found == cut(expected)).mean() > 0.999


def test_fog_keeps_the_brightest_value_and_spans_its_range(images):
    found = corrupt(images, "fog", 5, seed=0)
    assert (found.amax((1, 2, 3)) <= images.amax((1, 2, 3))).all()
    assert torch.equal(corrupt(plain(BLACK), "fog", 5, seed=0), plain(BLACK))
    grey = corrupt(plain(100, 10), "fog", 5, seed=0).double()
    assert torch.equal(grey, grey[..., :1].expand_as(grey))
    # With the plasma at 0 and at 1 the formula gives these two.
    least, most = (100 / 255 + 1.5 * end for end in (0, 1))
    scale = (100 / 255) / (100 / 255 + 1.5)
    assert grey.amin((1, 2, 3)).tolist() == [cut(least * scale)] * 10
    assert grey.amax((1, 2, 3)).tolist() == [cut(most * scale)] * 10


@pytest.mark.parametrize(("severity", "strength"), [(1, 0.5), (3, 0.5)])
def test_the_brightest_water_is_pale_turquoise_at_its_strength(severity, strength):
    found = corrupt(plain(BLACK, 30), "spatter", severity, seed=0)
    most = found.amax((0, 1, 2)).tolist()
    assert most == cut(strength * np.array([175, 238, 238]) / 255).tolist()


def test_edges_are_thin_strong_and_of_one_image():
    step = np.zeros((3, 12, 12), np.uint8)
    step[0, :, 6:] = 200  # an edge: 4 x 200 is above 150
    step[1, :, 6:] = 20  # 4 x 20 is above 50 only
    step[2, :, 6:] = 20
    step[2, :4, 6:] = 200  # the same, joined to a strong edge
    found = corruption_parts.edges(step)
    assert found[0].sum() == 12 and found[0].any(0).sum() == 1
    assert not found[1].any()
    assert found[2, 6:].any(1).all()


# --- occlusion -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [*occlusion.OCCLUDERS, 1, 7, 32])
@pytest.mark.parametrize("position", [*occlusion.POSITIONS, (0, 0)])
def test_an_occluder_covers_exactly_its_square(size, position):
    found = occlude(plain(WHITE, 40), size=size, position=position, seed=3)
    hit = found[..., 0] == BLACK  # (N, H, W)
    assert torch.equal((found == BLACK).all(3), (found == BLACK).any(3))
    assert ((found == BLACK) | (found == WHITE)).all()
    assert (hit.sum((1, 2)) == size**2).all()
    assert (hit.any(1).sum(1) == size).all() and (hit.any(2).sum(1) == size).all()


def corners(found):
    hit = found[..., 0] == BLACK
    return torch.stack([hit.any(2).int().argmax(1), hit.any(1).int().argmax(1)], 1)  # (N, 2)


def test_places():
    white = plain(WHITE, 2_000)
    assert (corners(occlude(white, size=12, position="centre")) == 10).all()
    assert (corners(occlude(white, size=8, position=(3, 24))) == torch.tensor([3, 24])).all()
    place = corners(occlude(white, size=20, position="random", seed=1))
    counts = torch.bincount(place.flatten(), minlength=13)
    assert len(counts) == 13 and counts.min() > 0.7 * counts.max()  # every place alike
    smaller = corners(occlude(white, size=4, position="random", seed=1))
    assert (smaller / 29 - place / 13).abs().max() < 1 / 13  # correspond for all sizes
    assert not torch.equal(place, corners(occlude(white, size=20, position="random", seed=2)))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 33)])
@pytest.mark.parametrize("size", [4, 7, 12, 20])
def test_sliding_covers_all(height, width, size):
    places = occlusion.sliding_places(height, width, size)
    assert len(places) == math.ceil(height / size) * math.ceil(width / size)
    white = torch.full((len(places), height, width, 3), WHITE, dtype=torch.uint8)
    found = occlude(white, size=size, position="sliding")
    assert (found == BLACK).any(0).all()
    assert corners(found).tolist() == [list(place) for place in places]
    one = torch.cat(
        [occlude(white[:1], size=size, position="sliding", seed=s) for s in range(len(places))]
    )
    assert torch.equal(one, found)  # as many seeds as places show an image all of them


def test_fills(images):
    def inside(fill, seed=0):
        found = occlude(images, size=12, position=(4, 9), fill=fill, seed=seed)
        outside = found.clone()
        outside[:, 4:16, 9:21] = images[:, 4:16, 9:21]
        assert torch.equal(outside, images)
        return found[:, 4:16, 9:21]  # (N, 12, 12, 3)

    assert (inside("black") == 0).all()
    mean = images.double().mean((1, 2), keepdim=True).round()
    assert torch.equal(inside("mean").double(), mean.expand(-1, 12, 12, -1))
    assert (inside((10, 20.4, 255)) == torch.tensor([10, 20, 255])).all()
    noise = inside("noise").double()
    assert noise.mean().item() == pytest.approx(127.5, abs=2)
    assert noise.std().item() == pytest.approx(math.sqrt((256**2 - 1) / 12), rel=0.02)
    assert not torch.equal(noise, inside("noise", seed=1).double())
    square = images[:, 4:16, 9:21]
    same = (inside("patch")[:, None] == square[None]).flatten(2).all(2)  # (N, N)
    assert (same.sum(1) == 1).all() and not same.diagonal().any()
    assert same.any(0).sum() > 25  # many others serve


@pytest.mark.parametrize("fill", ["mean", "noise"])
@pytest.mark.parametrize("position", occlusion.POSITIONS)
def test_an_occluded_image_does_not_depend_on_the_batch(images, position, fill):
    settings = {"size": 8, "position": position, "fill": fill, "seed": 4}
    whole = occlude(images, **settings)
    assert torch.equal(whole, occlude(images, **settings))
    assert torch.equal(whole[20:30], occlude(images[20:30], first=20, **settings))


def test_places_do_not_depend_on_the_fill():
    settings = {"size": 8, "position": "random", "seed": 4}
    white = torch.cat([plain(WHITE, 30), plain(BLACK, 30)])
    black = occlude(white, **settings)[:30] != WHITE
    coloured = occlude(white, fill=(1, 2, 3), **settings)[:30] != WHITE
    assert torch.equal(black, coloured)


# --- low resolution --------------------------------------------------------------------------------


def test_low_resolution_of_the_whole_is_the_identity(images):
    same = low_resolution(images, 32)
    assert torch.equal(same, images)
    assert same.data_ptr() != images.data_ptr()


def test_low_resolution_loses_more_the_smaller_it_is(images):
    found = [
        (low_resolution(images, s) - images.double()).abs().mean().item() for s in (24, 16, 12, 8)
    ]
    assert all(a < b for a, b in itertools.pairwise([1, *found]))


@pytest.mark.parametrize("size", resolution.LOW_RESOLUTIONS)
def test_low_resolution_is_pillows_bilinear(images, size):
    found = low_resolution(images, size)
    assert found.dtype == torch.uint8 and found.is_contiguous()
    for clean, image in zip(images.numpy(), found.numpy(), strict=True):
        small = Image.fromarray(clean).resize((size, size), Image.Resampling.BILINEAR)
        back = np.array(small.resize((32, 32), Image.Resampling.BILINEAR), int)
        assert np.abs(image - back).max() <= 1  # rounding


# --- the published files ---------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path):
    """Files laid out as the published ones; all zeros, and so sparse, but for a few marks."""
    for name, shape in (("frost", (50_000, 32, 32, 3)), ("labels", (50_000,))):
        array = np.lib.format.open_memmap(tmp_path / f"{name}.npy", "w+", np.uint8, shape)
        for severity in range(1, 6):
            array[10_000 * (severity - 1)] = severity
            array[10_000 * severity - 1] = 100 + severity
        array.flush()
    return tmp_path


@pytest.mark.parametrize("severity", [1, 5])
def test_a_severity_is_its_ten_thousand(published, severity):
    images, labels = corruptions.published_corruptions(published, "frost", severity)
    assert images.shape == (10_000, 32, 32, 3) and images.dtype == torch.uint8
    assert labels.shape == (10_000,) and labels.dtype == torch.int64
    assert (images[0] == severity).all() and (images[-1] == 100 + severity).all()
    assert images[1:-1].max() == 0
    assert labels[0] == severity and labels[-1] == 100 + severity
    images[0] = 7  # a copy: the file stays as it is
    again, _ = corruptions.published_corruptions(published, "frost", severity)
    assert (again[0] == severity).all()


def test_absent_or_wrong_files_are_named(published):
    with pytest.raises(data.DataNotFound, match=r"fog\.npy is not there: fetch CIFAR-10-C\.tar"):
        corruptions.published_corruptions(published, "fog", 1)
    np.save(published / "fog.npy", np.zeros((10, 32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match=r"fog\.npy holds uint8 \(10, 32, 32, 3\)"):
        corruptions.published_corruptions(published, "fog", 1)
    with pytest.raises(ValueError, match="no corruption 'rain': choose one of"):
        corruptions.published_corruptions(published, "rain", 1)
    with pytest.raises(ValueError, match="at most 5, got 0"):
        corruptions.published_corruptions(published, "frost", 0)


# --- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [plain(0).float(), plain(0)[0], plain(0).permute(0, 3, 1, 2), plain(0)[:0]],
    ids=["float", "one image", "channels first", "none"],
)
def test_images_of_another_kind_are_refused(wrong):
    for perturb in (
        lambda x: corrupt(x, "fog", 1, seed=0),
        lambda x: occlude(x, size=4),
        lambda x: low_resolution(x, 8),
    ):
        with pytest.raises(ValueError, match=r"images must be a tensor \(N, H, W, 3\) of uint8"):
            perturb(wrong)


def test_bad_settings_are_refused(images):
    with pytest.raises(ValueError, match="no corruption 'rain': choose one of gaussian_noise"):
        corrupt(images, "rain", 1, seed=0)
    with pytest.raises(ValueError, match="frost is left out: it needs the authors' photographs"):
        corrupt(images, "frost", 1, seed=0)
    for severity in (0, 6, 1.5):
        with pytest.raises(ValueError, match=f"at most 5, got {severity}"):
            corrupt(images, "fog", severity, seed=0)
    with pytest.raises(ValueError, match="made for 32 x 32 images"):
        corrupt(plain(0, side=16), "fog", 1, seed=0)
    with pytest.raises(ValueError, match=r"seed must be a whole number of at least 0.*got -1"):
        corrupt(images, "fog", 1, seed=-1)
    for size in (0, 33):
        with pytest.raises(ValueError, match=f"size must be .* at most 32, got {size}"):
            occlude(images, size=size)
        with pytest.raises(ValueError, match=f"size must be .* at most 32, got {size}"):
            low_resolution(images, size)
    with pytest.raises(ValueError, match=r"no position 'left': choose one of centre"):
        occlude(images, size=4, position="left")
    with pytest.raises(ValueError, match="top is at most 28, left at most 28"):
        occlude(images, size=4, position=(0, 29))
    with pytest.raises(ValueError, match="no fill 'grey': choose one of black"):
        occlude(images, size=4, fill="grey")
    with pytest.raises(ValueError, match="red, green, blue from 0 to 255"):
        occlude(images, size=4, fill=(0, 0, 256))
    with pytest.raises(ValueError, match="needs two images or more"):
        occlude(images[:1], size=4, fill="patch")
