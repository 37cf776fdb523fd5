"""What several test files need to run experiments."""

import functools

import pytest

from ersm_lab import runs
from ersm_lab.training import make_fabric


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def on_the_cpu():
    """Runs take place on the CPU, also where there is a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "make_fabric", functools.partial(make_fabric, device="cpu"))
        yield


@pytest.fixture(scope="module")
def home(on_the_cpu, tmp_path_factory):
    """A home for the records of the module's runs."""
    return tmp_path_factory.mktemp("home")
