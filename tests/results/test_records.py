"""Records: valid, atomic, bound to the code that ran, comparable."""

import ast
import copy
import json
import math
import os
import re
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from ersm_lab.results import provenance, records, standing

RECORD = {
    "schema": 2,
    "name": "smoke/shapes/ersm/seed0",
    "method": "ersm",
    "dataset": "shapes",
    "scale": "smoke",
    "seed": 0,
    "config": {"epochs": 2, "mask": {"lambda_pair": 0.03}, "test_images": 8},
    "metrics": {"test_accuracy": 0.5, "mask": {"kept_fraction": 0.7, "spread": None}},
    "tolerance": {"test_accuracy": 0.02, "mask": 0.05, "mask.kept_fraction": 0.1},
    "curve": [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.5}],
    "answers": "8A==",  # four of eight are right
    "seconds": {"train": 3.5, "evaluate": 0.5},
    "device": {
        "type": "cpu",
        "name": "A CPU",
        "cores": 2,
        "threads": 2,
        "memory_gib": 7.8,
        "precision": "32-true",
    },
    "packages": {"python": "3.11.7", "torch": "2.4.0", "lightning": None},
    "git_commit": "0123456789abcdef0123456789abcdef01234567",
    "git_dirty": False,
    "source_hash": "a" * 64,
    "sources": {"ersm_core.py": "b" * 64},
    "probe": {"training/1f": {"protocol": 1, "numbers": {"loss.1": 2.0}}},
    "adopted": None,
    "checkpoint": {"file": "data/checkpoints/smoke.pt", "sha256": "c" * 64},
    "created": "2026-05-04T03:02:01+00:00",
}


def make(**changes):
    """A valid record with some of its top-level fields changed."""
    return copy.deepcopy(RECORD) | changes


def seeds(values, key="test_accuracy"):
    return [
        make(
            name=f"smoke/shapes/ersm/seed{seed}",
            seed=seed,
            tolerance={},
            metrics={key: value},
            answers=None,
        )
        for seed, value in values.items()
    ]


# ------------------------------------------------------------------------------------ write, read


def test_round_trip(tmp_path):
    path = records.write(RECORD, root=tmp_path)
    assert path == tmp_path / "data" / "results" / "smoke" / "shapes" / "ersm" / "seed0.json"
    assert records.read("smoke/shapes/ersm/seed0", root=tmp_path) == RECORD
    assert records.read(path) == records.read(str(path)) == RECORD


def test_fields_lie_in_the_order_of_the_schema(tmp_path):
    path = records.write(dict(reversed(RECORD.items())), root=tmp_path)
    assert list(records.read(path)) == list(RECORD)


def test_write_replaces_and_leaves_nothing_else(tmp_path):
    records.write(RECORD, root=tmp_path)
    path = records.write(make(seconds={"train": 9.0}), root=tmp_path)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]
    assert records.read(path)["seconds"] == {"train": 9.0}


def test_write_that_dies_half_way_leaves_the_old_record(tmp_path, monkeypatch):
    path = records.write(RECORD, root=tmp_path)

    def dies(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", dies)
    with pytest.raises(OSError, match="disk full"):
        records.write(make(seconds={"train": 9.0}), root=tmp_path)
    assert records.read(path) == RECORD
    assert list(path.parent.iterdir()) == [path]


def test_writers_and_readers_at_once_never_meet_a_broken_record(tmp_path):
    versions = [make(curve=[{"epoch": i, "loss": float(n)} for i in range(200)]) for n in range(4)]
    path = records.write(versions[0], root=tmp_path)
    writers = [
        threading.Thread(target=lambda v=v: [records.write(v, root=tmp_path) for _ in range(5)])
        for v in versions
    ]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert records.read(path) in versions
    assert records.read(path) in versions
    assert list(path.parent.iterdir()) == [path]


def test_numpy_torch_tuples_and_dataclasses_become_plain(tmp_path):
    @dataclass(frozen=True)
    class Config:
        widths: tuple[int, ...] = (24, 48)
        folder: Path = Path("data/results")

    record = make(
        config=Config(),
        tolerance={},
        answers=None,
        metrics={"a": np.float32(0.5), "b": torch.tensor(2.0), "c": np.arange(2), "d": np.True_},
    )
    read = records.read(records.write(record, root=tmp_path))
    assert read["config"] == {"widths": [24, 48], "folder": "data/results"}
    assert read["config"] == records.plain(Config())
    assert read["metrics"] == {"a": 0.5, "b": 2.0, "c": [0, 1], "d": True}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, torch.tensor(math.nan)])
