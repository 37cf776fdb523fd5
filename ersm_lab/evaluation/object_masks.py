"""Does a map find the object? Scores of maps against true object masks, one number an image.

A keep mask or a saliency map is stretched to the pixels of its image and compared with the true
mask of the object. Each score is between 0 and 1 and, but for `on_background`, larger is better:

    iou             of a 0/1 mask: intersection over union with the object
    iou_top_k       the same of the map's k highest pixels, with k the pixels of the object
    pointing        whether the highest pixel lies in the object, without any margin around it (the
                    pointing game, Zhang et al., 2018, arXiv:1608.00507)
    inside          share of the map's positive part that lies in the object (the energy-based
                    pointing game, Wang et al., 2020, arXiv:1910.01279, named so without reference
                    to the energy of this book)
    on_background   the rest of it, 1 - inside
    kept_on_object, kept_on_background
                    mean of a keep mask over the pixels of either: unlike shares, these do not grow
                    with the object
    auc             area under the ROC curve of the map as a detector of object pixels: the chance that
                    a pixel of the object is higher than one of the background

Ties are frequent, as a keep mask is nothing else, and reading order is no answer. So everything is what
breaking them by lot gives on average: tied highest pixels share the point of `pointing`, those tied at
the k-th place share the places that are left, and `auc` counts a tie as one half. A constant map has an
`auc` of 1/2 and a `pointing` of the object's share of the image.

Undefined, and NaN rather than a guess: every score where the object is empty, or where the map holds NaN
or infinity; `auc` and `kept_on_background` where the object fills the image; `inside` and
`on_background` of a map without a positive value. `summary` counts them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from ersm_lab.common import checks

MOST_SIDE = 10_000  # pixels along a side of an image


def to_pixels(maps: Tensor, size: tuple[int, int], *, smooth: bool) -> Tensor:
    """Stretch maps of tokens to the pixels of an image.

    Args:
        maps: (N, 1, h, w) or (N, h, w).
        size: (H, W) of the image.
        smooth: bilinearly, as for saliency maps; otherwise every token gives its value to all its
            pixels, as for keep masks, whose 0 and 1 stay 0 and 1.

    Returns:
        (N, H, W), float32 or what the maps are.

    Raises:
        ValueError: another shape.
    """
    checks.a("maps", maps, Tensor)
    checks.several("size", size, least=2, most=2)
    for side in size:
        checks.whole("size", side, most=MOST_SIDE)
    checks.flag("smooth", smooth)
    if maps.dim() == 4 and maps.shape[1] == 1:
        maps = maps[:, 0]  # (N, h, w)
    if maps.dim() != 3 or 0 in maps.shape or maps.is_complex():
        raise ValueError(f"maps are (N, h, w) or (N, 1, h, w), got {tuple(maps.shape)}")
    maps = maps if maps.is_floating_point() else maps.float()
    how = {"mode": "bilinear", "align_corners": False} if smooth else {"mode": "nearest-exact"}
    return F.interpolate(maps[:, None], size=tuple(size), **how)[:, 0]  # (N, H, W)


def saliency_scores(maps: Tensor, objects: Tensor) -> dict[str, Tensor]:
    """All that can be said of a saliency map.

    Args:
        maps: (N, H, W), larger where the map sees the object; see `to_pixels`.
        objects: bool (N, H, W), True on the object.

    Returns:
        {"iou_top_k", "pointing", "inside", "on_background", "auc"}, each (N,) float64 on the CPU.

    Raises:
        ValueError: shapes that differ, or objects that are not bool.
    """
    share = inside(maps, objects)  # (N,)
    return {
        "iou_top_k": iou_top_k(maps, objects),
        "pointing": pointing(maps, objects),
        "inside": share,
        "on_background": 1 - share,
        "auc": auc(maps, objects),
    }


def mask_scores(masks: Tensor, objects: Tensor) -> dict[str, Tensor]:
    """All that can be said of a keep mask: `saliency_scores`, and what a mask alone has.

    Args:
        masks: (N, H, W), between 0 and 1; for `iou` a soft mask keeps what is above 1/2.
        objects: bool (N, H, W), True on the object.

    Returns:
        The scores of `saliency_scores`, and {"iou", "kept_on_object", "kept_on_background"}.

    Raises:
        ValueError: as `saliency_scores`, or values outside of 0 and 1.
    """
    values, on, defined = _checked(masks, objects, name="masks")
    if values.numel() and not (values.min() >= 0 and values.max() <= 1):
        raise ValueError("a keep mask lies within 0 and 1: score other maps by saliency_scores")
    kept_of_object = (values * on).sum(1) / on.sum(1)  # (N,)
    kept_of_rest = (values * (1 - on)).sum(1) / (1 - on).sum(1)  # (N,)
    return {
        "iou": _overlap((values > 0.5).double(), on, defined),
        "kept_on_object": torch.where(defined, kept_of_object, torch.nan),
        "kept_on_background": torch.where(defined, kept_of_rest, torch.nan),
    } | saliency_scores(masks, objects)


def iou(masks: Tensor, objects: Tensor) -> Tensor:
    """Intersection over union of a 0/1 mask and the object, (N, H, W) and bool (N, H, W) -> (N,).

    Raises:
        ValueError: a mask that is neither 0 nor 1 somewhere, or shapes as in `saliency_scores`.
    """
    values, objects, defined = _checked(masks, objects, name="masks")
    if not ((values == 0) | (values == 1))[defined].all():
        raise ValueError("iou compares 0/1 masks: threshold a soft one first, or use iou_top_k")
    return _overlap(values, objects, defined)


def iou_top_k(maps: Tensor, objects: Tensor) -> Tensor:
    """IoU of the k highest pixels and the object, k its number of pixels; see the module for ties.

    Args:
        maps, objects: as in `saliency_scores`.

    Returns:
        (N,); with tied pixels at the k-th place the overlap of weights, sum of minima over sum of
        maxima, where the tied pixels have what is left of k in equal parts.
    """
    values, objects, defined = _checked(maps, objects)
    wanted = objects.sum(1, keepdim=True)  # (N, 1)
    last = (wanted.long() - 1).clamp_min(0)  # (N, 1)
    threshold = values.sort(dim=1, descending=True).values.gather(1, last)  # (N, 1)
    above, tied = (values > threshold).double(), (values == threshold).double()  # (N, H W)
    part = (wanted - above.sum(1, keepdim=True)) / tied.sum(1, keepdim=True)  # (N, 1)
    return _overlap(above + part * tied, objects, defined)


def pointing(maps: Tensor, objects: Tensor) -> Tensor:
    """Whether a map's highest pixel lies in the object, (N,); tied pixels share the point.

    Args:
        maps, objects: as in `saliency_scores`.
    """
    values, objects, defined = _checked(maps, objects)
    highest = (values == values.amax(1, keepdim=True)).double()  # (N, H W)
    return torch.where(defined, (highest * objects).sum(1) / highest.sum(1), torch.nan)


def inside(maps: Tensor, objects: Tensor) -> Tensor:
    """Share of a map's positive part that lies in the object, (N,).

    Args:
        maps, objects: as in `saliency_scores`; of negative values nothing is counted.
    """
    values, objects, defined = _checked(maps, objects)
    positive = values.clamp_min(0)  # (N, H W)
    return torch.where(defined, (positive * objects).sum(1) / positive.sum(1), torch.nan)


def auc(maps: Tensor, objects: Tensor) -> Tensor:
    """Area under the ROC curve over the pixels of each image, (N,).

    By the sum of ranks: AUC = (R - P (P + 1) / 2) / (P Q), with P pixels on the object, Q off it, and
    R the sum of the ranks of the first, tied pixels having the mean of their ranks.

    Args:
        maps, objects: as in `saliency_scores`.

    Source: Hanley & McNeil (1982), Radiology 143, 29-36; Mann & Whitney's U.
    """
    values, objects, defined = _checked(maps, objects)
    ranks = torch.from_numpy(stats.rankdata(values.numpy(), axis=1)) if len(values) else values
    on = objects.sum(1)  # (N,)
    off = objects.shape[1] - on  # (N,)
    area = ((ranks * objects).sum(1) - on * (on + 1) / 2) / (on * off)  # (N,)
    return torch.where(defined, area, torch.nan)


def summary(values: Tensor) -> dict[str, float | int | None]:
    """Mean over images for a record, with what is needed to see how sure it is.

    Args:
        values: (N,), NaN where undefined.

    Returns:
        mean and standard_error (sd / sqrt(n), with n - 1 in the sd) of the n defined values, None
        where there are too few; undefined, the number of the others.
    """
    checks.a("values", values, Tensor)
    if values.dim() != 1:
        raise ValueError(f"values must be a tensor (N,), got {checks.shown(values)}")
    defined = values[values.isfinite()].double()
    n = len(defined)
    error = (defined.std() / math.sqrt(n)).item() if n > 1 else None
    return {
        "mean": defined.mean().item() if n else None,
        "standard_error": error,
        "undefined": len(values) - n,
    }


def _checked(maps: Tensor, objects: Tensor, *, name: str = "maps") -> tuple[Tensor, Tensor, Tensor]:
    """Values and objects as float64 (N, H W) on the CPU, and where a score is defined, bool (N,).

    Values that are not finite become 0: such an image is not defined, and its numbers are not used.
    """
    checks.a(name, maps, Tensor)
    checks.a("objects", objects, Tensor)
    if objects.dtype != torch.bool:
        raise ValueError(f"objects are bool, True on the object, got {objects.dtype}")
    if maps.dim() != 3 or maps.shape != objects.shape or maps.is_complex():
        raise ValueError(
            f"{name} and objects are both (N, H, W): stretch maps by to_pixels, got "
            f"{tuple(maps.shape)} and {tuple(objects.shape)}"
        )
    values = maps.detach().cpu().flatten(1).double()  # (N, H W)
    objects = objects.cpu().flatten(1)  # (N, H W)
    finite = values.isfinite().all(1)  # (N,)
    values = torch.where(finite[:, None], values, 0.0)
    return values, objects.double(), finite & objects.any(1)


def _overlap(weights: Tensor, objects: Tensor, defined: Tensor) -> Tensor:
    """Sum of minima over sum of maxima of two maps of 0 to 1, the second 0/1, (N, H W) -> (N,)."""
    shared = (weights * objects).sum(1)  # (N,)
    union = weights.sum(1) + objects.sum(1) - shared  # (N,)
    return torch.where(defined, shared / union, torch.nan)
