"""Experiments by name, whether their records stand, and train-or-load for the notebooks.

`methods` is the one list of them.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from ersm_core import EnergyMask
from ersm_lab.common.files import Damaged, set_aside
from ersm_lab.images import data
from ersm_lab.networks import controls
from ersm_lab.results import records, standing
from ersm_lab.training import methods, protocol_runs, runs
from ersm_lab.training.config import Experiment, MaskPlace, PublishedConfig


def run(
    experiment: Experiment,
    *,
    maps: protocol_runs.Maps | None = None,
    probe: dict | None = None,
    root: Path | None = None,
    progress: bool = True,
) -> dict:
    """Run an experiment of any kind and write its record; see `run` of `runs` and `protocol_runs`.

    The network that the published protocol freezes is loaded if there is one, else trained first. Runs
    of the published protocol that are given the same `maps` compute those of a backbone once.
    """
    settings: dict[str, Any] = {"probe": probe, "root": root, "progress": progress}
    if not isinstance(experiment.config, PublishedConfig):
        return runs.run(experiment, **settings)
    backbone = _backbone_of(experiment, progress)
    return protocol_runs.run(experiment, backbone=backbone, maps=maps, **settings)


def _backbone_of(experiment: Experiment, progress: bool) -> protocol_runs.Backbone:
    def find_backbone(method: str) -> tuple[nn.Module, dict]:
        place = {"scale": experiment.scale, "dataset": experiment.dataset}
        found = train_or_load(method, seed=experiment.seed, progress=progress, **place)
        return found.model, found.record

    return find_backbone


def lambdas(experiment: Experiment) -> tuple[float, float]:
    """The weights of the unary and the pairwise energy with which an experiment's mask is made.

    Raises:
        ValueError: it has no energy mask.
    """
    place = experiment.config.mask
    if not isinstance(place, MaskPlace) or place.preset in controls.KINDS:
        raise ValueError(f"{experiment.name} has no energy mask")
    make = getattr(EnergyMask, place.preset) if place.preset else EnergyMask
    mask = make(1, **place.settings)
    return mask.lambda_unary, mask.lambda_pair


def find(name: str) -> Experiment:
    """The experiment of that name, such as "laptop/cifar10/ersm/seed0".

    Raises:
        LookupError: no such experiment; the message gives the nearest names.
    """
    scale, _, rest = name.partition("/")
    dataset = rest.partition("/")[0]
    if scale in methods.SEEDS and dataset in data.DATASETS:
        found = (e for e in methods.experiments_of(scale, dataset=dataset) if e.name == name)
        if experiment := next(found, None):
            return experiment
    known = [
        e.name
        for scale in methods.SEEDS
        for dataset in data.DATASETS
        for e in methods.experiments_of(scale, dataset=dataset)
    ]
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.3)
    raise LookupError(f"no experiment {name!r}; nearest names: {', '.join(near)}")


def valid_record(experiment: Experiment, *, root: Path | None = None) -> dict | None:
    """The experiment's record if it still stands, else None: see `why_not`."""
    record = records.find(experiment.name, root=root)
    return record if record and not why_not(experiment, record, root=root) else None


def why_not(experiment: Experiment, record: Mapping[str, Any], *, root: Path | None = None) -> str:
    """Why a record no longer stands for its experiment; empty where it does.

    Its settings are today's and its code behaves as it did (`standing`; one whose probes have not been
    run is given the benefit). Where the experiment keeps its weights they are there, bit for bit.
    """
    off = records.settings_off(record["config"], experiment.config)
    if experiment.config.mask is None:  # then nothing reads how a mask is trained
        off = [text for text in off if not text.startswith("train.mask_")]
    if off:
        return "its settings have changed: " + "; ".join(off[:3])
    found = standing.of(record)
    if found.state == standing.STALE:
        return found.why
    if experiment.checkpoint and (record["checkpoint"] is None or runs.only_cached(record)):
        return "its weights were not kept"
    wrong = runs.weights_wrong(record, root=root) if record["checkpoint"] else ""
    if wrong:
        return f"its weights cannot be had: {wrong}"
    if isinstance(experiment.config, PublishedConfig):  # its backbone must be the one of today
        place = f"{experiment.scale}/{experiment.dataset}"
        base = _record(find(f"{place}/{experiment.config.backbone}/seed{experiment.seed}"), root)
        seen = record["metrics"]["backbone"]["fingerprint"]
        if base and base["checkpoint"] and protocol_runs.fingerprint(base) != seen:
            return f"{base['name']}, which it froze, has other weights today"
    return ""


