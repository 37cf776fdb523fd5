"""Make the built pages light: formulas that are there without a script, and no icon that nobody sees.

- Each formula becomes MathML, which browsers draw themselves (latex2mathml writes it). The pages no
  longer ask for MathJax and its fonts, and formulas stand where scripts are off.
- Of the theme's icons, which come as a script and as fonts, those stay that a page or a style sheet
  names.
- Figures are fetched as the reader comes near them; their size is in the page, so that nothing jumps.

    python tools/lighten.py [--html _build/html]     # says what a first visit to each page loads
"""

from __future__ import annotations

import argparse
import gzip
import re
import shutil
import struct
import sys
from html import unescape
from pathlib import Path

from bs4 import BeautifulSoup
from latex2mathml.converter import convert

ROOT = Path(__file__).resolve().parent.parent
LARGEST_VISIT = 1_500_000  # bytes of a first visit to a page, compressed
# Sphinx: <span class="math ...">\(x\)</span>, <div class="math ...">(number) \[x\]</div>
FORMULA = re.compile(
    r'(<(?:span|div) class="math notranslate nohighlight"[^>]*>'
    r'\s*(?:<span class="eqno">.*?</span>\s*)?)\\([(\[])(.*?)\\[)\]]',
    re.S,
)
MATHJAX = re.compile(
    r"\s*<script[^>]*>\s*window\.MathJax\b.*?</script>|\s*<script[^>]*mathjax[^>]*></script>", re.S
)
FIGURE = re.compile(r'<img (?P<rest>[^>]*src="(?P<src>[^"]*_images/[^"]+\.png)"[^>]*)>')
# "magnifying-glass":[512,512,[128269,"search"],"f002","M416 ..."]: of FontAwesome's script
ICON = re.compile(
    r'(?:"(?P<quoted>[\w-]+)"|(?P<bare>[\w-]+)):\[\d+,\d+,\[(?P<others>[^\]]*)\],'
    r'"(?P<code>[0-9a-f]+)",(?:"[^"]*"|\[[^\]]*\])\],?'
)
NAMED = re.compile(r"\bfa-([a-z0-9-]+)")
RULE = re.compile(r'[^{}]*\{[^{}]*content:\s*"\\(?P<code>[0-9a-f]{4})"')


def mathml(formula: str, *, display: bool) -> str:
    """A LaTeX formula as MathML.

    Raises:
        ValueError: a command is not known.
    """
    source = re.sub(r"\\arg(?![a-z])", r"\\operatorname{arg}", formula)
    source = re.sub(r"\\(begin|end)\{aligned\}", r"\\\1{split}", source)
    if r"\operatorname*" in source:
        raise ValueError(f"\\operatorname* cannot be drawn: write {formula.strip()!r} without it")
    made = convert(source, display="block" if display else "inline")
    unknown = re.search(r"\\[a-zA-Z]+|(?<=<mi>)&(?=</mi>)", unescape(made))  # & of no environment
    if unknown:
        raise ValueError(f"{unknown[0]} cannot be drawn: write {formula.strip()!r} without it")
    return made


def with_mathml(page: str) -> str:
    """A page with its formulas drawn, and without MathJax.

    Raises:
        ValueError: a formula has a command that is not known.
    """
    drawn = FORMULA.sub(
        lambda match: match[1] + mathml(unescape(match[3]), display=match[2] == "["), page
    )
    return MATHJAX.sub("", drawn)


def with_lazy_figures(page: str, folder: Path) -> str:
    """A page whose figures are fetched when they are near, with room of their size.

    Args:
        page: HTML.
        folder: that the page lies in.
    """

    def lazy(match: re.Match) -> str:
        if re.search(r"\b(?:loading|width|height|style)=", match["rest"]):
            return match[0]
        head = (folder / match["src"]).read_bytes()[:24]  # of a PNG: its size stands at byte 16
        width, height = struct.unpack(">II", head[16:24])
        return f'<img loading="lazy" width="{width}" height="{height}" {match["rest"]}>'

    return FIGURE.sub(lazy, page)


def fewer_icons(script: str, wanted: set[str]) -> str:
    """FontAwesome's script with those icons alone that are wanted, by one of their names."""

    def keep(match: re.Match) -> str:
        names = {match["quoted"] or match["bare"], *re.findall(r'"([\w-]+)"', match["others"])}
        return match[0] if names & wanted else ""

    return ICON.sub(keep, script)


