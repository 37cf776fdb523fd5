"""The card of a trained network: what it does when things are hidden, spoiled, attacked or deleted.

Seven suites of questions, each with its own settings at every scale and its own record:

    occlusion   accuracy behind a square: sizes, places and fills
    corruption  accuracy under the corruptions of CIFAR-10-C, every kind at every severity
    resolution  accuracy at a lower resolution
    attacks     accuracy under FGSM, PGD and AutoAttack, with the check that gradients can be trusted
    deletion    how well each ranking tells which tokens and pixels the network needs
    objects     whether maps find the object of textured shapes, whose true masks are known
    spurious    accuracy where the background of textured shapes tells the truth and where it lies

and three that only some networks are asked, by name:

    smoothing   accuracy on images that were simplified, as `smoothing_suite` does it
    lambda      accuracy of a sparse code whose lambda is chosen three ways, as `lambda_suite` does it
    lambda-choice   the same four ways, with statistics to match, as `lambda_choice` does it

`evaluate` asks a network; `judge` asks the trained network of an experiment one suite and writes its
record, so that a card can be interrupted and goes on, and a change of what one suite uses, or of its
settings, makes no other one stale.

Accuracy under a condition is that of the same images under all conditions of a suite, the first so
many of the test set. Which of them are classified rightly is kept for every condition, so that two
networks can be compared image by image: `answers_by_condition`.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ersm_core import EnergyMask
from ersm_lab.common.files import write_whole
from ersm_lab.evaluation import deletion as token_deletion
from ersm_lab.evaluation import (
    deletion_insertion,
    inference,
    lambda_choice,
    lambda_suite,
    object_masks,
    rankings,
    smoothing_suite,
)
from ersm_lab.evaluation.inference import evaluating, replaced_mask
from ersm_lab.images import data as lab_data
from ersm_lab.images import perturbations, shapes
from ersm_lab.images.data import ImageSet
from ersm_lab.results import answer_bits, records, standing
from ersm_lab.results.provenance import code_of
from ersm_lab.training import experiments, runs
from ersm_lab.training.config import Experiment
from ersm_lab.training.loop import best_device

KEPT_FROM = 5_000  # images: so many are not perturbed anew for every network
BATCH = {"cpu": 250, "cuda": 2_500}  # images a pass; more leave the caches of a small machine
# Whose tokens are ranked where no mask says which: of a CifarNet, of a ResNet-18.
LAYERS = ("group1", "layer2")


# --- settings --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Occlusion:
    """Every size at every place with every fill, as `perturbations.occlude` explains them.

    Attributes:
        images: the first so many; None is all.
        sizes: sides in pixels.
        positions, fills: of `perturbations.POSITIONS` and `FILLS`. When sliding, each image is
            seen at one place, its neighbour at the next.
        seed: of places, noise and patches.
    """

    images: int | None
    sizes: tuple[int, ...] = perturbations.OCCLUDERS
    positions: tuple[str, ...] = perturbations.POSITIONS
    fills: tuple[str, ...] = perturbations.FILLS
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """Every kind at every severity, as `perturbations.corrupt` makes them.

    Attributes:
        images: the first so many; None is all.
        kinds: of `perturbations.KINDS`.
        severities: 1 to 5.
        seed: of everything drawn by lot.
    """

    images: int | None
    kinds: tuple[str, ...] = perturbations.KINDS
    severities: tuple[int, ...] = perturbations.SEVERITIES
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """Images shrunk and enlarged again.

    Attributes:
        images: the first so many; None is all.
        sizes: pixels a side.
    """

    images: int | None
    sizes: tuple[int, ...] = perturbations.LOW_RESOLUTIONS


@dataclass(frozen=True, kw_only=True)
class Attacks:
    """As `attacks.AttackSettings`, whose defaults these are.

    Attributes:
        images: the first so many; None is all.
        levels: largest change of a pixel, in grey levels of 255.
        attacks, surrogates, pgd_steps, apgd_steps, targets, square_queries, batch_size, seed: of
            that class.
    """

    images: int | None
    levels: tuple[int, ...] = (2, 4, 8)
    attacks: tuple[str, ...] = ("fgsm", "pgd", "autoattack")
    surrogates: tuple[str, ...] = ("soft", "bpda")
    pgd_steps: int = 20
    apgd_steps: int = 100
    targets: int = 9
    square_queries: int = 5_000
    batch_size: int = 200
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Deletion:
    """All rankings, by the paper's test and by the three published conventions.

    Attributes:
        images: the first so many, for the paper's test (`deletion`: least important tokens first,
            from a mask of ones, accuracy; a second mask stays as it is); None is all.
        curve_images: of these the first so many, for deletion and insertion of tokens and pixels
            (`deletion_insertion`: most important first, probability).
        unit_images: of these the first so many, for conventions that step one unit at a time.
        fractions: of the tokens deleted in the paper's test.
        layers: whose tokens are ranked in a network without a mask: the first of these it has.
        seed: of the random ranking.
    """

    images: int | None
    curve_images: int
    unit_images: int
    fractions: tuple[float, ...] = token_deletion.FRACTIONS
    layers: tuple[str, ...] = LAYERS
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Objects:
    """Maps of the network and controls against the true objects, by `object_masks`.

    Attributes:
        images: the first so many; None is all.
        layers: as in `Deletion`.
        seed: of the random map.
    """

    images: int | None
    layers: tuple[str, ...] = LAYERS
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Spurious:
    """The same objects on marked backgrounds that tell their class, that lie, and on unmarked ones.

    Attributes:
        images: so many are drawn; those are used whose background lies where it is drawn by lot,
            about nine in ten.
        layers: as in `Deletion`.
    """

    images: int
    layers: tuple[str, ...] = LAYERS


# At laptop scale the images are so many that a network's card takes less than 15 minutes on two cores.
PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "occlusion": Occlusion(images=100, sizes=(4, 12, 20)),
        "corruption": Corruption(images=50, severities=(1, 3, 5)),
        "resolution": Resolution(images=200),
        "attacks": Attacks(
            images=20, pgd_steps=5, apgd_steps=5, targets=2, square_queries=20, batch_size=20
        ),
        "deletion": Deletion(images=40, curve_images=4, unit_images=1),
        "objects": Objects(images=100),
        "spurious": Spurious(images=100),
        "smoothing": smoothing_suite.SUITES["smoke"],
        "lambda": lambda_suite.SUITES["smoke"],
        "lambda-choice": lambda_choice.SUITES["smoke"],
    },
    "laptop": {
        "occlusion": Occlusion(images=2_500),
        "corruption": Corruption(images=2_000),
        "resolution": Resolution(images=10_000),
        "attacks": Attacks(images=200),
        "deletion": Deletion(images=500, curve_images=100, unit_images=10),
        "objects": Objects(images=1_000),
        "spurious": Spurious(images=2_000),
        "smoothing": smoothing_suite.SUITES["laptop"],
        "lambda": lambda_suite.SUITES["laptop"],
        "lambda-choice": lambda_choice.SUITES["laptop"],
    },
    "full": {
        "occlusion": Occlusion(images=None),
        "corruption": Corruption(images=None),
        "resolution": Resolution(images=None),
        "attacks": Attacks(images=1_000, levels=(2, 4), batch_size=1_000),
        "deletion": Deletion(images=2_000, curve_images=200, unit_images=20),
        "objects": Objects(images=None),
        "spurious": Spurious(images=10_000),
        "smoothing": smoothing_suite.SUITES["full"],
        "lambda": lambda_suite.SUITES["full"],
        "lambda-choice": lambda_choice.SUITES["full"],
    },
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a suite found.

    Attributes:
        metrics: plain numbers, for a record.
        conditions: names, in order; a condition's accuracy is the metric `accuracy.<its name>`.
        right: bool (conditions, N), which images are classified rightly; None without conditions.
        stated: what a record's config says besides the settings.
        seconds: that it took.
    """

    metrics: dict
    conditions: tuple[str, ...] = ()
    right: Tensor | None = None
    stated: dict = field(default_factory=dict)
    seconds: float = 0.0


