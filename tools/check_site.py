"""Look at the built book as a reader does: in a browser, page by page.

Each page of _toc.yml is opened in a headless Chromium that cannot reach outside. It must be there and
not empty; ask no other host for anything; end in no error; show its pictures and draw its equations.
Each slider is moved, and the figure beside it must change; a figure that waits for its button
(`data-part="start"`) is started first. axe-core must find no serious fault for readers who listen, use
the keyboard, or need contrast, in light and in dark. On a phone nothing may be wider than the screen,
unless it scrolls by itself. Pictures of every page go to _build/screenshots. The notebook of
a page can be downloaded. The search finds pages with a word (--search). The book is served from a
path below the root, as on GitHub Pages.

A page with problems is looked at once more, and the second look counts: on a busy machine a browser
may be late, a fault of the page is there again. Several pages are looked at at the same time, one a
core, each in a browser of its own.

    python tools/check_site.py [--chromium PATH] [--jobs N] [PAGE ...]

The exit status is 77 if nothing could be looked at, because there is no Chromium.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from headless import TIMEOUT, NoBrowser, chromium, serving
from sphinx_external_toc.parsing import parse_toc_yaml

from ersm_lab.results.provenance import allowed_cores

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parent.parent
AXE = Path(__file__).resolve().parent / "vendor" / "axe.min.js"
SKIPPED = 77
UNDER = "/ersm-book"  # where the book is served
SEARCHED = "watershed"
DESKTOP = {"width": 1280, "height": 900}  # CSS pixels
PHONE = {"width": 360, "height": 740}
LEAST_TEXT = 40  # characters: a page with less is empty
PATIENCE = 10_000  # ms that a figure may take to follow its slider


@dataclass(frozen=True, kw_only=True)
class Allowed:
    """A fault that axe-core finds and that we leave as it is: one rule, in one place."""

    rule: str
    selector: str
    reason: str


ALLOWED = (
    Allowed(
        rule="label-content-name-mismatch",
        selector='button.search-button__button[aria-label="Search"]',
        reason="the theme: the button also shows its keys, Ctrl+K",
    ),
    Allowed(
        rule="label-content-name-mismatch",
        selector="button.theme-switch-button",
        reason='the theme: called "Color mode", its three icons have titles of their own',
    ),
    Allowed(
        rule="label-content-name-mismatch",
        selector='summary[aria-label="Toggle hidden content"]',
        reason='MyST-NB: a folded output is called so and shows "Show code cell output"',
    ),
    Allowed(
        rule="aria-required-children",
        selector="div.citation-list",
        reason="docutils: its list of doc-biblioentry follows an older ARIA",
    ),
)


@dataclass
class Seen:
    """What was seen on a page."""

    equations: int = 0
    pictures: int = 0
    sliders: int = 0
    problems: list[str] = field(default_factory=list)


def watch(page: Page, address: str, problems: list[str]) -> None:
    """From now on, note errors of scripts, requests that fail, and requests to other hosts."""
    home, refused = urlsplit(address).netloc, set()

    def outside(url: str) -> bool:
        parts = urlsplit(url)
        return parts.scheme not in ("data", "blob", "about") and parts.netloc != home

    def on_request(request):
        if outside(request.url):
            problems.append(f"it asks another host: {request.url}")

    def on_failure(request):
        if not outside(request.url) and request.url not in refused:
            problems.append(f"a request failed: {request.url} ({request.failure})")

    def on_response(response):
        if response.status >= 400:
            refused.add(response.url)
            problems.append(f"a request failed: {response.url} (status {response.status})")

    def on_console(message):  # what failed to load is noted above, with its address
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            problems.append(f"an error in the console: {message.text}")

    page.on("request", on_request)
    page.on("requestfailed", on_failure)
    page.on("response", on_response)
    page.on("console", on_console)
    page.on("pageerror", lambda error: problems.append(f"a script failed: {error}"))


TEXT = """() => {
  const article = document.querySelector("article");
  return article?.querySelector("h1") ? article.innerText.trim().length : 0;
}"""


def check_download(page: Page) -> list[str]:
    """What the page offers to download, a notebook if it is one, is there."""
    found = []
    for link in page.locator("a.btn-download-source-button").all():
        address = link.evaluate("link => link.href")
        answer = page.request.get(address)
        if not answer.ok or (address.endswith(".ipynb") and "cells" not in answer.json()):
            found.append(f"it cannot be downloaded: {address} (status {answer.status})")
    return found


def check_search(browser: Browser, address: str, word: str) -> list[str]:
    """The search finds pages that have a word, and they are there."""
    page = browser.new_page(viewport=DESKTOP)
    try:
        page.set_default_timeout(TIMEOUT)
        problems: list[str] = []
        watch(page, address, problems)
        page.goto(f"{address}/search.html?q={word}")
        results = page.locator("#search-results li a")
        try:
            results.first.wait_for(timeout=PATIENCE)
        except Exception:
            return [*problems, f"the search finds no page with {word!r}"]
        found = page.request.get(results.first.evaluate("link => link.href"))
        if not found.ok:
            problems.append(f"the search leads to a page that is not there: status {found.status}")
        return problems
    finally:
        page.close()


def check_text(page: Page) -> list[str]:
    """The page has a title and says something."""
    return [] if page.evaluate(TEXT) >= LEAST_TEXT else ["the page is empty"]


EQUATIONS = """async () => {
  const places = [...document.querySelectorAll(".math")], found = [];
  await document.fonts.ready;
  for (const place of places)
    if (!(place.querySelector("math")?.getBoundingClientRect().width > 0) && place.checkVisibility())
      found.push(`an equation is not drawn: ${place.textContent.trim().slice(0, 80)}`);
  for (const error of document.querySelectorAll("merror"))
    found.push(`an equation has an error: ${error.textContent.trim().slice(0, 80)}`);
  return [places.length, found];
}"""
PICTURES = """async () => {
  const pictures = [...document.images];
  for (const picture of pictures) picture.loading = "eager";
  await Promise.all(pictures.map(picture => picture.decode().catch(() => null)));
  const broken = pictures.filter(picture => picture.naturalWidth === 0);
  return [pictures.length, broken.map(p => `a picture is broken: ${p.src.slice(0, 120)}`)];
}"""
OVERFLOW = """() => {
  const width = document.documentElement.clientWidth, found = [], seen = new Set();
  const within = element => {
    const box = element.getBoundingClientRect();
    return box.width === 0 || box.height === 0 || (box.left >= -1 && box.right <= width + 1);
  };
  const scrolls = element => /auto|scroll/.test(getComputedStyle(element).overflowX);
  if (document.documentElement.scrollWidth > width)
    found.push(`the page is ${document.documentElement.scrollWidth} pixels wide on a phone of ${width}`);
  for (const element of document.querySelectorAll("article *")) {
    if (seen.has(element.parentElement)) seen.add(element);
    if (within(element) || seen.has(element)) continue;
    if (element.closest("svg svg *, svg > *, math *, .visually-hidden")) continue;
    let box = element.parentElement;
    while (box.tagName !== "ARTICLE" && !scrolls(box)) box = box.parentElement;
    if (box.tagName !== "ARTICLE" && within(box)) continue;
    seen.add(element);
    const text = element.textContent.trim().replace(/\\s+/g, " ").slice(0, 60);
    found.push(`wider than a phone: <${element.tagName.toLowerCase()} class="${
      element.getAttribute("class") || ""}"> ${text}`);
  }
  return found;
}"""


def axe(page: Page, rules: list[str] | None = None) -> list[str]:
    """What axe-core calls serious or critical, but for what is allowed: one line a rule."""
    if not page.evaluate("() => 'axe' in window"):
        page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate(
        """async ([rules, allowed]) => {
          const options = {resultTypes: ["violations"]};
          if (rules) options.runOnly = {type: "rule", values: rules};
          const {violations} = await axe.run(document, options), found = [];
          for (const {id, impact, help, nodes} of violations) {
            if (impact !== "serious" && impact !== "critical") continue;
            const left = nodes.filter(node => {
              const element = document.querySelector(node.target.flat()[0]);
              return !allowed.some(a => a.rule === id && element?.matches(a.selector));
            });
            if (left.length) found.push({id, help, count: left.length, at: left[0].target.flat()[0],
              why: left[0].any[0]?.message || left[0].all[0]?.message || ""});
          }
          return found;
        }""",
        [rules, [{"rule": a.rule, "selector": a.selector} for a in ALLOWED]],
    )
    return [
        f"axe-core, {fault['id']}: {fault['help']} ({fault['count']} times, first at "
        f"{fault['at']}). {fault['why']}"
        for fault in found
    ]


SLIDERS = "article input[type=range]"
START = "article button[data-part=start]"
# All that is drawn beside a slider: the nearest pictures around it, as text to compare.
DRAWN = """slider => {
  const drawings = "canvas, img, svg:not(.svg-inline--fa)";
  let root = slider.parentElement;
  while (root && root.tagName !== "ARTICLE" && !root.querySelector(drawings))
    root = root.parentElement;
  if (!root || root.tagName === "ARTICLE") return null;
  return [...root.querySelectorAll(drawings)].map(
    d => d.tagName === "CANVAS" ? d.toDataURL() : d.tagName === "IMG" ? d.src : d.outerHTML).join();
}"""
NAME = """slider => (slider.labels?.[0]?.innerText || slider.getAttribute("aria-label") || slider.id ||
  slider.className).trim().split("\\n")[0]"""


def start(page: Page) -> list[str]:
    """Press the button of a figure that has to be started, and wait until its controls are there."""
    from playwright.sync_api import TimeoutError

    for button in page.locator(START).all():
        if not button.is_visible():
            continue
        button.click()
        try:
            page.locator(f"{SLIDERS}:enabled").last.wait_for(state="visible")
        except TimeoutError:
            return ["a figure does not start"]
    return []


def check_sliders(page: Page) -> tuple[int, list[str]]:
    """Each slider moves by the keyboard, and what is drawn beside it follows."""
    sliders, found = page.locator(SLIDERS).all(), []

    def drawn_at(slider, key: str, before: str | None) -> str:
        """What is drawn after a key: once it differs from before and no longer changes."""
        slider.press(key)
        end, last = time.monotonic() + PATIENCE / 1000, before
        while time.monotonic() < end:
            page.wait_for_timeout(100)
            now = slider.evaluate(DRAWN)
            if now == last != before:
                break
            last = now
        return last

    for slider in sliders:
        name = slider.evaluate(NAME)
        if not slider.is_visible() or not slider.is_enabled():
            found.append(f"the slider {name!r} cannot be used")
        elif slider.evaluate(DRAWN) is None:
            found.append(f"the slider {name!r} has no figure")
        else:
            low = drawn_at(slider, "Home", None)
            value = slider.input_value()
            high = drawn_at(slider, "End", low)
            if slider.input_value() == value:
                found.append(f"the slider {name!r} does not move")
            elif low == high:
                found.append(f"the slider {name!r} moves, and its figure does not change")
    return len(sliders), found


TALLEST = 30_000  # pixels of a screenshot: of a taller one Chromium gives an empty file

# Or axe-core may see a colour on its way from light to dark, or in a cell that fades in as it opens.
STILL = "*, ::before, ::after { transition: none !important; animation: none !important }"


def check_page(browser: Browser, address: str, name: str, pictures: Path | None = None) -> Seen:
    """Look at one page: on a desktop, in light and in dark, and on a phone.

    Args:
        browser: a running Chromium.
        address: where the book is served, without a slash at its end.
        name: the page, as _toc.yml has it.
        pictures: a folder for screenshots; none are taken if it is None.
    """
    seen = Seen()
    context = browser.new_context(viewport=DESKTOP, color_scheme="light", reduced_motion="reduce")
    context.set_default_timeout(TIMEOUT)
    page = context.new_page()

    def shoot(kind: str) -> None:
        if pictures is not None:
            file = pictures / f"{name.replace('/', '-')}-{kind}.jpg"
            width, height = page.evaluate(
                "() => [innerWidth, document.documentElement.scrollHeight]"
            )
            part = {"x": 0, "y": 0, "width": width, "height": min(height, TALLEST)}
            page.screenshot(path=file, full_page=True, clip=part, type="jpeg", quality=80)

    watch(page, address, seen.problems)
    try:
        response = page.goto(f"{address}/{name}.html")
        if not response.ok:
            return seen
        seen.equations, found = page.evaluate(EQUATIONS)
        seen.problems += found
        seen.pictures, found = page.evaluate(PICTURES)
        seen.problems += found + check_text(page) + check_download(page)
        shoot("light")
        page.add_style_tag(content=STILL)
        page.emulate_media(color_scheme="dark")
        shoot("dark")
        seen.problems += start(page)
        # From here on all that is folded is open.
        page.evaluate("() => document.querySelectorAll('details').forEach(d => d.open = true)")
        seen.problems += [f"{line} [dark]" for line in axe(page, ["color-contrast"])]
        page.emulate_media(color_scheme="light")
        seen.problems += axe(page)
        seen.sliders, found = check_sliders(page)
        seen.problems += found
        page.set_viewport_size(PHONE)
        seen.problems += page.evaluate(OVERFLOW)
        shoot("phone")
    finally:
        context.close()
    return seen


def size(path: Path) -> int:
    """How many bytes a file has; none if it is missing."""
    return path.stat().st_size if path.exists() else 0


def look_twice(browser: Browser, address: str, name: str, pictures: Path | None = None) -> Seen:
    """Look at a page, and once more if there were problems: what the second look sees."""
    from playwright.sync_api import Error

    def look() -> Seen:
        try:
            return check_page(browser, address, name, pictures)
        except Error as error:  # such as a step that took longer than TIMEOUT
            return Seen(problems=[f"the look was broken off: {error.message.splitlines()[0]}"])

    seen = look()
    if not seen.problems:
        return seen
    because = "".join(f"  {line}\n" for line in seen.problems)
    print(f"{name}: looked at once more, because of:\n{because}", end="", flush=True)
    return look()


def look_side_by_side(
    address: str, pages: Sequence[str], pictures: Path | None, *, program: str | None, jobs: int
) -> dict[str, Seen]:
    """Look at several pages, some at the same time, and say of each what was seen.

    Args:
        address: where the book is served, without a slash at its end.
        pages: as _toc.yml has them; they begin in this order, so the longest should come first.
        pictures: the folder for screenshots; None for none.
        program: the Chromium to use, as in `chromium`.
        jobs: how many at once, each in a browser of its own.

    Returns:
        What was seen, by page.

    Raises:
        NoBrowser: as `chromium` does.
    """
    waiting: SimpleQueue[str | None] = SimpleQueue()
    for name in [*pages, *[None] * jobs]:
        waiting.put(name)

    def look_on(_: int) -> list[tuple[str, Seen]]:
        found = []
        with chromium(program) as browser:
            for name in iter(waiting.get, None):
                begin = time.monotonic()
                seen = look_twice(browser, address, name, pictures)
                found.append((name, seen))
                print(
                    f"{name}: {seen.equations} equations, {seen.pictures} pictures, "
                    f"{seen.sliders} sliders, {len(seen.problems)} problems, "
                    f"{time.monotonic() - begin:.0f} s",
                    flush=True,
                )
        return found

    with ThreadPoolExecutor(jobs) as pool:
        return dict(pair for found in pool.map(look_on, range(jobs)) for pair in found)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--html", type=Path, default=ROOT / "_build" / "html")
    parser.add_argument("--screenshots", type=Path, default=ROOT / "_build" / "screenshots")
    parser.add_argument("--no-screenshots", action="store_true", help="look, and keep no pictures")
    parser.add_argument("--chromium", help="the program; otherwise the one of the system")
    parser.add_argument("--jobs", type=int, help="pages at the same time; default: one a core")
    parser.add_argument("--search", default=SEARCHED, help="a word that some page has")
    parser.add_argument("page", nargs="*", help="only these pages, named as in _toc.yml")
    args = parser.parse_args()
    if not args.html.is_dir():
        sys.exit(f"{args.html} is not there: run 'make book' first")
    pages = args.page or list(parse_toc_yaml(ROOT / "_toc.yml"))
    jobs = min(args.jobs or allowed_cores(), len(pages)) or 1
    pictures = None if args.no_screenshots else args.screenshots
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
    searched: list[str] = []
    try:
        print(f"{len(pages)} pages, {jobs} at the same time", flush=True)
        with serving(args.html, under=UNDER) as address:
            if not args.page:
                with chromium(args.chromium) as browser:
                    searched = check_search(browser, address, args.search)
            settings = {"program": args.chromium, "jobs": jobs}
            large_first = sorted(pages, key=lambda p: -size(args.html / f"{p}.html"))
            looks = look_side_by_side(address, large_first, pictures, **settings)
    except NoBrowser as reason:
        print(f"The book was NOT looked at in a browser. {reason}", file=sys.stderr)
        return SKIPPED
    problems = [f"search: {line}" for line in searched]
    problems += [f"{name}: {line}" for name in pages for line in looks[name].problems]
    for line in problems:
        print(line, file=sys.stderr, flush=True)
    told = "" if pictures is None else f"; screenshots are in {pictures}"
    print(f"{len(looks)} pages, {len(problems)} problems{told}")
    return 1 if problems or not looks else 0


if __name__ == "__main__":
    sys.exit(main())
