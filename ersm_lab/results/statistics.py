"""How far two methods differ, and how sure that is: paired over seeds and test images.

The gap of seed s on image i is g_si = mu + a_s + b_i + e_si: every seed meets every image, and both are
draws from many. With S seeds, N images and a dot for a mean over an index, the mean squares are

    MS_s = N sum_s (g_s. - g_..)^2 / (S - 1)                            of seeds
    MS_i = S sum_i (g_.i - g_..)^2 / (N - 1)                            of images
    MS_e = sum_si (g_si - g_s. - g_.i + g_..)^2 / ((S - 1) (N - 1))     of the rest

and the mean g_.. has (Searle, Casella & McCulloch, 1992, Variance Components, section 4.4)

    variance            V / (S N),   V = MS_s + MS_i - MS_e
    degrees of freedom  V^2 / (MS_s^2 / (S - 1) + MS_i^2 / (N - 1) + MS_e^2 / ((S - 1) (N - 1)))

by Satterthwaite (1946, Biometrics Bulletin 2). Where MS_i is below MS_e, images add nothing that the
rest does not: then V = MS_s with S - 1 degrees of freedom, the t test over the means of the seeds, and
there are never fewer. The interval is that of Student's t. Few seeds that disagree make it wide: three
leave two degrees of freedom.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from ersm_lab.common import checks
from ersm_lab.results import answer_bits, records

TEST_IMAGES = 10_000  # of every data set of the bench, where a run was not told to use fewer


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Test accuracy of one method minus that of another, in percentage points.

    Attributes:
        mean: over seeds and test images.
        low, high: ends of the confidence interval.
        seeds: the seeds that both methods have.
        by_seed: the difference of each.
        p_value: two-sided, of no difference, by the same t as the interval.
    """

    mean: float
    low: float
    high: float
    seeds: tuple[int, ...]
    by_seed: tuple[float, ...]
    p_value: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def difference(
    method: Sequence[dict], base: Sequence[dict], *, confidence: float = 0.95
) -> Difference:
    """Paired difference of test accuracy with its interval (equations at the top).

    Each network is held against the one of the same seed, each image against itself. With one seed the
    interval speaks of these two networks and new images only.

    Args:
        method, base: the records of the seeds of two methods, on the same test images.
        confidence: of the interval, 0 to 1.

    Raises:
        ValueError: no seed in common, or records without answers or of other images.
    """
    return paired(answers(method), answers(base), confidence=confidence)


def paired(
    method: Mapping[int, np.ndarray],
    base: Mapping[int, np.ndarray],
    *,
    confidence: float = 0.95,
) -> Difference:
    """As `difference`, of any quantity that each seed's network has for each of the same images.

    Args:
        method, base: {seed: (N,)}, bools or numbers; times 100, they are in the unit of the result.
            An image whose value is not a number somewhere is left out everywhere.
        confidence: of the interval, 0 to 1.

    Raises:
        ValueError: no seed in common, other images, or fewer than two left.
    """
    for name, group in {"method": method, "base": base}.items():
        checks.a(name, group, Mapping)
        for right in group.values():
            if np.ndim(right) != 1 or np.asarray(right).dtype.kind not in "biuf":
                raise ValueError(
                    f"{name} must have numbers or bools (N,) for each seed, got {checks.shown(right)}"
                )
    checks.number("confidence", confidence, above=0, below=1)
    seeds = tuple(sorted(method.keys() & base.keys()))
    if not seeds:
        raise ValueError("the two methods have no seed in common: record one for both")
    pairs = [(np.asarray(method[s], float), np.asarray(base[s], float)) for s in seeds]
    if len({len(a) for pair in pairs for a in pair}) != 1:
        raise ValueError("the records are of different test images")
    gaps = np.stack([a - b for a, b in pairs])  # (seeds, images)
    gaps = gaps[:, ~np.isnan(gaps).any(0)]
    if gaps.shape[1] < 2:
        raise ValueError("an interval needs two images that have a value in every record")
    error, freedom = standard_error(gaps)
    half = error * stats.t.ppf((1 + confidence) / 2, freedom)
    mean = gaps.mean()
    with np.errstate(divide="ignore"):
        t = abs(mean) / error if mean else 0.0  # without any spread a difference is certain
    return Difference(
        mean=float(100 * mean),
        low=float(100 * (mean - half)),
        high=float(100 * (mean + half)),
        seeds=seeds,
        by_seed=tuple((100 * gaps.mean(1)).tolist()),
        p_value=float(2 * stats.t.sf(t, freedom)),
    )


