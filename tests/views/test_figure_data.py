"""The numbers that a figure brings along are those that were drawn."""

import csv
import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.pylabtools import select_figure_formats

from ersm_lab.views import figure_data


@pytest.fixture
def axes():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def rows(axes):
    text = figure_data.as_csv(axes.figure)
    return [tuple(row.values()) for row in csv.DictReader(io.StringIO(text))]


def test_lines_and_points_are_the_ones_drawn(axes):
    axes.plot([0, 1], [2.5, np.nan], label="a, b")
    axes.scatter([3], [-4e-9])
    axes.set_title("A title")
    assert rows(axes) == [
        ("A title", "a, b", "line", "0", "2.5", ""),
        ("A title", "points 1", "point", "3", "-4e-09", ""),
    ]


def test_bars_end_where_they_are_drawn_and_words_stand_for_places(axes):
    axes.barh([0, 1], [2, 5], left=1, label="gain")
    axes.set_yticks([0, 1], ["dense", "ersm"])
    assert rows(axes) == [
        ("panel 1", "gain", "bar", "3", "dense", "2"),
        ("panel 1", "gain", "bar", "6", "ersm", "5"),
    ]


def test_labels_of_ticks_may_be_numbers(axes):
    axes.plot([0, 1], [3, 4])
    axes.set_xticks([0, 1], [4, 8])
    axes.set_yticks([3], [Ellipsis])  # matplotlib writes what it is given as text
    assert rows(axes)[0] == ("panel 1", "line 1", "line", "0", "Ellipsis", "")


def test_ranges_and_small_maps_are_told_and_pictures_are_not(axes):
    axes.hlines([1], [0], [2], label="interval")
    axes.imshow(np.array([[0.0, 0.25]]))
    axes.imshow(np.zeros((30, 30)))
    axes.imshow(np.zeros((2, 2, 3)))
    assert rows(axes) == [
        ("panel 1", "interval", "range", "0", "1", ""),
        ("panel 1", "interval", "range", "2", "1", ""),
        ("panel 1", "map 1", "cell", "0", "0", "0"),
        ("panel 1", "map 1", "cell", "1", "0", "0.25"),
    ]


def test_what_is_no_table_has_none(axes):
    assert figure_data.as_csv(axes.figure) is None
    axes.plot(np.arange(figure_data.MOST_ROWS + 1))
    assert figure_data.as_csv(axes.figure) is None


def test_a_notebook_shows_a_figure_with_its_numbers(axes, monkeypatch):
    shell = InteractiveShell.instance()
    monkeypatch.setattr("ersm_lab.views.figure_data.get_ipython", lambda: shell)
    figure_data.offer()
    select_figure_formats(shell, {"png"})  # as when a notebook shows its first figure
    axes.plot([1, 2], label="slope")
    shown, _ = shell.display_formatter.format(axes.figure, include={"text/csv"})
    assert shown["text/csv"].startswith("panel,series,kind,x,y,value\npanel 1,slope,line,0,1,")
    InteractiveShell.clear_instance()
