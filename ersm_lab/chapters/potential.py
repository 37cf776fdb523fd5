"""One token's potential R(z) to play with, in a page without a kernel: the closed form runs there."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from ersm_lab.views.widgets import Widget, checked_name, fill, script_json


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where the controls of the potential stand at first; all dimensionless.

    Args:
        lambda_unary: weight of the unary energy, 0.05 to 3.
        lambda_pair: weight of the pairwise energy, 0 to 1.
        agreement: a, summed over 8 neighbours, -8 to 8.
        temperature: T of the logit gate, 0.25 to 4.
        start: logit from which the token starts, -6 to 6.
        gate: "logit" or "energy".
    """

    lambda_unary: float = 1.0
    lambda_pair: float = 0.1
    agreement: float = 4.0
    temperature: float = 1.0
    start: float = 1.0
    gate: str = "logit"


RANGES = {  # of each slider: lowest, highest, step
    "lambda_unary": (0.05, 3.0, 0.05),
    "lambda_pair": (0.0, 1.0, 0.01),
    "agreement": (-8.0, 8.0, 0.1),
    "temperature": (0.25, 4.0, 0.05),
    "start": (-6.0, 6.0, 0.05),
}


def potential_explorer(setting: Setting | None = None, *, name: str = "ersm-potential") -> Widget:
    """R(z), its slope and the mask as curves, with sliders and a token that rolls down.

    The formulas are those of `energy_theory.Landscape`, written once more in the page's script.

    Args:
        setting: where the controls stand; None for the defaults.
        name: id of the element; a page with two of them needs two names.

    Raises:
        ValueError: a setting outside its slider, an unknown gate, a name that is no id.
    """
    setting = setting or Setting()
    for key, (low, high, _) in RANGES.items():
        value = getattr(setting, key)
        if not (math.isfinite(value) and low <= value <= high):
            raise ValueError(f"{key} must be between {low:g} and {high:g}, got {value}")
    if setting.gate not in ("logit", "energy"):
        raise ValueError(f'gate must be "logit" or "energy", got {setting.gate!r}')
    content = {"setting": asdict(setting), "ranges": RANGES}
    filled = {"ID": checked_name(name), "DATA": script_json(content)}
    return fill("potential.html", filled)
