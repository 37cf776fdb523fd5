"""Make the pack for a course of two sessions: slides, plan, student copies, solutions.

    python tools/teaching.py [--to _build/teaching]

The slides are made from the chapters' stored figures, by the list book/teaching.yml; with Chromium they
are printed as PDF, too, with and without the notes. A session's sheet is what students work in
(tools/sheets.py). A student copy is a chapter without outputs and without solutions, with a cell for
each answer that is words, to be handed out after the session; the solutions are notebooks of their own.
`tools/grade.py` checks what comes back.
"""

from __future__ import annotations

import argparse
import base64
import re
import shutil
import struct
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

import nbformat
import stored_outputs
from address import HOST, home, moved, written
from chapter_exercises import SOLUTION, Exercise, begin, exercises, imports, name
from headless import NoBrowser, chromium
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from sheets import POINTS, asked, sessions, sheet_notebook
from slides import NOTES, Slide, deck

ROOT = Path(__file__).resolve().parent.parent
LABEL = re.compile(r"^\(([\w-]+)\)=\n+#+ (.*)$", re.MULTILINE)
EQUATION = re.compile(r"\$\$ \(([\w-]+)\)")
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


def called(path: Path, notebook: NotebookNode) -> str:
    """How a copy speaks of a chapter: chapter 3, The energy terms."""
    title = notebook.cells[0].source.splitlines()[0].removeprefix("# ").partition(":")[0]
    number = path.stem.partition("_")[0]
    if number.isdigit():
        return f"chapter {int(number)}, {title}"
    return f"appendix {number}, {title}" if re.fullmatch(r"A\d", number) else f"the page {title}"


def places(chapters_: Mapping[str, Path]) -> dict[str, str]:
    """The labels of sections and equations of all chapters, in words that stand without a link."""
    found = {}
    for path in chapters_.values():
        notebook = nbformat.read(path, as_version=4)
        where = called(path, notebook)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                for label, title in LABEL.findall(cell.source):
                    found[label] = f"“{title}” in {where}"
                for label in EQUATION.findall(cell.source):
                    found[label] = f"an equation of {where}"
    return found


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


def tall(address: str) -> bool:
    """Whether a PNG is so high that texts find room beside it rather than below it."""
    kind, _, content = address.partition(";base64,")
    if kind != "data:image/png":
        return False
    width, height = struct.unpack(">II", base64.b64decode(content[:64])[16:24])
    return height > 0.6 * width


def slide(entry: dict, chapters_: dict[str, Path], root: Path) -> Slide:
    """A slide of book/teaching.yml with its picture, or with its exercise."""
    given = {key: entry.get(key, "") for key in ("title", "minutes", "say", "ask", "answer")}
    given |= {key: entry.get(key, ()) for key in ("formulas", "words")}
    if place := entry.get("figure"):
        name_ = place.partition("#")[0]
        chapter = find(chapters_, name_)
        given["picture"], given["alt"] = figure(chapter, place)
        given["tall"] = tall(given["picture"])
        given["source"] = f"From {called(chapters_[name_], chapter)}"
    if path := entry.get("picture"):
        content = base64.b64encode((root / path).read_bytes()).decode()
        given |= {"picture": f"data:image/svg+xml;base64,{content}", "alt": entry["alt"]}
    if wanted := entry.get("exercise"):
        chapter, number = wanted.split()
        exercise = one(exercises(find(chapters_, chapter)), number, wanted)
        code = [f"```python\n{cell}\n```" for cell in exercise.given]
        given["task"] = "\n\n".join([plain(exercise.question), *code])
        given["source"] = (
            f"Exercise {number} of {called(chapters_[chapter], find(chapters_, chapter))}"
        )
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
    """The plan of a session in Markdown: a table by the clock, what to cut, and the answers."""
    lines = ["| from | minutes | slide | question |", "|---|---|---|---|"]
    answers, clock, start = [], 0, 0
    for number, entry in enumerate(session["slides"], 1):
        start = clock if "exercise" in entry else start
        lines.append(
            f"| {clock} | {entry['minutes']} | {number}. {entry['title']} | {entry['ask']} |"
        )
        mark = f"{number}. "
        said = textwrap.indent(entry["answer"].strip(), " " * len(mark)).strip()
        answers.append(f"{mark}**{entry['title']}** {said}")
        clock += entry["minutes"]
    late = (
        f"**When you are late:** at minute {start} the exercise starts, wherever you are. "
        f"{session['late'].strip()}"
    )
    notes = "\n".join([":::{dropdown} The answers, slide by slide", *answers, ":::"])
    return "\n\n".join(["\n".join(lines), late, notes])


