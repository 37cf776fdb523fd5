"""What chapter 9 shows: steps on a small objective, distance to the optimum, atoms, codes and lambda.

A code in a `CifarNet` is of the features of its whitening stem, not of pixels. `PullBack` takes such
features back to an image, as far as this can be done: the stem's filters come in pairs w and -w, and
with ReLU after them f_+ - f_- = w * image (but for the biases). So features go back by ridge regression,

    image(f) = argmin_p |W p - (f_+ - f_-)|^2 + ridge |p|^2

which is linear in f: the picture of A c is the sum of its atoms' pictures. What f_+ + f_- holds, how
strong a structure is whatever its sign, no image shows; `PullBack.shown` says how much is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from ersm_lab.evaluation.inference import accuracy, evaluating
from ersm_lab.evaluation.lambda_suite import NOISE, gap, of
from ersm_lab.evaluation.sparse_lambda import using_lambda
from ersm_lab.images import perturbations
from ersm_lab.images.data import ImageSet
from ersm_lab.networks.sparse_coding import SparseCoding2d, analyse, sparse_code, synthesise
from ersm_lab.views.figures import MARKERS
from ersm_lab.views.frames import frame_slider
from ersm_lab.views.widgets import Widget

# --- codes of one layer ----------------------------------------------------------------------------


def inputs_of(model: nn.Module, layer: str, data: ImageSet) -> Tensor:
    """What reaches a layer, (N, C, h, w), in evaluation mode."""
    seen: list[Tensor] = []
    hook = model.get_submodule(layer).register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    try:
        with evaluating(model):
            for x, _ in data.inputs():
                model(x)
    finally:
        hook.remove()
    return torch.cat(seen)


@torch.no_grad()
def unrolled(
    coder: SparseCoding2d,
    x: Tensor,
    *,
    steps: int | None = None,
    lambda_l1: float | None = None,
    accelerate: bool = True,
) -> Tensor:
    """The code of a layer with another number of steps, or another lambda; None is the layer's own.

    Args:
        coder: the layer.
        x: (B, C, H, W); in float64 the code is, too.

    Returns:
        (B, K, h, w).
    """
    s = coder.settings
    return sparse_code(
        x,
        coder.dictionary().to(x.dtype),
        step=coder.step_size(tuple(x.shape[2:])).to(x.dtype),
        lambda_l1=coder.lambda_l1 if lambda_l1 is None else lambda_l1,
        mu=s.mu,
        steps=steps or s.steps,
        nonnegative=s.nonnegative,
        accelerate=accelerate,
        stride=coder.stride,
        padding=coder.padding,
    )


@torch.no_grad()
def relative_error(coder: SparseCoding2d, x: Tensor, code: Tensor) -> float:
    """|x - A c|^2 / |x|^2 over all images; 1 for a code of zeros."""
    return (_rest(coder, x, code).square().sum() / x.square().sum()).item()


@torch.no_grad()
def violation(coder: SparseCoding2d, x: Tensor, code: Tensor, *, lambda_l1: float) -> float:
    """By how much the conditions of optimality fail at worst, in units of lambda; 0 at the optimum.

    With g = A^T (x - A c) - mu c: g = lambda sign(c) where c is not zero; where it is, |g| <= lambda,
    or g <= lambda for non-negative codes.
    """
    rest = _rest(coder, x, code)
    dictionary = coder.dictionary().to(x.dtype)
    g = analyse(rest, dictionary, stride=coder.stride, padding=coder.padding)
    g = g - coder.settings.mu * code  # (B, K, h, w)
    at_zero = (g if coder.settings.nonnegative else g.abs()) - lambda_l1
    off = torch.where(code != 0, (g - lambda_l1 * code.sign()).abs(), at_zero.clamp_min(0))
    return (off.max() / lambda_l1).item()


def _rest(coder: SparseCoding2d, x: Tensor, code: Tensor) -> Tensor:
    back = synthesise(
        code,
        coder.dictionary().to(x.dtype),
        size=tuple(x.shape[2:]),
        stride=coder.stride,
        padding=coder.padding,
    )
    return x - back  # (B, C, H, W)


# --- steps and the optimum -------------------------------------------------------------------------


def step_size_picture(*, steps: int = 14) -> Figure:
    """A lasso of two coefficients: its objective with two paths of ISTA, and the objective step by step.

    Two atoms 60 degrees apart, codes of either sign, lambda = 0.3; computed in the picture.
    """
    gram = np.array([[1.0, 0.5], [0.5, 1.0]])  # A^T A, its largest eigenvalue is 1.5
    target, weight, largest = np.array([2.0, 1.6]), 0.3, 1.5  # A^T x, lambda, L
    optimum = np.linalg.solve(gram, target - weight)  # both are above zero
    start = np.array([-0.6, 1.3])

    def objective(c: np.ndarray) -> np.ndarray:  # (..., 2) -> (...), without |x|^2 / 2
        quadratic = 0.5 * np.einsum("...i,ij,...j->...", c, gram, c) - c @ target
        return quadratic + weight * np.abs(c).sum(-1)

    def path(factor: float, accelerate: bool = False) -> np.ndarray:  # (steps + 1, 2)
        s, t = factor / largest, 1.0
        y, found = start, [start]
        for _ in range(steps):
            z = y - s * (gram @ y - target)
            c = np.sign(z) * np.maximum(np.abs(z) - s * weight, 0)
            before, t = t, (1 + np.sqrt(1 + 4 * t * t)) / 2
            y = c + (before - 1) / t * (c - found[-1]) if accelerate else c
            found.append(c)
        return np.array(found)

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.9))
    across, up = np.meshgrid(np.linspace(-0.9, 3.3, 160), np.linspace(-1.1, 2.6, 160))
    height = objective(np.stack([across, up], -1)) - objective(optimum)
    levels = [0.02, 0.1, 0.3, 0.7, 1.3, 2.1, 3.2, 4.6]
    left.contour(across, up, height, levels=levels, colors="0.6", linewidths=0.8)
    for axis in (left.axhline, left.axvline):
        axis(0, color="0.35", linewidth=0.8, linestyle="-")
    for (factor, marker), colour in zip(
        ((0.9, "o"), (2.2, "s")), ("#0072B2", "#D55E00"), strict=True
    ):
        c = path(factor)[:8]
        line = "-" if factor < 1 else "--"
        left.plot(*c.T, marker=marker, color=colour, linestyle=line, label=f"s = {factor} / L")
    left.plot(*optimum, "*", color="black", markersize=13, label="optimum")
    left.set(
        title="ISTA: objective (contours) and seven steps",
        xlabel="code $c_1$  (units of the input)",
        ylabel="code $c_2$  (units of the input)",
        xlim=(-0.9, 3.3),
        ylim=(-1.1, 2.6),
    )
    left.legend(loc="lower left", fontsize=9)
    runs = (
        ("ISTA, 0.9 / L", 0.9, False, "o", "-", "#0072B2"),
        ("ISTA, 1.9 / L", 1.9, False, "^", "-.", "#009E73"),
        ("ISTA, 2.2 / L", 2.2, False, "s", "--", "#D55E00"),
        ("FISTA, 0.9 / L", 0.9, True, "D", ":", "#CC79A7"),
        ("FISTA, 1.9 / L", 1.9, True, "v", "-", "#E69F00"),
    )
    for label, factor, accelerate, marker, line, colour in runs:
        values = objective(path(factor, accelerate)) - objective(optimum)
        values = np.maximum(values, 1e-6)
        style = dict(marker=marker, linestyle=line, color=colour, markersize=4.5)
        right.semilogy(values, label=label, **style)
    right.set(
        title="Distance of the objective to its optimum",
        xlabel="step",
        ylabel="F(c) − F(c*)  (units of the input, squared)",
        ylim=(5e-7, 1e4),
    )
    right.legend(fontsize=8, loc="upper left", ncols=2)
    return figure


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A code after some numbers of steps, with and without momentum.

    Attributes:
        steps: the numbers.
        gap: {"FISTA" or "ISTA": share of F(0) - F(c*) that is left}, 1 at the start, 0 at the optimum.
        violation: {…: of the conditions of optimality, in units of lambda}.
        nonzero: {…: share of the code that is not zero}.
        error: {…: |x - A c|^2 / |x|^2}.
        optimum: nonzero and error at the optimum, as found with `reference` steps.
        reference: FISTA steps that stand for infinitely many.
    """

    steps: tuple[int, ...]
    gap: dict[str, list[float]]
    violation: dict[str, list[float]]
    nonzero: dict[str, list[float]]
    error: dict[str, list[float]]
    optimum: dict[str, float]
    reference: int


