"""Checks of the chapter on photographs."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

TOLERANCE = 1e-9


def check_agreement(function: Callable) -> str | None:
    """mean_agreement(p): tokens (C, h, w) -> mean cosine with the neighbours up, down, left, right that
    exist, (h, w)."""
    rng = torch.Generator().manual_seed(0)
    p = torch.randn(5, 3, 4, dtype=torch.float64, generator=rng)  # (C, h, w)
    answer = function(p.clone())
    if not isinstance(answer, Tensor) or answer.shape != (3, 4):
        kind = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        return f"give a tensor of shape (h, w) = (3, 4), not {kind}"
    unit = F.normalize(p, dim=0)
    total, raw, there = (torch.zeros(3, 4, dtype=torch.float64) for _ in range(3))
    for i in range(3):
        for j in range(4):
            for k, m in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
                if 0 <= k < 3 and 0 <= m < 4:
                    total[i, j] += unit[:, i, j] @ unit[:, k, m]
                    raw[i, j] += p[:, i, j] @ p[:, k, m]
                    there[i, j] += 1
    wrong = {
        "that is the sum, in which border tokens have fewer terms: divide by how many there are": total,
        "divide by the neighbours that exist, not by four": total / 4,
        "normalise the tokens first: a cosine does not know their length": raw / there,
    }
    if (answer - total / there).abs().max() < TOLERANCE:
        return None
    for words, value in wrong.items():
        if (answer - value).abs().max() < TOLERANCE:
            return words
    at = tuple(int(i) for i in torch.unravel_index((answer - total / there).abs().argmax(), (3, 4)))
    return f"at {at} it gives {answer[at]:.4f}, a loop gives {(total / there)[at]:.4f}"


def check_attention_pool(function: Callable) -> str | None:
    """attention_pool(p, m): tokens (B, C, h, w), masks (B, 1, h, w) -> sum m p / sum m, (B, C)."""
    rng = torch.Generator().manual_seed(0)
    p = torch.randn(3, 4, 2, 5, dtype=torch.float64, generator=rng)  # (B, C, h, w)
    m = torch.rand(3, 1, 2, 5, dtype=torch.float64, generator=rng)
    answer = function(p.clone(), m.clone())
    if not isinstance(answer, Tensor) or answer.shape != (3, 4):
        kind = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        return f"give a tensor of shape (B, C) = (3, 4), not {kind}"
    total = (m * p).sum((2, 3))  # (B, C)
    right = total / m.sum((2, 3))
    wrong = {
        "that is mean pooling, which sees how open the mask is: divide by the sum of the mask": (
            total / 10
        ),
        "the masks of all images are added: divide by each image's own": total / m.sum(),
        "divide by the sum of the mask": total,
    }
    if (answer - right).abs().max() < TOLERANCE:
        return None
    for words, value in wrong.items():
        if (answer - value).abs().max() < TOLERANCE:
            return words
    return "with m = 1 everywhere it must be the mean, with one open token that token"
