"""The one config: parts that go together, and parts that do not."""

import pytest
import torch

from ersm_lab.evaluation.inference import only_mask
from ersm_lab.evaluation.sparse_lambda import sparse_layers
from ersm_lab.images.smoothed import Smoothing
from ersm_lab.networks.backbones import CifarNetSettings
from ersm_lab.networks.filled_mask import FilledMask
from ersm_lab.training.build import build
from ersm_lab.training.config import Coding, Config, Experiment, MaskPlace
from ersm_lab.training.loop import TrainSettings

NET = CifarNetSettings(widths=(8, 12), depth=1, stem_channels=16)
PLAIN = dict(backbone=NET, train=TrainSettings(epochs=1))
MASK = MaskPlace(layer="group1", preset="stable")
PRUNING = dict(sparsity=0.5, start=0.6, ramp=0.1)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (dict(dropped="mean"), "give a mask, or dropped=None"),
        (dict(**PRUNING, mask=MASK), "leave out mask, norm and coding"),
        (dict(backbone="resnet18", coding=Coding()), r'only layers=\("conv1",\) can be a code'),
    ],
)
def test_parts_that_do_not_go_together_are_an_error_that_says_what_to_do(parts, message):
    with pytest.raises(ValueError, match=message):
        Config(**(PLAIN | parts))


@pytest.mark.parametrize("parts", [dict(start=0.6), dict(sparsity=0.5), dict(after="group1")])
def test_half_of_a_part_is_an_error(parts):
    with pytest.raises(TypeError, match="must be"):
        Config(**(PLAIN | parts))


def test_parts_that_go_together_are_all_in_the_network():
    parts = dict(mask=MASK, dropped="mean", norm="image", after="group1", coding=Coding())
    experiment = Experiment(
        method="all", dataset="shapes", scale="smoke", seed=0, config=Config(**PLAIN, **parts)
    )
    model = build(experiment, classes=10)
    assert isinstance(only_mask(model), FilledMask) and list(sparse_layers(model)) == ["group1.0"]
    assert any(isinstance(layer, torch.nn.GroupNorm) for layer in model.group2)
    assert model(torch.randn(4, 3, 32, 32)).isfinite().all()


def test_a_trained_network_has_nothing_that_only_training_has():
    smoothed = Config(**PLAIN, smoothing=Smoothing(stages=((0.0, 0.6),)), mask=MASK)
    assert smoothed.trained() == Config(**PLAIN, mask=MASK)
    assert Config(**PLAIN, **PRUNING).trained() == Config(**PLAIN)


def test_a_trunk_is_shared_by_what_differs_in_its_mask_alone():
    assert Config(**PLAIN).shares_trunk and Config(**PLAIN, mask=MASK).shares_trunk
    parts = [PRUNING, dict(mask=MASK, dropped="token"), dict(norm="image", after="group1")]
    parts += [dict(coding=Coding()), dict(smoothing=Smoothing(stages=((0.0, 0.6),)))]
    assert not any(Config(**PLAIN, **part).shares_trunk for part in parts)
