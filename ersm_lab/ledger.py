"""The ledger of claims: what each paper says, what would count, and what the records say.

Every criterion was written and committed before the runs that it judges, but for those of SDNet 1,
ERSM (c, tokens), ERSM (g, redundancy) and, for its first pair, SDNet 4, which came with or after their
records. One rule was changed afterwards, what lets ERSM (d) and (e) be open:
book/errata.md says why, and what the old rule would say. Outcomes: *reproduced*, *partly*, *not
reproduced*; *open* where the interval decides nothing or seeds are missing; *not yet run* where no
record speaks of it, or of a pair that the criterion names; *untestable here* where this bench has no
means to.
Differences are paired over seeds and test images, with 95 % intervals (`statistics.difference`).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ersm_lab import judging
from ersm_lab.evaluation import lambda_choice, lambda_suite
from ersm_lab.milliseconds import verdicts as milliseconds
from ersm_lab.results import claims, records, statistics
from ersm_lab.results.statistics import Difference
from ersm_lab.views.tables import Table

NOT_RUN = "not yet run"
OUTCOMES = {"holds": "reproduced", "fails": "not reproduced", "open": "open"}


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


def _some(found: list[Finding]) -> list[Finding]:
    """The findings, among them pairs without records; none where no pair has any."""
    return found if any(finding.outcome != NOT_RUN for finding in found) else []


def _preserved(*pairs: tuple[str, str]) -> Callable[[str, str], list[Finding]]:
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
        return _some(found)

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
                        outcome=OUTCOMES[verdict.outcome],
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
    return OUTCOMES[claims.decided(found, above=0, gone=1)], figure


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


# --- judgements: what a suite of `judging` found, network by network --------------------------------

Values = dict[int, np.ndarray]  # {seed: (N,)}, of the same images for every seed


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
            name, _, score = self.listed.partition(".")
            return np.array(record["metrics"]["by_image"][name][score], float)
        answers = judging.answers_by_condition(record)
        chosen = [right.numpy() for name, right in answers.items() if self.conditions(name)]
        if not chosen:
            raise ValueError(f"{record['name']} has none of the conditions that are judged")
        return np.mean(chosen, axis=0)


@dataclass(frozen=True, kw_only=True)
class Question:
    """Is the first better than the second, and by how much?"""

    words: str
    first: Asked
    second: Asked


def _answered(question: Question, dataset: str, scale: str) -> tuple[str, str] | None:
    """Outcome and figure of a question, None without records of a common seed."""
    first, second = (asked.values(dataset, scale) for asked in (question.first, question.second))
    if not first.keys() & second.keys():
        return None
    found = statistics.paired(first, second)
    outcome, figure = better(found)
    return outcome, f"{question.words}: {figure}"


def _asked(*settings: Sequence[Question]) -> Callable[[str, str], list[Finding]]:
    """One finding for each setting: its questions, of which the first decides more than the others.

    All of them reproduced: reproduced; the first only: partly; the first not: what the first is. An open
    question beside a reproduced first one leaves the claim open.
    """

    def judge(dataset: str, scale: str) -> list[Finding]:
        found = []
        for questions in settings:
            answers = [_answered(q, dataset, scale) for q in questions]
            if None in answers:
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
        return _some(found)

    return judge


def _against(
    method: str, base: str, suite: str, conditions: Callable[[str], bool], **where: str
) -> tuple[Question, ...]:
    """A method against another one, under the same conditions."""
    first, second = (
        Asked(method=m, suite=suite, conditions=conditions, **where) for m in (method, base)
    )
    return (Question(words=f"{method} against {base}", first=first, second=second),)


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
        findings = _asked(judged)(dataset, scale)
        beside = _answered(reported, dataset, scale)
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


def _robust_to_noise(row: str, base: str, base_row: str, words: str) -> Callable:
    """SDNet's claims: a row of `lambda_suite` against another, under noise (and all kinds)."""

    def judge(dataset: str, scale: str) -> list[Finding]:
        over = lambda_suite.averages(lambda_suite.SUITES[scale])
        questions = []
        for what, name in (("noise", lambda_suite.NOISE), ("all", "all kinds of corruption")):
            if what == "all" and base == "sdnet":
                continue
            first, second = (
                Asked(
                    method=method,
                    suite="lambda",
                    conditions={f"{r}/{condition}" for condition in over[what]}.__contains__,
                )
                for method, r in (("sdnet", row), (base, base_row))
            )
            questions.append(Question(words=f"{words}, {name}", first=first, second=second))
        return _asked(questions)(dataset, scale)

    return judge


