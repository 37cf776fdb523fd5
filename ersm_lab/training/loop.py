"""One training loop for every network of the book.

Lightning Fabric brings precision, devices and processes; the loop knows a model only by its loss and
by the energy masks that it may carry.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from ersm_core import EnergyMask, energy_loss
from ersm_lab.common import checkpoints, checks
from ersm_lab.common.checkpoints import save_atomically
from ersm_lab.common.files import Damaged, set_aside
from ersm_lab.images.data import Augment
from ersm_lab.training.distributed import synchronise_batch_norm

if TYPE_CHECKING:  # `make_fabric` imports it: only who trains waits seconds for it
    from lightning.fabric import Fabric

# Of Lightning Fabric.
PRECISIONS = (
    "32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true",
    "transformer-engine", "transformer-engine-float16",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How a network is trained: by default SGD with Nesterov momentum on a one-cycle schedule.

    Attributes:
        epochs: passes over the training images.
        batch_size: images a step, all processes together.
        optimiser: "sgd" with Nesterov momentum, or "adamw".
        learning_rate: peak, for the mean loss of a batch.
        momentum: of SGD.
        weight_decay: coefficient of the weights, in torch's units of the optimiser.
        schedule: "one-cycle", or "cosine" from the peak to 0.
        norm_lr_factor: learning rate of normalisation layers' parameters, as a factor on the peak;
            their weight decay is divided by it, so that its step is that of the weights. Made for
            normalisation without a learned scale (`CifarNet`); 1 where there is one (`resnet18`).
        start, warm_up, end: the one-cycle schedule rises linearly from start x peak to the peak in
            this share of the steps, then falls linearly to end x peak.
        label_smoothing: of the cross-entropy.
        mask_lr_factor: learning rate of the masks' parameters, as a factor on the peak.
        mask_weight_decay: coefficient of the masks' parameters.
        mask_start: share of the steps before which masks are off and the network is dense.
        mask_ramp: share of the steps over which the weight of L_reg then rises from 0 to 1.
        mask_noise_stop: share of the steps from which hard masks train without noise, as in a test.
        ema_decay: keep an exponential moving average of the weights with this decay a step, which
            becomes the final network; 0 is off.
        augment: what is done to the images.
        precision: "auto", or a precision of Lightning Fabric. "auto" is bf16-mixed where the device
            has matrix units for it (CUDA from compute capability 8, CPUs with AMX or
            AVX512-BF16), else 32-true.
    """

    epochs: int
    batch_size: int = 512
    optimiser: str = "sgd"
    learning_rate: float = 0.75
    momentum: float = 0.85
    weight_decay: float = 1.33e-3
    schedule: str = "one-cycle"
    norm_lr_factor: float = 64.0
    start: float = 0.2
    warm_up: float = 0.23
    end: float = 0.0
    label_smoothing: float = 0.2
    mask_lr_factor: float = 0.5
    mask_weight_decay: float = 0.0
    mask_start: float = 0.6
    mask_ramp: float = 0.1
    mask_noise_stop: float = 1.0
    ema_decay: float = 0.0
    augment: Augment = field(default_factory=Augment)
    precision: str = "auto"

    def __post_init__(self) -> None:
        checks.whole("epochs", self.epochs, most=checks.MOST)
        checks.whole("batch_size", self.batch_size)
        if self.optimiser not in ("sgd", "adamw"):
            raise ValueError(f'optimiser must be "sgd" or "adamw", got {self.optimiser!r}')
        if self.schedule not in ("one-cycle", "cosine"):
            raise ValueError(f'schedule must be "one-cycle" or "cosine", got {self.schedule!r}')
        checks.number("norm_lr_factor", self.norm_lr_factor, above=0)
        for name in ("learning_rate", "start", "end", "mask_lr_factor"):
            checks.number(name, getattr(self, name), least=0)
        for name in ("weight_decay", "mask_weight_decay"):
            checks.number(name, getattr(self, name), least=0)
        for name in ("momentum", "warm_up", "label_smoothing", "ema_decay"):
            checks.number(name, getattr(self, name), least=0, below=1)
        for name in ("mask_start", "mask_ramp", "mask_noise_stop"):
            checks.number(name, getattr(self, name), least=0, most=1)
        checks.a("augment", self.augment, Augment)
        checks.choice("precision", self.precision, ("auto", *PRECISIONS))


def best_device() -> str:
    """ "cuda" where there is a GPU, else "cpu"; ERSM_DEVICE names one of them instead."""
    named = os.environ.get("ERSM_DEVICE", "")
    if named not in ("", "cpu", "cuda"):
        raise ValueError(f'ERSM_DEVICE must be "cpu" or "cuda", got {named!r}')
    return named or ("cuda" if torch.cuda.is_available() else "cpu")


