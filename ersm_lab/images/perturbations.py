"""Perturbed test images: structured occlusion, the corruptions of CIFAR-10-C, low resolution.

Images are uint8 (N, H, W, 3), as an `ImageSet` holds them, before and after. What is drawn by lot
for image i depends on the seed, the kind of perturbation and i alone: not on the severity, so that
the severities of an image are alike, and not on the other images of the batch. A large set can be
handed over in parts, `first` being the number of a part's first image, and gives the same images
(with one version of NumPy). Everything is computed on the CPU, the same for every device.

The corruptions are those of Hendrycks & Dietterich (2019, arXiv:1903.12261), made for 32 x 32 images,
with the parameters of the released CIFAR-10-C. They are made anew here, so that they exist for any
data set: not the published images, but the same distributions. Where this is not so:

    frost       left out: it needs the authors' photographs of frost
    zoom_blur   factors end where the table says; the released generator's rounding adds one more
                step at severities 1 and 2
    spatter     exact distances and our own Canny edges in place of OpenCV's

`published_corruptions` reads the published files, frost included, where a reader has them.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from ersm_lab.common import checks
from ersm_lab.images.data import DataNotFound

NOISE = ("gaussian_noise", "shot_noise", "impulse_noise")
BLUR = ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur")
WEATHER = ("snow", "fog", "brightness")  # and frost, which is left out
DIGITAL = ("contrast", "elastic_transform", "pixelate", "jpeg_compression")
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
GROUPS = {"noise": NOISE, "blur": BLUR, "weather": WEATHER, "digital": DIGITAL, "extra": EXTRA}

LEFT_OUT = ("frost",)
CORRUPTIONS = (*NOISE, *BLUR, *WEATHER, *DIGITAL)  # 14 of the 15 whose mean is reported
KINDS = (*CORRUPTIONS, *EXTRA)  # all that `corrupt` makes
PUBLISHED = (*KINDS, *LEFT_OUT)  # the names of the published files
SEVERITIES = (1, 2, 3, 4, 5)

POSITIONS = ("centre", "random", "sliding")
FILLS = ("black", "mean", "noise", "patch")
OCCLUDERS = (4, 8, 12, 16, 20)  # sides in pixels of a 32 x 32 image
LOW_RESOLUTIONS = (24, 16, 12, 8)  # pixels a side

# What each severity means, 1 to 5. Lengths are in pixels, amplitudes in units of 0 to 1.
PARAMETERS = {
    "gaussian_noise": ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,)),  # sd
    "shot_noise": ((500,), (250,), (100,), (75,), (50,)),  # photons at full brightness
    "impulse_noise": ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,)),  # share of the values
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),  # radius, sd of rim
    # sd, largest shift, rounds
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),  # radius, sd
    "zoom_blur": ((1.05,), (1.10,), (1.15,), (1.20,), (1.25,)),  # largest factor; steps of 0.01
    # mean and sd of the flakes, their zoom, threshold, radius and sd of their motion, image's weight
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),  # amount, decay
    "brightness": ((0.05,), (0.10,), (0.15,), (0.20,), (0.30,)),  # added to the value of HSV
    "contrast": ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,)),  # factor
    # of the bending: amplitude and sd of its smoothing; largest shift of the affine map's corners
    "elastic_transform": (
        (0, 0, 2.56),
        (1.6, 6.4, 2.24),
        (2.56, 1.92, 1.92),
        (3.2, 1.28, 1.6),
        (3.2, 0.96, 0.96),
    ),
    "pixelate": ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,)),  # factor of the side
    "jpeg_compression": ((80,), (65,), (58,), (50,), (40,)),  # quality
    "speckle_noise": ((0.06,), (0.1,), (0.12,), (0.16,), (0.2,)),  # sd at full brightness
    "gaussian_blur": ((0.4,), (0.6,), (0.7,), (0.8,), (1,)),  # sd
    # mean and sd of the liquid, sd of its smoothing, threshold, opacity of water or sd of mud, mud
    "spatter": (
        (0.62, 0.1, 0.7, 0.7, 0.5, False),
        (0.65, 0.1, 0.8, 0.7, 0.5, False),
        (0.65, 0.3, 1, 0.69, 0.5, False),
        (0.65, 0.1, 0.7, 0.69, 0.6, True),
        (0.65, 0.1, 0.5, 0.68, 0.6, True),
    ),
    "saturate": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),  # factor of HSV's S, added
}

MOST_SIDE = 1_000  # pixels along a side of an image
_SIDE = 32  # pixels, of the images that these parameters are for
_CHUNK = 500  # images worked on at once; the result does not depend on it
_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # luma of red, green, blue (ITU-R BT.601)
_TURQUOISE = np.array([175, 238, 238], np.float32) / 255  # water
_BROWN = np.array([63, 42, 20], np.float32) / 255  # mud

Lots = Sequence[np.random.Generator]  # one generator for each image


# --- occlusion -------------------------------------------------------------------------------------


def occlude(
    images: Tensor,
    *,
    size: int,
    position: str | tuple[int, int] = "centre",
    fill: str | tuple[float, float, float] = "black",
    seed: int = 0,
    first: int = 0,
) -> Tensor:
    """Cover one square of every image; the square lies wholly inside it.

    Args:
        images: uint8 (N, H, W, 3).
        size: side of the square in pixels; 4 to 20 of 32 is the range of the book (`OCCLUDERS`).
        position: "centre"; "random", every place alike, with places that correspond for all sizes;
            "sliding", image i at place i + seed, cyclically, of `sliding_places`, so that as many
            successive seeds as there are places show every image every place; or (top, left) for all.
        fill: "black"; "mean", the mean colour of the image itself; "noise", uniform and independent
            for each pixel and channel; "patch", the same square of another of `images`, as in CutMix
            (arXiv:1905.04899); or a colour, red, green, blue from 0 to 255, such as a data set's mean.
        seed: of places, noise and the choice of other images.
        first: number of the first image, where `images` is a part of a larger set. The other images
            of "patch" come from the part: only there do the parts not give what the whole gives.

    Returns:
        uint8 (N, H, W, 3) on the same device.

    Raises:
        ValueError: images of another type or shape or none, a square that does not fit, an unknown
            position or fill, or "patch" with a single image.
    """
    _check(images, seed, first)
    count, height, width = images.shape[:3]
    if not _whole(size) or not 1 <= size <= min(height, width):
        raise ValueError(
            f"size: an occluder has 1 to {min(height, width)} pixels a side, got {size!r}"
        )
    top, left = _places(position, count, height, width, size, seed, first)  # (N,), (N,)
    return cover(images, _filling(images, fill, seed, first), top=top, left=left, size=size)


def cover(images, filling, *, top, left, size):
    """Images (N, H, W, 3) with the filling in a square of each, whose corner is at top, left (N,)."""
    height, width = images.shape[1:3]
    rows, columns = (
        (pixel >= start[:, None]) & (pixel < start[:, None] + size)  # (N, H), (N, W)
        for start, pixel in ((top, np.arange(height)), (left, np.arange(width)))
    )
    covered = rows[:, :, None, None] & columns[:, None, :, None]  # (N, H, W, 1)
    covered = torch.from_numpy(covered).to(images.device)
    return torch.where(covered, filling, images)


def sliding_places(height: int, width: int, size: int) -> list[tuple[int, int]]:
    """(top, left) of the fewest squares of `size` pixels a side that cover the image, evenly spread."""
    checks.whole("height", height, most=MOST_SIDE)
    checks.whole("width", width, most=MOST_SIDE)
    checks.whole("size", size, most=min(height, width))
    tops, lefts = (
        np.linspace(0, side - size, -(-side // size)).round().astype(int).tolist()
        for side in (height, width)
    )
    return [(top, left) for top in tops for left in lefts]


def _places(
    position: str | tuple[int, int],
    count: int,
    height: int,
    width: int,
    size: int,
    seed: int,
    first: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Top row and left column of each image's square, (N,) and (N,)."""
    room = np.array([height - size, width - size])
    if not isinstance(position, str):
        checks.several("position", position, least=2, most=2)
        for pixel in position:
            checks.whole("position", pixel, least=0)
    if position == "centre":
        place = np.broadcast_to(room // 2, (count, 2))
    elif position == "random":
        lots = _lots(seed, "occluder place", range(first, first + count))
        share = _stack(rng.random(2) for rng in lots)  # (N, 2)
        place = (share * (room + 1)).astype(int)
    elif position == "sliding":
        places = np.array(sliding_places(height, width, size))  # (P, 2)
        place = places[(np.arange(first, first + count) + seed) % len(places)]
    elif isinstance(position, str):
        raise ValueError(
            f"no position {position!r}: choose one of {', '.join(POSITIONS)}, or give (top, left)"
        )
    else:
        if not all(0 <= p <= r for p, r in zip(position, room, strict=True)):
            raise ValueError(
                f"position: a square of {size} pixels at {position} reaches over the border: top is at "
                f"most {room[0]}, left at most {room[1]}"
            )
        place = np.broadcast_to(np.array(position), (count, 2))
    return place[:, 0], place[:, 1]


def _filling(
    images: Tensor, fill: str | tuple[float, float, float], seed: int, first: int
) -> Tensor:
    """What is seen inside the squares, uint8, of a shape that broadcasts to the images'."""
    count = len(images)
    numbers = range(first, first + count)
    if fill == "black":
        return images.new_zeros(1)
    if fill == "mean":
        return images.double().mean((1, 2), keepdim=True).round().byte()  # (N, 1, 1, 3)
    if fill == "noise":
        lots = _lots(seed, "occluder noise", numbers)
        noise = _stack(rng.integers(0, 256, images.shape[1:], dtype=np.uint8) for rng in lots)
        return torch.from_numpy(noise).to(images.device)  # (N, H, W, 3)
    if fill == "patch":
        if count == 1:
            raise ValueError("a patch of another image needs two images or more")
        further = _stack(rng.integers(1, count) for rng in _lots(seed, "occluder patch", numbers))
        return images[torch.from_numpy((np.arange(count) + further) % count)]  # (N, H, W, 3)
    if isinstance(fill, str):
        raise ValueError(f"no fill {fill!r}: choose one of {', '.join(FILLS)}, or give a colour")
    checks.several("fill", fill, least=3, most=3)
    for channel in fill:
        checks.number("fill", channel)
    if not all(0 <= channel <= 255 for channel in fill):
        raise ValueError(f"fill: a colour is red, green, blue from 0 to 255, got {fill}")
    return torch.tensor([round(channel) for channel in fill]).to(images)  # (3,)


# --- low resolution --------------------------------------------------------------------------------


def low_resolution(images: Tensor, size: int) -> Tensor:
    """Shrink to `size` pixels a side and enlarge again, both bilinear, the first with antialiasing.

    Args:
        images: uint8 (N, H, W, 3).
        size: pixels a side; the book's are in `LOW_RESOLUTIONS`. The images' own changes nothing.

    Returns:
        uint8 (N, H, W, 3) on the same device; the small images are rounded to whole levels too.

    Raises:
        ValueError: images of another type or shape or none, or a size they cannot be shrunk to.
    """
    _check(images)
    whole = list(images.shape[1:3])
    if not _whole(size) or not 1 <= size <= min(whole):
        raise ValueError(
            f"size: a lower resolution has 1 to {min(whole)} pixels a side, got {size!r}"
        )
    x = images.cpu().permute(0, 3, 1, 2)  # (N, 3, H, W)
    small = transforms.resize(x, [size, size], antialias=True)  # (N, 3, size, size)
    back = transforms.resize(small, whole, antialias=True)  # (N, 3, H, W)
    return back.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format).to(images.device)


