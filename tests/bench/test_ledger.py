"""The ledger: outcomes follow the criteria, and the page says all of it."""

import re
from pathlib import Path

import pytest
import torch

from ersm_lab import ledger, plan
from ersm_lab.ledger import CLAIMS
from ersm_lab.papers.claim import Claim, Finding
from ersm_lab.results import answer_bits, claims, statistics
from ersm_lab.results.claims import better
from ersm_lab.results.statistics import Difference
from ersm_lab.suites import lambda_suite
from ersm_lab.views.tables import NOT_RUN

ROOT = Path(__file__).resolve().parents[2]


def gap(low, high, seeds=3):
    middle = (low + high) / 2
    each = tuple(range(seeds))
    return Difference(
        mean=middle, low=low, high=high, seeds=each, by_seed=(middle,) * seeds, p_value=0.5
    )


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
        assert [f.outcome for f in claim.findings()] == [NOT_RUN]


def test_accuracy_and_sparsity_are_judged_by_their_criteria(monkeypatch):
    verdicts = {
        "accuracy_is_preserved": claims.Verdict(claim="a", outcome="fails", reason="-1 point"),
        "sparsity_adapts": claims.Verdict(claim="b", outcome="holds", reason="kept 50 %"),
    }
    for name, verdict in verdicts.items():
        monkeypatch.setattr(claims, name, lambda *rows, verdict=verdict: verdict)
    monkeypatch.setattr(statistics, "of", lambda method, **where: [{"method": method}])
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


def judged(right, seed, names):
    """What the ledger reads of a judgement: bools (conditions, N)."""
    right = torch.as_tensor(right)
    return {
        "name": f"r{seed}",
        "seed": seed,
        "answers": answer_bits.pack(right.flatten()),
        "config": {"conditions": names},
        "metrics": {"images": right.shape[1]},
    }


def home(monkeypatch, found):
    monkeypatch.setattr(statistics, "of", lambda method, **where: found.get(method, []))


def occlusion(share, seed, count=400):
    """A network that is right on this share of the images behind squares, and always when clean."""
    behind = torch.arange(count) < share * count
    names = ["clean", "random.black.4", "random.noise.8", "centre.black.4"]
    return judged(torch.stack([behind | True, behind, behind, ~behind]), seed, names)


def test_a_claim_is_judged_by_the_conditions_of_its_criterion(monkeypatch):
    rows = {"ablation-ersm": 0.8, "ablation-dense": 0.7, "ersm-cutout": 0.6, "cutout": 0.7}
    found = {f"{m}.occlusion": [occlusion(x, s) for s in range(3)] for m, x in rows.items()}
    home(monkeypatch, found)
    claim = next(c for c in CLAIMS if c.key == "ERSM (c)")
    outcomes = [f.outcome for f in claim.findings()]  # that of "gentle" lacks its records
    assert outcomes == ["reproduced", NOT_RUN, "not reproduced"]
    assert "+10.00 points" in claim.findings()[0].figure  # the centre's would be -10
    assert claim.findings()[0].methods == ("ablation-ersm.occlusion", "ablation-dense.occlusion")
    found["ablation-ersm.occlusion"] = found["ablation-ersm.occlusion"][:2]
    assert claim.findings()[0].outcome == "open"


@pytest.mark.parametrize(
    ("ersm", "dense", "outcome"),
    [
        ((0.9, 0.5), 0.6, "reproduced"),  # (logit, magnitude), magnitude of the dense network
        ((0.9, 0.5), 0.95, "partly"),
        ((0.5, 0.9), 0.4, "not reproduced"),
        ((0.7, 0.7), 0.4, "not reproduced"),
    ],
)
def test_the_energy_must_rank_better_in_its_network_and_against_the_dense_one(
    monkeypatch, ersm, dense, outcome
):
    def deletion(shares, seed):
        right = [torch.arange(300) < share * 300 for share in shares for _ in range(2)]
        kinds = ("logit", "magnitude", "energy")
        names = [f"{kind}.{part}" for kind in kinds for part in ("25", "50")]
        return judged(torch.stack(right), seed, names)

    found = {
        "ablation-ersm.deletion": [deletion((*ersm, 0.2), s) for s in range(3)],
        "ablation-dense.deletion": [deletion((0, dense, 0), s) for s in range(3)],
    }
    home(monkeypatch, found)
    (finding,) = next(c for c in CLAIMS if c.key == "ERSM (e)").findings()
    assert finding.outcome == outcome
    assert "Beside it, energy against logit" in finding.figure


