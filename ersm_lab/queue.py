"""Tasks in the order of their worth, several at a time, within a time that is given.

Workers are processes. Nothing is begun that is not expected to end in time; what is still running when
the time is over is stopped. A task that fails, or whose worker dies, costs itself and what needs it; all
others get their turn. `tasks` says what the tasks of a scale are.
"""

from __future__ import annotations

import functools
import os
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from typing import Any

from tqdm import tqdm


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a worker does in one go.

    Attributes:
        name: of the record, or of what is made beforehand.
        like: kinds of task that take about as long, the nearest first.
        work: what is done; it can be sent to another process.
        needs: names of tasks that come first.
        worth: the smaller, the earlier.
        beforehand: it needs no GPU.
        effort: how many times a guess it takes, where it is like nothing that was timed.
    """

    name: str
    like: tuple[str, ...]
    work: Callable[[], str]
    needs: tuple[str, ...] = ()
    worth: tuple = ()
    beforehand: bool = False
    effort: float = 1.0


# --- how long things take --------------------------------------------------------------------------


@dataclass
class Clock:
    """Guesses how long a task takes; learns from those that ended.

    Attributes:
        guess: seconds of a task that is like none before.
        seen: {kind of task: seconds of those that ended}.
        recorded: {kind of task: mean seconds of the records}.
    """

    guess: float
    recorded: dict[str, float] = field(default_factory=dict)
    seen: dict[str, list[float]] = field(default_factory=dict)

    def note(self, task: Task, seconds: float) -> None:
        for kind in task.like:
            self.seen.setdefault(kind, []).append(seconds)

    def seconds(self, task: Task) -> float:
        for kind in task.like:
            if kind in self.seen:
                return max(self.seen[kind][-8:])
        for kind in task.like:
            if kind in self.recorded:
                return self.recorded[kind]
        return self.guess * task.effort


# --- working ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What became of the tasks: names, and of those that failed also why."""

    done: tuple[str, ...]
    failed: dict[str, str]
    left: tuple[str, ...]


@dataclass
class _Worker:
    process: BaseProcess
    line: connection.Connection
    helps: bool
    task: Task | None = None
    begun: float = 0.0


def _nothing() -> None: ...


def work(
    tasks: Iterable[Task],
    *,
    workers: int,
    helpers: int = 0,
    within: float | None = None,
    clock: Clock,
    begin: Callable[[], None] = _nothing,
    after: Callable[[], None] = _nothing,
    progress: bool = True,
) -> Summary:
    """Hand tasks to workers until none is left that would end in time.

    Args:
        tasks: in the order of their worth.
        workers: processes that share the device.
        helpers: further ones, which do only what is made beforehand, and then nobody else does.
        within: seconds from now; None is as long as it takes.
        clock: guesses seconds.
        begin: what each worker does first; it can be sent to another process, like a task's work.
        after: what each worker does after each task.
        progress: show a bar.
    """
    waiting = list(tasks)
    end = time.monotonic() + (within if within is not None else float("inf"))
    done: list[str] = []
    failed: dict[str, str] = {}
    if not isinstance(workers, int) or workers < 1:
        raise ValueError(f"workers must be a whole number of at least 1, got {workers!r}")
    workers = min(workers, len(waiting))
    helpers = min(helpers, sum(task.beforehand for task in waiting))
    hire = functools.partial(_hire, workers, begin, after)
    crew = [hire(helps=n < helpers) for n in range(helpers + workers)]
    bar = tqdm(total=len(waiting), unit="task", disable=not progress)
    try:
        while True:
            for worker in crew:
                ended = {*done, *failed}
                his = [t for t in waiting if not helpers or t.beforehand == worker.helps]
                left = end - time.monotonic()
                task = None if worker.task else _next(his, ended, clock, left)
                if task:
                    waiting.remove(task)
                    worker.task, worker.begun = task, time.monotonic()
                    with suppress(ConnectionError):  # it died while idle, which is heard below
                        worker.line.send(task)
            busy = [worker for worker in crew if worker.task]
            left = end - time.monotonic()
            if not busy or left <= 0:
                break
            for worker in _answered(busy, min(left, 5.0)):
                seconds = time.monotonic() - worker.begun
                task, worker.task = worker.task, None
                assert task is not None  # it is busy
                try:
                    well, words = worker.line.recv()
                except (EOFError, ConnectionError):  # nobody is there any more
                    worker.process.join()
                    well, words = False, f"its process died ({worker.process.exitcode})"
                    crew[crew.index(worker)] = hire(helps=worker.helps)
                if well:
                    done.append(task.name)
                    clock.note(task, seconds)
                else:
                    failed[task.name] = words.strip().splitlines()[-1]
                    tqdm.write(words)
                tqdm.write(
                    f"{'done' if well else 'FAILED'} {task.name} {seconds:.0f} s {words[-60:]}"
                )
                bar.update()
    finally:
        stopped = [worker.task.name for worker in crew if worker.task]
        for worker in crew:
            worker.process.terminate()
        for worker in crew:
            worker.process.join(5)
            worker.process.kill()
        bar.close()
    undone = (*stopped, *(task.name for task in waiting))
    return Summary(done=tuple(done), failed=failed, left=undone)


def _next(waiting: Sequence[Task], ended: set[str], clock: Clock, left: float) -> Task | None:
    """The first task that needs nothing that has not ended, and that would itself end in time. What
    needs something that failed will say so itself, or do without."""
    ready = (task for task in waiting if ended.issuperset(task.needs))
    return next((task for task in ready if clock.seconds(task) <= left), None)


def _answered(busy: Sequence[_Worker], seconds: float) -> list[_Worker]:
    ready = connection.wait([worker.line for worker in busy], timeout=seconds)
    return [worker for worker in busy if worker.line in ready]


def _hire(
    workers: int, begin: Callable[[], None], after: Callable[[], None], *, helps: bool
) -> _Worker:
    spawn = get_context("spawn")  # a fork would copy torch's threads half, and no CUDA at all
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(theirs, workers, begin, after), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process=process, line=ours, helps=helps)


def _serve(
    line: connection.Connection,
    workers: int,
    begin: Callable[[], None],
    after: Callable[[], None],
) -> None:
    os.environ["ERSM_WORKERS"] = str(workers)
    begin()
    while True:
        try:
            task: Task = line.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            answer: tuple[bool, Any] = True, task.work()
        except Exception:  # the next task may go well
            answer = False, traceback.format_exc()
        after()
        line.send(answer)
