"""A run that fails harms nothing: killed, crowded, out of disk, or given files that are damaged."""

import errno
import functools
import multiprocessing
import os
import random
import re
import resource
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import Killed

from ersm_lab import probes, verifying
from ersm_lab.__main__ import main
from ersm_lab.common import checkpoints, files
from ersm_lab.evaluation import inference
from ersm_lab.networks.backbones import CifarNetSettings
from ersm_lab.results import records, standing
from ersm_lab.training import experiments, methods, protocol_runs, protocols, runs
from ersm_lab.training.config import Experiment
from ersm_lab.training.loop import TrainSettings, make_fabric, train

# Dense, an energy mask that goes on from the trunk, a baseline, the published protocol.
METHODS = ("ablation-dense", "ablation-ersm", "sdnet", "published-as-released")
NET = CifarNetSettings(widths=(8, 8, 12), depth=1, stem_channels=16)
SHORT = TrainSettings(epochs=4, batch_size=32, learning_rate=0.1, precision="32-true")
READER = replace(protocols.PUBLISHED_TRAINING, epochs=3, batch_size=32, precision="32-true")

CHILDREN = multiprocessing.get_context("fork")  # imports take seconds, and children use one thread

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


def make_tiny(patch: pytest.MonkeyPatch, home: Path) -> None:
    """A home of its own in which the smoke experiments are tiny, run on the CPU and count epochs."""
    patch.setenv("ERSM_HOME", str(home))
    patch.setitem(methods.ABLATION_BACKBONE, "smoke", NET)
    patch.setitem(methods.TRAIN, "smoke", SHORT)
    patch.setitem(methods.SHAPES_EPOCHS, "smoke", SHORT.epochs)
    patch.setitem(methods.IMAGES, "smoke", 64)
    patch.setattr(methods, "PUBLISHED_TRAINING", READER)
    patch.setattr(probes, "taken", lambda *_: None)
    home.mkdir(exist_ok=True)

    def counted(*arguments, after_epoch, **settings):
        def count(model):
            with open(home / "epochs", "a") as log:
                log.write(".")
            return after_epoch(model)

        return train(*arguments, after_epoch=count, **settings)

    for module in (runs, protocol_runs):
        patch.setattr(module, "make_fabric", functools.partial(make_fabric, device="cpu"))
        patch.setattr(module, "train", counted)


def command(home: Path, die_at: int, largest: int) -> None:
    """`python -m ersm_lab run`, in a process of its own.

    Args:
        home: of the records.
        die_at: it is killed before it renames or removes so many of the home's files; 0: not at all.
        largest: no file may have more bytes; 0: no limit.
    """
    sys.stdout = sys.stderr = open(home.with_suffix(".log"), "a", buffering=1)
    changes = []

    def count(event: str, arguments: tuple) -> None:
        if event in ("os.rename", "os.remove") and str(home) in str(arguments[0]):
            changes.append(event)
            if len(changes) == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    make_tiny(pytest.MonkeyPatch(), home)
    sys.addaudithook(count)
    if largest:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    sys.exit(main(["run", "--dataset", "shapes", "--method", *METHODS]))


def started(home: Path, *, die_at: int = 0, largest: int = 0) -> multiprocessing.Process:
    home.mkdir(exist_ok=True)
    process = CHILDREN.Process(target=command, args=(home, die_at, largest))
    process.start()
    return process


def ended(process: multiprocessing.Process) -> int:
    process.join(120)
    return process.exitcode


def experiment_of(method: str) -> Experiment:
    return experiments.find(f"smoke/shapes/{method}/seed0")


def outcome(home: Path) -> dict[str, tuple]:
    """What does not depend on the clock, of every record; each one stands, with its weights."""
    found = {}
    for method in METHODS:
        record = experiments.valid_record(experiment_of(method), root=home)
        assert record is not None, method
        runs.load_state(record, root=home)
        curve = [
            {k: v for k, v in row.items() if k not in ("seconds", "shared")}
            for row in record["curve"]
        ]
        found[method] = (record["checkpoint"]["sha256"], record["metrics"], curve)
    return found


