"""The one list of experiments, and train-or-load for the notebooks.

Each row is a method at a scale; its seeds differ in nothing else. Settings of the `laptop`
scale were chosen on validation images; `smoke` takes seconds and only shows that the code runs; `full`
wants a GPU: its network and schedule are those of a published speed run, and all that concerns the
mask is as at `laptop` scale, where it was chosen. `tasks` and `queue` work through it.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from ersm_core import EnergyMask
from ersm_lab.common.files import Damaged, set_aside
from ersm_lab.images import data
from ersm_lab.images.data import Augment
from ersm_lab.networks import backbones, controls
from ersm_lab.networks.token_net import TokenNetSettings
from ersm_lab.results import records, standing
from ersm_lab.training import baselines, normalisation, protocol_runs, pruning, runs, variants
from ersm_lab.training.baselines import BaselineConfig, Coding, Smoothing
from ersm_lab.training.loop import TrainSettings
from ersm_lab.training.normalisation import NormConfig
from ersm_lab.training.protocol_runs import PublishedConfig
from ersm_lab.training.protocols import PUBLISHED_TRAINING
from ersm_lab.training.pruning import PruningConfig
from ersm_lab.training.runs import Experiment, MaskPlace, RunConfig
from ersm_lab.training.variants import VariantConfig

__all__ = [
    "Experiment",
    "Loaded",
    "experiments",
    "find",
    "restore",
    "run",
    "train_or_load",
    "valid_record",
]

SEEDS = {"smoke": 1, "laptop": 3, "full": 5}

BACKBONE = {"smoke": backbones.SMOKE, "laptop": backbones.LAPTOP, "full": backbones.FULL}
_QUIET = dict(mask_noise_stop=0.8)  # where a mask has noise, the last fifth trains without
TRAIN = {
    "smoke": TrainSettings(epochs=3, batch_size=64, **_QUIET),
    "laptop": TrainSettings(epochs=10, **_QUIET),
    "full": TrainSettings(epochs=16, batch_size=1024, learning_rate=1.5, **_QUIET),
}
# Of the ResNets, at full scale: plain SGD with momentum 0.9, the schedule of the others.
RESNET_TRAINING = dict(
    epochs=30,
    batch_size=512,
    learning_rate=0.4,
    momentum=0.9,
    weight_decay=5e-4,
    norm_lr_factor=1.0,
    label_smoothing=0.1,
)
# Of a `TokenNet`: what is smaller at a scale.
TOKENS = {"smoke": dict(width=32, expansion=2), "laptop": {}, "full": {}}
SHAPES_EPOCHS = {"smoke": 6, "laptop": 4, "full": 8}  # textured shapes are learned sooner
IMAGES = {"smoke": 2_560, "laptop": None, "full": None}
# The ablation has many rows: at laptop scale its network is half as wide, with a dense one of its own.
ABLATION_BACKBONE = BACKBONE | {"laptop": backbones.SLIM}
# Absolute, for the same seed on another machine: differences of rounding grow into other weights.
TOLERANCE = {"smoke": 0.15, "laptop": 0.01, "full": 0.01}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method: what distinguishes it at every scale.

    Attributes:
        mask: None for a dense network.
        train: settings of `TrainSettings` that differ from the scale's.
        ablation: whether its network is the ablation's.
        seeds: at most so many; None is all of the scale.
        fresh: instead, so many seeds that no other row has.
        longer: factor on the scale's epochs.
        checkpoint: keep the trained weights in the repository; those of full scale are cached.
        resnet: the network is a ResNet-18; at full scale only.
        tokens: the network is a `TokenNet` of these settings, at smoke and laptop scale.
    """

    mask: MaskPlace | None = None
    train: dict = field(default_factory=dict)
    ablation: bool = False
    seeds: int | None = None
    fresh: int = 0
    longer: int = 1
    checkpoint: bool = False
    resnet: bool = False
    tokens: TokenNetSettings | None = None

    def seeds_at(self, scale: str) -> range:
        """Which seeds it is trained with at a scale; a single one is 0."""
        most = SEEDS[scale]
        if self.resnet:
            return range(3 if scale == "full" else 0)
        if self.tokens and scale == "full":
            return range(0)
        if self.fresh and most > 1:
            return range(most, most + self.fresh)
        return range(min(self.seeds or most, most))


