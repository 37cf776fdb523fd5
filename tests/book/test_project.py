"""The project's own files agree with each other: packages, address, version, table of contents."""

from __future__ import annotations

import ast
import itertools
import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from build_book import GENERATED
from execute_notebooks import problems
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from sphinx_external_toc.parsing import parse_toc_yaml

if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest brings it
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
ADDRESS = PROJECT["urls"]["Repository"]
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
CONDA_NAMES = {"torch": "pytorch"}  # where conda-forge calls a package something else
PAGES = list(parse_toc_yaml(ROOT / "_toc.yml"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def bounds(requirements: list[str]) -> dict[str, SpecifierSet]:
    parsed = map(Requirement, requirements)
    return {canonicalize_name(r.name): r.specifier for r in parsed if r.name != PROJECT["name"]}


def conda_bounds() -> dict[str, SpecifierSet]:
    (by_pip,) = (entry["pip"] for entry in CONDA["dependencies"] if isinstance(entry, dict))
    entries = [entry for entry in [*CONDA["dependencies"], *by_pip] if isinstance(entry, str)]
    return bounds([entry for entry in entries if not entry.startswith("-e")])


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request: pytest.FixtureRequest) -> nbformat.NotebookNode:
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


# ------------------------------------------------------------------------------------- packages


def test_conda_and_pip_name_the_same_packages_with_the_same_bounds():
    extras = itertools.chain.from_iterable(PROJECT["optional-dependencies"].values())
    pip = bounds([*PROJECT["dependencies"], *extras])
    conda = conda_bounds()
    del conda["python"], conda["pip"]
    assert conda == {CONDA_NAMES.get(name, name): spec for name, spec in pip.items()}


def test_conda_installs_the_project_itself():
    (by_pip,) = (entry["pip"] for entry in CONDA["dependencies"] if isinstance(entry, dict))
    assert "-e ." in by_pip


def test_the_python_version_is_the_same_everywhere():
    python = SpecifierSet(PROJECT["requires-python"])
    assert conda_bounds()["python"] == python
    (oldest,) = (spec.version for spec in python)
    assert PYPROJECT["tool"]["ruff"]["target-version"] == "py" + oldest.replace(".", "")
    asked = re.findall(r"version_info < \((\d+), (\d+)\)", (ROOT / "Makefile").read_text())
    assert {".".join(version) for version in asked} == {oldest}
    assert f"Python ≥ {oldest}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_module_and_data_file_is_packaged():
    setuptools = PYPROJECT["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "ersm_lab").rglob("__init__.py")}
    assert {".".join(folder.parts) for folder in folders} == set(setuptools["packages"])
    assert all((ROOT / f"{module}.py").exists() for module in setuptools["py-modules"])
    for folder in folders:
        data = setuptools["package-data"].get(".".join(folder.parts), [])
        patterns = ["*.py", "README.md", *data]
        files = [path for path in (ROOT / folder).iterdir() if path.is_file()]
        assert [path.name for path in files if not any(map(path.match, patterns))] == []


def test_what_the_library_imports_is_among_its_dependencies():
    imported = set()
    for path in [*ROOT.glob("ersm_*.py"), *(ROOT / "ersm_lab").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.partition(".")[0])
    imported -= {*sys.stdlib_module_names, "ersm_attach", "ersm_core", "ersm_lab"}
    imported = {{"PIL": "pillow", "IPython": "ipython"}.get(name, name) for name in imported}
    declared = set(bounds(PROJECT["dependencies"]))
    extras = PROJECT["optional-dependencies"]  # imported if there
    optional = set(bounds([*extras["experiments"], *extras["photographs"]]))
    assert imported and imported - declared - optional == set()


# ------------------------------------------------------------------------- address, version, title


def test_the_address_is_the_same_everywhere():
    assert CONFIG["repository"]["url"] == ADDRESS
    assert CITATION["repository-code"] == ADDRESS
    owner_and_name = ADDRESS.removeprefix("https://github.com/")
    files = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "book").rglob("*.md")]
    for path in [*files, *NOTEBOOKS]:
        text = path.read_text(encoding="utf-8")
        links = re.findall(r"colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)", text)
        links += re.findall(r"git\+https://github\.com/([\w.-]+/[\w-]+)", text)
        assert set(links) <= {owner_and_name}, path.name
    assert ADDRESS in files[0].read_text(encoding="utf-8")


def test_the_citation_has_the_version_and_title():
    assert str(CITATION["version"]) == PROJECT["version"]
    assert CITATION["title"] == CONFIG["title"]


# ------------------------------------------------------------------------------ pages and notebooks


def test_every_page_of_the_contents_exists():
    there = {
        page for page in PAGES for suffix in (".md", ".ipynb") if (ROOT / (page + suffix)).exists()
    }
    assert set(PAGES) - there <= {f"book/{page}" for page in GENERATED}


def test_every_page_is_in_the_contents():
    sources = [*NOTEBOOKS, *(ROOT / "book").rglob("*.md")]
    assert {path.relative_to(ROOT).with_suffix("").as_posix() for path in sources} <= set(PAGES)


def test_notebooks_are_stored_executed(notebook):
    assert problems(notebook) == []


def test_notebooks_install_the_project_where_it_is_missing(notebook):
    first = code_cells(notebook)[0].source
    assert f" {ADDRESS}" in first and "ersm_core" in first


def test_figures_have_a_text_alternative(notebook):
    for cell in code_cells(notebook):
        shows = {kind for output in cell.outputs for kind in output.get("data", {})}
        if any(kind.startswith("image/") for kind in shows):
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            assert alt.strip(), cell.source


# ------------------------------------------------------------------------------------- commands


def test_every_command_is_in_the_help():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (help.*)$", makefile, re.MULTILINE).group(1).split()
    explained = re.findall(r"^([a-z]+):.*## .", makefile, re.MULTILINE)
    assert sorted(explained) == sorted(phony)


def test_ci_can_be_run():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