# --- corruptions -----------------------------------------------------------------------------------


def corrupt(images: Tensor, kind: str, severity: int, *, seed: int, first: int = 0) -> Tensor:
    """Corrupt every image as in CIFAR-10-C.

    Args:
        images: uint8 (N, 32, 32, 3).
        kind: one of `KINDS`.
        severity: 1 to 5, the place of its parameters in `PARAMETERS`. The mean error against the
            clean images grows with it, but by the published parameters it need not for

            motion_blur        3 and 4 differ in the far tail of the kernel only
            glass_blur         the blur smooths what was shuffled; more rounds (4 and 5) do count
            elastic_transform  the bending grows, the affine part shrinks, and that is the larger
            spatter            1 to 3 are water, 4 and 5 mud
            saturate           1 and 2 take colour away, 3 to 5 add it
        seed: of everything drawn by lot.
        first: number of the first image, where `images` is a part of a larger set.

    Returns:
        uint8 (N, 32, 32, 3) on the same device. As in the published files fractions of a level are
        cut off, not rounded; motion_blur, pixelate and jpeg_compression round, as their libraries do.

    Raises:
        ValueError: images of another type or shape or none, an unknown kind or severity.

    Source: Hendrycks & Dietterich (2019), arXiv:1903.12261, and their released CIFAR-10-C generator.
    """
    _check(images, seed, first)
    if images.shape[1:3] != (_SIDE, _SIDE):
        raise ValueError(
            f"the severities are made for {_SIDE} x {_SIDE} images, got {tuple(images.shape)}: "
            "resize them first"
        )
    checks.text("kind", kind)
    if kind in LEFT_OUT:
        raise ValueError(
            f"{kind} is left out: it needs the authors' photographs. `published_corruptions` reads it "
            "from the published CIFAR-10-C"
        )
    if kind not in KINDS:
        raise ValueError(f"kind: no corruption {kind!r}: choose one of {', '.join(KINDS)}")
    parameters = PARAMETERS[kind][_index(severity)]
    clean = images.cpu().numpy()
    corrupted = np.empty_like(clean)
    for start in range(0, len(clean), _CHUNK):
        chunk = clean[start : start + _CHUNK]  # (B, 32, 32, 3)
        lots = _lots(seed, kind, range(first + start, first + start + len(chunk)))
        corrupted[start : start + len(chunk)] = _CORRUPT[kind](chunk, lots, *parameters)
    return torch.from_numpy(corrupted).to(images.device)


