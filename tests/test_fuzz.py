"""Generated bad calls: whatever a public function cannot use it refuses, and says which argument it is.

The table at the end has a function, arguments that work, and for an argument what must be refused:
values of other types, numbers out of range, far out of range or not finite, tensors of another shape,
type or content, and words that are unknown. Nothing may pass, hang or fail obscurely.
"""

import copy
import functools
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ersm_attach import attach_energy_mask
from ersm_lab import image_folders
from ersm_lab.evaluation import (
    attacks,
    deletion,
    deletion_insertion,
    inference,
    lambda_suite,
    object_masks,
    rankings,
    smoothing_suite,
    sparse_lambda,
)
from ersm_lab.images import inverse_scale, perturbations, shapes
from ersm_lab.images.data import Augment, ImageSet
from ersm_lab.networks import backbones, controls, filled_mask, norms, pruning, sparse_coding
from ersm_lab.results import statistics
from ersm_lab.training import loop, protocols
from ersm_lab.training.config import Config, MaskPlace

# --- what works ------------------------------------------------------------------------------------

LOTS = torch.Generator().manual_seed(0)
PIXELS = torch.rand(2, 3, 8, 8, generator=LOTS)
NET = backbones.CifarNetSettings(widths=(4, 4), depth=1, stem_channels=4)
TRAIN = loop.TrainSettings(epochs=1)
LAW = dict(sparsity=0.5, start=0.6, ramp=0.1)  # of pruning
CODES = torch.randn(4, 3, 3, 3, generator=LOTS)  # a dictionary
MAPS = torch.rand(3, 4, 4, generator=LOTS)
OBJECTS = MAPS > 0.5
ANSWERS = {s: np.arange(20) % (2 + s) == 0 for s in (0, 1)}


@functools.cache
def image_set() -> ImageSet:
    images = torch.randint(256, (3, 32, 32, 3), generator=LOTS, dtype=torch.uint8)
    return ImageSet(
        name="noise",
        images=images,
        labels=torch.tensor([0, 1, 2]),
        classes=tuple("abcd"),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )


@functools.cache
def dense() -> nn.Module:
    torch.manual_seed(0)
    return backbones.CifarNet(NET, classes=4).eval()


@functools.cache
def masked() -> nn.Module:
    return attach_energy_mask(copy.deepcopy(dense()), "group1", preset="stable").eval()


@functools.cache
def coded() -> nn.Module:
    return sparse_coding.attach_sparse_coding(copy.deepcopy(dense()), "group1.0").eval()


@functools.cache
def curve(**_) -> deletion_insertion.PerturbationCurve:
    return deletion_insertion.perturbation_curve(
        dense(),
        image_set(),
        torch.rand(32, 32),
        game="deletion",
        convention=deletion_insertion.TORCHCAM,
    )


def features() -> protocols.FeatureSet:
    maps, labels = torch.rand(3, 4, 2, 2).half(), torch.tensor([0, 1, 2])
    return protocols.FeatureSet(maps=maps, labels=labels, classes=tuple("abc"))


def record(answers: list[bool], accuracy: dict | None = None) -> dict:
    packed = smoothing_suite.pack({"plain": torch.tensor(answers)})
    metrics = {"images": len(answers), "accuracy": accuracy or {"plain": 0.5}}
    config = {"test_images": len(answers)}
    parts = {"name": "made", "seed": 0, "config": config}
    return parts | {"answers": packed, "metrics": metrics}


def opened(manager: Callable[..., AbstractContextManager]) -> Callable:
    def call(**arguments):
        with manager(**arguments):
            pass

    return call


def or_not_there(look: Callable) -> Callable:
    """A call for which files that are absent are a documented error of their own."""

    def call(**arguments):
        with pytest.raises(FileNotFoundError):
            look(**arguments)

    return call


# --- what does not ---------------------------------------------------------------------------------

NOT_NUMBERS = ["3", True, [1], {}, (), object(), torch.tensor(3), 1 + 2j, b"1"]
NOT_FINITE = [float("nan"), float("inf"), float("-inf"), 10**400]


def none_or(values: list, optional: bool) -> list:
    return values if optional else [None, *values]


def not_whole(least: int = 1, most: int = 2**40, *, optional: bool = False):
    """No whole number, or one out of range."""
    edges = [least - 1, least - 2**40, -(2**70), 1.5, float(least), *NOT_FINITE[:3]]
    edges += [most + 1, most + 2**40, 2**70]
    far = st.integers(max_value=least - 1) | st.integers(min_value=most + 1) | st.floats()
    return st.sampled_from(none_or([*NOT_NUMBERS, *edges], optional)) | far


def not_number(low=None, high=None, *, low_is_bad=False, high_is_bad=False, optional=False):
    """No finite number, or one out of range."""
    edges, far = [], st.nothing()
    if low is not None:
        edges += [low] if low_is_bad else []
        edges += [low - 1, low - 1e200]
        far |= st.floats(max_value=low - 1e-6, allow_infinity=False)
    if high is not None:
        edges += [high] if high_is_bad else []
        edges += [high + 1, high + 1e200]
        far |= st.floats(min_value=high + 1e-6, allow_infinity=False)
    return st.sampled_from(none_or([*NOT_NUMBERS, *NOT_FINITE, *edges], optional)) | far


def not_share(*, optional: bool = False):
    return not_number(0, 1, optional=optional)


def not_seed():
    return not_whole(0, 2**40)


def not_flag():
    return st.sampled_from([None, 0, 1, "yes", [], torch.tensor(True)])


def not_word(*known: str, optional: bool = False):
    """No text, or one that is not known."""
    words = st.text().filter(lambda word: word not in known)
    return st.sampled_from(none_or([3, True, 1.5, object(), b"a"], optional)) | words


def not_a(*others, optional: bool = False):
    """Nothing of a class, such as settings or a network; or these others."""
    return st.sampled_from(none_or([3, "model", [], {}, object(), *others], optional))


def not_several(entry, *, empty: bool = True, optional: bool = False):
    """No tuple, or one with an entry that is refused; none at all unless that has a meaning."""
    shells = [3, 1.5, object(), torch.tensor([1.0])]
    shells += [()] if empty else []
    inside = entry.filter(lambda value: value is not None).map(lambda value: (value,))
    return st.sampled_from(none_or(shells, optional)) | inside


def not_pair(entry, good):
    """No two of them, or a refused one beside a good one."""
    shells = [
        None,
        object(),
        (),
        (good,),
        (good, good, good),
        torch.tensor([1, 2]),
        {"a": 1, "b": 2},
    ]
    return st.sampled_from(shells) | entry.flatmap(
        lambda value: st.sampled_from([(good, value), (value, good)])
    )


