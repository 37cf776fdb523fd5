"""What the code of the photographs does, in numbers that a record holds (`ersm_lab.standing`).

Made-up maps with made-up objects, no photograph and no weights: one setting of every kind is trained
for two epochs, and everything that a record tells is measured. It takes a second.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ersm_lab.photographs import coherence, features, measures, perturbed, readers, settings

ID, PROTOCOL = "photographs/readers", 1  # the second is raised when results are meant to change


def take() -> dict[str, dict]:
    """{id: {"protocol", "numbers"}}, as records and `data/probes.json` hold it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        numbers = measure()
    finally:
        torch.set_num_threads(threads)
    rounded = {name: float(f"{value:.6g}") for name, value in numbers.items()}
    return {ID: {"protocol": PROTOCOL, "numbers": rounded}}


def measure() -> dict[str, float]:
    """Numbers by name."""
    maps = made_up()
    stack = {name: replace(s, epochs=2, learning_rate=1e-2) for name, s in _kinds().items()}
    data = readers.frozen(maps, list(stack.values()))
    trained = readers.train(list(stack.values()), data, classes=3, seed=0)
    middle = measures.middle_mask(trained, data)
    found = measures.outcomes(trained, data, maps, seed=0, middle=middle)
    numbers = {}
    for number, name in enumerate(stack):
        for quantity in ("loss", "kept", "auc"):
            numbers[f"{quantity}, {name}"] = found[quantity][number].double().mean().item()
        numbers[f"norm of w, {name}"] = trained.weight[number].norm().item()
        numbers[f"norm of head, {name}"] = trained.head[number].norm().item()
    every = measures.untrained(maps) | coherence.neighbour_cosines(maps)
    every |= {f"shared, {name}": value for name, value in coherence.shared_part(maps).items()}
    numbers |= {name: value.double().nanmean().item() for name, value in every.items()}
    by_norm = maps.tokens.float().norm(dim=1)  # (N, h, w)
    gone = measures.deleted(trained, data, 0, by_norm)
    numbers["accuracy, deletion"] = gone.mean().item()
    pictures = torch.arange(3 * 3 * 24 * 24).reshape(3, 3, 24, 24).remainder(251).byte()
    on = torch.zeros(3, 24, 24, dtype=torch.bool)
    on[:, 6:15, 8:17] = True
    covered = perturbed.occluded(pictures, on, size=0.2, place="object")
    pasted = perturbed.swapped(pictures, on, ~on, torch.arange(3))
    numbers |= {"covered": covered.double().mean().item(), "pasted": pasted.double().mean().item()}
    return numbers


def made_up(count: int = 96) -> features.Maps:
    """Maps (count, 16, 5, 5) whose object, a 3 x 3 square, holds a part of its class."""
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randn(count, 16, 5, 5, generator=rng)  # (N, C, h, w)
    labels = torch.arange(count) % 3
    on = torch.zeros(count, 5, 5)
    for number in range(count):
        row, column = torch.randint(3, (2,), generator=rng).tolist()
        rows, columns = slice(row, row + 3), slice(column, column + 3)
        on[number, rows, columns] = 1
        tokens[number, :, rows, columns] += 2 * torch.randn(16, generator=rng)[:, None, None]
        tokens[number, labels[number], rows, columns] += 3
    return features.Maps(tokens=tokens.relu().half(), labels=labels, on=on, off=1 - on)


def _kinds() -> dict[str, readers.Setting]:
    turned = replace(settings.OPEN, pairwise="disagreement", border="mean", lambda_pair=0.3)
    return {
        "no mask": settings.NO_MASK,
        "released": settings.AS_RELEASED,
        "written": replace(settings.AS_WRITTEN, bias=1.0, lambda_unary=0.1),
        "turned": replace(turned, pool="normalised"),
        "centred": replace(settings.OPEN, centred=True, neighbourhood=4, lambda_pair=0.3),
        "hard": replace(settings.OPEN, hard=True, lambda_pair=0.1),
        "true": replace(settings.NO_MASK, mask="true", pool="normalised"),
    }
