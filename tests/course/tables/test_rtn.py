"""Tables of chapter 02: they say what was computed."""

from types import SimpleNamespace

import pytest
import torch

from qtutor.course import nasty
from qtutor.course.tables import rtn as tables
from qtutor.plots import rtn as pictures
from qtutor.recipe import Recipe
from qtutor.report import LayerReport, Report
from tests.course.tables.conftest import cells


def compared(perplexity: float, rise: float, kl: float, flips: float) -> SimpleNamespace:
    return SimpleNamespace(perplexity=perplexity, loss_percent=rise, kl=kl, flips=flips)


@pytest.fixture
def measured() -> dict:
    return {
        "float": (compared(24.0, 0.0, 0.0, 0.0), 0.8, 0.5, 0.4),
        "8": (compared(24.1, 0.4, 0.001, 0.01), 0.8, 0.5, 0.4),
        "4": (compared(25.0, 4.0, 0.1, 0.2), 0.6, 0.5, 0.4),
        "3": (compared(33.0, 40.0, 0.4, 0.4), 0.4, 0.25, 0.2),
        "2": (compared(224.0, 800.0, 2.7, 0.8), 0.0, 0.0, 0.1),
    }


def test_a_row_for_each_number_of_bits(shown, measured):
    tables.losses_and_skills(measured)
    assert cells(shown[0])[1] == ["float", "24", "+0.0 %", "0", "0.0%", "80%", "50%", "40%"]
    assert cells(shown[0])[3] == ["4", "25", "+4.0 %", "0.1", "20.0%", "60%", "50%", "40%"]


def test_what_suffers_is_told_as_parts_of_what_was_right(shown, measured):
    tables.what_suffers_first(measured, questions=100, functions=25)
    assert "arithmetic lost 25 % of its right answers, the rest 0 %." in shown[0]
    assert "(at least 5 points) at: 4 bits." in shown[0]  # at 3 and 2 bits, both lost the same parts
    assert "arithmetic is at most 5 points, and of valid Python 10." in shown[0]


def test_what_float_did_not_lose_has_no_place_on_a_logarithmic_axis(measured):
    left, right = pictures.losses_and_skills(measured).axes
    assert left.get_yscale() == "log" and right.get_ylim()[0] == 0
    assert str(left.lines[0].get_ydata()[0]) == "nan" and left.lines[0].get_ydata()[1] == 0.4
    assert right.lines[0].get_ydata().tolist() == [80, 80, 60, 40, 0]


def test_group_sizes_count_true_bits(shown):
    rows = tuple(
        LayerReport(name, (4, 16), error, bits_per_weight=5.0, bytes_before=128, bytes_after=40)
        for name, error in (("a", 0.1), ("b", 0.3))
    )
    row = tables.group_size_row(3, "symmetric", "64", Report(Recipe(bits=3), rows), 12.34)
    assert row == [3, "symmetric", "64", "5.000", "20.0%", "+12.3 %"]
    tables.group_sizes([row])
    assert cells(shown[0])[1] == [str(cell) for cell in row]


def test_nasty_weights_are_what_their_names_say():
    weights = nasty.weights()
    assert all(torch.equal(w, nasty.weights()[name]) and w.shape == (16, 64) for name, w in weights.items())
    assert (weights["all negative"] <= 0).all() and (weights["one-sided"] >= 0).all()
    assert weights["a row of zeros"][3].unique().tolist() == [0] and weights["a constant row"][3].unique().numel() == 1
    assert weights["one single outlier"].count_nonzero() == 1 and weights["very small"].abs().max() < 1e-3
