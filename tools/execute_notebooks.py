"""Execute the notebooks of the book, each in a fresh kernel, and check that every cell ran.

The notebooks of _toc.yml (or those named) are executed with papermill and written, with their
outputs, to the stage from which the book is built; with --in-place they replace the committed ones.
One whose outputs are at hand, in the committed file or from an earlier run, and were made of today's
cells, code, records, images and scale (stored_outputs.py) is not executed, unless --all says so.
How much is computed is a parameter of the notebooks, `scale`: smoke, laptop or full. It is --scale, or
the environment variable ERSM_SCALE, or laptop. Several run at the same time, one a core. A run that
stalls is stopped and started once more. With --record all are executed, and the seconds are written as
a record, which the status page shows; those of notebooks that were not named stay.

    python tools/execute_notebooks.py [--scale SCALE] [--in-place] [--all] [--record] [--jobs N]
        [NOTEBOOK ...]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import nbformat
import stored_outputs
from sphinx_external_toc.parsing import parse_toc_yaml
from watched import Watch, run_side_by_side

from ersm_lab.results import records
from ersm_lab.results.provenance import allowed_cores
from ersm_lab.views import live

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"

# Cells that stand before a notebook's own while it is executed: papermill puts its parameters after the
# one that is tagged so. They are taken out again, and the last one resets the names and the count.
PRELUDE = {
    "parameters": 'scale = "laptop"',
    "apply-parameters": """\
