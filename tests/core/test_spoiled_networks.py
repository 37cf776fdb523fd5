"""A network that answers NaN or infinity, or of other classes, has no accuracy and says so."""

import copy

import pytest
import torch
from refusals import MAPS, NET, dense, image_set
from torch import nn

from ersm_lab.evaluation import (
    attacks,
    deletion,
    deletion_insertion,
    inference,
    rankings,
    under_attack,
)
from ersm_lab.networks import backbones


def spoiled(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data.fill_(torch.nan)
    return model


@pytest.mark.parametrize("hole", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "ask",
    [
        lambda model, data: inference.accuracy(model, data),
        lambda model, data: inference.accuracy(model, data, flip=True),
        lambda model, data: inference.predict(model, data),
        lambda model, data: inference.answers(model, data),
        lambda model, data: inference.look(model, data),
        lambda model, data: inference.evaluate(model, data),
        lambda model, data: inference.progress(model, data),
        lambda model, data: under_attack.evaluate_attacks(model, data, attacks.SMOKE),
        lambda model, data: attacks.fgsm(
            attacks.PixelNetwork(model, data), attacks.pixels_of(data), data.labels, epsilon=0.1
        ),
        lambda model, data: attacks.pgd(
            attacks.PixelNetwork(model, data), attacks.pixels_of(data), data.labels, epsilon=0.1
        ),
        lambda model, data: deletion_insertion.perturbation_curve(
            model,
            data,
            torch.rand(32, 32),
            game="deletion",
            convention=deletion_insertion.TORCHCAM,
        ),
        lambda model, data: deletion.deletion_curve(
            lambda keep: model(data.normalise(data.images)), MAPS, data.labels
        ),
        lambda model, data: rankings.grad_cam(model, data, "group1"),
        lambda model, data: rankings.integrated_gradients(model, data, (8, 8)),
    ],
)
def test_a_network_that_answers_nan_has_no_accuracy(ask, hole):
    model = copy.deepcopy(dense())
    model.head.weight.data.fill_(hole)
    with pytest.raises(
        ValueError, match=r"answers NaN or infinity for (\d+) of \1 inputs.*weights"
    ):
        ask(model, image_set())


def test_a_network_of_other_classes_has_no_accuracy():
    with pytest.raises(ValueError, match="network of other classes"):
        inference.accuracy(backbones.CifarNet(NET, classes=2).eval(), image_set())
