"""Can an attack by gradients be trusted? Whether there is one to follow, and networks that lend theirs.

A network that merely hides its gradient looks robust (Athalye et al., 2018, arXiv:1802.00420). A mask
can hide it: a 0/1 gate has the derivative zero, its straight-through gradient is a substitute, and a
mask that reads detached tokens passes none back. Two answers:

    gradient_check  is there a gradient, does some of it pass the mask, does the loss rise along it?
    surrogate       attack a network whose mask hides nothing, show the images to the true one
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ersm_core import EnergyMask
from ersm_lab.common import checks
from ersm_lab.evaluation.attacks import (
    SURROGATES,
    PixelNetwork,
    attackable,
    batches,
    look,
    pixels_of,
)
from ersm_lab.evaluation.inference import replaced_mask
from ersm_lab.images.data import ImageSet

# --- networks that lend their gradient -------------------------------------------------------------


@contextmanager
def surrogate(model: nn.Module, kind: str, *, temperature: float = 1.0) -> Iterator[None]:
    """While open, the model's masks pass gradients back; images that fool it so are then tried on
    the model itself.

    Args:
        model: a network with at least one enabled energy mask; changed in place, put back after.
        kind: "soft" for another network, whose masks are sigmoid(-z / temperature) with gradients
            to the tokens, whatever the gate (a soft energy gate stays as it is); "bpda" for the
            same answers, with a gradient that passes every mask as if it were all ones (backward
            pass differentiable approximation, Athalye et al., 2018, arXiv:1802.00420).
        temperature: T > 0, of "soft".

    Raises:
        ValueError: an unknown kind, a temperature of 0 or less, a model without an enabled mask.
    """
    checks.network("model", model)
    checks.choice("kind", kind, SURROGATES)
    checks.number("temperature", temperature, above=0, most=1e6)
    masks = enabled_masks(model)
    if not masks:
        raise ValueError("the model has no enabled energy mask: attack it directly")

    def pass_gradient(module: EnergyMask, args: tuple[Tensor], output: Tensor) -> Tensor:
        x = args[0]  # (B, C, H, W)
        return output.detach() + (x - x.detach())  # the output's values, the gradient of x

    detached = [mask.detach_tokens for mask in masks]
    try:
        with ExitStack() as stack:
            for mask in masks:
                if kind == "bpda":
                    stack.callback(mask.register_forward_hook(pass_gradient).remove)
                    continue
                mask.detach_tokens = False
                if mask.gate == "logit" or mask.hard:
                    soften = partial(_soft_mask, mask, temperature)
                    stack.enter_context(replaced_mask(mask, soften))
            yield
    finally:
        for mask, value in zip(masks, detached, strict=True):
            mask.detach_tokens = value


def _soft_mask(mask: EnergyMask, temperature: float, m: Tensor) -> Tensor:
    """In place of the mask m that the last forward made, (B, 1, h, w)."""
    return torch.sigmoid(-checks.state(mask).logit / temperature)


def enabled_masks(model: nn.Module) -> list[EnergyMask]:
    return [m for m in model.modules() if isinstance(m, EnergyMask) and m.enabled]


# --- is there a gradient to follow? ----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class GradientCheck:
    """What the gradient of the cross-entropy with respect to the pixels is worth, image by image.

    Attributes:
        zero: bool (N,), True where it is zero in every pixel.
        non_finite: bool (N,), True where it holds NaN or infinity.
        agreement: {step: (N,)}, the loss's slope along the gradient, from central differences of
            this step in units of 0 to 1 of the most sensitive pixel, divided by the slope that the
            gradient promises. At a small step 1 says that it is the derivative; a straight-through
            gradient is not. At a step of the size of an attack near 0, or below, says that following
            it leads nowhere. NaN where there is no gradient to follow.
        through_mask: (N,), length of the part that comes through the masks, divided by the length of
            the longer of the whole and the rest; 0 says that all masks are seen as constants. None
            for a network without a mask.
    """

    zero: Tensor
    non_finite: Tensor
    agreement: Mapping[float, Tensor]
    through_mask: Tensor | None = None

    def summary(self) -> dict:
        """Shares and medians, for a record; None where there is nothing to take a median of."""
        found = {
            "images": len(self.zero),
            "zero_share": share(self.zero),
            "non_finite_share": share(self.non_finite),
            "agreement": [
                {
                    "step": step,
                    "median": _median(ratio),
                    "share_within_10_percent": share((ratio - 1).abs() <= 0.1),
                }
                for step, ratio in self.agreement.items()
            ],
        }
        if self.through_mask is not None:
            found["through_mask_median"] = _median(self.through_mask)
            found["none_through_mask_share"] = share(self.through_mask < 1e-6)
        return found


def gradient_check(
    model: nn.Module,
    data: ImageSet,
    *,
    steps: tuple[float, ...] = (1e-5, 1 / 255),
    batch_size: int = 100,
) -> GradientCheck:
    """Look for gradients that are absent, broken or false before believing an attack by gradients.

    Zero and non-finite gradients are counted in the network's own precision, as the attacks see
    them; slopes are measured on a copy in float64.

    Args:
        model: the network.
        data: the images and labels to look at; some 100 are enough.
        steps: of the central differences, in units of 0 to 1.
        batch_size: images a batch.

    Raises:
        ValueError: no images, or a step that is not above 0.
    """
    checks.network("model", model)
    checks.labelled("data", data)
    checks.several("steps", steps)
    for step in steps:
        checks.number("steps", step, above=0, most=1)
    checks.whole("batch_size", batch_size)
    network = PixelNetwork(model, data)
    exact = deepcopy(network).double()
    masks = enabled_masks(model)
    gradients: list[Tensor] = []
    passed: list[Tensor] = []
    ratios: dict[float, list[Tensor]] = {step: [] for step in steps}
    with attackable(network), attackable(exact):
        for x, y in batches(batch_size, pixels_of(data), data.labels):
            _, _, gradient = look(network, x, y)  # (B, 3, H, W)
            gradients.append(gradient.cpu())
            if masks:
                passed.append(_through_masks(network, masks, x, y, gradient).cpu())
            for step, ratio in _slope_ratios(exact, x.double(), y, steps).items():
                ratios[step].append(ratio.cpu())
    gradient = torch.cat(gradients).flatten(1)  # (N, 3 H W)
    return GradientCheck(
        zero=(gradient == 0).all(1),
        non_finite=~gradient.isfinite().all(1),
        agreement={step: torch.cat(parts) for step, parts in ratios.items()},
        through_mask=torch.cat(passed) if masks else None,
    )


def _through_masks(
    network: nn.Module, masks: list[EnergyMask], x: Tensor, y: Tensor, gradient: Tensor
) -> Tensor:
    """Share of the gradient that is lost when the masks are held constant, (B,)."""
    with ExitStack() as stack:
        for mask in masks:
            stack.enter_context(replaced_mask(mask, Tensor.detach))
        _, _, rest = look(network, x, y)  # (B, 3, H, W)
    whole, rest = gradient.flatten(1), rest.flatten(1)  # (B, 3 H W)
    longest = torch.maximum(whole.norm(dim=1), rest.norm(dim=1))  # (B,)
    return (whole - rest).norm(dim=1) / longest.clamp_min(torch.finfo(longest.dtype).tiny)


def _slope_ratios(
    network: nn.Module, x: Tensor, y: Tensor, steps: tuple[float, ...]
) -> dict[float, Tensor]:
    """Measured over promised slope of the loss along its gradient, {step: (B,)}, all in float64."""
    _, _, gradient = look(network, x, y)  # (B, 3, H, W)
    largest = gradient.abs().amax((1, 2, 3), keepdim=True)  # (B, 1, 1, 1)
    along = gradient / largest  # (B, 3, H, W), NaN for a gradient of zero
    promised = (gradient * along).sum((1, 2, 3))  # (B,)
    ratios = {}
    for step in steps:
        ahead, behind = (
            F.cross_entropy(network(x + way * step * along.nan_to_num()), y, reduction="none")
            for way in (1, -1)
        )  # (B,), (B,)
        ratios[step] = (ahead - behind) / (2 * step) / promised
    return ratios


def share(flags: Tensor) -> float:
    return flags.double().mean().item()


def _median(values: Tensor) -> float | None:
    finite = values[values.isfinite()]
    return finite.median().item() if len(finite) else None
