"""The notebook that students hold in a session: set-up, definitions, exercises, room for answers.

A chapter derives what its exercises ask for, and so cannot be handed out before they are done. A sheet
is a notebook without the derivation. It is made by the entry `sheet` of a session in book/teaching.yml:

    sheet:
      chapter: energy_terms
      exercises: [1, 2, 3]           # by their numbers in the chapter
      checked: [1, 2]                # those of them that have a check
      definitions: |                 # Markdown
      figure: {cell: ..., before: 2} # a stored figure of the chapter, shown before an exercise
      words:                         # questions of the session's own: name, ask, answer
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path

import yaml
from chapter_exercises import Exercise, exercises, tree
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

POINTS = {True: 1, False: 3}  # of an exercise with a check, and of a question in words


def sessions(root: Path) -> list[dict]:
    """The sessions of book/teaching.yml."""
    return yaml.safe_load((root / "book" / "teaching.yml").read_text(encoding="utf-8"))


def asked(notebook: NotebookNode, sheet: Mapping) -> list[Exercise]:
    """The exercises of a sheet, and after them its own questions, in words.

    Args:
        notebook: the chapter.
        sheet: of book/teaching.yml.

    Raises:
        KeyError: the chapter has no exercise of that number.
    """
    known = {exercise.number: exercise for exercise in exercises(notebook)}
    found = [known[str(number)] for number in sheet["exercises"]]
    own = [
        Exercise(number=entry["name"], question=entry["ask"], solution=entry["answer"])
        for entry in sheet.get("words", ())
    ]
    return found + own


def needed_imports(notebook: NotebookNode, code: str) -> str:
    """Those imports of a chapter, and of the code itself, whose names the code uses."""
    used = {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
    trees = [tree(cell.source) for cell in notebook.cells if cell.cell_type == "code"][1:]
    found = {}
    for node in (node for body in [*trees, ast.parse(code)] for node in body.body):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name.partition(".")[0]) in used:
                    one = ast.Import([alias])
                    if isinstance(node, ast.ImportFrom):
                        one = ast.ImportFrom(node.module, [alias], node.level)
                    found[ast.unparse(one)] = isinstance(node, ast.ImportFrom)
    return "\n".join(sorted(found, key=lambda line: ("ersm" in line, found[line], line)))


def heading(exercise: Exercise) -> str:
    """The heading of an exercise in a sheet, with its points."""
    points = POINTS[bool(exercise.check)]
    what = f"Exercise {exercise.number}" if exercise.number.isdigit() else exercise.number
    return f"## {what} ({points} point{'s' * (points > 1)})"


def sheet_notebook(
    notebook: NotebookNode, session: Mapping, picture: tuple[str, str], *, solved: bool
) -> NotebookNode:
    """The notebook of a session.

    Args:
        notebook: the chapter.
        session: of book/teaching.yml, with a sheet.
        picture: PNG in base64 and its text alternative, of the sheet's figure; empty without one.
        solved: with the solutions, and the checks after them.
    """
    sheet = session["sheet"]
    wanted = asked(notebook, sheet)
    checks = "\n".join(f"attempt({e.function}, {e.check})" for e in wanted if e.check)
    code = "\n".join(e.code for e in wanted if e.check)
    setup = next(cell for cell in notebook.cells if cell.cell_type == "code")
    title = f"# {session['title']}" + ": solutions" * solved
    how = "Run the first two cells now: in Colab they install the packages, which takes minutes."
    cells = [
        new_markdown_cell(f"{title}\n\n{how}", id="title"),
        new_code_cell(setup.source, id="setup"),
        new_code_cell(needed_imports(notebook, f"{code}\n{checks}"), id="imports"),
        new_markdown_cell(f"## What is given\n\n{sheet['definitions'].strip()}", id="definitions"),
    ]
    for exercise in wanted:
        key = re.sub(r"\W+", "-", exercise.number).lower()
        if exercise.number == str(sheet.get("figure", {}).get("before")):
            image, alt = picture
            cell = new_markdown_cell(f"![{alt}](attachment:figure.png)", id="figure")
            cell.attachments = {"figure.png": {"image/png": image}}
            cells.append(cell)
        question = re.sub(r"^\*\*\d+\.(.*?)\*\*", r"**\1**", exercise.question)
        question = question.replace("****", "").strip()
        cells.append(new_markdown_cell(f"{heading(exercise)}\n\n{question}", id=f"question-{key}"))
        words = exercise.solution
        if exercise.check:
            given = [exercise.code] if solved else exercise.given
            cells += [new_code_cell(c, id=f"code-{key}-{n}") for n, c in enumerate(given)]
            call = f"attempt({exercise.function}, {exercise.check})"
            cells.append(new_code_cell(call, id=f"check-{key}"))
            words = re.sub(r"^```python\n.*?^```\n?", "", words, flags=re.S | re.M).strip()
        elif not solved:
            answer = f"*Your answer to {exercise.number}:*"
            cells.append(new_markdown_cell(answer, id=f"answer-{key}"))
        if solved and words:
            cells.append(new_markdown_cell(words, id=f"words-{key}"))
    return new_notebook(cells=cells, metadata=notebook.metadata)


def own_words(notebook: NotebookNode, number: str) -> str | None:
    """What a student wrote as the answer to a question in words; None if its cell is gone."""
    mark = f"*Your answer to {number}:*"
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and mark in cell.source:
            return cell.source.partition(mark)[2].strip()
    return None