# Each takes uint8 images (B, 32, 32, 3), a generator for each, and a row of `PARAMETERS`, and gives
# uint8 images.


def _gaussian_noise(images: np.ndarray, lots: Lots, sd: float) -> np.ndarray:
    return _levels(_unit(images) + sd * _normal(lots, images.shape[1:]))


def _shot_noise(images: np.ndarray, lots: Lots, photons: float) -> np.ndarray:
    expected = _unit(images) * photons  # (B, 32, 32, 3)
    arrived = np.stack([rng.poisson(e) for rng, e in zip(lots, expected, strict=True)])
    return _levels(arrived / photons)


def _impulse_noise(images: np.ndarray, lots: Lots, share: float) -> np.ndarray:
    """Salt and pepper alike, for each channel by itself."""
    lot = _uniform(lots, images.shape[1:])
    return np.where(lot < share / 2, 0, np.where(lot < share, 255, images)).astype(np.uint8)


def _speckle_noise(images: np.ndarray, lots: Lots, sd: float) -> np.ndarray:
    return _levels(_unit(images) * (1 + sd * _normal(lots, images.shape[1:])))


def _gaussian_blur(images: np.ndarray, lots: Lots, sd: float) -> np.ndarray:
    return _levels(_smooth(_unit(images), sd))


