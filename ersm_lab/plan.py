"""What is to be done: every record that a scale wants, in an order that respects what needs what.

The one list of experiments is `training/methods.py`; which trained network is asked which suites of
`judging` stands here. A record that was made with today's settings, by code that still does what it
did, is left as it is (`standing`).
`workflow/Snakefile` runs a plan on any number of cores, or on a cluster.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ersm_lab import judging
from ersm_lab.images import data
from ersm_lab.results import records, standing
from ersm_lab.results.standing import Outcomes, Standing
from ersm_lab.training import experiments, runs
from ersm_lab.training.config import Experiment, PublishedConfig
from ersm_lab.training.methods import METHODS, experiments_of

_CARD = ("occlusion", "corruption", "resolution", "attacks", "deletion")
# Whom a suite is worth asking: the rows of the head-to-head, and what a chapter's question needs.
CARDS: dict[str, tuple[str, ...]] = {
    "ablation-dense": (*_CARD, "smoothing", "lambda"),
    "ablation-ersm": _CARD,
    "gentle": _CARD,
    "unary-only": _CARD,
    "random-half": _CARD,
    "cutout": _CARD,
    "ersm-cutout": _CARD,
    "isvs-fixed": (*_CARD, "smoothing"),
    "isvs-iterative": (*_CARD, "smoothing"),
    "low-pass": (*_CARD, "smoothing"),
    "sdnet": (*_CARD, "lambda", "lambda-choice"),
    "sdnet-all": ("lambda", "lambda-choice"),
    "sdnet-pixels": (*_CARD, "lambda-choice"),
    "dense-pixels": (*_CARD, "lambda"),
    "low-pass-iterative": (*_CARD, "smoothing"),
    "pruned": _CARD,
    "resnet18-dense": _CARD,
    "resnet18-cutout": _CARD,
    "resnet18-ersm": _CARD,
    "resnet18-sdnet": _CARD,
} | {name: ("occlusion",) for name, m in METHODS.items() if "dropped" in m.parts and m.checkpoint}
# Where the true objects are known: data set, its suite, whose networks.
ON_SHAPES = (
    ("shapes", "objects", ("ablation-dense", "ablation-ersm")),
    ("shapes-spurious", "spurious", ("ablation-dense", "ablation-ersm")),
)

# One row of each kind of method, of which `python -m ersm_lab verify` runs the smoke record again in
# full; CI runs the probes of all. The other rows differ from one of these in settings only
# ("ablation-dense" and "ablation-ersm" not even in these, at smoke scale), and all of them would take
# minutes. Each is further above chance than its tolerance is wide: a network that has learned nothing
# does not agree.
VERIFIED = (
    "dense",
    "ersm",
    "random-half",
    "isvs-fixed",
    "isvs-iterative",
    "low-pass",
    "sdnet",
    "ersm-token",
    "pruned",
    "weights-norm-soft",
    "published-high-rate",
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One record that is to be made.

    Attributes:
        name: of the record.
        experiment: what is trained, or whose network is asked.
        suite: None where it is trained.
        needs: names of jobs of the same plan that come first.
    """

    name: str
    experiment: Experiment
    suite: str | None = None
    needs: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        """Of `python -m ersm_lab`."""
        if self.suite is None:
            return ["run", self.experiment.name]
        return ["judge", self.experiment.name, "--suites", self.suite]


def wanted(
    scale: str,
    *,
    dataset: str = "auto",
    methods: Collection[str] | None = None,
    cards: bool = True,
) -> list[Job]:
    """Every record that a scale wants, whether it is there or not; `needs` is empty.

    Args:
        scale: "smoke", "laptop" or "full".
        dataset: as in `methods.experiments_of`.
        methods: of the experiments; None is all.
        cards: whether networks are also asked what they do (`CARDS`, and `ON_SHAPES` where all methods
            are wanted).

    Raises:
        ValueError: an unknown scale, data set or method.
    """
    trained = experiments_of(scale, dataset=dataset)
    known = {e.method for e in trained}
    strange = sorted(set(methods or ()) - known)
    if strange:
        raise ValueError(f"no method {strange[0]!r}: choose of {', '.join(sorted(known))}")
    trained = [e for e in trained if methods is None or e.method in methods]
    asked = []
    if cards:
        asked = [(e, suite) for e in trained for suite in CARDS.get(e.method, ())]
        for place, suite, whose in ON_SHAPES if methods is None else ():
            there = experiments_of(scale, dataset=place)
            own = [e for e in there if e.method in whose]
            trained += [e for e in own if e.name not in {t.name for t in trained}]
            asked += [(e, suite) for e in own]
    return [Job(name=e.name, experiment=e) for e in trained] + [
        Job(name=judging.judgement_name(e, suite), experiment=e, suite=suite) for e, suite in asked
    ]


def plan(
    scale: str,
    *,
    dataset: str = "auto",
    methods: Collection[str] | None = None,
    cards: bool = True,
) -> dict[str, Job]:
    """The jobs whose record is missing or stale, by name, each after those it needs.

    A network is asked after it was trained; the published protocol freezes the dense network of the
    same seed; networks that share their first epochs wait for the one that trains these.
    Arguments and errors as of `wanted`.
    """
    jobs = wanted(scale, dataset=dataset, methods=methods, cards=cards)
    open_ = {job.name: job for job in jobs if not is_done(job)}
    first_on_trunk: dict[str, str] = {}
    planned: dict[str, Job] = {}
    for name, job in open_.items():
        needs: list[str] = []
        config = job.experiment.config
        if job.suite is not None:
            needs = [job.experiment.name]
        elif isinstance(config, PublishedConfig):
            e = job.experiment
            needs = [f"{e.scale}/{e.dataset}/{config.backbone}/seed{e.seed}"]
        elif config.shares_trunk:
            trunk = runs.trunk_path(job.experiment, records.home())
            needs = [first_on_trunk.setdefault(str(trunk), name)] if trunk else []
        first = tuple(n for n in needs if n in open_ and n != name)
        planned[name] = Job(name=name, experiment=job.experiment, suite=job.suite, needs=first)
    return planned


def standings(
    found: Sequence[Mapping[str, Any]], *, outcomes: Outcomes | None = None
) -> list[Standing]:
    """What records are worth for the experiments, or the suites, that they are listed as today.

    Arguments as of `standing.of`.
    """
    listed: dict[tuple[str, str], dict[str, Experiment]] = {}

    def find(name: str) -> Experiment | None:  # a list is made once for all records of a place
        scale, dataset = name.split("/")[:2]
        if (scale, dataset) not in listed:
            known = dataset in data.DATASETS
            rows = experiments_of(scale, dataset=dataset) if known else []
            listed[scale, dataset] = {experiment.name: experiment for experiment in rows}
        return listed[scale, dataset].get(name)

    def stands(record: Mapping[str, Any]) -> Standing:
        if record["probe"] == {} or not record["tolerance"]:
            return standing.of(record, outcomes=outcomes)
        judged = record["config"].get("judged")
        experiment = find(judged or record["name"])
        if experiment is None:
            return Standing(state=standing.STALE, why="no experiment has this name any more")
        if judged:
            why = judging.why_not(experiment, record["method"].rpartition(".")[2], record)
        else:
            why = experiments.why_not(experiment, record)
        if why:
            return Standing(state=standing.STALE, why=why)
        return standing.of(record, outcomes=outcomes)

    return [stands(record) for record in found]


def is_done(job: Job) -> bool:
    """Whether the job's record is there, valid and current."""
    if job.suite is None:
        return experiments.valid_record(job.experiment) is not None
    return judging.valid_judgement(job.experiment, job.suite) is not None