def _mask(
    layer: str | tuple[str, ...] = "group1", preset: str | None = "stable", **settings
) -> MaskPlace:
    return MaskPlace(layer=layer, preset=preset, settings=settings)


def _ablation(
    mask: MaskPlace | None = None,
    *,
    seeds: int | None = None,
    longer: int = 1,
    checkpoint: bool = False,
    **train,
) -> Row:
    more = {"longer": longer, "checkpoint": checkpoint}
    return Row(mask=mask, train=train, ablation=True, seeds=seeds, **more)


# The layer with none of our cures: tokens as they are, everything trained together from the first step,
# with the weights of lambda that `stable` has. The soft gate of the logit is that of the authors'
# released code; gate="energy" is the gate as the paper writes it.
_LITERAL = dict(preset=None, lambda_unary=0.02, lambda_pair=0.02)
_FROM_THE_START = dict(mask_start=0.0, mask_ramp=0.0)
# The pairwise gradient ends at the projection: it may learn in what neighbours differ, features may not.
_PROJECTION = dict(detach_pairwise=False, detach_tokens=True)

# One stage up: a little more than half of the usual pairwise weight, and less of it without the unary.
_HIGHER = _mask(layer="group2", lambda_pair=0.012)
_PAIR_ALONE = _mask(layer="group2", lambda_unary=0.0, lambda_pair=0.008)

LAMBDAS = (0.0, 0.01, 0.02, 0.05)  # of the grid, for the unary and the pairwise energy

