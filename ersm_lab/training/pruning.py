"""Gradual magnitude pruning of a dense network's weights: a control that spends less in another way.

Zhu & Gupta (2017, arXiv:1710.01878), eq. 1, with no weight pruned at first: at a share p of the steps

    s(p) = s_f (1 - (1 - (p - p_0) / r)^3)    for p_0 <= p <= p_0 + r,    0 before, s_f after

of the weights are zero. At every step of the ramp those of smallest magnitude, over all layers at once,
are added to the zeros until there are so many; what is zero stays zero. Then the rest trains on.
Weights are those of convolutions and of the head; the fixed whitening filters of the stem,
normalisation and biases are left alone. Masks are held by `torch.nn.utils.prune`; `restore` gives a
plain `CifarNet` that has the zeros in its weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from ersm_lab.common import checks
from ersm_lab.images.data import SHAPES_SIZE
from ersm_lab.networks.backbones import CifarNet, CifarNetSettings
from ersm_lab.training import runs
from ersm_lab.training.loop import TrainSettings
from ersm_lab.training.runs import Experiment, Parts

TRAINING_IMAGES = SHAPES_SIZE["train"]  # of every data set of `data.load`


@dataclass(frozen=True, kw_only=True)
class PruningConfig:
    """All that decides a pruned network's run besides data set and seed.

    Attributes:
        backbone: settings of a `CifarNet`.
        train: how it is trained; without a moving average of the weights.
        sparsity: s_f, share of the weights that are zero in the end, 0 <= s_f < 1.
        start: p_0, share of the steps before which nothing is pruned.
        ramp: r, share of the steps over which sparsity then rises; start + ramp < 1.
        train_images, test_images: use so many only; None is all.
    """

    backbone: CifarNetSettings
    train: TrainSettings
    sparsity: float = 0.5
    start: float = 0.6
    ramp: float = 0.1
    train_images: int | None = None
    test_images: int | None = None

    def __post_init__(self) -> None:
        checks.a("backbone", self.backbone, CifarNetSettings)
        checks.a("train", self.train, TrainSettings)
        for name in ("train_images", "test_images"):
            if getattr(self, name) is not None:
                checks.whole(name, getattr(self, name))
        checks.number("sparsity", self.sparsity)
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity is a share of the weights below 1, got {self.sparsity}")
        for name in ("start", "ramp"):
            checks.number(name, getattr(self, name), least=0)
        if not self.start + self.ramp < 1:
            raise ValueError(
                "start and ramp are shares of the steps that leave some to train on: choose them "
                f"with start + ramp < 1, got {self.start} and {self.ramp}"
            )
        if self.train.ema_decay:
            raise ValueError("a moving average of pruned weights is not made: set ema_decay=0")

    @property
    def steps(self) -> int:
        """Steps of the whole training; a last, smaller batch is left out of every epoch."""
        images = min(self.train_images or TRAINING_IMAGES, TRAINING_IMAGES)
        return self.train.epochs * (images // self.train.batch_size)


def sparsity_at(progress: float, config: PruningConfig) -> float:
    """Share of the weights that are zero at a progress of 0 to 1 (eq. 1)."""
    checks.number("progress", progress, least=0)
    checks.a("config", config, PruningConfig)
    return _sparsity_at(progress, config)


def _sparsity_at(progress: float, config: PruningConfig) -> float:
    if progress < config.start:
        return 0.0
    if progress >= config.start + config.ramp:
        return config.sparsity
    left = 1 - (progress - config.start) / config.ramp  # 1 to 0
    return config.sparsity * (1 - left**3)


def prunable(model: CifarNet) -> dict[str, nn.Module]:
    """{name: layer} of all whose weights are pruned."""
    checks.network("model", model)
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and name != "stem.0"
    }


class GradualPruning:
    """Forward pre-hook that counts the steps of a network and prunes it on the way.

    Step and masks are buffers of the network, so that a training that was killed goes on with them.

    Args:
        config: how; its `steps` are those of the whole training.
    """

    def __init__(self, config: PruningConfig) -> None:
        checks.a("config", config, PruningConfig)
        self.config = config

    def __call__(self, model: nn.Module, args: tuple) -> None:
        if model.training:
            progress = int(model.pruning_step) / self.config.steps
            _prune_to(model, _sparsity_at(progress, self.config))
            model.pruning_step += 1


def prune_to(model: CifarNet, sparsity: float) -> None:
    """Add the smallest weights to the zeros until this share is zero, in place; zeros stay zero.

    Args:
        model: of `attach`.
        sparsity: share of the weights of all `prunable` layers together, to the nearest weight.

    Raises:
        ValueError: a network without masks, or a share outside of 0 to 1.
    """
    checks.number("sparsity", sparsity, least=0, most=1)
    if not all(hasattr(layer, "weight_mask") for layer in prunable(model).values()):
        raise ValueError("the layers of model have no masks to prune with: `attach` them first")
    _prune_to(model, sparsity)


@torch.no_grad()
def _prune_to(model: CifarNet, sparsity: float) -> None:
    layers = prunable(model).values()
    masks = [layer.weight_mask for layer in layers]
    kept = torch.cat([mask.flatten() for mask in masks])  # (N,)
    count = round(sparsity * len(kept))
    if count <= len(kept) - int(kept.sum()):
        return
    sizes = torch.cat([layer.weight_orig.abs().flatten() for layer in layers])  # (N,)
    sizes[kept == 0] = -1  # these come first
    kept[sizes.argsort(stable=True)[:count]] = 0
    for mask, part in zip(masks, kept.split([mask.numel() for mask in masks]), strict=True):
        mask.copy_(part.view(mask.shape))


def attach(model: CifarNet, config: PruningConfig) -> CifarNet:
    """Give a network masks of ones and let its training prune it, in place; returns the model."""
    checks.a("config", config, PruningConfig)
    for layer in prunable(model).values():
        prune.identity(layer, "weight")  # weight = weight_orig * weight_mask, in every pass
    model.register_buffer("pruning_step", torch.zeros((), dtype=torch.int64))
    model.register_forward_pre_hook(GradualPruning(config))
    return model


def plain_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of a pruned network as that of a plain one with zeros in its weights."""
    checks.a("state", state, Mapping)
    plain = {}
    for name, value in state.items():
        if name.endswith("_orig"):
            bare = name.removesuffix("_orig")
            plain[bare] = value * state[f"{bare}_mask"]
        elif not name.endswith("_mask") and name != "pruning_step":
            plain[name] = value
    return plain


# --- runs ------------------------------------------------------------------------------------------


def run(experiment: Experiment, **settings) -> dict:
    """As `runs.run`, for an experiment whose config is a `PruningConfig`."""
    parts = Parts(build=build, home=__file__)
    return runs.run(experiment, parts=parts, **settings)


def build(experiment: Experiment, *, classes: int) -> nn.Module:
    """The untrained network; its start is drawn from the experiment's seed, as the dense one's."""
    torch.manual_seed(experiment.seed)
    return attach(CifarNet(experiment.config.backbone, classes=classes), experiment.config)


def restore(experiment: Experiment, record: dict, *, root: Path | None = None) -> CifarNet:
    """The trained network of a record as a plain `CifarNet`, in evaluation mode on the CPU; raises as
    `runs.restore`."""
    state = plain_state(runs.load_state(record, root=root))
    model = CifarNet(experiment.config.backbone, classes=len(state["head.weight"]))
    model.load_state_dict(state)
    return model.to(memory_format=torch.channels_last).eval()
