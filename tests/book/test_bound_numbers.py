"""Numbers in the prose are what the outputs say, and no number of ours stands there unbound."""

from __future__ import annotations

from pathlib import Path

import nbformat
import nbformat.v4 as v4
import pytest
from bound_numbers import (
    GIVEN,
    ROOT,
    agrees,
    candidates,
    check,
    outputs,
    proposed,
    renewed,
    rewrite,
    rewritten,
    unbound,
)
from build_book import differing

from ersm_lab.views.tables import Table

PAGES = [*sorted((ROOT / "notebooks").glob("*.ipynb")), *sorted((ROOT / "book").glob("*.md"))]


def bound(quoted: str, title: str, marks: str = "") -> str:
    return f'<span class="bound" title="{title}"{marks}>{quoted}</span>'


def book(root: Path, *prose: str) -> Path:
    """A book of one chapter: a table, a printed line, and some prose."""
    table = Table(
        header=["method", "fill", "mean ± sd", "verdict", "verdict"],
        rows=[
            ["ersm", "black", "-1.13 ± 0.14", "not 1", "2"],
            ["ersm", "noise", "+2.365 ± 0.20", "3", "4"],
            ["dense", "black", "16,384", "5", "6"],
        ],
    )
    shown = v4.new_output("display_data", {"text/html": table._repr_html_(), "text/plain": "no"})
    printed = v4.new_output("stream", text="epoch 1: 2.8, epoch 10: 4.9 s\nepoch 2: 0.5\n")
    cells = [
        v4.new_code_cell("table", id="table", outputs=[shown]),
        v4.new_code_cell("print", id="lines", outputs=[printed]),
        *(v4.new_markdown_cell(text, id=f"prose-{i}") for i, text in enumerate(prose)),
    ]
    (root / "notebooks").mkdir(parents=True)
    (root / "tools").mkdir()
    nbformat.write(v4.new_notebook(cells=cells), root / "notebooks/01_one.ipynb")
    return root


@pytest.mark.parametrize(
    ("quoted", "title", "marks"),
    [
        ("-1.13", "table | ersm | black | mean ± sd", ""),
        ("−1.13", "table | ersm | black | mean ± sd", ""),
        ("1.1", "table | ersm | black | mean ± sd", " data-absolute"),
        ("0.14", "table | ersm | black | mean ± sd #2", ""),
        ("+2.4", "table | ersm | noise | mean ± sd", ""),
        ("16,384", "table | dense | mean ± sd", ""),
        ("4", "table | ersm | noise | verdict (2)", ""),
        ("4.9", "lines | epoch 10:", ""),
        ("10", "lines | epoch 1: #2", ""),
        ("4.9", "01_one#lines | epoch 10:", ""),
    ],
)
def test_a_right_number_passes(tmp_path, quoted, title, marks):
    root = book(tmp_path, f"It is {bound(quoted, title, marks)} points.")
    assert check(root) == []
    assert unbound(root) == []


@pytest.mark.parametrize(
    ("quoted", "title", "marks", "complaint"),
    [
        ("−1.14", "table | ersm | black | mean ± sd", "", "quoted −1.14, the table says -1.13"),
        ("1.13", "table | ersm | black | mean ± sd", "", "the table says -1.13"),
        ("2.36", "table | ersm | noise | mean ± sd", " data-absolute", "the table says +2.365"),
        ("+2.3", "table | ersm | noise | mean ± sd", "", "the table says +2.365"),
        ("−1.130", "table | ersm | black | mean ± sd", "", "the table says -1.13"),
        ("about 1", "table | ersm | black | mean ± sd", "", "not one number"),
        ("1", "tables | ersm | mean ± sd", "", "no code cell 'tables'"),
        ("1", "02_two#table | ersm | mean ± sd", "", "no notebook '02_two'"),
        ("1", "table | gentle | mean ± sd", "", "no row begins with ['gentle']; there are 'ersm'"),
        ("1", "table | ersm | mean ± sd", "", "2 rows begin with ['ersm']: name the next cell"),
        ("1", "table | dense | mean", "", "no column 'mean'; there are 'method'"),
        ("1", "table | dense | mean ± sd #2", "", "'16,384' has no number 2"),
        ("1", "lines | epoch", "", "2 printed lines contain 'epoch'"),
        ("1", "lines | seed", "", "0 printed lines contain 'seed'"),
        ("1", "table", "", "'cell | row | column'"),
    ],
)
def test_a_wrong_number_is_reported_with_its_place(tmp_path, quoted, title, marks, complaint):
    (found,) = check(book(tmp_path, "Words.", bound(quoted, title, marks)))
    assert found.startswith("01_one, prose-1: quoted ")
    assert complaint in found


