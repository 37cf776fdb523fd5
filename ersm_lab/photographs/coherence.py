"""Why a map's tokens agree: what they share with their region, and what is their own.

Read the tokens of a region R as p_i = s_R + n_i, a part that all of them share and parts of their own,
unrelated to each other. Then two of them have, on average, the cosine

    rho_R = ||s_R||^2 / (||s_R||^2 + mean ||n_i||^2)

so agreement is a ratio of shared to whole power, and the norm is the whole power: a region may be
loud and incoherent, or quiet and coherent. Agreement marks the object where its rho is the larger one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ersm_lab.photographs.features import Maps


def neighbour_cosines(maps: Maps) -> dict[str, Tensor]:
    """Mean cosine of neighbouring tokens (up, down, left, right), each (N,), NaN where there is no pair.

    Returns:
        "object": both tokens mostly object; "ground": both mostly ground; "across": one of each.
    """
    unit = F.normalize(maps.tokens.float(), dim=1)  # (N, C, h, w)
    on, off = maps.on > 0.5, maps.off > 0.5  # (N, h, w)
    sums = {name: torch.zeros(len(maps)) for name in ("object", "ground", "across")}
    counts = {name: torch.zeros(len(maps)) for name in sums}
    height, width = on.shape[1:]
    for down, right in ((1, 0), (0, 1)):
        first = (slice(None), slice(0, height - down), slice(0, width - right))
        second = (slice(None), slice(down, None), slice(right, None))
        near, far = (unit.movedim(1, -1)[part] for part in (first, second))
        cosine = (near * far).sum(-1)  # (N, h', w')
        pairs = {
            "object": on[first] & on[second],
            "ground": off[first] & off[second],
            "across": (on[first] & off[second]) | (off[first] & on[second]),
        }
        for name, pair in pairs.items():
            sums[name] += (cosine * pair).flatten(1).sum(1)
            counts[name] += pair.flatten(1).sum(1)
    return {name: sums[name] / counts[name] for name in sums}  # 0 / 0 is NaN


def shared_part(maps: Maps) -> dict[str, Tensor]:
    """rho of object and ground, each (N,): power of the region's mean token over the mean power."""
    wide = maps.tokens.float().flatten(2)  # (N, C, T)
    found = {}
    for name, share in {"object": maps.on, "ground": maps.off}.items():
        inside = (share.flatten(1) > 0.5).float()  # (N, T)
        count = inside.sum(1)
        middle = torch.einsum("nct,nt->nc", wide, inside) / count[:, None]  # (N, C)
        power = (wide.square().sum(1) * inside).sum(1) / count  # (N,)
        # the mean of n tokens holds a part 1/n of their own power: taken off
        shared = (middle.square().sum(1) - power / count) / (1 - 1 / count)
        found[name] = torch.where(count > 1, shared / power, torch.nan)
    return found
