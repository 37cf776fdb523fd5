"""A deck of slides as one HTML file: no network, no scripts needed, and printed one slide a sheet.

With scripts the arrow keys and the space bar turn the slides and `n` shows the teacher's notes; without,
the page scrolls and the notes unfold. Formulas are MathML, which browsers draw themselves. Letters and
formulas grow with the window, figures take what is left of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from lighten import mathml
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin


@dataclass(frozen=True, kw_only=True)
class Slide:
    """One slide; what is empty is left out. Texts are Markdown with formulas between dollars."""

    title: str
    minutes: int
    say: str
    ask: str
    answer: str
    picture: str = ""  # an address, such as data:image/png;base64,...
    alt: str = ""  # of the picture
    tall: bool = False  # the picture: the texts stand beside it
    source: str = ""  # the chapter that the picture or the exercise is from
    formulas: Sequence[str] = ()  # LaTeX, a line each
    words: Sequence[Sequence[str]] = ()  # (word, what it means)
    task: str = ""  # what students do


STYLE = """
:root { color-scheme: light; font: 20px/1.4 system-ui, sans-serif; color: #1b2330; background: #fff }
:root { font-size: max(15px, min(1.6vw, 2.85vh)) }
body { margin: 0 }
section { box-sizing: border-box; min-height: 100vh; padding: 4vh 5vw; display: flex;
  flex-direction: column; gap: 1.6vh; border-bottom: 1px solid #c9d1da }
h1, h2 { margin: 0; line-height: 1.2 }
h1 { font-size: 2.2rem }
h2 { font-size: 1.6rem; border-bottom: 3px solid #1c6ea4; padding-bottom: 1vh }
h2 small { float: right; font-size: 1rem; font-weight: normal; color: #4a5666 }
figure { margin: 0; display: flex; flex-direction: column; align-items: center }
img { max-width: 100%; max-height: 51vh; object-fit: contain }
.formulas ~ figure img { max-height: 40vh }
.tall { display: flex; gap: 3vw; align-items: flex-start }
.tall figure { flex: 0 1 auto }
.tall img, .formulas ~ .tall img { max-height: 66vh; max-width: 56vw }
.tall > div { flex: 1 1 18em; display: flex; flex-direction: column; gap: 1.6vh }
figcaption, .source { color: #4a5666; font-size: 0.75rem; align-self: end }
p, ul, ol, pre { margin: 0; max-width: 70em }
.text p + p, details p + p, .task p + p, .task pre { margin-top: 0.5em }
.ask { font-weight: 600; border-left: 5px solid #c04b12; padding-left: 1em }
.task { border: 2px solid #1c6ea4; padding: 0.8em 1em }
code, pre { font: 0.9em/1.35 ui-monospace, monospace }
.both { display: flex; gap: 3vw; align-items: center }
.formulas math { font-size: 1.25rem; margin: 0.35em 0; max-width: 100% }
.both .formulas { flex: none }
.both math { width: fit-content; margin-left: 0 }
.words { margin: 0; font-size: 0.85rem; display: grid; grid-template-columns: auto 1fr; gap: 0.3em 1em }
.words dt { font-weight: 600 }
.words dd { margin: 0 }
details { color: #3a4554; font-size: 0.9rem }
.number { margin-top: auto; align-self: end; color: #4a5666; font-size: 0.8rem }
@media (max-width: 700px) { .both, .tall { display: block } .tall img { max-width: 100% } }
@media print {
  @page { size: 1280px 720px; margin: 0 }
  html { font-size: 18px }
  section { height: 720px; min-height: 0; overflow: hidden; padding: 30px 60px; break-after: page;
    border: 0; gap: 12px }
  section:last-child { break-after: auto }
  img { max-height: 400px }
  .formulas ~ figure img { max-height: 330px }
  .tall img { max-height: 540px; max-width: 700px }
  details:not([open]) { display: none }
}
"""
# Added before the deck is printed with its notes: a sheet of paper for each slide.
NOTES = """
@media print {
  @page { size: A4; margin: 14mm }
  html { font-size: 13px }
  section { height: auto; overflow: visible; padding: 0; break-inside: avoid }
  img, .tall img, .formulas ~ figure img { max-height: 85mm; max-width: 100% }
  .tall { display: block }
  details { border-top: 1px solid #c9d1da; padding-top: 8px; font-size: 1rem }
}
"""
KEYS = """
const all = [...document.querySelectorAll("section")];
const here = () => all.findIndex(s => s.getBoundingClientRect().bottom > innerHeight / 2);
addEventListener("keydown", event => {
  const space = event.shiftKey ? -1 : 1;
  const step = {" ": space, ArrowRight: 1, PageDown: 1, ArrowLeft: -1, PageUp: -1}[event.key];
  if (event.key === "n") for (const d of document.querySelectorAll("details")) d.open = !d.open;
  if (!step) return;
  event.preventDefault();
  all[Math.min(Math.max(here() + step, 0), all.length - 1)].scrollIntoView();
});
"""


def _markdown() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False})
    parser.use(
        dollarmath_plugin,
        renderer=lambda formula, options: mathml(formula, display=options["display_mode"]),
    )
    return parser.disable(["link", "image", "autolink"])  # a deck leads nowhere


MARKDOWN = _markdown()


def rich(text: str) -> str:
    """Markdown as HTML: paragraphs, lists, code, and formulas as MathML."""
    return MARKDOWN.render(text)


def inline(text: str) -> str:
    """A line of Markdown as HTML."""
    return MARKDOWN.renderInline(text)


def deck(title: str, aim: str, slides: Sequence[Slide]) -> str:
    """The slides as one HTML page.

    Args:
        title: of the session.
        aim: what students can do after it.
        slides: in their order.
    """
    total = sum(slide.minutes for slide in slides)
    first = f"<section><h1>{escape(title)}</h1><p>{inline(aim)}</p><p>{total} minutes.</p>"
    first += (
        "<p>Arrow keys or the space bar turn the slides. For the teacher: n shows the notes to "
    )
    first += (
        "all who see this screen; they are in the notes' PDF and in the plan, too.</p></section>"
    )
    pages = [first, *(_page(slide, n, len(slides)) for n, slide in enumerate(slides, 1))]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><main>\n"
        + "\n".join(pages)
        + f"\n</main><script>{KEYS}</script></body></html>\n"
    )


def _page(slide: Slide, number: int, count: int) -> str:
    parts = [f"<h2>{escape(slide.title)} <small>{slide.minutes} min</small></h2>"]
    drawn = "".join(mathml(formula, display=True) for formula in slide.formulas)
    if drawn:
        drawn = f'<div class="formulas">{drawn}</div>'
    if slide.words:
        lines = (f"<dt>{inline(word)}</dt><dd>{inline(says)}</dd>" for word, says in slide.words)
        drawn = f'<div class="both">{drawn}<dl class="words">{"".join(lines)}</dl></div>'
    parts.append(drawn)
    picture, text = "", f'<div class="text">{rich(slide.say)}</div>'
    if slide.picture:
        caption = f"<figcaption>{escape(slide.source)}</figcaption>" if slide.source else ""
        picture = f'<img src="{slide.picture}" alt="{escape(slide.alt)}">'
        picture = f"<figure>{picture}{caption}</figure>"
    asked = f'<p class="ask">{inline(slide.ask)}</p>'
    if slide.tall:
        picture, text, asked = f'<div class="tall">{picture}<div>{text}{asked}</div></div>', "", ""
    parts += [picture, text]
    if slide.task:
        parts.append(f'<div class="task">{rich(slide.task)}</div>')
        if slide.source:
            parts.append(f'<p class="source">{escape(slide.source)}</p>')
    parts.append(asked)
    notes = f"<details><summary>For the teacher</summary>{rich(slide.answer)}</details>"
    parts.append(notes)
    return f'<section>{"".join(parts)}<p class="number">{number} / {count}</p></section>'
