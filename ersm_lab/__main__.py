"""The records from the command line: `python -m ersm_lab VERB`."""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
import traceback
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ersm_lab import pages, verifying
from ersm_lab.results import provenance, records


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit status (0 well, 1 not well, 130 interrupted, 141 not read)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows no ± shows ?
    options = _parser().parse_args(arguments)
    try:
        status = options.verb(options)
        print(end="", flush=True)
        return status
    except BrokenPipeError:  # nobody reads on, as in `| head`; what is left is for nobody
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (LookupError, ValueError, OSError) as error:
        print(f"error: {_message(error)}", file=sys.stderr)
        return 1


def list_(options: argparse.Namespace) -> int:
    """Table of the records, and which of them still stand."""
    asked = {"scale": options.scale, "dataset": options.dataset, "method": options.method}
    found = records.read_all(**asked)
    if not found:
        print(f"no such records in {records.results_dir()}")
        return 0
    stands = _standings(found)
    rows = [
        (
            r["name"],
            pages.key_metric(r),
            pages.shown(sum(r["seconds"].values())),
            state.state,
            pages.commit(r),
        )
        for r, state in zip(found, stands, strict=True)
    ]
    print(pages.pipe_table(("record", pages.KEY_METRIC, "seconds", "state", "commit"), rows))
    counts = Counter(state.state for state in stands)
    print(", ".join(f"{count} {state}" for state, count in sorted(counts.items())))
    _print_why(found, stands)
    return 0


def run(options: argparse.Namespace) -> int:
    """Runs the experiments that have no record that stands."""
    import torch

    from ersm_lab import probes
    from ersm_lab.training import experiments, protocol_runs

    if options.plan or options.workers is not None or options.within is not None:
        return _run_queue(options)

    torch.set_num_threads(options.threads)
    chosen = _chosen(options)
    maps = protocol_runs.Maps()
    done, left, failed = [], [], {}
    for number, experiment in enumerate(chosen, start=1):
        name = experiment.name
        label = f"[{number}/{len(chosen)}] {name}"
        try:
            if not options.force and experiments.valid_record(experiment) is not None:
                print(f"{label}: its record stands, left as it is", flush=True)
                left.append(name)
                continue
            print(f"{label}: {_why(experiment, options.force)}, runs", flush=True)
            if options.dry_run:
                continue
            probe = probes.taken(experiment)
            record = experiments.run(experiment, maps=maps, probe=probe, progress=True)
        except BrokenPipeError:
            raise
        except Exception as error:  # the other experiments still get their turn
            traceback.print_exc()
            failed[name] = f"{type(error).__name__}: {_message(error)}"
        else:
            print(f"{label}: {pages.KEY_METRIC} {pages.key_metric(record)}", flush=True)
            done.append(name)
    if options.dry_run:
        print(f"{len(chosen) - len(left) - len(failed)} would run, {len(left)} would be left")
    else:
        print(f"{len(done)} ran, {len(left)} left, {len(failed)} failed")
    for name, reason in failed.items():
        print(f"failed: {name}: {reason}")
    return 1 if failed else 0


def judge(options: argparse.Namespace) -> int:
    """Asks trained networks the suites of `card` that have no record that stands."""
    import torch

    from ersm_lab import judging, probes
    from ersm_lab.training import experiments

    torch.set_num_threads(options.threads)
    chosen = [experiments.find(name) for name in options.names]
    asked = [(e, suite) for e in chosen for suite in _suites(options.suites, e.dataset)]
    done, left, failed = [], [], {}
    for number, (experiment, suite) in enumerate(asked, start=1):
        name = judging.judgement_name(experiment, suite)
        label = f"[{number}/{len(asked)}] {name}"
        try:
            if not options.force and judging.valid_judgement(experiment, suite) is not None:
                print(f"{label}: its record stands, left as it is", flush=True)
                left.append(name)
                continue
            print(f"{label}: {experiment.name} is asked", flush=True)
            probe = probes.taken(experiment, suite)
            record = judging.judge(experiment, suite, probe=probe, progress=True)
        except BrokenPipeError:
            raise
        except Exception as error:  # the other suites still get their turn
            traceback.print_exc()
            failed[name] = f"{type(error).__name__}: {_message(error)}"
        else:
            print(f"{label}: {pages.shown(record['seconds']['judge'])} s", flush=True)
            done.append(name)
    print(f"{len(done)} judged, {len(left)} left, {len(failed)} failed")
    for name, reason in failed.items():
        print(f"failed: {name}: {reason}")
    return 1 if failed else 0


