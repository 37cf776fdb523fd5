"""The card of a network: known answers of each suite, and judgements that count or no longer do."""

import functools
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from ersm_attach import attach_energy_mask
from ersm_core import EnergyMask
from ersm_lab import judging
from ersm_lab.evaluation import deletion, deletion_insertion, inference, rankings
from ersm_lab.images import corruptions, data, occlusion, resolution, shapes
from ersm_lab.images.data import ImageSet
from ersm_lab.networks import backbones
from ersm_lab.networks.backbones import CifarNetSettings
from ersm_lab.results import answer_bits, records, standing
from ersm_lab.suites import attacked, card, deleted, objects, perturbed
from ersm_lab.training import runs
from ersm_lab.training.config import Config, Experiment, MaskPlace
from ersm_lab.training.loop import TrainSettings, make_fabric

NET = CifarNetSettings(widths=(8, 12), depth=1, stem_channels=16)
TINY = Experiment(
    method="ersm",
    dataset="shapes",
    scale="smoke",
    seed=0,
    config=Config(
        backbone=NET,
        train=TrainSettings(epochs=1, batch_size=32, mask_start=0.5, precision="32-true"),
        mask=MaskPlace(layer="group1", preset="stable"),
        train_images=64,
        test_images=50,
    ),
)
STEP = 20  # grey levels between two classes of `OnePixel`
FEW = perturbed.Resolution(images=30, sizes=(16, 32))


class OnePixel(nn.Module):
    """Reads its class from one pixel's red: 20 levels a class. Looks at nothing else."""

    def __init__(self, row=16, column=16, *, classes=10):
        super().__init__()
        self.place, self.classes = (row, column), classes

    def forward(self, x):
        level = 255 * (0.25 * x[:, 0, self.place[0], self.place[1]] + 0.5)  # (B,)
        return -(level[:, None] / STEP - torch.arange(self.classes)).abs()  # (B, classes)


def image_set(images, labels, *, masks=None, name="made"):
    return ImageSet(
        name=name,
        images=images,
        labels=labels,
        classes=tuple("abcdefghij"),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        masks=masks,
    )


def noise(count=40, *, place=(16, 16)):
    """Random images whose class is in the red of one pixel."""
    lots = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 32, 32, 3), generator=lots, dtype=torch.uint8)
    labels = torch.arange(count) % 10
    images[:, place[0], place[1], 0] = (STEP * labels).byte()
    return image_set(images, labels)


def small_net(*, masked, layer="group1"):
    torch.manual_seed(1)
    model = backbones.CifarNet(NET)
    if masked:
        attach_energy_mask(model, layer, preset="stable")
    return model.eval()


def asked(model, images, suite, settings):
    return card.evaluate(model, images, suites=[suite], settings={suite: settings})[suite]


def accuracy(finding, name):
    return records.flatten(finding.metrics["accuracy"])[name]


# --- occlusion, corruption, resolution -------------------------------------------------------------


def test_a_network_that_looks_at_one_pixel_is_blind_where_it_is_covered():
    images, settings = noise(), perturbed.Occlusion(images=40, sizes=(4, 12))
    finding = asked(OnePixel(), images, "occlusion", settings)
    assert finding.conditions[0] == "clean" and len(finding.conditions) == 1 + 3 * 4 * 2
    assert accuracy(finding, "clean") == 1.0
    assert accuracy(finding, "centre.black.4") == 0.1  # black is the class 0
    for size in (4, 12):
        places = occlusion.sliding_places(32, 32, size)
        seen = 0
        for n, label in enumerate(images.labels.tolist()):
            top, left = places[n % len(places)]
            covered = top <= 16 < top + size and left <= 16 < left + size
            seen += (not covered) or label == 0
        assert accuracy(finding, f"sliding.black.{size}") == seen / 40


