"""The paper's claims (a) and (b) as criteria that a set of records meets or fails.

Written down, and committed, before the runs they judge were recorded:

(a) *Clean accuracy is preserved*: the 95 % interval of the test accuracy minus that of the dense
    network (paired over seeds and test images, `statistics.difference`) lies above -0.5 points: holds;
    below it: fails; across it: open.
(b) *Sparsity emerges and adapts to each input*: in every seed at most 70 % of the mask is kept on
    average (emerges), the kept share differs between images (standard deviation of at least 2
    points), and another image's mask costs at least 1 point of accuracy (adapts): holds. One of them
    missed in every seed: fails. Otherwise open.

Three seeds are wanted; with fewer a claim is open, whatever they say.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ersm_lab.results import records
from ersm_lab.results.statistics import Difference, difference


@dataclass(frozen=True, kw_only=True)
class Criteria:
    """What counts.

    Attributes:
        margin: accuracy that may be lost, in points.
        kept: mean mask that still counts as sparse, 0 to 1.
        between_images: standard deviation over images of their mean mask, 0 to 1, at least.
        other_image: accuracy that another image's mask must cost, in points, at least.
        seeds: fewer leave a claim open.
    """

    margin: float = 0.5
    kept: float = 0.7
    between_images: float = 0.02
    other_image: float = 1.0
    seeds: int = 3


CRITERIA = Criteria()
OUTCOMES = {"holds": "reproduced", "fails": "not reproduced", "open": "open"}  # of a claim


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`claim` "a" or "b"; `outcome` "holds", "fails" or "open"; `reason` in words and numbers."""

    claim: str
    outcome: str
    reason: str


def decided(found: Difference, *, above: float, gone: float, seeds: int = 3) -> str:
    """What an interval says of "more than `above` points": "holds", "fails" or "open".

    It holds if the whole interval lies above; it fails if the whole interval lies below `gone`. Across
    them, or with too few seeds, it is open.
    """
    if len(found.seeds) < seeds:
        return "open"
    if found.low > above:
        return "holds"
    return "fails" if found.high < gone else "open"


def better(found: Difference, *, unit: str = "points") -> tuple[str, str]:
    """Outcome and figure of "better than": an interval above zero is *reproduced*; below
    zero, or around it but with less than one unit above, *not reproduced*; else *open*.

    Fewer than three seeds leave it open.
    """
    figure = (
        f"{found.mean:+.2f} {unit}, 95 % interval {found.low:+.2f} to {found.high:+.2f}, "
        f"{len(found.seeds)} seed{'s' if len(found.seeds) != 1 else ''}"
    )
    return OUTCOMES[decided(found, above=0, gone=1)], figure


def accuracy_is_preserved(
    masked: Sequence[dict], dense: Sequence[dict], *, criteria: Criteria = CRITERIA
) -> Verdict:
    """Claim (a), from the records of a method's seeds and of the dense network's."""
    found = difference(masked, dense)
    reason = f"{found.mean:+.2f} points, 95 % interval {found.low:+.2f} to {found.high:+.2f}"
    if len(found.seeds) < criteria.seeds:
        reason += f"; {_seeds(len(found.seeds))} of {criteria.seeds}"
    lost = -criteria.margin
    outcome = decided(found, above=lost, gone=lost, seeds=criteria.seeds)
    return Verdict(claim="a", outcome=outcome, reason=reason)


def sparsity_adapts(masked: Sequence[dict], *, criteria: Criteria = CRITERIA) -> Verdict:
    """Claim (b), from the records of a method's seeds.

    Raises:
        ValueError: no records, or networks without a mask.
    """
    if not masked:
        raise ValueError("no records to judge: record the method first")
    metrics = [records.flatten(record["metrics"]) for record in masked]
    if "mask.kept_fraction" not in metrics[0]:
        raise ValueError(f"{masked[0]['name']} has no mask to judge")
    kept = [m["mask.kept_fraction"] for m in metrics]
    between = [m["mask.between_images_sd"] for m in metrics]
    other = "accuracy_with_mask_replaced.other_image"
    cost = [100 * (m["test_accuracy"] - m[other]) for m in metrics]
    parts = {
        f"kept {_range(100 * k for k in kept)} %": [k <= criteria.kept for k in kept],
        f"differs by {_range(100 * b for b in between)} points between images": [
            b >= criteria.between_images for b in between
        ],
        f"another image's mask costs {_range(cost)} points": [
            c >= criteria.other_image for c in cost
        ],
    }
    reason = ", ".join(parts)
    outcome = "open"
    if len(masked) < criteria.seeds:
        reason += f"; {_seeds(len(masked))} of {criteria.seeds}"
    elif all(all(met) for met in parts.values()):
        outcome = "holds"
    elif any(not any(met) for met in parts.values()):
        outcome = "fails"
    return Verdict(claim="b", outcome=outcome, reason=reason)


def _range(values: Iterable[float]) -> str:
    values = list(values)
    low, high = min(values), max(values)
    return f"{low:.1f}" if f"{low:.1f}" == f"{high:.1f}" else f"{low:.1f} to {high:.1f}"


def _seeds(count: int) -> str:
    return f"{count} seed{'s' if count != 1 else ''}"
