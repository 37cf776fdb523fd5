"""Runs and the list of experiments: recorded, restored, resumed, and loaded instead of trained."""

import functools
import hashlib
import json
from dataclasses import replace

import pytest
import torch
from conftest import Killed

from ersm_core import EnergyMask
from ersm_lab.evaluation import inference
from ersm_lab.images import data
from ersm_lab.networks.backbones import LAPTOP, CifarNet, CifarNetSettings
from ersm_lab.results import answer_bits, provenance, records, standing
from ersm_lab.training import experiments, methods, runs
from ersm_lab.training.build import build
from ersm_lab.training.config import Config, Experiment, MaskPlace
from ersm_lab.training.loop import TrainSettings

NET = CifarNetSettings(widths=(8, 12), depth=1, stem_channels=16)
SHORT = TrainSettings(
    epochs=2, batch_size=32, learning_rate=0.1, mask_start=0.5, precision="32-true"
)
TINY = Experiment(
    method="ersm",
    dataset="shapes",
    scale="smoke",
    seed=0,
    config=Config(
        backbone=NET,
        train=SHORT,
        mask=MaskPlace(layer="group1", preset="stable"),
        train_images=64,
        test_images=50,
    ),
    tolerance={"test_accuracy": 0.1},
)

pytestmark = pytest.mark.usefixtures("on_the_cpu")


@pytest.fixture(scope="module")
def record(home):
    """The record of one tiny run."""
    return runs.run(TINY, root=home, progress=False)


def changed(**config):
    return replace(TINY, config=replace(TINY.config, **config))


def edited(record, root, **changes):
    """Writes a changed record below another home."""
    records.write(record | changes, root=root)


# --- run -------------------------------------------------------------------------------------------


def test_a_run_writes_a_valid_record(home, record):
    assert records.read("smoke/shapes/ersm/seed0", root=home) == json.loads(json.dumps(record))
    assert record["config"] == records.plain(TINY.config)
    assert record["tolerance"] == {"test_accuracy": 0.1}
    assert [row["epoch"] for row in record["curve"]] == [1, 2]
    assert all(0 <= row["val_accuracy"] <= 1 for row in record["curve"])
    assert record["seconds"]["train"] == record["curve"][-1]["seconds"]
    assert record["device"]["precision"] == "32-true" and record["device"]["type"] == "cpu"
    metrics = record["metrics"]
    assert 0 <= metrics["val_accuracy"] <= 1
    assert metrics["invariants"]["mask_min"] >= 0 and metrics["invariants"]["mask_max"] <= 1


def test_a_run_leaves_its_checkpoint_and_no_trace_of_resuming(home, record):
    files = {p.relative_to(home).as_posix() for p in home.rglob("*") if p.is_file()}
    files = {name for name in files if not name.startswith("data/cache/trunks/")}
    assert files == {
        "data/results/smoke/shapes/ersm/seed0.json",
        record["checkpoint"]["file"],
    }
    digest = record["checkpoint"]["sha256"]
    named = f"data/checkpoints/smoke/shapes/ersm/seed0-{digest[:8]}.pt"
    assert record["checkpoint"]["file"] == named
    assert hashlib.sha256((home / named).read_bytes()).hexdigest() == digest


def test_a_record_names_the_sources_that_ran():
    named = {path.name for path in provenance.code_of(runs.__file__)}
    assert {"runs.py", "loop.py", "backbones.py", "shapes.py", "ersm_core.py"} <= named
    assert not named & {"judging.py", "protocol_runs.py", "figures.py", "__main__.py"}


def test_a_killed_run_goes_on_and_ends_the_same(tmp_path, record, monkeypatch):
    with monkeypatch.context() as patch:
        calls = []

        def die(model, images, **settings):
            calls.append(len(images))
            if len(calls) == 2:
                raise Killed
            return 0.125

        patch.setattr(inference, "accuracy", die)
        with pytest.raises(Killed):
            runs.run(TINY, root=tmp_path, progress=False)
    (left,) = (tmp_path / "data" / "cache" / "training").rglob("*.pt")
    again = runs.run(TINY, root=tmp_path, progress=False)
    assert again["curve"][0]["val_accuracy"] == 0.125  # from before the kill
    assert again["curve"][1]["loss"] == record["curve"][1]["loss"]
    assert again["metrics"] == record["metrics"]
    assert again["checkpoint"] == record["checkpoint"]
    assert not left.exists()