def not_tensor(good: torch.Tensor, *, nan: bool = True, kinds: bool = True, rank: bool = True):
    """Tensors of another rank, type or content than a good one, and what is no tensor.

    Args:
        nan: whether NaN and infinity are refused; else they have a documented meaning.
        kinds: whether other types of entries are refused.
        rank: whether another number of sides is refused.
    """
    wrong = ["x", 3, [1.0], np.ones(2), object(), good.to(torch.complex64), good[:0]]
    if rank:
        wrong += [good[None, None, None], good.flatten()[0]]
    if kinds:
        wrong += [good.long() if good.is_floating_point() else good.float()]
    if nan and good.is_floating_point():
        for hole in (float("nan"), float("inf")):
            spoiled = good.clone()
            spoiled.view(-1)[-1] = hole
            wrong.append(spoiled)
    return st.sampled_from([None, *wrong])


def not_images():
    good = image_set().images
    return not_tensor(good) | st.sampled_from([good.permute(0, 3, 1, 2), good[0], good[..., :2]])


def not_data(*, optional: bool = False):
    """No images, or labels that are not theirs."""
    labels = [[0, 1, 9], [0, 1, -1], [0, 1], [0.0, 1.0, 2.0], [[0], [1], [2]]]
    spoiled = []
    for values in labels:
        data = copy.copy(image_set())
        object.__setattr__(
            data, "labels", torch.tensor(values)
        )  # as no check of `ImageSet` may see it
        spoiled.append(data)
    return not_a(image_set()[:0], image_set().images, *spoiled, optional=optional)


def not_labels(count: int = 2, classes: int = 4):
    right = torch.zeros(count, dtype=torch.long)
    far = [right - 1, right + classes, right[:-1], torch.cat([right, right])]
    return not_tensor(right) | st.sampled_from(far)


# --- the table -------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A public function, arguments that it takes, and strategies of what it refuses, by argument."""

    call: Callable
    good: Callable[[], dict]
    bad: dict[str, st.SearchStrategy]


MOST = 1_000_000
NETWORK = not_a(torch.zeros(3), nn.Module)
PATCH = not_whole(1)
TARGET = not_word("predicted", "label")
CLASSES = not_whole(1, 100_000)
LAYER = not_word("group1")
SHARES = not_several(not_share())
BOOTSTRAP = {
    "confidence": not_number(0, 1, low_is_bad=True, high_is_bad=True),
    "resamples": not_whole(1, MOST),
    "seed": not_seed(),
}
CONFIDENCE = {"confidence": BOOTSTRAP["confidence"]}
KERNEL = {
    "stride": not_pair(not_whole(1, 20), 1),
    "padding": not_pair(not_whole(0, 3), 0),
}
RUN_CONFIG = {
    "backbone": not_a(),
    "train": not_a(),
    "train_images": not_whole(optional=True),
    "test_images": not_whole(optional=True),
}


def place(**settings) -> Callable[[], dict]:
    return lambda: {"backbone": NET, "train": TRAIN, **settings}


def asked(**arguments) -> Callable[[], dict]:
    """A network and images, and what else is asked of them."""
    return lambda: {"model": dense(), "data": image_set(), **arguments}


def attacked(**arguments) -> Callable[[], dict]:
    def good():
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
        labels = torch.tensor([0, 1])
        return {"network": model, "pixels": PIXELS, "labels": labels, "epsilon": 0.1, **arguments}

    return good


ATTACKED = {
    "network": not_a(),
    "pixels": not_tensor(PIXELS) | st.sampled_from([PIXELS - 1, PIXELS + 1]),
    "labels": not_labels(),
    "epsilon": not_number(0, 1, low_is_bad=True),
}
ASKED = {"model": NETWORK, "data": not_data()}

