"""Run the notebooks as Colab would: each alone, in an empty folder, without the project.

Every notebook starts in a new environment: Python with a kernel, torch, torchvision, numpy, matplotlib
and ipywidgets, and what these need, but neither the project nor its other packages. Its first cell has
to fetch and install the rest. Then every cell must run, each cell with outputs in the repository must
have some here, and no package that was there before may have been replaced: Colab's own torch stays.

    python tools/try_colab.py [--data FOLDER] [NOTEBOOK ...]

What stands in for what: a virtual environment in _build/colab for Colab's machine; links to the packages
of the present environment for those that Colab brings (same versions, nothing to download); for the
project's address on GitHub a repository in _build/colab, which is the working tree as it would be
if all of it were committed now. Git is told to look there, so the text of the notebooks stays as it is.
pip installs from its usual index and obeys its usual variables (PIP_INDEX_URL, PIP_NO_BUILD_ISOLATION).
The scale is smoke. Without --data the notebooks look for CIFAR-10 as in Colab, and may download it.

Not tried: Colab's versions of the packages, its GPUs, and its page around the notebook.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import nbformat
import yaml
from execute_notebooks import book_notebooks, clean, problems, shows_errors
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from watched import STOPPED, Watch, run_watched

ROOT = Path(__file__).resolve().parent.parent
COLAB = ROOT / "_build" / "colab"
# What Colab brings, as far as the book may count on it; pip and ipykernel run the cells.
BROUGHT = ("torch", "torchvision", "numpy", "matplotlib", "ipywidgets", "ipykernel", "pip")
MODULES = ("ersm_attach", "ersm_core", "ersm_lab")  # of the project

LOOK = """
import importlib.metadata, importlib.util, json
versions = {d.metadata["Name"]: d.version for d in reversed([*importlib.metadata.distributions()])}
found = [name for name in %r if importlib.util.find_spec(name)]
print(json.dumps({"versions": versions, "modules": found}))
"""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """How one notebook fared: what went wrong, one line a problem, and its times in seconds."""

    problems: tuple[str, ...]
    first_cell: float | None  # s to fetch and install; None if it did not get that far
    whole: float  # s


# ------------------------------------------------------------------------------------- repository


def snapshot(root: Path, target: Path) -> str:
    """Make a repository whose only commit holds what `root` would hold if all were committed.

    Args:
        root: a git working tree; git is asked what belongs to it, nothing in it is changed.
        target: the new repository; what was there is replaced.

    Returns:
        The address of the new repository, file://...

    Raises:
        SystemExit: `root` is no git working tree, or there is no git.
    """
    question = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        answer = subprocess.run(question, cwd=root, capture_output=True, check=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"git cannot list the files of {root} ({error}): install git, work in a clone")
    shutil.rmtree(target, ignore_errors=True)
    for name in filter(None, answer.stdout.split("\0")):
        if (root / name).is_file():  # one that was deleted is still listed
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target / name)
    who = ["-c", "user.name=try_colab", "-c", "user.email=nobody@localhost"]
    for command in (
        ["init", "--quiet"],
        ["add", "--all", "--force"],
        [*who, "-c", "commit.gpgsign=false", "commit", "--quiet", "--message", "snapshot"],
    ):
        subprocess.run(["git", *command], cwd=target, check=True)
    return target.as_uri()


def redirected(address: str, stand_in: str) -> dict[str, str]:
    """Variables that make git fetch from `stand_in` whatever it is asked to fetch from `address`."""
    return {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{stand_in}.insteadOf",
        "GIT_CONFIG_VALUE_0": address,
    }


# ------------------------------------------------------------------------------------ environment


def needed(names: Iterable[str]) -> list[metadata.Distribution]:
    """The installed packages of these names and all that they need.

    Raises:
        SystemExit: one of the names is not installed.
    """
    found: dict[str, metadata.Distribution] = {}
    seen: set[tuple[str, str]] = set()  # name and extra; "" is no extra
    asked = {canonicalize_name(name) for name in names}
    waiting = [(name, "") for name in asked]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            if name in asked:
                sys.exit(f"{name} is not installed: run `make setup`, then this with its Python")
            continue  # what a package names and does without
        for requirement in map(Requirement, found[name].requires or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                needs = canonicalize_name(requirement.name)
                waiting += [(needs, extra) for extra in ("", *requirement.extras)]
    return [found[name] for name in sorted(found)]


def borrow(packages: Iterable[metadata.Distribution], folder: Path) -> None:
    """Fill a folder with links to what these packages install, from which they can be imported."""
    folder.mkdir(parents=True)
    for package in packages:
        names = {file.parts[0] for file in package.files or [] if not file.is_absolute()}
        for name in names - {"..", "__pycache__"}:
            link, source = folder / name, Path(str(package.locate_file(name)))
            if not link.exists() and source.exists() and source.suffix != ".pth":
                link.symlink_to(source)


def new_environment(folder: Path) -> Path:
    """A virtual environment that has only what Colab brings; returns its Python."""
    shutil.rmtree(folder, ignore_errors=True)
    borrow(needed(BROUGHT), folder / "brought")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # A folder named in a .pth file comes last, and pip never removes what lies outside its environment.
    (packages / "brought.pth").write_text(f"{folder / 'brought'}\n", encoding="utf-8")
    return folder / "venv" / "bin" / "python"


def kernel(python: Path, folder: Path) -> None:
    """Describe the kernel `colab`, which runs with that Python, below a folder for JUPYTER_PATH."""
    spec = folder / "kernels" / "colab" / "kernel.json"
    spec.parent.mkdir(parents=True, exist_ok=True)
    command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": command, "display_name": "Colab", "language": "python"}))


def environment(
    present: Mapping[str, str], *, address: str, stand_in: str, jupyter: Path, data: Path | None
) -> dict[str, str]:
    """The variables of the run: the present ones without this project's, and Colab's.

    Args:
        present: variables to start from.
        address: of the project, as the notebooks have it.
        stand_in: address of the repository that is fetched instead.
        jupyter: folder with the kernel's description.
        data: folder that holds CIFAR-10; with None the notebooks have to see for themselves.
    """
    env = {
        name: value
        for name, value in present.items()
        if not name.startswith(("ERSM_", "GIT_")) and name not in ("PYTHONPATH", "VIRTUAL_ENV")
    }
    env |= redirected(address, stand_in)
    env["ERSM_SCALE"] = "smoke"
    env["JUPYTER_PATH"] = str(jupyter)
    env["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    if data is not None:
        env["ERSM_DATA_DIR"] = str(data.resolve())
    return env


def look(python: Path, env: Mapping[str, str]) -> dict:
    """What an environment has: `versions` of its packages, `modules` of the project's.

    It is asked in an empty folder, as the notebook will be.
    """
    command = [str(python), "-c", LOOK % (MODULES,)]
    (COLAB / "content").mkdir(parents=True, exist_ok=True)
    answer = subprocess.run(
        command, cwd=COLAB / "content", env=env, check=True, capture_output=True, text=True
    )
    return json.loads(answer.stdout)


# ----------------------------------------------------------------------------------------- checks


def replaced(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Which packages have another version than before, one line each; new ones are no matter."""
    return [
        f"{name} was {version} and is {after.get(name, 'gone')}: what Colab brings must stay"
        for name, version in sorted(before.items())
        if after.get(name) != version
    ]


