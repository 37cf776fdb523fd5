"""Verdicts and pictures of the published-protocol chapter, drawn from its records.

The criteria were committed when earlier recordings of most rows stood already; all rows were recorded
anew since. A gap is the difference of two numbers of the same seed; its spread is the
standard deviation over seeds (n - 1).

does the weight matter   gap of the mean mask to the row without energy (lambda = 0):
                         "matters"     mean gap beyond two standard deviations of that row over seeds
                         "detectable"  not that, but beyond two standard deviations of the gap itself
                         "not seen"    neither
which ranking is better  gap of two rankings' deletion AUC, same networks: "better" or "worse" where
                         the mean gap is beyond two standard deviations of the gap, else "not told apart"

Three seeds are wanted; with fewer a question is "open". With three seeds two standard deviations are
a rule of thumb, no test.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from ersm_lab.results import records
from ersm_lab.results.statistics import of
from ersm_lab.views import figures

SEEDS = 3  # fewer leave a question open
BEYOND = 2.0  # standard deviations
KEPT = "mask.kept_fraction"
RANKINGS = {  # of the records -> words, and the marker that tells it apart
    "logit": ("logit z", "o"),
    "norm": ("norm of the token", "s"),
    "centre": ("centre prior", "^"),
    "energy": ("full energy e", "D"),
    "random": ("random", "v"),
}


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Differences by seed of two metrics, as the records hold them.

    Attributes:
        values: by seed.
        base_sd: standard deviation of the subtracted numbers over seeds; None for fewer than two.
    """

    values: dict[int, float]
    base_sd: float | None

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values.values())

    @property
    def sd(self) -> float | None:
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None

    def in_points(self) -> str:
        """Mean ± standard deviation in percentage points."""
        spread = "" if self.sd is None else f" ± {100 * self.sd:.2f}"
        return f"{100 * self.mean:+.2f}{spread}"


def gap(method: Sequence[dict], metric: str, base: Sequence[dict], base_metric: str) -> Gap | None:
    """Metric of one group of records minus a metric of another, seed by seed; None without a pair."""
    first, second = _by_seed(method, metric), _by_seed(base, base_metric)
    common = sorted(first.keys() & second.keys())
    if not common:
        return None
    subtracted = [second[seed] for seed in common]
    return Gap(
        values={seed: first[seed] - second[seed] for seed in common},
        base_sd=statistics.stdev(subtracted) if len(common) > 1 else None,
    )


def _by_seed(group: Sequence[dict], metric: str) -> dict[int, float]:
    found = {r["seed"]: records.flatten(r["metrics"]).get(metric) for r in group}
    return {seed: value for seed, value in found.items() if value is not None}


def weight_matters(found: Gap) -> str:
    """ "matters", "detectable", "not seen", or "open"."""
    if len(found.values) < SEEDS or found.sd is None or found.base_sd is None:
        return "open"
    if abs(found.mean) > BEYOND * found.base_sd:
        return "matters"
    return "detectable" if abs(found.mean) > BEYOND * found.sd else "not seen"


def ranking_is(found: Gap) -> str:
    """ "better", "worse", "not told apart", or "open"."""
    if len(found.values) < SEEDS or found.sd is None:
        return "open"
    if abs(found.mean) <= BEYOND * found.sd:
        return "not told apart"
    return "better" if found.mean > 0 else "worse"


def deletion_panels(
    methods: Sequence[str], *, dataset: str = "cifar10", scale: str = "laptop"
) -> Figure | None:
    """Accuracy over the share of deleted tokens, a panel a method; None without records.

    Lines are means over seeds, bands the range.
    """
    groups = {m: of(m, dataset=dataset, scale=scale) for m in methods}
    groups = {method: group for method, group in groups.items() if group}
    if not groups:
        return None
    figure, axes = plt.subplots(
        1, len(groups), figsize=(4.3 * len(groups), 3.8), sharey=True, squeeze=False
    )
    for axis, (method, group) in zip(axes[0], groups.items(), strict=True):
        deleted = 100 * np.array(group[0]["config"]["deletion"]["fractions"])  # (F,)
        for name, (words, marker) in RANKINGS.items():
            if name not in group[0]["metrics"]["deletion"]:
                continue
            curves = [r["metrics"]["deletion"][name]["accuracy"] for r in group]
            values = 100 * np.array(curves)  # (seeds, F)
            (line,) = axis.plot(deleted, values.mean(0), marker=marker, label=words)
            band = {"color": line.get_color(), "alpha": 0.18, "linewidth": 0}
            axis.fill_between(deleted, values.min(0), values.max(0), **band)
        axis.set(title=method, xlabel="tokens deleted, least important first [%]")
    axes[0, 0].set_ylabel("test accuracy [%]")
    axes[0, 0].legend()
    return figure


def kept_curves(
    methods: Sequence[str], *, dataset: str = "cifar10", scale: str = "laptop"
) -> Figure | None:
    """Mean mask on validation images over the epochs, from before the first step; None if unrecorded."""
    groups = {m: of(m, dataset=dataset, scale=scale) for m in methods}
    groups = {method: group for method, group in groups.items() if group}
    if not groups:
        return None
    figure = figures.training_curves(groups, metric="val_kept_fraction", label="mean mask [%]")
    axis = figure.axes[0]
    axis.set(ylim=(0, 102))
    axis.locator_params(axis="x", integer=True)
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.set_size_inches(8.6, 3.6)
    return figure
