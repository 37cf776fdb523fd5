"""The chapter on objects: its tables have the numbers of the records, its pictures what they say."""

import json
import math
import re
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn

from ersm_attach import attach_energy_mask
from ersm_lab.chapters import object_report
from ersm_lab.chapters.object_report import Judged
from ersm_lab.evaluation import object_masks
from ersm_lab.images import data, shapes
from ersm_lab.networks import backbones
from ersm_lab.networks.backbones import CifarNetSettings
from ersm_lab.results import answer_bits, records


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def images():
    drawn = shapes.textured_shapes(12, seed=5)
    return data.ImageSet(
        name="shapes",
        images=drawn.images.permute(0, 2, 3, 1).contiguous(),
        labels=drawn.labels,
        classes=shapes.CLASSES,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        masks=drawn.masks,
    )


@pytest.fixture(scope="module")
def networks():
    made = {}
    for name in ("dense", "masked"):
        torch.manual_seed(2)
        made[name] = backbones.CifarNet(CifarNetSettings(widths=(8, 12), depth=1, stem_channels=16))
    attach_energy_mask(made["masked"], "group1", preset="stable", bias_init=0.0)
    return SimpleNamespace(**{name: model.eval() for name, model in made.items()})


# --- made-up records -------------------------------------------------------------------------------


def summary(mean, undefined=0):
    return {"mean": mean, "standard_error": 0.01, "undefined": undefined}


def scores(auc, *, mask=False, inside=0.4, undefined=0):
    found = {
        "auc": summary(auc),
        "pointing": summary(0.5),
        "inside": summary(inside, undefined),
        "iou_top_k": summary(0.3),
    }
    return found | ({"iou": summary(0.45)} if mask else {})


