"""Suites of textured shapes, whose true masks are known: objects, and backgrounds that lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ersm_lab.evaluation import object_masks, rankings
from ersm_lab.images import data as lab_data
from ersm_lab.images import shapes
from ersm_lab.images.data import ImageSet
from ersm_lab.suites.finding import Finding, accuracies, nested, predicted
from ersm_lab.suites.maps import pixel_maps


@dataclass(frozen=True, kw_only=True)
class Objects:
    """Maps of the network and controls against the true objects, by `object_masks`.

    Attributes:
        images: the first so many; None is all.
        layers: as in `Deletion`.
        seed: of the random map.
    """

    images: int | None
    layers: tuple[str, ...] = rankings.LAYERS
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Spurious:
    """The same objects on marked backgrounds that tell their class, that lie, and on unmarked ones.

    Attributes:
        images: so many are drawn; those are used whose background lies where it is drawn by lot,
            about nine in ten.
        layers: as in `Deletion`.
    """

    images: int
    layers: tuple[str, ...] = rankings.LAYERS


def objects(
    model: nn.Module, data: ImageSet, settings: Objects, *, progress: bool = False
) -> Finding:
    """Maps of the network against the true objects, beside maps that know nothing of it.

    The maps are the keep mask, the logit and the energy (of a network with a mask), the token's
    magnitude, Grad-CAM of the predicted class, and the controls of `rankings`. `scores` holds, by map
    and score of `object_masks`, mean and standard error over images and how many are undefined;
    `minus_centre` the same of the difference to the centre prior, image by image, and `mask_minus`
    that of the mask to each map. `keep_everything` is the IoU of a mask of ones.

    `by_image` lists, rounded, the AUC of the logit, Grad-CAM and the centre prior and the IoU of the
    mask and of keeping everything, so that networks can be compared image by image.
    """
    truth = _object_masks(data)
    layer = rankings.token_layer(model, settings.layers)
    maps = pixel_maps(model, data, layer, rankings.CONTROLS, seed=settings.seed)
    scores = _scores(maps, truth)
    everything = object_masks.iou(torch.ones_like(truth).float(), truth)  # (N,)
    metrics = {
        "images": len(data),
        "scores": {
            name: {score: object_masks.summary(values) for score, values in found.items()}
            for name, found in scores.items()
        },
        "keep_everything": object_masks.summary(everything),
        "minus_centre": {
            name: _gap(found, scores["centre"])
            for name, found in scores.items()
            if name != "centre"
        },
    }
    compared = [name for name in ("logit", "grad_cam", "centre") if name in scores]
    by_image = {f"{name}.auc": scores[name]["auc"] for name in compared}
    if "mask" in scores:
        metrics["mask_minus"] = {
            name: _gap(scores["mask"], found) for name, found in scores.items() if name != "mask"
        }
        by_image["mask.iou"] = scores["mask"]["iou"]
    by_image["everything.iou"] = everything
    metrics["by_image"] = nested({name: _rounded(values) for name, values in by_image.items()})
    return Finding(metrics=metrics, stated={"layer": layer})


def _gap(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict:
    """Of the scores that both maps have, the difference image by image, summarised."""
    shared = [score for score in one if score in other]
    return {score: object_masks.summary(one[score] - other[score]) for score in shared}


def spurious(
    model: nn.Module, data: ImageSet, settings: Spurious, *, progress: bool = False
) -> Finding:
    """Conditions "truth", "lies" and "unmarked": the same objects, on other backgrounds.

    The images are drawn here, with the seed of the test set; of `data` only the normalisation and the
    classes count. `follows_background` is the share of the images with a lying background that are
    taken for the class it stands for. `maps` holds, by condition and map (the keep mask, magnitude
    and Grad-CAM), the shares of `object_masks`: for a mask also how much of either is kept.
    """
    _object_masks(data)
    layer = rankings.token_layer(model, settings.layers)
    draws = {
        name: shapes.textured_shapes(
            settings.images,
            seed=lab_data.SHAPES_SEED["test"],
            spurious=share,
            size=data.images.shape[1],
        )
        for name, share in {"truth": 1.0, "lies": 0.0, "unmarked": None}.items()
    }
    kinds = draws["lies"].backgrounds  # (N,)
    lies = kinds != draws["lies"].labels  # (N,)
    right, maps = {}, {}
    for name, made in draws.items():
        images = replace(
            data,
            images=made.images.permute(0, 2, 3, 1).contiguous(),  # (N, H, W, 3)
            labels=made.labels,
            masks=made.masks,
        )[lies].to(data.images.device)
        answers = predicted(model, images, images.images)  # (N,)
        right[name] = (answers == images.labels).cpu()
        if name == "lies":
            follows = (answers.cpu() == kinds[lies]).double().mean().item()
        scores = _scores(pixel_maps(model, images, layer, ()), _object_masks(images))
        maps[name] = {
            kind: {
                score: object_masks.summary(values)
                for score, values in found.items()
                if score.endswith(("object", "background"))
            }
            for kind, found in scores.items()
        }
    found = accuracies(right)
    metrics = found.metrics | {"follows_background": follows, "maps": maps}
    return replace(found, metrics=metrics, stated={"layer": layer})


def _scores(maps: Mapping[str, Tensor], truth: Tensor) -> dict[str, dict[str, Tensor]]:
    """{map: {score: (N,)}} of maps (N, H, W); the keep mask's has more scores."""
    return {
        name: (object_masks.mask_scores if name == "mask" else object_masks.saliency_scores)(
            values, truth
        )
        for name, values in maps.items()
    }


def _object_masks(data: ImageSet) -> Tensor:
    if data.masks is None:
        raise ValueError(
            f"where the objects are in {data.name!r} is not known: take a network and images of "
            "textured shapes"
        )
    return data.masks  # (N, H, W)


def _rounded(values: Tensor) -> list[float | None]:
    return [round(value, 4) if value == value else None for value in values.tolist()]