def probe(options: argparse.Namespace) -> int:
    """Runs the probes of the records: does the code still do what it did when they were made?"""
    from ersm_lab import probes
    from ersm_lab.results import standing

    found = [r for r in records.read_all() if _asked_for(r, options.names)]
    if not found:
        raise ValueError(f"no record has one of the names {', '.join(options.names)}")
    code = provenance.code_hash()  # of what is loaded, also if a source is edited meanwhile
    need = [one for record in found for one in _probes_of(record)]
    if options.ahead:
        need += _probes_ahead(options.ahead)
    outcomes, failed = probes.take_all(need, jobs=options.jobs)
    print(f"wrote {standing.keep(outcomes, code)}")
    stands = _standings(found, outcomes)
    counts = Counter(state.state for state in stands)
    print(f"{len(outcomes)} probes of {len(found)} records:", end=" ")
    print(", ".join(f"{count} {state}" for state, count in sorted(counts.items())))
    _print_why(found, stands)
    broken = counts[standing.CURRENT] < len(found)
    for name, error in failed.items():
        absent = name.startswith("data/") and isinstance(error, FileNotFoundError)
        print(f"{'not at hand' if absent else 'failed'}: {name}: {_message(error)}")
        broken = broken or not absent
    return 1 if broken else 0


def _probes_of(record: dict[str, Any]) -> list[Any]:
    from ersm_lab import probes

    try:
        return probes.of_record(record)
    except LookupError:  # its experiment is listed no more, which its standing says
        return []


def _probes_ahead(scale: str) -> list[Any]:
    """Of the records that a scale still wants: a machine that makes them need not take these."""
    from ersm_lab import plan, probes

    wanted = [job for job in plan.wanted(scale) if job.experiment.method in plan.CARDS]
    return [one for job in wanted for one in probes.of(job.experiment, job.suite)]


def _standings(found: Sequence[dict[str, Any]], outcomes: Any = None) -> list[Any]:
    from ersm_lab import plan

    return plan.standings(found, outcomes=outcomes)


def _print_why(found: Sequence[dict[str, Any]], stands: Sequence[Any]) -> None:
    """The records that do not stand; those of one reason together."""
    reasons: dict[str, list[str]] = {}
    for record, state in zip(found, stands, strict=True):
        if state.why:
            reasons.setdefault(f"{state.state}: {state.why}", []).append(record["name"])
    for reason, names in reasons.items():
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        print(f"{', '.join(names[:4])}{more}: {reason}")


def _asked_for(record: dict[str, Any], names: Sequence[str]) -> bool:
    return not names or record["name"] in names or record["method"] in names


def compare(options: argparse.Namespace) -> int:
    """Metric-by-metric table of two records."""
    a, b = records.read(options.a), records.read(options.b)
    print(f"a: {a['name']}\nb: {b['name']}\n")
    print(_differences(records.compare(a, b)))
    return 0


def verify(options: argparse.Namespace) -> int:
    """Re-runs records in a home of their own and judges them by their own tolerance."""
    if options.names and options.next:
        raise ValueError("give names or --next, not both")
    names = options.names or (
        verifying.next_names(options.next) if options.next else _one_of_each()
    )
    verdicts = []
    for verdict in verifying.verify_all(names, jobs=options.jobs):
        if verdict.differences:
            print(f"{verdict.name}: recorded (a), run again (b)")
            print("\n".join([_differences(verdict.differences), *verdict.notes, ""]), flush=True)
        if options.next:
            verifying.note(verdict)
        verdicts.append(verdict)
    for verdict in verdicts:
        print(f"{verdict.name}: {verdict.wrong or 'agrees within its tolerance'}")
    return 1 if any(verdict.wrong for verdict in verdicts) else 0


def _one_of_each() -> list[str]:
    from ersm_lab import plan

    return [f"smoke/shapes/{method}/seed0" for method in plan.VERIFIED]


def status(options: argparse.Namespace) -> int:
    """Markdown page for people: how many records stand, the verdicts, the minutes of the notebooks."""
    from ersm_lab import ledger

    found = records.read_all()
    page = pages.status_page(found, _standings(found), ledger.CLAIMS, verifying.verifications())
    return _publish(page, options.write)


def records_(options: argparse.Namespace) -> int:
    """Markdown page of all records, whose tables can be filtered."""
    found = records.read_all()
    return _publish(pages.records_page(found, _standings(found)), options.write)


def claims(options: argparse.Namespace) -> int:
    """Markdown page of the papers' claims: criteria, findings, verdicts, also by setting."""
    from ersm_lab import ledger, ledger_settings

    return _publish(f"{ledger.page()}\n{ledger_settings.page()}", options.write)


def scale(options: argparse.Namespace) -> int:
    """Markdown page on scale: what the grid took, and what larger runs would take."""
    from ersm_lab import scaling

    return _publish(scaling.page(), options.write)


