"""Pictures of chapter 01: they draw the data that they get, and nothing else."""

import io

import numpy as np
import pytest
from PIL import Image

from qtutor.core.numbers import E4M3, FP16, FP32, IntFormat
from qtutor.plots import png
from qtutor.plots.numbers import DENSE, FIELDS, bit_boxes, grids, over_sizes, pictures, worst_over_sizes
from qtutor.plots.sunset import sunset


def pixels(figure) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png(figure))).convert("RGB"))


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_the_sunset_is_the_same_every_time_and_has_what_a_photograph_has():
    picture = sunset(200, 304)
    assert picture.shape == (200, 304, 3) and picture.min() >= 0 and picture.max() <= 1
    assert np.array_equal(picture, sunset(200, 304))
    steps = np.abs(np.diff(picture, axis=1)).max(axis=2)
    assert np.median(steps[:60]) < 0.005  # the sky: smooth
    assert steps[:110].max() > 0.2  # an edge
    assert np.median(steps[190:]) > 0.02  # the sand: noise
    assert sunset(40, 60).shape == (40, 60, 3)


@pytest.mark.parametrize("zoom", [1, 2])
def test_pictures_are_drawn_pixel_by_pixel(zoom):
    rng = np.random.default_rng(0)
    panels = {name: rng.integers(0, 256, (12, 16, 3)) for name in "abcd"}
    drawn = pixels(pictures({name: values / 255 for name, values in panels.items()}, columns=3, zoom=zoom))
    for values in panels.values():
        large = values.repeat(zoom, axis=0).repeat(zoom, axis=1)
        windows = np.lib.stride_tricks.sliding_window_view(drawn, large.shape)[:, :, 0]
        assert (windows == large).all(axis=(2, 3, 4)).sum() == 1  # it is somewhere in the picture, whole, once


def test_bits_are_drawn_with_their_letters():
    figure = bit_boxes({"a": (E4M3, 0b1_0110_101), "b": (IntFormat(4), 0b1010)})
    drawn = texts(figure)
    assert [t for t in drawn if t in FIELDS] == list("SEEEEMMM" + "SIII")
    assert [t for t in drawn if t in "01"] == list("10110101" + "1010")
    assert {"a", "b"} <= set(drawn)


def test_too_many_levels_become_a_bar():
    figure = grids([FP32, E4M3], 1.0, 2.0, 1.1)
    assert [t for t in texts(figure) if "over" in t] == [f"over {DENSE} levels "]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["fp32", "fp8 e4m3"]
    assert "int8 × 0.5" in [t.get_text() for t in grids([IntFormat(8, 0.5)], 0, 1).axes[0].get_yticklabels()]


def test_ticks_are_the_levels_and_the_arrow_ends_on_the_nearest():
    (ticks,) = [c for c in grids([E4M3], 1.0, 2.0).axes[0].collections if len(c.get_segments()) > 1]
    assert [segment[0][0] for segment in ticks.get_segments()] == [1 + i / 8 for i in range(9)]
    marks = [line.get_xdata()[0] for line in grids([E4M3], 1.0, 2.0, 1.1).axes[0].lines]
    assert marks == [1.1, 1.125]
    beyond = [line.get_xdata()[0] for line in grids([FP16], 60000.0, 80000.0, 70000.0).axes[0].lines]
    assert beyond == [70000.0, 80000.0]  # infinity lies to the right of the window


def test_lines_over_sizes_have_a_gap_where_there_is_no_number():
    figure = over_sizes({"a": [1.0, float("nan"), 2.0], "b": [1, 2, 3]}, [-3, 0, 3], "size", "error")
    ax = figure.axes[0]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["a", "b"]
    assert np.isnan(ax.lines[0].get_ydata()).tolist() == [False, True, False]


def test_worst_errors_stand_over_powers_of_two_on_a_logarithmic_axis():
    powers, errors = np.array([-3.5, 0.5, 4.5]), {"a": np.array([0.1, 0.2, np.nan]), "b": np.array([1.0, 1.0, 1.0])}
    ax = worst_over_sizes(powers, errors).axes[0]
    assert ax.get_yscale() == "log" and [t.get_text() for t in ax.get_legend().get_texts()] == ["a", "b"]
    assert ax.get_xticks().tolist() == [-4, 1]
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), errors["a"])