def test_a_killed_run_of_other_settings_is_not_gone_on_with(tmp_path, record, monkeypatch):
    other = changed(mask=MaskPlace(layer="group1", preset="stable", settings={"lambda_pair": 3.0}))
    with monkeypatch.context() as patch:
        patch.setattr(inference, "evaluate", lambda *_: pytest.fail("not reached"))
        patch.setattr(runs, "halve", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            runs.run(other, root=tmp_path, progress=False)
    again = runs.run(TINY, root=tmp_path, progress=False)
    assert again["metrics"] == record["metrics"]


# --- build and restore -----------------------------------------------------------------------------


def test_a_network_is_drawn_from_the_seed_alone(tmp_path):
    first, again = (build(TINY, classes=10).state_dict() for _ in range(2))
    other = build(replace(TINY, seed=1), classes=10).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_the_dense_and_the_masked_network_start_alike():
    dense = build(changed(mask=None), classes=10)
    masked = build(TINY, classes=10).state_dict()
    assert all(torch.equal(value, masked[name]) for name, value in dense.state_dict().items())
    assert not [m for m in dense.modules() if isinstance(m, EnergyMask)]


def test_a_backbone_is_a_cifarnet_or_resnet18():
    assert isinstance(build(TINY, classes=7), CifarNet)
    model = build(changed(backbone="resnet18", mask=MaskPlace(layer="layer3")), classes=7)
    assert model.fc.out_features == 7 and inference.only_mask(model).channels == 256


def test_a_restored_network_has_the_recorded_metrics(home, record):
    model = runs.restore(TINY, record, root=home)
    test = data.load("shapes", "test", limit=50)
    metrics = inference.evaluate(model, test)
    assert metrics == {k: v for k, v in record["metrics"].items() if not k.startswith("val")}
    assert not any(module.training for module in model.modules())


def test_restoring_needs_no_data(home, record, monkeypatch):
    monkeypatch.setattr(data, "load", lambda *_, **__: pytest.fail("data were asked for"))
    runs.restore(TINY, record, root=home)


def test_another_checkpoint_than_the_recorded_one_is_refused(tmp_path, home, record):
    path = tmp_path / record["checkpoint"]["file"]
    path.parent.mkdir(parents=True)
    content = (home / record["checkpoint"]["file"]).read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match="is not the file that was recorded"):
        runs.restore(TINY, record, root=tmp_path)


def test_a_missing_checkpoint_is_an_error_of_its_own(tmp_path, record):
    with pytest.raises(FileNotFoundError):
        runs.restore(TINY, record, root=tmp_path)


def test_what_is_saved_is_what_is_evaluated_at_half_the_size():
    model = build(TINY, classes=10)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = runs.halve(model)
    for name, value in model.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, state[name].to(value.dtype))
        assert (state[name].dtype == torch.float16) == (value.dim() > 1)
        torch.testing.assert_close(value, before[name], atol=1e-7, rtol=1e-3)
    model.head.weight.data.zero_()  # a change of the model leaves what is saved alone
    assert state["head.weight"].any()


# --- records that count ----------------------------------------------------------------------------


def test_a_record_counts_while_settings_and_sources_are_the_same(home, record):
    assert experiments.valid_record(TINY, root=home) == records.read(TINY.name, root=home)


@pytest.mark.parametrize(
    "config",
    [
        {"train": replace(SHORT, epochs=3)},
        {"mask": MaskPlace(layer="group2", preset="stable")},
        {"mask": None},
        {"test_images": 51},
    ],
)
def test_a_record_of_other_settings_does_not_count(home, record, config):
    assert experiments.valid_record(changed(**config), root=home) is None


def test_a_record_of_other_sources_does_not_count(tmp_path, record):
    edited(record, tmp_path, source_hash="0" * 64)
    assert experiments.valid_record(TINY, root=tmp_path) is None


def test_without_a_record_none_counts(tmp_path):
    assert experiments.valid_record(TINY, root=tmp_path) is None


# --- the list --------------------------------------------------------------------------------------


