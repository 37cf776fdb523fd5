"""Accuracy under attack: every attack by every route, and the worst case of them.

An attack moves every pixel of an image by at most epsilon, within 0 to 1, so that the network errs.
Accuracy under attack is the share of images that it gets right both untouched and attacked. Routes
are the network's own gradient and those of its surrogates (`gradients`); what is reported is the worst
case over them. Where Square, which follows no gradient, still breaks images, the other parts of
AutoAttack were misled: `left_after` says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial

import torch
from scipy import stats
from torch import Tensor, nn

from ersm_lab.common import checks
from ersm_lab.evaluation.attacks import (
    DIRECT,
    STANDARD,
    AttackSettings,
    PixelNetwork,
    attackable,
    autoattack_members,
    batches,
    fgsm,
    pgd,
    pixels_of,
    transfer_members,
)
from ersm_lab.evaluation.gradients import (
    GradientCheck,
    enabled_masks,
    gradient_check,
    share,
    surrogate,
)
from ersm_lab.images.data import ImageSet

ROUNDING = 1e-6  # by which float32 may overstep epsilon, in units of 0 to 1


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
                    | {"by_route": {o.route: share(o.survives) for o in routes}}
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
        return {"accuracy": share(survives), "low": low, "high": high}


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
    if enabled_masks(model):
        for kind in settings.surrogates:
            routes[kind] = partial(surrogate, model, kind, temperature=settings.temperature)
    network = PixelNetwork(model, data)
    bench = _Bench(network, pixels_of(data), data.labels, settings)
    outcomes: list[Outcome] = []
    with attackable(network):
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
        parts = batches(self.settings.batch_size, pixels, self.labels)
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
            parts = batches(settings.batch_size, bench.pixels, bench.labels)
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
                members = transfer_members(bench.network, epsilon=epsilon, settings=settings)
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


def _check_ball(adversarial: Tensor, pixels: Tensor, epsilon: float) -> None:
    """What must hold of every attack, or its figures mean nothing."""
    change = (adversarial - pixels).abs().max().item()
    inside = adversarial.min() >= 0 and adversarial.max() <= 1
    if not (inside and change <= epsilon + ROUNDING):
        raise RuntimeError(
            f"an attacked image left 0 to 1 or changed by {change:g} > {epsilon:g}: look for NaN in "
            "the network's gradients with gradient_check"
        )
