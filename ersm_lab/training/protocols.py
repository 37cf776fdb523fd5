"""The two settings in which the method lives, each a function that returns a model ready to train.

`in_network`: the mask inside a network trained end to end. `published`: the authors' setting, a
frozen backbone whose last map is masked, averaged and classified by one linear layer; its features
are computed once (`cache_features`), so that a run takes seconds to minutes on a CPU.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from ersm_attach import attach_energy_mask
from ersm_core import EnergyMask
from ersm_lab.common import checks
from ersm_lab.evaluation.inference import evaluating
from ersm_lab.images.data import Augment, ImageSet
from ersm_lab.networks.backbones import MOST_CLASSES
from ersm_lab.training.loop import TrainSettings

MOST_SIDE = 2_048  # pixels along a side of an image

# As in the authors' released code, as far as it is known: its weight decay is not, 1e-2 is torch's
# default for AdamW. `train` takes the mask's rate as a factor on the learning rate.
PUBLISHED_TRAINING = TrainSettings(
    epochs=20,
    batch_size=128,
    optimiser="adamw",
    learning_rate=1e-3,
    weight_decay=1e-2,
    schedule="cosine",
    label_smoothing=0.0,
    mask_lr_factor=1.0,
    mask_weight_decay=1e-2,
    mask_start=0.0,
    mask_ramp=0.0,
    precision="32-true",
)


def in_network(model: nn.Module, layer: str, **mask_settings) -> nn.Module:
    """A network with a mask after one of its stages, to be trained end to end from its start.

    The preset is `stable`; settings take precedence over it. A baseline is the same network without.

    Args:
        model: any CNN, such as `CifarNet(...)` after `whiten`, or `resnet18()`.
        layer: the stage the mask follows, such as "group1" or "layer2".
        mask_settings: of `ersm_core.EnergyMask`.

    Raises:
        ValueError: as `ersm_attach.attach_energy_mask`.
    """
    checks.network("model", model)
    checks.text("layer", layer)
    return attach_energy_mask(model, layer, **{"preset": "stable", **mask_settings})


class PublishedProtocol(nn.Module):
    """A frozen feature extractor and a `reader`: mask, average pooling, linear head.

    Shape:
        x (B, 3, H, W), normalised as the backbone wants it -> logits (B, classes).
    """

    def __init__(self, features: nn.Module, mask: nn.Module, channels: int, classes: int) -> None:
        checks.network("features", features)
        checks.network("mask", mask)
        checks.whole("channels", channels)
        checks.whole("classes", classes, most=MOST_CLASSES)
        super().__init__()
        self.features = features.eval().requires_grad_(False)
        self.reader = nn.Sequential()
        self.reader.add_module("mask", mask)
        self.reader.add_module("pool", nn.AdaptiveAvgPool2d(1))
        self.reader.add_module("flatten", nn.Flatten())
        self.reader.add_module("head", nn.Linear(channels, classes))

    def train(self, mode: bool = True) -> PublishedProtocol:
        super().train(mode)
        self.features.eval()  # its statistics are frozen as well
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.reader(self.maps(x))

    def maps(self, x: Tensor) -> Tensor:
        """The frozen feature map, (B, 3, H, W) -> (B, C, h, w)."""
        with torch.no_grad():
            return self.features(x)


def published(
    backbone: nn.Module,
    layer: str,
    *,
    classes: int,
    image_size: int = 32,
    masked: bool = True,
    learned_positions: bool = False,
    seed: int = 0,
    **mask_settings,
) -> PublishedProtocol:
    """The authors' setting on any backbone that torch.fx can trace (ours, torchvision's).

    Args:
        backbone: a trained network; pretrained weights are the caller's choice. It is not changed.
        layer: whose output is masked, such as "group3" of a `CifarNet` or "layer4" of a ResNet.
        classes: of the linear head.
        image_size: side of the images in pixels.
        masked: False gives the baseline without a mask.
        learned_positions: give every position a bias of its own that trains (as written); False
            trains one bias, or none with `fixed_bias=True` (as released).
        seed: of the head's and the mask's start.
        mask_settings: of `EnergyMask.published`, such as patch_size or fixed_bias.

    Raises:
        ValueError: the layer is unknown or does not return one feature map.
    """
    checks.network("backbone", backbone)
    checks.text("layer", layer)
    checks.whole("classes", classes, most=MOST_CLASSES)
    checks.whole("image_size", image_size, most=MOST_SIDE)
    checks.flag("masked", masked)
    checks.flag("learned_positions", learned_positions)
    checks.seed("seed", seed)
    features, shape = _feature_map(backbone, layer, image_size)
    channels, height, width = shape
    torch.manual_seed(seed)
    if learned_positions:
        size = mask_settings.get("patch_size", 1)
        mask_settings["grid"] = (height // size, width // size)
    mask = EnergyMask.published(channels, **mask_settings) if masked else nn.Identity()
    return PublishedProtocol(features, mask, channels, classes)


def _feature_map(
    backbone: nn.Module, layer: str, size: int
) -> tuple[nn.Module, tuple[int, int, int]]:
    names = get_graph_node_names(backbone)[1]
    if not any(name == layer or name.startswith(layer + ".") for name in names):
        stages = dict.fromkeys(name.split(".")[0] for name in names)
        raise ValueError(f"no layer {layer!r} in this backbone; its stages: {', '.join(stages)}")
    with warnings.catch_warnings():  # train and eval graphs of a frozen backbone are the same
        warnings.simplefilter("ignore")
        features = create_feature_extractor(backbone, {layer: "map"})
    features = _Single(features)
    with evaluating(features):
        like = next(backbone.parameters())
        shape = features(like.new_zeros(1, 3, size, size)).shape  # (1, C, h, w)
    if len(shape) != 4:
        raise ValueError(f"layer {layer!r} returns {tuple(shape)}, not a feature map (B, C, H, W)")
    return features, tuple(shape[1:])


def unpooled(backbone: nn.Module, layer: str = "group3") -> nn.Module:
    """A copy of a trained network in which one stage leaves out its max-pooling, for a finer last map.

    The stage's later convolutions then see a map of twice the side, which they were not trained on.

    Args:
        backbone: a network such as `CifarNet`; it is not changed.
        layer: an `nn.Sequential` of it that holds an `nn.MaxPool2d`.

    Raises:
        ValueError: there is no such stage, or no pooling in it.
    """
    checks.network("backbone", backbone)
    checks.text("layer", layer)
    if layer not in dict(backbone.named_modules()):
        stages = ", ".join(name for name, _ in backbone.named_children())
        raise ValueError(f"no layer {layer!r} in this backbone; its stages: {stages}")
    changed = copy.deepcopy(backbone)
    stage = changed.get_submodule(layer)
    pools = [name for name, module in stage.named_children() if isinstance(module, nn.MaxPool2d)]
    if not pools:
        raise ValueError(f"stage {layer!r} has no max-pooling to leave out: name one that has")
    for name in pools:
        setattr(stage, name, nn.Identity())
    return changed


class _Single(nn.Module):
    """The one map of a feature extractor's dictionary."""

    def __init__(self, extractor: nn.Module) -> None:
        super().__init__()
        self.extractor = extractor

    def forward(self, x: Tensor) -> Tensor:
        return self.extractor(x)["map"]


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """Frozen feature maps in memory; trains and evaluates like an `ImageSet`.

    Attributes:
        maps: float16 (N, C, h, w), channels_last.
        labels: int64 (N,).
        classes: class names.
    """

    maps: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        checks.a("maps", self.maps, Tensor)
        checks.a("labels", self.labels, Tensor)
        checks.several("classes", self.classes)
        maps, labels = tuple(self.maps.shape), tuple(self.labels.shape)
        if len(maps) != 4 or labels != maps[:1] or not self.maps.is_floating_point():
            raise ValueError(
                "maps must be floats (N, C, h, w) and labels (N,), one for each, got "
                f"{checks.shown(self.maps)} and {checks.shown(self.labels)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: slice | Tensor) -> FeatureSet:
        return replace(self, maps=self.maps[index], labels=self.labels[index])

    def to(self, device: str | torch.device) -> FeatureSet:
        return replace(self, maps=self.maps.to(device), labels=self.labels.to(device))

    def inputs(self, size: int = 1_000) -> Iterator[tuple[Tensor, Tensor]]:
        """All maps in order: (B, C, h, w) float32 and labels (B,)."""
        checks.whole("size", size)
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield self.maps[part].float(), self.labels[part]

    def batches(self, **settings) -> FeatureBatches:
        """Shuffled batches; settings as in `ersm_lab.images.data.Batches`."""
        return FeatureBatches(self, **settings)


class FeatureBatches:
    """Shuffled batches of a `FeatureSet`, the same for the same seed and epoch.

    Maps are not augmented: `augment` is there because `train` names it, and is not used.
    """

    def __init__(
        self,
        data: FeatureSet,
        *,
        batch_size: int,
        augment: Augment,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        checks.a("data", data, FeatureSet)
        checks.whole("batch_size", batch_size)
        checks.seed("seed", seed)
        checks.whole("world_size", world_size)
        checks.whole("rank", rank, least=0, most=world_size - 1)
        if len(data) < batch_size:
            raise ValueError(
                f"batch_size: {len(data)} maps are fewer than one batch of {batch_size}"
            )
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self.share = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)

    def __len__(self) -> int:
        return len(self.data) // self.batch_size

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield maps (B, C, h, w) float32 and labels (B,) of one epoch."""
        lots = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.data), generator=lots).to(self.data.labels.device)  # (N,)
        for step in range(len(self)):
            index = order[step * self.batch_size :][: self.batch_size][self.share]  # (B,)
            yield self.data.maps[index].float(), self.data.labels[index]


def cache_features(model: PublishedProtocol, data: ImageSet) -> FeatureSet:
    """Every image's frozen feature map, for training and evaluating `model.reader` alone."""
    checks.a("model", model, PublishedProtocol)
    checks.labelled("data", data)
    with evaluating(model):
        maps = torch.cat([to_cache(model.maps(x)) for x, _ in data.inputs()])  # (N, C, h, w)
    return FeatureSet(maps=maps, labels=data.labels, classes=data.classes)


def to_cache(maps: Tensor) -> Tensor:
    """Maps (B, C, h, w) as a `FeatureSet` holds them: float16, a token's channels side by side."""
    checks.tensor("maps", maps, "(B, C, h, w)", "floats", finite=False)
    return maps.half().contiguous(memory_format=torch.channels_last)