# --- accuracy under conditions ---------------------------------------------------------------------


def occlusion(
    model: nn.Module, data: ImageSet, settings: Occlusion, *, progress: bool = False
) -> Finding:
    """Conditions "clean" and "<position>.<fill>.<size>".

    `mean` is over all but "clean" (`occluded`), and over those of each position, fill and size.
    """
    grid = _occlusions(settings)
    groups = {"occluded": [_name(place) for place in grid]}
    for part in range(3):
        for value in dict.fromkeys(place[part] for place in grid):
            groups[str(value)] = [_name(place) for place in grid if place[part] == value]
    bar = _bar("occlusion", len(grid) + 1, progress)
    return _under(model, data, _occluded(data, settings), groups, bar=bar)


def _occlusions(settings: Occlusion) -> list[tuple[str, str, int]]:
    places = (settings.positions, settings.fills, settings.sizes)
    return list(itertools.product(*places))


def _occluded(data: ImageSet, settings: Occlusion) -> Iterator[tuple[str, Tensor]]:
    yield "clean", data.images
    kept = _Kept.of(data.images)
    for position, fill, size in _occlusions(settings):
        place = {"position": position, "fill": fill, "size": size, "seed": settings.seed}
        name = f"{position}.{fill}.{size}"
        yield name, kept(name, settings.seed, partial(perturbations.occlude, data.images, **place))


