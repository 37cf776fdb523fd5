"""What normalises a map after the mask, as runs of their own: where can a soft mask live?

A convolution and an activation without bias, applied to s x, give s times what they give for x. A
normalisation that follows divides by statistics of its own input, and s is gone. Which s it takes away
depends on where the statistics come from:

    batch   batch normalisation: a channel's, over the images and positions of a batch (`backbones`).
            Any factor that all tokens of the batch share is undone.
    image   layer normalisation over all channels and positions of one image (Ba et al., 2016,
            arXiv:1607.06450). Any factor that all tokens of an image share is undone.
    token   layer normalisation over the channels of one position (Liu et al., 2022, arXiv:2201.03545).
            Undoes the factor of each position, but for what the convolution before it mixes.
    frozen  batch normalisation whose statistics stop moving when the mask is switched on: from then on
            one affine map for all, which undoes nothing.

The kind replaces the normalisation of all groups that the mask comes before; the groups up to it keep
theirs, in the dense network too. Scales are fixed at 1 and biases learned, as everywhere in `CifarNet`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d

from ersm_lab import runs
from ersm_lab.backbones import CifarNet, CifarNetSettings
from ersm_lab.data import SHAPES_SIZE
from ersm_lab.runs import Experiment, MaskPlace, Parts
from ersm_lab.training import TrainSettings

KINDS = ("image", "token", "frozen")
TRAINING_IMAGES = SHAPES_SIZE["train"]  # of every data set of `data.load`


@dataclass(frozen=True, kw_only=True)
class NormConfig:
    """All that decides a run besides data set and seed.

    Attributes:
        backbone: settings of a `CifarNet`.
        train: how it is trained; "frozen" statistics stop at its `mask_start`, also without a mask.
        norm: of `KINDS`.
        after: the group after which it replaces batch normalisation; a mask sits there.
        mask: None for a dense network.
        train_images, test_images: use so many only; None is all.
    """

    backbone: CifarNetSettings
    train: TrainSettings
    norm: str
    after: str = "group1"
    mask: MaskPlace | None = None
    train_images: int | None = None
    test_images: int | None = None

    def __post_init__(self) -> None:
        if self.norm not in KINDS:
            raise ValueError(f"norm must be one of {', '.join(KINDS)}, got {self.norm!r}")
        later = _groups_after(self.after, len(self.backbone.widths))
        if not later:
            raise ValueError(
                f"no group comes after {self.after!r}: choose one of group1 to "
                f"group{len(self.backbone.widths) - 1}"
            )
        if self.mask and self.mask.layers != (self.after,):
            raise ValueError(
                f"the mask sits after {', '.join(self.mask.layers)} and normalisation is replaced after "
                f"{self.after}: give both the same group"
            )

    @property
    def frozen_after(self) -> int:
        """Steps after which statistics are frozen; a last, smaller batch is left out of every epoch."""
        images = min(self.train_images or TRAINING_IMAGES, TRAINING_IMAGES)
        steps = self.train.epochs * (images // self.train.batch_size)
        return next(s for s in range(steps + 1) if s / steps >= self.train.mask_start)


class FreezingBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that moves and uses a batch's statistics for so many steps only.

    Args:
        channels: C.
        steps: training passes after which the running statistics are used and stay as they are.
        settings: of `nn.BatchNorm2d`.

    Shape:
        x (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int, *, steps: int, **settings) -> None:
        super().__init__(channels, **settings)
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.num_batches_tracked < self.steps:
            return super().forward(x)
        mean, variance = self.running_mean, self.running_var  # (C,), (C,)
        return F.batch_norm(x, mean, variance, self.weight, self.bias, eps=self.eps)


def replace_norms(model: CifarNet, kind: str, *, after: str, steps: int = 0) -> CifarNet:
    """Replace batch normalisation in all groups after one, in place; returns the model.

    Args:
        model: whose weights and biases stay as they are.
        kind: of `KINDS`.
        after: name of a group.
        steps: after which "frozen" is frozen.
    """
    for group in _groups_after(after, len(model.settings.widths)):
        stage = model.get_submodule(group)
        for name, old in [*stage.named_children()]:
            if isinstance(old, nn.BatchNorm2d):
                new = _norm(kind, old, steps)
                new.weight.requires_grad = old.weight.requires_grad
                new.bias.data.copy_(old.bias.data)
                setattr(stage, name, new)
    return model


def _norm(kind: str, old: nn.BatchNorm2d, steps: int) -> nn.Module:
    if kind == "image":
        return nn.GroupNorm(1, old.num_features, eps=old.eps)
    if kind == "token":
        return LayerNorm2d(old.num_features, eps=old.eps)
    return FreezingBatchNorm2d(old.num_features, steps=steps, eps=old.eps, momentum=old.momentum)


def _groups_after(group: str, count: int) -> list[str]:
    names = [f"group{number}" for number in range(1, count + 1)]
    return names[names.index(group) + 1 :] if group in names else []


# --- runs ------------------------------------------------------------------------------------------


def run(experiment: Experiment, *, root: Path | None = None, progress: bool = True) -> dict:
    """As `runs.run`, for an experiment whose config is a `NormConfig`."""
    parts = Parts(build=build, sources=sources)
    return runs.run(experiment, parts=parts, root=root, progress=progress)


def build(experiment: Experiment, *, classes: int) -> nn.Module:
    """The untrained network; its start is that of the network with batch normalisation."""
    config = experiment.config
    model = runs.build(experiment, classes=classes)
    return replace_norms(model, config.norm, after=config.after, steps=config.frozen_after)


def sources(experiment: Experiment) -> list[Path]:
    """The files whose code decides the outcome: their hash is in the record."""
    return sorted([*runs.sources(experiment), Path(__file__)])


def restore(experiment: Experiment, record: dict, *, root: Path | None = None) -> nn.Module:
    """The trained network of a record, in evaluation mode on the CPU; raises as `runs.restore`."""
    state = runs.load_state(record, root=root)
    model = build(experiment, classes=len(state["head.weight"]))
    model.load_state_dict(state)
    return model.to(memory_format=torch.channels_last).eval()
