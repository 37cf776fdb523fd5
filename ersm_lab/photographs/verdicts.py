"""The verdicts of criteria.md, read off the records, and the tables of the chapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ersm_lab.photographs.sets import SETS
from ersm_lab.photographs.study import ASKED, BACKBONES, name_of
from ersm_lab.results import records
from ersm_lab.views.tables import Table

Cell = tuple[str, str]  # set, backbone
TUNED = ("released", "written", "open", "attention", "hard")
ALL = ("as released", "as written", *TUNED, "sparse")
RIVALS = ("norm", "centre", "class map")


def of(study: str, backbones: Sequence[str] = BACKBONES) -> dict[Cell, dict]:
    """Metrics of a study by cell; cells without a record are missing."""
    found = {}
    for backbone in backbones:
        for dataset in SETS:
            try:
                found[dataset, backbone] = records.read(name_of(study, dataset, backbone))[
                    "metrics"
                ]
            except records.RecordNotFound:
                continue
    return found


def shown(found: Mapping[str, float], *, sign: bool = True) -> str:
    """ "+6.0 (+4.8 to +7.1) ▲": a mean with its interval; a triangle where it excludes zero."""
    form = "{:+.1f}" if sign else "{:.1f}"
    low, mid, high = (
        form.format(found[part]).replace("-", "−") for part in ("low", "mean", "high")
    )
    mark = " ▲" if found["low"] > 0 else " ▼" if found["high"] < 0 else ""
    return f"{mid} ({low} to {high}){mark if sign else ''}"


# --- one cell, one setting: the words of a claim, and 1 for it, -1 against it, 0 open ----------------


def preserved(row: Mapping) -> tuple[str, int]:
    """(a)"""
    gap = row["accuracy minus no mask"]
    if gap["low"] > -1:
        return "preserved", 1
    return ("lost", -1) if gap["high"] < 0 and gap["mean"] < -1 else ("open", 0)


def adaptive(row: Mapping) -> tuple[str, int]:
    """(b)"""
    cost, most = row["cost of another's mask"], row["kept"]["most"]
    if most <= 0.7 and cost["mean"] >= 1 and cost["low"] > 0:
        return "sparse and adaptive", 1
    if most > 0.7:
        return "not sparse", -1
    return ("not adaptive", -1) if cost["high"] < 1 else ("open", 0)


def finds(row: Mapping) -> tuple[str, int]:
    """(d)"""
    gaps = [row["auc minus"][rival] for rival in RIVALS]
    if any(gap["high"] < 0 for gap in gaps):
        return "worse than a rival", -1
    return ("better", 1) if all(gap["low"] > 0 for gap in gaps) else ("open", 0)


def beyond_magnitude(row: Mapping) -> tuple[str, int]:
    """(e)"""
    return _sided(row["deletion logit minus"]["norm"])


def _sided(gap: Mapping) -> tuple[str, int]:
    if gap["low"] > 0:
        return "better", 1
    return ("worse", -1) if gap["high"] < 0 else ("open", 0)


def overall(signs: Sequence[int]) -> str:
    """Of all cells: reproduced, not reproduced, mixed or open."""
    if not signs:
        return "not yet run"
    if all(sign > 0 for sign in signs):
        return "reproduced"
    if any(sign < 0 for sign in signs):
        return "mixed" if any(sign > 0 for sign in signs) else "not reproduced"
    return "open"


CLAIMS: dict[str, tuple[str, Callable, tuple[str, ...]]] = {
    "(a) accuracy is preserved": ("final", preserved, ALL),
    "(b) sparse and adaptive": ("final", adaptive, (*TUNED, "sparse")),
    "(d) finds the object": ("final", finds, (*TUNED, "sparse")),
    "(e) beyond magnitude": ("final", beyond_magnitude, ALL),
}


def signs_of(claim: str, setting: str) -> list[int]:
    """Of every cell 1, -1 or 0; none where the claim is not asked of the setting."""
    study, judge, asked = CLAIMS[claim]
    if setting not in asked or (judge is beyond_magnitude and setting == "attention"):
        return []
    return [judge(metrics[setting])[1] for metrics in of(study).values() if setting in metrics]


def robust_signs(condition: str, setting: str) -> list[int]:
    """(c) and (f): of every cell that was run 1, -1 or 0."""
    rows = [metrics[condition].get(setting, {}) for metrics in of("robust").values()]
    return [_sided(row["minus no mask"])[1] for row in rows if "minus no mask" in row]


def counted(signs: Sequence[int]) -> str:
    """ "mixed: 2 for, 1 against, 3 open"."""
    if not signs:
        return "–"
    for_, against = sum(s > 0 for s in signs), sum(s < 0 for s in signs)
    parts = {"for": for_, "against": against, "open": len(signs) - for_ - against}
    return f"{overall(signs)}: " + ", ".join(f"{n} {word}" for word, n in parts.items() if n)


def claims_table() -> Table:
    """Claims in rows, settings in columns: the verdict over all cells, and how many."""
    settings = ("as released", "as written", "open", "attention", "hard", "sparse")
    rows = [[claim, *[counted(signs_of(claim, s)) for s in settings]] for claim in CLAIMS]
    for words, condition in {
        "(c) squares, random": "random squares",
        "(c) squares, on the object": "squares on the object",
        "(f) swapped background": "swapped ground",
    }.items():
        asked = [robust_signs(condition, s) if s in ASKED else [] for s in settings]
        rows.append([words, *[counted(signs) for signs in asked]])
    order = sorted(rows, key=lambda row: row[0])
    cells, all_of_them = len(of("final")), len(SETS) * len(BACKBONES)
    caption = f"Verdicts by criteria.md over the {cells} of {all_of_them} cells that are recorded"
    return Table(header=["claim", *settings], rows=order, caption=caption)


# --- which way the pairwise term pulls -------------------------------------------------------------


def sign_questions() -> dict[str, dict[Cell, int]]:
    """Questions 1 to 10 of criteria.md but 6: of every cell 1, -1 or 0."""
    answers: dict[str, dict[Cell, int]] = {}

    def say(question: str, cell: Cell, *gaps: Mapping) -> None:
        each = [_sided(gap)[1] for gap in gaps]
        verdict = 1 if all(e > 0 for e in each) else -1 if any(e < 0 for e in each) else 0
        answers.setdefault(question, {})[cell] = verdict

    for cell, metrics in of("coherence").items():
        inner = metrics["pretrained, last"]["inner tokens"]
        say("1 coherence marks objects (last map)", cell, _minus_half(inner["agreement"]))
        say("1 and more than magnitude does", cell, inner["agreement minus norm"])
    for cell, metrics in of("sign").items():
        for question, form, turn in (
            ("2 published sign turns to the ground", "agreement", -1),
            ("3 turned sign turns to the object", "disagreement", 1),
            ("5a published sign, centred: ground", "agreement, centred", -1),
            ("5b turned sign, centred: object", "disagreement, centred", 1),
        ):
            row = metrics[f"normalised/{form}/1"]
            gaps = [row["auc minus half"], row["auc minus lambda 0"]]
            say(question, cell, *[_turned(gap, turn) for gap in gaps])
        for question, form, turn in (
            ("4a it is the pairwise term (published)", "agreement", -1),
            ("4b it is the pairwise term (turned)", "disagreement", 1),
        ):
            gap = metrics[f"normalised/{form}/1"]["auc minus unary"]
            say(question, cell, _turned(gap, turn))
    for cell, metrics in of("closing").items():
        one = metrics["zero/constant/1"]
        say("7 pressure alone turns to the ground", cell, _turned(one["auc minus half"], -1))
        pattern = metrics["zero/agreement/1"]["auc minus constant"]
        say("8 the pattern adds to it", cell, _turned(pattern, -1))
        say("9a the object is typical", cell, _minus_half(metrics["typical"]))
        say("9b the object is dense", cell, _minus_half(metrics["dense"]))
        held = metrics["mean/constant/1"]["auc minus half"]
        say("10a without the mean token pressure holds", cell, held)
        for question, form, turn in (
            ("10b there the published sign drops the object", "agreement, centred", -1),
            ("10c there the turned sign keeps it", "disagreement, centred", 1),
        ):
            gap = metrics[f"mean/{form}/1"]["auc minus constant"]
            say(question, cell, _turned(gap, turn))
    return answers


def _minus_half(found: Mapping) -> dict:
    return {part: found[part] - 50 for part in ("mean", "low", "high")}


def _turned(gap: Mapping, sign: int) -> dict:
    if sign > 0:
        return dict(gap)
    return {"mean": -gap["mean"], "low": -gap["high"], "high": -gap["low"]}


def sign_table(numbers: Sequence[str]) -> Table:
    """Questions in rows; in how many cells yes, no, open.

    Args:
        numbers: of the questions in criteria.md, such as "7" and "10".
    """
    rows = []
    for question, cells in sign_questions().items():
        if question.split()[0].rstrip("abc") not in numbers:
            continue
        values = list(cells.values())
        yes, no = sum(v > 0 for v in values), sum(v < 0 for v in values)
        rows.append([question, str(yes), str(no), str(len(values) - yes - no)])
    return Table(
        header=["question", "yes", "no", "open"],
        rows=rows,
        caption="Questions of criteria.md, in how many cells (set and backbone)",
    )