def _defocus_blur(images: np.ndarray, lots: Lots, radius: float, rim: float) -> np.ndarray:
    """A disc whose rim is softened by a 3 x 3 Gaussian; mirrored at the border."""
    offsets = np.arange(-3, 4)
    disc = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(float)
    taps = np.exp(-(np.arange(-1, 2) ** 2) / (2 * rim**2))
    kernel = ndimage.convolve(disc, np.outer(taps, taps), mode="constant")
    kernel /= kernel.sum()
    reach = np.abs(offsets[kernel.any(0)]).max()
    kernel = kernel[3 - reach : 4 + reach, 3 - reach : 4 + reach]
    return _levels(ndimage.correlate(_unit(images), kernel[None, :, :, None], mode="mirror"))


def _glass_blur(images: np.ndarray, lots: Lots, sd: float, shift: int, rounds: int) -> np.ndarray:
    """Blur, take every pixel from a near place, blur again.

    The released generator means to swap pixels with neighbours up and to the left, but swaps views
    of one array, which leaves a copy; walking from the last pixel backwards it always copies what it
    has not changed yet. So a round is one gather; the first pixels of each side stay.
    """
    moved = _levels(_smooth(_unit(images), sd))
    grid = np.arange(_SIDE)
    inside = grid > shift
    for _ in range(rounds):
        back = _stack(rng.integers(-shift, shift, (2, _SIDE, _SIDE)) for rng in lots)
        back = back * (inside[:, None] & inside)  # (B, 2, 32, 32)
        rows, columns = grid[:, None] + back[:, 0], grid + back[:, 1]  # (B, 32, 32) each
        moved = moved[np.arange(len(moved))[:, None, None], rows, columns]
    return _levels(_smooth(_unit(moved), sd))


def _motion_blur(images: np.ndarray, lots: Lots, radius: int, sd: float) -> np.ndarray:
    angle = _stack(rng.uniform(-45, 45) for rng in lots)  # (B,), degrees
    return _drag(images, radius, sd, angle)


def _zoom_blur(images: np.ndarray, lots: Lots, largest: float) -> np.ndarray:
    """Mean of the image and all its zooms, the first of which is the image once more."""
    flat = images.transpose(0, 3, 1, 2).reshape(-1, _SIDE**2)  # (B 3, 32 32)
    blurred = (flat / 255) @ _zooms(largest).T
    return _levels(blurred.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1))


def _snow(
    images: np.ndarray,
    lots: Lots,
    mean: float,
    sd: float,
    zoom: float,
    threshold: float,
    radius: int,
    drift: float,
    weight: float,
) -> np.ndarray:
    """A whitened image under a layer of dragged flakes and the same layer upside down."""
    zoomed = _zoom(zoom)
    flakes = zoomed @ (mean + sd * _normal(lots, (_SIDE, _SIDE))) @ zoomed.T  # (B, 32, 32)
    flakes = np.where(flakes < threshold, 0, flakes)
    angle = _stack(rng.uniform(-135, -45) for rng in lots)  # (B,), degrees
    layer = _unit(_drag(_levels(flakes)[..., None], radius, drift, angle))  # (B, 32, 32, 1)
    x = _unit(images)
    white = np.maximum(x, 1.5 * (x * _GREY).sum(3, keepdims=True) + 0.5)  # (B, 32, 32, 3)
    return _levels(weight * x + (1 - weight) * white + layer + layer[:, ::-1, ::-1])


