"""Judging trained networks: the network of an experiment is asked a suite, and the record is written.

A card can be interrupted and goes on, and a change of what one suite uses, or of its settings, makes
no other one stale.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ersm_lab.images import data as lab_data
from ersm_lab.results import answer_bits, records, standing
from ersm_lab.results.provenance import code_of
from ersm_lab.suites import card
from ersm_lab.training import experiments, runs
from ersm_lab.training.config import Experiment
from ersm_lab.training.loop import best_device


def judge(
    experiment: Experiment,
    suite: str,
    *,
    settings: Any = None,
    root: Path | None = None,
    networks: Path | None = None,
    restore: Callable[[Experiment, dict], nn.Module] | None = None,
    probe: dict | None = None,
    progress: bool = True,
) -> dict:
    """Ask the trained network of an experiment one suite and write what it found as a record.

    Args:
        experiment: whose network; it has a current record and a checkpoint.
        suite: of `SUITES`.
        settings: of the suite; None takes those of the experiment's scale.
        root: home of the record that is written; None is `records.home()`.
        networks: home of the experiment's record and checkpoint; None is `root`.
        restore: (experiment, record) -> its trained network; None is `experiments.restore`.
        probe: what its probes give today, for the record (`standing`).
        progress: show bars.

    Returns:
        The record, as written to `data/results/<scale>/<dataset>/<method>.<suite>/seed<seed>.json`.

    Raises:
        RecordNotFound: the experiment has no current record with a checkpoint.
        ValueError: an unknown suite, or one that the data set cannot be asked.
    """
    asked = card.settings_of(suite, experiment.scale, {suite: settings} if settings else None)
    if suite not in (*card.suites_of(experiment.dataset), *card.BY_NAME):
        raise ValueError(
            f"{suite} needs true object masks, which {experiment.dataset} has not: choose one of "
            f"{', '.join(card.suites_of(experiment.dataset))}"
        )
    root = Path(root) if root else records.home()
    networks = Path(networks) if networks else root
    network = _network(experiment, networks)
    if network is None:
        raise records.RecordNotFound(
            f"{experiment.name} has no current record with a checkpoint in "
            f"{records.results_dir(networks)}: make one with `python -m ersm_lab run "
            f"{experiment.name}`, and set checkpoint=True in its row of methods.py if it has none"
        )
    restore = restore or partial(experiments.restore, root=networks, progress=progress)
    model = restore(experiment, network)
    device = torch.device(best_device())
    low = device.type == "cuda" and suite in card.UNDER_CONDITIONS
    facts = records.provenance(
        code_of(__file__),
        device=device,
        precision="16-mixed" if low else "32-true",
    )
    facts["device"] |= runs.beside()
    begun = time.perf_counter()
    test = lab_data.load(experiment.dataset, "test", limit=asked.images, device=device)
    loaded = time.perf_counter() - begun
    (finding,) = card.evaluate(
        model.to(device),
        test,
        suites=[suite],
        settings={suite: asked},
        progress=progress,
    ).values()
    stated = finding.stated | {"conditions": list(finding.conditions)}
    record = facts | {
        "name": judgement_name(experiment, suite),
        "method": f"{experiment.method}.{suite}",
        "dataset": experiment.dataset,
        "scale": experiment.scale,
        "seed": experiment.seed,
        "config": _config(experiment, asked, network) | stated,
        "metrics": finding.metrics,
        "tolerance": _tolerance(suite, finding.metrics),
        "curve": [],
        "answers": None if finding.right is None else answer_bits.pack(finding.right.flatten()),
        "seconds": {"train": 0.0, "load": loaded, "judge": finding.seconds},
        "probe": probe,
        "checkpoint": None,
    }
    records.write(record, root=root)
    return record


def judgement_name(experiment: Experiment, suite: str) -> str:
    """The name of a judgement's record."""
    place = f"{experiment.scale}/{experiment.dataset}"
    return f"{place}/{experiment.method}.{suite}/seed{experiment.seed}"


def valid_judgement(
    experiment: Experiment,
    suite: str,
    *,
    settings: Any = None,
    root: Path | None = None,
    networks: Path | None = None,
) -> dict | None:
    """The record of a suite if it still stands, else None: see `why_not`."""
    record = records.find(judgement_name(experiment, suite), root=root)
    if record is None:
        return None
    asked = {"settings": settings, "networks": networks or root}
    return None if why_not(experiment, suite, record, **asked) else record


def why_not(
    experiment: Experiment,
    suite: str,
    record: Mapping,
    *,
    settings: Any = None,
    networks: Path | None = None,
) -> str:
    """Why a suite's record no longer stands; empty where it does.

    Its settings are today's, its code behaves as it did (`standing`), and it was made of the weights
    that the experiment's own record has, which stands as well. Arguments as of `judge`.
    """
    found = standing.of(record)
    if found.state == standing.STALE:
        return found.why
    network = _network(experiment, networks)
    if network is None:
        return f"{experiment.name}, which was asked, has no record that stands"
    if record["config"].get("checkpoint_sha256") != network["checkpoint"]["sha256"]:
        return f"{experiment.name} has other weights today than those that were asked"
    wanted = card.settings_of(suite, experiment.scale, {suite: settings} if settings else None)
    stated = ("judged", "checkpoint_sha256", "conditions", "layer")
    asked = {name: value for name, value in record["config"].items() if name not in stated}
    off = records.settings_off(asked, wanted)
    return "its settings have changed: " + "; ".join(off[:3]) if off else ""


# --- the small print -------------------------------------------------------------------------------


def _network(experiment: Experiment, home: Path | None) -> dict | None:
    record = experiments.valid_record(experiment, root=home)
    return record if record and record["checkpoint"] else None


def _config(experiment: Experiment, settings: Any, network: Mapping) -> dict:
    """What must be the same for a judgement to count."""
    of = {"judged": experiment.name, "checkpoint_sha256": network["checkpoint"]["sha256"]}
    return records.plain(settings) | of


def _tolerance(suite: str, metrics: Mapping) -> dict[str, float]:
    """Of a re-run elsewhere: a hundredth, or three images; attacks are chaotic and have three."""
    near = max(0.03 if suite == "attacks" else 0.01, 3 / metrics["images"])
    stated = {name: near for name in ("accuracy", "mean", "scores", "follows_background")}
    return {name: value for name, value in stated.items() if name in metrics}
