"""Energy-Regularized Spatial Masking (ERSM): the method in one file, torch only.

A feature map is read as a grid of tokens p_i. A small layer gives every token an energy and keeps
the tokens whose energy is low (Devynck et al., 2026, arXiv:2604.06893):

    logit_i     z_i = w . p^_i + b_i                                      p^ = p / ||p||_2
    agreement_i a_i = sum over neighbours j of i:  p^_i . p^_j
    energy      E_i = lambda_unary * softplus(z_i) + lambda_pair * softplus(a_i)
    mask        m_i = sigmoid(-z_i / T)    or, read literally,    sigmoid(-lambda_unary * softplus(z_i))
    regulariser L_reg = mean over tokens and images of  m_i * E_i

    >>> from ersm_core import attach_energy_mask, energy_loss
    >>> model = attach_energy_mask(torchvision.models.resnet18(), "layer3", preset="stable")
    >>> loss = F.cross_entropy(model(images), labels) + energy_loss(model)

Symbols as in the book: `x` feature maps, `p` tokens, `z` logit, `a` agreement, `m` mask, `e` energy.
MIT licence.
"""

from __future__ import annotations

import difflib
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "EnergyMask",
    "EnergyState",
    "attach_energy_mask",
    "detach_energy_mask",
    "energy_loss",
    "energy_states",
    "energy_terms",
]

EPS = 1e-6  # tokens shorter than this are scaled by 1 / EPS, so a zero token stays zero


class EnergyState(NamedTuple):
    """What the last forward pass computed, each (B, 1, H, W) on the grid of tokens, dimensionless."""

    logit: Tensor  # z, any sign; kept where z < 0
    unary: Tensor  # lambda_unary * softplus(z) >= 0
    pairwise: Tensor  # lambda_pair * softplus(a) >= 0
    energy: Tensor  # unary + pairwise >= 0
    mask: Tensor  # m in [0, 1]; exactly 0 or 1 if the gate is hard


def energy_terms(
    tokens: Tensor, weight: Tensor, bias: Tensor, *, neighbourhood: int = 8
) -> tuple[Tensor, Tensor]:
    """The two numbers an energy is made of (arXiv:2604.06893, the arguments of both softplus).

    Tokens are L2-normalised here; half precision is computed in float32.

    Args:
        tokens: (B, D, H, W), one token of D channels at every position.
        weight: (D,), the direction w that is scored.
        bias: () for one bias, (H, W) for one per position.
        neighbourhood: 4 (edges) or 8 (edges and corners). Tokens outside the map do not exist.

    Returns:
        logit: (B, 1, H, W), z_i = w . p^_i + b_i.
        agreement: (B, 1, H, W), a_i = sum_{j in N(i)} p^_i . p^_j, in [-neighbourhood, neighbourhood].

    Raises:
        ValueError: a wrong rank or shape, a neighbourhood other than 4 or 8.
    """
    _check_terms(tokens, weight, bias, neighbourhood)
    p, scale = _full_precision(tokens)  # (B, D, H, W), (B, 1, H, W)
    return _logit(p, scale, weight, bias), _agreement(p * scale, neighbourhood)


