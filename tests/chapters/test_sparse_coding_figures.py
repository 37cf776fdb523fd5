"""The pictures of chapter 9: codes, what is drawn of them, and the way back from features to pixels."""

from dataclasses import replace

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F

from ersm_lab.chapters import sparse_coding_figures as pictures
from ersm_lab.images import data
from ersm_lab.networks import backbones
from ersm_lab.networks.sdnet import attach_sparse_coding

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


def test_a_stem_whose_padding_is_a_word_is_refused():
    stem = torch.nn.Conv2d(3, 8, 2, padding="same")
    stem.weight.data[4:] = -stem.weight.data[:4]
    with pytest.raises(ValueError, match="number of pixels"):
        pictures.PullBack(stem, SIZE)


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
    drawn = pictures.stretched(found.pictures[0])
    assert drawn.shape == (8, 8, 3) and 0 <= drawn.min() and drawn.max() <= 1
    assert drawn.mean((0, 1)) == pytest.approx(0.5)


def test_an_atom_sees_the_pixels_that_its_picture_shows(model, images, pull_back):
    x = images.normalise(images.images[:1]).clone().requires_grad_()
    model.group1[0](model.stem(x))[0, :, 4, 4].sum().backward()  # two steps see a little further
    one = F.conv2d(model.stem(x), model.group1[0].dictionary(), padding=1)[0, :, 4, 4].sum()
    (gradient,) = torch.autograd.grad(one, x)
    rows = gradient.abs().sum((0, 1, 3)).nonzero().flatten()
    assert rows.min() >= 5 and rows.max() <= 12  # 2 * 4 - 3, and 7 more


# --- sparsity and lambda ---------------------------------------------------------------------------


def test_the_slider_has_a_frame_for_each_lambda(model, images, pull_back):
    shown = pictures.lambda_slider(
        model, "group1.0", images[:2], pull_back, [0.0, 0.1, 1e4], name="one", steps=5
    ).html
    assert shown.count("data:image/png") == 3 + 1  # the first stands there without the script, too
    assert "λ = 0.1 (training)" in shown.encode().decode("unicode_escape", "ignore") or (
        "\\u03bb = 0.1 (training)" in shown
    )
    assert "0 % non-zero, error 100 %" in shown
