"""Bind the numbers of the prose to the outputs they are quoted from, and compare the two.

A number of ours that is quoted in the text stands in a span whose title says where it comes from,

    <span class="bound" title="paired-half | ablation-ersm | mean ± sd">−1.22</span>

that is: the id of the code cell, the row of its table, the column. A row is named by its first
cell, or by its first cells, each between bars, until no other row begins so. The first number of
the table's cell is meant, or the second if the column is followed by ` #2`. Of columns with the
same heading the second is called `verdict (2)`. Where a cell prints lines instead of a table, the
second part is a text that exactly one line contains, and the numbers after it count:

    <span class="bound" title="c18 | epoch 10:">3.1</span>

In a Markdown table, where a bar would end the cell, it is written `\\|`.

`03_energy_terms#cell-25 | …` is a cell of another chapter. The digits that are quoted may be fewer
than the table's. `data-absolute` on the span: the number is negative, and quoted without its sign.
`data-live`: the output is computed in the page, so it depends on the scale and the machine; it is
compared where the outputs are stored, and not in a book that is built from other ones.

All other decimals, percentages and times in the prose are settings, definitions or published
values, and tools/given_numbers.txt names each with the reason (`#` is any whole number there).

    python tools/bound_numbers.py                     # compare, and look for unbound numbers
    python tools/bound_numbers.py --write             # write what the tables say
    python tools/bound_numbers.py --unbound           # only the unbound ones
    python tools/bound_numbers.py --propose NOTEBOOK  # what they could be bound to (--write: do it)
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from html import escape, unescape
from pathlib import Path

from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parent.parent
GIVEN = "tools/given_numbers.txt"
SPAN = re.compile(
    r'<span class="bound"(?P<marks>[^>"]*(?:"[^"]*"[^>"]*)*)>(?P<quoted>.*?)</span>', re.S
)
CLASS = re.compile(r"""class\s*=\s*["']?bound\b""")
TITLE = re.compile(r'title="([^"]*)"')
TABLE_ROW = re.compile(r"[ \t]*\|")
OPEN_BAR = re.compile(r"(?<!\\)\|")
NUMBER = re.compile(r"(?<![\w.])[+−-]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?(?![\w.]*\d)")
UNIT = r"(?:\s?%|[\s-](?:per\s?cent|points?|s|min|minutes?|seconds?|times)\b)"
WORDS = "(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|fifty)"
QUOTED = re.compile(
    rf"(?<![\w.])[+−-]?(?:\d[\d,]*\.\d+(?:e[+-]?\d+)?(?:{UNIT})?|(?:\d[\d,]*|\b{WORDS}){UNIT})",
    re.I,
)
# What is no prose: fenced code, formulas, code and roles, addresses, bound numbers, other tags.
NO_PROSE = re.compile(
    r"^(?P<fence>`{3,})[^\n]*\n.*?^(?P=fence)[ \t]*$|\$\$.*?\$\$|\$(?!\s)[^$]*?\$|`[^`]*`|\]\([^)]*\)"
    r'|<span class="bound".*?</span>|</?[A-Za-z][^>]*>|<!--.*?-->|https?://\S+',
    re.S | re.M,
)


@dataclass(frozen=True, kw_only=True)
class Text:
    """A piece of prose: a Markdown cell, or a page of book/."""

    page: str  # "08_inverse_scale", "intro"
    cell: str  # the cell's id, or the page's name
    source: str

    def line(self, start: int, message: str) -> str:
        where = self.cell
        if where == self.page:
            where = f"line {self.source.count(chr(10), 0, start) + 1}"
        return f"{self.page}, {where}: {message}"


@dataclass(frozen=True, kw_only=True)
class Output:
    """What a code cell shows: tables as rows under their headings, and all other text."""

    tables: list[tuple[list[str], list[list[str]]]]
    captions: list[str]  # one a table; "" if it has none
    lines: list[str]


class NotThereError(LookupError):
    """A title leads to nothing, or to more than one thing."""


def texts(root: Path) -> Iterator[Text]:
    """The prose of the notebooks and of the written pages."""
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        for cell in _cells(path):
            if cell["cell_type"] == "markdown":
                yield Text(page=path.stem, cell=cell["id"], source="".join(cell["source"]))
    for path in sorted((root / "book").glob("*.md")):
        yield Text(page=path.stem, cell=path.stem, source=path.read_text(encoding="utf-8"))


