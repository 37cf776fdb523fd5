"""What a trained network does: accuracy, and whether its masks mean anything.

A mask that is constant keeps its accuracy and proves nothing (normalisation absorbs any uniform
scale). So every masked network is also scored with its mask replaced: by its mean value, by its mean
at each position, by another image's mask, and by ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ersm_core import EnergyMask
from ersm_lab.common import checks
from ersm_lab.images.data import Labelled


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's mode is put back afterwards."""
    checks.network("model", model)
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            model.eval()
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def predict(model: nn.Module, data: Labelled, *, flip: bool = False) -> Tensor:
    """Logits of all images, (N, classes) float32; with `flip`, the mean over both mirror images.

    Raises:
        ValueError: no images, or answers of NaN or infinity; so everything here that asks a network.
    """
    _check(model, data)
    checks.flag("flip", flip)
    logits = _logits(model, data)
    return 0.5 * (logits + _logits(model, data, mirror=True)) if flip else logits


def accuracy(model: nn.Module, data: Labelled, *, flip: bool = False) -> float:
    """Share of images classified rightly, 0 to 1."""
    return _share_right(predict(model, data, flip=flip), data)


def look(model: nn.Module, data: Labelled) -> tuple[Tensor, dict[str, Tensor]]:
    """One pass over all images: logits, (N, classes) float32, and {layer: masks (N, 1, H, W)}."""
    _check(model, data)
    masks = energy_masks(model)
    logits: list[Tensor] = []
    seen: dict[str, list[Tensor]] = {layer: [] for layer in masks}
    with evaluating(model):
        for x, _ in data.inputs():
            logits.append(model(x).float())
            for layer, mask in masks.items():
                seen[layer].append(checks.state(mask).mask)
    whole = checks.answers(torch.cat(logits))
    return whole, {layer: torch.cat(parts) for layer, parts in seen.items()}


def collect_masks(model: nn.Module, data: Labelled) -> Tensor:
    """Masks of all images, (N, 1, H, W), of the model's only energy mask."""
    only_mask(model)
    (masks,) = look(model, data)[1].values()
    return masks


def energy_masks(model: nn.Module) -> dict[str, EnergyMask]:
    """{layer: its energy mask}, in the order of the network; empty for a dense one."""
    checks.network("model", model)
    found = {n: m for n, m in model.named_modules() if isinstance(m, EnergyMask)}
    return {getattr(mask, "attached_to", name): mask for name, mask in found.items()}


def only_mask(model: nn.Module) -> EnergyMask:
    """The model's energy mask.

    Raises:
        ValueError: it has none, or more than one.
    """
    masks = list(energy_masks(model).values())
    if len(masks) != 1:
        raise ValueError(f"expected a model with one energy mask, this one has {len(masks)}")
    return masks[0]


