"""Probes: what a record's code does today, in a second, as numbers that can be compared.

A record answers for behaviour, not for text. Its probe is its own config run tiny: on textured shapes,
with narrow layers, for a dozen steps with the mask off and then on, in double precision on one thread;
of a suite, the suite asked of a seeded network on a few images, in single precision. The numbers
(losses, norms of the weights, the share kept, logits) are stored in the record when it is made. Where
today's code gives the same numbers, the record still tells what this code does (`standing`).

    training/<id>   a network trained tiny; all records that differ in nothing else share it
    <suite>/<id>    a suite of `card`, asked of a network of this kind
    data/<name>     the images of a data set, where they are at hand
    photographs/…   readers of made-up maps: the studies of photographs (`photographs.probe`)

Ids are hashes of the tiny config, so that another name for the same settings is the same probe.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import multiprocessing
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from tqdm import tqdm

from ersm_core import EnergyMask
from ersm_lab.evaluation import inference
from ersm_lab.images import data as lab_data
from ersm_lab.images import shapes
from ersm_lab.networks import controls
from ersm_lab.networks.backbones import SMOKE, CifarNetSettings
from ersm_lab.networks.token_net import TokenNetSettings
from ersm_lab.networks.whitening import WhitenedNet
from ersm_lab.photographs import probe as of_photographs
from ersm_lab.results import records, standing
from ersm_lab.results.provenance import allowed_cores
from ersm_lab.results.standing import Numbers, Outcomes
from ersm_lab.suites import card
from ersm_lab.training import experiments, protocol_runs
from ersm_lab.training.build import build
from ersm_lab.training.config import Config, Experiment, MaskPlace, PublishedConfig
from ersm_lab.training.loop import TrainSettings

EPOCHS, BATCH, TRAIN_IMAGES, TEST_IMAGES = 3, 64, 256, 64  # of a training: twelve steps
# At the rates of a speed run twelve steps make 3 % of a rounding error in single precision. In double
# precision and at this share of the rate, machines agree to 1e-4; what training changes is measured
# from where it started, so that little movement is enough.
SLOWER, RATE = 0.03, 0.75
SUITE_IMAGES = 16
CLASSES = len(shapes.CLASSES)
MOST_CALLS = 128  # numbers of a suite: one for each pass, or the mean of neighbouring passes

# Groups of metrics that count images.
SHARES = (
    *("accuracy", "mean", "intervals", "by_route", "left_after", "only_by_surrogate"),
    *("deletion", "maps", "follows_background"),
)
# Raised by hand when a change is meant to alter what a kind of run, or a suite, gives.
PROTOCOL = dict.fromkeys(("training", "data", *card.SUITES), 1)
PROTOCOL["photographs"] = of_photographs.PROTOCOL


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What is run tiny.

    Attributes:
        kind: "training", "data", "photographs" or a suite of `card.SUITES`.
        experiment: the tiny experiment; None for data and photographs.
        settings: of the suite, or the name of the data set.
    """

    kind: str
    experiment: Experiment | None = None
    settings: Any = None

    @property
    def id(self) -> str:
        if self.kind == "data":
            return f"data/{self.settings}"
        if self.experiment is None:
            return of_photographs.ID
        told = [
            _kind(self.experiment, self.kind),
            _as_first_hashed(self.experiment.config),
            sparse(self.settings),
        ]
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        return f"{self.kind}/{digest[:12]}"


# Records hold ids from when each kind of network had a config of its own, with these defaults: an id
# is hashed as it was then.
ONCE_DEFAULTS = {"after": "group1", "sparsity": 0.5, "start": 0.6, "ramp": 0.1}


def _kind(experiment: Experiment, kind: str) -> str:
    config = experiment.config
    if isinstance(config, PublishedConfig):
        return "PublishedConfig"
    if config.norm or config.dropped or config.sparsity is not None:
        return (
            "NormConfig" if config.norm else "VariantConfig" if config.dropped else "PruningConfig"
        )
    learned = kind == "training" and getattr(config.backbone, "stem_learned", False)
    return "BaselineConfig" if config.smoothing or config.coding or learned else "RunConfig"


def _as_first_hashed(config: Config | PublishedConfig) -> dict:
    return {n: v for n, v in sparse(config).items() if (n, v) not in ONCE_DEFAULTS.items()}