def resolve_precision(precision: str, device: str = "cpu") -> str:
    """What "auto" means on this device; other names are returned as they are."""
    if precision != "auto":
        return precision
    if device == "cpu":
        tests = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # of torch, by version
        fast = any(getattr(torch.cpu, test, lambda: False)() for test in tests)
        return "bf16-mixed" if fast else "32-true"
    return "bf16-mixed" if torch.cuda.get_device_capability()[0] >= 8 else "32-true"


def make_fabric(*, precision: str = "auto", device: str = "auto", processes: int = 1) -> Fabric:
    """A launched Fabric on one device, or on `processes` CPU processes or GPUs under `torchrun`.

    One process asks nothing of a cluster whose variables it may find around it, such as Slurm's in a
    Jupyter session.
    """
    from lightning.fabric import Fabric
    from lightning.fabric.plugins.environments import LightningEnvironment
    from lightning.fabric.strategies import DDPStrategy

    kind = device if device != "auto" else best_device()
    if kind == "cuda":
        torch.backends.cudnn.benchmark = True  # batches are all of one size
    strategy = DDPStrategy(find_unused_parameters=True) if processes > 1 else "auto"
    resolved: Any = resolve_precision(precision, kind)  # of PRECISIONS, which Fabric's type lists
    fabric = Fabric(
        accelerator=kind,
        devices=processes,
        strategy=strategy,
        plugins=LightningEnvironment() if processes == 1 else None,
        precision=resolved,
    )
    fabric.launch()
    return fabric


class Trainable(Protocol):
    """Images, or maps in their place, with batches of their own (`images.data.Batches`)."""

    def to(self, device: torch.device) -> Trainable: ...

    def batches(self, **settings: Any) -> Any: ...


