"""How each corruption of CIFAR-10-C is made.

Each kind takes uint8 images (B, 32, 32, 3), a generator for each, and a row of
`corruptions.PARAMETERS`, and gives uint8 images. Source: Hendrycks & Dietterich (2019),
arXiv:1903.12261, and their released generator.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from ersm_lab.images.corruption_parts import (
    SIDE,
    drag,
    levels,
    plasma,
    relief,
    sample,
    smooth,
    unit,
    zoom_matrix,
    zoom_mean,
)
from ersm_lab.images.lots import Lots, normal, stack, uniform

_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # luma of red, green, blue (ITU-R BT.601)
_TURQUOISE = np.array([175, 238, 238], np.float32) / 255  # water
_BROWN = np.array([63, 42, 20], np.float32) / 255  # mud

# --- noise -----------------------------------------------------------------------------------------


def _gaussian_noise(images: np.ndarray, lots: Lots, sd: float) -> np.ndarray:
    return levels(unit(images) + sd * normal(lots, images.shape[1:]))


def _shot_noise(images: np.ndarray, lots: Lots, photons: float) -> np.ndarray:
    expected = unit(images) * photons  # (B, 32, 32, 3)
    arrived = np.stack([rng.poisson(e) for rng, e in zip(lots, expected, strict=True)])
    return levels(arrived / photons)


def _impulse_noise(images: np.ndarray, lots: Lots, share: float) -> np.ndarray:
    """Salt and pepper alike, for each channel by itself."""
    lot = uniform(lots, images.shape[1:])
    return np.where(lot < share / 2, 0, np.where(lot < share, 255, images)).astype(np.uint8)


def _speckle_noise(images: np.ndarray, lots: Lots, sd: float) -> np.ndarray:
    return levels(unit(images) * (1 + sd * normal(lots, images.shape[1:])))


# --- blur ------------------------------------------------------------------------------------------


def _gaussian_blur(images: np.ndarray, lots: Lots, sd: float) -> np.ndarray:
    return levels(smooth(unit(images), sd))


def _defocus_blur(images: np.ndarray, lots: Lots, radius: float, rim: float) -> np.ndarray:
    """A disc whose rim is softened by a 3 x 3 Gaussian; mirrored at the border."""
    offsets = np.arange(-3, 4)
    disc = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(float)
    taps = np.exp(-(np.arange(-1, 2) ** 2) / (2 * rim**2))
    kernel = ndimage.convolve(disc, np.outer(taps, taps), mode="constant")
    kernel /= kernel.sum()
    reach = np.abs(offsets[kernel.any(0)]).max()
    kernel = kernel[3 - reach : 4 + reach, 3 - reach : 4 + reach]
    return levels(ndimage.correlate(unit(images), kernel[None, :, :, None], mode="mirror"))


def _glass_blur(images: np.ndarray, lots: Lots, sd: float, shift: int, rounds: int) -> np.ndarray:
    """Blur, take every pixel from a near place, blur again.

    The released generator means to swap pixels with neighbours up and to the left, but swaps views
    of one array, which leaves a copy; walking from the last pixel backwards it always copies what it
    has not changed yet. So a round is one gather; the first pixels of each side stay.
    """
    moved = levels(smooth(unit(images), sd))
    grid = np.arange(SIDE)
    inside = grid > shift
    for _ in range(rounds):
        back = stack(rng.integers(-shift, shift, (2, SIDE, SIDE)) for rng in lots)
        back = back * (inside[:, None] & inside)  # (B, 2, 32, 32)
        rows, columns = grid[:, None] + back[:, 0], grid + back[:, 1]  # (B, 32, 32) each
        moved = moved[np.arange(len(moved))[:, None, None], rows, columns]
    return levels(smooth(unit(moved), sd))


def _motion_blur(images: np.ndarray, lots: Lots, radius: int, sd: float) -> np.ndarray:
    angle = stack(rng.uniform(-45, 45) for rng in lots)  # (B,), degrees
    return drag(images, radius, sd, angle)


def _zoom_blur(images: np.ndarray, lots: Lots, largest: float) -> np.ndarray:
    """Mean of the image and all its zooms, the first of which is the image once more."""
    flat = images.transpose(0, 3, 1, 2).reshape(-1, SIDE**2)  # (B 3, 32 32)
    blurred = (flat / 255) @ zoom_mean(largest).T
    return levels(blurred.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1))


# --- weather ---------------------------------------------------------------------------------------


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
    zoomed = zoom_matrix(zoom)
    flakes = zoomed @ (mean + sd * normal(lots, (SIDE, SIDE))) @ zoomed.T  # (B, 32, 32)
    flakes = np.where(flakes < threshold, 0, flakes)
    angle = stack(rng.uniform(-135, -45) for rng in lots)  # (B,), degrees
    layer = unit(drag(levels(flakes)[..., None], radius, drift, angle))  # (B, 32, 32, 1)
    x = unit(images)
    white = np.maximum(x, 1.5 * (x * _GREY).sum(3, keepdims=True) + 0.5)  # (B, 32, 32, 3)
    return levels(weight * x + (1 - weight) * white + layer + layer[:, ::-1, ::-1])


def _fog(images: np.ndarray, lots: Lots, amount: float, decay: float) -> np.ndarray:
    """Plasma on top, then scaled so that the brightest possible value is the image's own."""
    x = unit(images)
    brightest = x.max((1, 2, 3), keepdims=True)  # (B, 1, 1, 1)
    return levels((x + amount * plasma(lots, decay)[..., None]) * brightest / (brightest + amount))