def test_what_was_chosen_is_tried_again_on_seeds_of_its_own():
    pairs = {
        "fresh-dense": "dense",
        "fresh-ersm": "ersm-after-group2-0.012",
        "fresh-pair": "ersm-after-group2-pair",
    }
    rows = methods.experiments_of("laptop", dataset="cifar10")
    for fresh, chosen in pairs.items():
        again = [e for e in rows if e.method == fresh]
        first = [e for e in rows if e.method == chosen]
        assert {e.seed for e in again} == {3, 4, 5, 6, 7} and {e.seed for e in first} == {0, 1, 2}
        assert all(e.config == first[0].config for e in again)
    (smoke,) = [e for e in methods.experiments_of("smoke") if e.method == "fresh-ersm"]
    assert smoke.seed == 0


def test_laptop_has_dense_and_masked_networks_with_three_seeds_each():
    rows = methods.experiments_of("laptop", dataset="cifar10")
    assert len({e.name for e in rows}) == len(rows)
    for method in ("dense", "ersm"):
        chosen = [e for e in rows if e.method == method]
        assert [e.seed for e in chosen] == [0, 1, 2]
        assert len({repr(replace(e, seed=0)) for e in chosen}) == 1  # nothing else differs
        assert chosen[0].config.backbone == LAPTOP and chosen[0].config.train_images is None
        assert (chosen[0].config.mask is None) == (method == "dense")
    train = {repr(e.config.train) for e in rows if e.method in ("dense", "ersm")}
    assert len(train) == 1  # both are trained alike


def test_a_row_of_the_ablation_differs_from_its_masked_network_in_what_its_name_says():
    rows = {e.method: e for e in methods.experiments_of("laptop", dataset="cifar10") if not e.seed}
    base = rows["ablation-ersm"].config
    for name, settings in {
        "soft-gate": {"hard": False},
        "attached-pairwise": {"detach_pairwise": False},
        "unary-only": {"lambda_pair": 0.0},
        "eight-neighbours": {"neighbourhood": 8},
    }.items():
        mask = replace(base.mask, settings=base.mask.settings | settings)
        assert rows[name].config == replace(base, mask=mask)
    assert rows["no-ramp"].config == replace(base, train=replace(base.train, mask_ramp=0.0))
    assert rows["ablation-dense"].config == replace(base, mask=None)
    corners = ["ablation-ersm", "unary-only", "pair-only", "no-energy"]
    grid = corners + [name for name in rows if name.startswith("grid-")]
    weights = {repr(experiments.lambdas(rows[name])) for name in grid}
    assert len(weights) == len(grid) == len(methods.LAMBDAS) ** 2


@pytest.mark.parametrize("scale", ["smoke", "laptop", "full"])
def test_every_experiment_can_be_found_built_and_written_down(scale, monkeypatch):
    monkeypatch.setattr(methods, "experiments_of", functools.cache(methods.experiments_of))
    for experiment in methods.experiments_of(scale, dataset="shapes"):
        assert experiments.find(experiment.name) == experiment
        assert json.loads(json.dumps(records.plain(experiment.config)))
        assert set(experiment.tolerance) == {"test_accuracy"}
        if experiment.seed == 0 and isinstance(experiment.config, Config):
            with torch.device("cpu" if scale == "smoke" else "meta"):  # wide: without its weights
                build(experiment, classes=10)


def test_the_data_set_is_the_default_one_unless_named(monkeypatch):
    monkeypatch.setattr(data, "default_dataset", lambda: "shapes")
    assert {e.dataset for e in methods.experiments_of("smoke")} == {"shapes"}


def test_an_unknown_scale_data_set_or_name_is_an_error_that_names_known_ones():
    with pytest.raises(ValueError, match="one of smoke, laptop, full, got 'huge'"):
        methods.experiments_of("huge", dataset="shapes")
    with pytest.raises(ValueError, match="no data set 'mnist': choose one of cifar10"):
        methods.experiments_of("smoke", dataset="mnist")
    with pytest.raises(LookupError, match=r"nearest names: .*laptop/cifar10/ersm/seed0"):
        experiments.find("laptop/cifar10/ersm/seed7")


