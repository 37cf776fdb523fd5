"""Provenance: what code ran, at which commit, on which machine, with which packages.

The hash of the sources decides whether a recorded run still counts: it leaves the prose in the code
(comments, docstrings, blank lines) aside, so that explaining a line better invalidates nothing.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import io
import os
import platform
import subprocess
import tokenize
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "lightning", "numpy")


def code_folder() -> Path:
    """The folder that holds `ersm_core.py` and `ersm_lab/`: the repository, or site-packages."""
    return Path(__file__).resolve().parents[2]


def source_hash(
    files: Iterable[str | Path], *, code: str | Path | None = None
) -> tuple[str, dict[str, str]]:
    """Hashes the code that runs: prose may change, code may not.

    Of Python files, comments, docstrings, blank lines and trailing white space are left out (but
    kept inside string constants). The text is hashed, not the syntax tree, so that the hash does
    not depend on the Python version. Files of other kinds are hashed byte by byte.

    Args:
        files: Paths, absolute or relative to `code`.
        code: The folder the paths are kept relative to; default `code_folder()`.

    Returns:
        The hash of the whole (order does not matter), and the hash of each file by its path.

    Raises:
        ValueError: No files, a file outside of `code`, or a Python file that does not parse.
        FileNotFoundError: A file is missing.
    """
    base = Path(code).resolve() if code is not None else code_folder()
    paths = [(base / file).resolve() for file in files]
    if not paths:
        raise ValueError("source_hash needs at least one file: name the sources the run executes")
    for path in paths:
        if not path.is_relative_to(base):
            raise ValueError(f"{path.name} lies outside of {base}: give code=, its folder")
        if not path.is_file():
            raise FileNotFoundError(f"no source {path.relative_to(base)} in {base}")
    hashes = {p.relative_to(base).as_posix(): _file_hash(p) for p in sorted(paths)}
    hashes = dict(sorted(hashes.items()))
    return _sha256("".join(f"{file}\0{value}\n" for file, value in hashes.items())), hashes


def code_of(start: str | Path) -> list[Path]:
    """All code that a module of the project can run: itself and whatever it imports.

    Args:
        start: the module's file, absolute or relative to `code_folder()`.
    """
    base = code_folder()
    found, left = set(), {base / start}
    while left:
        path = left.pop()
        found.add(path)
        left |= _imports(path, path.stat().st_mtime_ns, base) - found
    return sorted(found)


def code_hash(start: str | Path = "ersm_lab/probes.py") -> str:
    """Hash of `code_of` a module."""
    return _whole_hash(frozenset((path, path.stat().st_mtime_ns) for path in code_of(start)))


@functools.lru_cache(maxsize=4)  # asked for with every record of a table
def _whole_hash(files: frozenset[tuple[Path, int]]) -> str:
    return source_hash([path for path, _ in files], code=code_folder())[0]


@functools.lru_cache(maxsize=1024)
def _imports(path: Path, changed: int, base: Path) -> frozenset[Path]:
    """Files of the project that a file imports, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.parent.relative_to(base).parts if node.level else ()
            package = package[: len(package) - max(node.level - 1, 0)]
            home = ".".join([*package, *([node.module] if node.module else [])])
            names |= {home} | {f"{home}.{alias.name}" for alias in node.names}
    found = set()
    for name in names:
        place = base.joinpath(*name.split("."))
        found |= {
            file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()
        }
    return frozenset(found)