def test_the_means_are_over_the_conditions_they_name():
    settings = perturbed.Occlusion(images=30, sizes=(4, 20))
    finding = asked(OnePixel(14, 17), noise(place=(14, 17)), "occlusion", settings)
    found = records.flatten(finding.metrics["accuracy"])
    for group, mean in finding.metrics["mean"].items():
        members = [
            value
            for name, value in found.items()
            if name != "clean" and (group == "occluded" or group in name.split("."))
        ]
        assert members and mean == pytest.approx(sum(members) / len(members)), group
    assert {"occluded", "random", "patch", "20"} <= finding.metrics["mean"].keys()


def test_corruptions_are_those_of_perturbations_and_grouped_as_they_are():
    images = noise(12)
    settings = perturbed.Corruption(
        images=10, kinds=("impulse_noise", "contrast", "saturate"), severities=(1, 5)
    )
    finding = asked(OnePixel(), images, "corruption", settings)
    some = images[:10]
    found = records.flatten(finding.metrics["accuracy"])
    for kind in settings.kinds:
        for severity in (1, 5):
            seen = corruptions.corrupt(some.images, kind, severity, seed=0)[:, 16, 16, 0]
            right = (seen.float() / STEP - some.labels).abs() <= 0.5
            assert found[f"{kind}.{severity}"] == right.double().mean().item()
    mean = finding.metrics["mean"]
    usual = [f"{kind}.{s}" for kind in ("impulse_noise", "contrast") for s in (1, 5)]
    assert mean["corruptions"] == pytest.approx(sum(found[name] for name in usual) / 4)
    assert mean["extra"] == pytest.approx(mean["saturate"])
    assert mean["5"] == pytest.approx(sum(found[f"{kind}.5"] for kind in settings.kinds) / 3)
    assert "blur" not in mean  # nothing of it was asked


def test_the_accuracy_under_the_identity_is_the_clean_one():
    images = data.load("shapes", "test", limit=30)
    model = small_net(masked=True)
    finding = asked(model, images, "resolution", FEW)
    assert finding.conditions == ("clean", "16", "32")
    assert torch.equal(finding.right[0], finding.right[2])
    assert accuracy(finding, "clean") == inference.accuracy(model, images)
    assert torch.equal(finding.right[0], inference.answers(model, images))
    assert finding.metrics["images"] == 30 and finding.metrics["mean"]["lower"] == pytest.approx(
        (accuracy(finding, "16") + accuracy(finding, "32")) / 2
    )


# --- attacks ---------------------------------------------------------------------------------------


class Threshold(nn.Module):
    """Two classes by the red of one pixel, below and above one half: linear, margins known."""

    def forward(self, x):
        red = 0.25 * x[:, 0, 16, 16]  # (B,), -0.5 to 0.5
        return torch.stack([-red, red], 1)


def test_an_attack_reaches_as_far_as_its_level():
    images = noise(24)
    red = (127.5 + torch.tensor([0.5, 1.5, 3.5, 4.5, 7.5, 8.5]).repeat(4)).byte()
    images.images[:, 16, 16, 0] = red
    images = replace(images, labels=torch.ones(24, dtype=torch.long))
    settings = attacked.Attacks(images=24, attacks=("fgsm", "pgd"), pgd_steps=9, batch_size=7)
    finding = asked(Threshold(), images, "attacks", settings)
    margin = red.double() - 127.5  # levels
    for level in (2, 4, 8):
        left = (margin > level).double().mean().item()
        for attack in ("fgsm", "pgd", "worst"):
            assert accuracy(finding, f"{attack}.{level}") == left
            low, high = (
                finding.metrics["intervals"][attack][str(level)][k] for k in ("low", "high")
            )
            assert low < left < high or left in (low, high)
        assert finding.metrics["by_route"]["pgd"][str(level)] == {"direct": left}
    assert accuracy(finding, "clean") == 1.0
    assert finding.metrics["gradients"]["zero_share"] == 0.0


# --- deletion --------------------------------------------------------------------------------------


