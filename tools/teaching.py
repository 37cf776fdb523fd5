"""Make the pack for a course of two sessions: slides, plan, student copies, solutions.

    python tools/teaching.py [--to _build/teaching]

The slides are made from the chapters' stored figures, by the list book/teaching.yml; with Chromium they
are printed as PDF, too. A student copy is a chapter without outputs and without solutions, with a cell
for each answer that is words; the solutions are notebooks of their own. `tools/grade.py` checks what
comes back.
"""

from __future__ import annotations

import argparse
import base64
import re
import shutil
import sys
from pathlib import Path

import nbformat
import stored_outputs
import yaml
from address import HOST, home
from chapter_exercises import SOLUTION, Exercise, begin, exercises, imports, name
from headless import NoBrowser, chromium
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from slides import Slide, deck

ROOT = Path(__file__).resolve().parent.parent
KINDS = {"image/png": "png", "image/jpeg": "jpeg", "image/svg+xml": "svg+xml"}


def chapters(root: Path) -> dict[str, Path]:
    """The notebooks by the names that do not change with their numbers: energy_terms."""
    return {name(path): path for path in sorted((root / "notebooks").glob("*.ipynb"))}


def find(chapters_: dict[str, Path], chapter: str) -> NotebookNode:
    """A chapter by its name.

    Raises:
        SystemExit: there is none of this name.
    """
    if chapter not in chapters_:
        sys.exit(f"book/teaching.yml: no chapter {chapter!r}; there are {', '.join(chapters_)}")
    return nbformat.read(chapters_[chapter], as_version=4)


# ------------------------------------------------------------------------------------------ slides


def figure(notebook: NotebookNode, place: str) -> tuple[str, str]:
    """The address of a cell's picture, with all its bytes, and its text alternative.

    Raises:
        SystemExit: the cell is not there, or shows no picture.
    """
    for cell in notebook.cells:
        if cell.id != place.partition("#")[2] or cell.cell_type != "code":
            continue
        for output in cell.outputs:
            for kind, suffix in KINDS.items():
                if content := output.get("data", {}).get(kind):
                    if kind == "image/svg+xml":
                        content = base64.b64encode(content.encode()).decode()
                    alt = cell.metadata["mystnb"]["image"]["alt"]
                    return f"data:image/{suffix};base64,{content.strip()}", alt
    sys.exit(f"book/teaching.yml: {place} shows no picture: name a cell with a stored figure")


def slide(entry: dict, chapters_: dict[str, Path], root: Path) -> Slide:
    """A slide of book/teaching.yml with its picture, or with its exercise."""
    given = {key: entry.get(key, "") for key in ("title", "minutes", "say", "ask", "answer")}
    given["formula"] = entry.get("formula", "")
    if place := entry.get("figure"):
        chapter = find(chapters_, place.partition("#")[0])
        given["picture"], given["alt"] = figure(chapter, place)
    if path := entry.get("picture"):
        content = base64.b64encode((root / path).read_bytes()).decode()
        given |= {"picture": f"data:image/svg+xml;base64,{content}", "alt": entry["alt"]}
    if wanted := entry.get("exercise"):
        chapter, number = wanted.split()
        exercise = one(exercises(find(chapters_, chapter)), number, wanted)
        given["task"] = "\n\n".join([plain(exercise.question), *exercise.given])
    return Slide(**given)


def one(found: list[Exercise], number: str, wanted: str) -> Exercise:
    """The exercise of a number.

    Raises:
        SystemExit: there is none.
    """
    for exercise in found:
        if exercise.number == number:
            return exercise
    sys.exit(f"book/teaching.yml: there is no exercise {wanted!r}")


def plan(session: dict) -> str:
    """The plan of a session as a table in Markdown: the clock, what is shown, what is asked."""
    lines = ["| from | minutes | slide | question |", "|---|---|---|---|"]
    clock = 0
    for entry in session["slides"]:
        lines.append(f"| {clock} | {entry['minutes']} | {entry['title']} | {entry['ask']} |")
        clock += entry["minutes"]
    return "\n".join(lines)


def sessions(root: Path) -> list[dict]:
    """The sessions of book/teaching.yml."""
    return yaml.safe_load((root / "book" / "teaching.yml").read_text(encoding="utf-8"))


def fill(page: str, found: list[dict]) -> str:
    """The teachers' page with the plans of the sessions where it says `<!-- plan of NAME -->`."""
    for session in found:
        text = f"**After it:** {session['aim']}\n\n**Before it:** {session['before']}\n\n"
        page = page.replace(f"<!-- plan of {session['name']} -->", text + plan(session))
    return page


# ---------------------------------------------------------------------------------------- notebooks


def plain(markdown: str) -> str:
    """Markdown without the book's own marks, which Jupyter and Colab show as they are written."""
    text = re.sub(r"\{eq\}`([^`]*)`", r"(\1)", markdown)
    text = re.sub(r"\{(?:doc|ref)\}`([^`<]*?)\s*(?:<[^`]*)?`", r"\1", text)
    text = re.sub(r"\{cite:[pt]\}`([^`]*)`", r"[\1]", text)
    text = re.sub(r"(\$\$)([^$]+?)\$\$ \(([\w-]+)\)", r"\1\2\\tag{\3}$$", text)
    text = re.sub(r"^\([\w-]+\)=\n", "", text, flags=re.MULTILINE)
    opens = r"^:{3,}\{\w+\} *(.*)\n(?::[\w-]+:.*\n)*"
    text = re.sub(opens, r"**\1**\n\n", text, flags=re.MULTILINE)
    text = re.sub(r"^:{3,}[ \t]*$\n?", "", text, flags=re.MULTILINE)
    return re.sub(r'<span class="bound"[^>]*>(.*?)</span>', r"\1", text)


