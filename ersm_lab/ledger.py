"""The ledger of claims: what each paper says, what would count, and what the records say.

Every criterion was written and committed before the runs that it judges. Outcomes: *reproduced*,
*partly*, *not reproduced*; *open* where the interval decides nothing or seeds are missing; *not yet run*
where no record speaks of it; *untestable here* where this bench has no means to.
Differences are paired over seeds and test images, with 95 % intervals (`statistics.difference`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ersm_lab import claims, statistics
from ersm_lab.statistics import Difference

NOT_RUN = "not yet run"
_OUTCOMES = {"holds": "reproduced", "fails": "not reproduced", "open": "open"}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What records say of a claim: `outcome` (see the module), our `figure` in words and numbers, and
    the `methods` whose records it is drawn from."""

    outcome: str
    figure: str = ""
    methods: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim of a paper.

    Attributes:
        key: short name, such as "ERSM (c)".
        paper: key of the bibliography.
        text: what is claimed, in our words.
        criterion: what counts as what.
        judge: (dataset, scale) -> one finding for each setting in which it is judged; empty where no
            record speaks of it.
    """

    key: str
    paper: str
    text: str
    criterion: str
    judge: Callable[[str, str], list[Finding]] = lambda dataset, scale: []

    def findings(self, *, dataset: str = "cifar10", scale: str = "laptop") -> list[Finding]:
        """The findings, at least one."""
        return self.judge(dataset, scale) or [Finding(outcome=NOT_RUN)]


# --- how records become findings -------------------------------------------------------------------


def _preserved(*pairs: tuple[str, str]) -> Callable[[str, str], list[Finding]]:
    """Accuracy of the first of each pair against the second, by `claims.accuracy_is_preserved`."""

    def judge(dataset: str, scale: str) -> list[Finding]:
        found = []
        for method, base in pairs:
            rows = [statistics.of(m, dataset=dataset, scale=scale) for m in (method, base)]
            if all(rows):
                verdict = claims.accuracy_is_preserved(*rows)
                found.append(
                    Finding(
                        outcome=_OUTCOMES[verdict.outcome],
                        figure=f"{method} against {base}: {verdict.reason}",
                        methods=(method, base),
                    )
                )
        return found

    return judge


def _adapts(*methods: str) -> Callable[[str, str], list[Finding]]:
    def judge(dataset: str, scale: str) -> list[Finding]:
        found = []
        for method in methods:
            rows = statistics.of(method, dataset=dataset, scale=scale)
            if rows:
                verdict = claims.sparsity_adapts(rows)
                found.append(
                    Finding(
                        outcome=_OUTCOMES[verdict.outcome],
                        figure=f"{method}: {verdict.reason}",
                        methods=(method,),
                    )
                )
        return found

    return judge


def better(found: Difference, *, unit: str = "points") -> tuple[str, str]:
    """Outcome and figure of "better than": an interval above zero is *reproduced*; below
    zero, or around it but with less than one unit above, *not reproduced*; else *open*.

    Fewer than three seeds leave it open.
    """
    figure = (
        f"{found.mean:+.2f} {unit}, 95 % interval {found.low:+.2f} to {found.high:+.2f}, "
        f"{len(found.seeds)} seed{'s' if len(found.seeds) != 1 else ''}"
    )
    if len(found.seeds) < 3:
        return "open", figure
    if found.low > 0:
        return "reproduced", figure
    return ("not reproduced" if found.high < 1 else "open"), figure


_BETTER = (
    "Reproduced if the 95 % interval of the difference lies above zero; not "
    "reproduced if it lies below, "
    "or around zero with its upper end under one point; otherwise open"
)

# --- the claims ------------------------------------------------------------------------------------

CLAIMS: tuple[Claim, ...] = (
    Claim(
        key="ERSM (a)",
        paper="devynck2026ersm",
        text="Clean accuracy is preserved.",
        criterion=(
            "The 95 % interval of test accuracy against the dense network lies above -0.5 points: "
            "reproduced; below: not reproduced; across: open."
        ),
        judge=_preserved(
            ("ersm", "dense"), ("ablation-ersm", "ablation-dense"), ("gentle", "ablation-dense")
        ),
    ),
    Claim(
        key="ERSM (b)",
        paper="devynck2026ersm",
        text="Sparsity emerges without a budget and adapts to each input.",
        criterion=(
            "In every seed at most 70 % is kept, the kept share differs by at least 2 points "
            "between "
            "images (standard deviation), and another image's mask costs at least 1 point: "
            "reproduced. "
            "One of these missed in every seed: not reproduced. Otherwise open."
        ),
        judge=_adapts("ersm", "ablation-ersm", "gentle"),
    ),
    Claim(
        key="ERSM (c)",
        paper="devynck2026ersm",
        text="Robustness to structured occlusion improves.",
        criterion=(
            f"Accuracy, averaged over occluders of 4 to 20 pixels, random places and all four "
            "fills, "
            f"against the dense network of the same training (with Cutout: against dense with "
            "Cutout). "
            f"{_BETTER}."
        ),
    ),
    Claim(
        key="ERSM (d)",
        paper="devynck2026ersm",
        text="Masks are interpretable and isolate objects without pixel labels.",
        criterion=(
            "On textured shapes, over pixels of each image: the ROC AUC of the mask's logit "
            "against the "
            "object is above that of the centre prior and of Grad-CAM of the dense network (both "
            "intervals above zero), and the IoU of the kept mask is above that of keeping "
            "everything: "
            "reproduced. Above the centre prior only: partly. Otherwise not reproduced. "
            "Three seeds."
        ),
    ),
    Claim(
        key="ERSM (e)",
        paper="devynck2026ersm",
        text="In deletion tests the learned energy ranks better than magnitude.",
        criterion=(
            "Area under the token deletion curve, least important first. Within the masked "
            "network, "
            "logit against magnitude; and masked network by its logit against dense network by its "
            "magnitude. Both intervals above zero: reproduced; the first only: partly; "
            "otherwise not "
            "reproduced. The full energy is reported beside the logit."
        ),
    ),
    Claim(
        key="ERSM (f)",
        paper="devynck2026ersm",
        text="The network relies less on spurious background.",
        criterion=(
            "On textured shapes whose background agrees with the class in most training "
            "images: accuracy "
            f"where the background lies, against the dense network. {_BETTER}."
        ),
    ),
    Claim(
        key="ERSM (g)",
        paper="devynck2026ersm",
        text="Dense processing is redundant computation.",
        criterion=(
            "Counted: a network that meets (a) and (b) needs fewer multiply-accumulates "
            "behind its mask: "
            "reproduced as a count. Saved time: untestable here, since no kernel of the "
            "bench skips "
            "dropped tokens."
        ),
    ),
    Claim(
        key="ISVS 1",
        paper="zhou2024isvs",
        text="Training along the path makes a network more robust to natural corruptions.",
        criterion=(
            "Mean accuracy over all corruptions and severities, `isvs-iterative` and "
            "`isvs-fixed` each "
            f"against the vanilla network. {_BETTER}."
        ),
    ),
    Claim(
        key="ISVS 2",
        paper="zhou2024isvs",
        text="It does so better than smoothing by frequency.",
        criterion=f"The same, `isvs-fixed` against `low-pass` of equal retained energy. {_BETTER}.",
    ),
    Claim(
        key="ISVS 3",
        paper="zhou2024isvs",
        text="It makes a network more robust to low resolution.",
        criterion=f"Mean accuracy over 24, 16, 12 and 8 pixels, against vanilla. {_BETTER}.",
    ),
    Claim(
        key="ISVS 4",
        paper="zhou2024isvs",
        text="It makes a network more robust to adversarial noise.",
        criterion=(
            f"Accuracy under AutoAttack of 2/255 on the stated subset, against vanilla. {_BETTER}."
        ),
    ),
    Claim(
        key="SDNet 1",
        paper="dai2022sdnet",
        text="A sparse code in place of the first convolution keeps accuracy.",
        criterion="As ERSM (a), `sdnet` against the dense network of the same training.",
        judge=_preserved(("sdnet", "ablation-dense")),
    ),
    Claim(
        key="SDNet 2",
        paper="dai2022sdnet",
        text="A larger lambda at test time makes it robust to noise, without training for it.",
        criterion=(
            "Accuracy under Gaussian noise, mean of all severities: label-free lambda "
            "against the lambda "
            f"of training. {_BETTER}. The choice by test labels is shown as an oracle and "
            "judges nothing."
        ),
    ),
    Claim(
        key="SDNet 3",
        paper="dai2022sdnet",
        text="It is then more robust than the dense network.",
        criterion=(
            "The same noise, and the mean over all kinds of corruption: `sdnet` with "
            "label-free lambda "
            f"against the dense network. {_BETTER} for both; for noise only: partly."
        ),
    ),
)


def page(claims_: Sequence[Claim] = CLAIMS, **where: str) -> str:
    """The ledger as a MyST page: every claim with its criterion, findings and verdict."""
    parts = ["# The ledger of claims", _PREFACE]
    rows = ["| claim | outcome |", "|---|---|"]
    for claim in claims_:
        outcomes = dict.fromkeys(f.outcome for f in claim.findings(**where))
        rows.append(f"| [{claim.key}](#{_anchor(claim)}): {claim.text} | {', '.join(outcomes)} |")
    parts.append("\n".join(rows))
    for claim in claims_:
        lines = [
            f"({_anchor(claim)})=\n## {claim.key}: {claim.text}",
            f"From {{cite:t}}`{claim.paper}`.",
            f"**Criterion.** {claim.criterion}",
        ]
        for finding in claim.findings(**where):
            figure = f" {finding.figure}." if finding.figure else ""
            names = ", ".join(f"`{name}`" for name in finding.methods)
            source = f" Records: {names}." if names else ""
            lines.append(f"**{finding.outcome.capitalize()}.**{figure}{source}")
        parts += lines
    return "\n\n".join(parts) + "\n"


_PREFACE = """\
Each claim of the three papers, in our words, with a criterion that was written and committed before the
runs that it judges. This page is generated from the records when the book is built; a claim without a
record says *not yet run*. Everything is CIFAR-10 at laptop scale, with networks trained from scratch in
a few minutes: a claim that is not reproduced here may hold in its authors' setting.

*Reproduced*, *partly* and *not reproduced* follow the criterion. *Open*: the interval decides nothing,
or there are fewer than three seeds. Intervals are of 95 %, paired over seeds and test images, and not
corrected for the number of claims. The [status page](status.md) lists the records."""


def _anchor(claim: Claim) -> str:
    return "claim-" + "-".join(re.findall("[a-z0-9]+", claim.key.lower()))
