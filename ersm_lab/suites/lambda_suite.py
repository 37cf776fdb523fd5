"""Lambda at test time, chosen three ways: the accuracy of one network under noise and other corruptions.

    fixed        the lambda of training
    label-free   each image's own, from how much of it the code leaves out (`LabelFreeLambda`)
    oracle       the best of a grid on the labels of the very images that are scored: an upper bound
                 for one lambda a condition, as the published script chooses it, and no method

The claim is that of SDNet (Dai et al., arXiv:2210.12945), which shows noise. A sparse code is a
denoiser, and an evaluation on noise alone flatters any denoiser: so every kind of corruption that
`corruptions` makes is here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from ersm_lab.common import checks
from ersm_lab.evaluation import inference
from ersm_lab.evaluation.sparse_lambda import LabelFreeLambda, oracle_lambda, sparse_layers
from ersm_lab.images import corruptions
from ersm_lab.images.data import ImageSet
from ersm_lab.results import statistics
from ersm_lab.views.tables import NOT_MADE, Table, mean_sd

ROWS = ("plain", "fixed", "label-free", "oracle")  # a network without codes has the first only
NOISE = "gaussian_noise"


@dataclass(frozen=True, kw_only=True)
class LambdaSuite:
    """What is asked.

    Attributes:
        images: the first so many of the test images.
        fit_images: the first so many of the training images, for the label-free choice.
        noise_severities: of Gaussian noise, 1 to 5.
        severities: of every other kind.
        kinds: of `corruptions.KINDS`; Gaussian noise is among them.
        multiples: lambdas to choose from, as multiples of that of training.
        seed: of what corruptions and the fit draw by lot.
    """

    images: int = 1_000
    fit_images: int = 1_000
    noise_severities: tuple[int, ...] = corruptions.SEVERITIES
    severities: tuple[int, ...] = (3, 5)
    kinds: tuple[str, ...] = corruptions.KINDS
    multiples: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("images", "fit_images"):
            checks.whole(name, getattr(self, name))
        for name in ("noise_severities", "severities"):
            checks.several(name, getattr(self, name))
            for severity in getattr(self, name):
                checks.whole(name, severity, most=corruptions.SEVERITIES[-1])
        checks.several("kinds", self.kinds)
        for kind in self.kinds:
            checks.choice("kinds", kind, corruptions.KINDS)
        checks.several("multiples", self.multiples)
        for multiple in self.multiples:
            checks.number("multiples", multiple, least=0)
        checks.seed("seed", self.seed)
        if NOISE not in self.kinds or not set(self.severities) <= set(self.noise_severities):
            raise ValueError(
                f"{NOISE} must be among the kinds, at all of their severities {self.severities}: "
                "the mean over kinds holds it"
            )
        if 1.0 not in self.multiples:
            raise ValueError(f"multiples must hold 1, the lambda of training: {self.multiples}")


SUITES = {
    "smoke": LambdaSuite(images=64, fit_images=64),
    "laptop": LambdaSuite(),
    "full": LambdaSuite(images=10_000, fit_images=5_000),
}


def conditions(settings: LambdaSuite) -> dict[str, tuple[str, int] | None]:
    """{name: kind and severity}, such as "snow-3"; "clean", the first, is none of both."""
    checks.a("settings", settings, LambdaSuite)
    found: dict[str, tuple[str, int] | None] = {"clean": None}
    for kind in settings.kinds:
        for severity in settings.noise_severities if kind == NOISE else settings.severities:
            found[f"{kind}-{severity}"] = (kind, severity)
    return found


def measure(
    model: nn.Module, test: ImageSet, training: ImageSet, *, settings: LambdaSuite
) -> tuple[dict, dict[str, Tensor]]:
    """Accuracy under every condition with lambda chosen three ways, and which images are right.

    Only the first sparse layer's lambda is chosen; further ones keep theirs. The oracle chooses one
    lambda for each condition, the label-free way one for each image, without knowing the condition.

    Args:
        model: a classifier of normalised images, with the lambda of its training set.
        test: test images, on the model's device; uint8 images of 32 x 32 pixels.
        training: training images, on the same device; their labels are not used.
        settings: what is asked.

    Returns:
        Metrics: `images`, their number; `accuracy` by row and condition, 0 to 1; `mean` by row, over
        Gaussian noise of all severities ("noise") and over all kinds at the other severities ("all"
        and each group of `corruptions.GROUPS`). With a sparse layer also `lambda` by row and
        condition, in units of the layer's input (label-free: mean over images), and `fit`, the knots
        of the label-free map. A network without one has the row "plain" only.
        Answers: bools (N,) by "row/condition", for all rows but the oracle's.
    """
    checks.network("model", model)
    checks.labelled("test", test)
    checks.labelled("training", training)
    checks.a("settings", settings, LambdaSuite)
    test = test[: settings.images]
    coders = sparse_layers(model)
    metrics: dict = {"images": len(test)}
    rows: tuple[str, ...] = ("plain",)
    label_free = None
    if coders:
        rows = ("fixed", "label-free", "oracle")
        layer, coder = next(iter(coders.items()))
        reference = float(coder.lambda_l1)
        grid = [multiple * reference for multiple in settings.multiples]
        label_free = LabelFreeLambda.fit(
            model,
            training.normalise(training.images[: settings.fit_images]),
            layer=layer,
            grid=grid,
            seed=settings.seed,
        )
        knots = {"residuals": list(label_free.residuals), "lambdas": list(label_free.lambdas)}
        metrics |= {"fit": knots, "lambda": {row: {} for row in rows}}
    accuracy: dict[str, dict[str, float]] = {row: {} for row in rows}
    answers: dict[str, Tensor] = {}
    for name, images in _corrupted(test.images, settings):
        data = replace(test, images=images)
        for row in rows[:2]:
            if label_free and row == "label-free":
                right, chosen = _label_free(model, coder, label_free, data)
                metrics["lambda"][row][name] = chosen
            else:
                right = inference.answers(model, data)  # (N,)
            answers[f"{row}/{name}"] = right
            accuracy[row][name] = right.double().mean().item()
        if label_free:
            best = oracle_lambda(model, data, grid, layer=layer)
            accuracy["oracle"][name] = max(best.accuracy)
            metrics["lambda"]["oracle"][name] = best.value
            metrics["lambda"]["fixed"][name] = reference
    metrics["accuracy"] = accuracy
    metrics["mean"] = {
        row: {
            what: float(np.mean([accuracy[row][name] for name in names]))
            for what, names in averages(settings).items()
        }
        for row in rows
    }
    order = sorted(answers, key=lambda name: rows.index(name.partition("/")[0]))
    return metrics, {name: answers[name] for name in order}


def averages(settings: LambdaSuite) -> dict[str, list[str]]:
    """{what: the conditions whose mean it is}: "noise", "all" and the groups of kinds."""
    checks.a("settings", settings, LambdaSuite)
    found = {"noise": [f"{NOISE}-{severity}" for severity in settings.noise_severities]}
    chosen = {"all": settings.kinds, **corruptions.GROUPS}
    for what, kinds in chosen.items():
        names = [f"{k}-{s}" for k in settings.kinds if k in kinds for s in settings.severities]
        if names:
            found["noises" if what == "noise" else what] = names
    return found


def _corrupted(images: Tensor, settings: LambdaSuite) -> Iterator[tuple[str, Tensor]]:
    for name, condition in conditions(settings).items():
        if condition is None:
            yield name, images
        else:
            yield name, corruptions.corrupt(images, *condition, seed=settings.seed)


def _label_free(
    model: nn.Module, coder: nn.Module, label_free: LabelFreeLambda, data: ImageSet
) -> tuple[Tensor, float]:
    """Right or not, (N,), and the mean of the lambdas that were chosen."""
    seen: list[Tensor] = []
    with label_free.applied():
        hook = coder.register_forward_hook(lambda module, *_: seen.append(module.lambda_l1))
        try:
            right = inference.answers(model, data)
        finally:
            hook.remove()
    return right, torch.cat(seen).mean().item()


# --- tables from records ---------------------------------------------------------------------------

WORDS = {
    "plain": "",
    "fixed": ", fixed λ",
    "label-free": ", label-free λ",
    "oracle": ", oracle λ (chosen by the test labels)",
}


def table(
    columns: Mapping[str, str], *, methods: Sequence[str], dataset: str, scale: str, caption: str
) -> Table:
    """One line for each network and way to choose lambda: mean ± sd over seeds, in percent.

    Args:
        columns: heading -> where it lies below a row, such as "accuracy.clean" or "mean.noise".
        methods: networks, in this order; those without records say so.
        dataset, scale: which records.
        caption: what is shown; scale and number of images are added.
    """
    checks.a("columns", columns, Mapping)
    checks.several("methods", methods)
    lines, images = [], set()
    for method in methods:
        group = statistics.of(f"{method}.lambda", dataset=dataset, scale=scale)
        if not group:
            lines.append([method, "0", NOT_MADE, *["–"] * (len(columns) - 1)])
        for row in ROWS:
            if group and row in group[0]["metrics"]["accuracy"]:
                shown = [_percent(group, row, where) for where in columns.values()]
                lines.append([method + WORDS[row], str(len(group)), *shown])
        images |= {record["metrics"]["images"] for record in group}
    count = f", first {', '.join(f'{n:,}' for n in sorted(images))} test images" if images else ""
    caption = f"{caption}: mean ± sd over seeds, in percent; {dataset}, {scale} scale{count}"
    return Table(header=["network", "seeds", *columns], rows=lines, caption=caption)


def _percent(group: Sequence[dict], row: str, where: str) -> str:
    part, _, name = where.partition(".")
    return mean_sd([100 * record["metrics"][part][row][name] for record in group])


def noise_table(methods: Sequence[str], *, dataset: str, scale: str) -> Table:
    """Accuracy on clean images and under Gaussian noise of every severity, and the mean of these."""
    severities = corruptions.SEVERITIES
    columns = {"clean": "accuracy.clean"}
    columns |= {f"severity {s}": f"accuracy.{NOISE}-{s}" for s in severities}
    columns["mean of 1 to 5"] = "mean.noise"
    caption = "Accuracy under Gaussian noise"
    return table(columns, methods=methods, dataset=dataset, scale=scale, caption=caption)


def kinds_table(methods: Sequence[str], *, dataset: str, scale: str) -> Table:
    """Accuracy under every group of corruptions, and their mean, every kind alike."""
    columns = {"noises": "mean.noises"}
    columns |= {group: f"mean.{group}" for group in corruptions.GROUPS if group != "noise"}
    columns["all kinds"] = "mean.all"
    caption = "Accuracy under corruptions of severities 3 and 5"
    return table(columns, methods=methods, dataset=dataset, scale=scale, caption=caption)


def gap(
    method: Sequence[dict], base: Sequence[dict], rows: tuple[str, str], names: Sequence[str]
) -> statistics.Difference | None:
    """Mean accuracy over some conditions, a row of one network minus a row of another.

    Args:
        method, base: records of the suites of two networks, or of one.
        rows: of `ROWS`, one for each; the oracle has no answers and cannot be compared.
        names: conditions.

    Returns:
        As `statistics.gap`.

    Raises:
        ValueError: no conditions, or such as the records do not hold.
    """
    checks.several("rows", rows, least=2, most=2)
    checks.several("names", names)
    for row in rows:
        checks.choice("rows", row, ROWS)
    own, others = ([f"{row}/{name}" for name in names] for row in rows)
    return statistics.gap(method, base, own, base_names=others)


def gaps_table(
    method: str, base: str, *, dataset: str, scale: str, settings: LambdaSuite | None = None
) -> Table:
    """What the ledger of claims asks: label-free against fixed lambda and against the base network."""
    if settings is None:
        checks.choice("scale", scale, SUITES)
    sparse, dense = (
        statistics.of(f"{name}.lambda", dataset=dataset, scale=scale) for name in (method, base)
    )
    over, lines = averages(settings or SUITES[scale]), []
    asked = [
        ("label-free λ minus fixed λ", sparse, ("label-free", "fixed")),
        (f"fixed λ minus {base}", dense, ("fixed", "plain")),
        (f"label-free λ minus {base}", dense, ("label-free", "plain")),
    ]
    for words, other, rows in asked:
        for what, where in (("clean", ["clean"]), ("noise", over["noise"]), ("all", over["all"])):
            label = {"clean": "clean", "noise": "Gaussian noise, 1 to 5", "all": "all kinds"}[what]
            found = gap(sparse, other, rows, where) if sparse and other else None
            if found is None:
                lines.append([words, label, "0", NOT_MADE, "–", "–"])
                continue
            each = ", ".join(f"{value:+.1f}" for value in found.by_seed)
            interval = f"{found.low:+.1f} to {found.high:+.1f}"
            seeds = str(len(found.by_seed))
            lines.append([words, label, seeds, f"{found.mean:+.1f}", interval, each])
    header = ["difference", "images", "seeds", "points", "95 % interval", "seed by seed"]
    caption = f"{method}: paired differences of accuracy, {dataset}, {scale} scale"
    return Table(header=header, rows=lines, caption=caption)