def test_what_is_no_number_is_refused_with_its_place(tmp_path, value):
    record = make(metrics={"test_accuracy": 0.5, "mask": {"kept_fraction": value}})
    with pytest.raises(records.RecordError, match=r"metrics\.mask\.kept_fraction is .*give null"):
        records.write(record, root=tmp_path)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"seed": 3}, "seed3"),
        ({"metrics": {"test_accuracy": 7.5}, "tolerance": {}}, "7.5 is not between 0 and 1"),
        ({"answers": "8PA="}, "2 bytes of answers are not those of 8 images"),
        ({"answers": "/w=="}, "8 answers of 8 are right"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(tmp_path, changes, what):
    path = records.write(RECORD, root=tmp_path)
    with pytest.raises(records.RecordError, match=f"contradicts itself: .*{re.escape(what)}"):
        records.write(make(**changes), root=tmp_path)
    path.write_text(json.dumps(make(**changes)))  # edited by hand
    with pytest.raises(records.RecordError, match=re.escape(what)):
        records.read(path)


def test_a_number_too_large_to_hold_is_refused(tmp_path):
    path = records.write(RECORD, root=tmp_path)
    path.write_text(path.read_text().replace("3.5", "1e999"))
    with pytest.raises(records.RecordError, match="1e999 is no number"):
        records.read(path)


def test_what_json_has_no_form_for_is_refused():
    with pytest.raises(records.RecordError, match=r"value\.layer is a set"):
        records.plain({"layer": {1, 2}})


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"extra": 1}, "extra"),
        ({"schema": 1}, "schema"),
        ({"scale": "huge"}, "scale"),
        ({"seed": -1}, "seed"),
        ({"seed": True}, "seed"),
        ({"name": "../outside/seed0"}, "name"),
        ({"name": "/outside/seed0"}, "name"),
        ({"name": "smoke//seed0"}, "name"),
        ({"metrics": {}}, "metrics"),
        ({"metrics": {"test_accuracy": "high"}}, "metrics.test_accuracy"),
        ({"metrics": {"mask": {"kept": "most"}}}, "metrics.mask.kept"),
        ({"tolerance": {"test_accuracy": -0.1}}, "tolerance.test_accuracy"),
        ({"tolerance": {"tset_accuracy": 0.1}}, "tset_accuracy"),
        ({"curve": [{"loss": 1.0}]}, "curve.0"),
        ({"seconds": {"evaluate": 1.0}}, "seconds"),
        ({"device": {"type": "cpu"}}, "device"),
        ({"packages": {"python": "3.11"}}, "packages"),
        ({"git_commit": "abc"}, "git_commit"),
        ({"source_hash": "abc"}, "source_hash"),
        ({"sources": {}}, "sources"),
        ({"checkpoint": {"file": "a.pt"}}, "checkpoint"),
        ({"checkpoint": {"file": "/root/a.pt", "sha256": "c" * 64}}, "checkpoint"),
        ({"created": "yesterday"}, "created"),
    ],
)
def test_invalid_records_are_refused(tmp_path, changes, where):
    with pytest.raises(records.RecordError, match=re.escape(where)):
        records.write(make(**changes), root=tmp_path)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("field", sorted(RECORD))
def test_every_field_is_required(tmp_path, field):
    record = {key: value for key, value in RECORD.items() if key != field}
    with pytest.raises(records.RecordError, match=f"'{field}' is a required property"):
        records.write(record, root=tmp_path)


@pytest.mark.parametrize("field", ["git_commit", "git_dirty", "checkpoint"])
def test_what_may_be_unknown_may_be_null(tmp_path, field):
    assert records.read(records.write(make(**{field: None}), root=tmp_path))[field] is None


def test_unknown_name_gives_the_nearest(tmp_path):
    records.write(RECORD, root=tmp_path)
    with pytest.raises(records.RecordNotFound, match=r"nearest: smoke/shapes/ersm/seed0"):
        records.read("smoke/shape/ersm/seed0", root=tmp_path)
    with pytest.raises(records.RecordNotFound, match="no record at"):
        records.read(tmp_path / "none.json")


