"""A network that can save time: most of its work is token by token, and dropped tokens skip it.

Blocks as in ConvNeXt (Liu et al., 2022, arXiv:2201.03545): y = depthwise 3 x 3 convolution of x, then
x + MLP(LayerNorm(y)). The MLP has nearly all of the work and sees one token at a time, so that it can
be left out token by token, exactly (`ersm_core.update_kept`).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ersm_core import EnergyMask, is_exporting, update_kept
from ersm_lab.common import checks
from ersm_lab.networks import whitening


@dataclass(frozen=True, kw_only=True)
class TokenNetSettings:
    """Shape of a `TokenNet`.

    Attributes:
        width: channels of a token.
        blocks: how many.
        expansion: hidden channels of an MLP, as a factor on the width.
        early_width: channels of the map from which tokens are made.
        stem_channels: of the whitening stem (`CifarNet`).
        dropped: "skip": a dropped token passes the blocks as it came; "zero": it is set to zero before
            them, as by an `EnergyMask` in any other place.
    """

    width: int = 96
    blocks: int = 4
    expansion: int = 4
    early_width: int = 32
    stem_channels: int = 48
    dropped: str = "skip"

    def __post_init__(self) -> None:
        for name in ("width", "expansion", "early_width", "stem_channels"):
            checks.whole(name, getattr(self, name), most=8_192)
        checks.whole("blocks", self.blocks, most=100)
        checks.choice("dropped", self.dropped, ("skip", "zero"))


class Block(nn.Module):
    """x (B, C, H, W), m (B, 1, H, W) or None -> x + m * MLP(LayerNorm(depthwise(x))), (B, C, H, W).

    Attributes:
        skips: False computes all tokens and multiplies by the mask: the same answers, no time saved.
    """

    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        self.skips = True
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        first, last = nn.Linear(width, expansion * width), nn.Linear(expansion * width, width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), first, nn.ReLU(inplace=True), last)
        nn.init.zeros_(last.weight)  # a block starts as the identity
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, m: Tensor | None = None) -> Tensor:
        y = self.depthwise(x)  # (B, C, H, W)
        if m is not None and self.skips:
            return update_kept(x, self.mlp, m, inputs=y)
        f = self.mlp(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # (B, C, H, W)
        return x + f if m is None else x + m * f


class TokenNet(whitening.WhitenedNet):
    """Stages `stem`, `early`, `gate`, `blocks`, `head`; 8 x 8 tokens of 32 x 32 pixels.

    A mask is attached to `gate`, where it decides once for all blocks.

    Shape:
        x (B, 3, H, W), normalised -> logits (B, classes).
    """

    def __init__(self, settings: TokenNetSettings, *, classes: int = 10) -> None:
        checks.a("settings", settings, TokenNetSettings)
        checks.whole("classes", classes)
        super().__init__()
        self.settings = settings
        early, width = settings.early_width, settings.width
        self.stem = whitening.stem(channels=settings.stem_channels, kernel=4, stride=2)
        self.early = nn.Sequential(
            nn.Conv2d(settings.stem_channels, early, 3, padding=1, bias=False),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(early),
            nn.ReLU(inplace=True),
            nn.Conv2d(early, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        self.gate = nn.Sequential()  # passes on what it gets, until a mask is attached
        self.blocks = nn.ModuleList(
            Block(width, settings.expansion) for _ in range(settings.blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.early(self.stem(x))  # (B, C, 8, 8)
        masked = self.gate(x)  # (B, C, 8, 8)
        m = self._mask(x)
        if self.settings.dropped == "zero":
            x = masked
        for block in self.blocks:
            x = block(x, m)
        return self.head(self.norm(x.mean((2, 3))))

    def _mask(self, x: Tensor) -> Tensor | None:
        """What the gate has just made of x (B, C, H, W), (B, 1, H, W); None where no mask is on."""
        masks = [mask for mask in self.gate if isinstance(mask, EnergyMask) and mask.enabled]
        if not masks:
            return None
        return (masks[0].compute(x) if is_exporting() else checks.state(masks[0])).mask
