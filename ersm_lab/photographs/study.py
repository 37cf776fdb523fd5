"""The runs on photographs, in an order that never chooses on a test image.

    python -m ersm_lab.photographs.study [--set pets3 ...] [--backbone lite0 ...] [STUDY ...]

    coherence  untrained rankings of every layer against the true masks: nothing is trained or chosen
    grid       every setting of `settings.grid` and `ceiling_grid`, judged on validation splits
    final      what `grid` chose, trained on all training images; the test images are seen here
    sign       the pairwise term with either sign (`settings.signs`); nothing is chosen
    closing    pressure with a pattern and without (`settings.closings`), asked for by what `sign` found
    robust     the readers of `final` behind grey squares and on swapped backgrounds
    shapes     coherence in the book's small network on drawn shapes, which has no photographs

One record a study, set and backbone, with all seeds inside:
`laptop/photos-<set>/<backbone>-<study>/seed0`. A record that is there is left as it is, and what a
seed found is kept under data/cache, so that a run may be stopped at any time. Large tensors are made
at every step: with the GLIBC_TUNABLES of the Makefile it takes a quarter of the time.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ersm_lab.common.files import write_whole
from ersm_lab.evaluation import deletion
from ersm_lab.images import data as lab_data
from ersm_lab.photographs import (
    backbones,
    features,
    measures,
    perturbed,
    probe,
    readers,
    sets,
    settings,
)
from ersm_lab.photographs.coherence import neighbour_cosines, shared_part
from ersm_lab.photographs.features import Maps
from ersm_lab.photographs.readers import Setting
from ersm_lab.results import records, statistics
from ersm_lab.results.provenance import code_of
from ersm_lab.training import experiments

STUDIES = ("coherence", "grid", "final", "sign", "closing", "robust")
BACKBONES = ("lite0", "lite1")
GRID_SEEDS, SEEDS = tuple(range(5)), tuple(range(10))
# whose code decides a seed
SOURCES = ("backbones", "features", "measures", "readers", "sets", "settings")

Values = Mapping[int, np.ndarray]  # {seed: (N,)}


def name_of(study: str, dataset: str, backbone: str) -> str:
    """Of a record."""
    return f"laptop/photos-{dataset}/{backbone}-{study}/seed0"


def run(study: str, dataset: str, backbone: str, *, progress: bool = True) -> dict:
    """Run a study of one set and backbone, unless its record is there.

    Args:
        study: of `STUDIES`.
        dataset: of `sets.SETS`.
        backbone: of `backbones.NAMES`.
        progress: show bars.

    Returns:
        The record.

    Raises:
        RecordNotFound: "final" before "grid".
        DataNotFound, WeightsNotFound: no photographs, no weights.
    """
    name = name_of(study, dataset, backbone)
    try:
        return records.read(name)
    except records.RecordNotFound:
        begun = time.perf_counter()
    network = _backbone(backbone)
    kinds = {"coherence": coherence, "grid": grid, "final": final, "sign": sign}
    kinds |= {"closing": closing, "robust": robust}
    config, metrics = kinds[study](dataset, network, progress=progress)
    config = {"weights": network.weights, "image_size": network.image_size, **config}
    return keep(name, config, metrics, seconds=time.perf_counter() - begun)


def keep(name: str, config: dict, metrics: dict, *, seconds: float) -> dict:
    """Write a record of this study, without a curve, answers or weights, and read it."""
    _, dataset, method, _ = name.split("/")
    code = code_of(__file__)
    facts = records.provenance(code, device="cpu", precision="32-true")
    record = {
        **facts,
        "name": name,
        "method": method,
        "dataset": dataset,
        "scale": "laptop",
        "seed": 0,
        "config": config,
        "metrics": _short(metrics),
        "tolerance": {},
        "curve": [],
        "answers": None,
        "seconds": {"train": seconds},
        "probe": probe.take(),
        "checkpoint": None,
    }
    records.write(record)
    return records.read(name)


@functools.lru_cache(maxsize=1)
def _backbone(name: str) -> backbones.Backbone:
    found = backbones.load(name)
    found.network.to(memory_format=torch.channels_last)
    return found


# --- the studies -----------------------------------------------------------------------------------


def coherence(dataset: str, network: backbones.Backbone, *, progress: bool) -> tuple[dict, dict]:
    """AUC of untrained rankings, layer by layer, training and test images together; also of random
    weights. One seed, as nothing is drawn: the interval is over images."""
    photos = sets.find(dataset)
    by_chance = backbones.load(network.name, pretrained=False)
    metrics: dict = {}
    for kind, net in {"pretrained": network, "random weights": by_chance}.items():
        for layer in net.layers:
            if kind == "random weights" and layer != "last":
                continue
            parts = [
                features.cached(photos, part, layer, net, progress=progress)
                for part in ("train", "test")
            ]
            for where, inner in {"all tokens": False, "inner tokens": True}.items():
                found = [measures.untrained(maps[maps.marked], inner=inner) for maps in parts]
                auc = {name: torch.cat([one[name] for one in found]).numpy() for name in found[0]}
                rows = {name: mean({0: value}) for name, value in auc.items()}
                rows["agreement minus norm"] = gap({0: auc["agreement"]}, {0: auc["norm"]})
                rows["agreement minus centre"] = gap({0: auc["agreement"]}, {0: auc["centre"]})
                metrics.setdefault(f"{kind}, {layer}", {})[where] = rows
            metrics[f"{kind}, {layer}"] |= _regions(parts)
    return {"layers": network.layers, "images": "train and test"}, metrics


def _regions(parts: Sequence[Maps]) -> dict:
    """Mean cosines of neighbours, and shared parts, of object and ground."""
    out: dict = {}
    for kind, measure in {
        "cosine": neighbour_cosines,
        "shared": shared_part,
    }.items():
        each = [measure(maps[maps.marked]) for maps in parts]
        found = {name: torch.cat([one[name] for one in each]).double().numpy() for name in each[0]}
        out[kind] = {name: mean({0: value}) for name, value in found.items()}
        out[kind]["object minus ground"] = gap({0: found["object"]}, {0: found["ground"]})
    return out


def grid(dataset: str, network: backbones.Backbone, *, progress: bool) -> tuple[dict, dict]:
    """Mean validation accuracy, loss and mask of every setting over splits."""
    photos = sets.find(dataset)
    maps = features.cached(photos, "train", "last", network, progress=progress)
    metrics, config = {}, {}
    for part, stack in {"grid": settings.grid(), "ceiling": settings.ceiling_grid()}.items():
        some = maps[maps.marked] if part == "ceiling" else maps
        marked = tuple(photo for photo, m in zip(photos.train, maps.marked, strict=True) if m)
        chosen = marked if part == "ceiling" else photos.train
        data = readers.frozen(some, list(stack.values()))

        def judge(seed: int, data=data, some=some, chosen=chosen, stack=stack) -> dict[str, Tensor]:
            rest, held = sets.split(chosen, seed=seed)
            trained = readers.train(
                list(stack.values()), data, classes=len(photos.classes), seed=seed, index=rest
            )
            held_data = readers.Frozen(
                **dict(zip(("tokens", "labels", "on", "price"), data.part(held), strict=True))
            )
            found = measures.outcomes(trained, held_data, some[held], seed=seed)
            return {name: found[name].float().mean(1) for name in ("right", "loss", "kept")}

        each = _seeds(judge, f"{dataset}-{network.name}-{part}", stack, GRID_SEEDS, progress)
        means = {
            name: torch.stack([one[name] for one in each.values()]).mean(0) for name in each[0]
        }
        metrics[part] = {
            name: {
                "accuracy": means["right"][number].item(),
                "loss": means["loss"][number].item(),
                "kept": means["kept"][number].item(),
            }
            for number, name in enumerate(stack)
        }
        config[part] = stack
    return {"settings": config, "seeds": GRID_SEEDS, "split": 0.2}, metrics


def final(dataset: str, network: backbones.Backbone, *, progress: bool) -> tuple[dict, dict]:
    """Test images, once: accuracy, replaced masks, the object, deletion, and the ceiling."""
    told = records.read(name_of("grid", dataset, network.name))["metrics"]
    by_name = settings.grid() | {f"ceiling {n}": s for n, s in settings.ceiling_grid().items()}
    picks = settings.chosen(told["grid"])
    stack = {family: by_name[name] for family, name in picks.items()}
    stack |= {"as released": settings.AS_RELEASED, "as written": settings.AS_WRITTEN}
    ceiling = {
        n: by_name[f"ceiling {pick}"] for n, pick in settings.chosen(told["ceiling"]).items()
    }
    photos = sets.find(dataset)
    train, test = (
        features.cached(photos, part, "last", network, progress=progress)
        for part in ("train", "test")
    )
    classes = len(photos.classes)
    each = _answers(stack, train, test, classes, f"{dataset}-{network.name}-final", progress)
    bound = _answers(
        ceiling,
        train[train.marked],
        test[test.marked],
        classes,
        f"{dataset}-{network.name}-ceiling",
        progress,
    )
    names = list(stack)

    def of(quantity: str, name: str, found=each, names=names) -> Values:
        return {
            seed: one[quantity][names.index(name)].double().numpy() for seed, one in found.items()
        }

    rivals: dict[str, Values] = {
        name: {seed: value.numpy() for seed in SEEDS}
        for name, value in measures.untrained(test).items()
    }
    rivals |= {kind: of(kind, "no mask") for kind in ("class map", "class map, positive")}
    metrics: dict = {"rivals": {name: mean(value) for name, value in rivals.items()}}
    metrics["no mask"] = {
        "accuracy": mean(of("right", "no mask")),
        "deletion": {
            r: mean(of(f"deletion {r}", "no mask"))
            for r in ("norm", "centre", "random", "class map")
        },
    }
    for name in names:
        if name == "no mask":
            continue
        kept = of("kept", name)
        row = {
            "accuracy": mean(of("right", name)),
            "accuracy minus no mask": gap(of("right", name), of("right", "no mask")),
            "kept": mean(kept) | {"most": max(v.mean() for v in kept.values())},
            "kept, sd over images": sum(v.std() for v in kept.values()) / len(kept),
            "cost of another's mask": gap(of("right", name), of("right_other", name)),
            "cost of the middle mask": gap(of("right", name), of("right_middle", name)),
            "auc": mean(of("auc", name)),
            "auc minus": {r: gap(of("auc", name), value) for r, value in rivals.items()},
        }
        if stack[name].pool == "mean":
            shown = ("logit", "norm", "centre", "random", "class map")
            row["deletion"] = {r: mean(of(f"deletion {r}", name)) for r in shown}
            row["deletion logit minus"] = {
                r: gap(of("deletion logit", name), of(f"deletion {r}", name)) for r in shown[1:]
            }
        metrics[name] = row
    own = functools.partial(of, found=bound, names=list(ceiling))
    metrics["ceiling"] = {n: mean(own("right", n)) for n in ceiling}
    metrics["ceiling"]["gain"] = gap(own("right", "true mask"), own("right", "no mask"))
    config = {"settings": stack, "ceiling": ceiling, "chosen": picks, "seeds": SEEDS}
    return config | {"test_images": len(test), "marked": int(test.marked.sum())}, metrics


def sign(dataset: str, network: backbones.Backbone, *, progress: bool) -> tuple[dict, dict]:
    """AUC of -z and accuracy on the test images with either sign, with both poolings."""
    stack = settings.signs()
    names = list(stack)
    photos = sets.find(dataset)
    train, test = (
        features.cached(photos, part, "last", network, progress=progress)
        for part in ("train", "test")
    )
    task = f"{dataset}-{network.name}-sign"
    each = _answers(stack, train, test, len(photos.classes), task, progress, more=False)

    def of(quantity: str, name: str) -> Values:
        return {
            seed: one[quantity][names.index(name)].double().numpy() for seed, one in each.items()
        }

    metrics: dict = {"no mask": {"accuracy": mean(of("right", "no mask"))}}
    half = {seed: np.full(len(test), 0.5) for seed in SEEDS}
    for name in names[1:]:
        pool, _, weight = name.split("/")
        row = {
            "auc": mean(of("auc", name)),
            "auc minus half": gap(of("auc", name), half),
            "accuracy": mean(of("right", name)),
            "accuracy minus no mask": gap(of("right", name), of("right", "no mask")),
            "kept": mean(of("kept", name)),
        }
        if weight != "0":
            row["auc minus lambda 0"] = gap(of("auc", name), of("auc", f"{pool}/none/0"))
            row["auc minus unary"] = gap(of("auc", name), of("auc", f"{pool}/unary/{weight}"))
        metrics[name] = row
    config = {"settings": stack, "seeds": SEEDS, "test_images": len(test)}
    return config | {"marked": int(test.marked.sum())}, metrics


def closing(dataset: str, network: backbones.Backbone, *, progress: bool) -> tuple[dict, dict]:
    """AUC of -z on the test images under pressure without a pattern, and what it should close first."""
    stack = settings.closings()
    names = list(stack)
    photos = sets.find(dataset)
    train, test = (
        features.cached(photos, part, "last", network, progress=progress)
        for part in ("train", "test")
    )
    task = f"{dataset}-{network.name}-closing"
    each = _answers(stack, train, test, len(photos.classes), task, progress, more=False)

    def of(name: str) -> Values:
        return {seed: one["auc"][names.index(name)].double().numpy() for seed, one in each.items()}

    middle = readers.mean_token(train.tokens.float().flatten(2).transpose(1, 2))
    metrics: dict = {
        name: mean({0: value.numpy()})
        for name, value in measures.closed_first(test, middle).items()
    }
    half = {seed: np.full(len(test), 0.5) for seed in SEEDS}
    for name in names:
        origin, form, weight = name.split("/")
        metrics[name] = {"auc": mean(of(name)), "auc minus half": gap(of(name), half)}
        if form != "none":
            metrics[name]["auc minus lambda 0"] = gap(of(name), of(f"{origin}/none/0"))
            metrics[name]["auc minus constant"] = gap(of(name), of(f"{origin}/constant/{weight}"))
    config = {"settings": stack, "seeds": SEEDS, "test_images": len(test)}
    return config | {"marked": int(test.marked.sum())}, metrics


ASKED = ("no mask", "sparse", "released", "open", "attention", "hard")  # of claims (c) and (f)


def robust(dataset: str, network: backbones.Backbone, *, progress: bool) -> tuple[dict, dict]:
    """Accuracy under perturbations of the test images, of readers trained as in `final`.

    A grey square is seen by all images, its place on the object and a swapped ground by those that
    have a true mask.
    """
    told = records.read(name_of("grid", dataset, network.name))["metrics"]
    picks = settings.chosen(told["grid"])
    stack = {family: settings.grid()[picks[family]] for family in ASKED}
    chosen = list(stack.values())
    photos = sets.find(dataset)
    train = features.cached(photos, "train", "last", network, progress=progress)
    data = readers.frozen(train, chosen)
    trained = {
        seed: readers.train(chosen, data, classes=len(photos.classes), seed=seed)
        for seed in tqdm(SEEDS, desc=f"{dataset}-{network.name}-robust", disable=not progress)
    }
    right = _perturbed_answers(trained, photos, network, progress=progress)
    metrics: dict = {}
    marked = right.pop("marked")
    for condition, some in {
        "random squares": slice(None),
        "squares on the object": marked,
        "swapped ground": marked,
        "clean, marked": marked,
    }.items():
        values = {
            name: {seed: right[condition][seed][number][some] for seed in SEEDS}
            for number, name in enumerate(stack)
        }
        metrics[condition] = {name: {"accuracy": mean(value)} for name, value in values.items()}
        for name in ASKED[1:]:
            metrics[condition][name]["minus no mask"] = gap(values[name], values["no mask"])
    return {"settings": stack, "seeds": SEEDS, "sizes": perturbed.SIZES}, metrics


def _perturbed_answers(
    trained: Mapping[int, readers.Readers],
    photos: sets.PhotoSet,
    network: backbones.Backbone,
    *,
    progress: bool,
) -> dict:
    """{condition: {seed: (K, N)}}, the mean over the sizes of squares, and which images are marked."""
    size = network.image_size
    pictures = torch.stack([features.picture(photo, size) for photo in photos.test])  # (N, 3, S, S)
    shares = [features.true_shares(photo, photos.name, size) for photo in photos.test]
    on, off = torch.stack(shares).nan_to_num(0).bool().unbind(1)  # (N, S, S)
    labels = torch.tensor([photo.label for photo in photos.test])  # (N,)
    marked = on.flatten(1).any(1) & off.flatten(1).any(1)  # (N,)
    where = marked.nonzero()[:, 0]
    jobs: list[tuple[str, Callable[[Tensor, Tensor], Tensor]]] = [
        (name, functools.partial(perturbed.occluded, size=share, place=place))
        for name, place in {"random squares": "random", "squares on the object": "object"}.items()
        for share in perturbed.SIZES
    ]
    swap = perturbed.swapped(pictures[marked], on[marked], off[marked], labels[marked])
    jobs.append(
        ("swapped ground", lambda pictures, on: pictures.clone().index_copy(0, where, swap))
    )
    jobs.append(("clean, marked", lambda pictures, on: pictures))
    found: dict = {}
    for name, change in tqdm(jobs, desc=f"{photos.name}, perturbed", disable=not progress):
        changed = change(pictures, on)
        tokens = torch.cat(
            [
                network.maps(features.normalised(part, network))["last"].half().float()
                for part in changed.split(32)
            ]
        )  # (N, C, h, w)
        rows = tokens.flatten(2).transpose(1, 2).contiguous()  # (N, T, C)
        for seed, one in trained.items():
            m = one.masks(one.logits(rows), rows.new_zeros(rows.shape[:2]))
            answers = (
                (one.scores(rows, m).argmax(2) == labels[:, None]).double().T.numpy()
            )  # (K, N)
            each = found.setdefault(name, {})
            each[seed] = each.get(seed, 0) + answers
    squares = ("random squares", "squares on the object")
    for name in squares:
        found[name] = {seed: value / len(perturbed.SIZES) for seed, value in found[name].items()}
    return found | {"marked": marked.numpy()}


def on_shapes(*, images: int = 500, seeds: Sequence[int] = (0, 1, 2)) -> dict:
    """Coherence layer by layer in `ablation-dense`, trained end to end on drawn textured shapes.

    Args:
        images: of the test split.
        seeds: of the recorded networks.

    Returns:
        The record `laptop/coherence-shapes/ablation-dense/seed0`.
    """
    begun = time.perf_counter()
    test = lab_data.load("shapes", "test", limit=images)
    assert test.masks is not None  # shapes have them
    both = torch.stack([test.masks, ~test.masks], 1).float()  # (N, 2, H, W)
    layers = {name: name for name in ("stem", "group1", "group2", "group3")}
    found: dict[str, dict[str, dict[int, np.ndarray]]] = {}
    for seed in seeds:
        experiment = experiments.find(f"laptop/shapes/ablation-dense/seed{seed}")
        model = experiments.restore(experiment, records.read(experiment.name))
        net = backbones.Backbone(name="small", network=model, layers=layers, image_size=32)
        for layer, tokens in net.maps(test.normalise(test.images)).items():
            size = (tokens.shape[2], tokens.shape[3])
            on, off = F.adaptive_avg_pool2d(both, size).unbind(1)  # (N, h, w)
            maps = Maps(tokens=tokens, labels=test.labels, on=on, off=off)
            told = measures.untrained(maps)
            told |= {f"cosine, {name}": value for name, value in neighbour_cosines(maps).items()}
            told |= {f"shared, {name}": value for name, value in shared_part(maps).items()}
            for name, value in told.items():
                found.setdefault(layer, {}).setdefault(name, {})[seed] = value.double().numpy()
    metrics = {
        layer: {name: mean(values) for name, values in ranked.items()}
        for layer, ranked in found.items()
    }
    config = {"network": "laptop/shapes/ablation-dense", "seeds": tuple(seeds), "images": images}
    name = "laptop/coherence-shapes/ablation-dense/seed0"
    return keep(name, config, metrics, seconds=time.perf_counter() - begun)


# --- seeds -----------------------------------------------------------------------------------------


def _answers(
    stack: Mapping[str, Setting],
    train: Maps,
    test: Maps,
    classes: int,
    task: str,
    progress: bool,
    *,
    more: bool = True,
) -> dict[int, dict[str, Tensor]]:
    """What readers trained on all training images say of the test images, each (K, N), by seed."""
    chosen = list(stack.values())
    data, asked = readers.frozen(train, chosen), readers.frozen(test, chosen)
    untrained = {
        "norm": test.tokens.float().square().sum(1).sqrt(),
        "centre": deletion.centre_prior(*test.on.shape[1:]).expand_as(test.on),
    }

    def answer(seed: int) -> dict[str, Tensor]:
        trained = readers.train(chosen, data, classes=classes, seed=seed)
        middle = measures.middle_mask(trained, data)
        found = measures.outcomes(trained, asked, test, seed=seed, middle=middle)
        if not more:
            return found
        random = deletion.random_ranking(tuple(test.on.shape), seed=seed)
        z = torch.cat([trained.logits(part) for part in asked.tokens.split(256)])  # (N, T, K)
        rows: dict[str, list[Tensor]] = {}
        for number in range(len(chosen)):
            by_class = measures.class_map(trained, asked, number).view_as(test.on)
            rows.setdefault("class map", []).append(measures.token_auc(by_class, test.on, test.off))
            positive = measures.token_auc(by_class.relu(), test.on, test.off)
            rows.setdefault("class map, positive", []).append(positive)
            ranked = untrained | {"random": random, "class map": by_class}
            ranked["logit"] = -z[:, :, number].reshape(test.on.shape)
            for name, ranking in ranked.items():
                rows.setdefault(f"deletion {name}", []).append(
                    measures.deleted(trained, asked, number, ranking)
                )
        return found | {name: torch.stack(values).float() for name, values in rows.items()}

    return _seeds(answer, task, stack, SEEDS, progress)


def _seeds(
    work: Callable[[int], dict[str, Tensor]],
    task: str,
    stack: Mapping[str, Setting],
    seeds: Sequence[int],
    progress: bool,
) -> dict[int, dict[str, Tensor]]:
    """What each seed found; kept under data/cache, so that a stopped run goes on with the next seed."""
    from safetensors.torch import load_file, save  # of the extra `photographs`

    lab = Path(__file__).parent
    code, _ = records.source_hash([lab / f"{name}.py" for name in SOURCES])
    told = json.dumps([code, records.plain(dict(stack))])
    digest = hashlib.sha256(told.encode()).hexdigest()[:12]
    folder = records.home() / "data" / "cache" / "photographs" / "seeds"
    found = {}
    for seed in tqdm(seeds, desc=task, unit="seed", disable=not progress):
        path = folder / f"{task}-{digest}-{seed}.safetensors"
        if not path.is_file():
            write_whole(path, save({k: v.contiguous() for k, v in work(seed).items()}))
        found[seed] = load_file(path)
    return found


# --- numbers for a record --------------------------------------------------------------------------


def mean(values: Values) -> dict:
    """Mean in percent with its 95 % interval, and the seeds' own; images without a value left out."""
    found = statistics.paired(
        values, {seed: np.zeros(len(value)) for seed, value in values.items()}
    )
    out = {"mean": found.mean, "low": found.low, "high": found.high}
    return out | ({"by_seed": list(found.by_seed)} if len(found.seeds) > 1 else {})


def gap(method: Values, base: Values) -> dict:
    """Mean paired difference in percentage points with its 95 % interval."""
    found = statistics.paired(method, base)
    return {"mean": found.mean, "low": found.low, "high": found.high}


def _short(value):
    """Numbers to five digits: a record is read by people too."""
    if isinstance(value, Mapping):
        return {key: _short(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_short(part) for part in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value.item() if hasattr(value, "item") else value


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("studies", nargs="*", default=STUDIES, metavar="STUDY", help=str(STUDIES))
    parser.add_argument("--set", nargs="+", default=sets.SETS, choices=sets.SETS, dest="sets")
    parser.add_argument("--backbone", nargs="+", default=BACKBONES, choices=backbones.NAMES)
    options = parser.parse_args(arguments)
    if "shapes" in options.studies:
        on_shapes()
    for study in (name for name in options.studies if name != "shapes"):
        for backbone in options.backbone:
            for dataset in options.sets:
                record = run(study, dataset, backbone)
                print(f"{record['name']}: {record['seconds']['train']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