def test_damaged_and_misplaced_files_are_named(tmp_path):
    path = records.write(RECORD, root=tmp_path)
    text = path.read_text()
    moved = path.with_name("seed1.json")
    moved.write_text(text)
    with pytest.raises(records.RecordError, match=r"seed1\.json holds the record .*seed0"):
        records.read_all(root=tmp_path)
    moved.unlink()
    path.write_text(text[:100])
    with pytest.raises(records.RecordError, match=r"seed0\.json is not JSON"):
        records.read_all(root=tmp_path)
    path.write_text(text.replace("0.7", "NaN"))
    with pytest.raises(records.RecordError, match="NaN is no number"):
        records.read("smoke/shapes/ersm/seed0", root=tmp_path)


def test_read_all_filters_and_orders(tmp_path):
    assert records.read_all(root=tmp_path) == []
    for scale, dataset, method, seed in [
        ("laptop", "cifar10", "dense", 0),
        ("smoke", "shapes", "ersm", 10),
        ("smoke", "shapes", "ersm", 2),
        ("smoke", "shapes", "dense", 0),
    ]:
        name = f"{scale}/{dataset}/{method}/seed{seed}"
        records.write(
            make(name=name, scale=scale, dataset=dataset, method=method, seed=seed), root=tmp_path
        )

    def names(**asked):
        return [record["name"] for record in records.read_all(root=tmp_path, **asked)]

    ersm = ["smoke/shapes/ersm/seed2", "smoke/shapes/ersm/seed10"]
    dense, laptop = "smoke/shapes/dense/seed0", "laptop/cifar10/dense/seed0"
    assert names() == [dense, *ersm, laptop]
    assert names(method="dense") == [dense, laptop]
    assert names(scale="laptop") == names(dataset="cifar10") == [laptop]
    assert names(scale="laptop", method="ersm") == []


def test_home(tmp_path, monkeypatch):
    monkeypatch.setenv("ERSM_HOME", str(tmp_path / "here"))
    assert records.results_dir() == tmp_path / "here" / "data" / "results"
    assert records.results_dir(tmp_path) == tmp_path / "data" / "results"
    monkeypatch.delenv("ERSM_HOME")
    assert records.home() == Path(__file__).resolve().parents[2]
    monkeypatch.setattr(records, "code_folder", lambda: tmp_path)  # as in site-packages
    monkeypatch.chdir(tmp_path.parent)
    assert records.home() == tmp_path.parent


# ---------------------------------------------------------------------------------------- sources

SOURCE = '''\
"""Module."""
import math  # the library

class Shape:
    """A shape."""

    sides = 3

    def area(self, side, *, name="größe"):  # noqa
        """The area, größer

        over several lines.
        """
        # by the formula
        return f"{name} # is {side * 2:.1f}", "# not a comment"

def grüße(): "Grüße, größer."; return 1

TEXT = """first

  # kept
last"""
'''


def code_of(folder, text):
    (folder / "source.py").write_text(text, encoding="utf-8")
    return records.source_hash(["source.py"], code=folder)[0]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  # the library", ""),
        ("# by the formula", "# by another"),
        ("        # by the formula\n", ""),
        ('"""Module."""\n', ""),
        ('"""Module."""', "'Another.'"),
        ("The area, größer", "Flächeninhalt"),
        ("Grüße, größer.", "Gross."),
        ("        over several lines.\n", "        over\n\n\n        more lines.\n"),
        ("\n\n    def area", "\n    def area"),
        ("sides = 3", "sides = 3   "),
        ("\n", "\r\n"),
    ],
)
def test_prose_keeps_the_source_hash(tmp_path, old, new):
    assert old in SOURCE
    assert code_of(tmp_path, SOURCE.replace(old, new)) == code_of(tmp_path, SOURCE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("sides = 3", "sides = 4"),
        ("side * 2", "side * 3"),
        (":.1f", ":.2f"),
        ("# is", "# was"),
        ("# not a comment", "# a comment"),
        ("größe", "groesse"),
        ("first\n\n", "first\n"),
        ("first\n", "first \n"),
        ("  # kept", "  # changed"),
        ("    sides = 3\n", "    sides = 3\n    'an expression'\n"),
        ("        return", "    return"),
    ],
)
def test_code_changes_the_source_hash(tmp_path, old, new):
    assert old in SOURCE
    assert code_of(tmp_path, SOURCE.replace(old, new)) != code_of(tmp_path, SOURCE)


