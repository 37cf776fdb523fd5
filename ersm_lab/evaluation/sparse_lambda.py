"""The lambda of sparse codes at test time: set by hand, chosen label-free, or by an oracle.

Dai et al. (2022, arXiv:2210.12945) choose a larger lambda for noisier images, in their script by test
accuracy: `oracle_lambda`. `LabelFreeLambda` reads it off the residual of the code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import isotonic_regression
from torch import Tensor, nn

from ersm_lab.common import checks
from ersm_lab.evaluation.inference import accuracy, evaluating
from ersm_lab.images.data import ImageSet
from ersm_lab.networks.sparse_coding import SparseCoding2d

# --- lambda at test time ---------------------------------------------------------------------------


def sparse_layers(model: nn.Module) -> dict[str, SparseCoding2d]:
    """{name: its sparse coding layer}, in the order of the network; empty where there is none."""
    checks.network("model", model)
    return {n: m for n, m in model.named_modules() if isinstance(m, SparseCoding2d)}


def set_lambda(model: nn.Module, value: float | Tensor, *, layer: str | None = None) -> None:
    """Code with this lambda from now on; a fixed lambda is the first of the three ways to choose one.

    Args:
        model: with sparse coding layers.
        value: a number, or (B,) with one for each image of the batches to come.
        layer: name of one layer; None is all of them.

    Raises:
        ValueError: a negative or infinite lambda, no such layer.
    """
    if not isinstance(value, Tensor):
        checks.number("value of lambda", value, least=0)
    numbers = torch.as_tensor(value, dtype=torch.float64)
    if numbers.dim() > 1 or not (torch.isfinite(numbers) & (numbers >= 0)).all():
        raise ValueError(
            f"value of lambda must be one finite number >= 0, or one for each image, got {value}"
        )
    for found in _chosen(model, layer).values():
        found.lambda_l1 = value if isinstance(value, Tensor) and value.dim() else float(value)


@contextmanager
def using_lambda(
    model: nn.Module, value: float | Tensor, *, layer: str | None = None
) -> Iterator[None]:
    """While open, `set_lambda`; every layer's lambda is put back afterwards."""
    before = {found: found.lambda_l1 for found in _chosen(model, layer).values()}
    try:
        set_lambda(model, value, layer=layer)
        yield
    finally:
        for found, lambda_l1 in before.items():
            found.lambda_l1 = lambda_l1


@dataclass(frozen=True, kw_only=True)
class LabelFreeLambda:
    """lambda from how much of its input a code leaves out (`rms_residual`), with no label anywhere.

    Ours, in the place of the published choice by test accuracy. `fit` adds noise to training images
    and looks, for images with about the same residual, for the lambda with which the network's
    predictions are closest to its own on the same images without noise. The map from residual to
    lambda is then made non-decreasing: where a larger residual does not call for a larger lambda, as
    in a dictionary that codes noise as well as images, it is constant.

    Attributes:
        model: whose lambda is chosen.
        layer: name of the layer.
        reference: lambda at which residuals are measured, that of training.
        residuals: knots of the map, rising, in units of the layer's input.
        lambdas: lambda at the knots; linear between them, constant beyond.
    """

    model: nn.Module = field(repr=False, compare=False)
    layer: str
    reference: float
    residuals: tuple[float, ...]
    lambdas: tuple[float, ...]

    @classmethod
    def fit(
        cls,
        model: nn.Module,
        images: Tensor,
        *,
        layer: str | None = None,
        noise: Sequence[float] = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0),
        grid: Sequence[float] | None = None,
        bins: int = 12,
        seed: int = 0,
        batch_size: int = 500,
        using: Callable[[float], AbstractContextManager] | None = None,
    ) -> LabelFreeLambda:
        """Fit the map on training images.

        Args:
            model: trained, with the lambda of its training set.
            images: (N, 3, H, W), normalised as the model's input; some 1,000 are enough. Each is
                seen by the network len(noise) x (len(grid) + 1) times.
            layer: the sparse coding layer; None is the first.
            noise: standard deviations of Gaussian noise, in units of the normalised input.
            grid: lambdas to choose from; None is 1, 2, ..., 14 times that of training.
            bins: groups of equal size that noisy images are put in by their residual.
            seed: of the noise.
            batch_size: images a pass.
            using: opened with a lambda of the grid while the model is asked with it, to change more than
                lambda; None is `using_lambda`.

        Raises:
            ValueError: no such layer, fewer noisy images than bins, an empty grid, or none where
                lambda is 0.
        """
        name, coder = next(iter(_chosen(model, layer).items()))
        checks.tensor("images", images, "(N, C, H, W)", "floats")
        checks.several("noise", noise)
        for sigma in noise:
            checks.number("noise", sigma, least=0)
        if grid is not None:
            checks.several("grid", grid)
            for value in grid:
                checks.number("grid", value, least=0)
        checks.whole("bins", bins)
        checks.seed("seed", seed)
        checks.whole("batch_size", batch_size)
        if isinstance(coder.lambda_l1, Tensor):
            raise ValueError("set lambda to the number it had in training, then fit")
        reference = coder.lambda_l1
        if grid is None and reference == 0:
            raise ValueError(
                "lambda was 0 in training and has no multiples: give a grid of lambdas"
            )
        grid = [k * reference for k in range(1, 15)] if grid is None else sorted(grid)
        if not grid or len(images) * len(noise) < bins:
            raise ValueError(
                f"{len(images)} images x {len(noise)} levels of noise with {len(grid)} lambdas do not "
                f"fill {bins} bins: give more images, or a smaller number of bins"
            )
        using = using or partial(using_lambda, model, layer=name)
        lots = torch.Generator().manual_seed(seed)
        seen, lost = [], []
        with evaluating(model):
            for x in images.split(batch_size):  # (B, 3, H, W)
                target = checks.answers(model(x)).float().log_softmax(1)  # (B, classes)
                for sigma in noise:
                    noisy = x + sigma * torch.randn(x.shape, generator=lots).to(x)
                    seen.append(_residuals(model, coder, noisy))  # (B,)
                    lost.append(divergence(model, noisy, target, grid, using))  # (B, grid)
        residuals, lambdas = rising_map(torch.cat(seen), torch.cat(lost), grid, bins)
        return cls(
            model=model,
            layer=name,
            reference=reference,
            residuals=tuple(residuals),
            lambdas=tuple(lambdas),
        )

    def choose(self, images: Tensor, *, batch_size: int = 500) -> Tensor:
        """lambda of each image, (N, 3, H, W) -> (N,) float32 on the CPU.

        Its mean is a lambda for all of them, as for a data set with one kind and level of noise.
        """
        checks.tensor("images", images, "(N, C, H, W)", "floats")
        checks.whole("batch_size", batch_size)
        coder = sparse_layers(self.model)[self.layer]
        with evaluating(self.model), using_lambda(self.model, self.reference, layer=self.layer):
            parts = [_residuals(self.model, coder, x) for x in images.split(batch_size)]
        return self.of_residual(torch.cat(parts))

    def of_residual(self, residual: Tensor) -> Tensor:
        """The map itself, (N,) -> (N,) float32 on the CPU."""
        checks.tensor("residual", residual, "(N,)", "numbers")
        found = np.interp(residual.detach().cpu().double().numpy(), self.residuals, self.lambdas)
        return torch.from_numpy(found).float()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """While open, every image that passes through the model is coded with its own lambda.

        The layer codes twice: at the reference for the residual, then with the lambda chosen.
        """

        def choose(coder: SparseCoding2d, args: tuple[Tensor]) -> None:
            (x,) = args  # (B, C, H, W), the layer's input
            coder.lambda_l1 = self.reference
            residual = coder.rms_residual(x, coder.forward(x))
            coder.lambda_l1 = self.of_residual(residual).to(x.device)

        coder = sparse_layers(self.model)[self.layer]
        handle, before = coder.register_forward_pre_hook(choose), coder.lambda_l1
        try:
            yield
        finally:
            handle.remove()
            coder.lambda_l1 = before


