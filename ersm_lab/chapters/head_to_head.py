"""All methods side by side: what each gains and loses against the dense network, and what it costs.

Every number is drawn from records: of trainings (clean accuracy), of the suites of its card (the
rest), of `cost` (time and memory). A measure has one number for each image of each seed's network; more
is better. Differences are paired over seeds and images, as in `statistics.paired`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from ersm_lab.chapters import deletion_report
from ersm_lab.chapters.robustness_report import judged, share_right
from ersm_lab.evaluation.inference import energy_masks
from ersm_lab.evaluation.rankings import CLASS_FREE
from ersm_lab.networks import controls
from ersm_lab.results import records, statistics
from ersm_lab.results.statistics import Difference
from ersm_lab.training import experiments
from ersm_lab.training.config import Experiment
from ersm_lab.training.methods import ABLATION_BACKBONE, experiments_of
from ersm_lab.views.tables import NOT_RUN, Table, mean_sd
from ersm_lab.views.widgets import Widget, checked_name, fill, script_json

DENSE = "ablation-dense"
METHODS = (
    DENSE,
    "cutout",
    "random-half",
    "ablation-ersm",
    "gentle",
    "unary-only",
    "ersm-cutout",
    "isvs-fixed",
    "isvs-iterative",
    "low-pass",
    "sdnet",
    "pruned",
)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number an image and network; more is better.

    Attributes:
        words: what is measured.
        suite: of `card.SUITES`; None is the test set as it is.
        pattern: of the suite's conditions whose mean is taken, as in `robustness_report.matching`;
            None is the area under the deletion curve by the best ranking that knows no class.
    """

    words: str
    suite: str | None
    pattern: str | None = "*"


MEASURES: dict[str, Measure] = {
    "clean": Measure(words="accuracy on the test images as they are", suite=None),
    "occlusion": Measure(
        words="accuracy behind squares of 4 to 20 pixels, random places, four fills",
        suite="occlusion",
        pattern="random.*",
    ),
    "corruption": Measure(
        words="accuracy under 18 corruptions of 5 severities", suite="corruption"
    ),
    "low resolution": Measure(
        words="accuracy on images shrunk to 24, 16, 12 and 8 pixels and enlarged again",
        suite="resolution",
    ),
    "attack": Measure(
        words="accuracy that FGSM, PGD-20 and AutoAttack within 2/255 all leave",
        suite="attacks",
        pattern="worst.2",
    ),
    "deletion": Measure(
        words="area under the token deletion curve, by the best ranking that knows no class",
        suite="deletion",
        pattern=None,
    ),
}

Values = Mapping[int, np.ndarray]  # {seed: (N,)}
Card = Mapping[str, Mapping[str, Values]]  # {method: {measure: values}}, empty without records


def read(
    methods: Sequence[str] = METHODS,
    measures: Mapping[str, Measure] = MEASURES,
    *,
    dataset: str = "cifar10",
    scale: str = "laptop",
) -> Card:
    """What the records hold of every method and measure, an empty dict where there are none."""
    where = dict(dataset=dataset, scale=scale)
    return {
        method: {name: _values(method, measure, **where) for name, measure in measures.items()}
        for method in methods
    }


def _values(method: str, measure: Measure, **where: str) -> Values:
    if measure.suite is None:
        group = [r for r in statistics.of(method, **where) if r["answers"] is not None]
        return {seed: right.astype(float) for seed, right in statistics.answers(group).items()}
    group = judged(method, measure.suite, **where)
    if measure.pattern is None:
        return deletion_report.under_its_best(group, of=CLASS_FREE)[0] if group else {}
    return {r["seed"]: share_right(r, measure.pattern) for r in group}


def gap(card: Card, method: str, measure: str, *, base: str = DENSE) -> Difference | None:
    """A method minus the base, in points; None where no seed is recorded for both."""
    first, second = card[method][measure], card[base][measure]
    return statistics.paired(first, second) if first.keys() & second.keys() else None


def gaps(card: Card, *, base: str = DENSE) -> dict[str, dict[str, Difference | None]]:
    """`gap` of every method but the base and every measure: {method: {measure: ...}}."""
    return {
        method: {measure: gap(card, method, measure, base=base) for measure in row}
        for method, row in card.items()
        if method != base
    }


# --- tables ----------------------------------------------------------------------------------------


