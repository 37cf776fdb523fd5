"""Accuracy under attack by FGSM, PGD-20 and AutoAttack (l-infinity), and whether to trust it.

An attack moves every pixel of an image by at most epsilon, within 0 to 1, so that the network errs.
Accuracy under attack is the share of images that it gets right both untouched and attacked.

    FGSM        one step along the sign of the gradient (Goodfellow et al., 2015, arXiv:1412.6572)
    PGD         20 such steps of epsilon / 4 from a random start (Madry et al., 2018, arXiv:1706.06083)
    AutoAttack  APGD-CE, APGD-T, FAB-T, Square, each on the images that the ones before it left
                (Croce & Hein, 2020, arXiv:2003.01690); the authors' code, package `pyautoattack`

All but Square follow the gradient, so a network that merely hides it looks robust (Athalye et al.,
2018, arXiv:1802.00420). A mask can hide it: a 0/1 gate has the derivative zero, its straight-through
gradient is a substitute, and a mask that reads detached tokens passes none back. Three answers:

    gradient_check  is there a gradient, does some of it pass the mask, does the loss rise along it?
    surrogate       attack a network whose mask hides nothing, show the images to the true one
    left_after      if Square, without gradients, still breaks images, the others were misled

What is reported is the worst case over the direct attack and the surrogates.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from scipy import stats
from torch import Tensor, nn

from ersm_core import EnergyMask
from ersm_lab.common import checks
from ersm_lab.evaluation.inference import evaluating, replaced_mask
from ersm_lab.images.data import ImageSet

ATTACKS = ("fgsm", "pgd", "autoattack")
SURROGATES = ("soft", "bpda")
DIRECT = "direct"  # the route of an attack that follows the network's own gradient
MOST_STEP = 1_000.0  # of PGD, in epsilons; from 2 on every step ends on the border of the ball
ROUNDING = 1e-6  # by which float32 may overstep epsilon, in units of 0 to 1


def _check_epsilon(epsilon: float) -> None:
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
            _check_epsilon(epsilon)
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
def surrogate(model: nn.Module, kind: str, *, temperature: float = 1.0) -> Iterator[None]:
    """While open, the model's masks pass gradients back; images that fool it so are then tried on
    the model itself.

    Args:
        model: a network with at least one enabled energy mask; changed in place, put back after.
        kind: "soft" for another network, whose masks are sigmoid(-z / temperature) with gradients
            to the tokens, whatever the gate (a soft energy gate stays as it is); "bpda" for the
            same answers, with a gradient that passes every mask as if it were all ones (backward
            pass differentiable approximation, Athalye et al., 2018, arXiv:1802.00420).
        temperature: T > 0, of "soft".

    Raises:
        ValueError: an unknown kind, a temperature of 0 or less, a model without an enabled mask.
    """
    checks.network("model", model)
    checks.choice("kind", kind, SURROGATES)
    checks.number("temperature", temperature, above=0, most=1e6)
    masks = _enabled_masks(model)
    if not masks:
        raise ValueError("the model has no enabled energy mask: attack it directly")

    def pass_gradient(module: EnergyMask, args: tuple[Tensor], output: Tensor) -> Tensor:
        x = args[0]  # (B, C, H, W)
        return output.detach() + (x - x.detach())  # the output's values, the gradient of x

    detached = [mask.detach_tokens for mask in masks]
    try:
        with ExitStack() as stack:
            for mask in masks:
                if kind == "bpda":
                    stack.callback(mask.register_forward_hook(pass_gradient).remove)
                    continue
                mask.detach_tokens = False
                if mask.gate == "logit" or mask.hard:
                    soften = partial(_soft_mask, mask, temperature)
                    stack.enter_context(replaced_mask(mask, soften))
            yield
    finally:
        for mask, value in zip(masks, detached, strict=True):
            mask.detach_tokens = value


def _soft_mask(mask: EnergyMask, temperature: float, m: Tensor) -> Tensor:
    """In place of the mask m that the last forward made, (B, 1, h, w)."""
    return torch.sigmoid(-mask.state.logit / temperature)


# --- is there a gradient to follow? ----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class GradientCheck:
    """What the gradient of the cross-entropy with respect to the pixels is worth, image by image.

    Attributes:
        zero: bool (N,), True where it is zero in every pixel.
        non_finite: bool (N,), True where it holds NaN or infinity.
        agreement: {step: (N,)}, the loss's slope along the gradient, from central differences of
            this step in units of 0 to 1 of the most sensitive pixel, divided by the slope that the
            gradient promises. At a small step 1 says that it is the derivative; a straight-through
            gradient is not. At a step of the size of an attack near 0, or below, says that following
            it leads nowhere. NaN where there is no gradient to follow.
        through_mask: (N,), length of the part that comes through the masks, divided by the length of
            the longer of the whole and the rest; 0 says that all masks are seen as constants. None
            for a network without a mask.
    """

    zero: Tensor
    non_finite: Tensor
    agreement: Mapping[float, Tensor]
    through_mask: Tensor | None = None

    def summary(self) -> dict:
        """Shares and medians, for a record; None where there is nothing to take a median of."""
        found = {
            "images": len(self.zero),
            "zero_share": _share(self.zero),
            "non_finite_share": _share(self.non_finite),
            "agreement": [
                {
                    "step": step,
                    "median": _median(ratio),
                    "share_within_10_percent": _share((ratio - 1).abs() <= 0.1),
                }
                for step, ratio in self.agreement.items()
            ],
        }
        if self.through_mask is not None:
            found["through_mask_median"] = _median(self.through_mask)
            found["none_through_mask_share"] = _share(self.through_mask < 1e-6)
        return found


def gradient_check(
    model: nn.Module,
    data: ImageSet,
    *,
    steps: tuple[float, ...] = (1e-5, 1 / 255),
    batch_size: int = 100,
) -> GradientCheck:
    """Look for gradients that are absent, broken or false before believing an attack by gradients.

    Zero and non-finite gradients are counted in the network's own precision, as the attacks see
    them; slopes are measured on a copy in float64.

    Args:
        model: the network.
        data: the images and labels to look at; some 100 are enough.
        steps: of the central differences, in units of 0 to 1.
        batch_size: images a batch.

    Raises:
        ValueError: no images, or a step that is not above 0.
    """
    checks.network("model", model)
    checks.labelled("data", data)
    checks.several("steps", steps)
    for step in steps:
        checks.number("steps", step, above=0, most=1)
    checks.whole("batch_size", batch_size)
    network = PixelNetwork(model, data)
    exact = deepcopy(network).double()
    masks = _enabled_masks(model)
    gradients: list[Tensor] = []
    passed: list[Tensor] = []
    ratios: dict[float, list[Tensor]] = {step: [] for step in steps}
    with _attackable(network), _attackable(exact):
        for x, y in _batches(batch_size, pixels_of(data), data.labels):
            _, _, gradient = _look(network, x, y)  # (B, 3, H, W)
            gradients.append(gradient.cpu())
            if masks:
                passed.append(_through_masks(network, masks, x, y, gradient).cpu())
            for step, ratio in _slope_ratios(exact, x.double(), y, steps).items():
                ratios[step].append(ratio.cpu())
    gradient = torch.cat(gradients).flatten(1)  # (N, 3 H W)
    return GradientCheck(
        zero=(gradient == 0).all(1),
        non_finite=~gradient.isfinite().all(1),
        agreement={step: torch.cat(parts) for step, parts in ratios.items()},
        through_mask=torch.cat(passed) if masks else None,
    )


def _through_masks(
    network: nn.Module, masks: list[EnergyMask], x: Tensor, y: Tensor, gradient: Tensor
) -> Tensor:
    """Share of the gradient that is lost when the masks are held constant, (B,)."""
    with ExitStack() as stack:
        for mask in masks:
            stack.enter_context(replaced_mask(mask, Tensor.detach))
        _, _, rest = _look(network, x, y)  # (B, 3, H, W)
    whole, rest = gradient.flatten(1), rest.flatten(1)  # (B, 3 H W)
    longest = torch.maximum(whole.norm(dim=1), rest.norm(dim=1))  # (B,)
    return (whole - rest).norm(dim=1) / longest.clamp_min(torch.finfo(longest.dtype).tiny)


def _slope_ratios(
    network: nn.Module, x: Tensor, y: Tensor, steps: tuple[float, ...]
) -> dict[float, Tensor]:
    """Measured over promised slope of the loss along its gradient, {step: (B,)}, all in float64."""
    _, _, gradient = _look(network, x, y)  # (B, 3, H, W)
    largest = gradient.abs().amax((1, 2, 3), keepdim=True)  # (B, 1, 1, 1)
    along = gradient / largest  # (B, 3, H, W), NaN for a gradient of zero
    promised = (gradient * along).sum((1, 2, 3))  # (B,)
    ratios = {}
    for step in steps:
        ahead, behind = (
            F.cross_entropy(network(x + way * step * along.nan_to_num()), y, reduction="none")
            for way in (1, -1)
        )  # (B,), (B,)
        ratios[step] = (ahead - behind) / (2 * step) / promised
    return ratios


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
    _check_epsilon(epsilon)
    _check_pixels(network, pixels, labels)
    logits, _, gradient = _look(network, pixels, labels)  # (B, classes), _, (B, 3, H, W)
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
    _check_epsilon(epsilon)
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
        logits, loss, gradient = _look(network, x, labels)  # (B, classes), (B,), (B, 3, H, W)
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
    _check_epsilon(epsilon)
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


def _transfer_members(
    network: nn.Module, *, epsilon: float, settings: AttackSettings
) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """APGD on a surrogate: to the highest loss, as an image that only just fools the surrogate, like
    those of FAB, seldom fools the true network. Square follows no gradient and needs no surrogate."""

    def to_the_highest(loss: str) -> Callable[[Tensor, Tensor], Tensor]:
        ball = dict(norm="Linf", eps=epsilon, seed=settings.seed)
        attack = APGDAttack(network, n_iter=settings.apgd_steps, loss=loss, **ball)
        return lambda x, y: attack.perturb(x, y, best_loss=True)

    return {f"apgd-{loss}": to_the_highest(loss) for loss in ("ce", "dlr")}


# --- the evaluation --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one attack by one route left within one epsilon.

    Attributes:
        attack: of `ATTACKS`.
        epsilon: in units of 0 to 1.
        route: "direct", or the surrogate that lent its gradient; the answers are always the true
            network's.
        survives: bool (N,), right untouched and attacked.
        left_after: for AutoAttack, the images that are left after each of its attacks.
    """

    attack: str
    epsilon: float
    route: str
    survives: Tensor
    left_after: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class AttackReport:
    """All attacks on one network.

    Attributes:
        settings: what was run.
        clean: bool (N,), right untouched.
        outcomes: one for each attack, route and epsilon.
        gradients: of the same images, by `gradient_check`.
    """

    settings: AttackSettings
    clean: Tensor
    outcomes: tuple[Outcome, ...]
    gradients: GradientCheck

    def outcome(self, attack: str, epsilon: float, route: str = DIRECT) -> Outcome:
        """One of the outcomes.

        Raises:
            ValueError: it was not run.
        """
        for found in self.outcomes:
            if (found.attack, found.epsilon, found.route) == (attack, epsilon, route):
                return found
        raise ValueError(f"{attack!r} by route {route!r} within epsilon {epsilon} was not run")

    def worst(self, epsilon: float, attack: str | None = None) -> Tensor:
        """Which images survive every route, bool (N,).

        Args:
            epsilon: one of those that were run. What breaks an image within a smaller epsilon breaks
                it within a larger one too, so outcomes of the smaller ones count.
            attack: one of those that were run, or None for all of them.

        Raises:
            ValueError: nothing was run for this epsilon or this attack.
        """
        if epsilon not in self.settings.epsilons or attack not in (None, *self.settings.attacks):
            raise ValueError(f"{attack or 'any attack'} within epsilon {epsilon} was not run")
        outcomes = self._up_to(epsilon, attack)
        return torch.stack([self.clean, *(o.survives for o in outcomes)]).all(0)

    def interval(self, survives: Tensor) -> tuple[float, float]:
        """Wilson's interval of an accuracy, 0 to 1, over the drawing of the test images."""
        checks.tensor("survives", survives, "(N,)", "bools")
        right = stats.binomtest(int(survives.sum()), len(survives))
        found = right.proportion_ci(self.settings.confidence, method="wilson")
        return float(found.low), float(found.high)

    def summary(self) -> dict:
        """Plain numbers for a record; accuracies 0 to 1, with their intervals.

        Returns:
            settings; images, their number; clean; gradients; attacks: for each attack and epsilon
            its accuracy by route, AutoAttack's left_after, the worst case over routes and smaller
            epsilons, and how many images only surrogates broke; worst_case: over all attacks.
        """
        settings = self.settings
        attacks = []
        for attack in settings.attacks:
            for epsilon in settings.epsilons:
                routes = [o for o in self.outcomes if (o.attack, o.epsilon) == (attack, epsilon)]
                worst = self.worst(epsilon, attack)
                direct = (o.survives for o in self._up_to(epsilon, attack) if o.route == DIRECT)
                held = torch.stack([self.clean, *direct]).all(0)  # (N,)
                attacks.append(
                    {"attack": attack, "epsilon": epsilon}
                    | {"by_route": {o.route: _share(o.survives) for o in routes}}
                    | {"left_after": {o.route: dict(o.left_after) for o in routes if o.left_after}}
                    | {"worst_case": self._figures(worst)}
                    | {"only_by_surrogate": int((held & ~worst).sum())}
                )
        return {
            "settings": asdict(settings),
            "images": len(self.clean),
            "clean": self._figures(self.clean),
            "gradients": self.gradients.summary(),
            "attacks": attacks,
            "worst_case": [
                {"epsilon": epsilon} | self._figures(self.worst(epsilon))
                for epsilon in settings.epsilons
            ],
        }

    def _up_to(self, epsilon: float, attack: str | None) -> list[Outcome]:
        """All routes and epsilons up to this one, of this attack or of all."""
        return [o for o in self.outcomes if o.epsilon <= epsilon and attack in (None, o.attack)]

    def _figures(self, survives: Tensor) -> dict[str, float]:
        low, high = self.interval(survives)
        return {"accuracy": _share(survives), "low": low, "high": high}