def points(session: dict) -> str:
    """A line of Markdown: what the answers in the sheet of a session are worth."""
    sheet = session["sheet"]
    own = [f"{entry['name'].lower()}: {POINTS[False]}" for entry in sheet["words"]]
    numbers = [f"exercise {n}: {POINTS[n in sheet['checked']]}" for n in sheet["exercises"]]
    most = sum(int(line.split()[-1]) for line in numbers + own)
    return f"Points of session {session['name']}: {', '.join(numbers + own)}; together {most}."


def fill(page: str, found: list[dict]) -> str:
    """The teachers' page with what it asks for: `<!-- plan of NAME -->`, `<!-- points of NAME -->`."""
    for session in found:
        text = f"**After it:** {session['aim']}\n\n**Before it:** {session['before']}\n\n"
        page = page.replace(f"<!-- plan of {session['name']} -->", text + plan(session))
        page = page.replace(f"<!-- points of {session['name']} -->", points(session))
    return page


# ---------------------------------------------------------------------------------------- notebooks


def plain(markdown: str, elsewhere: Mapping[str, str] | None = None) -> str:
    """Markdown without the book's own marks, which Jupyter and Colab show as they are written.

    Args:
        markdown: of a chapter.
        elsewhere: words for the labels that lead out of the copy.
    """
    known = elsewhere or {}
    text = re.sub(r"\{eq\}`([^`]*)`", lambda found: f"({known.get(found[1], found[1])})", markdown)
    text = re.sub(r"\{ref\}`([^`<]+)`", lambda found: known.get(found[1], found[1]), text)
    text = re.sub(r"\[([^\]]+)\]\(\.\./book/[^)]*\)", r"\1", text)  # pages that only the book has
    text = re.sub(r"\{(?:doc|ref)\}`([^`<]*?)\s*(?:<[^`]*)?`", r"\1", text)
    text = re.sub(r"\{cite:[pt]\}`([^`]*)`", r"[\1]", text)
    text = re.sub(r"(\$\$)([^$]+?)\$\$ \(([\w-]+)\)", r"\1\2\\tag{\3}$$", text)
    text = re.sub(r"^\([\w-]+\)=\n", "", text, flags=re.MULTILINE)
    opens = r"^:{3,}\{\w+\} *(.*)\n(?::[\w-]+:.*\n)*"
    text = re.sub(opens, r"**\1**\n\n", text, flags=re.MULTILINE)
    text = re.sub(r"^:{3,}[ \t]*$\n?", "", text, flags=re.MULTILINE)
    return re.sub(r'<span class="bound"[^>]*>(.*?)</span>', r"\1", text)


def worded(notebook: NotebookNode, labels: Mapping[str, str] | None) -> NotebookNode:
    """A copy of a chapter, or of a part of one, with its Markdown made plain; its cells are changed.

    Args:
        notebook: its labels of equations stay as they are.
        labels: words for all labels of the book.
    """
    text = "\n".join(cell.source for cell in notebook.cells)
    own = set(EQUATION.findall(text))
    elsewhere = {label: words for label, words in (labels or {}).items() if label not in own}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = plain(cell.source, elsewhere)
    return notebook


def student(notebook: NotebookNode, labels: Mapping[str, str] | None = None) -> NotebookNode:
    """A copy of a chapter for students: no outputs, no solutions, a cell for each answer in words.

    Args:
        notebook: the chapter.
        labels: words for all labels of the book.
    """
    copy = new_notebook(metadata=_without_key(notebook))
    start = begin(notebook)
    known = {exercise.number: exercise for exercise in exercises(notebook)}
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            copy.cells.append(new_code_cell(cell.source, id=cell.id, metadata=cell.metadata))
        elif number < start:
            copy.cells.append(new_markdown_cell(cell.source, id=cell.id))
        else:
            copy.cells += _questions(cell, known)
    return worded(copy, labels)