METHODS: dict[str, Row] = {
    "dense": Row(checkpoint=True),
    "ersm": Row(mask=_mask(), checkpoint=True),
    "ersm-gentle": Row(mask=_mask(lambda_pair=0.01), train=dict(mask_start=0.3)),
    "ersm-gentle-0.008": Row(mask=_mask(lambda_pair=0.008), train=dict(mask_start=0.3)),
    # full width, one stage up; chosen on validation images of three seeds, tried again on fresh ones
    "ersm-after-group2-0.012": Row(mask=_HIGHER, checkpoint=True),
    "ersm-after-group2-pair": Row(mask=_PAIR_ALONE),
    "fresh-dense": Row(fresh=5),
    "fresh-ersm": Row(mask=_HIGHER, fresh=5),
    "fresh-pair": Row(mask=_PAIR_ALONE, fresh=5),
    "ablation-dense": _ablation(checkpoint=True),
    "ablation-ersm": _ablation(_mask(), checkpoint=True),
    # no cure at all: the gate as released, and the gate as written
    "literal": _ablation(_mask(**_LITERAL), mask_lr_factor=1.0, **_FROM_THE_START),
    "literal-energy-gate": _ablation(
        _mask(**_LITERAL, gate="energy"), seeds=1, mask_lr_factor=1.0, **_FROM_THE_START
    ),
    # one cure left out
    "soft-gate": _ablation(_mask(hard=False)),
    "noise-at-first": _ablation(_mask(noise=1.0)),
    "noise-to-the-end": _ablation(_mask(noise=1.0), mask_noise_stop=1.0),
    "attached-pairwise": _ablation(_mask(detach_pairwise=False)),
    "attached-projection": _ablation(_mask(**_PROJECTION)),
    "attached-projection-0.03": _ablation(_mask(**_PROJECTION, lambda_pair=0.03)),
    "attached-projection-0.04": _ablation(_mask(**_PROJECTION, lambda_pair=0.04)),
    "mask-from-start": _ablation(_mask(), **_FROM_THE_START),
    "no-ramp": _ablation(_mask(), mask_ramp=0.0),
    "bias-plus-one": _ablation(_mask(bias_init=1.0)),
    "mask-weight-decay": _ablation(_mask(), mask_weight_decay=TrainSettings(epochs=1).weight_decay),
    "no-projection": _ablation(_mask(dim=None)),
    "detached-tokens": _ablation(_mask(detach_tokens=True)),
    "temperature-1": _ablation(_mask(temperature=1.0)),
    # found by the search of chapter 5: half the pressure, and twice as long to get used to it
    "gentle": _ablation(_mask(lambda_pair=0.01), mask_start=0.3, checkpoint=True),
    "gentle-temperature-1": _ablation(_mask(lambda_pair=0.01, temperature=1.0), mask_start=0.3),
    "gentle-0.015": _ablation(_mask(lambda_pair=0.015, temperature=1.0), mask_start=0.3),
    "gentle-schedule": _ablation(_mask(), mask_start=0.3, seeds=1),
    "late-0.012": _ablation(_mask(lambda_pair=0.012)),
    "gentle-soft": _ablation(_mask(lambda_pair=0.01, hard=False), mask_start=0.3),
    # twice the epochs; the mask comes at the same share of them, in the dense network's trunk as well
    "longer-dense": _ablation(longer=2, mask_start=0.3),
    "longer-gentle": _ablation(_mask(lambda_pair=0.01), longer=2, mask_start=0.3),
    # which energy does what
    "unary-only": _ablation(_mask(lambda_pair=0.0), checkpoint=True),
    "pair-only": _ablation(_mask(lambda_unary=0.0)),
    "no-energy": _ablation(_mask(lambda_unary=0.0, lambda_pair=0.0)),
    "eight-neighbours": _ablation(_mask(neighbourhood=8)),
    "after-group2": _ablation(_mask(layer="group2")),
    "after-group2-0.01": _ablation(_mask(layer="group2", lambda_pair=0.01)),
    "after-group2-0.013": _ablation(_mask(layer="group2", lambda_pair=0.013)),
    # before the pooling, where the published protocol has its mask, in a network trained end to end
    "after-group3": _ablation(_mask(layer="group3"), seeds=1),
    "after-group3-0.03": _ablation(_mask(layer="group3", lambda_pair=0.03), seeds=1),
    "after-group3-0.05": _ablation(_mask(layer="group3", lambda_pair=0.05), seeds=1),
    "two-places": _ablation(_mask(layer=("group1", "group2"))),
    # controls
    "random-half": _ablation(_mask(preset="random", keep=0.5), checkpoint=True),
    "cutout": _ablation(augment=Augment(cutout=12), checkpoint=True),
    # can a mask be made to help against occlusion? (chapter 10)
    "ersm-cutout": _ablation(_mask(), augment=Augment(cutout=12), checkpoint=True),
} | {
    f"grid-unary{unary:g}-pair{pair:g}": _ablation(
        _mask(lambda_unary=unary, lambda_pair=pair), seeds=1
    )
    for unary in LAMBDAS
    for pair in LAMBDAS
    if not {unary, pair} <= {0.0, 0.02}  # these have rows of their own, with more seeds
}

METHODS |= {
    "resnet18-dense": Row(resnet=True, train=RESNET_TRAINING),
    "resnet18-cutout": Row(
        resnet=True, train=RESNET_TRAINING | dict(augment=Augment(crop=4, cutout=12))
    ),
    "resnet18-ersm": Row(resnet=True, mask=_mask(layer="layer2"), train=RESNET_TRAINING),
}

# A network that can skip dropped tokens (chapter 13), its rivals for the same tokens, and dense networks
# that need less time. How they are trained was chosen on validation images (`milliseconds/criteria.md`).
TOKEN_TRAINING = dict(
    epochs=6, optimiser="adamw", learning_rate=6e-3, weight_decay=0.05, norm_lr_factor=1.0
)


def _tokens(mask: MaskPlace | None = None, *, checkpoint: bool = False, **settings) -> Row:
    shape = TokenNetSettings(**settings)
    return Row(mask=mask, tokens=shape, train=TOKEN_TRAINING, checkpoint=checkpoint)


def _tokens_ersm(weight: float, **more) -> Row:
    return _tokens(_mask("gate", lambda_unary=weight, lambda_pair=weight), **more)