CASES = {
    # attacks
    "AttackSettings": Case(
        attacks.AttackSettings,
        dict,
        {
            "attacks": not_several(not_word("fgsm", "pgd", "autoattack")),
            "surrogates": not_several(not_word("soft", "bpda"), empty=False),
            "epsilons": not_several(not_number(0, 1, low_is_bad=True)),
            "images": not_whole(),
            "temperature": not_number(0, 1e6, low_is_bad=True),
            "pgd_steps": not_whole(1, MOST),
            "pgd_step": not_number(0, 1_000, low_is_bad=True),
            "apgd_steps": not_whole(1, MOST),
            "targets": not_whole(),
            "square_queries": not_whole(1, MOST),
            "batch_size": not_whole(),
            "seed": not_seed(),
            "confidence": BOOTSTRAP["confidence"],
        },
    ),
    "PixelNetwork": Case(attacks.PixelNetwork, asked(), {"model": NETWORK, "data": not_a()}),
    "pixels_of": Case(attacks.pixels_of, lambda: {"data": image_set()}, {"data": not_a()}),
    "surrogate": Case(
        opened(attacks.surrogate),
        lambda: {"model": masked(), "kind": "soft", "temperature": 1.0},
        {
            "model": NETWORK | st.just(nn.Identity()),
            "kind": not_word(*attacks.SURROGATES),
            "temperature": not_number(0, 1e6, low_is_bad=True),
        },
    ),
    "gradient_check": Case(
        attacks.gradient_check,
        asked(steps=(1e-3,)),
        ASKED
        | {"steps": not_several(not_number(0, 1, low_is_bad=True)), "batch_size": not_whole()},
    ),
    "fgsm": Case(attacks.fgsm, attacked(), ATTACKED),
    "pgd": Case(
        attacks.pgd,
        attacked(steps=2),
        ATTACKED
        | {
            "steps": not_whole(1, MOST),
            "step": not_number(0, 1_000, low_is_bad=True),
            "generator": not_a(optional=True),
        },
    ),
    "autoattack_members": Case(
        attacks.autoattack_members,
        lambda: {"network": dense(), "epsilon": 0.1, "classes": 4, "settings": attacks.SMOKE},
        {
            "network": not_a(),
            "epsilon": not_number(0, 1, low_is_bad=True),
            "classes": not_whole(4),
            "settings": not_a(),
        },
    ),
    "evaluate_attacks": Case(
        attacks.evaluate_attacks,
        asked(settings=attacks.AttackSettings(attacks=("fgsm",), epsilons=(0.1,))),
        ASKED | {"settings": not_a()},
    ),
    # evaluation
    "evaluating": Case(
        opened(inference.evaluating), lambda: {"model": dense()}, {"model": NETWORK}
    ),
    "predict": Case(inference.predict, asked(flip=True), ASKED | {"flip": not_flag()}),
    "accuracy": Case(inference.accuracy, asked(flip=True), ASKED | {"flip": not_flag()}),
    "answers": Case(inference.answers, asked(), ASKED),
    "look": Case(inference.look, asked(model=masked()), ASKED),
    "progress": Case(inference.progress, asked(model=masked()), ASKED),
    "collect_masks": Case(inference.collect_masks, asked(model=masked()), ASKED),
    "check_invariants": Case(inference.check_invariants, asked(model=masked()), ASKED),
    "evaluate": Case(
        inference.evaluate,
        asked(model=masked(), validation=image_set()),
        ASKED | {"validation": not_data(optional=True)},
    ),
    "energy_masks": Case(inference.energy_masks, lambda: {"model": dense()}, {"model": NETWORK}),
    "has_mask": Case(inference.has_mask, lambda: {"model": dense()}, {"model": NETWORK}),
    "only_mask": Case(inference.only_mask, lambda: {"model": masked()}, {"model": NETWORK}),
    "replaced_mask": Case(
        opened(inference.replaced_mask),
        lambda: {"mask": inference.only_mask(masked()), "change": torch.ones_like},
        {"mask": not_a(dense()), "change": not_a()},
    ),
    "mask_statistics": Case(
        inference.mask_statistics,
        lambda: {"masks": MAPS[:, None], "labels": torch.tensor([0, 1, 2]), "classes": 3},
        {"masks": not_tensor(MAPS[:, None]), "labels": not_labels(3, 3), "classes": not_whole()},
    ),
    "mask_controls": Case(
        inference.mask_controls,
        asked(model=masked(), masks=torch.rand(3, 1, 16, 16)),
        ASKED | {"masks": not_tensor(torch.rand(3, 1, 16, 16)) | st.just({"group9": MAPS})},
    ),
    # inverse_scale
    "PathSettings": Case(
        inverse_scale.PathSettings,
        dict,
        {
            "nu": not_number(0, 1e6, low_is_bad=True),
            "kappa": not_number(0, 1e6, low_is_bad=True),
            "alpha": not_number(optional=True),
            "max_steps": not_whole(1, MOST),
            "channels": not_word("shared", "own"),
        },
    ),
    "stability_bound": Case(
        inverse_scale.stability_bound,
        lambda: {"height": 4, "width": 4, "nu": 0.3, "kappa": 3.0},
        {
            "height": not_whole(1, 100_000),
            "width": not_whole(1, 100_000),
            "nu": not_number(0, 1e6, low_is_bad=True),
            "kappa": not_number(0, 1e6, low_is_bad=True),
        },
    ),
    "inverse_scale_path": Case(
        inverse_scale.inverse_scale_path,
        lambda: {"x": PIXELS, "levels": [0.9], "backend": "torch"},
        {
            "x": not_tensor(PIXELS).filter(lambda x: x is not None),
            "levels": SHARES,
            "settings": not_a(optional=True),
            "backend": not_word("auto", "numba", "torch"),
        },
    ),
    "sparsify": Case(
        inverse_scale.sparsify, lambda: {"x": PIXELS, "level": 0.9}, {"level": not_share()}
    ),
    "project": Case(
        inverse_scale.project,
        lambda: {
            "u": PIXELS,
            "right": PIXELS[:, :1, :, 1:] > 0.5,
            "down": PIXELS[:, :1, 1:] > 0.5,
        },
        {
            "u": not_tensor(PIXELS),
            "right": not_tensor(PIXELS[:, :1, :, 1:] > 0.5).map(lambda t: t),
            "down": not_tensor(PIXELS[:, :1, 1:] > 0.5),
        },
    ),
    "sparsify_dataset": Case(
        inverse_scale.sparsify_dataset,
        lambda: {"images": image_set().images[:1, :4, :4], "level": 0.9, "progress": False},
        {
            "images": not_tensor(image_set().images),
            "level": not_share(),
            "cache": not_a().filter(lambda value: not isinstance(value, str)),
            "settings": not_a(optional=True),
            "chunk": not_whole(optional=True),
            "progress": not_flag(),
        },
    ),
    "retained_energy": Case(
        inverse_scale.retained_energy,
        lambda: {"x": PIXELS, "y": PIXELS},
        {n: not_tensor(PIXELS, nan=False, kinds=False) | st.just(PIXELS[:1]) for n in "xy"},
    ),
    "low_pass": Case(
        inverse_scale.low_pass,
        lambda: {"x": PIXELS, "energy": 0.5},
        {
            "x": not_tensor(PIXELS),
            "energy": not_share().filter(lambda value: not isinstance(value, torch.Tensor))
            | st.sampled_from([torch.rand(3), torch.tensor([0.5, 2.0]), torch.rand(2, 1)]),
        },
    ),
    # sparse_coding
    "CSCSettings": Case(
        sparse_coding.CSCSettings,
        dict,
        {
            "lambda_l1": not_number(0),
            "mu": not_number(0),
            "steps": not_whole(1, MOST),
            "nonnegative": not_flag(),
            "accelerate": not_flag(),
            "step_factor": not_number(0, 1, low_is_bad=True),
            "tolerance": not_number(0, 1, low_is_bad=True, high_is_bad=True),
            "max_iterations": not_whole(1, MOST),
        },
    ),
    "analyse": Case(
        sparse_coding.analyse,
        lambda: {"x": PIXELS, "dictionary": CODES},
        KERNEL
        | {
            "x": not_tensor(PIXELS, nan=False) | st.just(PIXELS[:, :2]),
            "dictionary": not_tensor(CODES, nan=False) | st.just(CODES[:, :2]),
        },
    ),
    "synthesise": Case(
        sparse_coding.synthesise,
        lambda: {"code": torch.rand(2, 4, 6, 6), "dictionary": CODES, "size": (8, 8)},
        KERNEL
        | {
            "code": not_tensor(torch.rand(2, 4, 6, 6), nan=False) | st.just(PIXELS),
            "dictionary": not_tensor(CODES, nan=False) | st.just(CODES[:2]),
            "size": not_pair(not_whole(1, 4_096), 8) | st.just((7, 8)),
        },
    ),
    "sparse_code": Case(
        sparse_coding.sparse_code,
        lambda: {"x": PIXELS, "dictionary": CODES, "step": 0.01, "lambda_l1": 0.1},
        KERNEL
        | {
            "x": not_tensor(PIXELS) | st.just(PIXELS[:, :2]),
            "dictionary": not_tensor(CODES) | st.just(CODES[:, :2]),
            "step": not_number(0).filter(lambda value: not isinstance(value, torch.Tensor))
            | st.just(1e30),
            "lambda_l1": not_number(0).filter(lambda value: not isinstance(value, torch.Tensor))
            | st.sampled_from([torch.ones(3), -torch.ones(2), torch.ones(2) * torch.nan]),
            "mu": not_number(0),
            "steps": not_whole(1, MOST),
            "nonnegative": not_flag(),
            "accelerate": not_flag(),
        },
    ),
    "largest_eigenvalue": Case(
        sparse_coding.largest_eigenvalue,
        lambda: {"dictionary": CODES, "size": (8, 8)},
        KERNEL
        | {
            "dictionary": not_tensor(CODES),
            "size": not_pair(not_whole(1, 4_096), 8),
            "tolerance": not_number(0, 1, low_is_bad=True, high_is_bad=True),
            "max_iterations": not_whole(1, MOST),
            "start": not_tensor(PIXELS[:1]).filter(lambda t: t is not None) | st.just(PIXELS),
        },
    ),
    "SparseCoding2d": Case(
        sparse_coding.SparseCoding2d,
        lambda: {"in_channels": 3, "out_channels": 4, "kernel_size": 3, "stride": 1, "padding": 1},
        {
            "in_channels": not_whole(1, 4_096),
            "out_channels": not_whole(1, 4_096),
            "kernel_size": not_whole(1, 256).filter(lambda value: value != [1]),
            "stride": not_whole(1, 256).filter(lambda value: value != [1]),
            "padding": not_whole(0, 256).filter(lambda value: value != [1]),
            "settings": not_a(),
        },
    ),
    "unit_atoms": Case(
        sparse_coding.unit_atoms,
        lambda: {"weight": CODES},
        {"weight": not_tensor(CODES, nan=False)},
    ),
    "sdnet18": Case(sparse_coding.sdnet18, dict, {"classes": CLASSES, "settings": not_a()}),
    "sdnet18_all": Case(
        sparse_coding.sdnet18_all,
        dict,
        {
            "classes": CLASSES,
            "settings": not_a(),
            "shortcuts": not_flag(),
            "sparse_projections": not_flag(),
        },
    ),
    "attach_sparse_coding": Case(
        sparse_coding.attach_sparse_coding,
        lambda: {"model": backbones.CifarNet(NET), "layer": "group1.0"},
        {
            "model": NETWORK,
            "layer": not_word("group1.0", "group2.0"),
            "settings": not_a(),
            "keep_relu": not_flag(),
        },
    ),
    "SparseCoding2d.forward": Case(
        sparse_coding.SparseCoding2d(3, 4, 3).forward,
        lambda: {"x": PIXELS},
        {"x": not_a(PIXELS[0], PIXELS[:, :2], PIXELS[..., :2])},
    ),
    "using_lambda": Case(
        opened(sparse_lambda.using_lambda),
        lambda: {"model": coded(), "value": 0.1},
        {
            "model": NETWORK,
            "value": not_number(0).filter(lambda value: not isinstance(value, torch.Tensor)),
            "layer": not_word("group1.0", optional=True),
        },
    ),
    "set_lambda": Case(
        sparse_lambda.set_lambda,
        lambda: {"model": coded(), "value": 0.1},
        {
            "model": NETWORK,
            "value": not_number(0).filter(lambda value: not isinstance(value, torch.Tensor))
            | st.sampled_from([-torch.ones(2), torch.ones(2, 2), torch.tensor([torch.nan])]),
            "layer": not_word("group1.0", optional=True),
        },
    ),
    "LabelFreeLambda.fit": Case(
        sparse_lambda.LabelFreeLambda.fit,
        lambda: {"model": coded(), "images": torch.rand(4, 3, 32, 32), "bins": 2, "noise": (0.1,)},
        {
            "model": NETWORK,
            "images": not_tensor(torch.rand(4, 3, 32, 32)),
            "layer": not_word("group1.0", optional=True),
            "noise": not_several(not_number(0)),
            "grid": not_several(not_number(0), optional=True),
            "bins": not_whole() | st.just(9),
            "seed": not_seed(),
            "batch_size": not_whole(),
        },
    ),
    "oracle_lambda": Case(
        sparse_lambda.oracle_lambda,
        asked(model=coded(), grid=(0.1, 0.2)),
        ASKED | {"grid": not_several(not_number(0)), "layer": not_word("group1.0", optional=True)},
    ),
    # deletion
    "deletion_curve": Case(
        deletion.deletion_curve,
        lambda: {
            "predict": lambda keep: keep.flatten(1)[:, :4].float(),
            "importance": MAPS,
            "labels": torch.tensor([0, 1, 2]),
            "fractions": (0.5,),
        },
        {
            "predict": not_a(),
            "importance": not_tensor(MAPS, nan=False, kinds=False) | st.just(MAPS * torch.nan),
            "labels": not_labels(3),
            "fractions": SHARES,
        },
    ),
    "keep_masks": Case(
        deletion.keep_masks,
        lambda: {"importance": MAPS, "fraction": 0.5},
        {
            "importance": not_tensor(MAPS, nan=False, kinds=False) | st.just(MAPS * torch.nan),
            "fraction": not_share(),
        },
    ),
    "token_norms": Case(
        deletion.token_norms,
        lambda: {"x": PIXELS, "patch_size": 2},
        {"x": not_tensor(PIXELS, nan=False, kinds=False), "patch_size": not_whole(1, 8)},
    ),
    "centre_prior": Case(
        deletion.centre_prior,
        lambda: {"height": 3, "width": 4},
        {"height": not_whole(1, 10_000), "width": not_whole(1, 10_000)},
    ),
    "random_ranking": Case(
        deletion.random_ranking,
        lambda: {"shape": (3, 4), "seed": 0},
        {"shape": not_several(not_whole(1, MOST)), "seed": not_seed()},
    ),
    "network_predictor": Case(deletion.network_predictor, asked(model=masked()), ASKED),
    # deletion_insertion
    "Convention": Case(
        deletion_insertion.Convention,
        lambda: vars(deletion_insertion.RISE).copy(),
        {
            "name": not_word().map(lambda word: "" if isinstance(word, str) else word),
            "source": not_word().map(lambda word: "" if isinstance(word, str) else word),
            "unit": not_word("pixel", "token"),
            "includes_start": not_flag(),
            "deletion_fill": not_word("zero", "blur", "minimum"),
            "insertion_fill": not_word("zero", "blur", "minimum", optional=True),
            "step": not_whole().map(lambda k: ("rows", k)) | not_a(("row", 1), ("rows",)),
            "score": not_word("probability", "accuracy"),
            "target": TARGET,
            "area": not_word("mean of steps", "over fraction", "sum of steps"),
        },
    ),
    "on_tokens": Case(
        deletion_insertion.on_tokens,
        lambda: {"convention": deletion_insertion.RISE},
        {"convention": not_a()},
    ),
    "Convention.points": Case(
        deletion_insertion.RISE.points,
        lambda: {"height": 3, "width": 4},
        {"height": not_whole(1, 10_000), "width": not_whole(1, 10_000)},
    ),
    "perturbation_curve": Case(
        deletion_insertion.perturbation_curve,
        asked(
            importance=torch.rand(32, 32), game="deletion", convention=deletion_insertion.TORCHCAM
        ),
        ASKED
        | {
            "importance": not_tensor(torch.rand(3, 32, 32), nan=False, kinds=False)
            | st.sampled_from([torch.rand(2, 32, 32), torch.full((32, 32), torch.nan), MAPS]),
            "game": not_word("deletion", "insertion"),
            "convention": not_a(),
            "layer": not_word(optional=True),
            "batch_size": not_whole(),
        },
    ),
    "resize": Case(
        deletion_insertion.resize,
        lambda: {"importance": MAPS, "size": (8, 8)},
        {
            "importance": not_tensor(MAPS, nan=False),
            "size": not_pair(not_whole(1, 10_000), 8),
        },
    ),
    "blurred": Case(
        deletion_insertion.blurred, lambda: {"x": PIXELS}, {"x": not_tensor(PIXELS, nan=False)}
    ),
    "auc_interval": Case(
        deletion_insertion.auc_interval,
        lambda: {"curve": curve(), "resamples": 9},
        BOOTSTRAP | {"curve": not_a()},
    ),
    "auc_difference": Case(
        deletion_insertion.auc_difference,
        lambda: {"first": curve(), "second": curve(), "resamples": 9},
        BOOTSTRAP | {"first": not_a(), "second": not_a()},
    ),
    # rankings
    "rank_tokens": Case(
        rankings.rank_tokens,
        asked(layer="group1", names=("magnitude", "random")),
        ASKED
        | {
            "layer": LAYER,
            "names": not_several(not_word(*rankings.RANKINGS), optional=True),
            "patch_size": PATCH,
            "target": TARGET,
            "seed": not_seed(),
        },
    ),
    "energies": Case(
        rankings.energies, asked(model=masked(), layer="group1"), ASKED | {"layer": LAYER}
    ),
    "magnitudes": Case(
        rankings.magnitudes,
        asked(layer="group1"),
        ASKED | {"layer": LAYER, "patch_size": not_whole(1, 16)},
    ),
    "grad_cam": Case(
        rankings.grad_cam,
        asked(layer="group1"),
        ASKED
        | {
            "layer": LAYER,
            "patch_size": not_whole(1, 16),
            "target": TARGET,
            "batch_size": not_whole(),
        },
    ),
    "integrated_gradients": Case(
        rankings.integrated_gradients,
        asked(grid=(8, 8), steps=2),
        ASKED
        | {
            "grid": not_pair(not_whole(1, 32), 8) | st.just((5, 8)),
            "target": TARGET,
            "steps": not_whole(1, MOST),
            "batch_size": not_whole(),
        },
    ),
    "token_integrated_gradients": Case(
        rankings.token_integrated_gradients,
        asked(layer="group1", steps=2),
        ASKED
        | {
            "layer": LAYER,
            "patch_size": not_whole(1, 16),
            "target": TARGET,
            "steps": not_whole(1, MOST),
            "batch_size": not_whole(),
        },
    ),
    "edge_strength": Case(
        rankings.edge_strength,
        lambda: {"data": image_set(), "grid": (8, 8)},
        {"data": not_data(), "grid": not_pair(not_whole(1, 32), 8) | st.just((5, 8))},
    ),
    "on_grid": Case(
        rankings.on_grid,
        lambda: {"pixels": MAPS, "grid": (2, 2)},
        {"pixels": not_tensor(MAPS, nan=False), "grid": not_pair(not_whole(1, 4), 2)},
    ),
    "token_stage": Case(
        rankings.token_stage,
        lambda: {"model": dense(), "layer": "group1"},
        {"model": NETWORK, "layer": LAYER},
    ),
    "layer_tokens": Case(
        rankings.layer_tokens,
        lambda: {"model": dense(), "layer": "group1", "x": torch.rand(2, 3, 32, 32)},
        {"model": NETWORK, "layer": LAYER, "x": not_tensor(PIXELS, nan=False)},
    ),
    "rest_of_network": Case(
        opened(rankings.rest_of_network),
        lambda: {"model": dense(), "layer": "group1", "x": torch.rand(2, 3, 32, 32)},
        {"model": NETWORK, "layer": LAYER, "x": not_tensor(PIXELS, nan=False)},
    ),
    # object_masks
    "to_pixels": Case(
        object_masks.to_pixels,
        lambda: {"maps": MAPS, "size": (8, 8), "smooth": True},
        {
            "maps": not_tensor(MAPS, nan=False, kinds=False),
            "size": not_pair(not_whole(1, 10_000), 8),
            "smooth": not_flag(),
        },
    ),
    **{
        score.__name__: Case(
            score,
            lambda: {"maps": MAPS, "objects": OBJECTS},
            {
                "maps": not_tensor(MAPS, nan=False, kinds=False) | st.just(MAPS[:2]),
                "objects": not_tensor(OBJECTS) | st.just(OBJECTS[:2]),
            },
        )
        for score in (
            object_masks.saliency_scores,
            object_masks.iou_top_k,
            object_masks.pointing,
            object_masks.inside,
            object_masks.auc,
        )
    },
    **{
        score.__name__: Case(
            score,
            lambda: {"masks": OBJECTS.float(), "objects": OBJECTS},
            {
                "masks": not_tensor(MAPS, nan=False, kinds=False) | st.just(2 * MAPS + 1),
                "objects": not_tensor(OBJECTS) | st.just(OBJECTS[:2]),
            },
        )
        for score in (object_masks.mask_scores, object_masks.iou)
    },
    "object_masks.summary": Case(
        object_masks.summary,
        lambda: {"values": torch.rand(3)},
        {"values": not_a(MAPS, torch.tensor(0.5), [0.5])},
    ),
    # perturbations
    "occlude": Case(
        perturbations.occlude,
        lambda: {"images": image_set().images, "size": 4},
        {
            "images": not_images(),
            "size": not_whole(1, 32),
            "position": not_word(*perturbations.POSITIONS)
            | not_pair(not_whole(0, 28), 0).filter(lambda p: not isinstance(p, (str, bytes))),
            "fill": not_word(*perturbations.FILLS)
            | not_number(0, 255).map(lambda value: (0, 0, value))
            | st.sampled_from([(0, 0), ()]),
            "seed": not_seed(),
            "first": not_whole(0, 2**40),
        },
    ),
    "sliding_places": Case(
        perturbations.sliding_places,
        lambda: {"height": 8, "width": 8, "size": 4},
        {
            "height": not_whole(1, 1_000),
            "width": not_whole(1, 1_000),
            "size": not_whole(1, 8),
        },
    ),
    "low_resolution": Case(
        perturbations.low_resolution,
        lambda: {"images": image_set().images, "size": 4},
        {"images": not_images(), "size": not_whole(1, 32)},
    ),
    "corrupt": Case(
        perturbations.corrupt,
        lambda: {"images": image_set().images, "kind": "contrast", "severity": 1, "seed": 0},
        {
            "images": not_images() | st.just(image_set().images[:, :16]),
            "kind": not_word(*perturbations.KINDS),
            "severity": not_whole(1, 5),
            "seed": not_seed(),
            "first": not_whole(0, 2**40),
        },
    ),
    "published_corruptions": Case(
        or_not_there(perturbations.published_corruptions),
        lambda: {"folder": "nowhere", "kind": "frost", "severity": 1},
        {
            "folder": st.sampled_from([None, 3, object()]),
            "kind": not_word(*perturbations.PUBLISHED),
            "severity": not_whole(1, 5),
        },
    ),
    # backbones, controls, pruning, filled_mask, norms
    "CifarNetSettings": Case(
        backbones.CifarNetSettings,
        dict,
        {
            "widths": not_several(not_whole(1, 8_192)) | st.just((4,) * 11),
            "depth": not_whole(1, 100),
            "stem_kernel": not_whole(1, 32),
            "stem_stride": not_whole(1, 4),
            "stem_channels": not_whole(2, 8_192),
            "head": not_word("max", "mean"),
            "logit_scale": not_number(),
        },
    ),
    "CifarNet": Case(
        backbones.CifarNet, lambda: {"settings": NET}, {"settings": not_a(), "classes": CLASSES}
    ),
    "CifarNet.whiten": Case(
        backbones.CifarNet(NET).whiten,
        lambda: {"images": PIXELS},
        {"images": not_tensor(PIXELS, kinds=False) | st.just(PIXELS[:, :2])},
    ),
    "resnet18": Case(backbones.resnet18, dict, {"classes": CLASSES}),
    "RandomMask": Case(
        controls.RandomMask,
        lambda: {"channels": 4, "keep": 0.5},
        {
            "channels": not_whole(1, MOST),
            "keep": not_number(0, 1, low_is_bad=True, high_is_bad=True),
        },
    ),
    "controls.attach": Case(
        controls.attach,
        lambda: {
            "model": backbones.CifarNet(NET),
            "layer": "group1",
            "kind": "random",
            "keep": 0.5,
        },
        {
            "model": NETWORK,
            "layer": LAYER,
            "kind": not_word("random"),
            "keep": not_number(0, 1, low_is_bad=True, high_is_bad=True),
        },
    ),
    "sparsity_at": Case(
        pruning.sparsity_at, lambda: {"progress": 0.7, **LAW}, {"progress": not_number(0)}
    ),
    "prunable": Case(pruning.prunable, lambda: {"model": dense()}, {"model": NETWORK}),
    "prune_to": Case(
        pruning.prune_to,
        lambda: {"model": pruning.attach(backbones.CifarNet(NET)), "sparsity": 0.5},
        {"model": NETWORK | st.just(dense()), "sparsity": not_share()},
    ),
    "pruning.attach": Case(
        pruning.attach, lambda: {"model": backbones.CifarNet(NET)}, {"model": NETWORK}
    ),
    "plain_state": Case(
        pruning.plain_state,
        lambda: {"state": dense().state_dict()},
        {"state": not_a().filter(lambda value: not isinstance(value, dict))},
    ),
    "FilledMask": Case(
        filled_mask.FilledMask,
        lambda: {"channels": 4, "dropped": "mean"},
        {"dropped": not_word(*filled_mask.KINDS)},
    ),
    "fill": Case(
        filled_mask.fill,
        lambda: {
            "masked": PIXELS,
            "kept": PIXELS[:, :1],
            "kind": "token",
            "token": torch.zeros(3),
        },
        {
            "masked": not_tensor(PIXELS, nan=False),
            "kept": not_tensor(PIXELS[:, :1], nan=False) | st.just(PIXELS),
            "kind": not_word(*filled_mask.KINDS),
            "token": not_tensor(torch.zeros(3), nan=False) | st.just(torch.zeros(4)),
        },
    ),
    "replace_norms": Case(
        norms.replace_norms,
        lambda: {"model": backbones.CifarNet(NET), "kind": "image", "after": "group1"},
        {"model": NETWORK, "kind": not_word(*norms.KINDS), "after": LAYER},
    ),
    "ChannelBias": Case(
        norms.ChannelBias, lambda: {"channels": 3}, {"channels": not_whole(1, MOST)}
    ),
    # configs
    "Config": Case(
        Config,
        place(),
        RUN_CONFIG
        | {
            "mask": not_a(optional=True),
            "smoothing": not_a(optional=True),
            "coding": not_a(optional=True),
        },
    ),
    "Config, dropped": Case(
        Config,
        place(mask=MaskPlace(layer="group1"), dropped="mean"),
        {"mask": not_a(), "dropped": not_word(*filled_mask.KINDS, optional=True)},
    ),
    "Config, norm": Case(
        Config,
        place(norm="image", after="group1"),
        {"backbone": not_a(), "norm": not_word(*norms.KINDS), "after": LAYER},
    ),
    "Config, pruning": Case(
        Config,
        place(**LAW),
        {
            "backbone": not_a(),
            "sparsity": not_number(0, 1, high_is_bad=True),
            "start": not_number(0, 1),
            "ramp": not_number(0, 1),
        },
    ),
    # protocols
    "in_network": Case(
        protocols.in_network,
        lambda: {"model": backbones.CifarNet(NET), "layer": "group1"},
        {"model": NETWORK, "layer": LAYER},
    ),
    "PublishedProtocol": Case(
        protocols.PublishedProtocol,
        lambda: {"features": dense(), "mask": nn.Identity(), "channels": 4, "classes": 4},
        {"features": NETWORK, "mask": NETWORK, "channels": not_whole(), "classes": CLASSES},
    ),
    "published": Case(
        protocols.published,
        lambda: {"backbone": dense(), "layer": "group1", "classes": 4},
        {
            "backbone": NETWORK,
            "layer": not_word("stem", "group1", "group2"),
            "classes": CLASSES,
            "image_size": not_whole(1, 2_048),
            "masked": not_flag(),
            "learned_positions": not_flag(),
            "seed": not_seed(),
        },
    ),
    "unpooled": Case(
        protocols.unpooled,
        lambda: {"backbone": dense(), "layer": "group2"},
        {"backbone": NETWORK, "layer": not_word("group2")},
    ),
    "FeatureSet": Case(
        protocols.FeatureSet,
        lambda: dict(vars(features())),
        {
            "maps": not_tensor(features().maps, nan=False) | st.just(PIXELS),
            "labels": not_a(torch.tensor(0), torch.zeros(2).long()),
            "classes": st.sampled_from([None, 3, "ab", []]),
        },
    ),
    "FeatureSet.batches": Case(
        protocols.FeatureBatches,
        lambda: {"data": features(), "batch_size": 2, "augment": Augment(), "seed": 0},
        {
            "data": not_a(),
            "batch_size": not_whole(1, 3),
            "seed": not_seed(),
            "rank": not_whole(0, 0),
            "world_size": not_whole(),
        },
    ),
    "cache_features": Case(
        protocols.cache_features,
        asked(model=protocols.published(dense(), "group2", classes=4)),
        ASKED,
    ),
    "to_cache": Case(
        protocols.to_cache, lambda: {"maps": PIXELS}, {"maps": not_tensor(PIXELS, nan=False)}
    ),
    # suites
    "SmoothingSuite": Case(
        smoothing_suite.SmoothingSuite,
        dict,
        {
            "images": not_whole(),
            "levels": not_several(not_number(0, 1, low_is_bad=True, high_is_bad=True), empty=False),
            "path": not_a(optional=True),
            "sides": not_several(not_whole(1, 1_000), empty=False),
            "corruptions": not_several(not_word(*perturbations.KINDS), empty=False),
            "severities": not_several(not_whole(1, 5)),
            "first": not_number(0, 1, low_is_bad=True, high_is_bad=True).map(lambda v: (v, (3,)))
            | not_whole(1, 5).map(lambda v: (0.6, (v,)))
            | st.sampled_from([3, (), (0.6,), "ab", (0.6, (2,))]),
            "seed": not_seed(),
        },
    ),
    "smoothing_suite.measure": Case(
        smoothing_suite.measure,
        lambda: {
            "model": dense(),
            "test": image_set()[:1],
            "settings": smoothing_suite.SmoothingSuite(
                levels=(), sides=(), corruptions=("contrast",), severities=(1,), first=None
            ),
        },
        {"model": NETWORK, "test": not_data(), "settings": not_a()},
    ),
    "smoothing_suite.conditions": Case(
        lambda **arguments: next(smoothing_suite.conditions(**arguments)),
        lambda: {"images": image_set().images, "settings": smoothing_suite.SUITES["smoke"]},
        {"images": not_images(), "settings": not_a()},
    ),
    "smoothed": Case(
        smoothing_suite.smoothed,
        lambda: {"images": image_set().images[:1], "level": 0.9},
        {"images": not_images(), "level": not_share(), "path": not_a(optional=True)},
    ),
    "blur": Case(
        smoothing_suite.blur,
        lambda: {"x": PIXELS, "sigma": 1.0},
        {
            "x": not_tensor(PIXELS),
            "sigma": not_number(0).filter(lambda value: not isinstance(value, torch.Tensor))
            | st.sampled_from([torch.ones(3), -torch.ones(2), torch.ones(2) * torch.nan]),
        },
    ),
    "blur_of_equal_error": Case(
        smoothing_suite.blur_of_equal_error,
        lambda: {"x": PIXELS, "y": PIXELS},
        {n: not_tensor(PIXELS) | st.just(PIXELS[:1]) for n in "xy"},
    ),
    "smoothing_suite.pack": Case(
        smoothing_suite.pack,
        lambda: {"answers": {"plain": OBJECTS.flatten()}},
        {"answers": not_a({"plain": MAPS}, {"plain": [True]}).filter(bool)},
    ),
    "smoothing_suite.unpack": Case(
        smoothing_suite.unpack,
        lambda: {"record": record([True, False])},
        {"record": not_a().filter(lambda value: value != {})},
    ),
    "smoothing_suite.difference": Case(
        smoothing_suite.difference,
        lambda: {
            "method": [record([True, False])],
            "base": [record([False, True])],
            "names": ["plain"],
        },
        CONFIDENCE
        | {
            "method": st.sampled_from([None, 3, "x", []]),
            "base": st.sampled_from([None, 3, "x", []]),
            "names": st.sampled_from([None, 3, "plain", [], ["names"]]),
        },
    ),
    "lambda_suite.pack": Case(
        lambda_suite.pack,
        lambda: {"answers": {"plain/clean": OBJECTS.flatten()}},
        {"answers": not_a({"plain": MAPS}, {"plain": [True]}).filter(bool)},
    ),
    "gap": Case(
        lambda_suite.gap,
        lambda: {
            "first": [record([True, False], {"plain": {"clean": 0.5}})],
            "second": [record([False, False], {"plain": {"clean": 0.5}})],
            "rows": ("plain", "plain"),
            "names": ["clean"],
        },
        {
            "first": st.sampled_from([None, 3, "x"]),
            "second": st.sampled_from([None, 3, "x"]),
            "rows": not_pair(not_word("plain"), "plain"),
            "names": not_several(not_word("clean")),
        },
    ),
    "LambdaSuite": Case(
        lambda_suite.LambdaSuite,
        dict,
        {
            "images": not_whole(),
            "fit_images": not_whole(),
            "noise_severities": not_several(not_whole(1, 5)),
            "severities": not_several(not_whole(1, 5)),
            "kinds": not_several(not_word(*perturbations.KINDS)) | st.just(("snow",)),
            "multiples": not_several(not_number(0)) | st.just((2.0,)),
            "seed": not_seed(),
        },
    ),
    "lambda_suite.measure": Case(
        lambda_suite.measure,
        lambda: {
            "model": dense(),
            "test": image_set(),
            "training": image_set(),
            "settings": lambda_suite.LambdaSuite(
                kinds=("gaussian_noise",), severities=(1,), noise_severities=(1,)
            ),
        },
        {
            "model": NETWORK,
            "test": not_data(),
            "training": not_data(),
            "settings": not_a(),
        },
    ),
    "lambda_suite.conditions": Case(
        lambda_suite.conditions,
        lambda: {"settings": lambda_suite.SUITES["smoke"]},
        {"settings": not_a()},
    ),
    "lambda_suite.averages": Case(
        lambda_suite.averages,
        lambda: {"settings": lambda_suite.SUITES["smoke"]},
        {"settings": not_a()},
    ),
    # shapes, image_folders, statistics, training
    "textured_shapes": Case(
        shapes.textured_shapes,
        lambda: {"count": 1, "seed": 0, "size": 16},
        {
            "count": not_whole(1, MOST),
            "seed": not_seed(),
            "spurious": not_share(optional=True),
            "size": not_whole(16, 512),
            "progress": not_flag(),
        },
    ),
    "open_images": Case(
        or_not_there(image_folders.open_images),
        lambda: {"setting": "cub", "root": "nowhere"},
        {
            "setting": not_word("pets", "cub"),
            "root": st.sampled_from([None, 3, object()]),
            "image_size": not_whole(1, 2_048),
            "download": not_flag(),
        },
    ),
    "preprocessing": Case(
        image_folders.preprocessing,
        lambda: {"image_size": 32},
        {"image_size": not_whole(1, 2_048)},
    ),
    "extract": Case(
        image_folders.extract,
        lambda: {
            "model": protocols.published(dense(), "group2", classes=4),
            "images": [(torch.rand(3, 32, 32), 0)],
            "classes": ("a",),
            "workers": 0,
            "progress": False,
        },
        {
            "model": NETWORK,
            "images": st.sampled_from([None, 3, object(), []]),
            "classes": st.sampled_from([None, 3, "ab", []]),
            "batch_size": not_whole(),
            "workers": not_whole(0, 1_000),
            "progress": not_flag(),
        },
    ),
    "paired": Case(
        statistics.paired,
        lambda: {"method": ANSWERS, "base": {s: ~a for s, a in ANSWERS.items()}},
        CONFIDENCE
        | {
            "method": not_a({0: np.ones((2, 2))}, {0: ["a"]}).filter(lambda value: value != {}),
            "base": not_a({0: np.ones((2, 2))}, {0: ["a"]}).filter(lambda value: value != {}),
        },
    ),
    "statistics.difference": Case(
        statistics.difference,
        lambda: {
            "method": [record([True, False])],
            "base": [record([False, True])],
        },
        CONFIDENCE,
    ),
    "statistics.answers": Case(
        statistics.answers,
        lambda: {"group": [record([True, False])]},
        {"group": st.sampled_from([None, 3, "group", ["x"], [{}]])},
    ),
    "TrainSettings": Case(
        loop.TrainSettings,
        lambda: {"epochs": 1},
        {
            "epochs": not_whole(1, MOST),
            "batch_size": not_whole(),
            "optimiser": not_word("sgd", "adamw"),
            "learning_rate": not_number(0),
            "momentum": not_number(0, 1, high_is_bad=True),
            "weight_decay": not_number(0),
            "schedule": not_word("one-cycle", "cosine"),
            "norm_lr_factor": not_number(0, low_is_bad=True),
            "start": not_number(0),
            "warm_up": not_number(0, 1, high_is_bad=True),
            "end": not_number(0),
            "label_smoothing": not_number(0, 1, high_is_bad=True),
            "mask_lr_factor": not_number(0),
            "mask_weight_decay": not_number(0),
            "mask_start": not_share(),
            "mask_ramp": not_share(),
            "mask_noise_stop": not_share(),
            "ema_decay": not_number(0, 1, high_is_bad=True),
            "augment": not_a(),
            "precision": not_word("auto", *loop.PRECISIONS),
        },
    ),
}
NEED_A_FOLDER = ("sparsify_dataset",)  # and get the test's own as their `cache`


