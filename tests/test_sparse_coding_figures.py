"""The pictures of chapter 9: codes, what is drawn of them, and the way back from features to pixels."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ersm_lab.chapters import sparse_coding_figures as pictures
from ersm_lab.evaluation import lambda_suite
from ersm_lab.images import data
from ersm_lab.networks import backbones
from ersm_lab.networks.sparse_coding import CSCSettings, SparseCoding2d, attach_sparse_coding
from ersm_lab.results import records

SIZE = (16, 16)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def images():
    whole = data.load("shapes", "test", limit=6)
    return replace(whole, images=whole.images[:, ::2, ::2].contiguous())  # 16 x 16, to be quick


@pytest.fixture(scope="module")
def model(images):
    torch.manual_seed(0)
    network = backbones.CifarNet(replace(backbones.SMOKE, widths=(6, 4)))
    network.whiten(images.normalise(images.images))
    return attach_sparse_coding(network.eval())


@pytest.fixture(scope="module")
def pull_back(model):
    return pictures.PullBack(model.stem[0], SIZE)


# --- codes -----------------------------------------------------------------------------------------


def test_inputs_are_those_of_the_layer(model, images):
    x = pictures.inputs_of(model, "group1.0", images)
    torch.testing.assert_close(x, model.stem(images.normalise(images.images)).detach())
    assert not model.group1[0]._forward_pre_hooks


def test_unrolled_with_nothing_changed_is_the_layer(model, images):
    coder, x = model.group1[0], pictures.inputs_of(model, "group1.0", images)
    torch.testing.assert_close(pictures.unrolled(coder, x), coder(x).detach())
    assert not pictures.unrolled(coder, x, lambda_l1=1e4).any()
    assert pictures.relative_error(coder, x, torch.zeros_like(coder(x))) == pytest.approx(1)


@pytest.mark.parametrize("nonnegative", [True, False])
@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_violation_is_that_of_the_subgradient(nonnegative, mu):
    torch.manual_seed(1)
    settings = CSCSettings(nonnegative=nonnegative, mu=mu)
    coder = SparseCoding2d(3, 2, 3, padding=1, settings=settings).double()  # soon there
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    best = pictures.unrolled(coder, x, steps=400)
    assert pictures.violation(coder, x, best, lambda_l1=0.1) < 1e-4
    code = pictures.unrolled(coder, x, steps=2)
    code.requires_grad_()
    rest = x - coder.reconstruct(code, (5, 5))
    (slope,) = torch.autograd.grad(rest.square().sum() / 2 + mu / 2 * code.square().sum(), code)
    worst = 0.0
    for c, g in zip(code.detach().flatten().tolist(), slope.flatten().tolist(), strict=True):
        off = abs(g + 0.1 * np.sign(c)) if c else max(0, (-g if nonnegative else abs(g)) - 0.1)
        worst = max(worst, off)
    found = pictures.violation(coder, x, code.detach(), lambda_l1=0.1)
    assert found == pytest.approx(worst / 0.1)


def test_a_trace_falls_to_the_optimum(model, images):
    coder, x = model.group1[0], pictures.inputs_of(model, "group1.0", images[:2])
    found = pictures.trace(coder, x, steps=(1, 2, 30), reference=200)
    for way in ("FISTA", "ISTA"):
        assert found.gap[way] == sorted(found.gap[way], reverse=True)
        assert 0 <= found.gap[way][-1] < found.gap[way][0] < 1
    assert found.gap["FISTA"][:2] == found.gap["ISTA"][:2]  # no momentum yet
    assert found.optimum["violation"] < 0.01 * found.violation["FISTA"][1]
    figure = pictures.draw_trace(found)
    assert all(axis.get_title() and "steps" in axis.get_xlabel() for axis in figure.axes)
    assert {line.get_marker() for line in figure.axes[0].lines[:2]} == {"o", "s"}


def test_the_step_size_picture_shows_what_its_labels_say():
    contours, distance = pictures.step_size_picture().axes
    ends = {line.get_label(): line.get_ydata()[-1] for line in distance.lines}
    start = distance.lines[0].get_ydata()[0]
    assert ends["ISTA, 0.9 / L"] < 1e-3 and ends["FISTA, 0.9 / L"] < 1e-3
    assert ends["ISTA, 1.9 / L"] < 0.1 * start and ends["FISTA, 1.9 / L"] > 10 * start
    assert ends["ISTA, 2.2 / L"] > 0.3 * start
    assert "code" in contours.get_xlabel() and "step" in distance.get_xlabel()


# --- back to pixels --------------------------------------------------------------------------------


def test_pulling_back_is_ridge_regression(model, pull_back):
    torch.manual_seed(0)
    features = torch.randn(2, 48, 8, 8, dtype=torch.float64)
    basis = torch.eye(3 * 256, dtype=torch.float64).view(-1, 3, *SIZE)
    weight = model.stem[0].weight.detach().double()[:24]
    matrix = F.conv2d(basis, weight, stride=2, padding=1).flatten(1).T  # (answers, pixels)
    signed = (features[:, :24] - features[:, 24:]).flatten(1)
    top = torch.cat([matrix, 3e-2**0.5 * torch.eye(768, dtype=torch.float64)])
    rhs = torch.cat([signed.T, torch.zeros(768, 2, dtype=torch.float64)])
    expected = torch.linalg.lstsq(top, rhs).solution.T.view(2, 3, *SIZE)
    torch.testing.assert_close(pull_back.images(features), expected, atol=1e-8, rtol=1e-6)


def test_images_come_back_from_their_features(model, images, pull_back):
    features = pictures.inputs_of(model, "group1.0", images)
    assert pictures.quality(pull_back, features, images) > 25  # dB; an untrained stem has no bias
    flat = torch.zeros_like(features)
    assert pictures.quality(pull_back, flat, images) < 20


def test_what_has_no_sign_is_not_shown(pull_back):
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, *SIZE, dtype=torch.float64, generator=generator)
    v = pull_back.filters(image)
    assert pull_back.shown(torch.cat([v, -v], 1)).item() > 0.9
    assert pull_back.shown(torch.cat([v, v], 1)).item() == pytest.approx(0, abs=1e-9)
    assert 0.3 < pull_back.shown(torch.cat([v, 0 * v], 1)).item() < 0.5


def test_a_stem_without_pairs_is_refused():
    with pytest.raises(ValueError, match="whiten it first"):
        pictures.PullBack(torch.nn.Conv2d(3, 8, 4, stride=2, padding=1), SIZE)


def test_atoms_are_sorted_and_their_patches_are_where_codes_are_large(model, images, pull_back):
    features = pictures.inputs_of(model, "group1.0", images)
    coder = model.group1[0]
    found = pictures.atoms(coder, pull_back, images, features, patches=1)
    assert found.pictures.shape == found.patches.shape == (6, 3, 8, 8)
    assert found.use.tolist() == sorted(found.use.tolist(), reverse=True)
    code = pictures.unrolled(coder, features)  # (N, 6, 8, 8)
    order = (code != 0).double().mean((0, 2, 3)).argsort(descending=True)
    for k in range(6):
        inside = code[:, order[k], 2:6, 2:6]  # an atom there sees pixels 1 to 14
        image, row, column = (int(i) for i in torch.unravel_index(inside.argmax(), inside.shape))
        top, left = 2 * (row + 2) - 3, 2 * (column + 2) - 3
        expected = images.images[image, top : top + 8, left : left + 8].double() / 255
        torch.testing.assert_close(found.patches[k], expected.permute(2, 0, 1))
    figure = pictures.draw_atoms(found, across=4)
    assert len(figure.axes) == 16 and "share" in figure.get_suptitle()


def test_an_atom_sees_the_pixels_that_its_picture_shows(model, images, pull_back):
    x = images.normalise(images.images[:1]).clone().requires_grad_()
    model.group1[0](model.stem(x))[0, :, 4, 4].sum().backward()  # two steps see a little further
    one = F.conv2d(model.stem(x), model.group1[0].dictionary(), padding=1)[0, :, 4, 4].sum()
    (gradient,) = torch.autograd.grad(one, x)
    rows = gradient.abs().sum((0, 1, 3)).nonzero().flatten()
    assert rows.min() >= 5 and rows.max() <= 12  # 2 * 4 - 3, and 7 more


# --- sparsity and lambda ---------------------------------------------------------------------------


def test_lambda_moves_error_sparsity_and_accuracy(model, images):
    found = pictures.along_lambda(model, "group1.0", images, [1e4, 0.0, 0.5], steps=20, few=2)
    assert found.lambdas == (0.0, 0.5, 1e4) and set(found.error) == {2, 20}
    for count in (2, 20):
        assert found.error[count] == sorted(found.error[count])
        assert found.error[count][-1] == pytest.approx(1) and found.nonzero[count][-1] == 0
    assert found.error[20][0] < found.error[2][0]
    assert model.group1[0].lambda_l1 == 0.1
    for axis in pictures.draw_along_lambda(found).axes:
        assert axis.get_title() and "λ" in axis.get_xlabel() and axis.get_xlim()[0] > -1


def test_sparsity_counts_what_is_not_zero(model, images):
    coder, x = model.group1[0], pictures.inputs_of(model, "group1.0", images)
    left, right = pictures.sparsity(coder, x).axes
    share = 100 * (coder(x) != 0).double().mean()
    assert f"{share:.0f} %" in left.get_title() and len(right.patches) == 6
    assert np.mean([bar.get_height() for bar in right.patches]) == pytest.approx(share.item())


def test_the_slider_has_a_frame_for_each_lambda(model, images, pull_back):
    shown = pictures.lambda_slider(
        model, "group1.0", images[:2], pull_back, [0.0, 0.1, 1e4], name="one", steps=5
    ).html
    assert shown.count("data:image/png") == 3 + 1  # the first stands there without the script, too
    assert "λ = 0.1 (training)" in shown.encode().decode("unicode_escape", "ignore") or (
        "\\u03bb = 0.1 (training)" in shown
    )
    assert "0 % non-zero, error 100 %" in shown


# --- from records ----------------------------------------------------------------------------------

KINDS = ["clean", "gaussian_noise-1", "gaussian_noise-5", "snow-5"]


def record(method, seed, rows):
    """A network that is right on the first so many of 10 images, whatever was done to them."""
    accuracy = {row: dict.fromkeys(KINDS, right / 10) for row, right in rows.items()}
    answers = {
        f"{row}/{name}": torch.arange(10) < right
        for row, right in rows.items()
        for name in KINDS
        if row != "oracle"
    }
    chosen = {"fixed": {"clean": 0.1}}
    fit = {"residuals": [0.5, 1.0], "lambdas": [0.1, 0.3 + seed / 10]}
    return {
        "name": f"laptop/d/{method}.lambda/seed{seed}",
        "method": f"{method}.lambda",
        "seed": seed,
        "metrics": {"accuracy": accuracy, "lambda": chosen, "fit": fit, "images": 10},
        "answers": lambda_suite.pack(answers),
    }


def test_kinds_are_drawn_against_the_dense_network(monkeypatch):
    made = [record("a", s, {"fixed": 6, "label-free": 5, "oracle": 8}) for s in (0, 1)]
    made += [record("dense", 0, {"plain": 5})]
    monkeypatch.setattr(
        records, "read_all", lambda *, method, **_: [r for r in made if r["method"] == method]
    )
    where = dict(dataset="d", scale="laptop")
    (axis,) = pictures.kinds_picture("a", "dense", **where).axes
    fixed, free, oracle = (line for line in axis.lines if line.get_marker() in "os^")
    assert fixed.get_xdata() == pytest.approx([10, 10])  # one image in ten more
    assert free.get_xdata() == pytest.approx([0, 0])
    assert oracle.get_xdata() == pytest.approx([30, 30])
    drawn = {bars.get_label(): bars for bars in axis.containers}
    assert list(drawn) == ["fixed λ", "label-free λ"]  # the oracle has no interval
    found = lambda_suite.gap(made[:2], made[2:], ("fixed", "plain"), ["gaussian_noise-5"])
    (lines,) = drawn["fixed λ"][2]
    assert lines.get_segments()[0][:, 0] == pytest.approx([found.low, found.high])
    assert found.low < 10 < found.high
    same = drawn["label-free λ"][2][0].get_segments()[0][:, 0]
    assert same == pytest.approx([0, 0])  # the same answers
    assert [t.get_text() for t in axis.get_yticklabels()] == ["gaussian noise", "snow"]
    assert "severities 5, 1 seed" in axis.get_title() and "points" in axis.get_xlabel()
    assert pictures.kinds_picture("absent", "dense", **where) is None


def test_the_label_free_map_is_drawn_for_each_seed(monkeypatch):
    made = [record("a", s, {"fixed": 6, "label-free": 5, "oracle": 8}) for s in (0, 1)]
    monkeypatch.setattr(
        records, "read_all", lambda *, method, **_: [r for r in made if r["method"] == method]
    )
    where = dict(dataset="d", scale="laptop")
    (axis,) = pictures.fit_picture("a", **where).axes
    assert axis.lines[0].get_ydata().tolist() == [0.1, 0.3]
    assert axis.lines[1].get_ydata().tolist() == [0.1, 0.4]
    assert pictures.fit_picture("absent", **where) is None
