"""Masks and linear heads on frozen maps: many settings trained side by side on the same batches.

A *reader* is what learns in the published protocol: an energy mask, a pooling, a linear head. All
settings of a stack see the same batches from the same start, so what differs between them is the
setting. Their parameters are their own and their losses are added, so that each trains as it would
alone; the frozen tokens are read once for all of them, which makes twenty about as fast as two.

    logit     z = w . p^ + b                                            as `ersm_core.EnergyMask`
    mask      m = sigmoid(-z), or 0/1 with its gradient (hard)
    price     softplus(a) as published, softplus(-a) with the sign turned
    energy    E = lambda_unary softplus(z) + lambda_pair price
    pooling   sum m p / N ("mean"), sum m p / sum m ("normalised": attention pooling)
    loss      cross-entropy + mean of m E

The tokens are frozen, so their agreements a, and the prices, are numbers that are known beforehand.
`DisagreementMask` is the core's layer with the sign turned; tests hold the stack against both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ersm_core import EnergyMask, EnergyState, energy_terms
from ersm_lab.common import checks
from ersm_lab.photographs.features import Maps

BATCH_SIZE, WEIGHT_DECAY = 64, 1e-2  # the decay of torch's AdamW, as in `protocols`


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One reader. The defaults are those of the authors' released code.

    Attributes:
        mask: "learned", "none", or "true" (the share of each token that is object: a ceiling).
        bias: start of b; 6 is nearly closed.
        train_bias: "no" (as released), "one" for all positions, "positions" one for each (as written).
        lambda_unary, lambda_pair: weights of the two energies.
        pairwise: "agreement" as published, "disagreement" with the sign turned, "constant" the mean
            price of the published form for every token: pressure without a pattern.
        neighbourhood: 4 or 8.
        border: "sum" over the neighbours there are, as published; "mean" of them times the
            neighbourhood, so that missing ones make no token cheap.
        centred: the mean agreement of the image is subtracted first.
        pool: "mean" as published, "normalised" by the sum of the mask.
        hard: a 0/1 mask.
        origin: "zero" as published; "mean": the logit reads p^ minus the mean p^ of the training tokens.
        learning_rate: of AdamW, for mask and head.
        epochs: of the whole stack.
    """

    mask: str = "learned"
    bias: float = 6.0
    train_bias: str = "no"
    lambda_unary: float = 1e-3
    lambda_pair: float = 1e-3
    pairwise: str = "agreement"
    neighbourhood: int = 8
    border: str = "sum"
    centred: bool = False
    pool: str = "mean"
    hard: bool = False
    origin: str = "zero"
    learning_rate: float = 1e-3
    epochs: int = 20

    def __post_init__(self) -> None:
        checks.choice("mask", self.mask, ("learned", "none", "true"))
        checks.choice("train_bias", self.train_bias, ("no", "one", "positions"))
        checks.choice("pairwise", self.pairwise, ("agreement", "disagreement", "constant"))
        checks.choice("border", self.border, ("sum", "mean"))
        checks.choice("origin", self.origin, ("zero", "mean"))
        checks.choice("pool", self.pool, ("mean", "normalised"))

    @property
    def price(self) -> tuple:
        """What the prices of its tokens depend on."""
        return (self.pairwise, self.neighbourhood, self.border, self.centred)


class DisagreementMask(EnergyMask):
    """The core's layer with the pairwise term's sign turned: softplus(-a) in place of softplus(a)."""

    def compute(self, x: Tensor) -> EnergyState:
        state = super().compute(x)
        tokens = x.detach() if self.detach_pairwise else x  # (B, C, h, w)
        if self.patch_size > 1 or not isinstance(self.project, nn.Identity):
            raise ValueError("DisagreementMask is for single tokens without projection")
        _, a = energy_terms(tokens, self.weight, self.bias, neighbourhood=self.neighbourhood)
        pairwise = self.lambda_pair * F.softplus(-a)  # (B, 1, h, w)
        return state._replace(pairwise=pairwise, energy=state.unary + pairwise)


