"""The cover shows the network's energies and masks, and is the one of today's network."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from ersm_attach import attach_energy_mask
from ersm_lab import cover
from ersm_lab.cover import Look, Stack, draw, fingerprint, stacks
from ersm_lab.evaluation.inference import only_mask
from ersm_lab.networks import backbones
from ersm_lab.results import records

SVG = "{http://www.w3.org/2000/svg}"
STORED = records.home() / "book" / "_static" / "cover.svg"
LARGEST = 300_000  # bytes


@pytest.fixture
def stack() -> Stack:
    """Two by two tokens of two pixels a side; the first column is kept."""
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5
    return Stack(image=image, unary=np.array([[0.1, 0.3], [0.2, 0.5]]), mask=np.eye(2)[[0, 0]])


def elements(text: str, kind: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(text).iter(SVG + kind))


def columns(text: str) -> dict[str, float]:
    """Of each column of the relief the class of its left face, and the height of that face."""
    found = {}
    for path in elements(text, "path"):
        if re.fullmatch(r"[kd]l\d+", path.get("class", "")):
            steps = path.get("d").partition("l")[2].rstrip("z").split()
            found[path.get("class")] = float(steps[3])  # the second step goes straight down
    return found


def pictures(text: str) -> list[np.ndarray]:
    sources = [image.get("href").partition("base64,")[2] for image in elements(text, "image")]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(source)))) for source in sources]


def test_columns_are_as_high_as_the_energy(stack):
    look = Look(relief=40.0)
    heights = columns(draw([stack], look=look))
    # kept: 0.1 and 0.2, from the lowest to the highest of the kept; the others: 0.3 and 0.5
    expected = {"kl0": 0.0, "kl11": 10.0, "dl0": 20.0, "dl11": 40.0}
    assert set(heights) == set(expected)
    for name, height in expected.items():
        assert heights[name] - heights["kl0"] == pytest.approx(height, abs=0.3)


def test_only_kept_tokens_are_on_top(stack):
    below, above = pictures(draw([stack]))
    assert np.array_equal(below[::8, ::8], stack.image)
    seen = above[::8, ::8]  # (H, W, 4)
    assert np.array_equal(seen[..., 3] > 0, np.array([[1, 1, 0, 0]] * 4, dtype=bool))
    assert np.array_equal(seen[:, :2, :3], stack.image[:, :2])
    assert not seen[:, 2:].any()  # what is dropped is not in the file either


@pytest.mark.parametrize("kept", [0, 1])
def test_all_or_nothing_can_be_kept(stack, kept):
    text = draw([replace(stack, mask=np.full((2, 2), kept))])
    _, above = pictures(text)
    assert (above[..., 3] == 255 * kept).all()
    assert {name[0] for name in columns(text)} == {"k" if kept else "d"}


def test_equal_energies_make_a_flat_relief(stack):
    heights = columns(draw([replace(stack, unary=np.full((2, 2), 0.4))]))
    assert len(heights) == 2 and len(set(heights.values())) == 1


def test_stacks_stand_side_by_side_and_share_a_scale(stack):
    higher = replace(stack, unary=stack.unary + 0.4)
    one, two = draw([stack]), draw([stack, higher])
    assert len(pictures(two)) == 2 * len(pictures(one))
    width = [float(ElementTree.fromstring(text).get("viewBox").split()[2]) for text in (one, two)]
    assert width[1] > 1.5 * width[0]
    assert columns(two)["kl0"] < columns(one)["kl11"]  # 0.1 of 0.1 to 0.9 and 0.2 of 0.1 to 0.5


def test_stacks_are_what_the_network_says():
    torch.manual_seed(0)
    model = backbones.CifarNet(backbones.SMOKE)
    attach_energy_mask(model, "group1", preset="stable", bias_init=0.0)
    model.eval()
    first, second = stacks(model, ["ship", "frog"])
    mask = only_mask(model)
    state = mask.state  # of the scene that was last
    expected = mask.lambda_unary * torch.log1p(state.logit[0, 0].exp())
    assert second.unary == pytest.approx(expected.numpy(), rel=1e-5)
    assert np.array_equal(second.mask, (state.logit[0, 0] < 0).numpy())
    assert not np.array_equal(first.image, second.image)
    assert len(pictures(draw([first, second]))) == 4


def test_what_cannot_be_drawn_is_refused(stack):
    with pytest.raises(ValueError, match="at least one"):
        draw([])
    with pytest.raises(ValueError, match="hard masks only"):
        draw([replace(stack, mask=np.full((2, 2), 0.5))])
    with pytest.raises(ValueError, match="are wanted"):
        draw([replace(stack, mask=np.ones((4, 4)))])
    with pytest.raises(ValueError, match="does not divide"):
        draw([replace(stack, unary=np.ones((3, 3)), mask=np.ones((3, 3)))])


def test_the_stored_cover_is_of_todays_network_and_small():
    text = STORED.read_text(encoding="utf-8")
    (made_from,) = elements(text, "metadata")
    assert made_from.text == fingerprint(records.read(cover.RECORD)), (
        "the network of the cover was recorded anew: write the cover again (ersm_lab.cover.write)"
    )
    assert len(text.encode()) < LARGEST
    assert len(pictures(text)) == 2 * len(cover.SCENES)


def test_the_stored_cover_asks_for_no_other_file_and_can_be_read_aloud():
    text = STORED.read_text(encoding="utf-8")
    assert set(re.findall(r'https?://[^"\s<]+', text)) == {"http://www.w3.org/2000/svg"}
    assert all(i.get("href").startswith("data:image/png") for i in elements(text, "image"))
    assert [element.text for element in elements(text, "desc")] == [cover.ALT]
