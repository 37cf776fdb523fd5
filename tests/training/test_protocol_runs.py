"""Runs of the published protocol: recorded, restored, measured, and found like all others."""

import functools
import json
import math
from dataclasses import replace

import pytest
import torch

from ersm_lab.evaluation import deletion, inference
from ersm_lab.images import data
from ersm_lab.networks.backbones import CifarNetSettings
from ersm_lab.results import answer_bits
from ersm_lab.training import experiments, methods, protocol_runs, protocols, runs
from ersm_lab.training.loop import TrainSettings, make_fabric

NET = CifarNetSettings(widths=(8, 8, 12), depth=1, stem_channels=16)
SHORT = TrainSettings(epochs=1, batch_size=32, learning_rate=0.1, precision="32-true")
HEAD = "smoke/shapes/published-as-released/seed0"
PUBLISHED = {name for name, method in methods.METHODS.items() if method.published is not None}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home of its own in which the smoke experiments are tiny and run on the CPU."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ERSM_HOME", str(folder))
        patch.setitem(methods.ABLATION_BACKBONE, "smoke", NET)
        patch.setitem(methods.TRAIN, "smoke", SHORT)
        patch.setitem(methods.SHAPES_EPOCHS, "smoke", 1)
        patch.setitem(methods.IMAGES, "smoke", 200)
        brief = replace(protocols.PUBLISHED_TRAINING, epochs=2, batch_size=50, learning_rate=0.05)
        patch.setattr(methods, "PUBLISHED_TRAINING", brief)
        for module in (runs, protocol_runs):
            patch.setattr(module, "make_fabric", functools.partial(make_fabric, device="cpu"))
        yield folder


@pytest.fixture(scope="module")
def made(home):
    """Records of all rows, by method."""
    rows = methods.experiments_of("smoke", dataset="shapes")
    rows = [e for e in rows if e.method in PUBLISHED]
    return {e.method: experiments.run(e, progress=False) for e in rows}


def test_every_row_leaves_a_valid_record(home, made):
    assert set(made) == PUBLISHED
    for record in made.values():
        experiment = experiments.find(record["name"])
        assert experiments.valid_record(experiment) == json.loads(json.dumps(record))
        assert [row["epoch"] for row in record["curve"]] == [0, 1, 2]
        assert record["metrics"]["deletion"]["norm"]["auc"] > 0
        assert runs.only_cached(record) != experiment.checkpoint


def test_rows_differ_in_what_their_names_say():
    rows = methods.experiments_of("laptop", dataset="cifar10")
    rows = {e.method: e.config for e in rows if e.method in PUBLISHED}
    released = rows["published-as-released"]
    assert released.train == methods.PUBLISHED_TRAINING and released.train_images is None
    assert rows["published-no-mask"] == replace(released, mask=None)
    closed = {"fixed_bias": True, "bias_init": 0.0}
    assert rows["published-bias-zero"] == replace(released, mask=closed)
    fast = replace(released.train, learning_rate=1e-2)
    assert rows["published-high-rate"] == replace(released, train=fast)
    assert rows["published-high-rate-no-mask"] == replace(released, mask=None, train=fast)
    assert rows["published-as-written"] == replace(released, mask={}, learned_positions=True)
    network = experiments.find(f"laptop/cifar10/{released.backbone}/seed0")
    assert network.checkpoint  # it must be there to be frozen


def test_starts_are_what_the_rows_say(made):
    start = {method: record["curve"][0] for method, record in made.items()}
    for method, bias in {"as-released": 6, "as-written": 6, "bias-zero": 0, "open": -2}.items():
        found = start[f"published-{method}"]["val_kept_fraction"]
        logit = -math.log(found / (1 - found))
        assert abs(logit - bias) < 0.6  # w starts small
    assert "val_kept_fraction" not in start["published-no-mask"]


def test_as_released_the_bias_never_moves_and_as_written_it_does(home, made):
    experiment = experiments.find("smoke/shapes/published-as-written/seed0")
    model, record = experiments._backbone_of(experiment, False)("ablation-dense")
    for method in ("published-as-released", "published-as-written"):
        experiment = experiments.find(f"smoke/shapes/{method}/seed0")
        reader = protocol_runs.build(experiment, model, classes=10).reader
        features = protocol_runs.Maps().of(experiment, model, record, torch.device("cpu"))
        protocol_runs.fit(reader, *features[:2], experiment.config.train, seed=0, progress=False)
        bias = inference.only_mask(reader).bias
        assert bias.shape == ((8, 8) if method.endswith("written") else ())
        assert torch.equal(bias, torch.full_like(bias, 6.0)) == method.endswith("released")


def test_the_backbone_is_named_and_another_one_makes_the_record_invalid(home, made, monkeypatch):
    base = experiments.train_or_load("ablation-dense", scale="smoke", dataset="shapes").record
    assert made["published-open"]["metrics"]["backbone"] == {
        "test_accuracy": base["metrics"]["test_accuracy"],
        "fingerprint": int(base["checkpoint"]["sha256"][:12], 16),
    }
    experiment = experiments.find(HEAD)
    other = base | {"checkpoint": base["checkpoint"] | {"sha256": "0" * 64}}
    read = experiments._record

    def swapped(asked, root=None):
        return other if asked.method == "ablation-dense" else read(asked, root)

    monkeypatch.setattr(experiments, "_record", swapped)
    assert experiments.valid_record(experiment) is None