def corruption(
    model: nn.Module, data: ImageSet, settings: Corruption, *, progress: bool = False
) -> Finding:
    """Conditions "clean" and "<kind>.<severity>".

    `mean` is over `all` but "clean", over the kinds whose mean is usually reported (`corruptions`,
    `perturbations.CORRUPTIONS`), and over each group of kinds, each kind and each severity.
    """
    grid = list(itertools.product(settings.kinds, settings.severities))
    kinds = {"all": settings.kinds, "corruptions": perturbations.CORRUPTIONS}
    kinds |= perturbations.GROUPS | {kind: (kind,) for kind in settings.kinds}
    groups = {
        name: [_name(place) for place in grid if place[0] in members]
        for name, members in kinds.items()
    }
    for severity in settings.severities:
        groups[str(severity)] = [_name(place) for place in grid if place[1] == severity]
    groups = {name: members for name, members in groups.items() if members}
    bar = _bar("corruption", len(grid) + 1, progress)
    return _under(model, data, _corrupted(data, settings), groups, bar=bar)


def _corrupted(data: ImageSet, settings: Corruption) -> Iterator[tuple[str, Tensor]]:
    yield "clean", data.images
    kept, seed = _Kept.of(data.images), settings.seed
    for kind, severity in itertools.product(settings.kinds, settings.severities):
        make = partial(perturbations.corrupt, data.images, kind, severity, seed=seed)
        yield f"{kind}.{severity}", kept(f"{kind}.{severity}", seed, make)


def resolution(
    model: nn.Module, data: ImageSet, settings: Resolution, *, progress: bool = False
) -> Finding:
    """Conditions "clean" and "<pixels a side>"; `mean` is over all but "clean" (`lower`)."""

    def conditions() -> Iterator[tuple[str, Tensor]]:
        yield "clean", data.images
        for size in settings.sizes:
            yield str(size), perturbations.low_resolution(data.images, size)

    groups = {"lower": [str(size) for size in settings.sizes]}
    bar = _bar("resolution", len(settings.sizes) + 1, progress)
    return _under(model, data, conditions(), groups, bar=bar)


def attacks(
    model: nn.Module, data: ImageSet, settings: Attacks, *, progress: bool = False
) -> Finding:
    """Conditions "clean", "<attack>.<level>" and "worst.<level>", each the worst case over the direct
    attack and the surrogates and over smaller levels; "worst" is over all attacks.

    Metrics beside the accuracies: `intervals` of them, `by_route`, `left_after` each part of
    AutoAttack, `only_by_surrogate`, and `gradients`: see `attacks.AttackReport.summary`.
    """
    from ersm_lab.evaluation import attacks as lab_attacks

    chosen = asdict(settings) | {"images": len(data)}
    levels = {level / 255: str(level) for level in chosen.pop("levels")}
    asked = lab_attacks.AttackSettings(**chosen, epsilons=tuple(levels))
    report = lab_attacks.evaluate_attacks(model, data, asked)
    right = {"clean": report.clean}
    for epsilon, level in levels.items():
        for attack in settings.attacks:
            right[f"{attack}.{level}"] = report.worst(epsilon, attack)
        right[f"worst.{level}"] = report.worst(epsilon)
    found = _accuracies(list(right), torch.stack([*right.values()]), {})
    intervals = {
        name: dict(zip(("low", "high"), report.interval(r), strict=True))
        for name, r in right.items()
    }
    summary = report.summary()
    parts: dict[str, dict] = {"intervals": intervals}
    for part in ("by_route", "left_after", "only_by_surrogate"):
        parts[part] = {
            _name((row["attack"], levels[row["epsilon"]])): row[part] for row in summary["attacks"]
        }
    nested = {part: _nested(values) for part, values in parts.items()}
    metrics = found.metrics | nested | {"gradients": summary["gradients"]}
    return replace(found, metrics=metrics)


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """Perturbed images of a large set, made once for all networks and kept in `data/cache`.

    Attributes:
        folder: where; None for a set so small that it is made each time.
        device: of the images.
    """

    folder: Path | None
    device: torch.device

    @classmethod
    def of(cls, images: Tensor) -> _Kept:
        if len(images) < KEPT_FROM:
            return cls(folder=None, device=images.device)
        code = records.source_hash([perturbations.__file__])[0]
        content = hashlib.sha256(images.cpu().numpy()).hexdigest()
        folder = records.home() / "data" / "cache" / "perturbed" / f"{code[:8]}-{content[:12]}"
        return cls(folder=folder, device=images.device)

    def __call__(self, name: str, seed: int, make: Callable[[], Tensor]) -> Tensor:
        if self.folder is None:
            return make()
        path = self.folder / f"{name}-seed{seed}.npy"
        try:
            return torch.from_numpy(np.load(path)).to(self.device)
        except (OSError, ValueError):  # not there yet, or cut short
            pass
        made, content = make(), io.BytesIO()
        np.save(content, made.cpu().numpy())
        write_whole(path, content.getbuffer())
        return made


def prepare(suite: str, dataset: str, settings: Occlusion | Corruption) -> None:
    """Make the perturbed test images of a suite beforehand, where they are kept; on the CPU."""
    data = lab_data.load(dataset, "test", limit=settings.images)
    for _ in {"occlusion": _occluded, "corruption": _corrupted}[suite](data, settings):
        pass


