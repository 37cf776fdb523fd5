"""Whether a record still tells what the code does: current, unverified or stale, and why.

    current     no source has changed since it was made, or today's probes give the numbers it holds
    unverified  the code has changed and its probes have not been run: `python -m ersm_lab probe`
    stale       a probe gives other numbers today, or the protocol has been raised

A record holds the numbers of its probes as they were when it was made (`probes`), `data/probes.json`
those of the code of today. A comment, another name or another place for a function change no number
and so no record; a changed formula changes the numbers of exactly those records that it has a part in.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ersm_lab.common.files import write_whole
from ersm_lab.results import provenance, records

CURRENT, UNVERIFIED, STALE = "current", "unverified", "stale"
RELATIVE = 1e-3  # numbers agree within this share; machines differ by a tenth of it at most
ABSOLUTE = 1e-7  # and numbers that are nearly zero within this
COUNTED = 0.04  # accuracies on few images: rounding may turn one or two of them

Numbers = dict[str, float]
Outcomes = dict[
    str, dict[str, Any]
]  # {id of a probe: {"protocol": whole number, "numbers": Numbers}}


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What a record is worth today.

    Attributes:
        state: `CURRENT`, `UNVERIFIED` or `STALE`.
        why: what no longer agrees, or what is to be done; empty where it is current.
    """

    state: str
    why: str = ""


def of(record: Mapping[str, Any], *, outcomes: Outcomes | None = None) -> Standing:
    """The standing of a record.

    Args:
        record: of schema 2. `probe` is null where none was taken, empty of a mere timing.
        outcomes: what today's code gives; None is what `known` has on file, and then sources that have
            not changed are enough.
    """
    if outcomes is None:
        if same_sources(record) or record["probe"] == {}:
            return Standing(state=CURRENT)
        outcomes = known()
    if record["probe"] is None:
        return Standing(state=UNVERIFIED, why="no probe was taken when it was made: run it again")
    for name, then in record["probe"].items():
        now = outcomes.get(name)
        if now is None and not name.startswith("data/"):  # data may not be at hand
            why = "the code has changed since: `python -m ersm_lab probe` tells whether it matters"
            return Standing(state=UNVERIFIED, why=why)
        off = disagreement(then, now) if now else ""
        if off:
            return Standing(state=STALE, why=f"{name}: {off}")
    return Standing(state=CURRENT)


def disagreement(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What two outcomes of a probe do not agree in, the largest first; empty where they agree."""
    if then["protocol"] != now["protocol"]:
        return f"its protocol was {then['protocol']}, is {now['protocol']}"
    off = differences(then["numbers"], now["numbers"])
    more = f" and {len(off) - 3} more" if len(off) > 3 else ""
    return ", ".join(off[:3]) + more


def differences(then: Numbers, now: Numbers) -> list[str]:
    """What no longer agrees, the largest first: "loss.2 was 1.234, is 1.26 (+2.1 %)"."""
    off = []
    for name in then | now:
        a, b = then.get(name), now.get(name)
        if a is None or b is None:
            words = ["not there" if value is None else f"{value:g}" for value in (a, b)]
            off.append((math.inf, f"{name} was {words[0]}, is {words[1]}"))
        elif not agree(name, a, b):
            share = (b - a) / abs(a) if a else math.inf
            off.append((abs(share), f"{name} was {a:g}, is {b:g} ({100 * share:+.2g} %)"))
    return [text for _, text in sorted(off, key=lambda pair: -pair[0])]


def agree(name: str, a: float, b: float) -> bool:
    """Whether two values of a number agree; those named after accuracy are counts of few images."""
    if "accuracy" in name:
        return abs(b - a) <= COUNTED
    return abs(b - a) <= RELATIVE * max(abs(a), abs(b)) + ABSOLUTE


# --- what today's code gives -----------------------------------------------------------------------


def same_sources(record: Mapping[str, Any], *, code: Path | None = None) -> bool:
    """Whether the sources of a record hash today as they did when it was made.

    Args:
        record: whose.
        code: the folder they lie in; None is `provenance.code_folder()`.
    """
    try:
        return provenance.source_hash(record["sources"], code=code)[0] == record["source_hash"]
    except (OSError, ValueError):  # a source is gone or does not parse
        return False


def outcomes_file(root: str | Path | None = None) -> Path:
    """`data/probes.json` at home."""
    return (Path(root) if root is not None else records.home()) / "data" / "probes.json"


def known(root: str | Path | None = None) -> Outcomes:
    """The outcomes on file if today's code gave them, else none."""
    try:
        found = _read(outcomes_file(root), outcomes_file(root).stat().st_mtime_ns)
    except (OSError, ValueError):
        return {}
    return found["outcomes"] if found["code"] == provenance.code_hash() else {}


@functools.lru_cache(maxsize=4)  # asked for every record of a table
def _read(path: Path, changed: int) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8"))
    if not (
        isinstance(found, dict) and isinstance(found.get("outcomes"), dict) and "code" in found
    ):
        raise ValueError(f"{path} holds no outcomes of probes")
    return found


def keep(outcomes: Outcomes, code: str, *, root: str | Path | None = None) -> Path:
    """Write what some code gave, beside what is on file of the same code; one probe a line.

    A number that agrees to a tenth of what is allowed keeps its digits, so that another machine
    changes no line.

    Args:
        outcomes: by id.
        code: `provenance.code_hash()` before the probes were run.
        root: home of the file; None is `records.home()`.
    """
    path = outcomes_file(root)
    try:
        file = _read(path, path.stat().st_mtime_ns)
    except (OSError, ValueError):
        file = {"code": "", "outcomes": {}}
    before = file["outcomes"]
    steady = {name: _steady(before.get(name), found) for name, found in outcomes.items()}
    merged = dict(sorted(((before if file["code"] == code else {}) | steady).items()))
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(found)}" for name, found in merged.items())
    text = f'{{"code": "{code}", "outcomes": {{\n{lines}\n}}}}\n'
    return write_whole(path, text.encode())


def _steady(before: Mapping[str, Any] | None, found: dict[str, Any]) -> dict[str, Any]:
    then = before["numbers"] if before else {}
    numbers = {
        name: then[name]
        if name in then and abs(value - then[name]) <= RELATIVE / 10 * abs(value)
        else value
        for name, value in found["numbers"].items()
    }
    return found | {"numbers": numbers}