def epochs(home: Path) -> int:
    """How many have been trained in a home."""
    return len((home / "epochs").read_text())


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A home as that of the children, in this process."""
    make_tiny(monkeypatch, tmp_path / "home")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path / "home"
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """The home of a grid that nothing happened to."""
    home = tmp_path_factory.mktemp("undisturbed") / "home"
    assert ended(started(home)) == 0, home.with_suffix(".log").read_text()
    return home


# --- killed, and several at once ---------------------------------------------------------------------


def test_a_grid_that_is_killed_again_and_again_loses_nothing(tmp_path, undisturbed, tiny):
    lots, home, kept, kills, status = random.Random(0), tmp_path / "killed", {}, 0, None
    while status != 0:
        process = started(home, die_at=lots.randint(2, 10))  # by its files, an epoch changes two
        if kills % 2:  # by the clock
            time.sleep(lots.uniform(0.1, 1.0))
            process.kill()
        status = ended(process)
        for file, content in kept.items():  # whatever had been finished
            assert file.read_bytes() == content
        kept = {p: p.read_bytes() for p in (home / "data/results").rglob("*.json")}
        assert status in (0, -signal.SIGKILL), home.with_suffix(".log").read_text()
        kills += status != 0
    assert kills >= 6
    assert outcome(home) == outcome(undisturbed)
    assert epochs(undisturbed) <= epochs(home) <= epochs(undisturbed) + kills


def test_four_at_once_do_each_other_no_harm(tmp_path, undisturbed, tiny):
    home = tmp_path / "crowded"
    assert [ended(process) for process in [started(home) for _ in range(4)]] == [0] * 4
    assert outcome(home) == outcome(undisturbed)
    assert {p.suffix for p in (home / "data").rglob("*") if p.is_file()} == {".pt", ".json"}


# --- no room ---------------------------------------------------------------------------------------


@pytest.fixture
def dense(tiny):
    """The record of a network, in this process's home."""
    return experiments.run(experiment_of("ablation-dense"), root=tiny, progress=False)


@pytest.mark.parametrize(
    ("call", "number"),
    [("open", errno.EROFS), ("fsync", errno.ENOSPC), ("replace", errno.ENOSPC)],
)
@pytest.mark.parametrize("place", ["data/cache/training", "data/checkpoints", "data/results"])
def test_a_disk_that_is_full_is_named_and_what_was_there_stays(
    tiny, dense, monkeypatch, place, call, number
):
    experiment, halve, drafts = experiment_of("ablation-dense"), runs.halve, []
    opened = Path.open

    def refuse(path):
        if place in str(path):
            raise OSError(number, os.strerror(number), str(path))

    def open_(path, mode="r", *arguments, **settings):
        if "x" in mode:
            drafts.append(path)
            if call == "open":
                refuse(path)
        return opened(path, mode, *arguments, **settings)

    def fsync(descriptor):
        refuse(drafts[-1])

    def replace_(draft, path):
        refuse(path)
        os.rename(draft, path)

    def unlink(path, missing_ok=False):
        if number == errno.EROFS:  # as Linux says also of a file that is not there
            refuse(path)
        os.unlink(path)

    def other(model):  # other weights than those that are recorded
        return {name: value + 1 for name, value in halve(model).items()}

    before = {p: p.read_bytes() for p in (tiny / "data").rglob("*seed0*") if p.is_file()}
    monkeypatch.setattr(runs, "halve", other)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_)
        patch.setattr(Path, "unlink", unlink)
        if call != "open":
            patch.setattr(files.os, call, fsync if call == "fsync" else replace_)
        with pytest.raises(OSError, match=f"{place}.* was not written.*ERSM_HOME") as caught:
            experiments.run(experiment, root=tiny, progress=False)
    assert caught.value.errno == number and os.strerror(number) in str(caught.value)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert experiments.valid_record(experiment, root=tiny) == records.read(experiment.name)
    runs.load_state(dense, root=tiny)

    again = experiments.run(experiment, root=tiny, progress=False)  # there is room again
    assert again["checkpoint"] != dense["checkpoint"]
    (left,) = (tiny / "data/checkpoints").rglob("*.pt")
    assert left == runs.weights_file(again, root=tiny)


def test_the_command_says_which_file_had_no_room(tmp_path):
    home = tmp_path / "full"
    assert ended(started(home, largest=12_000)) == 1
    said = home.with_suffix(".log").read_text()
    assert re.search(r"failed: smoke/shapes/ablation-dense/seed0: .*\.pt was not written", said)
    assert "another home by ERSM_HOME" in said and not [*home.rglob("*.tmp")]


# --- damaged files ---------------------------------------------------------------------------------


