"""The numbers that a figure shows, as a table that can be taken along (CSV)."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator

import numpy as np
from IPython import get_ipython
from IPython.core.formatters import BaseFormatter
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.category import StrCategoryLocator
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.container import BarContainer
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import FixedLocator

MOST_ROWS = 4_000  # a figure with more shows a picture rather than numbers
MOST_CELLS = 150  # of a map: a larger one is a picture, too
HEADER = ("panel", "series", "kind", "x", "y", "value")


def as_csv(figure: Figure) -> str | None:
    """Points, lines, bars, ranges and small maps of a figure, one row a point.

    Columns: the panel's title or number, the series as its legend calls it, the kind, x and y in the
    units of the axes, or the words that stand there; `value` is a cell of a map. Of a bar, y is its end
    (x of one that lies) and `value` its length. Photographs and filled areas are left out.

    Returns:
        CSV with a header, or None if there is nothing of these or more than a table can hold.
    """
    rows = [HEADER]
    for number, axes in enumerate(figure.axes, start=1):
        panel = axes.get_title() or f"panel {number}"
        x_text, y_text = _words(axes.xaxis), _words(axes.yaxis)
        for series, kind, x, y, value in _points(axes):
            if np.isfinite(x) and np.isfinite(y):
                rows.append((panel, series, kind, x_text(x), y_text(y), value))
                if len(rows) > MOST_ROWS:
                    return None
    if len(rows) == 1:
        return None
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def offer() -> None:
    """From now on, each figure that the present notebook shows brings its numbers along, as text/csv."""
    shell = get_ipython()
    if shell is None:
        return
    formatters = shell.display_formatter.formatters
    if "text/csv" not in formatters:
        formatters["text/csv"] = BaseFormatter(
            parent=shell.display_formatter, format_type="text/csv", print_method="_repr_csv_"
        )
    # Of the class below Figure: what is set for Figure goes when formats of figures are chosen.
    formatters["text/csv"].for_type(FigureBase, as_csv)


def _points(axes: Axes) -> Iterator[tuple[str, str, float, float, str]]:
    """Series, kind, x, y and value of all that an axes shows."""
    bars = [bar for bar in axes.containers if isinstance(bar, BarContainer)]
    for number, container in enumerate(bars, start=1):
        series = _name(container, "bars", number)
        for bar in container.patches:
            x, y, width, height = bar.get_x(), bar.get_y(), bar.get_width(), bar.get_height()
            if getattr(container, "orientation", "vertical") == "horizontal":
                yield series, "bar", x + width, y + height / 2, _shown(width)
            else:
                yield series, "bar", x + width / 2, y + height, _shown(height)
    for number, line in enumerate(axes.lines, start=1):
        series = _name(line, "line", number)
        for x, y in np.asarray(line.get_xydata()):
            yield series, "line", float(x), float(y), ""
    for number, collection in enumerate(axes.collections, start=1):
        if isinstance(collection, PathCollection):
            for x, y in np.ma.filled(collection.get_offsets(), np.nan):
                yield _name(collection, "points", number), "point", float(x), float(y), ""
        elif isinstance(collection, LineCollection):
            for segment in collection.get_segments():
                for x, y in segment:
                    yield _name(collection, "range", number), "range", float(x), float(y), ""
    for number, image in enumerate(axes.images, start=1):
        cells: np.ndarray = np.ma.filled(np.ma.asarray(image.get_array(), dtype=float), np.nan)
        if cells.ndim == 2 and cells.size <= MOST_CELLS:
            for (row, column), cell in np.ndenumerate(cells):
                yield _name(image, "map", number), "cell", column, row, _shown(cell)


def _name(artist, kind: str, number: int) -> str:
    label = str(artist.get_label())
    return f"{kind} {number}" if label.startswith("_") or not label else label


def _words(axis: Axis) -> Callable[[float], str]:
    """How a coordinate is written: as the word of its tick, where the axis has words."""
    words: dict[float, str] = {}
    if isinstance(axis.get_major_locator(), FixedLocator | StrCategoryLocator):
        places = axis.get_majorticklocs()
        texts = [str(text) for text in axis.get_major_formatter().format_ticks(list(places))]
        if not all(_is_number(text) for text in texts if text):
            words = dict(zip(map(float, places), texts, strict=True))

    def written(value: float) -> str:
        if words:
            nearest = min(words, key=lambda place: abs(place - value))
            if abs(nearest - value) < 0.5:
                return words[nearest].replace("\n", " ")
        return _shown(value)

    return written


def _is_number(text: str) -> bool:
    try:
        float(text.replace("\u2212", "-").strip(" %"))
    except ValueError:
        return False
    return True


def _shown(value: float) -> str:
    return f"{value:.6g}"