def test_objects_are_compared_image_by_image_and_undefined_ones_left_out(monkeypatch):
    def objects(seed, logit, centre, cam):
        lists = {"logit": logit, "centre": centre, "grad_cam": cam}
        by_image = {name: {"auc": [value] * 50 + [None]} for name, value in lists.items()}
        by_image |= {"mask": {"iou": [0.4] * 51}, "everything": {"iou": [0.3] * 51}}
        return {"name": "r", "seed": seed, "metrics": {"by_image": by_image}}

    home(
        monkeypatch,
        {
            "ablation-ersm.objects": [objects(s, 0.8, 0.7, 0.1) for s in range(3)],
            "ablation-dense.objects": [objects(s, 0.0, 0.7, 0.9) for s in range(3)],
        },
    )
    (finding,) = next(c for c in CLAIMS if c.key == "ERSM (d)").findings()
    assert finding.outcome == "partly"
    for part in ("+10.00 points", "-10.00 points", "against that of keeping everything: +10.00"):
        assert part in finding.figure


def test_redundant_computation_needs_accuracy_and_sparsity(monkeypatch):
    rows = [{"metrics": {"mask": {"kept_fraction": 0.5}}}]
    monkeypatch.setattr(statistics, "of", lambda method, **where: rows)
    says = {"a": "holds", "b": "holds"}
    for name, key in (("accuracy_is_preserved", "a"), ("sparsity_adapts", "b")):
        monkeypatch.setattr(
            claims,
            name,
            lambda *rows, key=key: claims.Verdict(claim=key, outcome=says[key], reason=""),
        )
    claim = next(c for c in CLAIMS if c.key == "ERSM (g)")
    assert {f.outcome for f in claim.findings()} == {"reproduced"}
    says["a"] = "open"
    assert {f.outcome for f in claim.findings()} == {"open"}
    says["b"] = "fails"
    assert {f.outcome for f in claim.findings()} == {"not reproduced"}
    assert "50 % of the tokens reach" in claim.findings()[0].figure


def test_what_a_claim_asks_for_is_planned_and_every_condition_is_made(monkeypatch):
    wanted = set()

    def of(method, *, dataset, scale):
        wanted.add(f"{scale}/{dataset}/{method}")
        return []

    monkeypatch.setattr(statistics, "of", of)
    for claim in CLAIMS:
        assert [f.outcome for f in claim.findings()] == [NOT_RUN]
    planned = {job.name.rpartition("/")[0] for job in plan.wanted("laptop", dataset="cifar10")}
    assert len(wanted) > 20 and wanted <= planned
    sparse = lambda_suite
    names = set(sparse.conditions(sparse.SUITES["laptop"]))
    for group in sparse.averages(sparse.SUITES["laptop"]).values():
        assert set(group) <= names


def test_a_chapter_shows_the_findings_of_its_claims(monkeypatch):
    found = {
        f"{m}.occlusion": [occlusion(0.8, s) for s in range(3)] for m in ("ersm-cutout", "cutout")
    }
    home(monkeypatch, found)
    table = ledger.table("ERSM (c)", "ERSM (f)")
    assert [row[:2] for row in table.rows] == [
        ["ERSM (c)", NOT_RUN],
        ["ERSM (c)", NOT_RUN],
        ["ERSM (c)", "not reproduced"],
        ["ERSM (f)", NOT_RUN],
    ]
    with pytest.raises(ValueError, match=r"no claim 'ERSM \(z\)': choose of ERSM \(a\)"):
        ledger.table("ERSM (z)")