def accuracy_table(card: Card) -> Table:
    """Every method under every measure, mean ± standard deviation over seeds, in percent."""
    rows = [
        [method, *(_mean_sd(values) for values in row.values())] for method, row in card.items()
    ]
    images = {
        name: len(next(iter(values.values())))
        for row in card.values()
        for name, values in row.items()
        if values
    }
    counts = ", ".join(f"{name} {count:,}" for name, count in images.items())
    return Table(
        header=["method", *_measures(card)],
        rows=rows,
        caption=f"Percent, mean ± standard deviation over seeds; test images: {counts or NOT_RUN}",
    )


def difference_table(found: Mapping[str, Mapping[str, Difference | None]], *, base: str) -> Table:
    """Differences to the base with 95 % intervals; ▲ and ▼ as `statistics.marks` has them.

    Args:
        found: of `gaps`.
        base: whom they were taken to.
    """
    signs = marks(found)
    rows = [
        [method, *(_said(gap_, signs[method][name]) for name, gap_ in row.items())]
        for method, row in found.items()
    ]
    count = sum(gap_ is not None for row in found.values() for gap_ in row.values())
    caption = (
        f"Minus {base}, points with 95 % intervals, paired over seeds and images; ▲ above zero, ▼ "
        f"below, by Holm: were all {count} true zeros, one time in twenty there would be a mark at all"
    )
    return Table(header=["method", *_measures(found)], rows=rows, caption=caption)


def balance_table(found: Mapping[str, Mapping[str, Difference | None]], *, base: str) -> Table:
    """Where each method is ahead of the base, where behind, and where neither is shown.

    Arguments as of `difference_table`.
    """
    rows, signs = [], marks(found)
    for method, row in found.items():
        kinds: dict[str, list[str]] = {"▲": [], "▼": [], "": [], NOT_RUN: []}
        for measure, gap_ in row.items():
            kinds[NOT_RUN if gap_ is None else signs[method][measure]].append(measure)
        rows.append([method, *(", ".join(names) or "–" for names in kinds.values())])
    header = ["method", "ahead", "behind", "not told apart", NOT_RUN]
    return Table(header=header, rows=rows, caption=f"Against {base}, by the marks above")


# Who was given how many trials: what was searched, and on what. A setting with a record is a row of
# the list of experiments on the ablation's network; what was tried without a record is not counted.
SEARCHED: dict[str, tuple[str, str]] = {
    "ERSM": (
        "weights of both energies, place, gate, temperature, noise, schedule",
        "validation images of one seed, then of three; trial runs without a record before",
    ),
    "a mask that knows nothing": ("nothing: half is kept", "–"),
    "Cutout": ("nothing: one side", "–"),
    "ISVS and its low-pass": ("nothing: levels as published, first guess of a schedule", "–"),
    "SDNet": ("nothing: as published", "–"),
    "pruning": ("nothing: half of the weights", "–"),
}


def family(experiment: Experiment) -> str | None:
    """Of `SEARCHED`, whose trial an experiment is; None for a dense network or another backbone."""
    config = experiment.own
    if config.sparsity:
        return "pruning"
    if config.smoothing:
        return "ISVS and its low-pass"
    if config.coding:
        return "SDNet"
    if config.mask:
        return "a mask that knows nothing" if config.mask.preset in controls.KINDS else "ERSM"
    return "Cutout" if config.train.augment.cutout else None


def budget_table(*, dataset: str = "cifar10", scale: str = "laptop") -> Table:
    """How many settings of each family are in the list, how many networks, and what was searched."""
    trials: dict[str, dict[str, int]] = {name: {} for name in SEARCHED}
    for experiment in experiments_of(scale, dataset=dataset):
        if experiment.config.backbone != ABLATION_BACKBONE[scale]:
            continue
        name = family(experiment)
        if name:
            trials[name][experiment.method] = trials[name].get(experiment.method, 0) + 1
    rows = [
        [name, str(len(trials[name])), str(sum(trials[name].values())), *words]
        for name, words in SEARCHED.items()
    ]
    return Table(
        header=["method", "settings", "networks", "searched", "chosen on"],
        rows=rows,
        caption=f"Settings on the ablation's network, {dataset}, {scale} scale",
    )


def _measures(rows: Mapping[str, Mapping]) -> list[str]:
    return list(next(iter(rows.values())))


