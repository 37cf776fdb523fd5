"""Check that the built book is whole: every page, every figure, every local link.

A build can be green and its site empty. This looks at what came out: each page of _toc.yml is there
with its title and its text; each figure of an executed notebook is there and shown; each picture
has a text alternative; each link within the book leads somewhere; and nothing has grown too large.

    python tools/check_book.py [--html _build/html] [--stage _build/stage]
"""

from __future__ import annotations

import argparse
import binascii
import hashlib
import os
import re
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
from bs4 import BeautifulSoup
from lighten import LARGEST_VISIT, visit
from sphinx_external_toc.parsing import parse_toc_yaml

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = {"image/svg+xml": ".svg", "image/png": ".png", "image/jpeg": ".jpg", "image/gif": ".gif"}
# What MyST-NB prefers to a picture, if a cell's output comes in several forms.
INTERACTIVE = {"application/vnd.jupyter.widget-view+json", "application/javascript", "text/html"}
MARKUP = re.compile(r"</?(?:span|div|a|em|strong)\b[^>]*")  # in the text of a page
CODE = ("code", "pre", "script", "style", "textarea", "math")
LEAST_TEXT = 40  # characters besides the title: a page with less is empty
LARGEST_BOOK = 40_000_000  # bytes, all files together
LARGEST_PAGE = 3_000_000  # bytes, with its own pictures, without what pages share in _static


@dataclass
class Report:
    """What was seen in the built book."""

    pages: int = 0
    figures: int = 0
    size: int = 0  # bytes, of all files
    problems: list[str] = field(default_factory=list)


@cache
def read(path: Path) -> BeautifulSoup:
    """One page, parsed."""
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


@cache
def anchors(path: Path) -> frozenset[str]:
    """The places of a page that a link can lead to."""
    tags = read(path).find_all(True)
    return frozenset(str(tag[key]) for tag in tags for key in ("id", "name") if tag.has_attr(key))


def check_text(page: BeautifulSoup) -> list[str]:
    """The page has a title, on top of it and in the browser's tab, and says something."""
    article = page.find("article")
    heading = article.find("h1") if article else None
    if heading is None:
        return ["no title"]
    for link in heading.select("a.headerlink"):
        link.extract()
    title = " ".join(heading.get_text().split())
    found = []
    if not title or page.title is None or title not in " ".join(page.title.get_text().split()):
        found.append(f"the title {title!r} is empty or not the one of the browser's tab")
    if len(" ".join(article.get_text().split())) - len(title) < LEAST_TEXT:
        found.append("the page is empty")
    words = (t for t in article.find_all(string=MARKUP) if not t.find_parent(CODE))
    found += [f"shows its markup: {' '.join(text.split())[:60]}" for text in words]
    return found


def check_pictures(page: BeautifulSoup) -> list[str]:
    """Every picture has a text alternative; a file name, which docutils puts there, is none."""
    found = []
    for image in page.find_all("img"):
        alt, source = image.get("alt", "").strip(), image.get("src", "")
        if not alt or alt == source or alt.endswith(tuple(SUFFIXES.values())):
            found.append(f"the picture {source} has no text alternative")
    return found


def check_links(page: BeautifulSoup, path: Path, html: Path) -> list[str]:
    """Every local link, picture, script and style leads to a file, and to a place in it."""
    targets = [
        (tag.name, str(tag[key]))
        for key in ("href", "src")
        for tag in page.find_all(True)
        if tag.has_attr(key)
    ]
    found = []
    for name, address in sorted(set(targets)):
        parts = urlsplit(address)
        if parts.scheme or parts.netloc or address == "#":
            continue
        local = unquote(parts.path)
        base = html / local.lstrip("/") if local.startswith("/") else path.parent / local
        target = Path(os.path.normpath(base)) if local else path
        if target.is_dir():
            target /= "index.html"
        if not target.is_file() or target.stat().st_size == 0:
            found.append(f"<{name}> leads to {address}, which is missing or empty")
        elif parts.fragment and target.suffix == ".html" and name == "a":
            if unquote(parts.fragment) not in anchors(target):
                found.append(f"<a> leads to {address}, which has no such place")
    return found


