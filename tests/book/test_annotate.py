"""Links to the glossary and to the numbers of figures: in the right places, once, and nowhere else."""

import base64
import hashlib

import nbformat
import pytest
from annotate import annotate, figure_numbers, meanings, with_terms
from bs4 import BeautifulSoup

GLOSSARY = """<article><dl class="glossary"><dt id="term-token">token<a class="headerlink">#</a></dt>
<dd><p>One position of a <em>map</em>, "so" to say.</p></dd>
<dt id="term-kept-share">kept share</dt><dd><p>A mean. With <span class="math">\\(m\\)</span>.</p></dd>
<dt id="term-gate">gate</dt><dd><p><span class="math">\\(g\\)</span>.</p></dd></dl></article>"""
TERMS = meanings(GLOSSARY)


def test_meanings_are_words_without_formulas():
    assert TERMS == {
        "token": ("term-token", 'One position of a map, "so" to say.'),
        "kept share": ("term-kept-share", "A mean."),
    }


def test_the_first_place_of_a_term_in_a_paragraph_leads_to_the_glossary():
    page = "<article><h1>A token</h1><p>Two Tokens &lt; a kept share, a token.</p></article>"
    got = BeautifulSoup(with_terms(page, TERMS, "g.html"), "html.parser")
    links = [(link.get_text(), link["href"], link["data-meaning"]) for link in got("a")]
    assert links == [
        ("Tokens", "g.html#term-token", 'One position of a map, "so" to say.'),
        ("kept share", "g.html#term-kept-share", "A mean."),
    ]
    assert got.get_text() == BeautifulSoup(page, "html.parser").get_text()


@pytest.mark.parametrize(
    "page",
    [
        "<article><p><a href='x'>token</a> <code>token</code> tokenise pre-token</p></article>",
        "<article><div class='cell docutils'><div><p>token</p></div></div></article>",
        "<article><p><span class='math notranslate'>\\(token\\)</span></p></article>",
        "<article><svg viewBox='0 0 1 1'><text>token</text></svg><h2>token</h2></article>",
        "<article><script>'<p>token</p>'</script><img alt='<p>token</p>'></article>",
        "<nav><p>token</p></nav>",
    ],
)
def test_nothing_else_is_touched(page):
    page = page.replace("'cell", '"cell').replace("docutils'", 'docutils"')
    page = page.replace("class='math notranslate'", 'class="math notranslate"')
    assert with_terms(page, TERMS, "g.html") == page


def test_numbers_of_a_figure_lie_beside_it(tmp_path):
    picture = b"not really a PNG"
    data = {"image/png": base64.b64encode(picture).decode(), "text/csv": "x,y\n1,2\n"}
    shown = nbformat.v4.new_output("display_data", data)
    other = nbformat.v4.new_output("display_data", data | {"text/csv": "x,y\n3,4\n"})
    cells = [
        nbformat.v4.new_code_cell(outputs=[shown]),
        nbformat.v4.new_code_cell(outputs=[other], metadata={"tags": ["remove-output"]}),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    name = hashlib.sha256(picture).hexdigest() + ".png"
    assert figure_numbers(notebook) == {name: "x,y\n1,2\n"}

    stage, html = tmp_path / "stage", tmp_path / "html"
    for folder in (stage / "notebooks", html / "notebooks", html / "book"):
        folder.mkdir(parents=True)
    nbformat.write(notebook, stage / "notebooks/01.ipynb")
    page = html / "notebooks/01.html"
    page.write_text(f'<article><p>A token</p><img alt="a" src="../_images/{name}"/></article>')
    (html / "book/notation.html").write_text(GLOSSARY)
    annotate(html, stage)
    links = {link["href"] for link in BeautifulSoup(page.read_text(), "html.parser")("a")}
    assert links == {"../_data/01-1.csv", "../book/notation.html#term-token"}
    assert (html / "notebooks/../_data/01-1.csv").read_text() == "x,y\n1,2\n"
