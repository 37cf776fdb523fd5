"""The ledger by setting: one verdict, one sentence and one chapter for each claim and setting.

    published protocol   the layer on the last map of a frozen network, before pooling and a linear head,
                         on CIFAR-10; at lambda = 0.1, where the mask is sparse
    photographs          the same on ImageNet networks and photographs, as `photographs/criteria.md` says
    end to end, small    inside a network trained from scratch at laptop scale, all findings of `ledger`
    end to end, full     the same at full scale

Where a setting has several findings the cell says what they have in common (`one`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from ersm_lab.ledger import CLAIMS
from ersm_lab.papers.claim import Claim
from ersm_lab.photographs import verdicts
from ersm_lab.results import claims, statistics
from ersm_lab.results.claims import OUTCOMES, better
from ersm_lab.views.tables import NOT_RUN, Table

SETTINGS = ("published protocol, CIFAR-10", "photographs", "end to end, small", "end to end, full")
UNTESTABLE = "untestable here"
PUBLISHED, NO_MASK = "published-lambda-1e-1", "published-no-mask"
PHOTOGRAPHS = "hard"  # the setting of `photographs.settings` that the column judges


@dataclass(frozen=True, kw_only=True)
class Words:
    """What verdicts on a claim mean, a sentence each, and where to read on.

    Attributes:
        yes, no: of *reproduced* and *not reproduced*.
        settles: what would decide an open one.
        chapters: the chapter of each setting, by its number; "" where none speaks of it.
    """

    yes: str
    no: str
    settles: str
    chapters: tuple[str, str, str, str] = ("", "", "", "")

    def of(self, verdict: str) -> str:
        told = {"reproduced": self.yes, "not reproduced": self.no, UNTESTABLE: ""}
        mixed = verdict in ("partly", "mixed")
        wanted = _RUN if verdict == NOT_RUN and self.settles == _SEEDS else self.settles
        return told.get(verdict, "It depends on the case." if mixed else f"Wanted: {wanted}.")


_SEEDS, _RUN = "more seeds", "its runs"
WORDS: dict[str, Words] = {
    "ERSM (a)": Words(
        yes="The mask costs less than half a point.",
        no="The mask costs more than half a point.",
        settles=_SEEDS,
        chapters=("6", "7", "5", ""),
    ),
    "ERSM (b)": Words(
        yes="Tokens go, others for each image.",
        no="The mask stays open, or is the same for all images.",
        settles=_SEEDS,
        chapters=("6", "7", "5", ""),
    ),
    "ERSM (c)": Words(
        yes="Behind squares the mask helps.",
        no="Behind squares the mask does not help.",
        settles="all test images and more seeds",
        chapters=("", "7", "10", ""),
    ),
    "ERSM (c, tokens)": Words(
        yes="It loses less when tokens are dropped at random; so does a random mask.",
        no="It does not lose less when tokens are dropped at random.",
        settles=_SEEDS,
        chapters=("6", "", "11", ""),
    ),
    "ERSM (d)": Words(
        yes="The mask marks the object better than its rivals.",
        no="A rival marks the object as well, or better.",
        settles=_SEEDS,
        chapters=("", "7", "12", ""),
    ),
    "ERSM (e)": Words(
        yes="The energy ranks better than the norm.",
        no="The norm of a token ranks as well, or better.",
        settles=_SEEDS,
        chapters=("6", "7", "11", ""),
    ),
    "ERSM (f)": Words(
        yes="It leans less on the background.",
        no="It leans on the background as much, or more.",
        settles=_SEEDS,
        chapters=("", "7", "12", ""),
    ),
    "ERSM (g, redundancy)": Words(
        yes="Half of the weights can go.",
        no="Half of the weights cannot go.",
        settles=_SEEDS,
        chapters=("", "", "14", ""),
    ),
    "ERSM (g)": Words(
        yes="The mask saves counted operations at equal accuracy.",
        no="What it saves in the count it pays in accuracy, or it saves nothing.",
        settles=_SEEDS,
        chapters=("", "", "14", ""),
    ),
    "ERSM (g, milliseconds)": Words(
        yes="Skipped tokens save time at equal accuracy.",
        no="A smaller dense network is as fast, and as good.",
        settles="records of networks that skip dropped tokens",
        chapters=("", "", "13", ""),
    ),
    "ISVS 1": Words(
        yes="It is more robust to corruption than vanilla.",
        no="It is not more robust to corruption than vanilla.",
        settles=_SEEDS,
        chapters=("", "", "10", ""),
    ),
    "ISVS 2": Words(
        yes="It beats a low-pass of the same stages.",
        no="A low-pass does as well, or better.",
        settles="`low-pass-iterative`, three seeds",
        chapters=("", "", "8", ""),
    ),
    "ISVS 3": Words(
        yes="Low resolution hurts it less.",
        no="Low resolution hurts it as much.",
        settles=_SEEDS,
        chapters=("", "", "10", ""),
    ),
    "ISVS 4": Words(
        yes="A weak attack leaves it a little more.",
        no="An attack leaves it no more.",
        settles="more images and 4/255",
        chapters=("", "", "10", ""),
    ),
    "ISVS 5": Words(
        yes="Texture stays where a low-pass takes it.",
        no="Texture goes as it does in a low-pass.",
        settles="the retained gradient inside textures, over test images, against a low-pass",
        chapters=("", "", "8", ""),
    ),
    "ISVS 6": Words(
        yes="Time grows as the number of pixels.",
        no="Time grows faster than the number of pixels.",
        settles="milliseconds an image at 32 and 224 pixels, in a record",
        chapters=("", "", "8", ""),
    ),
    "SDNet 1": Words(
        yes="A code costs less than half a point.",
        no="A code costs more than half a point.",
        settles=_SEEDS,
        chapters=("", "", "9", ""),
    ),
    "SDNet 2": Words(
        yes="A larger λ is chosen under noise, and helps.",
        no="The λ chosen is not larger, or does not help.",
        settles="the suite `lambda-choice`, with a code of pixels",
        chapters=("", "", "9", ""),
    ),
    "SDNet 3": Words(
        yes="With it the code is ahead of the dense network.",
        no="With it the code is not ahead of the dense network.",
        settles="the suite `lambda-choice`, with a code of pixels",
        chapters=("", "", "9", ""),
    ),
    "SDNet 4": Words(
        yes="An attack leaves it more than the dense network.",
        no="An attack leaves it no more than the dense network.",
        settles="more images, and a code of pixels",
        chapters=("", "", "10", ""),
    ),
    "SDNet 5": Words(
        yes="Its first layer can be read better than a convolution's.",
        no="Its first layer reads like any other.",
        settles="a blind comparison with the filters of the dense network, its measure fixed before",
        chapters=("", "", "9", ""),
    ),
}


def one(outcomes: Sequence[str]) -> str:
    """The verdict of several findings: theirs if they agree; partly if some are reproduced and others
    not; else open."""
    kinds = set(outcomes)
    if len(kinds) == 1:
        return outcomes[0]
    return "partly" if kinds & {"reproduced", "partly"} and "not reproduced" in kinds else "open"


def verdict(claim: Claim, setting: str) -> str:
    """The outcome of a claim in one of `SETTINGS`, as in `ledger`, or "mixed" over photographs.

    Raises:
        ValueError: an unknown setting.
    """
    if setting not in SETTINGS:
        raise ValueError(f"no setting {setting!r}: choose of {', '.join(SETTINGS)}")
    if setting.startswith("end to end"):
        scale = "laptop" if setting.endswith("small") else "full"
        return one([finding.outcome for finding in claim.findings(scale=scale)])
    if not claim.key.startswith("ERSM"):
        return "–"
    judges = _PUBLISHED if setting == SETTINGS[0] else _PHOTOGRAPHS
    return judges[claim.key]() if claim.key in judges else UNTESTABLE


def _published(judge: Callable) -> Callable[[], str]:
    def found() -> str:
        masked, plain = (
            statistics.of(method, dataset="cifar10", scale="laptop")
            for method in (PUBLISHED, NO_MASK)
        )
        return judge(masked, plain) if masked and plain else NOT_RUN

    return found


def _ranks(masked: Sequence[dict], plain: Sequence[dict]) -> str:
    """(e) over seeds alone, as its curves were recorded without images."""
    curves = [record["metrics"]["deletion"] for record in masked]
    gaps = [100 * (each["logit"]["auc"] - each["norm"]["auc"]) for each in curves]  # points
    return better(statistics.over_seeds(gaps, [record["seed"] for record in masked]))[0]


def _random_order(masked: Sequence[dict], plain: Sequence[dict]) -> str:
    """(c, tokens) over seeds alone: area under the curve in random order, against no mask."""
    own, other = (
        {r["seed"]: 100 * r["metrics"]["deletion"]["random"]["auc"] for r in group}  # points
        for group in (masked, plain)
    )
    seeds = sorted(own.keys() & other.keys())
    if not seeds:
        return NOT_RUN
    return better(statistics.over_seeds([own[s] - other[s] for s in seeds], seeds))[0]


def _photographs(signs: Callable[[], list[int]]) -> Callable[[], str]:
    return lambda: verdicts.overall(signs())


_PUBLISHED: dict[str, Callable[[], str]] = {
    "ERSM (a)": _published(lambda m, p: OUTCOMES[claims.accuracy_is_preserved(m, p).outcome]),
    "ERSM (b)": _published(lambda m, p: OUTCOMES[claims.sparsity_adapts(m).outcome]),
    "ERSM (c)": lambda: NOT_RUN,
    "ERSM (c, tokens)": _published(_random_order),
    "ERSM (e)": _published(_ranks),
}
_PHOTOGRAPHS: dict[str, Callable[[], str]] = {
    key: _photographs(partial(verdicts.signs_of, name, PHOTOGRAPHS))
    for key, name in {
        "ERSM (a)": "(a) accuracy is preserved",
        "ERSM (b)": "(b) sparse and adaptive",
        "ERSM (d)": "(d) finds the object",
        "ERSM (e)": "(e) beyond magnitude",
    }.items()
} | {
    key: _photographs(partial(verdicts.robust_signs, name, PHOTOGRAPHS))
    for key, name in {"ERSM (c)": "random squares", "ERSM (f)": "swapped ground"}.items()
}


def table(paper: str) -> Table:
    """Claims of a paper in rows, settings in columns: the verdict, and what it means.

    Args:
        paper: how its claims' keys begin: "ERSM", "ISVS" or "SDNet".
    """
    rows = []
    for claim in (c for c in CLAIMS if c.key.startswith(paper)):
        cells = [said(claim, setting) for setting in SETTINGS]
        rows.append([claim.key, *cells])
    return Table(
        header=["claim", *SETTINGS], rows=rows, caption=f"The claims of {paper} by setting"
    )


def said(claim: Claim, setting: str) -> str:
    """A cell's words: its verdict, a sentence, and the chapter."""
    found, words = verdict(claim, setting), WORDS[claim.key]
    chapter = words.chapters[SETTINGS.index(setting)]
    settled = found in ("–", UNTESTABLE)
    sentence = "" if settled else f": {words.of(found)}"
    return f"{found}{sentence}{f' Chapter {chapter}.' if chapter and not settled else ''}"


def page() -> str:
    """The tables of all three papers as Markdown, for the end of the ledger's page."""
    parts = ["## By setting", _PREFACE]
    for paper in ("ERSM", "ISVS", "SDNet"):
        found = table(paper)
        rows = [found.header, ["---"] * len(found.header), *found.rows]
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
    return "\n\n".join(parts) + "\n"


_PREFACE = """\
One verdict a cell. *Partly*: the settings of a cell disagree. *Mixed*: of the sets of photographs some
speak for the claim and some against it. *Not yet run* and *open* name what would settle them. The
published protocol is judged at lambda = 0.1, where its mask is sparse; photographs with a hard mask."""
