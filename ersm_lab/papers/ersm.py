"""The claims of ERSM, the paper that this book is about, and how its masks are judged."""

from __future__ import annotations

from functools import partial

import numpy as np

from ersm_lab.milliseconds import verdicts as milliseconds
from ersm_lab.papers.claim import Claim, Finding
from ersm_lab.papers.questions import (
    BETTER,
    Asked,
    Judge,
    Question,
    against,
    answered,
    asked,
    preserved,
)
from ersm_lab.results import claims, records, statistics
from ersm_lab.results.claims import OUTCOMES, better


def _adapts(*methods: str) -> Judge:
    def judge(dataset: str, scale: str) -> list[Finding]:
        found = []
        for method in methods:
            rows = statistics.of(method, dataset=dataset, scale=scale)
            if rows:
                verdict = claims.sparsity_adapts(rows)
                found.append(
                    Finding(
                        outcome=OUTCOMES[verdict.outcome],
                        figure=f"{method}: {verdict.reason}",
                        methods=(method,),
                    )
                )
        return found

    return judge


def _ranks_better(method: str) -> tuple[Question, ...]:
    """Claim (e): area under the token deletion curve, by the logit and by the magnitude."""

    def ranked(network: str, ranking: str) -> Asked:
        return Asked(
            method=network, suite="deletion", conditions=lambda c: c.startswith(f"{ranking}.")
        )

    own, dense = ranked(method, "magnitude"), ranked("ablation-dense", "magnitude")
    logit = ranked(method, "logit")
    return (
        Question(words=f"{method}, logit against magnitude", first=logit, second=own),
        Question(
            words=f"{method} by its logit against ablation-dense by its magnitude",
            first=logit,
            second=dense,
        ),
        # reported, and below taken out of the verdict
        Question(words="energy against logit", first=ranked(method, "energy"), second=logit),
    )


def _ranking(dataset: str, scale: str) -> list[Finding]:
    found = []
    for method in ("ablation-ersm", "gentle"):
        *judged, reported = _ranks_better(method)
        findings = asked(judged)(dataset, scale)
        beside = answered(reported, dataset, scale)
        found += [
            Finding(
                outcome=f.outcome,
                figure=f"{f.figure}. Beside it, {beside[1]}" if beside else f.figure,
                methods=f.methods,
            )
            for f in findings
        ]
    return found


def _isolates(method: str) -> tuple[Question, ...]:
    """Claim (d): the mask against objects whose place is known."""
    of = partial(Asked, suite="objects", dataset="shapes")
    logit = of(method=method, listed="logit.auc")
    return (
        Question(
            words=f"{method}, AUC of the logit against that of the centre prior",
            first=logit,
            second=of(method=method, listed="centre.auc"),
        ),
        Question(
            words="against Grad-CAM of ablation-dense",
            first=logit,
            second=of(method="ablation-dense", listed="grad_cam.auc"),
        ),
        Question(
            words="IoU of the kept mask against that of keeping everything",
            first=of(method=method, listed="mask.iou"),
            second=of(method=method, listed="everything.iou"),
        ),
    )


def _saves_counted(*pairs: tuple[str, str]) -> Judge:
    """Claim (g): only a network that meets (a) and (b) has redundant tokens to count."""

    def judge(dataset: str, scale: str) -> list[Finding]:
        found = []
        for method, base in pairs:
            both = preserved((method, base))(dataset, scale) + _adapts(method)(dataset, scale)
            if len(both) < 2:
                continue
            outcomes = [finding.outcome for finding in both]
            worst = next(o for o in ("not reproduced", "open", "reproduced") if o in outcomes)
            rows = statistics.of(method, dataset=dataset, scale=scale)
            kept = np.mean([records.flatten(r["metrics"])["mask.kept_fraction"] for r in rows])
            figure = (
                f"{method}: (a) is {outcomes[0]}, (b) is {outcomes[1]}; {100 * kept:.0f} % of the "
                "tokens reach the layers behind the mask"
            )
            found.append(Finding(outcome=worst, figure=figure, methods=(method, base)))
        return found

    return judge


