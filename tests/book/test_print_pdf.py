"""Pages become one PDF: with a table of contents, links within it, and nothing cut off."""

from __future__ import annotations

import re
from io import BytesIO
from pathlib import Path

import pytest
from headless import serving
from print_pdf import Printed, join, print_page, target

pytest_plugins = ["browser"]
ADDRESS = "http://127.0.0.1:40321"
HOME = "https://github.com/someone/book"


@pytest.fixture(scope="module")
def pypdf():
    return pytest.importorskip("pypdf", reason="pypdf joins the sheets: pip install pypdf")


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        (f"{ADDRESS}/book/data.html", ("book/data", "")),
        (f"{ADDRESS}/book/data.html#shapes", ("book/data", "shapes")),
        (f"{ADDRESS}0/book/data.html", None),
        ("https://example.org/book/data.html", None),
        ("", None),
    ],
)
def test_a_link_leads_to_a_page_of_the_book_or_elsewhere(uri, expected):
    assert target(uri, ADDRESS) == expected


def sheets(pypdf, count: int, links: dict[int, str]) -> bytes:
    """A PDF of empty sheets; on some of them, by number, a link."""
    from pypdf.annotations import Link

    writer = pypdf.PdfWriter()
    for _ in range(count):
        writer.add_blank_page(100, 200)
    for number, uri in links.items():
        writer.add_annotation(number, Link(rect=(0, 0, 10, 10), url=uri))
    writer.add_named_destination("top", count - 1)
    file = BytesIO()
    writer.write(file)
    return file.getvalue()


def links_of(file) -> dict[int, tuple[str, object]]:
    """Of each sheet with a link: ("sheet", its number) or ("uri", its address)."""
    found = {}
    for number, sheet in enumerate(file.pages):
        for reference in sheet.get("/Annots") or []:
            link = reference.get_object()
            if "/Dest" in link:
                found[number] = ("sheet", file.get_page_number(link["/Dest"][0].get_object()))
            else:
                found[number] = ("uri", link["/A"]["/URI"])
    return found


def test_pages_are_joined_and_linked(pypdf):
    one = sheets(pypdf, 3, {0: f"{ADDRESS}/two.html", 1: f"{ADDRESS}/two.html#top"})
    two = {0: f"{ADDRESS}/one.html", 1: f"{ADDRESS}/three.html#x", 2: "https://example.org/"}
    pages = [
        Printed(name="one", title="1. One", pdf=one),
        Printed(name="two", title="2. Two & more", pdf=sheets(pypdf, 4, two)),
    ]
    whole = join(pages, address=ADDRESS, home=HOME, title="A book")
    file = pypdf.PdfReader(BytesIO(whole))
    assert len(file.pages) == 7 and file.metadata.title == "A book"
    contents = [(entry.title, file.get_destination_page_number(entry)) for entry in file.outline]
    assert contents == [("1. One", 0), ("2. Two & more", 3)]
    # the place "top" is on the last sheet of either page: the one that was asked for is found
    assert links_of(file) == {
        0: ("sheet", 3),
        1: ("sheet", 6),
        3: ("sheet", 0),
        4: ("uri", HOME),
        5: ("uri", "https://example.org/"),
    }


def test_without_a_page_there_is_no_file(pypdf):
    with pytest.raises(ValueError, match="no page to join"):
        join([], address=ADDRESS, home=HOME, title="A book")


PAGE = """<!doctype html><html lang="en"><title>x</title><body><nav class="bd-sidebar-primary">SIDEBAR
</nav><article class="bd-article"><h1>One &amp; two<a class="headerlink" href="#">#</a></h1>
<p><a href="two.html">onwards</a></p>
<details><summary>Solution</summary><p>FOLDED</p></details>
<pre style="white-space: pre">CODE</pre></article></body></html>"""


def test_a_page_is_printed_as_it_should_be_read(pypdf, browser, tmp_path: Path):
    code = " ".join(["word"] * 400) + " LASTWORD"
    (tmp_path / "one.html").write_text(PAGE.replace("CODE", code))
    with serving(tmp_path) as address:
        printed = print_page(browser, address, "one")
        with pytest.raises(FileNotFoundError, match="make book"):
            print_page(browser, address, "two")
    assert printed.title == "One & two"
    (sheet,) = pypdf.PdfReader(BytesIO(printed.pdf)).pages
    text = sheet.extract_text()
    assert "FOLDED" in text and "SIDEBAR" not in text
    assert re.search(r"One & two.*1 / 1", text, re.DOTALL)  # at the foot
    width, height = float(sheet.mediabox.width), float(sheet.mediabox.height)
    assert (width, height) == pytest.approx((595, 842), abs=1)  # A4
    inside = []

    def note(part, _, matrix, *__):
        if "LASTWORD" in part:
            inside.append(0 < matrix[4] < width)

    sheet.extract_text(visitor_text=note)
    assert inside == [True]