def test_least_first_is_the_test_of_the_deletion_module():
    images = data.load("shapes", "test", limit=30)
    model = small_net(masked=True)
    importance = {
        "magnitude": rankings.magnitudes(model, images, "group1")["magnitude"],
        "centre": deletion.centre_prior(16, 16).expand(30, 16, 16),
    }
    right = deleted.least_first(model, images, "group1", importance, (0.0, 0.5, 0.9))
    predict = deletion.network_predictor(model, images)
    for name, maps in importance.items():
        curve = deletion.deletion_curve(predict, maps, images.labels, fractions=(0.0, 0.5, 0.9))
        found = [right[f"{name}.{percent}"].double().mean().item() for percent in (0, 50, 90)]
        assert found == pytest.approx(list(curve.accuracy))


def test_tokens_of_a_network_without_a_mask_are_deleted_at_the_layer():
    images = data.load("shapes", "test", limit=6)
    model = small_net(masked=False)
    assert rankings.token_layer(model) == "group1"
    maps = torch.rand(6, 16, 16)
    (right,) = deleted.least_first(model, images, "group1", {"lots": maps}, (0.5,)).values()
    x = images.normalise(images.images)
    with torch.no_grad():
        tokens = model.group1(model.stem(x)) * deletion.keep_masks(maps, 0.5)[:, None]
        by_hand = model.classify(model.group2(tokens)).argmax(1) == images.labels
    assert torch.equal(right, by_hand)


def test_a_deletion_card_holds_every_ranking_convention_and_unit():
    images = data.load("shapes", "test", limit=6)
    model = small_net(masked=True)
    settings = deleted.Deletion(images=6, curve_images=3, unit_images=1, fractions=(0.0, 0.5))
    finding = asked(model, images, "deletion", settings)
    metrics = finding.metrics
    assert list(metrics["mean"]) == list(rankings.RANKINGS)
    assert finding.stated == {"layer": "group1"}
    assert {(u, c, g) for u, t in metrics["area"].items() for c, s in t.items() for g in s} == {
        (unit, convention, game)
        for unit in ("token", "pixel")
        for convention, game in [
            ("RISE", "deletion"),
            ("RISE", "insertion"),
            ("torch-cam", "deletion"),
            ("torch-cam", "insertion"),
            ("Quantus", "deletion"),
        ]
    }
    for name in ("logit", "integrated_gradients"):
        assert metrics["mean"][name] == pytest.approx(
            (accuracy(finding, f"{name}.0") + accuracy(finding, f"{name}.50")) / 2
        )
    maps = rankings.energies(model, images[:3], "group1")["logit"]
    curve = deletion_insertion.perturbation_curve(
        model,
        images[:3],
        deletion_insertion.resize(maps, (32, 32)),
        game="insertion",
        convention=deletion_insertion.TORCHCAM,
    )
    found = metrics["area"]["pixel"]["torch-cam"]["insertion"]["logit"]
    areas = curve.auc_by_image
    assert found["mean"] == pytest.approx(areas.mean().item(), abs=1e-6)
    assert found["standard_error"] == pytest.approx(areas.std().item() / 3**0.5, abs=1e-6)
    minus = metrics["minus_random"]["pixel"]["torch-cam"]["insertion"]
    random = metrics["area"]["pixel"]["torch-cam"]["insertion"]["random"]["mean"]
    assert minus["logit"]["mean"] == pytest.approx(found["mean"] - random)
    assert minus["random"]["mean"] == 0
    json.dumps(records.plain(metrics))


class OneToken(nn.Module):
    """Scores the red of the pixel at (5, 9) against nine classes without evidence."""

    def __init__(self):
        super().__init__()
        self.group1 = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False))
        nn.init.dirac_(self.group1[0].weight)

    def forward(self, x):
        score = 2 * self.group1(x)[:, 0, 5, 9]  # (B,)
        return score[:, None] * torch.eye(10)[0]  # (B, 10)


