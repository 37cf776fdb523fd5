"""The checks of chapter 1 know right from wrong, and name the usual mistakes."""

import pytest
import torchvision

from ersm_attach import attach_energy_mask
from ersm_lab.exercises import attempt
from ersm_lab.exercises.quickstart import check_masked_resnet, check_ramp


def resnet(*layers):
    model = torchvision.models.resnet18(num_classes=10)
    for layer in layers:
        attach_energy_mask(model, layer, preset="stable")
    return model


def test_a_mask_after_layer2_is_right():
    assert attempt(lambda: resnet("layer2"), check_masked_resnet).kind == "right"


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (lambda: None, "return the network"),
        (lambda: resnet(), "no mask in it"),
        (lambda: resnet("layer3"), "yours is after layer3"),
        (lambda: resnet("layer1", "layer2"), "nowhere else"),
    ],
)
def test_another_network_is_told_why(wrong, named):
    assert named in attempt(wrong, check_masked_resnet).text


def ramp(progress):
    return min(1.0, max(0.0, (progress - 0.5) / 0.1))


def test_the_ramp_of_the_loop_is_right():
    assert attempt(ramp, check_ramp).kind == "right"


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (lambda p: min(1.0, (p - 0.5) / 0.1), "negative"),
        (lambda p: max(0.0, (p - 0.5) / 0.1), "beyond 1"),
        (lambda p: max(0.0, (p - 0.5) / 0.5), "whole second half"),
        (lambda p: float(p >= 0.5), "at progress 0.5"),
    ],
)
def test_another_ramp_is_told_why(wrong, named):
    assert named in attempt(wrong, check_ramp).text
