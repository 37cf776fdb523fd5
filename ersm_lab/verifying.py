"""A recorded run, run again in full: does it agree with its record?

What is run again lives in a folder of its own, so that the record stays as it is. Agreement is judged
by the tolerance that the record itself states. `data/verifications.jsonl` keeps what was found, a line
a re-run: the evidence that equal probes (`standing`) mean equal records.
"""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ersm_lab.common.files import write_whole
from ersm_lab.results import records
from ersm_lab.results.provenance import allowed_cores


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came of running a record again.

    Attributes:
        name: of the record.
        wrong: why it is not verified; empty where it agrees within its tolerance.
        differences: metric by metric; empty where it could not be run again.
        notes: what was different this time: machine, packages, sources.
    """

    name: str
    wrong: str
    differences: tuple[records.Difference, ...] = ()
    notes: tuple[str, ...] = ()


def verify_all(names: Sequence[str], *, jobs: int | None = None) -> Iterator[Verdict]:
    """Runs records again, some at the same time, each then with one thread.

    Args:
        names: of the records.
        jobs: how many at the same time; None is one a core.

    Yields:
        The verdicts, in the order of the names.
    """
    jobs = min(jobs or allowed_cores(), len(names))
    if jobs <= 1:
        yield from map(functools.partial(verify, progress=True), names)
        return
    spawn = multiprocessing.get_context("spawn")  # a fork would copy torch's threads half
    with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_one_thread) as pool:
        yield from pool.map(verify, names)


def next_names(count: int, *, scale: str = "laptop") -> list[str]:
    """The records whose turn it is: never run again first, then those longest ago.

    In which order is a shuffle by their names' hashes, so that few of them are of many kinds.

    Args:
        count: how many.
        scale: of the records.
    """
    last = {line["name"]: line["when"] for line in verifications()}
    names = [r["name"] for r in records.read_all(scale=scale) if r["tolerance"]]
    return sorted(names, key=lambda name: (last.get(name, ""), _shuffled(name)))[:count]


def _shuffled(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def verifications() -> list[dict[str, Any]]:
    """What full re-runs found, the oldest first."""
    path = verifications_file()
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]


def verifications_file() -> Path:
    """`data/verifications.jsonl` at home."""
    return records.home() / "data" / "verifications.jsonl"


def note(verdict: Verdict) -> None:
    """Append a verdict to `data/verifications.jsonl`."""
    found = {d.name: [d.a, d.b] for d in verdict.differences if d.tolerance is not None}
    commit, dirty = records.git_state()
    line = {
        "name": verdict.name,
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "agrees": not verdict.wrong,
        "wrong": verdict.wrong,
        "recorded, again": found,
        "notes": list(verdict.notes),
        "device": records.describe_device(),
        "packages": records.describe_packages(),
        "commit": commit,
        "dirty": dirty,
    }
    lines = [*verifications(), line]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_whole(verifications_file(), text.encode())


def verify(name: str, *, progress: bool = False) -> Verdict:
    """Runs one record again, at its scale and with its seed.

    Args:
        name: of the record, such as "smoke/shapes/ersm/seed0".
        progress: show bars.
    """
    try:
        recorded = records.read(name)
        if not recorded["tolerance"]:
            return Verdict(name=name, wrong="states no tolerance, so there is nothing to verify")
        with tempfile.TemporaryDirectory(prefix="ersm-verify-") as folder:
            again = _again(recorded, Path(folder), progress)
    except Exception as error:  # a record that cannot be run again is not verified
        if not isinstance(error, LookupError | ValueError | OSError):
            traceback.print_exc()
        reason = error.args[0] if isinstance(error, KeyError) and error.args else error
        wrong = f"could not be run again: {type(error).__name__}: {reason}"
        return Verdict(name=name, wrong=wrong)
    differences = tuple(records.compare(recorded, again))
    off = [difference.name for difference in differences if difference.within is False]
    return Verdict(
        name=name,
        wrong=f"does not agree in {', '.join(off)}" if off else "",
        differences=differences,
        notes=tuple(_notes(recorded, again)),
    )


def _again(recorded: dict[str, Any], folder: Path, progress: bool) -> dict[str, Any]:
    """Runs the experiment of a record again, or asks its network again, in a home of its own."""
    from ersm_lab.training import experiments

    if "judged" not in recorded["config"]:
        experiment = experiments.find(recorded["name"])
        return experiments.run(experiment, root=folder, progress=progress)
    from ersm_lab import judging

    suite = recorded["method"].rpartition(".")[2]
    network = experiments.find(recorded["config"]["judged"])
    networks = records.home()
    return judging.judge(network, suite, root=folder, networks=networks, progress=progress)


def _notes(recorded: dict[str, Any], again: dict[str, Any]) -> Iterator[str]:
    for what in ("device", "packages"):
        then, now = recorded[what], again[what]
        changed = [f"{k} {then.get(k)} -> {now.get(k)}" for k in then if then.get(k) != now.get(k)]
        if changed:
            yield f"recorded on another {what}: {', '.join(changed)}"
    changed = [k for k, v in again["sources"].items() if recorded["sources"].get(k) != v]
    if changed:
        yield f"recorded with other sources: {', '.join(changed)}"


def _one_thread() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch is not imported yet
