"""Lambda at test time, a fair chance: a wide grid, statistics to match, and which way lambda went.

`lambda_suite` moves lambda and leaves everything behind it as training left it. Here each lambda comes
with the batch-norm statistics of clean training images that are coded with it (`Retuned`; no labels),
the grid goes on beyond the point where accuracy falls, and lambda is chosen four ways:

    fixed        that of training
    label-free   each image's own, as in `lambda_suite`
    line         one for all images of a condition: a straight line from their mean residual, fitted on
                 noisy training images with their labels, as the paper has it
    oracle       the best of the grid on the labels of the images that are scored; under noise and on
                 clean images only. An upper bound for a common lambda, and no method

Only the first sparse layer's lambda moves. Method: Dai et al. (2022), arXiv:2210.12945.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ersm_lab.common import checks
from ersm_lab.evaluation import inference
from ersm_lab.evaluation.inference import evaluating
from ersm_lab.evaluation.sparse_lambda import (
    LabelFreeLambda,
    oracle_lambda,
    sparse_layers,
    using_lambda,
)
from ersm_lab.images import corruptions
from ersm_lab.images.data import ImageSet
from ersm_lab.results import statistics
from ersm_lab.results.statistics import Difference
from ersm_lab.suites import lambda_suite
from ersm_lab.suites.lambda_suite import NOISE, LambdaSuite
from ersm_lab.views.tables import NOT_MADE, Table, mean_sd

ROWS = ("as-trained", "fixed", "label-free", "line", "oracle")
CHOSEN = ("line", "label-free")  # the two that are methods
Statistics = tuple[Tensor, Tensor, Tensor]  # running mean, running variance, batches seen
FIT_NOISE = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)  # standard deviations, of normalised pixels


@dataclass(frozen=True, kw_only=True)
class LambdaChoice(LambdaSuite):
    """As `LambdaSuite`, with a grid that goes on to thirty times the lambda of training."""

    fit_images: int = 500
    multiples: tuple[float, ...] = (0, 0.5, 1, 1.5, 2, 3, 4, 6, 8, 10, 14, 20, 30)


SUITES = {
    "smoke": LambdaChoice(images=64, fit_images=64),
    "laptop": LambdaChoice(),
    "full": LambdaChoice(images=10_000, fit_images=5_000),
}


# --- a network at several lambdas ------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Retuned:
    """One network at several lambdas of its first sparse layer, each with statistics to match.

    Attributes:
        model: as trained; it is left so.
        layer: whose lambda moves.
        reference: the lambda of training.
        statistics: {lambda: {name of a batch normalisation: mean, variance, batches seen}}.
    """

    model: nn.Module = field(repr=False, compare=False)
    layer: str
    reference: float
    statistics: Mapping[float, Mapping[str, Statistics]] = field(repr=False)

    @classmethod
    def on(cls, model: nn.Module, images: Tensor, grid: Sequence[float]) -> Retuned:
        """Estimate the statistics anew at every lambda.

        Args:
            model: with a sparse layer, and the lambda of its training set.
            images: (N, C, H, W), normalised training images, clean; some 500 are enough.
            grid: lambdas, in units of the layer's input.

        Raises:
            ValueError: a network without a sparse layer.
        """
        checks.tensor("images", images, "(N, C, H, W)", "floats")
        checks.several("grid", grid)
        coders = sparse_layers(model)
        if not coders:
            raise ValueError(f"{type(model).__name__} has no sparse layer: no lambda to move")
        layer, coder = next(iter(coders.items()))
        found = {}
        for value in grid:
            with using_lambda(model, value, layer=layer):
                found[value] = _statistics(model, images)
        return cls(model=model, layer=layer, reference=float(coder.lambda_l1), statistics=found)

    @property
    def grid(self) -> tuple[float, ...]:
        return tuple(self.statistics)

    @contextmanager
    def at(self, value: float) -> Iterator[None]:
        """While open, the network codes with this lambda of the grid and has its statistics."""
        norms = _norms(self.model)
        before = {name: _of(norm) for name, norm in norms.items()}
        try:
            with using_lambda(self.model, value, layer=self.layer):
                _put(norms, self.statistics[value])
                yield
        finally:
            _put(norms, before)

    def answers(self, data: ImageSet, lambdas: Tensor) -> Tensor:
        """Right or not, (N,), each image with the lambda of the grid that is nearest to its own (N,)."""
        grid = torch.tensor(self.grid, dtype=torch.float64)
        nearest = (lambdas.double()[:, None] - grid).abs().argmin(1)  # (N,)
        right = torch.zeros(len(data), dtype=torch.bool)
        for place in nearest.unique().tolist():
            own = nearest == place
            with self.at(self.grid[place]):
                right[own] = inference.answers(self.model, data[own.to(data.images.device)])
        return right

    def residuals(self, images: Tensor) -> Tensor:
        """How much of each image (N, C, H, W) the code leaves out at the lambda of training, (N,)."""
        plain = LabelFreeLambda(
            model=self.model,
            layer=self.layer,
            reference=self.reference,
            residuals=(0.0, 1e9),
            lambdas=(0.0, 1e9),
        )
        return plain.choose(images)  # the identity


def _statistics(model: nn.Module, images: Tensor) -> dict[str, Statistics]:
    """What each batch normalisation sees on these images: plain means over batches."""
    norms = _norms(model)
    before = {name: (_of(norm), norm.momentum) for name, norm in norms.items()}
    try:
        with evaluating(model):  # all but these: a sparse layer in training moves its step size
            for norm in norms.values():
                norm.reset_running_stats()
                norm.momentum, norm.training = None, True
            for x in images.split(250):
                model(x)
        return {name: _of(norm) for name, norm in norms.items()}
    finally:
        _put(norms, {name: kept for name, (kept, _) in before.items()})
        for name, norm in norms.items():
            norm.momentum = before[name][1]


def _norms(model: nn.Module) -> dict[str, _BatchNorm]:
    return {n: m for n, m in model.named_modules() if isinstance(m, _BatchNorm)}


def _buffers(norm: _BatchNorm) -> Statistics:
    mean, variance, seen = norm.running_mean, norm.running_var, norm.num_batches_tracked
    if mean is None or variance is None or seen is None:
        raise ValueError("a batch normalisation without running statistics: there are none to move")
    return mean, variance, seen


def _of(norm: _BatchNorm) -> Statistics:
    mean, variance, seen = _buffers(norm)
    return mean.clone(), variance.clone(), seen.clone()


def _put(norms: Mapping[str, _BatchNorm], values: Mapping[str, Statistics]) -> None:
    for name, norm in norms.items():
        for buffer, value in zip(_buffers(norm), values[name], strict=True):
            buffer.copy_(value)


@dataclass(frozen=True, kw_only=True)
class LambdaLine:
    """The published way from residual to lambda: a straight line, within the grid.

    Attributes:
        slope: lambda for each unit of residual.
        intercept: lambda without a residual.
        low, high: ends of the grid.
    """

    slope: float
    intercept: float
    low: float
    high: float

    @classmethod
    def fit(cls, tuned: Retuned, data: ImageSet, *, seed: int = 0) -> LambdaLine:
        """For each strength of noise the smallest lambda of the grid with the best accuracy, and
        through these, over the mean residuals, the line of least squares.

        Args:
            tuned: the network.
            data: labelled *training* images.
            seed: of the noise.
        """
        lots = torch.Generator().manual_seed(seed)
        x = data.normalise(data.images)  # (N, C, H, W)
        residuals, best = [], []
        for sigma in FIT_NOISE:
            noisy = x + sigma * torch.randn(x.shape, generator=lots).to(x)
            residuals.append(tuned.residuals(noisy).mean().item())
            found = []
            for value in tuned.grid:
                with tuned.at(value), evaluating(tuned.model):
                    logits = torch.cat([tuned.model(part) for part in noisy.split(250)])
                found.append((logits.argmax(1) == data.labels).double().mean().item())
            best.append(tuned.grid[found.index(max(found))])
        slope, intercept = np.polyfit(residuals, best, 1)
        low, high = min(tuned.grid), max(tuned.grid)
        return cls(slope=float(slope), intercept=float(intercept), low=low, high=high)

    def of_residual(self, residual: float) -> float:
        return min(max(self.slope * residual + self.intercept, self.low), self.high)


# --- the suite -------------------------------------------------------------------------------------


def measure(
    model: nn.Module, test: ImageSet, training: ImageSet, *, settings: LambdaChoice
) -> tuple[dict, dict[str, Tensor]]:
    """Accuracy under every condition, lambda chosen four ways, and which images are right.

    Args:
        model: with a sparse layer, and the lambda of its training set.
        test: test images, uint8 of 32 x 32 pixels, on the model's device.
        training: training images, on the same device.
        settings: what is asked.

    Returns:
        Metrics: `images`; `grid`; `accuracy` and `lambda` by row and condition (label-free: the mean
        over images), `mean` by row as in `lambda_suite`; `response`, by condition the accuracy at each
        lambda of the grid, on clean images and under noise; `line`, slope and intercept; `fit`, knots of
        the label-free map; `direction`, for the ways of `CHOSEN` the mean over severities of noise of
        the chosen lambda over that of training, minus one. "as-trained" is the lambda of training with
        the statistics of training.
        Answers: bools (N,) by "row/condition", for all rows but the oracle's.

    Raises:
        ValueError: a network without a sparse layer.
    """
    checks.network("model", model)
    checks.labelled("test", test)
    checks.labelled("training", training)
    checks.a("settings", settings, LambdaChoice)
    test, training = test[: settings.images], training[: settings.fit_images]
    coders = sparse_layers(model)
    if not coders:
        raise ValueError(f"{type(model).__name__} has no sparse layer: no lambda to choose")
    reference = float(next(iter(coders.values())).lambda_l1)
    grid = [multiple * reference for multiple in settings.multiples]
    plain = training.normalise(training.images)  # (N, C, H, W)
    tuned = Retuned.on(model, plain, grid)
    free = LabelFreeLambda.fit(
        model, plain, layer=tuned.layer, grid=grid, seed=settings.seed, using=tuned.at
    )
    line = LambdaLine.fit(tuned, training, seed=settings.seed)
    accuracy: dict[str, dict[str, float]] = {row: {} for row in ROWS}
    chosen: dict[str, dict[str, float]] = {row: {} for row in ROWS}
    response: dict[str, list[float]] = {}
    answers: dict[str, Tensor] = {}
    for name, condition in lambda_suite.conditions(settings).items():
        images = test.images
        if condition is not None:
            images = corruptions.corrupt(images, *condition, seed=settings.seed)
        data = replace(test, images=images)
        residuals = tuned.residuals(data.normalise(images))  # (N,)
        lambdas = {
            "fixed": torch.full(residuals.shape, reference, dtype=torch.float64),
            "label-free": free.of_residual(residuals),
            "line": torch.full_like(residuals, line.of_residual(residuals.mean().item())),
        }
        found = {"as-trained": inference.answers(model, data)}
        found |= {row: tuned.answers(data, each) for row, each in lambdas.items()}
        for row, right in found.items():
            answers[f"{row}/{name}"] = right
            accuracy[row][name] = right.double().mean().item()
            chosen[row][name] = lambdas.get(row, lambdas["fixed"]).mean().item()
        if condition is None or condition[0] == NOISE:
            best = oracle_lambda(model, data, grid, using=tuned.at)
            response[name] = list(best.accuracy)
            accuracy["oracle"][name] = max(best.accuracy)
            chosen["oracle"][name] = best.value
    over = lambda_suite.averages(settings)
    metrics = {
        "images": len(test),
        "grid": grid,
        "accuracy": accuracy,
        "lambda": chosen,
        "mean": {
            row: {
                what: float(np.mean([values[name] for name in names]))
                for what, names in over.items()
                if set(names) <= values.keys()
            }
            for row, values in accuracy.items()
        },
        "response": response,
        "line": {"slope": line.slope, "intercept": line.intercept},
        "fit": {"residuals": list(free.residuals), "lambdas": list(free.lambdas)},
        "direction": {
            row: float(np.mean([chosen[row][name] for name in over["noise"]]) / reference - 1)
            for row in CHOSEN
        },
    }
    order = sorted(answers, key=lambda name: ROWS.index(name.partition("/")[0]))
    return metrics, {name: answers[name] for name in order}


# --- from records ----------------------------------------------------------------------------------


def direction(group: Sequence[Mapping], row: str) -> Difference:
    """Mean of `direction` over seeds with its 95 % interval."""
    values = [record["metrics"]["direction"][row] for record in group]
    return statistics.over_seeds(values, [record["seed"] for record in group])


WORDS = {
    "as-trained": "λ and statistics of training",
    "fixed": "λ of training, new statistics",
    "label-free": "label-free λ",
    "line": "λ by the published line",
    "oracle": "oracle λ (chosen by the test labels)",
}


def table(methods: Sequence[str], *, dataset: str, scale: str) -> Table:
    """A line for each network and way: accuracy, and lambda over that of training, means over seeds."""
    noise, lines = [f"{NOISE}-{severity}" for severity in corruptions.SEVERITIES], []
    for method in methods:
        found = statistics.of(f"{method}.lambda-choice", dataset=dataset, scale=scale)
        group = [record["metrics"] for record in found]
        if not group:
            lines.append([method, "0", NOT_MADE, *["–"] * 4])
            continue
        for row in ROWS:
            cells = [mean_sd([100 * m["accuracy"][row]["clean"] for m in group])]
            for what in ("noise", "all"):
                values = [100 * m["mean"][row][what] for m in group if what in m["mean"][row]]
                cells.append(mean_sd(values))
            ratios = [
                [m["lambda"][row][name] / m["lambda"]["fixed"]["clean"] for name in names]
                for m in group
                for names in (["clean"], noise[-1:])
            ]
            cells += [f"{np.mean(ratios[start::2]):.1f}" for start in (0, 1)]
            lines.append([f"{method}: {WORDS[row]}", str(len(group)), *cells])
    header = ["network", "seeds", "clean", "noise, 1 to 5", "all kinds"]
    header += ["λ over training's: clean", "severity 5"]
    caption = (
        "λ chosen four ways, batch-norm statistics re-estimated at each: accuracy in percent, mean ± sd "
        f"over seeds; {dataset}, {scale} scale"
    )
    return Table(header=header, rows=lines, caption=caption)
