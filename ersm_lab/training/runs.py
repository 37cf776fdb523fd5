"""One run: from settings to a trained network and its record. Resumes after a kill."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ersm_lab.common import checkpoints
from ersm_lab.common.files import Damaged, set_aside, write_whole
from ersm_lab.evaluation import inference
from ersm_lab.images import data as lab_data
from ersm_lab.images import smoothed
from ersm_lab.networks import backbones, pruning
from ersm_lab.networks.whitening import WhitenedNet
from ersm_lab.results import records
from ersm_lab.results.answer_bits import pack
from ersm_lab.results.provenance import code_hash, code_of
from ersm_lab.training.build import build
from ersm_lab.training.config import Config, Experiment
from ersm_lab.training.loop import Trainable, make_fabric, train

SAVE_EVERY = 2.0  # seconds between two checkpoints of a training on a GPU, whose epochs are short
CACHED_WEIGHTS = "data/cache/weights"


def run(
    experiment: Experiment,
    *,
    probe: dict | None = None,
    root: Path | None = None,
    progress: bool = True,
) -> dict:
    """Train, evaluate and record; a killed run goes on from its last epoch.

    Settings are chosen by the curve's val_accuracy; the test set is seen once, after training.

    Args:
        experiment: what to run.
        probe: what its probes give today, for the record (`standing`).
        root: home of the record and the checkpoint; None is `records.home()`.
        progress: show bars.

    Returns:
        The record, as written to `data/results/<name>.json`.
    """
    root = Path(root) if root else records.home()
    config = experiment.own
    fabric = make_fabric(precision=config.train.precision)
    precision = {"precision": str(fabric._precision.precision)}
    facts = records.provenance(code_of(__file__), device=fabric.device.type, **precision)
    facts["device"] |= beside()
    training = lab_data.load(experiment.dataset, "train", limit=config.train_images)
    validation = lab_data.load(experiment.dataset, "val", limit=config.test_images).to(
        fabric.device
    )
    model = build(experiment, classes=len(training.classes))
    if isinstance(model, WhitenedNet):
        model.whiten(training.normalise(training.images[:5_000]))
    images: Trainable = training
    if config.smoothing:
        epochs = config.train.epochs
        images = smoothed.staged(training, config.smoothing, epochs=epochs, progress=progress)
    resume = resume_path(experiment, facts, root)
    curve = train(
        model,
        images,
        config.train,
        seed=experiment.seed,
        fabric=fabric,
        before_step=None if config.sparsity is None else partial(_prune, config),
        after_epoch=lambda m: inference.progress(m, validation),
        checkpoint=resume,
        save_every=0.0 if fabric.device.type == "cpu" else SAVE_EVERY,
        trunk=trunk_path(experiment, root, _machine(facts)) if config.shares_trunk else None,
        progress=progress,
    )
    begun = time.perf_counter()
    state = halve(model)
    test = lab_data.load(experiment.dataset, "test", limit=config.test_images).to(fabric.device)
    metrics = inference.evaluate(model, test, validation=validation)
    shared = [row["seconds"] for row in curve if row.get("shared")]
    seconds = {
        "train": curve[-1]["seconds"],
        "shared": shared[-1] if shared else 0.0,
        "evaluate": time.perf_counter() - begun,
    }
    found = {"metrics": metrics, "curve": curve, "seconds": seconds}
    found["answers"] = pack(inference.answers(model, test))
    record = keep(experiment, facts | found, state=state, probe=probe, root=root)
    resume.unlink(missing_ok=True)
    return record


def _prune(config: Config, model: nn.Module, progress: float) -> None:
    if config.sparsity is None or config.start is None or config.ramp is None:
        raise ValueError("nothing is pruned without sparsity, start and ramp")
    now = pruning.sparsity_at(
        progress, sparsity=config.sparsity, start=config.start, ramp=config.ramp
    )
    pruning.prune_to(model, now)


def keep(
    experiment: Experiment,
    found: dict,
    *,
    state: dict[str, torch.Tensor],
    probe: dict | None = None,
    root: Path,
) -> dict:
    """Write a run's record and its checkpoint, which is kept in `data/cache` only where the experiment
    does not want it in the repository.

    A checkpoint is named after its hash, and written before the record that names it: whatever happens
    meanwhile, the record that is there has its weights. Those of the record before are then removed;
    if they were damaged they are set aside.

    Args:
        experiment: what was run.
        found: provenance, metrics, curve, seconds and answers.
        state: of the trained network.
        probe: what the experiment's probes gave (`standing`).
        root: home of both.

    Returns:
        The record.
    """
    content = checkpoints.as_bytes(state)
    digest = hashlib.sha256(content).hexdigest()
    folder = "data/checkpoints" if experiment.checkpoint else CACHED_WEIGHTS
    checkpoint = {"file": f"{folder}/{experiment.name}-{digest[:8]}.pt", "sha256": digest}
    record = records.validated(
        {
            **found,
            "name": experiment.name,
            "method": experiment.method,
            "dataset": experiment.dataset,
            "scale": experiment.scale,
            "seed": experiment.seed,
            "config": records.plain(experiment.config),
            "tolerance": experiment.tolerance,
            "probe": probe,
            "checkpoint": checkpoint,
        }
    )
    before = _checkpoint_of(experiment.name, root)
    if before:
        try:
            load_state({"checkpoint": before}, root=root)
        except Damaged as error:
            set_aside(root / before["file"], error)
        except OSError:  # gone, or not to be read now
            pass
    write_whole(root / checkpoint["file"], content)
    records.write(record, root=root)
    now = _checkpoint_of(experiment.name, root)  # another process may have written meanwhile
    if before and before != now:
        (root / before["file"]).unlink(missing_ok=True)
    return record


def _checkpoint_of(name: str, root: Path) -> dict | None:
    record = records.find(name, root=root)
    return record and record["checkpoint"]


def resume_path(experiment: Experiment, facts: dict, root: Path, *more: int) -> Path:
    """Where a run keeps what it goes on from: named after everything that decides its weights.

    Args:
        experiment: what is run.
        facts: its provenance.
        root: home of the file.
        more: what decides them besides.
    """
    decisive = [facts["source_hash"], _machine(facts), *more]
    decisive.append(records.plain(experiment.config))
    digest = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:12]
    return root / "data" / "cache" / "training" / f"{experiment.name}-{digest}.pt"


def _machine(facts: dict) -> list:
    """What decides weights besides code and settings. Threads among it: another number of them adds
    in another order."""
    device = [facts["device"][name] for name in ("type", "threads", "precision")]
    return [facts["packages"], device]


def trunk_path(experiment: Experiment, root: Path, *more: Any) -> Path:
    """Where the epochs lie that this run shares with all that differ in nothing but their mask.

    Named after everything that decides them: the code, the settings but those of the mask, and
    `more`, which a run gives (`_machine`).
    """
    plain = records.plain(experiment.config)
    train = {k: v for k, v in plain["train"].items() if not k.startswith("mask_")}
    start = experiment.config.train.mask_start
    decisive = [code_hash(__file__), plain | {"mask": None, "train": train}, start]
    decisive += more
    digest = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:12]
    place = f"{experiment.scale}-{experiment.dataset}-seed{experiment.seed}-{digest}.pt"
    return root / "data" / "cache" / "trunks" / place


def beside() -> dict[str, int]:
    """How many runs share the device, where a queue has several at a time: clocks depend on it."""
    workers = int(os.environ.get("ERSM_WORKERS", "1"))
    return {"workers": workers} if workers > 1 else {}


def halve(model: nn.Module) -> dict[str, torch.Tensor]:
    """Round weights of two or more dimensions to half precision, in the model too: what is evaluated
    is what is saved, at half the size."""
    state = {
        name: value.half() if value.dim() > 1 else value.clone()
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(state)
    return {name: value.cpu().contiguous() for name, value in state.items()}


def restore(experiment: Experiment, record: dict, *, root: Path | None = None) -> nn.Module:
    """The trained network of a record, in evaluation mode on the CPU; a pruned one as a plain network
    that has the zeros in its weights.

    Raises:
        FileNotFoundError: its checkpoint is not there.
        Damaged: the checkpoint is not the one that was recorded.
    """
    state = load_state(record, root=root)
    if experiment.own.sparsity is not None:
        state = pruning.plain_state(state)
    plain = replace(experiment, config=experiment.own.trained())
    model = build(plain, classes=backbones.classes_of(state))
    model.load_state_dict(state)
    return model.to(memory_format=torch.channels_last).eval()


def load_state(record: dict, *, root: Path | None = None) -> dict[str, torch.Tensor]:
    """The recorded weights; raises as `restore` does."""
    path = weights_file(record, root=root)
    return checkpoints.load(path, sha256=record["checkpoint"]["sha256"])


def weights_file(record: Mapping[str, Any], *, root: Path | None = None) -> Path:
    """Where the recorded weights lie."""
    return (Path(root) if root else records.home()) / record["checkpoint"]["file"]


def only_cached(record: Mapping[str, Any]) -> bool:
    """Whether the weights are not in the repository, but in the cache of the machine that made them."""
    kept = record["checkpoint"]
    return kept is not None and kept["file"].startswith(f"{CACHED_WEIGHTS}/")


def weights_wrong(record: Mapping[str, Any], *, root: Path | None = None) -> str:
    """Why the recorded weights cannot be had: no file, or another; empty where they can, and where
    they were cached on another machine."""
    path = weights_file(record, root=root)
    if only_cached(record) and not path.exists():
        return ""
    try:
        seen = path.stat()
        digest = _sha256(path, seen.st_mtime_ns, seen.st_size)
    except OSError as error:
        return f"{record['checkpoint']['file']}: {error.strerror}"
    same = digest == record["checkpoint"]["sha256"]
    return "" if same else f"{record['checkpoint']['file']} is not the file that was recorded"


@functools.lru_cache(maxsize=1024)  # a table asks for the same few files again and again
def _sha256(path: Path, changed: int, size: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