def test_what_is_hashed_is_the_text_of_the_code():
    """Written out, so that a Python version that tokenises otherwise fails here."""
    assert provenance._code_only(SOURCE).split("\n") == [
        "import math",
        "class Shape:",
        "    sides = 3",
        '    def area(self, side, *, name="größe"):',
        '        return f"{name} # is {side * 2:.1f}", "# not a comment"',
        "def grüße(): ; return 1",
        'TEXT = """first',
        "",
        "  # kept",
        'last"""',
    ]


@pytest.mark.parametrize("file", ["results/provenance.py", "__main__.py"])
def test_without_its_prose_the_code_still_means_the_same(file):
    text = (records.code_folder() / "ersm_lab" / file).read_text(encoding="utf-8")
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.FunctionDef)) and ast.get_docstring(node):
            del node.body[0]
    stripped = provenance._code_only(text)
    assert ast.dump(ast.parse(stripped)) == ast.dump(tree)
    assert "#" not in "".join(line for line in stripped.split("\n") if '"' not in line)


def test_source_hash_of_several_files(tmp_path):
    for name in ("a.py", "b.py", "c.json"):
        (tmp_path / name).write_text("1\n")
    whole, hashes = records.source_hash(["b.py", tmp_path / "a.py"], code=tmp_path)
    assert list(hashes) == ["a.py", "b.py"]
    assert records.source_hash(["a.py", "b.py"], code=tmp_path) == (whole, hashes)
    assert records.source_hash(["a.py", "c.json"], code=tmp_path)[0] != whole
    (tmp_path / "c.json").write_text("1 \n")
    with pytest.raises(FileNotFoundError, match=r"no source gone\.py"):
        records.source_hash(["gone.py"], code=tmp_path)
    with pytest.raises(ValueError, match="lies outside"):
        records.source_hash(["../a.py"], code=tmp_path)
    with pytest.raises(ValueError, match="at least one file"):
        records.source_hash([], code=tmp_path)


def test_sources_are_the_same_until_the_code_changes(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "b.py").write_text("y = 1\n")
    whole, hashes = records.source_hash(["a.py", "b.py"], code=tmp_path)
    record = make(source_hash=whole, sources=hashes)
    assert standing.same_sources(record, code=tmp_path)
    (tmp_path / "a.py").write_text("x = 1  # one\n")
    assert standing.same_sources(record, code=tmp_path)
    (tmp_path / "a.py").write_text("x = 2\n")
    assert not standing.same_sources(record, code=tmp_path)
    (tmp_path / "a.py").write_text("x = (\n")
    assert not standing.same_sources(record, code=tmp_path)
    (tmp_path / "a.py").unlink()
    assert not standing.same_sources(record, code=tmp_path)


# ------------------------------------------------------------------------------------- provenance


def test_provenance_completes_a_record(tmp_path):
    found = records.provenance(
        ["ersm_lab/results/records.py"], device="cpu", precision="bf16-mixed"
    )
    record = make(**found)
    assert records.read(records.write(record, root=tmp_path)) == record
    assert standing.same_sources(record)
    assert found["device"]["threads"] == torch.get_num_threads()
    assert found["device"]["precision"] == "bf16-mixed"
    assert found["packages"]["numpy"] == np.__version__


def test_a_package_that_is_not_installed_has_no_version(monkeypatch):
    monkeypatch.setattr(provenance, "PACKAGES", ("torch", "no-such-package"))
    assert records.describe_packages()["no-such-package"] is None


def test_git_state(tmp_path, monkeypatch):
    for variable in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(variable)  # set when the tests run inside a git hook

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        command = ["git", *identity, *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)

    assert records.git_state(tmp_path) == (None, None)
    git("init")
    assert records.git_state(tmp_path) == (None, None)  # no commit yet
    (tmp_path / "a.py").write_text("x = 1\n")
    git("add", "a.py")
    git("commit", "-m", "one")
    commit = git("rev-parse", "HEAD").stdout.strip()
    assert records.git_state(tmp_path) == (commit, False)
    records.write(RECORD, root=tmp_path)
    assert records.git_state(tmp_path) == (commit, False)  # a record is not a change of the code
    (tmp_path / "b.py").write_text("x = 1\n")
    assert records.git_state(tmp_path) == (commit, True)
    (tmp_path / "installed").mkdir()
    assert records.git_state(tmp_path / "installed") == (None, None)  # the commit of another tree


# ------------------------------------------------------------------------------- judge and compare


