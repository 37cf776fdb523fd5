"""The pictures and tables of the inverse scale chapter: what they compute, draw and leave out."""

import base64
import io
import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from PIL import Image

from ersm_lab.chapters import inverse_scale_figures as pictures
from ersm_lab.images import data, inverse_scale
from ersm_lab.images.path_steps import PathSettings
from ersm_lab.results import answer_bits, records, statistics


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


@pytest.fixture
def shapes(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "home", lambda: tmp_path)  # the cache of sparsified images
    return data.load("shapes", "test", limit=3)


# --- the path --------------------------------------------------------------------------------------


def test_contours_lie_where_pixels_differ():
    image = torch.zeros(2, 3, 3)
    image[1, 0, 0] = 1  # one corner, in one channel
    drawn = pictures.contours(image, 4)
    assert drawn.shape == (12, 12, 3) and drawn.dtype == np.uint8
    dark = drawn[..., 0] < 128
    expected = np.zeros((12, 12), bool)
    expected[:4, 3] = expected[3, :4] = True
    assert np.array_equal(dark, expected)
    assert not (pictures.contours(torch.ones(3, 5, 5)) < 255).any()


def test_slider_goes_from_flat_to_the_image(shapes):
    levels = (1.0, 0.8, 0.0)
    shown = pictures.path_slider(shapes[:2], levels=levels, name="path", zoom=3)
    page = BeautifulSoup(shown.html, "html.parser")
    held = json.loads(page.find("script", type="application/json").string)
    assert len(held["frames"]) == 3
    assert held["labels"][0] == "sparsity 1.00, 0 % of the energy"
    assert held["labels"][2] == "sparsity 0.00, 100 % of the energy"
    captions = [span.string for span in page.find(class_="columns").find_all("span")]
    assert captions == [shapes.classes[label] for label in shapes.labels[:2]]
    first, _, last = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(f.partition(",")[2]))).convert("RGB"))
        for f in held["frames"]
    )
    assert first.shape == (2 * 96 + pictures.GAP, 2 * 96 + pictures.GAP, 3)
    assert np.array_equal(last[1:96:3, 1:96:3], shapes.images[0].numpy())
    assert len(np.unique(first[:96, :96].reshape(-1, 3), axis=0)) == 1
    assert (first[96 + pictures.GAP :, :96] == 255).all()


# --- where paths stop ------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", ["shared", "own"])
def test_a_stop_is_where_the_path_stops(channels):
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    settings = PathSettings(channels=channels)
    stop = pictures.stop_at(x, 0.6, settings=settings)
    path = inverse_scale.inverse_scale_path(x, levels=[0.6], settings=settings)
    assert torch.equal(stop.image, path.images[0])
    assert stop.steps == path.steps.double().median()
    values = sum(len(plane.unique()) for image in stop.image for plane in image)
    if channels == "own":
        assert stop.values == values / 2
        assert stop.zeros == pytest.approx(path.sparsity.mean().item())
    else:
        assert stop.values == 3 * sum(len(i.flatten(1).unique(dim=1).T) for i in stop.image) / 2
        assert stop.zeros > path.sparsity.mean()  # not every channel is open where one is
    flat = stop.image.double()
    assert (flat.mean((2, 3)) - stop.u.double().mean((2, 3))).abs().max() < 1e-6


def test_an_open_edge_within_a_piece_is_counted():
    x = torch.zeros(1, 1, 3, 3)
    x[..., 1, 1] = 1  # a bright pixel: its four edges open together, and part it
    assert pictures.stop_at(x, 1 - 4 / 12).within == 0
    x = torch.zeros(1, 1, 2, 6)
    x[0, 0, 0, :3] = 1  # a slit: the open edge between the halves of the upper row
    x[0, 0, 1] = torch.linspace(1, 0, 6)
    stop = pictures.stop_at(x, 1 - 1 / 16)
    assert stop.within == 1 and stop.values == 1


