"""Attacks on a network that takes pixels: FGSM, PGD-20 and AutoAttack (l-infinity).

An attack moves every pixel of an image by at most epsilon, within 0 to 1, so that the network errs.

    FGSM        one step along the sign of the gradient (Goodfellow et al., 2015, arXiv:1412.6572)
    PGD         20 such steps of epsilon / 4 from a random start (Madry et al., 2018, arXiv:1706.06083)
    AutoAttack  APGD-CE, APGD-T, FAB-T, Square, each on the images that the ones before it left
                (Croce & Hein, 2020, arXiv:2003.01690); the authors' code, package `pyautoattack`

All but Square follow the gradient: `gradients` says whether it can be trusted, and `under_attack`
runs them all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from ersm_lab.common import checks
from ersm_lab.evaluation.inference import evaluating
from ersm_lab.images.data import ImageSet

ATTACKS = ("fgsm", "pgd", "autoattack")
SURROGATES = ("soft", "bpda")
DIRECT = "direct"  # the route of an attack that follows the network's own gradient
MOST_STEP = 1_000.0  # of PGD, in epsilons; from 2 on every step ends on the border of the ball


def check_epsilon(epsilon: float) -> None:
    checks.number("epsilon", epsilon)
    if not 0 < epsilon <= 1:
        raise ValueError(
            f"epsilon is in units of 0 to 1 (8 of 255 grey levels are 8 / 255), got {epsilon}"
        )


@dataclass(frozen=True, kw_only=True)
class AttackSettings:
    """What is attacked, how hard, and by which routes.

    Attributes:
        attacks: of `ATTACKS`.
        epsilons: largest change of a pixel, in units of 0 to 1; increasing.
        images: the first so many of the data set, or all if there are fewer.
        surrogates: of `SURROGATES`; only for networks with a mask.
        temperature: T > 0 of the surrogate with soft masks.
        pgd_steps: of PGD.
        pgd_step: its length, as a share of epsilon.
        apgd_steps: of APGD and of FAB.
        targets: classes that APGD-T and FAB-T aim at, at most all the wrong ones.
        square_queries: of Square, an image.
        batch_size: images a batch.
        seed: of every random start.
        confidence: of the intervals, 0 to 1.

    Raises:
        ValueError: a setting that has no meaning.
    """

    attacks: tuple[str, ...] = ATTACKS
    epsilons: tuple[float, ...] = (2 / 255, 4 / 255, 8 / 255)
    images: int = 200
    surrogates: tuple[str, ...] = SURROGATES
    temperature: float = 1.0
    pgd_steps: int = 20
    pgd_step: float = 0.25
    apgd_steps: int = 100
    targets: int = 9
    square_queries: int = 5_000
    batch_size: int = 200
    seed: int = 0
    confidence: float = 0.95

    def __post_init__(self) -> None:
        for name, known in {"attacks": ATTACKS, "surrogates": SURROGATES}.items():
            checks.several(name, getattr(self, name), least=0)
            unknown = [value for value in getattr(self, name) if value not in known]
            if unknown:
                raise ValueError(f"no {name} {unknown}: choose from {', '.join(known)}")
        if not self.attacks:
            raise ValueError(
                f"attacks is empty, no attack to run: choose from {', '.join(ATTACKS)}"
            )
        if len({*self.attacks}) < len(self.attacks) or len({*self.surrogates}) < len(
            self.surrogates
        ):
            raise ValueError("attacks, surrogates: give each attack and each surrogate once")
        checks.several("epsilons", self.epsilons, least=0)
        for epsilon in self.epsilons:
            check_epsilon(epsilon)
        if not self.epsilons or list(self.epsilons) != sorted(set(self.epsilons)):
            raise ValueError(f"epsilons: give each once, the smallest first, got {self.epsilons}")
        for name in ("images", "targets", "batch_size"):
            checks.whole(name, getattr(self, name))
        for name in ("pgd_steps", "apgd_steps", "square_queries"):
            checks.whole(name, getattr(self, name), most=checks.MOST)
        checks.seed("seed", self.seed)
        checks.number("temperature", self.temperature, above=0, most=1e6)
        checks.number("pgd_step", self.pgd_step, above=0, most=MOST_STEP)
        checks.number("confidence", self.confidence, above=0, below=1)


STANDARD = AttackSettings()
SMOKE = AttackSettings(images=20, pgd_steps=5, apgd_steps=5, targets=2, square_queries=20)


# --- networks that take pixels ---------------------------------------------------------------------


class PixelNetwork(nn.Module):
    """A network behind the normalisation of its data set, so that an attack sees plain pixels.

    Shape:
        pixels (B, 3, H, W), 0 to 1 -> logits (B, classes); those of `ImageSet.inputs` at multiples
        of 1 / 255.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, data: ImageSet) -> None:
        checks.network("model", model)
        checks.a("data", data, ImageSet)
        super().__init__()
        device = data.images.device
        scale = 1 / (255 * torch.tensor(data.std, device=device))  # (3,)
        shift = -torch.tensor(data.mean, device=device) * 255 * scale  # (3,)
        self.model = model
        self.register_buffer("scale", scale[:, None, None])  # (3, 1, 1)
        self.register_buffer("shift", shift[:, None, None])  # (3, 1, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = torch.addcmul(self.shift, 255 * pixels, self.scale)  # (B, 3, H, W)
        logits = self.model(x.contiguous(memory_format=torch.channels_last))  # (B, classes)
        if pixels.requires_grad and not logits.requires_grad:  # a gradient of zero, not an error
            logits = logits + 0 * pixels.flatten(1).sum(1, keepdim=True)
        return logits


