"""What the notebooks show: pictures, tables, the occluder, the notice."""

import base64
import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from ersm_attach import attach_energy_mask
from ersm_core import energy_states
from ersm_lab.chapters import explorer
from ersm_lab.evaluation.inference import predict
from ersm_lab.images import data
from ersm_lab.networks import backbones
from ersm_lab.results import records
from ersm_lab.views import figures, notices, tables


@pytest.fixture(scope="module")
def images():
    return data.load("shapes", "test", limit=3)


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    dense, masked = backbones.CifarNet(backbones.SMOKE), backbones.CifarNet(backbones.SMOKE)
    attach_energy_mask(masked, "group1", preset="stable", bias_init=0.0)
    return {"dense": dense.eval(), "masked": masked.eval()}


def test_shade_leaves_kept_tokens_and_covers_dropped_ones(images):
    mask = torch.ones(16, 16)
    mask[0, 0] = 0
    shaded = figures.shade(images.images[0], mask)  # (256, 256, 3)
    plain = np.kron(images.images[0].numpy() / 255, np.ones((8, 8, 1)))
    changed = np.abs(shaded - plain).max(2) > 0
    assert changed[:16, :16].mean() > 0.9
    assert not changed[16:, :].any() and not changed[:, 16:].any()


def test_pictures_have_titles_and_units():
    (axis,) = figures.kept_histogram(torch.rand(200, 1, 4, 4)).axes
    assert axis.get_title() and "[%]" in axis.get_xlabel()
    runs = {"dense": [{"curve": [{"epoch": 1, "a": 0.5}]}, {"curve": [{"epoch": 1, "a": 0.7}]}]}
    (axis,) = figures.training_curves(runs, metric="a", label="accuracy [%]").axes
    assert "2 seeds" in axis.get_title() and axis.get_ylabel() == "accuracy [%]"
    assert axis.lines[0].get_ydata() == pytest.approx([60.0])
    plt.close("all")


def test_gallery_has_a_column_an_image(images):
    masks = torch.rand(3, 1, 16, 16)
    _, axes = figures.mask_gallery(images.images, masks, masks - 0.5, ["a", "b", "c"])
    assert axes.shape == (3, 3)
    assert f"{100 * masks[1].mean():.0f} % kept" == axes[2, 1].get_xlabel()
    plt.close("all")


def test_occluder_covers_its_square_and_reaches_every_border(images):
    stops = explorer.occluder_stops(32, 10, 4)
    assert stops[0] == 0 and stops[-1] == 22
    frames = explorer.occluded(images.images[0], side=10, step=4)  # (1 + S * S, 32, 32, 3)
    assert len(frames) == 1 + len(stops) ** 2
    assert torch.equal(frames[0], images.images[0])
    last = frames[-1].clone()
    assert not last[22:, 22:].any()
    last[22:, 22:] = images.images[0][22:, 22:]
    assert torch.equal(last, images.images[0])


def test_explorer_holds_what_the_networks_say(images, networks):
    shown = explorer.occluder_explorer(networks, images, side=16, step=8)
    text = re.search(r'<script type="application/json">(.*?)</script>', shown.html, re.S).group(1)
    content = json.loads(text)
    assert content["networks"] == ["dense", "masked"] and len(content["images"]) == 3
    first = content["images"][0]
    probabilities = np.frombuffer(base64.b64decode(first["probabilities"][1]), np.uint8)
    probabilities = probabilities.reshape(-1, 10)  # (frames, classes)
    assert len(probabilities) == 1 + len(content["stops"]) ** 2
    expected = predict(networks["masked"], images[:1]).softmax(1)[0]
    assert np.abs(probabilities[0] / 255 - expected.numpy()).max() < 0.01
    mask = energy_states(networks["masked"])["group1"].mask[0].flatten()  # (256,)
    bits = np.unpackbits(np.frombuffer(base64.b64decode(first["masks"]), np.uint8))
    assert np.array_equal(bits[:256], mask.numpy())
    assert "__" not in shown.html.replace(text, "")


def test_explorer_wants_one_mask(images, networks):
    with pytest.raises(ValueError, match="exactly one network"):
        explorer.occluder_explorer({"dense": networks["dense"]}, images)


def test_table_escapes_and_aligns():
    table = tables.Table(header=["a", "b"], rows=[["<x>", "1"], ["yy", "22"]], caption="c & d")
    assert "&lt;x&gt;" in table._repr_html_() and "c &amp; d" in table._repr_html_()
    assert str(table).splitlines() == ["c & d", "a    b ", "<x>  1 ", "yy   22"]


def test_percent_shows_mean_and_spread(monkeypatch):
    summary = records.Summary(metric="m", mean=0.5, sd=0.01, n=3, values={}, nulls=())
    monkeypatch.setattr(records, "summarise", lambda group, metric: summary)
    assert tables.percent([], "m") == "50.00 ± 1.00"


def test_paired_subtracts_seed_by_seed(monkeypatch):
    made = {("dense", 0): 0.90, ("dense", 1): 0.92, ("ersm", 0): 0.89, ("ersm", 1): 0.88}

    def read_all(*, method, **_):
        rows = [(seed, value) for (name, seed), value in made.items() if name == method]
        return [{"seed": s, "metrics": {"test_accuracy": v}} for s, v in rows]

    monkeypatch.setattr(records, "read_all", read_all)
    table = tables.paired("test_accuracy", dataset="d", scale="s", methods=["ersm"], base="dense")
    assert table.rows == [["ersm", "-1.00", "-4.00", "-2.50 ± 2.12"]]


def test_missing_metric_is_a_dash():
    assert tables.percent([], "m") == "–"


def test_notice_says_when_shapes_stand_in():
    assert "CIFAR-10." in repr(notices.images_notice("cifar10"))
    stand_in = notices.images_notice("shapes")
    assert stand_in.kind == "warning" and "ERSM_DATA_DIR" in stand_in._repr_html_()
