"""The suite of attacks: accuracy under FGSM, PGD and AutoAttack, and whether to trust it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from torch import nn

from ersm_lab.evaluation.attacks import AttackSettings
from ersm_lab.evaluation.under_attack import evaluate_attacks
from ersm_lab.images.data import ImageSet
from ersm_lab.suites.finding import Finding, accuracies, joined, nested


@dataclass(frozen=True, kw_only=True)
class Attacks:
    """As `attacks.AttackSettings`, whose defaults these are.

    Attributes:
        images: the first so many; None is all.
        levels: largest change of a pixel, in grey levels of 255.
        attacks, surrogates, pgd_steps, apgd_steps, targets, square_queries, batch_size, seed: of
            that class.
    """

    images: int | None
    levels: tuple[int, ...] = (2, 4, 8)
    attacks: tuple[str, ...] = ("fgsm", "pgd", "autoattack")
    surrogates: tuple[str, ...] = ("soft", "bpda")
    pgd_steps: int = 20
    apgd_steps: int = 100
    targets: int = 9
    square_queries: int = 5_000
    batch_size: int = 200
    seed: int = 0


def attacks(
    model: nn.Module, data: ImageSet, settings: Attacks, *, progress: bool = False
) -> Finding:
    """Conditions "clean", "<attack>.<level>" and "worst.<level>", each the worst case over the direct
    attack and the surrogates and over smaller levels; "worst" is over all attacks.

    Metrics beside the accuracies: `intervals` of them, `by_route`, `left_after` each part of
    AutoAttack, `only_by_surrogate`, and `gradients`: see `under_attack.AttackReport.summary`.
    """
    chosen = asdict(settings) | {"images": len(data)}
    levels = {level / 255: str(level) for level in chosen.pop("levels")}
    asked = AttackSettings(**chosen, epsilons=tuple(levels))
    report = evaluate_attacks(model, data, asked)
    right = {"clean": report.clean}
    for epsilon, level in levels.items():
        for attack in settings.attacks:
            right[f"{attack}.{level}"] = report.worst(epsilon, attack)
        right[f"worst.{level}"] = report.worst(epsilon)
    found = accuracies(right)
    intervals = {
        name: dict(zip(("low", "high"), report.interval(r), strict=True))
        for name, r in right.items()
    }
    summary = report.summary()
    parts: dict[str, dict] = {"intervals": intervals}
    for part in ("by_route", "left_after", "only_by_surrogate"):
        parts[part] = {
            joined((row["attack"], levels[row["epsilon"]])): row[part] for row in summary["attacks"]
        }
    more = {part: nested(values) for part, values in parts.items()}
    metrics = found.metrics | more | {"gradients": summary["gradients"]}
    return replace(found, metrics=metrics)
