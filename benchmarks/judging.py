"""Seconds that each suite of a trained network's card takes, and their sum.

    python benchmarks/judging.py [--scale laptop] [--dataset cifar10] [--method ersm] [--threads 2]

The network is the one of the record, with its checkpoint; nothing is written. Processor seconds are
those of all threads together: on a machine that is busy otherwise they say more than the clock.
"""

from __future__ import annotations

import argparse
import time

import torch

from ersm_lab.images import data
from ersm_lab.results import records
from ersm_lab.suites import card
from ersm_lab.training import experiments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=tuple(card.PRESETS), default="laptop")
    parser.add_argument("--dataset", choices=data.DATASETS, help="default: CIFAR-10, else shapes")
    parser.add_argument("--method", default="ersm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--suites", nargs="+", choices=tuple(card.SUITES))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dataset = arguments.dataset or data.default_dataset()
    name = f"{arguments.scale}/{dataset}/{arguments.method}/seed{arguments.seed}"
    model = experiments.restore(experiments.find(name), records.read(name))
    presets = card.PRESETS[arguments.scale]
    suites = arguments.suites or card.suites_of(dataset)
    counts = [presets[suite].images for suite in suites]
    test = data.load(dataset, "test", limit=None if None in counts else max(counts))
    print(f"{name}, {arguments.threads} threads, torch {torch.__version__}")
    print(f"{'':12}{'images':>8}{'seconds':>10}{'processor seconds':>20}")
    total = total_worked = 0.0
    for suite in suites:
        worked = time.process_time()
        found = card.evaluate(model, test, suites=[suite], scale=arguments.scale)[suite]
        worked = time.process_time() - worked
        images = found.metrics["images"]
        print(f"{suite:12}{images:8}{found.seconds:10.1f}{worked:20.1f}", flush=True)
        total, total_worked = total + found.seconds, total_worked + worked
    print(f"{'sum':20}{total:10.1f}{total_worked:20.1f}")


if __name__ == "__main__":
    main()