def gap(
    method: Sequence[dict],
    base: Sequence[dict],
    names: Sequence[str],
    *,
    base_names: Sequence[str] | None = None,
    confidence: float = 0.95,
) -> Difference | None:
    """Paired difference of accuracy, averaged over a suite's conditions; None without a common seed.

    An image counts with the mean over all conditions.

    Args:
        method, base: records of one suite of the seeds of two methods.
        names: conditions, each of the same weight.
        base_names: those of the base, where they are others.
        confidence: of the interval, 0 to 1.

    Raises:
        ValueError: no or other conditions, or records without answers.
    """
    checks.several("method", method, least=0)
    checks.several("base", base, least=0)
    sides = [
        {record["seed"]: answer_bits.share_right(record, chosen) for record in group}
        for group, chosen in ((method, names), (base, base_names or names))
    ]  # {seed: (N,)}
    if not sides[0].keys() & sides[1].keys():
        return None
    return paired(*sides, confidence=confidence)


def standard_error(gaps: np.ndarray) -> tuple[float, float]:
    """Of the mean of gaps (S, N) over seeds and images, and its degrees of freedom."""
    seeds, images = gaps.shape
    if seeds == 1:
        return float(gaps[0].std(ddof=1) / np.sqrt(images)), images - 1
    mean, by_seed, by_image = gaps.mean(), gaps.mean(1), gaps.mean(0)
    rest = gaps - by_seed[:, None] - by_image + mean  # (S, N)
    free = np.array([seeds - 1, images - 1, (seeds - 1) * (images - 1)])
    sums = [images * np.square(by_seed - mean).sum(), seeds * np.square(by_image - mean).sum()]
    squares = np.array([*sums, np.square(rest).sum()]) / free  # MS_s, MS_i, MS_e
    if squares[1] <= squares[2]:  # images add nothing: a t test over seeds
        return float(np.sqrt(squares[0] / gaps.size)), seeds - 1
    total = squares[0] + squares[1] - squares[2]  # V
    freedom = max(total**2 / (squares**2 / free).sum(), seeds - 1)
    return float(np.sqrt(total / gaps.size)), float(freedom)


# --- many comparisons ------------------------------------------------------------------------------


def holm(p_values: Sequence[float]) -> np.ndarray:
    """p values (K,) adjusted so that of K true zeros any is below 0.05 one time in twenty at most.

    Of the sorted p_1 <= ... <= p_K the k-th becomes the largest (K - j + 1) p_j, j <= k. Source: Holm,
    A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6 (1979).
    """
    p = np.asarray(p_values, float)  # (K,)
    order = p.argsort()
    raised = p[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(raised).clip(max=1)
    return adjusted


def marks(
    found: Iterable[Difference | None], *, level: float = 0.05, least_seeds: int = 3
) -> list[str]:
    """The marks of a table's differences, one family for `holm`: "▲" above zero, "▼" below, "" neither.

    Args:
        found: all that the table compares; None has no mark and no part in the family.
        level: the chance of one mark or more in a table of true zeros.
        least_seeds: a difference of fewer seeds has no mark and no part either.
    """
    judged = [f if f is not None and len(f.seeds) >= least_seeds else None for f in found]
    left = iter(holm([f.p_value for f in judged if f is not None]))
    return [
        ("▲" if f.mean > 0 else "▼") if f is not None and next(left) < level else "" for f in judged
    ]


# --- records ---------------------------------------------------------------------------------------


def over_seeds(values: Sequence[float], seeds: Sequence[int]) -> Difference:
    """Mean of one number a seed with its 95 % interval, Student's t; infinite for a single seed."""
    count, middle = len(values), float(np.mean(values))
    half, p_value = np.inf, 1.0
    if count > 1:
        error = np.std(values, ddof=1) / np.sqrt(count)
        half = stats.t.ppf(0.975, count - 1) * error
        if error > 0:
            p_value = float(2 * stats.t.sf(abs(middle) / error, count - 1))
        else:
            p_value = float(middle == 0)
    return Difference(
        mean=middle,
        low=float(middle - half),
        high=float(middle + half),
        seeds=tuple(seeds),
        by_seed=tuple(values),
        p_value=p_value,
    )


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
        answers[record["seed"]] = answer_bits.unpack(record["answers"], count).numpy()
    return answers