@torch.no_grad()
def trace(
    coder: SparseCoding2d,
    x: Tensor,
    *,
    steps: Sequence[int] = (1, 2, 3, 5, 8, 13, 20, 32, 50, 80, 130, 200),
    reference: int = 600,
) -> Trace:
    """How codes of x (B, C, H, W) near the optimum, in float64, at the layer's lambda."""
    x = x.double()
    weight = float(coder.lambda_l1)

    def objective(code: Tensor) -> float:
        return coder.objective(x, code).sum().item()

    best = unrolled(coder, x, steps=reference)
    worst = objective(torch.zeros_like(best))
    span = worst - objective(best)
    columns: dict[str, dict[str, list[float]]] = {
        name: {"FISTA": [], "ISTA": []} for name in ("gap", "violation", "nonzero", "error")
    }
    for way in ("FISTA", "ISTA"):
        for count in steps:
            code = unrolled(coder, x, steps=count, accelerate=way == "FISTA")
            columns["gap"][way].append((objective(code) - objective(best)) / span)
            columns["violation"][way].append(violation(coder, x, code, lambda_l1=weight))
            columns["nonzero"][way].append((code != 0).double().mean().item())
            columns["error"][way].append(relative_error(coder, x, code))
    optimum = {
        "nonzero": (best != 0).double().mean().item(),
        "error": relative_error(coder, x, best),
        "violation": violation(coder, x, best, lambda_l1=weight),
    }
    return Trace(steps=tuple(steps), optimum=optimum, reference=reference, **columns)


