"""The queue: order of worth, needs, deadlines, and workers that fail or die."""

import os
import threading
import time
from dataclasses import dataclass

import pytest

from ersm_lab import queue
from ersm_lab.queue import Clock, Task


@dataclass(frozen=True)
class Note:
    """Appends its name to a file; picklable, as work for another process has to be."""

    name: str
    file: str
    seconds: float = 0.0
    does: str = ""

    def __call__(self) -> str:
        if self.does == "die":
            os._exit(9)
        if self.does == "die later":  # when its answer has been given
            threading.Timer(1.5, os._exit, (9,)).start()
        if self.does == "fail":
            raise MemoryError("CUDA out of memory")
        time.sleep(self.seconds)
        with open(self.file, "a") as file:
            file.write(f"{self.name} {os.environ['ERSM_WORKERS']}\n")
        return "well"


def task(name, file, *, needs=(), like=("short",), **settings):
    return Task(name=name, like=like, work=Note(name, str(file), **settings), needs=needs)


def written(file):
    return [line.split()[0] for line in file.read_text().splitlines()] if file.exists() else []


def work(tasks, clock=None, **settings):
    return queue.work(tasks, clock=clock or Clock(guess=0.1), progress=False, **settings)


def test_what_is_needed_comes_first_and_else_the_order_is_kept(tmp_path):
    file = tmp_path / "done"
    asked = [task("c", file, needs=("b",)), task("a", file), task("b", file), task("d", file)]
    found = work(asked, workers=1)
    assert written(file) == ["a", "b", "c", "d"]
    assert set(found.done) == {*"abcd"} and not found.failed and not found.left


def test_a_worker_that_dies_or_fails_costs_its_own_run_only(tmp_path):
    file = tmp_path / "done"
    asked = [
        task("dies", file, does="die"),
        task("fails", file, does="fail"),
        *[task(name, file) for name in "abcd"],
    ]
    found = work(asked, workers=2)
    assert sorted(written(file)) == [*"abcd"] and sorted(found.done) == [*"abcd"]
    assert found.failed["dies"] == "its process died (9)"
    assert "CUDA out of memory" in found.failed["fails"]


def test_a_worker_that_dies_while_idle_loses_the_task_it_is_then_given_and_no_other(tmp_path):
    file = tmp_path / "done"
    asked = [
        task("dies later", file, does="die later"),
        task("slow", file, seconds=4),
        task("lost", file, needs=("slow",)),
        task("also", file, needs=("slow",)),
        task("last", file, needs=("lost",)),
    ]
    found = work(asked, workers=2)
    assert len(found.failed) == 1 and "its process died" in str(found.failed)
    assert "last" in found.done and {*found.done, *found.failed} == {t.name for t in asked}


def test_no_workers_is_an_error_that_says_so(tmp_path):
    with pytest.raises(ValueError, match="workers must be a whole number of at least 1"):
        work([task("a", tmp_path / "done")], workers=0)


def test_nothing_is_begun_that_would_not_end_in_time(tmp_path):
    file = tmp_path / "done"
    clock = Clock(guess=0.1, recorded={"long": 1_000.0})
    asked = [task("long", file, like=("long",)), task("short", file)]
    found = work(asked, clock=clock, workers=1, within=60)
    assert written(file) == ["short"] and found.left == ("long",)


def test_what_is_still_running_at_the_end_is_stopped_and_left(tmp_path):
    file, begun = tmp_path / "done", time.monotonic()
    found = work([task("sleeps", file, seconds=600)], workers=1, within=3)
    assert found.left == ("sleeps",) and not written(file)
    assert time.monotonic() - begun < 60


def test_the_clock_believes_what_it_saw_before_what_is_recorded_before_a_guess(tmp_path):
    clock = Clock(guess=9.0, recorded={"train": 5.0})
    own, family = (
        task(name, tmp_path, like=(f"train {name}", "train")) for name in ("own", "other")
    )
    assert Clock(guess=9.0).seconds(own) == 9.0
    assert clock.seconds(own) == 5.0
    clock.note(own, 2.0)
    assert clock.seconds(own) == clock.seconds(family) == 2.0
    clock.note(family, 3.0)
    assert clock.seconds(own) == 2.0