def test_in_a_table_the_bars_of_a_title_are_escaped(tmp_path):
    row = bound("−1.13", "table | ersm | black | mean ± sd")
    (found,) = check(book(tmp_path / "open", f"| black | {row} |"))
    assert "in a table write \\| for each bar" in found
    assert (
        check(
            book(
                tmp_path / "shut",
                "| black | "
                + row.replace("table | ersm | black |", "table \\| ersm \\| black \\|")
                + " |",
            )
        )
        == []
    )


def test_a_span_without_a_title_is_reported(tmp_path):
    (found,) = check(book(tmp_path, '<span class="bound">1</span>'))
    assert "'cell | row | column'" in found
    (found,) = check(
        book(tmp_path / "two", "<span title='table | dense | verdict' class='bound'>5</span>")
    )
    assert 'a bound number is <span class="bound"' in found


def test_what_is_computed_in_the_page_is_compared_where_it_is_stored(tmp_path):
    root = book(tmp_path, bound("7", "table | dense | verdict", " data-live"))
    assert len(check(root)) == 1
    assert check(root, live=False) == []


def test_a_book_is_not_built_with_a_number_that_its_record_no_longer_has(tmp_path):
    span = bound("5", "table | dense | verdict") + bound(
        "6", "table | dense | verdict (2)", " data-live"
    )
    root, stage = book(tmp_path / "root", span), book(tmp_path / "stage", span)
    assert differing(root, stage) == []
    path = stage / "notebooks/01_one.ipynb"
    path.write_text(path.read_text().replace("<td>5</td><td>6</td>", "<td>7</td><td>8</td>"))
    (found,) = differing(root, stage)
    assert found.startswith("as executed now: 01_one") and "the table says 7" in found
    path.write_text(path.read_text().replace("<td>dense</td>", "<td>not yet run</td>"))
    assert differing(root, stage) == []  # no record there: nothing to differ from
    assert len(differing(stage, root)) == 2  # but what is stored must be there


@pytest.mark.parametrize(
    ("quoted", "shown", "right"),
    [
        ("2.4", "+2.36", True),
        ("2.4", "2.35", True),
        ("2.3", "2.35", True),  # a half may be rounded either way
        ("2.3", "2.36", False),
        ("2", "2.36", True),
        ("2.360", "2.36", False),
        ("2e-16", "2.2e-16", True),
        ("0", "0.4", True),
    ],
)
def test_rounding_to_the_digits_that_are_quoted(quoted, shown, right):
    assert agrees(quoted, shown) is right


@pytest.mark.parametrize(
    ("quoted", "shown", "absolute", "new"),
    [
        ("2.4", "+3.26", False, "3.3"),
        ("+2.4", "-3.26", False, "−3.3"),
        ("−2.4", "+3.26", False, "+3.3"),
        ("2.40", "-3.2", True, "3.2"),
        ("12", "16,384.4", False, "16,384"),
    ],
)
def test_a_number_is_written_anew_in_its_own_manner(quoted, shown, absolute, new):
    assert rewritten(quoted, shown, absolute=absolute) == new
    assert agrees(new, shown, absolute=absolute)


