"""The steps of the inverse scale path, in PyTorch for any device and fused by numba for the CPU.

The equations are at the top of `inverse_scale`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ersm_lab.common import checks

LEAST, MOST = 1e-6, 1e6  # nu and kappa; beyond, float32 has nothing between a step and none


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
class State:
    """Where N paths are; advanced in place. N is B, or B C with own graphs; C is then 1."""

    x: Tensor  # (N, C, H, W), less its mean
    mean: Tensor  # (N, C, 1, 1)
    u: Tensor  # (N, C, H, W)
    right: Tensor  # (N, C, H, W - 1), z of the edges to the right
    down: Tensor  # (N, C, H - 1, W), z of the edges below
    step: Tensor  # int64 (N,)
    opened: Tensor  # int64 (N,), open edges


def begin(x: Tensor) -> State:
    mean = x.mean((2, 3), keepdim=True)
    right, down = differences(x)
    step = torch.zeros(len(x), dtype=torch.long, device=x.device)
    return State(
        x=(x - mean).contiguous(),
        mean=mean,
        u=torch.zeros(x.shape, dtype=x.dtype, device=x.device),
        right=torch.zeros(right.shape, dtype=x.dtype, device=x.device),
        down=torch.zeros(down.shape, dtype=x.dtype, device=x.device),
        step=step,
        opened=step.clone(),
    )


def differences(u: Tensor) -> tuple[Tensor, Tensor]:
    """D u, (..., H, W) -> (..., H, W - 1) to the right and (..., H - 1, W) down."""
    return u[..., 1:] - u[..., :-1], u[..., 1:, :] - u[..., :-1, :]


def opened_edges(state: State) -> tuple[Tensor, Tensor]:
    """Open edges of the graphs, bool (N, 1, H, W - 1) and (N, 1, H - 1, W): |z| > 1 in any channel."""
    right, down = ((z.abs() > 1).any(1, keepdim=True) for z in (state.right, state.down))
    return right, down


def _unfinished(state: State, wanted: Tensor, settings: PathSettings) -> Tensor:
    going = (state.opened < wanted) & (state.step < settings.max_steps)
    return torch.nonzero(going).flatten()


# --- in PyTorch ------------------------------------------------------------------------------------


def advance_torch(state: State, wanted: Tensor, settings: PathSettings, alpha: float) -> None:
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
            right, down = opened_edges(part)
            part.opened.copy_(right.flatten(1).sum(1) + down.flatten(1).sum(1))
            done = going & ((part.opened >= aim) | (part.step >= settings.max_steps))
            if done.any():
                for name in ("u", "right", "down", "step", "opened"):
                    getattr(state, name)[index[done]] = getattr(part, name)[done]
                going = going & ~done
        still = index[going]
        for name in ("u", "right", "down", "step", "opened"):
            getattr(state, name)[still] = getattr(part, name)[going]
        index = still


def _step(state: State, settings: PathSettings, alpha: float) -> None:
    """One step of u and z, in place."""
    nu, kappa = settings.nu, settings.kappa
    right, down = differences(state.u)
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


# --- by numba --------------------------------------------------------------------------------------


def advance_numba(state: State, wanted: Tensor, settings: PathSettings, alpha: float) -> None:
    """As `advance_torch`, for float32 on the CPU: one fused loop per graph, a thread per graph."""
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
