"""Print the built book into one PDF file, with the browser that shows it.

Each page of _toc.yml is opened in a headless Chromium that cannot reach outside, in light colours;
folded solutions are opened, equations and pictures waited for, interactive figures left in their first
state; then it is printed, and pypdf joins the sheets. Every page is in the file's table of contents, and
a link from page to page leads to the sheet where that page begins.

    python tools/build_book.py && python tools/print_pdf.py [--to FILE]

The exit status is 77 if nothing can be printed, because there is no Chromium or no pypdf.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urldefrag

from headless import TIMEOUT, NoBrowser, chromium, serving
from sphinx_external_toc.parsing import parse_toc_yaml

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"
SKIPPED = 77
ADVICE = "No pypdf: python -m pip install pypdf"

# Room for the text, no buttons; wide code is broken rather than cut off, and what belongs together stays
# on one sheet.
STYLE = """
@media print {
  #pst-secondary-sidebar, .bd-sidebar-primary, .bd-header-article, .bd-header, .prev-next-area,
  .bd-footer, .bd-footer-content, .copybtn, a.headerlink, .toggle-button, .tb-button,
  #jb-print-docs-body, .skip-link, #pst-skip-link { display: none !important }
  .bd-main .bd-content .bd-article-container, .bd-article { padding: 0 !important; max-width: none }
  article h1 { display: block !important }
  pre, code { white-space: pre-wrap !important; overflow-wrap: anywhere }
  td code, td .pre { white-space: normal !important; overflow-wrap: break-word }
  table:has(th:nth-child(7)) { font-size: 9px !important; line-height: 1.3 }
  h1, h2, h3, h4, dt { break-after: avoid }
  table, div:has(> table) { break-inside: auto !important }
  .cell_input, figure, img, div.math, tr, .sd-col { break-inside: avoid }
  img { max-height: 24cm }
}
"""
READY = """async () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
  for (const folded of document.querySelectorAll(".toggle-hidden"))
    folded.classList.remove("toggle-hidden");
  await document.fonts.ready;
  const pictures = [...document.images];
  for (const picture of pictures) picture.loading = "eager";
  await Promise.all(pictures.map(picture => picture.decode().catch(() => null)));
  const wide = "article div.math, article table, article .text_html";
  for (const element of document.querySelectorAll(wide)) {
    const room = (element.tagName === "TABLE" ? element.parentElement : element).clientWidth;
    if (room && element.scrollWidth > room + 1) element.style.zoom = room / element.scrollWidth;
  }
}"""
TITLE = """() => {
  const title = document.querySelector("article h1").cloneNode(true);
  title.querySelectorAll(".headerlink").forEach(link => link.remove());
  return title.textContent.trim();
}"""
FOOTER = """<div style="font-size: 8px; width: 100%; margin: 0 16mm; color: #555;
  display: flex; justify-content: space-between"><span>TITLE</span>
  <span><span class="pageNumber"></span> / <span class="totalPages"></span></span></div>"""
SCALE = 0.82
WIDTH = round((210 - 2 * 16) / 25.4 * 96 / SCALE)  # CSS pixels between the margins
MARGIN = {"top": "16mm", "bottom": "18mm", "left": "16mm", "right": "16mm"}


@dataclass(frozen=True, kw_only=True)
class Printed:
    """One page of the book on paper."""

    name: str  # as _toc.yml has it
    title: str
    pdf: bytes


def escape(text: str) -> str:
    """Text for HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def print_page(browser: Browser, address: str, name: str) -> Printed:
    """Print one page on A4.

    Args:
        browser: a running Chromium.
        address: where the book is served, without a slash at its end.
        name: the page, as _toc.yml has it.

    Raises:
        FileNotFoundError: the book has no such page.
    """
    context = browser.new_context(
        color_scheme="light", reduced_motion="reduce", viewport={"width": WIDTH, "height": 1200}
    )
    context.set_default_timeout(TIMEOUT)
    try:
        page = context.new_page()
        response = page.goto(f"{address}/{name}.html")
        if not response.ok:
            raise FileNotFoundError(f"{name}.html is not in the built book: run `make book`")
        page.emulate_media(media="print")
        page.add_style_tag(content=STYLE)
        page.evaluate(READY)
        title = page.evaluate(TITLE)
        pdf = page.pdf(
            format="A4",
            scale=SCALE,
            margin=MARGIN,
            print_background=True,
            display_header_footer=True,
            header_template="<span></span>",
            footer_template=FOOTER.replace("TITLE", escape(title)),
        )
    finally:
        context.close()
    return Printed(name=name, title=title, pdf=pdf)