import os
os.environ["ERSM_SCALE"] = scale
get_ipython().reset()""",
}
_OF_PAPERMILL = {"papermill-error-cell-tag", "injected-parameters", *PRELUDE}


def book_notebooks(root: Path) -> list[Path]:
    """The notebooks that _toc.yml names, in its order."""
    pages = parse_toc_yaml(root / "_toc.yml")
    return [path for page in pages if (path := root / f"{page}.ipynb").exists()]


def clean(notebook: nbformat.NotebookNode) -> None:
    """Remove what papermill leaves behind: its cells, times, paths and empty tags; stderr, which the
    book does not show, such as the steps of progress bars; and controls, which need a kernel, where
    the same output has a still form (ersm_lab/views/live.py)."""
    notebook.metadata.pop("papermill", None)
    notebook.metadata.pop("widgets", None)
    notebook.cells = [
        cell for cell in notebook.cells if _OF_PAPERMILL.isdisjoint(cell.metadata.get("tags", []))
    ]
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if not cell.metadata.get("tags", ["kept"]):
            del cell.metadata["tags"]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
            for out in cell.outputs:
                if set(out.get("data", ())) - {live.VIEW, "text/plain"}:
                    out.data.pop(live.VIEW, None)


def problems(notebook: nbformat.NotebookNode) -> list[str]:
    """What is wrong with an executed notebook: one line a problem, none if all is well.

    A cell that shows an error on purpose carries the tag `raises-exception`.
    """
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    found = [
        f"a cell did not run: {cell.source.splitlines()[0]!r}"
        for cell in code
        if cell.execution_count is None
    ]
    for cell in code:
        if "raises-exception" in cell.metadata.get("tags", []):
            continue
        found += [
            f"{output.ename}: {output.evalue} in the cell {cell.source.splitlines()[0]!r}"
            for output in cell.outputs
            if output.output_type == "error"
        ]
    if not any(cell.outputs for cell in code):
        found.append("no cell has an output")
    return found


def shows_errors(notebook: nbformat.NotebookNode) -> bool:
    """Whether a cell shows an error on purpose: papermill counts these as failures, too."""
    return any(
        "raises-exception" in cell.metadata.get("tags", []) and output.output_type == "error"
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )


def environment() -> dict[str, str]:
    """The present environment, with what a notebook's kernel needs."""
    env = dict(os.environ)
    env["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # or no figure is stored
    env["JUPYTER_PREFER_ENV_PATH"] = "1"  # this environment's kernel, not one of the user's
    return env


def command(source: Path, *, scale: str, cell_timeout: int) -> list[str]:
    """What executes one notebook in its own folder, into the scratch folder.

    Args:
        source: the notebook.
        scale: its parameter.
        cell_timeout: seconds for one cell.
    """
    scratch = _scratch(source)
    scratch.unlink(missing_ok=True)
    prepared = scratch.with_name("prepared") / scratch.name
    prepared.parent.mkdir(parents=True, exist_ok=True)
    notebook = nbformat.read(source, as_version=4)
    notebook.cells[:0] = [
        nbformat.v4.new_code_cell(code, metadata={"tags": [tag]}) for tag, code in PRELUDE.items()
    ]
    nbformat.write(notebook, prepared)
    papermill = [sys.executable, "-m", "papermill", str(prepared), str(scratch)]
    papermill += ["--kernel", "python3", "--language", "python", "--cwd", str(source.parent)]
    papermill += ["--parameters", "scale", scale, "--execution-timeout", str(cell_timeout)]
    return [*papermill, "--log-output", "--no-progress-bar"]


def at_hand(
    source: Path, key: Mapping[str, str], executed: Path
) -> tuple[nbformat.NotebookNode | None, str]:
    """A notebook with outputs of today, if there are such, so that it need not be executed.

    Args:
        source: the notebook, which may hold them itself.
        key: what they depend on, as it is today (stored_outputs.py).
        executed: the same notebook as an earlier run left it, if there was one.

    Returns:
        The notebook or None; and in words where they were found, or why they are not of today.
    """
    notebook = nbformat.read(source, as_version=4)
    changed = stored_outputs.changed(notebook, key)
    if not changed and not problems(notebook):
        return notebook, "stored"
    if executed.exists():
        other = nbformat.read(executed, as_version=4)
        if not stored_outputs.changed(other, key) and not problems(other):
            stored_outputs.take_over(notebook, other)
            return notebook, "of an earlier run"
    return None, changed or "; ".join(problems(notebook))


def store(source: Path, target: Path, status: int, *, key: Mapping[str, str]) -> list[str]:
    """Store an executed notebook only if it is sound.

    Args:
        source: the notebook.
        target: where the executed one goes; may be the same file.
        status: the exit status of its run.
        key: what the outputs depend on, as it was before the run; stored with them.

    Returns:
        What went wrong, one line a problem.
    """
    scratch = _scratch(source)
    if not scratch.exists():
        return [f"papermill wrote nothing (exit status {status}); its messages are above"]

    notebook = nbformat.read(scratch, as_version=4)
    clean(notebook)
    found = problems(notebook)
    if status != 0 and not (status == 1 and shows_errors(notebook) and not found):
        found.insert(0, f"the run ended with exit status {status}; its messages are above")
    if not found:
        notebook.metadata[stored_outputs.NAME] = dict(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, scratch)
        shutil.move(scratch, target)
    return found


def record(seconds: Mapping[str, float], *, scale: str, threads: int | None = None) -> Path:
    """Write how long notebooks took as a record, beside what it holds of others on this machine.

    Args:
        seconds: by notebook, such as {"01_quickstart": 61.2}.
        scale: at which they ran.
        threads: of each kernel; None is as many as this process has.

    Returns:
        The file written.
    """
    import torch

    from ersm_lab.images.data import default_dataset

    device = "cuda" if torch.cuda.is_available() else "cpu"
    facts = records.provenance([__file__], device=device)
    dataset, method = default_dataset(), f"notebooks-{device}"
    name = f"{scale}/{dataset}/{method}/seed0"
    threads = threads or facts["device"]["threads"]
    metrics = {stem: {"seconds": s, "threads": threads} for stem, s in seconds.items()}
    facts["device"]["threads"] = threads
    try:
        before = records.read(name)
    except records.RecordNotFound:
        before = None
    if before and _machine(before) == _machine(facts):
        there = {path.stem for path in book_notebooks(ROOT)}
        kept = {stem: took for stem, took in before["metrics"].items() if stem in there}
        metrics = dict(sorted((kept | metrics).items()))
    return records.write(
        facts
        | {
            "name": name,
            "method": method,
            "dataset": dataset,
            "scale": scale,
            "seed": 0,
            "config": {},
            "metrics": metrics,
            "tolerance": {},
            "curve": [],
            "answers": None,
            "seconds": {"train": 0, "execute": sum(m["seconds"] for m in metrics.values())},
            "probe": {},  # a clock's reading is of its day
            "checkpoint": None,
        }
    )


def _machine(record: Mapping) -> dict:
    return {key: value for key, value in record["device"].items() if key != "threads"}


def _scratch(source: Path) -> Path:
    return BUILD / "executing" / source.name


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK")
    scale = os.environ.get("ERSM_SCALE", "laptop")
    parser.add_argument("--scale", default=scale, metavar="|".join(records.SCALES))
    parser.add_argument("--all", action="store_true", help="also those whose outputs are of today")
    parser.add_argument("--record", action="store_true", help="write the seconds as a record")
    parser.add_argument("--in-place", action="store_true", help="replace the committed notebooks")
    parser.add_argument("--stage", type=Path, default=BUILD / "stage")
    parser.add_argument("--cell-timeout", type=int, default=1200, help="seconds for one cell")
    parser.add_argument("--limit", type=int, default=3600, help="seconds for one notebook")
    parser.add_argument("--idle", type=int, default=180, help="seconds without work: a stall")
    parser.add_argument("--jobs", type=int, help="notebooks at the same time; default: one a core")
    args = parser.parse_args()
    if args.scale not in records.SCALES:
        parser.error(f"the scale is one of {', '.join(records.SCALES)}, not {args.scale!r}")

    sources = [path.resolve() for path in args.notebooks] or book_notebooks(ROOT)
    if not sources:
        print("_toc.yml names no notebook that exists", file=sys.stderr)
        return 1
    names = {path.relative_to(ROOT).as_posix(): path for path in sources}
    print(f"== {len(names)} notebooks at scale {args.scale}", flush=True)
    keys = {
        name: stored_outputs.key(nbformat.read(path, as_version=4), scale=args.scale, root=ROOT)
        for name, path in names.items()
    }
    ready: dict[str, nbformat.NotebookNode] = {}
    for name, path in [] if args.all or args.record else names.items():
        notebook, why = at_hand(path, keys[name], args.stage / name)
        if notebook:
            ready[name] = notebook
        told = f"its outputs, {why}, are of today" if notebook else f"to be executed: {why}"
        print(f"== {name}: {told}", flush=True)
    if not args.in_place and not args.notebooks:  # nothing of an earlier build may be left
        shutil.rmtree(args.stage / "notebooks", ignore_errors=True)
    for name, notebook in ready.items():
        target = names[name] if args.in_place else args.stage / name
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, target)

    watch = Watch(limit=args.limit, idle=args.idle, retries=1)
    env = environment()
    settings = {"scale": args.scale, "cell_timeout": args.cell_timeout}
    commands = {
        name: command(path, **settings) for name, path in names.items() if name not in ready
    }
    failed: dict[str, list[str]] = {}
    seconds: dict[str, float] = {}
    for ended in run_side_by_side(commands, watch=watch, jobs=args.jobs, env=env):
        name, source = ended.name, names[ended.name]
        target = source if args.in_place else args.stage / name
        found = store(source, target, ended.status, key=keys[name])
        seconds[name] = round(ended.seconds, 1)
        if found:  # papermill's messages are long, and of use only then
            print(ended.output)
            failed[name] = found
        print(f"== {name}: {'FAILED' if found else 'done'} in {seconds[name]} s", flush=True)
    for name, found in failed.items():
        for line in found:
            print(f"{name}: {line}", file=sys.stderr)

    report = {"scale": args.scale, "seconds": seconds, "at_hand": sorted(ready)}
    BUILD.mkdir(exist_ok=True)
    (BUILD / "notebook_seconds.json").write_text(json.dumps(report, indent=1) + "\n")
    sound = {names[name].stem: s for name, s in seconds.items() if name not in failed}
    if args.record and sound:
        alone = min(args.jobs or allowed_cores(), len(commands)) == 1
        print(f"wrote {record(sound, scale=args.scale, threads=None if alone else 1)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