def outputs(path: Path) -> dict[str, Output]:
    """What the code cells of an executed notebook show, by their ids."""
    return _outputs(path, path.stat().st_mtime_ns)


@cache
def _outputs(path: Path, _changed: int) -> dict[str, Output]:
    return {cell["id"]: _read(cell) for cell in _cells(path) if cell["cell_type"] == "code"}


def _cells(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def _read(cell: dict) -> Output:
    tables, captions, lines = [], [], []
    for output in cell["outputs"]:
        data = output.get("data", {})
        page = "".join(data.get("text/html", ""))
        if "<table" in page:
            found = BeautifulSoup(page, "html.parser")("table")
            tables += [_table(table) for table in found]
            captions += [
                table.caption.get_text().strip() if table.caption else "" for table in found
            ]
        else:
            text = data.get("text/plain", output.get("text", ""))
            lines += "".join(text).splitlines()
    return Output(tables=tables, captions=captions, lines=lines)


def _table(table: BeautifulSoup) -> tuple[list[str], list[list[str]]]:
    rows = [[cell.get_text().strip() for cell in row(["th", "td"])] for row in table("tr")]
    header: list[str] = []
    for text in rows[0] if rows else []:
        again = 1 + sum(name == text or name.startswith(f"{text} (") for name in header)
        header.append(text if again == 1 else f"{text} ({again})")
    return header, rows[1:]


def look_up(title: str, *, page: str, root: Path) -> str:
    """The number that a title leads to.

    Args:
        title: "cell | row | column", "cell | row, first cell | second cell | column #2", or
            "cell | text of a line", each cell with "notebook#" before it if it is another's.
        page: the notebook that the title stands in.
        root: has the folder notebooks/.

    Raises:
        NotThereError: there is no such cell, row, column, line or number, or there are several.
    """
    cell, *names = [part.strip() for part in _plain(title).split(" | ")]
    if not names:
        raise NotThereError(f"the title {title!r} is not 'cell | row | column'")
    notebook, _, cell = cell.rpartition("#")
    path = root / "notebooks" / f"{notebook or page}.ipynb"
    if not path.exists():
        raise NotThereError(f"there is no notebook {path.stem!r}: name one, 'notebook#{cell}'")
    if cell not in outputs(path):
        raise NotThereError(f"{path.stem} has no code cell {cell!r}")
    last, _, which = names[-1].partition(" #")
    names[-1], count = last, int(which or 1)
    output = outputs(path)[cell]
    text = _line(output, names[0]) if len(names) == 1 else _entry(output, names)
    found = NUMBER.findall(text)
    if len(found) < count:
        raise NotThereError(f"{text!r} has no number {count}")
    return found[count - 1]


def _plain(title: str) -> str:
    return unescape(title).replace("\\|", "|")


def _line(output: Output, name: str) -> str:
    found = [line for line in output.lines if name in line]
    if len(found) != 1:
        raise NotThereError(f"{len(found)} printed lines contain {name!r}, not one")
    return found[0].partition(name)[2]


def _entry(output: Output, names: list[str]) -> str:
    *label, column = names
    rows = [
        (header, row)
        for header, rows in output.tables
        for row in rows
        if row[: len(label)] == label
    ]
    if not rows:
        there = ", ".join(repr(row[0]) for _, rows in output.tables for row in rows if row)
        raise NotThereError(f"no row begins with {label}; there are {there or 'no tables'}")
    if len(rows) > 1:
        raise NotThereError(f"{len(rows)} rows begin with {label}: name the next cell, too")
    header, row = rows[0]
    if column not in header:
        raise NotThereError(f"no column {column!r}; there are {', '.join(map(repr, header))}")
    return row[header.index(column)]


def value(text: str) -> Decimal:
    """A number as it is printed: with commas, with the typographic minus."""
    return Decimal(text.replace("−", "-").replace(",", ""))


def agrees(quoted: str, shown: str, *, absolute: bool = False) -> bool:
    """Whether a quoted number is a table's number, rounded to the digits that are quoted.

    Args:
        quoted: as it stands in the prose.
        shown: as the table has it.
        absolute: the table's number is negative, and quoted without its sign.
    """
    said, true = value(quoted), value(shown)
    if absolute and (said.is_signed() or not true.is_signed()):
        return False
    digits = said.as_tuple().exponent  # -2 for 1.13
    gap = abs(said - (abs(true) if absolute else true))
    return digits >= true.as_tuple().exponent and gap <= Decimal(5).scaleb(digits - 1)


def rewritten(quoted: str, shown: str, *, absolute: bool = False) -> str:
    """The table's number in the manner of the quoted one: its digits, its signs."""
    digits = max(value(quoted).as_tuple().exponent, value(shown).as_tuple().exponent)
    new = value(shown).quantize(Decimal(1).scaleb(digits), ROUND_HALF_UP)
    text = f"{abs(new):,}" if "," in shown else f"{abs(new)}"
    if absolute:
        return text
    return ("−" if new.is_signed() else "+" if quoted[0] in "+−-" else "") + text


def check(root: Path, *, live: bool = True) -> list[str]:
    """Compare every bound number with what its output says.

    Args:
        root: the repository, or a stage that mirrors it: notebooks/ and book/.
        live: also numbers of outputs that are computed in the page. Without them, for a book that was
            executed somewhere else, a number whose row is not there is left alone, too: records may be
            missing there, and the stored notebooks are checked for it.

    Returns:
        One line a difference: notebook, cell, what is quoted, what the table says.
    """
    found = []
    for text in texts(root):
        if len(CLASS.findall(text.source)) != len(SPAN.findall(text.source)):
            found.append(text.line(0, 'a bound number is <span class="bound" title="…">1.5</span>'))
        for match in SPAN.finditer(text.source):
            quoted, marks = match["quoted"], match["marks"]
            if TABLE_ROW.match(text.source, text.source.rfind("\n", 0, match.start()) + 1):
                if OPEN_BAR.search(marks):
                    told = f"quoted {quoted}: in a table write \\| for each bar of the title"
                    found.append(text.line(match.start(), told))
            if "data-live" in marks and not live:
                continue
            title = TITLE.search(marks)
            try:
                shown = look_up(title[1] if title else "", page=text.page, root=root)
            except NotThereError as error:
                if live:
                    found.append(text.line(match.start(), f"quoted {quoted}, but {error}"))
                continue
            if not NUMBER.fullmatch(quoted):
                told = f"quoted {quoted!r}, which is not one number"
                found.append(text.line(match.start(), told))
            elif not agrees(quoted, shown, absolute="data-absolute" in marks):
                told = f"quoted {quoted}, the table says {shown} ({_plain(title[1])})"
                found.append(text.line(match.start(), told))
    return found


def given(root: Path) -> list[tuple[str, str]]:
    """The numbers that are not ours: (page or *, the words that hold the number)."""
    path = root / GIVEN
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = []
    for line in lines:
        if line.strip() and not line.startswith("#"):
            parts = [part.strip() for part in line.split(" | ")]
            if len(parts) != 3 or not all(parts):
                sys.exit(f"{GIVEN}: {line!r} is not 'page | words with the number | why'")
            found.append((parts[0], parts[1]))
    return found


def loose(text: Text) -> list[re.Match]:
    """The numbers of a text that stand in no span, in no code and in no formula."""
    return list(QUOTED.finditer(NO_PROSE.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), text.source)))