def _saves_time(dataset: str, scale: str) -> list[Finding]:
    """Networks that skip dropped tokens, by their clock (`milliseconds`)."""
    study = milliseconds.read(scale=scale) if dataset == "cifar10" else None
    if study is None:
        return []
    method = milliseconds.half_kept(study)
    base = study.rival(method)
    if base is None:
        return []
    outcome, figure = better(study.gap(method, base))
    fast = f"{np.mean(list(study.times(method).values())):.2f} times as fast as four dense blocks"
    return [
        Finding(
            outcome=outcome,
            figure=f"{method}, {fast}, against {base}, which is no slower: {figure}",
            methods=(method, base),
        )
    ]


CLAIMS: tuple[Claim, ...] = (
    Claim(
        key="ERSM (a)",
        paper="devynck2026ersm",
        text="Clean accuracy is preserved.",
        criterion=(
            "The 95 % interval of test accuracy against the dense network lies above -0.5 points: "
            "reproduced; below: not reproduced; across: open."
        ),
        judge=preserved(
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
            f"{BETTER}."
        ),
        judge=asked(
            *(
                against(method, base, "occlusion", lambda c: c.startswith("random."))
                for method, base in (
                    ("ablation-ersm", "ablation-dense"),
                    ("gentle", "ablation-dense"),
                    ("ersm-cutout", "cutout"),
                )
            )
        ),
    ),
    Claim(
        key="ERSM (c, tokens)",
        paper="devynck2026ersm",
        text="Robustness to structured occlusion improves, as deletion of tokens.",
        criterion=(
            "What the released code calls robustness: accuracy while tokens of the map behind the mask "
            "are deleted, here in random order, mean over the shares, against the dense network. "
            f"{BETTER}. "
            "Written when the records were there. A gain is no merit of the energy while `random-half`, "
            "which has none, gains more."
        ),
        judge=asked(
            *(
                against(m, "ablation-dense", "deletion", lambda c: c.startswith("random."))
                for m in ("ablation-ersm", "gentle")
            )
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
            "reproduced. Above the centre prior only: partly. An interval below zero, or around it with "
            "its upper end under one point: not reproduced. Otherwise open. Three seeds."
        ),
        judge=asked(_isolates("ablation-ersm")),
    ),
    Claim(
        key="ERSM (e)",
        paper="devynck2026ersm",
        text="In deletion tests the learned energy ranks better than magnitude.",
        criterion=(
            "Area under the token deletion curve, least important first. Within the masked "
            "network, "
            "logit against magnitude; and masked network by its logit against dense network by its "
            "magnitude. Both intervals above zero: reproduced; the first only: partly; the first below "
            "zero, or around it with its upper end under one point: not reproduced; otherwise open. "
            "The full energy is reported beside the logit."
        ),
        judge=_ranking,
    ),
    Claim(
        key="ERSM (f)",
        paper="devynck2026ersm",
        text="The network relies less on spurious background.",
        criterion=(
            "On textured shapes whose background agrees with the class in most training "
            "images: accuracy "
            f"where the background lies, against the dense network. {BETTER}."
        ),
        judge=asked(
            against(
                "ablation-ersm",
                "ablation-dense",
                "spurious",
                lambda c: c == "lies",
                dataset="shapes-spurious",
            )
        ),
    ),
    Claim(
        key="ERSM (g)",
        paper="devynck2026ersm",
        text="Dense processing is redundant computation, and this mask saves it.",
        criterion=(
            "Counted: a network that meets (a) and (b) needs fewer multiply-accumulates "
            "behind its mask: "
            "reproduced as a count. Saved time is a claim of its own, below."
        ),
        judge=_saves_counted(
            ("ersm", "dense"), ("ablation-ersm", "ablation-dense"), ("gentle", "ablation-dense")
        ),
    ),
    Claim(
        key="ERSM (g, redundancy)",
        paper="devynck2026ersm",
        text="Dense processing is redundant computation, whoever saves it.",
        criterion=(
            "Half of the weights of the dense network pruned by magnitude, `pruned`: accuracy as ERSM "
            "(a). It shows that half of the multiply-adds can be spared, and nothing of a mask. Written "
            "when the records were there."
        ),
        judge=preserved(("pruned", "ablation-dense")),
    ),
    Claim(
        key="ERSM (g, milliseconds)",
        paper="devynck2026ersm",
        text="This mask saves time.",
        criterion=(
            "Accuracy of a network that skips dropped tokens and keeps half, against the best dense "
            f"network that is no slower. {BETTER}."
        ),
        judge=_saves_time,
    ),
)