def _under(
    model: nn.Module,
    data: ImageSet,
    conditions: Iterable[tuple[str, Tensor]],
    groups: Mapping[str, Sequence[str]],
    *,
    bar: Callable[[Iterable], Iterable] = iter,
) -> Finding:
    """Which images are classified rightly under each condition, one after the other."""
    right = {
        name: (_predicted(model, data, images) == data.labels).cpu()
        for name, images in bar(conditions)
    }
    return _accuracies(list(right), torch.stack([*right.values()]), groups)


def _predicted(model: nn.Module, data: ImageSet, images: Tensor) -> Tensor:
    """The class of each of these images, uint8 (N, H, W, 3), in the place of data's, (N,)."""
    low = images.is_cuda  # whose half precision has the mantissa of the TF32 it would take else
    with evaluating(model), torch.autocast(images.device.type, torch.float16, enabled=low):
        batches = replace(data, images=images).inputs(_batch(data))
        return torch.cat([model(x).argmax(1) for x, _ in batches])


def _batch(data: ImageSet) -> int:
    return BATCH[data.images.device.type]


def _accuracies(
    conditions: Sequence[str], right: Tensor, groups: Mapping[str, Sequence[str]]
) -> Finding:
    """Accuracy under each condition, and the mean accuracy of each group of conditions."""
    shares = dict(zip(conditions, right.double().mean(1).tolist(), strict=True))
    metrics = {"images": right.shape[1], "accuracy": _nested(shares)}
    if groups:
        metrics["mean"] = {
            group: sum(shares[name] for name in members) / len(members)
            for group, members in groups.items()
        }
    return Finding(metrics=metrics, conditions=tuple(conditions), right=right)


# --- deletion and insertion ------------------------------------------------------------------------


def deletion(
    model: nn.Module, data: ImageSet, settings: Deletion, *, progress: bool = False
) -> Finding:
    """Every ranking that the network has (`rankings.RANKINGS`), on tokens and on pixels.

    Conditions are "<ranking>.<per cent of the tokens deleted>" of the paper's test, `mean` its area
    under the curve by ranking, higher is better. `area` holds, by unit, convention, game and ranking,
    mean and standard error over images of the area, and how many importance maps are `blank`;
    `minus_random` the same of the difference to the random ranking, image by image. Their curves are
    of `curve_images` or `unit_images`.
    """
    layer = token_layer(model, settings.layers)
    tokens, pixels = _importance(model, data, layer, rankings.RANKINGS, seed=settings.seed)
    right = _least_first(model, data, layer, tokens, settings.fractions)
    groups = {name: [c for c in right if c.startswith(f"{name}.")] for name in tokens}
    found = _accuracies(list(right), torch.stack([*right.values()]), groups)
    area: dict[str, dict] = {}
    minus: dict[str, dict] = {}
    curves = [
        (unit, convention, game)
        for unit in ("token", "pixel")
        for convention in deletion_insertion.CONVENTIONS
        for game in deletion_insertion.GAMES
        if game == "deletion" or convention.insertion_fill is not None
    ]
    for unit, convention, game in _bar("deletion", len(curves), progress)(curves):
        one_by_one = convention.step == ("units", 1)
        count = settings.unit_images if one_by_one else settings.curve_images
        on_tokens = unit == "token"
        areas, blank = {}, {}
        for name, importance in (tokens if on_tokens else pixels).items():
            curve = deletion_insertion.perturbation_curve(
                model,
                data[:count],
                importance[:count],
                game=game,
                convention=deletion_insertion.on_tokens(convention) if on_tokens else convention,
                layer=layer if on_tokens else None,
                batch_size=_batch(data),
            )
            areas[name], blank[name] = curve.auc_by_image, curve.blank  # (N,), number
        place = _name((unit, convention.name, game))
        area[place] = {
            name: object_masks.summary(values) | {"blank": blank[name]}
            for name, values in areas.items()
        }
        minus[place] = {
            name: object_masks.summary(values - areas["random"]) for name, values in areas.items()
        }
    counts = {
        "curve_images": min(settings.curve_images, len(data)),
        "unit_images": min(settings.unit_images, len(data)),
    }
    metrics = found.metrics | counts | {"area": _nested(area), "minus_random": _nested(minus)}
    return replace(found, metrics=metrics, stated={"layer": layer})