def _larger_lambda(*methods: str) -> Callable[[str, str], list[Finding]]:
    """SDNet 2 as `lambda_choice` asks it: which way lambda went under noise, then what it gained."""

    def judge(dataset: str, scale: str) -> list[Finding]:
        found = []
        over = lambda_suite.averages(lambda_choice.SUITES[scale])["noise"]
        for method, row in itertools.product(methods, lambda_choice.CHOSEN):
            group = lambda_choice.of(method, dataset=dataset, scale=scale)
            if not group:
                words = f"{method}, lambda by the {row}"
                found.append(Finding(outcome=NOT_RUN, figure=words))
                continue
            asked = [
                Asked(
                    method=method,
                    suite="lambda-choice",
                    conditions={f"{r}/{name}" for name in over}.__contains__,
                )
                for r in (row, "fixed")
            ]
            words = f"{method}, lambda by the {row} against that of training, under noise"
            gain = _answered(Question(words=words, first=asked[0], second=asked[1]), dataset, scale)
            way = lambda_choice.direction(group, row)
            figure = (
                f"lambda over that of training, minus one: {way.mean:+.2f} "
                f"({way.low:+.2f} to {way.high:+.2f})"
            )
            outcome = gain[0]
            if outcome == "reproduced" and way.low <= 0:
                outcome = "open"
            if len(group) >= 3 and way.high < 0:
                outcome = "not reproduced"
            methods_ = (f"{method}.lambda-choice",)
            found.append(Finding(outcome=outcome, figure=f"{gain[1]}; {figure}", methods=methods_))
        return _some(found)

    return judge


def _ahead_with_lambda(*pairs: tuple[str, str]) -> Callable[[str, str], list[Finding]]:
    """SDNet 3 as `lambda_choice` asks it: a chosen lambda against a dense network."""

    def judge(dataset: str, scale: str) -> list[Finding]:
        over = lambda_suite.averages(lambda_choice.SUITES[scale])
        settings = []
        for (method, base), row in itertools.product(pairs, lambda_choice.CHOSEN):
            questions = []
            for what, name in (("noise", "noise"), ("all", "all kinds")):
                first, second = (
                    Asked(
                        method=m,
                        suite=suite,
                        conditions={f"{r}/{condition}" for condition in over[what]}.__contains__,
                    )
                    for m, suite, r in ((method, "lambda-choice", row), (base, "lambda", "plain"))
                )
                words = f"{method}, lambda by the {row}, against {base}, {name}"
                questions.append(Question(words=words, first=first, second=second))
            settings.append(questions)
        return _asked(*settings)(dataset, scale)

    return judge


def _all(*judges: Callable[[str, str], list[Finding]]) -> Callable[[str, str], list[Finding]]:
    return lambda dataset, scale: [f for judge in judges for f in judge(dataset, scale)]


def _saves_counted(*pairs: tuple[str, str]) -> Callable[[str, str], list[Finding]]:
    """Claim (g): only a network that meets (a) and (b) has redundant tokens to count."""

    def judge(dataset: str, scale: str) -> list[Finding]:
        found = []
        for method, base in pairs:
            both = _preserved((method, base))(dataset, scale) + _adapts(method)(dataset, scale)
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


