"""The tools catch what they are there to catch."""

from __future__ import annotations

import base64
import hashlib
import itertools
import os
import subprocess
import sys
from pathlib import Path

import execute_notebooks
import nbformat
import nbformat.v4 as v4
import pytest
import stored_outputs
import torch
import yaml
from build_book import announce, gather, slim
from check_book import check_book
from coverage_by_room import rooms
from execute_notebooks import clean, problems
from watched import STOPPED, Watch, run_side_by_side, run_watched

from ersm_lab.results import records

ROOT = Path(__file__).resolve().parents[2]
TEXT = "Some words, enough of them that nobody would call this page an empty one."
PICTURE = b"a picture"
FIGURE = hashlib.sha256(PICTURE).hexdigest() + ".png"


def page(title: str, body: str) -> str:
    return (
        f"<html><head><title>1. {title} — the book</title></head><body><article>"
        f'<section id="top"><h1>1. {title}<a class="headerlink" href="#top">#</a></h1>'
        f"{body}</section></article></body></html>"
    )


def figure_cell(*, kind: str = "image/png"):
    data = {kind: base64.b64encode(PICTURE).decode()}
    return v4.new_code_cell(
        "draw()", execution_count=1, outputs=[v4.new_output("display_data", data)]
    )


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A sound book of two pages and one figure."""
    for folder in ("html/book", "html/notebooks", "html/_images", "stage/notebooks"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "stage/_toc.yml").write_text(
        "format: jb-book\nroot: book/intro\nchapters:\n- file: notebooks/one\n"
    )
    notebook = v4.new_notebook(cells=[figure_cell()])
    (tmp_path / "stage/notebooks/one.ipynb").write_text(v4.writes(notebook))
    (tmp_path / "html/index.html").write_text("<html></html>")
    link = '<a href="../notebooks/one.html#top">on</a>'
    (tmp_path / "html/book/intro.html").write_text(page("Intro", TEXT + link))
    image = f'<img alt="A line that rises." src="../_images/{FIGURE}"/>'
    (tmp_path / "html/notebooks/one.html").write_text(page("One", TEXT + image))
    (tmp_path / "html/_images" / FIGURE).write_bytes(PICTURE)
    return tmp_path


def test_a_sound_book_passes(site):
    report = check_book(site / "html", site / "stage")
    assert (report.pages, report.figures, report.problems) == (2, 1, [])


def test_a_picture_may_be_stored_in_its_page(site):
    path = site / "html/notebooks/one.html"
    image = f'<img alt="A frame." src="data:image/png;base64,{"A" * 10_000}"/>'
    path.write_text(path.read_text().replace("</section>", image + "</section>"))
    assert check_book(site / "html", site / "stage").problems == []


@pytest.mark.parametrize(
    ("file", "old", "new", "complaint"),
    [
        ("book/intro.html", "one.html", "two.html", "two.html#top, which is missing"),
        ("book/intro.html", "#top", "#bottom", "no such place"),
        ("book/intro.html", TEXT, "", "the page is empty"),
        ("book/intro.html", TEXT, f'{TEXT} &lt;span class="x"&gt;', "shows its markup"),
        ("book/intro.html", "<h1>", "<h2>", "no title"),
        ("book/intro.html", "<title>1. Intro", "<title>", "tab"),
        ("notebooks/one.html", "A line that rises.", "", "no text alternative"),
        ("notebooks/one.html", "A line that rises.", f"../_images/{FIGURE}", "no text alternative"),
        ("notebooks/one.html", f"../_images/{FIGURE}", "http://x/y.png", "is not shown"),
    ],
)
def test_a_broken_page_is_reported(site, file, old, new, complaint):
    path = site / "html" / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert complaint in "\n".join(check_book(site / "html", site / "stage").problems)


@pytest.mark.parametrize("file", ["index.html", "book/intro.html", f"_images/{FIGURE}"])
def test_a_missing_file_is_reported(site, file):
    (site / "html" / file).unlink()
    assert "missing" in "\n".join(check_book(site / "html", site / "stage").problems)


def test_a_missing_page_stops_the_build(tmp_path):
    root = tmp_path / "root"
    for folder in ("book", "notebooks"):
        (root / folder).mkdir(parents=True)
    (root / "_config.yml").touch()
    (root / "_toc.yml").write_text(
        "format: jb-book\nroot: book/intro\nchapters:\n- file: notebooks/one\n"
    )
    (root / "book/intro.md").write_text("# Intro")
    with pytest.raises(SystemExit, match="notebooks/one"):
        gather(root, tmp_path / "stage")


def test_an_executed_notebook_is_sound():
    assert problems(v4.new_notebook(cells=[figure_cell(), v4.new_code_cell("")])) == []


def test_a_cell_that_did_not_run_is_reported():
    (found,) = problems(v4.new_notebook(cells=[figure_cell(), v4.new_code_cell("1 + 1")]))
    assert "did not run: '1 + 1'" in found


def test_an_error_is_reported_unless_it_is_meant():
    error = v4.new_output("error", ename="ValueError", evalue="no", traceback=[])
    cell = v4.new_code_cell("fail()", execution_count=1, outputs=[error])
    notebook = v4.new_notebook(cells=[cell])
    (found,) = problems(notebook)
    assert "ValueError: no" in found
    cell.metadata["tags"] = ["raises-exception"]
    assert problems(notebook) == []


def test_a_notebook_without_any_output_is_reported():
    cell = v4.new_code_cell("x = 1", execution_count=1)
    assert problems(v4.new_notebook(cells=[cell])) == ["no cell has an output"]


def test_what_papermill_adds_is_removed():
    cell = figure_cell()
    cell.metadata.update(papermill={"duration": 1}, tags=[], mystnb={"image": {"alt": "A line."}})
    banner = v4.new_markdown_cell("error", metadata={"tags": ["papermill-error-cell-tag"]})
    tags = [*execute_notebooks.PRELUDE, "injected-parameters"]
    before = [v4.new_code_cell("x = 1", metadata={"tags": [tag]}) for tag in tags]
    cells = [banner, *before, cell]
    notebook = v4.new_notebook(cells=cells, metadata={"papermill": {"input_path": "x"}})
    clean(notebook)
    assert notebook.cells == [cell]
    assert cell.metadata == {"mystnb": {"image": {"alt": "A line."}}}
    assert notebook.metadata == {}


def test_a_notebook_gets_its_scale_as_a_parameter_and_is_stored_without_a_trace(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(execute_notebooks, "BUILD", tmp_path / "build")
    monkeypatch.setenv("ERSM_SCALE", "full")  # the parameter counts
    look = "import os as system\nsystem.environ['ERSM_SCALE'], {'os', 'scale'} & {*globals()}"
    cells = [v4.new_markdown_cell("# One"), v4.new_code_cell(look), v4.new_code_cell("print(2)")]
    source = tmp_path / "one.ipynb"
    nbformat.write(v4.new_notebook(cells=cells), source)
    written = source.read_bytes()

    command = execute_notebooks.command(source, scale="smoke", cell_timeout=60)
    env = execute_notebooks.environment()
    status = run_watched(command, watch=Watch(limit=120, idle=60), env=env)
    target = tmp_path / "stage" / "one.ipynb"
    key = stored_outputs.key(nbformat.read(source, as_version=4), scale="smoke", root=tmp_path)
    assert execute_notebooks.store(source, target, status, key=key) == []
    assert source.read_bytes() == written
    stored = nbformat.read(target, as_version=4)
    assert stored.metadata[stored_outputs.NAME] == key
    assert [(c.id, c.source, c.metadata) for c in stored.cells] == [
        (c.id, c.source, c.metadata) for c in cells
    ]
    first, second = stored.cells[1:]
    assert first.outputs[0].data["text/plain"] == "('smoke', set())"
    assert second.outputs[0].text == "2\n"
    assert second.execution_count == first.execution_count + 1 <= 3  # IPython 8 begins with 2


def test_an_unknown_scale_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["execute_notebooks.py"])
    monkeypatch.setenv("ERSM_SCALE", "smal")
    with pytest.raises(SystemExit):
        execute_notebooks.main()
    assert "the scale is one of smoke, laptop, full, not 'smal'" in capsys.readouterr().err


def test_the_seconds_of_notebooks_are_recorded_beside_those_of_others(tmp_path, monkeypatch):
    monkeypatch.setenv("ERSM_HOME", str(tmp_path))
    monkeypatch.setattr("ersm_lab.images.data.default_dataset", lambda: "shapes")
    monkeypatch.setattr(execute_notebooks, "book_notebooks", lambda root: [Path("a"), Path("b")])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def record(seconds, threads):
        path = execute_notebooks.record(seconds, scale="laptop", threads=threads)
        return records.read(path)

    record({"a": 10.0, "b": 20.0, "gone": 30.0}, 1)
    merged = record({"b": 25.0}, 2)
    assert merged["name"] == "laptop/shapes/notebooks-cpu/seed0"
    assert merged["metrics"] == {
        "a": {"seconds": 10.0, "threads": 1},
        "b": {"seconds": 25.0, "threads": 2},
    }
    assert merged["seconds"]["execute"] == 35.0

    records.write(merged | {"device": merged["device"] | {"name": "An abacus"}})
    assert record({"b": 5.0}, 1)["metrics"] == {"b": {"seconds": 5.0, "threads": 1}}


def test_a_watched_command_keeps_its_exit_status():
    command = [sys.executable, "-c", "raise SystemExit(7)"]
    assert run_watched(command, watch=Watch(limit=60, idle=60)) == 7


def test_a_stalled_command_is_stopped_and_started_once_more(tmp_path):
    log = tmp_path / "log"
    command = ["/bin/sh", "-c", f"echo begun >> {log}; sleep 600"]
    watch = Watch(limit=60, idle=0.3, retries=1, poll=0.05)
    assert run_watched(command, watch=watch) == STOPPED
    assert log.read_text().split() == ["begun", "begun"]


def test_a_command_that_never_ends_is_stopped():
    watch = Watch(limit=0.5, idle=60, retries=0, poll=0.05)
    assert run_watched([sys.executable, "-c", "while True: pass"], watch=watch) == STOPPED


def test_a_line_can_be_put_at_the_top_of_every_page(tmp_path):
    config = tmp_path / "_config.yml"
    config.write_text("title: A book\nhtml:\n  use_edit_page_button: true\n")
    announce(config, "Shapes stand in: see the data page.")
    settings = yaml.safe_load(config.read_text())
    assert settings["html"]["announcement"] == "Shapes stand in: see the data page."
    assert settings["title"] == "A book" and settings["html"]["use_edit_page_button"] is True


def test_commands_run_side_by_side_and_what_they_say_is_kept_together():
    script = "import os, sys; print(os.environ['OMP_NUM_THREADS'], sys.argv[1]); "
    script += "sys.exit(int(sys.argv[2]))"
    commands = {
        name: [sys.executable, "-c", script, name, status]
        for name, status in (("one", "0"), ("two", "3"), ("three", "0"))
    }
    env = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    watch = Watch(limit=60, idle=30)
    ended = {e.name: e for e in run_side_by_side(commands, watch=watch, jobs=2, env=env)}
    assert {name: e.status for name, e in ended.items()} == {"one": 0, "two": 3, "three": 0}
    assert {name: e.output for name, e in ended.items()} == {n: f"1 {n}\n" for n in commands}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be forbidden here")
def test_no_more_run_side_by_side_than_cores_are_allowed():
    allowed, spans = os.sched_getaffinity(0), []
    script = "import time; a = time.time(); time.sleep(0.2); print(a, time.time())"
    commands = {name: [sys.executable, "-c", script] for name in "abc"}
    os.sched_setaffinity(0, {min(allowed)})
    try:
        for ended in run_side_by_side(commands, watch=Watch(limit=60, idle=30)):
            spans.append([float(time) for time in ended.output.split()])
    finally:
        os.sched_setaffinity(0, allowed)
    spans.sort()
    assert all(end < begin for (_, end), (begin, _) in itertools.pairwise(spans))


def test_text_has_the_same_bytes_in_every_checkout():
    asked = subprocess.run(
        ["git", "ls-files", "--eol"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    if asked.returncode:
        pytest.skip("this is no checkout")
    kinds = {tuple(line.split("\t")[0].split()[0:3]) for line in asked.stdout.splitlines()}
    assert {stored for stored, *_ in kinds} <= {
        "i/lf",
        "i/-text",
        "i/none",
        "i/",
    }  # as committed; the last is a link
    assert {how for stored, _, how in kinds if stored == "i/lf"} == {"attr/text=auto"}  # eol=lf
    assert {how for stored, _, how in kinds if stored == "i/-text"} == {"attr/-text"}  # binary


def test_a_command_that_is_stopped_says_so_in_its_own_output():
    commands = {"slow": [sys.executable, "-c", "import time; time.sleep(60)"]}
    watch = Watch(limit=0.5, idle=30, retries=1, poll=0.1)
    (ended,) = run_side_by_side(commands, watch=watch)
    assert ended.status == STOPPED
    assert (
        ended.output.count("stopped: not done after") == 2
        and "started again (1 of 1)" in ended.output
    )


def test_a_notebook_for_download_has_its_cells_without_outputs(tmp_path):
    folder = tmp_path / "_sources/notebooks"
    folder.mkdir(parents=True)
    (tmp_path / "_static").mkdir()
    (tmp_path / "_static/a.js.map").write_text("{}")
    (tmp_path / "_static/a.js").write_text("a")
    nbformat.write(
        v4.new_notebook(cells=[figure_cell(), v4.new_markdown_cell("x")]), folder / "a.ipynb"
    )
    slim(tmp_path)
    notebook = nbformat.read(folder / "a.ipynb", as_version=4)
    assert [cell.source for cell in notebook.cells] == [figure_cell().source, "x"]
    assert notebook.cells[0].outputs == [] and notebook.cells[0].execution_count is None
    assert [path.name for path in (tmp_path / "_static").iterdir()] == ["a.js"]


def test_lines_that_were_run_are_added_up_by_room():
    files = {"ersm_core.py": (3, 4), "ersm_lab/views/a.py": (1, 2), "ersm_lab/views/b.py": (0, 2)}
    told = {
        name: {"summary": {"covered_lines": run, "num_statements": lines}}
        for name, (run, lines) in files.items()
    }
    found = rooms({"files": told})
    assert found == {"ersm_core.py": (3, 4), "ersm_lab/views": (1, 4), "all": (4, 8)}
    assert [*found][-1] == "all"