def test_writing_mends_numbers_and_nothing_else(tmp_path, capsys):
    wrong = bound("−9.9", "table | ersm | black | mean ± sd")
    turned = bound("9.9", "table | ersm | noise | mean ± sd", " data-absolute")
    lost = bound("9.9", "table | gentle | mean ± sd")
    root = book(tmp_path, f"a {wrong} b\n\n{turned} {lost}")
    path = root / "notebooks/01_one.ipynb"
    before = path.read_text()
    rewrite(root, lambda text: renewed(text, root=root))
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("−9.9 -> −1.1") and said[1].endswith(
        "has changed its sign: +2.365; reword"
    )
    assert path.read_text() == before.replace("−9.9", "−1.1")
    assert len(check(root)) == 2  # the sign has changed; the row is gone


@pytest.mark.parametrize(
    "prose",
    ["costs 1.2 points", "95 % of it", "three points", "within 20 s", "2 minutes", "5\npoints"],
)
def test_a_number_typed_by_hand_is_reported(tmp_path, prose):
    root = book(tmp_path, f"It {prose} more.")
    (found,) = unbound(root)
    assert "01_one, prose-0" in found
    (root / GIVEN).write_text(f"01_one | {' '.join(prose.split())} | a setting\n")
    assert unbound(root) == []


@pytest.mark.parametrize(
    "prose",
    [
        "$x = 0.5$ and $$ y = 95 \\% $$",
        "`0.5` and {eq}`1.5`",
        "```python\nx = 0.5  # 20 s\n```",
        "[here](https://a.b/1.5) <b title='1.5'>x</b> https://a.b/2.5",
        "16 × 16 tokens, three seeds, CIFAR-10, ResNet-18",
    ],
)
def test_code_formulas_addresses_and_counts_are_no_numbers_of_the_prose(tmp_path, prose):
    assert unbound(book(tmp_path, prose)) == []


def test_a_given_number_may_be_any(tmp_path):
    root = book(tmp_path, "Reading: 35 minutes.")
    (root / GIVEN).write_text("* | Reading: # minutes | an estimate\n")
    assert unbound(root) == []


def test_a_given_number_that_is_gone_or_without_a_reason_is_reported(tmp_path):
    root = book(tmp_path, "Words.")
    (root / GIVEN).write_text("# a comment\n\n* | 95 % | a criterion\n")
    (found,) = unbound(root)
    assert "is not in the text" in found
    (root / GIVEN).write_text("* | 95 %\n")
    with pytest.raises(SystemExit, match="why"):
        unbound(root)


def test_what_fits_one_place_is_proposed(tmp_path, capsys):
    root = book(tmp_path, "It loses 1.13 points, or 0.14, or 1.7.")
    path = root / "notebooks/01_one.ipynb"
    assert candidates("1.13", path) == ['title="table | ersm | black | mean ± sd" data-absolute']
    assert candidates("1.7", path) == []
    rewrite(root, lambda text: proposed(text, path))
    assert check(root) == []
    assert len(unbound(root)) == 1
    assert "'1.7' fits 0" in capsys.readouterr().out


def test_a_page_of_the_book_quotes_a_chapter(tmp_path):
    root = book(tmp_path, "Words.")
    (root / "book").mkdir()
    (root / "book/intro.md").write_text("Words.\n" + bound("6", "01_one#table | dense | verdict"))
    assert check(root) == [
        "intro, line 2: quoted 6, the table says 5 (01_one#table | dense | verdict)"
    ]


def test_an_output_that_changes_is_read_anew(tmp_path):
    path = book(tmp_path, "Words.") / "notebooks/01_one.ipynb"
    assert outputs(path)["lines"].lines[1] == "epoch 2: 0.5"
    path.write_text(path.read_text().replace("epoch 2: 0.5", "epoch 2: 0.75"))
    assert outputs(path)["lines"].lines[1] == "epoch 2: 0.75"


@pytest.fixture(scope="module")
def problems() -> list[str]:
    return check(ROOT) + unbound(ROOT)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_the_numbers_of_the_book_are_bound_and_right(problems, page):
    own = (f"{page.stem}, ", f"{page.stem}: ", "*: ")
    assert [line for line in problems if line.startswith(own)] == []