def evaluate_attacks(
    model: nn.Module, data: ImageSet, settings: AttackSettings = STANDARD
) -> AttackReport:
    """Attack a trained network directly and through its surrogates.

    FGSM and PGD attack every image by every route, so that routes can be compared. AutoAttack, like
    its own four parts, goes on with what is left: a larger epsilon with the images that the smaller
    one left, a surrogate (by APGD-CE and APGD-DLR) with those that the direct attack left.

    Images are judged in batches of fixed places, for networks such as the control with random masks
    whose answers depend on the place. AutoAttack tries such a network in other batches than those
    it is judged in: for it PGD is the better attack.

    Args:
        model: the network; its modes, gradients and masks are put back.
        data: test images, on the device of the model.
        settings: what is run.

    Returns:
        The report, on the CPU.

    Raises:
        ValueError: no images, fewer than 4 classes for AutoAttack, or answers of NaN or infinity.
    """
    checks.network("model", model)
    checks.labelled("data", data)
    checks.a("settings", settings, AttackSettings)
    data = data[: settings.images]
    gradients = gradient_check(model, data, batch_size=settings.batch_size)
    routes: dict[str, Callable[[], AbstractContextManager]] = {DIRECT: nullcontext}
    if _enabled_masks(model):
        for kind in settings.surrogates:
            routes[kind] = partial(surrogate, model, kind, temperature=settings.temperature)
    network = PixelNetwork(model, data)
    bench = _Bench(network, pixels_of(data), data.labels, settings)
    outcomes: list[Outcome] = []
    with _attackable(network):
        clean = bench.right(bench.pixels)  # (N,)
        for attack in settings.attacks:
            if attack == "autoattack":
                outcomes += _ensemble(bench, clean, routes, len(data.classes))
            else:
                outcomes += _single(bench, clean, routes, attack)
    return AttackReport(
        settings=settings, clean=clean.cpu(), outcomes=tuple(outcomes), gradients=gradients
    )