def lost_outputs(stored: nbformat.NotebookNode, ran: nbformat.NotebookNode) -> list[str]:
    """Which code cells show something in the repository and nothing here, one line each."""
    return [
        f"no output here, but one in the repository: {old.source.splitlines()[0]!r}"
        for old, new in zip(stored.cells, ran.cells, strict=True)
        if old.cell_type == "code" and old.outputs and not new.outputs
    ]


def seconds_of_first_cell(ran: nbformat.NotebookNode) -> float | None:
    """How long papermill says that the first code cell took; None if it did not end."""
    first = next(cell for cell in ran.cells if cell.cell_type == "code")
    return first.metadata.get("papermill", {}).get("duration")


# -------------------------------------------------------------------------------------------- run


def try_notebook(
    source: Path, *, address: str, stand_in: str, data: Path | None, watch: Watch, cell_timeout: int
) -> Trial:
    """Run one notebook as a reader's Colab would; it is stored in _build/colab/executed.

    Args:
        source: the notebook.
        address, stand_in, data: as in `environment`.
        watch: limits for the whole notebook.
        cell_timeout: seconds for one cell.
    """
    begin = time.monotonic()
    content, target = COLAB / "content", COLAB / "executed" / source.name
    shutil.rmtree(content, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    python = new_environment(COLAB / "machine")
    kernel(python, COLAB / "jupyter")
    env = environment(
        os.environ, address=address, stand_in=stand_in, jupyter=COLAB / "jupyter", data=data
    )
    before = look(python, env)
    if before["modules"]:
        sys.exit(f"{before['modules']} can be imported without the first cell: nothing to try")
    shutil.copy2(source, content / source.name)

    command = [sys.executable, "-m", "papermill", str(content / source.name), str(target)]
    command += ["--kernel", "colab", "--cwd", str(content), "--log-output", "--no-progress-bar"]
    command += ["--execution-timeout", str(cell_timeout)]
    status = run_watched(command, watch=watch, env=env)
    if status == STOPPED or not target.exists():
        found = (f"the run ended with exit status {status}; its messages are above",)
        return Trial(problems=found, first_cell=None, whole=time.monotonic() - begin)

    ran = nbformat.read(target, as_version=4)
    first = seconds_of_first_cell(ran)
    clean(ran)
    nbformat.write(ran, target)
    found = problems(ran)
    if status != 0 and not (status == 1 and shows_errors(ran) and not found):
        found.insert(0, f"the run ended with exit status {status}; its messages are above")
    found += lost_outputs(nbformat.read(source, as_version=4), ran)
    after = look(python, env)
    found += replaced(before["versions"], after["versions"])
    if not (content / address.rpartition("/")[2] / "pyproject.toml").exists():
        found.append(f"the first cell did not fetch the project from {address}")
    return Trial(problems=tuple(found), first_cell=first, whole=time.monotonic() - begin)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK")
    parser.add_argument(
        "--data", type=Path, help="a folder that holds CIFAR-10 (none unless given)"
    )
    parser.add_argument("--cell-timeout", type=int, default=900, help="seconds for one cell")
    parser.add_argument("--limit", type=int, default=1800, help="seconds for one notebook")
    parser.add_argument("--idle", type=int, default=300, help="seconds without work: a stall")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a kernel is ended with us

    sources = [path.resolve() for path in args.notebooks] or book_notebooks(ROOT)
    if not sources:
        print("_toc.yml names no notebook that exists", file=sys.stderr)
        return 1
    # Here as in pyproject.toml, and in the notebooks: tests/book/test_project.py compares.
    address = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"][
        "url"
    ]
    print(f"== a repository that stands in for {address}", flush=True)
    settings = {
        "address": address,
        "stand_in": snapshot(ROOT, COLAB / "repository"),
        "data": args.data,
        "watch": Watch(limit=args.limit, idle=args.idle, retries=0),
        "cell_timeout": args.cell_timeout,
    }
    failed = 0
    for source in sources:
        print(f"== {source.name}", flush=True)
        trial = try_notebook(source, **settings)
        for line in trial.problems:
            print(f"{source.name}: {line}", file=sys.stderr)
        failed += bool(trial.problems)
        first = "?" if trial.first_cell is None else f"{trial.first_cell:.0f}"
        print(
            f"== {source.name}: {'FAILED' if trial.problems else 'done'} in {trial.whole:.0f} s, "
            f"of which the first cell {first} s",
            flush=True,
        )
    if not failed:  # what remains: the notebooks as they ran
        for name in ("content", "machine", "repository"):
            shutil.rmtree(COLAB / name)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