def marks(found: Mapping[str, Mapping[str, Difference | None]]) -> dict[str, dict[str, str]]:
    """`statistics.marks` of `gaps`, all of one family: {method: {measure: mark}}."""
    signs = iter(statistics.marks(gap_ for row in found.values() for gap_ in row.values()))
    return {method: {measure: next(signs) for measure in row} for method, row in found.items()}


def _said(found: Difference | None, mark: str) -> str:
    if found is None:
        return NOT_RUN
    seeds = "" if len(found.seeds) > 2 else f", {len(found.seeds)} of 3 seeds"
    interval = f"{found.low:+.1f} to {found.high:+.1f}{seeds}"
    return f"{found.mean:+.1f} ({interval}) {mark}".rstrip()


def _mean_sd(values: Values) -> str:
    return mean_sd([each.mean() for each in values.values()], factor=100, none=NOT_RUN)


# --- networks --------------------------------------------------------------------------------------


def networks(
    methods: Sequence[str], *, dataset: str = "cifar10", scale: str = "laptop"
) -> dict[str, nn.Module]:
    """The recorded networks of seed 0, in evaluation mode; without those that have no checkpoint."""
    found = {}
    for method in methods:
        experiment = experiments.find(f"{scale}/{dataset}/{method}/seed0")
        try:
            record = records.read(experiment.name)
            if record["checkpoint"]:
                found[method] = experiments.restore(experiment, record, progress=False)
        except (records.RecordNotFound, FileNotFoundError):
            continue
    return found


def kept_shares(
    models: Mapping[str, nn.Module], *, dataset: str = "cifar10", scale: str = "laptop"
) -> dict[str, tuple[str, float]]:
    """{method: (the layer its mask follows, share of tokens kept, mean over seeds)}."""
    found = {}
    for method, model in models.items():
        group = statistics.of(method, dataset=dataset, scale=scale)
        found_shares = [records.flatten(r["metrics"]).get("mask.kept_fraction") for r in group]
        shares = [share for share in found_shares if share is not None]
        layers = list(energy_masks(model))
        if layers and shares and len(shares) == len(group):
            found[method] = (layers[0], float(np.mean(shares)))
    return found


# --- a choice of one's own -------------------------------------------------------------------------


def decide(
    card: Card,
    *,
    base: str = DENSE,
    weights: Mapping[str, int] | None = None,
    name: str = "ersm-decide",
) -> Widget:
    """Sliders that weigh the measures, and the methods in the order that follows.

    The score of a method is the weighted mean of its differences to the base for each seed, each in
    units of its measure's noise (`seed_noise`), so that no measure decides because its points are
    large; a line goes from the worst seed to the best.

    Args:
        card: of `read`.
        base: whom differences are taken to; it is shown, too.
        weights: where sliders stand at first, 0 to 5; 1 where none is given.
        name: id of the element; a page with two of them needs two names.
    """
    checked_name(name)
    measures = [m for m in _measures(card) if card[base][m]]
    if not measures:
        return Widget(
            html=f"<p>No records of {base} yet: <code>make reproduce</code> makes them.</p>"
        )
    methods: list[dict[str, Any]] = []
    for method, row in card.items():
        found = [_by_seed(row[m], card[base][m]) for m in measures]
        methods.append({"name": method, "gaps": found})
    start = [(weights or {}).get(measure, 1) for measure in measures]
    units = [seed_noise([m["gaps"][k] for m in methods]) for k in range(len(measures))]
    content = {"measures": measures, "methods": methods, "base": base, "weights": start}
    content["units"] = units
    return fill("decide.html", {"ID": name, "DATA": script_json(content)})


def seed_noise(gaps: Sequence[Sequence[float] | None]) -> float:
    """By how much another seed moves a difference, in points: the standard deviation over seeds.

    Args:
        gaps: differences to one base, of several seeds each; None and such of one seed have no part.

    Returns:
        The root of the mean variance of those that differ from seed to seed; 1 where none does.
    """
    spread = [np.var(each, ddof=1) for each in gaps if each is not None and len(each) > 1]
    spread = [variance for variance in spread if variance > 0]  # the base against itself has none
    return round(float(np.sqrt(np.mean(spread))), 3) if spread else 1.0


def _by_seed(first: Values, second: Values) -> list[float] | None:
    """Differences in points, seed by seed; None where a seed of the second is not in the first."""
    if not second.keys() <= first.keys():
        return None
    return [round(100 * float(first[s].mean() - second[s].mean()), 3) for s in sorted(second)]
