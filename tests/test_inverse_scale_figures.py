"""The pictures and tables of the inverse scale chapter: what they compute, draw and leave out."""

import base64
import io
import json
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from PIL import Image
from torch import nn

from ersm_lab.chapters import inverse_scale_figures as pictures
from ersm_lab.evaluation import smoothing_suite
from ersm_lab.images import data, inverse_scale
from ersm_lab.images.inverse_scale import PathSettings
from ersm_lab.results import records
from ersm_lab.training import experiments


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


@pytest.fixture
def shapes(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "home", lambda: tmp_path)  # the cache of sparsified images
    return data.load("shapes", "test", limit=3)


# --- when an edge opens ----------------------------------------------------------------------------


@pytest.mark.parametrize("nu", [0.05, 2.0])
def test_opening_times_have_their_limits(nu):
    found, theory = pictures.opening_times([1, 3, 60], nu=nu, contrast=0.5, kappa=60.0)
    assert theory[0] == pytest.approx((2 + nu) / 0.5)
    assert theory[-1] == pytest.approx(math.sqrt(nu * (4 + nu)) / 0.5, rel=1e-6)
    assert theory[0] > theory[1] > theory[2]
    np.testing.assert_allclose(found, theory, rtol=0.03)  # kappa is finite, steps are discrete


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


# --- edges -----------------------------------------------------------------------------------------


def test_gradient_is_the_length_of_both_differences():
    image = torch.zeros(2, 3, 3)
    image[0] = 3 * torch.arange(3.0)  # grows to the right
    image[1] = 4 * torch.arange(3.0)[:, None]  # and down
    found = pictures.gradient(image)
    assert found[0, 0] == 5 and found[0, 2] == 4 and found[2, 0] == 3 and found[2, 2] == 0


def test_edge_shares_count_strong_and_weak_apart():
    x = torch.zeros(1, 4, 20, 3, dtype=torch.uint8)
    x[:, :, 10:] = 200  # one strong border, 4 of 136 edges, all others flat
    assert pictures.edge_shares(x, x) == (1.0, 1.0)
    faint = x // 2
    strong, weak = pictures.edge_shares(x, faint)
    assert strong == pytest.approx(0.5) and weak == 1.0
    assert pictures.edge_shares(x, torch.full_like(x, 77))[0] == 0
    rough = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    assert pictures.edge_shares(rough, rough) == (1.0, 1.0)


def test_edge_table_compares_at_equal_error(shapes):
    table = pictures.edge_table(shapes.images, [0.7])
    assert [row[1].partition(",")[0] for row in table.rows] == [
        "sparsified",
        "DCT low-pass",
        "Gaussian blur",
    ]
    errors = [float(row[-1]) for row in table.rows]
    assert errors[2] == pytest.approx(errors[0], rel=0.02)
    energies = [float(row[4].rstrip(" %")) for row in table.rows]
    assert energies[1] == pytest.approx(energies[0], abs=2)


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


def test_graph_and_leak_tables_have_a_row_each(shapes):
    graphs = pictures.graph_table(shapes.images, [0.8, 0.7])
    assert [row[:2] for row in graphs.rows] == [
        [words, level] for level in ("0.8", "0.7") for words in ("one graph", "own graphs")
    ]
    assert all(row[1] == f"{float(row[2]):g}" for row in graphs.rows[1::2])
    leaks = pictures.leak_table(shapes.images, [0.8])
    assert leaks.rows[0][3] == graphs.rows[0][4]


# --- the projection's time -------------------------------------------------------------------------


def test_both_ways_of_the_projection_agree():
    times = pictures.projection_times([12, 16], solved=1, repeats=1)
    assert times.gap < 1e-2 and len(times.components) == 2 and len(times.least_squares) == 1
    figure = pictures.draw_projection_times(times)
    assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [2, 1, 2]
    assert figure.axes[0].lines[0].get_xdata().tolist() == [144, 256]
    pixels, line = np.array([144, 256]), figure.axes[0].lines[2].get_ydata()
    np.testing.assert_allclose(line / pixels, line[0] / 144)
    np.testing.assert_allclose(line.prod(), np.prod(times.components))  # between the marks


