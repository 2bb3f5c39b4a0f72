"""The picture of bytes against KL: names and errors of all models, the front, legible labels, equal bytes."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from qtutor.plots import base
from qtutor.plots.comparison import Point, best, bytes_against_kl, image
from tests.plots.test_plots import PALETTE, VISION, difference

SPREAD = [
    Point("Q2_K", 60_000_000, 1.9, 0.05),
    Point("out3", 70_000_000, 0.4, 0.02),
    Point("Q4_K_M", 90_000_000, 0.08, 0.004),
    Point("rtn4", 91_000_000, 0.2, 0.01),
    Point("Q8_0", 150_000_000, 0.004, None),
]
CLOSE = [
    Point(f"a rather long name {number}", 90_000_000 + 100_000 * number, 0.1 + 0.0004 * number, 0.001)
    for number in range(6)
]


def marks(figure) -> list[tuple[float, float]]:
    lines = [line for line in figure.axes[0].lines if line.get_marker() in base.MARKERS]
    return [(line.get_xdata()[0], line.get_ydata()[0]) for line in lines]


def test_every_model_is_a_mark_with_its_error_and_name():
    figure = bytes_against_kl(SPREAD)
    ax = figure.axes[0]
    assert marks(figure) == [(point.nbytes / 1e6, point.kl) for point in SPREAD]
    assert [text.get_text() for text in ax.texts] == [point.name for point in SPREAD]
    bars = [container.lines[2][0].get_segments()[0] for container in ax.containers if container.has_yerr]
    assert np.allclose([bar[:, 1] for bar in bars], [(p.kl - p.error, p.kl + p.error) for p in SPREAD if p.error])
    assert ax.get_yscale() == "log" and "nats" in ax.get_ylabel() and "megabytes" in ax.get_xlabel()
    assert bytes_against_kl(CLOSE).axes[0].get_yscale() == "linear"
    assert bytes_against_kl([*SPREAD, Point("float", 270_000_000, 0.0)]).axes[0].get_yscale() == "linear"


@pytest.mark.parametrize("points", [SPREAD, CLOSE, SPREAD[:1]])
def test_names_cover_neither_marks_nor_each_other_and_stay_in_the_picture(points):
    figure = bytes_against_kl(points)
    figure.draw_without_rendering()
    renderer, ax = figure.canvas.get_renderer(), figure.axes[0]
    boxes = [text.get_window_extent(renderer) for text in ax.texts]
    for number, box in enumerate(boxes):
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[:number])
        for mark in ax.transData.transform(marks(figure)):
            assert not box.contains(*mark)


def test_models_are_told_apart_without_colour_and_by_colour():
    figure = bytes_against_kl(CLOSE)
    lines = [line for line in figure.axes[0].lines if line.get_marker() in base.MARKERS]
    assert len({line.get_marker() for line in lines}) == 6
    colours = [to_hex(line.get_color()) for line in lines]
    assert set(colours) <= {colour.lower() for colour in PALETTE.values()} and len(set(colours)) == 6
    for vision in VISION.values():
        assert min(difference(a, b, vision) for a in colours for b in colours if a != b) > 14


def test_the_front_is_what_no_other_beats_in_both():
    names = [point.name for point in best(SPREAD)]
    assert names == ["Q2_K", "out3", "Q4_K_M", "Q8_0"]  # rtn4 is larger than Q4_K_M, and worse
    same = [Point("a", 10, 0.5), Point("b", 10, 0.3), Point("c", 20, 0.3), Point("d", 30, 0.2)]
    assert [point.name for point in best(same)] == ["b", "d"]


def test_equal_models_give_equal_bytes():
    for kind, begin in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        first = image(bytes_against_kl(SPREAD), kind)
        assert first.startswith(begin) and first == image(bytes_against_kl(SPREAD), kind)
