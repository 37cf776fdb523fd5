"""What networks cost: parameters, counted operations, peak memory, and seconds by the clock.

Counted and measured are different things and stay different columns: an operation that is counted
away need not be saved, and one that nobody counts takes time all the same.

    parameters   all, those that do not train included
    operations   multiply-adds of convolutions and matrix products for one image, from
                 `torch.utils.flop_counter` (it counts a multiply-add as two operations; here it is
                 one). Normalisation, thresholds, masks and sums over neighbours are not counted.
    memory       of one training step: what is held before it (parameters, buffers, state of the
                 optimiser) and the peak of what it allocates on top. On a CPU the peak is that of
                 the allocations that torch's profiler saw, on a GPU `torch.cuda.max_memory_allocated`.
    seconds      of a training step and of an inference pass: every round times each network of a
                 family once, in turn, so that whatever else the machine does falls on all of them.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from ersm_attach import attach_energy_mask
from ersm_core import energy_loss
from ersm_lab.common.timing import side_by_side
from ersm_lab.evaluation.inference import has_mask
from ersm_lab.networks.backbones import SLIM, SMOKE, CifarNet, CifarNetSettings, resnet18
from ersm_lab.networks.sdnet import attach_sparse_coding, sdnet18
from ersm_lab.results import measurements, records
from ersm_lab.training.loop import TrainSettings, best_device, make_optimiser, resolve_precision
from ersm_lab.views.tables import Table

MIB = 2**20
DATASET = "random-images"  # that steps are timed on; it decides no cost


@dataclass(frozen=True, kw_only=True)
class CostSettings:
    """How it is measured.

    Attributes:
        backbone: of the small networks.
        batch: images a step of the small networks.
        resnet_batch: images a step of the ResNets; 0 leaves them out.
        rounds: timed rounds of the small networks.
        resnet_rounds: timed rounds of the ResNets.
        size: side of the images in pixels.
        precision: of training, as in `TrainSettings`; inference has that of the weights.
    """

    backbone: CifarNetSettings = SLIM
    batch: int = 256
    resnet_batch: int = 64
    rounds: int = 15
    resnet_rounds: int = 5
    size: int = 32
    precision: str = "auto"

    def __post_init__(self) -> None:
        for name in ("batch", "rounds", "resnet_rounds", "size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


SETTINGS = {
    "smoke": CostSettings(backbone=SMOKE, batch=16, resnet_batch=0, rounds=3),
    "laptop": CostSettings(),
    "full": CostSettings(batch=512, resnet_batch=256, rounds=30, resnet_rounds=30),
}


def networks(settings: CostSettings, *, seed: int = 0) -> dict[str, dict[str, nn.Module]]:
    """The networks that the book compares, by family; the first of a family is its dense one."""

    def small() -> CifarNet:
        torch.manual_seed(seed)
        return CifarNet(settings.backbone)

    def everywhere(model: CifarNet) -> CifarNet:
        convs = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and n != "stem.0"]
        for layer in convs:
            attach_sparse_coding(model, layer)
        return model

    def half_zero(model: CifarNet) -> CifarNet:
        weights = [(m, "weight") for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        prune.global_unstructured(weights, prune.L1Unstructured, amount=0.5)
        for module, name in weights:
            prune.remove(module, name)
        return model

    families: dict[str, dict[str, nn.Module]] = {
        "ablation": {
            "dense": small(),
            "energy mask after group1": attach_energy_mask(small(), "group1", preset="stable"),
            "sdnet": attach_sparse_coding(small()),
            "sdnet-all": everywhere(small()),
            "dense, half of the weights zero": half_zero(small()),
        }
    }
    if settings.resnet_batch:
        torch.manual_seed(seed)
        families["resnet"] = {
            "resnet18": resnet18(),
            "resnet18, energy mask after layer2": attach_energy_mask(
                resnet18(), "layer2", preset="stable"
            ),
            "sdnet18": sdnet18(),
        }
    return families


def measure(
    settings: CostSettings,
    families: Mapping[str, Mapping[str, nn.Module]] | None = None,
    *,
    device: str | torch.device | None = None,
) -> dict:
    """Count and time networks side by side.

    Args:
        settings: how.
        families: as of `networks`; None is these. They are trained for some steps.
        device: None is a GPU where there is one.

    Returns:
        {family: {"batch", "rounds", "networks": {name: numbers}}}. The numbers: `parameters`;
        `multiply_adds` of one image in inference and `multiply_adds_training` in a training step,
        the backward pass and any power iteration among them; `memory_mib` of a training step and, of
        that, `memory_held_mib` before it; `train_ms` and `inference_ms`, medians over rounds;
        `train_ratio` and `inference_ratio`, medians of the rounds' ratios to the family's first.
    """
    device = torch.device(device or best_device())
    found = {}
    for family, models in (families or networks(settings)).items():
        small = family != "resnet"
        batch = settings.batch if small else settings.resnet_batch
        rounds = settings.rounds if small else settings.resnet_rounds
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(batch, 3, settings.size, settings.size, generator=generator)
        x = x.to(device, memory_format=torch.channels_last)  # (B, 3, H, W)
        labels = torch.randint(10, (batch,), generator=generator).to(device)  # (B,)
        numbers: dict[str, dict[str, float]] = {}
        steps: dict[str, Callable[[], None]] = {}
        passes: dict[str, Callable[[], None]] = {}
        for name, model in models.items():
            model = model.to(device).to(memory_format=torch.channels_last)
            steps[name], held = _training_step(model, x, labels, settings.precision)
            passes[name] = _inference_pass(model, x)
            numbers[name] = {"parameters": sum(p.numel() for p in model.parameters())}
            numbers[name] |= _count(steps[name], passes[name], batch)
            extra, at_rest = peak_bytes(steps[name], device), held()
            numbers[name] |= {
                "memory_mib": (at_rest + extra) / MIB,
                "memory_held_mib": at_rest / MIB,
            }
        for what, variants in (("train", steps), ("inference", passes)):
            seconds = side_by_side(variants, rounds)
            base = seconds[next(iter(seconds))]
            for name, values in seconds.items():
                ratios = [value / other for value, other in zip(values, base, strict=True)]
                numbers[name][f"{what}_ms"] = 1e3 * statistics.median(values)
                numbers[name][f"{what}_ratio"] = statistics.median(ratios)
        found[family] = {"batch": batch, "rounds": rounds, "networks": numbers}
    return found


def record(
    settings: CostSettings | None = None,
    *,
    scale: str = "laptop",
    device: str | torch.device | None = None,
    root: Path | None = None,
) -> dict:
    """Measure, and write what was found as a record; an earlier one of this scale is replaced.

    Args:
        settings: how; None takes those of the scale.
        scale: of `records.SCALES`.
        device: None is a GPU where there is one.
        root: home of the record; None is `records.home()`.

    Returns:
        The record, as written to `data/results/<scale>/random-images/cost/seed0.json`.

    Raises:
        ValueError: an unknown scale.
    """
    if scale not in SETTINGS:
        raise ValueError(f"no scale {scale!r}: choose one of {', '.join(SETTINGS)}")
    settings = settings or SETTINGS[scale]
    device = torch.device(device or best_device())
    precision = resolve_precision(settings.precision, device.type)
    facts = measurements.facts(__file__, device=device, precision=precision)
    begun = time.perf_counter()
    metrics = measure(settings, device=device)
    name, seconds = f"{scale}/{DATASET}/cost/seed0", time.perf_counter() - begun
    return measurements.keep(
        name, facts, settings=settings, metrics=metrics, seconds=seconds, root=root
    )


def multiply_adds(run: Callable[[], None]) -> int:
    """Multiply-adds of the convolutions and matrix products that a call makes."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2