def _fog(images: np.ndarray, lots: Lots, amount: float, decay: float) -> np.ndarray:
    """Plasma on top, then scaled so that the brightest possible value is the image's own."""
    x = _unit(images)
    brightest = x.max((1, 2, 3), keepdims=True)  # (B, 1, 1, 1)
    return _levels(
        (x + amount * _plasma(lots, decay)[..., None]) * brightest / (brightest + amount)
    )


def _brightness(images: np.ndarray, lots: Lots, added: float) -> np.ndarray:
    """V + added, at most 1, in HSV: with hue and saturation kept, all channels grow alike."""
    x = _unit(images)
    value = x.max(3, keepdims=True)  # (B, 32, 32, 1)
    brighter = np.minimum(value + added, 1)
    return _levels(np.where(value > 0, x * (brighter / np.where(value > 0, value, 1)), brighter))


def _saturate(images: np.ndarray, lots: Lots, factor: float, added: float) -> np.ndarray:
    """factor S + added, within 0 and 1, in HSV; grey has hue 0 and so turns red where S is added.

    With value V and hue kept, a channel's distance from V is proportional to S.
    """
    x = _unit(images)
    value = x.max(3, keepdims=True)  # (B, 32, 32, 1)
    below = value - x  # (B, 32, 32, 3)
    reach = below.max(3, keepdims=True)  # S V
    red = value * np.array([0, 1, 1], np.float32)
    direction = np.where(reach > 0, below / np.where(reach > 0, reach, 1) * value, red)
    saturation = reach / np.where(value > 0, value, 1)
    return _levels(value - direction * np.clip(factor * saturation + added, 0, 1))


def _contrast(images: np.ndarray, lots: Lots, factor: float) -> np.ndarray:
    x = _unit(images)
    mean = x.mean((1, 2), keepdims=True, dtype=float)  # (B, 1, 1, 3)
    return _levels((x - mean) * factor + mean)


def _elastic_transform(
    images: np.ndarray, lots: Lots, amplitude: float, sd: float, shift: float
) -> np.ndarray:
    """An affine map that moves three points by up to `shift`, then a smooth random bending."""
    points = np.array([[26, 26], [26, 6], [6, 6]])  # x, y of the three
    moved = points + _stack(rng.uniform(-shift, shift, (3, 2)) for rng in lots)  # (B, 3, 2)
    back = np.linalg.solve(  # from a pixel of the result to its place in the image, (B, 3, 2)
        np.concatenate([moved, np.ones((len(lots), 3, 1))], axis=2),
        np.broadcast_to(points.astype(float), moved.shape),
    )
    rows, columns = np.mgrid[:_SIDE, :_SIDE].astype(float)  # (32, 32) each
    places = np.stack([columns, rows, np.ones_like(rows)], axis=-1).reshape(1, -1, 3) @ back
    places = places.reshape(-1, _SIDE, _SIDE, 2)  # (B, 32, 32, 2), x and y
    x = torch.from_numpy(images / 255).permute(0, 3, 1, 2)  # (B, 3, 32, 32)
    x = _sample(x, places, edge_twice=False)
    bend = _stack(rng.uniform(-1, 1, (2, _SIDE, _SIDE)) for rng in lots)  # (B, 2, 32, 32)
    bend = amplitude * ndimage.gaussian_filter(bend, sd, mode="reflect", truncate=3, axes=(2, 3))
    x = _sample(x, np.stack([columns + bend[:, 0], rows + bend[:, 1]], axis=-1), edge_twice=True)
    return _levels(x.permute(0, 2, 3, 1).numpy())


def _pixelate(images: np.ndarray, lots: Lots, factor: float) -> np.ndarray:
    """Pillow's box filter down and up.

    Pillow resizes the width first, then the height, and rounds in between. A batch one above the
    other has the width of one image, and one beside the other its height: two calls do for all.
    """
    for size in (int(_SIDE * factor), _SIDE):
        for _ in range(2):  # width; then, transposed, height
            tall = Image.fromarray(images.reshape(-1, images.shape[2], 3))
            tall = np.asarray(tall.resize((size, tall.height), Image.Resampling.BOX))
            images = tall.reshape(len(images), -1, size, 3).swapaxes(1, 2)
    return images


