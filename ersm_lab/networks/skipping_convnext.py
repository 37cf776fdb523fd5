"""A ConvNeXt of timm or torchvision whose later blocks skip the tokens that a mask drops.

    >>> model = timm.create_model("convnext_tiny", pretrained=True, num_classes=10)
    >>> model = skip_tokens(model, "stages.2.blocks.0", preset="stable")
    >>> loss = F.cross_entropy(model(images), labels) + energy_loss(model)

A block is x + scale * MLP(norm(depthwise(x))) (Liu et al., 2022, arXiv:2201.03545); the depthwise
convolution sees all tokens, norm and MLP the kept ones only. With all kept it is the network it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.convnext import CNBlock

from ersm_core import EnergyMask, is_exporting, update_kept
from ersm_lab.common import checks


def skip_tokens(model: nn.Module, after: str, *, preset: str = "stable", **settings) -> nn.Module:
    """Let an energy mask decide after one block, and all blocks behind it skip, in place.

    A dropped token keeps what it had. A later stage, whose tokens are coarser, keeps a token where any
    of the finer ones in it is kept. `energy_loss(model)` finds the mask.

    Args:
        model: a ConvNeXt of timm or torchvision, with the weights it shall start from: the blocks
            behind `after` are wrapped, which changes the names of their parameters.
        after: name of the block that the mask reads, such as "stages.2.blocks.0" (timm) or
            "features.5.0" (torchvision); one in the first half of the stage with most blocks saves most.
        preset: "stable" or "published", of `EnergyMask`.
        settings: of `EnergyMask`.

    Returns:
        The same model.

    Raises:
        ValueError: a model with a mask, `after` is no block with others behind it, a block whose MLP
            looks at several tokens (ConvNeXt V2), or what `EnergyMask` refuses.
    """
    if any(isinstance(module, EnergyMask) for module in model.modules()):
        raise ValueError("model has an energy mask: make the network anew")
    blocks = {name: m for name, m in model.named_modules() if _is_block(m)}
    names = list(blocks)
    if after not in names[:-1]:
        raise ValueError(
            f"after={after!r} is no ConvNeXt block with others behind it: choose one of "
            f"{', '.join(names[:-1]) or 'a ConvNeXt of timm or torchvision, which this is not'}"
        )
    token_parts = {name: _token_part(blocks[name]) for name in names[names.index(after) + 1 :]}
    if preset not in ("stable", "published"):
        raise ValueError(f'preset must be "stable" or "published", got {preset!r}')
    weight = _depthwise(blocks[after]).weight
    mask = getattr(EnergyMask, preset)(weight.shape[0], **settings)
    model.energy_mask = mask.to(weight.device, weight.dtype).train(model.training)
    mask.attached_to = after
    gate = _Gate(mask)
    blocks[after].register_forward_hook(gate.decide)
    for name, part in token_parts.items():
        model.set_submodule(name, SkippingBlock(blocks[name], part, gate))
    return model


class _Gate:
    """What the mask has decided in this pass; it holds the mask without being one of its parents."""

    def __init__(self, mask: EnergyMask) -> None:
        self.mask = mask
        self.decided: Tensor | None = None

    def __getstate__(self) -> dict:  # a copy starts without the last pass's graph, as an EnergyMask
        return {"mask": self.mask, "decided": None}

    def decide(self, block: nn.Module, args: tuple, x: Tensor) -> None:
        """Forward hook of the block that the mask reads, x (B, C, H, W); changes nothing."""
        self.mask(x)
        self.decided = None
        if self.mask.enabled:
            state = self.mask.compute(x) if is_exporting() else checks.state(self.mask)
            self.decided = state.mask  # (B, 1, H, W)

    def on(self, x: Tensor) -> Tensor | None:
        """m on the grid of x (B, C, h, w), (B, 1, h, w); None where the mask is off."""
        if self.decided is None or self.decided.shape[2:] == x.shape[2:]:
            return self.decided
        return F.adaptive_max_pool2d(self.decided, x.shape[2:])


class SkippingBlock(nn.Module):
    """A ConvNeXt block whose norm and MLP are run on kept tokens only. (B, C, H, W) -> the same."""

    def __init__(
        self, block: nn.Module, token_part: Callable[[Tensor], Tensor], gate: _Gate
    ) -> None:
        super().__init__()
        self.block, self.token_part, self.gate = block, token_part, gate

    def forward(self, x: Tensor) -> Tensor:
        m = self.gate.on(x)  # (B, 1, H, W)
        if m is None:
            return self.block(x)
        drop = getattr(self.block, "drop_path", None) or getattr(
            self.block, "stochastic_depth", None
        )
        m = drop(m) if drop is not None else m  # stochastic depth: a factor an image
        return update_kept(x, self.token_part, m, inputs=_depthwise(self.block)(x))


class _TokenPart:
    """Norm, MLP and layer scale of a block as a function of tokens, (K, C) -> (K, C)."""

    def __init__(self, block: Any) -> None:  # of torchvision or timm
        self.block = block

    def __call__(self, tokens: Tensor) -> Tensor:
        block = self.block
        if isinstance(block, CNBlock):
            return block.block[2:6](tokens) * block.layer_scale.flatten()
        maps = tokens[:, :, None, None] if block.use_conv_mlp else tokens  # 1 x 1 convolutions
        out = block.mlp(block.norm(maps)).flatten(1)  # (K, C)
        return out if block.gamma is None else out * block.gamma


def _is_block(module: nn.Module) -> bool:
    return isinstance(module, CNBlock) or type(module).__name__ == "ConvNeXtBlock"  # of timm


def _token_part(block: nn.Module) -> _TokenPart:
    if "GlobalResponseNorm" in type(getattr(block, "mlp", None)).__name__:
        raise ValueError(
            "ConvNeXt V2 normalises over all tokens in its MLP, which none can skip: use a ConvNeXt V1"
        )
    return _TokenPart(block)


def _depthwise(block: Any) -> nn.Conv2d:
    return block.block[0] if isinstance(block, CNBlock) else block.conv_dw
