"""How records become findings: questions to the suites' records, each answered by an interval.

Differences are paired over seeds and test images, with 95 % intervals (`statistics.difference`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ersm_lab.papers.claim import Finding
from ersm_lab.results import answer_bits, claims, statistics
from ersm_lab.results.claims import OUTCOMES, better
from ersm_lab.views.tables import NOT_RUN

Judge = Callable[[str, str], list[Finding]]  # (dataset, scale) -> findings
Values = dict[int, np.ndarray]  # {seed: (N,)}, of the same images for every seed

BETTER = (
    "Reproduced if the 95 % interval of the difference lies above zero; not "
    "reproduced if it lies below, "
    "or around zero with its upper end under one point; otherwise open"
)


def some(found: list[Finding]) -> list[Finding]:
    """The findings, among them pairs without records; none where no pair has any."""
    return found if any(finding.outcome != NOT_RUN for finding in found) else []


def all_of(*judges: Judge) -> Judge:
    return lambda dataset, scale: [f for judge in judges for f in judge(dataset, scale)]


def preserved(*pairs: tuple[str, str]) -> Judge:
    """Accuracy of the first of each pair against the second, by `claims.accuracy_is_preserved`."""

    def judge(dataset: str, scale: str) -> list[Finding]:
        found = []
        for method, base in pairs:
            rows = [statistics.of(m, dataset=dataset, scale=scale) for m in (method, base)]
            if not all(rows):
                found.append(Finding(outcome=NOT_RUN, figure=f"{method} against {base}"))
            else:
                verdict = claims.accuracy_is_preserved(*rows)
                found.append(
                    Finding(
                        outcome=OUTCOMES[verdict.outcome],
                        figure=f"{method} against {base}: {verdict.reason}",
                        methods=(method, base),
                    )
                )
        return some(found)

    return judge


# --- what a suite found, network by network --------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One number an image of every network of a method, from the records of one suite.

    Attributes:
        method, suite: whose networks, and what they were asked.
        conditions: which of a suite's conditions count, by their names; the share of them under which
            an image is classified rightly is its number.
        listed: instead of conditions, a name among the metrics' `by_image`.
        dataset: None is that of the ledger.
    """

    method: str
    suite: str
    conditions: Callable[[str], bool] | None = None
    listed: str | None = None
    dataset: str | None = None

    @property
    def record(self) -> str:
        return f"{self.method}.{self.suite}"

    def values(self, dataset: str, scale: str) -> Values:
        """{seed: (N,)}; empty without records. NaN where an image has no value."""
        where = dict(dataset=self.dataset or dataset, scale=scale)
        return {r["seed"]: self._of(r) for r in statistics.of(self.record, **where)}

    def _of(self, record: Mapping) -> np.ndarray:
        if self.listed:
            return answer_bits.by_image(record, self.listed)
        counts = self.conditions or (lambda name: True)
        names = [name for name in record["config"]["conditions"] if counts(name)]
        if not names:
            raise ValueError(f"{record['name']} has none of the conditions that are judged")
        return answer_bits.share_right(record, names)


@dataclass(frozen=True, kw_only=True)
class Question:
    """Is the first better than the second, and by how much?"""

    words: str
    first: Asked
    second: Asked


def answered(question: Question, dataset: str, scale: str) -> tuple[str, str] | None:
    """Outcome and figure of a question, None without records of a common seed."""
    first, second = (side.values(dataset, scale) for side in (question.first, question.second))
    if not first.keys() & second.keys():
        return None
    found = statistics.paired(first, second)
    outcome, figure = better(found)
    return outcome, f"{question.words}: {figure}"


def asked(*settings: Sequence[Question]) -> Judge:
    """One finding for each setting: its questions, of which the first decides more than the others.

    All of them reproduced: reproduced; the first only: partly; the first not: what the first is. An open
    question beside a reproduced first one leaves the claim open.
    """

    def judge(dataset: str, scale: str) -> list[Finding]:
        found = []
        for questions in settings:
            told = [answered(q, dataset, scale) for q in questions]
            answers = [answer for answer in told if answer is not None]
            if len(answers) < len(questions):
                words = "; ".join(question.words for question in questions)
                found.append(Finding(outcome=NOT_RUN, figure=words))
                continue
            outcomes = [outcome for outcome, _ in answers]
            verdict = outcomes[0]
            if verdict == "reproduced" and "open" in outcomes:
                verdict = "open"
            elif verdict == "reproduced" and "not reproduced" in outcomes:
                verdict = "partly"
            methods = dict.fromkeys(a.record for q in questions for a in (q.first, q.second))
            figure = "; ".join(figure for _, figure in answers)
            found.append(Finding(outcome=verdict, figure=figure, methods=tuple(methods)))
        return some(found)

    return judge


def against(
    method: str, base: str, suite: str, conditions: Callable[[str], bool], **where: str
) -> tuple[Question, ...]:
    """A method against another one, under the same conditions."""
    first, second = (
        Asked(method=m, suite=suite, conditions=conditions, **where) for m in (method, base)
    )
    return (Question(words=f"{method} against {base}", first=first, second=second),)


def corrupted(condition: str) -> bool:
    return condition != "clean"
