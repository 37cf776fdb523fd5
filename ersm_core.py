"""Energy-Regularized Spatial Masking (ERSM): the method in one file, torch only.

A feature map is read as a grid of tokens p_i. A small layer gives every token an energy and keeps
the tokens whose energy is low (Devynck et al., 2026, arXiv:2604.06893):

    logit_i     z_i = w . p^_i + b_i                                      p^ = p / ||p||_2
    agreement_i a_i = sum over neighbours j of i:  p^_i . p^_j
    energy      E_i = lambda_unary * softplus(z_i) + lambda_pair * softplus(a_i)
    mask        m_i = sigmoid(-z_i / T) as released, sigmoid(-lambda_unary * softplus(z_i)) as written
    regulariser L_reg = mean over tokens and images of  m_i * E_i

    >>> features = nn.Sequential(backbone, EnergyMask.stable(256))  # (B, 256, H, W), masked
    >>> loss = F.cross_entropy(head(features(images)), labels) + energy_loss(features)

`ersm_attach` puts a mask into a network that is already there. Both files need torch and nothing else.

As written: the paper's text, m = sigmoid(-E_unary). As released: the gate of the authors' code.
Symbols as in the book: `x` feature maps, `p` tokens, `z` logit, `a` agreement, `m` mask, `e` energy.
MIT licence.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

__all__ = [
    "EnergyMask",
    "EnergyState",
    "energy_loss",
    "energy_states",
    "energy_terms",
    "update_kept",
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
        ValueError: a wrong rank or shape, complex, NaN or infinite values, numbers that
            overflow, a neighbourhood other than 4 or 8.
    """
    _check_terms(tokens, weight, bias, neighbourhood)
    p, scale = _full_precision(tokens)  # (B, D, H, W), (B, 1, H, W)
    logit, agreement = _logit(p, scale, weight, bias), _agreement(p * scale, neighbourhood)
    if _any((scale == 0) | ~logit.isfinite()):
        raise ValueError("tokens or weight overflow: scale them down, or give tokens in float64")
    return logit, agreement


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

    Defaults are the paper's energies and the gate as released; `published` holds what the authors'
    code does and `stable` what trains to an input-adaptive mask inside a network.

    Args:
        channels: C, channels of the feature map.
        dim: project tokens to this many channels (1x1 convolution, no bias); None keeps them.
        patch_size: a token is a patch of this many positions squared, flattened.
        grid: (H, W) of the token map, to learn one bias per position; None learns one for all.
        lambda_unary: weight of the unary energy, >= 0.
        lambda_pair: weight of the pairwise energy, >= 0.
        neighbourhood: 4 or 8 neighbours in the pairwise energy.
        gate: "logit" for m = sigmoid(-z / temperature), the gate as released; "energy" for
            m = sigmoid(-unary) <= 1/2, the gate as written.
        temperature: T > 0 of the logit gate.
        hard: 0/1 mask (1 where z < 0) with the soft mask's gradient (straight-through, Bengio et
            al., 2013). In training z carries logistic noise (binary concrete, Maddison et al., 2017).
        noise: scale of that noise; 1 is the standard logistic, 0 none.
        detach_pairwise: the pairwise energy sees tokens without gradient, so that neither features nor
            the projection can lower it by making neighbours dissimilar.
        detach_tokens: all energies see tokens without gradient: the mask reads the features, and only
            the task shapes them.
        bias_init: start value of every bias; negative keeps (-inf all), positive drops.
        train_bias: False holds the bias at `bias_init`.
        check_nan: raise on NaN logits. Costs one synchronisation a step on a GPU; never runs inside
            `torch.compile` or an export.

    Attributes:
        state: the last forward's `EnergyState`; None before one, in copies, and after a pass that was
            disabled or did not get to the layer.
        enabled: set to False to pass x through untouched, as during a dense warm-up (under DDP with
            `find_unused_parameters=True`).

    Shape:
        x (B, C, H, W) -> (B, C, H, W), with H and W multiples of `patch_size`.

    Example:
        >>> mask = EnergyMask(64, lambda_pair=0.1)
        >>> y = mask(x)  # (B, 64, H, W)
        >>> loss = task_loss(head(y)) + mask.loss()
    """

    attached_to: str  # the layer, where `attach_energy_mask` has put it
    _in_pass = False  # a pass of the model that it was attached to has begun and not ended
    _blind = False  # the last forward ran without gradients

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
        if gate not in ("logit", "energy"):
            raise ValueError(f'gate must be "logit" or "energy", got {gate!r}')
        _check_neighbourhood(neighbourhood)
        if grid is not None and (not isinstance(grid, (tuple, list)) or len(grid) != 2):
            raise ValueError(f"grid must be (H, W) of the token map or None, got {grid!r}")
        self.channels = channels = _whole("channels", channels)
        self.patch_size = patch_size = _whole("patch_size", patch_size)
        if grid is not None:
            grid = (_whole("a side of grid", grid[0]), _whole("a side of grid", grid[1]))
        dim = None if dim is None else _whole("dim", dim)
        self.lambda_unary = _number("lambda_unary", lambda_unary)
        self.lambda_pair = _number("lambda_pair", lambda_pair)
        self.neighbourhood, self.gate, self.grid = neighbourhood, gate, grid
        self.temperature = _number("temperature", temperature, least=1e-9)
        self.hard, self.noise = _flag("hard", hard), _number("noise", noise)
        self.check_nan = _flag("check_nan", check_nan)
        self.detach_pairwise = _flag("detach_pairwise", detach_pairwise)
        self.detach_tokens = _flag("detach_tokens", detach_tokens)
        self.enabled = True
        self.state: EnergyState | None = None

        patch_channels = channels * patch_size**2
        if (size := patch_channels * (dim or 1) + math.prod(grid or ())) > 2**28:
            raise ValueError(f"choose smaller channels, dim, patch_size or grid: {size} weights")
        self.project = nn.Conv2d(patch_channels, dim, 1, bias=False) if dim else nn.Identity()
        token_channels = dim or patch_channels
        bound = token_channels**-0.5  # that of nn.Linear
        self.weight = nn.Parameter(torch.empty(token_channels).uniform_(-bound, bound))  # (D,)
        bias_init = _number("bias_init", bias_init, least=-math.inf)
        bias = torch.full(grid or (), bias_init)  # () or (H, W)
        if _flag("train_bias", train_bias):
            self.bias = nn.Parameter(bias)
        else:
            self.register_buffer("bias", bias)

    @classmethod
    def published(cls, channels: int, *, fixed_bias: bool = False, **settings) -> EnergyMask:
        """The settings of the authors' released code, for a frozen backbone's last feature map.

        Soft gate as released, at T = 1, no projection, 8 neighbours, both lambdas 1e-3, every bias
        starting at 6, so that the mask starts closed: sigmoid(-6) = 0.0025. In the text each position
        learns its bias (give `grid`); in the code the biases never reach the optimiser and stay at 6:
        `fixed_bias=True`. Other settings go to `EnergyMask` and take precedence.
        """
        train_bias = not _flag("fixed_bias", fixed_bias)
        preset: dict[str, Any] = dict(lambda_unary=1e-3, lambda_pair=1e-3, neighbourhood=8)
        preset |= dict(gate="logit", temperature=1.0, bias_init=6.0, train_bias=train_bias)
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
        preset: dict[str, Any] = dict(dim=16, lambda_unary=0.02, lambda_pair=0.02, bias_init=-1.0)
        preset |= dict(neighbourhood=4, gate="logit", temperature=0.5, hard=True, noise=0.0)
        preset |= dict(detach_pairwise=True)
        return cls(channels, **(preset | settings))

    def forward(self, x: Tensor) -> Tensor:
        """Mask x (B, C, H, W) token by token; the result has the same shape and dtype.

        Raises:
            ValueError: a wrong rank, type, channel count or map size, or NaN logits.
            RuntimeError: its layer ran it more than once in a pass of the model.
        """
        if isinstance(x, Proxy):  # torch.fx traces the network: a leaf of its graph
            return x.tracer.create_proxy("call_module", x.tracer.path_of_module(self), (x,), {})
        if not self.enabled:
            self.state = None
            return x
        if self._in_pass and self.state is not None:
            layer = getattr(self, "attached_to", "")
            raise RuntimeError(
                f"layer {layer!r} runs its mask more than once in a pass: attach to one that runs once "
                "and does not loop over its children, such as the block around it"
            )
        self._check_input(x)
        state = self.compute(x)
        if self.check_nan and _any(state.logit.isnan()):
            raise ValueError(
                "EnergyMask: NaN logits. Look for NaN or infinite values in its input and parameters "
                "(often a learning rate too high); check_nan=False lets them pass."
            )
        if not is_exporting():  # an exported graph keeps no attributes
            self.state, self._blind = state, not torch.is_grad_enabled()
        m = state.mask.to(x.dtype)  # (B, 1, H / s, W / s)
        if self.patch_size > 1:
            m = F.interpolate(m, scale_factor=self.patch_size, mode="nearest")  # (B, 1, H, W)
        return x * m  # (B, C, H, W)

    def compute(self, x: Tensor) -> EnergyState:
        """Energies and mask of a feature map x (B, C, H, W), without applying or storing them."""
        s = self.patch_size
        tokens = F.pixel_unshuffle(x, s) if s > 1 else x
        if not x.numel():  # whose shape it leaves as it is
            tokens = x.reshape(x.shape[0], self.channels * s**2, x.shape[2] // s, x.shape[3] // s)
        tokens = tokens.detach() if self.detach_tokens else tokens  # (B, C s^2, H / s, W / s)
        device = "cpu" if x.is_meta else x.device.type  # there is no autocast of meta tensors
        weight = getattr(self.project, "weight", tokens)
        if tokens.dtype == weight.dtype or torch.is_autocast_enabled(device):
            tokens = self.project(tokens)  # (B, D, H / s, W / s)
        else:
            wide = torch.promote_types(tokens.dtype, weight.dtype)
            tokens = F.conv2d(tokens.to(wide), weight.to(wide))  # (B, D, H / s, W / s)
        with torch.autocast(device, enabled=False):  # energies are sums: keep full precision
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

        Without images it is 0.

        Raises:
            RuntimeError: there was no forward yet, it did not run the mask or only without gradients.
        """
        if self.state is None:
            raise RuntimeError(
                "EnergyMask has no energies: run a forward pass (enabled), then ask for the loss; a "
                "pass that skips the layer of a mask leaves none"
            )
        learns = any(p.requires_grad for p in (self.weight, self.bias, *self.project.parameters()))
        learns = learns and self.training and max(self.lambda_unary, self.lambda_pair) > 0
        if learns and self._blind and torch.is_grad_enabled():
            raise RuntimeError(
                "the mask ran without gradients, its loss would train nothing: checkpoint layers with "
                "use_reentrant=False. To look at the loss only, use torch.no_grad() or model.eval()"
            )
        costs = self.state.mask * self.state.energy  # (B, 1, H / s, W / s)
        return costs.mean() if costs.numel() else costs.sum()

    def _check_input(self, x: Tensor) -> None:
        if not isinstance(x, Tensor) or x.dim() != 4:
            got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"EnergyMask expects a feature map (B, C, H, W), got {got}")
        if not x.is_floating_point():
            raise ValueError(f"EnergyMask expects floating-point numbers, got {x.dtype}")
        channels, height, width = x.shape[1:]
        if channels != self.channels:
            do = f"make it with EnergyMask({channels}, ...)"
            if hasattr(self, "attached_to"):
                do = "attach to a layer whose every call returns (B, C, H, W) of the same C"
            raise ValueError(
                f"EnergyMask was made for {self.channels} channels, got a map of {channels}: {do}"
            )
        s = self.patch_size
        if height % s or width % s or not height * width:
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


