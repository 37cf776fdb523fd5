"""Run a command, and stop it when it takes too long or has stalled.

A notebook run can stall for no visible reason: the kernel waits, no processor time is used, and no
error ever comes. This looks at the whole process tree: one that used less than two per cent of one
core over the idle time counts as stalled. A run that was stopped is started again, as often as
allowed; a run that failed by itself is not.

    python tools/watched.py --limit 900 --idle 180 --retries 1 -- COMMAND [ARGUMENT ...]
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

import psutil

from ersm_lab.results.provenance import allowed_cores

STOPPED = 124  # the exit status that timeout(1) gives, too
BUSY_SHARE = 0.02  # of one core, over the idle time


@dataclass(frozen=True, kw_only=True)
class Watch:
    """How long a command may run, in seconds, and how often it is started again."""

    limit: float  # s of wall-clock time for one run
    idle: float  # s without work after which a run counts as stalled
    retries: int = 1
    poll: float = 1.0  # s between two looks


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How one of several commands ended: its `name`, exit `status`, `seconds` and what it said."""

    name: str
    status: int
    seconds: float
    output: str


def run_side_by_side(
    commands: Mapping[str, Sequence[str]],
    *,
    watch: Watch,
    jobs: int | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[Ended]:
    """Run several commands, some at the same time, each under a watch.

    Args:
        commands: by name; they begin in this order.
        watch: of each.
        jobs: how many at once, each with one thread for its arithmetic; None is one a core. A single
            one may use all threads.
        env: as in `run_watched`.

    Yields:
        Each command as it ends; what it said, stdout and stderr, is kept together.
    """
    jobs = min(jobs or allowed_cores(), len(commands)) or 1
    env = dict(os.environ if env is None else env)
    if jobs > 1:
        env.setdefault("OMP_NUM_THREADS", "1")

    def run(name: str) -> Ended:
        begun = time.monotonic()
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
            status = run_watched(commands[name], watch=watch, env=env, output=said)
            said.seek(0)
            seconds = time.monotonic() - begun
            return Ended(name=name, status=status, seconds=seconds, output=said.read())

    with ThreadPoolExecutor(jobs) as pool:
        for done in as_completed([pool.submit(run, name) for name in commands]):
            yield done.result()


def run_watched(
    command: Sequence[str],
    *,
    watch: Watch,
    env: Mapping[str, str] | None = None,
    output: IO[str] | None = None,
) -> int:
    """Run a command under a watch.

    Args:
        command: the program and its arguments.
        watch: the limits, and how many times a stopped run is started again.
        env: the environment; the present one if None.
        output: where it writes; our own stdout and stderr if None.

    Returns:
        The command's exit status, or 124 if its last run had to be stopped.
    """
    for attempt in range(watch.retries + 1):
        if attempt:
            again = f"started again ({attempt} of {watch.retries}): {' '.join(command)}"
            print(again, file=output, flush=True)
        status = _run_once(command, watch=watch, env=env, output=output)
        if status != STOPPED:
            return status
    return STOPPED


def _run_once(
    command: Sequence[str],
    *,
    watch: Watch,
    env: Mapping[str, str] | None,
    output: IO[str] | None,
) -> int:
    process = subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output
    )
    try:
        begin = quiet_since = time.monotonic()
        used = 0.0  # CPU seconds of the tree when it was last seen to work
        while True:
            with suppress(subprocess.TimeoutExpired):
                return process.wait(watch.poll)
            now, cpu = time.monotonic(), _cpu_seconds(process.pid)
            if abs(cpu - used) > BUSY_SHARE * watch.idle:  # less than before: a child has ended
                quiet_since, used = now, cpu
            if now - begin > watch.limit:
                print(f"stopped: not done after {watch.limit:.0f} s", file=output or sys.stderr)
                return STOPPED
            if now - quiet_since > watch.idle:
                print(
                    f"stopped: stalled, no work for {watch.idle:.0f} s", file=output or sys.stderr
                )
                return STOPPED
    finally:
        _end_tree(process)


def _cpu_seconds(pid: int) -> float:
    """Processor time, user and system, of a process and all its living descendants."""
    total = 0.0
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
    return total


def _end_tree(process: subprocess.Popen) -> None:
    """End what is left of a process and its descendants; kernels live in sessions of their own."""
    if process.poll() is not None:
        return
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(process.pid)
        for descendant in [*root.children(recursive=True), root]:
            with suppress(psutil.NoSuchProcess):
                descendant.kill()
    process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limit", type=float, required=True, help="seconds for one run")
    parser.add_argument("--idle", type=float, required=True, help="seconds without work")
    parser.add_argument("--retries", type=int, default=1)
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the tree is ended with us
    watch = Watch(limit=args.limit, idle=args.idle, retries=args.retries)
    return run_watched(args.command, watch=watch)


if __name__ == "__main__":
    sys.exit(main())