def _jpeg_compression(images: np.ndarray, lots: Lots, quality: int) -> np.ndarray:
    """Pillow's JPEG at this quality, there and back; image by image, as each is a file."""
    out = np.empty_like(images)
    for number, image in enumerate(images):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        out[number] = Image.open(file)
    return out


def _spatter(
    images: np.ndarray,
    lots: Lots,
    mean: float,
    sd: float,
    smoothing: float,
    threshold: float,
    strength: float,
    mud: bool,
) -> np.ndarray:
    """Drops where smoothed noise is above a threshold: pale water lit from one side, or mud."""
    liquid = mean + sd * _normal(lots, (_SIDE, _SIDE))  # (B, 32, 32)
    liquid = ndimage.gaussian_filter(liquid, smoothing, mode="nearest", axes=(1, 2))
    x = _unit(images)
    if mud:
        cover = (liquid > threshold).astype(np.float32)
        cover = ndimage.gaussian_filter(cover, strength, mode="nearest", axes=(1, 2))
        cover = np.where(cover < 0.8, 0, cover)[..., None]  # (B, 32, 32, 1)
        return _levels(x * (1 - cover) + _BROWN * cover)
    drops = _levels(np.where(liquid < threshold, 0, liquid))  # (B, 32, 32)
    light = drops * _relief(drops)
    light /= np.maximum(light.max((1, 2), keepdims=True), 1)  # no drops, no light
    return _levels(x + strength * light[..., None] * _TURQUOISE)


_CORRUPT: dict[str, Callable[..., np.ndarray]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur,
    "glass_blur": _glass_blur,
    "motion_blur": _motion_blur,
    "zoom_blur": _zoom_blur,
    "snow": _snow,
    "fog": _fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "elastic_transform": _elastic_transform,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg_compression,
    "speckle_noise": _speckle_noise,
    "gaussian_blur": _gaussian_blur,
    "spatter": _spatter,
    "saturate": _saturate,
}


# --- what they are made of -------------------------------------------------------------------------


def _lots(seed: int, purpose: str, numbers: range) -> list[np.random.Generator]:
    """A generator for each image, by its number."""
    return [np.random.default_rng([seed, number, *purpose.encode()]) for number in numbers]


def _stack(draws: Iterable[np.ndarray | float]) -> np.ndarray:
    return np.array(list(draws))


def _normal(lots: Lots, shape: tuple[int, ...]) -> np.ndarray:
    return _stack(rng.standard_normal(shape, dtype=np.float32) for rng in lots)  # (B, *shape)


def _uniform(lots: Lots, shape: tuple[int, ...]) -> np.ndarray:
    return _stack(rng.random(shape, dtype=np.float32) for rng in lots)  # (B, *shape)


def _unit(images: np.ndarray) -> np.ndarray:
    """Levels of 0 to 255 -> float32 of 0 to 1."""
    return images.astype(np.float32) / 255


def _levels(x: np.ndarray) -> np.ndarray:
    """Values of 0 to 1, clipped -> whole levels of 0 to 255, fractions cut off.

    A thousandth of a level is added, lest a rounding error just below a whole level cost it.
    """
    return (np.clip(x, 0, 1) * 255 + 1e-3).astype(np.uint8)


def _smooth(x: np.ndarray, sd: float) -> np.ndarray:
    """Gaussian blur of (B, H, W, 3), four standard deviations wide, the border's pixels repeated."""
    return ndimage.gaussian_filter(x, sd, mode="nearest", axes=(1, 2))


def _drag(images: np.ndarray, radius: int, sd: float, angle: np.ndarray) -> np.ndarray:
    """ImageMagick's motion blur: half a Gaussian of 2 radius + 1 pixels from each pixel onwards.

    Args:
        images: uint8 (B, H, W, C).
        radius, sd: pixels.
        angle: (B,), degrees; 0 is to the right, 90 downwards.
    """
    steps = np.arange(2 * radius + 1)  # (K,)
    weights = np.exp(-(steps**2) / (2 * sd**2))
    weights = (weights / weights.sum()).astype(np.float32)
    turn = np.deg2rad(angle)[:, None]
    down = np.ceil(steps * np.sin(turn) - 0.5).astype(int)  # (B, K)
    right = np.ceil(steps * np.cos(turn) - 0.5).astype(int)  # (B, K)
    number = np.arange(len(images))[:, None, None]
    height, width = images.shape[1:3]
    out = np.zeros(images.shape, np.float32)
    for k, weight in enumerate(weights):
        rows = np.clip(np.arange(height) + down[:, k, None], 0, height - 1)  # (B, H)
        columns = np.clip(np.arange(width) + right[:, k, None], 0, width - 1)  # (B, W)
        out += weight * images[number, rows[:, :, None], columns[:, None, :]]
    return (out + 0.5).astype(np.uint8)


