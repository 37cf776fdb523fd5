"""The exercises of a chapter, read out of its notebook: question, code that is given, check, solution.

In a chapter they stand below "## Exercises": a question begins with its number in bold, its solution is
the dropdown after it, and what can be checked has a cell `attempt(function, module.check)` in between.

    >>> [e.number for e in exercises(nbformat.read("notebooks/01_quickstart.ipynb", as_version=4))]
    ['1', '2', ...]
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from pathlib import Path

from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode

HEADING = re.compile(r"^## Exercises$", re.MULTILINE)
QUESTION = re.compile(r"^\*\*(\d+)\.", re.MULTILINE)
SOLUTION = re.compile(
    r"^(:{3,})\{dropdown\} Solution\n(?P<body>.*?)^\1[ \t]*(?:\n|\Z)", re.S | re.M
)
PYTHON = re.compile(r"^```python\n(.*?)^```", re.S | re.M)


@dataclass
class Exercise:
    """One exercise; function and check are empty if there is nothing to check by machine."""

    number: str
    question: str  # Markdown
    given: list[str] = field(default_factory=list)  # the code cells, without the check
    function: str = ""  # "slope"
    check: str = ""  # "energy_terms.check_slope"
    solution: str = ""  # Markdown

    @property
    def code(self) -> str:
        """The Python of the solution; empty if it has none."""
        return "\n\n".join(found.rstrip() for found in PYTHON.findall(self.solution))


def tree(source: str) -> ast.Module:
    """The syntax tree of a cell, IPython's magic included.

    Raises:
        SyntaxError: it is no Python.
    """
    return ast.parse(TransformerManager().transform_cell(source))


def check_call(source: str) -> tuple[str, str] | None:
    """The function and the check of a cell that has a line attempt(function, module.check)."""
    for node in tree(source).body:
        value = getattr(node, "value", None)
        if isinstance(value, ast.Call) and ast.unparse(value.func) == "attempt":
            function, check = map(ast.unparse, value.args)
            return function, check
    return None


def without_check(source: str) -> str:
    """A cell without its line attempt(...)."""
    lines = source.splitlines()
    return "\n".join(line for line in lines if not line.startswith("attempt(")).strip()


def begin(notebook: NotebookNode) -> int:
    """The number of the cell in which the exercises begin; that of the end if there are none."""
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown" and HEADING.search(cell.source):
            return number
    return len(notebook.cells)


def exercises(notebook: NotebookNode) -> list[Exercise]:
    """All exercises of a chapter, in their order."""
    found: list[Exercise] = []
    start = begin(notebook)
    for number, cell in enumerate(notebook.cells[start:]):
        source = cell.source
        if cell.cell_type == "code":
            if call := check_call(source):
                found[-1].function, found[-1].check = call
            if rest := without_check(source):
                found[-1].given.append(rest)
            continue
        if number == 0:
            source = source[HEADING.search(source).end() :]
        for part in re.split(r"(?=^\*\*\d+\.)", source, flags=re.MULTILINE):
            if match := QUESTION.match(part):
                found.append(Exercise(number=match[1], question=SOLUTION.sub("", part).strip()))
            if (match := SOLUTION.search(part)) and found:
                found[-1].solution = match["body"].strip()
    return found


def imports(notebook: NotebookNode) -> str:
    """All that the cells of a chapter import, as one piece of code."""
    nodes = [
        node
        for cell in notebook.cells
        if cell.cell_type == "code"
        for node in tree(cell.source).body
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    return "\n".join(dict.fromkeys(map(ast.unparse, nodes)))


def name(path: Path) -> str:
    """A chapter's name, which does not change with its number: 03_energy_terms is energy_terms."""
    return re.sub(r"^\d+_", "", path.stem)