def cover(options: argparse.Namespace) -> int:
    """Draws the cover of the book from the recorded network."""
    from ersm_lab import cover as drawing

    print(drawing.write(options.to) if options.to else drawing.write())
    return 0


def _publish(page: str, path: Path | None) -> int:
    if path is None:
        print(page, end="")
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
        print(f"wrote {path}")
    return 0


def data_(options: argparse.Namespace) -> int:
    """Finds the data set or downloads it; without it, textured shapes stand in."""
    from ersm_lab.images import data

    folder = data.locate(options.dataset)
    if folder is not None:
        print(f"{options.dataset}: found in {folder}")
        return 0
    try:
        print(f"{options.dataset}: downloaded to {data.obtain(options.dataset)}")
    except data.DataNotFound as error:
        print(f"{options.dataset} is not to be had: {_message(error)}")
        print("Textured shapes, which need no download, stand in for it.")
    return 0


def export_demo(options: argparse.Namespace) -> int:
    """Writes what the demo page loads: two networks as ONNX, sample images, a manifest."""
    from ersm_lab import demo_export

    folder = options.to or demo_export.default_folder()
    manifest = demo_export.export_demo(folder)
    for network in manifest["networks"].values():
        print(
            f"{folder / network['file']}: {network['record']}, {network['bytes']} bytes, "
            f"within {network['largest_difference']:.1g} of torch"
        )
    print(f"{len(manifest['samples'])} sample images and manifest.json beside them")
    return 0


# --------------------------------------------------------------------------------- the small print


def _run_queue(options: argparse.Namespace) -> int:
    """All that a scale wants, suites included, several at a time and within a time."""
    from ersm_lab import queue, tasks

    if options.names or options.force or options.dry_run:
        raise ValueError(
            "a queue is of a scale: give --scale, --dataset, --method or --seed with --workers, "
            "--within and --plan, and neither names nor --force nor --dry-run"
        )
    scale = options.scale or "smoke"
    asked = {"dataset": options.dataset or "auto", "methods": options.method}
    todo = tasks.missing(scale, **asked, seeds=options.seed, cards=not options.no_cards)
    clock = tasks.clock(scale)
    seconds = [clock.seconds(task) for task in todo]
    workers = 1 if options.workers is None else options.workers
    if workers < 1:
        raise ValueError(f"--workers must be at least 1, got {workers}")
    if options.plan:
        rows = [(task.name, f"{s:.0f}") for task, s in zip(todo, seconds, strict=True)]
        print(pages.pipe_table(("task, in the order of worth", "seconds"), rows))
    hours = sum(seconds) / workers / 3_600
    print(f"{len(todo)} tasks, about {hours:.2g} hours for {workers} workers")
    if options.plan:
        return 0
    found = queue.work(
        todo,
        workers=workers,
        helpers=tasks.spare_processes(workers),
        within=options.within,
        clock=clock,
        begin=tasks.UseThreads(count=options.threads),
        after=tasks.free_memory,
    )
    print(f"{len(found.done)} done, {len(found.failed)} failed, {len(found.left)} left for later")
    for name, reason in found.failed.items():
        print(f"failed: {name}: {reason}")
    return 1 if found.failed else 0


def _chosen(options: argparse.Namespace) -> list[Any]:
    from ersm_lab.training import experiments, methods

    if options.names:
        if options.method or options.seed or options.scale or options.dataset:
            raise ValueError("give names, or --scale, --dataset, --method and --seed, not both")
        return [experiments.find(name) for name in options.names]
    scale = options.scale or "smoke"
    known = methods.experiments_of(scale, dataset=options.dataset or "auto")
    for key, asked in (("method", options.method), ("seed", options.seed)):
        there = sorted({getattr(experiment, key) for experiment in known})
        strange = [value for value in asked or () if value not in there]
        if strange:
            raise ValueError(f"no {key} {strange[0]!r} at scale {scale}; there are: {there}")
    return [
        experiment
        for experiment in known
        if (not options.method or experiment.method in options.method)
        and (not options.seed or experiment.seed in options.seed)
    ]


def _suites(asked: str | None, dataset: str) -> Sequence[str]:
    """The suites of a comma-separated list, or all that the data set can be asked."""
    from ersm_lab.suites import card

    if asked is None:
        return card.suites_of(dataset)
    suites = asked.split(",")
    strange = [suite for suite in suites if suite not in card.SUITES]
    if strange:
        raise ValueError(f"no suite {strange[0]!r}; there are: {', '.join(card.SUITES)}")
    return suites


