"""Records of a clock: no network is trained, no answer kept, and none is to be made again the same."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ersm_lab.results import records
from ersm_lab.results.provenance import code_of


def facts(home: str, *, device: str | torch.device = "cpu", precision: str = "32-true") -> dict:
    """Provenance of a measurement that begins now.

    Args:
        home: file of the module that measures.
        device: on which.
        precision: of Lightning Fabric.
    """
    found = records.provenance(code_of(home), device=device, precision=precision)
    busy = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    found["device"] |= {"load": busy}  # how many wanted a core before we did
    return found


def keep(
    name: str,
    found: dict,
    *,
    settings: object,
    metrics: dict,
    seconds: float,
    root: Path | None = None,
) -> dict:
    """Write a measurement's record; an earlier one of this name is replaced.

    Args:
        name: "<scale>/<data set>/<method>/seed<seed>".
        found: of `facts`.
        settings: how it was measured.
        metrics: what was measured.
        seconds: that it took.
        root: home of the record; None is `records.home()`.

    Returns:
        The record.
    """
    scale, dataset, method, seed = name.split("/")
    made = found | {
        "name": name,
        "method": method,
        "dataset": dataset,
        "scale": scale,
        "seed": int(seed.removeprefix("seed")),
        "config": records.plain(settings),
        "metrics": metrics,
        "tolerance": {},  # a clock elsewhere may say anything
        "curve": [],
        "answers": None,
        "seconds": {"train": 0.0, "measure": seconds},
        "probe": {},  # a clock's reading is of its day
        "checkpoint": None,
    }
    records.write(made, root=root)
    return made
