"""Lambda chosen three ways: against slow loops, on a tiny network."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ersm_lab.evaluation import inference
from ersm_lab.evaluation.sparse_lambda import LabelFreeLambda, using_lambda
from ersm_lab.images import corruptions, data
from ersm_lab.networks import backbones
from ersm_lab.networks.sdnet import attach_sparse_coding
from ersm_lab.results import answer_bits, records
from ersm_lab.suites import lambda_suite
from ersm_lab.suites.lambda_suite import LambdaSuite

SUITE = LambdaSuite(
    images=12,
    fit_images=8,
    noise_severities=(1, 5),
    severities=(5,),
    kinds=("gaussian_noise", "brightness", "contrast"),
    multiples=(0.5, 1.0, 4.0),
)
NAMES = ["clean", "gaussian_noise-1", "gaussian_noise-5", "brightness-5", "contrast-5"]


@pytest.fixture(scope="module")
def images():
    return data.load("shapes", "test", limit=16), data.load("shapes", "train", limit=16)


def network(sparse=True):
    torch.manual_seed(0)
    settings = replace(backbones.SMOKE, widths=(4, 4), stem_channels=8)
    model = backbones.CifarNet(settings).eval()
    return attach_sparse_coding(model) if sparse else model


@pytest.fixture(scope="module")
def measured(images):
    return lambda_suite.measure(network(), *images, settings=SUITE)


def test_conditions_are_clean_noise_and_every_other_kind():
    assert list(lambda_suite.conditions(SUITE)) == NAMES
    whole = lambda_suite.conditions(lambda_suite.SUITES["laptop"])
    assert len(whole) == 1 + 5 + 2 * (len(corruptions.KINDS) - 1)
    assert whole["snow-3"] == ("snow", 3) and whole["clean"] is None


def test_averages_give_every_kind_the_same_weight():
    found = lambda_suite.averages(lambda_suite.SUITES["laptop"])
    assert found["noise"] == [f"gaussian_noise-{s}" for s in range(1, 6)]
    assert len(found["all"]) == 2 * len(corruptions.KINDS) == len(set(found["all"]))
    groups = [name for g in corruptions.GROUPS for name in found["noises" if g == "noise" else g]]
    assert sorted(groups) == sorted(found["all"])
    assert not any(name.startswith("gaussian_noise-1") for name in found["all"])


def test_the_rows_are_what_slow_loops_give(measured, images):
    metrics, answers = measured
    model, (test, training) = network(), images
    fit = LabelFreeLambda.fit(
        model, training.normalise(training.images[:8]), grid=[0.05, 0.1, 0.4], seed=0
    )
    assert metrics["images"] == 12 and metrics["fit"]["lambdas"] == list(fit.lambdas)
    for name, condition in lambda_suite.conditions(SUITE).items():
        pictures = test.images[:12]
        if condition:
            pictures = corruptions.corrupt(pictures, *condition, seed=0)
        part = replace(test[:12], images=pictures)
        assert torch.equal(answers[f"fixed/{name}"], inference.answers(model, part))
        each = []
        chosen = fit.choose(part.normalise(pictures))
        for number, value in enumerate(chosen.tolist()):
            with using_lambda(model, value):
                each.append(inference.answers(model, part[number : number + 1]))
        assert torch.equal(answers[f"label-free/{name}"], torch.cat(each))
        assert metrics["lambda"]["label-free"][name] == pytest.approx(chosen.mean().item())
        best = []
        for value in (0.05, 0.1, 0.4):
            with using_lambda(model, value):
                best.append(inference.accuracy(model, part))
        assert metrics["accuracy"]["oracle"][name] == max(best)
        assert metrics["lambda"]["oracle"][name] == (0.05, 0.1, 0.4)[int(np.argmax(best))]
        for row in ("fixed", "label-free"):
            share = answers[f"{row}/{name}"].double().mean().item()
            assert metrics["accuracy"][row][name] == share


def test_lambda_is_left_as_it_was(images):
    model = network()
    lambda_suite.measure(model, *images, settings=SUITE)
    assert model.group1[0].lambda_l1 == 0.1
    assert not model.group1[0]._forward_hooks and not model.group1[0]._forward_pre_hooks


def test_the_oracle_is_never_below_the_fixed_lambda(measured):
    accuracy = measured[0]["accuracy"]
    assert all(accuracy["oracle"][name] >= accuracy["fixed"][name] for name in NAMES)


def test_means_are_means(measured):
    metrics = measured[0]
    for row, accuracy in metrics["accuracy"].items():
        noise = (accuracy["gaussian_noise-1"] + accuracy["gaussian_noise-5"]) / 2
        assert metrics["mean"][row]["noise"] == pytest.approx(noise)
        whole = [accuracy[n] for n in ("gaussian_noise-5", "brightness-5", "contrast-5")]
        assert metrics["mean"][row]["all"] == pytest.approx(np.mean(whole))


def test_a_dense_network_has_one_row(images):
    metrics, answers = lambda_suite.measure(network(sparse=False), *images, settings=SUITE)
    assert list(metrics["accuracy"]) == ["plain"] and "lambda" not in metrics
    assert list(answers) == [f"plain/{name}" for name in NAMES]


def test_training_labels_are_not_looked_at(measured, images):
    test, training = images
    blind = replace(training, labels=torch.zeros_like(training.labels))
    assert lambda_suite.measure(network(), test, blind, settings=SUITE)[0] == measured[0]


def test_only_the_first_of_several_codes_changes(images):
    model = network()
    attach_sparse_coding(model, "group2.0")
    metrics, _ = lambda_suite.measure(model, *images, settings=SUITE)
    with using_lambda(model, metrics["lambda"]["oracle"]["contrast-5"], layer="group1.0"):
        corrupted = corruptions.corrupt(images[0].images[:12], "contrast", 5, seed=0)
        part = replace(images[0][:12], images=corrupted)
        assert inference.accuracy(model, part) == metrics["accuracy"]["oracle"]["contrast-5"]


# --- records ---------------------------------------------------------------------------------------


def record(found, method, seed=0):
    metrics, answers = found
    return {
        "name": f"laptop/shapes/{method}.lambda/seed{seed}",
        "method": f"{method}.lambda",
        "seed": seed,
        "metrics": records.plain(metrics),
        "answers": answer_bits.pack(torch.cat([*answers.values()])),
        "config": {"conditions": list(answers)},
    }


@pytest.fixture
def recorded(measured, images, monkeypatch):
    dense = lambda_suite.measure(network(sparse=False), *images, settings=SUITE)
    made = [record(measured, "sdnet", s) for s in (0, 1)] + [record(dense, "dense", 0)]
    monkeypatch.setattr(
        records, "read_all", lambda *, method, **_: [r for r in made if r["method"] == method]
    )
    return made


def test_answers_come_back_as_they_were(measured):
    back = answer_bits.by_condition(record(measured, "sdnet"))
    assert list(back) == list(measured[1])
    assert all(torch.equal(back[name], measured[1][name]) for name in back)
    with pytest.raises(ValueError, match="holds no answers"):
        answer_bits.by_condition(record(measured, "sdnet") | {"answers": None})


def test_a_gap_is_the_difference_of_the_means(measured, recorded):
    names = ["gaussian_noise-5", "contrast-5"]
    sparse, dense = recorded[:2], recorded[2:]
    found = lambda_suite.gap(sparse, dense, ("fixed", "plain"), names)
    expected = 100 * np.mean(
        [
            sparse[0]["metrics"]["accuracy"]["fixed"][n]
            - dense[0]["metrics"]["accuracy"]["plain"][n]
            for n in names
        ]
    )
    assert found.mean == pytest.approx(expected) and found.by_seed == pytest.approx((expected,))
    assert found.low <= found.mean <= found.high
    itself = lambda_suite.gap(sparse, sparse, ("fixed", "fixed"), names)
    assert (itself.mean, itself.low, itself.high) == (0, 0, 0) and len(itself.by_seed) == 2
    assert lambda_suite.gap(sparse, [], ("fixed", "plain"), names) is None


def test_tables_have_a_line_for_each_way(recorded):
    columns = {"clean": "accuracy.clean", "mean": "mean.all"}
    where = dict(dataset="shapes", scale="laptop")
    table = lambda_suite.table(
        columns, methods=["dense", "sdnet", "absent"], caption="Some", **where
    )
    assert [row[0].partition(",")[0] for row in table.rows] == ["dense", *["sdnet"] * 3, "absent"]
    assert "test labels" in table.rows[3][0] and "not yet run" in table.rows[4][2]
    shown = 100 * recorded[0]["metrics"]["accuracy"]["fixed"]["clean"]
    assert table.rows[1][2] == f"{shown:.1f} ± 0.0" and "first 12 test images" in table.caption
    gaps = lambda_suite.gaps_table("sdnet", "dense", settings=SUITE, **where)
    assert len(gaps.rows) == 9 and not any("not yet run" in cell for r in gaps.rows for cell in r)
    assert all("not yet run" in r[3] for r in lambda_suite.gaps_table("x", "y", **where).rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": 0}, "at least 1"),
        ({"kinds": ("snow",)}, "gaussian_noise must be among the kinds"),
        ({"severities": (2,), "noise_severities": (1,)}, "at all of their severities"),
        ({"multiples": (2.0,)}, "must hold 1"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        LambdaSuite(**changes)
