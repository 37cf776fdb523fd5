"""The card of a trained network: what it does when things are hidden, spoiled, attacked or deleted.

Seven suites of questions, each with its own settings at every scale and its own record:

    occlusion   accuracy behind a square: sizes, places and fills
    corruption  accuracy under the corruptions of CIFAR-10-C, every kind at every severity
    resolution  accuracy at a lower resolution
    attacks     accuracy under FGSM, PGD and AutoAttack, with the check that gradients can be trusted
    deletion    how well each ranking tells which tokens and pixels the network needs
    objects     whether maps find the object of textured shapes, whose true masks are known
    spurious    accuracy where the background of textured shapes tells the truth and where it lies

and three that only some networks are asked, by name:

    smoothing   accuracy on images that were simplified, as `smoothing_suite` does it
    lambda      accuracy of a sparse code whose lambda is chosen three ways, as `lambda_suite` does it
    lambda-choice   the same four ways, with statistics to match, as `lambda_choice` does it
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ersm_lab.images import data as lab_data
from ersm_lab.images.data import ImageSet
from ersm_lab.suites import lambda_choice, lambda_suite, smoothing_suite
from ersm_lab.suites.attacked import Attacks, attacks
from ersm_lab.suites.deleted import Deletion, deletion
from ersm_lab.suites.finding import Finding
from ersm_lab.suites.objects import Objects, Spurious, objects, spurious
from ersm_lab.suites.perturbed import (
    Corruption,
    Occlusion,
    Resolution,
    at_low_resolution,
    under_corruption,
    under_occlusion,
)

# At laptop scale the images are so many that a network's card takes less than 15 minutes on two cores.
PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "occlusion": Occlusion(images=100, sizes=(4, 12, 20)),
        "corruption": Corruption(images=50, severities=(1, 3, 5)),
        "resolution": Resolution(images=200),
        "attacks": Attacks(
            images=20, pgd_steps=5, apgd_steps=5, targets=2, square_queries=20, batch_size=20
        ),
        "deletion": Deletion(images=40, curve_images=4, unit_images=1),
        "objects": Objects(images=100),
        "spurious": Spurious(images=100),
        "smoothing": smoothing_suite.SUITES["smoke"],
        "lambda": lambda_suite.SUITES["smoke"],
        "lambda-choice": lambda_choice.SUITES["smoke"],
    },
    "laptop": {
        "occlusion": Occlusion(images=2_500),
        "corruption": Corruption(images=2_000),
        "resolution": Resolution(images=10_000),
        "attacks": Attacks(images=200),
        "deletion": Deletion(images=500, curve_images=100, unit_images=10),
        "objects": Objects(images=1_000),
        "spurious": Spurious(images=2_000),
        "smoothing": smoothing_suite.SUITES["laptop"],
        "lambda": lambda_suite.SUITES["laptop"],
        "lambda-choice": lambda_choice.SUITES["laptop"],
    },
    "full": {
        "occlusion": Occlusion(images=None),
        "corruption": Corruption(images=None),
        "resolution": Resolution(images=None),
        "attacks": Attacks(images=1_000, levels=(2, 4), batch_size=1_000),
        "deletion": Deletion(images=2_000, curve_images=200, unit_images=20),
        "objects": Objects(images=None),
        "spurious": Spurious(images=10_000),
        "smoothing": smoothing_suite.SUITES["full"],
        "lambda": lambda_suite.SUITES["full"],
        "lambda-choice": lambda_choice.SUITES["full"],
    },
}

# --- asked by name only ----------------------------------------------------------------------------


def _simplified(
    model: nn.Module,
    data: ImageSet,
    settings: smoothing_suite.SmoothingSuite,
    *,
    progress: bool = False,
) -> Finding:
    """Conditions and metrics of `smoothing_suite.measure`."""
    return _measured(*smoothing_suite.measure(model, data, settings=settings))


def _with_training(
    measure: Callable[..., tuple[dict, dict[str, Tensor]]],
) -> Callable[..., Finding]:
    """A suite of conditions and metrics of `measure`, which is shown training images as well."""

    def asked(
        model: nn.Module,
        data: ImageSet,
        settings: lambda_suite.LambdaSuite,
        *,
        progress: bool = False,
    ) -> Finding:
        training = lab_data.load(
            data.name, "train", limit=settings.fit_images, device=data.images.device
        )
        return _measured(*measure(model, data, training, settings=settings))

    return asked


def _measured(metrics: dict, answers: Mapping[str, Tensor]) -> Finding:
    right = torch.stack([*answers.values()]).cpu()  # (conditions, N)
    return Finding(metrics=metrics, conditions=tuple(answers), right=right)


# --- the whole card --------------------------------------------------------------------------------

SUITES: dict[str, Callable[..., Finding]] = {
    "occlusion": under_occlusion,
    "corruption": under_corruption,
    "resolution": at_low_resolution,
    "attacks": attacks,
    "deletion": deletion,
    "objects": objects,
    "spurious": spurious,
    "smoothing": _simplified,
    "lambda": _with_training(lambda_suite.measure),
    "lambda-choice": _with_training(lambda_choice.measure),
}
UNDER_CONDITIONS = ("occlusion", "corruption", "resolution")  # accuracies, and no gradients
ON_SHAPES = ("objects", "spurious")  # need true object masks
BY_NAME = ("smoothing", "lambda", "lambda-choice")  # of chapters 8 and 9; not on everyone's card


def suites_of(dataset: str) -> tuple[str, ...]:
    """The suites of a network's card on a data set."""
    left_out = BY_NAME if dataset.startswith("shapes") else (*BY_NAME, *ON_SHAPES)
    return tuple(suite for suite in SUITES if suite not in left_out)


def evaluate(
    model: nn.Module,
    data: ImageSet,
    *,
    suites: Sequence[str] | None = None,
    scale: str = "laptop",
    settings: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> dict[str, Finding]:
    """Ask a trained network several suites.

    Args:
        model: the network; it is left as it was.
        data: test images, on the device of the model.
        suites: of `SUITES`; None is the whole card, all that the data can be asked but `BY_NAME`.
        scale: whose settings of `PRESETS` are taken.
        settings: {suite: settings} that take precedence.
        progress: show bars.

    Returns:
        {suite: what it found}.

    Raises:
        ValueError: an unknown suite or scale, or a suite that needs true object masks without them.
    """
    if suites is None:
        suites = suites_of("shapes" if data.masks is not None else "")
    chosen = {suite: settings_of(suite, scale, settings) for suite in suites}
    found = {}
    for suite, asked in chosen.items():
        begun = time.perf_counter()
        finding = SUITES[suite](model, data[: asked.images], asked, progress=progress)
        found[suite] = replace(finding, seconds=time.perf_counter() - begun)
    return found


def settings_of(suite: str, scale: str, given: Mapping[str, Any] | None) -> Any:
    if suite not in SUITES:
        raise ValueError(f"no suite {suite!r}: choose of {', '.join(SUITES)}")
    if given and suite in given:
        return given[suite]
    if scale not in PRESETS:
        raise ValueError(f"no scale {scale!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[scale][suite]
