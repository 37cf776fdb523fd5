"""What the grid took, and what larger runs would take: measured here, projected elsewhere.

A projection counts multiply-adds. A training step costs about three forward passes, a multiply-add is
two operations, and a device does a stated share of the operations that its maker promises:

    seconds = 3 * 2 * multiply-adds an image * images * epochs / (operations a second * share)

Evaluation, loading and waiting in a queue are not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torchvision.models import resnet50

from ersm_lab import cost
from ersm_lab.networks.backbones import CifarNet, CifarNetSettings
from ersm_lab.results import records
from ersm_lab.training.config import PublishedConfig
from ersm_lab.training.methods import BACKBONE, experiments_of
from ersm_lab.views.tables import Table

TRAINING_IMAGES = 45_000  # of CIFAR-10, without the validation images


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Assumptions about a device.

    Attributes:
        name: in words.
        operations: a second, in bfloat16 or float16, as its maker states it, without sparsity.
        share: of these that training reaches, 0 to 1.
        price: dollars an hour, of the order of what clouds ask.
    """

    name: str
    operations: float
    share: float
    price: float

    @property
    def rate(self) -> float:
        """Operations a second that training reaches."""
        return self.operations * self.share


# Peaks from the makers' data sheets; small networks on small images reach a small share of them.
T4 = Hardware(name="T4, as in Colab", operations=65e12, share=0.15, price=0.40)
A100 = Hardware(name="A100", operations=312e12, share=0.20, price=2.0)
H100 = Hardware(name="H100", operations=989e12, share=0.15, price=3.0)


@dataclass(frozen=True, kw_only=True)
class Work:
    """A run to be projected.

    Attributes:
        name: in words.
        multiply_adds: of one image, forward.
        images: of the training set.
        epochs: passes over it.
        runs: how many such runs.
    """

    name: str
    multiply_adds: float
    images: int
    epochs: int
    runs: int = 1

    @property
    def operations(self) -> float:
        return 6 * self.multiply_adds * self.images * self.epochs * self.runs


def multiply_adds(make: Callable[[], nn.Module], size: int) -> float:
    """Multiply-adds of one image of size x size pixels, forward; nothing is computed."""
    with torch.device("meta"), torch.no_grad():
        model = make().eval()
        x = torch.empty(1, 3, size, size)  # (B, C, H, W)
        return float(cost.multiply_adds(lambda: model(x)))


def works() -> list[Work]:
    """What is projected: the full grid of the book, and ERSM on ImageNet."""
    rows = [
        e
        for e in experiments_of("full", dataset="cifar10")
        if not isinstance(e.config, PublishedConfig) and e.config.backbone != "resnet18"
    ]
    count: dict[Any, float] = {}
    for settings in {b for e in rows if isinstance(b := e.config.backbone, CifarNetSettings)}:
        count[settings] = multiply_adds(partial(CifarNet, settings), 32)
    largest = max(count, key=count.__getitem__)
    epochs = rows[0].config.train.epochs
    full = sum(count[e.config.backbone] for e in rows) / len(rows)
    of_imagenet: dict[str, Any] = dict(multiply_adds=multiply_adds(resnet50, 224), images=1_281_167)
    return [
        Work(
            name="one network of the full scale",
            multiply_adds=count[largest],
            images=TRAINING_IMAGES,
            epochs=epochs,
        ),
        Work(
            name=f"the {len(rows)} networks of the full scale",
            multiply_adds=full,
            images=TRAINING_IMAGES,
            epochs=epochs,
            runs=len(rows),
        ),
        Work(name="ResNet-50 on ImageNet, fine-tuned for 10 epochs", epochs=10, **of_imagenet),
        Work(name="ResNet-50 on ImageNet, 90 epochs", epochs=90, **of_imagenet),
    ]


def measured_rate(found: Sequence[dict], settings: CifarNetSettings) -> float | None:
    """Operations a second that training reached, by the same count, from records of dense networks."""
    per_image = 6 * multiply_adds(lambda: CifarNet(settings), 32)
    rates = [
        per_image * TRAINING_IMAGES * r["config"]["train"]["epochs"] / r["seconds"]["train"]
        for r in found
        if r["seconds"]["train"] > 0
    ]
    return sum(rates) / len(rates) if rates else None


def measured(scale: str) -> Table:
    """What the records of a scale took, by kind and machine."""
    kinds: dict[tuple[str, str], list[dict]] = {}
    for record in records.read_all(scale=scale):
        if "judged" in record["config"]:
            kind = "networks asked what they do"
        elif record["method"].startswith("published"):
            kind = "heads and masks on frozen maps"
        elif record["seconds"]["train"]:
            kind = "networks trained and evaluated"
        else:
            kind = "other measurements"
        device = record["device"]
        kinds.setdefault((kind, device["name"]), []).append(record)
    rows = [
        [
            kind,
            records.without_markup(device),
            str(len(group)),
            f"{sum(sum(r['seconds'].values()) for r in group) / 3600:.1f}",
            f"{sum(sum(r['seconds'].values()) for r in group) / len(group) / 60:.1f}",
        ]
        for (kind, device), group in sorted(kinds.items())
    ]
    header = ["what", "machine", "records", "hours", "minutes each"]
    caption = (
        f"Measured at {scale} scale. Most ran on one thread, two at a time; some shared "
        "their core with other work, so hours are upper bounds."
    )
    return Table(header=header, rows=rows, caption=caption)


