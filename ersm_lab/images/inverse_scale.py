"""Inverse scale variational sparsification: images rebuilt from large structures to fine ones.

Source: Zhou, Liu, Xu, Fu & Sun, arXiv:2409.18419. With D the differences of neighbouring pixels (right
and down) and

    l(u, gamma) = |u - x|^2 / 2 + |D u - gamma|^2 / (2 nu)

the path of an image x runs, from u = the mean of x and z = gamma = 0, as

    u <- u - kappa alpha dl/du = u - kappa alpha (u - x + D^T (D u - gamma) / nu)
    z <- z - alpha dl/dgamma   = z + alpha (D u - gamma) / nu
    gamma = kappa softshrink(z, 1)

An edge is open where gamma is not 0. The sparsity of a step is the share of closed edges: 1 at the
start, falling to that of x. The sparsified image is the projection of u onto the images that are flat
across every closed edge: the mean of u over each component that the closed edges join (Proposition 1),
found in a time that grows as the number of pixels (`project`).

Step size. With lambda the largest eigenvalue of D^T D, alpha kappa (1 + lambda / nu) < 2 is the bound
while all edges are closed. Across open edges u and gamma move together, by gradient descent on l with
step kappa alpha, and the largest eigenvalue of its Hessian is greater, at most 1 + (1 + lambda) / nu
(compare Huang, Sun, Xiong & Yao, arXiv:1604.05910). A path with a step between the two bounds diverges
once most edges are open, so that the smaller bound is enforced: alpha kappa (1 + (1 + lambda) / nu) < 2.

Defaults. The paper's text names no settings; these were chosen on CIFAR-10 training images by the
error |image - x|^2 at sparsity 0.6 and 0.8 and by the number of steps. nu = 0.3: a larger one opens
strong single edges before whole shapes, a smaller one gains at 0.8 what it loses at 0.6, in more steps.
kappa = 3: with kappa the error falls a little and the number of steps grows in proportion. alpha: close
to the bound, since smaller steps give the same images. One graph for all channels: at an equal number
of open edges, counted over all channels, its error is lower than that of own graphs, in fewer steps.
gamma counts in differences of x, so that kappa has the unit of x: the defaults are for x of 0 to 1.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ersm_lab.common import checks
from ersm_lab.images.flat_regions import means_over
from ersm_lab.images.path_steps import (
    LEAST,
    MOST,
    PathSettings,
    State,
    advance_numba,
    advance_torch,
    begin,
    differences,
    opened_edges,
)

SHARE_OF_BOUND = 0.95  # the step size where none is given, in units of the stability bound
MOST_SIDE = 100_000  # pixels along a side of an image
ITSELF = -1  # the step number of an image that is already as sparse as the level asks

Backend = Literal["auto", "numba", "torch"]


@dataclass(frozen=True, kw_only=True)
class ScalePath:
    """Images along the path; G is 1 for a shared graph, else the number of channels C.

    Attributes:
        levels: the L levels of sparsity that were asked for, in that order.
        images: (L, B, C, H, W).
        steps: int64 (L, B, G), the first step at which the sparsity was at most the level; `ITSELF`
            (-1) where the image itself is as sparse as that and stands for its own result.
        sparsity: float64 (L, B, G), the share of closed edges, above the level only where it was not
            reached in `max_steps`. The image is at least as sparse: an open edge may lie within a
            component.
    """

    levels: tuple[float, ...]
    images: Tensor
    steps: Tensor
    sparsity: Tensor


def stability_bound(height: int, width: int, *, nu: float, kappa: float) -> float:
    """Step sizes alpha must be smaller: alpha kappa (1 + (1 + lambda) / nu) < 2 (see the module).

    The largest eigenvalue of D^T D on a grid is lambda = 4 cos^2(pi / 2H) + 4 cos^2(pi / 2W) < 8.
    """
    checks.whole("height", height, most=MOST_SIDE)
    checks.whole("width", width, most=MOST_SIDE)
    checks.number("nu", nu, least=LEAST, most=MOST)
    checks.number("kappa", kappa, least=LEAST, most=MOST)
    return _bound(height, width, nu, kappa)


def inverse_scale_path(
    x: Tensor,
    *,
    levels: Sequence[float],
    settings: PathSettings | None = None,
    backend: Backend = "auto",
) -> ScalePath:
    """The sparsified images at each level; each image (or channel) stops when it has reached it.

    A constant image, or one of a single pixel, is its own result at every level. No gradient flows.

    Args:
        x: (B, C, H, W), floats, 0 to 1 with the default settings; float32 and float64 are kept,
            smaller types computed in float32.
        levels: of sparsity, the share of closed edges, each 0 to 1: 1 is the flat image of the mean, 0
            the image itself. They share one path: the cost is that of the lowest.
        settings: of the path; None is `PathSettings()`.
        backend: "numba", fused, on the CPU and in float32, images in parallel on torch's number of
            threads; "torch", any device and type; "auto", the first where it can be had.

    Raises:
        ValueError: no batch of images of floats, NaN or infinity in it, a level outside of 0 to 1, a
            step size outside of the stability bound, or a backend that cannot do it.

    Warns:
        RuntimeWarning: images that did not reach a level in `max_steps`.

    Source: arXiv:2409.18419.
    """
    settings = PathSettings() if settings is None else settings
    checks.a("settings", settings, PathSettings)
    _check(x, levels)
    alpha = step_size(settings, *x.shape[-2:])
    b, c, h, w = x.shape
    planes = x if settings.channels == "shared" else x.reshape(b * c, 1, h, w)
    values = planes.to(torch.promote_types(x.dtype, torch.float32))  # (N, G', H, W), N graphs
    advance = advance_by(backend, values)

    with torch.no_grad():
        state = begin(values)
        edges = h * (w - 1) + (h - 1) * w
        right, down = differences(values)
        different = (right != 0).any(1).flatten(1).sum(1) + (down != 0).any(1).flatten(1).sum(1)
        results = {}
        for level in sorted(set(levels), reverse=True):
            to_open = (1 - level) * edges
            itself = different <= to_open + 1e-9 * edges  # (N,)
            wanted = torch.where(itself, 0, math.ceil(to_open - 1e-9 * edges))  # (N,)
            advance(state, wanted, settings, alpha)
            image = means_over(state.u, *opened_edges(state)) + state.mean  # (N, G', H, W)
            image = torch.where(itself[:, None, None, None], values, image)
            opened = torch.where(itself, different, state.opened)
            steps = torch.where(itself, ITSELF, state.step)
            late = int((opened < wanted).sum())
            if late:
                warnings.warn(
                    f"{late} of {len(values)} images or channels did not reach sparsity {level} in "
                    f"{settings.max_steps} steps: raise max_steps, or kappa is too large for x",
                    RuntimeWarning,
                    stacklevel=2,
                )
            results[level] = (
                image.reshape(x.shape).to(x.dtype),
                steps.view(b, -1),
                1 - opened.double().view(b, -1) / max(edges, 1),
            )
    images, steps, sparsity = (
        torch.stack(r) for r in zip(*(results[v] for v in levels), strict=True)
    )
    return ScalePath(levels=tuple(levels), images=images, steps=steps, sparsity=sparsity)


def sparsify(
    x: Tensor,
    level: float,
    *,
    settings: PathSettings | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """`inverse_scale_path` at one level: (B, C, H, W) -> (B, C, H, W)."""
    checks.number("level", level)
    path = inverse_scale_path(x, levels=[level], settings=settings, backend=backend)
    return path.images[0]


def advance_by(backend: Backend, x: Tensor) -> Callable[[State, Tensor, PathSettings, float], None]:
    fits = x.device.type == "cpu" and x.dtype == torch.float32
    installed = importlib.util.find_spec("numba") is not None
    if backend == "auto":
        return advance_numba if fits and installed else advance_torch
    if backend == "torch":
        return advance_torch
    if backend != "numba":
        raise ValueError(f'backend must be "auto", "numba" or "torch", got {backend!r}')
    if not installed:
        raise ValueError('numba is not installed: pip install numba, or backend="torch"')
    if not fits:
        raise ValueError(
            f"numba runs on the CPU in float32, x is {x.dtype} on {x.device}: "
            'move and convert it, or backend="torch"'
        )
    return advance_numba


# --- the step size ---------------------------------------------------------------------------------


def _bound(height: int, width: int, nu: float, kappa: float) -> float:
    return 2 / (kappa * (1 + (1 + largest_eigenvalue(height, width)) / nu))


def largest_eigenvalue(height: int, width: int) -> float:
    return sum(4 * math.cos(math.pi / (2 * n)) ** 2 for n in (height, width))


def step_size(settings: PathSettings, height: int, width: int) -> float:
    nu, kappa = settings.nu, settings.kappa
    bound = _bound(height, width, nu, kappa)
    if settings.alpha is None:
        return SHARE_OF_BOUND * bound
    if not 0 < settings.alpha < bound:
        eigenvalue = largest_eigenvalue(height, width)
        raise ValueError(
            f"alpha = {settings.alpha:g} is outside of the stability bound, alpha * kappa * "
            f"(1 + (1 + lambda) / nu) < 2 with lambda = {eigenvalue:.4g}: for nu = {nu:g} and "
            f"kappa = {kappa:g} choose 0 < alpha < {bound:.6g}, or None"
        )
    return settings.alpha


def _check(x: Tensor, levels: Sequence[float]) -> None:
    checks.a("x", x, Tensor)
    checks.several("levels", levels, least=0)
    for level in levels:
        checks.number("levels", level)
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(f"x must be a batch of images (B, C, H, W), got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"x must hold floats from 0 to 1, got {x.dtype}: divide by 255")
    bad = torch.nonzero(~x.isfinite().flatten(1).all(1)).flatten().tolist()
    if bad:
        raise ValueError(
            f"x: {len(bad)} of {len(x)} images hold NaN or infinity, the first at index {bad[0]}: "
            "leave them out"
        )
    if len(levels) == 0 or not all(0 <= level <= 1 for level in levels):
        raise ValueError(f"levels are shares of closed edges, each 0 to 1; got {list(levels)}")