@pytest.mark.parametrize("name", CASES)
def test_the_arguments_of_the_table_are_good(name, tmp_path):
    arguments = CASES[name].good() | ({"cache": tmp_path} if name in NEED_A_FOLDER else {})
    CASES[name].call(**arguments)


@pytest.mark.parametrize(
    ("name", "argument"),
    [(name, argument) for name, case in CASES.items() for argument in case.bad],
)
@settings(max_examples=30, derandomize=True, deadline=None, database=None)
@given(lots=st.data())
def test_a_bad_value_is_refused_by_name(name, argument, lots):
    case = CASES[name]
    value = lots.draw(case.bad[argument])
    arguments = case.good() | ({"cache": "."} if name in NEED_A_FOLDER else {})
    with pytest.raises((ValueError, TypeError)) as refused:
        case.call(**(arguments | {argument: value}))
    assert re.search(rf"\b{argument.removesuffix('s')}s?\b", str(refused.value))
    assert len(str(refused.value)) < 500


# --- networks that answer NaN ----------------------------------------------------------------------


def spoiled(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data.fill_(torch.nan)
    return model


@pytest.mark.parametrize("hole", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "ask",
    [
        lambda model, data: inference.accuracy(model, data),
        lambda model, data: inference.accuracy(model, data, flip=True),
        lambda model, data: inference.predict(model, data),
        lambda model, data: inference.answers(model, data),
        lambda model, data: inference.look(model, data),
        lambda model, data: inference.evaluate(model, data),
        lambda model, data: inference.progress(model, data),
        lambda model, data: attacks.evaluate_attacks(model, data, attacks.SMOKE),
        lambda model, data: attacks.fgsm(
            attacks.PixelNetwork(model, data), attacks.pixels_of(data), data.labels, epsilon=0.1
        ),
        lambda model, data: attacks.pgd(
            attacks.PixelNetwork(model, data), attacks.pixels_of(data), data.labels, epsilon=0.1
        ),
        lambda model, data: deletion_insertion.perturbation_curve(
            model,
            data,
            torch.rand(32, 32),
            game="deletion",
            convention=deletion_insertion.TORCHCAM,
        ),
        lambda model, data: deletion.deletion_curve(
            lambda keep: model(data.normalise(data.images)), MAPS, data.labels
        ),
        lambda model, data: rankings.grad_cam(model, data, "group1"),
        lambda model, data: rankings.integrated_gradients(model, data, (8, 8)),
    ],
)
def test_a_network_that_answers_nan_has_no_accuracy(ask, hole):
    model = copy.deepcopy(dense())
    model.head.weight.data.fill_(hole)
    with pytest.raises(
        ValueError, match=r"answers NaN or infinity for (\d+) of \1 inputs.*weights"
    ):
        ask(model, image_set())


def test_a_network_of_other_classes_has_no_accuracy():
    with pytest.raises(ValueError, match="network of other classes"):
        inference.accuracy(backbones.CifarNet(NET, classes=2).eval(), image_set())
