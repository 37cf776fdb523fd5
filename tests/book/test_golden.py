"""What the chapters show is what is frozen: no number changes and no table vanishes unseen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import build_book
import nbformat
import nbformat.v4 as v4
import pytest
from build_book import not_golden
from golden_outputs import COMPUTED, ROOT, differences, frozen, shown, write

from ersm_lab.views.tables import Table

ACCURACY = Table(
    caption="Accuracy", header=["method", "mean"], rows=[["dense", "90.60"], ["ersm", "89.47"]]
)
OTHER = replace(ACCURACY, rows=[["dense", "90.60"], ["ersm", "89.48"]])
COST = Table(caption="Cost", header=["method", "minutes"], rows=[["dense", "7.4"]])
PRINTED = "epoch 1: 2.8\nepoch 2: 0.5\n"


def chapters(folder: Path, **pages: list[Table | str]) -> Path:
    """Chapters of tables and of printed text, one a cell."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, outputs in pages.items():
        shows = [
            v4.new_output("stream", text=output)
            if isinstance(output, str)
            else v4.new_output("display_data", {"text/html": output._repr_html_()})
            for output in outputs
        ]
        cells = [v4.new_code_cell(outputs=[one]) for one in shows]
        nbformat.write(v4.new_notebook(cells=cells), folder / f"{name}.ipynb")
    return folder


@pytest.fixture
def golden(tmp_path) -> dict[str, list[str]]:
    """Two chapters, frozen and read again."""
    pages = {"one": [ACCURACY, PRINTED], "two": [COST, ACCURACY]}
    write(shown(chapters(tmp_path / "before", **pages)), tmp_path / "golden")
    return frozen(tmp_path / "golden")


def test_the_stored_chapters_show_what_is_frozen():
    changed = differences(frozen(), shown(ROOT / "notebooks"))
    assert not changed, "\n".join(["if it is meant: golden_outputs.py --write", *changed])


def test_every_table_that_is_said_to_be_computed_is_frozen():
    tables = frozen()["tables.txt"]
    assert [name for name in COMPUTED if not any(t.startswith(name) for t in tables)] == []


def test_where_something_is_shown_does_not_matter(tmp_path, golden):
    pages = {"three": ["epoch 2: 0.5\n", COST, "epoch 1: 2.8\n"], "one": [ACCURACY, ACCURACY]}
    assert differences(golden, shown(chapters(tmp_path / "now", **pages))) == []


@pytest.mark.parametrize(
    ("outputs", "lines"),
    [
        (
            [ACCURACY, OTHER, COST, PRINTED],
            [" = Accuracy", " method | mean", " dense | 90.60", "-ersm | 89.47", "+ersm | 89.48"],
        ),
        (
            [ACCURACY, COST, PRINTED],  # it was shown twice
            ["-= Accuracy", "-method | mean", "-dense | 90.60", "-ersm | 89.47"],
        ),
        ([ACCURACY, ACCURACY, COST, PRINTED, "epoch 3: 1\n"], ["+epoch 3: 1"]),
        (
            [ACCURACY, ACCURACY, COST, PRINTED.replace("0.5", "0.6")],
            ["-epoch 2: 0.5", "+epoch 2: 0.6"],
        ),
    ],
    ids=["a number", "one is gone", "one is new", "a printed number"],
)
def test_what_changes_is_shown_with_its_table(tmp_path, golden, outputs, lines):
    found = differences(golden, shown(chapters(tmp_path / "now", one=outputs)))
    assert [line for line in found if line[:3] not in ("---", "+++", "@@ ")] == lines


def test_pictures_seconds_and_rounding_are_not_frozen(tmp_path):
    said = [
        "<Figure size 792x396 with 1 Axes>\nWidget(85 KiB of HTML)\nwords\n",
        "laptop/cifar10/ersm/seed0: loaded; 323 s of training on a processor (bf16-mixed)\n",
        "    (0): Conv2d(3, 48, kernel_size=(4, 4))\nby hand: 2.2e-16, at T = 0.5\n",
    ]
    entries = shown(chapters(tmp_path, one=said))
    assert entries == {"tables.txt": [], "printed.txt": ["by hand: <rounding>, at T = 0.5"]}


def test_a_book_is_not_built_with_other_tables_than_the_frozen_ones(tmp_path, golden, monkeypatch):
    monkeypatch.setattr(build_book, "default_dataset", lambda: "cifar10")
    chapters(tmp_path / "stage/notebooks", one=[ACCURACY, COST])
    ran = {"scale": "laptop", "seconds": {"notebooks/one.ipynb": 1.0}, "at_hand": []}

    def found(**other) -> list[str]:
        (tmp_path / "notebook_seconds.json").write_text(json.dumps(ran | other))
        return not_golden(tmp_path, golden)

    assert "-ersm | 89.47" in found() and "-epoch 2: 0.5" not in found()  # printed: of the page
    assert found() == found(seconds={}, at_hand=["notebooks/one.ipynb"])
    assert found(scale="smoke") == found(seconds={}) == []
    monkeypatch.setattr(build_book, "default_dataset", lambda: "shapes")
    assert found() == []
