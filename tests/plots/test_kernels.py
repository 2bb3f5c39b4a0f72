"""Pictures of chapter 09: they draw the data that they get."""

import numpy as np
import pytest

from qtutor.course.ladder.roofline import Dot, Machine
from qtutor.plots import kernels as pictures
from qtutor.plots import png

ONE, TWO = Machine(1e10, 8e10, 1), Machine(2e10, 16e10, 2)
DOTS = [Dot("a", 1e9, 2e9, 1.0), Dot("b", 1e9, 1e8, 0.1)]


def test_the_roof_is_the_machines_limit_and_dots_stand_where_they_were_measured():
    ax = pictures.roofline([ONE, TWO], DOTS, now="b").axes[0]
    roof, second = ax.lines[:2]
    assert np.allclose(roof.get_ydata(), [ONE.limit(i) / 1e9 for i in roof.get_xdata()])
    assert second.get_ydata().max() == pytest.approx(160) and second.get_linestyle() == "--"
    labelled = {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}
    assert (labelled["a"].get_xdata()[0], labelled["a"].get_ydata()[0]) == (0.5, 1.0)
    assert labelled["a"].get_markerfacecolor() == "none" != labelled["b"].get_markerfacecolor()
    assert labelled["b"].get_markersize() > labelled["a"].get_markersize()
    low, high = ax.get_ylim()
    assert low < 1.0 and high > 160
    assert png(pictures.roofline([ONE], DOTS)) == png(pictures.roofline([ONE], DOTS))


def test_every_dot_has_a_marker_and_a_colour_of_its_own():
    dots = [Dot(str(i), 1e9, 1e9, 1.0) for i in range(7)]
    ax = pictures.roofline([ONE], dots).axes[0]
    drawn = [line for line in ax.lines if line.get_label() in {d.name for d in dots}]
    assert len({line.get_color() for line in drawn}) == 7


def test_words_are_numbered_along_rows_and_down_the_lanes():
    left, right = pictures.two_orders(rows=4, words=3).axes
    numbers = [[int(text.get_text()) for text in ax.texts] for ax in (left, right)]
    assert numbers[0] == list(range(12))
    assert numbers[1] == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    fills = [[patch.get_facecolor() for patch in ax.patches] for ax in (left, right)]
    assert fills[0][0] == fills[0][1] != fills[0][3]  # a vector takes words of a row
    assert fills[1][0] == fills[1][3] != fills[1][1]  # a vector takes the same word of all rows


def test_speeds_stand_below_the_curve_of_reading_alone():
    ax = pictures.speed_and_bits([4.3, 32.0], [20.0, 3.0], ["4 bits", "float32"], 100.0).axes[0]
    curve, dots = ax.lines
    assert np.allclose(curve.get_ydata() * curve.get_xdata(), 100)
    assert list(dots.get_xdata()) == [4.3, 32.0] and list(dots.get_ydata()) == [20.0, 3.0]
    assert [text.get_text() for text in ax.texts] == ["4 bits", "float32"]
    low, high = ax.get_ylim()
    assert low < 3 and high > 20


def test_gains_are_lines_over_the_batch_with_the_line_at_one():
    ax = pictures.gain_and_batch([1, 8], {"4 bits": [3.0, 0.8], "2 bits": [4.0, 0.7]}).axes[0]
    assert [list(line.get_ydata()) for line in ax.lines] == [[3.0, 0.8], [4.0, 0.7], [1, 1]]
    assert ax.get_ylim()[0] == 0


def test_bars_of_the_first_token_and_of_each_further_one():
    first, other = pictures.first_and_next(["float32", "4 bits"], [0.2, 0.21], [0.05, 0.02], 128).axes
    assert [bar.get_width() for bar in first.patches] == pytest.approx([200, 210])
    assert [bar.get_width() for bar in other.patches] == pytest.approx([50, 20])
    assert first.get_title() == "the first token, behind a prompt of 128" and first.get_xlim()[1] > 210
