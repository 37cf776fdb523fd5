"""What a suite finds, and the accuracy of a network under conditions.

Accuracy under a condition is that of the same images under all conditions of a suite, the first so
many of the test set. Which of them are classified rightly is kept for every condition, so that two
networks can be compared image by image (`answer_bits.by_condition`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ersm_lab.evaluation.inference import evaluating
from ersm_lab.images.data import ImageSet

BATCH = {"cpu": 250, "cuda": 2_500}  # images a pass; more leave the caches of a small machine
Conditions = Mapping[str, Callable[[], Tensor]]  # {name: makes the images, uint8 (N, H, W, 3)}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a suite found.

    Attributes:
        metrics: plain numbers, for a record.
        conditions: names, in order; a condition's accuracy is the metric `accuracy.<its name>`.
        right: bool (conditions, N), which images are classified rightly; None without conditions.
        stated: what a record's config says besides the settings.
        seconds: that it took.
    """

    metrics: dict
    conditions: tuple[str, ...] = ()
    right: Tensor | None = None
    stated: dict = field(default_factory=dict)
    seconds: float = 0.0


def under(
    model: nn.Module,
    data: ImageSet,
    conditions: Conditions,
    groups: Mapping[str, Sequence[str]],
    *,
    title: str,
    progress: bool = False,
) -> Finding:
    """Which images are classified rightly under each condition, one after the other."""
    right = {
        name: (predicted(model, data, make()) == data.labels).cpu()
        for name, make in tqdm(conditions.items(), desc=title, disable=not progress)
    }
    return accuracies(right, groups)


def predicted(model: nn.Module, data: ImageSet, images: Tensor) -> Tensor:
    """The class of each of these images, uint8 (N, H, W, 3), in the place of data's, (N,)."""
    low = images.is_cuda  # whose half precision has the mantissa of the TF32 it would take else
    with evaluating(model), torch.autocast(images.device.type, torch.float16, enabled=low):
        batches = replace(data, images=images).inputs(batch_size(data))
        return torch.cat([model(x).argmax(1) for x, _ in batches])


def batch_size(data: ImageSet) -> int:
    return BATCH[data.images.device.type]


def accuracies(
    right: Mapping[str, Tensor], groups: Mapping[str, Sequence[str]] | None = None
) -> Finding:
    """Accuracy under each condition, and the mean accuracy of each group of conditions.

    Args:
        right: {condition: bool (N,)}, which images are classified rightly.
        groups: {name: conditions}.
    """
    answers = torch.stack([*right.values()])  # (conditions, N)
    shares = dict(zip(right, answers.double().mean(1).tolist(), strict=True))
    metrics = {"images": answers.shape[1], "accuracy": nested(shares)}
    if groups:
        metrics["mean"] = {
            group: sum(shares[name] for name in members) / len(members)
            for group, members in groups.items()
        }
    return Finding(metrics=metrics, conditions=tuple(right), right=answers)


def joined(parts: Iterable) -> str:
    return ".".join(map(str, parts))


def nested(values: Mapping[str, Any]) -> dict:
    """{"a.b": 1} -> {"a": {"b": 1}}."""
    tree: dict = {}
    for name, value in values.items():
        *path, last = name.split(".")
        branch = tree
        for part in path:
            branch = branch.setdefault(part, {})
        branch[last] = value
    return tree
