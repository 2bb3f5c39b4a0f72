"""Pictures of chapter 10: they draw the data that they get."""

import numpy as np

from qtutor.plots import png
from qtutor.plots import serving as pictures


def test_a_cache_rises_and_weights_are_flat():
    ax = pictures.cache_and_weights([1, 10], {"a": [1e9, 1e10]}, {"16 bits": 5e9, "4 bits": 2e9}).axes[0]
    assert list(ax.lines[0].get_ydata()) == [1, 10]
    assert [line.get_ydata()[0] for line in ax.lines[1:]] == [5, 2]
    assert len({line.get_linestyle() for line in ax.lines[1:]}) == 2


def test_places_are_drawn_as_long_as_they_are_held():
    panels = {"static": [["A", "A", ".", "C"]], "continuous": [["A", "A", "C"], ["", "B", "B"]]}
    figure = pictures.places_over_time(panels)
    first, second = figure.axes
    assert [(p.get_x(), p.get_width(), p.get_hatch()) for p in first.patches] == [
        (0, 2, None), (2, 1, "///"), (3, 1, None),
    ]  # fmt: skip
    assert [text.get_text() for text in first.texts] == ["A", "C"]
    assert [(p.get_x(), p.get_y()) for p in second.patches] == [(0, 0.1), (2, 0.1), (1, 1.1)]
    assert first.get_xlim() == second.get_xlim() == (0, 4)
    assert first.patches[0].get_facecolor() == second.patches[0].get_facecolor()
    assert png(figure)[:4] == b"\x89PNG"


def test_runs():
    assert pictures.runs([]) == []
    assert pictures.runs(["A", "A", "", "A"]) == [(0, 2, "A"), (2, 3, ""), (3, 4, "A")]


def test_a_curve_of_users_ends_where_nobody_fits():
    counts = {(16, 16): [3, 1, 0], (4, 8): [12, 6, 3]}
    ax = pictures.users([256, 512, 1024], counts, "a model").axes[0]
    first, second = ax.lines
    assert np.isnan(first.get_ydata()[2]) and list(second.get_ydata()) == [12, 6, 3]
    assert ax.get_ylim()[1] > 12 and not ax.texts
    ax = pictures.users([256], {(16, 16): [0]}, "a model").axes[0]
    assert ax.texts[0].get_text() == "the weights leave no room"


def test_times_under_load_have_a_panel_each():
    axes = pictures.under_load([1, 8], [0.01, 0.02], [0.001, 0.004], [90.0, 400.0]).axes
    assert [list(ax.lines[0].get_ydata()) for ax in axes] == [[10, 20], [1, 4], [90, 400]]
    assert all(ax.get_ylim()[0] == 0 for ax in axes)


def test_costs_have_a_row_each():
    ax = pictures.cache_costs(["int8", "int4"], {"a": [1e-4, 1e-2], "b": [2e-4, 3e-2]}).axes[0]
    assert [list(line.get_xdata()) for line in ax.lines] == [[1e-4, 1e-2], [2e-4, 3e-2]]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["int8", "int4"]
    assert ax.get_ylim() == (1.5, -0.5)


def test_loud_channels_share_one_scale():
    keys, values = np.array([[-4.0, 1.0]]), np.array([[2.0, 0.0]])
    left, right = (ax.images[0] for ax in pictures.loud_channels(keys, values).axes[:2])
    assert left.get_array().tolist() == [[4, 1]] and right.get_array().tolist() == [[2, 0]]
    assert left.get_clim() == right.get_clim() == (0, 4)