# --- networks --------------------------------------------------------------------------------------


def test_schedules_say_what_is_trained_on():
    rows = ("ablation-dense", "isvs-iterative", "low-pass")
    known = {m: experiments.find(f"laptop/cifar10/{m}/seed0").config for m in rows}
    table = pictures.schedules(known)
    assert table.rows[0] == ["ablation-dense", "1 to 10", "the images"]
    assert [row[1:] for row in table.rows[1:4]] == [
        ["1 to 3", "sparsity 0.8"],
        ["4 to 6", "sparsity 0.6"],
        ["7 to 10", "the images"],
    ]
    assert table.rows[4][2] == "low-pass with the energy of sparsity 0.6"


class Small(nn.Module):
    """A network with a stage for Grad-CAM."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.group3 = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4, padding=1), nn.ReLU())
        self.head = nn.Linear(4, 10)

    def forward(self, x):
        return self.head(self.group3(x).amax((2, 3)))


def test_networks_are_asked_under_each_condition(shapes):
    names = ["plain", "resolution-8", "contrast-1"]
    figure = pictures.draw_conditions({"one": Small(), "two": Small()}, shapes[:1], names)
    drawn = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title() for axis in drawn] == names
    for axis in drawn:
        words = axis.get_xlabel()
        assert words.count("✓") + words.count("✗") == 2 and "one:" in words and "two:" in words
    np.testing.assert_array_equal(drawn[0].images[0].get_array(), shapes.images[0])


def test_grad_cams_are_drawn_on_one_scale_a_row(shapes):
    figure = pictures.draw_grad_cams({"net": Small()}, shapes[:1], levels=(0.7,))
    titles = [axis.get_title() for axis in figure.axes[:3]]
    assert titles == ["image", "sparsified 0.7", "low-pass 0.7"]
    cams = [axis.images[0] for axis in figure.axes[3:6]]
    assert len({cam.get_clim() for cam in cams}) == 1
    assert all(cam.get_array().min() >= 0 for cam in cams)


def test_rank_correlation_knows_its_ends():
    a = torch.tensor([[1.0, 5.0, 2.0, 9.0], [1.0, 2.0, 3.0, 4.0]])
    b = torch.stack([a[0] ** 3, -a[1]])
    assert pictures.rank_correlation(a, b).tolist() == pytest.approx([1.0, -1.0])
    c = torch.tensor([[2.0, 1.0, 4.0, 3.0]])
    assert pictures.rank_correlation(a[1:], c).item() == pytest.approx(0.6)  # 1 - 6 * 4 / 60


def test_agreement_of_equal_images_is_one(shapes, monkeypatch):
    same = {"image": shapes, "other": shapes}
    monkeypatch.setattr(pictures, "smooth_versions", lambda test, levels: same)
    table = pictures.grad_cam_agreement({"net": Small()}, shapes)
    assert table.rows == [["net", "1.00 ± 0.00"]] and table.header == ["network", "other"]


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
        "answers": smoothing_suite.pack(answers),
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
    assert [r[2] for r in table.rows] == ["reproduced", "not reproduced", pictures.NOT_RUN]
    assert table.rows[1][:2] == [f"base: {other}", f"good: {row}"]
    same = pictures.rival_verdicts([(("good", row), ("good", "contrast"))]).rows[0]
    both = smoothing_suite.difference(
        *[recorded["good.smoothing"]] * 2,
        ["contrast-1", "contrast-3", "pixelate-1"],
        base_names=["contrast-1", "contrast-3"],
    )
    assert same[3].startswith(f"{both.mean:+.2f} points") and same[3].endswith("3 seeds")
