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

import dataclasses
import functools
import hashlib
import importlib.util
import math
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import scipy.fft
import torch
import torch.nn.functional as F
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from tqdm import tqdm

from ersm_lab.common import checks
from ersm_lab.common.checkpoints import save_atomically
from ersm_lab.results.provenance import source_hash

SHARE_OF_BOUND = 0.95  # the step size where none is given, in units of the stability bound
MOST_SIDE = 100_000  # pixels along a side of an image
LEAST, MOST = 1e-6, 1e6  # nu and kappa; beyond, float32 has nothing between a step and none
ITSELF = -1  # the step number of an image that is already as sparse as the level asks

Backend = Literal["auto", "numba", "torch"]


@dataclass(frozen=True, kw_only=True)
class PathSettings:
    """How the path is run.

    Attributes:
        nu: how loosely gamma follows D u; small values draw whole shapes first.
        kappa: in units of x; large values lessen the loss of contrast and need more steps.
        alpha: step size; None is 0.95 of the stability bound.
        max_steps: where to stop even if the level is not reached, which happens to images of very
            low contrast.
        channels: "shared", one graph for all channels, in which an edge is open where any channel's
            is; or "own", a graph and a path for each.
    """

    nu: float = 0.3
    kappa: float = 3.0
    alpha: float | None = None
    max_steps: int = 50_000
    channels: Literal["shared", "own"] = "shared"

    def __post_init__(self) -> None:
        if self.alpha is not None:
            checks.number("alpha", self.alpha)  # its bound belongs to the size of the images
        checks.whole("max_steps", self.max_steps, most=checks.MOST)
        for name in ("nu", "kappa"):
            checks.number(name, getattr(self, name))
        if not (self.nu > 0 and self.kappa > 0):
            raise ValueError(f"nu and kappa must be positive, got {self.nu} and {self.kappa}")
        for name in ("nu", "kappa"):
            checks.number(name, getattr(self, name), least=LEAST, most=MOST)
        checks.text("channels", self.channels)
        if self.channels not in ("shared", "own"):
            raise ValueError(f'channels must be "shared" or "own", got {self.channels!r}')


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


def _bound(height: int, width: int, nu: float, kappa: float) -> float:
    return 2 / (kappa * (1 + (1 + _largest_eigenvalue(height, width)) / nu))


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
    alpha = _step_size(settings, *x.shape[-2:])
    b, c, h, w = x.shape
    planes = x if settings.channels == "shared" else x.reshape(b * c, 1, h, w)
    values = planes.to(torch.promote_types(x.dtype, torch.float32))  # (N, G', H, W), N graphs
    advance = _choose(backend, values)

    with torch.no_grad():
        state = _begin(values)
        edges = h * (w - 1) + (h - 1) * w
        right, down = _differences(values)
        different = (right != 0).any(1).flatten(1).sum(1) + (down != 0).any(1).flatten(1).sum(1)
        results = {}
        for level in sorted(set(levels), reverse=True):
            to_open = (1 - level) * edges
            itself = different <= to_open + 1e-9 * edges  # (N,)
            wanted = torch.where(itself, 0, math.ceil(to_open - 1e-9 * edges))  # (N,)
            advance(state, wanted, settings, alpha)
            image = _project(state.u, *_open(state)) + state.mean  # (N, G', H, W)
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


# --- the projection --------------------------------------------------------------------------------


