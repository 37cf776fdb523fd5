"""A deck of slides as one HTML file: no network, no scripts needed, and printed one slide a sheet.

With scripts the arrow keys turn the slides and `n` shows the teacher's notes; without, the page scrolls
and the notes unfold. Formulas are MathML, which browsers draw themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from lighten import mathml


@dataclass(frozen=True, kw_only=True)
class Slide:
    """One slide; what is empty is left out."""

    title: str
    minutes: int
    say: str
    ask: str
    answer: str
    picture: str = ""  # an address, such as data:image/png;base64,...
    alt: str = ""  # of the picture
    formula: str = ""  # LaTeX
    task: str = ""  # what students do


STYLE = """
:root { color-scheme: light; font: 20px/1.4 system-ui, sans-serif; color: #1b2330; background: #fff }
body { margin: 0 }
section { box-sizing: border-box; min-height: 100vh; padding: 4vh 5vw; display: flex;
  flex-direction: column; gap: 2vh; border-bottom: 1px solid #c9d1da }
h1, h2 { margin: 0; line-height: 1.2 }
h1 { font-size: 2.2rem }
h2 { font-size: 1.6rem; border-bottom: 3px solid #1c6ea4; padding-bottom: 1vh }
h2 small { float: right; font-size: 1rem; font-weight: normal; color: #4a5666 }
img { max-width: 100%; max-height: 52vh; object-fit: contain; margin: 0 auto }
p { margin: 0; max-width: 70em }
.ask { font-weight: 600; border-left: 5px solid #c04b12; padding-left: 1em }
.task { border: 2px solid #1c6ea4; padding: 1em; white-space: pre-wrap }
math { font-size: 1.5rem; margin: 3vh 0; overflow-x: auto; max-width: 100% }
details { color: #3a4554; font-size: 0.9rem }
.number { margin-top: auto; align-self: end; color: #4a5666; font-size: 0.8rem }
@media print {
  @page { size: 1280px 720px; margin: 0 }
  section { height: 720px; min-height: 0; overflow: hidden; padding: 30px 60px; break-after: page;
    border: 0; gap: 12px }
  section:last-child { break-after: auto }
  img { max-height: 380px }
  html { font-size: 18px }
}
"""
KEYS = """
const all = [...document.querySelectorAll("section")];
const here = () => all.findIndex(s => s.getBoundingClientRect().bottom > innerHeight / 2);
addEventListener("keydown", event => {
  const step = {ArrowRight: 1, PageDown: 1, ArrowLeft: -1, PageUp: -1}[event.key];
  if (event.key === "n") for (const d of document.querySelectorAll("details")) d.open = !d.open;
  if (!step) return;
  event.preventDefault();
  all[Math.min(Math.max(here() + step, 0), all.length - 1)].scrollIntoView();
});
"""


def deck(title: str, aim: str, slides: Sequence[Slide]) -> str:
    """The slides as one HTML page.

    Args:
        title: of the session.
        aim: what students can do after it.
        slides: in their order.
    """
    total = sum(slide.minutes for slide in slides)
    first = f"<section><h1>{escape(title)}</h1><p>{escape(aim)}</p><p>{total} minutes.</p>"
    first += "<p>Arrow keys turn the slides, n shows the notes.</p></section>"
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
    if slide.formula:
        parts.append(mathml(slide.formula, display=True))
    if slide.picture:
        parts.append(f'<img src="{slide.picture}" alt="{escape(slide.alt)}">')
    parts.append(f"<p>{escape(slide.say)}</p>")
    if slide.task:
        parts.append(f'<div class="task">{escape(slide.task)}</div>')
    parts.append(f'<p class="ask">{escape(slide.ask)}</p>')
    notes = f"<details><summary>For the teacher</summary><p>{escape(slide.answer)}</p></details>"
    parts.append(notes)
    return f'<section>{"".join(parts)}<p class="number">{number} / {count}</p></section>'