def _questions(cell: NotebookNode, known: dict[str, Exercise]) -> list[NotebookNode]:
    """A cell of the exercises, cut after each question in words, with room for its answer."""
    found, text = [], ""

    def end() -> None:
        nonlocal text
        if text.strip():
            part = f"{cell.id}-{len(found)}" if found else cell.id
            found.append(new_markdown_cell(text.strip(), id=part))
        text = ""

    for part in re.split(r"(?=^\*\*\d+\.)", cell.source, flags=re.MULTILINE):
        text += SOLUTION.sub("", part)
        match = re.match(r"\*\*(\d+)\.", part)
        if match and not known[match[1]].check:
            end()
            if known[match[1]].code:
                found.append(new_code_cell("", id=f"code-{match[1]}"))
            answer = f"*Your answer to {match[1]}:*"
            found.append(new_markdown_cell(answer, id=f"answer-{match[1]}"))
    end()
    return found


def solved(notebook: NotebookNode, labels: Mapping[str, str] | None = None) -> NotebookNode:
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
        cells.append(new_markdown_cell(exercise.question, id=f"question-{key}"))
        words = exercise.solution
        if exercise.check:
            cells.append(new_code_cell(exercise.code, id=f"solution-{key}"))
            call = f"attempt({exercise.function}, {exercise.check})"
            cells.append(new_code_cell(call, id=f"check-{key}"))
            words = re.sub(r"^```python\n.*?^```\n?", "", words, flags=re.S | re.M).strip()
        if words:
            cells.append(new_markdown_cell(words, id=f"words-{key}"))
    return worded(new_notebook(cells=cells, metadata=_without_key(notebook)), labels)


def sheet(
    session: dict, chapters_: dict[str, Path], labels: Mapping[str, str], *, solved: bool
) -> NotebookNode:
    """The notebook in which the students of a session work, or the one with its solutions."""
    wanted = session["sheet"]
    notebook = find(chapters_, wanted["chapter"])
    picture = ("", "")
    if place := wanted.get("figure"):
        address, alt = figure(notebook, f"{wanted['chapter']}#{place['cell']}")
        picture = (address.partition("base64,")[2], alt)
    checked = [e.number for e in asked(notebook, wanted) if e.check]
    if checked != [str(number) for number in wanted["checked"]]:
        sys.exit(f"book/teaching.yml: of session {session['name']} {checked} have a check: say so")
    made = sheet_notebook(notebook, session, picture, solved=solved)
    made.metadata = _without_key(notebook)
    return worded(made, labels)


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
    labels = places(found)
    for path in found.values():
        notebook = nbformat.read(path, as_version=4)
        if exercises(notebook):
            nbformat.write(student(notebook, labels), to / "student" / path.name)
            nbformat.write(solved(notebook, labels), to / "solutions" / path.name)
    plans = sessions(root)
    for session in plans:
        file = f"session-{session['name']}.ipynb"
        nbformat.write(sheet(session, found, labels, solved=False), to / file)
        nbformat.write(sheet(session, found, labels, solved=True), to / "solutions" / file)
        slides = [slide(entry, found, root) for entry in session["slides"]]
        decks.append(to / f"session-{session['name']}.html")
        decks[-1].write_text(deck(session["title"], session["aim"], slides), encoding="utf-8")
    page = fill((root / "book" / "teaching.md").read_text(encoding="utf-8"), plans)
    link = f"{HOST}{home(root)}/blob/main/"
    page = re.sub(r"\]\(\.\./", f"]({link}", page)
    page = moved(page, written(root), home(root))
    (to / "README.md").write_text(plain(page), encoding="utf-8")
    return decks


def print_decks(decks: list[Path]) -> None:
    """Print each deck beside its HTML file: one slide a sheet, and once more with the notes open.

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
            page.add_style_tag(content=NOTES)
            page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
            page.pdf(
                path=path.with_name(f"{path.stem}-notes.pdf"),
                prefer_css_page_size=True,
                print_background=True,
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