def test_rankings_that_find_the_one_pixel_delete_it_first():
    images = torch.full((3, 32, 32, 3), 128, dtype=torch.uint8)
    images[:, 5, 9] = 255
    images = image_set(images, torch.zeros(3, dtype=torch.long))
    settings = deleted.Deletion(images=3, curve_images=3, unit_images=1, fractions=(0.0, 0.9))
    finding = asked(OneToken(), images, "deletion", settings)
    x = images.normalise(images.images[:1])[0, 0, 5, 9].item()
    start = (2 * torch.tensor(x)).exp().item()
    start = start / (start + 9)  # the probability with the pixel; without it 0.1
    area = (start + 0.1) / 2 / 32 + 0.1 * 31 / 32
    found = finding.metrics["area"]
    for unit in ("token", "pixel"):
        for name in ("integrated_gradients", "magnitude", "token_integrated_gradients"):
            if unit == "pixel" or name != "integrated_gradients":
                assert found[unit]["RISE"]["deletion"][name]["mean"] == pytest.approx(
                    area, abs=1e-4
                )
    assert finding.metrics["mean"]["magnitude"] == 1.0
    assert "logit" not in found["token"]["RISE"]["deletion"]


# --- textured shapes -------------------------------------------------------------------------------


def bright_squares(count=6):
    """White squares of whole 2 x 2 tokens on black, and where they are."""
    images = torch.zeros(count, 32, 32, 3, dtype=torch.uint8)
    masks = torch.zeros(count, 32, 32, dtype=torch.bool)
    for n in range(count):
        masks[n, 4 + 2 * n : 12 + 2 * n, 2:8] = True
    images[masks] = 255
    return image_set(images, torch.zeros(count, dtype=torch.long), masks=masks)


class KeepsBright(nn.Module):
    """A network whose mask keeps exactly what is bright."""

    def __init__(self):
        super().__init__()
        mask = EnergyMask(3, hard=True)
        with torch.no_grad():
            mask.weight.fill_(-1.0)
        mask.attached_to = "group1"
        self.group1 = nn.Sequential(nn.AvgPool2d(2), mask)

    def forward(self, x):
        tokens = self.group1(x)[:, 0].flatten(1)  # (B, 256)
        return tokens[:, :250].unflatten(1, (10, 25)).sum(2)


def test_a_mask_that_is_the_object_is_right_in_every_score():
    images = bright_squares()
    finding = asked(KeepsBright().eval(), images, "objects", objects.Objects(images=6))
    scores = finding.metrics["scores"]
    for name in ("iou", "iou_top_k", "pointing", "inside", "auc", "kept_on_object"):
        assert scores["mask"][name] == {"mean": 1.0, "standard_error": 0.0, "undefined": 0}
    assert (
        scores["mask"]["on_background"]["mean"] == scores["mask"]["kept_on_background"]["mean"] == 0
    )
    assert finding.metrics["keep_everything"]["mean"] == pytest.approx(48 / 1024)
    assert finding.metrics["by_image"]["mask"]["iou"] == [1.0] * 6
    assert finding.metrics["by_image"]["everything"]["iou"] == [round(48 / 1024, 4)] * 6
    assert {"logit", "grad_cam", "centre"} <= finding.metrics["by_image"].keys()
    assert scores["energy"]["inside"] == {"mean": None, "standard_error": None, "undefined": 6}
    for score in ("iou_top_k", "auc"):
        gap = finding.metrics["minus_centre"]["mask"][score]["mean"]
        assert gap == pytest.approx(1 - scores["centre"][score]["mean"])
        assert finding.metrics["mask_minus"]["centre"][score]["mean"] == pytest.approx(gap)
    assert finding.metrics["mask_minus"]["logit"].keys() == scores["logit"].keys()
    assert finding.right is None and finding.stated == {"layer": "group1"}
    json.dumps(records.plain(finding.metrics))


def test_a_network_without_a_mask_has_its_gradients_and_magnitudes_judged():
    images = data.load("shapes", "test", limit=8)
    finding = asked(small_net(masked=False), images, "objects", objects.Objects(images=8))
    expected = {"magnitude", "grad_cam", "random", "centre", "edges"}
    assert finding.metrics["scores"].keys() == expected
    assert "mask_minus" not in finding.metrics