def unbound(root: Path) -> list[str]:
    """Numbers of the prose that are neither bound nor given, and given ones that are gone."""
    names, used, found = given(root), set(), []
    for text in texts(root):
        allowed = []
        for page, words in names:
            if page in ("*", text.page):
                pattern = r"\s+".join(map(re.escape, words.split())).replace(r"\#", r"\d+")
                places = [match.span() for match in re.finditer(pattern, text.source)]
                used |= {(page, words)} if places else set()
                allowed += places
        found += [
            text.line(match.start(), f"{match[0].strip()!r} is neither bound nor in {GIVEN}")
            for match in loose(text)
            if not any(first <= match.start() and match.end() <= last for first, last in allowed)
        ]
    gone = [f"{page}: {words!r} of {GIVEN} is not in the text" for page, words in names]
    return found + [line for line, name in zip(gone, names, strict=True) if name not in used]


def candidates(number: str, path: Path) -> list[str]:
    """The titles of one notebook that hold a number, and the mark that it needs."""
    found = []
    for cell, output in outputs(path).items():
        rows = [row for _, rows in output.tables for row in rows]
        for header, own in output.tables:
            for row in own:
                size = next(
                    (n for n in range(1, len(row)) if sum(r[:n] == row[:n] for r in rows) == 1), 1
                )
                for name, entry in list(zip(header, row, strict=False))[size:]:
                    place = " | ".join([cell, *row[:size], name])
                    found += _fitting(number, NUMBER.findall(entry), place)
    return found


