"""The one table of methods, and the experiments that a scale makes of it.

The seeds of a method at a scale differ in nothing else. Settings of the `laptop` scale were chosen on
validation images; `smoke` takes seconds and only shows that the code runs; `full` wants a GPU: its
network and schedule are those of a published speed run, and all that concerns the mask is as at
`laptop` scale, where it was chosen. `tasks` and `queue` work through it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ersm_lab.images import data
from ersm_lab.images.data import Augment
from ersm_lab.images.smoothed import Smoothing
from ersm_lab.networks import backbones, filled_mask, norms
from ersm_lab.networks.backbones import CifarNetSettings
from ersm_lab.networks.token_net import TokenNetSettings
from ersm_lab.training.config import Coding, Config, Experiment, MaskPlace, PublishedConfig
from ersm_lab.training.loop import TrainSettings
from ersm_lab.training.protocols import PUBLISHED_TRAINING

SEEDS = {"smoke": 1, "laptop": 3, "full": 5}

BACKBONE = {"smoke": backbones.SMOKE, "laptop": backbones.LAPTOP, "full": backbones.FULL}
_QUIET: dict[str, Any] = dict(
    mask_noise_stop=0.8
)  # where a mask has noise, the last fifth trains without
TRAIN = {
    "smoke": TrainSettings(epochs=3, batch_size=64, **_QUIET),
    "laptop": TrainSettings(epochs=10, **_QUIET),
    "full": TrainSettings(epochs=16, batch_size=1024, learning_rate=1.5, **_QUIET),
}
# Of the ResNets, at full scale: plain SGD with momentum 0.9, the schedule of the others.
RESNET_TRAINING: dict[str, Any] = dict(
    epochs=30,
    batch_size=512,
    learning_rate=0.4,
    momentum=0.9,
    weight_decay=5e-4,
    norm_lr_factor=1.0,
    label_smoothing=0.1,
)
SMALL_TOKENS: dict[str, Any] = dict(width=32, expansion=2)  # of a `TokenNet` at smoke scale
SHAPES_EPOCHS = {"smoke": 6, "laptop": 4, "full": 8}  # textured shapes are learned sooner
IMAGES = {"smoke": 2_560, "laptop": None, "full": None}
# The ablation has many rows: at laptop scale its network is half as wide, with a dense one of its own.
ABLATION_BACKBONE = BACKBONE | {"laptop": backbones.SLIM}
# Absolute, for the same seed on another machine: differences of rounding grow into other weights.
TOLERANCE = {"smoke": 0.15, "laptop": 0.01, "full": 0.01}


@dataclass(frozen=True, kw_only=True)
class Method:
    """What distinguishes a method at every scale.

    Attributes:
        backbone: {scale: its network}; at other scales it is not trained.
        mask: None for a network without.
        parts: of its `Config`, besides: dropped, norm, pruning, smoothing, coding.
        train: settings of `TrainSettings` that differ from the scale's.
        published: instead of mask and parts, settings of a `PublishedConfig`.
        seeds: at most so many; None is all of the scale.
        fresh: instead, so many seeds that no other method has.
        longer: {scale: factor on its epochs}; 1 at other scales.
        checkpoint: keep the trained weights in the repository; those of full scale are cached.
    """

    backbone: Mapping[str, CifarNetSettings | TokenNetSettings | str] = field(
        default_factory=lambda: BACKBONE
    )
    mask: MaskPlace | None = None
    parts: dict = field(default_factory=dict)
    train: dict = field(default_factory=dict)
    published: dict | None = None
    seeds: int | None = None
    fresh: int = 0
    longer: dict[str, int] = field(default_factory=dict)
    checkpoint: bool = False

    def seeds_at(self, scale: str) -> range:
        """Which seeds it is trained with at a scale; a single one is 0."""
        most = SEEDS[scale] if scale in self.backbone else 0
        if self.fresh and most > 1:
            return range(most, most + self.fresh)
        return range(min(self.seeds or most, most))

    def config(self, scale: str, train: TrainSettings) -> Config | PublishedConfig:
        """Its settings at a scale whose networks are trained like that."""
        images: dict[str, Any] = {"train_images": IMAGES[scale], "test_images": IMAGES[scale]}
        if self.published is not None:
            own = replace(PUBLISHED_TRAINING, **self.train)
            return PublishedConfig(train=own, **self.published, **images)
        epochs = train.epochs * self.longer.get(scale, 1)
        return Config(
            backbone=self.backbone[scale],
            train=replace(train, **{"epochs": epochs} | self.train),
            mask=self.mask,
            **self.parts,
            **images,
        )


def experiments_of(scale: str, *, dataset: str = "auto") -> list[Experiment]:
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
    made = [
        Experiment(
            method=name,
            dataset=dataset,
            scale=scale,
            seed=seed,
            config=method.config(scale, train),
            tolerance={"test_accuracy": TOLERANCE[scale]},
            checkpoint=method.checkpoint and scale != "full",
        )
        for name, method in METHODS.items()
        for seed in method.seeds_at(scale)
    ]
    return sorted(made, key=_turn)


def _turn(experiment: Experiment) -> int:
    """The published protocol comes last, one frozen network after the other."""
    return 1 + experiment.seed if isinstance(experiment.config, PublishedConfig) else 0


# --- the table -------------------------------------------------------------------------------------


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
) -> Method:
    return Method(
        backbone=ABLATION_BACKBONE,
        mask=mask,
        train=train,
        seeds=seeds,
        longer=dict.fromkeys(SEEDS, longer),
        checkpoint=checkpoint,
    )


# The layer with none of our cures: tokens as they are, everything trained together from the first step,
# with the weights of lambda that `stable` has. The soft gate of the logit is that of the authors'
# released code; gate="energy" is the gate as the paper writes it.
_LITERAL: dict[str, Any] = dict(preset=None, lambda_unary=0.02, lambda_pair=0.02)
_FROM_THE_START: dict[str, Any] = dict(mask_start=0.0, mask_ramp=0.0)
# The pairwise gradient ends at the projection: it may learn in what neighbours differ, features may not.
_PROJECTION: dict[str, Any] = dict(detach_pairwise=False, detach_tokens=True)

# One stage up: a little more than half of the usual pairwise weight, and less of it without the unary.
_HIGHER = _mask(layer="group2", lambda_pair=0.012)
_PAIR_ALONE = _mask(layer="group2", lambda_unary=0.0, lambda_pair=0.008)

LAMBDAS = (0.0, 0.01, 0.02, 0.05)  # of the grid, for the unary and the pairwise energy

METHODS: dict[str, Method] = {
    "dense": Method(checkpoint=True),
    "ersm": Method(mask=_mask(), checkpoint=True),
    "ersm-gentle": Method(mask=_mask(lambda_pair=0.01), train=dict(mask_start=0.3)),
    "ersm-gentle-0.008": Method(mask=_mask(lambda_pair=0.008), train=dict(mask_start=0.3)),
    # full width, one stage up; chosen on validation images of three seeds, tried again on fresh ones
    "ersm-after-group2-0.012": Method(mask=_HIGHER, checkpoint=True),
    "ersm-after-group2-pair": Method(mask=_PAIR_ALONE),
    "fresh-dense": Method(fresh=5),
    "fresh-ersm": Method(mask=_HIGHER, fresh=5),
    "fresh-pair": Method(mask=_PAIR_ALONE, fresh=5),
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

_RESNET: dict[str, Any] = dict(backbone={"full": "resnet18"}, seeds=3)

METHODS |= {
    "resnet18-dense": Method(**_RESNET, train=RESNET_TRAINING),
    "resnet18-cutout": Method(
        **_RESNET, train=RESNET_TRAINING | dict(augment=Augment(crop=4, cutout=12))
    ),
    "resnet18-ersm": Method(**_RESNET, mask=_mask(layer="layer2"), train=RESNET_TRAINING),
}

# A network that can skip dropped tokens (chapter 13), its rivals for the same tokens, and dense networks
# that need less time. How they are trained was chosen on validation images (`milliseconds/criteria.md`).
TOKEN_TRAINING: dict[str, Any] = dict(
    epochs=6, optimiser="adamw", learning_rate=6e-3, weight_decay=0.05, norm_lr_factor=1.0
)


def _tokens(mask: MaskPlace | None = None, *, checkpoint: bool = False, **settings) -> Method:
    shape = TokenNetSettings(**settings)
    backbone = {"smoke": replace(shape, **SMALL_TOKENS), "laptop": shape}
    return Method(backbone=backbone, mask=mask, train=TOKEN_TRAINING, checkpoint=checkpoint)


def _tokens_ersm(weight: float, **more) -> Method:
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

# The baselines, on the ablation's network. The levels are the paper's, its schedule is not published; a
# code stands at the first convolution that learns, or everywhere. SDNet-18 codes pixels, and a
# CifarNet's stem is fixed: "sdnet-pixels" has another stem, that learns, and "dense-pixels" is its
# dense network.
_FIXED = ((0.0, 0.6),)
_ITERATIVE = ((0.0, 0.8), (0.3, 0.6), (0.6, 0.0))
_LEARNED_STEM = {
    scale: replace(shape, stem_learned=True) for scale, shape in ABLATION_BACKBONE.items()
}


def _baseline(**parts) -> Method:
    return Method(backbone=ABLATION_BACKBONE, parts=parts, checkpoint=True)


METHODS |= {
    "isvs-fixed": _baseline(smoothing=Smoothing(stages=_FIXED)),
    "isvs-iterative": _baseline(smoothing=Smoothing(stages=_ITERATIVE)),
    "low-pass": _baseline(smoothing=Smoothing(stages=_FIXED, low_pass=True)),
    "low-pass-iterative": _baseline(smoothing=Smoothing(stages=_ITERATIVE, low_pass=True)),
    "sdnet": _baseline(coding=Coding()),
    "sdnet-pixels": Method(
        backbone=_LEARNED_STEM, parts=dict(coding=Coding(layers=("stem.0",))), checkpoint=True
    ),
    "dense-pixels": Method(backbone=_LEARNED_STEM, checkpoint=True),
    "sdnet-all": _baseline(coding=Coding(layers=None)),
    "resnet18-sdnet": Method(
        **_RESNET, parts=dict(coding=Coding(layers=("conv1",))), train=RESNET_TRAINING
    ),
}

# Something else than zero in a dropped token's place (chapters 5 and 10), on the ablation's network.


def _filled(dropped: str, mask: MaskPlace | None = None, **more) -> Method:
    parts: dict[str, Any] = dict(dropped=dropped)
    return Method(backbone=ABLATION_BACKBONE, mask=mask or _mask(), parts=parts, **more)


METHODS |= {
    f"ersm-{kind}-cutout": _filled(kind, train=dict(augment=Augment(cutout=12)), checkpoint=True)
    for kind in filled_mask.KINDS
}
METHODS |= {f"ersm-{kind}": _filled(kind) for kind in filled_mask.KINDS}
METHODS |= {
    "gentle-mean": _filled("mean", _mask(lambda_pair=0.01), train=dict(mask_start=0.3), seeds=1),
    "gentle-mean-0.015": _filled("mean", _mask(lambda_pair=0.015), train=dict(mask_start=0.3)),
}

# Half of the dense network's weights pruned by their magnitude, when ERSM's mask would be switched on.
METHODS |= {"pruned": _baseline(sparsity=0.5, start=0.6, ramp=0.1)}

# Another normalisation after the mask (chapter 5), on the ablation's network. The high learning rate of
# the others needs batch normalisation: without it networks diverge or stay far behind. The optimiser,
# one for all of them, "batch" too, is the one of two trials on validation images in which all dense
# networks learn. At smoke scale three times the epochs: else they are still at chance.
NORM_TRAINING: dict[str, Any] = dict(
    optimiser="adamw", learning_rate=3e-3, weight_decay=0.05, norm_lr_factor=1.0, mask_start=0.3
)
METHODS |= {
    f"{norm}-norm-{name}": Method(
        backbone=ABLATION_BACKBONE,
        mask=mask,
        parts=dict(norm=norm, after="group1"),
        train=NORM_TRAINING,
        longer={"smoke": 3},
        seeds=3 if norm in ("batch", "weights") else 1,
    )
    for norm in norms.KINDS
    for name, mask in {
        "dense": None,
        "soft": _mask(hard=False),
        "hard": _mask(),
    }.items()
}

# The published protocol (`protocol_runs`) on frozen maps of "ablation-dense"; `mask` are settings of
# `EnergyMask.published`. As released, its biases do not train.
_RELEASED: dict[str, Any] = dict(fixed_bias=True)


def _published(mask: dict | None, *, checkpoint: bool = False, **train) -> Method:
    return Method(published=dict(mask=mask), train=train, checkpoint=checkpoint)


METHODS |= {
    "published-no-mask": _published(None),
    "published-as-released": _published(_RELEASED, checkpoint=True),
    "published-lambda-0": _published(_RELEASED | dict(lambda_unary=0.0, lambda_pair=0.0)),
    "published-lambda-1e-2": _published(_RELEASED | dict(lambda_unary=1e-2, lambda_pair=1e-2)),
    "published-lambda-1e-1": _published(
        _RELEASED | dict(lambda_unary=0.1, lambda_pair=0.1), checkpoint=True
    ),
    "published-as-written": Method(published=dict(mask={}, learned_positions=True)),
    "published-open": _published(_RELEASED | dict(bias_init=-2.0)),
    "published-bias-zero": _published(_RELEASED | dict(bias_init=0.0)),
    "published-patch-2": _published(_RELEASED | dict(patch_size=2)),
    "published-high-rate": _published(_RELEASED, learning_rate=1e-2),
    "published-high-rate-no-mask": _published(None, learning_rate=1e-2),
}
