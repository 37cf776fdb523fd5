"""The look at the built book sees each fault, and none where there is none; the landing page is true."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path

import check_site
import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup
from check_book import LARGEST_BOOK, LARGEST_PAGE, check_book, check_size
from check_site import SKIPPED, Allowed, Seen, check_page
from headless import NoBrowser, find_chromium, serving

from ersm_lab import pages

pytest_plugins = ["browser"]

ROOT = Path(__file__).resolve().parents[2]
INTRO = (ROOT / "book" / "intro.md").read_text(encoding="utf-8")
TEXT = "<p>A convolutional network looks at every position of an image with the same effort.</p>"
DOT = "data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"
SLIDER = f"""<div><img src="{DOT}" alt="A dot.">
<label>frame <input type="range" max="3" value="1" oninput="FOLLOW"></label></div>"""
FOLLOWS = SLIDER.replace("FOLLOW", "this.closest('div').firstChild.src = `EVEN${this.value}`")
FOLLOWS = FOLLOWS.replace("EVEN", DOT.replace("'", "%22") + "#")


@pytest.fixture
def look(browser, serve, tmp_path):
    """A function that looks at a page with this content."""

    def at(content: str, *, title: str = "<h1>A page</h1>", pictures=None):
        page = f"""<!doctype html><html lang="en"><head><title>A page</title>
          <meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">
          </head><body><main><article>{title}{content}</article></main></body></html>"""
        (tmp_path / "page.html").write_text(page, encoding="utf-8")
        return check_page(browser, serve(tmp_path), "page", pictures)

    return at


def test_a_good_page_has_no_problems(look, tmp_path):
    drawn = '<span class="math"><math><mi>x</mi></math></span>'
    table = '<div style="overflow-x: auto" tabindex="0"><div style="width: 900px">wide</div></div>'
    seen = look(TEXT + drawn + FOLLOWS + table, pictures=tmp_path)
    assert seen.problems == []
    assert (seen.equations, seen.pictures, seen.sliders) == (1, 1, 1)
    assert {file.name for file in tmp_path.glob("*.jpg")} == {
        f"page-{kind}.jpg" for kind in ("light", "dark", "phone")
    }


FAULTS = {
    "<script>console.error('oh')</script>": "an error in the console: oh",
    "<script>nowhere()</script>": "a script failed: nowhere is not defined",
    "<script src='https://example.org/a.js'></script>": "it asks another host: https://example.org",
    "<script src='gone.js'></script>": r"a request failed: .*/gone\.js \(status 404\)",
    "<img src='data:image/png;base64,AAAA' alt='A'>": "a picture is broken: data:image/png",
    "<p class='math'>\\(x\\)</p>": r"an equation is not drawn: \\\(x\\\)",
    "<p class='math'><math><merror><mi>odd</mi></merror></math></p>": (
        "an equation has an error: odd"
    ),
    SLIDER.replace("FOLLOW", ""): "the slider 'frame' moves, and its figure does not change",
    "<div><label>odd <input type='range'></label></div>": "the slider 'odd' has no figure",
    "<svg role='img' width='9' height='9'></svg>": "axe-core, svg-img-alt: ",
    "<p class='dim'>dim</p><style>p.dim {background: #fff; color: #444}"
    "@media (prefers-color-scheme: dark) {p.dim {color: #ccc}}</style>": (
        r"axe-core, color-contrast: .*first at \.dim\).* \[dark\]"
    ),
    "<p style='width: 900px'>wide</p>": "the page is 9.. pixels wide on a phone of 360",
    "<div style='overflow: hidden'><p class='cut' style='width: 900px'>cut off</p></div>": (
        'wider than a phone: <p class="cut"> cut off'
    ),
}


def test_each_fault_is_seen(look, monkeypatch):
    monkeypatch.setattr("check_site.PATIENCE", 300)
    left = look(TEXT + "\n".join(f"<div>{content}</div>" for content in FAULTS)).problems
    for pattern in FAULTS.values():
        seen = [line for line in left if re.search(pattern, line)]
        assert len(seen) == 1, (pattern, left)
        left.remove(seen[0])
    assert [line for line in left if "wide" not in line] == []  # the wide text itself is named, too


def test_of_a_tall_page_the_upper_part_is_kept(look, tmp_path):
    from PIL import Image

    look(TEXT + "<div style='height: 90000px'></div>", pictures=tmp_path)
    for path in tmp_path.glob("*.jpg"):
        assert Image.open(path).height == check_site.TALLEST
    assert len([*tmp_path.glob("*.jpg")]) == 3


def test_what_fades_in_when_it_opens_is_seen_as_it_stays(look):
    fading = (
        "<style>details[open] p {animation: fade 60s} @keyframes fade {from {opacity: 0.1}}</style>"
        "<details><summary>more</summary><p>text that fades in</p></details>"
    )
    assert look(TEXT + fading).problems == []


@pytest.mark.parametrize(("title", "text"), [("", TEXT), ("<h1>A page</h1>", "<p>too short</p>")])
def test_an_empty_page_is_seen(look, title, text):
    assert "the page is empty" in look(text, title=title).problems


def test_a_missing_page_is_seen(browser, serve, tmp_path):
    (line,) = check_page(browser, serve(tmp_path), "gone").problems
    assert line.endswith("/gone.html (status 404)")


def test_what_is_allowed_is_left_out_there_and_nowhere_else(look, monkeypatch):
    rule = Allowed(rule="color-contrast", selector=".pale", reason="a test")
    monkeypatch.setattr("check_site.ALLOWED", (rule,))
    pale = "<p class='{}' style='color: #ccc'>pale</p>"
    found = look(TEXT + pale.format("pale") + pale.format("other")).problems
    assert len(found) == 2  # in light and in dark
    assert all("(1 times, first at .other)" in line for line in found)


def test_without_chromium_it_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("ERSM_CHROMIUM", "/no/such/program")
    with pytest.raises(NoBrowser, match="apt install chromium"):
        find_chromium()
    command = [sys.executable, "tools/check_site.py", "--html", str(tmp_path)]
    command += ["--screenshots", str(tmp_path / "screenshots")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == SKIPPED and "NOT looked at" in done.stderr


# ----------------------------------------------------------------------------------------- sizes


def test_a_page_counts_with_its_own_pictures_but_not_with_shared_files(tmp_path):
    path = tmp_path / "book" / "page.html"
    for folder in ("book", "_images", "_static"):
        (tmp_path / folder).mkdir()
    path.write_text("<img src='../_images/a.png'><img src='../_static/b.png'><img src='data:,'>")
    page = BeautifulSoup(path.read_text(), "html.parser")
    (tmp_path / "_static" / "b.png").write_bytes(bytes(LARGEST_PAGE))
    own = tmp_path / "_images" / "a.png"
    own.write_bytes(bytes(LARGEST_PAGE - path.stat().st_size))
    assert check_size(page, path, tmp_path) == []
    own.write_bytes(bytes(LARGEST_PAGE))
    (line,) = check_size(page, path, tmp_path)
    assert f"more than {LARGEST_PAGE:,}" in line


def test_a_book_that_has_grown_too_large_is_found(tmp_path):
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: intro\n")
    page = f"<title>A page</title><article><h1>A page</h1>{TEXT}</article>"
    for name in ("index", "intro"):
        (tmp_path / f"{name}.html").write_text(page)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(LARGEST_BOOK - 2 * len(page) - 100)  # takes no room on the disk
        assert check_book(tmp_path, tmp_path).problems == []
        file.truncate(LARGEST_BOOK)
    (line,) = check_book(tmp_path, tmp_path).problems
    assert f"more than {LARGEST_BOOK:,}" in line


# ------------------------------------------------------------------------------- the landing page


def test_the_cards_have_the_chapters_minutes():
    shown = INTRO.partition("<!--")[0]
    cards = re.findall(r":link: /(notebooks/\w+)\n.*?· (\d+) min\]", shown, re.DOTALL)
    assert cards
    for name, minutes in cards:
        notebook = nbformat.read(ROOT / f"{name}.ipynb", as_version=4)
        assert f"**Time:** reading, {minutes} minutes" in notebook.cells[0].source, name


def test_the_entry_to_cite_is_that_of_the_citation_file():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    entry = dict(re.findall(r"^  (\w+) += \{+(.*?)\}+,$", INTRO, re.MULTILINE))
    assert entry["title"] == citation["title"]
    assert entry["author"] == citation["authors"][0]["name"]
    assert entry["version"] == str(citation["version"])
    assert entry["url"] == citation["repository-code"]
    assert entry["license"].split(" and ") == citation["license"]


def test_a_page_with_problems_is_looked_at_twice_and_the_second_look_counts(monkeypatch, capsys):
    looks = [Seen(problems=["late"]), Seen(equations=3)]
    monkeypatch.setattr(check_site, "check_page", lambda *_: looks.pop(0))
    assert check_site.look_twice(None, "", "page").equations == 3 and not looks
    assert "page: looked at once more, because of:\n  late\n" in capsys.readouterr().out
    looks = [Seen(problems=["late"]), Seen(problems=["broken"])]
    assert check_site.look_twice(None, "", "page").problems == ["broken"]


def test_pages_are_looked_at_side_by_side_each_once(monkeypatch, capsys):
    looks, together = [], threading.Barrier(2)

    def check_page(browser, address, name, pictures):
        looks.append((browser, name))
        if len(looks) < 3:  # the first two are there at the same time, in two browsers
            together.wait(60)
        return Seen(equations=len(name))

    browsers = iter("ab")
    monkeypatch.setattr(check_site, "chromium", lambda _: nullcontext(next(browsers)))
    monkeypatch.setattr(check_site, "check_page", check_page)
    pages = ["x", "yy", "zzz"]
    seen = check_site.look_side_by_side("", pages, Path(), program=None, jobs=2)
    assert {name: found.equations for name, found in seen.items()} == {"x": 1, "yy": 2, "zzz": 3}
    assert len({browser for browser, _ in looks[:2]}) == 2
    assert sorted(name for _, name in looks) == pages
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_a_download_that_is_no_notebook_is_seen(look, tmp_path):
    link = '<a class="btn-download-source-button" href="NAME.ipynb">download</a>'
    (tmp_path / "good.ipynb").write_text('{"cells": []}', encoding="utf-8")
    assert look(TEXT + link.replace("NAME", "good")).problems == []
    (line,) = look(TEXT + link.replace("NAME", "gone")).problems
    assert line.startswith("it cannot be downloaded: ") and "gone.ipynb (status 404)" in line


SEARCH = """<!doctype html><html lang="en"><head><title>Search</title>
<link rel="icon" href="data:,"></head>
<body><ul id="search-results"></ul><script>
if (location.search === "?q=watershed")
  document.querySelector("ul").innerHTML = '<li><a href="page.html">A page</a></li>';
