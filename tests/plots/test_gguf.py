"""Pictures of chapter 07: they draw the data that they get."""

import numpy as np

from qtutor.plots import gguf as pictures
from qtutor.plots import png


def test_every_byte_is_a_cell_with_its_value_and_the_colour_of_its_part():
    data = b"GG\x01\x41" + bytes(30) + b"AB"
    figure = pictures.file_bytes(data, [("header", 4), ("padding", 30), ("w", 2)], text=4)
    ax = figure.axes[0]
    shown = [text.get_text() for text in ax.texts]
    assert shown == ["G", "G", "01", "A", *["00"] * 30, "41", "42"]  # letters only in the part that is text
    colours = [patch.get_facecolor() for patch in ax.patches]
    assert len(set(colours)) == 3 and colours[0] == colours[3] and colours[4] == (1, 1, 1, 1)
    assert ax.patches[32].get_xy() == (0, 1)  # 32 in a row
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"header", "padding", "w"}
    assert png(figure) == png(pictures.file_bytes(data, [("header", 4), ("padding", 30), ("w", 2)], text=4))


def test_bands_reach_from_the_lowest_level_to_the_highest():
    weights = np.linspace(-1, 1, 64)
    step, low = np.array([0.1, 0.2]), np.array([-0.5, -1.5])
    figure = pictures.super_block(weights, {"one": (step[:1], low[:1]), "two": (step, low)})
    assert [len(ax.patches) for ax in figure.axes] == [1, 2]
    band = figure.axes[1].patches[1]
    assert (band.get_x(), band.get_width(), band.get_y()) == (31.5, 32, -1.5) and np.isclose(band.get_height(), 3)
    assert np.allclose(
        [line[0][1] for line in figure.axes[1].collections[0].get_segments()], -0.5 + 0.1 * np.arange(16)
    )
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    assert np.allclose(figure.axes[0].lines[-1].get_ydata(), weights)


def test_the_kept_try_is_ringed():
    stretch, laid, fitted = np.array([14.0, 15.0, 16.0]), np.array([3.0, 2.0, 4.0]), np.array([2.0, 1.5, 1.0])
    lines = pictures.tries(stretch, laid, fitted, 2).axes[0].lines
    assert np.allclose(lines[0].get_ydata(), laid) and np.allclose(lines[1].get_ydata(), fitted)
    assert lines[2].get_xydata().tolist() == [[16.0, 1.0]]


def test_points_have_names_that_do_not_lie_on_each_other():
    series = {
        "some": {"Q4_0": (4.5, 0.0933), "Q4_1": (5.0, 0.0821), "MXFP4": (4.25, 0.12)},
        "others": {"Q4_K": (4.5, 0.0752), "Q2_K": (2.625, 0.308)},
        "uneven": {"IQ4_NL": (4.5, 0.0798), "IQ4_XS": (4.25, 0.0805)},
        "nameless": {"Q4_K": (4.5, 0.07)},
    }
    figure = pictures.bits_against(series, "error", through="Q4_0", unnamed=("nameless",))
    ax = figure.axes[0]
    assert ax.get_yscale() == "log"
    assert sorted(text.get_text() for text in ax.texts) == sorted(name for s in list(series)[:3] for name in series[s])
    figure.draw_without_rendering()
    boxes = [text.get_window_extent().padded(-2) for text in ax.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    colours = {text.get_text(): text.get_color() for text in ax.texts}
    assert colours["Q4_0"] == colours["MXFP4"] != colours["Q4_K"] == colours["Q2_K"] != colours["IQ4_NL"]
    open_ones = [line.get_label() for line in ax.lines if line.get_markerfacecolor() == "none"]
    assert open_ones == ["nameless"]  # so that marks below them can be seen
    line = next(line for line in ax.lines if "half for every bit" in line.get_label()).get_xydata()
    assert np.allclose(line[:, 1], 0.0933 * 2 ** (4.5 - line[:, 0]))
    assert not any("half" in line.get_label() for line in pictures.bits_against(series, "error").axes[0].lines)