def sparse(value: Any) -> Any:
    """A config as JSON, without the fields that are at their default: a new field changes no id."""
    if dataclasses.is_dataclass(value):
        return {
            field.name: sparse(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if getattr(value, field.name) != records.default_of(field)
        }
    if isinstance(value, dict):
        return {str(key): sparse(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [sparse(part) for part in value]
    return value


# --- which probes a record has ---------------------------------------------------------------------


def of(experiment: Experiment, suite: str | None = None, *, settings: Any = None) -> list[Probe]:
    """The probes of a trained network's record, or of the record of a suite that it was asked.

    Args:
        experiment: the experiment, at its own scale.
        suite: of `card.SUITES`; None for the network's own record.
        settings: of the suite; None takes those of the experiment's scale.
    """
    data = Probe(kind="data", settings=experiment.dataset)
    if suite is None:
        return [Probe(kind="training", experiment=tiny(experiment)), data]
    settings = settings or card.PRESETS[experiment.scale][suite]
    return [Probe(kind=suite, experiment=tiny_network(experiment), settings=few(settings)), data]


def tiny(experiment: Experiment) -> Experiment:
    """An experiment with its own settings, but narrow, short, on shapes and in float32."""
    config = experiment.config
    train = replace(config.train, epochs=EPOCHS, batch_size=BATCH, precision="32-true")
    if not isinstance(config, PublishedConfig):  # a linear head on frozen maps amplifies nothing
        sgd = config.train.optimiser == "sgd"  # whose rates, of all scales, are probed at one
        slow = SLOWER * (RATE if sgd else config.train.learning_rate)
        train = replace(train, precision="64-true", learning_rate=slow)
    config = replace(config, train=train, train_images=TRAIN_IMAGES, test_images=TEST_IMAGES)
    return _placed(_half_open(_narrow(config)))


def tiny_network(experiment: Experiment) -> Experiment:
    """Of an experiment what a suite sees: the network. How it was trained is no longer asked."""
    config = _narrow(experiment.own.trained())
    plain = TrainSettings(epochs=1)
    return _placed(replace(config, train=plain, train_images=None, test_images=None))


def _narrow(config: Any) -> Any:
    backbone = config.backbone
    if isinstance(backbone, CifarNetSettings):
        widths = (*SMOKE.widths, *SMOKE.widths[-1:] * len(backbone.widths))[: len(backbone.widths)]
        backbone = replace(backbone, stem_channels=12, stem_kernel=4, stem_stride=2, widths=widths)
        return replace(config, backbone=backbone)
    if isinstance(backbone, TokenNetSettings):
        backbone = replace(backbone, width=16, expansion=2, early_width=8, stem_channels=12)
        return replace(config, backbone=backbone)
    if backbone == "resnet18":  # torchvision's network itself would take minutes
        parts: dict[str, Any] = {"backbone": CifarNetSettings()}
        if getattr(config, "mask", None):
            parts["mask"] = replace(config.mask, layer="group1")
        if getattr(config, "coding", None):
            parts["coding"] = replace(config.coding, layers=("group1.0",))
        return _narrow(replace(config, **parts))
    return config


def _half_open(config: Any) -> Any:
    """In a dozen steps no mask would close: it starts with z around 0 instead."""
    place = getattr(config, "mask", None)
    if not isinstance(place, MaskPlace) or place.preset in controls.KINDS:
        return config
    return replace(config, mask=replace(place, settings=place.settings | {"bias_init": 0.0}))


def _placed(config: Any) -> Experiment:
    return Experiment(method="probe", dataset="shapes", scale="smoke", seed=0, config=config)


def few(settings: Any) -> Any:
    """A suite's settings on few images; what is asked stays, how long an attack searches does not."""
    counts = {"images": SUITE_IMAGES, "curve_images": 4, "unit_images": 1, "fit_images": 16}
    counts |= {"pgd_steps": 3, "apgd_steps": 3, "targets": 2, "square_queries": 5}
    counts |= {"batch_size": SUITE_IMAGES}
    names = {field.name for field in dataclasses.fields(settings)}
    return replace(settings, **{name: n for name, n in counts.items() if name in names})


# --- measuring -------------------------------------------------------------------------------------


def measure(probe: Probe) -> Numbers:
    """Run a probe: its numbers by name, rounded to six digits; about a second.

    It has a home of its own, so that no cache of another run answers for it.

    Raises:
        DataNotFound: the images of a data probe are not at hand.
    """
    if probe.kind == "data":
        return _rounded(_of_data(probe.settings))
    if probe.experiment is None:
        return _rounded(of_photographs.measure())
    with _alone() as home:
        if probe.kind == "training":
            return _rounded(_trained(probe.experiment, home))
        return _rounded(_asked(_seeded(probe.experiment), probe.kind, probe.settings))


@contextlib.contextmanager
def _alone() -> Iterator[Path]:
    """A home of its own, one thread, and afterwards everything as it was.

    Networks that train in double precision are given images in double precision, also by what only
    knows single precision.
    """
    before = {name: os.environ.get(name) for name in ("ERSM_HOME", "ERSM_DEVICE")}
    threads, lots = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)
    widening = register_module_forward_pre_hook(_widen)  # type: ignore[arg-type]  # may return
    with tempfile.TemporaryDirectory(prefix="ersm-probe-") as folder:
        os.environ |= {"ERSM_HOME": folder, "ERSM_DEVICE": "cpu"}  # a GPU rounds otherwise
        try:
            yield Path(folder)
        finally:
            widening.remove()
            torch.set_num_threads(threads)
            torch.set_rng_state(lots)
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def _widen(module: nn.Module, args: tuple) -> tuple:
    own = next(module.parameters(recurse=False), None)
    if own is None or own.dtype != torch.float64:
        return args
    return tuple(x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args)


def _trained(experiment: Experiment, home: Path) -> Numbers:
    """Curve, metrics and weights of a tiny run, and the logits of the network that was kept."""
    quiet: dict[str, Any] = {"root": home, "progress": False}
    model: nn.Module
    start: nn.Module
    if isinstance(experiment.config, PublishedConfig):
        frozen = _seeded(_placed(Config(backbone=SMOKE, train=TrainSettings(epochs=1))))
        base = {"metrics": {"test_accuracy": 0.0}, "checkpoint": {"sha256": "0" * 64}}
        backbone: dict[str, Any] = {"backbone": lambda method: (frozen, base)}
        record = protocol_runs.run(experiment, **backbone, **quiet)
        model = protocol_runs.restore(experiment, record, **backbone, root=home)
        start = protocol_runs.build(experiment, frozen, classes=CLASSES)
    else:
        record = experiments.run(experiment, **quiet)
        model = experiments.restore(experiment, record, **quiet)
        start = build(experiment, classes=CLASSES)
    told = ("epoch", "steps", "seconds", "shared")  # of a run, but not of what it does
    found: Numbers = {
        f"{name}.{row['epoch']}": value
        for row in record["curve"]
        for name, value in row.items()
        if name not in told
    }
    left_out = ("validation", "invariants", "backbone")
    found |= _in_groups({n: part for n, part in record["metrics"].items() if n not in left_out})
    begun = start.state_dict()
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not name.startswith("features."):
            found[f"norm.{name}"] = value.double().norm().item()
            if name in begun and begun[name].shape == value.shape:
                found[f"moved.{name}"] = (value.double() - begun[name]).norm().item()
    images = lab_data.load("shapes", "test", limit=TEST_IMAGES)
    for number, logits in enumerate(inference.predict(model, images).T):  # (N,)
        found[f"logit.{number}"] = _size(logits)
    return found


def _asked(model: nn.Module, suite: str, settings: Any) -> Numbers:
    """Metrics of a suite asked of a network, and the size of its logits in every pass."""
    sizes: list[float] = []
    model.register_forward_hook(lambda module, args, output: sizes.append(_size(output.detach())))
    images = lab_data.load("shapes", "test", limit=SUITE_IMAGES)
    found_by = card.evaluate(model, images, suites=[suite], settings={suite: settings})
    metrics = found_by[suite].metrics
    found = _in_groups(metrics) | {"passes": len(sizes)}
    parts = min(MOST_CALLS, len(sizes))
    for number in range(parts):
        part = sizes[number * len(sizes) // parts : (number + 1) * len(sizes) // parts]
        found[f"pass.{number}"] = sum(part) / len(part)
    return found


def _seeded(experiment: Experiment) -> nn.Module:
    """An untrained network with weights, statistics and masks that are far from their start."""
    model = build(experiment, classes=CLASSES)
    images = lab_data.load("shapes", "train", limit=TRAIN_IMAGES)
    x = images.normalise(images.images)  # (N, 3, 32, 32)
    lots = torch.Generator().manual_seed(0)
    if isinstance(model, WhitenedNet):
        model.whiten(x)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                spread = parameter.square().mean().sqrt()
                parameter.add_(spread * torch.randn(parameter.shape, generator=lots))
        for mask in (m for m in model.modules() if isinstance(m, EnergyMask)):
            mask.weight.copy_(2 * torch.randn(mask.weight.shape, generator=lots))
        torch.manual_seed(0)
        model.train()
        for _ in range(10):  # statistics of normalisation layers
            model(x)
    return model.to(memory_format=torch.channels_last).eval()


def _of_data(name: str) -> Numbers:
    found: Numbers = {}
    for split in ("train", "val", "test"):
        limit = TRAIN_IMAGES if name.startswith("shapes") else None
        images = lab_data.load(name, split, limit=limit)
        place = torch.arange(len(images)) % 101 + 1.0  # (N,)
        some = images.images[::50]  # (n, H, W, 3)
        found[f"{split}.images"] = len(images)
        found[f"{split}.labels"] = (place * images.labels).mean().item()
        found[f"{split}.pixels"] = some.double().mean().item()
        found[f"{split}.order"] = (some.double().mean((1, 2, 3)) * place[::50]).mean().item()
        found[f"{split}.normalised"] = _size(images.normalise(some))
        if images.masks is not None:
            found[f"{split}.objects"] = images.masks.double().mean().item()
    return found


def _in_groups(metrics: dict) -> Numbers:
    """Metrics, the many of one group as one number: of accuracies the mean, else the size."""
    found: Numbers = {}
    for name, part in metrics.items():
        if not isinstance(part, dict | list):
            found[f"accuracy, {name}" if name in SHARES else name] = part
            continue
        whole = records.flatten(part)
        values = torch.tensor([v for v in whole.values() if v is not None], dtype=torch.float64)
        if name in ("mask", "accuracy_with_mask_replaced", "sparsity"):
            found |= {f"{name}.{n}": v for n, v in whole.items() if not n.startswith("kept_by")}
        elif len(values):
            if name in SHARES:
                found[f"accuracy, {name}"] = values.mean().item()
            else:
                found[name] = _size(values)
    return found


def _size(values: Tensor) -> float:
    """Root of a weighted mean square: no sum that cancels, and every place counts differently."""
    flat = values.double().flatten()
    weight = 1 + torch.sin(torch.arange(len(flat), dtype=torch.float64))
    return (weight * flat.square()).mean().sqrt().item()


def _rounded(found: dict[str, Any]) -> Numbers:
    return {
        name: float(f"{value:.6g}")
        for name, value in found.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


# --- many at once ----------------------------------------------------------------------------------


def of_record(record: Mapping[str, Any]) -> list[Probe]:
    """The probes of a record: of its experiment as it is listed today; none of a mere timing.

    Raises:
        LookupError: its experiment is no longer listed.
    """
    if of_photographs.ID in (record["probe"] or {}):
        return [Probe(kind="photographs")]
    judged = record["config"].get("judged")
    if judged:
        return of(experiments.find(judged), record["method"].rpartition(".")[2])
    return of(experiments.find(record["name"])) if record["tolerance"] else []


def taken(experiment: Experiment, suite: str | None = None) -> Outcomes:
    """What the probes of an experiment, or of a suite that it is asked, give today: for its record."""
    on_file = standing.known()
    return {probe.id: on_file.get(probe.id) or take(probe) for probe in of(experiment, suite)}


def take(probe: Probe) -> dict[str, Any]:
    """The outcome of a probe, as records and `data/probes.json` hold it."""
    return {"protocol": PROTOCOL[probe.kind], "numbers": measure(probe)}


def take_all(
    probes: Iterable[Probe], *, jobs: int | None = None, progress: bool = True
) -> tuple[Outcomes, dict[str, Exception]]:
    """Outcomes of probes by id, and what went wrong with the others; one process a core.

    Args:
        probes: what to run; those of one id run once.
        jobs: processes; None is one for each core that this process may use.
        progress: show a bar.
    """
    each = {probe.id: probe for probe in probes}
    found: Outcomes = {}
    failed: dict[str, Exception] = {}
    jobs = min(jobs or allowed_cores(), len(each)) or 1
    spawn = multiprocessing.get_context("spawn")  # a fork would copy torch's threads half
    with (
        ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_one_thread) as pool,
        tqdm(total=len(each), desc="probes", disable=not progress) as bar,
    ):
        running = {pool.submit(take, probe): name for name, probe in each.items()}
        for done in as_completed(running):
            bar.update()
            try:
                found[running[done]] = done.result()
            except Exception as error:  # the others still count
                failed[running[done]] = error
    return found, failed


def _one_thread() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
