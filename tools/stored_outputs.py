"""Whether the outputs that a notebook holds are what it would show today: by a key stored with them.

The key is a hash of each thing that the outputs depend on, and lies in the notebook's metadata:

    cells      its code cells
    code       the project's modules that they import, directly or not, and the files beside these;
               without comments and docstrings, unless the notebook shows source
    records    data/results, without the seconds that notebooks took
    images     which data set there is
    scale      how much it computes

What may change: text, alternatives of figures, hidden cells, and which packages are installed, since
the tests run every cell with those. Whether the records still stand is the probes' business.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable
from pathlib import Path

import nbformat
from IPython.core.inputtransformer2 import TransformerManager

from ersm_lab.images.data import default_dataset
from ersm_lab.results import provenance

NAME = "stored_outputs"  # in the metadata
WORDS = {
    "cells": "its code cells",
    "code": "code that it imports",
    "records": "the records",
    "images": "the images at hand",
    "scale": "the scale",
}


def key(notebook: nbformat.NotebookNode, *, scale: str, root: Path) -> dict[str, str]:
    """What the outputs of a notebook depend on, as it is today: hashes, and two words.

    Args:
        notebook: its outputs do not matter.
        scale: at which it runs.
        root: the folder that holds data/results.
    """
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return {
        "cells": _digest(cell.encode() for cell in cells),
        "code": _of_code("\n".join(TransformerManager().transform_cell(cell) for cell in cells)),
        "records": _of_records(root / "data/results"),
        "images": default_dataset(),
        "scale": scale,
    }


def changed(notebook: nbformat.NotebookNode, today: dict[str, str]) -> str:
    """What differs from when the outputs were stored, in words; empty if nothing does."""
    then = notebook.metadata.get(NAME)
    if then is None:
        return "nothing says what its outputs were made of"
    return ", ".join(WORDS[part] for part in WORDS if then.get(part) != today[part])


def take_over(notebook: nbformat.NotebookNode, executed: nbformat.NotebookNode) -> None:
    """Give a notebook the outputs, and the key, of another one that has the same code cells."""
    notebook.metadata[NAME] = executed.metadata[NAME]
    cells, others = (
        [cell for cell in nb.cells if cell.cell_type == "code"] for nb in (notebook, executed)
    )
    for cell, other in zip(cells, others, strict=True):
        cell.outputs, cell.execution_count = other.outputs, other.execution_count


def _of_code(code: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "notebook.py"
        script.write_text(code, encoding="utf-8")
        modules = [path for path in provenance.code_of(script) if path != script]
    base = provenance.code_folder()
    beside = [  # pages' scripts, styles and the like
        path
        for path in sorted((base / "ersm_lab").rglob("*"))
        if path.is_file()
        and path.suffix not in (".py", ".md")
        and path.parent.name != "__pycache__"
    ]
    files = [*modules, *beside]
    if "getsource" in code:
        return _digest(path.read_bytes() for path in files)
    return provenance.source_hash(files, code=base)[0][:12]


def _of_records(results: Path) -> str:
    parts = []
    for path in sorted(results.rglob("*.json")):
        if not path.parent.name.startswith("notebooks-"):
            parts += [path.relative_to(results).as_posix().encode(), path.read_bytes()]
    return _digest(parts)


def _digest(parts: Iterable[bytes]) -> str:
    """A short hash of several things in their order."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(hashlib.sha256(part).digest())
    return whole.hexdigest()[:12]