def project(u: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """The nearest image that is flat across every closed edge, in a time of O(pixels).

    argmin over v of |v - u|^2 with (D v)_e = 0 for every closed edge e: the mean of u over each
    connected component of the graph of closed edges (arXiv:2409.18419, Proposition 1).

    Args:
        u: (B, C, H, W).
        right: bool (B, G, H, W - 1), True where the edge to the right is open; G is 1 for one graph
            of all channels, or C.
        down: bool (B, G, H - 1, W), the same for the edge below.

    Returns:
        (B, C, H, W), in u's type; sums are taken in float64.

    Raises:
        ValueError: edges of another image, or that are not bool.
    """
    checks.tensor("u", u, "(B, C, H, W)", "floats")
    b, c, h, w = u.shape
    for name, edges in {"right": right, "down": down}.items():
        checks.a(name, edges, Tensor)
        if edges.dim() != 4:
            raise ValueError(f"{name} must be a tensor of 4 sides, got {checks.shown(edges)}")
    graphs = right.shape[1]
    if right.shape != (b, graphs, h, w - 1) or down.shape != (b, graphs, h - 1, w):
        raise ValueError(
            f"right and down, edges of {tuple(u.shape)} are (B, G, H, W - 1) and (B, G, H - 1, W), "
            f"got {tuple(right.shape)} and {tuple(down.shape)}"
        )
    if graphs not in (1, c):
        raise ValueError(f"G is 1 or the number of channels, {c}; got {graphs}")
    if right.dtype != torch.bool or down.dtype != torch.bool:
        raise ValueError(
            f"right and down must be bool, True where an edge is open, got {right.dtype} and "
            f"{down.dtype}"
        )
    return _project(u, right, down)


def _project(u: Tensor, right: Tensor, down: Tensor) -> Tensor:
    (b, c, h, w), graphs = u.shape, right.shape[1]
    label, count = _components(~right.flatten(0, 1), ~down.flatten(0, 1))  # (B G H W,)
    values = u.double().reshape(b, graphs, c // graphs, h * w).transpose(2, 3).flatten(0, 2)
    # (B G H W, C / G)
    total = values.new_zeros(count, c // graphs).index_add_(0, label, values)
    mean = total / torch.bincount(label, minlength=count)[:, None]  # (components, C / G)
    flat = mean[label].view(b, graphs, h * w, c // graphs).transpose(2, 3)
    return flat.reshape(b, c, h, w).to(u.dtype)


def _components(right: Tensor, down: Tensor) -> tuple[Tensor, int]:
    """Which component each pixel belongs to, int64 (N H W,), and how many there are.

    Args:
        right, down: bool (N, H, W - 1) and (N, H - 1, W), True where two pixels are joined.
    """
    n, h, w = len(right), right.shape[1], down.shape[2]
    pixel = torch.arange(n * h * w, device=right.device).view(n, h, w)
    first = torch.cat([pixel[..., :-1][right], pixel[:, :-1][down]])  # (joined,)
    second = torch.cat([pixel[..., 1:][right], pixel[:, 1:][down]])
    label = _labels_scipy if first.device.type == "cpu" else _labels_torch
    return label(first, second, n * h * w)


def _labels_scipy(first: Tensor, second: Tensor, pixels: int) -> tuple[Tensor, int]:
    ends = (first.numpy().astype(np.int32), second.numpy().astype(np.int32))
    graph = coo_array((np.ones(len(first), np.int8), ends), (pixels, pixels))
    count, label = connected_components(graph, directed=False)
    return torch.from_numpy(label).long(), count


def _labels_torch(first: Tensor, second: Tensor, pixels: int) -> tuple[Tensor, int]:
    """On any device: hang the larger root of each joined pair on the smaller, then let all pixels
    jump to the root of their root until nothing moves; repeat until every pair has one root."""
    own = torch.arange(pixels, device=first.device)
    root = own.clone()
    while len(first):
        a, b = root[first], root[second]
        root.scatter_reduce_(0, torch.maximum(a, b), torch.minimum(a, b), "amin")
        while not torch.equal(root, above := root[root]):
            root = above
        apart = root[first] != root[second]
        first, second = first[apart], second[apart]
    number = (root == own).cumsum(0) - 1  # counts the roots
    return number[root], int(number[-1]) + 1 if pixels else 0


# --- the path --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _State:
    """Where N paths are; advanced in place. N is B, or B C with own graphs; C is then 1."""

    x: Tensor  # (N, C, H, W), less its mean
    mean: Tensor  # (N, C, 1, 1)
    u: Tensor  # (N, C, H, W)
    right: Tensor  # (N, C, H, W - 1), z of the edges to the right
    down: Tensor  # (N, C, H - 1, W), z of the edges below
    step: Tensor  # int64 (N,)
    opened: Tensor  # int64 (N,), open edges


def _begin(x: Tensor) -> _State:
    mean = x.mean((2, 3), keepdim=True)
    right, down = _differences(x)
    step = torch.zeros(len(x), dtype=torch.long, device=x.device)
    return _State(
        x=(x - mean).contiguous(),
        mean=mean,
        u=torch.zeros(x.shape, dtype=x.dtype, device=x.device),
        right=torch.zeros(right.shape, dtype=x.dtype, device=x.device),
        down=torch.zeros(down.shape, dtype=x.dtype, device=x.device),
        step=step,
        opened=step.clone(),
    )


def _differences(u: Tensor) -> tuple[Tensor, Tensor]:
    """D u, (..., H, W) -> (..., H, W - 1) to the right and (..., H - 1, W) down."""
    return u[..., 1:] - u[..., :-1], u[..., 1:, :] - u[..., :-1, :]


def _open(state: _State) -> tuple[Tensor, Tensor]:
    """Open edges of the graphs, bool (N, 1, H, W - 1) and (N, 1, H - 1, W): |z| > 1 in any channel."""
    return tuple((z.abs() > 1).any(1, keepdim=True) for z in (state.right, state.down))


def _advance_torch(state: _State, wanted: Tensor, settings: PathSettings, alpha: float) -> None:
    """Step until `wanted` (N,) edges are open in each graph, or `max_steps` are done."""
    index = _unfinished(state, wanted, settings)  # (n,) graphs still under way
    while len(index):
        part = dataclasses.replace(
            state, **{f.name: getattr(state, f.name)[index] for f in dataclasses.fields(state)}
        )
        aim, going = wanted[index], torch.ones_like(index, dtype=torch.bool)
        # A finished graph is written back at once; it runs on, unheeded, until an eighth has finished.
        while 8 * int(going.sum()) > 7 * len(index):
            _step(part, settings, alpha)
            part.step.add_(1)
            part.opened.copy_(sum(edge.flatten(1).sum(1) for edge in _open(part)))
            done = going & ((part.opened >= aim) | (part.step >= settings.max_steps))
            if done.any():
                for name in ("u", "right", "down", "step", "opened"):
                    getattr(state, name)[index[done]] = getattr(part, name)[done]
                going = going & ~done
        still = index[going]
        for name in ("u", "right", "down", "step", "opened"):
            getattr(state, name)[still] = getattr(part, name)[going]
        index = still


def _step(state: _State, settings: PathSettings, alpha: float) -> None:
    """One step of u and z, in place."""
    nu, kappa = settings.nu, settings.kappa
    right, down = _differences(state.u)
    right.sub_(F.softshrink(state.right, 1.0), alpha=kappa)  # D u - gamma
    down.sub_(F.softshrink(state.down, 1.0), alpha=kappa)
    force = (state.u - state.x).mul_(nu)  # nu dl/du
    force[..., 1:] += right
    force[..., :-1] -= right
    force[..., 1:, :] += down
    force[..., :-1, :] -= down
    state.u.sub_(force, alpha=kappa * alpha / nu)
    state.right.add_(right, alpha=alpha / nu)
    state.down.add_(down, alpha=alpha / nu)


def _unfinished(state: _State, wanted: Tensor, settings: PathSettings) -> Tensor:
    going = (state.opened < wanted) & (state.step < settings.max_steps)
    return torch.nonzero(going).flatten()


def _advance_numba(state: _State, wanted: Tensor, settings: PathSettings, alpha: float) -> None:
    """As `_advance_torch`, for float32 on the CPU: one fused loop per graph, a thread per graph."""
    fused = _fused_loop()
    u, x, right, down = (t.numpy() for t in (state.u, state.x, state.right, state.down))
    size, kappa, nu = (np.float32(v) for v in (alpha, settings.kappa, settings.nu))

    def run(n: int) -> None:
        state.step[n], state.opened[n] = fused(
            x[n], u[n], right[n], down[n], int(wanted[n]), int(state.step[n]), settings.max_steps,
            size, kappa, nu, np.float32(1),
        )  # fmt: skip

    graphs = _unfinished(state, wanted, settings).tolist()
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(run, graphs))


@functools.cache
def _fused_loop() -> Callable:
    import numba

    return numba.njit(nogil=True, fastmath=True, cache=True)(_run_graph)


def _run_graph(x, u, right, down, wanted, step, most, alpha, kappa, nu, one):
    """The path of one graph, in place, compiled by numba: u and z in one pass over the rows.

    `one` is 1 in the type of the arrays; a plain 1.0 would make everything float64.
    Returns the step and the number of open edges.
    """
    channels, height, width = x.shape
    nought = one - one
    gain, damping = alpha / nu, kappa * alpha
    pull = damping / nu
    above = np.empty((channels, width), x.dtype)  # D u - gamma of the edges above the row
    below = np.empty(width, x.dtype)
    beside = np.empty(width + 1, x.dtype)  # and of those within it, with a border
    beside[0] = beside[width] = nought
    across = np.empty(width, x.dtype)  # max |z| over channels
    under = np.empty(width, x.dtype)
    opened = -1
    while opened < wanted and step < most:
        opened = 0
        above[:] = nought
        for i in range(height):
            across[:] = nought
            under[:] = nought
            for c in range(channels):
                for j in range(width - 1):
                    z = right[c, i, j]
                    gap = u[c, i, j + 1] - u[c, i, j] - kappa * (z - min(max(z, -one), one))
                    beside[j + 1] = gap
                    z += gain * gap
                    right[c, i, j] = z
                    across[j] = max(across[j], abs(z))
                if i < height - 1:
                    for j in range(width):
                        z = down[c, i, j]
                        gap = u[c, i + 1, j] - u[c, i, j] - kappa * (z - min(max(z, -one), one))
                        below[j] = gap
                        z += gain * gap
                        down[c, i, j] = z
                        under[j] = max(under[j], abs(z))
                else:
                    below[:] = nought
                for j in range(width):
                    flow = beside[j] - beside[j + 1] + above[c, j] - below[j]
                    u[c, i, j] -= damping * (u[c, i, j] - x[c, i, j]) + pull * flow
                    above[c, j] = below[j]
            for j in range(width):
                opened += (across[j] > one) + (under[j] > one)
        step += 1
    return step, opened


# --- checks ----------------------------------------------------------------------------------------


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


def _step_size(settings: PathSettings, height: int, width: int) -> float:
    nu, kappa = settings.nu, settings.kappa
    bound = _bound(height, width, nu, kappa)
    if settings.alpha is None:
        return SHARE_OF_BOUND * bound
    if not 0 < settings.alpha < bound:
        eigenvalue = _largest_eigenvalue(height, width)
        raise ValueError(
            f"alpha = {settings.alpha:g} is outside of the stability bound, alpha * kappa * "
            f"(1 + (1 + lambda) / nu) < 2 with lambda = {eigenvalue:.4g}: for nu = {nu:g} and "
            f"kappa = {kappa:g} choose 0 < alpha < {bound:.6g}, or None"
        )
    return settings.alpha


def _largest_eigenvalue(height: int, width: int) -> float:
    return sum(4 * math.cos(math.pi / (2 * n)) ** 2 for n in (height, width))


def _choose(backend: Backend, x: Tensor) -> Callable[[_State, Tensor, PathSettings, float], None]:
    fits = x.device.type == "cpu" and x.dtype == torch.float32
    installed = importlib.util.find_spec("numba") is not None
    if backend == "auto":
        return _advance_numba if fits and installed else _advance_torch
    if backend == "torch":
        return _advance_torch
    if backend != "numba":
        raise ValueError(f'backend must be "auto", "numba" or "torch", got {backend!r}')
    if not installed:
        raise ValueError('numba is not installed: pip install numba, or backend="torch"')
    if not fits:
        raise ValueError(
            f"numba runs on the CPU in float32, x is {x.dtype} on {x.device}: "
            'move and convert it, or backend="torch"'
        )
    return _advance_numba


# --- a whole data set ------------------------------------------------------------------------------


def sparsify_dataset(
    images: Tensor,
    level: float,
    *,
    cache: Path,
    settings: PathSettings | None = None,
    chunk: int | None = None,
    progress: bool = True,
) -> Tensor:
    """Every image at one level, computed once and kept on disk.

    The result is uint8, as the images are: half a grey level is lost, and an `ImageSet` with its
    augmentation takes it as it is, in half the space of float16. It is kept in chunks, each a file
    named by its images, level, settings and this module's code, with the SHA-256 of its content: an
    interrupted run goes on where it was, and a damaged file is computed again.

    Args:
        images: uint8 (N, H, W, C), on the device that is to do the work.
        level: of sparsity, 0 to 1.
        cache: folder of the files; made if missing.
        settings: of the path, for images of 0 to 1; None is `PathSettings()`.
        chunk: images a file; None is 1,000 on a CPU, seconds of work, and 25,000 on a GPU, which
            small ones leave idle.
        progress: show a bar.

    Returns:
        uint8 (N, H, W, C) on the same device.

    Raises:
        ValueError: images of another type or shape or none, a level outside of 0 to 1.
    """
    checks.a("images", images, Tensor)
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(
            f"images must be uint8 (N, H, W, C), got {images.dtype} {tuple(images.shape)}"
        )
    if not images.numel():
        raise ValueError(f"images must be one or more, got {tuple(images.shape)}")
    checks.number("level", level, least=0, most=1)
    checks.a("cache", cache, (str, Path))
    settings = PathSettings() if settings is None else settings
    checks.a("settings", settings, PathSettings)
    if chunk is not None:
        checks.whole("chunk", chunk)
    checks.flag("progress", progress)
    chunk = chunk or (1_000 if images.device.type == "cpu" else 25_000)
    bar = tqdm(
        desc=f"sparsity {level:g}",
        total=len(images),
        unit="image",
        disable=not progress,
        leave=False,
    )
    results = []
    with bar:
        for part in images.split(chunk):
            path = Path(cache) / f"inverse-scale-{_fingerprint(part, level, settings)}.pt"
            result = _read(path)
            if result is None:
                x = part.permute(0, 3, 1, 2).float() / 255  # (n, C, H, W)
                y = sparsify(x, level, settings=settings)
                result = (y.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().cpu()
                with suppress(
                    OSError, RuntimeError
                ):  # cannot be written: no matter, but for the time
                    save_atomically({"images": result, "sha256": _sha256(result)}, path)
            results.append(result)
            bar.update(len(part))
    return torch.cat(results).to(images.device)


def _fingerprint(images: Tensor, level: float, settings: PathSettings) -> str:
    what = (_sha256(images), tuple(images.shape), float(level), dataclasses.astuple(settings))
    code = source_hash([__file__])[0]
    return hashlib.sha256(repr((what, code)).encode()).hexdigest()[:16]


def _sha256(images: Tensor) -> str:
    return hashlib.sha256(images.cpu().contiguous().numpy().tobytes()).hexdigest()


def _read(path: Path) -> Tensor | None:
    """The images of a chunk; None where the file is absent or damaged."""
    if not path.is_file():
        return None
    try:
        content = torch.load(path, weights_only=True)
        whole = _sha256(content["images"]) == content["sha256"]
    except Exception as error:  # what a damaged file raises depends on where the damage is
        warnings.warn(f"{path.name} cannot be read ({error}): computed again", stacklevel=3)
        return None
    if not whole:
        warnings.warn(f"{path.name} has a wrong checksum: computed again", stacklevel=3)
    return content["images"] if whole else None


# --- what the paper argues against: smoothing by frequency -----------------------------------------


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
