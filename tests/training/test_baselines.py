"""The baselines: what they are trained on, what they are made of, and their records."""

import json
from dataclasses import replace

import pytest
import torch

from ersm_lab.evaluation.sparse_lambda import sparse_layers
from ersm_lab.images import data, frequency, inverse_scale
from ersm_lab.images.data import Augment
from ersm_lab.images.smoothed import Smoothing, StagedImages, at_level, staged
from ersm_lab.networks.sparse_coding import SparseCoding2d
from ersm_lab.results import answer_bits, records
from ersm_lab.training import experiments, methods, runs
from ersm_lab.training.build import build
from ersm_lab.training.config import Coding
from ersm_lab.training.loop import TrainSettings

BASELINES = [
    name
    for name, method in methods.METHODS.items()
    if {"smoothing", "coding"} & set(method.parts) or name == "dense-pixels"
]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ERSM_HOME", str(tmp_path))
    return tmp_path


def tiny(method, **changes):
    """A row of the smoke scale, made smaller still."""
    scale = "full" if method.startswith("resnet18") else "smoke"
    rows = methods.experiments_of(scale, dataset="shapes")
    row = next(e for e in rows if e.method == method)
    train = TrainSettings(epochs=2, batch_size=32, precision="32-true")
    sizes = {"train": train, "train_images": 64, "test_images": 48}
    return replace(row, config=replace(row.config, **(sizes | changes)))


def dense():
    return tiny("ablation-dense")


# --- smoothed images -------------------------------------------------------------------------------


def test_a_stage_holds_from_its_start_to_the_next():
    smoothing = Smoothing(stages=((0.0, 0.8), (0.3, 0.6), (0.6, 0.0)))
    levels = [smoothing.level(epoch / 10) for epoch in range(10)]
    assert levels == [0.8] * 3 + [0.6] * 3 + [0.0] * 4


@pytest.mark.parametrize(
    "stages", [(), ((0.1, 0.5),), ((0.0, 0.5), (0.0, 0.2)), ((0.0, 0.5), (1.0, 0.0))]
)
def test_stages_that_leave_epochs_out_are_refused(stages):
    with pytest.raises(ValueError, match="rise from 0 and stay below 1"):
        Smoothing(stages=stages)


def test_every_epoch_is_made_of_the_images_of_its_level():
    images = data.load("shapes", "train", limit=64)
    smoothing = Smoothing(stages=((0.0, 0.9), (0.5, 0.0)))
    every = staged(images, smoothing, epochs=4, progress=False)
    assert every.levels == (0.9, 0.9, 0.0, 0.0)
    settings = dict(batch_size=32, augment=Augment(), seed=3)
    batches, plain = every.batches(**settings), images.batches(**settings)
    assert len(batches) == len(plain) == 2
    flat = replace(images, images=at_level(images.images, 0.9, progress=False))
    for epoch, expected in ((1, flat.batches(**settings)), (2, plain)):
        for (x, labels), (y, right) in zip(
            batches.epoch(epoch), expected.epoch(epoch), strict=True
        ):
            assert torch.equal(x, y) and torch.equal(labels, right)


def test_images_at_a_level_are_the_sparsified_ones_to_half_a_grey_level():
    images = data.load("shapes", "train", limit=8).images
    x = images.permute(0, 3, 1, 2).float() / 255
    found = at_level(images, 0.8, progress=False).permute(0, 3, 1, 2).float() / 255
    expected = inverse_scale.sparsify(x, 0.8).clamp(0, 1)
    assert (found - expected).abs().max() <= 0.5 / 255 + 1e-6
    assert (found - x).abs().max() > 0.02  # something was smoothed
    assert at_level(images, 0.0) is images


