"""The checks of the page of tools: right answers pass, each usual mistake is told what it is."""

import pytest
import torch

from ersm_lab.exercises import attempt
from ersm_lab.exercises.judging_tools import check_alike, check_lenders


def lenders(labels):
    by_class = labels.argsort()
    order = torch.empty_like(labels)
    order[by_class] = by_class.roll(labels.bincount().max().item())
    return order


def test_lenders_of_another_class_are_right():
    assert attempt(lenders, check_lenders).kind == "right"


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (lambda labels: torch.arange(len(labels)).roll(1), "the image before"),
        (lambda labels: torch.arange(len(labels)).roll(7), "of their own class"),
        (lambda labels: (labels != labels[:, None]).int().argmax(1), "a permutation"),
        (lambda labels: labels.float(), "whole numbers"),
    ],
)
def test_wrong_lenders_are_told_why(wrong, named):
    assert named in attempt(wrong, check_lenders).text


def alike(low, high, margin):
    if -margin < low and high < margin:
        return "holds"
    return "fails" if low > margin or high < -margin else "open"


def test_alike_within_a_margin_is_right():
    assert attempt(alike, check_alike).kind == "right"


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (lambda low, high, margin: "holds" if low < 0 < high else "fails", "says nothing"),
        (
            lambda low, high, margin: "open" if abs(high) > margin else "fails",
            "a difference is shown",
        ),
        (lambda low, high, margin: "holds" if high < margin else "open", "the other side"),
        (lambda low, high, margin: True, "answer"),
    ],
)
def test_wrong_rules_are_told_why(wrong, named):
    assert named in attempt(wrong, check_alike).text