def test_methods_that_differ_in_nothing_but_their_mask_share_their_trunk(tmp_path):
    def place(experiment):
        return runs.trunk_path(experiment, tmp_path)

    train = TINY.config.train
    assert place(TINY) == place(changed(mask=None))
    assert place(TINY) == place(changed(train=replace(train, mask_lr_factor=9.0, mask_ramp=0.0)))
    assert place(TINY) != place(changed(train=replace(train, mask_start=0.0)))
    assert place(TINY) != place(changed(train=replace(train, learning_rate=0.2)))
    assert place(TINY) != place(replace(TINY, seed=1))


def test_a_run_from_a_trunk_gives_the_metrics_of_one_without(tmp_path, record):
    runs.run(changed(mask=None), root=tmp_path, progress=False)
    branched = runs.run(TINY, root=tmp_path, progress=False)
    assert branched["metrics"] == record["metrics"]
    assert branched["answers"] == record["answers"]
    assert 0 < branched["seconds"]["shared"] < branched["seconds"]["train"]
    assert record["seconds"]["shared"] == 0


def test_answers_are_those_of_the_restored_network(home, record):
    images = data.load("shapes", "test", limit=50)
    right = answer_bits.unpack(record["answers"], 50)
    assert torch.equal(right, inference.answers(runs.restore(TINY, record, root=home), images))
    assert right.double().mean().item() == record["metrics"]["test_accuracy"]


def test_many_answers_are_deflated_and_come_back_bit_for_bit():
    few, many = torch.rand(999) < 0.9, torch.rand(900_000) < 0.97
    assert torch.equal(answer_bits.unpack(answer_bits.pack(few), 999), few)
    text = answer_bits.pack(many)
    assert len(text) < 0.5 * 900_000 / 6
    assert torch.equal(answer_bits.unpack(text, 900_000), many)


def test_weights_that_the_repository_does_not_keep_are_cached_and_may_be_absent(tmp_path):
    row = replace(TINY, checkpoint=False)
    made = runs.run(row, root=tmp_path, progress=False)
    assert runs.only_cached(made) and not (tmp_path / "data" / "checkpoints").exists()
    assert runs.restore(row, made, root=tmp_path)
    path = runs.weights_file(made, root=tmp_path)
    content = path.read_bytes()
    path.unlink()
    assert runs.weights_wrong(made, root=tmp_path) == ""  # as on any machine but the one it ran on
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "not the file that was recorded" in runs.weights_wrong(made, root=tmp_path)


# --- train or load ---------------------------------------------------------------------------------


@pytest.fixture
def tiny_scale(tmp_path, monkeypatch):
    """A home of its own in which the smoke experiments are tiny."""
    monkeypatch.setenv("ERSM_HOME", str(tmp_path))
    monkeypatch.setitem(methods.BACKBONE, "smoke", NET)
    monkeypatch.setitem(methods.ABLATION_BACKBONE, "smoke", NET)
    monkeypatch.setitem(methods.TRAIN, "smoke", replace(SHORT, epochs=1))
    monkeypatch.setitem(methods.SHAPES_EPOCHS, "smoke", 1)
    monkeypatch.setitem(methods.IMAGES, "smoke", 50)
    return tmp_path


def train_or_load(method="ersm", **settings):
    settings = {"scale": "smoke", "dataset": "shapes", "progress": False} | settings
    return experiments.train_or_load(method, **settings)


def test_a_row_that_keeps_no_checkpoint_can_be_loaded_all_the_same(tiny_scale):
    assert not methods.METHODS["soft-gate"].checkpoint
    first, second = train_or_load("soft-gate"), train_or_load("soft-gate")
    assert "trained now" in first.note and "loaded" in second.note
    assert not inference.only_mask(second.model).hard


def test_the_first_call_trains_and_the_second_loads(tiny_scale, monkeypatch):
    first = train_or_load()
    monkeypatch.setattr(experiments, "run", lambda *_, **__: pytest.fail("trained again"))
    second = train_or_load()
    assert "trained now" in first.note and "loaded" in second.note
    assert "smoke/shapes/ersm/seed0" in second.note
    assert second.record == json.loads(json.dumps(first.record))
    images = data.load("shapes", "test", limit=20)
    assert torch.equal(
        inference.predict(first.model, images), inference.predict(second.model, images)
    )
    assert inference.only_mask(second.model) is not None