def _why(experiment: Any, force: bool) -> str:
    from ersm_lab.training import experiments

    if force:
        return "forced"
    try:
        record = records.read(experiment.name)
    except records.RecordNotFound:
        return "no record"
    except records.RecordError:
        return "its record is not valid"
    return experiments.why_not(experiment, record)


def _differences(differences: Iterable[records.Difference]) -> str:
    rows = [
        (
            d.name if d.kind == "metric" else f"config: {d.name}",
            pages.shown(d.a),
            pages.shown(d.b),
            pages.shown(d.difference),
            pages.shown(d.tolerance),
            {True: "yes", False: "NO", None: "not judged"}[d.within],
        )
        for d in differences
    ]
    return pages.pipe_table(("metric", "a", "b", "b - a", "tolerance", "within"), rows)


def _message(error: BaseException) -> str:
    """The text of an error; str() puts that of a KeyError in quotes."""
    refused = isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    if refused and "ERSM_HOME" not in str(error):  # `files.write_whole` has said it
        return f"{error}. If it cannot be written: ERSM_HOME names another folder for records and cache"
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ersm_lab", description="Runs, lists, compares and verifies the records."
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    def verb(function: Any) -> argparse.ArgumentParser:
        added = verbs.add_parser(
            function.__name__.rstrip("_").replace("_", "-"),
            help=function.__doc__,
            description=function.__doc__,
        )
        added.set_defaults(verb=function)
        return added

    listing = verb(list_)
    listing.add_argument("--scale", choices=records.SCALES)
    listing.add_argument("--dataset")
    listing.add_argument("--method")

    running = verb(run)
    running.add_argument("names", nargs="*", metavar="NAME", help="laptop/cifar10/ersm/seed0")
    running.add_argument("--scale", choices=records.SCALES, help="default: smoke")
    running.add_argument("--dataset", choices=("cifar10", "shapes", "auto"), help="default: auto")
    running.add_argument("--method", nargs="+", metavar="M", help="only these methods")
    running.add_argument("--seed", nargs="+", type=int, metavar="N", help="only these seeds")
    running.add_argument("--force", action="store_true", help="also where the record is current")
    running.add_argument(
        "--threads", type=int, default=1, metavar="N", help="of the run; default: 1"
    )
    running.add_argument("--dry-run", action="store_true", help="say what would run, and stop")
    running.add_argument(
        "--workers", type=int, metavar="N", help="the whole queue of the scale, N tasks at a time"
    )
    running.add_argument(
        "--within", type=float, metavar="SECONDS", help="begin nothing that would end later"
    )
    running.add_argument(
        "--no-cards", action="store_true", help="networks only, not what they are then asked"
    )
    running.add_argument(
        "--plan", action="store_true", help="print the queue with estimated seconds, and stop"
    )

    judging_ = verb(judge)
    judging_.add_argument("names", nargs="+", metavar="NAME", help="laptop/cifar10/ersm/seed0")
    judging_.add_argument(
        "--suites", metavar="SUITE,SUITE", help="default: all that the data set can be asked"
    )
    judging_.add_argument("--force", action="store_true", help="also where the record is current")

    probing = verb(probe)
    probing.add_argument("names", nargs="*", metavar="NAME", help="of records, or methods")
    probing.add_argument(
        "--ahead",
        choices=records.SCALES,
        help="also the probes of the compared networks that this scale still wants",
    )
    probing.add_argument(
        "--jobs", type=int, metavar="N", help="at the same time; default: one a core"
    )

    judging_.add_argument("--threads", type=int, default=1, metavar="N", help="default: 1")

    comparing = verb(compare)
    comparing.add_argument("a", metavar="NAME")
    comparing.add_argument("b", metavar="NAME")

    verifying_ = verb(verify)
    verifying_.add_argument(
        "names", nargs="*", metavar="NAME", help="default: one smoke record of each kind of method"
    )
    verifying_.add_argument(
        "--next",
        type=int,
        metavar="N",
        help="instead, the N laptop records whose turn it is; noted in data/verifications.jsonl",
    )
    verifying_.add_argument(
        "--jobs", type=int, metavar="N", help="records at the same time; default: one a core"
    )

    for page in (status, records_, claims, scale):
        verb(page).add_argument("--write", type=Path, metavar="FILE", help="default: print it")

    fetching = verb(data_)
    fetching.add_argument("--dataset", choices=("cifar10", "cifar100"), default="cifar10")

    drawing = verb(cover)
    drawing.add_argument("--to", type=Path, metavar="FILE", help="default: book/_static/cover.svg")

    exporting = verb(export_demo)
    exporting.add_argument("--to", type=Path, metavar="FOLDER", help="default: book/_static/demo")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
