"""The convolutional sparse code of an input, by a few steps of FISTA.

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

Symbols: `x` input, `c` code, D dictionary (K, C, kh, kw), K atoms of C channels; H, W size of the
input, h, w that of the code.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ersm_lab.common import checks

Pair = tuple[int, int]

MOST_SIDE = 4_096  # pixels along a side of an input


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
    code = unrolled(
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


def unrolled(
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
        ahead = _synthesise(
            y, dictionary, (x.shape[2], x.shape[3]), stride, padding
        )  # (B, C, H, W)
        z = F.conv2d(x - ahead, descent, bias, stride, padding)  # (B, K, h, w)
        previous, code = code, prox(z.add_(y * scale.to(y.dtype) if mu else y))
    return code


# --- the step size ---------------------------------------------------------------------------------


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
    with torch.inference_mode(False), torch.no_grad(), full_precision(dictionary):
        dictionary = dictionary.detach().to(at_least_float32(dictionary.dtype))
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


def full_precision(like: Tensor) -> torch.autocast:
    return torch.autocast(like.device.type, enabled=False)


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


# --- checks ----------------------------------------------------------------------------------------


def _check_problem(x: Tensor, dictionary: Tensor, stride: Pair, padding: Pair) -> None:
    checks.tensor("x", x, "(B, C, H, W)", "floats", finite=False)
    _check_kernel(dictionary, (x.shape[2], x.shape[3]), stride, padding)
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
