"""The suite of smoothings: blur against closed forms, conditions matched, answers kept and compared."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ersm_lab.evaluation import smoothing_suite
from ersm_lab.evaluation.smoothing_suite import SmoothingSuite
from ersm_lab.images import data, inverse_scale
from ersm_lab.images.smoothed import at_level
from ersm_lab.results import answer_bits, records, statistics

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


# --- blur ------------------------------------------------------------------------------------------


def test_blur_damps_a_cosine_by_its_frequency():
    width, k, sigma = 24, 3, 1.7
    w = math.pi * k / width  # radians a pixel
    wave = torch.cos(w * (torch.arange(width, dtype=torch.float64) + 0.5)).view(1, 1, 1, -1)
    blurred = smoothing_suite.blur(wave, sigma)
    assert torch.allclose(blurred, wave * math.exp(-(sigma**2) * w**2 / 2), atol=1e-12)


def test_blur_in_the_middle_is_a_sampled_gaussian():
    x = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    x[..., 20, 20] = 1
    r = torch.arange(41, dtype=torch.float64) - 20
    bell = torch.exp(-(r**2) / (2 * 2.0**2)) / (2.0 * math.sqrt(2 * math.pi))  # (41,)
    assert torch.allclose(smoothing_suite.blur(x, 2.0)[0, 0], bell[:, None] * bell, atol=1e-6)


def test_blur_keeps_the_mean_and_its_limits():
    x = torch.rand(2, 3, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean = x.mean((2, 3), keepdim=True)
    assert torch.allclose(smoothing_suite.blur(x, 0.0), x)
    assert torch.allclose(smoothing_suite.blur(x, 1e3), mean.expand_as(x))
    some = smoothing_suite.blur(x, torch.tensor([0.0, 1.5]))
    assert torch.allclose(some[0], x[0]) and not torch.allclose(some[1], x[1])
    assert torch.allclose(some.mean((2, 3), keepdim=True), mean)


def test_blur_of_equal_error_has_it():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 3, 9, 7, generator=generator, dtype=torch.float64)
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    y = x + noise * torch.tensor([0.0, 0.05, 0.15]).view(3, 1, 1, 1)
    found = smoothing_suite.blur_of_equal_error(x, y)
    error, wanted = ((t - x).square().sum((1, 2, 3)) for t in (found, y))
    assert torch.allclose(error, wanted, rtol=1e-9)
    assert torch.equal(found[0], smoothing_suite.blur(x[:1], 0.0)[0])


def test_blur_cannot_err_more_than_the_flat_image():
    x = torch.rand(1, 3, 6, 6, dtype=torch.float64)
    flat = smoothing_suite.blur_of_equal_error(x, x + 5)
    assert torch.allclose(flat, x.mean((2, 3), keepdim=True).expand_as(x), atol=1e-9)


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
    energies = [inverse_scale.retained_energy(x, y) for y in (flat, low)]
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


# --- answers in records ----------------------------------------------------------------------------


def record(seed, answers):
    n = len(next(iter(answers.values())))
    metrics = {"images": n, "accuracy": {k: v.double().mean().item() for k, v in answers.items()}}
    name = f"laptop/cifar10/some.smoothing/seed{seed}"
    packed = smoothing_suite.pack(answers)
    return {"name": name, "seed": seed, "metrics": metrics, "answers": packed, "config": {}}


def drawn(seed, share, n=211):
    generator = np.random.default_rng(seed)
    return {k: torch.from_numpy(generator.random(n) < share) for k in ("a", "b", "c")}


def test_answers_come_back():
    answers = drawn(0, 0.6, n=13)  # no multiple of eight
    back = smoothing_suite.unpack(record(0, answers))
    assert list(back) == list(answers)
    assert all(torch.equal(back[name], answers[name]) for name in answers)
    with pytest.raises(ValueError, match="holds no answers"):
        smoothing_suite.unpack(record(0, answers) | {"answers": None})


def test_one_condition_differs_as_statistics_says():
    ours, theirs = ([drawn(10 * s + share, share / 10) for s in range(3)] for share in (8, 6))
    found = smoothing_suite.difference(
        *([record(s, a) for s, a in enumerate(group)] for group in (ours, theirs)), ["b"]
    )
    plain = [
        [
            {
                "name": "x",
                "seed": s,
                "answers": answer_bits.pack(a["b"]),
                "config": {"test_images": 211},
            }
            for s, a in enumerate(group)
        ]
        for group in (ours, theirs)
    ]
    assert found == statistics.difference(*plain)


def test_the_mean_over_conditions_is_paired_by_image():
    ours = drawn(0, 0.5)
    ours["b"] = ~ours["a"]  # a and b together: always one of two right
    base = drawn(1, 0.5)
    base["b"] = ~base["a"]
    found = smoothing_suite.difference([record(0, ours)], [record(0, base)], ["a", "b"])
    assert found.mean == found.low == found.high == 0


def test_conditions_of_the_base_may_be_others():
    answers = drawn(0, 0.5)
    found = smoothing_suite.difference(
        [record(0, answers)], [record(0, answers | {"c": answers["a"]})], ["a"], base_names=["c"]
    )
    assert found.mean == found.low == found.high == 0


def test_what_cannot_be_compared_is_refused():
    one, other = record(0, drawn(0, 0.5)), record(1, drawn(1, 0.5))
    with pytest.raises(ValueError, match="no seed in common"):
        smoothing_suite.difference([one], [other], ["a"])
    with pytest.raises(ValueError, match="nothing"):
        smoothing_suite.difference([one], [one], ["nothing"])
