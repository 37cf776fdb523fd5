"""The verdicts of criteria.md, read off the records of networks and clock."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ersm_lab.milliseconds.clock import DENSE, ERSM, RIVALS, SMALLER
from ersm_lab.results import records, statistics
from ersm_lab.results.claims import CRITERIA, decided
from ersm_lab.results.statistics import Difference

PLACE = "threads 1, batch 256"
ALONE = "threads 1, batch 1"
HALF = (0.4, 0.6)  # share kept that counts as half
SPEED_UP = 1.5  # times as many images a second


@dataclass(frozen=True, kw_only=True)
class Study:
    """Records of one scale on CIFAR-10.

    Attributes:
        networks: {method: its records, one a seed}.
        clocks: {seed: metrics of `clock.record`}.
    """

    networks: Mapping[str, list[dict]]
    clocks: Mapping[int, dict]

    def us(self, method: str, place: str = PLACE) -> dict[int, float]:
        """Microseconds an image by seed."""
        return {seed: found[place][method]["us"] for seed, found in self.clocks.items()}

    def times(self, method: str, place: str = PLACE) -> dict[int, float]:
        """How many times as many images a second as the dense network, by seed."""
        return {seed: found[place][method]["times"] for seed, found in self.clocks.items()}

    def accuracy(self, method: str) -> float:
        """Mean test accuracy over seeds, in percent."""
        return 100 * float(np.mean([r["metrics"]["test_accuracy"] for r in self.networks[method]]))

    def kept(self, method: str, *, validation: bool = False) -> list[float]:
        """Share of the tokens kept, one a seed; 1 for dense networks."""
        metrics = [r["metrics"] for r in self.networks[method]]
        metrics = [m["validation"] if validation else m for m in metrics]
        return [m["mask"]["kept_fraction"] if m.get("mask") else 1.0 for m in metrics]

    def gap(self, method: str, base: str = DENSE) -> Difference:
        """Of test accuracy, in points."""
        return statistics.difference(self.networks[method], self.networks[base])

    def rival(self, method: str) -> str | None:
        """The dense network that is no slower, of the best validation accuracy; None where all are."""
        us = {m: np.mean(list(self.us(m).values())) for m in (method, DENSE, *SMALLER)}
        fast = [m for m in (DENSE, *SMALLER) if us[m] <= us[method]]
        right = {m: np.mean([r["metrics"]["val_accuracy"] for r in self.networks[m]]) for m in fast}
        return max(right, key=right.__getitem__, default=None)

    def above_line(self, method: str) -> Difference:
        """Test accuracy minus that of dense networks of the same time, in points (criterion 3)."""
        dense = {m: statistics.answers(self.networks[m]) for m in (DENSE, *SMALLER)}
        line = {}
        for seed, found in self.clocks.items():
            us = {m: found[PLACE][m]["us"] for m in dense}
            weights = between(found[PLACE][method]["us"], us)
            line[seed] = np.sum([w * dense[m][seed] for m, w in weights.items()], axis=0)
        return statistics.paired(statistics.answers(self.networks[method]), line)


def read(*, scale: str = "laptop") -> Study | None:
    """The study's records; None where networks or clock have not been recorded."""
    place = {"dataset": "cifar10", "scale": scale}
    methods = (DENSE, *SMALLER, *ERSM, *RIVALS)
    networks = {method: statistics.of(method, **place) for method in methods}
    clocks = {r["seed"]: r["metrics"] for r in records.read_all(method="tokens-clock", **place)}
    return Study(networks=networks, clocks=clocks) if all(networks.values()) and clocks else None


def between(time: float, dense: Mapping[str, float]) -> dict[str, float]:
    """Weights of the two networks between whose times this one lies; all on one at either end.

    Of several networks that are as slow as the next but less accurate none is left out: the line goes
    through all of them, in order of their time.

    Args:
        time: of the network that is judged.
        dense: {network: its time}.
    """
    order = sorted(dense, key=dense.__getitem__)
    for fast, slow in itertools.pairwise(order):
        if dense[fast] <= time <= dense[slow]:
            weight = (time - dense[fast]) / (dense[slow] - dense[fast])
            return {fast: 1 - weight, slow: weight}
    return {order[0] if time < dense[order[0]] else order[-1]: 1.0}


def half_kept(study: Study) -> str:
    """The energy mask whose share kept on validation images is nearest to a half."""
    return min(ERSM, key=lambda m: abs(np.mean(study.kept(m, validation=True)) - 0.5))


def fast_enough(study: Study, method: str) -> str:
    """Criterion 1: "reached", "not reached" or "open"."""
    at_256, alone = study.times(method), study.times(method, ALONE)
    reached = [at_256[s] >= SPEED_UP and alone[s] >= 1 for s in at_256]
    if all(reached):
        return "reached"
    missed = all(at_256[s] < SPEED_UP for s in at_256) or all(v < 1 for v in alone.values())
    return "not reached" if missed else "open"


def preserved(gap: Difference) -> str:
    """Criterion 2: "preserved", "lost" or "open"."""
    lost = -CRITERIA.margin
    words = {"holds": "preserved", "fails": "lost", "open": "open"}
    return words[decided(gap, above=lost, gone=lost)]


def side(gap: Difference, *, words: tuple[str, str] = ("above", "below")) -> str:
    """Criteria 3 and 4."""
    told = {"holds": words[0], "fails": words[1], "open": "not told apart"}
    return told[decided(gap, above=0, gone=0)]


def adaptive(study: Study, method: str) -> str:
    """Criterion 5."""
    costs = []
    for record in study.networks[method]:
        metrics = record["metrics"]
        other = metrics["accuracy_with_mask_replaced"]["other_image"]
        costs.append(100 * (metrics["test_accuracy"] - other))
    least = CRITERIA.other_image
    return "adaptive" if min(costs) >= least else "not adaptive" if max(costs) < least else "open"