def _brightness(images: np.ndarray, lots: Lots, added: float) -> np.ndarray:
    """V + added, at most 1, in HSV: with hue and saturation kept, all channels grow alike."""
    x = unit(images)
    value = x.max(3, keepdims=True)  # (B, 32, 32, 1)
    brighter = np.minimum(value + added, 1)
    return levels(np.where(value > 0, x * (brighter / np.where(value > 0, value, 1)), brighter))


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
    liquid = mean + sd * normal(lots, (SIDE, SIDE))  # (B, 32, 32)
    liquid = ndimage.gaussian_filter(liquid, smoothing, mode="nearest", axes=(1, 2))
    x = unit(images)
    if mud:
        cover = (liquid > threshold).astype(np.float32)
        cover = ndimage.gaussian_filter(cover, strength, mode="nearest", axes=(1, 2))
        cover = np.where(cover < 0.8, 0, cover)[..., None]  # (B, 32, 32, 1)
        return levels(x * (1 - cover) + _BROWN * cover)
    drops = levels(np.where(liquid < threshold, 0, liquid))  # (B, 32, 32)
    light = drops * relief(drops)
    light /= np.maximum(light.max((1, 2), keepdims=True), 1)  # no drops, no light
    return levels(x + strength * light[..., None] * _TURQUOISE)


# --- digital ---------------------------------------------------------------------------------------


def _saturate(images: np.ndarray, lots: Lots, factor: float, added: float) -> np.ndarray:
    """factor S + added, within 0 and 1, in HSV; grey has hue 0 and so turns red where S is added.

    With value V and hue kept, a channel's distance from V is proportional to S.
    """
    x = unit(images)
    value = x.max(3, keepdims=True)  # (B, 32, 32, 1)
    below = value - x  # (B, 32, 32, 3)
    reach = below.max(3, keepdims=True)  # S V
    red = value * np.array([0, 1, 1], np.float32)
    direction = np.where(reach > 0, below / np.where(reach > 0, reach, 1) * value, red)
    saturation = reach / np.where(value > 0, value, 1)
    return levels(value - direction * np.clip(factor * saturation + added, 0, 1))


def _contrast(images: np.ndarray, lots: Lots, factor: float) -> np.ndarray:
    x = unit(images)
    mean = x.mean((1, 2), keepdims=True, dtype=float)  # (B, 1, 1, 3)
    return levels((x - mean) * factor + mean)


def _elastic_transform(
    images: np.ndarray, lots: Lots, amplitude: float, sd: float, shift: float
) -> np.ndarray:
    """An affine map that moves three points by up to `shift`, then a smooth random bending."""
    points = np.array([[26, 26], [26, 6], [6, 6]])  # x, y of the three
    moved = points + stack(rng.uniform(-shift, shift, (3, 2)) for rng in lots)  # (B, 3, 2)
    back = np.linalg.solve(  # from a pixel of the result to its place in the image, (B, 3, 2)
        np.concatenate([moved, np.ones((len(lots), 3, 1))], axis=2),
        np.broadcast_to(points.astype(float), moved.shape),
    )
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(float)  # (32, 32) each
    places = np.stack([columns, rows, np.ones_like(rows)], axis=-1).reshape(1, -1, 3) @ back
    places = places.reshape(-1, SIDE, SIDE, 2)  # (B, 32, 32, 2), x and y
    x = torch.from_numpy(images / 255).permute(0, 3, 1, 2)  # (B, 3, 32, 32)
    x = sample(x, places, edge_twice=False)
    bend = stack(rng.uniform(-1, 1, (2, SIDE, SIDE)) for rng in lots)  # (B, 2, 32, 32)
    bend = amplitude * ndimage.gaussian_filter(bend, sd, mode="reflect", truncate=3, axes=(2, 3))
    x = sample(x, np.stack([columns + bend[:, 0], rows + bend[:, 1]], axis=-1), edge_twice=True)
    return levels(x.permute(0, 2, 3, 1).numpy())


def _pixelate(images: np.ndarray, lots: Lots, factor: float) -> np.ndarray:
    """Pillow's box filter down and up.

    Pillow resizes the width first, then the height, and rounds in between. A batch one above the
    other has the width of one image, and one beside the other its height: two calls do for all.
    """
    for size in (int(SIDE * factor), SIDE):
        for _ in range(2):  # width; then, transposed, height
            tall = Image.fromarray(images.reshape(-1, images.shape[2], 3))
            small = np.asarray(tall.resize((size, tall.height), Image.Resampling.BOX))
            images = small.reshape(len(images), -1, size, 3).swapaxes(1, 2)
    return images


def _jpeg_compression(images: np.ndarray, lots: Lots, quality: int) -> np.ndarray:
    """Pillow's JPEG at this quality, there and back; image by image, as each is a file."""
    out = np.empty_like(images)
    for number, image in enumerate(images):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        out[number] = Image.open(file)
    return out


MAKE: dict[str, Callable[..., np.ndarray]] = {
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
