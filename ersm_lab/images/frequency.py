"""Smoothing by frequency, what the inverse scale path is held against: a low-pass and a blur.

Frequencies are those of the DCT-II, which knows no jump at the border.
"""

from __future__ import annotations

import numpy as np
import scipy.fft
import torch
from torch import Tensor

from ersm_lab.common import checks


def retained_energy(x: Tensor, y: Tensor) -> Tensor:
    """How much of x's variation y has: |y - mean y|^2 / |x - mean x|^2 of each image, (B,) float64.

    Means are of each channel, sums over all channels. 1 where x is constant.

    Args:
        x, y: (B, C, H, W).

    Raises:
        ValueError: shapes that differ, or no images.
    """
    checks.tensor("x", x, "(B, C, H, W)", "numbers", finite=False)
    checks.tensor("y", y, "(B, C, H, W)", "numbers", finite=False)
    checks.kin("x and y", x.shape, y.shape)
    size = [
        (t - t.mean((2, 3), keepdim=True)).square().sum((1, 2, 3)) for t in (x.double(), y.double())
    ]
    return torch.where(size[0] > 0, size[1] / size[0], 1.0)


def low_pass(x: Tensor, energy: float | Tensor) -> Tensor:
    """Keep the low frequencies of each image that hold this share of its energy.

    For a frequency low-pass of the energy that a sparsified image has, give
    `retained_energy(x, sparsified)`. Frequencies are those of the DCT-II (no jump at the border),
    ordered by radius in cycles a pixel; one cut for all channels. The last ring is scaled so that the
    share is met exactly.

    Args:
        x: (B, C, H, W).
        energy: of the deviation from the mean of each channel, 0 (the mean is left) to 1 (all of x);
            one number, or (B,).

    Returns:
        (B, C, H, W), in x's type; computed in float64.

    Raises:
        ValueError: a share outside of 0 to 1.
    """
    checks.tensor("x", x, "(B, C, H, W)", "floats")
    if isinstance(energy, Tensor):
        shape = f"({len(x)},)" if energy.dim() else "()"
        checks.tensor("energy", energy, shape, "numbers", finite=False)
    else:
        checks.number("energy", energy)
    share = torch.as_tensor(energy, dtype=torch.float64, device=x.device).expand(len(x))  # (B,)
    if not ((share >= 0) & (share <= 1)).all():
        raise ValueError(
            f"energy is a share, 0 to 1; got {share.min():g} to {share.max():g} (an image that gained "
            "energy is no smoothed one)"
        )
    height, width = x.shape[-2:]
    rows, columns = (_cosines(n, x.device) for n in (height, width))  # (H, H), (W, W)
    spectrum = rows @ x.double() @ columns.T  # (B, C, H, W)
    v, h = (  # cycles a pixel
        torch.arange(n, dtype=torch.float64, device=x.device) / (2 * n) for n in (height, width)
    )
    squared = (v[:, None] ** 2 + h**2).flatten()  # (H W,)
    radii, ring = (squared * 2**40).round().unique(return_inverse=True)  # ring 0 is the mean
    power = spectrum.square().sum(1).flatten(1)  # (B, H W)
    rings = power.new_zeros(len(x), len(radii)).index_add_(1, ring, power)  # (B, rings)
    rings[:, 0] = 0
    budget = share[:, None] * rings.sum(1, keepdim=True)  # (B, 1)
    left = (budget - (rings.cumsum(1) - rings)).clamp(min=0)  # before each ring
    gain = torch.where(rings > 0, (left / rings).clamp(max=1).sqrt(), 1.0)  # (B, rings)
    kept = spectrum * gain[:, ring].view(len(x), 1, height, width)
    return (rows.T @ kept @ columns).to(x.dtype)


def _cosines(size: int, device: torch.device) -> Tensor:
    """The orthonormal DCT-II, (frequency, pixel)."""
    return torch.from_numpy(scipy.fft.dct(np.eye(size), axis=0, norm="ortho")).to(device)


# --- blur ------------------------------------------------------------------------------------------


def blur(x: Tensor, sigma: float | Tensor) -> Tensor:
    """Gaussian blur by heat flow for a time of sigma^2 / 2; nothing flows over the border.

    Each frequency w of the DCT-II, in radians a pixel, is multiplied by exp(-sigma^2 |w|^2 / 2).

    Args:
        x: (B, C, H, W).
        sigma: standard deviation in pixels; one number, or (B,).

    Returns:
        (B, C, H, W), in x's type; computed in float64.

    Raises:
        ValueError: NaN, or a sigma that is negative or of other images.
    """
    checks.tensor("x", x, "(B, C, H, W)", "floats")
    if isinstance(sigma, Tensor):
        shape = f"({len(x)},)" if sigma.dim() else "()"
        checks.tensor("sigma", sigma, shape, "numbers")
        if sigma.min() < 0:
            raise ValueError(f"sigma must be at least 0, got {sigma.min().item():g}")
    else:
        checks.number("sigma", sigma, least=0, most=1e6)
    return _blur(x, sigma)


def _blur(x: Tensor, sigma: float | Tensor) -> Tensor:
    each = torch.as_tensor(sigma, dtype=torch.float64).cpu().expand(len(x)).numpy()
    gain = _gain(each, *x.shape[-2:])[:, None]  # (B, 1, H, W)
    kept = scipy.fft.idctn(gain * _spectrum(x), axes=(2, 3), norm="ortho")
    return torch.from_numpy(kept).to(x)


def blur_of_equal_error(x: Tensor, y: Tensor) -> Tensor:
    """Each image blurred so far that its squared error is that of y.

    An error beyond that of the flat image gives the flat image.

    Args:
        x, y: (B, C, H, W).

    Returns:
        (B, C, H, W), in x's type.

    Raises:
        ValueError: NaN, or shapes that differ.
    """
    checks.tensor("x", x, "(B, C, H, W)", "floats")
    checks.tensor("y", y, "(B, C, H, W)", "floats")
    checks.kin("x and y", x.shape, y.shape)
    wanted = (x.double() - y.double()).square().sum((1, 2, 3)).cpu().numpy()  # (B,)
    power = np.square(_spectrum(x)).sum(1)  # (B, H, W)
    low: np.ndarray = np.full(len(x), -4.0)  # log10 of sigma
    high: np.ndarray = np.full(len(x), 4.0)
    for _ in range(50):
        middle = (low + high) / 2
        lost = (power * np.square(1 - _gain(10**middle, *x.shape[-2:]))).sum((1, 2))  # (B,)
        low, high = np.where(lost < wanted, middle, low), np.where(lost < wanted, high, middle)
    sigma = np.where(wanted > 0, 10 ** ((low + high) / 2), 0)
    return _blur(x, torch.from_numpy(sigma))


def _spectrum(x: Tensor) -> np.ndarray:
    return scipy.fft.dctn(x.double().cpu().numpy(), axes=(2, 3), norm="ortho")  # (B, C, H, W)


def _gain(sigma: np.ndarray, height: int, width: int) -> np.ndarray:
    """exp(-sigma^2 |w|^2 / 2), (B, H, W)."""
    rows, columns = (
        np.exp(-((sigma[:, None] * np.pi * np.arange(n) / n) ** 2) / 2) for n in (height, width)
    )
    return rows[:, :, None] * columns[:, None, :]
