"""All that decides a run: an experiment's name, and the settings of its network and training."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ersm_lab.common import checks
from ersm_lab.evaluation import deletion
from ersm_lab.images.smoothed import Smoothing
from ersm_lab.networks import controls, filled_mask, norms
from ersm_lab.networks.backbones import CifarNetSettings
from ersm_lab.networks.fista import CSCSettings
from ersm_lab.networks.token_net import TokenNetSettings
from ersm_lab.training import protocols
from ersm_lab.training.loop import TrainSettings


@dataclass(frozen=True, kw_only=True)
class MaskPlace:
    """Where a mask sits and what it is.

    Attributes:
        layer: the stage it follows, or several, each with a mask of its own and the same settings.
        preset: of `ersm_attach.attach_energy_mask`, or a kind of `controls.KINDS`.
        settings: of `ersm_core.EnergyMask`, taking precedence over the preset's.
    """

    layer: str | tuple[str, ...]
    preset: str | None = None
    settings: dict = field(default_factory=dict)

    @property
    def layers(self) -> tuple[str, ...]:
        return (self.layer,) if isinstance(self.layer, str) else self.layer


@dataclass(frozen=True, kw_only=True)
class Coding:
    """Where sparse codes stand.

    Attributes:
        layers: convolutions that they replace; None is all but the fixed one of the stem.
        settings: of the codes.
    """

    layers: tuple[str, ...] | None = ("group1.0",)
    settings: CSCSettings = field(default_factory=CSCSettings)


@dataclass(frozen=True, kw_only=True)
class Config:
    """All that decides a run besides data set and seed. A part that is None is not there.

    Attributes:
        backbone: settings of a `CifarNet` or a `TokenNet`, or "resnet18".
        train: how it is trained.
        mask: None for a network without.
        dropped: what a dropped token leaves behind, of `filled_mask.KINDS`; None is zero.
        norm: what normalises the maps after a group, of `norms.KINDS`.
        after: that group; a mask sits there.
        sparsity: s_f, share of the weights that are zero in the end (`pruning`), 0 <= s_f < 1.
        start: p_0, share of the steps before which nothing is pruned.
        ramp: r, share of the steps over which sparsity then rises; start + ramp < 1.
        smoothing: of the training images.
        coding: sparse codes in place of convolutions; of "resnet18" only the first can be one.
        train_images, test_images: use so many only; None is all.

    Raises:
        TypeError: a part that is something else.
        ValueError: parts that do not go together; the message says what to do.
    """

    backbone: CifarNetSettings | TokenNetSettings | str
    train: TrainSettings
    mask: MaskPlace | None = None
    dropped: str | None = None
    norm: str | None = None
    after: str | None = None
    sparsity: float | None = None
    start: float | None = None
    ramp: float | None = None
    smoothing: Smoothing | None = None
    coding: Coding | None = None
    train_images: int | None = None
    test_images: int | None = None

    def __post_init__(self) -> None:
        if self.backbone != "resnet18":
            checks.a("backbone", self.backbone, (CifarNetSettings, TokenNetSettings))
        checks.a("train", self.train, TrainSettings)
        parts = {"mask": MaskPlace, "smoothing": Smoothing, "coding": Coding}
        for name, kind in parts.items():
            if getattr(self, name) is not None:
                checks.a(name, getattr(self, name), kind)
        for name in ("train_images", "test_images"):
            if getattr(self, name) is not None:
                checks.whole(name, getattr(self, name))
        if self.dropped is not None:
            self._check_dropped()
        if self.norm is not None or self.after is not None:
            self._check_norm()
        if (self.sparsity, self.start, self.ramp) != (None, None, None):
            self._check_pruning()
        if self.coding and self.backbone == "resnet18" and self.coding.layers != ("conv1",):
            raise ValueError('of "resnet18" only layers=("conv1",) can be a code')

    @property
    def shares_trunk(self) -> bool:
        """Whether its epochs before the mask are those of all that differ in nothing but the mask."""
        own = (self.dropped, self.norm, self.sparsity, self.smoothing, self.coding)
        return all(part is None for part in own)

    def trained(self) -> Config:
        """Of the network that training leaves: without what only training has."""
        return replace(self, smoothing=None, sparsity=None, start=None, ramp=None)

    def _check_dropped(self) -> None:
        checks.choice("dropped", self.dropped, filled_mask.KINDS)
        if self.mask is None:
            raise ValueError("dropped is what a mask leaves behind: give a mask, or dropped=None")
        if self.mask.preset in controls.KINDS:
            raise ValueError(
                f"only an energy mask fills what it drops, not the control {self.mask.preset!r}: "
                'choose the preset "stable", "published" or None'
            )

    def _check_norm(self) -> None:
        checks.a("backbone", self.backbone, CifarNetSettings)
        checks.choice("norm", self.norm, norms.KINDS)
        checks.text("after", self.after)
        assert isinstance(self.backbone, CifarNetSettings) and self.after is not None
        count = len(self.backbone.widths)
        if not norms.groups_after(self.after, count):
            raise ValueError(
                f"no group comes after {self.after!r}: choose one of group1 to group{count - 1}"
            )
        if self.mask and self.mask.layers != (self.after,):
            raise ValueError(
                f"the mask sits after {', '.join(self.mask.layers)} and normalisation is replaced after "
                f"{self.after}: give both the same group"
            )

    def _check_pruning(self) -> None:
        checks.a("backbone", self.backbone, CifarNetSettings)
        checks.number("sparsity", self.sparsity)
        assert self.sparsity is not None
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity is a share of the weights below 1, got {self.sparsity}")
        for name in ("start", "ramp"):
            checks.number(name, getattr(self, name), least=0)
        assert self.start is not None and self.ramp is not None
        if not self.start + self.ramp < 1:
            raise ValueError(
                "start and ramp are shares of the steps that leave some to train on: choose them "
                f"with start + ramp < 1, got {self.start} and {self.ramp}"
            )
        if self.train.ema_decay:
            raise ValueError("a moving average of pruned weights is not made: set ema_decay=0")
        if self.mask or self.norm or self.coding:
            raise ValueError("a plain dense network is pruned: leave out mask, norm and coding")


@dataclass(frozen=True, kw_only=True)
class Deletion:
    """How tokens are deleted; `ersm_lab.evaluation.deletion` explains the terms. Only `fractions` can
    be chosen.

    Attributes:
        fractions: of the tokens deleted, at which accuracy is measured.
    """

    fractions: tuple[float, ...] = deletion.FRACTIONS
    start: str = "0/1 mask of ones"
    unit: str = "token"
    baseline: str = "zero, not re-scaled"
    order: str = "least important first"


@dataclass(frozen=True, kw_only=True)
class PublishedConfig:
    """All that decides a run of the published protocol (`protocol_runs`) besides data set and seed.

    No part of `Config`: here the backbone is another experiment, and only a mask and a head train.

    Attributes:
        backbone: the experiment whose network, of the same scale, data set and seed, is frozen.
        layer: the stage whose output is masked; its max-pooling is left out.
        mask: settings of `EnergyMask.published`; None for no mask.
        learned_positions: a bias for every position, which trains.
        train: how mask and head are trained.
        deletion: how tokens are deleted.
        train_images, test_images: use so many only; None is all.
    """

    backbone: str = "ablation-dense"
    layer: str = "group3"
    mask: dict | None = field(default_factory=dict)
    learned_positions: bool = False
    train: TrainSettings = protocols.PUBLISHED_TRAINING
    deletion: Deletion = field(default_factory=Deletion)
    train_images: int | None = None
    test_images: int | None = None


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A run's name and settings.

    Attributes:
        tolerance: how far a re-run's metrics may be from the record's.
        checkpoint: keep the trained weights in the repository; else they lie in `data/cache`.
    """

    method: str
    dataset: str
    scale: str
    seed: int
    config: Config | PublishedConfig
    tolerance: dict[str, float] = field(default_factory=dict)
    checkpoint: bool = True

    @property
    def own(self) -> Config:
        """`config`, of an experiment that trains a whole network."""
        if not isinstance(self.config, Config):
            raise TypeError(f"{self.name} is of the published protocol: see protocol_runs")
        return self.config

    @property
    def published(self) -> PublishedConfig:
        """`config`, of an experiment of the published protocol."""
        if not isinstance(self.config, PublishedConfig):
            raise TypeError(f"{self.name} is not of the published protocol: see runs")
        return self.config

    @property
    def name(self) -> str:
        return f"{self.scale}/{self.dataset}/{self.method}/seed{self.seed}"
