"""One run of the published protocol: a mask and a linear head on the frozen maps of a trained network.

The setting of the released code of arXiv:2604.06893, on a network of this book. Only `reader` (mask,
average pooling, linear head) trains; the maps are computed once for all runs that share `Maps` and a
backbone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ersm_lab.evaluation import deletion, inference
from ersm_lab.images import data as lab_data
from ersm_lab.results import records
from ersm_lab.results.answer_bits import pack
from ersm_lab.results.provenance import code_of
from ersm_lab.training import protocols
from ersm_lab.training.config import Experiment, PublishedConfig
from ersm_lab.training.loop import TrainSettings, make_fabric, train
from ersm_lab.training.protocols import FeatureSet, PublishedProtocol
from ersm_lab.training.runs import keep, load_state, resume_path

if TYPE_CHECKING:
    from lightning.fabric import Fabric

# Name of an experiment of the same scale, data set and seed -> its network and its record.
Backbone = Callable[[str], tuple[nn.Module, dict]]


def build(experiment: Experiment, backbone: nn.Module, *, classes: int) -> PublishedProtocol:
    """The frozen network with its untrained reader; mask and head start from the experiment's seed."""
    config = experiment.published
    return protocols.published(
        protocols.unpooled(backbone, config.layer),
        config.layer,
        classes=classes,
        masked=config.mask is not None,
        learned_positions=config.learned_positions,
        seed=experiment.seed,
        **(config.mask or {}),
    )


def run(
    experiment: Experiment,
    *,
    backbone: Backbone,
    maps: Maps | None = None,
    probe: dict | None = None,
    root: Path | None = None,
    progress: bool = True,
) -> dict:
    """Train a reader on frozen maps, evaluate and record it. The test set is seen once, at the end.

    Args:
        experiment: what to run; its config is a `PublishedConfig`.
        backbone: finds the network to freeze and its record, which has a checkpoint.
        maps: where its maps are kept, for the next run to find them.
        probe: what its probes give today, for the record (`standing`).
        root: home of the record and the checkpoint; None is `records.home()`.
        progress: show bars.

    Returns:
        The record, as written to `data/results/<name>.json`. Besides what `inference.evaluate`
        measures its metrics hold the published measures of sparsity (`sparsity`) and the accuracy with
        the mask m > 0.5 they suggest, the deletion curves (`deletion_curves`), and of the backbone its
        test accuracy and the start of its checkpoint's SHA-256 (`fingerprint`). The curve begins with
        a row of epoch 0, before any step.
    """
    root = Path(root) if root else records.home()
    config = experiment.published
    fabric = make_fabric(precision=config.train.precision)
    precision = {"precision": str(fabric._precision.precision)}
    facts = records.provenance(code_of(__file__), device=fabric.device.type, **precision)
    frozen, base = backbone(config.backbone)
    begun = time.perf_counter()
    training, validation, test = (maps or Maps()).of(experiment, frozen, base, fabric.device)
    seconds = {"features": time.perf_counter() - begun}
    reader = build(experiment, frozen, classes=len(training.classes)).reader
    resume = resume_path(experiment, facts, root, fingerprint(base))
    curve = fit(
        reader,
        training,
        validation,
        config.train,
        seed=experiment.seed,
        fabric=fabric,
        checkpoint=resume,
        progress=progress,
    )
    begun = time.perf_counter()
    metrics = measure(reader, test, validation=validation, config=config, seed=experiment.seed)
    metrics["backbone"] = {
        "test_accuracy": base["metrics"]["test_accuracy"],
        "fingerprint": fingerprint(base),
    }
    seconds |= {"train": curve[-1]["seconds"], "evaluate": time.perf_counter() - begun}
    found = {"metrics": metrics, "curve": curve, "seconds": seconds}
    found["answers"] = pack(inference.answers(reader, test))
    state = {name: value.cpu().contiguous() for name, value in reader.state_dict().items()}
    record = keep(experiment, facts | found, state=state, probe=probe, root=root)
    resume.unlink(missing_ok=True)
    return record


def fingerprint(backbone_record: dict) -> int:
    """The first 12 hex digits of a network's checkpoint's SHA-256, as a number: metrics are numbers."""
    return int(backbone_record["checkpoint"]["sha256"][:12], 16)


def restore(
    experiment: Experiment, record: dict, *, backbone: Backbone, root: Path | None = None
) -> PublishedProtocol:
    """The frozen network with the trained reader of a record, in evaluation mode on the CPU.

    Raises:
        FileNotFoundError: its checkpoint is not there.
        ValueError: the checkpoint or the backbone is not the one that was recorded.
    """
    state = load_state(record, root=root)
    frozen, base = backbone(experiment.published.backbone)
    if fingerprint(base) != record["metrics"]["backbone"]["fingerprint"]:
        raise ValueError(
            f"{base['name']} is not the backbone that was recorded: re-run {record['name']}"
        )
    model = build(experiment, frozen, classes=len(state["head.bias"]))
    model.reader.load_state_dict(state)
    return model.eval()


# --- maps ------------------------------------------------------------------------------------------


class Maps:
    """Maps of the training, validation and test images by the last backbone they were asked of."""

    def __init__(self) -> None:
        self._key: tuple = ()
        self._maps: tuple[FeatureSet, ...] = ()

    def of(
        self, experiment: Experiment, frozen: nn.Module, base: dict, device: torch.device
    ) -> tuple[FeatureSet, ...]:
        """Training, validation and test maps of an experiment, computed if they are not at hand.

        Args:
            experiment: its data set, layer and numbers of images count.
            frozen: the network.
            base: its record.
            device: where the maps are to live.
        """
        config = experiment.published
        place = (experiment.dataset, fingerprint(base), config.layer, str(device))
        key = (*place, config.train_images, config.test_images)
        if key != self._key:
            self._maps = ()  # make room
            model = build(experiment, frozen, classes=2).to(device)
            limits = {"train": config.train_images, "val": config.test_images}
            limits["test"] = config.test_images
            self._maps = tuple(
                protocols.cache_features(
                    model, lab_data.load(experiment.dataset, split, limit=limit, device=device)
                )
                for split, limit in limits.items()
            )
            self._key = key
        return self._maps