def _fitting(number: str, shown: list[str], place: str) -> list[str]:
    found = []
    for position, other in enumerate(shown, 1):
        title = escape(place + (f" #{position}" if position > 1 else "")).replace("&#x27;", "'")
        for absolute in (False, True):
            if agrees(number, other, absolute=absolute):
                found.append(f'title="{title}"{" data-absolute" if absolute else ""}')
    return found


def rewrite(root: Path, change: Callable[[Text], str]) -> None:
    """Write the prose anew where it changes; nothing else of a notebook is touched."""
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        changed = False
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                text = Text(page=path.stem, cell=cell["id"], source="".join(cell["source"]))
                new = change(text)
                if new != text.source:
                    cell["source"], changed = new.splitlines(keepends=True), True
        if changed:
            content = json.dumps(notebook, indent=1, ensure_ascii=False)
            path.write_text(content + "\n", encoding="utf-8")
    for path in sorted((root / "book").glob("*.md")):
        text = Text(page=path.stem, cell=path.stem, source=path.read_text(encoding="utf-8"))
        new = change(text)
        if new != text.source:
            path.write_text(new, encoding="utf-8")


def renewed(text: Text, *, root: Path) -> str:
    """A text with the numbers that its outputs say; what leads to nothing stays as it is."""

    def new(match: re.Match) -> str:
        title, absolute = TITLE.search(match["marks"]), "data-absolute" in match["marks"]
        try:
            shown = look_up(title[1] if title else "", page=text.page, root=root)
        except NotThereError:
            return match[0]
        quoted = match["quoted"]
        if not NUMBER.fullmatch(quoted) or agrees(quoted, shown, absolute=absolute):
            return match[0]
        if absolute and not value(shown).is_signed():
            print(text.line(match.start(), f"{quoted} has changed its sign: {shown}; reword"))
            return match[0]
        number = rewritten(quoted, shown, absolute=absolute)
        turned = value(quoted).is_signed() != value(number).is_signed()
        told = "; its sign has changed: read the sentence" if turned else ""
        print(text.line(match.start(), f"{quoted} -> {number}{told}"))
        return match[0][: match.start("quoted") - match.start()] + number + "</span>"

    return SPAN.sub(new, text.source)


def proposed(text: Text, path: Path) -> str:
    """A text in which each loose number that fits exactly one cell of a table is bound to it."""
    source, found = text.source, [m for m in loose(text) if text.page == path.stem]
    for match in reversed(found):
        number = NUMBER.search(match[0])
        titles = candidates(number[0], path) if number else []
        told = text.line(match.start(), f"{match[0].strip()!r} fits {len(titles)}")
        print(told, *titles[:8], sep="\n    ")
        if len(titles) == 1:
            span = f'<span class="bound" {titles[0]}>{number[0]}</span>'
            start = match.start() + number.start()
            source = source[:start] + span + source[start + len(number[0]) :]
    return source


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=ROOT, help="has notebooks/ and book/")
    parser.add_argument("--write", action="store_true", help="write into the prose")
    parser.add_argument("--unbound", action="store_true", help="only look for unbound numbers")
    parser.add_argument("--propose", type=Path, metavar="NOTEBOOK", help="find cells for them")
    args = parser.parse_args()
    if args.propose:

        def change(text: Text) -> str:
            new = proposed(text, args.propose)
            return new if args.write else text.source

        rewrite(args.root, change)
        return 0
    if args.write:
        rewrite(args.root, lambda text: renewed(text, root=args.root))
    found = ([] if args.unbound else check(args.root)) + unbound(args.root)
    for line in found:
        print(line, file=sys.stderr)
    spans = sum(len(SPAN.findall(text.source)) for text in texts(args.root))
    print(f"{spans} bound numbers, {len(found)} problems")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