def test_the_graph_table_has_a_row_each(shapes):
    graphs = pictures.graph_table(shapes.images, [0.8, 0.7])
    assert [row[:2] for row in graphs.rows] == [
        [words, level] for level in ("0.8", "0.7") for words in ("one graph", "own graphs")
    ]
    assert all(row[1] == f"{float(row[2]):g}" for row in graphs.rows[1::2])


# --- the suite's records ---------------------------------------------------------------------------


def record(method, seed, share):
    generator = np.random.default_rng([seed, round(100 * share)])
    names = ("plain", "sparsified-60", "resolution-8", "contrast-1", "contrast-3", "pixelate-1")
    names += ("contrast-3+sparsified", "contrast-3+low-pass", "pixelate-1+sparsified")
    answers = {n: torch.from_numpy(generator.random(80) < share) for n in names}
    accuracy = {n: a.double().mean().item() for n, a in answers.items()}
    return {
        "name": f"laptop/cifar10/{method}/seed{seed}",
        "seed": seed,
        "metrics": {"images": 80, "accuracy": accuracy},
        "answers": answer_bits.pack(torch.cat([*answers.values()])),
        "config": {"conditions": list(names)},
    }


@pytest.fixture
def recorded(monkeypatch):
    made = {
        "good.smoothing": [record("good", s, 0.95) for s in range(3)],
        "base.smoothing": [record("base", s, 0.3) for s in range(3)],
    }
    monkeypatch.setattr(records, "read_all", lambda *, method, **_: made.get(method, []))
    return made


def test_conditions_are_grouped(recorded):
    groups = pictures.condition_groups(recorded["good.smoothing"][0])
    assert groups == {
        "plain": ["plain"],
        "sparsified-60": ["sparsified-60"],
        "resolution-8": ["resolution-8"],
        "contrast": ["contrast-1", "contrast-3"],
        "pixelate": ["pixelate-1"],
        "all corruptions": ["contrast-1", "contrast-3", "pixelate-1"],
        "some, as they are": ["contrast-3", "pixelate-1"],
        "some, sparsified first": ["contrast-3+sparsified", "pixelate-1+sparsified"],
        "some, low-pass first": ["contrast-3+low-pass"],
    }


def test_suite_table_takes_the_mean_over_severities(recorded):
    table = pictures.suite_table(["good", "absent"])
    rows = {row[0]: row[1:] for row in table.rows}
    each = [r["metrics"]["accuracy"] for r in recorded["good.smoothing"]]
    means = [100 * (a["contrast-1"] + a["contrast-3"]) / 2 for a in each]
    assert rows["contrast"] == [
        f"{np.mean(means):.1f} ± {np.std(means, ddof=1):.1f}",
        "not yet run",
    ]
    assert rows["seeds"] == ["3", "0"] and "80 test images" in table.caption


def test_differences_are_marked_where_zero_is_outside(recorded):
    table = pictures.suite_differences(["good", "absent"], base="base")
    assert len(table.rows) == 9
    assert all(row[1].endswith("▲") and row[2] == "not yet run" for row in table.rows)
    same = pictures.suite_differences(["base"], base="base")
    assert all(row[1] == "+0.0 (+0.0 to +0.0)" for row in same.rows)


def test_verdicts_are_the_ledgers(recorded):
    row, other = "all corruptions", "some, sparsified first"
    rivals = [
        (("good", row), ("base", row)),
        (("base", other), ("good", row)),
        (("absent", row), ("base", row)),
    ]
    table = pictures.rival_verdicts(rivals)
    assert [r[2] for r in table.rows] == ["reproduced", "not reproduced", pictures.NOT_MADE]
    assert table.rows[1][:2] == [f"base: {other}", f"good: {row}"]
    same = pictures.rival_verdicts([(("good", row), ("good", "contrast"))]).rows[0]
    both = statistics.gap(
        *[recorded["good.smoothing"]] * 2,
        ["contrast-1", "contrast-3", "pixelate-1"],
        base_names=["contrast-1", "contrast-3"],
    )
    assert same[3].startswith(f"{both.mean:+.2f} points") and same[3].endswith("3 seeds")