def describe_device(device: Any = "cpu", precision: str | None = None) -> dict[str, Any]:
    """Describes the machine a run was made on.

    Args:
        device: A torch device or its name.
        precision: The precision as Fabric names it, such as `bf16-mixed`.

    Returns:
        type, name (of the GPU, else of the CPU), cores (those this process may use), threads,
        memory_gib (of the GPU, else of the machine), precision; for CUDA also its version.
    """
    import torch

    device = torch.device(device)
    described = {
        "type": device.type,
        "name": _cpu_name(),
        "cores": allowed_cores(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "precision": precision,
    }
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        described["name"] = gpu.name
        described["memory_gib"] = round(gpu.total_memory / 2**30, 1)
        described["cuda"] = torch.version.cuda
    return described


def describe_packages() -> dict[str, str | None]:
    """Versions of Python and of the packages results depend on; None where not installed."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def git_state(code: str | Path | None = None) -> tuple[str | None, bool | None]:
    """The commit of the repository, and whether the tree differs from it.

    Changes under `data/` do not count: recording one run must not make the next one dirty.

    Returns:
        (40 hex digits, dirty), or (None, None) outside of a repository of its own or without git. A
        copy that has left its history behind is told its commit by ERSM_COMMIT.
    """
    base = Path(code).resolve() if code is not None else code_folder()
    top = _git(base, "rev-parse", "--show-toplevel")
    commit = _git(base, "rev-parse", "--verify", "HEAD")
    if top is None or commit is None or Path(top).resolve() != base:
        told = os.environ.get("ERSM_COMMIT")
        return (told, False) if told else (None, None)
    changes = _git(base, "status", "--porcelain", "--", ".", ":(exclude)data")
    return commit, None if changes is None else bool(changes)


def provenance(
    files: Iterable[str | Path], *, device: Any = "cpu", precision: str | None = None
) -> dict[str, Any]:
    """The part of a record that says on what it was made; take it before the run starts.

    Taken first, the hash is of the code that was loaded, also when a source is edited meanwhile.

    Returns:
        schema, device, packages, git_commit, git_dirty, source_hash, sources, created, and probe and
        adopted, which are null until somebody takes one.
    """
    whole, hashes = source_hash(files)
    commit, dirty = git_state()
    return {
        "schema": 2,
        "device": describe_device(device, precision),
        "packages": describe_packages(),
        "git_commit": commit,
        "git_dirty": dirty,
        "source_hash": whole,
        "sources": hashes,
        "probe": None,
        "adopted": None,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _file_hash(path: Path) -> str:
    if path.suffix != ".py":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    with tokenize.open(path) as file:  # minds the declared encoding, makes line ends \n
        text = file.read()
    try:
        return _sha256(_code_only(text))
    except (SyntaxError, tokenize.TokenError) as error:
        raise ValueError(f"{path} does not parse, so it cannot be hashed: {error}") from error


@functools.lru_cache(maxsize=256)  # a table of records asks for the same few files again and again
def _code_only(text: str) -> str:
    """Python source without comments, docstrings, blank lines and trailing white space."""
    lines = text.split("\n")
    docstrings = list(_docstrings(ast.parse(text), lines))
    cuts = list(docstrings)
    inside: set[int] = set()
    opened = []  # f-strings come as start ... end from Python 3.12 on, as one string before
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        kind, start, end = tokenize.tok_name[token.type], token.start, token.end
        if kind == "COMMENT":
            cuts.append((start, end))
        elif kind in ("FSTRING_START", "TSTRING_START"):
            opened.append(start)
        elif kind in ("STRING", "FSTRING_END", "TSTRING_END"):
            start = start if kind == "STRING" else opened.pop()
            if not any(first <= start and end <= last for first, last in docstrings):
                inside.update(range(start[0], end[0]))  # lines whose end lies inside a string
    for (row, column), (last_row, last_column) in sorted(cuts, reverse=True):
        head, tail = lines[row - 1][:column], lines[last_row - 1][last_column:]
        lines[row - 1 : last_row] = [head + tail] + [""] * (last_row - row)
    kept = (line if row in inside else line.rstrip() for row, line in enumerate(lines, start=1))
    return "\n".join(line for row, line in enumerate(kept, start=1) if line or row in inside)


def _docstrings(tree: ast.AST, lines: list[str]) -> Iterator[tuple[tuple[int, int], ...]]:
    """(row, column) of start and end of every docstring, columns in characters."""
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, holders) and ast.get_docstring(node, clean=False) is not None:
            first = node.body[0]
            assert isinstance(first, ast.Expr)  # as there is a docstring
            text = first.value
            assert text.end_lineno is not None
            yield tuple(
                (row, len(lines[row - 1].encode()[:column].decode()))  # ast counts bytes
                for row, column in (
                    (text.lineno, text.col_offset),
                    (text.end_lineno, text.end_col_offset),
                )
            )


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() == "model name" and value.strip():
                    return value.strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine() or "unknown"


def allowed_cores() -> int:
    """How many cores this process may use: `taskset`, containers and Slurm allow fewer than all."""
    if hasattr(os, "process_cpu_count"):  # since Python 3.13
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):  # not POSIX
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
