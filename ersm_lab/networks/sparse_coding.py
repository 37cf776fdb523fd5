"""Convolutional sparse coding as a layer: a convolution gives way to the sparse code of its input.

SDNet (Dai et al., NeurIPS 2022, arXiv:2210.12945) puts in the place of a convolution of x its code

    c(x) = argmin_c  lambda |c|_1 + mu/2 |c|_2^2 + 1/2 |x - A c|_2^2        (c >= 0 if non-negative)

where A c is the transposed convolution of the code with a dictionary of unit-norm atoms, so that A^T
is an ordinary convolution with them. Unrolled are steps of FISTA (Beck & Teboulle, 2009, SIAM Journal
on Imaging Sciences 2(1), eqs. 4.1 to 4.3), from y_1 = 0 and t_1 = 1:

    step        s       = 0.9 / lambda_max(A^T A)
    code        c_k     = prox(y_k + s A^T (x - A y_k))
    momentum    t_{k+1} = (1 + sqrt(1 + 4 t_k^2)) / 2
                y_{k+1} = c_k + (t_k - 1) / t_{k+1} * (c_k - c_{k-1})
    prox        prox(z) = soft(z, s lambda) / (1 + s mu),  or  max(z - s lambda, 0) / (1 + s mu)

Three things differ from the authors' released code. From the third step on, it takes the gradient at
c_k and not at y_k; with the published two steps that is the same. It writes unit-norm atoms into the
weights before each pass and its gradient knows nothing of it; here the norm is part of the function
and of its gradient, so that a pass changes no parameter. And it chooses lambda for noisy images by
their labels; here that is `oracle_lambda`, beside a fixed lambda and `LabelFreeLambda`.

Symbols: `x` input, `c` code, D dictionary (K, C, kh, kw), K atoms of C channels; H, W size of the
input, h, w that of the code.
"""

from __future__ import annotations

import difflib
import math
import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from ersm_lab.common import checks
from ersm_lab.networks.backbones import MOST_CLASSES, resnet18

Pair = tuple[int, int]


MOST_CHANNELS = 4_096  # of a dictionary, atoms too
MOST_SIDE = 4_096  # pixels along a side of an input
MOST_KERNEL = 256  # pixels along a side of an atom


@dataclass(frozen=True, kw_only=True)
class CSCSettings:
    """What a code is and how far it is unrolled; the defaults are the published ones on CIFAR-10.

    Attributes:
        lambda_l1: lambda >= 0, weight of |c|_1, in units of the layer's input.
        mu: >= 0, weight of |c|_2^2 / 2, dimensionless; above 0 the penalty is an elastic net.
        steps: FISTA steps, at least 1.
        nonnegative: codes are >= 0; False for codes of either sign.
        accelerate: FISTA; False for ISTA, the same without momentum, whose objective never rises.
        step_factor: of 1 / lambda_max(A^T A), 0 < step_factor <= 1.
        tolerance: of the power iteration, relative: it ends when |A A^T v - rho v| <= tolerance * rho.
            The published factor 0.9 leaves 10 % for it.
        max_iterations: of the power iteration, after which it warns and goes on.
    """

    lambda_l1: float = 0.1
    mu: float = 0.0
    steps: int = 2
    nonnegative: bool = True
    accelerate: bool = True
    step_factor: float = 0.9
    tolerance: float = 1e-2
    max_iterations: int = 500

    def __post_init__(self) -> None:
        for name in ("lambda_l1", "mu"):
            checks.number(name, getattr(self, name), least=0)
        for name in ("steps", "max_iterations"):
            checks.whole(name, getattr(self, name), most=checks.MOST)
        for name in ("nonnegative", "accelerate"):
            checks.flag(name, getattr(self, name))
        checks.number("step_factor", self.step_factor, above=0, most=1)
        checks.number("tolerance", self.tolerance, above=0, below=1)


PUBLISHED = CSCSettings()


# --- the code --------------------------------------------------------------------------------------


def analyse(
    x: Tensor, dictionary: Tensor, *, stride: Pair = (1, 1), padding: Pair = (0, 0)
) -> Tensor:
    """A^T x: how much every atom agrees with every place, (B, C, H, W) -> (B, K, h, w).

    Raises:
        ValueError: a dictionary of other channels, or a kernel, stride or padding that does not fit.
    """
    _check_problem(x, dictionary, stride, padding)
    return F.conv2d(x, dictionary, stride=stride, padding=padding)


