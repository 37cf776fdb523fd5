"""What a public function cannot use it refuses, and says which argument it is: how the tests ask for it.

A table of cases has a function, arguments that work, and for an argument what must be refused: values of
other types, numbers out of range, far out of range or not finite, tensors of another shape, type or
content, and words that are unknown. Nothing may pass, hang or fail obscurely.
"""

import copy
import functools
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ersm_attach import attach_energy_mask
from ersm_lab.images.data import ImageSet
from ersm_lab.networks import backbones, sdnet
from ersm_lab.training import loop

# --- what works ------------------------------------------------------------------------------------

LOTS = torch.Generator().manual_seed(0)
PIXELS = torch.rand(2, 3, 8, 8, generator=LOTS)
NET = backbones.CifarNetSettings(widths=(4, 4), depth=1, stem_channels=4)
TRAIN = loop.TrainSettings(epochs=1)
MAPS = torch.rand(3, 4, 4, generator=LOTS)
OBJECTS = MAPS > 0.5


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
    return sdnet.attach_sparse_coding(copy.deepcopy(dense()), "group1.0").eval()


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


def asked(**arguments) -> Callable[[], dict]:
    """A network and images, and what else is asked of them."""
    return lambda: {"model": dense(), "data": image_set(), **arguments}


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


MOST = 1_000_000
NETWORK = not_a(torch.zeros(3), nn.Module)
PATCH = not_whole(1)
TARGET = not_word("predicted", "label")
CLASSES = not_whole(1, 100_000)
LAYER = not_word(*filter(None, dict(masked().named_modules())))  # of these networks
SHARES = not_several(not_share())
BOOTSTRAP = {
    "confidence": not_number(0, 1, low_is_bad=True, high_is_bad=True),
    "resamples": not_whole(1, MOST),
    "seed": not_seed(),
}
CONFIDENCE = {"confidence": BOOTSTRAP["confidence"]}
ASKED = {"model": NETWORK, "data": not_data()}

# --- the two tests ---------------------------------------------------------------------------------


class Case(NamedTuple):
    """A public function, arguments that it takes, and strategies of what it refuses, by argument.

    `folder` names an argument that is a folder: each test has its own.
    """

    call: Callable
    good: Callable[[], dict]
    bad: dict[str, st.SearchStrategy]
    folder: str | None = None


def both_tests(cases: Mapping[str, Case]) -> tuple[Callable, Callable]:
    """The tests of a table: that its arguments are good, and that a bad one is refused by its name."""

    @pytest.mark.parametrize("name", cases)
    def good(name, tmp_path):
        case = cases[name]
        case.call(**case.good() | ({case.folder: tmp_path} if case.folder else {}))

    @pytest.mark.parametrize(
        ("name", "argument"),
        [(name, argument) for name, case in cases.items() for argument in case.bad],
    )
    @settings(max_examples=30, derandomize=True, deadline=None, database=None)
    @given(lots=st.data())
    def bad(name, argument, lots):
        case = cases[name]
        value = lots.draw(case.bad[argument])
        arguments = case.good() | ({case.folder: "."} if case.folder else {})
        with pytest.raises((ValueError, TypeError)) as refused:
            case.call(**(arguments | {argument: value}))
        assert re.search(rf"\b{argument.removesuffix('s')}s?\b", str(refused.value))
        assert len(str(refused.value)) < 500

    return good, bad
