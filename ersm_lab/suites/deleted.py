"""The suite of deletion: how well each ranking tells which tokens and pixels the network needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ersm_core import EnergyMask
from ersm_lab.evaluation import deletion as token_deletion
from ersm_lab.evaluation import deletion_insertion, object_masks, rankings
from ersm_lab.evaluation.inference import evaluating, replaced_mask
from ersm_lab.images.data import ImageSet
from ersm_lab.suites.finding import Finding, accuracies, batch_size, joined, nested
from ersm_lab.suites.maps import importance_of


@dataclass(frozen=True, kw_only=True)
class Deletion:
    """All rankings, by the paper's test and by the three published conventions.

    Attributes:
        images: the first so many, for the paper's test (`deletion`: least important tokens first,
            from a mask of ones, accuracy; a second mask stays as it is); None is all.
        curve_images: of these the first so many, for deletion and insertion of tokens and pixels
            (`deletion_insertion`: most important first, probability).
        unit_images: of these the first so many, for conventions that step one unit at a time.
        fractions: of the tokens deleted in the paper's test.
        layers: whose tokens are ranked in a network without a mask: the first of these it has.
        seed: of the random ranking.
    """

    images: int | None
    curve_images: int
    unit_images: int
    fractions: tuple[float, ...] = token_deletion.FRACTIONS
    layers: tuple[str, ...] = rankings.LAYERS
    seed: int = 0


def deletion(
    model: nn.Module, data: ImageSet, settings: Deletion, *, progress: bool = False
) -> Finding:
    """Every ranking that the network has (`rankings.RANKINGS`), on tokens and on pixels.

    Conditions are "<ranking>.<per cent of the tokens deleted>" of the paper's test, `mean` its area
    under the curve by ranking, higher is better. `area` holds, by unit, convention, game and ranking,
    mean and standard error over images of the area, and how many importance maps are `blank`;
    `minus_random` the same of the difference to the random ranking, image by image. Their curves are
    of `curve_images` or `unit_images`.
    """
    layer = rankings.token_layer(model, settings.layers)
    tokens, pixels = importance_of(model, data, layer, rankings.RANKINGS, seed=settings.seed)
    right = least_first(model, data, layer, tokens, settings.fractions)
    groups = {name: [c for c in right if c.startswith(f"{name}.")] for name in tokens}
    found = accuracies(right, groups)
    area: dict[str, dict] = {}
    minus: dict[str, dict] = {}
    curves = [
        (unit, convention, game)
        for unit in ("token", "pixel")
        for convention in deletion_insertion.CONVENTIONS
        for game in deletion_insertion.GAMES
        if game == "deletion" or convention.insertion_fill is not None
    ]
    for unit, convention, game in tqdm(curves, desc="deletion", disable=not progress):
        one_by_one = convention.step == ("units", 1)
        count = settings.unit_images if one_by_one else settings.curve_images
        on_tokens = unit == "token"
        areas, blank = {}, {}
        for name, importance in (tokens if on_tokens else pixels).items():
            curve = deletion_insertion.perturbation_curve(
                model,
                data[:count],
                importance[:count],
                game=game,
                convention=deletion_insertion.on_tokens(convention) if on_tokens else convention,
                layer=layer if on_tokens else None,
                batch_size=batch_size(data),
            )
            areas[name], blank[name] = curve.auc_by_image, curve.blank  # (N,), number
        place = joined((unit, convention.name, game))
        area[place] = {
            name: object_masks.summary(values) | {"blank": blank[name]}
            for name, values in areas.items()
        }
        minus[place] = {
            name: object_masks.summary(values - areas["random"]) for name, values in areas.items()
        }
    counts = {
        "curve_images": min(settings.curve_images, len(data)),
        "unit_images": min(settings.unit_images, len(data)),
    }
    metrics = found.metrics | counts | {"area": nested(area), "minus_random": nested(minus)}
    return replace(found, metrics=metrics, stated={"layer": layer})


def least_first(
    model: nn.Module,
    data: ImageSet,
    layer: str,
    importance: Mapping[str, Tensor],
    fractions: Sequence[float],
) -> dict[str, Tensor]:
    """The test of `ersm_lab.evaluation.deletion` for several rankings at once, with or without a mask.

    The layers up to the tokens run once. {"<ranking>.<per cent>": bool (N,)}
    """
    stage = rankings.token_stage(model, layer)
    mask = stage if isinstance(stage, EnergyMask) and stage.enabled else None
    keep = {
        f"{name}.{100 * fraction:g}": token_deletion.keep_masks(maps, fraction)  # (N, h, w)
        for name, maps in importance.items()
        for fraction in fractions
    }
    right: dict[str, list[Tensor]] = {name: [] for name in keep}
    start = 0
    with evaluating(model):
        for x, labels in data.inputs(batch_size(data)):
            with replaced_mask(mask, torch.ones_like) if mask else nullcontext():
                whole = rankings.layer_tokens(model, layer, x)  # (B, C, H, W), nothing masked
            with rankings.rest_of_network(model, layer, x) as rest:
                for name, kept in keep.items():
                    part = kept[start : start + len(x)].to(whole)[:, None]  # (B, 1, h, w)
                    side = whole.shape[2] // part.shape[2]
                    part = part.repeat_interleave(side, 2).repeat_interleave(side, 3)
                    right[name].append(rest(whole * part).argmax(1) == labels)
            start += len(x)
    return {name: torch.cat(parts).cpu() for name, parts in right.items()}
