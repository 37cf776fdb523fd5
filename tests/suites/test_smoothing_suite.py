"""The suite of smoothings: conditions are matched, and right answers counted."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ersm_lab.images import data, frequency
from ersm_lab.images.smoothed import at_level
from ersm_lab.results import records
from ersm_lab.suites import smoothing_suite
from ersm_lab.suites.smoothing_suite import SmoothingSuite

TINY = SmoothingSuite(
    images=3,
    levels=(0.7,),
    sides=(8,),
    corruptions=("contrast",),
    severities=(1, 5),
    first=(0.6, (5,)),
)
NAMES = [
    "plain", "sparsified-70", "low-pass-70", "blur-70", "resolution-8", "contrast-1", "contrast-5",
    "contrast-5+sparsified", "contrast-5+low-pass",
]  # fmt: skip


@pytest.fixture
def test_images(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "home", lambda: tmp_path)  # the cache of sparsified images
    return data.load("shapes", "test", limit=4)


# --- conditions ------------------------------------------------------------------------------------


def test_conditions_are_named_and_matched(test_images):
    found = dict(smoothing_suite.conditions(test_images.images, settings=TINY))
    assert list(found) == NAMES
    assert all(i.dtype == torch.uint8 and i.shape == (4, 32, 32, 3) for i in found.values())
    assert found["plain"] is test_images.images
    flat = at_level(test_images.images, 0.7, progress=False)
    assert torch.equal(found["sparsified-70"], flat)
    first = at_level(found["contrast-5"], 0.6, progress=False)
    assert torch.equal(found["contrast-5+sparsified"], first)
    assert not torch.equal(found["contrast-5+low-pass"], first)
    x, flat, low, blurred = (
        found[name].permute(0, 3, 1, 2).double() / 255 for name in NAMES[:4]
    )  # (4, 3, 32, 32)
    energies = [frequency.retained_energy(x, y) for y in (flat, low)]
    assert torch.allclose(*energies, atol=0.02)  # clipped to grey levels
    errors = [(x - y).square().sum((1, 2, 3)) for y in (flat, blurred)]
    assert torch.allclose(*errors, rtol=0.02)  # rounded to them


class Brightness(nn.Module):
    """Says 0 for dark images and 1 for bright ones."""

    def forward(self, x):
        mean = x.mean((1, 2, 3))
        return torch.stack([-mean, mean], 1)


def test_measure_counts_right_answers(test_images):
    images = torch.full((3, 32, 32, 3), 20, dtype=torch.uint8)
    images[1] = 240
    images[2, :16] = 255  # half black, half nearly white
    labels = torch.tensor([0, 1, 0])
    test = data.ImageSet(
        name="shapes", images=images, labels=labels, classes=("dark", "bright"),
        mean=(0.5,) * 3, std=(0.25,) * 3,
    )  # fmt: skip
    metrics, answers = smoothing_suite.measure(Brightness(), test, settings=TINY)
    assert metrics["images"] == 3 and list(metrics["accuracy"]) == list(answers) == NAMES
    assert answers["plain"].tolist() == [True, True, False]
    for name, right in answers.items():
        assert right.dtype == torch.bool and right.shape == (3,)
        assert metrics["accuracy"][name] == pytest.approx(right.double().mean().item())
    assert set(metrics["energy"]) == set(metrics["error"]) == set(NAMES[1:4])
    assert records.plain(metrics)["energy"]["sparsified-70"] <= 1 + 1e-6


def test_the_first_images_are_asked(test_images):
    test_images = replace(test_images, labels=test_images.labels % 2)
    metrics, answers = smoothing_suite.measure(Brightness(), test_images, settings=TINY)
    assert metrics["images"] == len(answers["plain"]) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images": 0}, "at least 1"),
        ({"levels": (0.0,)}, "between"),
        ({"levels": (0.6, 0.601)}, "per"),
        ({"first": (0.6, (2,))}, "among"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SmoothingSuite(**settings)