def draw_trace(found: Trace, *, used: int = 2) -> Figure:
    """Distance to the optimum and what the code is like, over steps; a line at the steps in use."""
    figure, axes = plt.subplots(1, 3, figsize=(10.2, 3.4))
    panels = (
        (axes[0], found.gap, "objective still to gain [%]", None),
        (axes[1], found.nonzero, "codes that are not zero [%]", found.optimum["nonzero"]),
        (axes[2], found.error, "|x − A c|² / |x|²  [%]", found.optimum["error"]),
    )
    for axis, values, label, limit in panels:
        for (way, series), marker in zip(values.items(), MARKERS, strict=False):
            shown = 100 * np.maximum(series, 1e-7)
            axis.plot(found.steps, shown, marker=marker, label=way, markersize=4.5)
        if limit is not None:
            axis.axhline(100 * limit, color="black", linestyle=":", linewidth=1.2, label="optimum")
            axis.set_ylim(bottom=0)
        axis.axvline(used, color="0.4", linestyle="-", linewidth=0.9)
        axis.set(xscale="log", xlabel=f"steps  (line: the {used} in use)", title=label)
    axes[0].set_yscale("log")
    axes[1].legend(fontsize=9)
    return figure


# --- pictures of features --------------------------------------------------------------------------


class PullBack:
    """From features of a whitening stem to images; see the top of this file.

    Args:
        stem: the convolution with filters w and -w, of square strides and paddings.
        size: (H, W) of the images.
        ridge: weight of |p|^2; large ones blur, small ones let the biases' error grow.

    Raises:
        ValueError: a stem whose filters are no such pairs.
    """

    @torch.no_grad()
    def __init__(self, stem: nn.Conv2d, size: tuple[int, int], *, ridge: float = 3e-2) -> None:
        weight = stem.weight.detach().double()
        half = len(weight) // 2
        if len(weight) % 2 or not torch.allclose(weight[:half], -weight[half:]):
            raise ValueError("the stem's filters must come as w and then -w: whiten it first")
        self.weight, self.size, self.half = weight[:half], tuple(size), half
        self.stride, self.padding = stem.stride, stem.padding
        pixels = weight.shape[1] * size[0] * size[1]
        basis = torch.eye(pixels, dtype=torch.float64).view(pixels, weight.shape[1], *size)
        gram = self._transposed(self.filters(basis)).flatten(1)  # (pixels, pixels)
        gram = gram + ridge * torch.eye(pixels, dtype=torch.float64)
        self.factor = torch.linalg.cholesky(gram)

    def filters(self, images: Tensor) -> Tensor:
        """W p: what the stem's first half says before bias and ReLU, (N, 3, H, W) -> (N, F, h, w)."""
        return F.conv2d(images.double(), self.weight, stride=self.stride, padding=self.padding)

    @torch.no_grad()
    def images(self, features: Tensor) -> Tensor:
        """The images of features (N, 2 F, h, w), (N, 3, H, W) float64 in normalised units."""
        features = features.double()
        signed = features[:, : self.half] - features[:, self.half :]  # (N, F, h, w)
        rhs = self._transposed(signed).flatten(1).T  # (pixels, N)
        found = torch.cholesky_solve(rhs, self.factor).T
        return found.reshape(len(features), -1, *self.size)

    @torch.no_grad()
    def shown(self, features: Tensor) -> Tensor:
        """Share of the squared length of features (N, 2 F, h, w) that their images show, (N,).

        An image's pattern is (v, -v) with v = W p / 2, the nearest of this form to f if p is its
        image. Biases and ReLU are left out.
        """
        features = features.double()
        v = self.filters(self.images(features)) / 2  # (N, F, h, w)
        rest = (features - torch.cat([v, -v], 1)).square().flatten(1).sum(1)
        return 1 - rest / features.square().flatten(1).sum(1)

    def _transposed(self, signed: Tensor) -> Tensor:
        back = F.conv_transpose2d(signed, self.weight, stride=self.stride, padding=self.padding)
        short = [full - got for full, got in zip(self.size, back.shape[2:], strict=True)]
        return F.pad(back, (0, short[1], 0, short[0]))


