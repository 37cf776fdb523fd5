"""What several test files need to run experiments."""

import functools

import pytest

from ersm_lab.evaluation import inference
from ersm_lab.results.provenance import allowed_cores
from ersm_lab.training import runs
from ersm_lab.training.loop import make_fabric


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """As many as there are cores that may be used; xdist counts those of the machine."""
    return allowed_cores()


# Their tests start processes that import everything and train: they begin first, so that no worker is
# left alone with one of them at the end.
SLOW = (
    "test_workflow.py",
    "test_tasks.py",
    "test_teaching.py",
    "test_probes.py",
    "test_faults.py",
    "test_distributed.py",
)


def pytest_collection_modifyitems(items):
    order = {name: place for place, name in enumerate(SLOW)}
    items.sort(key=lambda item: order.get(item.path.name, len(SLOW)))


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def on_the_cpu():
    """Runs take place on the CPU, also where there is a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "make_fabric", functools.partial(make_fabric, device="cpu"))
        yield


@pytest.fixture
def killed_once(tmp_path, monkeypatch):
    """Kills a run in its second epoch and runs it again; gives the record of the second time."""

    def run_twice(run, experiment):
        seen = []

        def die(model, validation):
            seen.append(model)
            if len(seen) == 2:
                raise Killed
            return {"val_accuracy": 0.125}

        with monkeypatch.context() as patch:
            patch.setattr(inference, "progress", die)
            with pytest.raises(Killed):
                run(experiment, root=tmp_path, progress=False)
        again = run(experiment, root=tmp_path, progress=False)
        assert again["curve"][0]["val_accuracy"] == 0.125  # from before the kill
        return again

    return run_twice


@pytest.fixture(scope="module")
def home(on_the_cpu, tmp_path_factory):
    """A home for the records of the module's runs."""
    return tmp_path_factory.mktemp("home")
