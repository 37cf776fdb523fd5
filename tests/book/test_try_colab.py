"""The stand-in for Colab hides the project, redirects its address, and sees what goes wrong."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import nbformat.v4 as v4
import pytest
from try_colab import (
    BROUGHT,
    borrow,
    environment,
    kernel,
    lost_outputs,
    needed,
    redirected,
    replaced,
    seconds_of_first_cell,
    snapshot,
)

ADDRESS = "https://github.com/someone/book"


def git(*arguments: str, cwd: Path, env: dict | None = None) -> str:
    command = ["git", "-c", "user.name=x", "-c", "user.email=x@localhost", *arguments]
    answer = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=True)
    return answer.stdout


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A working tree with a committed file, a changed, a deleted, a new and an ignored one."""
    root = tmp_path / "tree"
    (root / "folder").mkdir(parents=True)
    for name in ("kept", "changed", "deleted"):
        (root / name).write_text("as committed")
    (root / ".gitignore").write_text("ignored\n")
    git("init", "--quiet", cwd=root)
    git("add", ".", cwd=root)
    git("commit", "--quiet", "--message", "first", cwd=root)
    (root / "changed").write_text("as it is now")
    (root / "deleted").unlink()
    (root / "folder" / "new").write_text("not yet committed")
    (root / "ignored").write_text("a cache")
    return root


def test_a_clone_from_the_address_has_the_tree_as_it_is(tree, tmp_path):
    before = git("status", "--porcelain", cwd=tree)
    stand_in = snapshot(tree, tmp_path / "repository")
    env = environment({}, address=ADDRESS, stand_in=stand_in, jupyter=tmp_path, data=None)
    env |= {"HOME": str(tmp_path), "PATH": "/usr/local/bin:/usr/bin:/bin"}
    git("clone", "--quiet", "--depth", "1", ADDRESS, cwd=tmp_path, env=env)
    clone = tmp_path / "book"
    names = {path.relative_to(clone).as_posix() for path in clone.rglob("*") if path.is_file()}
    assert {name for name in names if not name.startswith(".git/")} == {
        ".gitignore", "kept", "changed", "folder/new",
    }  # fmt: skip
    assert (clone / "changed").read_text() == "as it is now"
    assert git("status", "--porcelain", cwd=tree) == before


def test_a_second_snapshot_replaces_the_first(tree, tmp_path):
    snapshot(tree, tmp_path / "repository")
    (tree / "kept").unlink()
    snapshot(tree, tmp_path / "repository")
    assert not (tmp_path / "repository" / "kept").exists()


def test_a_folder_without_git_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="work in a clone"):
        snapshot(tmp_path, tmp_path / "repository")


def test_git_is_redirected_for_this_address_only():
    settings = redirected(ADDRESS, "file:///somewhere")
    assert settings["GIT_CONFIG_KEY_0"] == "url.file:///somewhere.insteadOf"
    assert settings["GIT_CONFIG_VALUE_0"] == ADDRESS


def test_what_is_of_this_machine_stays_out_of_the_environment(tmp_path):
    present = {
        "ERSM_DATA_DIR": "/d", "ERSM_SCALE": "laptop", "PYTHONPATH": "/p", "VIRTUAL_ENV": "/v",
        "PATH": "/bin", "PIP_INDEX_URL": "https://index",
    }  # fmt: skip
    settings = {"address": ADDRESS, "stand_in": "file:///x", "jupyter": tmp_path}
    env = environment(present, data=None, **settings)
    assert env["ERSM_SCALE"] == "smoke" and env["JUPYTER_PATH"] == str(tmp_path)
    assert env["PATH"] == "/bin" and env["PIP_INDEX_URL"] == "https://index"
    assert not {"ERSM_DATA_DIR", "PYTHONPATH", "VIRTUAL_ENV"} & set(env)
    given = environment(present, data=tmp_path, **settings)
    assert given["ERSM_DATA_DIR"] == str(tmp_path)


def test_what_colab_brings_is_found_without_the_project():
    found = {package.metadata["Name"].lower() for package in needed(BROUGHT)}
    assert set(BROUGHT) <= found
    assert {"pillow", "traitlets"} <= found  # of matplotlib and ipywidgets
    assert not {"ersm-book", "ersm_book", "lightning", "captum"} & found


def test_an_extra_of_a_package_is_followed(monkeypatch):
    class Package:
        def __init__(self, *requires: str) -> None:
            self.requires = list(requires)

    there = {
        "top": Package("middle[fast]==1", "windows-only; sys_platform == 'win32'"),
        "middle": Package("quick; extra == 'fast'", "slow; extra == 'small'", "absent"),
        "quick": Package(),
        "slow": Package(),
        "windows-only": Package(),
    }

    def distribution(name):
        if name not in there:
            raise metadata.PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr(metadata, "distribution", distribution)
    assert needed(["top"]) == [there["middle"], there["quick"], there["top"]]
    with pytest.raises(SystemExit, match="make setup"):
        needed(["elsewhere"])


def test_borrowed_packages_can_be_imported_from_their_folder_alone(tmp_path):
    packages = [p for p in needed(["numpy"]) if p.metadata["Name"].lower() == "numpy"]
    borrow(packages, tmp_path / "brought")
    assert (tmp_path / "brought" / "numpy" / "__init__.py").is_file()
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'brought')!r}); import numpy; "
    command = [sys.executable, "-I", "-S", "-c", code + "print(numpy.__file__, numpy.zeros(2))"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown.startswith(str(tmp_path)) and "[0. 0.]" in shown


def test_the_kernel_runs_with_that_python(tmp_path):
    kernel(Path("/somewhere/python"), tmp_path)
    text = (tmp_path / "kernels" / "colab" / "kernel.json").read_text()
    assert '"/somewhere/python", "-m", "ipykernel_launcher"' in text


def test_another_version_is_reported_and_a_new_package_is_not():
    before = {"torch": "2.9.0", "numpy": "2.0"}
    assert replaced(before, {**before, "captum": "0.8"}) == []
    (changed,) = replaced(before, {**before, "torch": "2.15.0"})
    assert "torch was 2.9.0 and is 2.15.0" in changed
    (gone,) = replaced(before, {"torch": "2.9.0"})
    assert "numpy" in gone and "gone" in gone


def test_an_output_that_is_missing_is_reported():
    shown = v4.new_output("stream", text="a line")
    stored = v4.new_notebook(
        cells=[
            v4.new_markdown_cell("words"),
            v4.new_code_cell("draw()\nmore()", outputs=[shown]),
            v4.new_code_cell("x = 1"),
        ]
    )
    ran = v4.new_notebook(
        cells=[
            v4.new_markdown_cell("words"),
            v4.new_code_cell("draw()\nmore()", outputs=[shown]),
            v4.new_code_cell("x = 1", outputs=[shown]),
        ]
    )
    assert lost_outputs(stored, ran) == []
    ran.cells[1].outputs = []
    assert lost_outputs(stored, ran) == ["no output here, but one in the repository: 'draw()'"]


def test_the_time_of_the_first_code_cell_is_read():
    cell = v4.new_code_cell("install()", metadata={"papermill": {"duration": 12.5}})
    ran = v4.new_notebook(cells=[v4.new_markdown_cell("words"), cell, v4.new_code_cell("1")])
    assert seconds_of_first_cell(ran) == 12.5
    del cell.metadata["papermill"]
    assert seconds_of_first_cell(ran) is None