def objects_record(seed, *, masked, gap=0.1, count=40):
    """Of the suite `objects`: the logit is `gap` above the centre prior, which is at 0.8 or so."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(0.8, 0.02, count)
    maps = {"magnitude": scores(0.7), "grad_cam": scores(0.66, undefined=3)}
    maps |= {name: scores(0.5 + k / 10) for k, name in enumerate(("random", "edges"))}
    maps |= {"centre": scores(0.8, inside=None, undefined=count)}
    each = {"grad_cam": {"auc": [0.66] * (count - 1) + [None]}, "centre": {"auc": centre.tolist()}}
    each["everything"] = {"iou": [0.2] * count}
    if masked:
        maps = {"mask": scores(0.79, mask=True), "logit": scores(0.8 + gap)} | maps
        maps |= {"energy": scores(0.75), "magnitude_masked": scores(0.76)}
        each |= {"logit": {"auc": (centre + gap).tolist()}, "mask": {"iou": [0.45] * count}}
    metrics = {"images": count, "scores": maps, "keep_everything": summary(0.2), "by_image": each}
    return {"name": f"r{seed}", "seed": seed, "metrics": metrics}


def spurious_record(seed, *, lies, masked, count=200):
    """Of the suite `spurious`: so many images are right where the background lies, all elsewhere."""
    names = ["truth", "lies", "unmarked"]
    right = torch.ones(3, count, dtype=torch.bool)
    right[1, round(lies * count) :] = False
    places = {"on_background": summary(0.6)}
    maps = {"grad_cam": places, "magnitude": places}
    if masked:
        kept = {"kept_on_object": summary(0.9), "kept_on_background": summary(0.25)}
        maps = {"mask": places | kept} | maps
    metrics = {
        "images": count,
        "accuracy": dict(zip(names, right.double().mean(1).tolist(), strict=True)),
        "follows_background": 1 - lies,
        "maps": {name: maps for name in names},
    }
    packed = answer_bits.pack(right.flatten())
    config = {"conditions": names}
    return {
        "name": f"s{seed}",
        "seed": seed,
        "metrics": metrics,
        "answers": packed,
        "config": config,
    }


def judged(seeds=3, *, gap=0.1, lies=(0.5, 0.6)):
    dense, masked = lies
    return Judged(
        dense=[objects_record(s, masked=False) for s in range(seeds)],
        masked=[objects_record(s, masked=True, gap=gap) for s in range(seeds)],
        dense_spurious=[spurious_record(s, lies=dense, masked=False) for s in range(seeds)],
        masked_spurious=[spurious_record(s, lies=masked, masked=True) for s in range(seeds)],
    )


# --- tables ----------------------------------------------------------------------------------------


def test_scores_are_those_of_the_records():
    table = object_report.score_table(judged())
    rows = {tuple(row[:2]): row[2:] for row in table.rows}
    mask = rows["masked network", "keep mask, 0 or 1"]  # seeds, AUC, ..., IoU
    assert (mask[0], mask[1], mask[-1]) == ("3", "0.790 ± 0.000", "0.450 ± 0.000")
    assert rows["masked network", "logit, -z"][1] == "0.900 ± 0.000"
    assert rows["dense network", "Grad-CAM"][3] == "0.400 ± 0.000 (3)"  # three images have none
    assert rows["no network", "centre prior"][3] == "–"  # no image has one
    assert rows["no network", "keep everything"] == ["3", *["–"] * 4, "0.200 ± 0.000"]
    assert ("dense network", "logit, -z") not in rows
    assert "40 test images" in table.caption


def test_the_spread_is_over_seeds():
    group = [objects_record(s, masked=True, gap=gap) for s, gap in enumerate((0.0, 0.1))]
    row = object_report.score_table(Judged(masked=group)).rows[1]
    assert row[:4] == ["masked network", "logit, -z", "2", "0.850 ± 0.071"]


def test_read_sorts_records_by_suite_and_data_set(monkeypatch):
    kinds = {
        "dense": ("shapes", "ablation-dense.objects"),
        "masked": ("shapes", "ablation-ersm.objects"),
        "dense_spurious": ("shapes-spurious", "ablation-dense.spurious"),
        "masked_spurious": ("shapes-spurious", "ablation-ersm.spurious"),
    }
    others = [("cifar10", "ablation-ersm.objects"), ("shapes", "ablation-ersm")]
    made = [{"dataset": d, "method": m} for d, m in [*kinds.values(), *others]]
    monkeypatch.setattr(records, "read_all", lambda *, scale: made if scale == "laptop" else [])
    found = object_report.read()
    for name, (dataset, method) in kinds.items():
        assert getattr(found, name) == [{"dataset": dataset, "method": method}]


def test_the_auc_figure_has_a_mark_a_seed():
    (axis,) = object_report.draw_auc(judged(2)).axes
    assert "AUC" in axis.get_xlabel()
    labels = [tick.get_text() for tick in axis.get_yticklabels()]
    line = dict(zip(labels, axis.lines, strict=False))["logit, -z (masked network)"]
    assert line.get_xdata() == pytest.approx([0.9, 0.9])
    assert labels[-1].startswith("logit")  # the best is at the top


# --- claims ----------------------------------------------------------------------------------------


def test_the_gaps_of_claim_d_are_those_of_the_images():
    gaps = object_report.gaps_d(judged())
    assert gaps["centre"].mean == pytest.approx(10) and gaps["centre"].low > 9.9
    assert gaps["everything"].mean == pytest.approx(25)
    assert gaps["grad_cam"].mean == pytest.approx(100 * (0.9 - 0.66), abs=1)
    assert gaps["grad_cam"].seeds == (0, 1, 2)


def test_an_undefined_image_is_nan():
    record = objects_record(0, masked=False)
    found = object_report.by_image(record, "grad_cam.auc")
    assert math.isnan(found[-1]) and found[0] == 0.66
    with pytest.raises(ValueError, match="judge the network again"):
        object_report.by_image(record, "logit.auc")


def test_table_d_has_the_gaps_of_the_records():
    table = object_report.table_d(judged())
    assert table.rows[0][1:3] == ["3", "+10.0"] and table.rows[0][4] == "yes"
    below = object_report.table_d(judged(gap=-0.02))
    assert below.rows[0][2:5:2] == ["-2.0", "no"]
    assert object_report.table_d(judged(2)).rows[0][1] == "2"


def test_claim_f_is_the_accuracy_where_the_background_lies():
    found = judged(lies=(0.5, 0.6))
    gaps = object_report.gaps_f(found)
    assert gaps["lies"].mean == pytest.approx(10) and gaps["truth"].mean == 0
    assert gaps["cost"].mean == pytest.approx(-10)  # a lie costs the masked network less
    assert object_report.table_f(found).rows[0][1:3] == ["3", "+10.0"]


def test_background_tables_have_the_shares_of_the_records():
    dense, masked = object_report.background_table(judged()).rows
    assert dense == ["dense network", "3", "100.0 ± 0.0", "50.0 ± 0.0", "100.0 ± 0.0", "50.0 ± 0.0"]
    assert masked[3] == "60.0 ± 0.0"
    kept = {row[0]: row[1:] for row in object_report.kept_table(judged()).rows}
    assert kept["object kept"] == ["3", *["90.0 ± 0.0"] * 3]
    assert kept["background kept"][1] == "25.0 ± 0.0"


def test_the_ground_table_sorts_grounds_by_what_is_kept_with_them():
    with_ground, by_lot = [k / 20 for k in range(10)], [0.4] * 9 + [None]
    made = {
        "name": "made",
        "metrics": {
            "mask": {"kept_by_class": by_lot},
            "validation": {"mask": {"kept_by_class": with_ground}},
        },
    }
    rows = object_report.ground_table(made).rows
    assert rows[0] == ["night", "hourglass", "45", "–"] and rows[-1] == ["sky", "disc", "0", "40"]


# --- pictures --------------------------------------------------------------------------------------


def test_a_mask_is_told_by_two_shares(images):
    """The closed forms at the top of the module, against the scores."""
    masks = (torch.rand(12, 32, 32, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    found = object_masks.mask_scores(masks, images.masks)
    t, f = found["kept_on_object"], found["kept_on_background"]
    r = images.masks.double().mean((1, 2))
    torch.testing.assert_close(found["iou"], r * t / (r + (1 - r) * f))
    torch.testing.assert_close(found["auc"], (1 + t - f) / 2)


def test_look_sees_what_the_mask_does(images, networks):
    seen = object_report.look(networks.masked, images)
    assert seen.mask.shape == seen.logit.shape == seen.cost.shape
    assert torch.equal(seen.mask, (seen.logit < 0).float())
    assert seen.predicted.shape == (12,) and (seen.cost > 0).all()


def test_a_mask_without_a_pairwise_energy_is_refused(images):
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    attach_energy_mask(model, "0", channels=4, lambda_pair=0.0)
    with pytest.raises(ValueError, match="lambda_pair = 0"):
        object_report.look(model, images)


def test_the_area_under_the_drawn_curve_is_the_auc(images):
    lots = torch.Generator().manual_seed(1)
    for values in (torch.rand(32, 32, generator=lots), images.masks[1].float()):
        off, on = object_report.roc(values, images.masks[0])
        area = np.sum(np.diff(off) * (on[1:] + on[:-1]) / 2)
        expected = object_masks.auc(values[None], images.masks[:1]).item()
        assert area == pytest.approx(expected)
        assert (off[0], on[0], off[-1], on[-1]) == (0, 0, 1, 1)
    (axis,) = object_report.draw_roc({"a map": values}, images.masks[0]).axes
    assert "%" in axis.get_xlabel() and f"{expected:.2f}" in axis.get_legend().texts[0].get_text()


def test_the_slider_has_the_threshold_of_the_network_in_its_middle(images):
    logits = torch.randn(12, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    widget = object_report.threshold_slider(images, logits, shown=2, steps=3)
    content = json.loads(
        re.search(r'<script type="application/json">(.*?)</script>', widget.html, re.S).group(1)
    )
    assert len(content["frames"]) == 3
    kept = object_masks.to_pixels((logits < 0).float(), (32, 32), smooth=False)
    mean = object_masks.iou(kept, images.masks).mean()
    assert "z < 0.00 (the mask)" in content["labels"][1]
    assert f"mean IoU {mean:.2f}" in content["labels"][1]
    with pytest.raises(ValueError, match="steps must be odd"):
        object_report.threshold_slider(images, logits, steps=4)
    with pytest.raises(ValueError, match="take textured shapes"):
        object_report.threshold_slider(data.replace(images, masks=None), logits)


def test_auc_table_scores_the_object_itself_best(images):
    grid = nn.functional.avg_pool2d(images.masks[:, None].float(), 2)[:, 0]  # (N, 16, 16)
    rows = object_report.auc_table({"object": grid, "turned": -grid}, images.masks).rows
    assert float(rows[0][1].split()[0]) > 0.97 and float(rows[1][1].split()[0]) < 0.03


# --- flat or rough ---------------------------------------------------------------------------------


def test_repainted_regions_are_flat_or_rough(images):
    made = object_report.repaint(images, inside="flat", outside="rough", contrast=0.1)
    spread_in, spread_out = [], []
    for image, mask in zip(made.images.float(), images.masks, strict=True):
        spread_in.append(image[mask].std(0).max().item())
        spread_out.append(image[~mask].std(0).min().item())
    assert max(spread_in) == pytest.approx(0, abs=1e-3) and min(spread_out) > 8
    mean = images.images[0][images.masks[0]].float().mean(0)
    assert (made.images[0][images.masks[0]][0].float() - mean).abs().max() < 1
    with pytest.raises(ValueError, match='"flat" or "rough"'):
        object_report.repaint(images, inside="smooth", outside="rough")


def test_flat_tokens_cost_what_four_neighbours_cost():
    objects = torch.zeros(1, 12, 12, dtype=torch.bool)
    objects[0, 3:9, 3:9] = True
    cost = object_report.hand_made_cost(objects, inside="flat", outside="rough")[0, 0]
    assert cost[5, 5].item() == pytest.approx(math.log(1 + math.exp(4)))
    both = object_report.hand_made_cost(objects, inside="flat", outside="flat")[0, 0]
    assert both[3, 5].item() == pytest.approx(math.log(1 + math.exp(3)))  # at a straight border
    assert both[0, 5].item() == pytest.approx(math.log(1 + math.exp(3)))  # at the rim of the map
    assert cost[~objects[0]].mean() < 1.5 < cost[objects[0]].mean()


def test_roughness_is_the_step_between_neighbours():
    image = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    image[:, :, 1::2] = 51  # columns alternate by a fifth of white
    everywhere = torch.ones(1, 4, 4, dtype=torch.bool)
    steps = object_report.roughness(image, everywhere).item()
    assert steps == pytest.approx(0.2 / 2)  # half of the pairs are vertical: no step
    alone = torch.zeros_like(everywhere)
    alone[0, 0, 0] = True
    assert object_report.roughness(image, alone).item() == 0


def test_the_roughness_table_covers_all_images(images, networks):
    seen = object_report.look(networks.masked, images)
    rows = object_report.roughness_table(images, seen, parts=3).rows
    gaps = [float(row[1]) for row in rows]
    assert len(rows) == 3 and gaps == sorted(gaps)


# --- backgrounds -----------------------------------------------------------------------------------


def test_three_backgrounds_of_the_same_objects(images, networks):
    small = data.replace(images, images=images.images[:, ::2, ::2], masks=images.masks[:, ::2, ::2])
    sets, kinds = object_report.three_backgrounds(small, 4)
    assert list(sets) == ["truth", "lies", "unmarked"]
    assert all(len(each) == 4 for each in sets.values())
    assert (kinds != sets["lies"].labels).all() and (kinds >= 0).all()
    for other in ("lies", "unmarked"):
        assert torch.equal(sets["truth"].masks, sets[other].masks)
        assert not torch.equal(sets["truth"].images, sets[other].images)
    figure = object_report.draw_backgrounds(
        sets, kinds, masked=networks.masked, dense=networks.dense
    )
    words = [axis.get_xlabel() for axis in figure.axes if "masked:" in axis.get_xlabel()]
    assert len(words) == 12
