"""The graphs of the demo page compute what torch computes, and the committed ones are today's."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ersm_attach import attach_energy_mask
from ersm_lab import demo_export
from ersm_lab.__main__ import main
from ersm_lab.evaluation.inference import evaluating, only_mask, replaced_mask
from ersm_lab.images import data, painted_scenes
from ersm_lab.networks.backbones import CifarNet, CifarNetSettings
from ersm_lab.results import records
from ersm_lab.training import experiments, runs

pytest.importorskip("onnxscript", reason="exporting needs onnxscript")
pytest.importorskip("onnxruntime", reason="running a graph needs onnxruntime")

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "book" / "_static" / "demo"
TINY = CifarNetSettings(widths=(24, 16), depth=2, stem_channels=16)


def network(*, masked, seed=0):
    torch.manual_seed(seed)
    model = CifarNet(TINY, classes=len(demo_export.CLASSES))
    if masked:
        attach_energy_mask(model, "group1", preset="stable", bias_init=0.0)
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.kaiming_normal_(weight)
    model.head.weight.data *= 9  # answers that differ
    runs.halve(model)
    return model.eval()


@pytest.fixture(scope="module")
def images():
    return demo_export.checked_images(demo_export.samples()[0])[::8]  # (N, 32, 32, 3)


@pytest.fixture(scope="module")
def dense():
    model = network(masked=False)
    return model, demo_export.export_network(model)


@pytest.fixture(scope="module")
def masked(images):
    model = network(masked=True)
    with evaluating(model):  # half of the tokens kept, and no z within rounding of 0
        model(demo_export.normalise(images))
        z = only_mask(model).state.logit.flatten().sort().values
        middle = z[len(z) // 4 : -len(z) // 4]
        widest = middle.diff().argmax()
        only_mask(model).bias -= (middle[widest] + middle[widest + 1]) / 2
    return model, demo_export.export_network(model)


def answers(model, images, mask=None):
    with evaluating(model):
        if mask is None:
            return model(demo_export.normalise(images)).numpy()
        with replaced_mask(only_mask(model), lambda m: torch.full_like(m, mask)):
            return model(demo_export.normalise(images)).numpy()


def test_a_dense_graph_computes_what_torch_computes(dense, images):
    model, graph = dense
    found = demo_export.run_graph(graph, images)["logits"]
    np.testing.assert_allclose(found, answers(model, images), atol=1e-4)
    assert demo_export.largest_difference(model, graph, images) == pytest.approx(
        np.abs(found - answers(model, images)).max(), abs=1e-5
    )
    assert found.std(0).max() > 1e-2  # the images had something to say


def test_an_export_leaves_the_network_as_it_is_and_no_path_in_the_file(dense, masked):
    for model, graph in (dense, masked):
        assert str(ROOT).encode() not in graph and b".py" not in graph
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
        assert not any("parametrizations" in name for name, _ in model.named_modules())


def test_threshold_zero_is_the_ordinary_pass(masked, images):
    model, graph = masked
    found = demo_export.run_graph(graph, images, threshold=0.0)
    np.testing.assert_allclose(found["logits"], answers(model, images), atol=1e-4)
    state = only_mask(model).state
    for name, expected in {"energy": state.energy, "z": state.logit, "mask": state.mask}.items():
        np.testing.assert_allclose(found[name], expected.numpy(), atol=1e-5, err_msg=name)
    assert 0.1 < found["mask"].mean() < 0.9


@pytest.mark.parametrize(("threshold", "mask"), [(-np.inf, 0.0), (np.inf, 1.0)])
def test_an_infinite_threshold_keeps_nothing_or_everything(masked, images, threshold, mask):
    model, graph = masked
    found = demo_export.run_graph(graph, images, threshold=threshold)
    assert (found["mask"] == mask).all()
    np.testing.assert_allclose(found["logits"], answers(model, images, mask), atol=1e-4)
    assert np.abs(found["logits"] - answers(model, images)).max() > 1e-2


def test_the_mask_is_of_the_tokens_below_the_threshold(masked, images):
    found = demo_export.run_graph(masked[1], images, threshold=0.125)
    np.testing.assert_array_equal(found["mask"], found["z"] < np.float32(0.125))


def test_a_graph_of_other_weights_is_not_published(masked, images):
    with pytest.raises(ValueError, match=r"do not publish it|from torch, more than"):
        demo_export.largest_difference(network(masked=True, seed=1), masked[1], images)


def test_a_soft_mask_and_fine_weights_are_refused():
    soft = CifarNet(TINY)
    attach_energy_mask(soft, "group1", preset="stable", hard=False)
    with pytest.raises(ValueError, match="use hard=True"):
        demo_export.export_network(soft)
    fine = CifarNet(TINY)
    fine.head.weight.data.fill_(1 / 3)
    with pytest.raises(ValueError, match=r"runs\.halve rounds them"):
        demo_export.export_network(fine)


def test_a_missing_package_is_named():
    with pytest.raises(LookupError, match=r"needs no_such_package: pip install -e '\.\[test\]'"):
        demo_export._needed("no_such_package")


@pytest.fixture
def tiny(monkeypatch, masked):
    graphs = {False: b"dense", True: masked[1]}
    model = {"dense": network(masked=False), "ersm": masked[0]}
    kinds = {name: kind for kind, name in demo_export.RECORDS.items()}
    found = {"checkpoint": {"sha256": "0" * 64}, "metrics": {"test_accuracy": 0.5}}
    monkeypatch.setattr(records, "read", lambda name: found | {"name": name})
    monkeypatch.setattr(runs, "restore", lambda e, record: model[kinds[record["name"]]])
    monkeypatch.setattr(demo_export, "export_network", lambda m: graphs[m is masked[0]])
    monkeypatch.setattr(demo_export, "largest_difference", lambda *_: 1e-6)


def test_the_command_writes_what_its_manifest_says(tiny, tmp_path, capsys):
    assert main(["export-demo", "--to", str(tmp_path)]) == 0
    assert "12 sample images" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    for entry in manifest["networks"].values():
        content = (tmp_path / entry["file"]).read_bytes()
        assert demo_export.file_entry(entry["file"], content).items() <= entry.items()
    pictures, _ = demo_export.samples()
    for entry, picture in zip(manifest["samples"], pictures, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / entry["file"])), picture)
    for low, high in manifest["ranges"].values():
        assert low < high


def test_a_network_that_is_too_large_is_not_written(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(demo_export, "LARGEST", 4)
    with pytest.raises(ValueError, match=r"dense\.onnx has 5 bytes: more than 4"):
        demo_export.export_demo(tmp_path)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------- what is committed


@pytest.fixture(scope="module")
def manifest():
    return json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))


def again(kind):
    return f"the demo's {kind} is another: run python -m ersm_lab export-demo"


def test_the_manifest_is_of_the_committed_files(manifest):
    entries = [(FOLDER, entry) for entry in manifest["networks"].values()]
    engine = FOLDER.parent / "vendor" / "onnxruntime-web"
    entries += [(engine, entry) for entry in manifest["engine"]["files"]]
    for folder, entry in entries:
        content = (folder / entry["file"]).read_bytes()
        expected = demo_export.file_entry(entry["file"], content)
        assert expected.items() <= entry.items(), again(entry["file"])
    assert manifest["engine"] == demo_export.engine(engine) and manifest["engine"]["version"]
    assert all(e["bytes"] < demo_export.LARGEST for e in manifest["networks"].values())
    named = {e["file"] for e in [*manifest["networks"].values(), *manifest["samples"]]}
    lying = {path.name for path in FOLDER.iterdir()}
    assert lying == named | {"demo.js", "demo.css", "manifest.json"}


@pytest.mark.parametrize("kind", demo_export.RECORDS)
def test_the_networks_are_those_of_the_records(manifest, kind):
    entry = manifest["networks"][kind]
    record = records.read(demo_export.RECORDS[kind])
    assert entry["record"] == record["name"]
    assert entry["checkpoint_sha256"] == record["checkpoint"]["sha256"], again("network")
    assert entry["test_accuracy"] == record["metrics"]["test_accuracy"]
    checkpoint = records.home() / record["checkpoint"]["file"]
    if not checkpoint.is_file():
        pytest.skip(f"{checkpoint} is not there")
    assert hashlib.sha256(checkpoint.read_bytes()).hexdigest() == entry["checkpoint_sha256"]


@pytest.mark.parametrize("kind", demo_export.RECORDS)
def test_the_committed_graphs_compute_what_torch_computes(manifest, kind, images):
    experiment = experiments.find(demo_export.RECORDS[kind])
    try:
        model = runs.restore(experiment, records.read(experiment.name))
    except FileNotFoundError as error:
        pytest.skip(f"no checkpoint: {error}")
    entry = manifest["networks"][kind]
    graph = (FOLDER / entry["file"]).read_bytes()
    assert demo_export.largest_difference(model, graph, images) < manifest["tolerance"]
    assert entry["bytes"] < 0.6 * 4 * sum(p.numel() for p in model.parameters())  # half precision
    assert entry["largest_difference"] < manifest["tolerance"] == demo_export.TOLERANCE


def test_the_samples_are_what_the_code_draws(manifest):
    pictures, described = demo_export.samples()
    assert manifest["samples"] == described
    for entry, picture in zip(described, pictures, strict=True):
        committed = np.asarray(Image.open(FOLDER / entry["file"])).astype(int)
        apart = np.abs(committed - picture.numpy())
        assert apart.mean() < 0.5, (
            f"{entry['file']}: {again('picture')}"
        )  # Pillow may round otherwise


def test_the_page_tells_the_truth_about_its_scenes(manifest):
    """Painted to resemble a class: right but for one, which misleads both networks."""
    pictures, described = demo_export.samples()
    meant = [entry["class"] for entry in described if entry["class"]]
    assert [entry["class"] for entry in described[len(meant) :]] == [None] * 3
    wrong = {}
    for kind, threshold in {"dense": None, "ersm": 0.0}.items():
        graph = (FOLDER / manifest["networks"][kind]["file"]).read_bytes()
        found = demo_export.run_graph(graph, pictures[: len(meant)], threshold=threshold)
        said = [manifest["classes"][c] for c in found["logits"].argmax(1)]
        wrong[kind] = {m for m, s in zip(meant, said, strict=True) if m != s}
    assert wrong["dense"] == wrong["ersm"] and len(wrong["dense"]) == 1


def test_classes_and_normalisation_are_those_of_cifar10():
    if data.locate("cifar10") is None:
        pytest.skip("CIFAR-10 is not on this machine")
    loaded = data.load("cifar10", "test", limit=2)
    assert loaded.classes == demo_export.CLASSES
    assert (loaded.mean, loaded.std) == (demo_export.MEAN, demo_export.STD)


# ----------------------------------------------------------------------------------- painted scenes


def test_scenes_are_pictures_of_their_own_and_the_same_every_time():
    pictures = [painted_scenes.painted_scene(name) for name in painted_scenes.SCENES]
    for name, picture in zip(painted_scenes.SCENES, pictures, strict=True):
        assert picture.shape == (32, 32, 3) and picture.dtype == np.uint8
        np.testing.assert_array_equal(picture, painted_scenes.painted_scene(name))
        assert painted_scenes.SCENES[name].meant in demo_export.CLASSES
    far = [np.abs(a.astype(int) - b).mean() for a in pictures for b in pictures if a is not b]
    assert min(far) > 10
    with pytest.raises(ValueError, match=r"no scene 'whale': choose one of ship, "):
        painted_scenes.painted_scene("whale")
