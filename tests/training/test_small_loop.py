"""The loop that the chapters show: when the mask is on, and what it may then change."""

import pytest
import torch

from ersm_attach import attach_energy_mask
from ersm_lab.evaluation import inference
from ersm_lab.images import data
from ersm_lab.networks.backbones import SMOKE, CifarNet
from ersm_lab.training import small_loop

FEW = data.load("shapes", "train", limit=512)  # four steps an epoch


def made(**settings):
    torch.manual_seed(0)
    network = CifarNet(SMOKE, classes=len(FEW.classes))
    network.whiten(FEW.normalise(FEW.images))
    attach_energy_mask(network, "group1", preset="stable", **settings)
    return network, inference.only_mask(network)


def trained(*, epochs=2, mask=None, **settings):
    network, layer = made(**mask or {})
    before = {name: value.clone() for name, value in network.state_dict().items()}
    small_loop.train(network, FEW, epochs=epochs, **settings)
    return network, layer, before


def names_of(network, mask):
    own = {id(parameter) for parameter in mask.parameters()}
    return [name for name, parameter in network.named_parameters() if id(parameter) in own]


def moved(network, before, part):
    after = network.state_dict()
    return {n for n in before if part in n and not torch.equal(before[n], after[n])}


def test_before_its_start_a_mask_learns_nothing_and_the_network_does():
    network, mask, before = trained(mask_start=1.0)
    own = names_of(network, mask)
    assert own and not any(moved(network, before, name) for name in own)
    assert moved(network, before, "head") and not mask.enabled


def test_from_its_start_on_a_mask_learns():
    network, mask, before = trained(mask_start=0.5)
    assert mask.enabled
    assert any(moved(network, before, name) for name in names_of(network, mask))


def test_the_energies_are_phased_in(monkeypatch):
    weights = []

    class Energy:
        def __rmul__(self, weight):
            weights.append(weight)
            return 0.0

    monkeypatch.setattr(small_loop, "energy_loss", lambda network: Energy())
    trained(epochs=2, mask_start=0.25, mask_ramp=0.5)  # eight steps
    assert weights == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0, 1.0])


def test_a_noisy_gate_is_quiet_at_the_end_and_a_run_is_the_same_again():
    networks = [trained(mask={"noise": 1.0}, mask_noise_stop=0.5) for _ in range(2)]
    assert networks[0][1].noise == 0.0
    first, second = (network.state_dict() for network, _, _ in networks)
    assert all(torch.equal(first[name], second[name]) for name in first)
