"""What the data pipeline and the Energy-Mask Layer add to a training step, measured side by side.

Every round times one step of each variant, in turn, so that whatever else the machine does falls on
all of them; the table gives medians over rounds and their ratio.

    python benchmarks/training_step.py [--rounds 15] [--batch 512] [--threads 2] [--precision 32-true]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from ersm_attach import attach_energy_mask
from ersm_core import energy_loss
from ersm_lab.common.timing import side_by_side
from ersm_lab.images import data
from ersm_lab.images.data import Augment
from ersm_lab.networks import backbones
from ersm_lab.training import methods
from ersm_lab.training.loop import TrainSettings, make_optimiser, resolve_precision


def step_of(
    model: nn.Module, x: torch.Tensor, labels: torch.Tensor, masked: bool, precision: str
) -> Callable[[], None]:
    """One whole training step: forward, backward, optimiser."""
    settings = TrainSettings(epochs=1, learning_rate=1e-3, norm_lr_factor=1.0)
    model = model.to(x.device, memory_format=torch.channels_last).train()
    optimiser = make_optimiser(model, settings)
    low = precision == "bf16-mixed"

    def step() -> None:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=low):
            loss = F.cross_entropy(model(x).float(), labels)
            loss = loss + energy_loss(model) if masked else loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        if x.is_cuda:
            torch.cuda.synchronize()

    return step


def report(title: str, seconds: dict[str, list[float]], base: str, *, whole: bool) -> None:
    """A table of medians; `whole` compares whole steps with the base, else parts of the base's."""
    reference = statistics.median(seconds[base])
    print(f"\n{title}")
    print(f"{'':28}{'ms':>9}{'of the dense step':>20}")
    for name, values in seconds.items():
        ratios = [v / b for v, b in zip(values, seconds[base], strict=True)]
        ratio = statistics.median(ratios) - (1 if whole else 0)
        text = "" if name == base else f"{100 * ratio:+.1f} %" if whole else f"{100 * ratio:.1f} %"
        print(f"{name:28}{1e3 * statistics.median(values):9.1f}{text:>20}")
    print(f"({len(seconds[base])} rounds; dense step {1e3 * reference:.1f} ms)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--resnet-batch", type=int, default=64)
    precisions = ("auto", "bf16-mixed", "32-true")
    parser.add_argument(
        "--precision", choices=precisions, help="else single, and what training takes"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = [arguments.precision] if arguments.precision else ["32-true", "auto"]
    for precision in dict.fromkeys(resolve_precision(each, device) for each in chosen):
        measure(arguments, device, precision)


def measure(arguments: argparse.Namespace, device: str, precision: str) -> None:
    """Print the tables of one precision."""
    images = data.load(data.default_dataset(), "train", limit=5_000).to(device)
    batches = images.batches(batch_size=arguments.batch, augment=Augment(), seed=0)

    def stream():
        epoch = 0
        while True:
            yield from batches.epoch(epoch)
            epoch += 1

    loader = stream()
    x, labels = next(loader)
    print(
        f"\n{images.name}, {device}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{precision}"
    )

    def laptop(layer: str | None) -> nn.Module:
        torch.manual_seed(0)
        model = backbones.CifarNet(backbones.LAPTOP)
        model.whiten(images.normalise(images.images))
        return attach_energy_mask(model, layer, preset="stable") if layer else model

    variants = {"dense": step_of(laptop(None), x, labels, False, precision)}
    for layer in ("group1", "group2"):
        variants[f"mask after {layer}"] = step_of(laptop(layer), x, labels, True, precision)
    seconds = side_by_side(variants, arguments.rounds)
    report(f"Laptop preset, batch {arguments.batch}: whole steps", seconds, "dense", whole=True)
    on = 1 - methods.TRAIN["laptop"].mask_start
    print(f"Over the whole laptop schedule, with masks on in {100 * on:.0f} % of its steps:")
    for name, values in seconds.items():
        if name != "dense":
            ratios = [v / b - 1 for v, b in zip(values, seconds["dense"], strict=True)]
            print(f"{name:28}{'':9}{100 * on * statistics.median(ratios):+18.1f} %")

    parts = {"dense": variants["dense"], "data pipeline": lambda: next(loader)}
    seconds = side_by_side(parts, arguments.rounds)
    report(f"Laptop preset, batch {arguments.batch}: the pipeline", seconds, "dense", whole=False)

    x, labels = x[: arguments.resnet_batch], labels[: arguments.resnet_batch]

    def resnet(layer: str | None) -> nn.Module:
        torch.manual_seed(0)
        model = backbones.resnet18()
        return attach_energy_mask(model, layer, preset="stable") if layer else model

    variants = {
        "dense": step_of(resnet(None), x, labels, False, precision),
        "mask after layer2": step_of(resnet("layer2"), x, labels, True, precision),
    }
    seconds = side_by_side(variants, max(5, arguments.rounds // 2))
    report(f"ResNet-18, batch {arguments.resnet_batch}: whole steps", seconds, "dense", whole=True)


if __name__ == "__main__":
    main()
