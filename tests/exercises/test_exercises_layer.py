"""The checks of chapter 2: its printed solutions are right, and each mistake is named."""

import re
from pathlib import Path

import nbformat
import pytest
import torch
import torch.nn.functional as F

from ersm_lab.exercises import attempt
from ersm_lab.exercises.energy_mask_layer import check_box_agreement, check_topk_gate

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "02_energy_mask_layer.ipynb"
CHECKS = {"agreement_by_box": check_box_agreement, "topk_gate": check_topk_gate}


def cells(kind):
    return [c.source for c in nbformat.read(NOTEBOOK, 4).cells if c.cell_type == kind]


@pytest.mark.parametrize("name", CHECKS)
def test_the_printed_solution_is_right(name):
    blocks = re.findall(r"```python\n(.*?)```", "\n".join(cells("markdown")), re.S)
    (solution,) = (block for block in blocks if f"def {name}(" in block)
    scope = {"torch": torch, "F": F}
    exec(solution, scope)
    assert attempt(scope[name], CHECKS[name]).kind == "right"


@pytest.mark.parametrize("name", CHECKS)
def test_the_page_asks_for_it_and_it_is_open(name):
    (cell,) = (c for c in cells("code") if f"def {name}(" in c)
    assert f"energy_mask_layer.{CHECKS[name].__name__}" in cell
    scope = {}
    exec(cell.partition("\nattempt(")[0], scope)
    assert attempt(scope[name], CHECKS[name]).kind == "open"


# ------------------------------------------------------------------------------- box agreement


def box(p, **settings):
    settings = {"stride": 1, "padding": 1, "divisor_override": 1} | settings
    return F.avg_pool2d(p, 3, **settings)


def rolled(p):
    shifts = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]
    return sum((p * p.roll(shift, (2, 3))).sum(1, keepdim=True) for shift in shifts)


def edges(p):
    cross = torch.tensor([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]]).to(p)
    kernel = cross.expand(p.shape[1], 1, 3, 3)
    return (p * F.conv2d(p, kernel, padding=1, groups=p.shape[1])).sum(1, keepdim=True)


def in_place(p):
    p *= 2
    return p.sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda p: (p * box(p)).sum(1, keepdim=True), "1 too much"),
        (lambda p: (p * (box(p) - p)).sum(1), "shape"),
        (lambda p: None, "NoneType"),
        (rolled, "right inside"),
        (edges, "4 neighbours"),
        (lambda p: (p * box(p, divisor_override=None)).sum(1, keepdim=True), "mean over the box"),
        (
            lambda p: (p * (9 * box(p, divisor_override=None, count_include_pad=False) - p)).sum(
                1, keepdim=True
            ),
            "right inside",
        ),
        (in_place, "work on a copy"),
        (lambda p: p.sum(1, keepdim=True), "it gives"),
        (lambda p: (p * (box(p) - p)).sum(1, keepdim=True) / (1 if len(p) > 1 else 2), "1 x 4"),
        (lambda p: p.no_such_method(), "AttributeError"),
    ],
)
def test_a_wrong_agreement_is_told_why(function, message):
    verdict = attempt(function, check_box_agreement)
    assert verdict.kind == "wrong" and message in verdict.text


# ------------------------------------------------------------------------------------ top-k gate


def topk(z, k, *, largest=False, sign=-1.0, temperature=1.0, through=True):
    chosen = z.flatten(1).topk(k, largest=largest).indices
    hard = torch.zeros_like(z).flatten(1).scatter(1, chosen, 1.0).view_as(z)
    soft = torch.sigmoid(sign * z / temperature)
    return hard + (soft - soft.detach()) if through else hard


def over_the_batch(z, k):
    threshold = z.flatten().kthvalue(len(z) * k).values
    return (z <= threshold).to(z) + 0 * z


def by_threshold(z, k):
    threshold = z.detach().flatten(1).kthvalue(k).values.view(-1, 1, 1, 1)
    soft = torch.sigmoid(-z)
    return (z <= threshold).to(z) + (soft - soft.detach())


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda z, k: topk(z, k, largest=True), "low is kept"),
        (lambda z, k: topk(z, k, through=False), "no gradient passes"),
        (lambda z, k: topk(z, k, sign=1.0), "wrong sign"),
        (lambda z, k: topk(z, k, temperature=2.0), "not that of sigmoid"),
        (lambda z, k: topk(z, max(k - 1, 1)), "images keep"),
        (lambda z, k: torch.sigmoid(-z), "exactly 0 or 1"),
        (lambda z, k: topk(z, k).squeeze(1), "shape"),
        (over_the_batch, "for each image"),
        (by_threshold, "equal logits"),
    ],
)
def test_a_wrong_gate_is_told_why(function, message):
    verdict = attempt(function, check_topk_gate)
    assert verdict.kind == "wrong" and message in verdict.text