def _corrupted(condition: str) -> bool:
    return condition != "clean"


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
        judge=_asked(
            *(
                _against(method, base, "occlusion", lambda c: c.startswith("random."))
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
            f"{_BETTER}. "
            "Written when the records were there. A gain is no merit of the energy while `random-half`, "
            "which has none, gains more."
        ),
        judge=_asked(
            *(
                _against(m, "ablation-dense", "deletion", lambda c: c.startswith("random."))
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
        judge=_asked(_isolates("ablation-ersm")),
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
            f"where the background lies, against the dense network. {_BETTER}."
        ),
        judge=_asked(
            _against(
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
        judge=_preserved(("pruned", "ablation-dense")),
    ),
    Claim(
        key="ERSM (g, milliseconds)",
        paper="devynck2026ersm",
        text="This mask saves time.",
        criterion=(
            "Accuracy of a network that skips dropped tokens and keeps half, against the best dense "
            f"network that is no slower. {_BETTER}."
        ),
        judge=_saves_time,
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
        judge=_asked(
            _against("isvs-iterative", "ablation-dense", "corruption", _corrupted),
            _against("isvs-fixed", "ablation-dense", "corruption", _corrupted),
        ),
    ),
    Claim(
        key="ISVS 2",
        paper="zhou2024isvs",
        text="It does so better than smoothing by frequency.",
        criterion=(
            "The same, each against a low-pass of equal retained energy and the same stages: "
            "`isvs-iterative`, the paper's method, against `low-pass-iterative`, and `isvs-fixed` "
            f"against `low-pass`. {_BETTER}."
        ),
        judge=_asked(
            _against("isvs-iterative", "low-pass-iterative", "corruption", _corrupted),
            _against("isvs-fixed", "low-pass", "corruption", _corrupted),
        ),
    ),
    Claim(
        key="ISVS 3",
        paper="zhou2024isvs",
        text="It makes a network more robust to low resolution.",
        criterion=f"Mean accuracy over 24, 16, 12 and 8 pixels, against vanilla. {_BETTER}.",
        judge=_asked(
            _against("isvs-iterative", "ablation-dense", "resolution", _corrupted),
            _against("isvs-fixed", "ablation-dense", "resolution", _corrupted),
        ),
    ),
    Claim(
        key="ISVS 4",
        paper="zhou2024isvs",
        text="It makes a network more robust to adversarial noise.",
        criterion=(
            f"Accuracy under AutoAttack of 2/255 on the stated subset, against vanilla. {_BETTER}."
        ),
        judge=_asked(
            _against("isvs-iterative", "ablation-dense", "attacks", lambda c: c == "autoattack.2"),
            _against("isvs-fixed", "ablation-dense", "attacks", lambda c: c == "autoattack.2"),
        ),
    ),
    Claim(
        key="ISVS 5",
        paper="zhou2024isvs",
        text="It retains textures and contours that frequency-based smoothing takes away.",
        criterion=(
            "None that a record could meet yet. In the figures of chapter 8 the contours stay and the "
            "textures go. The gradient that is left inside textures, over the test images, against a "
            "low-pass of equal retained energy, would decide."
        ),
    ),
    Claim(
        key="ISVS 6",
        paper="zhou2024isvs",
        text="A sparsified image costs O(p) for p pixels.",
        criterion=(
            "Milliseconds an image at 32 and at 224 pixels a side, one thread, for the same steps of "
            "the path and the projection: reproduced if 49 times the pixels take at most 1.5 times 49 "
            "times as long; otherwise not."
        ),
    ),
    Claim(
        key="SDNet 1",
        paper="dai2022sdnet",
        text="A sparse code in place of the first convolution keeps accuracy.",
        criterion=(
            "As ERSM (a), `sdnet` against the dense network of the same training, and `sdnet-pixels`, "
            "whose code takes the pixels as published, against the dense network with its stem. "
            "Written with its first records."
        ),
        judge=_preserved(("sdnet", "ablation-dense"), ("sdnet-pixels", "dense-pixels")),
    ),
    Claim(
        key="SDNet 2",
        paper="dai2022sdnet",
        text="A larger lambda at test time makes it robust to noise, without training for it.",
        criterion=(
            "Accuracy under Gaussian noise, mean of all severities, each lambda with the batch-norm "
            "statistics of clean training images that are coded with it. First the direction: the mean "
            "over these severities of the chosen lambda over that of training, minus one, has a t "
            "interval over seeds above zero. Then the gain: the chosen lambda against that of training. "
            "Reproduced if both intervals lie above zero. Not reproduced if that of the direction lies "
            "below zero, whatever is gained, or if the gain's does, or lies around zero with its upper "
            "end under one point. Otherwise open. Judged for `sdnet-pixels`, `sdnet` and `sdnet-all`, "
            "for lambda by the published line from the residual, fitted on noisy training images with "
            "their labels, and for the label-free one; only the first sparse layer's lambda moves. "
            "The choice by test labels is shown as an oracle and judges nothing. The question as it "
            "was first asked, of `sdnet` with the statistics of training and without the direction, "
            "stands last."
        ),
        judge=_all(
            _larger_lambda("sdnet-pixels", "sdnet", "sdnet-all"),
            _robust_to_noise("label-free", "sdnet", "fixed", "label-free against fixed lambda"),
        ),
    ),
    Claim(
        key="SDNet 3",
        paper="dai2022sdnet",
        text="It is then more robust than the dense network.",
        criterion=(
            "The same noise, and the mean over all kinds of corruption: `sdnet-pixels` against "
            "`dense-pixels`, `sdnet` and `sdnet-all` against the dense network, lambda by the published "
            f"line and label-free. {_BETTER} for both; for noise only: partly. As first asked, of "
            "`sdnet` with the statistics of training, it stands last."
        ),
        judge=_all(
            _ahead_with_lambda(
                ("sdnet-pixels", "dense-pixels"),
                ("sdnet", "ablation-dense"),
                ("sdnet-all", "ablation-dense"),
            ),
            _robust_to_noise(
                "label-free",
                "ablation-dense",
                "plain",
                "sdnet with label-free lambda against ablation-dense",
            ),
        ),
    ),
    Claim(
        key="SDNet 4",
        paper="dai2022sdnet",
        text="It is more robust to adversarial noise.",
        criterion=(
            "As ISVS 4, `sdnet` against the dense network and `sdnet-pixels` against the dense network "
            f"with its stem. {_BETTER}. Written when the records of `sdnet` were there, before those of "
            "`sdnet-pixels`."
        ),
        judge=_asked(
            _against("sdnet", "ablation-dense", "attacks", lambda c: c == "autoattack.2"),
            _against("sdnet-pixels", "dense-pixels", "attacks", lambda c: c == "autoattack.2"),
        ),
    ),
    Claim(
        key="SDNet 5",
        paper="dai2022sdnet",
        text="Its sparse layer is interpretable.",
        criterion=(
            "None that a record could meet: chapter 9 shows the atoms, and that two steps leave about "
            "half of the coefficients in use. A blind comparison of its atoms with the filters of the "
            "dense network, by a measure fixed before, would be one."
        ),
    ),
)


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
