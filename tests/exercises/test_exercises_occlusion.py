"""The checks of chapter 10 know right from wrong."""

import pytest
import torch
import torch.nn.functional as F

from ersm_lab.exercises import attempt, occlusion


def stays_right(clean, occluded):
    return (clean & occluded).sum() / clean.sum()


def slope(network, pixels, labels):
    x = pixels.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(network(x), labels), x)[0]


def one_step(network, pixels, labels, epsilon):
    return (pixels + epsilon * slope(network, pixels, labels).sign()).clamp(0, 1)


def highest(images):
    z = 1.96
    return z**2 / (images + z**2)


@pytest.mark.parametrize(
    ("answer", "check"),
    [
        (stays_right, occlusion.check_stays_right),
        (one_step, occlusion.check_one_step),
        (highest, occlusion.check_highest),
    ],
)
def test_a_right_answer_is_right(answer, check):
    assert check(answer) is None
    assert attempt(answer, check).kind == "right"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda c, o: o.mean() / c.mean(), "ratio of the two accuracies"),
        (lambda c, o: (c & o).mean(), "a share of all images"),
        (lambda c, o: 100 * stays_right(c, o), "in percent"),
        (lambda c, o: 0.5, "is not right"),
        (lambda c, o: None, "a number was expected"),
    ],
)
def test_a_wrong_share_is_told_what_is_wrong(wrong, told):
    assert told in occlusion.check_stays_right(wrong)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda n, x, y, e: x + e * slope(n, x, y).sign(), "have left 0 to 1"),
        (lambda n, x, y, e: (x - e * slope(n, x, y).sign()).clamp(0, 1), "loss smaller"),
        (lambda n, x, y, e: (x + 100 * slope(n, x, y)).clamp(0, 1), "more than epsilon"),
        (lambda n, x, y, e: x + 1e-3 * e * slope(n, x, y), "not every pixel"),
        (lambda n, x, y, e: x[0], "pixels of shape"),
        (lambda n, x, y, e: None, "pixels of shape"),
    ],
)
def test_a_wrong_step_is_told_what_is_wrong(wrong, told):
    assert told in occlusion.check_one_step(wrong)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda n: 0.0, "does not show"),
        (lambda n: 3 / n, "rule of three"),
        (lambda n: 100 * highest(n), "in percent"),
        (lambda n: 1 / n, "for 20 images"),
        (lambda n: "few", "a number was expected"),
    ],
)
def test_a_wrong_limit_is_told_what_is_wrong(wrong, told):
    assert told in occlusion.check_highest(wrong)