def _zoom(factor: float) -> np.ndarray:
    """The matrix (32, 32) that enlarges the middle of a line of pixels, linearly, to the whole line."""
    part = int(np.ceil(_SIDE / factor))
    start = (_SIDE - part) // 2
    enlarged = ndimage.zoom(np.eye(part), (factor, 1), order=1)  # (32 or a little more, part)
    trim = (len(enlarged) - _SIDE) // 2
    matrix = np.zeros((_SIDE, _SIDE))
    matrix[:, start : start + part] = enlarged[trim : trim + _SIDE]
    return matrix


@cache
def _zooms(largest: float) -> np.ndarray:
    """All of a zoom blur as one matrix (32 32, 32 32), as it is linear."""
    factors = 1 + 0.01 * np.arange(round((largest - 1) / 0.01) + 1)
    matrix = np.eye(_SIDE**2)
    for zoom in map(_zoom, factors):
        matrix += np.kron(zoom, zoom)
    return matrix / (len(factors) + 1)


def _plasma(lots: Lots, decay: float) -> np.ndarray:
    """Plasma fractals (B, 32, 32) from 0 to 1 on a torus, by the diamond-square algorithm.

    Its lots shrink by `decay` squared a level: the released generator multiplies its range by its
    amplitude, and so takes the decay twice.
    """
    count = len(lots)
    height = np.zeros((count, _SIDE, _SIDE), np.float32)
    amplitude, step = 1.0, _SIDE
    while step > 1:
        half = step // 2
        corners = height[:, ::step, ::step]
        shape = corners.shape[1:]

        def lot(shape: tuple[int, ...] = shape, amplitude: float = amplitude) -> np.ndarray:
            return amplitude * (2 * _uniform(lots, shape) - 1)

        sideways = corners + np.roll(corners, -1, 2)
        downwards = corners + np.roll(corners, -1, 1)
        middle = (sideways + np.roll(sideways, -1, 1)) / 4 + lot()
        height[:, half::step, half::step] = middle
        height[:, ::step, half::step] = (sideways + middle + np.roll(middle, 1, 1)) / 4 + lot()
        height[:, half::step, ::step] = (downwards + middle + np.roll(middle, 1, 2)) / 4 + lot()
        amplitude /= decay**2
        step = half
    height -= height.min((1, 2), keepdims=True)
    return height / height.max((1, 2), keepdims=True)


def _sample(x: Tensor, places: np.ndarray, *, edge_twice: bool) -> Tensor:
    """Bilinear values of x (B, 3, 32, 32) at places (B, 32, 32, 2), x and y in pixels.

    Outside the image is its mirror image, with the border's pixels there twice or once.
    """
    places = (2 * places + 1) / _SIDE - 1 if edge_twice else 2 * places / (_SIDE - 1) - 1
    grid = torch.from_numpy(places)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=not edge_twice)


def _relief(drops: np.ndarray) -> np.ndarray:
    """How strongly drops shine, (B, 32, 32) of 0 to 255: distance from their edges, lit from a side.

    Distances are capped at 20 pixels, spread evenly over the levels, embossed, and smoothed before
    and after.
    """
    outline = _edges(drops)
    # The images lie so far apart that no distance leads from one to another.
    distance = ndimage.distance_transform_edt(~outline, sampling=(1_000, 1, 1))
    distance = _box(np.minimum(distance, 20)).astype(np.uint8)  # (B, 32, 32)
    flat = distance.reshape(len(drops), -1)  # (B, 32 32)
    at_most = (flat[:, :, None] <= np.arange(21)).sum(1)  # (B, 21) pixels
    lowest = np.take_along_axis(at_most, flat.min(1)[:, None].astype(int), 1)  # (B, 1)
    level = (at_most - lowest) / np.maximum(_SIDE**2 - lowest, 1) * 255  # (B, 21)
    equalised = np.take_along_axis(level.round(), flat.astype(int), 1).reshape(drops.shape)
    emboss = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    lit = np.clip(ndimage.correlate(equalised, emboss[None], mode="mirror"), 0, 255)
    return _box(lit).round()


def _box(x: np.ndarray) -> np.ndarray:
    """Mean over 3 x 3 pixels, (B, H, W), mirrored at the border."""
    return ndimage.uniform_filter(x, 3, mode="mirror", axes=(1, 2))


