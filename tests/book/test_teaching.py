"""The pack for a course: copies without solutions, right solutions, a grader that is not fooled."""

from __future__ import annotations

import csv
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from chapter_exercises import exercises, name
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from sheets import asked, own_words
from slides import Slide, deck
from teaching import chapters, places, plain, plan, sessions, student, write_pack

pytest_plugins = ["browser"]

ROOT = Path(__file__).resolve().parents[2]


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


def test_labels_become_words_where_they_lead_out_of_a_copy(pack):
    assert plain("See {ref}`a-b` and {eq}`c`.", {"a-b": "there", "c": "d"}) == "See there and (d)."
    assert plain("[status page](../book/status.md)") == "status page"
    known = places(chapters(ROOT))
    assert known["layer-gates"].endswith("in chapter 2, Building the Energy-Mask Layer")
    for path in pack.rglob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        text = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
        assert "](../" not in text
        tags = set(re.findall(r"\\tag\{([\w-]+)\}", text))
        labels = {found for found in re.findall(r"\(([a-z]+-[a-z-]+)\)", text) if found in known}
        assert labels <= tags, path.name


@pytest.mark.parametrize("session", sessions(ROOT), ids=lambda session: session["name"])
def test_a_sheet_has_exercises_and_room_and_neither_derivation_nor_solution(pack, session):
    name_ = f"session-{session['name']}.ipynb"
    sheet, solved = (nbformat.read(pack / place / name_, 4) for place in (".", "solutions"))
    (path,) = (ROOT / "notebooks").glob(f"*_{session['sheet']['chapter']}.ipynb")
    chapter = nbformat.read(path, as_version=4)
    nbformat.validate(sheet)
    code = [cell.source for cell in sheet.cells if cell.cell_type == "code"]
    assert code[0] == next(cell.source for cell in chapter.cells if cell.cell_type == "code")
    assert not any(cell.get("outputs") for cell in sheet.cells)
    text = "\n".join(cell.source for cell in sheet.cells)
    answers = "\n".join(cell.source for cell in solved.cells)
    for exercise in asked(chapter, session["sheet"]):
        if exercise.check:
            body = exercise.code.splitlines()[-1].strip()
            assert body in answers and body not in text
            assert f"attempt({exercise.function}, {exercise.check})" in code
        else:
            assert own_words(sheet, exercise.number) == ""
    assert "slope_by_hand" not in text and "dm}{dz}" not in text


def test_a_sheet_runs_without_images_or_a_network(pack, tmp_path, monkeypatch):
    monkeypatch.setenv("ERSM_DATA_DIR", str(tmp_path))
    for path in sorted((pack / "solutions").glob("session-*.ipynb")):
        cells = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
        names: dict = {}
        for source in cells[1:]:  # the first would fetch the project
            if source.startswith("attempt("):
                assert eval(source, names).kind == "right", source
            else:
                exec(source, names)


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
    sheet = nbformat.read(pack / "session-one.ipynb", as_version=4)
    nbformat.write(sheet, folder / "empty_session-one.ipynb")
    for cell in sheet.cells:
        if cell.id == "answer-3":
            cell.source += "\n\nFewer neighbours."
    sheet.cells = [cell for cell in sheet.cells if cell.id != "answer-one-mask"]
    nbformat.write(sheet, folder / "worded_session-one.ipynb")
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
    sheets = {
        (f"session-{s['name']}", str(n)) for s in sessions(ROOT) for n in s["sheet"]["checked"]
    }
    teacher = [line for line in teacher if line["function"]]
    assert {(line["chapter"], line["exercise"]) for line in teacher} == wanted | sheets
    assert [line for line in teacher if line["result"] != "right"] == []


def test_words_in_a_sheet_are_in_the_table_to_be_read(graded):
    found = {line["exercise"]: line for line in graded if line["student"] == "worded"}
    assert (found["3"]["result"], found["3"]["message"]) == ("to read", "Fewer neighbours.")
    assert found["The sentence"]["result"] == "open" and found["One mask"]["result"] == "missing"
    assert found["1"]["result"] == "open"
    empty = {line["result"] for line in graded if line["student"] == "empty"}
    assert empty == {"open"}


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
    text = deck("T", "A", [Slide(title="<x>", formulas=[r"\frac{a}{b}"], **given)])
    assert "&lt;x&gt;" in text and "a &lt; b" in text and "so &amp; so" in text
    assert "<mfrac>" in text


def test_a_session_fills_its_ninety_minutes():
    for session in sessions(ROOT):
        assert sum(entry["minutes"] for entry in session["slides"]) == 90
        assert any("exercise" in entry for entry in session["slides"])
        assert all(entry["ask"] and entry["answer"] for entry in session["slides"])


def test_the_plan_says_when_the_exercise_starts_and_what_was_answered():
    for session in sessions(ROOT):
        text, clock = plan(session), 0
        for entry in session["slides"]:
            if "exercise" in entry:
                assert f"| {clock} | {entry['minutes']} |" in text
                assert f"at minute {clock} the exercise starts" in text
            clock += entry["minutes"]
            assert entry["answer"].splitlines()[0] in text


def test_the_votes_on_the_valleys_follow_the_formula():
    (entry,) = (s for s in sessions(ROOT)[0]["slides"] if s["title"] == "Two valleys")
    for ratio in (0.0, 0.4, 0.8):
        ridge = math.log(math.exp(1 - ratio) - 1)
        line = (
            rf"= {ratio:g}\$: \$z\^\* = {ridge:.2f}\$.*\*\*{'kept' if ridge > 0 else 'dropped'}\*\*"
        )
        assert re.search(line, entry["answer"]), line


@pytest.mark.parametrize("size", [(1024, 768), (1280, 720), (1366, 768), (1920, 1080)])
def test_slides_fit_the_window_with_their_formulas(pack, browser, size):
    page = browser.new_page(viewport={"width": size[0], "height": size[1]})
    for path in sorted(pack.glob("session-*.html")):
        page.goto(path.resolve().as_uri())
        wide = page.evaluate(
            """() => [...document.querySelectorAll("math")]
            .filter(m => m.closest("details") === null)
            .filter(m => [m, ...m.querySelectorAll("*")].some(part => {
              const box = part.getBoundingClientRect();
              const all = m.closest("section").getBoundingClientRect();
              return box.width && (box.right > all.right || box.left < all.left);
            })).map(m => m.textContent)"""
        )
        assert wide == []
        heights = page.evaluate(
            "() => [...document.querySelectorAll('section')].map(s => s.scrollHeight - innerHeight)"
        )
        assert max(heights) <= 1, (path.name, heights)
        page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.close()


def test_the_space_bar_turns_the_slides(pack, browser):
    page = browser.new_page(viewport={"width": 1280, "height": 720})
    page.goto((pack / "session-one.html").resolve().as_uri())
    page.keyboard.press(" ")
    page.keyboard.press(" ")
    assert page.evaluate("Math.round(scrollY / innerHeight)") == 2
    page.close()
