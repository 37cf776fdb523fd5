"""Tables drawn from records, as HTML in a notebook and as text elsewhere."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from ersm_lab.results import records
from ersm_lab.results.statistics import of

NOT_RUN = "not yet run"
NOT_MADE = f"{NOT_RUN}: `make reproduce`"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text under a header, with a caption."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def _repr_html_(self) -> str:
        head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in self.header)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
            for row in self.rows
        )
        caption = f"<caption>{escape(self.caption)}</caption>" if self.caption else ""
        body = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
        return f'<table class="table">{caption}{body}</table>'

    def __str__(self) -> str:
        lines = [self.header, *self.rows]
        widths = [max(len(row[i]) for row in lines) for i in range(len(self.header))]
        cells = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in lines]
        return "\n".join([self.caption, *cells] if self.caption else cells)

    __repr__ = __str__


def mean_sd(values: Sequence[float], *, factor: float = 1, digits: int = 1, none: str = "–") -> str:
    """Mean ± standard deviation over seeds of so many times the values; `none` where there are none."""
    values = [factor * value for value in values]
    if not values:
        return none
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def percent(group: Sequence[dict], metric: str) -> str:
    """Mean ± standard deviation over seeds of a share, in percent; a dash where it is not measured."""
    try:
        summary = records.summarise(group, metric)
    except records.RecordError:
        return "–"
    if summary.mean is None:
        return "–"
    spread = "" if summary.sd is None else f" ± {100 * summary.sd:.2f}"
    return f"{100 * summary.mean:.2f}{spread}"


def summary(columns: dict[str, str], *, dataset: str, scale: str, methods: Sequence[str]) -> Table:
    """One row a method, one column a metric (shares, shown in percent), mean ± sd over its seeds.

    Args:
        columns: heading -> metric of the records, such as "mask.kept_fraction".
        dataset, scale, methods: which records.
    """
    rows = []
    for method in methods:
        group = of(method, dataset=dataset, scale=scale)
        if group:
            shown = [percent(group, metric) for metric in columns.values()]
            rows.append([method, str(len(group)), *shown])
    caption = f"{dataset}, {scale} scale: mean ± standard deviation over seeds, in percent"
    if not rows:
        caption += " (no records yet: `make reproduce` makes them)"
    return Table(header=["method", "seeds", *columns], rows=rows, caption=caption)


def paired(metric: str, *, dataset: str, scale: str, methods: Sequence[str], base: str) -> Table:
    """Difference of a share to the base method's, seed by seed, in percentage points.

    Args:
        metric: of the records, such as "test_accuracy".
        dataset, scale, methods: which records.
        base: the method that is subtracted; a pair is two records of the same seed.
    """
    reference = {
        r["seed"]: records.flatten(r["metrics"])[metric]
        for r in of(base, dataset=dataset, scale=scale)
    }
    rows, seeds = [], sorted(reference)
    for method in methods:
        values = {
            r["seed"]: records.flatten(r["metrics"])[metric]
            for r in of(method, dataset=dataset, scale=scale)
        }
        gaps = {s: 100 * (values[s] - reference[s]) for s in seeds if s in values}
        if gaps:
            mean = statistics.mean(gaps.values())
            spread = f" ± {statistics.stdev(gaps.values()):.2f}" if len(gaps) > 1 else ""
            each = [f"{gaps[s]:+.2f}" if s in gaps else "–" for s in seeds]
            rows.append([method, *each, f"{mean:+.2f}{spread}"])
    caption = f"{metric} minus that of {base}, {dataset}, {scale} scale, in percentage points"
    header = ["method", *[f"seed {s}" for s in seeds], "mean ± sd"]
    return Table(header=header, rows=rows, caption=caption)


def cost(*, dataset: str, scale: str, methods: Sequence[str]) -> Table:
    """Measured training minutes of each method and the machine they were measured on."""
    rows = []
    for method in methods:
        for device in sorted({_device(r) for r in of(method, dataset=dataset, scale=scale)}):
            group = [r for r in of(method, dataset=dataset, scale=scale) if _device(r) == device]
            minutes = [r["seconds"]["train"] / 60 for r in group]
            mean = sum(minutes) / len(minutes)
            rows.append([method, device, f"{mean:.1f}", str(len(group))])
    return Table(
        header=["method", "device", "minutes", "runs"],
        rows=rows,
        caption=f"Training time as recorded, {dataset}, {scale} scale",
    )


def _device(record: dict) -> str:
    device = record["device"]
    plural = "s" if device.get("threads") != 1 else ""
    cores = f", {device['threads']} thread{plural}" if device["type"] == "cpu" else ""
    return f"{device['name']}{cores}, {device['precision']}"