def _edges(layer: np.ndarray, low: float = 50, high: float = 150) -> np.ndarray:
    """Canny's edges (1986) of levels (B, H, W), as bool, for a whole batch.

    Sobel gradients, their size |gx| + |gy|; kept where no neighbour across the edge is larger, above
    `low`, and joined to a pixel above `high`.
    """
    x = layer.astype(np.float32)
    slope, mean = np.array([-1, 0, 1]), np.array([1, 2, 1])

    def sobel(along: int, across: int) -> np.ndarray:
        smoothed = ndimage.correlate1d(x, mean, across, mode="nearest")
        return ndimage.correlate1d(smoothed, slope, along, mode="nearest")

    down, right = sobel(1, 2), sobel(2, 1)  # (B, H, W)
    size = np.abs(down) + np.abs(right)
    padded = np.pad(size, ((0, 0), (1, 1), (1, 1)))
    height, width = layer.shape[1:]

    def near(rows: int, columns: int) -> np.ndarray:
        return padded[:, 1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]

    steepness = np.abs(down) / np.maximum(np.abs(right), 1e-6)
    peak = np.select(
        [steepness < np.tan(np.pi / 8), steepness > np.tan(3 * np.pi / 8), down * right < 0],
        [
            (size > near(0, -1)) & (size >= near(0, 1)),
            (size > near(-1, 0)) & (size >= near(1, 0)),
            (size > near(-1, 1)) & (size > near(1, -1)),
        ],
        (size > near(-1, -1)) & (size > near(1, 1)),
    )
    weak = peak & (size > low)
    in_plane = np.zeros((3, 3, 3), bool)
    in_plane[1] = True
    pieces, count = ndimage.label(weak, structure=in_plane)
    joined = np.zeros(count + 1, bool)
    joined[pieces[weak & (size > high)]] = True
    return joined[pieces]


# --- the published files ---------------------------------------------------------------------------


def published_corruptions(folder: str | Path, kind: str, severity: int) -> tuple[Tensor, Tensor]:
    """The CIFAR-10 test images as the authors corrupted them.

    Each file holds 50,000 images: the 10,000 test images at severity 1, then at 2, and so on. It is
    memory-mapped; only the severity asked for is read.

    Args:
        folder: holds the unpacked files, such as gaussian_noise.npy, and labels.npy.
        kind: one of `PUBLISHED`; frost is there too.
        severity: 1 to 5.

    Returns:
        images, uint8 (10,000, 32, 32, 3), and labels, int64 (10,000,).

    Raises:
        DataNotFound: a file is not there.
        ValueError: an unknown kind or severity, or a file that is not laid out so.

    Source: https://zenodo.org/records/2535967 (CIFAR-10-C.tar).
    """
    checks.text("kind", kind)
    if not isinstance(folder, (str, Path)):
        raise TypeError(f"folder must be a path, got {folder!r}")
    if kind not in PUBLISHED:
        raise ValueError(f"kind: no corruption {kind!r}: choose one of {', '.join(PUBLISHED)}")
    start = 10_000 * _index(severity)
    read = []
    for name, shape in ((kind, (50_000, _SIDE, _SIDE, 3)), ("labels", (50_000,))):
        path = Path(folder).expanduser() / f"{name}.npy"
        if not path.is_file():
            raise DataNotFound(
                f"{path} is not there: fetch CIFAR-10-C.tar from https://zenodo.org/records/2535967, "
                "unpack it and give the folder that holds its .npy files, or use `corrupt`, which "
                f"makes all kinds but {', '.join(LEFT_OUT)} from the clean images"
            )
        array = np.load(path, mmap_mode="r")
        if array.shape != shape or array.dtype.kind not in "iu":
            raise ValueError(
                f"{path} holds {array.dtype} {array.shape}, not whole numbers {shape}: it is no file "
                "of the published CIFAR-10-C; unpack that archive again"
            )
        read.append(torch.from_numpy(np.array(array[start : start + 10_000])))
    images, labels = read
    return images, labels.long()


# --- input -----------------------------------------------------------------------------------------


def _index(severity: int) -> int:
    if not _whole(severity) or severity not in SEVERITIES:
        raise ValueError(f"a severity is a whole number from 1 to 5, got {severity!r}")
    return SEVERITIES.index(severity)


def _whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _check(images: Tensor, seed: int = 0, first: int = 0) -> None:
    checks.a("images", images, Tensor)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3 or not len(images):
        raise ValueError(
            "images are uint8 (N, H, W, 3), one or more, as an ImageSet holds them, got "
            f"{images.dtype} {tuple(images.shape)}"
        )
    checks.seed("seed", seed)
    checks.whole("first", first, least=0, most=checks.MOST_SEED)