def agreement(tokens: Tensor, *, neighbourhood: int = 8, border: str = "mean") -> Tensor:
    """How much each token resembles its neighbours: the sum of their cosines, or neighbourhood x mean.

    Args:
        tokens: (N, C, h, w).
        neighbourhood: 4 or 8.
        border: "sum" as published, where border tokens have fewer terms; "mean" corrects for it.

    Returns:
        (N, h, w) float32.
    """
    checks.choice("border", border, ("sum", "mean"))
    nothing = torch.zeros(tokens.shape[1]), torch.zeros(())  # of weight and bias: z is not wanted
    parts = [
        energy_terms(part, *nothing, neighbourhood=neighbourhood)[1][:, 0]
        for part in tokens.split(64)
    ]
    a = torch.cat(parts)  # (N, h, w)
    if border == "sum":
        return a
    alike = torch.ones(1, 1, *a.shape[1:])  # tokens that all agree: a counts the neighbours
    there = energy_terms(alike, torch.zeros(1), torch.zeros(()), neighbourhood=neighbourhood)[1][0]
    return neighbourhood * a / there  # (N, h, w)


def prices(tokens: Tensor, settings: Sequence[Setting]) -> Tensor:
    """softplus(+-a) of every token, (N, h w, K) for K settings."""
    known: dict[tuple, Tensor] = {}
    for setting in settings:
        if setting.price not in known:
            pairwise, neighbourhood, border, centred = setting.price
            a = agreement(tokens, neighbourhood=neighbourhood, border=border).flatten(1)  # (N, h w)
            a = a - a.mean(1, keepdim=True) if centred else a
            price = F.softplus(-a if pairwise == "disagreement" else a)  # (N, h w)
            known[setting.price] = price.mean().expand_as(a) if pairwise == "constant" else price
    return torch.stack([known[setting.price] for setting in settings], 2)  # (N, h w, K)


