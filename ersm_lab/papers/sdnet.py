"""The claims of SDNet (Dai et al., arXiv:2210.12945)."""

from __future__ import annotations

import itertools

from ersm_lab.papers.claim import Claim, Finding
from ersm_lab.papers.questions import (
    BETTER,
    Asked,
    Judge,
    Question,
    against,
    all_of,
    answered,
    asked,
    preserved,
    some,
)
from ersm_lab.results import statistics
from ersm_lab.suites import lambda_choice, lambda_suite
from ersm_lab.views.tables import NOT_RUN


def _robust_to_noise(row: str, base: str, base_row: str, words: str) -> Judge:
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
        return asked(questions)(dataset, scale)

    return judge


def _larger_lambda(*methods: str) -> Judge:
    """SDNet 2 as `lambda_choice` asks it: which way lambda went under noise, then what it gained."""

    def judge(dataset: str, scale: str) -> list[Finding]:
        found = []
        over = lambda_suite.averages(lambda_choice.SUITES[scale])["noise"]
        for method, row in itertools.product(methods, lambda_choice.CHOSEN):
            group = statistics.of(f"{method}.lambda-choice", dataset=dataset, scale=scale)
            sides = [
                Asked(
                    method=method,
                    suite="lambda-choice",
                    conditions={f"{r}/{name}" for name in over}.__contains__,
                )
                for r in (row, "fixed")
            ]
            words = f"{method}, lambda by the {row} against that of training, under noise"
            gain = answered(Question(words=words, first=sides[0], second=sides[1]), dataset, scale)
            if gain is None:
                words = f"{method}, lambda by the {row}"
                found.append(Finding(outcome=NOT_RUN, figure=words))
                continue
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
        return some(found)

    return judge


def _ahead_with_lambda(*pairs: tuple[str, str]) -> Judge:
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
        return asked(*settings)(dataset, scale)

    return judge


CLAIMS: tuple[Claim, ...] = (
    Claim(
        key="SDNet 1",
        paper="dai2022sdnet",
        text="A sparse code in place of the first convolution keeps accuracy.",
        criterion=(
            "As ERSM (a), `sdnet` against the dense network of the same training, and `sdnet-pixels`, "
            "whose code takes the pixels as published, against the dense network with its stem. "
            "Written with its first records."
        ),
        judge=preserved(("sdnet", "ablation-dense"), ("sdnet-pixels", "dense-pixels")),
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
        judge=all_of(
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
            f"line and label-free. {BETTER} for both; for noise only: partly. As first asked, of "
            "`sdnet` with the statistics of training, it stands last."
        ),
        judge=all_of(
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
            f"with its stem. {BETTER}. Written when the records of `sdnet` were there, before those of "
            "`sdnet-pixels`."
        ),
        judge=asked(
            against("sdnet", "ablation-dense", "attacks", lambda c: c == "autoattack.2"),
            against("sdnet-pixels", "dense-pixels", "attacks", lambda c: c == "autoattack.2"),
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