def pixels_of(data: ImageSet) -> Tensor:
    """The images as attacks take them: (N, 3, H, W) float32, 0 to 1, contiguous."""
    checks.a("data", data, ImageSet)
    checks.images("data.images", data.images)
    return (data.images.permute(0, 3, 1, 2).float() / 255).contiguous()


@contextmanager
def attackable(network: nn.Module) -> Iterator[None]:
    """Evaluation mode, parameters without gradients, random numbers of its own; all put back."""
    learned = [p for p in network.parameters() if p.requires_grad]
    devices = {b.device for b in network.buffers() if b.device.type == "cuda"}
    try:
        for parameter in learned:
            parameter.requires_grad_(False)
        with evaluating(network), torch.random.fork_rng(devices):
            yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)


def look(network: nn.Module, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B, classes), cross-entropy (B,) and its gradient with respect to pixels (B, 3, H, W)."""
    with torch.enable_grad():
        x = pixels.detach().requires_grad_()
        logits = network(x)  # (B, classes)
        if not (labels.min() >= 0 and labels.max() < logits.shape[1]):
            raise ValueError(
                f"labels must be numbers of the network's {logits.shape[1]} classes, got "
                f"{labels.min().item()} to {labels.max().item()}"
            )
        loss = F.cross_entropy(logits, labels, reduction="none")  # (B,)
        (gradient,) = torch.autograd.grad(loss.sum(), x)  # (B, 3, H, W)
    return logits.detach(), loss.detach(), gradient


def batches(size: int, pixels: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(pixels.split(size), labels.split(size), strict=True)


# --- attacks ---------------------------------------------------------------------------------------


def fgsm(network: nn.Module, pixels: Tensor, labels: Tensor, *, epsilon: float) -> Tensor:
    """One step of epsilon along the sign of the gradient (arXiv:1412.6572, section 4).

    Args:
        network: pixels to logits, as a `PixelNetwork`, in evaluation mode.
        pixels: (B, 3, H, W), 0 to 1.
        labels: (B,), the true ones.
        epsilon: largest change of a pixel, in units of 0 to 1.

    Returns:
        (B, 3, H, W), 0 to 1. A pixel without a gradient, or with NaN, stays as it is.

    Raises:
        ValueError: an epsilon outside of 0 to 1, pixels that are not within 0 to 1.
    """
    check_epsilon(epsilon)
    _check_pixels(network, pixels, labels)
    logits, _, gradient = look(network, pixels, labels)  # (B, classes), _, (B, 3, H, W)
    checks.answers(logits)
    return (pixels + epsilon * gradient.sign()).clamp(0, 1)


def pgd(
    network: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    steps: int = 20,
    step: float = 0.25,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Steps along the sign of the gradient from a random start, back into the ball after each
    (arXiv:1706.06083, section 2.1).

    Args:
        network, pixels, labels, epsilon: as of `fgsm`.
        steps: their number, at least 1.
        step: their length, as a share of epsilon.
        generator: of the random start, on the pixels' device; the global one if None.

    Returns:
        (B, 3, H, W), 0 to 1: of each image's steps, the start and the end included, one that fools
        the network if any does, and among those the one of the highest loss.

    Raises:
        ValueError: as of `fgsm`.
    """
    check_epsilon(epsilon)
    _check_pixels(network, pixels, labels)
    checks.whole("steps", steps, most=checks.MOST)
    checks.number("step", step, above=0, most=MOST_STEP)
    if generator is not None:
        checks.a("generator", generator, torch.Generator)
    low, high = (pixels - epsilon).clamp_min(0), (pixels + epsilon).clamp_max(1)
    start = torch.rand(pixels.shape, device=pixels.device, generator=generator)  # (B, 3, H, W)
    x = (pixels + epsilon * (2 * start - 1)).clamp(low, high)  # (B, 3, H, W)
    return climb(network, x, labels, low=low, high=high, size=step * epsilon, steps=steps)


