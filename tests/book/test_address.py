"""The address of a fork: found where the fork lives, and written wherever the address stands."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from address import files, home, moved, of_remote, rewrite, written

ROOT = Path(__file__).resolve().parents[2]
NEW = "some-one/their.fork"


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://github.com/some-one/their.fork", NEW),
        ("https://github.com/some-one/their.fork.git\n", NEW),
        ("https://x-access-token:secret@github.com/some-one/their.fork.git/", NEW),
        ("git@github.com:some-one/their.fork.git", NEW),
        ("ssh://git@github.com/some-one/their.fork", NEW),
        ("https://gitlab.com/some-one/their.fork", None),
        ("https://notgithub.com/some-one/their.fork", None),
        ("/home/someone/clone", None),
        ("", None),
    ],
)
def test_the_address_of_a_remote(url, name):
    assert of_remote(url) == name


def test_the_workflow_is_asked_first_then_the_remote_then_the_sources(tmp_path):
    (tmp_path / "pyproject.toml").write_text('Repository = "https://github.com/old/book"\n')
    assert home(tmp_path, {}) == "old/book"  # no git yet
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    assert home(tmp_path, {}) == "old/book"  # no remote yet
    remote = ["git", "-C", tmp_path, "remote", "add", "origin", "git@github.com:new/fork.git"]
    subprocess.run(remote, check=True)
    assert home(tmp_path, {}) == "new/fork"
    assert home(tmp_path, {"GITHUB_REPOSITORY": "ci/fork"}) == "ci/fork"


def test_a_file_without_an_address_says_what_to_add(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    with pytest.raises(SystemExit, match="add it"):
        written(tmp_path)


def test_only_links_to_the_repository_itself_move():
    text = "https://github.com/a/b/issues, https://github.com/a/b-c, a/b, https://github.com/x/a/b"
    assert moved(text, "a/b", "c/d") == (
        "https://github.com/c/d/issues, https://github.com/a/b-c, a/b, https://github.com/x/a/b"
    )


def test_one_command_leads_everything_to_the_fork_and_back(tmp_path):
    old = written(ROOT)
    for path in [*files(ROOT), *sorted((ROOT / "notebooks").glob("*.ipynb"))]:
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    changed = {path.relative_to(tmp_path).as_posix() for path in rewrite(tmp_path, old, NEW)}
    assert {"pyproject.toml", "README.md", "CITATION.cff", "_config.yml"} <= changed
    assert written(tmp_path) == NEW
    owner, _, folder = NEW.partition("/")
    for path in sorted((tmp_path / "notebooks").glob("*.ipynb")):
        text = path.read_text(encoding="utf-8")
        assert f"github.com/{old}" not in text
        cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
        first = "".join(cells[0]["source"])
        assert f" https://github.com/{owner}/{folder}\n" in first
        assert (
            re.search(rf'\./{folder}["\n[]', first) and f'sys.path.insert(0, "{folder}")' in first
        )
    for path in files(tmp_path):
        assert f"github.com/{old}" not in path.read_text(encoding="utf-8")
    rewrite(tmp_path, NEW, old)
    for path in [*files(ROOT), *sorted((ROOT / "notebooks").glob("*.ipynb"))]:
        assert (tmp_path / path.relative_to(ROOT)).read_bytes() == path.read_bytes(), path.name