def test_flatten():
    nested = {"a": 1, "b": {"c": [2, {"d": None}]}, "e": ()}
    assert records.flatten(nested) == {"a": 1, "b.c.0": 2, "b.c.1.d": None}


def test_compare_with_the_tolerance_of_the_first():
    a = make()
    b = make(
        metrics={"test_accuracy": 0.53, "mask": {"kept_fraction": 0.78, "spread": 0.1}, "new": 1},
        config={"epochs": 3, "mask": {"lambda_pair": 0.03}, "test_images": 8},
        tolerance={},
    )
    rows = {(d.kind, d.name): d for d in records.compare(a, b)}
    assert {key: d.within for key, d in rows.items()} == {
        ("metric", "test_accuracy"): False,
        ("metric", "mask.kept_fraction"): True,  # its own tolerance goes before that of its group
        ("metric", "mask.spread"): False,  # null on one side
        ("metric", "new"): None,  # nothing stated
        ("config", "epochs"): False,
    }
    assert rows["metric", "test_accuracy"].difference == pytest.approx(0.03)
    assert rows["metric", "mask.spread"].tolerance == 0.05
    assert rows["metric", "mask.spread"].difference is None
    assert (rows["config", "epochs"].a, rows["config", "epochs"].b) == (2, 3)
    assert all(d.within is None for d in records.compare(b, a) if d.kind == "metric")


def test_a_record_agrees_with_itself_nulls_included():
    assert [d.within for d in records.compare(RECORD, RECORD)] == [True, True, True]


def test_a_setting_that_is_null_is_as_one_that_is_not_there():
    settings = RECORD["config"]
    a, b = make(config=settings | {"dropped": None}), make(config=settings | {"dropped": "mean"})
    assert not [d for d in records.compare(RECORD, a) if d.kind == "config"]
    for one in (RECORD, a):
        assert [d.within for d in records.compare(one, b) if d.kind == "config"] == [False]


def test_a_metric_that_is_gone_does_not_agree():
    b = make(metrics={"test_accuracy": 0.5, "mask": {"kept_fraction": 0.7}})
    within = {d.name: d.within for d in records.compare(RECORD, b)}
    assert within == {"test_accuracy": True, "mask.kept_fraction": True, "mask.spread": False}


def test_summarise():
    summary = records.summarise(seeds({2: 0.4, 0: 0.5, 1: 0.6}), "test_accuracy")
    assert summary.mean == pytest.approx(0.5)
    assert summary.sd == pytest.approx(0.1)
    assert (summary.n, summary.values, summary.nulls) == (3, {0: 0.5, 1: 0.6, 2: 0.4}, ())


def test_summarise_says_what_is_null_and_knows_no_spread_of_one():
    summary = records.summarise(seeds({0: 0.5, 1: None}), "test_accuracy")
    assert (summary.mean, summary.sd, summary.n, summary.nulls) == (0.5, None, 1, (1,))
    summary = records.summarise(seeds({0: None}), "test_accuracy")
    assert (summary.mean, summary.sd, summary.n) == (None, None, 0)


def test_summarise_refuses_what_has_no_mean():
    with pytest.raises(records.RecordError, match=r"no metric 'tset_accuracy'.*test_accuracy"):
        records.summarise(seeds({0: 0.5}), "tset_accuracy")
    with pytest.raises(records.RecordError, match="no records"):
        records.summarise([], "test_accuracy")
    with pytest.raises(records.RecordError, match="twice"):
        records.summarise(seeds({0: 0.5}) * 2, "test_accuracy")
    with pytest.raises(records.RecordError, match="one experiment"):
        records.summarise([make(), make(name="smoke/shapes/dense/seed1")], "test_accuracy")


def test_the_schema_is_a_schema():
    schema = json.loads(Path(records.__file__).with_name("record.schema.json").read_text())
    records._validator().check_schema(schema)
    assert schema["additionalProperties"] is False
    assert sorted(schema["required"]) == sorted(schema["properties"]) == sorted(RECORD)


def test_markup_in_a_record_is_text_on_a_page():
    name = "A <b>CPU</b> `x` $y$ [z](w) *v*\n# u"
    made = records.without_markup(name)
    from markdown_it import MarkdownIt

    (paragraph,) = [t for t in MarkdownIt("commonmark").parse(made) if t.type == "inline"]
    assert {child.type for child in paragraph.children} <= {"text", "text_special"}
    assert "".join(child.content for child in paragraph.children) == " ".join(name.split())
