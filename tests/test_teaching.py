"""The pack for a course: copies without solutions, right solutions, a grader that is not fooled."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from chapter_exercises import exercises, name
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from slides import Slide, deck
from teaching import plain, sessions, student, write_pack

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pack")
    write_pack(ROOT, folder)
    return folder


CHAPTER = new_notebook(
    cells=[
        new_code_cell("import math", id="setup"),
        new_markdown_cell("# A chapter\n\nSee {eq}`a-b`.", id="top"),
        new_markdown_cell(
            "## Exercises\n\n**1.** Double it.\n", id="one"
        ),
        new_code_cell(
            "def double(x):\n    raise NotImplementedError\n\nattempt(double, m.check)", id="f"
        ),
        new_markdown_cell(
            ":::{dropdown} Solution\n```python\ndef double(x):\n    return 2 * x\n```\nTwice.\n:::\n\n"
            "**2.** Why?\n\n:::{dropdown} Solution\nBecause.\n:::\n\n"
            "**3.** Run it.\n\n::::{dropdown} Solution\n```python\ndouble(3)\n```\n::::\n",
            id="rest",
        ),
    ]
)  # fmt: skip


def test_exercises_are_read_out_of_a_chapter():
    first, second, third = exercises(CHAPTER)
    assert (first.function, first.check) == ("double", "m.check")
    assert first.given == ["def double(x):\n    raise NotImplementedError"]
    assert first.code == "def double(x):\n    return 2 * x" and "Twice." in first.solution
    assert (second.question, second.solution) == ("**2.** Why?", "Because.")
    assert third.code == "double(3)" and not third.check


def test_a_student_copy_has_room_for_answers_and_no_solution():
    copy = student(CHAPTER)
    nbformat.validate(copy)
    assert [cell.id for cell in copy.cells] == [
        "setup", "top", "one", "f", "rest", "answer-2", "rest-2", "code-3", "answer-3",
    ]  # fmt: skip
    text = "\n".join(cell.source for cell in copy.cells)
    assert not re.search(r"Because|Twice|return 2|dropdown", text) and "(a-b)" in text


def test_marks_of_the_book_are_taken_out_and_formulas_stay():
    text = (
        'In {doc}`chapter 6 <06_x>`, $$ x^2 $$ (a-b), <span class="bound" title="c | d">1.5</span>.'
    )
    assert plain(text) == "In chapter 6, $$ x^2 \\tag{a-b}$$, 1.5."


def test_no_student_copy_has_an_output_or_a_solution(pack):
    copies = sorted((pack / "student").glob("*.ipynb"))
    assert len(copies) >= 10
    for path in copies:
        copy = nbformat.read(path, as_version=4)
        nbformat.validate(copy)
        chapter = nbformat.read(ROOT / "notebooks" / path.name, as_version=4)
        text = "\n".join(cell.source for cell in copy.cells)
        assert "{dropdown}" not in text
        assert not any(cell.get("outputs") for cell in copy.cells)
        for exercise in exercises(chapter):
            assert not exercise.code or exercise.code not in text
            where = f"answer-{exercise.number}" if not exercise.check else exercise.check
            assert where in text or where in {cell.id for cell in copy.cells}


# ------------------------------------------------------------------------------------------ grading


@pytest.fixture(scope="module")
def graded(pack, tmp_path_factory) -> list[dict]:
    """The table over: all solutions, an untouched copy, and submissions that misbehave."""
    folder = tmp_path_factory.mktemp("submissions")
    for path in sorted((pack / "solutions").glob("*.ipynb")):
        (folder / "teacher").mkdir(exist_ok=True)
        (folder / "teacher" / path.name).write_bytes(path.read_bytes())
    (copy,) = (pack / "student").glob("*energy_terms.ipynb")
    (folder / "lazy").mkdir()
    (folder / "lazy" / copy.name).write_bytes(copy.read_bytes())
    bad = {
        "slow": ["def slope(*_):\n    while True:\n        pass", "x = [0] * 10**12"],
        "large": ["def slope(*_):\n    return torch.zeros(10**11)", "def usefulness_to_reopen(*_): 1",
                  "d = {[1]: 2}"],
        "dead": ["import os\ndef slope(*_):\n    os._exit(3)", "this is no Python"],
        "sly": ["import ersm_lab.exercises.energy_terms as e\ndef attempt(*_): pass",
                "def slope(*_): return '=1+1'\nenergy_terms.check_slope = lambda f: None"],
    }  # fmt: skip
    for who, cells in bad.items():
        notebook = new_notebook(cells=[new_code_cell(source) for source in cells])
        nbformat.write(notebook, folder / f"{who}_{copy.name}")
    (folder / f"broken_{copy.name}").write_text("{")
    for number in ("s1234567", "s7654321"):
        nbformat.write(new_notebook(), folder / f"{number}_{copy.name}")
    table = folder / "grades.csv"
    command = [sys.executable, ROOT / "tools" / "grade.py", folder, "--to", table]
    command += ["--seconds", "10", "--memory", "1000", "--jobs", "2"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert told.returncode == 0, told.stdout + told.stderr
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_students_with_numbers_stay_two(graded):
    assert {"s1234567", "s7654321"} <= {line["student"] for line in graded}


def results(graded: list[dict], student: str) -> dict[str, str]:
    return {line["function"]: line["result"] for line in graded if line["student"] == student}


def test_every_solution_is_right_by_its_check(graded):
    teacher = [line for line in graded if line["student"] == "teacher"]
    wanted = {
        (name(path), exercise.number)
        for path in (ROOT / "notebooks").glob("*.ipynb")
        for exercise in exercises(nbformat.read(path, as_version=4))
        if exercise.check
    }
    assert {(line["chapter"], line["exercise"]) for line in teacher} == wanted
    assert [line for line in teacher if line["result"] != "right"] == []


def test_an_untouched_copy_is_open(graded):
    assert set(results(graded, "lazy").values()) == {"open"}


@pytest.mark.parametrize(
    ("who", "result"),
    [
        ("slow", "too slow"),
        ("large", "too large"),
        ("dead", "crashed"),
        ("sly", "wrong"),
        ("broken", "unreadable"),
    ],
)
def test_what_misbehaves_is_stopped_and_named(graded, who, result):
    found = results(graded, who)
    assert found["slope"] == result
    assert who in ("large", "broken") or found["usefulness_to_reopen"] == "missing"


# ------------------------------------------------------------------------------------------- slides


class Addresses(HTMLParser):
    """All that a page asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for key, value in attrs if key in ("src", "href", "data")]


def test_the_decks_need_no_network_and_show_what_the_chapters_show(pack):
    decks = sorted(pack.glob("session-*.html"))
    assert len(decks) == len(sessions(ROOT))
    for path in decks:
        text = path.read_text(encoding="utf-8")
        page = Addresses()
        page.feed(text)
        assert page.found and all(address.startswith("data:image/") for address in page.found)
        assert not re.search(r"url\(|@import", text)


def test_a_slide_escapes_what_it_says_and_draws_its_formula():
    given = {"minutes": 5, "say": "a < b", "ask": "why?", "answer": "so & so"}
    text = deck("T", "A", [Slide(title="<x>", formula=r"\frac{a}{b}", **given)])
    assert "&lt;x&gt;" in text and "a &lt; b" in text and "so &amp; so" in text
    assert "<mfrac>" in text


def test_a_session_fills_its_ninety_minutes():
    for session in sessions(ROOT):
        assert sum(entry["minutes"] for entry in session["slides"]) == 90
        assert any("exercise" in entry for entry in session["slides"])
        assert all(entry["ask"] and entry["answer"] for entry in session["slides"])