def _record(experiment: Experiment, root: Path | None = None) -> dict | None:
    """The experiment's record if it was made with these settings, by whatever sources."""
    record = records.find(experiment.name, root=root)
    return (
        record if record and not records.settings_off(record["config"], experiment.config) else None
    )


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A trained network, its record, and a sentence that says where it came from."""

    model: nn.Module
    record: dict
    note: str


def train_or_load(
    method: str,
    *,
    seed: int = 0,
    scale: str | None = None,
    dataset: str = "auto",
    progress: bool = True,
) -> Loaded:
    """Load a recorded network with its checkpoint if there is one, otherwise train it now.

    What is trained here goes to `data/cache/runs`, so that the book's own records stay untouched
    (`python -m ersm_lab run` is what renews them), and is loaded from there the next time.

    Args:
        method: of `METHODS`, such as "dense" or "ersm".
        seed: which of the seeds.
        scale: None takes the environment variable ERSM_SCALE, or "laptop".
        dataset: as in `methods.experiments_of`.
        progress: show a bar while training.
    """
    scale = scale or os.environ.get("ERSM_SCALE", "laptop")
    rows = methods.experiments_of(scale, dataset=dataset)
    chosen = [e for e in rows if (e.method, e.seed) == (method, seed)]
    if not chosen:
        raise LookupError(f"no {method!r} with seed {seed} at {scale} scale")
    experiment = chosen[0]
    cache = records.home() / "data" / "cache" / "runs"
    for root in (records.home(), cache):
        record = _record(experiment, root)
        if record is None or record["checkpoint"] is None:
            continue
        same = standing.same_sources(record)
        if root == cache and not same:  # made on this machine by other sources: made again
            continue
        try:
            model = restore(experiment, record, root=root, progress=progress)
        except FileNotFoundError:
            continue
        except Damaged as error:
            set_aside(runs.weights_file(record, root=root), error)
            continue
        except (RuntimeError, ValueError):  # today's network, or the one it froze, is another
            if same and root != cache:
                raise
            continue
        return Loaded(model=model, record=record, note=_note("loaded", record))
    kept = replace(experiment, checkpoint=True)  # a notebook wants the network, not its record only
    record = run(kept, root=cache, progress=progress)
    model = restore(experiment, record, root=cache, progress=progress)
    return Loaded(model=model, record=record, note=_note("trained now", record))


def restore(
    experiment: Experiment, record: dict, *, root: Path | None = None, progress: bool = True
) -> nn.Module:
    """The trained network of a record of any kind, in evaluation mode; raises as `runs.restore`."""
    if not isinstance(experiment.config, PublishedConfig):
        return runs.restore(experiment, record, root=root)
    backbone = _backbone_of(experiment, progress)
    return protocol_runs.restore(experiment, record, backbone=backbone, root=root)


def _note(how: str, record: dict) -> str:
    device, found = record["device"], standing.of(record)
    text = (
        f"{record['name']}: {how}; {record['seconds']['train']:.0f} s of training on "
        f"{device['name']} ({device['precision']})"
    )
    if found.state == standing.STALE:
        return f"{text}; the code gives something else today, `make reproduce` renews it"
    return f"{text}; {found.why}" if found.why else text