def peak_bytes(run: Callable[[], None], device: torch.device | str = "cpu") -> int:
    """The most that a call holds at once of what it allocates itself, in bytes."""
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        seen.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    events = [event for event in events if event.get("name") == "[memory]"]
    events.sort(key=lambda event: event["ts"])
    held, peak = 0, 0
    owned: set[int] = set()
    for event in events:
        size, address = event["args"]["Bytes"], event["args"]["Addr"]
        if size < 0 and address not in owned:
            continue  # it was there before
        (owned.add if size > 0 else owned.discard)(address)
        held += size
        peak = max(peak, held)
    return peak


def _training_step(
    model: nn.Module, x: Tensor, labels: Tensor, precision: str
) -> tuple[Callable[[], None], Callable[[], int]]:
    """A whole training step (forward, backward, optimiser), and the bytes that are held between two."""
    settings = TrainSettings(epochs=1, learning_rate=1e-3, norm_lr_factor=1.0)
    optimiser = make_optimiser(model, settings)
    low = resolve_precision(precision, x.device.type) == "bf16-mixed"
    masked = has_mask(model)

    def step() -> None:
        model.train()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=low):
            loss = F.cross_entropy(model(x).float(), labels)
            loss = loss + energy_loss(model) if masked else loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        if x.is_cuda:
            torch.cuda.synchronize()

    def held() -> int:
        states = [v for state in optimiser.state.values() for v in state.values()]
        tensors = [*model.parameters(), *model.buffers(), *states]
        storages = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for t in tensors
            if isinstance(t, Tensor)
        }
        return sum(storages.values())

    return step, held


