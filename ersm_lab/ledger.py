"""The ledger of claims: what each paper says, what would count, and what the records say.

Every criterion was written and committed before the runs that it judges, but for those of SDNet 1,
ERSM (c, tokens), ERSM (g, redundancy) and, for its first pair, SDNet 4, which came with or after their
records. One rule was changed afterwards, what lets ERSM (d) and (e) be open:
book/errata.md says why, and what the old rule would say. The claims stand in `papers`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ersm_lab.papers import ersm, isvs, sdnet
from ersm_lab.papers.claim import Claim
from ersm_lab.views.tables import Table

CLAIMS: tuple[Claim, ...] = (*ersm.CLAIMS, *isvs.CLAIMS, *sdnet.CLAIMS)


def table(*keys: str, dataset: str = "cifar10", scale: str = "laptop") -> Table:
    """The findings of some claims, one line each, for the chapter that they belong to.

    Args:
        keys: of `CLAIMS`, such as "ERSM (d)".
        dataset, scale: which records; a claim about textured shapes knows its own data sets.

    Raises:
        ValueError: an unknown key.
    """
    known = {claim.key: claim for claim in CLAIMS}
    strange = [key for key in keys if key not in known]
    if strange:
        raise ValueError(f"no claim {strange[0]!r}: choose of {', '.join(known)}")
    rows = [
        [key, finding.outcome, finding.figure or "–"]
        for key in keys
        for finding in known[key].findings(dataset=dataset, scale=scale)
    ]
    return Table(header=["claim", "outcome", "what the records say"], rows=rows)


def page(claims_: Sequence[Claim] = CLAIMS, **where: str) -> str:
    """The ledger as a MyST page: every claim with its criterion, findings and verdict."""
    parts = ["# The ledger of claims", _PREFACE]
    rows = ["| claim | outcome |", "|---|---|"]
    found = [(claim, claim.findings(**where)) for claim in claims_]
    for claim, findings in found:
        outcomes = dict.fromkeys(f.outcome for f in findings)
        rows.append(f"| [{claim.key}](#{anchor(claim)}): {claim.text} | {', '.join(outcomes)} |")
    parts.append("\n".join(rows))
    for claim, findings in found:
        lines = [
            f"({anchor(claim)})=\n## {claim.key}: {claim.text}",
            f"From {{cite:t}}`{claim.paper}`.",
            f"**Criterion.** {claim.criterion}",
        ]
        for finding in findings:
            figure = f" {finding.figure}." if finding.figure else ""
            names = ", ".join(f"`{name}`" for name in finding.methods)
            source = f" Records: {names}." if names else ""
            lines.append(f"**{finding.outcome.capitalize()}.**{figure}{source}")
        parts += lines
    return "\n\n".join(parts) + "\n"


_PREFACE = """\
Each claim of the three papers, in our words, with a criterion that was written and committed before
the runs that it judges, unless it says otherwise; what was changed later stands in the
[errata](errata.md). This page is generated from the records when the book is built; a claim without a
record says *not yet run*. Above the tables by setting, everything is at laptop scale, on CIFAR-10 or,
where a criterion says so, on textured shapes, with networks trained from scratch in a few minutes: a
claim that is not reproduced here may hold in its authors' setting.

*Reproduced*, *partly* and *not reproduced* follow the criterion. *Open*: the interval decides nothing,
or there are fewer than three seeds. Intervals are of 95 %, paired over seeds and test images, and not
corrected for the number of claims. [All records](records.md) can be searched."""


def anchor(claim: Claim) -> str:
    """The name of a claim's section on the ledger's page."""
    return "claim-" + "-".join(re.findall("[a-z0-9]+", claim.key.lower()))
