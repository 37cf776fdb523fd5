"""Putting an `EnergyMask` into a network that is already there, by the name of one of its layers.

    >>> from ersm_attach import attach_energy_mask
    >>> from ersm_core import energy_loss
    >>> model = attach_energy_mask(torchvision.models.resnet18(), "layer3", preset="stable")
    >>> loss = F.cross_entropy(model(images), labels) + energy_loss(model)

A mask runs exactly once in a pass, on one map (B, C, H, W); a layer of which that is not true is refused
with the reason and with layers that would do. What layers return is seen by passing blank images
through a copy. Torch only; MIT licence.
"""

from __future__ import annotations

import copy
import difflib
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ersm_core import EnergyMask, is_exporting

__all__ = ["attach_energy_mask", "detach_energy_mask"]


class _Hooks:
    """Run the mask that `holder` holds: after its layer, and once in a pass of the model.

    An object, so that deepcopy copies its holder along; another mask may take the first one's place.
    """

    def __init__(self, holder: nn.Module, name: str) -> None:
        self.holder, self.name = holder, name

    def begin(self, model: nn.Module, args: tuple) -> None:
        mask = self.holder._modules.get(self.name)
        if isinstance(mask, EnergyMask) and not is_exporting():
            mask.state, mask._in_pass = None, True

    def apply(self, layer: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return getattr(self.holder, self.name)(output)

    def end(self, model: nn.Module, args: tuple, output: object) -> None:
        mask = self.holder._modules.get(self.name)
        if not isinstance(mask, EnergyMask) or not mask._in_pass:
            return
        mask._in_pass = False
        if mask.state is not None or not mask.enabled or output is None:  # ran, is off, or an error
            return
        in_place = (self.apply in m._forward_hooks.values() for m in model.modules())
        if not isinstance(self.holder, nn.Sequential) and not any(in_place):
            raise RuntimeError(
                f"the mask of layer {mask.attached_to!r} no longer runs, as the layer was replaced "
                "(by convert_sync_batchnorm?): detach_energy_mask, replace, then attach"
            )


def attach_energy_mask(
    model: nn.Module,
    layer: str,
    *,
    preset: str | None = None,
    channels: int | None = None,
    **settings,
) -> nn.Module:
    """Put an `EnergyMask` after the named layer, in place, so that `model.parameters()` holds it.

    Works on any CNN whose layer runs once a pass and returns one feature map (B, C, H, W). Names of
    the model's own parameters stay as they are, so its checkpoints still load with `strict=False`.

    Args:
        model: the network. Attach after layers are converted, and before `torch.compile`, DDP (with
            `find_unused_parameters=True` if a mask is ever off) and the optimiser.
        layer: a name from `model.named_modules()`, such as "layer3" of a torchvision ResNet.
        preset: "published" or "stable" for the settings of those constructors, None for the defaults.
        channels: channels of the layer's output; None finds out. Needed where no blank image of 32,
            64 or 224 pixels squared gets as far as the layer; then the first pass checks the layer.
        settings: settings of `EnergyMask`.

    Returns:
        The same model.

    Raises:
        ValueError: an unknown layer or preset; a layer that has a mask, runs more than once, runs all
            its children or returns something else than a feature map; channels that cannot be found.
    """
    target = _find(model, layer)
    held_by_model = "energy_mask_" + layer.replace(".", "_")
    functions = [getattr(hook, "__func__", None) for hook in target._forward_hooks.values()]
    held = "energy_mask" in target._modules or held_by_model in model._modules
    if held or _Hooks.apply in functions or isinstance(target, EnergyMask):
        do = "call detach_energy_mask(model) first"
        raise ValueError(f"layer {layer!r} has an energy mask: {do}")
    if preset not in (None, "published", "stable"):
        raise ValueError(f'preset must be None, "published" or "stable", got {preset!r}')
    # A mask is a child of its layer where that cannot change what the layer runs, else of the model.
    iterated = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    last_step = type(target).forward is nn.Sequential.forward
    holder, name = target, "energy_mask"
    if isinstance(target, iterated) and not last_step:
        holder, name = model, held_by_model
        if isinstance(model, iterated):
            kind = type(target).__name__
            raise ValueError(f"cannot attach to {kind} {layer!r}: name a layer inside it")
    passes = _blank_passes(model, layer, probed=holder is target and not last_step)
    channels = _channels(layer, passes, channels)
    mask = (getattr(EnergyMask, preset) if preset else EnergyMask)(channels, **settings)
    for parameter in [*target.parameters(), *model.parameters()][:1]:
        mask.to(parameter.device, parameter.dtype)
    mask.train(target.training)
    mask.attached_to = layer
    holder.add_module(name, mask)
    hooks = _Hooks(holder, name)
    if not last_step:
        target.register_forward_hook(hooks.apply)
    model.register_forward_pre_hook(hooks.begin)
    model.register_forward_hook(hooks.end, always_call=True)
    return model


def detach_energy_mask(model: nn.Module) -> nn.Module:
    """Take every attached mask off again, in place, and return the model as it was before.

    Raises:
        ValueError: no mask was attached.
    """
    if not any(hasattr(module, "attached_to") for module in model.modules()):
        raise ValueError(f"{type(model).__name__} has no attached energy mask to take off")
    for module in list(model.modules()):
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                if isinstance(getattr(hook, "__self__", None), _Hooks):
                    del hooks[key]
                    module._forward_hooks_always_called.pop(key, None)
        for name, child in list(module.named_children()):
            if isinstance(child, EnergyMask) and hasattr(child, "attached_to"):
                delattr(module, name)
    return model


# --- what a layer returns --------------------------------------------------------------------------


def _find(model: nn.Module, layer: str) -> nn.Module:
    names = [name for name, _ in model.named_modules()][1:]  # the first is the model itself
    try:
        if isinstance(layer, str) and layer:
            return model.get_submodule(layer)  # finds aliases too, which are none of the names
    except AttributeError:
        pass
    near = difflib.get_close_matches(str(layer), names, n=5, cutoff=0.3) or names[:5]
    raise ValueError(
        f"no layer {layer!r} in {type(model).__name__}; nearest names: {', '.join(near)}"
    )


def _blank_passes(model: nn.Module, layer: str, *, probed: bool) -> list[dict[str, list[tuple]]]:
    """Up to two passes that get to the layer: {name: shapes of what this layer returned, () of none}.

    Over blank images of two sizes, in evaluation mode, each by a copy that shares parameters and
    nothing else: buffers, modes and lazy layers stay as they are. With `probed`, the layer holds one
    more child, to see whether it loops over its children.
    """
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None:
        return []
    parts = [part for m in model.modules() for part in (m._parameters, m._buffers, vars(m))]
    values = [value for part in parts for value in part.values() if isinstance(value, Tensor)]
    tensors = [value for value in values if not is_lazy(value)]
    copies = {id(t): t if isinstance(t, nn.Parameter) else t.detach().clone() for t in tensors}
    stems = dict.fromkeys([first.in_channels or 3, 3])  # 3: lazy, or behind a space-to-depth step
    like: dict[str, Any] = {"device": first.weight.device, "dtype": first.weight.dtype}
    passes: list[dict[str, list[tuple]]] = []
    for channels, side in [(channels, side) for channels in stems for side in (32, 64, 224)]:
        ran: dict[str, list[tuple]] = {}
        try:
            twin = copy.deepcopy(model, dict(copies)).eval()
            if probed:
                twin.get_submodule(layer).add_module("energy_mask", nn.Identity())
            named = {**dict(twin.named_modules()), layer: twin.get_submodule(layer)}
            for name, module in named.items():
                module.register_forward_hook(partial(_note, ran.setdefault(name, [])))
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                twin(torch.zeros(1, channels, side, side, **like))
        except Exception:  # this network takes no image, or none of this size
            pass
        if ran.get(layer):
            passes.append(ran)
        if len(passes) == 2:
            break
    return passes


def _note(shapes: list[tuple], module: nn.Module, args: tuple, output: object) -> None:
    shapes.append(tuple(getattr(output, "shape", ())))


def _channels(layer: str, passes: list[dict[str, list[tuple]]], given: int | None) -> int:
    """Channels of a layer that returned one map (B, C, H, W) in every pass; otherwise an error."""
    if not passes:
        if given is None:
            why = "where no blank image gets"
            raise ValueError(
                f"cannot tell the channels of layer {layer!r}, {why}: give channels=..."
            )
        return given
    runs = [ran[layer] for ran in passes]
    if any(len(shapes) > 1 for shapes in runs):
        wrong = f"runs {max(map(len, runs))} times in a pass, and a mask belongs to one map"
    elif not _are_maps(runs):
        got = " and ".join(str(shapes[0]) for shapes in runs)
        wrong = f"returns {got}, which is no feature map (B, C, H, W) with one C for all images"
    elif any(ran.get(f"{layer}.energy_mask") for ran in passes):
        wrong = "loops over its children, and would run a mask that it holds a second time"
    elif given is not None and given != runs[0][0][1]:
        wrong = f"returns {runs[0][0][1]} channels, not channels={given!r}"
    else:
        return runs[0][0][1] if given is None else given
    names = [name for name in passes[0] if name not in ("", layer) and "energy_mask" not in name]
    fit = [name for name in names if _are_maps([ran[name] for ran in passes])]
    inside = [name for name in fit if name.startswith(f"{layer}.")]
    near = difflib.get_close_matches(layer, inside or fit, n=3, cutoff=0.3) or fit[:3]
    such = f", such as {', '.join(near)}" if near else ""
    raise ValueError(f"layer {layer!r} {wrong}: name another layer{such}")


def _are_maps(runs: list[list[tuple]]) -> bool:
    """Whether each pass returned one (B, C, H, W), whose C does not depend on the size of the image."""
    if any(len(shapes) != 1 or len(shapes[0]) != 4 for shapes in runs):
        return False
    height, width = runs[0][0][2:]  # not square for a square image: (B, H, W, C)
    return len({shapes[0][1] for shapes in runs}) == 1 and (len(runs) > 1 or height == width)
