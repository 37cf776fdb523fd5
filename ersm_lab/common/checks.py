"""What a public function says to a value that it cannot use: its name, the value, what it must be.

A value of the wrong type is a TypeError, one without a meaning a ValueError. Nothing is converted:
what is handed over is what is used and recorded.
"""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Mapping
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from ersm_core import EnergyMask, EnergyState

MOST = 1_000_000  # of what is done again and again: more is a slip, and would not end
HUGE = 2**40  # what no count is, and what torch still takes
MOST_SEED = 2**40  # a seed times a million is still a whole number of 64 bits

_KINDS = {  # of the entries of a tensor
    "floats": lambda t: t.is_floating_point(),
    "numbers": lambda t: not t.is_complex() and t.dtype != torch.bool,
    "bools": lambda t: t.dtype == torch.bool,
    "uint8": lambda t: t.dtype == torch.uint8,
    "whole numbers": lambda t: t.dtype == torch.int64,
    "bools or numbers": lambda t: not t.is_complex(),
}


def shown(value: object) -> str:
    """A value in an error message: short, and a tensor by its type and shape."""
    if isinstance(value, Tensor):
        return f"a tensor of {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return reprlib.repr(value)


def number(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> None:
    """A finite number within bounds; no bool."""
    bounds = {"at least": least, "above": above, "at most": most, "below": below}
    words = " and ".join(f"{word} {end:g}" for word, end in bounds.items() if end is not None)
    wanted = f"{name} must be a finite number {words}".rstrip()
    if not _is_real(value):
        raise TypeError(f"{wanted}, got {shown(value)}")
    inside = (
        abs(value) <= 1e300  # NaN and infinity are not
        and (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
        and (below is None or value < below)
    )
    if not inside:
        raise ValueError(f"{wanted}, got {shown(value)}")


def whole(name: str, value: Any, *, least: int = 1, most: int = HUGE) -> None:
    """A whole number within bounds; no bool, and no 2.0."""
    wanted = f"{name} must be a whole number of at least {least} and at most {most}"
    if not _is_real(value):
        raise TypeError(f"{wanted}, got {shown(value)}")
    is_whole = isinstance(value, Integral)
    if not is_whole or not least <= value <= most:
        raise ValueError(f"{wanted}, got {shown(value)}")


def _is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def seed(name: str, value: object) -> None:
    """A seed: a whole number, not negative."""
    whole(name, value, least=0, most=MOST_SEED)


def flag(name: str, value: object) -> None:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {shown(value)}")


def choice(name: str, value: object, known: Collection[str]) -> None:
    """One of several words."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be one of {', '.join(known)}, got {shown(value)}")
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def text(name: str, value: object) -> None:
    """Any words at all."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, got {shown(value)}")
    if not value:
        raise ValueError(f"{name} is empty: give its words")


def several(name: str, value: object, *, least: int = 1, most: int | None = None) -> None:
    """A tuple, a list or the like of so many entries; no text, which has letters for entries."""
    if not isinstance(value, Collection) or isinstance(value, (str, bytes, Mapping, Tensor)):
        raise TypeError(f"{name} must be a tuple or a list, got {shown(value)}")
    if len(value) < least or (most is not None and len(value) > most):
        count = f"{least} or more" if most is None else f"{least} to {most}"
        raise ValueError(
            f"{name} must have {least if least == most else count} entries, got {shown(value)}"
        )


def a(name: str, value: object, kind: type | tuple[type, ...]) -> None:
    """An object of a class."""
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        raise TypeError(
            f"{name} must be {' or '.join(k.__name__ for k in kinds)}, got {shown(value)}"
        )


def network(name: str, value: object) -> None:
    """An `nn.Module`."""
    a(name, value, nn.Module)


def function(name: str, value: object) -> None:
    """Something that can be called."""
    if not callable(value):
        raise TypeError(f"{name} must be a function, got {shown(value)}")


def tensor(name: str, value: object, shape: str, kind: str, *, finite: bool = True) -> None:
    """A tensor with something in it.

    Args:
        shape: such as "(N, H, W, 3)": as many sides, and numbers where they stand.
        kind: of the entries, of `_KINDS`.
        finite: whether NaN and infinity are refused.
    """
    wanted = f"{name} must be a tensor {shape} of {kind}"
    if not isinstance(value, Tensor):
        raise TypeError(f"{wanted}, got {shown(value)}")
    sides = [side for side in shape.strip("()").replace(" ", "").split(",") if side]
    fits = value.dim() == len(sides) and all(
        not side.isdigit() or int(side) == length
        for side, length in zip(sides, value.shape, strict=True)
    )
    if not (fits and _KINDS[kind](value)):
        raise ValueError(f"{wanted}, got {shown(value)}")
    if not value.numel():
        raise ValueError(f"{wanted} with something in it, got {shown(value)}")
    if finite and not value.isfinite().all():
        raise ValueError(f"{name} holds NaN or infinity: look for where they come from")


def images(name: str, value: object) -> None:
    """uint8 images with their channels last, as an `ImageSet` holds them."""
    tensor(name, value, "(N, H, W, 3)", "uint8")


def labelled(name: str, value: Any) -> None:
    """An `ImageSet` with images in it, or a set that can take its place, as `protocols.FeatureSet`."""
    if not all(hasattr(value, part) for part in ("inputs", "labels", "classes")):
        raise TypeError(f"{name} must be an ImageSet, got {shown(value)}")
    if not len(value):
        raise ValueError(f"{name} holds no images: give one at least")
    labels(f"{name}.labels", value.labels, len(value), len(value.classes))
    inputs = getattr(value, "images", getattr(value, "maps", value.labels))
    if len(inputs) != len(value):
        raise ValueError(
            f"{name} has {len(inputs)} images and {len(value)} labels: give one for each"
        )


def labels(name: str, value: Any, count: int, classes: int) -> None:
    """Numbers of classes, one for each of so many images."""
    tensor(name, value, f"({count},)", "whole numbers")
    if not (value.min() >= 0 and value.max() < classes):
        raise ValueError(
            f"{name} must be numbers of the {classes} classes, 0 to {classes - 1}, got "
            f"{value.min().item()} to {value.max().item()}"
        )


def state(mask: EnergyMask) -> EnergyState:
    """What an energy mask made of its last input.

    Raises:
        RuntimeError: there was no forward yet, or it did not run the mask.
    """
    if mask.state is None:
        raise RuntimeError("the mask has no state: run a forward pass with the mask enabled")
    return mask.state


def answers(logits: Tensor) -> Tensor:
    """The logits of a network, (N, classes), as they are.

    Raises:
        ValueError: they hold NaN or infinity, and their largest means nothing.
    """
    if not isinstance(logits, Tensor) or logits.dim() < 2:
        raise ValueError(f"the network must answer with logits (N, classes), got {shown(logits)}")
    if not logits.isfinite().all():
        bad = int((~logits.isfinite().flatten(1).all(1)).sum())
        raise ValueError(
            f"the network answers NaN or infinity for {bad} of {len(logits)} inputs: look for NaN "
            "in its weights, as after a learning rate too high, and in the images"
        )
    return logits


def kin(names: str, *shapes: tuple[int, ...]) -> None:
    """Shapes that must be the same."""
    if len({tuple(shape) for shape in shapes}) > 1:
        raise ValueError(f"{names} must have one shape, got {' and '.join(map(str, shapes))}")
