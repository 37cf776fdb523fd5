"""Build the web book from the executed notebooks; a warning is an error.

Run tools/execute_notebooks.py first. The pages are gathered in _build/stage, which mirrors the
repository, and built into _build/html.

    python tools/build_book.py
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import stored_outputs
import yaml
from address import home, rewrite, written
from annotate import annotate
from bound_numbers import check
from golden_outputs import differences, frozen, shown
from lighten import lighten
from sphinx_external_toc.parsing import parse_toc_yaml
from teaching import fill, sessions

from ersm_lab.images.data import default_dataset

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"
# Pages of book/ that `python -m ersm_lab PAGE` writes from the records.
GENERATED = ("status", "records", "claims", "scale")
STAND_IN = (
    "Built without CIFAR-10, which could be neither found nor downloaded: textured shapes stand in "
    "wherever images are needed. What was recorded on CIFAR-10 is shown as recorded."
)


def gather(root: Path, stage: Path) -> None:
    """Fill the stage with all the book needs, apart from the executed notebooks that lie there.

    Args:
        root: the repository.
        stage: the folder the book is built from; its notebooks/ stays as it is.

    Raises:
        SystemExit: a page of _toc.yml is missing in the stage, or could not be made.
    """
    stage.mkdir(parents=True, exist_ok=True)
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy2(root / name, stage / name)
    shutil.rmtree(stage / "book", ignore_errors=True)
    shutil.copytree(root / "book", stage / "book")
    shutil.copytree(  # pictures and the like that lie beside the notebooks
        root / "notebooks",
        stage / "notebooks",
        ignore=shutil.ignore_patterns("*.ipynb", ".ipynb_checkpoints", "__pycache__"),
        dirs_exist_ok=True,
    )
    pages = list(parse_toc_yaml(stage / "_toc.yml"))
    if "book/teaching" in pages:
        course = stage / "book" / "teaching.md"
        text = fill(course.read_text(encoding="utf-8"), sessions(stage))
        course.write_text(text, encoding="utf-8")
    making = []  # side by side
    for page in GENERATED:
        target = stage / "book" / f"{page}.md"
        if f"book/{page}" in pages and not target.exists():
            command = [sys.executable, "-m", "ersm_lab", page, "--write", str(target)]
            making.append(subprocess.Popen(command, cwd=root))
    if any([process.wait() for process in making]):
        sys.exit("A page was not made from the records: see the messages above.")
    missing = [
        page
        for page in pages
        if not any((stage / f"{page}{suffix}").exists() for suffix in (".md", ".ipynb"))
    ]
    if missing:
        sys.exit(
            f"_toc.yml names pages that are not there: {', '.join(missing)}.\n"
            "If one is a notebook, run tools/execute_notebooks.py; else write it or take it out."
        )


def differing(root: Path, stage: Path) -> list[str]:
    """The numbers in the prose that differ from the outputs they are bound to (bound_numbers.py).

    All are compared with the stored outputs. With those that were executed for this book, only
    numbers that are drawn from records: what is computed in the page depends on the scale, on the
    images and on the machine.
    """
    return check(root) + [f"as executed now: {line}" for line in check(stage, live=False)]


def not_golden(build: Path, golden: dict[str, list[str]]) -> list[str]:
    """How the tables that were drawn from records for this book differ from the frozen ones
    (golden_outputs.py), as a diff.

    Empty if the last run of tools/execute_notebooks.py was at another scale or of some chapters
    only, or if there is no CIFAR-10: other tables are shown then.
    """
    last = json.loads((build / "notebook_seconds.json").read_text(encoding="utf-8"))
    staged = {f"notebooks/{path.name}" for path in (build / "stage/notebooks").glob("*.ipynb")}
    whole = last["scale"] == "laptop" and {*last["seconds"], *last["at_hand"]} == staged
    if not whole or default_dataset() != "cifar10":
        return []
    return differences(golden, shown(build / "stage/notebooks"), live=False)


def announce(config: Path, text: str) -> None:
    """Put a line at the top of every page, by way of the stage's _config.yml."""
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    settings.setdefault("html", {})["announcement"] = text
    config.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")


def slim(html: Path) -> None:
    """Take out what no reader of the pages needs: the outputs of the notebooks that are offered for
    download, which the page shows anyway, with their key, and the source maps of minified scripts.
    """
    for path in sorted((html / "_sources").rglob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        notebook.metadata.pop(stored_outputs.NAME, None)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, path)
    for path in (html / "_static").rglob("*.map"):
        path.unlink()


def main() -> int:
    stage, html = BUILD / "stage", BUILD / "html"
    gather(ROOT, stage)
    if differences := differing(ROOT, stage):
        print(*differences, sep="\n", file=sys.stderr)
        print("`tools/bound_numbers.py --write` writes what the outputs say.", file=sys.stderr)
        return 1
    if changed := not_golden(BUILD, frozen()):
        print(*changed, sep="\n", file=sys.stderr)
        print(
            "Tables differ from tests/golden. If records are new: `make notebooks` stores what they "
            "say, and `tools/golden_outputs.py --write` freezes it.",
            file=sys.stderr,
        )
        return 1
    rewrite(stage, written(ROOT), home(ROOT))  # the book of a fork leads to the fork
    if default_dataset() == "shapes":
        announce(stage / "_config.yml", STAND_IN)
    shutil.rmtree(html, ignore_errors=True)  # no page of an earlier build may be left
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build"]
    command += [str(stage), "--path-output", str(ROOT), "--all", "-W", "-n", "--keep-going"]
    if subprocess.run(command, cwd=ROOT).returncode != 0:
        print("The book was not built: see the warnings above.", file=sys.stderr)
        return 1
    slim(html)
    annotate(html, stage)
    lighten(html)
    (html / ".nojekyll").touch()  # or GitHub Pages leaves out all that begins with an underscore
    print(f"\nThe book is at {(html / 'index.html').as_uri()}\n`make serve` shows it on localhost.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
