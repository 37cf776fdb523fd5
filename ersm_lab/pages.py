"""Pages that are made from the records: where they stand, for people, and all of them, to search."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ersm_lab.results import records

KEY_METRIC = "test_accuracy"
FILTER = """\
```{raw} html
<p class="row-filter" hidden><label>Show the rows with all of these words
<input type="search" placeholder="ersm seed0 corruption"></label> <output></output></p>
<script defer src="../_static/filter.js"></script>
```"""


def status_page(
    found: Sequence[Mapping[str, Any]],
    stands: Sequence[Any],
    claims: Sequence[Any] = (),
    verified: Sequence[Mapping[str, Any]] = (),
) -> str:
    """One screen in MyST Markdown: how many records stand, the verdicts, the notebooks' minutes.

    Args:
        found: the records.
        stands: their `standing.Standing`, in the same order.
        claims: of the ledger.
        verified: what full re-runs found, of `verifying.verifications`.
    """
    parts = ["# Status of the records", _told(found, stands)]
    if verified:
        agreed = sum(line["agrees"] for line in verified)
        latest = max(line["when"][:10] for line in verified)
        parts.append(
            f"Run again in full: {len(verified)} times, of which {agreed} agreed within the record's "
            f"own tolerance; the latest on {latest}."
        )
    parts.append(
        "A record is *current* while the code does what it did when the record was made: its probes, "
        "tiny runs of its own settings, give the same numbers. It is *unverified* where the code has "
        "changed and they have not been run, and *stale* where they differ. "
        "{doc}`All records <records>` are in tables that can be searched."
    )
    if claims:
        parts += [
            "## The claims",
            "What the records say of the claims of the three papers; the [ledger](claims.md) says why. "
            "A claim with two verdicts has one for each setting.",
            _verdicts(claims),
        ]
    timed = [record for record in found if record["method"].startswith("notebooks-")]
    if timed:
        parts += [
            "## Minutes of the notebooks",
            "Measured by the clock, the start of the kernel included. Networks that are recorded are "
            "loaded, not trained.",
            _minutes(timed),
        ]
    return "\n\n".join(parts) + "\n"


def records_page(found: Sequence[Mapping[str, Any]], stands: Sequence[Any]) -> str:
    """Every group over its seeds and every record, in MyST Markdown, with a field that filters.

    Args:
        found: the records.
        stands: their `standing.Standing`, in the same order.
    """
    parts = ["# All records", _told(found, stands)]
    if not found:
        return "\n\n".join(parts) + "\n"
    header = ("scale", "data", "experiment", "seeds", "test accuracy", "training seconds")
    groups = [
        (*_place(name), len(seeds), *_over_seeds(seeds)) for name, seeds in _groups(found).items()
    ]
    parts += [
        FILTER,
        "## Over the seeds",
        "Mean ± standard deviation over the seeds.",
        pipe_table(header, groups),
    ]
    rows = [
        (
            f"`{r['name']}`",
            key_metric(r),
            shown(sum(r["seconds"].values())),
            commit(r),
            state.state,
        )
        for r, state in zip(found, stands, strict=True)
    ]
    parts += [
        "## Every record",
        "A commit with + had changes in its tree that were not committed; `data/` aside.",
        pipe_table(("record", "test accuracy", "seconds", "commit", "state"), rows),
        "## Made on",
        pipe_table(("machine", "versions", "records"), _machines(found)),
    ]
    return "\n\n".join(parts) + "\n"


def _machines(found: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, int]]:
    """Machines and versions of packages, with the number of records, most first."""
    counts = Counter(
        (_machine(r), ", ".join(f"{n} {v}" for n, v in r["packages"].items() if v)) for r in found
    )
    plain = records.without_markup
    return [
        (plain(machine), plain(versions), count)
        for (machine, versions), count in counts.most_common()
    ]


def _groups(found: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in found:
        groups.setdefault(records.group(record), []).append(record)
    return groups


def _told(found: Sequence[Mapping[str, Any]], stands: Sequence[Any]) -> str:
    if not found:
        return "There are no records yet."
    counts = Counter(state.state for state in stands)
    told = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    return f"Records: {len(found)}, in {len(_groups(found))} groups; {told}."


def _verdicts(claims: Sequence[Any]) -> str:
    from ersm_lab import ledger

    by_outcome: dict[str, list[str]] = {}
    for claim in claims:
        outcome = ", ".join(sorted({finding.outcome for finding in claim.findings()}))
        if claim.criterion.startswith("None"):  # none that a record could meet
            outcome = "no criterion"
        link = f"[{claim.key}](#{ledger.anchor(claim)})"
        by_outcome.setdefault(outcome, []).append(link)
    rows = [(outcome, ", ".join(links)) for outcome, links in sorted(by_outcome.items())]
    return pipe_table(("verdict", "claims"), rows)


def _minutes(timed: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            stem,
            f"{took['seconds'] / 60:.1f}",
            took["threads"],
            *_place(records.group(r))[:2],
            device,
        )
        for r in timed
        for device in (records.without_markup(f"{r['device']['name']} ({r['device']['type']})"),)
        for stem, took in r["metrics"].items()
    ]
    return pipe_table(("notebook", "minutes", "threads", "scale", "data", "device"), rows)


def _over_seeds(seeds: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    if all(KEY_METRIC in r["metrics"] for r in seeds):
        accuracy = records.summarise(seeds, KEY_METRIC)
        text = shown(accuracy.mean)
        if accuracy.sd is not None:
            text += f" ± {accuracy.sd:.2g}"
    else:
        text = "–"
    return text, shown(sum(r["seconds"]["train"] for r in seeds) / len(seeds))


def _place(name: str) -> tuple[str, str, str]:
    """laptop/cifar10/ersm → (laptop, cifar10, ersm)."""
    scale, _, rest = name.partition("/")
    dataset, _, experiment = rest.partition("/")
    return scale, dataset, experiment


def _machine(record: Mapping[str, Any]) -> str:
    device = record["device"]
    host = f"{device['cores']} cores, {device['threads']} threads"
    memory = "" if device["memory_gib"] is None else f", {device['memory_gib']:g} GiB"
    precision = "" if device["precision"] is None else f", {device['precision']}"
    return f"{device['name']} ({device['type']}), {host}{memory}{precision}"


def key_metric(record: Mapping[str, Any]) -> str:
    """The test accuracy, as a table shows it."""
    return shown(record["metrics"].get(KEY_METRIC))


def commit(record: Mapping[str, Any]) -> str:
    """Eight digits of the commit, with + if its tree had changes."""
    if record["git_commit"] is None:
        return "–"
    return record["git_commit"][:8] + ("+" if record["git_dirty"] else "")


def shown(value: Any) -> str:
    """A number of four digits, a dash for none, anything else as it is."""
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def pipe_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A pipe table, aligned: legible in a terminal, and Markdown."""
    cells = [[str(cell).replace("|", r"\|") for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    rule = "| " + " | ".join("-" * width for width in widths) + " |"
    return "\n".join([lines[0], rule, *lines[1:]])