def test_the_low_pass_has_the_energy_of_the_sparsified_image():
    images = data.load("shapes", "train", limit=8).images // 2 + 64  # so that nothing is clipped
    x = images.permute(0, 3, 1, 2).float() / 255
    flat, smooth = (
        at_level(images, 0.8, low_pass=low, progress=False).permute(0, 3, 1, 2).float() / 255
        for low in (False, True)
    )
    energy = frequency.retained_energy(x, flat)
    torch.testing.assert_close(frequency.retained_energy(x, smooth), energy, atol=0.01, rtol=0)
    assert (smooth - flat).abs().max() > 0.02


def test_smoothed_images_move_as_a_whole():
    images = data.load("shapes", "train", limit=8)
    every = StagedImages(sets={0.0: images}, levels=(0.0,))
    assert every.to("meta").sets[0.0].images.device.type == "meta"


# --- networks --------------------------------------------------------------------------------------


def test_without_smoothing_or_codes_the_network_is_the_dense_one():
    row = tiny("sdnet", coding=None)
    own, expected = build(row, classes=10), build(dense(), classes=10)
    for name, value in expected.state_dict().items():
        assert torch.equal(own.state_dict()[name], value)


def test_codes_stand_in_place_of_the_first_learned_convolution_or_of_all():
    first = build(tiny("sdnet"), classes=10)
    assert list(sparse_layers(first)) == ["group1.0"]
    every = build(tiny("sdnet-all"), classes=10)
    convs = [m for m in every.modules() if isinstance(m, torch.nn.Conv2d)]
    assert list(sparse_layers(every)) == ["group1.0", "group2.0", "group3.0"]
    assert convs == [every.stem[0]]


def test_a_code_of_pixels_takes_the_image_in_the_first_layer_with_no_relu_after_it():
    model = build(tiny("sdnet-pixels"), classes=10)
    coder = sparse_layers(model)["stem.0"]
    assert (coder.in_channels, coder.out_channels, coder.kernel_size) == (3, 48, (3, 3))
    assert not any(isinstance(m, torch.nn.ReLU) for m in model.stem)
    dense_ = build(tiny("dense-pixels"), classes=10)
    assert not sparse_layers(dense_)
    sizes = [{n: p.shape for n, p in m.named_parameters()} for m in (model, dense_)]
    assert sizes[0] == sizes[1]


def test_the_settings_of_the_codes_reach_the_layer():
    row = tiny("sdnet")
    settings = replace(row.config.coding.settings, steps=3, lambda_l1=0.2)
    model = build(tiny("sdnet", coding=Coding(settings=settings)), classes=10)
    (layer,) = [m for m in model.modules() if isinstance(m, SparseCoding2d)]
    assert layer.settings == settings and layer.lambda_l1 == 0.2


# --- runs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", BASELINES)
def test_a_run_leaves_a_valid_record_and_the_network_that_was_scored(method, home):
    row = tiny(method)
    record = experiments.run(row, progress=False)
    assert experiments.valid_record(row) == json.loads(json.dumps(record))
    names = {path.rpartition("/")[2] for path in record["sources"]}
    assert {"build.py", "loop.py", "inverse_scale.py", "sparse_coding.py"} <= names
    model = experiments.restore(row, record)
    test = data.load("shapes", "test", limit=48)
    right = answer_bits.unpack(record["answers"], 48)
    assert torch.equal(right, experiments.runs.inference.answers(model, test))


def test_smoothing_changes_what_is_learned_and_nothing_else(home):
    plain = experiments.run(tiny("isvs-fixed", smoothing=None), progress=False)
    smooth = experiments.run(tiny("isvs-fixed"), progress=False)
    reference = experiments.run(dense(), progress=False)
    losses = [[row["loss"] for row in r["curve"]] for r in (plain, smooth, reference)]
    assert losses[0] == losses[2] and losses[0] != losses[1]


def test_a_record_without_the_weights_that_are_wanted_is_none(home):
    row = replace(dense(), checkpoint=False)
    experiments.run(row, progress=False)
    assert experiments.valid_record(row) is not None
    assert experiments.valid_record(replace(row, checkpoint=True)) is None
    assert runs.only_cached(records.read(row.name))