def figure_files(notebook: nbformat.NotebookNode) -> list[str]:
    """The names MyST-NB gives to the pictures that the cells of an executed notebook show."""
    names = []
    for cell in notebook.cells:
        hidden = {"remove-cell", "remove_cell", "remove-output", "remove_output"}
        if cell.cell_type != "code" or hidden & set(cell.metadata.get("tags", [])):
            continue
        for output in cell.outputs:
            data = output.get("data", {})
            shown = next((kind for kind in SUFFIXES if kind in data), None)
            if shown is None or INTERACTIVE & set(data):
                continue
            if shown == "image/svg+xml":
                content = os.linesep.join(data[shown].splitlines()).encode()
            else:
                content = binascii.a2b_base64(data[shown])
            names.append(hashlib.sha256(content).hexdigest() + SUFFIXES[shown])
    return names


def check_figures(page: BeautifulSoup, path: Path, notebook: Path) -> list[str]:
    """Every picture that a notebook's cells show is a file of the book, and its page shows it."""
    sources = {unquote(str(image.get("src", ""))) for image in page.find_all("img")}
    local = {source for source in sources if not source.startswith("data:")}
    shown = {Path(os.path.normpath(path.parent / source)) for source in local}
    files = {file.name: file for file in shown if file.is_file() and file.stat().st_size > 0}
    return [
        f"the notebook's figure {name} is not shown"
        for name in figure_files(nbformat.read(notebook, as_version=4))
        if name not in files
    ]


def check_size(page: BeautifulSoup, path: Path, html: Path) -> list[str]:
    """The page and the pictures that are its own are not too large to be read on the way."""
    files = {path}
    for picture in page.find_all(["img", "source", "video"]):
        parts = urlsplit(str(picture.get("src", "")))
        if parts.path and not parts.scheme:
            files.add(Path(os.path.normpath(path.parent / unquote(parts.path))))
    own = [file for file in files if file.is_file() and html / "_static" not in file.parents]
    size = sum(file.stat().st_size for file in own)
    if size <= LARGEST_PAGE:
        return []
    return [f"{size:,} bytes with its pictures, more than {LARGEST_PAGE:,}: make pictures smaller"]


def check_visit(path: Path, html: Path) -> list[str]:
    """A first visit to the page loads little enough for a slow line."""
    size = sum(visit(path, html).values())
    if size <= LARGEST_VISIT:
        return []
    return [f"a first visit loads {size:,} bytes, compressed, more than {LARGEST_VISIT:,}"]


def check_book(html: Path, stage: Path) -> Report:
    """Look at every page that _toc.yml names.

    Args:
        html: the built book.
        stage: what it was built from: _toc.yml and the executed notebooks.

    Returns:
        The number of pages and figures, the size, and every problem found, each with its page.
    """
    report = Report(size=sum(file.stat().st_size for file in html.rglob("*") if file.is_file()))
    if report.size > LARGEST_BOOK:
        report.problems.append(f"the book has {report.size:,} bytes, more than {LARGEST_BOOK:,}")
    if not (html / "index.html").is_file():
        report.problems.append("index.html: missing")
    for name in parse_toc_yaml(stage / "_toc.yml"):
        path = html / f"{name}.html"
        if not path.is_file():
            report.problems.append(f"{name}: the page is missing")
            continue
        page = read(path)
        found = check_links(page, path, html) + check_pictures(page) + check_text(page)
        found += check_size(page, path, html) + check_visit(path, html)
        notebook = stage / f"{name}.ipynb"
        if notebook.exists():
            found += check_figures(page, path, notebook)
        report.pages += 1
        report.figures += len(page.select("article img"))
        report.problems += [f"{name}: {line}" for line in found]
    return report


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--html", type=Path, default=ROOT / "_build" / "html")
    parser.add_argument("--stage", type=Path, default=ROOT / "_build" / "stage")
    args = parser.parse_args()
    report = check_book(args.html.resolve(), args.stage.resolve())
    print(
        f"{report.pages} pages, {report.figures} figures, {report.size / 1e6:.1f} MB, "
        f"{len(report.problems)} problems"
    )
    for line in report.problems:
        print(line, file=sys.stderr)
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
