"""What the networks of the book cost: parameters, operations, memory and time (`ersm_lab.cost`).

Every round times each network once, in turn, so that whatever else the machine does falls on all of
them. With --record it is written as the record that chapter 9 shows.

    python benchmarks/cost.py [--scale laptop] [--threads 2] [--record]
"""

from __future__ import annotations

import argparse
import tempfile

import torch

from ersm_lab import cost
from ersm_lab.results import records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=records.SCALES, default="laptop")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--record", action="store_true", help="write it below data/results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as elsewhere:
        root = records.home() if arguments.record else elsewhere
        made = cost.record(scale=arguments.scale, root=root)
    for part in made["metrics"].values():
        print(cost.drawn(part, made["device"]), end="\n\n")
    if arguments.record:
        print(f"written: {made['name']}")


if __name__ == "__main__":
    main()