def flip(content: bytes) -> bytes:
    """A bit turned in the middle: in a weight, where torch would not notice."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 64]) + content[middle + 1 :]


DAMAGE = {"flipped": flip, "cut": lambda content: content[:-100], "empty": lambda content: b""}


def damage(path: Path, how: str) -> None:
    if how == "deleted":
        path.unlink()
    else:
        path.write_bytes(DAMAGE[how](path.read_bytes()))


def run_warned(experiment, home: Path, path: Path, how: str) -> dict:
    """The record of a run that finds a damaged file: it says so, and sets the file aside."""
    if how == "deleted":
        return experiments.run(experiment, root=home, progress=False)
    with pytest.warns(match=f"{path.name}.*: set aside as {path.name}.damaged, and made again"):
        record = experiments.run(experiment, root=home, progress=False)
    assert path.with_name(f"{path.name}.damaged").is_file()
    return record


def killed_in_epoch(number: int, experiment, home: Path, monkeypatch) -> Path:
    """Ends a run in the evaluation after an epoch; the file that it goes on from."""
    progress, seen = inference.progress, []

    def die(*arguments):
        seen.append(0)
        if len(seen) == number:
            raise Killed
        return progress(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(inference, "progress", die)
        with pytest.raises(Killed):
            experiments.run(experiment, root=home, progress=False)
    (left,) = (home / "data/cache/training").rglob("*.pt")
    return left


@pytest.mark.parametrize("how", [*DAMAGE, "deleted"])
def test_a_damaged_checkpoint_is_named_and_trained_again(tiny, dense, how):
    experiment = experiment_of("ablation-dense")
    path = runs.weights_file(dense, root=tiny)
    damage(path, how)
    assert experiments.valid_record(experiment, root=tiny) is None
    assert dense["checkpoint"]["file"] in experiments.why_not(experiment, dense, root=tiny)
    again = run_warned(experiment, tiny, path, how)
    assert again["checkpoint"] == dense["checkpoint"] and again["metrics"] == dense["metrics"]
    assert experiments.valid_record(experiment, root=tiny) is not None


@pytest.mark.parametrize("how", [*DAMAGE, "deleted"])
def test_a_damaged_file_to_go_on_from_is_set_aside(tiny, undisturbed, monkeypatch, how):
    experiment = experiment_of("ablation-ersm")
    path = killed_in_epoch(4, experiment, tiny, monkeypatch)
    damage(path, how)
    trained = epochs(tiny)
    made = run_warned(experiment, tiny, path, how)
    assert epochs(tiny) - trained == 2  # the first two are in the trunk
    assert made["checkpoint"] == records.read(experiment.name, root=undisturbed)["checkpoint"]


@pytest.mark.parametrize("how", [*DAMAGE, "deleted"])
def test_a_damaged_trunk_is_set_aside_and_grown_again(tiny, dense, undisturbed, how):
    experiment = experiment_of("ablation-ersm")
    (path,) = (tiny / "data/cache/trunks").iterdir()
    whole = path.read_bytes()
    damage(path, how)
    made = run_warned(experiment, tiny, path, how)
    assert not [row for row in made["curve"] if row.get("shared")]
    assert made["checkpoint"] == records.read(experiment.name, root=undisturbed)["checkpoint"]
    assert len(path.read_bytes()) == pytest.approx(len(whole), rel=0.05)


def test_no_turned_bit_goes_unnoticed(tmp_path):
    kept = checkpoints.save_atomically({"weights": torch.rand(50), "epoch": 3}, tmp_path / "x.pt")
    content, lots = kept.read_bytes(), random.Random(0)
    for place in lots.sample(range(len(content)), 200):
        turned = content[place] ^ 1 << lots.randrange(8)
        kept.write_bytes(content[:place] + bytes([turned]) + content[place + 1 :])
        with pytest.raises(files.Damaged, match=re.escape(f"{kept} is not the file that was")):
            checkpoints.load(kept)


def test_a_damaged_record_is_no_record_and_made_again(tiny, dense):
    experiment = experiment_of("ablation-dense")
    path = tiny / "data/results" / f"{experiment.name}.json"
    text = path.read_text()
    for damaged in (text[: len(text) // 2], "", text.replace(dense["answers"], "A"), "[]"):
        path.write_text(damaged)
        assert experiments.valid_record(experiment, root=tiny) is None
    again = experiments.run(experiment, root=tiny, progress=False)
    assert again["checkpoint"] == dense["checkpoint"]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"code": "", "outcomes": 3}'])
def test_damaged_outcomes_of_probes_are_none_and_written_anew(tiny, content):
    file = standing.outcomes_file()
    file.parent.mkdir()
    file.write_text(content)
    assert standing.known() == {}
    standing.keep({"training/a": {"protocol": 1, "numbers": {"loss": 1.0}}}, "code")
    assert file.read_text().startswith('{"code": "code"')


def test_what_lies_in_the_cache_of_a_network_whose_backbone_is_another_is_made_again(tiny):
    place = {"scale": "smoke", "dataset": "shapes", "progress": False}
    first = experiments.train_or_load("published-as-released", **place)
    cache = tiny / "data/cache/runs"
    base = records.read("smoke/shapes/ablation-dense/seed0", root=cache)
    runs.weights_file(base, root=cache).unlink()
    state = {name: value + 0.01 for name, value in _state_of(base, tiny, place).items()}
    runs.keep(experiment_of("ablation-dense"), base, state=state, root=cache)
    again = experiments.train_or_load("published-as-released", **place)
    assert "trained now" in again.note
    prints = [found.record["metrics"]["backbone"]["fingerprint"] for found in (first, again)]
    assert prints[0] != prints[1]


def _state_of(base, tiny, place):
    return experiments.train_or_load("ablation-dense", **place).model.state_dict()


# --- what else may go wrong ------------------------------------------------------------------------


def test_threads_are_not_mixed(tiny, undisturbed, monkeypatch):
    experiment = experiment_of("ablation-ersm")
    torch.set_num_threads(2)
    left = killed_in_epoch(4, experiment, tiny, monkeypatch)
    assert [*(tiny / "data/cache/trunks").iterdir()]  # the masks were on
    torch.set_num_threads(1)
    trained = epochs(tiny)
    made = experiments.run(experiment, root=tiny, progress=False)
    assert epochs(tiny) - trained == SHORT.epochs and left.is_file()
    assert made["device"]["threads"] == 1
    assert made["checkpoint"] == records.read(experiment.name, root=undisturbed)["checkpoint"]
    torch.set_num_threads(2)
    trained = epochs(tiny)
    made = experiments.run(experiment, root=tiny, progress=False)
    assert epochs(tiny) - trained == 1 and made["device"]["threads"] == 2 and not left.exists()


def test_drafts_of_killed_processes_are_swept_and_others_left(tmp_path):
    old, new = (tmp_path / f".x.pt.{letter * 32}.tmp" for letter in "ab")
    other = tmp_path / ".mine.tmp"
    for path in (old, new, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (0, 0))
    files.write_whole(tmp_path / "y.pt", b"content")
    assert {path.name for path in tmp_path.iterdir()} == {new.name, other.name, "y.pt"}


def test_a_damaged_file_that_cannot_be_renamed_is_left_and_said_so(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    path = tmp_path / "x.pt"
    path.touch()
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", refuse)
        with pytest.warns(match="broken: left there \\(Read-only file system\\), and made again"):
            files.set_aside(path, files.Damaged(f"{path} is broken"))
    assert path.is_file()
    path.unlink()
    files.set_aside(path, files.Damaged("another process was faster"))  # and said it


def test_weights_that_another_process_recorded_meanwhile_are_kept(tiny, dense, monkeypatch):
    experiment, write = experiment_of("ablation-dense"), records.write

    def write_and_be_overtaken(record, *, root):
        write(record, root=root)
        write(dense, root=root)

    state = {name: value + 1 for name, value in runs.load_state(dense, root=tiny).items()}
    monkeypatch.setattr(records, "write", write_and_be_overtaken)
    runs.keep(experiment, dense, state=state, root=tiny)
    assert experiments.valid_record(experiment, root=tiny) == records.read(experiment.name)


def test_a_verdict_that_cannot_be_noted_leaves_the_others(tiny, monkeypatch):
    verifying.note(verifying.Verdict(name="one", wrong=""))
    verifying.note(verifying.Verdict(name="two", wrong="it differs"))
    before = verifying.verifications_file().read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "")))
        with pytest.raises(OSError, match=r"verifications\.jsonl was not written"):
            verifying.note(verifying.Verdict(name="three", wrong=""))
    assert verifying.verifications_file().read_bytes() == before
    assert [line["name"] for line in verifying.verifications()] == ["one", "two"]
