"""A training that takes seconds, filmed: the masks of a few images after every epoch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ersm_lab.chapters import collapse
from ersm_lab.common import checkpoints
from ersm_lab.common.checkpoints import save_atomically
from ersm_lab.common.files import Damaged, set_aside
from ersm_lab.evaluation import inference
from ersm_lab.images import data
from ersm_lab.networks.whitening import WhitenedNet
from ersm_lab.results import records
from ersm_lab.results.provenance import code_of
from ersm_lab.training.build import build
from ersm_lab.training.config import Experiment
from ersm_lab.training.loop import make_fabric, train
from ersm_lab.training.methods import experiments_of
from ersm_lab.views import figures

GAP = 6  # pixels between the columns and rows of a frame


@dataclass(frozen=True, kw_only=True)
class Film:
    """One filmed training.

    Attributes:
        method: what was trained.
        images: uint8 (N, 32, 32, 3), the images whose masks were filmed.
        masks: (E, N, 1, h, w), as in a test, after every epoch; 1 while the mask was off.
        curve: of `training.train`, a row an epoch.
        metrics: on unseen images; `test_accuracy`, `mask` and `accuracy_with_mask_replaced` as in a
            record, and the `shares` of `collapse.variance_shares`.
    """

    method: str
    images: Tensor
    masks: Tensor
    curve: list[dict]
    metrics: dict


def shoot(
    method: str,
    *,
    images: int = 5,
    train_images: int = 1_280,
    epochs: int | None = None,
    seed: int = 0,
    change: Callable[[nn.Module], None] | None = None,
) -> Film:
    """Train a method's smallest network on a few textured shapes and film its masks.

    It shows what can happen, not how often: the images are few and easy, the network is tiny. A film
    that was shot before, with the same sources, is taken from `data/cache/films`.

    Args:
        method: of `methods.METHODS`, with an energy mask.
        images: how many are filmed.
        train_images: how many are trained on; a batch is the smoke scale's.
        epochs: how long; None takes 12, or 4 where the environment variable ERSM_SCALE is "smoke".
        seed: of the start, the order and the noise.
        change: what is done to the untrained network first, such as freezing a parameter. Only the
            changes of this module are kept in the cache.

    Raises:
        ValueError: an unknown method, or one without a mask.
    """
    epochs = epochs or (4 if os.environ.get("ERSM_SCALE") == "smoke" else 12)
    rows = experiments_of("smoke", dataset="shapes")
    experiment = next((e for e in rows if e.method == method), None)
    if experiment is None or not experiment.config.mask:
        raise ValueError(f"no method {method!r} with a mask: see methods.METHODS")
    experiment = replace(experiment, seed=seed)
    sizes = [images, train_images, epochs, change.__name__ if change else None]
    place = _place(experiment, sizes)
    keep = change is None or change.__module__ == __name__
    if keep and place.is_file():
        try:
            return Film(**checkpoints.load(place))
        except Damaged as error:
            set_aside(place, error)
    settings = replace(experiment.config.train, epochs=epochs, precision="32-true")
    training = data.load("shapes", "train", limit=train_images)
    fabric = make_fabric(precision=settings.precision)
    unseen = data.load("shapes", "val", limit=640).to(fabric.device)
    model = build(experiment, classes=len(training.classes))
    assert isinstance(model, WhitenedNet)  # as all networks of this list are
    model.whiten(training.normalise(training.images))
    if change:
        change(model)
    filmed = unseen[:images]
    by_epoch: list[Tensor | None] = []

    def after_epoch(network: nn.Module) -> dict[str, float]:
        if inference.only_mask(network).enabled:
            by_epoch.append(inference.collect_masks(network, filmed))  # (N, 1, h, w)
        else:
            by_epoch.append(None)
        return inference.progress(network, unseen)

    curve = train(
        model,
        training,
        settings,
        seed=seed,
        fabric=fabric,
        after_epoch=after_epoch,
        progress=False,
    )
    last = inference.collect_masks(model, filmed)  # (N, 1, h, w)
    masks = [torch.ones_like(last) if m is None else m for m in by_epoch]
    own = inference.collect_masks(model, unseen)  # (640, 1, h, w)
    metrics = {
        "test_accuracy": inference.accuracy(model, unseen),
        "mask": inference.mask_statistics(own, unseen.labels, len(unseen.classes)),
        "accuracy_with_mask_replaced": inference.mask_controls(model, unseen, own),
        "shares": collapse.variance_shares(own),
    }
    film = Film(
        method=method,
        images=filmed.images.cpu(),
        masks=torch.stack(masks).cpu(),
        curve=curve,
        metrics=metrics,
    )
    if keep:
        with suppress(OSError, RuntimeError):  # cannot be written: it is shot again the next time
            save_atomically({f.name: getattr(film, f.name) for f in fields(film)}, place)
    return film


def _place(experiment: Experiment, sizes: list) -> Path:
    """The file of a film, named after all that decides it."""
    code = code_of(__file__)
    decisive = [records.source_hash(code)[0], records.plain(experiment.config), sizes]
    decisive += [experiment.seed, torch.__version__]
    digest = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:12]
    return records.home() / "data" / "cache" / "films" / f"{experiment.method}-{digest}.pt"


def hold_centre(model: nn.Module, *, border: int = 4) -> None:
    """Fix the model's mask by hand to the middle of the map: for `shoot`, a mask that cannot look.

    Args:
        model: with one energy mask after a stage of 16 x 16 tokens; it is changed in place.
        border: so many rows and columns of tokens on each side are dropped.
    """
    mask, side = inference.only_mask(model), 16
    bias = torch.ones(side, side)  # dropped
    bias[border : side - border, border : side - border] = -1.0
    mask.grid, mask.bias = (side, side), nn.Parameter(bias, requires_grad=False)
    mask.weight.data.zero_()
    mask.requires_grad_(False)


def beside(films: list[Film], epoch: int, *, zoom: int = 5) -> np.ndarray:
    """One frame: the images in the first column, then every film's masks, white for 1, black for 0.

    Args:
        films: of the same images.
        epoch: which, from 0; -1 is the last.
        zoom: pixels a token's side takes.

    Returns:
        uint8 (height, width, 3).
    """
    side = films[0].masks.shape[-1] * zoom
    rows = []
    for number, image in enumerate(films[0].images):
        picture = image.cpu().numpy()  # (32, 32, 3)
        pick = np.arange(side) * len(picture) // side  # nearest pixel
        cells = [picture[pick][:, pick]]
        for film in films:
            m = (255 * film.masks[epoch, number, 0]).round().byte().numpy()  # (h, w)
            cells.append(np.kron(m, np.ones((zoom, zoom), np.uint8))[..., None].repeat(3, 2))
        rows.append(figures.beside(cells, gap=GAP, axis=1))
    return figures.beside(rows, gap=GAP, axis=0)
