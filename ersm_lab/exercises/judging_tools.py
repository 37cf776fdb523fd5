"""Checks of the page of tools before the judging."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def check_lenders(function: Callable[[Tensor], Tensor]) -> str | None:
    """Whether function(labels) says whose mask each image gets: one of another class, each once.

    labels are whole numbers (N,), no class more than half of them. Returns None if it is right, else
    what is wrong.
    """
    generator = torch.Generator().manual_seed(0)
    for classes, count in ((10, 500), (2, 40)):
        labels = torch.arange(count) % classes
        labels = labels[torch.randperm(count, generator=generator)]
        order = function(labels.clone())
        if (
            not isinstance(order, Tensor)
            or order.shape != labels.shape
            or order.is_floating_point()
        ):
            return f"return the index of an image for each of the {count}: whole numbers (N,)"
        if torch.equal(order, torch.arange(count).roll(1)):
            return "that is the image before in the batch: it may be of the same class"
        if (order < 0).any() or (order >= count).any() or len(order.unique()) < count:
            return (
                "some image lends its mask twice, and another one never: it should be a permutation"
            )
        same = (labels[order] == labels).sum().item()
        if same:
            return f"{same} of {count} images get the mask of an image of their own class"
    return None


def check_alike(function: Callable[[float, float, float], str]) -> str | None:
    """Whether function(low, high, margin) decides that two methods differ by no more than a margin.

    Returns None if it is right, else what is wrong.
    """
    wanted = {
        (-0.2, 0.3): "holds",
        (0.1, 0.3): "holds",
        (0.7, 2.0): "fails",
        (-2.0, -0.7): "fails",
        (-0.2, 2.0): "open",
        (-4.0, 4.0): "open",
    }
    given = {ends: function(*ends, 0.5) for ends in wanted}
    if not set(given.values()) <= {"holds", "fails", "open"}:
        return 'answer "holds", "fails" or "open"'
    if given[-4.0, 4.0] == "holds":
        return "an interval from -4 to 4 holds zero, but it says nothing: that is open, not alike"
    if given[0.1, 0.3] != "holds":
        return "from 0.1 to 0.3 a difference is shown, and it is within 0.5: alike by this margin"
    if given[-2.0, -0.7] != "fails":
        return "from -2 to -0.7 they differ by more than 0.5, on the other side: that fails"
    for (low, high), right in wanted.items():
        if given[low, high] != right:
            return f"from {low} to {high} the answer is {right}, yours is {given[low, high]}"
    return None
