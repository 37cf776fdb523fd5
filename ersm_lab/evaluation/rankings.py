"""What tokens can be ranked by: learned energies, magnitudes, gradients, and maps that know nothing.

Every ranking is an importance map (N, h, w), one value a token and larger for more important, so that
it can go to `deletion` and `deletion_insertion` as it is.

    energy                      -E of the mask, unary and pairwise together (arXiv:2604.06893)
    unary                       -E_unary alone; the order of the logit, but for ties by rounding
    logit                       -z of the mask
    magnitude                   L2 norm of the token before the mask
    magnitude_masked            the same after it
    grad_cam                    Grad-CAM at the layer (Selvaraju et al., 2017, arXiv:1610.02391)
    integrated_gradients        of the image, averaged over each token's pixels (Sundararajan et al.,
                                2017, arXiv:1703.01365)
    token_integrated_gradients  the same method between tokens of zeros and the layer's tokens
    random                      by lot
    centre                      minus the distance from the centre
    edges                       Sobel gradient of the image, averaged over each token's pixels

The first three and `magnitude_masked` need a mask. Where there is one, both gradient rankings read the
tokens after it. They attribute a class's logit, keep the sign and leave out Grad-CAM's final ReLU: it
changes no order among positive values and makes ties of all others. Ties are common elsewhere, too (a
constant map is nothing but ties), and whoever ranks by a map deletes tied tokens in reading order.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transforms

from ersm_core import EnergyMask
from ersm_lab.common import checks
from ersm_lab.evaluation.deletion import MOST_SIDE, centre_prior, random_ranking, token_norms
from ersm_lab.evaluation.inference import energy_masks, evaluating
from ersm_lab.images.data import ImageSet

ENERGIES = ("energy", "unary", "logit")
MAGNITUDES = ("magnitude", "magnitude_masked")
GRADIENTS = ("grad_cam", "integrated_gradients", "token_integrated_gradients")
CONTROLS = ("random", "centre", "edges")  # none of them looks at the network
RANKINGS = (*ENERGIES, *MAGNITUDES, *GRADIENTS, *CONTROLS)
# Gradients are of the predicted class: what they keep longest is what speaks for that class, and a
# deletion by them can hardly change the prediction. These rankings do not know it.
CLASS_FREE = (*ENERGIES, *MAGNITUDES, *CONTROLS)
# Whose tokens are ranked where no mask says which: of a CifarNet, of a ResNet-18.
LAYERS = ("group1", "layer2")

_NEED_A_MASK = (*ENERGIES, "magnitude_masked")


def rank_tokens(
    model: nn.Module,
    data: ImageSet,
    layer: str,
    *,
    names: Collection[str] | None = None,
    patch_size: int = 1,
    target: str = "predicted",
    seed: int = 0,
) -> dict[str, Tensor]:
    """Importance maps of one layer's tokens, by several rankings.

    Args:
        model: a network, with or without an energy mask at the layer.
        data: images; normalised for the network here.
        layer: a name from `model.named_modules()`, or the one the mask was attached to.
        names: of `RANKINGS`; None takes all that the network has.
        patch_size: side of a token in positions of the map; a mask uses its own.
        target: the class that gradients are of: "predicted", or "label" for the true one.
        seed: of the random ranking.

    Returns:
        {name: (N, h, w)}, larger is more important.

    Raises:
        ValueError: an unknown layer, name or target; a ranking that needs a mask where there is none.
    """
    masked = _is_masked(token_stage(model, layer))
    checks.labelled("data", data)
    checks.whole("patch_size", patch_size)
    checks.seed("seed", seed)
    _check_target(target)
    if names is not None:
        checks.several("names", names)
    else:
        names = [name for name in RANKINGS if masked or name not in _NEED_A_MASK]
    for name in names:
        if name not in RANKINGS:
            raise ValueError(f"names: no ranking {name!r}: choose of {', '.join(RANKINGS)}")
    maps = dict(magnitudes(model, data, layer, patch_size=patch_size))
    if any(name in ENERGIES for name in names):
        maps |= energies(model, data, layer)
    for name in names:
        if name in _NEED_A_MASK and name not in maps:
            raise ValueError(f"{name!r} needs an enabled energy mask at {layer!r}: there is none")
    _, height, width = maps["magnitude"].shape
    grid = (height, width)
    if "grad_cam" in names:
        maps["grad_cam"] = grad_cam(model, data, layer, patch_size=patch_size, target=target)
    if "integrated_gradients" in names:
        maps["integrated_gradients"] = integrated_gradients(model, data, grid, target=target)
    if "token_integrated_gradients" in names:
        maps["token_integrated_gradients"] = token_integrated_gradients(
            model, data, layer, patch_size=patch_size, target=target
        )
    if "random" in names:
        maps["random"] = random_ranking((len(data), *grid), seed=seed)
    if "centre" in names:
        maps["centre"] = centre_prior(*grid).expand(len(data), *grid)
    if "edges" in names:
        maps["edges"] = edge_strength(data, grid)
    return {name: maps[name] for name in names}


# --- what the mask and the map hold ----------------------------------------------------------------


def energies(model: nn.Module, data: ImageSet, layer: str) -> dict[str, Tensor]:
    """Minus the mask's energy, minus its unary part, minus its logit: what it keeps comes first.

    Returns:
        {"energy", "unary", "logit"}, each (N, h, w).

    Raises:
        ValueError: an unknown layer, or no enabled mask at it.
    """
    mask = token_stage(model, layer)
    checks.labelled("data", data)
    if not _is_masked(mask):
        raise ValueError(
            f"no enabled energy mask at {layer!r}: attach or enable one, or rank by `magnitudes`"
        )
    parts: dict[str, list[Tensor]] = {name: [] for name in ENERGIES}
    with evaluating(model):
        for x, _ in data.inputs():
            model(x)
            for name, found in parts.items():
                found.append(-getattr(mask.state, name)[:, 0])  # (B, h, w)
    return {name: torch.cat(found) for name, found in parts.items()}


def magnitudes(
    model: nn.Module, data: ImageSet, layer: str, *, patch_size: int = 1
) -> dict[str, Tensor]:
    """The L2 norm of every token of a layer, before and after the mask.

    Args:
        model, data, layer: as in `rank_tokens`.
        patch_size: as in `rank_tokens`.

    Returns:
        {"magnitude": (N, h, w)} and, with an enabled mask, "magnitude_masked" of the same shape.

    Raises:
        ValueError: an unknown layer, or one that does not return one feature map.
    """
    stage = token_stage(model, layer)
    checks.labelled("data", data)
    checks.whole("patch_size", patch_size)
    masked, side = _is_masked(stage), _patch_size(stage, patch_size)
    parts: dict[str, list[Tensor]] = {name: [] for name in MAGNITUDES[: 1 + masked]}

    def look(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        _check_patch(_check_map(output, layer), side)
        parts["magnitude"].append(token_norms(args[0] if masked else output, side))  # (B, h, w)
        if masked:
            parts["magnitude_masked"].append(token_norms(output, side))  # (B, h, w)

    handle = stage.register_forward_hook(look)
    try:
        with evaluating(model):
            for x, _ in data.inputs():
                model(x)
    finally:
        handle.remove()
    return {name: torch.cat(found) for name, found in parts.items()}


# --- gradients -------------------------------------------------------------------------------------


def grad_cam(
    model: nn.Module,
    data: ImageSet,
    layer: str,
    *,
    patch_size: int = 1,
    target: str = "predicted",
    batch_size: int = 250,
) -> Tensor:
    """Grad-CAM without its final ReLU, by captum: sum over channels of mean gradient times feature.

    Args:
        model, data, layer, patch_size, target: as in `rank_tokens`; where the token is a patch, the
            mean over its positions.
        batch_size: images a pass.

    Returns:
        (N, h, w), in units of the logit.

    Raises:
        ValueError: an unknown layer or target.

    Source: Selvaraju et al. (2017), arXiv:1610.02391, equations 1 and 2.
    """
    from captum.attr import LayerGradCam  # here: it takes a second, and most uses need it not

    stage = token_stage(model, layer)
    checks.labelled("data", data)
    checks.whole("patch_size", patch_size)
    checks.whole("batch_size", batch_size)
    _check_target(target)
    side = _patch_size(stage, patch_size)
    method, maps = LayerGradCam(model, stage), []
    with evaluating(model):
        for x, labels in data.inputs(batch_size):
            found = method.attribute(x, target=_classes(model(x), labels, target))  # (B, 1, H, W)
            _check_patch(_check_map(found, layer), side)
            maps.append(F.avg_pool2d(found, side)[:, 0].detach())  # (B, h, w)
    return torch.cat(maps)


def integrated_gradients(
    model: nn.Module,
    data: ImageSet,
    grid: tuple[int, int],
    *,
    target: str = "predicted",
    steps: int = 32,
    batch_size: int = 50,
) -> Tensor:
    """Integrated gradients of the image, by captum, summed over colours and averaged over tokens.

    The path is straight, from zeros in normalised space (the mean colour) to the image. Summed over
    all pixels, the map is the logit at the image minus the logit at zeros (completeness).

    Args:
        model, data, target: as in `rank_tokens`.
        grid: (h, w) of the tokens; that of the image gives one value a pixel.
        steps: points on the path.
        batch_size: images a pass, each `steps` times.

    Returns:
        (N, h, w), in units of the logit.

    Raises:
        ValueError: an unknown target, a network whose gradient does not reach the image, a wrong grid.

    Source: Sundararajan, Taly & Yan (2017), arXiv:1703.01365, equations 1 and 3.
    """
    from captum.attr import IntegratedGradients

    checks.network("model", model)
    checks.labelled("data", data)
    _check_grid(grid, data.images)
    _check_target(target)
    checks.whole("steps", steps, most=checks.MOST)
    checks.whole("batch_size", batch_size)
    method, maps = IntegratedGradients(model), []
    with evaluating(model):
        for x, labels in data.inputs(batch_size):
            x = x.requires_grad_()  # (B, 3, H, W)
            if not _gradient_reaches(model, x):
                raise ValueError(
                    f"no gradient reaches the image through {type(model).__name__}, as where the "
                    "features are computed without one: use token_integrated_gradients"
                )
            index = _classes(model(x), labels, target)
            found = method.attribute(x, target=index, n_steps=steps)  # (B, 3, H, W)
            maps.append(on_grid(found.detach().sum(1), grid).float())  # (B, h, w)
    return torch.cat(maps)


def token_integrated_gradients(
    model: nn.Module,
    data: ImageSet,
    layer: str,
    *,
    patch_size: int = 1,
    target: str = "predicted",
    steps: int = 32,
    batch_size: int = 50,
) -> Tensor:
    """Integrated gradients of the layer's tokens, from zeros to what they are; summed over channels.

    Its baseline is that of token deletion: a token of zeros. Only the network after the layer is seen.

    Args:
        model, data, layer, patch_size, target: as in `rank_tokens`; where the token is a patch, the
            mean over its positions.
        steps, batch_size: as in `integrated_gradients`.

    Returns:
        (N, h, w), in units of the logit.

    Raises:
        ValueError: an unknown layer or target.
    """
    from captum.attr import IntegratedGradients

    side, maps = _patch_size(token_stage(model, layer), patch_size), []
    checks.labelled("data", data)
    checks.whole("patch_size", patch_size)
    _check_target(target)
    checks.whole("steps", steps, most=checks.MOST)
    checks.whole("batch_size", batch_size)
    with evaluating(model):
        for x, labels in data.inputs(batch_size):
            tokens = layer_tokens(model, layer, x).requires_grad_()  # (B, C, H, W)
            _check_patch(tokens, side)
            with rest_of_network(model, layer, x) as rest:
                index = _classes(rest(tokens), labels, target)
                method = IntegratedGradients(rest)
                found = method.attribute(tokens, target=index, n_steps=steps)  # (B, C, H, W)
            maps.append(F.avg_pool2d(found.detach().sum(1), side).float())  # (B, h, w)
    return torch.cat(maps)


# --- what the image holds --------------------------------------------------------------------------


def edge_strength(data: ImageSet, grid: tuple[int, int]) -> Tensor:
    """Length of the Sobel gradient of the grey image, averaged over each token's pixels.

    Grey is 0.2989 red + 0.587 green + 0.114 blue; at the border the image is continued by its edge.

    Args:
        data: images.
        grid: (h, w) of the tokens; that of the image gives one value a pixel.

    Returns:
        (N, h, w), in grey levels of 0 to 1, eight times the slope a pixel.
    """
    checks.labelled("data", data)
    _check_grid(grid, data.images)
    images = data.images.permute(0, 3, 1, 2).float() / 255  # (N, 3, H, W)
    grey = transforms.rgb_to_grayscale(images)  # (N, 1, H, W)
    across = grey.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])  # (3, 3)
    kernels = torch.stack([across, across.T])[:, None]  # (2, 1, 3, 3)
    slopes = F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), kernels)  # (N, 2, H, W)
    return on_grid(slopes.norm(dim=1), grid)


def on_grid(pixels: Tensor, grid: Sequence[int]) -> Tensor:
    """Average a map of pixels over the tokens of a grid, (N, H, W) -> (N, h, w).

    Raises:
        ValueError: the grid does not divide the image.
    """
    checks.tensor("pixels", pixels, "(N, H, W)", "floats", finite=False)
    height, width = pixels.shape[1:]
    checks.several("grid", grid, least=2, most=2)
    for side in grid:
        checks.whole("grid", side, most=MOST_SIDE)
    if height % grid[0] or width % grid[1]:
        raise ValueError(
            f"a grid of {grid[0]} x {grid[1]} does not divide an image of {height} x {width}: "
            "choose a layer whose map does"
        )
    return F.avg_pool2d(pixels, (height // grid[0], width // grid[1]))


# --- a layer's tokens ------------------------------------------------------------------------------


def token_layer(model: nn.Module, layers: Sequence[str] = LAYERS) -> str:
    """The layer whose tokens are ranked: that of the first mask, else the first of `layers` there is.

    Raises:
        ValueError: no mask and none of the layers.
    """
    there = [*energy_masks(model)] or [
        name for name in layers if name in dict(model.named_modules())
    ]
    if not there:
        raise ValueError(
            f"{type(model).__name__} has no mask and none of the layers {', '.join(layers)}: name "
            "one of its own in the settings"
        )
    return there[0]


def token_stage(model: nn.Module, layer: str) -> nn.Module:
    """The module whose output the tokens are: the layer's energy mask, or the layer if it has none.

    Raises:
        ValueError: no such layer.
    """
    checks.text("layer", layer)
    masks, layers = energy_masks(model), dict(model.named_modules())
    if layer in masks:
        return masks[layer]
    if layer not in layers or not layer:
        names = [name for name in layers if name]
        near = difflib.get_close_matches(layer, names, n=5, cutoff=0.3) or names[:5]
        raise ValueError(
            f"no layer {layer!r} in {type(model).__name__}; nearest names: {', '.join(near)}"
        )
    return layers[layer]


def layer_tokens(model: nn.Module, layer: str, x: Tensor) -> Tensor:
    """What the layer passes on, after its mask if it has one, (B, 3, H, W) -> (B, C, h, w).

    Raises:
        ValueError: no such layer, one that is not run, or does not return one feature map.
    """
    stage = token_stage(model, layer)
    checks.tensor("x", x, "(B, 3, H, W)", "floats", finite=False)
    seen: list[Tensor] = []

    def look(module: nn.Module, args: tuple, output: Tensor) -> None:
        seen.append(_check_map(output, layer).detach().clone())  # the next layer may write into it

    handle = stage.register_forward_hook(look)
    try:
        model(x)
    finally:
        handle.remove()
    if not seen:
        raise ValueError(f"{type(model).__name__} does not run layer {layer!r}: name one it does")
    return seen[-1]


@contextmanager
def rest_of_network(
    model: nn.Module, layer: str, x: Tensor
) -> Iterator[Callable[[Tensor], Tensor]]:
    """While open, a function from what the layer passes on, (B, C, h, w), to logits (B, classes).

    The network runs on the first image of x, whose tokens then give way to those that are handed
    over: all layers before cost one image. So nothing may bypass the layer (a stage of a residual
    network will do, a layer inside a residual block will not).
    """
    given: list[Tensor] = []
    stage = token_stage(model, layer)
    checks.tensor("x", x, "(B, 3, H, W)", "floats", finite=False)
    handle = stage.register_forward_hook(lambda module, args, output: given[-1])

    def rest(tokens: Tensor) -> Tensor:
        given[:] = [tokens]
        return model(x[:1].detach())

    try:
        yield rest
    finally:
        handle.remove()


def _is_masked(stage: nn.Module) -> bool:
    return isinstance(stage, EnergyMask) and stage.enabled


def _patch_size(stage: nn.Module, patch_size: int) -> int:
    return stage.patch_size if isinstance(stage, EnergyMask) else patch_size


def _check_map(output: object, layer: str) -> Tensor:
    if not isinstance(output, Tensor) or output.dim() != 4:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"layer {layer!r} returns {got}, not a feature map (B, C, H, W)")
    return output


def _classes(logits: Tensor, labels: Tensor, target: str) -> Tensor:
    """The class of each image that is looked at, (B, classes) and (B,) -> (B,)."""
    return labels if target == "label" else checks.answers(logits).argmax(1)


def _check_target(target: str) -> None:
    if target not in ("predicted", "label"):
        raise ValueError(f'target must be "predicted" or "label", got {target!r}')


def _check_patch(tokens: Tensor, side: int) -> None:
    if side > min(tokens.shape[2:]):
        raise ValueError(
            f"patch_size {side} is larger than the layer's map of {tuple(tokens.shape[2:])}: choose "
            "one that divides its sides"
        )


def _check_grid(grid: Sequence[int], images: Tensor) -> None:
    checks.images("data.images", images)
    checks.several("grid", grid, least=2, most=2)
    for side in grid:
        checks.whole("grid", side, most=min(images.shape[1:3]))


def _gradient_reaches(model: nn.Module, x: Tensor) -> bool:
    with torch.enable_grad():
        total = model(x[:1]).sum()
        if not total.requires_grad:
            return False
        return torch.autograd.grad(total, x, allow_unused=True)[0] is not None
