"""Generated bad calls to suites and to what compares their records (`refusals`)."""

import numpy as np
import torch
from hypothesis import strategies as st
from refusals import (
    CONFIDENCE,
    NETWORK,
    Case,
    both_tests,
    dense,
    image_set,
    not_a,
    not_data,
    not_images,
    not_number,
    not_pair,
    not_seed,
    not_several,
    not_share,
    not_whole,
    not_word,
)

from ersm_lab.images import corruptions
from ersm_lab.results import answer_bits, statistics
from ersm_lab.suites import lambda_suite, smoothing_suite

ANSWERS = {s: np.arange(20) % (2 + s) == 0 for s in (0, 1)}


def record(answers: list[bool], condition: str = "plain") -> dict:
    return {
        "name": "made",
        "seed": 0,
        "config": {"conditions": [condition], "test_images": len(answers)},
        "answers": answer_bits.pack(torch.tensor(answers)),
        "metrics": {"images": len(answers)},
    }


CASES = {
    "SmoothingSuite": Case(
        smoothing_suite.SmoothingSuite,
        dict,
        {
            "images": not_whole(),
            "levels": not_several(not_number(0, 1, low_is_bad=True, high_is_bad=True), empty=False),
            "path": not_a(optional=True),
            "sides": not_several(not_whole(1, 1_000), empty=False),
            "corruptions": not_several(not_word(*corruptions.KINDS), empty=False),
            "severities": not_several(not_whole(1, 5)),
            "first": not_number(0, 1, low_is_bad=True, high_is_bad=True).map(lambda v: (v, (3,)))
            | not_whole(1, 5).map(lambda v: (0.6, (v,)))
            | st.sampled_from([3, (), (0.6,), "ab", (0.6, (2,))]),
            "seed": not_seed(),
        },
    ),
    "smoothing_suite.measure": Case(
        smoothing_suite.measure,
        lambda: {
            "model": dense(),
            "test": image_set()[:1],
            "settings": smoothing_suite.SmoothingSuite(
                levels=(), sides=(), corruptions=("contrast",), severities=(1,), first=None
            ),
        },
        {"model": NETWORK, "test": not_data(), "settings": not_a()},
    ),
    "smoothing_suite.conditions": Case(
        lambda **arguments: next(smoothing_suite.conditions(**arguments)),
        lambda: {"images": image_set().images, "settings": smoothing_suite.SUITES["smoke"]},
        {"images": not_images(), "settings": not_a()},
    ),
    "smoothed": Case(
        smoothing_suite.smoothed,
        lambda: {"images": image_set().images[:1], "level": 0.9},
        {"images": not_images(), "level": not_share(), "path": not_a(optional=True)},
    ),
    "gap": Case(
        lambda_suite.gap,
        lambda: {
            "method": [record([True, False], "plain/clean")],
            "base": [record([False, False], "plain/clean")],
            "rows": ("plain", "plain"),
            "names": ["clean"],
        },
        {
            "method": st.sampled_from([None, 3, "x"]),
            "base": st.sampled_from([None, 3, "x"]),
            "rows": not_pair(not_word("plain"), "plain"),
            "names": not_several(not_word("clean")),
        },
    ),
    "LambdaSuite": Case(
        lambda_suite.LambdaSuite,
        dict,
        {
            "images": not_whole(),
            "fit_images": not_whole(),
            "noise_severities": not_several(not_whole(1, 5)),
            "severities": not_several(not_whole(1, 5)),
            "kinds": not_several(not_word(*corruptions.KINDS)) | st.just(("snow",)),
            "multiples": not_several(not_number(0)) | st.just((2.0,)),
            "seed": not_seed(),
        },
    ),
    "lambda_suite.measure": Case(
        lambda_suite.measure,
        lambda: {
            "model": dense(),
            "test": image_set(),
            "training": image_set(),
            "settings": lambda_suite.LambdaSuite(
                kinds=("gaussian_noise",), severities=(1,), noise_severities=(1,)
            ),
        },
        {
            "model": NETWORK,
            "test": not_data(),
            "training": not_data(),
            "settings": not_a(),
        },
    ),
    "lambda_suite.conditions": Case(
        lambda_suite.conditions,
        lambda: {"settings": lambda_suite.SUITES["smoke"]},
        {"settings": not_a()},
    ),
    "lambda_suite.averages": Case(
        lambda_suite.averages,
        lambda: {"settings": lambda_suite.SUITES["smoke"]},
        {"settings": not_a()},
    ),
    "paired": Case(
        statistics.paired,
        lambda: {"method": ANSWERS, "base": {s: ~a for s, a in ANSWERS.items()}},
        CONFIDENCE
        | {
            "method": not_a({0: np.ones((2, 2))}, {0: ["a"]}).filter(lambda value: value != {}),
            "base": not_a({0: np.ones((2, 2))}, {0: ["a"]}).filter(lambda value: value != {}),
        },
    ),
    "statistics.difference": Case(
        statistics.difference,
        lambda: {
            "method": [record([True, False])],
            "base": [record([False, True])],
        },
        CONFIDENCE,
    ),
    "statistics.answers": Case(
        statistics.answers,
        lambda: {"group": [record([True, False])]},
        {"group": st.sampled_from([None, 3, "group", ["x"], [{}]])},
    ),
    "statistics.gap": Case(
        statistics.gap,
        lambda: {
            "method": [record([True, False])],
            "base": [record([False, True])],
            "names": ["plain"],
        },
        CONFIDENCE
        | {
            "method": st.sampled_from([None, 3, "x"]),
            "base": st.sampled_from([None, 3, "x"]),
            "names": st.sampled_from([None, 3, "plain", [], ["names"]]),
        },
    ),
    "by_condition": Case(
        answer_bits.by_condition,
        lambda: {"record": record([True, False])},
        {"record": not_a().filter(lambda value: value != {})},
    ),
}
test_what_works, test_what_does_not = both_tests(CASES)