def target(uri: str, address: str) -> tuple[str, str] | None:
    """The page of the book and the place on it that a link leads to; None if it leads elsewhere.

    Args:
        uri: of the link, such as http://127.0.0.1:4000/book/data.html#shapes.
        address: where the book was served when it was printed.
    """
    path, place = urldefrag(uri)
    if not path.startswith(f"{address}/"):
        return None
    return path.removeprefix(f"{address}/").removesuffix(".html"), place


def join(pages: Sequence[Printed], *, address: str, home: str, title: str) -> bytes:
    """One PDF of all pages, with a table of contents.

    Args:
        pages: in their order.
        address: where the book was served: links to it become links within the file.
        home: where the book lives: a link to what was served and is not in the file leads there.
        title: of the file.

    Raises:
        ValueError: there is no page.
    """
    from pypdf import PdfReader, PdfWriter
    from pypdf.generic import ArrayObject, FloatObject, NameObject, NullObject, TextStringObject

    if not pages:
        raise ValueError("no page to join: name one of _toc.yml")
    writer = PdfWriter()
    first = [0]  # sheet of each page, and the one after the last
    spots: dict[tuple[str, str], tuple[int, float | None]] = {}  # sheet, height above its foot
    for page in pages:
        reader = PdfReader(BytesIO(page.pdf))
        spots[page.name, ""] = (first[-1], None)
        for place, spot in reader.named_destinations.items():
            sheet = first[-1] + reader.get_destination_page_number(spot)
            spots[page.name, place.removeprefix("/")] = (sheet, spot.top)
        writer.append(reader, outline_item=page.title, import_outline=False)
        first.append(len(writer.pages))

    def goal(name: str, place: str) -> ArrayObject:
        sheet, top = spots.get((name, place), spots[name, ""])
        height = NullObject() if top is None else FloatObject(top)
        where = [NameObject("/XYZ"), NullObject(), height, NullObject()]
        return ArrayObject([writer.pages[sheet].indirect_reference, *where])

    # The places of two pages may have one name, such as "exercises": so none is used in the file.
    for page, start, end in zip(pages, first, first[1:], strict=False):
        for sheet in writer.pages[start:end]:
            for link in (reference.get_object() for reference in sheet.get("/Annots") or []):
                action = link["/A"].get_object() if "/A" in link else {}
                if "/Dest" in link:
                    place = str(link["/Dest"]).removeprefix("/")
                    link[NameObject("/Dest")] = goal(page.name, place)
                elif goes := target(str(action.get("/URI", "")), address):
                    if (goes[0], "") in spots:
                        del link["/A"]
                        link[NameObject("/Dest")] = goal(*goes)
                    else:
                        action[NameObject("/URI")] = TextStringObject(home)
    writer.compress_identical_objects()  # such as the fonts that each page brings along
    writer.add_metadata({"/Title": title})
    file = BytesIO()
    writer.write(file)
    return file.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pages", nargs="*", metavar="PAGE", help="as in _toc.yml; default: all")
    parser.add_argument("--html", type=Path, default=BUILD / "html", help="the built book")
    parser.add_argument("--to", type=Path, default=BUILD / "book.pdf", help="the PDF file")
    args = parser.parse_args()
    import yaml

    try:
        import pypdf  # noqa: F401
    except ImportError:
        print(ADVICE, file=sys.stderr)
        return SKIPPED
    settings = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    names = args.pages or list(parse_toc_yaml(ROOT / "_toc.yml"))
    printed = []
    try:
        with serving(args.html) as address, chromium() as browser:
            for name in names:
                begin = time.monotonic()
                printed.append(print_page(browser, address, name))
                size = len(printed[-1].pdf) / 1e6
                print(f"{name}: {size:.1f} MB in {time.monotonic() - begin:.0f} s", flush=True)
    except NoBrowser as reason:
        print(reason, file=sys.stderr)
        return SKIPPED
    except FileNotFoundError as reason:
        print(reason, file=sys.stderr)
        return 1
    home = settings["repository"]["url"]
    whole = join(printed, address=address, home=home, title=settings["title"])
    args.to.parent.mkdir(parents=True, exist_ok=True)
    args.to.write_bytes(whole)
    print(f"{args.to}: {len(whole) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
