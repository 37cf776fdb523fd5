"""Convolutional sparse coding as a layer: a convolution gives way to the sparse code of its input.

The code is that of `fista`; `sdnet` puts the layer into networks. Three things differ from the released
code of SDNet (Dai et al., NeurIPS 2022, arXiv:2210.12945). From the third step on, it takes the
gradient at c_k and not at y_k; with the published two steps that is the same. It writes unit-norm atoms
into the weights before each pass and its gradient knows nothing of it; here the norm is part of the
function and of its gradient, so that a pass changes no parameter. And it chooses lambda for noisy
images by their labels; here that is `oracle_lambda`, beside a fixed lambda and `LabelFreeLambda`.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ersm_lab.common import checks
from ersm_lab.networks.fista import (
    PUBLISHED,
    CSCSettings,
    Pair,
    at_least_float32,
    full_precision,
    largest_eigenvalue,
    synthesise,
    unrolled,
)

MOST_CHANNELS = 4_096  # of a dictionary, atoms too
MOST_KERNEL = 256  # pixels along a side of an atom


class SparseCoding2d(nn.Module):
    """A drop-in for `nn.Conv2d` that returns the sparse code of its input; no bias, groups, dilation.

    The weight has the shape of the convolution's; an atom is a filter scaled to unit length. Before a
    normalisation layer the length of a convolution's filter does not matter either, so the same
    learning rate and weight decay serve both. In the gradient the step size is a constant, as
    published.

    The step size belongs to the weights and the size of the input. It is kept until the weights
    change; in training, where they change at every step, the power iteration goes on from its last
    vector, which `state_dict` holds, so that a resumed run is the same run. Evaluation starts from it
    too but leaves it as it is.

    `torch.compile` breaks its graph once, at the step size; the FISTA steps are compiled. Under
    autocast the convolutions are of low precision, atoms and step size are not.

    Args:
        in_channels: C.
        out_channels: K, number of atoms.
        kernel_size, stride, padding: whole numbers or pairs, as of `nn.Conv2d`.
        settings: the code's.

    Attributes:
        lambda_l1: lambda in use, at first that of the settings; a number, or a tensor (B,) with one
            for each image of the batch. Set it with `set_lambda` or `using_lambda`.

    Shape:
        x (B, C, H, W), any H and W that the kernel fits in -> (B, K, h, w), as of `nn.Conv2d`.

    Raises:
        ValueError: sizes that no convolution has.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        *,
        settings: CSCSettings = PUBLISHED,
    ) -> None:
        super().__init__()
        checks.whole("in_channels", in_channels, most=MOST_CHANNELS)
        checks.whole("out_channels", out_channels, most=MOST_CHANNELS)
        checks.a("settings", settings, CSCSettings)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = _pair("kernel_size", kernel_size, 1)
        self.stride = _pair("stride", stride, 1)
        self.padding = _pair("padding", padding, 0)
        self.settings = settings
        self.lambda_l1: float | Tensor = settings.lambda_l1
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *self.kernel_size))
        nn.init.kaiming_uniform_(self.weight)
        with torch.no_grad():
            self.weight.copy_(unit_atoms(self.weight))
        self._vector: Tensor | None = None  # (1, C, H, W), where the power iteration stands
        self._steps: dict[Pair, Tensor] = {}  # step size by (H, W)
        self._weights: Tensor | None = None  # a copy of those that `_steps` belong to
        self._rests = False  # whether the vector stays at the next step size, after a resume

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, settings: CSCSettings = PUBLISHED) -> SparseCoding2d:
        """A layer of the shape of a convolution whose atoms are its filters, at unit length.

        Raises:
            ValueError: the convolution has what a code has not: a bias, groups, dilation, padding
                other than zeros, or frozen weights.
        """
        checks.a("conv", conv, nn.Conv2d)
        checks.a("settings", settings, CSCSettings)
        wrong = [
            (conv.bias is not None, "a bias"),
            (conv.groups != 1, f"{conv.groups} groups"),
            (conv.dilation != (1, 1), f"dilation {conv.dilation}"),
            (isinstance(conv.padding, str), f"padding={conv.padding!r}, give it as numbers"),
            (conv.padding_mode != "zeros", f"padding_mode={conv.padding_mode!r}"),
            (not conv.weight.requires_grad, "frozen weights"),
        ]
        found = [what for there, what in wrong if there]
        if found:
            raise ValueError(
                "a sparse code cannot take the place of this convolution, which has "
                f"{' and '.join(found)}: name another one"
            )
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            cast(Pair, conv.kernel_size),
            cast(Pair, conv.stride),
            cast(Pair, conv.padding),  # no word, as was seen above
            settings=settings,
        )
        with torch.no_grad():
            layer.weight = nn.Parameter(unit_atoms(conv.weight))
        return layer.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        """The code of x, (B, C, H, W) -> (B, K, h, w).

        Raises:
            ValueError: a wrong rank or channel count, a map smaller than the kernel, a lambda of
                another batch.
        """
        self._check_input(x)
        s = self.settings
        return unrolled(
            x,
            self.dictionary(),
            step=self.step_size(tuple(x.shape[2:])),
            lambda_l1=self.lambda_l1,
            mu=s.mu,
            steps=s.steps,
            nonnegative=s.nonnegative,
            accelerate=s.accelerate,
            stride=self.stride,
            padding=self.padding,
        )

    def dictionary(self) -> Tensor:
        """The unit-norm atoms, (K, C, kh, kw), in at least float32."""
        with full_precision(self.weight):
            return unit_atoms(self.weight.to(at_least_float32(self.weight.dtype)))

    @torch.compiler.disable
    def step_size(self, size: Pair) -> Tensor:
        """s = step_factor / lambda_max(A^T A) for inputs (H, W), (), without gradient."""
        weight, known, s = self.weight.detach(), self._weights, self.settings
        # Compared by value: fused optimisers and `weight.data` leave torch's count of changes alone.
        alike = known is not None and (known.dtype, known.device) == (weight.dtype, weight.device)
        if known is None or not (alike and torch.equal(known, weight)):
            self._steps, self._weights = {}, weight.clone()
        if size not in self._steps:
            start = self._vector
            if start is not None and tuple(start.shape[1:]) != (self.in_channels, *size):
                start = None
            value, vector = largest_eigenvalue(
                self.dictionary(),
                size,
                stride=self.stride,
                padding=self.padding,
                tolerance=s.tolerance,
                max_iterations=s.max_iterations,
                start=start,
            )
            if self.training and not self._rests:
                self._vector = vector
            self._rests = False
            with torch.inference_mode(False):
                step = torch.tensor(s.step_factor / max(value, 1e-12), dtype=vector.dtype)
                self._steps[size] = step.to(vector.device)
        return self._steps[size]

    def reconstruct(self, code: Tensor, size: Pair) -> Tensor:
        """A c for an input of this size (H, W): (B, K, h, w) -> (B, C, H, W), in at least float32."""
        with full_precision(code):
            dictionary = self.dictionary()
            code = code.to(dictionary.dtype)
            return synthesise(code, dictionary, size=size, stride=self.stride, padding=self.padding)

    def residual(self, x: Tensor, code: Tensor) -> Tensor:
        """x - A c: what the code leaves out, (B, C, H, W)."""
        return x - self.reconstruct(code, (x.shape[2], x.shape[3]))

    def objective(self, x: Tensor, code: Tensor) -> Tensor:
        """lambda |c|_1 + mu/2 |c|^2 + 1/2 |x - A c|^2 of every image, (B,), with the lambda in use."""
        rest = self.residual(x, code).square().flatten(1).sum(1)  # (B,)
        code = code.to(rest.dtype).flatten(1)  # (B, K h w)
        l1, squared = code.abs().sum(1), code.square().sum(1)  # (B,)
        return self.lambda_l1 * l1 + self.settings.mu / 2 * squared + rest / 2

    def rms_residual(self, x: Tensor, code: Tensor) -> Tensor:
        """Root of the mean square of x - A c of every image, (B,), in units of the layer's input."""
        return self.residual(x, code).square().mean((1, 2, 3)).sqrt()

    def get_extra_state(self) -> Tensor:
        """The power iteration's vector, empty before one; called by `state_dict`.

        It is (1, C, H, W), or (C, H, W) where the step size of these weights is known, as after an
        evaluation: training then leaves the vector as it is once, and so does a resumed run.
        """
        if self._vector is None:
            return torch.empty(0)
        known = self._weights is not None and torch.equal(self._weights, self.weight)
        known = self._rests or (known and tuple(self._vector.shape[2:]) in self._steps)
        return self._vector[0] if known else self._vector

    def set_extra_state(self, state: Tensor) -> None:
        """Called by `load_state_dict`."""
        self._vector = (
            state.detach().clone()[(None,) * (4 - state.dim())] if state.numel() else None
        )
        self._rests = state.dim() == 3

    def _check_input(self, x: Tensor) -> None:
        checks.a("x", x, Tensor)
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"x: expected an input (B, {self.in_channels}, H, W), got shape {tuple(x.shape)}"
            )
        for side, k, p in zip(x.shape[2:], self.kernel_size, self.padding, strict=True):
            if side + 2 * p < k:
                raise ValueError(
                    f"x is a map of {tuple(x.shape[2:])}, with padding {self.padding} smaller than the "
                    f"kernel {self.kernel_size}: give a larger one, or more padding"
                )
        if isinstance(self.lambda_l1, Tensor) and self.lambda_l1.shape not in ((), x.shape[:1]):
            raise ValueError(
                f"lambda is set for {tuple(self.lambda_l1.shape)} images and the batch has "
                f"{x.shape[0]}: set one number, or one for each image of this batch"
            )

    def extra_repr(self) -> str:
        s = self.settings
        lambda_l1 = self.lambda_l1 if isinstance(self.lambda_l1, Tensor) else f"{self.lambda_l1:g}"
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, lambda_l1={lambda_l1}, mu={s.mu:g}, "
            f"steps={s.steps}, nonnegative={s.nonnegative}"
        )


def unit_atoms(weight: Tensor) -> Tensor:
    """Filters (K, C, kh, kw) scaled to unit length; one that is zero stays zero."""
    checks.tensor("weight", weight, "(K, C, kh, kw)", "floats", finite=False)
    length = torch.linalg.vector_norm(weight, dim=(1, 2, 3), keepdim=True)  # (K, 1, 1, 1)
    return weight / length.clamp_min(1e-12)


def _pair(name: str, value: int | Pair, least: int) -> Pair:
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"{name} must be one number or two, got {value!r}")
    for side in pair:
        checks.whole(name, side, least=least, most=MOST_KERNEL)
    return pair
