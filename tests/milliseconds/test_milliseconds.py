"""Time against accuracy: the line of dense networks, and the words of the criteria."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ersm_lab.common import timing
from ersm_lab.milliseconds import clock, verdicts
from ersm_lab.milliseconds.verdicts import Study
from ersm_lab.networks import controls
from ersm_lab.networks.token_net import TokenNet, TokenNetSettings
from ersm_lab.results import answer_bits

TIMES = {"slow": 8.0, "middle": 4.0, "fast": 2.0}


def test_the_line_is_drawn_between_neighbours_in_time():
    assert verdicts.between(5.0, TIMES) == {"middle": 0.75, "slow": 0.25}
    assert verdicts.between(2.0, TIMES)["fast"] == 1
    assert verdicts.between(1.0, TIMES) == {"fast": 1.0}
    assert verdicts.between(9.0, TIMES) == {"slow": 1.0}


def fake(accuracies, seed, images=400):
    right = torch.arange(images) < accuracies * images
    metrics = {"test_accuracy": accuracies, "val_accuracy": accuracies, "validation": {}}
    config = {"test_images": images}
    return {"seed": seed, "metrics": metrics, "answers": answer_bits.pack(right), "config": config}


@pytest.fixture
def study():
    """The line goes from 60 % at 1 us to 80 % at 4; the mask has 80 % at 2.5, where the line has 70."""
    us = {"tokens-dense": 4.0, "tokens-dense-narrow": 3.0, "tokens-ersm-0.05": 2.5}
    us |= {"tokens-dense-two-blocks": 2.0, "tokens-dense-one-block": 1.0}
    line = {m: 0.6 + 0.2 * (t - 1) / 3 for m, t in us.items()} | {"tokens-ersm-0.05": 0.8}
    clocks = {
        s: {
            verdicts.PLACE: {m: {"us": t, "times": 4.0 / t} for m, t in us.items()},
            verdicts.ALONE: {m: {"us": t, "times": 1.0} for m, t in us.items()},
        }
        for s in range(3)
    }
    networks = {m: [fake(a, s) for s in range(3)] for m, a in line.items()}
    return Study(networks=networks, clocks=clocks)


def test_a_network_is_held_against_dense_ones_of_its_time(study):
    found = study.above_line("tokens-ersm-0.05")
    assert found.mean == pytest.approx(10, abs=0.2)
    assert verdicts.side(found) == "above"
    assert study.gap("tokens-ersm-0.05").mean == pytest.approx(0, abs=0.2)
    on_it = study.above_line("tokens-dense-narrow")
    assert on_it.mean == pytest.approx(0, abs=1e-9)


def test_the_rival_is_the_best_dense_network_that_is_no_slower(study):
    assert study.rival("tokens-ersm-0.05") == "tokens-dense-two-blocks"
    assert study.rival("tokens-dense") == "tokens-dense"
    for found in study.clocks.values():
        found[verdicts.PLACE]["tokens-ersm-0.05"]["us"] = 0.5
    assert study.rival("tokens-ersm-0.05") is None


def test_a_goal_is_reached_in_every_seed_or_not(study):
    assert verdicts.fast_enough(study, "tokens-ersm-0.05") == "reached"
    study.clocks[0][verdicts.PLACE]["tokens-ersm-0.05"]["times"] = 1.4
    assert verdicts.fast_enough(study, "tokens-ersm-0.05") == "open"
    for found in study.clocks.values():
        found[verdicts.ALONE]["tokens-ersm-0.05"]["times"] = 0.9
    assert verdicts.fast_enough(study, "tokens-ersm-0.05") == "not reached"


@pytest.mark.parametrize(
    ("low", "high", "word"), [(-0.4, 1, "preserved"), (-2, -0.6, "lost"), (-0.7, 0.1, "open")]
)
def test_accuracy_is_preserved_by_its_interval(low, high, word):
    assert verdicts.preserved(SimpleNamespace(low=low, high=high, seeds=(0, 1, 2))) == word


def test_the_clock_reads_networks_in_turn_and_leaves_threads_as_they_were():
    settings = clock.ClockSettings(batches=(1, 2), images=4, single=2, rounds=2, threads=(1,))
    model = TokenNet(TokenNetSettings(width=8, blocks=1, early_width=4, stem_channels=4))
    controls.attach(model, "gate", "random", keep=0.5)
    before = torch.get_num_threads()
    seen = []
    model.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    x = torch.randn(4, 3, 32, 32)
    found = clock.measure({"a": model.eval(), "b": model}, x, settings)
    assert torch.get_num_threads() == before
    assert found["threads 1, batch 2"]["a"]["times"] == 1
    assert all(np.isfinite(n["us"]) and n["us"] > 0 for n in found["threads 1, batch 1"].values())
    assert seen.count(2) == seen.count(1) == 2 * 2 * (2 + timing.WARM_UP)
    parts = clock.parts_of_a_pass(model, x, rounds=1)
    assert parts.keys() >= {"early", "mask", "mlp", "skipping", "gather"}
