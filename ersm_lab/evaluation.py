"""What a trained network does: accuracy, and whether its masks mean anything.

A mask that is constant keeps its accuracy and proves nothing (normalisation absorbs any uniform
scale). So every masked network is also scored with its mask replaced: by its mean value, by its mean
at each position, by another image's mask, and by ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ersm_core import EnergyMask
from ersm_lab.data import ImageSet


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's mode is put back afterwards."""
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            model.eval()
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def predict(model: nn.Module, data: ImageSet, *, flip: bool = False) -> Tensor:
    """Logits of all images, (N, classes) float32; with `flip`, the mean over both mirror images."""
    with evaluating(model):
        passes = [
            0.5 * (model(x) + model(x.flip(3))) if flip else model(x) for x, _ in data.inputs()
        ]
    return torch.cat(passes).float()


def accuracy(model: nn.Module, data: ImageSet, *, flip: bool = False) -> float:
    """Share of images classified rightly, 0 to 1."""
    return (predict(model, data, flip=flip).argmax(1) == data.labels).double().mean().item()


def collect_masks(model: nn.Module, data: ImageSet) -> Tensor:
    """Masks of all images, (N, 1, H, W), of the model's only energy mask."""
    mask = only_mask(model)
    collected = []
    with evaluating(model):
        for x, _ in data.inputs():
            model(x)
            collected.append(mask.state.mask)
    return torch.cat(collected)


def only_mask(model: nn.Module) -> EnergyMask:
    """The model's energy mask.

    Raises:
        ValueError: it has none, or more than one.
    """
    masks = [m for m in model.modules() if isinstance(m, EnergyMask)]
    if len(masks) != 1:
        raise ValueError(f"expected a model with one energy mask, this one has {len(masks)}")
    return masks[0]


@contextmanager
def replaced_mask(mask: EnergyMask, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While open, `mask` multiplies by change(m) instead of by m, both (B, 1, H, W)."""

    def use_instead(module: EnergyMask, args: tuple[Tensor], output: Tensor) -> Tensor:
        m = change(module.state.mask)  # (B, 1, H, W)
        if module.patch_size > 1:
            m = F.interpolate(m, scale_factor=module.patch_size, mode="nearest")
        return args[0] * m.to(output.dtype)  # (B, C, H, W)

    handle = mask.register_forward_hook(use_instead)
    try:
        yield
    finally:
        handle.remove()


def mask_statistics(masks: Tensor, labels: Tensor, classes: int) -> dict:
    """How much is kept and what it depends on.

    Args:
        masks: (N, 1, H, W), between 0 and 1.
        labels: (N,).
        classes: their number.

    Returns:
        kept_fraction: mean of m.
        between_images_sd: standard deviation over images of an image's mean m.
        within_image_sd: mean over images of the standard deviation over positions.
        position_sd: standard deviation over positions of the mean mask: a fixed pattern has it all.
        kept_by_class: mean of m for each class.
    """
    per_image = masks.mean((1, 2, 3))  # (N,)
    present = [per_image[labels == c] for c in range(classes)]
    return {
        "kept_fraction": per_image.mean().item(),
        "between_images_sd": per_image.std(correction=0).item(),
        "within_image_sd": masks.flatten(1).std(1, correction=0).mean().item(),
        "position_sd": masks.mean(0).std(correction=0).item(),
        "kept_by_class": [part.mean().item() if len(part) else None for part in present],
    }


def mask_controls(model: nn.Module, data: ImageSet, masks: Tensor) -> dict[str, float]:
    """Accuracy with the mask replaced; `masks` (N, 1, H, W) are the model's own on these images.

    Returns:
        uniform: by the mean over images and positions; position_mean: by the mean over images;
        other_image: by the mask of the image before it in the batch; ones: by 1.
    """
    mean, positions = masks.mean(), masks.mean(0, keepdim=True)  # (), (1, 1, H, W)
    changes: dict[str, Callable[[Tensor], Tensor]] = {
        "uniform": lambda m: mean.expand_as(m),
        "position_mean": lambda m: positions.expand_as(m),
        "other_image": lambda m: m.roll(1, 0),
        "ones": torch.ones_like,
    }
    mask, scores = only_mask(model), {}
    for name, change in changes.items():
        with replaced_mask(mask, change):
            scores[name] = accuracy(model, data)
    return scores


def check_invariants(model: nn.Module, data: ImageSet) -> dict[str, float]:
    """What must hold of every masked network, tried on the first images.

    Returns:
        mask_min, mask_max: of the mask, within 0 and 1; energy_min: not negative.

    Raises:
        RuntimeError: one of these does not hold, or with all logits at minus infinity the network is
            not bit for bit the one without a mask.
    """
    mask, some = only_mask(model), data[:500]
    logits = predict(model, some)
    m, energy = mask.state.mask, mask.state.energy  # (B, 1, H, W) each
    found = {"mask_min": m.min(), "mask_max": m.max(), "energy_min": energy.min()}
    found = {name: value.item() for name, value in found.items()}
    if not (found["mask_min"] >= 0 and found["mask_max"] <= 1 and found["energy_min"] >= 0):
        raise RuntimeError(f"a mask outside 0 to 1, or a negative energy: {found}")
    bias = mask.bias.detach().clone()
    try:
        mask.bias.data.fill_(float("-inf"))
        opened = predict(model, some)
        mask.enabled = False
        dense = predict(model, some)
    finally:
        mask.bias.data.copy_(bias)
        mask.enabled = True
    if mask.gate == "logit" and not torch.equal(opened, dense):
        raise RuntimeError("with its mask wide open the network is not the one without a mask")
    if not torch.equal(predict(model, some), logits):
        raise RuntimeError("the network does not give the same answer twice")
    return found


def evaluate(model: nn.Module, data: ImageSet, *, validation: ImageSet | None = None) -> dict:
    """The metrics of a record: accuracies, and for a masked network its masks and their controls.

    Args:
        model: a trained network.
        data: test images.
        validation: the images by which settings are chosen; their numbers are under "validation".
    """
    metrics = {
        "test_accuracy": accuracy(model, data),
        "test_accuracy_flip": accuracy(model, data, flip=True),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    if has_mask(model):
        metrics |= _masked(model, data)
        metrics["invariants"] = check_invariants(model, data)
    if validation is not None:
        metrics["val_accuracy"] = accuracy(model, validation)
        metrics["validation"] = _masked(model, validation) if has_mask(model) else {}
    return metrics


def _masked(model: nn.Module, data: ImageSet) -> dict:
    masks = collect_masks(model, data)
    return {
        "mask": mask_statistics(masks, data.labels, len(data.classes)),
        "accuracy_with_mask_replaced": mask_controls(model, data, masks),
    }


def has_mask(model: nn.Module) -> bool:
    """Whether the model has an energy mask."""
    return any(isinstance(m, EnergyMask) for m in model.modules())


def answers(model: nn.Module, data: ImageSet) -> Tensor:
    """Which images are classified rightly, bool (N,)."""
    return (predict(model, data).argmax(1) == data.labels).cpu()


def progress(model: nn.Module, data: ImageSet) -> dict[str, float]:
    """A row of the training curve: accuracy and, where a mask is on, its spread."""
    row = {"val_accuracy": accuracy(model, data)}
    if has_mask(model) and only_mask(model).enabled:
        masks = collect_masks(model, data[:1_000])
        found = mask_statistics(masks, data.labels[:1_000], len(data.classes))
        del found["kept_by_class"]
        row |= {f"val_{name}": value for name, value in found.items()}
    return row