def _least_first(
    model: nn.Module,
    data: ImageSet,
    layer: str,
    importance: Mapping[str, Tensor],
    fractions: Sequence[float],
) -> dict[str, Tensor]:
    """The test of `ersm_lab.evaluation.deletion` for several rankings at once, with or without a mask.

    The layers up to the tokens run once. {"<ranking>.<per cent>": bool (N,)}
    """
    stage = rankings.token_stage(model, layer)
    keep = {
        f"{name}.{100 * fraction:g}": token_deletion.keep_masks(maps, fraction)  # (N, h, w)
        for name, maps in importance.items()
        for fraction in fractions
    }
    right: dict[str, list[Tensor]] = {name: [] for name in keep}
    start = 0
    with evaluating(model):
        for x, labels in data.inputs(_batch(data)):
            with replaced_mask(stage, torch.ones_like) if _is_mask(stage) else nullcontext():
                whole = rankings.layer_tokens(model, layer, x)  # (B, C, H, W), nothing masked
            with rankings.rest_of_network(model, layer, x) as rest:
                for name, kept in keep.items():
                    part = kept[start : start + len(x)].to(whole)[:, None]  # (B, 1, h, w)
                    side = whole.shape[2] // part.shape[2]
                    part = part.repeat_interleave(side, 2).repeat_interleave(side, 3)
                    right[name].append(rest(whole * part).argmax(1) == labels)
            start += len(x)
    return {name: torch.cat(parts).cpu() for name, parts in right.items()}


# --- textured shapes -------------------------------------------------------------------------------


def objects(
    model: nn.Module, data: ImageSet, settings: Objects, *, progress: bool = False
) -> Finding:
    """Maps of the network against the true objects, beside maps that know nothing of it.

    The maps are the keep mask, the logit and the energy (of a network with a mask), the token's
    magnitude, Grad-CAM of the predicted class, and the controls of `rankings`. `scores` holds, by map
    and score of `object_masks`, mean and standard error over images and how many are undefined;
    `minus_centre` the same of the difference to the centre prior, image by image, and `mask_minus`
    that of the mask to each map. `keep_everything` is the IoU of a mask of ones.

    `by_image` lists, rounded, the AUC of the logit, Grad-CAM and the centre prior and the IoU of the
    mask and of keeping everything, so that networks can be compared image by image.
    """
    truth = _object_masks(data)
    layer = token_layer(model, settings.layers)
    maps = _pixel_maps(model, data, layer, rankings.CONTROLS, seed=settings.seed)
    scores = _scores(maps, truth)
    everything = object_masks.iou(torch.ones_like(truth).float(), truth)  # (N,)
    metrics = {
        "images": len(data),
        "scores": {
            name: {score: object_masks.summary(values) for score, values in found.items()}
            for name, found in scores.items()
        },
        "keep_everything": object_masks.summary(everything),
        "minus_centre": {
            name: _gap(found, scores["centre"])
            for name, found in scores.items()
            if name != "centre"
        },
    }
    compared = [name for name in ("logit", "grad_cam", "centre") if name in scores]
    by_image = {f"{name}.auc": scores[name]["auc"] for name in compared}
    if "mask" in scores:
        metrics["mask_minus"] = {
            name: _gap(scores["mask"], found) for name, found in scores.items() if name != "mask"
        }
        by_image["mask.iou"] = scores["mask"]["iou"]
    by_image["everything.iou"] = everything
    metrics["by_image"] = _nested({name: _rounded(values) for name, values in by_image.items()})
    return Finding(metrics=metrics, stated={"layer": layer})


