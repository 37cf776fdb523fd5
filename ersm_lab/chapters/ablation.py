"""Tables and the picture of the ablation chapter: every row against the dense network, and the grid
of weights against the phases that theory predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn

from ersm_lab.common import checks
from ersm_lab.evaluation.inference import evaluating, only_mask
from ersm_lab.images.data import ImageSet
from ersm_lab.results import records
from ersm_lab.results.claims import CRITERIA, Criteria, accuracy_is_preserved, sparsity_adapts
from ersm_lab.results.statistics import difference, of
from ersm_lab.training import experiments
from ersm_lab.training.methods import experiments_of
from ersm_lab.views import tables
from ersm_lab.views.energy_theory import Landscape
from ersm_lab.views.tables import Table

CORNERS = ("no-energy", "unary-only", "pair-only", "ablation-ersm")
PHASES = {  # phase -> hatch and words
    "keeps": ("", "kept: starts on the kept side of the watershed"),
    "drops from its start": ("//", "dropped: starts on the dropped side"),
    "drops": ("xx", "dropped from every start: no barrier"),
}


def differences(
    methods: Sequence[str], *, base: str, dataset: str = "cifar10", scale: str = "laptop"
) -> Table:
    """Test accuracy minus that of a base method, paired over seeds and test images.

    Args:
        methods: one row each, in this order; those without records say so.
        base: the method that is subtracted.
        dataset, scale: which records.
    """
    dense, rows = of(base, dataset=dataset, scale=scale), []
    for method in methods:
        group = of(method, dataset=dataset, scale=scale)
        common = {r["seed"] for r in group} & {r["seed"] for r in dense}
        if not common:
            rows.append([method, "0", "not recorded yet", "–", "–", "–"])
            continue
        found = difference(group, dense)
        each = ", ".join(f"{gap:+.2f}" for gap in found.by_seed)
        interval = f"{found.low:+.2f} to {found.high:+.2f}"
        apart = "yes" if found.excludes_zero else "no"
        rows.append([method, str(len(common)), f"{found.mean:+.2f}", interval, apart, each])
    header = ["method", "seeds", "difference", "95 % interval", "excludes 0", "seed by seed"]
    caption = f"Test accuracy minus that of {base}, {dataset}, {scale} scale, percentage points"
    return Table(header=header, rows=rows, caption=caption)


def against_own(
    bases: Mapping[str, str], *, dataset: str = "cifar10", scale: str = "laptop"
) -> Table:
    """As `differences`, of methods that are trained in several ways, each against its own network.

    Args:
        bases: method -> the method that is subtracted, trained as it is.
        dataset, scale: which records.
    """
    rows = []
    for method, base in bases.items():
        found = differences([method], base=base, dataset=dataset, scale=scale)
        rows.append([method, base, *found.rows[0][1:]])
    header = ["method", "minus", *found.header[1:]]
    caption = f"Differences in test accuracy, {dataset}, {scale} scale, percentage points"
    return Table(header=header, rows=rows, caption=caption)


def masks(
    methods: Sequence[str], *, within: bool = False, dataset: str = "cifar10", scale: str = "laptop"
) -> Table:
    """Kept share, its spread, and the accuracy with the mask replaced, mean ± sd over seeds, in %.

    `within` adds the mask's standard deviation within an image, in a column of its own.
    """
    spread = {"sd within an image": "mask.within_image_sd"} if within else {}
    return tables.summary(
        {
            "accuracy": "test_accuracy",
            "kept": "mask.kept_fraction",
            **spread,
            "sd between images": "mask.between_images_sd",
            "other image's": "accuracy_with_mask_replaced.other_image",
            "by position": "accuracy_with_mask_replaced.position_mean",
            "ones": "accuracy_with_mask_replaced.ones",
        },
        dataset=dataset,
        scale=scale,
        methods=methods,
    )


def verdicts(
    methods: Sequence[str], *, base: str, dataset: str = "cifar10", scale: str = "laptop"
) -> Table:
    """Claims (a) and (b) for every method under the criteria of `claims`."""
    dense, rows = of(base, dataset=dataset, scale=scale), []
    for method in methods:
        group = of(method, dataset=dataset, scale=scale)
        if not {r["seed"] for r in group} & {r["seed"] for r in dense}:
            rows.append([method, "not recorded yet", "–", "not recorded yet", "–"])
            continue
        a, b = accuracy_is_preserved(group, dense), sparsity_adapts(group)
        rows.append([method, a.outcome, a.reason, b.outcome, b.reason])
    header = ["method", "(a) accuracy preserved", "why", "(b) sparse and adaptive", "why"]
    return Table(header=header, rows=rows, caption=f"{dataset}, {scale} scale")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One pair of weights of the grid and its record, None where there is none."""

    lambda_unary: float
    lambda_pair: float
    method: str
    record: dict | None


