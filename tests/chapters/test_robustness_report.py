"""What chapter 10 reads from records, and its two explorers, on records and networks made up for it."""

import base64
import io
import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from ersm_attach import attach_energy_mask
from ersm_lab.chapters import robustness_report as report
from ersm_lab.evaluation import inference
from ersm_lab.images import data
from ersm_lab.networks import backbones
from ersm_lab.results import answer_bits

N = 40
GRID = [
    (place, fill, size)
    for place in ("centre", "random")
    for fill in ("black", "noise")
    for size in (4, 8)
]


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def made(method, suite, seed, right, **metrics):
    """A record as `judging.judge` writes it, as far as the report reads it; right: {condition: (N,)}."""
    flags = torch.stack([torch.as_tensor(r) for r in right.values()])
    config = {"conditions": [*right], "sizes": [4, 8], "levels": [2, 8]}
    return {
        "name": f"laptop/cifar10/{method}.{suite}/seed{seed}",
        "seed": seed,
        "config": config,
        "metrics": {"images": flags.shape[1], **metrics},
        "answers": answer_bits.pack(flags.flatten()),
    }


def first(count):
    """The first so many of N images."""
    return torch.arange(N) < count


@pytest.fixture
def keep(monkeypatch):
    """Puts records in the place of those on disk."""

    def use(*found):
        def judged(method, suite, *, dataset="cifar10", scale="laptop"):
            return [
                r for r in found if r["name"].startswith(f"{scale}/{dataset}/{method}.{suite}/")
            ]

        monkeypatch.setattr(report, "judged", judged)

    return use


def occlusion(method, seed, clean, small, large):
    """Right: so many images when whole, behind 4 pixels and behind 8, at every place and fill."""
    right = {"clean": first(clean)}
    right |= {f"{p}.{f}.{s}": first(small if s == 4 else large) for p, f, s in GRID}
    return made(method, "occlusion", seed, right)


# --- records ---------------------------------------------------------------------------------------


def test_patterns_choose_conditions_and_clean_only_by_its_name():
    record = occlusion("a", 0, 40, 20, 10)
    assert report.matching(record, "random.*.8") == ["random.black.8", "random.noise.8"]
    assert len(report.matching(record, "*")) == len(GRID)
    assert report.matching(record, "clean") == ["clean"]
    assert report.matching(record, ["clean", "centre.black.4"]) == ["clean", "centre.black.4"]
    with pytest.raises(ValueError, match=r"no condition of .* is named 'corner"):
        report.matching(record, "corner.*")


def test_share_right_is_a_mean_over_conditions_image_by_image():
    share = report.share_right(occlusion("a", 0, 40, 20, 10), "*")
    assert share[:10].tolist() == [1.0] * 10
    assert share[10:20].tolist() == [0.5] * 10
    assert not share[20:].any()


def test_gap_pairs_seeds_and_takes_the_mean_of_the_conditions(keep):
    keep(
        *(occlusion("mask", s, 36, 20, 10) for s in (0, 1)),
        *(occlusion("dense", s, 40, 24, 10) for s in (0, 1, 2)),
    )
    found = report.gap("mask", "dense", "occlusion", "random.*")
    assert found.seeds == (0, 1)
    assert found.mean == pytest.approx(100 * (15 - 17) / N)
    assert found.low <= found.mean <= found.high
    assert report.gap("mask", "dense", "occlusion", "clean").mean == pytest.approx(-10.0)
    assert report.gap("mask", "nobody", "occlusion") is None


def test_gap_among_images_that_all_get_right_when_clean(keep):
    keep(occlusion("mask", 0, 20, 20, 10), occlusion("dense", 0, 40, 30, 30))
    found = report.gap("mask", "dense", "occlusion", "random.*.8", right_when_clean=True)
    assert found.mean == pytest.approx(100 * (10 - 20) / 20)  # of the 20 that both get right
    whole = report.gap("mask", "dense", "occlusion", "clean", right_when_clean=True)
    assert whole.mean == 0


# --- tables ----------------------------------------------------------------------------------------


def test_accuracies_are_those_of_the_records(keep):
    keep(occlusion("a", 0, 40, 20, 10), occlusion("a", 1, 36, 20, 10))
    table = report.accuracy_table(["a", "b"], "occlusion", {"small": "*.4", "all": "random.*"})
    assert table.header == ["method", "seeds", "clean", "small", "all"]
    assert table.rows[0] == ["a", "2", "95.0 ± 7.1", "50.0 ± 0.0", "37.5 ± 0.0"]
    assert table.rows[1] == ["b", "0", "not yet run", "–", "–"]
    assert "the first 40 test images" in table.caption


def test_losses_absolute_relative_and_among_what_was_right(keep):
    right = {"clean": first(20), "random.black.4": ~first(10) & first(30)}  # 10 stay, 10 are new
    keep(made("a", "occlusion", 0, right))
    (row, missing) = report.drop_table(["a", "b"], "occlusion", "random.*").rows
    assert row[1:] == ["1", "50.0", "50.0", "0.0", "100.0", "50.0"]
    assert missing[2] == "not yet run"