# --- tokens that are not computed ------------------------------------------------------------------


def update_kept(
    x: Tensor,
    function: Callable[[Tensor], Tensor],
    mask: Tensor,
    *,
    inputs: Tensor | None = None,
    channel_dim: int = 1,
) -> Tensor:
    """x + m * f(inputs) with f run on the tokens alone whose m is not 0: a residual block that skips.

    Only gathering and scattering are added, as in dynamic networks (Verelst & Tuytelaars, 2020,
    arXiv:1912.03203). Where the mask learns, its gradient asks what f makes of dropped tokens too, so
    all are computed then; so they are in exported graphs, whose shapes are fixed.

    Args:
        x: (B, C, H, W), or (B, H, W, C) with channel_dim=-1; dropped tokens leave as they came.
        function: f, from tokens (K, D) to tokens (K, C), each by itself: linear layers, activations
            and layer normalisation; batch normalisation in evaluation mode.
        mask: m (B, 1, H, W), or (B, H, W, 1), such as `EnergyMask.state.mask`.
        inputs: what f reads, (B, D, H, W) or (B, H, W, D), such as a depthwise convolution of x; None
            is x.
        channel_dim: 1 or -1.

    Returns:
        As x.

    Raises:
        ValueError: shapes that do not fit each other, or another channel_dim.
    """
    inputs = x if inputs is None else inputs
    if channel_dim not in (1, -1) or {x.dim(), inputs.dim(), mask.dim()} != {4}:
        raise ValueError(
            f"update_kept wants maps of four dimensions and channel_dim 1 or -1, got "
            f"{tuple(x.shape)}, {tuple(inputs.shape)}, {tuple(mask.shape)} and {channel_dim!r}"
        )
    order, back = ((0, 2, 3, 1), (0, 3, 1, 2)) if channel_dim == 1 else ((0, 1, 2, 3),) * 2
    tokens, start, m = (t.permute(order) for t in (inputs, x, mask))  # (B, H, W, D), C, 1
    if m.shape != (*start.shape[:3], 1) or tokens.shape[:3] != start.shape[:3]:
        raise ValueError(
            f"x {tuple(x.shape)} wants inputs of the same grid and a mask of one channel, got "
            f"{tuple(inputs.shape)} and {tuple(mask.shape)}"
        )
    flat, m = tokens.reshape(-1, tokens.shape[-1]), m.reshape(-1, 1).to(x.dtype)  # (N, D), (N, 1)
    out = start.reshape(-1, start.shape[-1])  # (N, C), N = B H W
    if (torch.is_grad_enabled() and mask.requires_grad) or is_exporting():
        out = out + m * function(flat).to(x.dtype)
    else:
        kept = m.squeeze(1).nonzero().squeeze(1)  # (K,)
        out = out.index_add(0, kept, m[kept] * function(flat[kept]).to(x.dtype))
    return out.view(start.shape).permute(back)