def _inference_pass(model: nn.Module, x: Tensor) -> Callable[[], None]:
    def run() -> None:
        model.eval()
        with torch.no_grad():
            model(x)
        if x.is_cuda:
            torch.cuda.synchronize()

    return run


def _count(step: Callable[[], None], run: Callable[[], None], batch: int) -> dict[str, float]:
    run()  # finds the step size of sparse codes, which is kept as long as the weights are
    forward = multiply_adds(run)
    step()  # makes the optimiser's state
    return {
        "multiply_adds": forward / batch,
        "multiply_adds_training": multiply_adds(step) / batch,
    }


# --- the table -------------------------------------------------------------------------------------


def table(family: str, *, scale: str) -> Table:
    """The costs of one family from the newest record of the method "cost" at this scale."""
    found = records.read_all(scale=scale, method="cost")
    if not found:
        hint = f"`python benchmarks/cost.py --scale {scale} --record`"
        return Table(header=HEADER, rows=[], caption=f"Cost at {scale} scale: not yet run: {hint}")
    newest = max(found, key=lambda r: r["created"])
    if family not in newest["metrics"]:
        families = ", ".join(newest["metrics"])
        raise ValueError(f"{newest['name']} has no family {family!r}: {families}")
    return drawn(newest["metrics"][family], newest["device"])


HEADER = (
    "network",
    "parameters",
    "counted: M multiply-adds an image, forward",
    "MiB a training step",
    "by the clock: ms a training step",
    "to dense",
    "by the clock: ms an inference pass",
    "to dense",
)


def drawn(part: Mapping, device: Mapping) -> Table:
    """One family of what `measure` found, on a machine that `records.describe_device` describes."""
    rows: list[Sequence[str]] = [
        [
            name,
            f"{n['parameters']:,}",
            f"{n['multiply_adds'] / 1e6:.1f}",
            f"{n['memory_mib']:.0f}",
            f"{n['train_ms']:.1f}",
            f"{n['train_ratio']:.2f}×",
            f"{n['inference_ms']:.1f}",
            f"{n['inference_ratio']:.2f}×",
        ]
        for name, n in part["networks"].items()
    ]
    return Table(header=HEADER, rows=rows, caption=measured_on(part, device))


def measured_on(part: Mapping, device: Mapping) -> str:
    """Machine and circumstances of one family, as a caption."""
    plural = "s" if device["threads"] != 1 else ""
    threads = f", {device['threads']} thread{plural}" if device["type"] == "cpu" else ""
    words = (
        f"Batches of {part['batch']} on {device['name']}{threads}, training in {device['precision']}; "
        f"medians of {part['rounds']} rounds, all networks in turn"
    )
    if device.get("load") is not None:
        words += f"; load average {device['load']:.1f} on {device['cores']} cores as it began"
    return words