class Readers(nn.Module):
    """K readers on tokens (B, N, C), from one start drawn by the seed.

    Args:
        settings: K of them.
        channels: C.
        positions: N.
        classes: Q of the heads.
        seed: of the start, the same for all.
        middle: (C,), the mean p^ for those whose origin it is; None is zero.
    """

    hard: Tensor
    learned: Tensor
    true: Tensor
    normalised: Tensor
    origin: Tensor
    lambda_unary: Tensor
    lambda_pair: Tensor

    def __init__(
        self,
        settings: Sequence[Setting],
        *,
        channels: int,
        positions: int,
        classes: int,
        seed: int,
        middle: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.settings = tuple(settings)
        torch.manual_seed(seed)
        head = nn.Linear(channels, classes)
        w = torch.empty(channels).uniform_(-(channels**-0.5), channels**-0.5)  # (C,) as the core's
        each = range(len(settings))
        self.weight = nn.ParameterList([w.clone() for _ in each])
        self.head = nn.ParameterList([head.weight.detach().clone() for _ in each])  # (Q, C)
        self.head_bias = nn.ParameterList([head.bias.detach().clone() for _ in each])  # (Q,)
        self.bias = nn.ParameterList(
            [
                nn.Parameter(
                    torch.full((positions if s.train_bias == "positions" else 1,), s.bias),
                    requires_grad=s.train_bias != "no",
                )
                for s in settings
            ]
        )
        per_setting = {
            "hard": [s.hard for s in settings],
            "learned": [s.mask == "learned" for s in settings],
            "true": [s.mask == "true" for s in settings],
            "normalised": [s.pool == "normalised" for s in settings],
        }
        for name, values in per_setting.items():
            self.register_buffer(name, torch.tensor(values))  # (K,)
        moved = torch.tensor([float(s.origin == "mean") for s in settings])  # (K,)
        middle = torch.zeros(channels) if middle is None else middle
        self.register_buffer("origin", middle[:, None] * moved)  # (C, K)
        self.register_buffer("lambda_unary", torch.tensor([s.lambda_unary for s in settings]))
        self.register_buffer("lambda_pair", torch.tensor([s.lambda_pair for s in settings]))

    def logits(self, tokens: Tensor) -> Tensor:
        """z (B, N, K) of tokens (B, N, C)."""
        bias = torch.stack([b.expand(tokens.shape[1]) for b in self.bias], 1)  # (N, K)
        scale = 1 / tokens.norm(dim=2, keepdim=True).clamp_min(1e-6)  # (B, N, 1)
        weight = torch.stack(list(self.weight), 1)  # (C, K)
        return tokens @ weight * scale - (self.origin * weight).sum(0) + bias  # (B, N, K)

    def masks(self, z: Tensor, on: Tensor) -> Tensor:
        """m (B, N, K) of logits (B, N, K) and of the objects' shares (B, N), for those that see them."""
        soft = torch.sigmoid(-z)
        m = torch.where(self.hard, (z < 0).to(soft) + soft - soft.detach(), soft)
        m = torch.where(self.learned, m, torch.ones_like(m))
        return torch.where(self.true, on[:, :, None], m)

    def scores(self, tokens: Tensor, m: Tensor) -> Tensor:
        """Class scores (B, K, Q) of tokens (B, N, C) under masks (B, N, K)."""
        total = torch.where(self.normalised, m.sum(1).clamp_min(1e-6), m.new_tensor(m.shape[1]))
        share = m / total[:, None]  # (B, N, K)
        pooled = share.transpose(1, 2) @ tokens  # (B, K, C)
        heads = torch.stack(list(self.head))  # (K, Q, C)
        bias = torch.stack(list(self.head_bias))  # (K, Q)
        return torch.bmm(pooled.transpose(0, 1), heads.mT).transpose(0, 1) + bias  # (B, K, Q)

    def losses(self, tokens: Tensor, labels: Tensor, on: Tensor, price: Tensor) -> Tensor:
        """Cross-entropy + mean of m E of each reader, (K,)."""
        z = self.logits(tokens)  # (B, N, K)
        m = self.masks(z, on)  # (B, N, K)
        scores = self.scores(tokens, m)  # (B, K, Q)
        task = F.cross_entropy(
            scores.flatten(0, 1), labels.repeat_interleave(len(self.settings)), reduction="none"
        )
        energy = self.lambda_unary * F.softplus(z) + self.lambda_pair * price  # (B, N, K)
        paid = torch.where(self.learned, m * energy, 0.0)
        return task.view(len(labels), -1).mean(0) + paid.mean((0, 1))  # (K,)


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """Maps as readers take them.

    Attributes:
        tokens: float32 (N, h w, C).
        labels: (N,).
        on: (N, h w), the objects' shares; 0 where an image has no true mask.
        price: (N, h w, K).
    """

    tokens: Tensor
    labels: Tensor
    on: Tensor
    price: Tensor

    def part(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.tokens[index], self.labels[index], self.on[index], self.price[index]


def frozen(maps: Maps, settings: Sequence[Setting]) -> Frozen:
    """Maps in float32, tokens in rows, with the prices of all settings."""
    wide = maps.tokens.float()  # (N, C, h, w)
    return Frozen(
        tokens=wide.flatten(2).transpose(1, 2).contiguous(),
        labels=maps.labels,
        on=maps.on.flatten(1).nan_to_num(0.0),
        price=prices(wide, settings),
    )


def mean_token(tokens: Tensor) -> Tensor:
    """Mean of p^ over all tokens (N, T, C), (C,)."""
    return torch.stack([F.normalize(part, dim=2).sum((0, 1)) for part in tokens.split(256)]).sum(
        0
    ) / (tokens.shape[0] * tokens.shape[1])


def train(
    settings: Sequence[Setting],
    data: Frozen,
    *,
    classes: int,
    seed: int,
    index: Tensor | None = None,
) -> Readers:
    """Train readers side by side: AdamW, cosine over all steps, batches of 64 drawn by the seed.

    Args:
        settings: of one number of epochs.
        data: of the same settings.
        classes: of the heads.
        seed: of start and batches.
        index: train on these images only.
    """
    (epochs,) = {setting.epochs for setting in settings}
    index = torch.arange(len(data.labels)) if index is None else index
    moved = any(setting.origin == "mean" for setting in settings)
    readers = Readers(
        settings,
        channels=data.tokens.shape[2],
        positions=data.tokens.shape[1],
        classes=classes,
        seed=seed,
        middle=mean_token(data.tokens[index]) if moved else None,
    )
    groups = [
        {"params": list(parts), "lr": setting.learning_rate}
        for setting, *parts in zip(
            settings, readers.weight, readers.head, readers.head_bias, readers.bias, strict=True
        )
    ]
    optimiser = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)
    steps = epochs * math.ceil(len(index) / BATCH_SIZE)
    half = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: (1 + math.cos(math.pi * step / steps)) / 2
    )
    rng = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for batch in index[torch.randperm(len(index), generator=rng)].split(BATCH_SIZE):
            optimiser.zero_grad()
            readers.losses(*data.part(batch)).sum().backward()
            optimiser.step()
            half.step()
    return readers.eval().requires_grad_(False)