def projected(hardware: Sequence[Hardware] = (T4, A100, H100)) -> Table:
    """Hours and dollars on devices we did not have."""
    rows = [
        [
            work.name,
            f"{work.multiply_adds / 1e6:,.0f}",
            *(
                f"{_hours(work.operations / device.rate)}, "
                f"{_dollars(work.operations / device.rate * device.price / 3600)}"
                for device in hardware
            ),
        ]
        for work in works()
    ]
    header = ["what", "M multiply-adds an image", *(device.name for device in hardware)]
    return Table(header=header, rows=rows, caption="Projected, not measured.")


def _hours(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds < 3_600 else f"{seconds / 3_600:.1f} h"


def _dollars(amount: float) -> str:
    return rf"\${amount:.2f}" if amount < 10 else rf"\${amount:.0f}"


def markdown(table: Table) -> str:
    """A table as Markdown, its caption above."""
    lines = [table.header, ["---"] * len(table.header), *table.rows]
    text = "\n".join(
        "| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in lines
    )
    return f"{table.caption}\n\n{text}" if table.caption else text


def page() -> str:
    """The page on scale: `TEXT` with its tables."""
    assumed = "; ".join(
        f"{d.name}: {d.operations / 1e12:.0f} · 10¹² operations a second, of which "
        f"{100 * d.share:.0f} %, at \\${d.price:.2f} an hour"
        for d in (T4, A100, H100)
    )
    rate = measured_rate(
        records.read_all(scale="laptop", dataset="cifar10", method="dense"),
        BACKBONE["laptop"],
    )
    ours = f"{rate / 1e9:,.0f} · 10⁹ operations a second" if rate else "not yet measured"
    return TEXT.format(
        measured=markdown(measured("laptop")),
        projected=markdown(projected()),
        assumed=assumed,
        ours=ours,
    )


TEXT = """\
# From a laptop to a cluster

This page is generated when the book is built: what is *measured* comes from the records, what is
*projected* from counted operations and stated assumptions.

## What the laptop scale took

{measured}

## One machine

```sh
make reproduce SCALE=laptop            # all that has no valid record, one job a core
make reproduce SCALE=laptop METHODS=dense,ersm
```

The engine is [Snakemake](https://snakemake.readthedocs.io); `workflow/Snakefile` lists the jobs and
`ersm_lab/plan.py` says what is missing. It may be stopped at any time and started again: a record is
written when its run ends, and a run that was cut short goes on from its last epoch. After a hard kill,
`make reproduce` goes on by itself; a Snakemake started by hand asks for `--unlock` once.

## One GPU

```sh
make reproduce SCALE=full
```

A GPU is found by itself, training is then in bfloat16, and the data set lives in its memory. The full
scale wants one; its settings are a first guess that nobody has run yet, and its numbers will be records
like all others. In Colab each notebook runs alone from its first cell, with Colab's own torch.

## Eight GPUs

The rows of the grid are independent, so eight GPUs are best used as eight machines: one job each.
Under Slurm (below) that is what happens. By hand, give each process its GPU and its rows:

```sh
CUDA_VISIBLE_DEVICES=0 python -m ersm_lab run --scale full --method dense &
CUDA_VISIBLE_DEVICES=1 python -m ersm_lab run --scale full --method ersm &
```

One network over several devices works, too: `ersm_core` is safe under `DistributedDataParallel`, and the
training loop under `torchrun`. A test starts two CPU processes with `torchrun --nproc-per-node 2` and
compares them with one process; no run on several GPUs has been made.

## A cluster

```sh
pip install snakemake-executor-plugin-slurm
snakemake --config scale=full --profile workflow/profiles/slurm
```

`workflow/profiles/slurm` and `workflow/profiles/kubernetes` are starting points: fill in partition and
account, or image and volume. Every job states its memory, minutes and GPU. The repository's folder must
be the same for all nodes, because records and checkpoints are files in it. A Slurm without accounting
wants `--slurm-status-command squeue` as well.

The Slurm profile has trained three smoke networks on a Slurm of one node with two cores and no
accounting (Slurm 22.05, executor plugin 2.8); GPUs were not asked for there. The Kubernetes profile has
been checked against Snakemake's options, not on a cluster.

## ImageNet

```python
model = torchvision.models.resnet50(weights="DEFAULT")
model = attach_energy_mask(model, "layer2", preset="stable")
```

is all that the network needs, and `torchvision.datasets.ImageFolder` reads the images. The training loop
of the book keeps a data set in memory and is not made for it, so take your own or torchvision's
reference script, and add `energy_loss(model)` to its loss. Keep what chapter 4 found to matter: train
dense first, switch the mask on late, a hard gate without noise, and a pairwise energy that the features
cannot escape (detached).

## Hours and cost

{projected}

Assumed: {assumed}. Prices and shares differ between clouds and by the year; a share off by a factor of
two is likely. By the same count, the machine of our records reached {ours} in training the dense
network of the laptop scale.
"""
