"""The key of stored outputs changes with what they depend on, and with nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

import execute_notebooks
import nbformat
import nbformat.v4 as v4
import pytest
import stored_outputs
from execute_notebooks import at_hand
from watched import Ended

from ersm_lab.results import provenance

CODE = "%matplotlib inline\nfrom ersm_lab import pictures\npictures.draw()"
FILES = {
    "ersm_core.py": '"""The core."""\nONE = 1\n',
    "ersm_lab/__init__.py": "",
    "ersm_lab/pictures.py": "def draw():\n    from ersm_core import ONE  # late\n    return ONE\n",
    "ersm_lab/apart.py": "X = 1\n",
    "ersm_lab/page.html": "<p>",
    "data/results/laptop/dense/seed0.json": "{}",
    "data/results/laptop/notebooks-cpu/seed0.json": "{}",
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A small project; and how its chapter's outputs stand after files of it are written anew."""
    monkeypatch.setattr(provenance, "code_folder", lambda: tmp_path)
    monkeypatch.setattr(stored_outputs, "default_dataset", lambda: "shapes")
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    notebook = chapter()
    notebook.metadata[stored_outputs.NAME] = key(notebook, tmp_path)

    def changed(files: dict[str, str]) -> str:
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        return stored_outputs.changed(notebook, key(notebook, tmp_path))

    return changed


def key(notebook, root, scale="laptop"):
    return stored_outputs.key(notebook, scale=scale, root=root)


def chapter(code: str = CODE, *, shown: str = "1"):
    output = v4.new_output("execute_result", {"text/plain": shown}, execution_count=1)
    cell = v4.new_code_cell(code, execution_count=1, outputs=[output])
    return v4.new_notebook(cells=[v4.new_markdown_cell("# One"), cell])


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"ersm_core.py": "# Of another mind.\nONE = 1\n"}, ""),
        ({"ersm_core.py": "ONE = 2\n"}, "code that it imports"),
        ({"ersm_lab/page.html": "<b>"}, "code that it imports"),
        ({"ersm_lab/apart.py": "X = 2\n"}, ""),
        ({"data/results/laptop/dense/seed0.json": "[]"}, "the records"),
        ({"data/results/laptop/dense/seed1.json": "{}"}, "the records"),
        ({"data/results/laptop/notebooks-cpu/seed0.json": "[]"}, ""),
    ],
)
def test_outputs_are_of_today_until_something_that_they_depend_on_changes(project, files, says):
    assert project({}) == ""
    assert project(files) == says


def test_cells_scale_and_images_count_and_words_do_not(project, tmp_path, monkeypatch):
    stored = key(chapter(), tmp_path)
    other = chapter(shown="2")
    other.cells[0].source = "# Another title"
    other.cells[1].metadata["mystnb"] = {"image": {"alt": "A line."}}
    assert key(other, tmp_path) == stored
    monkeypatch.setattr(stored_outputs, "default_dataset", lambda: "cifar10")
    other = chapter(CODE + ";")
    other.metadata[stored_outputs.NAME] = stored
    today = key(other, tmp_path, "smoke")
    said = stored_outputs.changed(other, today)
    assert said == "its code cells, the images at hand, the scale"


def test_where_a_notebook_shows_source_comments_count(project, tmp_path):
    shows = chapter("import ersm_core, inspect\nprint(inspect.getsource(ersm_core))")
    before = key(shows, tmp_path)
    (tmp_path / "ersm_core.py").write_text(FILES["ersm_core.py"] + "# A comment.\n")
    assert key(shows, tmp_path) != before


def test_outputs_of_an_earlier_run_are_put_under_the_words_of_today(project, tmp_path):
    source, executed = tmp_path / "one.ipynb", tmp_path / "ran.ipynb"
    notebook = chapter(shown="old")
    notebook.cells[0].source = "# Another title"
    nbformat.write(notebook, source)
    today = key(notebook, tmp_path)
    assert at_hand(source, today, executed)[0] is None
    ran = chapter(shown="new")
    ran.metadata[stored_outputs.NAME] = today
    nbformat.write(ran, executed)
    found, _ = at_hand(source, today, executed)
    assert found.cells[0].source == "# Another title"
    assert found.cells[1].outputs[0].data["text/plain"] == "new"
    nbformat.write(found, source)
    executed.unlink()
    assert at_hand(source, today, executed) == (found, "stored")


def test_stored_outputs_with_a_cell_that_did_not_run_are_not_taken(project, tmp_path):
    notebook, source = chapter(), tmp_path / "one.ipynb"
    notebook.cells[1].execution_count = None
    today = notebook.metadata[stored_outputs.NAME] = key(notebook, tmp_path)
    nbformat.write(notebook, source)
    found, why = at_hand(source, today, tmp_path / "none.ipynb")
    assert found is None and "did not run" in why


def test_only_what_is_not_of_today_is_executed(project, tmp_path, monkeypatch):
    """Two chapters, one of them stored with its key; the second time nothing is left to execute."""
    monkeypatch.setattr(execute_notebooks, "ROOT", tmp_path)
    monkeypatch.setattr(execute_notebooks, "BUILD", tmp_path / "_build")
    executed = []

    def run(commands, **settings):
        for name in commands:
            executed.append(name)
            target = tmp_path / "_build/executing" / Path(name).name
            nbformat.write(chapter(shown="run"), target)
            yield Ended(name=name, status=0, seconds=1.0, output="")

    monkeypatch.setattr(execute_notebooks, "run_side_by_side", run)
    (tmp_path / "notebooks").mkdir()
    kept, left = chapter(shown="kept"), chapter(shown="old")
    kept.metadata[stored_outputs.NAME] = stored_outputs.key(kept, scale="laptop", root=tmp_path)
    nbformat.write(kept, tmp_path / "notebooks/kept.ipynb")
    nbformat.write(left, tmp_path / "notebooks/left.ipynb")
    names = [str(tmp_path / "notebooks" / name) for name in ("kept.ipynb", "left.ipynb")]

    def execute(*options: str) -> list[str]:
        executed.clear()
        stage = str(tmp_path / "_build/stage")
        command = ["execute_notebooks.py", "--scale", "laptop", "--stage", stage]
        monkeypatch.setattr(sys, "argv", [*command, *options, *names])
        assert execute_notebooks.main() == 0
        return [*executed]

    def shown(folder: Path) -> list[str]:
        pages = [nbformat.read(folder / Path(name).name, as_version=4) for name in names]
        return [page.cells[1].outputs[0].data["text/plain"] for page in pages]

    assert execute() == ["notebooks/left.ipynb"]
    assert shown(tmp_path / "_build/stage/notebooks") == ["kept", "run"]
    assert execute() == execute("--in-place") == []
    assert shown(tmp_path / "notebooks") == ["kept", "run"]
    assert execute("--all") == ["notebooks/kept.ipynb", "notebooks/left.ipynb"]