METHODS |= {
    "tokens-dense": _tokens(checkpoint=True),
    "tokens-ersm-0.01": _tokens_ersm(0.01),
    "tokens-ersm-0.02": _tokens_ersm(0.02, checkpoint=True),
    "tokens-ersm-0.05": _tokens_ersm(0.05),
    "tokens-dense-two-blocks": _tokens(blocks=2),
    "tokens-dense-one-block": _tokens(blocks=1),
    "tokens-dense-narrow": _tokens(width=64),
    "tokens-norm": _tokens(_mask("gate", "norm", keep=0.5)),
    "tokens-random": _tokens(_mask("gate", "random", keep=0.5)),
    "tokens-ratio": _tokens(_mask("gate", "ratio", keep=0.5)),
}

# The published protocol (`protocol_runs`) on frozen maps of "ablation-dense": what distinguishes each
# row; `mask` are settings of `EnergyMask.published`. As released, its biases do not train.
_RELEASED = dict(fixed_bias=True)
PUBLISHED: dict[str, dict] = {
    "published-no-mask": dict(mask=None),
    "published-as-released": dict(mask=_RELEASED, checkpoint=True),
    "published-lambda-0": dict(mask=_RELEASED | dict(lambda_unary=0.0, lambda_pair=0.0)),
    "published-lambda-1e-2": dict(mask=_RELEASED | dict(lambda_unary=1e-2, lambda_pair=1e-2)),
    "published-lambda-1e-1": dict(
        mask=_RELEASED | dict(lambda_unary=0.1, lambda_pair=0.1), checkpoint=True
    ),
    "published-as-written": dict(mask={}, learned_positions=True),
    "published-open": dict(mask=_RELEASED | dict(bias_init=-2.0)),
    "published-bias-zero": dict(mask=_RELEASED | dict(bias_init=0.0)),
    "published-patch-2": dict(mask=_RELEASED | dict(patch_size=2)),
    "published-high-rate": dict(mask=_RELEASED, learning_rate=1e-2),
    "published-high-rate-no-mask": dict(mask=None, learning_rate=1e-2),
}

# The baselines, on the ablation's network: what distinguishes each row. The levels are the paper's, its
# schedule is not published; a code stands at the first convolution that learns, or everywhere.
# SDNet-18 codes pixels, and a CifarNet's stem is fixed: "sdnet-pixels" has another stem, that learns,
# and "dense-pixels" is its dense network.
BASELINES: dict[str, dict] = {
    "isvs-fixed": dict(smoothing=Smoothing(stages=((0.0, 0.6),))),
    "isvs-iterative": dict(smoothing=Smoothing(stages=((0.0, 0.8), (0.3, 0.6), (0.6, 0.0)))),
    "low-pass": dict(smoothing=Smoothing(stages=((0.0, 0.6),), low_pass=True)),
    "low-pass-iterative": dict(
        smoothing=Smoothing(stages=((0.0, 0.8), (0.3, 0.6), (0.6, 0.0)), low_pass=True)
    ),
    "sdnet": dict(coding=Coding()),
    "sdnet-pixels": dict(coding=Coding(layers=("stem.0",)), stem_learned=True),
    "dense-pixels": dict(stem_learned=True),
    "sdnet-all": dict(coding=Coding(layers=None)),
    "resnet18-sdnet": dict(coding=Coding(layers=("conv1",)), resnet=True),
}

# Something else than zero in a dropped token's place (chapters 5 and 10), on the ablation's network.
VARIANTS: dict[str, dict] = (
    {
        f"ersm-{kind}-cutout": dict(
            dropped=kind, mask=_mask(), train=dict(augment=Augment(cutout=12)), checkpoint=True
        )
        for kind in variants.KINDS
    }
    | {f"ersm-{kind}": dict(dropped=kind, mask=_mask(), train={}) for kind in variants.KINDS}
    | {
        "gentle-mean": dict(
            dropped="mean", mask=_mask(lambda_pair=0.01), train=dict(mask_start=0.3), seeds=1
        ),
        "gentle-mean-0.015": dict(
            dropped="mean", mask=_mask(lambda_pair=0.015), train=dict(mask_start=0.3)
        ),
    }
)

