"""Lambda chosen four ways with statistics to match: against slow loops, on a tiny network."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_lambda_suite import network
from torch.optim.swa_utils import update_bn

from ersm_lab.evaluation import inference
from ersm_lab.evaluation.sparse_lambda import set_lambda
from ersm_lab.images import corruptions, data
from ersm_lab.suites import lambda_choice, lambda_suite
from ersm_lab.suites.lambda_choice import LambdaChoice, LambdaLine, Retuned

SUITE = LambdaChoice(
    images=12,
    fit_images=8,
    noise_severities=(1, 5),
    severities=(5,),
    kinds=("gaussian_noise", "brightness"),
    multiples=(0.5, 1.0, 4.0, 20.0),
)
GRID = [0.05, 0.1, 0.4, 2.0]


@pytest.fixture(scope="module")
def images():
    return data.load("shapes", "test", limit=16), data.load("shapes", "train", limit=16)


@pytest.fixture(scope="module")
def measured(images):
    return lambda_choice.measure(network(), *images, settings=SUITE)


def by_hand(training, value):
    """The network at a lambda, its statistics those that torch estimates on clean training images."""
    model = copy.deepcopy(network())
    set_lambda(model, value)
    update_bn([training.normalise(training.images[:8])], model)
    return model.eval()


def under(images, condition):
    shown = images[:12]
    if condition is None:
        return shown
    return replace(shown, images=corruptions.corrupt(shown.images, *condition, seed=0))


def test_statistics_are_those_of_torch_and_the_network_is_left_as_it_was(images):
    test, training = images
    model = network()
    before = copy.deepcopy(model.state_dict())
    tuned = Retuned.on(model, training.normalise(training.images[:8]), GRID)
    expected = by_hand(training, 0.4)
    x = test.normalise(test.images)
    with tuned.at(0.4), torch.no_grad():
        torch.testing.assert_close(model(x), expected(x))
    assert model.group1[0].lambda_l1 == 0.1 and not model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items() if k in before)
    assert {m.momentum for m in model.modules() if hasattr(m, "momentum")} == {0.4}


def test_every_image_is_coded_with_the_lambda_of_the_grid_that_is_nearest(images):
    test, training = images
    tuned = Retuned.on(network(), training.normalise(training.images[:8]), GRID)
    lambdas = torch.tensor([0.0, 0.09, 0.3, 9.0] * 3)
    found = tuned.answers(test[:12], lambdas)
    for number, value in enumerate([0.05, 0.1, 0.4, 2.0] * 3):
        one = inference.answers(by_hand(training, value), test[number : number + 1])
        assert found[number] == one[0]


def test_the_rows_are_what_slow_loops_give(measured, images):
    metrics, answers = measured
    test, training = images
    models = {value: by_hand(training, value) for value in GRID}
    for name, condition in lambda_suite.conditions(SUITE).items():
        part = under(test, condition)
        as_trained = inference.answers(network(), part)
        assert torch.equal(answers[f"as-trained/{name}"], as_trained)
        assert torch.equal(answers[f"fixed/{name}"], inference.answers(models[0.1], part))
        line = metrics["lambda"]["line"][name]
        nearest = min(GRID, key=lambda value, line=line: abs(value - line))
        assert torch.equal(answers[f"line/{name}"], inference.answers(models[nearest], part))
        shares = [inference.accuracy(model, part) for model in models.values()]
        if name == "brightness-5":
            assert name not in metrics["accuracy"]["oracle"] and name not in metrics["response"]
        else:
            assert metrics["response"][name] == pytest.approx(shares)
            assert metrics["accuracy"]["oracle"][name] == max(shares)
            assert metrics["lambda"]["oracle"][name] == GRID[int(np.argmax(shares))]


def test_the_direction_is_how_far_lambda_went_under_noise(measured):
    metrics = measured[0]
    for row in lambda_choice.CHOSEN:
        chosen = [metrics["lambda"][row][f"gaussian_noise-{s}"] for s in (1, 5)]
        assert metrics["direction"][row] == pytest.approx(np.mean(chosen) / 0.1 - 1)


def test_the_direction_of_seeds_has_the_t_interval():
    group = [{"seed": seed, "metrics": {"direction": {"line": seed + 1.0}}} for seed in range(3)]
    found = lambda_choice.direction(group, "line")
    mean, low, high = found.mean, found.low, found.high
    half = 4.302653 / np.sqrt(3)  # of two degrees of freedom, standard deviation 1
    assert (mean, low, high) == pytest.approx((2, 2 - half, 2 + half), abs=1e-5)
    one = lambda_choice.direction(group[:1], "line")
    assert (one.mean, one.low, one.high) == (1, -np.inf, np.inf)


def test_the_line_goes_through_the_best_lambdas_over_the_residuals(images):
    _, training = images
    few = training[:8]
    tuned = Retuned.on(network(), few.normalise(few.images), GRID)
    line = LambdaLine.fit(tuned, few, seed=0)
    lots, points = torch.Generator().manual_seed(0), []
    x = few.normalise(few.images)
    for sigma in lambda_choice.FIT_NOISE:
        noisy = x + sigma * torch.randn(x.shape, generator=lots)
        right = []
        for value in GRID:
            with torch.no_grad():
                logits = by_hand(training, value)(noisy)
            right.append((logits.argmax(1) == few.labels).sum().item())
        points.append((tuned.residuals(noisy).mean().item(), GRID[int(np.argmax(right))]))
    r, best = np.array(points).T
    slope = ((r - r.mean()) * (best - best.mean())).sum() / ((r - r.mean()) ** 2).sum()
    assert line.slope == pytest.approx(slope, abs=1e-6)
    assert line.intercept == pytest.approx(best.mean() - slope * r.mean(), abs=1e-6)
    steep = replace(line, slope=1.0, intercept=0.0)
    assert [steep.of_residual(value) for value in (-1, 0.3, 9)] == [0.05, 0.3, 2.0]


def test_a_network_without_a_code_has_nothing_to_choose(images):
    with pytest.raises(ValueError, match="no lambda to choose"):
        lambda_choice.measure(network(sparse=False), *images, settings=SUITE)
