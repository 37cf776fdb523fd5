"""One block, timed: what skipping saves by the share kept, the width and the batch; recorded.

    python benchmarks/skipping.py --record

Every round times the block that computes all tokens, then the one that skips at each share, in turn;
what is reported are ratios within a round. The record is `laptop/random-images/skipping/seed0`.
"""

from __future__ import annotations

import itertools
import statistics
import time
from dataclasses import dataclass
from functools import partial

import torch

from ersm_lab.common.timing import side_by_side
from ersm_lab.networks.token_net import Block
from ersm_lab.results import measurements


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
    seconds = side_by_side(
        {None: partial(block, x)} | {share: partial(block, x, m) for share, m in masks.items()},
        settings.rounds,
    )
    dense = seconds.pop(None)
    skipping = {
        share: [whole / value for whole, value in zip(dense, values, strict=True)]
        for share, values in seconds.items()
    }
    times = {f"{share:g}": statistics.median(ratios) for share, ratios in skipping.items()}
    return {"dense_us": 1e6 * statistics.median(dense) / batch, "times": times}


def record(settings: BlockSettings | None = None, *, scale: str = "laptop") -> dict:
    """Measure, and write what was found; an earlier record is replaced. Returns the record."""
    settings = settings or (SMOKE if scale == "smoke" else BlockSettings())
    facts, begun = measurements.facts(__file__), time.perf_counter()
    metrics = measure(settings)
    name, seconds = f"{scale}/random-images/skipping/seed0", time.perf_counter() - begun
    return measurements.keep(name, facts, settings=settings, metrics=metrics, seconds=seconds)