def divergence(model, noisy, target, grid, using):
    """How far predictions of noisy images are, at each lambda of a grid, from the target's, (B, grid).

    The target are log-probabilities (B, classes) of the same images without noise; `using` sets lambda.
    """
    tries = []
    for value in grid:
        with using(value):
            logits = model(noisy).float().log_softmax(1)  # (B, classes)
        gap = F.kl_div(logits, target, log_target=True, reduction="none").sum(1)  # (B,)
        tries.append(gap)
    return torch.stack(tries, 1).cpu()


def rising_map(residuals, lost, grid, bins):
    """Knots from residuals (N,) and what each lambda lost, (N, grid): the best lambda a bin, rising."""
    groups = residuals.argsort().tensor_split(bins)  # images of about the same residual
    best = [grid[lost[group].mean(0).argmin()] for group in groups]
    lambdas = isotonic_regression(best, weights=[len(group) for group in groups]).x
    return [residuals[group].mean().item() for group in groups], lambdas.tolist()


@dataclass(frozen=True, kw_only=True)
class OracleLambda:
    """The lambda with the best accuracy on these very images: what no method that lacks labels has.

    Attributes:
        value: the smallest of those with the highest accuracy.
        grid: lambdas tried.
        accuracy: share of images classified rightly with each, 0 to 1.
    """

    value: float
    grid: tuple[float, ...]
    accuracy: tuple[float, ...]


def oracle_lambda(
    model: nn.Module,
    data: ImageSet,
    grid: Sequence[float],
    *,
    layer: str | None = None,
    using: Callable[[float], AbstractContextManager] | None = None,
) -> OracleLambda:
    """Choose lambda by the labels of the images it is then scored on, as the published script does.

    An upper bound, to be named as such wherever it is shown.

    Args:
        model: with sparse coding layers.
        data: labelled images.
        grid: lambdas to try.
        layer: name of one layer; None sets all of them.
        using: as in `LabelFreeLambda.fit`; None is `using_lambda`.

    Raises:
        ValueError: an empty grid, no such layer.
    """
    checks.several("grid", grid, least=0)
    if not grid:
        raise ValueError("the grid of lambdas is empty: give at least one")
    for value in grid:
        checks.number("grid", value, least=0)
    checks.labelled("data", data)
    using = using or partial(using_lambda, model, layer=layer)
    grid, found = sorted(grid), []
    for value in grid:
        with using(value):
            found.append(accuracy(model, data))
    return OracleLambda(
        value=grid[found.index(max(found))], grid=tuple(grid), accuracy=tuple(found)
    )


def _residuals(model: nn.Module, coder: SparseCoding2d, images: Tensor) -> Tensor:
    """The residual of each image in this layer, with the lambda in use, (N,) on the CPU."""
    seen: list[Tensor] = []
    handle = coder.register_forward_hook(
        lambda module, args, code: seen.append(module.rms_residual(args[0], code))
    )
    try:
        model(images)
    finally:
        handle.remove()
    return seen[0].cpu()


def _chosen(model: nn.Module, layer: str | None) -> dict[str, SparseCoding2d]:
    found = sparse_layers(model)
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no sparse coding layer: attach_sparse_coding puts one in"
        )
    if layer is not None:
        checks.text("layer", layer)
    if layer is not None and layer not in found:
        raise ValueError(f"no sparse coding layer {layer!r}; there are: {', '.join(found)}")
    return found if layer is None else {layer: found[layer]}
