"""Pictures of chapter 05: they draw the numbers that they get."""

import numpy as np
import pytest
import torch

from qtutor.plots import awq as pictures
from qtutor.plots import png


def test_a_panel_for_each_s_with_the_changes_beneath():
    weights, changes = torch.tensor([0.4, -0.1, 0.2]), torch.tensor([0.01, -0.05, 0.02])
    panels = {
        "s = 1": (weights, torch.arange(-3, 4) / 5, changes),
        "s = 2": (2 * weights, torch.arange(-3, 4) / 2, changes),
    }
    figure = pictures.scaled_columns(panels, loud=1, reach=1.5)
    assert [ax.get_title() for ax in figure.axes[:2]] == ["s = 1", "s = 2"]
    dots, diamond = figure.axes[0].lines
    assert dots.get_ydata() == pytest.approx([0.4, 0.2]) and list(diamond.get_xdata()) == [1]
    assert [bar.get_height() for bar in figure.axes[3].patches] == pytest.approx([0.01, 0.05, 0.02])
    assert png(figure)[:4] == b"\x89PNG"


def test_curves_are_shares_of_the_first_error_and_the_smallest_is_ringed():
    panels = {name: {"here": [4.0, 2.0, 3.0], "there": [1.0, 1.5, 0.5]} for name in "abcd"}
    figure = pictures.ratio_curves(panels, [0.0, 0.3, 0.6], "error")
    assert [ax.get_visible() for ax in figure.axes] == [True] * 4 + [False] * 2
    curve, ring, other, its_ring, _level = figure.axes[0].lines
    assert list(curve.get_ydata()) == [1.0, 0.5, 0.75] and list(other.get_ydata()) == [1.0, 1.5, 0.5]
    assert (list(ring.get_xdata()), list(its_ring.get_xdata())) == ([0.3], [0.6])


def test_a_curve_that_leaves_the_picture_has_a_triangle_there():
    figure = pictures.ratio_curves({"a": {"here": [1.0, 1.5, 4.0, 5.0, 1.0, 3.0]}}, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0], "")
    triangles = [line for line in figure.axes[0].lines if line.get_marker() == "^"]
    assert [list(line.get_xdata()) for line in triangles] == [[0.4], [1.0]]
    assert all(0.9 * pictures.TOP < line.get_ydata()[0] < pictures.TOP for line in triangles)


def test_triangles_of_two_curves_do_not_cover_each_other():
    leaves = [1.0, 5.0]
    figure = pictures.ratio_curves({"a": {"here": leaves, "there": leaves}}, [0.0, 0.5], "")
    first, second = (line.get_ydata()[0] for line in figure.axes[0].lines if line.get_marker() == "^")
    assert first - second > 0.05 * pictures.TOP


def test_the_widgets_picture_marks_the_ratio_and_moves_weights_to_their_levels():
    weights, levels = torch.tensor([0.9, -0.3, 0.1]), torch.tensor([-1.0, 0.0, 1.0])
    loud = torch.tensor([False, True, False])
    figure = pictures.search_and_group([0.0, 0.5], [2.0, 1.0], 0.5, weights, levels, loud)
    left, right = figure.axes
    assert any(list(line.get_xdata()) == [0.5, 0.5] for line in left.lines)
    moved = next(part for part in right.collections if part.get_label() == "error")
    ends = np.array([segment[:, 1] for segment in moved.get_segments()])
    assert ends == pytest.approx(np.array([[0.9, 1.0], [-0.3, 0.0], [0.0, 0.1]]))


def test_silent_layers_are_drawn_too():
    assert png(
        pictures.search_and_group([0.0, 0.5], [0.0, 0.0], 0.0, torch.zeros(4), torch.zeros(3), torch.ones(4) > 0)
    )
