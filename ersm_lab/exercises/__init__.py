"""Checks of the chapters' exercises: each says "right", or what is wrong.

A chapter's module holds one check for each exercise that asks for code. A check takes the reader's
function and returns None if it is right, or a sentence that says what is wrong with it:

    >>> def check_double(function):
    ...     return None if function(2) == 4 else "double(2) should be 4"
    >>> attempt(lambda x: 2 * x, check_double)
    right
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from html import escape

__all__ = ["Verdict", "attempt"]

KINDS = {"right": "tip", "wrong": "warning", "open": "note"}  # the admonition that shows it


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a check said; a notebook shows it as an admonition, plain text elsewhere.

    Attributes:
        kind: "right", "wrong" or "open" (not solved yet).
        text: what is wrong, or what is still to do; empty if there is nothing to add.
    """

    kind: str
    text: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")

    @property
    def title(self) -> str:
        return {"right": "right", "wrong": "not right yet", "open": "not solved yet"}[self.kind]

    def _repr_html_(self) -> str:
        title = f'<p class="admonition-title">{escape(self.title)}</p>'
        text = f"<p>{escape(self.text)}</p>" if self.text else ""
        return f'<div class="admonition {KINDS[self.kind]}">{title}{text}</div>'

    def __repr__(self) -> str:
        return f"{self.title}: {self.text}" if self.text else self.title


def attempt(function: Callable, check: Callable[[Callable], str | None]) -> Verdict:
    """Check a reader's function without ever raising, so that the page runs on.

    Args:
        function: the reader's solution.
        check: takes the function; returns None if it is right, else what is wrong.

    Returns:
        "right"; "not right yet" with the check's sentence, or with the error that the function raised
        and its line; "not solved yet" if it raised NotImplementedError.
    """
    name = getattr(function, "__name__", "the function")
    try:
        wrong = check(function)
    except NotImplementedError:
        return Verdict(kind="open", text=f"replace the raise in {name} by your solution")
    except Exception as error:
        line = traceback.extract_tb(error.__traceback__)[-1]
        where = f"in line {line.lineno} of {line.name}"
        return Verdict(kind="wrong", text=f"{type(error).__name__} {where}: {error}")
    return Verdict(kind="right") if wrong is None else Verdict(kind="wrong", text=str(wrong))