def quality(pull_back: PullBack, features: Tensor, data: ImageSet) -> float:
    """Peak signal-to-noise ratio, in dB, of images pulled back from their own stem features."""
    images = data.normalise(data.images)
    std = torch.tensor(data.std, dtype=torch.float64).view(1, 3, 1, 1)
    error = (pull_back.images(features) - images.double()) * std  # in units of 0 to 1
    return (-10 * error.square().mean().log10()).item()


@dataclass(frozen=True, kw_only=True)
class Atoms:
    """Pictures of a dictionary's atoms, most used first.

    Attributes:
        pictures: (K, 3, S, S), the atoms pulled back, in normalised units.
        patches: (K, 3, S, S), mean of the image patches where each code is largest, in units of 0 to 1.
        shown: (K,), share of each atom that its picture shows.
        use: (K,), share of places where its code is not zero.
    """

    pictures: Tensor
    patches: Tensor
    shown: Tensor
    use: Tensor


@torch.no_grad()
def atoms(
    coder: SparseCoding2d,
    pull_back: PullBack,
    data: ImageSet,
    features: Tensor,
    *,
    patches: int = 100,
) -> Atoms:
    """Pictures of the atoms of a code on a stem's features.

    Args:
        coder: with stride 1 and 3 x 3 atoms, padded by 1.
        pull_back: of the stem.
        data: images.
        features: (N, C, h, w), those of the images.
        patches: so many patches an atom are averaged.
    """
    codes = unrolled(coder, features)  # (N, K, h, w)
    use = (codes != 0).double().mean((0, 2, 3))  # (K,)
    order = use.argsort(descending=True)
    count, height, width = codes.shape[1:]
    middle = (height // 2, width // 2)
    single = torch.zeros(count, count, height, width, dtype=torch.float64)
    single[torch.arange(count), torch.arange(count), middle[0], middle[1]] = 1
    dictionary = coder.dictionary().double()
    placed = synthesise(  # (K, C, h, w), every atom alone on an empty map
        single,
        dictionary,
        size=tuple(features.shape[2:]),
        stride=coder.stride,
        padding=coder.padding,
    )
    step, kernel = pull_back.stride[0], pull_back.weight.shape[2]
    side = step * (dictionary.shape[2] - 1) + kernel  # pixels that an atom sees

    def corner(place: int) -> int:  # first pixel that a code at this place sees
        return step * (place - coder.padding[0]) - pull_back.padding[0]

    top, left = (corner(place) for place in middle)
    pictures = pull_back.images(placed)[:, :, top : top + side, left : left + side]

    size = data.images.shape[1]
    inside = [p for p in range(height) if corner(p) >= 0 and corner(p) + side <= size]
    cut = codes[:, :, inside][:, :, :, inside]  # (N, K, i, i)
    flat = cut.transpose(0, 1).flatten(1)  # (K, N i i)
    best = flat.topk(min(patches, flat.shape[1]), dim=1).indices  # (K, patches)
    image, place = best // len(inside) ** 2, best % len(inside) ** 2
    rows, columns = (
        corner(inside[0]) + step * p for p in (place // len(inside), place % len(inside))
    )
    pixel = torch.arange(side)
    found = data.images[
        image[..., None, None],
        rows[..., None, None] + pixel[:, None],
        columns[..., None, None] + pixel,
    ]  # (K, patches, S, S, 3)
    means = found.double().mean(1).permute(0, 3, 1, 2) / 255  # (K, 3, S, S)
    return Atoms(
        pictures=pictures[order],
        patches=means[order],
        shown=pull_back.shown(placed)[order],
        use=use[order],
    )


def draw_atoms(found: Atoms, *, across: int = 16) -> Figure:
    """Every atom pulled back, and below it the mean patch that uses it most; most used first."""
    count = len(found.use)
    bands = -(-count // across)
    size = (0.62 * across + 1.0, bands * 2.0 + 0.5)
    figure, axes = plt.subplots(2 * bands, across, figsize=size, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
        axis.spines[:].set_visible(False)
    for k in range(count):
        band, column = divmod(k, across)
        axes[2 * band, column].imshow(_stretched(found.pictures[k]))
        axes[2 * band, column].set_title(f"{100 * found.shown[k]:.0f} %", fontsize=8)
        axes[2 * band + 1, column].imshow(_stretched(found.patches[k]))
        axes[2 * band + 1, column].set_xlabel(f"{100 * found.use[k]:.0f} %", fontsize=8)
    for band in range(bands):
        axes[2 * band, 0].set_ylabel("atom", fontsize=9)
        axes[2 * band + 1, 0].set_ylabel("patches", fontsize=9)
    figure.suptitle(
        "Atoms pulled back (above: share that the picture shows) and mean patches\n"
        "(below: share of places that use the atom); each stretched to its own range",
        fontsize=10,
    )
    return figure


def _stretched(picture: Tensor) -> np.ndarray:
    """(3, S, S) -> (S, S, 3) between 0 and 1, its mean at mid-grey, its largest deviation at the end."""
    picture = picture.double() - picture.double().mean((1, 2), keepdim=True)
    picture = 0.5 + 0.5 * picture / picture.abs().max().clamp_min(1e-12)
    return picture.permute(1, 2, 0).numpy()


# --- sparsity and lambda ---------------------------------------------------------------------------


@torch.no_grad()
def sparsity(coder: SparseCoding2d, features: Tensor) -> Figure:
    """Share of non-zero codes: over images, and over atoms in order of use.

    Args:
        coder: the layer, with its own steps and lambda.
        features: (N, C, h, w).
    """
    on = (unrolled(coder, features) != 0).double()  # (N, K, h, w)
    each, atom = 100 * on.mean((1, 2, 3)), 100 * on.mean((0, 2, 3)).sort(descending=True).values
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.1))
    left.hist(each.numpy(), bins=np.linspace(0, 100, 51), color="#0072B2", edgecolor="white")
    left.axvline(each.mean(), color="black", linestyle="--")
    left.set(
        title=f"{len(each):,} images; mean (dashed) {each.mean():.0f} %",
        xlabel="codes that are not zero in an image [%]",
        ylabel="images",
        xlim=(0, 100),
    )
    right.bar(np.arange(1, len(atom) + 1), atom.numpy(), color="#0072B2")
    right.set(
        title="How often each atom is used",
        xlabel="atom, most used first",
        ylabel="places with a code [%]",
        ylim=(0, 100),
    )
    return figure


@dataclass(frozen=True, kw_only=True)
class LambdaCurve:
    """What lambda does to a layer and its network.

    Attributes:
        lambdas: rising.
        error: {steps: |x - A c|^2 / |x|^2 for each lambda}.
        nonzero: {steps: share of codes that are not zero}.
        accuracy: of the network with its own steps, 0 to 1.
        reference: lambda of training.
        steps: of the network.
    """

    lambdas: tuple[float, ...]
    error: dict[int, list[float]]
    nonzero: dict[int, list[float]]
    accuracy: list[float]
    reference: float
    steps: int


def along_lambda(
    model: nn.Module,
    layer: str,
    data: ImageSet,
    lambdas: Sequence[float],
    *,
    steps: int = 100,
    few: int = 32,
) -> LambdaCurve:
    """Reconstruction, sparsity and accuracy for several lambdas in one layer.

    Args:
        model: trained.
        layer: of a sparse code.
        data: images on the CPU; all of them for the accuracy, the first `few` for the rest.
        lambdas: to try.
        steps: that stand for many; the layer's own are drawn, too.
    """
    coder, lambdas = model.get_submodule(layer), sorted(lambdas)
    x = inputs_of(model, layer, data[:few])
    own = coder.settings.steps
    error, nonzero = ({own: [], steps: []} for _ in range(2))
    right = []
    for value in lambdas:
        for count in (own, steps):
            code = unrolled(coder, x, steps=count, lambda_l1=value)
            error[count].append(relative_error(coder, x, code))
            nonzero[count].append((code != 0).double().mean().item())
        with using_lambda(model, value, layer=layer):
            right.append(accuracy(model, data))
    return LambdaCurve(
        lambdas=tuple(lambdas),
        error=error,
        nonzero=nonzero,
        accuracy=right,
        reference=float(coder.lambda_l1),
        steps=own,
    )


def draw_along_lambda(found: LambdaCurve, *, classes: int = 10) -> Figure:
    """Three panels over lambda: error, sparsity, accuracy; a line at the lambda of training."""
    figure, axes = plt.subplots(1, 3, figsize=(10.2, 3.4))
    for axis, values, title in (
        (axes[0], found.error, "|x − A c|² / |x|²  [%]"),
        (axes[1], found.nonzero, "codes that are not zero [%]"),
    ):
        for (count, series), marker in zip(values.items(), MARKERS, strict=False):
            axis.plot(
                found.lambdas, 100 * np.array(series), marker=marker, label=f"{count} steps", ms=4.5
            )
        axis.set(title=title)
    axes[2].plot(found.lambdas, 100 * np.array(found.accuracy), marker="o", ms=4.5)
    axes[2].axhline(100 / classes, color="0.4", linestyle=":", linewidth=1.2)
    axes[2].annotate("by lot", (found.lambdas[0], 100 / classes), xytext=(2, 3), fontsize=9,
                     textcoords="offset points")  # fmt: skip
    axes[2].set(title=f"accuracy with {found.steps} steps [%]")
    positive = [value for value in found.lambdas if value > 0]
    for axis in axes:
        axis.axvline(found.reference, color="0.4", linestyle="-", linewidth=0.9)
        axis.set_xscale("symlog", linthresh=positive[0] if positive else 1)
        axis.set_xlim(-0.2 * positive[0] if positive else 0, 1.2 * found.lambdas[-1])
        axis.set(xlabel="λ  (units of the input; line: training)", ylim=(0, 103))
    axes[0].legend(fontsize=9, loc="lower right")
    return figure


def lambda_slider(
    model: nn.Module,
    layer: str,
    data: ImageSet,
    pull_back: PullBack,
    lambdas: Sequence[float],
    *,
    name: str,
    steps: int = 100,
) -> Widget:
    """Images and what their codes keep of them, to slide over lambda.

    Columns: the image; its stem features pulled back, which is all that the code sees; the code's
    reconstruction pulled back, with the layer's own steps and with many; how many atoms each place
    uses with its own steps (dark none, bright all).

    Args:
        model, layer, pull_back: as above.
        data: a few images on the CPU, one a row.
        lambdas: frames, in this order.
        name: id of the element.
        steps: that stand for many.
    """
    coder = model.get_submodule(layer)
    x = inputs_of(model, layer, data)
    own, frames, labels = coder.settings.steps, [], []
    std, mean = (
        torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (data.std, data.mean)
    )

    def pixels(features: Tensor) -> np.ndarray:  # (N, H, W, 3) uint8
        picture = (pull_back.images(features) * std + mean).clamp(0, 1)
        return (255 * picture).round().byte().permute(0, 2, 3, 1).numpy()

    start = [data.images.numpy(), pixels(x)]
    size = tuple(x.shape[2:])
    shade = (255 * plt.get_cmap("viridis")(np.linspace(0, 1, 256))[:, :3]).astype(np.uint8)
    for value in lambdas:
        columns, words = list(start), []
        codes = {count: unrolled(coder, x, steps=count, lambda_l1=value) for count in (own, steps)}
        for count, code in codes.items():
            columns.append(pixels(coder.reconstruct(code, size).detach()))
            share, error = (code != 0).double().mean(), relative_error(coder, x, code)
            words.append(f"{count} steps: {100 * share:.0f} % non-zero, error {100 * error:.0f} %")
        used = (codes[own] != 0).double().mean(1)  # (N, h, w)
        places = shade[(255 * used).round().long().numpy()]  # (N, h, w, 3)
        zoom = data.images.shape[1] // places.shape[1]
        columns.append(np.repeat(np.repeat(places, zoom, 1), zoom, 2))
        frames.append(_tiled(columns))
        training = " (training)" if value == coder.lambda_l1 else ""
        labels.append(f"λ = {value:g}{training} · " + " · ".join(words))
    return frame_slider(
        frames,
        labels=labels,
        title="Lambda: what a code keeps of an image",
        alt=(
            "Rows of images: as they are, as the stem's features show them, as the code with two steps "
            "and with many steps rebuilds them, and a map of how many atoms each place uses."
        ),
        name=name,
        captions=(
            "image",
            "through the stem",
            f"code, {own} steps",
            f"code, {steps} steps",
            "in use",
        ),
        width=640,
        milliseconds=700,
    )


def _tiled(columns: Sequence[np.ndarray], *, gap: int = 2) -> np.ndarray:
    """Columns of N pictures (N, H, W, 3) side by side, one image a row, white between them."""
    rows = []
    for number in range(len(columns[0])):
        row = [
            np.pad(c[number], ((0, gap), (gap, gap), (0, 0)), constant_values=255) for c in columns
        ]
        rows.append(np.concatenate(row, 1))
    return np.concatenate(rows)


# --- robustness, from records ----------------------------------------------------------------------


def kinds_picture(method: str, base: str, *, dataset: str, scale: str) -> Figure | None:
    """For each kind of corruption the accuracy beyond that of a dense network, in points.

    Mean over seeds that both have and over the severities other than Gaussian noise's own, with the
    interval of `lambda_suite.gap`; the oracle has none, as it is no method.

    Returns:
        None where there are no such records.
    """
    groups = [of(m, dataset=dataset, scale=scale) for m in (method, base)]
    coded, dense = ({r["seed"]: r["metrics"]["accuracy"] for r in group} for group in groups)
    seeds = sorted(coded.keys() & dense.keys())
    if not seeds:
        return None
    names = [n for n in dense[seeds[0]]["plain"] if n != "clean"]
    severities = {n.rpartition("-")[2] for n in names if not n.startswith(f"{NOISE}-")}
    kinds = [kind for group in perturbations.GROUPS.values() for kind in group]
    over = {
        kind: [f"{kind}-{s}" for s in sorted(severities) if f"{kind}-{s}" in names]
        for kind in kinds
    }
    over = {kind: conditions for kind, conditions in over.items() if conditions}
    places = np.arange(len(over))
    figure, axis = plt.subplots(figsize=(7.6, 0.38 * len(over) + 1.5))
    ways = (
        ("fixed", "fixed λ", "o", "#0072B2", -0.22),
        ("label-free", "label-free λ", "s", "#D55E00", 0.0),
        ("oracle", "oracle λ (test labels)", "^", "0.45", 0.22),
    )
    for row, label, marker, colour, shift in ways:
        style = dict(marker=marker, linestyle="none", color=colour, label=label, markersize=5)
        if row == "oracle":
            means = [
                100
                * np.mean([coded[s][row][n] - dense[s]["plain"][n] for s in seeds for n in names])
                for names in over.values()
            ]
            axis.plot(means, places + shift, markerfacecolor="none", **style)
            continue
        found = [gap(*groups, (row, "plain"), names) for names in over.values()]
        means = np.array([f.mean for f in found])
        ends = np.array([[f.mean - f.low, f.high - f.mean] for f in found]).T  # (2, kinds)
        axis.errorbar(means, places + shift, xerr=ends.clip(0), elinewidth=1, **style)
    axis.axvline(0, color="black", linewidth=0.9, linestyle="-")
    axis.set_yticks(places, [kind.replace("_", " ") for kind in over], fontsize=9)
    axis.invert_yaxis()
    axis.set(
        title=f"{method} against {base}, severities {' and '.join(sorted(severities))}, "
        f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}",
        xlabel=f"accuracy minus that of {base} [percentage points], lines: 95 % intervals",
    )
    axis.legend(fontsize=9, loc="lower right")
    return figure


def fit_picture(method: str, *, dataset: str, scale: str) -> Figure | None:
    """The label-free map from residual to lambda, one line a seed; None where it is not recorded."""
    group = of(method, dataset=dataset, scale=scale)
    if not group:
        return None
    figure, axis = plt.subplots(figsize=(6.2, 3.2))
    for record, marker in zip(group, MARKERS, strict=False):
        fit = record["metrics"]["fit"]
        label = f"seed {record['seed']}"
        axis.plot(fit["residuals"], fit["lambdas"], marker=marker, label=label, markersize=4.5)
    reference = group[0]["metrics"]["lambda"]["fixed"]["clean"]
    axis.axhline(reference, color="0.4", linestyle=":", linewidth=1.2)
    axis.annotate(
        "training", (1, reference), xycoords=("axes fraction", "data"), ha="right", va="bottom"
    )
    axis.set(
        title=f"{method}: lambda chosen without labels",
        xlabel="root mean square of x − A c  (units of the layer's input)",
        ylabel="λ  (units of the layer's input)",
        ylim=(0, None),
    )
    axis.legend(fontsize=9)
    return figure
