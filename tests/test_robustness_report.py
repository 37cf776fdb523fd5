"""The tables, figures and measurements of chapter 10, on records and networks made up for it."""

import base64
import io
import json
import re
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from ersm_attach import attach_energy_mask
from ersm_lab.chapters import robustness_report as report
from ersm_lab.evaluation import inference
from ersm_lab.images import data, perturbations
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


def test_records_are_read_from_their_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ERSM_HOME", str(tmp_path))
    assert report.judged("ersm", "occlusion") == []
    folder = tmp_path / "data/results/laptop/cifar10/ersm.occlusion"
    folder.mkdir(parents=True)
    for seed in (2, 0):
        (folder / f"seed{seed}.json").write_text("{}")
    monkeypatch.setattr(report.records, "read", lambda path: {"seed": int(path.stem[4:])})
    assert [r["seed"] for r in report.judged("ersm", "occlusion")] == [0, 2]


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


# --- curves ----------------------------------------------------------------------------------------


def curve(axis, number):
    """y of a line drawn with error bars, and the ends of its bars."""
    line, _, (bars,) = axis.containers[number]
    return line.get_ydata(), [segment[:, 1] for segment in bars.get_segments()]


def test_occlusion_curves_have_mean_and_range(keep):
    keep(occlusion("a", 0, 40, 20, 10), occlusion("a", 1, 40, 24, 10))
    figure = report.draw_occlusion(
        ["none", "a"], {"black": "random.black", "noise": "random.noise"}
    )
    axis, _ = figure.axes
    y, bars = curve(axis, 1)
    np.testing.assert_allclose(y, [100, 55, 25])
    np.testing.assert_allclose(bars[1], [50, 60])
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["none (not yet run)", "a (2 seeds)"]
    assert axis.get_ylabel() == "accuracy [%]" and "40 images" in figure._suptitle.get_text()
    keep(occlusion("a", 0, 20, 10, 5))
    half = report.draw_occlusion(["a"], {"black": "random.black"}, relative=True)
    np.testing.assert_allclose(curve(half.axes[0], 0)[0], [100, 50, 25])


def test_resolution_goes_down_to_the_right_and_attacks_have_wilsons_bars(keep):
    right = {"clean": first(40), "4": first(10), "8": first(20)}
    keep(made("a", "resolution", 0, right))
    (axis,) = report.draw_resolution(["a"]).axes
    np.testing.assert_allclose(curve(axis, 0)[0], [100, 25, 50])  # at 32, 4, 8
    assert axis.xaxis_inverted()
    keep(attacks("a", 0, direct=8))
    panels = report.draw_attacks(["a"]).axes
    assert [axis.get_title() for axis in panels] == list(report.ATTACKS.values())
    _, bars = curve(panels[2], 0)
    np.testing.assert_allclose(bars[1], 100 * np.array(report.wilson(0.2, N)))


def test_corruption_cells_hold_the_difference(keep):
    right = {"clean": first(40), "fog.1": first(30), "fog.5": first(20)}
    keep(
        made("dense", "corruption", 0, right),
        made("a", "corruption", 0, right | {"fog.5": first(24)}),
    )
    axis, *_ = report.draw_corruptions(["a"], base="dense").axes
    row = perturbations.KINDS.index("fog")
    cells = {t.get_position(): t.get_text() for t in axis.texts}
    assert cells == {(0, row): "+0.0", (4, row): "+10.0"}
    assert axis.get_title() == "a\n(1 seed)"


# --- pictures and measurements ---------------------------------------------------------------------


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


def test_attack_stays_in_its_ball_and_noise_has_its_size(images, masked):
    images = images[:3]
    found = report.attacked(masked, images, epsilon=4 / 255)
    assert (found.after - found.before).abs().max() <= 4 / 255 + 1e-6
    noise = report.attacked(masked, images, epsilon=4 / 255, noise=True)
    inside = (noise.before > 0.1) & (noise.before < 0.9)
    moved = (noise.after - noise.before).abs()[inside]
    torch.testing.assert_close(moved, torch.full_like(moved, 4 / 255))
    same = replace(found, masks_after=found.masks_before, logits_after=found.logits_before)
    assert not same.flipped.any() and not same.fooled.any()
    opposite = replace(found, masks_after=1 - found.masks_before)
    assert (opposite.flipped == 1).all()
    empty = report.draw_attacked(same, images.classes)
    assert "no image was right before" in empty.axes[0].texts[0].get_text()


def test_attacked_images_are_drawn_with_their_answers(images, masked):
    found = report.attacked(masked, images[:3], epsilon=4 / 255, noise=True)
    logits = torch.zeros(3, 10)
    logits[1, found.labels[1]] = 5.0
    wrong = torch.zeros(3, 10)
    wrong[:, (found.labels[1] + 1) % 10] = 5.0
    found = replace(found, logits_before=logits, logits_after=wrong)
    chosen = found.fooled.nonzero()[:, 0].tolist()
    assert 1 in chosen
    figure = report.draw_attacked(found, images.classes, count=3, magnify=20)
    axes = np.array(figure.axes).reshape(len(chosen), 5)
    row = chosen.index(1)
    assert axes[row, 0].get_xlabel().startswith(images.classes[found.labels[1]])
    expected = (0.5 + 20 * (found.after - found.before)[1]).clamp(0, 1).permute(1, 2, 0)
    np.testing.assert_allclose(axes[row, 2].images[0].get_array(), expected.numpy(), atol=1e-6)