def told_by_pixels(count, *, seed, spurious, size):
    """In the place of the shapes: class in the red of (16, 16), background in that of (2, 2)."""
    labels = torch.arange(count) % 10
    kinds = torch.full_like(labels, -1)
    if spurious is not None:
        kinds = labels if spurious else (labels + torch.arange(count) // 10) % 10
    images = torch.zeros(count, 3, size, size, dtype=torch.uint8)
    images[:, 0, 16, 16], images[:, 0, 2, 2] = (
        (STEP * labels).byte(),
        (STEP * kinds.clamp_min(0)).byte(),
    )
    masks = torch.zeros(count, size, size, dtype=torch.bool)
    masks[:, 10:20, 10:20] = True
    return shapes.TexturedShapes(images, labels, masks, kinds)


@pytest.mark.parametrize(
    ("place", "truth", "lies", "unmarked", "follows"),
    [((2, 2), 1.0, 0.0, 0.1, 1.0), ((16, 16), 1.0, 1.0, 1.0, 0.0)],
)
def test_a_network_is_caught_that_looks_at_the_background(
    monkeypatch, place, truth, lies, unmarked, follows
):
    monkeypatch.setattr(shapes, "textured_shapes", told_by_pixels)
    model = OnePixel(*place)
    model.group1 = nn.Conv2d(3, 4, 1)
    read = model.forward
    monkeypatch.setattr(model, "forward", lambda x: read(x) + 0 * model.group1(x).sum())
    # of 100 images 10 tell the truth by lot: 90 are used
    settings = objects.Spurious(images=100)
    finding = asked(model, bright_squares(), "spurious", settings)
    assert finding.metrics["images"] == 90 and finding.right.shape == (3, 90)
    assert finding.metrics["accuracy"] == pytest.approx(
        {"truth": truth, "lies": lies, "unmarked": unmarked}
    )
    assert finding.metrics["follows_background"] == follows


def test_the_share_of_the_kept_mask_on_the_background_is_that_of_object_masks():
    images = data.load("shapes-spurious", "test", limit=10)
    finding = asked(small_net(masked=True), images, "spurious", objects.Spurious(images=20))
    maps = finding.metrics["maps"]
    assert maps.keys() == {"truth", "lies", "unmarked"}
    assert maps["lies"].keys() == {"mask", "magnitude", "grad_cam"}
    assert maps["lies"]["grad_cam"].keys() == {"on_background"}
    assert maps["lies"]["mask"].keys() == {"on_background", "kept_on_object", "kept_on_background"}
    area = 1 - shapes.textured_shapes(20, seed=103).masks.double().mean().item()
    assert 0 < maps["lies"]["mask"]["on_background"]["mean"] < 1
    # the magnitude of an untrained network lies almost everywhere
    assert maps["lies"]["magnitude"]["on_background"]["mean"] == pytest.approx(area, abs=0.15)


# --- bad input -------------------------------------------------------------------------------------


def test_bad_input_is_refused():
    images = noise(4)
    with pytest.raises(ValueError, match="no suite 'oclusion': choose of occlusion, corruption"):
        card.evaluate(OnePixel(), images, suites=["oclusion"])
    with pytest.raises(ValueError, match="no scale 'tiny': choose one of smoke, laptop, full"):
        card.evaluate(OnePixel(), images, suites=["occlusion"], scale="tiny")
    with pytest.raises(ValueError, match="where the objects are in 'made' is not known"):
        card.evaluate(OnePixel(), images, suites=["objects"])
    with pytest.raises(ValueError, match="OnePixel has no mask and none of the layers group1"):
        rankings.token_layer(OnePixel())
    assert card.suites_of("cifar10") == tuple(card.SUITES)[:5]
    assert card.suites_of("shapes-spurious") == tuple(card.SUITES)[:7]


def test_every_suite_has_settings_at_every_scale():
    for scale in records.SCALES:
        assert card.PRESETS[scale].keys() == card.SUITES.keys()


# --- judgements ------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def on_the_cpu():
    """Runs and judgements take place on the CPU, also where there is a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "make_fabric", functools.partial(make_fabric, device="cpu"))
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home with one trained network."""
    folder = tmp_path_factory.mktemp("home")
    runs.run(TINY, root=folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def judged(home):
    """The record of one suite asked of it."""
    return judging.judge(TINY, "resolution", settings=FEW, root=home, progress=False)


def valid(home, **settings):
    settings = {"settings": FEW} | settings
    return judging.valid_judgement(TINY, "resolution", root=home, **settings)


def test_a_judgement_is_a_valid_record_of_its_own(home, judged):
    assert judged["name"] == "smoke/shapes/ersm.resolution/seed0"
    assert records.read(judged["name"], root=home) == json.loads(json.dumps(judged))
    assert judged["method"] == "ersm.resolution"
    assert judged["config"] == {
        "images": 30,
        "sizes": [16, 32],
        "judged": "smoke/shapes/ersm/seed0",
        "checkpoint_sha256": records.read(TINY.name, root=home)["checkpoint"]["sha256"],
        "conditions": ["clean", "16", "32"],
    }
    assert set(judged["tolerance"]) == {"accuracy", "mean"}
    assert valid(home) == records.read(judged["name"], root=home)


def test_the_answers_of_every_condition_can_be_read_back(home, judged):
    right = answer_bits.by_condition(judged)
    images = data.load("shapes", "test", limit=30)
    network = runs.restore(TINY, records.read(TINY.name, root=home), root=home)
    assert torch.equal(right["clean"], inference.answers(network, images))
    small = replace(images, images=resolution.low_resolution(images.images, 16))
    assert torch.equal(right["16"], inference.answers(network, small))
    for name, answers in right.items():
        assert judged["metrics"]["accuracy"][name] == answers.double().mean().item()
    with pytest.raises(ValueError, match="no answers by condition"):
        answer_bits.by_condition(records.read(TINY.name, root=home))


def test_a_judgement_no_longer_counts_when_what_it_rests_on_has_changed(home, judged, monkeypatch):
    assert valid(home, settings=replace(FEW, images=29)) is None
    assert valid(home, settings=None) is None
    then = {"resolution/1f": {"protocol": 1, "numbers": {"pass.0": 1.0}}}
    raised = {"resolution/1f": {"protocol": 2, "numbers": {"pass.0": 1.0}}}
    monkeypatch.setattr(standing, "known", lambda: raised)
    stale = {"source_hash": "0" * 64, "probe": then}
    records.write(judged | stale, root=home)
    assert valid(home) is None
    records.write(judged, root=home)
    network = records.read(TINY.name, root=home)
    other = network["checkpoint"] | {"sha256": "0" * 64}
    try:
        records.write(network | {"checkpoint": other}, root=home)
        assert valid(home) is None
        records.write(network | stale, root=home)
        assert valid(home) is None
    finally:
        records.write(network, root=home)
    assert valid(home) is not None


def test_a_network_is_restored_by_whom_one_names_and_judged_into_another_home(home, tmp_path):
    seen = []

    def restore(experiment, record):
        seen.append((experiment.name, record["checkpoint"]["file"]))
        return small_net(masked=False)

    made = judging.judge(
        TINY,
        "resolution",
        settings=FEW,
        root=tmp_path,
        networks=home,
        restore=restore,
        progress=False,
    )
    file = records.read(TINY.name, root=home)["checkpoint"]["file"]
    assert seen == [(TINY.name, file)]
    assert records.read(made["name"], root=tmp_path)["metrics"] == made["metrics"]
    assert valid(tmp_path, networks=home) is not None
    assert valid(tmp_path) is None  # no network there


def test_what_cannot_be_judged_is_refused(home, tmp_path):
    with pytest.raises(records.RecordNotFound, match="ersm_lab run smoke/shapes/ersm/seed0"):
        judging.judge(TINY, "resolution", root=tmp_path, progress=False)
    cifar = replace(TINY, dataset="cifar10")
    with pytest.raises(ValueError, match="objects needs true object masks, which cifar10 has not"):
        judging.judge(cifar, "objects", root=tmp_path, progress=False)
    assert judging.valid_judgement(TINY, "occlusion", root=home) is None