def _full_precision(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (B, D, H, W) in at least float32, and 1 / ||p|| of each, (B, 1, H, W)."""
    p = tokens if tokens.dtype == torch.float64 else tokens.float()
    return p, p.square().sum(1, keepdim=True).clamp_min(EPS**2).rsqrt()


def _logit(p: Tensor, scale: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """z = w . p^ + b; scaling w . p is cheaper than scaling every token first."""
    z = p.movedim(1, -1) @ weight.to(p.dtype)  # (B, H, W); a convolution would be TF32 on a GPU
    return z.unsqueeze(1) * scale + bias.to(p.dtype)  # (B, 1, H, W)


def _agreement(p: Tensor, neighbourhood: int) -> Tensor:
    """Each pair of neighbours is multiplied once and counted at both of its ends."""
    a = p.new_zeros(p.shape[0], 1, p.shape[2], p.shape[3])  # (B, 1, H, W)
    steps = [(0, 1), (1, 0)] + ([(1, 1), (1, -1)] if neighbourhood == 8 else [])
    for down, right in steps:
        q = p.flip(3) if right < 0 else p  # the falling-left diagonal is a mirrored falling-right
        height, width, right = p.shape[2] - down, p.shape[3] - abs(right), abs(right)
        pairs = q[:, :, :height, :width] * q[:, :, down:, right:]  # (B, D, H - down, W - right)
        pairs = pairs.sum(1, keepdim=True)  # (B, 1, H - down, W - right)
        both = F.pad(pairs, (0, right, 0, down)) + F.pad(pairs, (right, 0, down, 0))
        a = a + (both.flip(3) if q is not p else both)
    return a


class EnergyMask(nn.Module):
    """The Energy-Mask Layer: multiplies every spatial token by a mask learned from its energy.

    Defaults follow the paper's formulas; where its text is silent, `published` holds what the
    authors' code does and `stable` what trains to an input-adaptive mask inside a network.

    Args:
        channels: C, channels of the feature map.
        dim: project tokens to this many channels (1x1 convolution, no bias); None keeps them.
        patch_size: a token is a patch of this many positions squared, flattened.
        grid: (H, W) of the token map, to learn one bias per position; None learns one for all.
        lambda_unary: weight of the unary energy, >= 0.
        lambda_pair: weight of the pairwise energy, >= 0.
        neighbourhood: 4 or 8 neighbours in the pairwise energy.
        gate: "logit" for m = sigmoid(-z / temperature), "energy" for m = sigmoid(-unary) <= 1/2.
        temperature: T > 0 of the logit gate.
        hard: 0/1 mask (1 where z < 0) with the soft mask's gradient (straight-through, Bengio et
            al., 2013). In training z carries logistic noise (binary concrete, Maddison et al., 2017).
        noise: scale of that noise; 1 is the standard logistic, 0 none.
        detach_pairwise: the pairwise energy sees tokens without gradient, so that neither features nor
            the projection can lower it by making neighbours dissimilar.
        detach_tokens: all energies see tokens without gradient: the mask reads the features, and only
            the task shapes them.
        bias_init: start value of every bias; negative keeps, positive drops.
        train_bias: False holds the bias at `bias_init`.
        check_nan: raise on NaN logits. Costs one synchronisation a step on a GPU; never runs inside
            `torch.compile` or an export.

    Attributes:
        state: the last forward's `EnergyState`; None before one, after a disabled one and in copies.
        enabled: set to False to pass x through untouched, as during a dense warm-up.

    Shape:
        x (B, C, H, W) -> (B, C, H, W), with H and W multiples of `patch_size`.

    Example:
        >>> mask = EnergyMask(64, lambda_pair=0.1)
        >>> y = mask(x)  # (B, 64, H, W)
        >>> loss = task_loss(head(y)) + mask.loss()
    """

    def __init__(
        self,
        channels: int,
        *,
        dim: int | None = None,
        patch_size: int = 1,
        grid: tuple[int, int] | None = None,
        lambda_unary: float = 1e-3,
        lambda_pair: float = 1e-3,
        neighbourhood: int = 8,
        gate: str = "logit",
        temperature: float = 1.0,
        hard: bool = False,
        noise: float = 1.0,
        detach_pairwise: bool = False,
        detach_tokens: bool = False,
        bias_init: float = 0.0,
        train_bias: bool = True,
        check_nan: bool = True,
    ) -> None:
        super().__init__()
        for name, value in {"channels": channels, "dim": dim, "patch_size": patch_size}.items():
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        weights = {"lambda_unary": lambda_unary, "lambda_pair": lambda_pair, "noise": noise}
        for name, value in weights.items():
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be finite and >= 0 (0 switches it off), got {value}")
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature must be finite and > 0, got {temperature}")
        if gate not in ("logit", "energy"):
            raise ValueError(f'gate must be "logit" or "energy", got {gate!r}')
        _check_neighbourhood(neighbourhood)
        if grid is not None and (not isinstance(grid, (tuple, list)) or len(grid) != 2):
            raise ValueError(f"grid must be (H, W) of the token map or None, got {grid!r}")
        grid = None if grid is None else tuple(grid)
        self.channels, self.patch_size, self.grid = channels, patch_size, grid
        self.lambda_unary, self.lambda_pair = float(lambda_unary), float(lambda_pair)
        self.neighbourhood, self.gate, self.temperature = neighbourhood, gate, float(temperature)
        self.hard, self.noise, self.check_nan = hard, float(noise), check_nan
        self.detach_pairwise, self.detach_tokens = detach_pairwise, detach_tokens
        self.enabled = True
        self.state: EnergyState | None = None

        patch_channels = channels * patch_size**2
        self.project = nn.Conv2d(patch_channels, dim, 1, bias=False) if dim else nn.Identity()
        token_channels = dim or patch_channels
        bound = token_channels**-0.5  # that of nn.Linear
        self.weight = nn.Parameter(torch.empty(token_channels).uniform_(-bound, bound))  # (D,)
        bias = torch.full(grid or (), float(bias_init))  # () or (H, W)
        if train_bias:
            self.bias = nn.Parameter(bias)
        else:
            self.register_buffer("bias", bias)

    @classmethod
    def published(cls, channels: int, *, fixed_bias: bool = False, **settings) -> EnergyMask:
        """The settings of the authors' released code, for a frozen backbone's last feature map.

        Soft logit gate at T = 1, no projection, 8 neighbours, both lambdas 1e-3, every bias starting
        at 6, so that the mask starts closed: sigmoid(-6) = 0.0025. As written, each position learns
        its bias (give `grid`). As released, the biases never reach the optimiser and stay at 6:
        `fixed_bias=True`. Other settings go to `EnergyMask` and take precedence.
        """
        preset = dict(lambda_unary=1e-3, lambda_pair=1e-3, neighbourhood=8, gate="logit")
        preset |= dict(temperature=1.0, bias_init=6.0, train_bias=not fixed_bias)
        return cls(channels, **(preset | settings))

    @classmethod
    def stable(cls, channels: int, **settings) -> EnergyMask:
        """Settings under which a mask inside a network becomes sparse and input-adaptive.

        Ours, not the authors': a hard straight-through gate at T = 0.5 (normalisation layers cannot
        rescale a 0/1 mask away) without noise (so that training sees the masks of a test), detached
        pairwise tokens, 4 neighbours, 16 projected channels, bias -1 (starts by keeping most). Switch
        the mask on late, ramp its loss, give it a lower learning rate and no weight decay. Other
        settings go to `EnergyMask` and take precedence.
        """
        preset = dict(dim=16, lambda_unary=0.02, lambda_pair=0.02, neighbourhood=4, gate="logit")
        preset |= dict(temperature=0.5, hard=True, noise=0.0, detach_pairwise=True, bias_init=-1.0)
        return cls(channels, **(preset | settings))

    def forward(self, x: Tensor) -> Tensor:
        """Mask x (B, C, H, W) token by token; the result has the same shape and dtype.

        Raises:
            ValueError: a wrong rank, channel count or map size, or NaN logits.
        """
        if not self.enabled:
            self.state = None
            return x
        self._check_input(x)
        state = self.compute(x)
        if self.check_nan and not _tracing() and torch.isnan(state.logit).any():
            raise ValueError(
                "EnergyMask: NaN logits. Look for NaN or infinite values in its input and parameters "
                "(often a learning rate too high); check_nan=False lets them pass."
            )
        if not _exporting():  # an exported graph keeps no attributes
            self.state = state
        m = state.mask.to(x.dtype)  # (B, 1, H / s, W / s)
        if self.patch_size > 1:
            m = F.interpolate(m, scale_factor=self.patch_size, mode="nearest")  # (B, 1, H, W)
        return x * m  # (B, C, H, W)

    def compute(self, x: Tensor) -> EnergyState:
        """Energies and mask of a feature map x (B, C, H, W), without applying or storing them."""
        tokens = F.pixel_unshuffle(x, self.patch_size) if self.patch_size > 1 else x
        tokens = self.project(
            tokens.detach() if self.detach_tokens else tokens
        )  # (B, D, H / s, W / s)
        with torch.autocast(x.device.type, enabled=False):  # energies are sums: keep full precision
            p, scale = _full_precision(tokens)  # (B, D, H / s, W / s), (B, 1, H / s, W / s)
            z = _logit(p, scale, self.weight, self.bias)  # (B, 1, H / s, W / s)
            unit = (p.detach() * scale.detach()) if self.detach_pairwise else p * scale
            a = _agreement(unit, self.neighbourhood)  # (B, 1, H / s, W / s)
            unary = self.lambda_unary * F.softplus(z)
            pairwise = self.lambda_pair * F.softplus(a)
            return EnergyState(z, unary, pairwise, unary + pairwise, self._mask(z))

    def _mask(self, z: Tensor) -> Tensor:
        """The gate, (B, 1, H, W) -> (B, 1, H, W)."""
        if self.hard and self.training and self.noise > 0:
            z = z - self.noise * torch.logit(torch.rand_like(z).clamp(1e-6, 1 - 1e-6))  # logistic
        if self.gate == "logit":
            soft = torch.sigmoid(-z / self.temperature)
        else:
            soft = torch.sigmoid(-self.lambda_unary * F.softplus(z))
        if not self.hard:
            return soft
        return (z < 0).to(soft.dtype) + (soft - soft.detach())  # exactly 0 or 1, gradient of soft

    def loss(self) -> Tensor:
        """L_reg = mean of mask * energy over tokens and images of the last forward, a scalar >= 0.

        Raises:
            RuntimeError: there was no forward yet, or the mask was not enabled in it.
        """
        if self.state is None:
            raise RuntimeError(
                "EnergyMask has no energies: run a forward pass (enabled), then ask for the loss"
            )
        return (self.state.mask * self.state.energy).mean()

    def _check_input(self, x: Tensor) -> None:
        if not isinstance(x, Tensor) or x.dim() != 4:
            got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"EnergyMask expects a feature map (B, C, H, W), got {got}")
        channels, height, width = x.shape[1:]
        if channels != self.channels:
            raise ValueError(
                f"EnergyMask was made for {self.channels} channels, got a map of {channels}: "
                f"make it with EnergyMask({channels}, ...)"
            )
        s = self.patch_size
        if height % s or width % s:
            raise ValueError(
                f"a map of {height} x {width} does not divide into patches of {s} x {s}: pad it or "
                "choose a patch_size that divides both sides"
            )
        if self.grid and self.grid != (height // s, width // s):
            raise ValueError(
                f"grid={self.grid} holds one bias per token, but this map has "
                f"{height // s} x {width // s} tokens: make the mask with "
                f"grid=({height // s}, {width // s}), or with grid=None for one bias"
            )

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, patch_size={self.patch_size}, lambda_unary={self.lambda_unary:g}, "
            f"lambda_pair={self.lambda_pair:g}, neighbourhood={self.neighbourhood}, "
            f"gate={self.gate!r}, temperature={self.temperature:g}, hard={self.hard}"
        )

    def __getstate__(self) -> dict:  # a copy starts without the last pass's graph
        return {**self.__dict__, "state": None}


# --- attaching a mask to a network -----------------------------------------------------------------


class _ApplyMask:
    """Forward hook that masks a layer's output. An object, so that deepcopy copies its mask along."""

    def __init__(self, mask: EnergyMask) -> None:
        self.mask = mask

    def __call__(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return self.mask(output)


def attach_energy_mask(
    model: nn.Module,
    layer: str,
    *,
    preset: str | None = None,
    channels: int | None = None,
    **settings,
) -> nn.Module:
    """Put an `EnergyMask` after the named layer, in place, so that `model.parameters()` holds it.

    Works on any CNN whose layer returns one feature map. Names of the model's own parameters stay as
    they are, so its checkpoints still load with `strict=False`.

    Args:
        model: the network. Attach before `torch.compile`, DDP and the optimiser.
        layer: a name from `model.named_modules()`, such as "layer3" of a torchvision ResNet.
        preset: "published" or "stable" for the settings of those constructors, None for the defaults.
        channels: channels of the layer's output; None finds out by one pass over a blank image.
        settings: settings of `EnergyMask`.

    Returns:
        The same model.

    Raises:
        ValueError: an unknown layer or preset, a layer that has a mask, channels that cannot be found.
    """
    layers = dict(model.named_modules())
    names = list(layers)[1:]  # the first is the model itself
    if layer not in names:
        near = difflib.get_close_matches(layer, names, n=5, cutoff=0.3) or names[:5]
        raise ValueError(
            f"no layer {layer!r} in {type(model).__name__}; nearest names: {', '.join(near)}"
        )
    target = layers[layer]
    hooked = any(isinstance(hook, _ApplyMask) for hook in target._forward_hooks.values())
    if hooked or "energy_mask" in target._modules:
        raise ValueError(
            f"layer {layer!r} has an energy mask: call detach_energy_mask(model) first"
        )
    if preset not in (None, "published", "stable"):
        raise ValueError(f'preset must be None, "published" or "stable", got {preset!r}')
    channels = channels or _output_channels(model, layer, target)
    mask = (getattr(EnergyMask, preset) if preset else EnergyMask)(channels, **settings)
    for parameter in [*target.parameters(), *model.parameters()][:1]:
        mask.to(parameter.device, parameter.dtype)
    mask.train(target.training)
    mask.attached_to = layer
    # A mask is a child of its layer where that cannot change what the layer runs, else of the model.
    iterated = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    if isinstance(target, nn.Sequential) and type(target).forward is nn.Sequential.forward:
        target.add_module("energy_mask", mask)  # becomes the last step
        return model
    if not isinstance(target, iterated):
        target.add_module("energy_mask", mask)
    elif not isinstance(model, iterated):
        model.add_module("energy_mask_" + layer.replace(".", "_"), mask)
    else:
        raise ValueError(
            f"cannot attach to {type(target).__name__} {layer!r}: name a layer inside it"
        )
    target.register_forward_hook(_ApplyMask(mask))
    return model


def detach_energy_mask(model: nn.Module) -> nn.Module:
    """Take every attached mask off again, in place, and return the model as it was before.

    Raises:
        ValueError: no mask was attached.
    """
    if not any(hasattr(module, "attached_to") for module in model.modules()):
        raise ValueError(f"{type(model).__name__} has no attached energy mask to take off")
    for module in list(model.modules()):
        for key, hook in list(module._forward_hooks.items()):
            if isinstance(hook, _ApplyMask):
                del module._forward_hooks[key]
        for name, child in list(module.named_children()):
            if isinstance(child, EnergyMask) and hasattr(child, "attached_to"):
                delattr(module, name)
    return model


def energy_loss(model: nn.Module) -> Tensor:
    """Sum of L_reg over the model's enabled masks, a scalar >= 0; add it to the task loss.

    Raises:
        ValueError: the model has no mask, or none that is enabled.
        RuntimeError: there was no forward yet.
    """
    losses = [m.loss() for m in model.modules() if isinstance(m, EnergyMask) and m.enabled]
    if not losses:
        raise ValueError(
            f"{type(model).__name__} has no enabled energy mask: attach_energy_mask first"
        )
    return torch.stack(losses).sum()


def energy_states(model: nn.Module) -> dict[str, EnergyState]:
    """{layer name: EnergyState} of the last forward, for every mask of the model that has run."""
    states: dict[str, EnergyState] = {}
    for name, mask in model.named_modules():
        if isinstance(mask, EnergyMask) and mask.state:
            layer = getattr(mask, "attached_to", name)
            states[name if layer in states else layer] = mask.state  # two networks, one layer name
    return states


def _output_channels(model: nn.Module, layer: str, target: nn.Module) -> int:
    """Channels of a layer's output, from a pass over one blank image in evaluation mode."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    modes = {m: m.training for m in model.modules()}
    seen: list[Tensor] = []
    handle = target.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        for size in (32, 64, 224) if first is not None else ():
            blank = first.weight.new_zeros(1, first.in_channels, size, size)  # (1, C, H, W)
            try:
                with torch.no_grad():
                    model.eval()(blank)
                break
            except Exception:  # too small for this network: try the next size
                continue
    finally:
        handle.remove()
        for module, mode in modes.items():
            module.training = mode
            if isinstance(module, EnergyMask):
                module.state = None  # it has seen the blank image
    if not seen or not isinstance(seen[-1], Tensor) or seen[-1].dim() != 4:
        raise ValueError(
            f"cannot tell the channels of layer {layer!r}, which must return one feature map "
            "(B, C, H, W): give channels=..., or name another layer"
        )
    return seen[-1].shape[1]


# --- checks ----------------------------------------------------------------------------------------


def _check_neighbourhood(neighbourhood: int) -> None:
    if neighbourhood not in (4, 8):
        raise ValueError(f"neighbourhood must be 4 or 8, got {neighbourhood!r}")


def _check_terms(tokens: Tensor, weight: Tensor, bias: Tensor, neighbourhood: int) -> None:
    _check_neighbourhood(neighbourhood)
    if tokens.dim() != 4:
        raise ValueError(f"tokens must be (B, D, H, W), got shape {tuple(tokens.shape)}")
    if weight.shape != tokens.shape[1:2]:
        raise ValueError(
            f"weight must be ({tokens.shape[1]},) for these tokens, got {tuple(weight.shape)}"
        )
    if bias.shape not in ((), tokens.shape[2:]):
        raise ValueError(f"bias must be () or {tuple(tokens.shape[2:])}, got {tuple(bias.shape)}")
    if not _tracing() and torch.isnan(tokens).any():
        raise ValueError("tokens hold NaN: look for the layer or the data they come from")


def _tracing() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _exporting() -> bool:
    if torch.onnx.is_in_onnx_export() or torch.jit.is_tracing():
        return True
    return getattr(torch.compiler, "is_exporting", lambda: False)()