# --- of a whole network ----------------------------------------------------------------------------


def energy_loss(model: nn.Module) -> Tensor:
    """Sum of L_reg over the model's enabled masks, a scalar >= 0; add it to the task loss.

    Raises:
        ValueError: the model has no mask, or none that is enabled.
        RuntimeError: as `EnergyMask.loss`.
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


# --- checks ----------------------------------------------------------------------------------------


def _whole(name: str, value: int) -> int:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return int(value)


def _number(name: str, value: float, *, least: float = 0.0) -> float:
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not least <= value <= 1e9:
        raise ValueError(f"{name} must be a number from {least:g} to 1e9, got {value!r}")
    return float(value)


def _flag(name: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return value


def _check_neighbourhood(neighbourhood: int) -> None:
    if not isinstance(neighbourhood, numbers.Real) or neighbourhood not in (4, 8):
        raise ValueError(f"neighbourhood must be 4 or 8, got {neighbourhood!r}")


def _check_terms(tokens: Tensor, weight: Tensor, bias: Tensor, neighbourhood: int) -> None:
    _check_neighbourhood(neighbourhood)
    given = {"tokens": tokens, "weight": weight, "bias": bias}
    for name, value in given.items():
        if not isinstance(value, Tensor) or value.is_complex():
            raise ValueError(f"{name} must be a tensor of real numbers, got {value!r:.60}")
    if tokens.dim() != 4:
        raise ValueError(f"tokens must be (B, D, H, W), got shape {tuple(tokens.shape)}")
    if weight.shape != tokens.shape[1:2]:
        raise ValueError(
            f"weight must be ({tokens.shape[1]},) for these tokens, got {tuple(weight.shape)}"
        )
    if bias.shape not in ((), tokens.shape[2:]):
        raise ValueError(f"bias must be () or {tuple(tokens.shape[2:])}, got {tuple(bias.shape)}")
    for name, value in given.items():
        if _any(~value.isfinite()):
            raise ValueError(f"NaN or infinity in {name}: look for the layer or data behind them")


def _any(condition: Tensor) -> bool:
    """Whether any entry is true; False where tensors hold no values to look at."""
    try:
        return not _tracing() and bool(condition.any())
    except RuntimeError:  # of torch.vmap, meta and fake tensors
        return False


def _tracing() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def is_exporting() -> bool:
    """Whether a graph is being exported, which keeps no attributes."""
    if torch.onnx.is_in_onnx_export() or torch.jit.is_tracing():
        return True
    return getattr(torch.compiler, "is_exporting", lambda: False)()
