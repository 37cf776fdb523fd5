"""The check of chapter 5 knows right from wrong."""

import numpy as np
import pytest

from ersm_lab.exercises import ablation, attempt


def right(a, b):
    return 100 * (a.astype(float) - b).std() / np.sqrt(len(a))


def unpaired(a, b):
    return 100 * np.sqrt(a.var() / len(a) + b.var() / len(b))


def test_a_right_answer_is_right():
    assert ablation.check_paired_error(right) is None
    assert "right" in str(attempt(right, ablation.check_paired_error)).lower()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (unpaired, "independent samples"),
        (lambda a, b: right(a, b) / 100, "in percentage points"),
        (lambda a, b: right(a, b) * np.sqrt(len(a)), "divided by sqrt"),
        (lambda a, b: 1.0, "is not right"),
        (lambda a, b: None, "a number was expected"),
    ],
)
def test_a_wrong_answer_is_told_what_is_wrong(wrong, told):
    assert told in ablation.check_paired_error(wrong)