</script></body></html>"""


def test_a_search_that_finds_nothing_or_what_is_not_there_is_seen(browser, tmp_path, monkeypatch):
    (tmp_path / "search.html").write_text(SEARCH, encoding="utf-8")
    with serving(tmp_path, under="/below") as address:
        assert address.endswith("/below")
        (gone,) = check_site.check_search(browser, address, "watershed")
        assert gone == "the search leads to a page that is not there: status 404"
        (tmp_path / "page.html").write_text(TEXT, encoding="utf-8")
        assert check_site.check_search(browser, address, "watershed") == []
        monkeypatch.setattr(check_site, "PATIENCE", 500)
        (line,) = check_site.check_search(browser, address, "nothing")
        assert line == "the search finds no page with 'nothing'"


def test_rows_are_filtered_by_words(browser, tmp_path):
    rows = "".join(f"<tr><td>{name}</td></tr>" for name in ("ERSM seed0", "ersm seed1", "dense"))
    body = f"{pages.FILTER}<article><table><tbody>{rows}</tbody></table></article>"
    body = body.replace("```{raw} html", "").replace("```", "")
    body = body.replace("../_static/filter.js", "filter.js")
    (tmp_path / "page.html").write_text(body, encoding="utf-8")
    (tmp_path / "filter.js").write_bytes((ROOT / "book/_static/filter.js").read_bytes())
    with serving(tmp_path) as address:
        page = browser.new_page()
        page.goto(f"{address}/page.html")
        assert page.locator("output").inner_text() == "3 of 3 rows"
        page.get_by_label("Show the rows with all of these words").fill("seed1 ersm")
        assert page.locator("output").inner_text() == "1 of 3 rows"
        assert page.locator("tr:visible").all_inner_texts() == ["ersm seed1"]
        page.close()