def icon_codes(script: str, wanted: set[str]) -> set[int]:
    """The characters that wanted icons have in the fonts."""
    return {int(match["code"], 16) for match in ICON.finditer(fewer_icons(script, wanted))}


def fewer_glyphs(font: Path, characters: set[int]) -> None:
    """Cut a WOFF2 font to some characters."""
    from fontTools import subset

    options = subset.Options(flavor="woff2", layout_features=[], notdef_outline=True)
    with subset.load_font(str(font), options) as loaded:
        cutter = subset.Subsetter(options)
        cutter.populate(unicodes=characters)
        cutter.subset(loaded)
        subset.save_font(loaded, str(font), options)


def lighten(html: Path) -> None:
    """Make the pages of a built book light, in place.

    Raises:
        ValueError: a formula has a command that is not known.
    """
    wanted: set[str] = set()
    for path in sorted(html.rglob("*.html")):
        page = path.read_text(encoding="utf-8")
        wanted |= set(NAMED.findall(page))
        try:
            drawn = with_lazy_figures(with_mathml(page), path.parent)
        except ValueError as error:
            raise ValueError(f"{path.relative_to(html)}: {error}") from None
        if drawn != page:
            path.write_text(drawn, encoding="utf-8")
    static = html / "_static"
    for path in sorted(static.rglob("*.js")):  # themes put icons in by scripts
        if path.name != "fontawesome.js":
            wanted |= set(NAMED.findall(path.read_text(encoding="utf-8", errors="replace")))
    script = static / "scripts" / "fontawesome.js"
    if script.exists():
        text = script.read_text(encoding="utf-8")
        characters = icon_codes(text, wanted)
        for style in sorted(static.rglob("*.css")):
            for rule in RULE.finditer(style.read_text(encoding="utf-8")):
                if ".fa-" not in rule[0]:  # not FontAwesome's own rule for each of its icons
                    characters.add(int(rule["code"], 16))
        script.write_text(fewer_icons(text, wanted), encoding="utf-8")
        for font in (static / "vendor" / "fontawesome" / "webfonts").glob("*.woff2"):
            fewer_glyphs(font, characters)
    shutil.rmtree(static / "vendor" / "mathjax", ignore_errors=True)


def visit(path: Path, html: Path) -> dict[Path, int]:
    """What a first visit to a page loads, and how many bytes that is, compressed.

    Scripts, styles, what they preload, every WOFF2 font, and the pictures that are not fetched later.
    """
    page = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
    shown = [tag for tag in page.find_all("img") if tag.get("loading") != "lazy"]
    addresses = [tag.get("src") for tag in [*page.find_all("script"), *shown]]
    links = [tag for tag in page.find_all("link") if {"stylesheet", "preload"} & set(tag["rel"])]
    addresses += [tag.get("href") for tag in links]
    files = {path}
    for address in filter(None, addresses):
        if not re.match(r"[a-z]+:", address):
            files.add((path.parent / address.partition("?")[0].partition("#")[0]).resolve())
    files |= set((html / "_static" / "vendor" / "fontawesome").rglob("*.woff2"))
    return {file: _compressed(file) for file in files if file.is_file()}


def _compressed(file: Path) -> int:
    content = file.read_bytes()
    return min(len(content), len(gzip.compress(content, 6)))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--html", type=Path, default=ROOT / "_build" / "html")
    args = parser.parse_args()
    html = args.html.resolve()
    weights = {}
    for path in sorted({*html.glob("book/*.html"), *html.glob("notebooks/*.html")}):
        weights[path] = visit(path, html)
        print(f"{sum(weights[path].values()) / 1e6:5.2f} MB  {path.relative_to(html)}")
    heavy = [path for path, files in weights.items() if sum(files.values()) > LARGEST_VISIT]
    for path in heavy:
        worst = sorted(weights[path].items(), key=lambda pair: -pair[1])[:4]
        told = ", ".join(f"{file.name} {size / 1e6:.2f} MB" for file, size in worst)
        print(f"{path.name}: more than {LARGEST_VISIT / 1e6:.1f} MB: {told}", file=sys.stderr)
    return 1 if heavy else 0


if __name__ == "__main__":
    sys.exit(main())