@dataclass(frozen=True)
class _Bench:
    """A network, the images it is attacked on, (N, 3, H, W) and (N,), and the settings."""

    network: nn.Module
    pixels: Tensor
    labels: Tensor
    settings: AttackSettings

    def right(self, pixels: Tensor) -> Tensor:
        """Which of these images the network gets right, bool (N,)."""
        parts = _batches(self.settings.batch_size, pixels, self.labels)
        return torch.cat([checks.answers(self.network(x)).argmax(1) == y for x, y in parts])


def _single(
    bench: _Bench, clean: Tensor, routes: Mapping[str, Callable], attack: str
) -> Iterator[Outcome]:
    """FGSM or PGD on all images in their places, by each route."""
    settings = bench.settings
    run = fgsm
    if attack == "pgd":
        run = partial(pgd, steps=settings.pgd_steps, step=settings.pgd_step)
    for epsilon in settings.epsilons:
        for route, opened in routes.items():
            torch.manual_seed(settings.seed)
            parts = _batches(settings.batch_size, bench.pixels, bench.labels)
            with opened():
                tried = torch.cat([run(bench.network, x, y, epsilon=epsilon) for x, y in parts])
            _check_ball(tried, bench.pixels, epsilon)
            survives = (clean & bench.right(tried)).cpu()  # (N,)
            yield Outcome(attack=attack, epsilon=epsilon, route=route, survives=survives)


