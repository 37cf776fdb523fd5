"""A mask that puts something else than zero in a dropped token's place.

The layer of arXiv:2604.06893 multiplies tokens x_i by masks m_i, so that a dropped token leaves a hole
of zeros behind. Here, with M = sum of m over the H W positions of an image:

    mean        y_i = m_i x_i + (1 - m_i) mean,     mean = sum_j m_j x_j / max(M, 1)
    token       y_i = m_i x_i + (1 - m_i) t,        t (C,) learned, zero at the start
    normalised  y_i = m_i x_i H W / max(M, H W / 10)

`mean` is that of the kept tokens, for each channel, and zero where none is kept. `token` is the mask
token of masked image modelling (He et al., 2022, arXiv:2111.06377), `normalised` the rescaling of
dropout (Srivastava et al., 2014) by the share that an image really keeps. Energies are those of the
plain mask; gradients reach the mask through what is put in as well. A mask of ones is the identity for
all three, bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ersm_core import EnergyMask, EnergyState
from ersm_lab.common import checks

KINDS = ("mean", "token", "normalised")
LEAST_TOKENS = 1.0  # the mean is of at least so many tokens
LEAST_SHARE = 0.1  # a map counts as kept to at least this share: nothing grows more than tenfold


class FilledMask(EnergyMask):
    """An `EnergyMask` that puts something in the place of what it drops.

    A channel of ones rides along with the tokens and is multiplied by whatever multiplies them: the
    mask, or what an evaluation puts in its place (`evaluation.replaced_mask`). What is put in goes by
    this channel, so that it fits a replaced mask as well. Forward hooks of this module see the
    channel, the last of C + 1; one that hands back C channels has the last word.

    A learned token is a parameter of the mask: it has the mask's learning rate and weight decay
    (`training.make_optimiser`).

    Args:
        channels: C, of the feature map.
        dropped: of `KINDS`.
        settings: of `EnergyMask`.

    Shape:
        x (B, C, H, W) -> (B, C, H, W); untouched while not `enabled`.

    Raises:
        ValueError: an unknown kind, or what `EnergyMask` refuses.
    """

    token: Tensor | None

    def __init__(self, channels: int, *, dropped: str, **settings) -> None:
        _check_kind("dropped", dropped)
        super().__init__(channels, **settings)
        self.dropped = dropped
        token = nn.Parameter(torch.zeros(channels)) if dropped == "token" else None  # (C,)
        self.register_parameter("token", token)

    def __call__(self, x: Tensor) -> Tensor:
        if not self.enabled or x.dim() != 4:  # the latter is an error that `forward` explains
            return super().__call__(x)
        marked = torch.cat([x, torch.ones_like(x[:, :1])], 1)  # (B, C + 1, H, W)
        masked = super().__call__(marked)  # (B, C + 1, H, W)
        if masked.shape[1] == self.channels:
            return masked
        return _fill(masked[:, :-1], masked[:, -1:], self.dropped, self.token)

    def compute(self, x: Tensor) -> EnergyState:
        """Energies and mask of a feature map x (B, C, H, W), with or without the channel of ones."""
        return super().compute(x[:, : self.channels])

    def _check_input(self, x: Tensor) -> None:
        super()._check_input(x[:, :-1] if x.dim() == 4 else x)


def fill(masked: Tensor, kept: Tensor, kind: str, *, token: Tensor | None = None) -> Tensor:
    """Put something in the place of dropped tokens, as the equations above have it.

    Args:
        masked: m x, (B, C, H, W).
        kept: m, (B, 1, H, W), 0 to 1.
        kind: of `KINDS`.
        token: t (C,), of kind "token".

    Returns:
        (B, C, H, W), in the dtype of `masked`; sums are taken in at least float32.

    Raises:
        ValueError: an unknown kind, shapes that do not fit, or no token where there must be one.
    """
    _check_kind("kind", kind)
    checks.tensor("masked", masked, "(B, C, H, W)", "floats", finite=False)
    (b, c, h, w) = masked.shape
    checks.tensor("kept", kept, f"({b}, 1, {h}, {w})", "floats", finite=False)
    if kind == "token":
        checks.tensor("token", token, f"({c},)", "floats", finite=False)
    return _fill(masked, kept, kind, token if kind == "token" else None)


def _fill(masked: Tensor, kept: Tensor, kind: str, token: Tensor | None) -> Tensor:
    if token is not None:
        return masked + (1 - kept) * token.to(masked.dtype)[:, None, None]  # (B, C, H, W)
    wide = torch.promote_types(masked.dtype, torch.float32)
    total = kept.sum((2, 3), keepdim=True, dtype=wide)  # (B, 1, 1, 1)
    if kind == "mean":
        mean = masked.sum((2, 3), keepdim=True, dtype=wide) / total.clamp_min(LEAST_TOKENS)
        return masked + (1 - kept) * mean.to(masked.dtype)  # (B, C, H, W)
    count = kept.shape[2] * kept.shape[3]
    return masked * (count / total.clamp_min(LEAST_SHARE * count)).to(masked.dtype)


def put_in(
    model: nn.Module, layer: str, *, dropped: str, preset: str | None = None, **settings
) -> nn.Module:
    """Turn the energy mask after a stage into a `FilledMask` of the same weights, in place; returns the
    model.

    Args:
        model: the network, with a mask after that stage (`ersm_attach.attach_energy_mask`).
        layer: name of the stage.
        dropped: of `KINDS`.
        preset, settings: of the mask that is there.

    Raises:
        ValueError: an unknown kind, or a stage that is no `nn.Sequential`.
    """
    stage = model.get_submodule(layer)
    if not isinstance(stage, nn.Sequential):
        raise ValueError(f"layer {layer!r} is a {type(stage).__name__}, not an nn.Sequential")
    plain = stage.energy_mask
    if not isinstance(plain, EnergyMask):
        raise ValueError(f"layer {layer!r} has no energy mask: attach one first")
    make = getattr(FilledMask, preset) if preset else FilledMask
    mask = make(plain.channels, dropped=dropped, **settings)
    mask.load_state_dict(plain.state_dict(), strict=False)  # all but the token
    mask.attached_to = layer
    stage.energy_mask = mask
    return model


# --- the small print -------------------------------------------------------------------------------


def _check_kind(name: str, kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"{name}: dropped tokens become one of {', '.join(KINDS)}, got {kind!r}")
