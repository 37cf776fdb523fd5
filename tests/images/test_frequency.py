"""Smoothing by frequency: a low-pass of a given energy, and a blur against closed forms."""

import math

import pytest
import torch
from test_inverse_scale import pictures

from ersm_lab.images import frequency
from ersm_lab.images.inverse_scale import sparsify


def test_low_pass_keeps_the_energy_it_is_told_to():
    x = pictures(4, 3, 8, 6)
    energy = torch.tensor([0.0, 0.3, 0.9, 1.0], dtype=torch.float64)
    y = frequency.low_pass(x, energy)
    torch.testing.assert_close(frequency.retained_energy(x, y), energy)
    torch.testing.assert_close(y[0], x[0].mean((1, 2), keepdim=True).expand_as(x[0]))
    torch.testing.assert_close(y[3], x[3])
    torch.testing.assert_close(frequency.low_pass(x, 0.3)[1], y[1])


def test_low_pass_keeps_slow_waves_and_drops_fast_ones():
    pixel = torch.arange(16, dtype=torch.float64) + 0.5
    slow, fast = (torch.cos(torch.pi * k * pixel / 16).expand(1, 1, 8, 16) for k in (2, 9))
    x = 0.4 + slow + fast  # of equal energy
    torch.testing.assert_close(frequency.low_pass(x, 0.5), 0.4 + slow)
    three_quarters = frequency.low_pass(x, 0.75)
    torch.testing.assert_close(three_quarters, 0.4 + slow + 0.5**0.5 * fast)


def test_low_pass_of_the_energy_of_a_sparsified_image():
    x = pictures(3, 3, 8, 8)
    energy = frequency.retained_energy(x, sparsify(x, 0.6))
    assert ((energy > 0) & (energy < 1)).all()
    smooth = frequency.low_pass(x, energy)
    torch.testing.assert_close(frequency.retained_energy(x, smooth), energy)


def test_low_pass_leaves_constant_images_and_refuses_more_than_all():
    x = torch.full((2, 3, 5, 5), 0.4)
    torch.testing.assert_close(frequency.low_pass(x, 0.5), x)
    assert frequency.retained_energy(x, x).tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"a share, 0 to 1; got 1\.1"):
        frequency.low_pass(x, 1.1)


# --- blur ------------------------------------------------------------------------------------------


def test_blur_damps_a_cosine_by_its_frequency():
    width, k, sigma = 24, 3, 1.7
    w = math.pi * k / width  # radians a pixel
    wave = torch.cos(w * (torch.arange(width, dtype=torch.float64) + 0.5)).view(1, 1, 1, -1)
    blurred = frequency.blur(wave, sigma)
    assert torch.allclose(blurred, wave * math.exp(-(sigma**2) * w**2 / 2), atol=1e-12)


def test_blur_in_the_middle_is_a_sampled_gaussian():
    x = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    x[..., 20, 20] = 1
    r = torch.arange(41, dtype=torch.float64) - 20
    bell = torch.exp(-(r**2) / (2 * 2.0**2)) / (2.0 * math.sqrt(2 * math.pi))  # (41,)
    assert torch.allclose(frequency.blur(x, 2.0)[0, 0], bell[:, None] * bell, atol=1e-6)


def test_blur_keeps_the_mean_and_its_limits():
    x = torch.rand(2, 3, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean = x.mean((2, 3), keepdim=True)
    assert torch.allclose(frequency.blur(x, 0.0), x)
    assert torch.allclose(frequency.blur(x, 1e3), mean.expand_as(x))
    some = frequency.blur(x, torch.tensor([0.0, 1.5]))
    assert torch.allclose(some[0], x[0]) and not torch.allclose(some[1], x[1])
    assert torch.allclose(some.mean((2, 3), keepdim=True), mean)


def test_blur_of_equal_error_has_it():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 3, 9, 7, generator=generator, dtype=torch.float64)
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    y = x + noise * torch.tensor([0.0, 0.05, 0.15]).view(3, 1, 1, 1)
    found = frequency.blur_of_equal_error(x, y)
    error, wanted = ((t - x).square().sum((1, 2, 3)) for t in (found, y))
    assert torch.allclose(error, wanted, rtol=1e-9)
    assert torch.equal(found[0], frequency.blur(x[:1], 0.0)[0])


def test_blur_cannot_err_more_than_the_flat_image():
    x = torch.rand(1, 3, 6, 6, dtype=torch.float64)
    flat = frequency.blur_of_equal_error(x, x + 5)
    assert torch.allclose(flat, x.mean((2, 3), keepdim=True).expand_as(x), atol=1e-9)
