"""What the networks of this study take by the clock, and where it goes; recorded.

    python -m ersm_lab.milliseconds.clock [--seed 0 1 2]

All networks of a seed are timed in turn within a round, so that whatever else the machine does falls
on all of them; ratios are taken within a round. Inference in float32 on test images in their usual
order. The record is `laptop/cifar10/tokens-clock/seed<seed>`; an earlier one is replaced.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ersm_core import update_kept
from ersm_lab.common.timing import side_by_side
from ersm_lab.evaluation.inference import energy_masks, evaluating
from ersm_lab.images import data as lab_data
from ersm_lab.networks.token_net import Block, TokenNet
from ersm_lab.results import measurements
from ersm_lab.training import experiments

DENSE = "tokens-dense"
SMALLER = ("tokens-dense-narrow", "tokens-dense-two-blocks", "tokens-dense-one-block")
ERSM = ("tokens-ersm-0.01", "tokens-ersm-0.02", "tokens-ersm-0.05")
RIVALS = ("tokens-random", "tokens-norm", "tokens-ratio")
METHODS = (DENSE, *SMALLER, *ERSM, *RIVALS)
TAKEN_APART = "tokens-ersm-0.02"  # whose parts are timed
MULTIPLIED = "multiplied by the mask"  # the same with all tokens computed


@dataclass(frozen=True, kw_only=True)
class ClockSettings:
    """How it is timed.

    Attributes:
        batches: images a pass.
        images: about so many a round, at least one pass.
        single: images a round at a batch of 1.
        rounds: that are counted.
        threads: numbers of them that are tried.
    """

    batches: tuple[int, ...] = (1, 32, 256)
    images: int = 256
    single: int = 32
    rounds: int = 7
    threads: tuple[int, ...] = (1, 2)


def measure(
    networks: Mapping[str, nn.Module], images: Tensor, settings: ClockSettings
) -> dict[str, dict]:
    """Time networks side by side.

    Args:
        networks: by name, in evaluation mode; ratios are to the first.
        images: normalised, (N, 3, H, W).
        settings: how.

    Returns:
        {"threads T, batch B": {name: {"us": median microseconds an image, "times": median over rounds of
        how many times as many images a second as the first}}}.
    """
    before = torch.get_num_threads()
    found: dict[str, dict] = {}
    try:
        for threads in settings.threads:
            torch.set_num_threads(threads)
            for batch in settings.batches:
                count = min(settings.single if batch == 1 else settings.images, len(images))
                parts = images[: max(count // batch, 1) * batch].split(batch)
                passes = {n: partial(_through, model, parts) for n, model in networks.items()}
                seconds = side_by_side(passes, settings.rounds)
                first = seconds[next(iter(networks))]
                found[f"threads {threads}, batch {batch}"] = {
                    name: {
                        "us": 1e6 * statistics.median(values) / sum(len(x) for x in parts),
                        "times": statistics.median(
                            f / v for f, v in zip(first, values, strict=True)
                        ),
                    }
                    for name, values in seconds.items()
                }
    finally:
        torch.set_num_threads(before)
    return found


def _through(model: nn.Module, parts: Sequence[Tensor]) -> None:
    with torch.inference_mode():
        for x in parts:
            model(x)


def parts_of_a_pass(
    model: TokenNet, x: Tensor, *, share: float = 0.5, rounds: int = 21
) -> dict[str, float]:
    """Where the time of one pass goes: microseconds an image of each part of a masked network.

    Args:
        model: with a mask.
        x: normalised images, (B, 3, H, W).
        share: of the tokens that are kept, at random, for the parts that skip.
        rounds: whose median counts.

    Returns:
        early: stem and early convolutions; mask: decides; depthwise, mlp, all blocks: of one block on
        all tokens, and the blocks together; skipping: its MLP on the kept tokens, gathered and put back;
        gather: the same with a function that does nothing.
    """
    with evaluating(model):
        p = model.early(model.stem(x))  # (B, C, h, w)
        block = model.blocks[0]
        assert isinstance(block, Block)
        y = block.depthwise(p)  # (B, C, h, w)
        rng = torch.Generator().manual_seed(0)
        m = (torch.rand(p.shape[0], 1, *p.shape[2:], generator=rng) < share).to(p)  # (B, 1, h, w)

        def blocks() -> None:
            z = p
            for each in model.blocks:
                z = each(z)

        parts: dict[str, Callable[[], object]] = {
            "early": lambda: model.early(model.stem(x)),
            "mask": lambda: model.gate(p),
            "depthwise": lambda: block.depthwise(p),
            "mlp": lambda: p + block.mlp(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
            "all blocks": blocks,
            "skipping": lambda: update_kept(p, block.mlp, m, inputs=y),
            "gather": lambda: update_kept(p, nn.Identity(), m, inputs=y),
        }
        seconds = side_by_side(parts, rounds)
    return {name: 1e6 * statistics.median(values) / len(x) for name, values in seconds.items()}


def record(seed: int, *, scale: str = "laptop", settings: ClockSettings | None = None) -> dict:
    """Time the trained networks of a seed on CIFAR-10, and write what was found.

    Returns:
        The record.

    Raises:
        RecordNotFound: a network has not been trained.
        FileNotFoundError: its weights are on another machine.
    """
    settings = settings or ClockSettings()
    facts = measurements.facts(__file__)
    begun = time.perf_counter()
    networks, kept = {}, {}
    for method in METHODS:
        found = experiments.train_or_load(method, seed=seed, scale=scale, dataset="cifar10")
        networks[method] = found.model
        if energy_masks(found.model):
            kept[method] = found.record["metrics"]["mask"]["kept_fraction"]
    masked = networks[TAKEN_APART]
    assert isinstance(masked, TokenNet)
    networks[MULTIPLIED] = multiplied = copy.deepcopy(masked)
    for block in multiplied.blocks:
        assert isinstance(block, Block)
        block.skips = False
    test = lab_data.load("cifar10", "test", limit=settings.images)
    x = test.normalise(test.images).contiguous(memory_format=torch.channels_last)
    metrics = measure(networks, x, settings)
    torch.set_num_threads(1)
    metrics["parts"] = {
        f"batch {batch}": parts_of_a_pass(masked, x[:batch]) for batch in settings.batches
    }
    name, seconds = f"{scale}/cifar10/tokens-clock/seed{seed}", time.perf_counter() - begun
    metrics |= {"kept": kept}
    return measurements.keep(name, facts, settings=settings, metrics=metrics, seconds=seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    for seed in parser.parse_args().seed:
        found = record(seed)["metrics"]
        for place, networks in found.items():
            print(place, {n: v for n, v in networks.items()})


if __name__ == "__main__":
    main()