# Another normalisation after the mask (chapter 5), on the ablation's network. Its optimiser, one for
# all of them, is the one of two trials on validation images in which all dense networks learn; weights
# that SGD with a high learning rate trains need batch normalisation.
NORM_TRAINING = dict(
    optimiser="adamw", learning_rate=3e-3, weight_decay=0.05, norm_lr_factor=1.0, mask_start=0.3
)
NORMS: dict[str, dict] = {
    f"{norm}-norm-{name}": dict(
        norm=norm, mask=mask, seeds=3 if norm in ("batch", "weights") else 1
    )
    for norm in normalisation.KINDS
    for name, mask in {
        "dense": None,
        "soft": _mask(hard=False),
        "hard": _mask(),
    }.items()
}

# Half of the dense network's weights pruned by their magnitude, when ERSM's mask would be switched on.
PRUNED: dict[str, dict] = {"pruned": dict(sparsity=0.5)}


def experiments(scale: str, *, dataset: str = "auto") -> list[Experiment]:
    """Every experiment of a scale on one data set, in the order in which they are wanted.

    Args:
        scale: "smoke", "laptop" or "full".
        dataset: a name of `data.DATASETS`; "auto" is CIFAR-10 where it can be had, else shapes.

    Raises:
        ValueError: an unknown scale or data set.
    """
    if scale not in SEEDS:
        raise ValueError(f"scale must be one of {', '.join(SEEDS)}, got {scale!r}")
    dataset = data.default_dataset() if dataset == "auto" else dataset
    if dataset not in data.DATASETS:
        raise ValueError(f"no data set {dataset!r}: choose one of {', '.join(data.DATASETS)}")
    train = TRAIN[scale]
    if dataset.startswith("shapes"):
        train = replace(train, epochs=SHAPES_EPOCHS[scale])
    trained = [
        Experiment(
            method=method,
            dataset=dataset,
            scale=scale,
            seed=seed,
            config=RunConfig(
                backbone=_backbone(row, scale),
                mask=row.mask,
                train=replace(train, **dict(epochs=train.epochs * row.longer) | row.train),
                train_images=IMAGES[scale],
                test_images=IMAGES[scale],
            ),
            tolerance={"test_accuracy": TOLERANCE[scale]},
            checkpoint=row.checkpoint and scale != "full",
        )
        for method, row in METHODS.items()
        for seed in row.seeds_at(scale)
    ]
    compared = [
        _baseline(method, dataset, scale, seed, train)
        for method, row in BASELINES.items()
        for seed in Row(resnet=row.get("resnet", False)).seeds_at(scale)
    ]
    varied = [
        _experiment(
            method,
            dataset,
            scale,
            seed,
            VariantConfig(
                mask=row["mask"],
                dropped=row["dropped"],
                **_ablation_parts(scale, replace(train, **row["train"])),
            ),
            checkpoint=row.get("checkpoint", False),
        )
        for method, row in VARIANTS.items()
        for seed in Row(seeds=row.get("seeds")).seeds_at(scale)
    ]
    pruned = [
        _experiment(
            method,
            dataset,
            scale,
            seed,
            PruningConfig(sparsity=row["sparsity"], **_ablation_parts(scale, train)),
        )
        for method, row in PRUNED.items()
        for seed in range(SEEDS[scale])
    ]
    slower = {"epochs": 3 * train.epochs} if scale == "smoke" else {}  # else it is still at chance
    normalised = [
        _experiment(
            method,
            dataset,
            scale,
            seed,
            NormConfig(
                norm=row["norm"],
                mask=row["mask"],
                **_ablation_parts(scale, replace(train, **NORM_TRAINING, **slower)),
            ),
            checkpoint=False,
        )
        for method, row in NORMS.items()
        for seed in range(min(row["seeds"], SEEDS[scale]))
    ]
    published = [
        _published(method, dataset, scale, seed)
        for seed in range(SEEDS[scale])  # one backbone after the other
        for method in PUBLISHED
    ]
    return trained + compared + varied + pruned + normalised + published


def _backbone(row: Row, scale: str) -> backbones.CifarNetSettings | TokenNetSettings | str:
    if row.resnet:
        return "resnet18"
    if row.tokens:
        return replace(row.tokens, **TOKENS[scale])
    return (ABLATION_BACKBONE if row.ablation else BACKBONE)[scale]


