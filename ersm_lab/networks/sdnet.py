"""Networks with sparse codes in the place of convolutions: SDNet-18, and any other.

Source: Dai et al., NeurIPS 2022, arXiv:2210.12945.
"""

from __future__ import annotations

import difflib

from torch import nn

from ersm_lab.common import checks
from ersm_lab.networks.backbones import resnet18
from ersm_lab.networks.fista import PUBLISHED, CSCSettings
from ersm_lab.networks.sparse_coding import SparseCoding2d


def sdnet18(*, classes: int = 10, settings: CSCSettings = PUBLISHED) -> nn.Module:
    """SDNet-18: the CIFAR ResNet-18 whose first layer is a sparse code, BatchNorm after it, no ReLU.

    11.2 M parameters, as many as `backbones.resnet18`; the code is (64, H, W).

    Shape:
        x (B, 3, H, W), normalised -> logits (B, classes).
    """
    checks.a("settings", settings, CSCSettings)
    model = resnet18(classes=classes)
    stem = model.conv1
    assert isinstance(stem, nn.Conv2d)
    model.conv1 = SparseCoding2d.from_conv(stem, settings)
    model.relu = nn.Identity()  # that of the stem; the blocks have their own
    return model


def attach_sparse_coding(
    model: nn.Module,
    layer: str = "group1.0",
    settings: CSCSettings = PUBLISHED,
    *,
    keep_relu: bool = False,
) -> nn.Module:
    """Put a sparse code in the place of a convolution, in place; its atoms are the filters' directions.

    In a `CifarNet` that is "group1.0", its first learned convolution, as SDNet-18 replaces the first
    of its network. The stem before it is fixed and whitens patches: as a code it would be another
    network, with another input to all that follows. So number and shape of the parameters, the start
    (an atom that is one pixel of one channel has unit length) and the schedule are the dense network's.

    Args:
        model: the network; attach before the optimiser, `torch.compile` and DDP.
        layer: name of an `nn.Conv2d` from `model.named_modules()`.
        settings: the code's.
        keep_relu: keep the ReLU after the convolution. By default it becomes the identity where the
            convolution stands in an `nn.Sequential` and only pooling and BatchNorm are between them:
            SDNet has none, the code being the non-linearity.

    Returns:
        The same model.

    Raises:
        ValueError: no such convolution, or one that no code can replace (`SparseCoding2d.from_conv`).
    """
    checks.network("model", model)
    checks.text("layer", layer)
    checks.flag("keep_relu", keep_relu)
    convs = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    if layer not in convs:
        near = difflib.get_close_matches(layer, convs, n=5, cutoff=0.3) or list(convs)[:5]
        raise ValueError(
            f"layer: no convolution {layer!r} in {type(model).__name__}; nearest names: "
            f"{', '.join(near)}"
        )
    _replace(model, layer, SparseCoding2d.from_conv(convs[layer], settings))
    parent, _, own = layer.rpartition(".")
    stage = model.get_submodule(parent)
    if isinstance(stage, nn.Sequential) and not keep_relu:
        names = list(stage._modules)
        for name in names[names.index(own) + 1 :]:
            if isinstance(stage._modules[name], nn.ReLU):
                stage._modules[name] = nn.Identity()
                break
            if not isinstance(stage._modules[name], (nn.MaxPool2d, nn.AvgPool2d, nn.BatchNorm2d)):
                break
    return model


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)
