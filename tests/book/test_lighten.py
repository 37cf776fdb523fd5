"""Light pages: formulas without scripts, only the icons in use, no figure before its time."""

from __future__ import annotations

import struct
from pathlib import Path
from xml.etree import ElementTree

import pytest
from lighten import (
    LARGEST_VISIT,
    fewer_icons,
    icon_codes,
    mathml,
    visit,
    with_lazy_figures,
    with_mathml,
)

SPAN = '<span class="math notranslate nohighlight">\\(a &lt; \\lambda_{\\text{unary}}\\)</span>'
DIV = (
    '<div class="math notranslate nohighlight" id="equation-x">\n<span class="eqno">(1)<a '
    'class="headerlink" href="#equation-x">#</a></span>\\[\\frac{a}{b}\\]</div>'
)
SCRIPTS = (
    '<script>window.MathJax = {"options": {}}</script>\n'
    '<script defer="defer" src="../_static/mathjax.js?v=1"></script>'
)


def test_formulas_are_drawn_and_what_is_no_formula_stays():
    code = "<pre>re.compile('\\(x\\)')</pre><script>other()</script>"
    page = with_mathml(SCRIPTS + SPAN + DIV + code)
    assert "MathJax" not in page and "mathjax.js" not in page
    assert page.count("<math") == 2 and page.count('display="block"') == 1
    assert "<mfrac>" in page and code in page and "(1)<a" in page


@pytest.mark.parametrize(
    "formula",
    [
        r"e_i = \lambda_{\text{unary}} \operatorname{softplus}(w^\top \hat p_i + b_i)",
        r"\begin{aligned} a &= b \\ c &= \begin{cases} 1 \\ 0 \end{cases} \end{aligned}",
        r"\arg\min_{u} \lVert u - x \rVert_2^2, \qquad \sum_{j \in N(i)} \hat p_i^\top \hat p_j",
    ],
)  # fmt: skip
def test_a_formula_is_well_formed(formula):
    tree = ElementTree.fromstring(mathml(formula, display=True).replace("&nbsp;", " "))
    assert tree.tag.endswith("math")


@pytest.mark.parametrize("formula", [r"a \nosuchthing b", r"\begin{gathered} a & b \end{gathered}"])
def test_what_cannot_be_drawn_is_named(formula):
    with pytest.raises(ValueError, match=r"(\\nosuchthing|&) cannot be drawn"):
        mathml(formula, display=False)


ICONS = (
    'var a={"magnifying-glass":[512,512,[128269,"search"],"f002","M1"],'
    'pencil:[512,512,[9999,"pencil-alt"],"f303",["M2","M3"]],ghost:[384,512,[],"f6e2","M4"]};'
)


def test_icons_are_kept_by_any_of_their_names():
    left = fewer_icons(ICONS, {"search", "pencil-alt"})
    assert "magnifying-glass" in left and "pencil" in left and "ghost" not in left
    assert left.startswith("var a={") and left.endswith("};")
    assert icon_codes(ICONS, {"ghost"}) == {0xF6E2}


def picture(path: Path, width: int, height: int) -> None:
    path.parent.mkdir(exist_ok=True)
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height)
    path.write_bytes(head + bytes(2 * LARGEST_VISIT))


def test_a_figure_waits_and_has_its_room(tmp_path):
    picture(tmp_path / "_images" / "a.png", 300, 200)
    page = '<img alt="A" src="_images/a.png" /><img width="5" src="_images/a.png">'
    lazy = with_lazy_figures(page, tmp_path)
    assert lazy.startswith('<img loading="lazy" width="300" height="200" alt="A"')
    assert lazy.endswith('<img width="5" src="_images/a.png">')


def test_a_first_visit_counts_what_is_fetched_at_once(tmp_path):
    picture(tmp_path / "_images" / "a.png", 300, 200)
    (tmp_path / "a.css").write_text("p {}")
    style = '<link rel="stylesheet" href="a.css?v=1"><link rel="next" href="b.html">'
    page = tmp_path / "page.html"
    page.write_text(style + '<img src="_images/a.png">')
    assert {path.name for path in visit(page, tmp_path)} == {"page.html", "a.css", "a.png"}
    page.write_text(style + '<img loading="lazy" src="_images/a.png">')
    assert {path.name for path in visit(page, tmp_path)} == {"page.html", "a.css"}