def grid(*, seed: int = 0, dataset: str = "cifar10", scale: str = "laptop") -> list[Cell]:
    """Every pair of weights of the grid, with its record of one seed."""
    cells = []
    for experiment in experiments_of(scale, dataset=dataset):
        in_grid = experiment.method in CORNERS or experiment.method.startswith("grid-")
        if not in_grid or experiment.seed != seed:
            continue
        try:
            record = records.read(experiment.name)
        except records.RecordNotFound:
            record = None
        unary, pair = experiments.lambdas(experiment)
        method = experiment.method
        cells.append(Cell(lambda_unary=unary, lambda_pair=pair, method=method, record=record))
    return cells


def median_pair_cost(model: nn.Module, data: ImageSet) -> float:
    """Median over tokens of softplus(agreement), the cost c at lambda_pair = 1, of a masked network.

    Args:
        model: with one energy mask whose lambda_pair is not 0.
        data: images.
    """
    mask = only_mask(model)
    if mask.lambda_pair == 0:
        raise ValueError("the mask has lambda_pair = 0, so its pairwise energy says nothing")
    costs = []
    with evaluating(model):
        for x, _ in data.inputs():
            model(x)
            costs.append(checks.state(mask).pairwise.flatten() / mask.lambda_pair)
    return torch.cat(costs).median().item()


def predicted(
    lambda_unary: float,
    lambda_pair: float,
    *,
    cost: float,
    start: float,
    temperature: float,
    gate: str = "logit",
) -> str:
    """What the regulariser alone does to a token, a key of `PHASES` (chapter 3).

    Args:
        lambda_unary, lambda_pair: the weights.
        cost: softplus(agreement) of the token.
        start: its logit when the mask is switched on.
        temperature: T > 0 of its gate; below 1 there is a barrier for every lambda_unary > 0.
        gate: as in `Landscape`: "straight-through" if the mask is 0 or 1.
    """
    c = lambda_pair * cost
    if c == 0 and lambda_unary == 0:
        return "keeps"  # nothing moves it
    if lambda_unary == 0:
        return "drops"
    landscape = Landscape(lambda_unary=lambda_unary, temperature=temperature, gate=gate)
    if landscape.phase(c) == "drops":
        return "drops"
    ridge = landscape.watershed(c).item()
    return "keeps" if start < ridge else "drops from its start"


def draw_grid(
    cells: Sequence[Cell],
    dense: dict,
    *,
    cost: float,
    start: float,
    temperature: float,
    gate: str = "logit",
) -> Figure:
    """A table of cells: kept share and accuracy lost of each pair of weights, its phase as a hatch.

    Args:
        cells: of `grid`.
        dense: the dense network's record of the same seed.
        cost, start, temperature, gate: as in `predicted`.
    """
    token: dict[str, Any] = {"cost": cost, "start": start, "temperature": temperature, "gate": gate}
    unary = sorted({c.lambda_unary for c in cells})
    pair = sorted({c.lambda_pair for c in cells})
    figure, axis = plt.subplots(figsize=(7.6, 5.0))
    shades = plt.get_cmap("Blues")
    for cell in cells:
        column, row = unary.index(cell.lambda_unary), pair.index(cell.lambda_pair)
        phase = predicted(cell.lambda_unary, cell.lambda_pair, **token)
        hatch, _ = PHASES[phase]
        kept = cell.record["metrics"]["mask"]["kept_fraction"] if cell.record else None
        colour = "white" if kept is None else shades(0.08 + 0.42 * kept)
        box: dict[str, Any] = dict(facecolor=colour, edgecolor="0.55", hatch=hatch, linewidth=0.8)
        axis.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **box))
        text = "not recorded\nyet"
        if cell.record and kept is not None:
            gap = cell.record["metrics"]["test_accuracy"] - dense["metrics"]["test_accuracy"]
            text = f"{100 * kept:.0f} % kept\n{100 * gap:+.1f} points"
        paper = dict(facecolor="white", edgecolor="none", alpha=0.85, boxstyle="round,pad=0.25")
        axis.text(column, row, text, ha="center", va="center", fontsize=9, bbox=paper)
    axis.set(
        title=f"Tokens kept, and accuracy against dense (seed {dense['seed']})",
        xlabel="λ_unary  (dimensionless)",
        ylabel="λ_pair  (dimensionless)",
        xlim=(-0.5, len(unary) - 0.5),
        ylim=(-0.5, len(pair) - 0.5),
    )
    axis.set_xticks(range(len(unary)), [f"{value:g}" for value in unary])
    axis.set_yticks(range(len(pair)), [f"{value:g}" for value in pair])
    axis.grid(False)
    handles = [
        Rectangle((0, 0), 1, 1, facecolor="white", edgecolor="0.55", hatch=hatch, label=words)
        for hatch, words in PHASES.values()
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        title="predicted by the regulariser alone",
        fontsize=8,
        title_fontsize=9,
    )
    return figure


