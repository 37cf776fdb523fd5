"""Token deletion: how a network's accuracy falls as tokens of its feature map are deleted.

Conventions differ between libraries, and scores across conventions cannot be compared. Here:

    start     every token kept, as by a 0/1 mask of ones; not the soft mask of training
    unit      one token of the mask's grid; a deleted token is multiplied by 0
    baseline  0 after the mask, nothing re-scaled
    order     least important first, ties in reading order
    step      `fractions`, by default 10 % of the tokens, rounded to whole tokens
    score     AUC = mean accuracy over the fractions, by default while 0 to 90 % are deleted;
              0 to 1, higher is better: the ranking deletes what the network does not need

The deletion test of arXiv:2604.06893, as its authors' code does it, has the same start, baseline and
order and deletes one token at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ersm_lab.common import checks
from ersm_lab.evaluation.inference import evaluating, only_mask, replaced_mask
from ersm_lab.images.data import ImageSet

FRACTIONS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of the tokens deleted
MOST_SIDE = 10_000  # tokens along a side of a map


@dataclass(frozen=True, kw_only=True)
class DeletionCurve:
    """Accuracy, 0 to 1, at each fraction of deleted tokens."""

    fractions: tuple[float, ...]
    accuracy: tuple[float, ...]

    @property
    def auc(self) -> float:
        """Mean accuracy over the fractions, 0 to 1, higher is better."""
        return sum(self.accuracy) / len(self.accuracy)


def deletion_curve(
    predict: Callable[[Tensor], Tensor],
    importance: Tensor,
    labels: Tensor,
    *,
    fractions: Sequence[float] = FRACTIONS,
) -> DeletionCurve:
    """Delete the least important tokens of every image and measure the accuracy.

    Args:
        predict: takes a bool mask (N, h, w), True where a token is kept; gives logits (N, classes).
        importance: (N, h, w), or (h, w) for all images; low is deleted first. To rank by a mask's
            logit z, highest z first, give -z.
        labels: (N,).
        fractions: of the tokens, each from 0 to 1.

    Raises:
        ValueError: importance that does not fit the labels, no or other fractions, or answers of NaN.
    """
    checks.function("predict", predict)
    checks.tensor("labels", labels, "(N,)", "whole numbers")
    _check_importance(importance, len(labels))
    checks.several("fractions", fractions)
    for fraction in fractions:
        _check_fraction(fraction)
    importance = importance.expand(len(labels), *importance.shape[-2:])  # (N, h, w)
    accuracy = []
    for fraction in fractions:
        logits = checks.answers(predict(_keep(importance, fraction)))  # (N, classes)
        checks.labels("labels", labels, len(logits), logits.shape[1])
        right = logits.argmax(1) == labels  # (N,)
        accuracy.append(right.double().mean().item())
    return DeletionCurve(fractions=tuple(fractions), accuracy=tuple(accuracy))


def keep_masks(importance: Tensor, fraction: float) -> Tensor:
    """Which tokens are left when this fraction, the least important, is deleted.

    Args:
        importance: (N, h, w).
        fraction: 0 to 1; of n tokens the nearest whole number to fraction x n is deleted, halves up.

    Returns:
        bool (N, h, w), the same number of True for every image.

    Raises:
        ValueError: a fraction outside of 0 to 1, or NaN in the importance.
    """
    checks.tensor("importance", importance, "(N, h, w)", "bools or numbers", finite=False)
    _check_importance(importance, len(importance))
    _check_fraction(fraction)
    return _keep(importance, fraction)


def _keep(importance: Tensor, fraction: float) -> Tensor:
    flat = importance.flatten(1)  # (N, h w)
    count = int(fraction * flat.shape[1] + 0.5)
    first = flat.argsort(dim=1, stable=True)[:, :count]  # (N, count)
    keep = torch.ones_like(flat, dtype=torch.bool).scatter_(1, first, False)
    return keep.view_as(importance)


def _check_importance(importance: Tensor, images: int) -> None:
    checks.a("importance", importance, Tensor)
    shape = "(h, w)" if importance.dim() == 2 else "(N, h, w)"
    checks.tensor("importance", importance, shape, "bools or numbers", finite=False)
    if importance.dim() == 3 and len(importance) != images:
        raise ValueError(
            f"importance is of {len(importance)} images and labels of {images}: give one for each, or "
            "an importance (h, w) for all"
        )
    if torch.isnan(importance).any():
        raise ValueError("importance holds NaN: there is no order to delete in")


def _check_fraction(fraction: float) -> None:
    checks.number("fraction", fraction)
    if not 0 <= fraction <= 1:
        raise ValueError(f"a fraction of tokens lies within 0 and 1, got {fraction}")


# --- what to rank by -------------------------------------------------------------------------------


def token_norms(x: Tensor, patch_size: int = 1) -> Tensor:
    """The L2 norm of every token of a feature map, (N, C, H, W) -> (N, H / s, W / s)."""
    checks.tensor("x", x, "(N, C, H, W)", "numbers", finite=False)
    checks.whole("patch_size", patch_size, most=min(x.shape[2:]))
    squared = x.float().square().sum(1)  # (N, H, W)
    return (F.avg_pool2d(squared, patch_size) * patch_size**2).sqrt()


def centre_prior(height: int, width: int) -> Tensor:
    """Minus the distance from the map's centre, in tokens, (h, w): the border is deleted first."""
    checks.whole("height", height, most=MOST_SIDE)
    checks.whole("width", width, most=MOST_SIDE)
    rows = torch.arange(height) - (height - 1) / 2  # (h,)
    columns = torch.arange(width) - (width - 1) / 2  # (w,)
    return -torch.hypot(rows[:, None], columns[None, :])


def random_ranking(shape: Sequence[int], *, seed: int) -> Tensor:
    """Importance by lot, of this shape, the same for the same seed."""
    checks.several("shape", shape)
    for side in shape:
        checks.whole("shape", side, most=checks.MOST)
    checks.seed("seed", seed)
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# --- what to predict with --------------------------------------------------------------------------


def network_predictor(model: nn.Module, data: ImageSet) -> Callable[[Tensor], Tensor]:
    """`predict` of a network with one energy mask, for `deletion_curve`: its mask gives way to `keep`.

    One pass over all images for each mask that is asked for.
    """
    mask = only_mask(model)
    checks.labelled("data", data)

    def predict(keep: Tensor) -> Tensor:
        checks.tensor("keep", keep, f"({len(data)}, h, w)", "bools")
        logits, start = [], 0
        with evaluating(model):
            for x, labels in data.inputs():
                part = keep[start : start + len(labels), None]  # (B, 1, h, w)
                with replaced_mask(mask, part.to):
                    logits.append(model(x))
                start += len(labels)
        return torch.cat(logits)

    return predict