def synthesise(
    code: Tensor,
    dictionary: Tensor,
    *,
    size: Pair,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
) -> Tensor:
    """A c: the sum of the atoms that a code places, (B, K, h, w) -> (B, C, H, W).

    Args:
        code: (B, K, h, w).
        dictionary: (K, C, kh, kw).
        size: (H, W) of the input that was coded; with a stride, several sizes have codes of one size.
        stride, padding: of the convolution A^T.

    Raises:
        ValueError: an input of this size has a code of another size, or what `analyse` refuses.
    """
    checks.tensor("code", code, "(B, K, h, w)", "floats", finite=False)
    _check_size(size)
    _check_kernel(dictionary, size, stride, padding)
    if code.shape[1] != len(dictionary):
        raise ValueError(
            f"code has {code.shape[1]} channels and the dictionary {len(dictionary)} atoms: they are "
            "not of one problem"
        )
    return _synthesise(code, dictionary, size, stride, padding)


def _synthesise(
    code: Tensor, dictionary: Tensor, size: Pair, stride: Pair, padding: Pair
) -> Tensor:
    rest = tuple(
        full - ((length - 1) * s - 2 * p + k)  # rows or columns that no kernel reached
        for full, length, s, p, k in zip(
            size, code.shape[2:], stride, padding, dictionary.shape[2:], strict=True
        )
    )
    if not all(0 <= r < s for r, s in zip(rest, stride, strict=True)):
        raise ValueError(
            f"a code of {tuple(code.shape[2:])} is not that of an input of {tuple(size)} with kernel "
            f"{tuple(dictionary.shape[2:])}, stride {tuple(stride)} and padding {tuple(padding)}: "
            "give the size (H, W) of the input that was coded"
        )
    return F.conv_transpose2d(code, dictionary, stride=stride, padding=padding, output_padding=rest)


def sparse_code(
    x: Tensor,
    dictionary: Tensor,
    *,
    step: Tensor | float,
    lambda_l1: Tensor | float,
    mu: float = 0.0,
    steps: int = 2,
    nonnegative: bool = True,
    accelerate: bool = True,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
) -> Tensor:
    """The code of x after some steps of FISTA from zero; the equations are at the top of this file.

    The factor s / (1 + s mu) is put on the atoms and, for non-negative codes, the threshold into the
    convolution's bias, which saves passes over the code.

    Args:
        x: (B, C, H, W).
        dictionary: (K, C, kh, kw).
        step: s, a number or (); the steps converge for s <= 1 / lambda_max(A^T A).
        lambda_l1: lambda >= 0, a number for all images or (B,) for one each.
        mu, steps, nonnegative, accelerate: as in `CSCSettings`.
        stride, padding: of the convolution A^T.

    Returns:
        (B, K, h, w), of the dtype of a convolution of x.

    Raises:
        ValueError: NaN, a negative lambda, mu or step, no steps, a step with which the code grows to
            infinity, or what `analyse` refuses.
    """
    _check_problem(x, dictionary, stride, padding)
    if not (x.isfinite().all() and dictionary.isfinite().all()):
        raise ValueError("x or dictionary holds NaN or infinity: look for where they come from")
    _check_weight("step", step, 0)
    _check_weight("lambda_l1", lambda_l1, len(x))
    checks.number("mu", mu, least=0)
    checks.whole("steps", steps, most=checks.MOST)
    checks.flag("nonnegative", nonnegative)
    checks.flag("accelerate", accelerate)
    code = _fista(
        x,
        dictionary,
        step=step,
        lambda_l1=lambda_l1,
        mu=mu,
        steps=steps,
        nonnegative=nonnegative,
        accelerate=accelerate,
        stride=stride,
        padding=padding,
    )
    if not code.isfinite().all():
        raise ValueError(
            f"the code grew beyond all bounds: a step of {float(step):g} is above 1 / lambda_max, which "
            "largest_eigenvalue gives"
        )
    return code


