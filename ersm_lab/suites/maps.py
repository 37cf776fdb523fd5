"""Maps of a network that the suites of deletion and of objects ask for: of tokens and of pixels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ersm_core import EnergyMask
from ersm_lab.evaluation import deletion, deletion_insertion, inference, object_masks, rankings
from ersm_lab.images.data import ImageSet


def importance_of(
    model: nn.Module, data: ImageSet, layer: str, names: Sequence[str], *, seed: int = 0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Importance of tokens, {name: (N, h, w)}, and of pixels, {name: (N, H, W)}.

    Maps of tokens are stretched to pixels; what knows pixels by itself ranks them by itself.
    """
    size = (data.images.shape[1], data.images.shape[2])
    stage = rankings.token_stage(model, layer)
    if not is_mask(stage):
        names = [name for name in names if name not in (*rankings.ENERGIES, "magnitude_masked")]
    of_tokens = [name for name in names if name != "integrated_gradients"]
    tokens = rankings.rank_tokens(model, data, layer, names=of_tokens, seed=seed)
    grid = next(iter(tokens.values())).shape[1:]
    own = {
        "random": lambda: deletion.random_ranking((len(data), *size), seed=seed),
        "centre": lambda: deletion.centre_prior(*size).expand(len(data), *size),
        "edges": lambda: rankings.edge_strength(data, size),
        "integrated_gradients": lambda: rankings.integrated_gradients(model, data, size),
    }
    pixels = {
        name: own[name]() if name in own else deletion_insertion.resize(tokens[name], size)
        for name in names
    }
    if "integrated_gradients" in names:
        tokens["integrated_gradients"] = rankings.on_grid(pixels["integrated_gradients"], grid)
    return {name: tokens[name] for name in names}, pixels


def is_mask(stage: nn.Module) -> bool:
    return isinstance(stage, EnergyMask) and stage.enabled


def pixel_maps(
    model: nn.Module, data: ImageSet, layer: str, controls: Sequence[str], *, seed: int = 0
) -> dict[str, Tensor]:
    """What is held against the objects, {name: (N, H, W)}; with controls also the mask's energies."""
    names = ["magnitude", "grad_cam", *controls]
    if controls:
        names = ["logit", "energy", "magnitude", "magnitude_masked", "grad_cam", *controls]
    maps: dict[str, Tensor] = {}
    masks = inference.look(model, data)[1]
    if layer in masks:
        size = (data.images.shape[1], data.images.shape[2])
        maps["mask"] = object_masks.to_pixels(masks[layer], size, smooth=False)
    return maps | importance_of(model, data, layer, names, seed=seed)[1]
