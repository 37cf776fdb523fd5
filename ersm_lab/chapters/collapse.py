"""What has become of a mask: a verdict by criteria that were fixed when few of the runs were recorded.

A network keeps its accuracy with a mask that says nothing, so the verdict is drawn from the mask's
values and from what happens when it is replaced. In this order:

    all on           mean mask above 0.99
    all off          mean mask below 0.02
    at its cap       mean mask within 0.02 of 1/2, and nearly the same within every image
    uniform          nearly the same within every image, at another level
    fixed pattern    another image's mask costs less than 0.3 points, positions explain most of the mask
    interchangeable  another image's mask costs less than 0.3 points, positions do not explain it
    adaptive         another image's mask costs more than 1 point
    undecided        in between

A soft mask that is all off, or uniform, may still differ a little between positions, and a
normalisation after it restores the scale. So the reason of every verdict also gives the spread within
an image as a share of the mean, and what another image's mask costs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from ersm_lab.results import claims
from ersm_lab.results.statistics import of
from ersm_lab.training.loop import TrainSettings, rate_factor
from ersm_lab.views.tables import Table, percent

KINDS = (
    "all on",
    "all off",
    "at its cap",
    "uniform",
    "fixed pattern",
    "interchangeable",
    "adaptive",
    "undecided",
)
COLLAPSED = KINDS[:5]


@dataclass(frozen=True, kw_only=True)
class Criteria:
    """Where the lines are drawn.

    Attributes:
        on: mean mask above which it is all on.
        off: mean mask below which it is all off.
        cap: the value the gate of the energy cannot exceed.
        near: how far from the cap a mean mask still counts as at it.
        flat: standard deviation within an image below which a mask is the same everywhere.
        same: what another image's mask may cost and still count as nothing, in points.
        adaptive: what it must cost for the mask to count as adaptive, in points.
        share: of the mask's variance that the mean mask explains in a fixed pattern, 0 to 1.
    """

    on: float = 0.99
    off: float = 0.02
    cap: float = 0.5
    near: float = 0.02
    flat: float = 0.02
    same: float = 0.3
    adaptive: float = claims.CRITERIA.other_image  # one line with claim (b)
    share: float = 0.5


CRITERIA = Criteria()


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`kind` is one of `KINDS`, `reason` says in words and numbers why."""

    kind: str
    reason: str

    @property
    def collapsed(self) -> bool:
        """Whether one mask, or none, would do for all images."""
        return self.kind in COLLAPSED


def verdict(record: Mapping[str, Any], *, criteria: Criteria = CRITERIA) -> Verdict:
    """What has become of the mask of one trained network.

    Args:
        record: of a run with a mask; its test images are judged.
        criteria: where the lines are drawn.

    Raises:
        ValueError: the record is of a network without a mask.
    """
    metrics = record["metrics"]
    if "mask" not in metrics:
        raise ValueError(f"{record['name']} has no mask to judge")
    kept, within = metrics["mask"]["kept_fraction"], metrics["mask"]["within_image_sd"]
    cost, share = cost_of_another(record), position_share(record)
    kind = kind_of(kept, within, cost, share, criteria)
    relative = f" ({100 * relative_spread(record):.0f} % of the mean)"
    reason = (
        f"mean mask {kept:.3f}, sd within an image {within:.3f}{relative}; another image's mask "
        f"costs {cost:+.1f} points; the mean by position explains {100 * share:.0f} % of the variance"
    )
    return Verdict(kind=kind, reason=reason)


def kind_of(
    kept: float, within: float, cost: float, share: float, criteria: Criteria = CRITERIA
) -> str:
    """One of `KINDS`, from what a verdict rests on.

    Args:
        kept: mean mask, 0 to 1.
        within: its standard deviation within an image.
        cost: of another image's mask, in points.
        share: of the mask's variance that its mean by position explains, 0 to 1.
        criteria: where the lines are drawn.
    """
    if kept > criteria.on:
        return "all on"
    if kept < criteria.off:
        return "all off"
    if within < criteria.flat:
        return "at its cap" if abs(kept - criteria.cap) <= criteria.near else "uniform"
    if abs(cost) < criteria.same:
        return "fixed pattern" if share > criteria.share else "interchangeable"
    return "adaptive" if cost > criteria.adaptive else "undecided"


def cost_of_another(record: Mapping[str, Any]) -> float:
    """Test accuracy with the own mask minus that with another image's, in points."""
    metrics = record["metrics"]
    return 100 * (metrics["test_accuracy"] - metrics["accuracy_with_mask_replaced"]["other_image"])


def relative_spread(record: Mapping[str, Any]) -> float:
    """Standard deviation within an image over the mean mask; 0 for a mask that is 0 everywhere.

    What a normalisation after the mask leaves of a soft one's spread, since it restores the scale.
    """
    mask = record["metrics"]["mask"]
    return mask["within_image_sd"] / mask["kept_fraction"] if mask["kept_fraction"] > 0 else 0.0


def position_share(record: Mapping[str, Any]) -> float:
    """Share of the mask's variance over images and positions that its mean by position explains.

    From a record's standard deviations, 0 to 1: the variance of the mean mask over that between and
    within images. The record holds the mean of the standard deviations within images, not of the
    variances, so the share is an upper bound, and exact where images are equally varied. 0 for a
    constant mask.
    """
    mask = record["metrics"]["mask"]
    whole = mask["between_images_sd"] ** 2 + mask["within_image_sd"] ** 2
    return min(1.0, mask["position_sd"] ** 2 / whole) if whole > 0 else 0.0