def agreement_with_prediction(
    cells: Sequence[Cell], *, cost: float, start: float, temperature: float, gate: str = "logit"
) -> Table:
    """How many cells of each predicted phase ended with most tokens kept, or most dropped."""
    token: dict[str, Any] = {"cost": cost, "start": start, "temperature": temperature, "gate": gate}
    rows = []
    for phase, (_, words) in PHASES.items():
        chosen = [
            c.record["metrics"]["mask"]["kept_fraction"]
            for c in cells
            if c.record and predicted(c.lambda_unary, c.lambda_pair, **token) == phase
        ]
        if chosen:
            most = sum(kept > 0.9 for kept in chosen)
            spread = f"{100 * min(chosen):.0f} to {100 * max(chosen):.0f} %"
            rows.append([words, str(len(chosen)), str(most), spread])
    header = ["predicted", "cells", "kept above 90 %", "kept, lowest to highest"]
    return Table(header=header, rows=rows, caption="The grid against the prediction")


def search(
    *,
    base: str,
    seed: int = 0,
    criteria: Criteria = CRITERIA,
    dataset: str = "cifar10",
    scale: str = "laptop",
) -> Table:
    """Every recorded mask of one seed by its *validation* accuracy, to choose a setting from.

    Masks of networks that differ from the dense one in more than their mask are left out.

    Args:
        base: the dense network's method.
        seed: of the records; the grid has this one only.
        criteria: of claim (b), on validation images; masks that miss one are not eligible.
        dataset, scale: which records.
    """
    dense = [r for r in of(base, dataset=dataset, scale=scale) if r["seed"] == seed]
    rows = []
    for record in records.read_all(scale=scale, dataset=dataset) if dense else []:
        config, metrics = record["config"], record["metrics"]
        alike = _without_mask(config) == _without_mask(dense[0]["config"])
        if record["seed"] != seed or not alike or "mask" not in metrics["validation"]:
            continue
        mask = metrics["validation"]["mask"]
        other = metrics["validation"]["accuracy_with_mask_replaced"]["other_image"]
        share, differs = mask["kept_fraction"], mask["between_images_sd"]
        gap = 100 * (metrics["val_accuracy"] - dense[0]["metrics"]["val_accuracy"])
        costs = 100 * (metrics["val_accuracy"] - other)
        sparse = share <= criteria.kept and differs >= criteria.between_images
        rows.append((gap, record["method"], share, costs, sparse and costs >= criteria.other_image))
    rows.sort(reverse=True)
    shown = [
        [method, f"{gap:+.2f}", f"{100 * share:.0f} %", f"{costs:.1f}", "yes" if good else "no"]
        for gap, method, share, costs, good in rows
    ]
    header = [
        "method",
        "to dense [points]",
        "kept",
        "other image's mask costs [points]",
        "eligible",
    ]
    return Table(header=header, rows=shown, caption=f"Validation images, seed {seed}, best first")


def _without_mask(config: Mapping) -> dict:
    """A record's settings without those of its mask, and parts that it has not; a judgement's have no
    training."""
    train = {k: v for k, v in config.get("train", {}).items() if not k.startswith("mask_")}
    return {k: v for k, v in config.items() if k != "mask" and v is not None} | {"train": train}


def on_validation(
    methods: Sequence[str], *, base: str, dataset: str = "cifar10", scale: str = "laptop"
) -> Table:
    """Validation accuracy minus that of a base method, over all seeds, and what is kept there.

    The last column, what another image's mask costs in each seed, tells a mask that belongs to its
    image. Arguments as of `differences`. No interval: records hold answers to test images only.
    """
    dense = {r["seed"]: r for r in of(base, dataset=dataset, scale=scale)}
    rows = []
    for method in methods:
        group = [r for r in of(method, dataset=dataset, scale=scale) if r["seed"] in dense]
        if not group:
            rows.append([method, "0", "not recorded yet", "–", "–", "–"])
            continue
        gaps = [
            100 * (r["metrics"]["val_accuracy"] - dense[r["seed"]]["metrics"]["val_accuracy"])
            for r in group
        ]
        seen = [r["metrics"]["validation"] for r in group]
        kept = [100 * found["mask"]["kept_fraction"] for found in seen]
        others = [found["accuracy_with_mask_replaced"]["other_image"] for found in seen]
        costs = [
            100 * (r["metrics"]["val_accuracy"] - other)
            for r, other in zip(group, others, strict=True)
        ]
        each = ", ".join(f"{gap:+.2f}" for gap in gaps)
        cells = [f"{fmean(gaps):+.2f}", each, f"{fmean(kept):.0f} %"]
        cells += [", ".join(f"{cost:.1f}" for cost in costs)]
        rows.append([method, str(len(group)), *cells])
    header = ["method", "seeds", "difference", "seed by seed", "kept"]
    header += ["other image's mask costs [points]"]
    caption = (
        f"Validation accuracy minus that of {base}, {dataset}, {scale} scale, percentage points"
    )
    return Table(header=header, rows=rows, caption=caption)