def _fista(
    x: Tensor,
    dictionary: Tensor,
    *,
    step: Tensor | float,
    lambda_l1: Tensor | float,
    mu: float,
    steps: int,
    nonnegative: bool,
    accelerate: bool,
    stride: Pair,
    padding: Pair,
) -> Tensor:
    step = torch.as_tensor(step, dtype=dictionary.dtype, device=dictionary.device)  # ()
    scale = 1 / (1 + step * mu)  # ()
    threshold = torch.as_tensor(lambda_l1, dtype=step.dtype, device=step.device) * step * scale
    descent = (dictionary * (step * scale)).to(x.dtype)  # (K, C, kh, kw)
    dictionary = dictionary.to(x.dtype)
    bias = None
    if nonnegative and threshold.dim() == 0:
        bias = (-threshold).to(x.dtype).expand(len(dictionary))  # (K,)
    else:
        threshold = threshold.to(x.dtype).view(-1, 1, 1, 1)  # (B, 1, 1, 1), or of one element

    def prox(z: Tensor) -> Tensor:  # (B, K, h, w), in place where autograd allows
        if bias is not None:
            return z.relu_()
        if nonnegative:
            return z.sub_(threshold.to(z.dtype)).relu_()
        t = threshold.to(z.dtype)
        return z - z.clamp(-t, t)

    code = prox(F.conv2d(x, descent, bias, stride, padding))  # (B, K, h, w)
    previous, t = code, 1.0
    for _ in range(steps - 1):
        y = code
        if accelerate:
            before, t = t, (1 + math.sqrt(1 + 4 * t * t)) / 2
            if before > 1:  # the momentum is zero before the second code
                y = code + (before - 1) / t * (code - previous)
        ahead = _synthesise(y, dictionary, x.shape[2:], stride, padding)  # (B, C, H, W)
        z = F.conv2d(x - ahead, descent, bias, stride, padding)  # (B, K, h, w)
        previous, code = code, prox(z.add_(y * scale.to(y.dtype) if mu else y))
    return code


@torch.compiler.disable
def largest_eigenvalue(
    dictionary: Tensor,
    size: Pair,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    tolerance: float = PUBLISHED.tolerance,
    max_iterations: int = PUBLISHED.max_iterations,
    start: Tensor | None = None,
) -> tuple[float, Tensor]:
    """lambda_max(A^T A) for inputs of one size, by power iteration.

    It iterates on A A^T, which has the same largest eigenvalue and whose vectors are images. With v of
    unit length and rho = v . A A^T v it ends when |A A^T v - rho v| <= tolerance * rho, so that an
    eigenvalue lies within that distance of rho; from a start with all frequencies in it, that is the
    largest. The estimate is at most lambda_max.

    Args:
        dictionary: (K, C, kh, kw).
        size: (H, W) of the input.
        stride, padding: of the convolution A^T.
        tolerance: relative; in float32 not below about 1e-5.
        max_iterations: after so many it warns and returns what it has.
        start: (1, C, H, W), such as the vector of similar weights; None draws one, always the same.

    Returns:
        The eigenvalue, and the vector (1, C, H, W) of unit length.

    Raises:
        ValueError: the dictionary holds NaN or infinite values, or its kernel does not fit.
    """
    _check_size(size)
    _check_kernel(dictionary, size, stride, padding)
    checks.number("tolerance", tolerance, above=0, below=1)
    checks.whole("max_iterations", max_iterations, most=checks.MOST)
    if start is not None:
        shape = (1, dictionary.shape[1], *size)
        checks.tensor("start", start, f"({', '.join(map(str, shape))})", "floats")
    with torch.inference_mode(False), torch.no_grad(), _full_precision(dictionary):
        dictionary = dictionary.detach().to(_at_least_float32(dictionary.dtype))
        if start is None:
            lots = torch.Generator().manual_seed(0)
            start = torch.randn(1, dictionary.shape[1], *size, generator=lots)
        v = start.to(dictionary.device, dictionary.dtype)  # (1, C, H, W)
        v = v / v.norm()
        for _ in range(max_iterations):
            w = _there_and_back(v, dictionary, size, stride, padding)  # (1, C, H, W)
            rho = (v * w).sum()  # ()
            numbers = torch.stack([rho, (w - rho * v).norm(), w.norm()])
            rho, residual, length = numbers.tolist()  # one synchronisation an iteration
            if not math.isfinite(length):
                raise ValueError(
                    "a dictionary holds NaN or infinite values: look for a learning rate too high"
                )
            if length == 0:  # all atoms are zero
                return 0.0, v
            v = w / length
            if residual <= tolerance * rho:
                return length, v  # rho <= |A A^T v| <= lambda_max
    warnings.warn(
        f"power iteration: {residual / rho:.1e} of the eigenvalue left after {max_iterations} "
        f"iterations, not {tolerance:.1e}: raise max_iterations or tolerance of CSCSettings",
        RuntimeWarning,
        stacklevel=2,
    )
    return length, v


