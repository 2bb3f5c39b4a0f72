"""Pictures of chapter 12: they draw the data that they get."""

import numpy as np
import pytest

from qtutor.plots import choose as pictures
from qtutor.plots import png
from qtutor.plots.comparison import Point


def test_rises_have_a_row_each_and_the_bound():
    ax = pictures.rises({"a": [("RTN", 3.0, 0.5), ("NF4", 7.0, 1.0)]}, bound=6).axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["RTN", "NF4"]
    assert any(list(line.get_xdata()) == [6, 6] for line in ax.lines)
    assert ax.get_xlim()[1] > 7


def test_bars_of_bits_end_where_they_should():
    ax = pictures.where_bits_go({"64": 4.3125, "32": 4.625}).axes[0]
    assert [p.get_x() + p.get_width() for p in ax.patches] == [4, 4, 4.3125, 4.625]
    assert "3.71 times" in ax.texts[0].get_text()


def test_the_bell_has_the_area_of_the_histogram():
    sizes = np.random.default_rng(0).normal(size=100_000)
    ax = pictures.beside_a_bell(sizes).axes[0]
    heights = [patch.get_height() for patch in ax.patches]
    assert sum(heights) == 100_000
    assert max(ax.lines[0].get_ydata()) == pytest.approx(max(heights), rel=0.05)


def test_every_draw_is_a_dot():
    ax = pictures.parts_won_back({"a": {"x": [0.2], "y": [0.0, 0.1]}, "b": {"x": [0.3], "y": [0.1]}}).axes[0]
    assert [p.get_height() for p in ax.patches] == [0.2, 0.05, 0.3, 0.1]
    assert [0.0, 0.1] in [list(line.get_ydata()) for line in ax.lines]


def test_one_weight_after_the_other():
    ax = pictures.without_one_weight({"a": [(0, 1.0), (1, 30.0)]}).axes[0]
    assert list(ax.lines[0].get_ydata()) == [1, 30] and ax.get_yscale() == "log"


def test_bits_fall_to_the_right():
    ax = pictures.loss_against_bits({"a": [(8, 0.1), (4, 3.0), (3, -0.1)]}).axes[0]
    assert list(ax.lines[0].get_xdata()) == [8, 4]  # a logarithm cannot show -0.1
    assert ax.get_xlim()[0] > ax.get_xlim()[1]


def test_both_panels_of_calibration_share_what_no_text_loses():
    left, right = pictures.calibrated_with({"matched": [0.2, 0.21]}, {"8": [0.3], "32": [0.2]}, 0.4).axes
    for ax in (left, right):
        assert any(set(line.get_ydata()) == {0.4} for line in ax.lines)
    assert [label.get_text() for label in right.get_xticklabels()] == ["8", "32"]


def test_sums_against_perplexity_have_a_row_for_each_model():
    left, right = pictures.arithmetic_against_perplexity(
        {"a": [("RTN 4", 0.9, 0.8, 0.03), ("NF4", 0.95, 0.97, 0.03)], "b": [("RTN 4", 0.7, 0.4, 0.05)]}
    ).axes
    assert [text.get_text() for text in left.get_yticklabels()] == ["RTN 4", "NF4"]
    dots, rings = (next(line for line in left.lines if line.get_markersize() == size) for size in (5, 9))
    assert list(dots.get_xdata()) == [0.8, 0.97] and list(rings.get_xdata()) == [0.9, 0.95]
    assert left.get_xlim() == right.get_xlim() and right.get_title() == "b"


def test_kinds_have_a_row_each():
    ax = pictures.kinds_left(["sum", "max"], {"RTN": {"sum": 0.5, "max": 0.9}}).axes[0]
    assert list(ax.lines[0].get_xdata()) == [0.5, 0.9]


def test_losses_are_smoothed():
    ax = pictures.training({"a": [5.0] * 4 + [0.0]}).axes[0]
    assert list(ax.lines[0].get_ydata()) == [4.0]


FAMILIES = {
    "RTN": [Point("RTN 4", 4_000_000, 0.1, 0.01), Point("RTN 3", 3_000_000, 0.5)],
    "NF4": [Point("NF4", 3_900_000, 0.6)],
}


def test_models_beyond_the_budget_are_pale_and_the_chosen_one_has_a_ring():
    figure = pictures.all_models(FAMILIES, 3_500_000, FAMILIES["RTN"][1])
    ax = figure.axes[0]
    named = {text.get_text() for text in ax.texts}
    assert named == {"RTN 4", "RTN 3"}  # the front; NF4 is beaten
    assert any(line.get_markersize() == 16 and line.get_xdata()[0] == 3 for line in ax.lines)
    assert any(list(line.get_xdata()) == [3.5, 3.5] for line in ax.lines)
    assert png(figure)[:4] == b"\x89PNG"


def test_the_tree_has_a_box_for_each_branch():
    ax = pictures.decision([("a laptop", "Q4_K_M", "KL 0.1"), ("else", "GPTQ", "KL 0.2")]).axes[0]
    texts = [text.get_text() for text in ax.texts]
    assert "a laptop" in texts and "GPTQ\nKL 0.2" in texts
    assert texts.count("yes") == 2 and texts.count("no") == 1
