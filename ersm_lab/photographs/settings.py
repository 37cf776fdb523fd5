"""Which readers are compared: the grid that validation chooses from, and the stacks of the answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ersm_lab.photographs.readers import Setting

RATES = (1e-3, 3e-3, 1e-2, 3e-2)
LAMBDAS = (0.0, 1e-3, 1e-2, 1e-1, 0.3)

NO_MASK = Setting(mask="none", lambda_unary=0.0, lambda_pair=0.0)
AS_RELEASED = Setting()
AS_WRITTEN = Setting(train_bias="positions")
OPEN = Setting(bias=0.0, train_bias="one")

FAMILIES = {
    "released": AS_RELEASED,
    "written": AS_WRITTEN,
    "open": OPEN,
    "attention": replace(OPEN, pool="normalised"),
    "hard": replace(OPEN, hard=True),
}
MEAN_POOLED = ("released", "written", "open", "hard")  # from which "sparse" is chosen


def _at(base: Setting, rate: float, weight: float | None = None) -> Setting:
    setting = replace(base, learning_rate=rate)
    if weight is None:
        return setting
    return replace(setting, lambda_unary=weight, lambda_pair=weight)


def grid() -> dict[str, Setting]:
    """All that validation looks at, by "family/learning rate/lambda"."""
    found = {f"no mask/{rate:g}": _at(NO_MASK, rate) for rate in RATES}
    found |= {"as released": AS_RELEASED, "as written": AS_WRITTEN}
    for family, base in FAMILIES.items():
        for rate in RATES[1:]:
            for weight in LAMBDAS:
                found[f"{family}/{rate:g}/{weight:g}"] = _at(base, rate, weight)
    return found


def ceiling_grid() -> dict[str, Setting]:
    """Mean pooling and pooling by the true mask, for images that have one."""
    true = {
        "no mask": NO_MASK,
        "true mask": replace(NO_MASK, mask="true", pool="normalised"),
    }
    return {f"{name}/{rate:g}": _at(base, rate) for name, base in true.items() for rate in RATES}


def chosen(validation: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """The grid's choice of each family, by name, as criteria.md has it.

    Args:
        validation: {name in the grid: {"accuracy", "loss", "kept"}}, means over seeds.
    """

    def best(family: str) -> str:
        mine = [name for name in validation if name.split("/")[0] == family and "/" in name]
        return max(mine, key=lambda name: (validation[name]["accuracy"], -validation[name]["loss"]))

    families = dict.fromkeys(name.split("/")[0] for name in validation if "/" in name)
    found = {family: best(family) for family in families}
    if "released" in found:
        enough = validation[found["no mask"]]["accuracy"] - 0.01
        sparse = [
            name
            for name, value in validation.items()
            if name.split("/")[0] in MEAN_POOLED and "/" in name and value["accuracy"] >= enough
        ]
        if sparse:
            found["sparse"] = min(sparse, key=lambda name: validation[name]["kept"])
    return found


SIGN_LAMBDAS = (0.01, 0.1, 1.0)


def signs() -> dict[str, Setting]:
    """The pairwise term with either sign, by "pooling/form/lambda"; the rate is not searched."""
    base = replace(OPEN, learning_rate=3e-3)
    forms: dict[str, dict[str, Any]] = {
        "agreement": {"border": "mean"},
        "disagreement": {"border": "mean", "pairwise": "disagreement"},
        "agreement, sum": {},
        "disagreement, sum": {"pairwise": "disagreement"},
        "agreement, 4": {"border": "mean", "neighbourhood": 4},
        "disagreement, 4": {"border": "mean", "neighbourhood": 4, "pairwise": "disagreement"},
        "agreement, centred": {"border": "mean", "centred": True},
        "disagreement, centred": {"border": "mean", "centred": True, "pairwise": "disagreement"},
    }
    found = {"no mask": replace(NO_MASK, learning_rate=3e-3)}
    for pool, some in {"normalised": tuple(forms), "mean": tuple(forms)[:2]}.items():
        pooled = replace(base, pool=pool)
        found[f"{pool}/none/0"] = replace(pooled, lambda_unary=0.0, lambda_pair=0.0)
        for weight in SIGN_LAMBDAS:
            equal = replace(pooled, lambda_unary=weight, lambda_pair=weight)
            found[f"{pool}/unary/{weight:g}"] = replace(equal, lambda_pair=0.0)
            for form in some:
                found[f"{pool}/{form}/{weight:g}"] = replace(equal, **forms[form])
    return found


def closings() -> dict[str, Setting]:
    """Pressure with a pattern and without, by "origin/form/lambda"; normalised pooling, as `signs`."""
    base = replace(OPEN, learning_rate=3e-3, pool="normalised", border="mean")
    forms: dict[str, dict[str, Any]] = {
        "constant": {"pairwise": "constant"},
        "agreement": {},
        "disagreement": {"pairwise": "disagreement"},
        "agreement, centred": {"centred": True},
        "disagreement, centred": {"centred": True, "pairwise": "disagreement"},
    }
    found = {}
    for origin in ("zero", "mean"):
        moved = replace(base, origin=origin)
        found[f"{origin}/none/0"] = replace(moved, lambda_unary=0.0, lambda_pair=0.0)
        for weight in SIGN_LAMBDAS[1:]:
            for form, change in forms.items():
                equal = replace(moved, lambda_unary=weight, lambda_pair=weight)
                found[f"{origin}/{form}/{weight:g}"] = replace(equal, **change)
    return found
