"""What is missing of a scale, as tasks of a queue in the order of their worth.

    python -m ersm_lab run --scale full --within 900 --workers 12

Workers share the device: one GPU, or the cores of a machine. Beside a GPU, cores that no worker needs
make what is wanted beforehand. Each record is written as it ends; a run that was stopped goes on from
its last checkpoint at a later call.

How long a task takes is guessed from those of its kind that ended in this call, else from the records
of this scale on a device of this type, else from `GUESS`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean

import torch

from ersm_lab import judging, plan, probes
from ersm_lab.images import corruptions, data
from ersm_lab.images.path_steps import PathSettings
from ersm_lab.images.smoothed import at_level
from ersm_lab.plan import Job
from ersm_lab.queue import Clock, Task
from ersm_lab.results import records
from ersm_lab.results.provenance import allowed_cores
from ersm_lab.suites import card
from ersm_lab.suites.perturbed import KEPT_FROM, Corruption, Occlusion, prepare
from ersm_lab.training import experiments, runs
from ersm_lab.training.config import Config
from ersm_lab.training.loop import best_device

# Seconds, by scale and type of device, of a task whose like nobody has timed.
GUESS = {
    ("smoke", "cpu"): 20,
    ("smoke", "cuda"): 10,
    ("laptop", "cpu"): 400,
    ("laptop", "cuda"): 30,
    ("full", "cpu"): 7_200,
    ("full", "cuda"): 30,
}
SLOWER = 5  # times, of a ResNet-18 compared with the small networks
HELPERS = 10  # processes at most that need no GPU
PART = 5_000  # training images that one task smooths


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train an experiment, with the record of its probes."""

    job: Job

    def __call__(self) -> str:
        experiment = self.job.experiment
        record = experiments.run(experiment, probe=probes.taken(experiment), progress=False)
        return f"test_accuracy {record['metrics']['test_accuracy']:.4f}"


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Ask a trained network a suite."""

    job: Job

    def __call__(self) -> str:
        experiment, suite = self.job.experiment, self.job.suite
        if suite is None:
            raise ValueError(f"{self.job.name} asks no suite: it is a training")
        probe = probes.taken(experiment, suite)
        record = judging.judge(experiment, suite, probe=probe, progress=False)
        return f"asked {record['metrics']['images']} images"


@dataclass(frozen=True, kw_only=True)
class Perturb:
    """Make perturbed test images, which all networks are then asked."""

    suite: str
    dataset: str
    settings: Occlusion | Corruption

    def __call__(self) -> str:
        prepare(self.suite, self.dataset, self.settings)
        return "made"


@dataclass(frozen=True, kw_only=True)
class Smooth:
    """Simplify a part of the training images, for all baselines that are trained on them."""

    dataset: str
    level: float
    path: PathSettings
    limit: int | None
    part: slice

    def __call__(self) -> str:
        images = data.load(self.dataset, "train", limit=self.limit).images[self.part]
        at_level(images, self.level, path=self.path, progress=False)
        return "made"


def missing(
    scale: str,
    *,
    dataset: str = "auto",
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    cards: bool = True,
) -> list[Task]:
    """What is missing of a scale, the most worthy first; arguments and errors as of `plan.plan`."""
    jobs = plan.plan(scale, dataset=dataset, methods=methods, cards=cards)
    jobs = {n: job for n, job in jobs.items() if seeds is None or job.experiment.seed in seeds}
    made: dict[str, Task] = {}
    for job in jobs.values():
        for task in _beforehand(job):
            made[task.name] = task
    asked = [_task(job, jobs, made) for job in jobs.values() if _can_be_asked(job, jobs)]
    main = data.default_dataset() if dataset == "auto" else dataset
    here = (f"{scale}/{main}/", f"{main}:")  # other data sets come last
    by_worth = sorted([*made.values(), *asked], key=lambda task: task.worth)
    return sorted(by_worth, key=lambda task: not task.name.startswith(here))


def _task(job: Job, jobs: Mapping[str, Job], made: Mapping[str, Task]) -> Task:
    first = [task.name for task in _beforehand(job) if task.name in made]
    needs = tuple([name for name in job.needs if name in jobs] + first)
    work = Train(job=job) if job.suite is None else Judge(job=job)
    effort = SLOWER if job.experiment.method.startswith("resnet18") else 1
    return Task(
        name=job.name, like=_like(job), work=work, needs=needs, worth=_worth(job), effort=effort
    )


def _like(job: Job) -> tuple[str, ...]:
    return _kinds(job.experiment.method, job.suite or "train")


def _kinds(method: str, suite: str) -> tuple[str, str]:
    """What a task is timed as: the suite of this method, and of all networks of its family."""
    return f"{suite} {method}", f"{suite} resnet18" if method.startswith("resnet18") else suite


def _can_be_asked(job: Job, jobs: Mapping[str, Job]) -> bool:
    """Whether the network of a suite is trained here before, or its weights lie here."""
    if job.suite is None or job.experiment.name in jobs:
        return True
    record = experiments.valid_record(job.experiment)
    return bool(record and record["checkpoint"] and runs.weights_file(record).is_file())


def _worth(job: Job) -> tuple:
    """Networks of the head-to-head, seed by seed; what they do behind occluders and under corruption;
    the ResNets; slow suites; all others."""
    method, seed = job.experiment.method, job.experiment.seed
    compared = "attacks" in plan.CARDS.get(method, ())  # the whole card
    resnet = method.startswith("resnet18")
    if compared and not resnet and job.suite is None:
        block = 0 if method == "ablation-dense" else 2
    elif compared and not resnet and job.suite in card.UNDER_CONDITIONS:
        block = 3
    elif resnet and job.suite is None and seed == 0:
        return (3, 2.5)  # two of the five seeds' cards can wait
    elif resnet and (job.suite is None or job.suite in card.UNDER_CONDITIONS):
        block = 4
    else:
        block = 5 if compared else 6
    return (block, seed, job.suite is not None)


def _beforehand(job: Job) -> list[Task]:
    """What is made once for many: perturbed test images, smoothed training images."""
    experiment, config = job.experiment, job.experiment.config
    dataset = experiment.dataset
    found: list[tuple[str, Perturb | Smooth]] = []
    if job.suite in ("occlusion", "corruption"):
        settings = card.PRESETS[experiment.scale][job.suite]
        if (settings.images or records.TEST_IMAGES) < KEPT_FROM:
            return []
        if job.suite == "occlusion":
            parts = {p: replace(settings, positions=(p,)) for p in settings.positions}
        else:
            parts = {kind: replace(settings, kinds=(kind,)) for kind in corruptions.KINDS}
        for part, own in parts.items():
            made = Perturb(suite=job.suite, dataset=dataset, settings=own)
            found.append((f"{dataset}: {part}", made))
    elif job.suite is None and isinstance(config, Config) and config.smoothing:
        count, path = config.train_images or data.SHAPES_SIZE["train"], config.smoothing.path
        levels = {level for _, level in config.smoothing.stages if level}
        for level, start in itertools.product(sorted(levels), range(0, count, PART)):
            smooth = Smooth(
                dataset=dataset,
                level=level,
                path=path,
                limit=config.train_images,
                part=slice(start, min(start + PART, count)),
            )
            found.append((f"{dataset}: training images {start}+ at {level:g}", smooth))
    return [
        Task(name=name, work=work, like=("prepare",), worth=(1,), beforehand=True)
        for name, work in found
    ]


@dataclass(frozen=True, kw_only=True)
class UseThreads:
    """What a worker begins with: torch computes with so many threads."""

    count: int

    def __call__(self) -> None:
        torch.set_num_threads(self.count)


def free_memory() -> None:
    """After a task, leave the GPU's memory to the other workers."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def spare_processes(workers: int) -> int:
    """How many processes may make things beforehand while a GPU is busy; 0 where there is none."""
    if best_device() == "cpu":
        return 0
    return max(0, min(HELPERS, allowed_cores() - workers))


def clock(scale: str) -> Clock:
    """What guesses how long tasks of a scale take on this device."""
    device = best_device()
    taken: dict[str, list[float]] = {}
    for record in records.read_all(scale=scale):
        if record["device"]["type"] == device and record["tolerance"]:
            method, _, suite = record["method"].rpartition(".")
            if not record["config"].get("judged"):
                method, suite = record["method"], "train"
            for kind in _kinds(method, suite):
                taken.setdefault(kind, []).append(sum(record["seconds"].values()))
    recorded = {kind: mean(seconds) for kind, seconds in taken.items()}
    return Clock(guess=GUESS[scale, device], recorded=recorded)
