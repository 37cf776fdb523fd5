"""The verdicts on photographs, each beside its rule of `photographs/criteria.md` in one line."""

from __future__ import annotations

from ersm_lab.photographs import verdicts
from ersm_lab.views.tables import Table

CLAIMS = {
    "(a) accuracy is preserved": "for: gap to no mask above −1 point; "
    "against: below 0 and its mean below −1",
    "(b) sparse and adaptive": "for: at most 70 % kept in every seed, and another image's mask costs "
    "at least 1 point, its interval above 0; against: more kept, or that interval below 1",
    "(c) squares, on the object": "for: accuracy behind them minus no mask's above 0; against: below",
    "(c) squares, random": "the same",
    "(d) finds the object": "for: AUC above each of norm, centre, class map; against: below one",
    "(e) beyond magnitude": "for: deletion AUC by logit minus by norm above 0; against: below",
    "(f) swapped background": "for: accuracy on it minus no mask's above 0; against: below",
}

QUESTIONS = {
    "1 coherence marks objects (last map)": "AUC of the untrained agreement above 50, inner tokens",
    "1 and more than magnitude does": "that AUC minus the norm's above 0",
    "2 published sign turns to the ground": "AUC of −z below 50 and below that of λ = 0",
    "3 turned sign turns to the object": "AUC of −z above 50 and above that of λ = 0",
    "4a it is the pairwise term (published)": "AUC below that of the unary term alone",
    "4b it is the pairwise term (turned)": "AUC above that of the unary term alone",
    "5a published sign, centred: ground": "as 2",
    "5b turned sign, centred: object": "as 3",
    "7 pressure alone turns to the ground": "AUC of −z at a constant price below 50",
    "8 the pattern adds to it": "AUC at the published price below that at the constant one",
    "9a the object is typical": "AUC of the ranking *typical* above 50",
    "9b the object is dense": "AUC of the ranking *dense* above 50",
    "10a without the mean token pressure holds": "AUC of −z at a constant price above 50",
    "10b there the published sign drops the object": "AUC, centred price, below that of a constant one",
    "10c there the turned sign keeps it": "AUC, centred price turned, above that of a constant one",
}


def claims_table() -> Table:
    """`verdicts.claims_table` with the rule of each claim."""
    found = verdicts.claims_table()
    robust = len(verdicts.of("robust"))
    caption = f"{found.caption}, (c) and (f) over {robust}; for, against: by 95 % intervals; "
    caption += "– where a setting is not asked"
    return _beside(found, CLAIMS, heading="in a cell", caption=caption)


def sign_table(numbers: tuple[str, ...]) -> Table:
    """`verdicts.sign_table` with the rule of each question.

    Args:
        numbers: of the questions in criteria.md, such as "7" and "10".
    """
    found = verdicts.sign_table(numbers)
    caption = f"{found.caption}; no: the opposite of one part holds; by 95 % intervals"
    return _beside(found, QUESTIONS, heading="yes, if", caption=caption)


def _beside(found: Table, rules: dict[str, str], *, heading: str, caption: str) -> Table:
    return Table(
        header=[found.header[0], heading, *found.header[1:]],
        rows=[[row[0], rules[row[0]], *row[1:]] for row in found.rows],
        caption=caption,
    )