def test_a_record_is_restored_with_its_metrics(home, made):
    loaded = experiments.train_or_load("published-as-released", scale="smoke", dataset="shapes")
    assert "loaded" in loaded.note
    assert loaded.record == json.loads(json.dumps(made["published-as-released"]))
    test = data.load("shapes", "test", limit=200)
    features = protocols.cache_features(loaded.model, test)
    experiment = experiments.find(HEAD)
    again = protocol_runs.measure(
        loaded.model.reader, features, config=experiment.config, seed=experiment.seed
    )
    recorded = {k: v for k, v in loaded.record["metrics"].items() if k in again}
    assert again == recorded
    right = answer_bits.unpack(loaded.record["answers"], 200)
    assert torch.equal(right, inference.answers(loaded.model.reader, features))


def test_a_restored_reader_wants_its_own_backbone(home, made):
    experiment, record = experiments.find(HEAD), made["published-as-released"]
    model, base = experiments._backbone_of(experiment, False)("ablation-dense")
    other = base | {"checkpoint": {"sha256": "0" * 64}}
    with pytest.raises(ValueError, match="not the backbone that was recorded"):
        protocol_runs.restore(experiment, record, backbone=lambda _: (model, other))


def test_maps_are_computed_once_a_backbone(home, made):
    experiment = experiments.find("smoke/shapes/published-no-mask/seed0")
    model, record = experiments._backbone_of(experiment, False)("ablation-dense")
    maps, device = protocol_runs.Maps(), torch.device("cpu")
    first = maps.of(experiment, model, record, device)
    other = experiments.find("smoke/shapes/published-as-released/seed0")
    assert maps.of(other, model, record, device) is first
    checkpoint = record["checkpoint"] | {"sha256": "0" * 64}
    assert maps.of(other, model, record | {"checkpoint": checkpoint}, device) is not first


def test_deletion_is_that_of_the_reader_under_0_1_masks(home, made):
    for method in ("published-as-released", "published-patch-2"):
        experiment = experiments.find(f"smoke/shapes/{method}/seed0")
        model, record = experiments._backbone_of(experiment, False)("ablation-dense")
        reader = protocol_runs.build(experiment, model, classes=10).reader
        features = protocol_runs.Maps().of(experiment, model, record, torch.device("cpu"))[2]
        curves = protocol_runs.deletion_curves(reader, features, config=experiment.config, seed=3)
        assert list(curves) == ["logit", "energy", "norm", "centre", "random"]
        z = inference.only_mask(reader).compute(features.maps.float()).logit[:, 0].detach()
        slow = deletion.network_predictor(reader, features)
        assert curves["logit"] == deletion.deletion_curve(slow, -z, features.labels)
        lots = deletion.random_ranking(z.shape, seed=3)
        assert curves["random"] == deletion.deletion_curve(slow, lots, features.labels)
        norms = deletion.token_norms(features.maps, experiment.config.mask.get("patch_size", 1))
        assert curves["norm"] == deletion.deletion_curve(slow, norms, features.labels)


def test_without_energy_there_is_no_ranking_by_it(made):
    without = made["published-lambda-0"]["metrics"]["deletion"]
    assert "logit" in without and "energy" not in without
    assert set(made["published-no-mask"]["metrics"]["deletion"]) == {"norm", "centre", "random"}


def test_token_scores_sum_to_the_logits():
    torch.manual_seed(0)
    maps = protocols.to_cache(torch.randn(7, 6, 4, 4))
    features = protocols.FeatureSet(maps=maps, labels=torch.zeros(7).long(), classes=("a", "b"))
    reader = torch.nn.Sequential()
    reader.add_module("mask", torch.nn.Identity())
    reader.add_module("pool", torch.nn.AdaptiveAvgPool2d(1))
    reader.add_module("flatten", torch.nn.Flatten())
    reader.add_module("head", torch.nn.Linear(6, 2))
    for size in (1, 2):
        scores = protocol_runs.token_scores(reader, features, patch_size=size)
        assert scores.shape == (7, 4 // size, 4 // size, 2)
        total = scores.sum((1, 2)) + reader.head.bias
        torch.testing.assert_close(total, reader(maps.float()))


def test_sparsity_of_known_masks():
    uniform = protocol_runs.sparsity(torch.full((2, 1, 4, 4), 0.01))
    assert uniform == pytest.approx({"above_half": 0.0, "entropy": 1.0})
    single = torch.zeros(2, 1, 4, 4)
    single[:, :, 1, 2] = 1
    assert protocol_runs.sparsity(single) == pytest.approx({"above_half": 1 / 16, "entropy": 0.0})
    half = torch.zeros(1, 1, 4, 4)
    half[..., :2] = 0.8
    found = protocol_runs.sparsity(half)
    assert found == pytest.approx({"above_half": 0.5, "entropy": math.log(8) / math.log(16)})
    assert protocol_runs.sparsity(torch.zeros(1, 1, 4, 4))["entropy"] == 0.0


def test_binarised_mask_has_an_accuracy_of_its_own(made):
    released = made["published-as-released"]["metrics"]
    assert 0 <= released["sparsity"]["accuracy_above_half"] <= 1
    assert "sparsity" not in made["published-no-mask"]["metrics"]
    assert "test_accuracy_flip" not in released  # mirrored maps are no mirrored images