def _ablation_parts(scale: str, train: TrainSettings) -> dict:
    """What every network of the ablation has in common, as settings of its config."""
    return dict(
        backbone=ABLATION_BACKBONE[scale],
        train=train,
        train_images=IMAGES[scale],
        test_images=IMAGES[scale],
    )


def _experiment(
    method: str, dataset: str, scale: str, seed: int, config, *, checkpoint: bool = True
) -> Experiment:
    return Experiment(
        method=method,
        dataset=dataset,
        scale=scale,
        seed=seed,
        config=config,
        tolerance={"test_accuracy": TOLERANCE[scale]},
        checkpoint=checkpoint and scale != "full",
    )


def _baseline(method: str, dataset: str, scale: str, seed: int, train: TrainSettings) -> Experiment:
    parts = {name: BASELINES[method].get(name) for name in ("smoothing", "coding")}
    common = _ablation_parts(scale, train)
    if BASELINES[method].get("stem_learned"):
        common |= dict(backbone=replace(common["backbone"], stem_learned=True))
    if BASELINES[method].get("resnet"):
        common |= dict(backbone="resnet18", train=replace(train, **RESNET_TRAINING))
    config = BaselineConfig(**common, **parts)
    return _experiment(method, dataset, scale, seed, config)


def _published(method: str, dataset: str, scale: str, seed: int) -> Experiment:
    row = PUBLISHED[method]
    rate = row.get("learning_rate", PUBLISHED_TRAINING.learning_rate)
    return Experiment(
        method=method,
        dataset=dataset,
        scale=scale,
        seed=seed,
        config=PublishedConfig(
            mask=row["mask"],
            learned_positions=row.get("learned_positions", False),
            train=replace(PUBLISHED_TRAINING, learning_rate=rate),
            train_images=IMAGES[scale],
            test_images=IMAGES[scale],
        ),
        tolerance={"test_accuracy": TOLERANCE[scale]},
        checkpoint=row.get("checkpoint", False) and scale != "full",
    )


def run(
    experiment: Experiment,
    *,
    maps: protocol_runs.Maps | None = None,
    probe: dict | None = None,
    root: Path | None = None,
    progress: bool = True,
) -> dict:
    """Run an experiment of any kind and write its record; see `run` of `runs`, `baselines`,
    `variants`, `pruning`, `normalisation` and `protocol_runs`.

    The network that the published protocol freezes is loaded if there is one, else trained first. Runs
    of the published protocol that are given the same `maps` compute those of a backbone once.
    """
    settings = {"probe": probe, "root": root, "progress": progress}
    if not isinstance(experiment.config, PublishedConfig):
        return home_of(experiment).run(experiment, **settings)
    backbone = _backbone_of(experiment, progress)
    return protocol_runs.run(experiment, backbone=backbone, maps=maps, **settings)


def home_of(experiment: Experiment) -> ModuleType:
    """The module that trains, and restores, networks of this kind of config."""
    homes = {
        RunConfig: runs,
        BaselineConfig: baselines,
        VariantConfig: variants,
        PruningConfig: pruning,
        NormConfig: normalisation,
    }
    return homes[type(experiment.config)]


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
    place = getattr(experiment.config, "mask", None)
    if place is None or place.preset in controls.KINDS:
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
    if scale in SEEDS and dataset in data.DATASETS:
        found = (e for e in experiments(scale, dataset=dataset) if e.name == name)
        if experiment := next(found, None):
            return experiment
    known = [e.name for s in SEEDS for d in data.DATASETS for e in experiments(s, dataset=d)]
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
    if getattr(experiment.config, "mask", None) is None:  # then nothing reads how a mask is trained
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
        method: of `experiments`, such as "dense" or "ersm".
        seed: which of the seeds.
        scale: None takes the environment variable ERSM_SCALE, or "laptop".
        dataset: as in `experiments`.
        progress: show a bar while training.
    """
    scale = scale or os.environ.get("ERSM_SCALE", "laptop")
    rows = experiments(scale, dataset=dataset)
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
        return home_of(experiment).restore(experiment, record, root=root)
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
