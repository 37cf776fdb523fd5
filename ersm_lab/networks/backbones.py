"""Networks for 32 x 32 images, with named stages that a mask can follow.

`CifarNet` is small and fast; its design follows the speed-run networks of Jordan (2024,
arXiv:2404.00498): a frozen whitening convolution, then groups of 3 x 3 convolutions that start as
the identity, normalised without a learned scale. `resnet18` is torchvision's with a CIFAR stem.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torchvision
from torch import Tensor, nn

from ersm_lab.common import checks
from ersm_lab.networks import whitening
from ersm_lab.networks.token_net import TokenNet, TokenNetSettings

MOST_CLASSES = 100_000


@dataclass(frozen=True, kw_only=True)
class CifarNetSettings:
    """Shape of a `CifarNet`.

    Attributes:
        widths: channels of each group; a group halves the map, but for the first if the stem did.
        depth: 3 x 3 convolutions a group, at least 1.
        stem_kernel: side in pixels of the whitening patches.
        stem_stride: step in pixels of the stem; 2 makes the whole network four times cheaper.
        stem_channels: half of them filters, half the same filters negated.
        head: "max" or "mean" over the last map.
        logit_scale: factor on the logits.
        stem_learned: instead of the whitening a 3 x 3 convolution of the pixels that learns, normalised,
            ReLU, and pooling to half of the map; `stem_kernel` and `stem_stride` then mean nothing.
    """

    widths: tuple[int, ...] = (64, 128, 256)
    depth: int = 2
    stem_kernel: int = 4
    stem_stride: int = 2
    stem_channels: int = 48
    head: str = "max"
    logit_scale: float = 1 / 9
    stem_learned: bool = False

    def __post_init__(self) -> None:
        checks.several("widths", self.widths, most=10)
        for width in self.widths:
            checks.whole("widths", width, most=8_192)
        checks.whole("depth", self.depth, most=100)
        checks.whole("stem_kernel", self.stem_kernel, most=32)
        checks.whole("stem_stride", self.stem_stride, most=self.stem_kernel)
        checks.whole("stem_channels", self.stem_channels, least=2, most=8_192)
        if self.head not in ("max", "mean"):
            raise ValueError(f'head must be "max" or "mean", got {self.head!r}')
        checks.number("logit_scale", self.logit_scale)
        checks.flag("stem_learned", self.stem_learned)


SMOKE = CifarNetSettings(widths=(16, 32, 32), depth=1)
SLIM = CifarNetSettings(widths=(32, 64, 128))
LAPTOP = CifarNetSettings()
FULL = CifarNetSettings(widths=(64, 256, 256), stem_kernel=2, stem_stride=1, stem_channels=24)


class CifarNet(whitening.WhitenedNet):
    """A small convolutional network; stages `stem`, `group1`, `group2`, ..., `head`.

    Maps of the laptop preset on 32 x 32 images: stem and group1 16 x 16, group2 8 x 8, group3 4 x 4.
    Of the full preset twice these: its stem keeps 32 x 32.

    Shape:
        x (B, 3, H, W), normalised -> logits (B, classes).
    """

    def __init__(self, settings: CifarNetSettings = LAPTOP, *, classes: int = 10) -> None:
        checks.a("settings", settings, CifarNetSettings)
        checks.whole("classes", classes, most=MOST_CLASSES)
        super().__init__()
        self.settings = settings
        stride, channels = settings.stem_stride, settings.stem_channels
        if settings.stem_learned:
            self.stem, stride = _group(3, channels, 1, pool=False).append(nn.MaxPool2d(2)), 2
        else:
            kernel = settings.stem_kernel
            self.stem = whitening.stem(channels=channels, kernel=kernel, stride=stride)
        for number, width in enumerate(settings.widths, start=1):
            pool = stride == 1 or number > 1
            self.add_module(f"group{number}", _group(channels, width, settings.depth, pool))
            channels = width
        self.head = nn.Linear(channels, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """The last feature map, (B, 3, H, W) -> (B, D, h, w)."""
        x = self.stem(x)
        for number in range(1, len(self.settings.widths) + 1):
            x = self.get_submodule(f"group{number}")(x)
        return x

    def classify(self, x: Tensor) -> Tensor:
        """Pool and score a feature map, (B, D, h, w) -> (B, classes)."""
        x = x.amax((2, 3)) if self.settings.head == "max" else x.mean((2, 3))  # (B, D)
        return self.head(x) * self.settings.logit_scale

    def whiten(self, images: Tensor) -> None:
        """As `WhitenedNet.whiten`; a stem that learns stays as it is."""
        if not self.settings.stem_learned:
            super().whiten(images)


def make(backbone: CifarNetSettings | TokenNetSettings | str, *, classes: int) -> nn.Module:
    """The network of a config: a `CifarNet` or `TokenNet` of these settings, or "resnet18"."""
    if isinstance(backbone, str):
        checks.choice("backbone", backbone, ["resnet18"])
        return resnet18(classes=classes)
    if isinstance(backbone, TokenNetSettings):
        return TokenNet(backbone, classes=classes)
    return CifarNet(backbone, classes=classes)


def classes_of(state: Mapping[str, Tensor]) -> int:
    """Number of classes of a network's state, whose last tensor is that of its last layer."""
    return len([*state.values()][-1])


def _group(channels: int, width: int, depth: int, pool: bool) -> nn.Sequential:
    """conv, (pool), norm, ReLU, then depth - 1 times conv, norm, ReLU."""
    layers: list[nn.Module] = []
    for number in range(depth):
        conv = nn.Conv2d(channels if number == 0 else width, width, 3, padding=1, bias=False)
        nn.init.dirac_(conv.weight[: conv.in_channels].data)
        norm = nn.BatchNorm2d(width, momentum=0.4, eps=1e-5)
        norm.weight.requires_grad = False  # always 1; the bias is learned
        layers += [conv, nn.MaxPool2d(2)] if number == 0 and pool else [conv]
        layers += [norm, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def resnet18(*, classes: int = 10) -> nn.Module:
    """torchvision's ResNet-18 with a 3 x 3 stem of stride 1 and no first pooling; stages `layer1` to
    `layer4` (maps 32, 16, 8 and 4 on 32 x 32 images). 11.2 M parameters.

    Shape:
        x (B, 3, H, W), normalised -> logits (B, classes).
    """
    checks.whole("classes", classes, most=MOST_CLASSES)
    model = torchvision.models.resnet18(weights=None, num_classes=classes)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model