@contextmanager
def replaced_mask(mask: EnergyMask, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While open, `mask` multiplies by change(m) instead of by m, both (B, 1, H, W), and its state
    says so to layers that read it."""

    checks.a("mask", mask, EnergyMask)
    checks.function("change", change)

    def use_instead(module: EnergyMask, args: tuple[Tensor], output: Tensor) -> Tensor:
        state = checks.state(module)
        m = change(state.mask).expand_as(state.mask)  # (B, 1, H, W)
        module.state = state._replace(mask=m)
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
    checks.tensor("masks", masks, "(N, 1, H, W)", "floats")
    checks.whole("classes", classes)
    checks.labels("labels", labels, len(masks), classes)
    per_image = masks.mean((1, 2, 3))  # (N,)
    present = [per_image[labels == c] for c in range(classes)]
    return {
        "kept_fraction": per_image.mean().item(),
        "between_images_sd": per_image.std(correction=0).item(),
        "within_image_sd": masks.flatten(1).std(1, correction=0).mean().item(),
        "position_sd": masks.mean(0).std(correction=0).item(),
        "kept_by_class": [part.mean().item() if len(part) else None for part in present],
    }


def mask_controls(
    model: nn.Module, data: Labelled, masks: Tensor | Mapping[str, Tensor]
) -> dict[str, float]:
    """Accuracy with the mask replaced; where there are several, with all of them at once.

    Args:
        model: a masked network.
        data: images.
        masks: the model's own on these images, (N, 1, H, W), or {layer: such masks}.

    Returns:
        uniform: by the mean over images and positions; position_mean: by the mean over images;
        other_image: by the mask of the image before it in the batch; ones: by 1.

    Raises:
        ValueError: a model without masks, or masks of other layers or images.
    """
    _check(model, data)
    modules = energy_masks(model)
    if isinstance(masks, Tensor):
        only_mask(model)
        masks = dict.fromkeys(modules, masks)
    checks.a("masks", masks, Mapping)
    if not modules or masks.keys() != modules.keys():
        raise ValueError(
            f"masks must be those of the model's layers {[*modules]}, got those of {[*masks]}"
        )
    for layer, own in masks.items():
        checks.tensor(f"masks of {layer!r}", own, f"({len(data)}, 1, H, W)", "floats")

    def uniform(own: Tensor, m: Tensor) -> Tensor:
        return own.mean().expand_as(m)  # (B, 1, H, W)

    def position_mean(own: Tensor, m: Tensor) -> Tensor:
        return own.mean(0, keepdim=True)  # (1, 1, H, W)

    def other_image(own: Tensor, m: Tensor) -> Tensor:
        return m.roll(1, 0)  # (B, 1, H, W)

    def ones(own: Tensor, m: Tensor) -> Tensor:
        return torch.ones_like(m)  # (B, 1, H, W)

    scores = {}
    for change in (uniform, position_mean, other_image, ones):
        with ExitStack() as stack:
            for layer, mask in modules.items():
                stack.enter_context(replaced_mask(mask, partial(change, masks[layer])))
            scores[change.__name__] = accuracy(model, data)
    return scores


def check_invariants(model: nn.Module, data: Labelled) -> dict[str, float]:
    """What must hold of every masked network, tried on the first images.

    Returns:
        mask_min, mask_max: of the masks, within 0 and 1; energy_min: not negative.

    Raises:
        ValueError: a network without a mask.
        RuntimeError: one of these does not hold, or with all logits at minus infinity the network is
            not bit for bit the one without a mask.
    """
    _check(model, data)
    masks, some = list(energy_masks(model).values()), data[:500]
    if not masks:
        raise ValueError("model has no energy mask, and so no invariants: attach one")
    logits = predict(model, some)
    states = [checks.state(mask) for mask in masks]  # of maps (B, 1, H, W)
    found = {
        "mask_min": min(state.mask.min().item() for state in states),
        "mask_max": max(state.mask.max().item() for state in states),
        "energy_min": min(state.energy.min().item() for state in states),
    }
    if not (found["mask_min"] >= 0 and found["mask_max"] <= 1 and found["energy_min"] >= 0):
        raise RuntimeError(f"a mask outside 0 to 1, or a negative energy: {found}")
    biases = [mask.bias.detach().clone() for mask in masks]
    try:
        for mask in masks:
            mask.bias.data.fill_(float("-inf"))
        opened = predict(model, some)
        for mask in masks:
            mask.enabled = False
        dense = predict(model, some)
    finally:
        for mask, bias in zip(masks, biases, strict=True):
            mask.bias.data.copy_(bias)
            mask.enabled = True
    if all(mask.gate == "logit" for mask in masks) and not torch.equal(opened, dense):
        raise RuntimeError("with its mask wide open the network is not the one without a mask")
    if not torch.equal(predict(model, some), logits):
        raise RuntimeError("the network does not give the same answer twice")
    return found


def evaluate(model: nn.Module, data: Labelled, *, validation: Labelled | None = None) -> dict:
    """The metrics of a record: accuracies, and for a masked network its masks and their controls.

    Args:
        model: a trained network.
        data: test images.
        validation: the images by which settings are chosen; their numbers are under "validation".

    Returns:
        test_accuracy, test_accuracy_flip, parameters; for a masked network mask (`mask_statistics`,
        of the first one where there are several), masks ({layer: statistics}, only then),
        accuracy_with_mask_replaced (`mask_controls`) and invariants.

    Raises:
        ValueError: no images, or answers of NaN or infinity.
    """
    if validation is not None:
        checks.labelled("validation", validation)
    logits, masks = look(model, data)
    mirrored = _logits(model, data, mirror=True)
    metrics: dict[str, Any] = {
        "test_accuracy": _share_right(logits, data),
        "test_accuracy_flip": _share_right(logits + mirrored, data),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    if masks:
        metrics |= _masked(model, data, masks)
        metrics["invariants"] = check_invariants(model, data)
    if validation is not None:
        logits, masks = look(model, validation)
        metrics["val_accuracy"] = _share_right(logits, validation)
        metrics["validation"] = _masked(model, validation, masks) if masks else {}
    return metrics


def _masked(model: nn.Module, data: Labelled, masks: dict[str, Tensor]) -> dict:
    found = {
        layer: mask_statistics(own, data.labels, len(data.classes)) for layer, own in masks.items()
    }
    metrics = {"mask": next(iter(found.values()))}
    if len(found) > 1:
        metrics["masks"] = found
    return metrics | {"accuracy_with_mask_replaced": mask_controls(model, data, masks)}


def has_mask(model: nn.Module) -> bool:
    """Whether the model has an energy mask."""
    return bool(energy_masks(model))


def answers(model: nn.Module, data: Labelled) -> Tensor:
    """Which images are classified rightly, bool (N,)."""
    return _right(predict(model, data), data).cpu()


def progress(model: nn.Module, data: Labelled) -> dict[str, float]:
    """A row of the training curve: accuracy and, where a mask is on, its spread (of the first one,
    on the first 1,000 images)."""
    if not any(mask.enabled for mask in energy_masks(model).values()):
        return {"val_accuracy": accuracy(model, data)}
    logits, masks = look(model, data)
    first = next(iter(masks.values()))[:1_000]
    found = mask_statistics(first, data.labels[:1_000], len(data.classes))
    del found["kept_by_class"]
    spread = {f"val_{name}": value for name, value in found.items()}
    return {"val_accuracy": _share_right(logits, data)} | spread


def _logits(model: nn.Module, data: Labelled, *, mirror: bool = False) -> Tensor:
    """Logits of all images, or of their mirror images, (N, classes) float32."""
    with evaluating(model):
        parts = [model(x.flip(3) if mirror else x).float() for x, _ in data.inputs()]
    return checks.answers(torch.cat(parts))


def _share_right(logits: Tensor, data: Labelled) -> float:
    return _right(logits, data).double().mean().item()


def _right(logits: Tensor, data: Labelled) -> Tensor:
    """Which images are classified rightly, bool (N,)."""
    if len(logits) != len(data) or data.labels.max() >= logits.shape[1]:
        raise ValueError(
            f"model answers {tuple(logits.shape)} where {len(data)} images have labels up to "
            f"{data.labels.max().item()}: it is a network of other classes"
        )
    return logits.argmax(1) == data.labels


def _check(model: nn.Module, data: Labelled) -> None:
    checks.network("model", model)
    checks.labelled("data", data)
