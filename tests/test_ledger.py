"""The ledger: outcomes follow the criteria, and the page says all of it."""

import re
from pathlib import Path

import pytest

from ersm_lab import claims, ledger, runs
from ersm_lab.ledger import CLAIMS, Claim, Finding, better
from ersm_lab.statistics import Difference

ROOT = Path(runs.__file__).parent.parent


def gap(low, high, seeds=3):
    middle = (low + high) / 2
    each = tuple(range(seeds))
    return Difference(mean=middle, low=low, high=high, seeds=each, by_seed=(middle,) * seeds)


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (0.1, 2.0, "reproduced"),
        (-0.5, 0.9, "not reproduced"),
        (-3.0, -1.0, "not reproduced"),
        (-0.5, 1.5, "open"),
    ],
)
def test_better_means_an_interval_above_zero(low, high, outcome):
    assert better(gap(low, high))[0] == outcome


def test_two_seeds_leave_it_open():
    outcome, figure = better(gap(1.0, 2.0, seeds=2))
    assert outcome == "open" and "2 seeds" in figure


def test_a_claim_without_records_is_not_yet_run(tmp_path, monkeypatch):
    monkeypatch.setenv("ERSM_HOME", str(tmp_path))
    for claim in CLAIMS:
        assert [f.outcome for f in claim.findings()] == [ledger.NOT_RUN]


def test_accuracy_and_sparsity_are_judged_by_their_criteria(monkeypatch):
    verdicts = {
        "accuracy_is_preserved": claims.Verdict(claim="a", outcome="fails", reason="-1 point"),
        "sparsity_adapts": claims.Verdict(claim="b", outcome="holds", reason="kept 50 %"),
    }
    for name, verdict in verdicts.items():
        monkeypatch.setattr(claims, name, lambda *rows, verdict=verdict: verdict)
    monkeypatch.setattr(ledger.statistics, "of", lambda method, **where: [{"method": method}])
    accuracy, sparsity = (
        next(c for c in CLAIMS if c.key == f"ERSM ({part})").findings() for part in "ab"
    )
    assert accuracy[0] == Finding(
        outcome="not reproduced", figure="ersm against dense: -1 point", methods=("ersm", "dense")
    )
    assert {f.outcome for f in sparsity} == {"reproduced"}


def test_criteria_that_are_written_twice_agree():
    c = claims.CRITERIA
    text = {claim.key: claim.criterion for claim in CLAIMS}
    assert f"above -{c.margin} points" in text["ERSM (a)"]
    assert f"at most {100 * c.kept:.0f} % is kept" in text["ERSM (b)"]
    assert f"at least {100 * c.between_images:.0f} points between" in text["ERSM (b)"]
    assert f"at least {c.other_image:.0f} point" in text["ERSM (b)"]


def test_the_page_has_every_claim_its_criterion_and_its_finding():
    found = [Finding(outcome="partly", figure="+1.0 points", methods=("a", "b"))]
    claim = Claim(
        key="X (1)", paper="k", text="It works.", criterion="C.", judge=lambda d, s: found
    )
    text = ledger.page([claim])
    assert "| [X (1)](#claim-x-1): It works. | partly |" in text
    assert "(claim-x-1)=\n## X (1): It works." in text
    assert "**Criterion.** C." in text
    assert "**Partly.** +1.0 points. Records: `a`, `b`." in text


def test_every_claim_cites_a_paper_of_the_bibliography():
    known = set(re.findall(r"@\w+\{([^,]+),", (ROOT / "book/references.bib").read_text("utf-8")))
    assert {claim.paper for claim in CLAIMS} <= known
    assert len({claim.key for claim in CLAIMS}) == len(CLAIMS)
