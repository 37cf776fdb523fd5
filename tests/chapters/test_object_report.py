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


def judged(seeds=3, *, gap=0.1):
    return Judged(
        dense=[objects_record(s, masked=False) for s in range(seeds)],
        masked=[objects_record(s, masked=True, gap=gap) for s in range(seeds)],
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
    found = answer_bits.by_image(record, "grad_cam.auc")
    assert math.isnan(found[-1]) and found[0] == 0.66
    with pytest.raises(ValueError, match="judge the network again"):
        answer_bits.by_image(record, "logit.auc")


def test_table_d_has_the_gaps_of_the_records():
    table = object_report.table_d(judged())
    assert table.rows[0][1:3] == ["3", "+10.0"] and table.rows[0][4] == "yes"
    below = object_report.table_d(judged(gap=-0.02))
    assert below.rows[0][2:5:2] == ["-2.0", "no"]
    assert object_report.table_d(judged(2)).rows[0][1] == "2"


# --- pictures --------------------------------------------------------------------------------------


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


# --- backgrounds -----------------------------------------------------------------------------------


def test_a_lie_that_is_believed_is_marked(images, networks):
    predicted = object_report.look(networks.masked, images).predicted
    wrong = predicted != images.labels  # the lying ground is what the masked network says
    kinds = torch.where(wrong, predicted, (images.labels + 1) % 10)
    figure = object_report.draw_backgrounds(
        dict.fromkeys(object_report.CONDITIONS, images),
        kinds,
        masked=networks.masked,
        dense=networks.dense,
    )
    words = [axis.get_xlabel() for axis in figure.axes if "masked:" in axis.get_xlabel()]
    assert len(words) == 36
    assert sum("follows" in text.splitlines()[1] for text in words) == wrong.sum() > 0