def tally(group: Sequence[Mapping[str, Any]], *, criteria: Criteria = CRITERIA) -> str:
    """The verdicts of a method's seeds, such as "adaptive" or "all on (2), adaptive (1)"."""
    found = Counter(verdict(record, criteria=criteria).kind for record in group)
    if len(found) == 1:
        return next(iter(found))
    return ", ".join(f"{kind} ({count})" for kind, count in found.most_common())


def table(
    methods: Sequence[str],
    *,
    dataset: str = "cifar10",
    scale: str = "laptop",
    criteria: Criteria = CRITERIA,
) -> Table:
    """Verdict of every method over its seeds, with what it rests on, mean ± sd over seeds, in %."""
    rows = []
    for method in methods:
        group = of(method, dataset=dataset, scale=scale)
        if not group:
            rows.append([method, "0", "not recorded yet", *["–"] * 5])
            continue
        made = [
            {**r, "metrics": {"cost": cost_of_another(r) / 100, "relative": relative_spread(r)}}
            for r in group
        ]
        shown = [
            percent(group, "mask.kept_fraction"),
            percent(group, "mask.within_image_sd"),
            percent(made, "relative"),
            percent(made, "cost"),
            percent(group, "test_accuracy"),
        ]
        rows.append([method, str(len(group)), tally(group, criteria=criteria), *shown])
    header = ["row", "seeds", "verdict", "mean mask", "sd within an image", "sd / mean"]
    header += ["another's mask costs", "accuracy"]
    caption = f"{dataset}, {scale} scale, mean ± standard deviation over seeds, in percent (points)"
    return Table(header=header, rows=rows, caption=caption)


def against(
    predicted: Mapping[str, str], *, dataset: str = "cifar10", scale: str = "laptop"
) -> Table:
    """What was predicted for each row beside what was found, seed by seed.

    Args:
        predicted: row -> one of `KINDS`, or "" for no prediction.
        dataset, scale: which records.

    Raises:
        ValueError: a prediction that is no verdict.
    """
    rows = []
    for method, kind in predicted.items():
        if kind and kind not in KINDS:
            raise ValueError(f"{kind!r} is no verdict: choose one of {', '.join(KINDS)}")
        group = of(method, dataset=dataset, scale=scale)
        found = [verdict(record).kind for record in group]
        right = found.count(kind)
        outcome = "–"
        if found and kind:
            outcome = f"{right} of {len(found)}"
        shown = tally(group) if group else "not recorded yet"
        rows.append([method, kind or "none", shown, outcome, percent(group, "test_accuracy")])
    header = ["row", "predicted", "found", "seeds as predicted", "accuracy"]
    return Table(header=header, rows=rows, caption=f"{dataset}, {scale} scale")


def missing(
    methods: Sequence[str], *, dataset: str = "cifar10", scale: str = "laptop", seeds: int = 1
) -> list[str]:
    """Those of the methods that have fewer records than so many seeds."""
    return [m for m in methods if len(of(m, dataset=dataset, scale=scale)) < seeds]


def variance_shares(masks: torch.Tensor) -> dict[str, float]:
    """What a mask's variance over images and positions is made of; the shares add up to 1.

    Args:
        masks: (N, 1, H, W).

    Returns:
        position: of the mean mask by position; image: of the mean mask by image; both: what is left,
        a pattern of its own in each image. All 0 for a constant mask.
    """
    m = masks.flatten(1).double()  # (N, L)
    whole = m.var(correction=0)
    position, image = m.mean(0).var(correction=0), m.mean(1).var(correction=0)
    if whole == 0:
        return {"position": 0.0, "image": 0.0, "both": 0.0}
    shares = {"position": position / whole, "image": image / whole}
    shares["both"] = (whole - position - image) / whole
    return {name: value.item() for name, value in shares.items()}


def lone_token(
    settings: TrainSettings,
    *,
    steps: int,
    lambda_unary: float,
    cost: float,
    start: float = 0.0,
    gate: str = "logit",
) -> torch.Tensor:
    """Mask over the training of one token that feels the regulariser only: no task, no image.

    Its logit is a lone bias, moved by SGD with the settings' rates, Nesterov momentum and schedule.
    With the mask on from the first step, this is what every token would do if the task did not care.

    Args:
        settings: of the training.
        steps: of the whole training.
        lambda_unary: weight of the unary energy.
        cost: lambda_pair softplus(agreement), held fixed.
        start: of the logit.
        gate: "logit" for m = sigmoid(-z), "energy" for m = sigmoid(-lambda_unary softplus(z)).

    Returns:
        (steps,) float64, the mask before every step.
    """
    z = torch.tensor(float(start), dtype=torch.float64, requires_grad=True)
    peak = settings.learning_rate * settings.mask_lr_factor
    optimiser = torch.optim.SGD(
        [z], lr=peak, momentum=settings.momentum, nesterov=settings.momentum > 0
    )
    path = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = peak * rate_factor(step / steps, settings)
        unary = lambda_unary * F.softplus(z)
        m = torch.sigmoid(-z if gate == "logit" else -unary)
        path.append(m.detach())
        optimiser.zero_grad()
        (m * (unary + cost)).backward()
        optimiser.step()
    return torch.stack(path)
