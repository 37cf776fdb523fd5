"""The ledger by setting: every claim has words, and a cell one verdict."""

import pytest

from ersm_lab import ledger_settings
from ersm_lab.ledger import CLAIMS
from ersm_lab.ledger_settings import SETTINGS, WORDS, one
from ersm_lab.papers.claim import Claim, Finding
from ersm_lab.papers.questions import some
from ersm_lab.results import statistics
from ersm_lab.results.claims import better
from ersm_lab.views.tables import NOT_RUN


@pytest.mark.parametrize(
    ("outcomes", "verdict"),
    [
        (["open", "open"], "open"),
        (["reproduced", "not reproduced"], "partly"),
        (["partly", "not reproduced", "open"], "partly"),
        (["reproduced", "open"], "open"),
        (["not reproduced", "open"], "open"),
        ([NOT_RUN], NOT_RUN),
    ],
)
def test_several_findings_have_one_verdict(outcomes, verdict):
    assert one(outcomes) == verdict


def test_every_claim_has_words_and_nothing_else_does():
    assert set(WORDS) == {claim.key for claim in CLAIMS}


def test_without_records_nothing_is_claimed(tmp_path, monkeypatch):
    monkeypatch.setenv("ERSM_HOME", str(tmp_path))
    for claim in CLAIMS:
        found = {ledger_settings.verdict(claim, setting) for setting in SETTINGS}
        assert found <= {NOT_RUN, "–", ledger_settings.UNTESTABLE}
        assert NOT_RUN in found and "Wanted" in ledger_settings.said(claim, SETTINGS[2])


def test_a_cell_says_verdict_meaning_and_chapter():
    claim = Claim(
        key="ISVS 1",
        paper="k",
        text="",
        criterion="",
        judge=lambda dataset, scale: [Finding(outcome="reproduced")] if scale == "laptop" else [],
    )
    assert ledger_settings.said(claim, "end to end, small") == (
        f"reproduced: {WORDS['ISVS 1'].yes} Chapter 10."
    )
    assert ledger_settings.said(claim, "end to end, full").startswith("not yet run: Wanted")
    assert ledger_settings.said(claim, "photographs") == "–"
    with pytest.raises(ValueError, match="no setting 'x': choose of"):
        ledger_settings.verdict(claim, "x")


def test_seeds_alone_have_the_t_interval():
    found = statistics.over_seeds([1.0, 2.0, 3.0], [0, 1, 2])
    assert (found.low, found.high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
    assert better(statistics.over_seeds([5.0], [0]))[0] == "open"


def test_the_published_protocol_is_asked_for_tokens_dropped_at_random():
    def group(aucs):
        return [
            {"seed": seed, "metrics": {"deletion": {"random": {"auc": auc}}}}
            for seed, auc in enumerate(aucs)
        ]

    plain = group([0.80, 0.81, 0.80])
    judge = ledger_settings._random_order
    assert judge(group([0.76, 0.78, 0.76]), plain) == "not reproduced"
    assert judge(group([0.84, 0.86, 0.84]), plain) == "reproduced"
    assert judge(group([0.84]), [plain[2]]) == NOT_RUN


def test_a_pair_without_records_leaves_the_others_standing_and_the_claim_open():
    found = [Finding(outcome="reproduced"), Finding(outcome=NOT_RUN, figure="a against b")]
    assert some(found) == found and one([f.outcome for f in found]) == "open"
    assert some(found[1:]) == []