def _there_and_back(
    v: Tensor, dictionary: Tensor, size: Pair, stride: Pair, padding: Pair
) -> Tensor:
    """A A^T v, (1, C, H, W)."""
    code = F.conv2d(v, dictionary, stride=stride, padding=padding)  # (1, K, h, w)
    return _synthesise(code, dictionary, size, stride, padding)


def _check_problem(x: Tensor, dictionary: Tensor, stride: Pair, padding: Pair) -> None:
    checks.tensor("x", x, "(B, C, H, W)", "floats", finite=False)
    _check_kernel(dictionary, x.shape[2:], stride, padding)
    if x.shape[1] != dictionary.shape[1]:
        raise ValueError(
            f"x has {x.shape[1]} channels and the atoms of the dictionary {dictionary.shape[1]}: give "
            "a dictionary (K, C, kh, kw) of the channels of x"
        )


def _check_kernel(dictionary: Tensor, size: Pair, stride: Pair, padding: Pair) -> None:
    """That a convolution of an input of this size has places, and none of them sees padding only."""
    checks.tensor("dictionary", dictionary, "(K, C, kh, kw)", "floats", finite=False)
    for name, pair in {"stride": stride, "padding": padding}.items():
        checks.several(name, pair, least=2, most=2)
    for side, k, s, p in zip(size, dictionary.shape[2:], stride, padding, strict=True):
        checks.whole("padding", p, least=0, most=k)
        checks.whole("stride", s, most=side + 2 * p)
        if side + 2 * p < k:
            raise ValueError(
                f"a map of {tuple(size)} with padding {tuple(padding)} is smaller than the atoms of "
                f"the dictionary {tuple(dictionary.shape)}: give a larger one, or more padding"
            )


def _check_size(size: Pair) -> None:
    checks.several("size", size, least=2, most=2)
    for side in size:
        checks.whole("size", side, most=MOST_SIDE)


def _check_weight(name: str, value: Tensor | float, images: int) -> None:
    """A finite number that is not negative, or one for each of so many images."""
    if not isinstance(value, Tensor):
        checks.number(name, value, least=0)
        return
    checks.tensor(name, value, f"({images},)" if value.dim() and images else "()", "numbers")
    if value.min() < 0:
        raise ValueError(f"{name} must be at least 0, got {value.min().item():g}")


# --- the layer -------------------------------------------------------------------------------------


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
            conv.kernel_size,
            conv.stride,
            conv.padding,
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
        return _fista(
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
        with _full_precision(self.weight):
            return unit_atoms(self.weight.to(_at_least_float32(self.weight.dtype)))

    @torch.compiler.disable
    def step_size(self, size: Pair) -> Tensor:
        """s = step_factor / lambda_max(A^T A) for inputs (H, W), (), without gradient."""
        weight, known, s = self.weight.detach(), self._weights, self.settings
        # Compared by value: fused optimisers and `weight.data` leave torch's count of changes alone.
        same = known is not None and (known.dtype, known.device) == (weight.dtype, weight.device)
        if not (same and torch.equal(known, weight)):
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
        with _full_precision(code):
            dictionary = self.dictionary()
            code = code.to(dictionary.dtype)
            return synthesise(code, dictionary, size=size, stride=self.stride, padding=self.padding)

    def residual(self, x: Tensor, code: Tensor) -> Tensor:
        """x - A c: what the code leaves out, (B, C, H, W)."""
        return x - self.reconstruct(code, tuple(x.shape[2:]))

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


# --- networks --------------------------------------------------------------------------------------


def sdnet18(*, classes: int = 10, settings: CSCSettings = PUBLISHED) -> nn.Module:
    """SDNet-18: the CIFAR ResNet-18 whose first layer is a sparse code, BatchNorm after it, no ReLU.

    11.2 M parameters, as many as `backbones.resnet18`; the code is (64, H, W).

    Shape:
        x (B, 3, H, W), normalised -> logits (B, classes).
    """
    checks.a("settings", settings, CSCSettings)
    model = resnet18(classes=classes)
    model.conv1 = SparseCoding2d.from_conv(model.conv1, settings)
    model.relu = nn.Identity()  # that of the stem; the blocks have their own
    return model


def sdnet18_all(
    *,
    classes: int = 10,
    settings: CSCSettings = PUBLISHED,
    shortcuts: bool = True,
    sparse_projections: bool = True,
) -> nn.Module:
    """SDNet-18-all: every convolution of the CIFAR ResNet-18 is a sparse code, no ReLU within a block.

    Args:
        classes: number of logits.
        settings: of all 20 codes.
        shortcuts: False for the published variant without them, which has no ReLU at all.
        sparse_projections: the three 1 x 1 convolutions on shortcuts are codes too. False leaves them
            convolutions, as the authors' released code does.

    Shape:
        x (B, 3, H, W), normalised -> logits (B, classes).
    """
    checks.whole("classes", classes, most=MOST_CLASSES)
    checks.a("settings", settings, CSCSettings)
    checks.flag("shortcuts", shortcuts)
    checks.flag("sparse_projections", sparse_projections)
    model = torchvision.models.ResNet(_CodeBlock, [2, 2, 2, 2], num_classes=classes)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool, model.relu = nn.Identity(), nn.Identity()
    for block in model.modules():
        if isinstance(block, _CodeBlock) and not shortcuts:
            block.shortcut, block.downsample = False, None
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d) and (sparse_projections or module.kernel_size != (1, 1)):
            _replace(model, name, SparseCoding2d.from_conv(module, settings))
    return model


