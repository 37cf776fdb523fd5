"""One block, timed: what skipping saves by the share kept, the width and the batch; recorded.

    python benchmarks/skipping.py --record

Every round times the block that computes all tokens, then the one that skips at each share, in turn;
what is reported are ratios within a round. The record is `laptop/random-images/skipping/seed0`.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from dataclasses import dataclass

import torch

from ersm_lab.networks.token_net import Block
from ersm_lab.results import records
from ersm_lab.results.provenance import code_of

WARM_UP = 2  # rounds that are not counted


@dataclass(frozen=True, kw_only=True)
class BlockSettings:
    """What is timed.

    Attributes:
        widths: channels of a token.
        batches: images.
        shares: of the tokens that are kept, drawn at random in each image.
        threads: numbers of them.
        side: tokens along a side of the map.
        expansion: hidden channels, as a factor on the width.
        rounds: that are counted.
    """

    widths: tuple[int, ...] = (96, 192, 384)
    batches: tuple[int, ...] = (1, 8, 64, 256)
    shares: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
    threads: tuple[int, ...] = (1, 2)
    side: int = 8
    expansion: int = 4
    rounds: int = 5


SMOKE = BlockSettings(widths=(16,), batches=(1, 8), shares=(0.5, 1.0), threads=(1,), rounds=2)


def measure(settings: BlockSettings) -> dict[str, dict]:
    """Time dense and skipping blocks of every width, batch and number of threads.

    Returns:
        {"threads T, width C, batch B": {"dense_us": median microseconds an image, "times": {share kept:
        median of how many times as fast as the dense one the skipping block is}}}.
    """
    before = torch.get_num_threads()
    found = {}
    try:
        for threads, width, batch in itertools.product(
            settings.threads, settings.widths, settings.batches
        ):
            torch.set_num_threads(threads)
            found[f"threads {threads}, width {width}, batch {batch}"] = _one(width, batch, settings)
    finally:
        torch.set_num_threads(before)
    return found


@torch.inference_mode()
def _one(width: int, batch: int, settings: BlockSettings) -> dict:
    rng = torch.Generator().manual_seed(0)
    block = Block(width, settings.expansion).eval().to(memory_format=torch.channels_last)
    x = torch.randn(batch, width, settings.side, settings.side, generator=rng)
    x = x.contiguous(memory_format=torch.channels_last)  # (B, C, H, W)
    order = torch.rand(batch, 1, settings.side, settings.side, generator=rng)
    masks = {share: (order <= share).to(x) for share in settings.shares}  # (B, 1, H, W)
    dense: list[float] = []
    skipping: dict[float, list[float]] = {share: [] for share in masks}
    for number in range(settings.rounds + WARM_UP):
        begun = time.perf_counter()
        block(x)
        whole = time.perf_counter() - begun
        if number >= WARM_UP:
            dense.append(whole)
        for share, m in masks.items():
            begun = time.perf_counter()
            block(x, m)
            if number >= WARM_UP:
                skipping[share].append(whole / (time.perf_counter() - begun))
    times = {f"{share:g}": statistics.median(ratios) for share, ratios in skipping.items()}
    return {"dense_us": 1e6 * statistics.median(dense) / batch, "times": times}


def record(settings: BlockSettings | None = None, *, scale: str = "laptop") -> dict:
    """Measure, and write what was found; an earlier record is replaced. Returns the record."""
    settings = settings or (SMOKE if scale == "smoke" else BlockSettings())
    facts = records.provenance(code_of(__file__), device="cpu", precision="32-true")
    facts["device"] |= {"load": round(os.getloadavg()[0], 1)}
    begun = time.perf_counter()
    name = f"{scale}/random-images/skipping/seed0"
    made = facts | {
        "name": name,
        "method": "skipping",
        "dataset": "random-images",
        "scale": scale,
        "seed": 0,
        "config": records.plain(settings),
        "metrics": measure(settings),
        "tolerance": {},  # a clock elsewhere may say anything
        "curve": [],
        "answers": None,
        "seconds": {"train": 0.0, "measure": time.perf_counter() - begun},
        "probe": {},  # a clock's reading is of its day
        "checkpoint": None,
    }
    records.write(made)
    return records.read(name)
