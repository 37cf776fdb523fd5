"""What the built pages offer beside the text: the numbers of a figure, the meaning of a term.

- Under each figure that brought its numbers along (ersm_lab/views/figure_data.py) a link to them, as a
  CSV file in _data/.
- Where a term of the glossary stands in a page for the first time, it leads there, and its meaning is
  shown when it is pointed at or focused (custom.css): no script is needed.

Both want pages that annotate has not seen yet: tools/build_book.py calls it after each build.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape, unescape
from os.path import relpath
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup
from check_book import figure_files

GLOSSARY = Path("book/notation.html")
# Words that mostly mean something else in the text than in the glossary.
AMBIGUOUS = frozenset({"bar", "literal", "reader", "record"})
TAG = re.compile(
    r"(<script\b.*?</script>|<style\b.*?</style>|<!--.*?-->|<(?:[^<>\"']|\"[^\"]*\"|'[^']*')*>)",
    re.S,
)
NAME = re.compile(r"<(/?)([a-zA-Z][\w-]*)")
VOID = frozenset("area br col embed hr img input link meta source track wbr".split())
OPEN = ("p", "li", "dd")  # a term may be explained in these, and in nothing else inside them
PLAIN = frozenset((*OPEN, "em", "strong", "i", "b", "ul", "ol", "div", "section", "article"))
# Formulas before tools/lighten.py has drawn them are text, in a span of this class.
FORMULA = 'class="math'


def meanings(glossary: str) -> dict[str, tuple[str, str]]:
    """Terms of the glossary's page: term -> (id of its place, what it means, without formulas).

    A term whose meaning has a formula gets the sentences before it, and none if there are none.
    """
    found = {}
    for term in BeautifulSoup(glossary, "html.parser").select("dl.glossary dt[id]"):
        name = term.get_text(" ", strip=True).removesuffix("#").strip()
        text = " ".join(term.find_next_sibling("dd").get_text(" ").split())
        text = re.sub(r"\s+([,.;:])", r"\1", text)
        if "\\(" in text:
            before, stop, _ = text[: text.index("\\(")].rpartition(". ")
            text = before + stop.strip()
        if text and "," not in name and name not in AMBIGUOUS:
            found[name] = (str(term["id"]), text)
    return found


def with_terms(page: str, terms: Mapping[str, tuple[str, str]], glossary: str) -> str:
    """A page in which each term leads to the glossary where it first stands in a paragraph.

    Args:
        page: HTML.
        terms: of `meanings`.
        glossary: address of the glossary's page, as seen from this page.
    """
    left = dict(terms)
    opened: list[tuple[str, bool]] = []  # names of the elements around, and whether text may change
    pieces = TAG.split(page)
    for number, piece in enumerate(pieces):
        if number % 2:
            match = NAME.match(piece)
            if match is None or match[2].lower() in VOID or piece.endswith("/>"):
                continue
            name = match[2].lower()
            if match[1]:
                while opened and opened.pop()[0] != name:
                    pass
            elif not piece.startswith(("<script", "<style")):
                plain = name in PLAIN and FORMULA not in piece and "cell" not in piece
                around = opened[-1][1] if opened else False
                opened.append((name, plain and (around or name == "article")))
        elif left and piece.strip() and opened and opened[-1][1]:
            if any(name in OPEN for name, _ in opened):
                pieces[number] = _linked(piece, left, glossary)
    return "".join(pieces)


def _linked(text: str, left: dict[str, tuple[str, str]], glossary: str) -> str:
    """Text of HTML with links at the first place of each term that is left; takes those out."""
    longest = sorted(left, key=len, reverse=True)
    pattern = re.compile(
        rf"(?<![\w-])({'|'.join(map(re.escape, longest))})(?:s|es)?(?![\w-])", re.I
    )

    def link(match: re.Match) -> str:
        found = left.pop(match[1].lower(), None)
        if found is None:
            return match[0]
        place, meaning = found
        return (
            f'<a class="term" href="{escape(glossary)}#{escape(place)}" '
            f'data-meaning="{escape(meaning)}">{match[0]}</a>'
        )

    return pattern.sub(link, text)


def figure_numbers(notebook: nbformat.NotebookNode) -> dict[str, str]:
    """The figures that brought their numbers along: name of the picture in the book -> CSV."""
    found = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            table = output.get("data", {}).get("text/csv")
            alone = nbformat.v4.new_notebook(
                cells=[nbformat.v4.new_code_cell(metadata=cell.metadata, outputs=[output])]
            )
            if table and (names := figure_files(alone)):
                found[names[0]] = table
    return found


def with_numbers(page: str, tables: Mapping[str, str]) -> str:
    """A page with a link to its numbers under each figure that has some.

    Args:
        page: HTML.
        tables: name of the picture -> address of its CSV file, as seen from this page.
    """
    done: set[str] = set()

    def linked(match: re.Match) -> str:
        address = tables.get(unescape(match["name"]))
        if address is None or address in done:
            return match[0]
        done.add(address)
        return (
            f'{match[0]}<p class="figure-data"><a href="{escape(address)}" download>'
            "Numbers of this figure (CSV)</a></p>"
        )

    return re.sub(r'<img [^>]*src="[^"]*?_images/(?P<name>[^"/]+)"[^>]*>', linked, page)


def annotate(html: Path, stage: Path) -> None:
    """Add the links to all pages of a built book, in place.

    Args:
        html: the built book.
        stage: the folder it was built from, with the executed notebooks.
    """
    terms = {}
    if (html / GLOSSARY).exists():
        terms = meanings((html / GLOSSARY).read_text(encoding="utf-8"))
    for path in sorted([*(html / "book").glob("*.html"), *(html / "notebooks").glob("*.html")]):
        page = before = path.read_text(encoding="utf-8")
        source = stage / path.relative_to(html).with_suffix(".ipynb")
        if source.exists():
            tables = {}
            notebook = nbformat.read(source, as_version=4)
            for number, (name, table) in enumerate(figure_numbers(notebook).items(), start=1):
                target = html / "_data" / f"{path.stem}-{number}.csv"
                target.parent.mkdir(exist_ok=True)
                target.write_text(table, encoding="utf-8")
                tables[name] = relpath(target, path.parent)
            page = with_numbers(page, tables)
        if path != html / GLOSSARY:
            page = with_terms(page, terms, relpath(html / GLOSSARY, path.parent))
        if page != before:
            path.write_text(page, encoding="utf-8")