def _ensemble(
    bench: _Bench, clean: Tensor, routes: Mapping[str, Callable], classes: int
) -> Iterator[Outcome]:
    """AutoAttack: each of its attacks on the images that are left."""
    settings = bench.settings
    left = dict.fromkeys(routes, clean)  # (N,) each, after the epsilons so far
    for epsilon in settings.epsilons:
        for route, opened in routes.items():
            remaining = left[DIRECT] if route == DIRECT else torch.stack([*left.values()]).all(0)
            if route == DIRECT:
                members = autoattack_members(
                    bench.network, epsilon=epsilon, classes=classes, settings=settings
                )
            else:
                members = _transfer_members(bench.network, epsilon=epsilon, settings=settings)
            left_after = {}
            for name, perturb in members.items():
                torch.manual_seed(settings.seed)
                tried = bench.pixels.clone()  # (N, 3, H, W)
                with opened(), warnings.catch_warnings():
                    # gradient_check counts them
                    warnings.filterwarnings("ignore", message="there are .* zero gradient")
                    for part in remaining.nonzero()[:, 0].split(settings.batch_size):
                        if len(part):
                            tried[part] = perturb(bench.pixels[part], bench.labels[part])
                _check_ball(tried, bench.pixels, epsilon)
                remaining = remaining & bench.right(tried)  # (N,)
                left_after[name] = int(remaining.sum())
            left[route] = remaining
            yield Outcome(
                attack="autoattack",
                epsilon=epsilon,
                route=route,
                survives=remaining.cpu(),
                left_after=left_after,
            )


