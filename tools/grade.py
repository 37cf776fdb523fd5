"""Run a folder of submissions against the checks of the chapters' exercises, and write a table.

    python tools/grade.py FOLDER [--to grades.csv] [--seconds 60] [--memory 2000] [--jobs N]

A submission is a notebook whose file name holds that of the session's or the chapter's notebook:
FOLDER/anna/session-one.ipynb, or, as learning platforms hand them out, FOLDER/anna_session-one.ipynb.
Of a submission only imports, definitions and constants are run, never the rest of its cells; then the
chapter's own check judges each
function, whatever the submission made of the check. The table has a line for each exercise that asks for
code: right, wrong with what the check says, open, missing, or how it was stopped. What was answered in
words in the notebook of a session is in it "to read", for the rubric of the teachers' page.

Each function runs in a process of its own, in an empty folder, with a limit on its seconds and its
memory (Linux). That stops an endless loop and a runaway list, not malice: a program may still read your
files. If you do not know who wrote it, run this in a container without a network.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import csv
import multiprocessing
import os
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import nbformat
from chapter_exercises import exercises, imports, name, tree
from sheets import asked, own_words, sessions

ROOT = Path(__file__).resolve().parent.parent
LARGEST_FILE = 10_000_000  # bytes that a submission may write into one file


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one function may use."""

    seconds: float = 60.0
    memory: int = 2000  # MB, beyond what Python and torch take themselves


@dataclass(frozen=True, kw_only=True)
class Grade:
    """A line of the table."""

    student: str
    chapter: str
    exercise: str
    function: str
    result: str  # right, wrong, open, missing, to read, unreadable, too slow, too large, crashed
    message: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """What the checks of a chapter need."""

    name: str
    stem: str
    imports: str
    checks: dict[str, tuple[str, str]]  # exercise: (function, check)
    words: tuple[str, ...] = ()  # the questions of a session's notebook that ask for words


def chapters(root: Path) -> list[Chapter]:
    """All chapters that have an exercise with a check, and the notebooks of the sessions."""
    found = []
    sheets = {session["sheet"]["chapter"]: session for session in sessions(root)}
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        checks = {e.number: (e.function, e.check) for e in exercises(notebook) if e.check}
        if checks:
            code = imports(notebook)
            found.append(Chapter(name=name(path), stem=path.stem, imports=code, checks=checks))
        if session := sheets.get(name(path)):
            wanted = asked(notebook, session["sheet"])
            stem = f"session-{session['name']}"
            checks = {e.number: (e.function, e.check) for e in wanted if e.check}
            words = tuple(e.number for e in wanted if not e.check)
            found.append(Chapter(name=stem, stem=stem, imports=code, checks=checks, words=words))
    return found


def modules(wanted: Iterable[Chapter]) -> list[str]:
    """What the chapters import, to be imported once for all: every function then starts at once."""
    found = {"ersm_lab.exercises", "nbformat", "IPython.core.inputtransformer2"}
    for node in (node for chapter in wanted for node in ast.parse(chapter.imports).body):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return sorted(found)  # those that are no modules are passed over


def whose(path: Path, folder: Path, chapter: Chapter) -> str:
    """The student: the folder of a submission, or what its file name begins with."""
    inside = path.relative_to(folder)
    if len(inside.parts) > 1:
        return inside.parts[0]
    before = re.sub(r"[_\- ]*(?:\d\d_)?$", "", path.stem.partition(chapter.name)[0])
    return before or path.stem


def definitions(path: Path) -> str:
    """What a submission imports and defines, and its constants, as one piece of code.

    Raises:
        ValueError: it is no notebook.
    """
    try:
        cells = nbformat.read(path, as_version=4).cells
    except Exception as error:  # of json, of nbformat, of the file system
        raise ValueError(f"this is no notebook: {error}") from None
    nodes = []
    for cell in cells:
        if cell.cell_type != "code":
            continue
        try:
            body = tree(cell.source).body
        except SyntaxError:
            continue  # a cell that is not Python defines nothing
        nodes += [node for node in body if _defines(node)]
    return "\n".join(map(ast.unparse, nodes))


