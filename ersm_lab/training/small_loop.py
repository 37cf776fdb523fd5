"""The loop of the quickstart with its choices as arguments: a tiny network in seconds."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ersm_core import energy_loss
from ersm_lab.evaluation import inference
from ersm_lab.images import data
from ersm_lab.training.loop import best_device


def train(
    network: nn.Module,
    images: data.ImageSet,
    *,
    epochs: int,
    mask_start: float = 0.5,  # share of the steps before which the mask is off
    mask_ramp: float = 0.1,  # share of the steps over which its energy is then phased in
    mask_lr_factor: float = 0.5,  # the mask's learning rate, of the network's
    mask_weight_decay: float = 0.0,
    mask_noise_stop: float = 0.8,  # share of the steps after which a noisy gate is quiet
) -> None:
    """Train a network with one energy mask in place; it is on the CPU afterwards."""
    device = best_device()
    network.to(device)
    mask = inference.only_mask(network)
    batches = images.to(device).batches(batch_size=128, augment=data.Augment(), seed=0)
    steps, noise = epochs * len(batches), mask.noise

    own = list(mask.parameters())
    rest = [p for p in network.parameters() if p.requires_grad and all(p is not q for q in own)]
    groups = [
        {"params": rest, "weight_decay": 1.33e-3},
        {"params": own, "weight_decay": mask_weight_decay},
    ]
    rates = [0.75, 0.75 * mask_lr_factor]
    optimiser = torch.optim.SGD(groups, lr=0.75, momentum=0.85, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser,
        rates,
        total_steps=steps,
        pct_start=0.2,
        anneal_strategy="linear",
        cycle_momentum=False,
    )
    for epoch in range(epochs):
        network.train()
        for step, (x, labels) in enumerate(batches.epoch(epoch), start=epoch * len(batches)):
            progress = step / steps
            mask.enabled = progress >= mask_start
            mask.noise = noise if progress < mask_noise_stop else 0.0
            loss = F.cross_entropy(network(x), labels, label_smoothing=0.1)
            if mask.enabled:
                weight = min(1.0, (progress - mask_start) / mask_ramp) if mask_ramp else 1.0
                loss = loss + weight * energy_loss(network)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    network.cpu()
