"""The pictures of the layer's chapter: the diagram, the maps, the desk."""

import base64
import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup

from ersm_core import EnergyMask, energy_terms
from ersm_lab.chapters import layer_desk, layer_figures
from ersm_lab.images import data
from ersm_lab.views import figures


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def images():
    return data.load("shapes", "test", limit=2)


def test_diagram_shows_the_maps_of_the_layer():
    torch.manual_seed(0)
    mask, x = EnergyMask(5), torch.randn(1, 5, 4, 4)
    state = mask.compute(x)
    _, a = energy_terms(x, mask.weight, mask.bias)
    figure = layer_figures.layer_diagram(x, state, a.detach())
    (axis,) = figure.axes
    by_place = {
        (round(float(i.get_extent()[0]), 2), round(float(i.get_extent()[2]), 2)): i.get_array()
        for i in axis.images
    }
    assert len(by_place) == 2 * 3 + 6
    for name, values in {
        "z": state.logit,
        "a": a,
        "m": state.mask,
        "e": state.energy,
        "l": state.mask * state.energy,
    }.items():
        place = layer_figures._BOXES[name][:2]
        np.testing.assert_allclose(by_place[place], values[0, 0].detach().numpy(), rtol=1e-6)
    np.testing.assert_allclose(by_place[0.0, 1.05], x[0, 0].numpy())
    lengths = (state.mask * x).norm(dim=1)[0].detach()
    np.testing.assert_allclose(by_place[layer_figures._BOXES["y"][:2]], lengths.numpy(), rtol=1e-6)
    words = {text.get_text() for text in axis.texts}
    assert {"logit", "agreement", "energy", "mask", "what is passed on", "what is paid"} <= words


def test_maps_of_both_signs_have_zero_in_the_middle(images):
    signed, positive = torch.tensor([[-1.0, 3.0]]), torch.tensor([[1.0, 3.0]])
    figure = layer_figures.token_maps({"a": signed, "b": positive}, image=images.images[0])
    first, second, third = figure.axes[:3]
    assert [axis.get_title() for axis in (first, second, third)] == ["image", "a", "b"]
    assert second.images[0].get_clim() == (-3, 3) and third.images[0].get_clim() == (1, 3)


def test_numbers_stand_in_their_token():
    values = torch.tensor([[2.0, 3.0], [4.0, 8.0]])
    figure = layer_figures.numbered_maps({"one": values, "two": values / 2}, label="a [1]")
    written = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
    assert written == {(0, 0): "2", (1, 0): "3", (0, 1): "4", (1, 1): "8"}
    assert figure.axes[0].images[0].get_clim() == figure.axes[1].images[0].get_clim() == (1, 8)


def test_a_row_a_mask(images):
    masks = {"fine": torch.ones(2, 1, 16, 16), "coarse": torch.zeros(2, 1, 4, 4)}
    figure = layer_figures.mask_row(images.images, masks)
    assert len(figure.axes) == 6
    assert [figure.axes[i].get_ylabel() for i in (0, 2, 4)] == ["image", "fine", "coarse"]
    kept = np.asarray(figure.axes[2].images[0].get_array())
    np.testing.assert_allclose(kept, figures.shade(images.images[0], torch.ones(16, 16)))


# ------------------------------------------------------------------------------------------ desk


def desk(images, changes=()):
    torch.manual_seed(0)
    maps = {"logit": torch.randn(2, 1, 4, 4), 4: torch.randn(2, 1, 4, 4), 8: torch.ones(2, 1, 4, 4)}
    maps |= dict(changes)
    agreements = {key: maps[key] for key in (4, 8) if maps[key] is not None}
    return layer_desk.layer_desk(images, maps["logit"], agreements, name="one"), maps


def test_the_desk_holds_the_maps(images):
    shown, maps = desk(images)
    page = BeautifulSoup(shown.html, "html.parser")
    content = json.loads(page.find("script", type="application/json").string)
    assert content["grid"] == 4 and len(content["images"]) == 2
    for key, name in (("logit", "logit"), (4, "4"), (8, "8")):
        stored = np.frombuffer(base64.b64decode(content["images"][1]["maps"][name]), "<f4")
        np.testing.assert_array_equal(stored, maps[key][1].flatten().numpy())
    assert content["images"][1]["label"] == images.classes[images.labels[1]]
    assert "__" not in shown.html


def test_every_control_of_the_desk_has_a_label(images):
    page = BeautifulSoup(desk(images)[0].html, "html.parser")
    controls = page.find_all("input")
    assert controls and all(control.find_parent("label").get_text().strip() for control in controls)
    assert all(group.find("legend") for group in page.find_all("fieldset"))
    assert all(slider.find_next_sibling("output") for slider in page.find_all(type="range"))


def test_the_desk_needs_nothing_from_outside(images):
    html = desk(images)[0].html
    assert "//www" not in html and "http" not in html and "fetch(" not in html


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logit": torch.zeros(2, 4, 4)}, "logit"),
        ({4: None}, "4 must have"),
        ({8: torch.zeros(2, 1, 3, 3)}, "8 must have"),
    ],
)
def test_maps_that_do_not_belong_together_are_refused(images, changes, message):
    with pytest.raises(ValueError, match=message):
        desk(images, changes)