def test_differences_have_an_interval_and_the_ledgers_word(keep):
    keep(
        *(occlusion("mask", s, 40, 16, 16) for s in range(3)),
        *(occlusion("dense", s, 40, 36, 36) for s in range(3)),
    )
    pairs = [("mask", "dense"), ("dense", "mask"), ("mask", "nobody")]
    table = report.difference_table(pairs, "occlusion", "random.*")
    worse, better, missing = table.rows
    assert worse[:3] == ["mask − dense", "3", "-50.00"] and worse[-2:] == [
        "+0.00",
        "not reproduced",
    ]
    assert better[2] == "+50.00" and better[-1] == "reproduced"
    assert missing[1:3] == ["0", "not yet run"]
    assert {len(row) for row in table.rows} == {len(table.header)}
    paired = report.difference_table(pairs, "occlusion", "random.*", right_when_clean=True)
    assert {len(row) for row in paired.rows} == {len(paired.header)}
    assert paired.rows[0][2] == "-50.00" and "better?" not in paired.header


def attacks(method, seed, *, direct, soft=None):
    """Right under AutoAttack at 2 and 8; FGSM and PGD leave what it leaves."""
    right = {"clean": first(36)}
    right |= {f"{a}.{n}": first(direct) for a in report.ATTACKS for n in (2, 8)}
    route = {"direct": direct / N} | ({} if soft is None else {"soft": soft / N, "bpda": 0.0})
    left = {"apgd-ce": direct + 2, "apgd-t": direct + 1, "fab-t": direct + 1, "square": direct}
    return made(
        method,
        "attacks",
        seed,
        right,
        by_route={a: {n: route for n in ("2", "8")} for a in report.ATTACKS},
        only_by_surrogate={a: dict.fromkeys(("2", "8"), 3) for a in report.ATTACKS},
        left_after={"autoattack": {n: {"direct": left} for n in ("2", "8")}},
        gradients={
            "zero_share": 0.25,
            "agreement": [{"step": 1e-5, "median": 0.9}, {"step": 1 / 255, "median": None}],
            "through_mask_median": None if soft is None else 0.125,
        },
    )


def test_attack_tables_show_routes_gradients_and_what_each_part_left(keep):
    keep(attacks("dense", 0, direct=8), attacks("mask", 0, direct=12, soft=4))
    methods = ["dense", "mask", "none"]
    table = report.attack_table(methods)
    low, high = report.wilson(0.2, N)
    assert table.rows[0][3] == f"20.0 ({100 * low:.0f} to {100 * high:.0f})"
    assert table.header[-1] == "AutoAttack 8" and table.rows[2][2] == "not yet run"
    routes = report.route_table(methods).rows
    assert routes[0][2:] == ["FGSM 2/255", "20.0", "–", "–", "3 of 40"]
    assert routes[6][3:] == ["30.0", "10.0", "0.0", "3 of 40"]
    gradients = report.gradient_table(methods).rows
    assert gradients[0][2:] == ["25.0", "0.90", "–", "–"]
    assert gradients[1][5] == "0.12"
    left = report.left_after_table(methods).rows
    assert left[0][2:] == ["2/255", "25.0", "22.5", "22.5", "20.0"]
    for each in (
        report.attack_table,
        report.route_table,
        report.gradient_table,
        report.left_after_table,
    ):
        made_up = each(methods)
        assert {len(row) for row in made_up.rows} == {len(made_up.header)}
        assert made_up.rows[-1][:3] == ["none", "0", "not yet run"]


def test_an_interval_of_none_right_does_not_end_at_zero():
    low, high = report.wilson(0.0, 200)
    assert low == pytest.approx(0, abs=1e-12)
    assert high == pytest.approx(1.96**2 / (200 + 1.96**2), rel=1e-3)


# --- pictures -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images():
    return data.load("shapes", "test", limit=12)


@pytest.fixture
def masked():
    torch.manual_seed(0)
    model = backbones.CifarNet(backbones.SMOKE)
    attach_energy_mask(model, "group1", preset="stable", bias_init=0.0)
    return model.eval()


def frames(widget):
    held = json.loads(
        re.search(r'<script type="application/json">(.*?)</script>', widget.html, re.S).group(1)
    )
    pictures = [
        Image.open(io.BytesIO(base64.b64decode(f.partition(",")[2]))) for f in held["frames"]
    ]
    return held["labels"], [np.asarray(picture.convert("RGB")) for picture in pictures]


def test_occluder_slider_starts_whole_and_covers(images, masked):
    labels, pictures = frames(
        report.occluder_slider(masked, images[:2], sizes=(8,), position="centre")
    )
    assert labels[0].startswith("whole images, kept") and labels[1].startswith("square of 8 pixels")
    whole, covered = (picture[:128, :128] for picture in pictures)
    assert np.array_equal(whole, images.images[0].numpy().repeat(4, 0).repeat(4, 1))
    assert not covered[48:80, 48:80].any()  # black is the first fill
    changed = (whole != covered).any(2)
    assert not changed[:48].any() and not changed[80:].any()


def test_corruption_slider_counts_who_is_right(images, masked):
    kinds = ("brightness", "contrast")
    shown = report.corruption_slider({"m": masked}, images[:1], kinds=kinds)
    labels, pictures = frames(shown)
    assert len(labels) == 6 and len({picture.shape for picture in pictures}) == 1
    is_right = inference.answers(masked, images[:1])[0]
    assert labels[0] == f"untouched: right m {2 * int(is_right)} of 2"
    with pytest.raises(ValueError, match=r"give data\[:1\]"):
        report.corruption_slider({"m": masked}, images[:2])