def test_cover_is_one_inside_and_a_share_at_the_border(images):
    behind = report.cover(images.images, (16, 16), size=8, position=(4, 6))
    assert behind.shape == (len(images), 1, 16, 16)
    assert behind.sum((1, 2, 3)).tolist() == [16.0] * len(images)
    assert (behind[:, 0, 2:6, 3:7] == 1).all()
    odd = report.cover(images.images, (16, 16), size=4, position=(1, 1))
    assert odd[0, 0, 0, 0] == 0.25 and odd[0, 0, 1, 1] == 1


def test_kept_by_place_sees_what_the_mask_does_behind_the_square(images, masked, monkeypatch):
    covered = perturbations.occlude(images.images, size=12, position="random", fill="black")
    behind = report.cover(images.images, (16, 16), size=12)

    def masks(model, shown):
        if torch.equal(shown.images, covered):
            return 1 - (behind == 1).float()  # all dropped behind it, all kept elsewhere
        return torch.full_like(behind, 0.5)

    monkeypatch.setattr(report.inference, "collect_masks", masks)
    found = report.kept_by_place(masked, images, size=12, fill="black")
    assert {k: set(v.tolist()) for k, v in found.items()} == {
        "inside": {0.0},
        "outside": {1.0},
        "inside whole": {0.5},
        "outside whole": {0.5},
    }
    table = report.avoidance_table({0: masked}, images, sizes=(12,), fills=("black", "noise"))
    assert table.rows[1][:3] == ["noise", "12", "50 → 50"]
    assert table.rows[0][:4] == ["black", "12", "50 → 0", "-50.0"]
    assert table.rows[0][5:7] == ["50 → 100", "+50.0"]


def test_spoiled_images_are_counted_with_and_without_the_mask(images, masked):
    dark = torch.zeros_like(images.images)
    table = report.spoiled_table({0: masked}, images, {"whole": images.images, "dark": dark})
    whole, _ = table.rows
    kept = 100 * inference.collect_masks(masked, images).mean().item()
    own = 100 * inference.accuracy(masked, images)
    with inference.replaced_mask(inference.only_mask(masked), torch.ones_like):
        opened = 100 * inference.accuracy(masked, images)
    assert whole[0] == "whole"
    assert whole[1:] == [f"{value:.1f}" for value in (kept, own, opened, opened - own)]


def test_ways_of_masking_have_their_closed_forms():
    torch.manual_seed(0)
    x, m = torch.rand(2, 3, 4, 4), (torch.rand(2, 1, 4, 4) > 0.5).float()
    m[0, 0, 0, 0] = 1
    covered = torch.zeros(2, 1, 4, 4)
    covered[:, :, :2, :2] = 1
    token = torch.rand(1, 3, 1, 1)
    scene = report.Scene(covered=covered, whole=1 - m, token=token, kept=0.5)
    share = m.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(report.divided_by_share(x, m, scene), 0.5 * x * m / share)
    filled = report.mean_token(x, m, scene)
    assert torch.equal(filled * m, x * m)
    torch.testing.assert_close(filled * (1 - m), (token * (1 - m)))
    own = report.image_token(x, m, scene)
    kept = x[0].flatten(1)[:, m[0].flatten() == 1].mean(1)  # (3,)
    dropped = own[0].flatten(1)[:, m[0].flatten() == 0]
    torch.testing.assert_close(dropped, kept[:, None].expand_as(dropped))
    assert torch.equal(report.all_ones(x, m, scene), x)
    assert torch.equal(report.mask_of_whole(x, m, scene), x * (1 - m))
    assert not report.only_square(x, m, scene)[:, :, :2, :2].any()
    assert torch.equal(report.only_square(x, m, scene)[:, :, 2:], x[:, :, 2:])
    assert torch.equal(report.without_square(x, m, scene)[:, :, 2:], (x * m)[:, :, 2:])


def test_masking_as_trained_changes_nothing_and_is_put_back(images, masked):
    mask = inference.only_mask(masked)
    before = inference.predict(masked, images)
    zeros = torch.zeros(1)
    scene = report.Scene(covered=zeros, whole=zeros, token=zeros, kept=1.0)
    with report.masked_as(mask, report.as_trained, scene):
        assert torch.equal(inference.predict(masked, images), before)
    with report.masked_as(mask, lambda x, m, s: 0 * x, scene):
        assert not torch.equal(inference.predict(masked, images), before)
    assert torch.equal(inference.predict(masked, images), before)


def test_ways_table_agrees_with_the_evaluation(images, masked):
    ways = {"own": report.as_trained, "ones": report.all_ones}
    table = report.ways_table(
        {0: masked}, images, images, ways, sizes=(8,), fills=("black", "noise")
    )
    own, ones = table.rows
    clean = 100 * inference.accuracy(masked, images)
    assert own[:4] == ["own", f"{clean:.1f}", "–", "–"]
    with inference.replaced_mask(inference.only_mask(masked), torch.ones_like):
        opened = 100 * inference.accuracy(masked, images)
    assert ones[1] == f"{opened:.1f}" and ones[2] == f"{opened - clean:+.2f}"
    behind = []
    for fill in ("black", "noise"):
        covered = perturbations.occlude(images.images, size=8, position="random", fill=fill)
        behind.append(inference.accuracy(masked, replace(images, images=covered)))
    assert own[4] == f"{100 * np.mean(behind):.1f}"
    assert {len(row) for row in table.rows} == {len(table.header)}


def test_flips_are_counted_for_noise_and_attack(images, masked):
    table = report.flips_table(masked, images[:2], levels=(8,))
    noise, attack = table.rows
    found = report.attacked(masked, images[:2], epsilon=8 / 255, noise=True)
    assert noise[:2] == ["8/255", "random signs"] and attack[1] == "PGD-20"
    assert noise[3] == f"{100 * found.flipped.mean():.1f}"
