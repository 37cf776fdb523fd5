"""From settings to the untrained network, part by part."""

from __future__ import annotations

import torch
from torch import nn

from ersm_attach import attach_energy_mask
from ersm_lab.networks import backbones, controls, filled_mask, norms, pruning
from ersm_lab.networks.sdnet import attach_sparse_coding, sdnet18
from ersm_lab.training.config import Config, Experiment, MaskPlace


def build(experiment: Experiment, *, classes: int) -> nn.Module:
    """The untrained network of an experiment; its start is drawn from the experiment's seed.

    Networks of one seed and backbone that differ in their mask, in what normalises them or in what is
    pruned start from the same weights.

    Raises:
        ValueError: a layer that is unknown or that a part does not fit.
    """
    config = experiment.own
    torch.manual_seed(experiment.seed)
    model = _backbone(config, classes)
    place = config.mask
    if place:
        _masked(model, place, config.dropped)
    if config.norm and config.after:
        assert isinstance(model, backbones.CifarNet)
        norms.replace_norms(model, config.norm, after=config.after)
    if config.sparsity is not None:
        pruning.attach(model)
    return model


def _masked(model: nn.Module, place: MaskPlace, dropped: str | None) -> None:
    for layer in place.layers:
        if place.preset in controls.KINDS:
            controls.attach(model, layer, place.preset, **place.settings)
        else:
            attach_energy_mask(model, layer, preset=place.preset, **place.settings)
    if dropped:  # once all masks are drawn
        for layer in place.layers:
            filled_mask.put_in(model, layer, dropped=dropped, preset=place.preset, **place.settings)


def _backbone(config: Config, classes: int) -> nn.Module:
    """The network that carries the parts, with sparse codes where they stand."""
    coding = config.coding
    if coding and config.backbone == "resnet18":
        return sdnet18(classes=classes, settings=coding.settings)
    model = backbones.make(config.backbone, classes=classes)
    if coding:
        convs = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and n != "stem.0"]
        for layer in convs if coding.layers is None else coding.layers:
            attach_sparse_coding(model, layer, coding.settings)
    return model
