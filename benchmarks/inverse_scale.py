"""What a step of the inverse scale path costs, and its projection, measured side by side.

    python benchmarks/inverse_scale.py [--rounds 7] [--images 200] [--largest 2048] [--cores 2]

Three tables. The first times one step of one channel, the plain torch loop beside the fused one, in
turn in every round, so that whatever else the machine does falls on both; it gives medians and the
median ratio. The second times whole images at a level and says what CIFAR-10's 50,000 training images
would take. The third times the projection of one scene drawn in more and more pixels beside
the same projection as a sparse least-squares problem; of its time, what the operating system takes to
hand out memory stands apart, which grows faster than the pixels once arrays are large.

On the CPU all run on one thread, and times are those of the processor: of one core, whatever else
wants it. On a GPU they are those of the clock.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import csr_array
from scipy.sparse.linalg import lsqr
from torch import Tensor

from ersm_lab.images import data, flat_regions, inverse_scale, path_steps
from ersm_lab.images.path_steps import PathSettings

CIFAR_IMAGES = 50_000


def seconds_of(run: Callable[[], object], *, gpu: bool = False) -> float:
    clock = time.perf_counter if gpu else time.process_time
    begun = clock()
    run()
    if gpu:
        torch.cuda.synchronize()
    return clock() - begun


# --- a step ----------------------------------------------------------------------------------------


def steps_of(x: Tensor, advance: Callable, steps: int) -> Callable[[], None]:
    """So many steps of the path of x (B, C, H, W), whatever its sparsity."""
    settings = PathSettings(max_steps=steps)
    alpha = inverse_scale.SHARE_OF_BOUND * inverse_scale.stability_bound(
        *x.shape[-2:], nu=settings.nu, kappa=settings.kappa
    )
    never = torch.full((len(x),), 2**40, device=x.device)  # more edges than there are

    def run() -> None:
        advance(path_steps.begin(x), never, settings, alpha)

    return run


def step_table(x: Tensor, rounds: int) -> None:
    print("\nOne step of one 32 x 32 channel, microseconds")
    print(f"{'images x channels':24}{'plain torch':>14}{'fused':>10}{'times faster':>16}")
    for images, channels, plain_steps, fused_steps in (
        (1, 1, 200, 4_000),
        (1, 3, 200, 2_000),
        (32, 3, 30, 400),
    ):
        part = x[:images, :channels].contiguous()
        plain = steps_of(part, path_steps.advance_torch, plain_steps)
        fused = steps_of(part, path_steps.advance_numba, fused_steps)
        times: dict[str, list[float]] = {"plain": [], "fused": []}
        for number in range(rounds + 1):
            pair = (seconds_of(plain) / plain_steps, seconds_of(fused) / fused_steps)
            if number:  # the first is a warm-up
                for name, value in zip(times, pair, strict=True):
                    times[name].append(1e6 * value / (len(part) * channels))
        ratio = statistics.median(
            p / f for p, f in zip(times["plain"], times["fused"], strict=True)
        )
        plain_us, fused_us = (statistics.median(t) for t in times.values())
        print(f"{f'{len(part)} x {channels}':24}{plain_us:14.1f}{fused_us:10.2f}{ratio:16.1f}")


# --- whole images ----------------------------------------------------------------------------------


def level_table(x: Tensor, rounds: int, cores: int) -> None:
    where = x.device if x.is_cuda else f"a core; 50,000 on {cores} cores"
    print(f"\nWhole images at one level, {len(x)} images on {where}")
    print(f"{'level':>8}{'graph':>10}{'median steps':>15}{'most':>9}{'ms an image':>14}", end="")
    print(f"{'s for 50,000':>17}")
    share = 1 if x.is_cuda else cores
    for level in (0.8, 0.6):
        for channels in ("shared", "own"):
            settings = PathSettings(channels=channels)
            found = []

            def run(level=level, settings=settings, found=found) -> None:
                found.append(inverse_scale.inverse_scale_path(x, levels=[level], settings=settings))

            times = [seconds_of(run, gpu=x.is_cuda) for _ in range(rounds)]
            each, steps = statistics.median(times) / len(x), found[0].steps.flatten()
            print(
                f"{level:8}{channels:>10}{steps.median().item():15}{steps.max().item():9}"
                f"{1e3 * each:14.2f}{each * CIFAR_IMAGES / share:17.0f}"
            )


# --- the projection --------------------------------------------------------------------------------


def scene(side: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """One picture of smooth regions, drawn in side x side pixels: u and its open edges.

    u is the picture with noise, (1, 1, H, W); the edges between regions are open.
    """
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 1, 12, 12, generator=generator, dtype=torch.float64)
    fine = F.interpolate(coarse, size=(side, side), mode="bicubic")
    region = (2 * fine).floor()
    right, down = (d != 0 for d in path_steps.differences(region))
    return region + 0.1 * torch.randn(fine.shape, generator=generator), right, down


def closed_differences(right: Tensor, down: Tensor) -> csr_array:
    """The rows of D that belong to closed edges, (edges, pixels)."""
    height, width = right.shape[2], down.shape[3]
    pixel = np.arange(height * width).reshape(height, width)
    shut = (~right[0, 0].numpy(), ~down[0, 0].numpy())
    first = np.concatenate([pixel[:, :-1][shut[0]], pixel[:-1][shut[1]]])
    second = np.concatenate([pixel[:, 1:][shut[0]], pixel[1:][shut[1]]])
    edge = np.arange(len(first))
    values = np.repeat([-1.0, 1.0], len(first))
    places = (np.tile(edge, 2), np.concatenate([first, second]))
    return csr_array((values, places), (len(first), height * width))


def projection_table(largest: int, largest_lsqr: int, rounds: int) -> None:
    print("\nThe projection of one scene, by components and by least squares (lsqr to 1e-6)")
    print(
        f"{'side':>6}{'components ms':>16}{'ns a pixel':>13}{'of it system':>14}{'lsqr ms':>12}"
        f"{'iterations':>12}",
        end="",
    )
    print(f"{'lsqr / components':>20}{'largest difference':>20}")
    side = 64
    while side <= largest:
        u, right, down = scene(side)
        count = max(2, rounds if side <= 512 else 3)
        system = os.times().system
        spent = statistics.median(
            seconds_of(lambda e=(u, right, down): flat_regions.project(*e)) for _ in range(count)
        )
        system = (os.times().system - system) / count  # a mean: its clock is coarse
        line = f"{side:6}{1e3 * spent:16.2f}{1e9 * spent / side**2:13.0f}"
        line += f"{1e9 * system / side**2:14.0f}"
        if side <= largest_lsqr:
            matrix, flat = closed_differences(right, down), u.numpy().ravel()
            begun = time.process_time()
            solved = lsqr(matrix.T, flat, atol=1e-6, btol=1e-6, iter_lim=20_000)
            image = flat - matrix.T @ solved[0]
            taken = time.process_time() - begun
            gap = np.abs(image - flat_regions.project(u, right, down).numpy().ravel()).max()
            line += f"{1e3 * taken:12.0f}{solved[2]:12}{taken / spent:20.0f}{gap:20.1e}"
        print(line, flush=True)
        side *= 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--largest", type=int, default=2048, help="side of the largest projection")
    parser.add_argument("--largest-lsqr", type=int, default=2048, help="and of the largest solve")
    parser.add_argument("--cores", type=int, default=2, help="that the 50,000 images are shared by")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    images = data.load(data.default_dataset(), "train", limit=arguments.images)
    x = images.images.permute(0, 3, 1, 2).float().contiguous() / 255  # (B, 3, H, W)
    print(f"{images.name}, one thread, torch {torch.__version__}")
    step_table(x, arguments.rounds)
    level_table(x, max(2, arguments.rounds // 3), arguments.cores)
    if torch.cuda.is_available():
        level_table(x.cuda(), max(2, arguments.rounds // 3), arguments.cores)
    projection_table(arguments.largest, arguments.largest_lsqr, arguments.rounds)


if __name__ == "__main__":
    main()