# --- train and measure, also for the maps of image folders -----------------------------------------


def fit(
    reader: nn.Module,
    training: FeatureSet,
    validation: FeatureSet,
    settings: TrainSettings,
    *,
    seed: int,
    fabric: Fabric | None = None,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> list[dict]:
    """Train a reader in place; the curve of `training.train`, with a row of epoch 0 before it.

    Arguments as of `training.train`.
    """
    fabric = fabric or make_fabric(precision=settings.precision)
    reader.to(fabric.device)
    validation = validation.to(fabric.device)
    start = {"epoch": 0, "steps": 0, "seconds": 0.0} | inference.progress(reader, validation)
    curve = train(
        reader,
        training,
        settings,
        seed=seed,
        fabric=fabric,
        after_epoch=lambda model: inference.progress(model, validation),
        checkpoint=checkpoint,
        progress=progress,
    )
    return [start, *curve]


def measure(
    reader: nn.Module,
    test: FeatureSet,
    *,
    validation: FeatureSet | None = None,
    config: PublishedConfig,
    seed: int,
) -> dict:
    """The metrics of a trained reader.

    Args:
        reader: mask, average pooling, linear head.
        test: maps of the test images.
        validation: maps of the validation images.
        config: of the run; `mask` and `deletion` are read.
        seed: of the random ranking.
    """
    metrics = inference.evaluate(reader, test, validation=validation)
    del metrics["test_accuracy_flip"]  # a mirrored map is not the map of a mirrored image
    if config.mask is not None:
        metrics["sparsity"] = sparsity(inference.collect_masks(reader, test))
        with inference.replaced_mask(inference.only_mask(reader), lambda m: (m > 0.5).to(m)):
            metrics["sparsity"]["accuracy_above_half"] = inference.accuracy(reader, test)
    curves = deletion_curves(reader, test, config=config, seed=seed)
    metrics["deletion"] = {
        name: {"auc": curve.auc, "accuracy": list(curve.accuracy)} for name, curve in curves.items()
    }
    return metrics


def sparsity(masks: Tensor) -> dict[str, float]:
    """How the authors' code counts it; masks (N, 1, h, w).

    Returns:
        above_half: share of m > 0.5.
        entropy: of m divided by its sum over the positions, in units of its largest value log(h w),
            mean over images; 1 is a uniform mask of whatever height, 0 a single open token.
    """
    share = masks.flatten(1).double()  # (N, h w)
    share = share / share.sum(1, keepdim=True).clamp_min(torch.finfo(share.dtype).tiny)
    entropy = -torch.xlogy(share, share).sum(1) / math.log(share.shape[1])  # (N,)
    return {
        "above_half": (masks > 0.5).double().mean().item(),
        "entropy": entropy.mean().item(),
    }


def deletion_curves(
    reader: nn.Module, test: FeatureSet, *, config: PublishedConfig, seed: int
) -> dict[str, deletion.DeletionCurve]:
    """Curves by what tokens are ranked: "logit" (highest z first), "energy" (highest e first), "norm"
    (smallest first), "centre" (border first), "random". The first two need a mask, and an energy that
    is not zero everywhere."""
    size = (config.mask or {}).get("patch_size", 1)
    scores = token_scores(reader, test, patch_size=size)  # (N, h, w, K)
    count, height, width = scores.shape[:3]
    ranked: dict[str, Tensor] = {}
    if config.mask is not None:
        mask = inference.only_mask(reader)
        with inference.evaluating(mask):
            states = [mask.compute(x) for x, _ in test.inputs()]
        ranked["logit"] = -torch.cat([state.logit for state in states])[:, 0]  # (N, h, w)
        energy = torch.cat([state.energy for state in states])[:, 0]  # (N, h, w)
        if energy.any():
            ranked["energy"] = -energy
    ranked["norm"] = torch.cat([deletion.token_norms(x, size) for x, _ in test.inputs()])
    ranked["centre"] = deletion.centre_prior(height, width)
    ranked["random"] = deletion.random_ranking((count, height, width), seed=seed)

    def predict(keep: Tensor) -> Tensor:
        kept = torch.einsum("nhwk,nhw->nk", scores, keep.to(scores))  # (N, K)
        return kept + reader.get_parameter("head.bias").detach()

    return {
        name: deletion.deletion_curve(
            predict,
            importance.to(scores.device),
            test.labels,
            fractions=config.deletion.fractions,
        )
        for name, importance in ranked.items()
    }


def token_scores(reader: nn.Module, features: FeatureSet, *, patch_size: int = 1) -> Tensor:
    """What each token, kept whole, adds to the logits: W p_i / (H W), summed over its patch.

    The reader is linear behind its mask, so that its logits are the head's bias plus the sum over
    tokens of mask times this.

    Returns:
        (N, H / s, W / s, classes).
    """
    weight = reader.get_parameter("head.weight").detach()  # (K, C)
    parts = []
    for x, _ in features.inputs():
        patches = F.avg_pool2d(x, patch_size) * patch_size**2  # (B, C, H / s, W / s)
        positions = x.shape[2] * x.shape[3]
        parts.append(patches.movedim(1, -1) @ weight.T / positions)  # (B, H / s, W / s, K)
    return torch.cat(parts)