def test_what_is_trained_on_the_way_leaves_the_books_records_alone(tiny_scale):
    train_or_load("dense")
    assert records.read_all(root=tiny_scale) == []
    assert not (tiny_scale / "data" / "checkpoints").exists()
    kept = records.read_all(root=tiny_scale / "data" / "cache" / "runs")
    assert [r["name"] for r in kept] == ["smoke/shapes/dense/seed0"]


def test_a_record_of_the_book_is_loaded_also_when_the_sources_have_changed(tiny_scale, monkeypatch):
    experiment = experiments.find("smoke/shapes/ersm/seed0")
    made = experiments.run(experiment, root=tiny_scale, progress=False)
    monkeypatch.setattr(experiments, "run", lambda *_, **__: pytest.fail("trained again"))
    assert train_or_load().note.endswith(")")
    then = {"training/1f": {"protocol": 1, "numbers": {"loss.1": 1.0}}}
    edited(made, tiny_scale, source_hash="0" * 64, probe=then)
    assert "the code has changed since: `python -m ersm_lab probe`" in train_or_load().note
    monkeypatch.setattr(standing, "known", lambda: then)
    assert train_or_load().note.endswith(")")
    edited(
        made,
        tiny_scale,
        source_hash="0" * 64,
        probe={"training/1f": then["training/1f"] | {"protocol": 2}},
    )
    assert "the code gives something else today" in train_or_load().note


def test_a_record_that_fits_todays_network_no_longer_is_trained_again(tiny_scale, monkeypatch):
    experiment = experiments.find("smoke/shapes/ersm/seed0")
    made = experiments.run(experiment, root=tiny_scale, progress=False)
    restore = runs.restore

    def misfit(experiment, record, *, root):
        if root == tiny_scale:
            raise RuntimeError("size mismatch for group1.0.weight")
        return restore(experiment, record, root=root)

    monkeypatch.setattr(runs, "restore", misfit)
    with pytest.raises(RuntimeError, match="size mismatch"):
        train_or_load()  # the sources are the same: something is wrong
    edited(made, tiny_scale, source_hash="0" * 64)
    assert "trained now" in train_or_load().note


def test_how_a_mask_is_trained_is_no_setting_of_a_network_without_one(record):
    def why_not(config, **train):
        made = record | {"config": records.plain(config), "checkpoint": None}
        now = replace(config, train=replace(config.train, **train))
        return experiments.why_not(replace(TINY, config=now, checkpoint=False), made)

    dense = replace(TINY.config, mask=None)
    assert why_not(dense, mask_ramp=0.2) == ""
    assert "train.mask_ramp was 0.1, is 0.2" in why_not(TINY.config, mask_ramp=0.2)
    assert "train.momentum was 0.85, is 0.5" in why_not(dense, momentum=0.5)


def test_what_other_sources_left_in_the_cache_is_trained_again(tiny_scale):
    made = train_or_load().record
    edited(made, tiny_scale / "data" / "cache" / "runs", source_hash="0" * 64)
    assert "trained now" in train_or_load().note


def test_a_record_without_its_checkpoint_is_trained_again(tiny_scale):
    made = train_or_load().record
    (tiny_scale / "data" / "cache" / "runs" / made["checkpoint"]["file"]).unlink()
    assert "trained now" in train_or_load().note


def test_the_scale_is_taken_from_the_environment(tiny_scale, monkeypatch):
    monkeypatch.setenv("ERSM_SCALE", "smoke")
    assert train_or_load("dense", scale=None).record["scale"] == "smoke"


@pytest.mark.parametrize(("method", "seed"), [("ersn", 0), ("ersm", 9)])
def test_an_unknown_method_or_seed_is_an_error(method, seed):
    with pytest.raises(LookupError, match=f"no '{method}' with seed {seed} at smoke scale"):
        train_or_load(method, seed=seed)


def test_a_mask_in_two_places_is_one_setting_for_both():
    place = MaskPlace(layer=("group1", "group2"), preset="stable", settings={"dim": 4})
    model = build(changed(mask=place), classes=10)
    masks = inference.energy_masks(model)
    assert list(masks) == ["group1", "group2"]
    assert {mask.weight.shape for mask in masks.values()} == {(4,)}
