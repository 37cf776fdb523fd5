"""The interactive figures: what they hold, what they refuse, that they need nothing from outside."""

import base64
import io
import json
import re

import numpy as np
import pytest
from bs4 import BeautifulSoup
from PIL import Image

from ersm_lab.chapters import potential
from ersm_lab.views import frames


def slider(name="slider", **changes):
    generator = np.random.default_rng(0)
    settings = {
        "frames": [generator.integers(0, 256, (6, 9, 3), dtype=np.uint8) for _ in range(3)],
        "labels": ["time 0", "time <1>", "</script>"],
        "title": "A & B",
        "alt": "Squares that fade.",
        "name": name,
    } | changes
    return frames.frame_slider(settings.pop("frames"), **settings), settings


def content(shown):
    page = BeautifulSoup(shown.html, "html.parser")
    return json.loads(page.find("script", type="application/json").string)


def decoded(source):
    return Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,"))))


SHOWN = {
    "frames": lambda name: slider(name)[0],
    "potential": lambda name: potential.potential_explorer(name=name),
}
each = pytest.mark.parametrize("make", SHOWN.values(), ids=SHOWN)


@each
def test_nothing_is_fetched(make):
    html = make("one").html.replace("http://www.w3.org/2000/svg", "")  # a name, not an address
    assert "//www" not in html and not re.search(r"https?:|url\(|@import|fetch\(", html)
    page = BeautifulSoup(html, "html.parser")
    sources = [tag[key] for tag in page.find_all(True) for key in ("src", "href") if tag.get(key)]
    assert all(source.startswith("data:image/png;base64,") for source in sources)


@each
def test_ids_are_unique(make):
    pages = [BeautifulSoup(make(name).html, "html.parser") for name in ("one", "two")]
    ids = [tag["id"] for page in pages for tag in page.find_all(id=True)]
    assert len(ids) == len(set(ids)) and set(ids) == {"one", "two"}
    groups = [{tag["name"] for tag in page.find_all("input", type="radio")} for page in pages]
    assert not groups[0] & groups[1]


@each
def test_every_control_has_a_label(make):
    page = BeautifulSoup(make("one").html, "html.parser")
    assert page.find_all("input") and not page.find_all("i")
    for control in page.find_all("input"):
        assert control.find_parent("label").get_text().strip()
    for button in page.find_all("button"):
        assert button.get_text().strip() and button["type"] == "button"


@each
def test_no_placeholder_is_left(make):
    assert not re.search(r"__[A-Z]+__", make("one").html)


@each
@pytest.mark.parametrize("name", ["", "1st", "a b", 'a"b', "a_b"])
def test_a_name_that_is_no_id_is_refused(make, name):
    with pytest.raises(ValueError, match="name must be a letter"):
        make(name)


def test_frames_come_back_as_they_were():
    pictures = [np.full((4, 5, 3), shade, np.uint8) for shade in (0, 90, 255)]
    buffer = io.BytesIO()
    Image.fromarray(pictures[1]).save(buffer, "PNG")
    shown, settings = slider(frames=[pictures[0], buffer.getvalue(), pictures[2]])
    held = content(shown)
    assert held["labels"] == settings["labels"] and held["alt"] == settings["alt"]
    for source, picture in zip(held["frames"], pictures, strict=True):
        assert np.array_equal(np.asarray(decoded(source).convert("RGB")), picture)


def test_the_first_frame_shows_without_a_script():
    shown, _ = slider(captions=["left", "right & wrong"])
    page = BeautifulSoup(shown.html, "html.parser")
    picture = page.find("img")
    assert picture["src"] == content(shown)["frames"][0]
    assert picture["alt"] == "Squares that fade. time 0."
    assert (picture["width"], picture["height"]) == ("9", "6")
    assert page.find(class_="title").string == "A & B"
    captions = [span.string for span in page.find(class_="columns").find_all("span")]
    assert captions == ["left", "right & wrong"]
    assert page.find("input")["max"] == "2"


def test_a_label_cannot_end_the_script():
    assert slider()[0].html.count("</script>") == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": [np.zeros((2, 2, 3), np.uint8)], "labels": ["a"]}, "at least two frames"),
        ({"labels": ["a", "b"]}, "3 frames, 2 labels"),
        ({"frames": [np.zeros((2, 2, 3))] * 3}, r"frame 0 must be uint8 \(H, W, 3\).*float64"),
        ({"frames": [np.zeros((2, 2), np.uint8)] * 3}, "frame 0 must be"),
        ({"frames": [b"GIF89a"] * 3}, "not those of a PNG"),
        ({"frames": [np.zeros((2, s, 3), np.uint8) for s in (2, 3, 2)]}, "must have one size"),
        ({"alt": " "}, "alt must say"),
        ({"title": ""}, "title must say"),
        ({"width": 0}, "must be >= 1"),
    ],
)
def test_bad_frames_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        slider(**changes)


def test_the_potential_starts_where_it_is_told():
    setting = potential.Setting(lambda_unary=0.5, lambda_pair=0.2, start=-2.0, gate="energy")
    held = content(potential.potential_explorer(setting))
    assert potential.Setting(**held["setting"]) == setting
    assert set(held["ranges"]) == set(held["setting"]) - {"gate"}
    page = BeautifulSoup(potential.potential_explorer().html, "html.parser")
    keys = {tag["data-key"] for tag in page.find_all("input", type="range")}
    assert keys == set(potential.RANGES)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"temperature must be between 0\.25 and 4, got 0"):
        potential.potential_explorer(potential.Setting(temperature=0))
    with pytest.raises(ValueError, match="lambda_unary must be between"):
        potential.potential_explorer(potential.Setting(lambda_unary=float("nan")))
    with pytest.raises(ValueError, match="gate must be"):
        potential.potential_explorer(potential.Setting(gate="soft"))
