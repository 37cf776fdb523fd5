"""The baselines as runs: trained on smoothed images, or with sparse codes in place of convolutions.

Both are the ablation's network, schedule, augmentation and number of epochs; what differs is the
images it sees or the layers it has. Sources: Zhou et al., arXiv:2409.18419 (`inverse_scale`), and Dai
et al., arXiv:2210.12945 (`sparse_coding`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ersm_lab.images.data import Batches, ImageSet
from ersm_lab.images.path_steps import PathSettings
from ersm_lab.images.smoothed import at_level
from ersm_lab.networks import backbones
from ersm_lab.networks.backbones import CifarNetSettings
from ersm_lab.networks.fista import CSCSettings
from ersm_lab.networks.sdnet import attach_sparse_coding, sdnet18
from ersm_lab.training import runs
from ersm_lab.training.loop import TrainSettings
from ersm_lab.training.runs import Experiment, Parts


@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """What training images are smoothed to, and when.

    Attributes:
        stages: pairs (share of the epochs from which, level of sparsity), rising from 0; level 0 is
            the image as it is.
        path: settings of the inverse scale path.
        low_pass: instead of its sparsified image take each image's low frequencies that hold the same
            share of its energy.
    """

    stages: tuple[tuple[float, float], ...]
    path: PathSettings = field(default_factory=PathSettings)
    low_pass: bool = False

    def __post_init__(self) -> None:
        starts = [start for start, _ in self.stages]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)) or starts[-1] >= 1:
            raise ValueError(
                "stages are pairs (start, level) whose starts rise from 0 and stay below 1, got "
                f"{self.stages}"
            )

    def level(self, progress: float) -> float:
        """The level at a share of the epochs, 0 to 1."""
        return [level for start, level in self.stages if start <= progress + 1e-9][-1]


@dataclass(frozen=True, kw_only=True)
class Coding:
    """Where sparse codes stand.

    Attributes:
        layers: convolutions that they replace; None is all but the fixed one of the stem.
        settings: of the codes.
    """

    layers: tuple[str, ...] | None = ("group1.0",)
    settings: CSCSettings = field(default_factory=CSCSettings)


@dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """All that decides a baseline's run besides data set and seed.

    Attributes:
        backbone: settings of a `CifarNet`, or "resnet18", whose first layer alone can be a code.
        train: how it is trained.
        smoothing: None for images as they are.
        coding: None for convolutions throughout.
        train_images, test_images: use so many only; None is all.
    """

    backbone: CifarNetSettings | str
    train: TrainSettings
    smoothing: Smoothing | None = None
    coding: Coding | None = None
    train_images: int | None = None
    test_images: int | None = None


def run(experiment: Experiment, *, progress: bool = True, **settings) -> dict:
    """As `runs.run`, for an experiment whose config is a `BaselineConfig`; tested on plain images."""
    config = experiment.config

    def prepare(images: ImageSet) -> ImageSet | StagedImages:
        if config.smoothing is None:
            return images
        return smoothed(images, config.smoothing, epochs=config.train.epochs, progress=progress)

    parts = Parts(build=build, home=__file__, prepare=prepare)
    return runs.run(experiment, parts=parts, progress=progress, **settings)


def build(experiment: Experiment, *, classes: int) -> nn.Module:
    """The untrained network; its start is drawn from the experiment's seed, as the dense one's."""
    torch.manual_seed(experiment.seed)
    coding, backbone = experiment.config.coding, experiment.config.backbone
    if coding and backbone == "resnet18":
        return sdnet18(classes=classes, settings=coding.settings)
    model = backbones.make(backbone, classes=classes)
    if coding:
        convs = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and n != "stem.0"]
        for layer in convs if coding.layers is None else coding.layers:
            attach_sparse_coding(model, layer, coding.settings)
    return model


def restore(experiment: Experiment, record: dict, *, root: Path | None = None) -> nn.Module:
    """The trained network of a record, in evaluation mode on the CPU; raises as `runs.restore`."""
    state = runs.load_state(record, root=root)
    model = build(experiment, classes=backbones.classes_of(state))
    model.load_state_dict(state)
    return model.to(memory_format=torch.channels_last).eval()


# --- smoothed images -------------------------------------------------------------------------------


def smoothed(
    images: ImageSet, smoothing: Smoothing, *, epochs: int, progress: bool = True
) -> StagedImages:
    """The images of every epoch; sparsified ones are computed once and kept in `data/cache`."""
    levels = [smoothing.level(epoch / epochs) for epoch in range(epochs)]
    sets = {
        level: replace(
            images,
            images=at_level(
                images.images,
                level,
                path=smoothing.path,
                low_pass=smoothing.low_pass,
                progress=progress,
            ),
        )
        for level in dict.fromkeys(levels)
    }
    return StagedImages(sets=sets, levels=tuple(levels))


@dataclass(frozen=True, kw_only=True)
class StagedImages:
    """Training images that are others in later epochs.

    Attributes:
        sets: {level: the images at that level}.
        levels: the level of each epoch.
    """

    sets: dict[float, ImageSet]
    levels: tuple[float, ...]

    def to(self, device: str | torch.device) -> StagedImages:
        return replace(self, sets={level: part.to(device) for level, part in self.sets.items()})

    def batches(self, **settings) -> StagedBatches:
        """Training batches; settings as in `Batches`."""
        batches = {level: part.batches(**settings) for level, part in self.sets.items()}
        return StagedBatches(batches, self.levels)


class StagedBatches:
    """In every epoch the batches of its level: order and augmentation are those of `Batches`."""

    def __init__(self, batches: dict[float, Batches], levels: tuple[float, ...]) -> None:
        self.batches, self.levels = batches, levels

    def __len__(self) -> int:
        return len(self.batches[self.levels[0]])

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        return self.batches[self.levels[epoch]].epoch(epoch)