def climb(network, x, labels, *, low, high, size, steps):
    """Steps of a size from x (B, 3, H, W), within low and high; the best that each image passed."""
    best, best_loss = x, torch.full_like(labels, -math.inf, dtype=x.dtype)  # (B, 3, H, W), (B,)
    fooled = torch.zeros_like(labels, dtype=torch.bool)  # (B,)
    for _ in range(steps + 1):
        logits, loss, gradient = look(network, x, labels)  # (B, classes), (B,), (B, 3, H, W)
        checks.answers(logits)
        wrong = logits.argmax(1) != labels  # (B,)
        better = (wrong & ~fooled) | ((wrong == fooled) & (loss > best_loss))  # (B,)
        best = torch.where(better[:, None, None, None], x, best)  # (B, 3, H, W)
        best_loss, fooled = torch.where(better, loss, best_loss), fooled | wrong
        x = (x + size * gradient.sign()).clamp(low, high)
    return best


def autoattack_members(
    network: nn.Module, *, epsilon: float, classes: int, settings: AttackSettings = STANDARD
) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """The four attacks of AutoAttack's standard version for l-infinity, in its order.

    Args:
        network: pixels to logits, as a `PixelNetwork`.
        epsilon: largest change of a pixel, in units of 0 to 1.
        classes: their number.
        settings: apgd_steps, targets, square_queries and seed. The defaults are the standard.

    Returns:
        {name: attack}; an attack takes pixels (B, 3, H, W) and labels (B,) and gives pixels.

    Raises:
        ValueError: fewer than 4 classes, an epsilon outside of 0 to 1.
    """
    checks.function("network", network)
    checks.a("settings", settings, AttackSettings)
    check_epsilon(epsilon)
    checks.whole("classes", classes)
    if classes < 4:
        raise ValueError(
            f"AutoAttack's targeted loss compares 4 classes, these are {classes}: leave "
            '"autoattack" out of the attacks'
        )
    ball = dict(norm="Linf", eps=epsilon, seed=settings.seed)
    gradient = dict(n_restarts=1, n_iter=settings.apgd_steps)
    aim = dict(n_target_classes=min(settings.targets, classes - 1))
    return {
        "apgd-ce": APGDAttack(network, loss="ce", **gradient, **ball).perturb,
        "apgd-t": APGDAttack_targeted(network, **gradient, **aim, **ball).perturb,
        "fab-t": FABAttack_PT(network, targeted=True, **gradient, **aim, **ball).perturb,
        "square": SquareAttack(
            network, n_queries=settings.square_queries, resc_schedule=False, **ball
        ).perturb,
    }


def transfer_members(
    network: nn.Module, *, epsilon: float, settings: AttackSettings
) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """APGD on a surrogate: to the highest loss, as an image that only just fools the surrogate, like
    those of FAB, seldom fools the true network. Square follows no gradient and needs no surrogate."""

    def to_the_highest(loss: str) -> Callable[[Tensor, Tensor], Tensor]:
        ball = dict(norm="Linf", eps=epsilon, seed=settings.seed)
        attack = APGDAttack(network, n_iter=settings.apgd_steps, loss=loss, **ball)
        return lambda x, y: attack.perturb(x, y, best_loss=True)

    return {f"apgd-{loss}": to_the_highest(loss) for loss in ("ce", "dlr")}


def _check_pixels(network: nn.Module, pixels: Tensor, labels: Tensor) -> None:
    checks.function("network", network)
    checks.tensor("pixels", pixels, "(B, 3, H, W)", "floats", finite=False)
    checks.tensor("labels", labels, f"({len(pixels)},)", "whole numbers")
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        raise ValueError(
            "pixels must lie within 0 and 1: attack a PixelNetwork, not normalised input"
        )