class _CodeBlock(BasicBlock):
    """torchvision's block without the ReLU between its two layers."""

    shortcut = True

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x))))  # (B, D, h, w)
        if not self.shortcut:
            return y
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


def attach_sparse_coding(
    model: nn.Module,
    layer: str = "group1.0",
    settings: CSCSettings = PUBLISHED,
    *,
    keep_relu: bool = False,
) -> nn.Module:
    """Put a sparse code in the place of a convolution, in place; its atoms are the filters' directions.

    In a `CifarNet` that is "group1.0", its first learned convolution, as SDNet-18 replaces the first
    of its network. The stem before it is fixed and whitens patches: as a code it would be another
    network, with another input to all that follows. So number and shape of the parameters, the start
    (an atom that is one pixel of one channel has unit length) and the schedule are the dense network's.

    Args:
        model: the network; attach before the optimiser, `torch.compile` and DDP.
        layer: name of an `nn.Conv2d` from `model.named_modules()`.
        settings: the code's.
        keep_relu: keep the ReLU after the convolution. By default it becomes the identity where the
            convolution stands in an `nn.Sequential` and only pooling and BatchNorm are between them:
            SDNet has none, the code being the non-linearity.

    Returns:
        The same model.

    Raises:
        ValueError: no such convolution, or one that no code can replace (`SparseCoding2d.from_conv`).
    """
    checks.network("model", model)
    checks.text("layer", layer)
    checks.flag("keep_relu", keep_relu)
    convs = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    if layer not in convs:
        near = difflib.get_close_matches(layer, convs, n=5, cutoff=0.3) or list(convs)[:5]
        raise ValueError(
            f"layer: no convolution {layer!r} in {type(model).__name__}; nearest names: "
            f"{', '.join(near)}"
        )
    _replace(model, layer, SparseCoding2d.from_conv(convs[layer], settings))
    parent, _, own = layer.rpartition(".")
    stage = model.get_submodule(parent)
    if isinstance(stage, nn.Sequential) and not keep_relu:
        names = list(stage._modules)
        for name in names[names.index(own) + 1 :]:
            if isinstance(stage._modules[name], nn.ReLU):
                stage._modules[name] = nn.Identity()
                break
            if not isinstance(stage._modules[name], (nn.MaxPool2d, nn.AvgPool2d, nn.BatchNorm2d)):
                break
    return model


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)


def _full_precision(like: Tensor) -> torch.autocast:
    return torch.autocast(like.device.type, enabled=False)


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _pair(name: str, value: int | Pair, least: int) -> Pair:
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"{name} must be one number or two, got {value!r}")
    for side in pair:
        checks.whole(name, side, least=least, most=MOST_KERNEL)
    return pair
