"""Checks of chapter 1, the quickstart."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ersm_core import energy_states


def check_masked_resnet(function: Callable[[], nn.Module]) -> str | None:
    """Whether function() is a ResNet-18 of torchvision with one energy mask, after `layer2`.

    Returns None if it is right, else what is wrong.
    """
    model = function()
    if not isinstance(model, nn.Module):
        return f"return the network, not {type(model).__name__}"
    if not hasattr(model, "layer2"):
        return "the network has no layer2: take torchvision.models.resnet18"
    with torch.no_grad():
        model.eval()(torch.zeros(2, 3, 64, 64))
    where = [*energy_states(model)]
    if not where:
        return "there is no mask in it: attach_energy_mask(model, ...) puts one there"
    if where != ["layer2"]:
        return f"the mask belongs after layer2 and nowhere else, yours is after {', '.join(where)}"
    return None


def check_ramp(function: Callable[[float], float]) -> str | None:
    """Whether function(progress) is 0 up to one half, rises to 1 over a tenth, and stays there.

    Returns None if it is right, else what is wrong.
    """
    wanted = {0.0: 0.0, 0.25: 0.0, 0.5: 0.0, 0.525: 0.25, 0.55: 0.5, 0.6: 1.0, 0.8: 1.0, 1.0: 1.0}
    given = {progress: float(function(progress)) for progress in wanted}
    if given[0.25] < 0:
        return "before one half the weight is negative: the energy would be rewarded"
    if given[0.8] > 1:
        return "it rises beyond 1: after a tenth of the steps the weight stays at 1"
    if abs(given[0.8] - 0.6) < 1e-6:
        return "it rises over the whole second half: after a tenth of all steps it should be 1"
    for progress, right in wanted.items():
        if abs(given[progress] - right) > 1e-6:
            return f"at progress {progress:g} it should be {right:g}, yours is {given[progress]:g}"
    return None
