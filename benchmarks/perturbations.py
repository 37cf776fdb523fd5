"""Seconds that each perturbation takes for 10,000 images, its costliest severity, on the CPU.

    python benchmarks/perturbations.py [--images 1000] [--threads 1]

Timed on fewer images and scaled up; a kind's first, smaller run warms it up and is not counted.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from ersm_lab.images import corruptions, data, occlusion, resolution


def seconds(run: Callable[[], torch.Tensor]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1_000)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    images = data.load(data.default_dataset(), "test", limit=arguments.images).images
    scale = 10_000 / len(images)
    print(f"{len(images)} images, {arguments.threads} threads, torch {torch.__version__}")
    print(f"{'':30}{'s / 10,000':>12}{'severity':>10}")
    total = 0.0
    for group, kinds in corruptions.GROUPS.items():
        for kind in kinds:
            taken = {}
            for severity in corruptions.SEVERITIES:
                corruptions.corrupt(images[:2], kind, severity, seed=0)
                taken[severity] = scale * seconds(
                    lambda k=kind, s=severity: corruptions.corrupt(images, k, s, seed=0)
                )
            total += sum(taken.values())
            worst = max(taken, key=taken.get)
            print(f"{group:11}{kind:19}{taken[worst]:12.2f}{worst:10}")
    print(f"{'all kinds and severities':30}{total:12.2f}")
    for fill in occlusion.FILLS:
        taken = seconds(
            lambda f=fill: occlusion.occlude(images, size=12, position="random", fill=f, seed=0)
        )
        print(f"{'occlusion':11}{fill:19}{scale * taken:12.2f}")
    for size in resolution.LOW_RESOLUTIONS:
        taken = seconds(lambda s=size: resolution.low_resolution(images, s))
        print(f"{'low resolution':24}{size:6}{scale * taken:12.2f}")


if __name__ == "__main__":
    main()