def train(
    model: nn.Module,
    data: Trainable,
    settings: TrainSettings,
    *,
    seed: int,
    fabric: Fabric | None = None,
    before_step: Callable[[nn.Module, float], None] | None = None,
    after_epoch: Callable[[nn.Module], dict[str, float]] | None = None,
    checkpoint: Path | None = None,
    save_every: float = 0.0,
    trunk: Path | None = None,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Train a model in place.

    On one CPU, with one version of torch and one number of threads, the same seed gives the same
    weights, also after a kill; another number of threads adds in another order and gives others. A
    damaged `checkpoint` or `trunk` is set aside with a warning, and what was in it trained again.

    The loss is the cross-entropy plus the ramped L_reg of the model's energy masks (eq. of L_reg in
    arXiv:2604.06893), which are off before `settings.mask_start`.

    Args:
        model: takes x (B, 3, H, W), returns logits (B, classes).
        data: training images.
        settings: how.
        seed: of order, augmentation and mask noise. The model's own start is the caller's.
        fabric: devices and precision; None for this machine's best single device.
        before_step: what is done to the model before every step, at a progress of 0 to 1.
        after_epoch: measured on the model in evaluation mode after every epoch, for the curve.
        checkpoint: file that is written after every epoch and resumed from if there.
        save_every: seconds that lie between two checkpoints at least.
        trunk: file of the epochs before `settings.mask_start`, in which networks that differ in
            nothing but their mask are the same: continued from if there, else written on the way.
        progress: show a bar.

    Returns:
        One row an epoch: epoch, steps since the start, loss, regulariser, kept (mean mask),
        learning_rate, seconds of training since the start, what `after_epoch` returned, and
        shared=True if it was taken from the trunk.

    Raises:
        ValueError: the loss is no longer a number.
    """
    fabric = fabric or make_fabric(precision=settings.precision)
    batches = data.to(fabric.device).batches(
        batch_size=settings.batch_size,
        augment=settings.augment,
        seed=seed,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
    )
    total = settings.epochs * len(batches)
    bare = model.to(fabric.device).to(memory_format=torch.channels_last)
    if fabric.world_size > 1:
        bare = synchronise_batch_norm(bare)
    optimiser = make_optimiser(bare, settings)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: rate_factor(step / total, settings)
    )
    average = None
    if settings.ema_decay:
        average = AveragedModel(
            bare, multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay), use_buffers=True
        )
    model, optimiser = fabric.setup(bare, optimiser)
    curve: list[dict[str, float]] = []
    parts = {"model": bare, "optimiser": optimiser, "schedule": schedule, "average": average}
    shared = int(settings.mask_start * settings.epochs) if average is None else 0  # epochs
    if checkpoint and checkpoint.is_file():
        curve = _resume(checkpoint, parts, settings, seed)
    if not curve and trunk and trunk.is_file() and shared:
        curve = _branch(trunk, bare, optimiser, schedule)
    masks = [m for m in bare.modules() if isinstance(m, EnergyMask)]
    noise, watched = [mask.noise for mask in masks], [mask.check_nan for mask in masks]
    saved_at = time.perf_counter()
    bar = tqdm(
        total=total,
        initial=len(curve) * len(batches),
        unit="step",
        disable=not progress or fabric.global_rank > 0,
    )
    for epoch in range(len(curve), settings.epochs):
        # Mask noise: the same after a resume, another one in every process.
        torch.manual_seed((seed * 1_000_003 + epoch) * fabric.world_size + fabric.global_rank)
        model.train()
        for mask in masks:  # on a GPU every look at a value waits for all that was asked of it
            mask.check_nan = mask.check_nan and fabric.device.type == "cpu"
        begun, sums = time.perf_counter(), torch.zeros(3, device=fabric.device)
        for step, (x, labels) in enumerate(batches.epoch(epoch), start=epoch * len(batches)):
            ramp = mask_ramp(step / total, settings)
            quiet = step / total >= settings.mask_noise_stop
            for mask, scale in zip(masks, noise, strict=True):
                mask.enabled, mask.noise = ramp is not None, 0.0 if quiet else scale
            if before_step is not None:
                before_step(bare, step / total)
            loss = F.cross_entropy(
                model(x).float(), labels, label_smoothing=settings.label_smoothing
            )
            regulariser = (
                energy_loss(bare) if masks and ramp is not None else torch.zeros_like(loss)
            )
            fabric.backward(loss + (ramp or 0.0) * regulariser)
            optimiser.step()
            optimiser.zero_grad()
            schedule.step()
            if average is not None:
                average.update_parameters(bare)
            sums += torch.stack([loss.detach(), regulariser.detach(), _kept(masks, loss)])
            bar.update()
        reduced = fabric.all_reduce(sums)
        assert isinstance(reduced, Tensor)  # as what was given
        loss, regulariser, kept = (reduced / len(batches)).tolist()
        if not math.isfinite(loss):
            raise ValueError(
                f"the loss of epoch {epoch + 1} is {loss}: choose a lower learning_rate than "
                f"{settings.learning_rate:g}, or look for NaN in the images"
            )
        seconds = time.perf_counter() - begun + (curve[-1]["seconds"] if curve else 0.0)
        row: dict[str, float] = {"epoch": epoch + 1, "steps": step + 1}
        row |= {"loss": loss, "regulariser": regulariser, "kept": kept}
        row |= {"learning_rate": optimiser.param_groups[0]["lr"], "seconds": seconds}
        if after_epoch is not None:
            measured = average.module if average else bare
            for mask in (m for m in measured.modules() if isinstance(m, EnergyMask)):
                mask.enabled = ramp is not None  # the average is a copy with switches of its own
            row |= after_epoch(measured.eval())
        curve.append(row)
        bar.set_postfix(
            {k: f"{v:.3f}" for k, v in row.items() if k in ("loss", "kept", "val_accuracy")}
        )
        if trunk and epoch + 1 == shared and fabric.global_rank == 0:
            _save_trunk(trunk, bare, optimiser, curve)
        due = time.perf_counter() - saved_at >= save_every
        if checkpoint and due and fabric.global_rank == 0:  # last: what goes on lacks nothing
            _save(checkpoint, parts, settings, seed, curve)
            saved_at = time.perf_counter()
    bar.close()
    if average is not None:
        bare.load_state_dict(average.module.state_dict())
    for mask, scale, watch in zip(masks, noise, watched, strict=True):
        mask.enabled, mask.noise, mask.check_nan = True, scale, watch
    bare.eval()
    return curve


def rate_factor(progress: float, settings: TrainSettings) -> float:
    """Learning rate as a factor on the peak at a progress of 0 to 1."""
    if settings.schedule == "cosine":
        return 0.5 + 0.5 * math.cos(math.pi * progress)
    if progress < settings.warm_up:
        return settings.start + (1 - settings.start) * progress / settings.warm_up
    return 1 + (settings.end - 1) * min(1.0, (progress - settings.warm_up) / (1 - settings.warm_up))


def mask_ramp(progress: float, settings: TrainSettings) -> float | None:
    """Weight of L_reg at a progress of 0 to 1; None while masks are off."""
    if progress < settings.mask_start:
        return None
    if settings.mask_ramp == 0:
        return 1.0
    return min(1.0, (progress - settings.mask_start) / settings.mask_ramp)


def make_optimiser(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """One optimiser with a group each for masks, normalisation layers and all other parameters."""
    norms = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
    kinds: dict[str, list[Tensor]] = {"weight": [], "norm": [], "mask": []}
    in_masks = {p for m in model.modules() if isinstance(m, EnergyMask) for p in m.parameters()}
    in_norms = {p for m in model.modules() if isinstance(m, norms) for p in m.parameters()}
    for parameter in model.parameters():
        kind = "mask" if parameter in in_masks else "norm" if parameter in in_norms else "weight"
        if parameter.requires_grad:
            kinds[kind].append(parameter)
    rate, decay, factor = settings.learning_rate, settings.weight_decay, settings.norm_lr_factor
    rates = {"weight": rate, "norm": rate * factor, "mask": rate * settings.mask_lr_factor}
    decays = {"weight": decay, "norm": decay / factor, "mask": settings.mask_weight_decay}
    groups = [
        {"params": parameters, "lr": rates[kind], "weight_decay": decays[kind]}
        for kind, parameters in kinds.items()
        if parameters
    ]
    if settings.optimiser == "adamw":
        return torch.optim.AdamW(groups)
    nesterov = settings.momentum > 0
    return torch.optim.SGD(groups, lr=rate, momentum=settings.momentum, nesterov=nesterov)


def _kept(masks: list[EnergyMask], like: Tensor) -> Tensor:
    """Mean mask of the last pass, 1 where masks are off; a scalar."""
    states = [m.state.mask.detach().mean() for m in masks if m.enabled and m.state]
    return torch.stack(states).mean().to(like) if states else torch.ones_like(like)


def _save(path: Path, parts: dict, settings: TrainSettings, seed: int, curve: list[dict]) -> None:
    states = {name: part.state_dict() for name, part in parts.items() if part is not None}
    save_atomically(
        {"states": states, "settings": asdict(settings), "seed": seed, "curve": curve}, path
    )


def _read(path: Path, *names: str) -> dict | None:
    """What lies in a file under these names; None where it is gone, or damaged and set aside."""
    try:
        saved = checkpoints.load(path)
        return {name: saved[name] for name in names}
    except FileNotFoundError:  # another process has ended the same run
        return None
    except (Damaged, LookupError, TypeError) as error:
        set_aside(path, Damaged(f"{path} is none of a training ({error})"))
        return None


def _resume(path: Path, parts: dict, settings: TrainSettings, seed: int) -> list[dict]:
    """Go on from a checkpoint; nothing is done, and no row returned, where it is damaged."""
    saved = _read(path, "states", "settings", "seed", "curve")
    if saved is None:
        return []
    try:
        if (saved["settings"], saved["seed"]) != (asdict(settings), seed):
            raise ValueError("its settings or its seed are others")
        for name, part in parts.items():
            if part is not None:
                part.load_state_dict(saved["states"][name])
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        advice = "delete it or name another file"
        raise ValueError(f"{path} is a checkpoint of another run: {advice} ({error})") from error
    return saved["curve"]


def _save_trunk(
    path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, curve: list[dict]
) -> None:
    """What networks with another mask, or none, can go on from: nothing of a mask is in it."""
    in_masks = {id(p) for m in model.modules() if isinstance(m, EnergyMask) for p in m.parameters()}
    numbered = [p for group in optimiser.param_groups for p in group["params"]]
    state = optimiser.state_dict()["state"]  # by number; the masks' group is the last
    state = {i: state[i] for i, p in enumerate(numbered) if i in state and id(p) not in in_masks}
    save_atomically({"model": _without_masks(model), "optimiser": state, "curve": curve}, path)


def _branch(
    path: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
) -> list[dict]:
    """Go on from a trunk; masks keep the start they were made with. A damaged one is as none."""
    saved = _read(path, "model", "optimiser", "curve")
    if saved is None:
        return []
    try:
        model.load_state_dict(model.state_dict() | saved["model"])
        optimiser.load_state_dict(optimiser.state_dict() | {"state": saved["optimiser"]})
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is a trunk of another network: delete it ({error})") from error
    curve = saved["curve"]
    schedule.last_epoch = curve[-1]["steps"]
    for group, peak, factor in zip(
        optimiser.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
    ):
        group["lr"] = peak * factor(schedule.last_epoch)
    return [row | {"shared": True} for row in curve]


def _without_masks(model: nn.Module) -> dict[str, Tensor]:
    inside = tuple(f"{n}." for n, m in model.named_modules() if isinstance(m, EnergyMask))
    return {name: v for name, v in model.state_dict().items() if not name.startswith(inside)}