def _defines(node: ast.stmt) -> bool:
    if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef):
        return True
    if not isinstance(node, ast.Assign):
        return False
    try:
        ast.literal_eval(node.value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # as `ast` says
        return False
    return True


def judge(
    connection, chapter: Chapter, number: str, code: str, limits: Limits, folder: str
) -> None:
    """In a process and a folder of its own: definitions, then the check; sends (result, message)."""
    os.chdir(folder)
    sys.stdout = sys.stderr = open(os.devnull, "w")
    from ersm_lab.exercises import attempt

    function, check = chapter.checks[number]
    trusted: dict = {}
    exec(chapter.imports, trusted)
    wanted = eval(check, trusted)  # before anything of the submission runs
    names = dict(trusted) | {"__name__": "submission"}
    _limit(limits)
    for node in ast.parse(code).body:
        with contextlib.suppress(Exception):  # a helper of the chapter that needs what was not run
            exec(compile(ast.Module([node], []), "<submission>", "exec"), names)
    if function not in names or names[function] is trusted.get(function):
        connection.send(("missing", f"there is no function {function}"))
        return
    try:
        verdict = attempt(names[function], wanted)
    except MemoryError:
        connection.send(("too large", f"more than {limits.memory} MB"))
        return
    large = "MemoryError" in verdict.text or "allocate memory" in verdict.text
    connection.send(("too large" if large else verdict.kind, verdict.text))


def _limit(limits: Limits) -> None:
    seconds = max(1, round(limits.seconds))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        space = pages * resource.getpagesize() + limits.memory * 1_000_000
        resource.setrlimit(resource.RLIMIT_AS, (space, space))


def grade(context, path: Path, folder: Path, chapter: Chapter, limits: Limits) -> list[Grade]:
    """All exercises of one submission.

    Args:
        context: of multiprocessing.
        path: the notebook.
        folder: of all submissions.
        chapter: which it is.
        limits: of each function.
    """
    common = {"student": whose(path, folder, chapter), "chapter": chapter.name}
    found = []
    try:
        code = definitions(path)
    except Exception as error:  # nothing in a stranger's file stops the others
        lost = common | {"result": "unreadable", "message": str(error), "seconds": 0.0}
        return [
            Grade(exercise=e, function=function, **lost)
            for e, (function, _) in chapter.checks.items()
        ]
    for number, (function, _) in chapter.checks.items():
        begin = time.monotonic()
        result, message = _alone(context, chapter, number, code, limits)
        seconds = round(time.monotonic() - begin, 1)
        said = {"result": result, "message": message, "seconds": seconds}
        found.append(Grade(exercise=number, function=function, **common, **said))
    notebook = nbformat.read(path, as_version=4) if chapter.words else None
    for number in chapter.words:
        text = own_words(notebook, number)
        result = "missing" if text is None else "to read" if text else "open"
        said = {"result": result, "message": text or "", "seconds": 0.0}
        found.append(Grade(exercise=number, function="", **common, **said))
    return found


def _alone(context, chapter: Chapter, number: str, code: str, limits: Limits) -> tuple[str, str]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        return _within(context, (chapter, number, code, limits, folder), limits)


def _within(context, asked: tuple, limits: Limits) -> tuple[str, str]:
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=judge, args=(sender, *asked))
    child.start()
    sender.close()
    grace = 30  # s, to start and to import
    try:
        if receiver.poll(limits.seconds + grace):
            return receiver.recv()
    except EOFError:  # it died before it said anything
        child.join(grace)
        if child.exitcode in (-24, -9):  # SIGXCPU: its seconds are used up
            return "too slow", f"more than {limits.seconds:g} s"
        return "crashed", f"Python ended with exit status {child.exitcode}"
    finally:
        child.kill()
        child.join()
        receiver.close()
    return "too slow", f"more than {limits.seconds:g} s"


def submissions(folder: Path, known: list[Chapter]) -> Iterator[tuple[Path, Chapter]]:
    """The notebooks of a folder whose names tell the chapter; of the others a line is printed."""
    for path in sorted(folder.rglob("*.ipynb")):
        if ".ipynb_checkpoints" in path.parts:
            continue
        fitting = [chapter for chapter in known if chapter.name in path.stem]
        if fitting:
            yield path, max(fitting, key=lambda chapter: len(chapter.name))
        else:
            print(f"{path}: left out, its name holds no chapter's name such as {known[0].stem}")


def write(grades: list[Grade], path: Path) -> None:
    """The table as CSV; no cell of it is a formula to a spreadsheet."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, [field.name for field in fields(Grade)])
        table.writeheader()
        for line in grades:
            row = {key: str(value) for key, value in asdict(line).items()}
            table.writerow(
                {k: "'" + v if v.startswith(tuple("=+-@")) else v for k, v in row.items()}
            )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of the submissions")
    parser.add_argument("--to", type=Path, default=Path("grades.csv"), help="the table")
    parser.add_argument("--seconds", type=float, default=Limits.seconds, help="of each function")
    parser.add_argument("--memory", type=int, default=Limits.memory, help="MB of each function")
    parser.add_argument("--jobs", type=int, default=1, help="submissions at the same time")
    args = parser.parse_args()
    if not args.folder.is_dir():
        parser.error(f"{args.folder} is no folder: give the one that holds the submissions")
    limits = Limits(seconds=args.seconds, memory=args.memory)
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.insert(0, str(ROOT))
    context = multiprocessing.get_context("forkserver")
    found = list(submissions(args.folder, chapters(ROOT)))
    context.set_forkserver_preload(modules(chapter for _, chapter in found))
    with ThreadPoolExecutor(args.jobs) as pool:
        tasks = [
            pool.submit(grade, context, path, args.folder, chapter, limits)
            for path, chapter in found
        ]
        grades = [line for task in tasks for line in task.result()]
    if not grades:
        print(f"no submission in {args.folder}", file=sys.stderr)
        return 1
    write(grades, args.to)
    for student in dict.fromkeys(line.student for line in grades):
        counts = Counter(line.result for line in grades if line.student == student)
        told = ", ".join(f"{count} {result}" for result, count in sorted(counts.items()))
        print(f"{student}: {told}")
    print(f"{len(grades)} exercises in {args.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