# --- shared ----------------------------------------------------------------------------------------


@contextmanager
def _attackable(network: nn.Module) -> Iterator[None]:
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


def _look(network: nn.Module, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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


def _batches(size: int, pixels: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(pixels.split(size), labels.split(size), strict=True)


def _enabled_masks(model: nn.Module) -> list[EnergyMask]:
    return [m for m in model.modules() if isinstance(m, EnergyMask) and m.enabled]


def _share(flags: Tensor) -> float:
    return flags.double().mean().item()


def _median(values: Tensor) -> float | None:
    finite = values[values.isfinite()]
    return finite.median().item() if len(finite) else None


def _check_pixels(network: nn.Module, pixels: Tensor, labels: Tensor) -> None:
    checks.function("network", network)
    checks.tensor("pixels", pixels, "(B, 3, H, W)", "floats", finite=False)
    checks.tensor("labels", labels, f"({len(pixels)},)", "whole numbers")
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        raise ValueError(
            "pixels must lie within 0 and 1: attack a PixelNetwork, not normalised input"
        )


def _check_ball(adversarial: Tensor, pixels: Tensor, epsilon: float) -> None:
    """What must hold of every attack, or its figures mean nothing."""
    change = (adversarial - pixels).abs().max().item()
    inside = adversarial.min() >= 0 and adversarial.max() <= 1
    if not (inside and change <= epsilon + ROUNDING):
        raise RuntimeError(
            f"an attacked image left 0 to 1 or changed by {change:g} > {epsilon:g}: look for NaN in "
            "the network's gradients with gradient_check"
        )