def student(notebook: NotebookNode) -> NotebookNode:
    """A copy of a chapter for students: no outputs, no solutions, a cell for each answer in words."""
    copy = new_notebook(metadata=_without_key(notebook))
    start = begin(notebook)
    asked = {exercise.number: exercise for exercise in exercises(notebook)}
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            copy.cells.append(new_code_cell(cell.source, id=cell.id, metadata=cell.metadata))
        elif number < start:
            copy.cells.append(new_markdown_cell(plain(cell.source), id=cell.id))
        else:
            copy.cells += _questions(cell, asked)
    return copy


def _questions(cell: NotebookNode, asked: dict[str, Exercise]) -> list[NotebookNode]:
    """A cell of the exercises, cut after each question in words, with room for its answer."""
    found, text = [], ""

    def end() -> None:
        nonlocal text
        if text.strip():
            part = f"{cell.id}-{len(found)}" if found else cell.id
            found.append(new_markdown_cell(plain(text.strip()), id=part))
        text = ""

    for part in re.split(r"(?=^\*\*\d+\.)", cell.source, flags=re.MULTILINE):
        text += SOLUTION.sub("", part)
        match = re.match(r"\*\*(\d+)\.", part)
        if match and not asked[match[1]].check:
            end()
            if asked[match[1]].code:
                found.append(new_code_cell("", id=f"code-{match[1]}"))
            answer = f"*Your answer to {match[1]}:*"
            found.append(new_markdown_cell(answer, id=f"answer-{match[1]}"))
    end()
    return found


def solved(notebook: NotebookNode) -> NotebookNode:
    """The exercises of a chapter with their solutions, as a notebook in which the checks can be run."""
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    title = notebook.cells[0].source.splitlines()[0]
    cells = [
        new_markdown_cell(f"{title}: solutions", id="title"),
        new_code_cell(first.source, id="setup"),
        new_code_cell(imports(notebook), id="imports"),
    ]
    for exercise in exercises(notebook):
        key = exercise.number
        cells.append(new_markdown_cell(plain(exercise.question), id=f"question-{key}"))
        words = exercise.solution
        if exercise.check:
            cells.append(new_code_cell(exercise.code, id=f"solution-{key}"))
            call = f"attempt({exercise.function}, {exercise.check})"
            cells.append(new_code_cell(call, id=f"check-{key}"))
            words = re.sub(r"^```python\n.*?^```\n?", "", words, flags=re.S | re.M).strip()
        if words:
            cells.append(new_markdown_cell(plain(words), id=f"words-{key}"))
    return new_notebook(cells=cells, metadata=_without_key(notebook))


def _without_key(notebook: NotebookNode) -> dict:
    """The metadata, without the key of outputs that a copy has not."""
    return {name: value for name, value in notebook.metadata.items() if name != stored_outputs.NAME}


# --------------------------------------------------------------------------------------------- pack


def write_pack(root: Path, to: Path) -> list[Path]:
    """Write the pack, apart from the PDF.

    Args:
        root: the repository.
        to: the folder; what an earlier pack left there is replaced.

    Returns:
        The decks of slides.
    """
    for folder in ("student", "solutions"):
        shutil.rmtree(to / folder, ignore_errors=True)
        (to / folder).mkdir(parents=True)
    for old in to.glob("session-*"):
        old.unlink()
    found, decks = chapters(root), []
    for path in found.values():
        notebook = nbformat.read(path, as_version=4)
        if exercises(notebook):
            nbformat.write(student(notebook), to / "student" / path.name)
            nbformat.write(solved(notebook), to / "solutions" / path.name)
    plans = sessions(root)
    for session in plans:
        slides = [slide(entry, found, root) for entry in session["slides"]]
        decks.append(to / f"session-{session['name']}.html")
        decks[-1].write_text(deck(session["title"], session["aim"], slides), encoding="utf-8")
    page = fill((root / "book" / "teaching.md").read_text(encoding="utf-8"), plans)
    link = f"{HOST}{home(root)}/blob/main/"
    page = re.sub(r"\]\(\.\./", f"]({link}", page)
    (to / "README.md").write_text(plain(page), encoding="utf-8")
    return decks


def print_decks(decks: list[Path]) -> None:
    """Print each deck beside its HTML file, one slide a sheet.

    Raises:
        NoBrowser: there is no Chromium.
    """
    with chromium() as browser:
        page = browser.new_page()
        for path in decks:
            page.goto(path.resolve().as_uri())
            page.pdf(
                path=path.with_suffix(".pdf"), prefer_css_page_size=True, print_background=True
            )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--to", type=Path, default=ROOT / "_build" / "teaching", help="folder of the pack"
    )
    args = parser.parse_args()
    decks = write_pack(ROOT, args.to)
    try:
        print_decks(decks)
    except NoBrowser as reason:
        print(f"The slides are HTML only. {reason}", file=sys.stderr)
    for path in sorted(args.to.rglob("*.*")):
        print(f"{path.relative_to(args.to)}: {path.stat().st_size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
