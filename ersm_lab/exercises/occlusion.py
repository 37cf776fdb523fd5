"""Checks of the exercises of chapter 10."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor


def check_stays_right(function: Callable[[np.ndarray, np.ndarray], float]) -> str | None:
    """Whether function(clean, occluded) is the share of images right when clean that stay right.

    clean, occluded are bools (N,): which images a network classifies rightly. Returns None if it is
    right, else what is wrong.
    """
    rng = np.random.default_rng(0)
    clean = rng.random(1_000) < 0.8
    occluded = np.where(clean, rng.random(1_000) < 0.7, rng.random(1_000) < 0.2)
    right = occluded[clean].mean()
    given = _number(function(clean.copy(), occluded.copy()))
    if isinstance(given, str):
        return given
    if np.isclose(given, right):
        return None
    if np.isclose(given, occluded.mean() / clean.mean()):
        return (
            "that is the ratio of the two accuracies: it counts images that are right behind the "
            "square though they were wrong without it"
        )
    if np.isclose(given, (clean & occluded).mean()):
        return "that is a share of all images: divide by those that are right when clean"
    if np.isclose(given, 100 * right):
        return "that is in percent: give a share from 0 to 1"
    return f"{given:.4g} is not right: count among the images with clean = True only"


def check_one_step(
    function: Callable[[Callable[[Tensor], Tensor], Tensor, Tensor, float], Tensor],
) -> str | None:
    """Whether function(network, pixels, labels, epsilon) is FGSM, one step along the gradient's sign.

    network takes pixels (B, 3, H, W) of 0 to 1 and gives logits. Returns None if it is right, else
    what is wrong.
    """
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 3 * 4 * 4, generator=generator)

    def network(x: Tensor) -> Tensor:
        return torch.tanh(x.flatten(1)) @ weight.T  # (B, 5)

    pixels = torch.rand(6, 3, 4, 4, generator=generator)
    pixels[:, :, 0] = 0.0  # a dark and a bright edge, to see that 0 and 1 are kept to
    pixels[:, :, 1] = 1.0
    labels = torch.arange(6) % 5
    epsilon = 0.1
    x = pixels.clone().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(network(x), labels), x)
    right = (pixels + epsilon * slope.sign()).clamp(0, 1)
    with torch.enable_grad():
        given = function(network, pixels.clone(), labels.clone(), epsilon)
    if not isinstance(given, Tensor) or given.shape != pixels.shape:
        return f"pixels of shape {tuple(pixels.shape)} were expected"
    given = given.detach()
    if torch.allclose(given, right, atol=1e-6):
        return None
    if torch.allclose(given, pixels + epsilon * slope.sign(), atol=1e-6):
        return "some pixels have left 0 to 1: clamp at the end"
    if torch.allclose(given, (pixels - epsilon * slope.sign()).clamp(0, 1), atol=1e-6):
        return "that makes the loss smaller: go up the gradient of the true label's loss"
    if (given - pixels).abs().max() > epsilon + 1e-6:
        return f"a pixel has moved by more than epsilon = {epsilon}: take the sign of the gradient"
    return "not every pixel moves by epsilon: the sign of the gradient says only up or down"


def check_highest(function: Callable[[int], float]) -> str | None:
    """Whether function(images) is the upper end of Wilson's 95 % interval where none was right.

    Returns None if it is right, else what is wrong.
    """
    for images in (20, 200, 5_000):
        right = stats.binomtest(0, images).proportion_ci(0.95, "wilson").high
        given = _number(function(images))
        if isinstance(given, str):
            return given
        if np.isclose(given, right, rtol=0.01):
            continue
        if given == 0:
            return "none right of a few does not show that none would be right of many"
        if np.isclose(given, 100 * right, rtol=0.01):
            return "that is in percent: give a share from 0 to 1"
        if np.isclose(given, 3 / images, rtol=0.02):
            return (
                "3 / images is the rule of three, a one-sided limit, and close: Wilson's interval "
                "has z² / (n + z²) with z = 1.96"
            )
        return f"for {images} images it is {right:.4g}, got {given:.4g}"
    return None


def _number(given: Any) -> float | str:
    try:
        return float(given)
    except (TypeError, ValueError):
        return f"a number was expected, got {type(given).__name__}"