def _gap(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict:
    """Of the scores that both maps have, the difference image by image, summarised."""
    shared = [score for score in one if score in other]
    return {score: object_masks.summary(one[score] - other[score]) for score in shared}


def spurious(
    model: nn.Module, data: ImageSet, settings: Spurious, *, progress: bool = False
) -> Finding:
    """Conditions "truth", "lies" and "unmarked": the same objects, on other backgrounds.

    The images are drawn here, with the seed of the test set; of `data` only the normalisation and the
    classes count. `follows_background` is the share of the images with a lying background that are
    taken for the class it stands for. `maps` holds, by condition and map (the keep mask, magnitude
    and Grad-CAM), the shares of `object_masks`: for a mask also how much of either is kept.
    """
    _object_masks(data)
    layer = token_layer(model, settings.layers)
    draws = {
        name: shapes.textured_shapes(
            settings.images,
            seed=lab_data.SHAPES_SEED["test"],
            spurious=share,
            size=data.images.shape[1],
        )
        for name, share in {"truth": 1.0, "lies": 0.0, "unmarked": None}.items()
    }
    kinds = draws["lies"].backgrounds  # (N,)
    lies = kinds != draws["lies"].labels  # (N,)
    right, maps = {}, {}
    for name, made in draws.items():
        images = replace(
            data,
            images=made.images.permute(0, 2, 3, 1).contiguous(),  # (N, H, W, 3)
            labels=made.labels,
            masks=made.masks,
        )[lies].to(data.images.device)
        predicted = _predicted(model, images, images.images)  # (N,)
        right[name] = (predicted == images.labels).cpu()
        if name == "lies":
            follows = (predicted.cpu() == kinds[lies]).double().mean().item()
        scores = _scores(_pixel_maps(model, images, layer, ()), images.masks)
        maps[name] = {
            kind: {
                score: object_masks.summary(values)
                for score, values in found.items()
                if score.endswith(("object", "background"))
            }
            for kind, found in scores.items()
        }
    found = _accuracies(list(right), torch.stack([*right.values()]), {})
    metrics = found.metrics | {"follows_background": follows, "maps": maps}
    return replace(found, metrics=metrics, stated={"layer": layer})


def _scores(maps: Mapping[str, Tensor], truth: Tensor) -> dict[str, dict[str, Tensor]]:
    """{map: {score: (N,)}} of maps (N, H, W); the keep mask's has more scores."""
    return {
        name: (object_masks.mask_scores if name == "mask" else object_masks.saliency_scores)(
            values, truth
        )
        for name, values in maps.items()
    }


def _object_masks(data: ImageSet) -> Tensor:
    if data.masks is None:
        raise ValueError(
            f"where the objects are in {data.name!r} is not known: take a network and images of "
            "textured shapes"
        )
    return data.masks  # (N, H, W)


# --- asked by name only ----------------------------------------------------------------------------


def smoothing(
    model: nn.Module,
    data: ImageSet,
    settings: smoothing_suite.SmoothingSuite,
    *,
    progress: bool = False,
) -> Finding:
    """Conditions and metrics of `smoothing_suite.measure`."""
    return _measured(*smoothing_suite.measure(model, data, settings=settings))


def lambdas(
    model: nn.Module, data: ImageSet, settings: lambda_suite.LambdaSuite, *, progress: bool = False
) -> Finding:
    """Conditions and metrics of `lambda_suite.measure`; the label-free choice sees training images."""
    training = lab_data.load(
        data.name, "train", limit=settings.fit_images, device=data.images.device
    )
    return _measured(*lambda_suite.measure(model, data, training, settings=settings))


def lambdas_chosen(
    model: nn.Module,
    data: ImageSet,
    settings: lambda_choice.LambdaChoice,
    *,
    progress: bool = False,
) -> Finding:
    """Conditions and metrics of `lambda_choice.measure`."""
    training = lab_data.load(
        data.name, "train", limit=settings.fit_images, device=data.images.device
    )
    return _measured(*lambda_choice.measure(model, data, training, settings=settings))


def _measured(metrics: dict, answers: Mapping[str, Tensor]) -> Finding:
    right = torch.stack([*answers.values()]).cpu()  # (conditions, N)
    return Finding(metrics=metrics, conditions=tuple(answers), right=right)


# --- maps ------------------------------------------------------------------------------------------


def token_layer(model: nn.Module, layers: Sequence[str] = LAYERS) -> str:
    """The layer whose tokens are ranked: that of the first mask, else the first of `layers` there is.

    Raises:
        ValueError: no mask and none of the layers.
    """
    there = [*inference.energy_masks(model)] or [
        name for name in layers if name in dict(model.named_modules())
    ]
    if not there:
        raise ValueError(
            f"{type(model).__name__} has no mask and none of the layers {', '.join(layers)}: name "
            "one of its own in the settings"
        )
    return there[0]


def _importance(
    model: nn.Module, data: ImageSet, layer: str, names: Sequence[str], *, seed: int = 0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Importance of tokens, {name: (N, h, w)}, and of pixels, {name: (N, H, W)}.

    Maps of tokens are stretched to pixels; what knows pixels by itself ranks them by itself.
    """
    size = tuple(data.images.shape[1:3])
    stage = rankings.token_stage(model, layer)
    if not _is_mask(stage):
        names = [name for name in names if name not in (*rankings.ENERGIES, "magnitude_masked")]
    of_tokens = [name for name in names if name != "integrated_gradients"]
    tokens = rankings.rank_tokens(model, data, layer, names=of_tokens, seed=seed)
    grid = next(iter(tokens.values())).shape[1:]
    own = {
        "random": lambda: token_deletion.random_ranking((len(data), *size), seed=seed),
        "centre": lambda: token_deletion.centre_prior(*size).expand(len(data), *size),
        "edges": lambda: rankings.edge_strength(data, size),
        "integrated_gradients": lambda: rankings.integrated_gradients(model, data, size),
    }
    pixels = {
        name: own[name]() if name in own else deletion_insertion.resize(tokens[name], size)
        for name in names
    }
    if "integrated_gradients" in names:
        tokens["integrated_gradients"] = rankings.on_grid(pixels["integrated_gradients"], grid)
    return {name: tokens[name] for name in names}, pixels


def _is_mask(stage: nn.Module) -> bool:
    return isinstance(stage, EnergyMask) and stage.enabled


def _pixel_maps(
    model: nn.Module, data: ImageSet, layer: str, controls: Sequence[str], *, seed: int = 0
) -> dict[str, Tensor]:
    """What is held against the objects, {name: (N, H, W)}; with controls also the mask's energies."""
    names = ["magnitude", "grad_cam", *controls]
    if controls:
        names = ["logit", "energy", "magnitude", "magnitude_masked", "grad_cam", *controls]
    maps: dict[str, Tensor] = {}
    masks = inference.look(model, data)[1]
    if layer in masks:
        size = tuple(data.images.shape[1:3])
        maps["mask"] = object_masks.to_pixels(masks[layer], size, smooth=False)
    return maps | _importance(model, data, layer, names, seed=seed)[1]


# --- the whole card --------------------------------------------------------------------------------

SUITES: dict[str, Callable[..., Finding]] = {
    "occlusion": occlusion,
    "corruption": corruption,
    "resolution": resolution,
    "attacks": attacks,
    "deletion": deletion,
    "objects": objects,
    "spurious": spurious,
    "smoothing": smoothing,
    "lambda": lambdas,
    "lambda-choice": lambdas_chosen,
}
UNDER_CONDITIONS = ("occlusion", "corruption", "resolution")  # accuracies, and no gradients
ON_SHAPES = ("objects", "spurious")  # need true object masks
BY_NAME = ("smoothing", "lambda", "lambda-choice")  # of chapters 8 and 9; not on everyone's card


def suites_of(dataset: str) -> tuple[str, ...]:
    """The suites of a network's card on a data set."""
    left_out = BY_NAME if dataset.startswith("shapes") else (*BY_NAME, *ON_SHAPES)
    return tuple(suite for suite in SUITES if suite not in left_out)


def evaluate(
    model: nn.Module,
    data: ImageSet,
    *,
    suites: Sequence[str] | None = None,
    scale: str = "laptop",
    settings: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> dict[str, Finding]:
    """Ask a trained network several suites.

    Args:
        model: the network; it is left as it was.
        data: test images, on the device of the model.
        suites: of `SUITES`; None is the whole card, all that the data can be asked but `BY_NAME`.
        scale: whose settings of `PRESETS` are taken.
        settings: {suite: settings} that take precedence.
        progress: show bars.

    Returns:
        {suite: what it found}.

    Raises:
        ValueError: an unknown suite or scale, or a suite that needs true object masks without them.
    """
    if suites is None:
        suites = suites_of("shapes" if data.masks is not None else "")
    chosen = {suite: _settings(suite, scale, settings) for suite in suites}
    found = {}
    for suite, asked in chosen.items():
        begun = time.perf_counter()
        finding = SUITES[suite](model, data[: asked.images], asked, progress=progress)
        found[suite] = replace(finding, seconds=time.perf_counter() - begun)
    return found


def judge(
    experiment: Experiment,
    suite: str,
    *,
    settings: Any = None,
    root: Path | None = None,
    networks: Path | None = None,
    restore: Callable[[Experiment, dict], nn.Module] | None = None,
    probe: dict | None = None,
    progress: bool = True,
) -> dict:
    """Ask the trained network of an experiment one suite and write what it found as a record.

    Args:
        experiment: whose network; it has a current record and a checkpoint.
        suite: of `SUITES`.
        settings: of the suite; None takes those of the experiment's scale.
        root: home of the record that is written; None is `records.home()`.
        networks: home of the experiment's record and checkpoint; None is `root`.
        restore: (experiment, record) -> its trained network; None is `experiments.restore`.
        probe: what its probes give today, for the record (`standing`).
        progress: show bars.

    Returns:
        The record, as written to `data/results/<scale>/<dataset>/<method>.<suite>/seed<seed>.json`.

    Raises:
        RecordNotFound: the experiment has no current record with a checkpoint.
        ValueError: an unknown suite, or one that the data set cannot be asked.
    """
    asked = _settings(suite, experiment.scale, {suite: settings} if settings else None)
    if suite not in (*suites_of(experiment.dataset), *BY_NAME):
        raise ValueError(
            f"{suite} needs true object masks, which {experiment.dataset} has not: choose one of "
            f"{', '.join(suites_of(experiment.dataset))}"
        )
    root = Path(root) if root else records.home()
    networks = Path(networks) if networks else root
    network = _network(experiment, networks)
    if network is None:
        raise records.RecordNotFound(
            f"{experiment.name} has no current record with a checkpoint in "
            f"{records.results_dir(networks)}: make one with `python -m ersm_lab run "
            f"{experiment.name}`, and set checkpoint=True in its row of methods.py if it has none"
        )
    restore = restore or partial(experiments.restore, root=networks, progress=progress)
    model = restore(experiment, network)
    device = torch.device(best_device())
    low = device.type == "cuda" and suite in UNDER_CONDITIONS
    facts = records.provenance(
        code_of(__file__),
        device=device,
        precision="16-mixed" if low else "32-true",
    )
    facts["device"] |= runs.beside()
    begun = time.perf_counter()
    test = lab_data.load(experiment.dataset, "test", limit=asked.images, device=device)
    loaded = time.perf_counter() - begun
    (finding,) = evaluate(
        model.to(device),
        test,
        suites=[suite],
        settings={suite: asked},
        progress=progress,
    ).values()
    stated = finding.stated | {"conditions": list(finding.conditions)}
    record = facts | {
        "name": judgement_name(experiment, suite),
        "method": f"{experiment.method}.{suite}",
        "dataset": experiment.dataset,
        "scale": experiment.scale,
        "seed": experiment.seed,
        "config": _config(experiment, asked, network) | stated,
        "metrics": finding.metrics,
        "tolerance": _tolerance(suite, finding.metrics),
        "curve": [],
        "answers": None if finding.right is None else answer_bits.pack(finding.right.flatten()),
        "seconds": {"train": 0.0, "load": loaded, "judge": finding.seconds},
        "probe": probe,
        "checkpoint": None,
    }
    records.write(record, root=root)
    return record


def judgement_name(experiment: Experiment, suite: str) -> str:
    """The name of a judgement's record."""
    place = f"{experiment.scale}/{experiment.dataset}"
    return f"{place}/{experiment.method}.{suite}/seed{experiment.seed}"


def valid_judgement(
    experiment: Experiment,
    suite: str,
    *,
    settings: Any = None,
    root: Path | None = None,
    networks: Path | None = None,
) -> dict | None:
    """The record of a suite if it still stands, else None: see `why_not`."""
    record = records.find(judgement_name(experiment, suite), root=root)
    if record is None:
        return None
    asked = {"settings": settings, "networks": networks or root}
    return None if why_not(experiment, suite, record, **asked) else record


def why_not(
    experiment: Experiment,
    suite: str,
    record: Mapping,
    *,
    settings: Any = None,
    networks: Path | None = None,
) -> str:
    """Why a suite's record no longer stands; empty where it does.

    Its settings are today's, its code behaves as it did (`standing`), and it was made of the weights
    that the experiment's own record has, which stands as well. Arguments as of `judge`.
    """
    found = standing.of(record)
    if found.state == standing.STALE:
        return found.why
    network = _network(experiment, networks)
    if network is None:
        return f"{experiment.name}, which was asked, has no record that stands"
    if record["config"].get("checkpoint_sha256") != network["checkpoint"]["sha256"]:
        return f"{experiment.name} has other weights today than those that were asked"
    wanted = _settings(suite, experiment.scale, {suite: settings} if settings else None)
    stated = ("judged", "checkpoint_sha256", "conditions", "layer")
    asked = {name: value for name, value in record["config"].items() if name not in stated}
    off = records.settings_off(asked, wanted)
    return "its settings have changed: " + "; ".join(off[:3]) if off else ""


def answers_by_condition(record: Mapping) -> dict[str, Tensor]:
    """Which images a judged network classified rightly, {condition: bool (N,)}.

    Raises:
        ValueError: a record without conditions.
    """
    names = record["config"].get("conditions")
    if record["answers"] is None or not names:
        raise ValueError(f"{record['name']} holds no answers by condition")
    count = record["metrics"]["images"]
    right = answer_bits.unpack(record["answers"], len(names) * count).view(len(names), count)
    return dict(zip(names, right, strict=True))


# --- the small print -------------------------------------------------------------------------------


def _network(experiment: Experiment, home: Path | None) -> dict | None:
    record = experiments.valid_record(experiment, root=home)
    return record if record and record["checkpoint"] else None


def _config(experiment: Experiment, settings: Any, network: Mapping) -> dict:
    """What must be the same for a judgement to count."""
    of = {"judged": experiment.name, "checkpoint_sha256": network["checkpoint"]["sha256"]}
    return records.plain(settings) | of


def _settings(suite: str, scale: str, given: Mapping[str, Any] | None) -> Any:
    if suite not in SUITES:
        raise ValueError(f"no suite {suite!r}: choose of {', '.join(SUITES)}")
    if given and suite in given:
        return given[suite]
    if scale not in PRESETS:
        raise ValueError(f"no scale {scale!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[scale][suite]


def _tolerance(suite: str, metrics: Mapping) -> dict[str, float]:
    """Of a re-run elsewhere: a hundredth, or three images; attacks are chaotic and have three."""
    near = max(0.03 if suite == "attacks" else 0.01, 3 / metrics["images"])
    stated = {name: near for name in ("accuracy", "mean", "scores", "follows_background")}
    return {name: value for name, value in stated.items() if name in metrics}


def _name(parts: Iterable) -> str:
    return ".".join(map(str, parts))


def _nested(values: Mapping[str, Any]) -> dict:
    """{"a.b": 1} -> {"a": {"b": 1}}."""
    tree: dict = {}
    for name, value in values.items():
        *path, last = name.split(".")
        branch = tree
        for part in path:
            branch = branch.setdefault(part, {})
        branch[last] = value
    return tree


def _rounded(values: Tensor) -> list[float | None]:
    return [round(value, 4) if value == value else None for value in values.tolist()]


def _bar(title: str, total: int, progress: bool) -> Callable[[Iterable], Iterable]:
    return partial(tqdm, desc=title, total=total, disable=not progress)
