"""How far two methods differ, and how sure that is: paired over seeds and test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats

from ersm_lab import checks, records, runs

TEST_IMAGES = 10_000  # of every data set of the bench, where a run was not told to use fewer


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Test accuracy of one method minus that of another, in percentage points.

    Attributes:
        mean: over seeds and test images.
        low, high: ends of the confidence interval.
        seeds: the seeds that both methods have.
        by_seed: the difference of each.
    """

    mean: float
    low: float
    high: float
    seeds: tuple[int, ...]
    by_seed: tuple[float, ...]

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def difference(
    method: Sequence[dict],
    base: Sequence[dict],
    *,
    confidence: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> Difference:
    """Paired difference of test accuracy with a bootstrap interval.

    Seeds and test images are both drawn again, with replacement and independently of each other (a
    crossed bootstrap; Owen, 2007, arXiv:0711.1775, calls it the pigeonhole bootstrap), each network
    beside the one of the same seed and each image beside itself. With few seeds the interval is
    too narrow as far as new seeds go; with one it speaks of these two networks and new images only.

    Args:
        method, base: the records of the seeds of two methods, on the same test images.
        confidence: of the interval, 0 to 1.
        resamples: bootstrap resamples.
        seed: of the resampling.

    Raises:
        ValueError: no seed in common, or records without answers or of other images.
    """
    return paired(
        answers(method), answers(base), confidence=confidence, resamples=resamples, seed=seed
    )


def paired(
    method: Mapping[int, np.ndarray],
    base: Mapping[int, np.ndarray],
    *,
    confidence: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> Difference:
    """As `difference`, of any quantity that each seed's network has for each of the same images.

    Args:
        method, base: {seed: (N,)}, bools or numbers; times 100, they are in the unit of the result.
            An image whose value is not a number somewhere is left out everywhere.
        confidence: of the interval, 0 to 1.
        resamples: bootstrap resamples.
        seed: of the resampling.

    Raises:
        ValueError: no seed in common, other images, or none left.
    """
    for name, group in {"method": method, "base": base}.items():
        checks.a(name, group, Mapping)
        for right in group.values():
            if np.ndim(right) != 1 or np.asarray(right).dtype.kind not in "biuf":
                raise ValueError(
                    f"{name} must have numbers or bools (N,) for each seed, got {checks.shown(right)}"
                )
    checks.number("confidence", confidence, above=0, below=1)
    checks.whole("resamples", resamples, most=checks.MOST)
    checks.seed("seed", seed)
    seeds = tuple(sorted(method.keys() & base.keys()))
    if not seeds:
        raise ValueError("the two methods have no seed in common: record one for both")
    pairs = [(np.asarray(method[s], float), np.asarray(base[s], float)) for s in seeds]
    if len({len(a) for pair in pairs for a in pair}) != 1:
        raise ValueError("the records are of different test images")
    gaps = np.stack([a - b for a, b in pairs])  # (seeds, images)
    gaps = gaps[:, ~np.isnan(gaps).any(0)]
    if not gaps.size:
        raise ValueError("no image has a value in every record")
    low, high = _interval(gaps.tobytes(), len(seeds), confidence, resamples, seed)
    return Difference(
        mean=float(100 * gaps.mean()),
        low=100 * low,
        high=100 * high,
        seeds=seeds,
        by_seed=tuple((100 * gaps.mean(1)).tolist()),
    )


@lru_cache(maxsize=64)  # a chapter asks for the same difference in several tables
def _interval(
    gaps: bytes, seeds: int, confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    """The bootstrap interval of the mean of gaps, float64 (seeds, images) as bytes."""
    gaps = np.frombuffer(gaps).reshape(seeds, -1)  # (seeds, images)
    several = seeds > 1
    found = stats.bootstrap(
        (np.arange(seeds), np.arange(gaps.shape[1])) if several else (gaps[0],),
        (lambda s, i: gaps[np.ix_(s, i)].mean()) if several else np.mean,
        vectorized=False,
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def of(method: str, *, dataset: str, scale: str) -> list[dict]:
    """The records of all seeds of a method; none is an empty list."""
    return records.read_all(scale=scale, dataset=dataset, method=method)


def answers(group: Sequence[dict]) -> dict[int, np.ndarray]:
    """Which test images each seed's network classified rightly, (N,) bools by seed."""
    checks.several("group", group, least=0)
    answers = {}
    for record in group:
        if not isinstance(record, Mapping) or not {"answers", "seed", "config"} <= record.keys():
            raise TypeError(
                "group must hold records, each with answers, seed and config, got "
                f"{checks.shown(record)}"
            )
        if record["answers"] is None:
            raise ValueError(f"{record['name']} holds no answers: run it again")
        count = record["config"].get("test_images") or TEST_IMAGES
        answers[record["seed"]] = runs.unpack(record["answers"], count).numpy()
    return answers
