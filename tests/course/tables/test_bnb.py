"""Tables of chapter 04: they say what was computed."""

from types import SimpleNamespace

import pytest
import torch

from qtutor.course.float_blocks import Cost
from qtutor.course.tables import bnb as tables
from qtutor.plots import bnb as pictures
from tests.course.tables.conftest import cells

LINE = [(4.5, 0.08, "32"), (4.0, 0.10, "64")]
SWEPT = {
    "plain": [(0.1, {"a.q_proj": [1.0, 0.5, 2.0], "a.k_proj": [0.5, 0.5, 2.0]})] * 2
    + [(0.5, {"a.q_proj": [0.0, 0.0, 2.0]})],
    "put in": [
        (0.2, {"a.q_proj": [1.0, 0.25, 3.0]}),
        (0.3, {"a.q_proj": [0.5, 0.25, 3.0]}),
        (0.6, {"a.q_proj": [0, 0, 3]}),
    ],
}


def test_information_is_the_entropy_of_the_shares(shown):
    shares = torch.tensor([0.5, 0.25, 0.25, 0.0])
    tables.use_of_levels({"x": (None, None, shares)}, {"x": 0.1})
    assert cells(shown[0])[1] == ["x", "50.0%", "0.0%", "1.50", "10.00%"]


@pytest.mark.parametrize(("bits", "error"), [(4.0, 0.10), (4.25, 0.09), (4.5, 0.08), (3.9, None), (4.6, None)])
def test_between_block_sizes_the_line_is_straight(bits, error):
    assert tables.error_at(LINE, bits) == (None if error is None else pytest.approx(error))


def test_formats_are_compared_at_equal_bits(shown):
    series = {
        "int": LINE,
        "NF4 8": [(4.25, 0.0895, "32"), (4.1, 0.05, "64")],
        "NF4 32": [(4.4, 0.2, "32"), (9.0, 0.1, "64")],
    }
    tables.equal_bytes(series, ["NF4 8", "NF4 32"], "int")
    assert cells(shown[0])[1] == ["int", "4.500: 8.00%", "4.000: 10.00%"]
    assert [line.rpartition("**")[0].rpartition("**")[2] for line in shown[1].splitlines()] == [
        "About the same.",
        "NF4.",
        "The integers.",
    ]


def test_scales_that_are_off_move_the_weights(shown):
    weight, levels = torch.tensor([[1.0, -1.0, 2.0, -2.0]]), torch.tensor([-1.0, 1.0])
    exact, codes = torch.tensor([[1.0, 2.0]]), torch.tensor([[1, 0, 1, 0]])
    tables.scales_of([("exact", exact, codes, 0.5), ("off", 1.1 * exact, codes, 0.125)], exact, weight, levels)
    assert cells(shown[0])[1:] == [["exact", "0.500", "0.00%", "0.000%"], ["off", "0.125", "10.00%", "10.000%"]]


def test_thresholds_by_decoder(shown):
    assert tables.channels_in_16(SWEPT["plain"]) == [0.75, 0.75, 0.0]
    tables.thresholds(SWEPT, ["0", "6", "none"])
    assert cells(shown[0])[2] == ["plain", "channels in 16 bits", "75.0 %", "75.0 %", "0.0 %"]
    tables.inputs_at(SWEPT, 1)
    assert cells(shown[1])[1:] == [["a.q_proj", "2.00", "50.0%", "100.0%", "25.0%", "50.0%"]]  # k_proj reads the same
    tables.what_six_takes_back(SWEPT, 1)
    first, second = shown[2].splitlines()
    assert "6.0 removes 100% of the cost of rounding the inputs, with 75 % of the channels" in first
    assert "6.0 removes 75% of the cost of rounding the inputs, with 50 % of the channels" in second
    channels = {name: tables.channels_in_16(found) for name, found in SWEPT.items()}
    left, right = pictures.thresholds(SWEPT, channels, ["0", "6", "none"]).axes
    assert left.get_yscale() == "log" and right.lines[0].get_ydata().tolist() == [75, 75, 0]


@pytest.mark.parametrize(
    ("kl", "words"), [(1.04, "about as good as"), (0.96, "about as good as"), (0.9, "better than"), (1.1, "worse than")]
)
def test_near_kls_are_about_as_good(shown, kl, words):
    measured = {n: SimpleNamespace(comparison=SimpleNamespace(kl=k), bits=4.0) for n, k in (("a", kl), ("b", 1.0))}
    tables.compared(measured, [("a", "b")])
    assert shown == [f"- **a is {words} b**: {kl:.2f} times its KL, at 4.000 against 4.000 bits."]


def test_the_axis_of_shares_is_the_same_for_formats_of_as_many_levels():
    levels, weights = torch.linspace(-1, 1, 16), torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    steep = torch.tensor([0.02] * 13 + [0.1, 0.12, 0.1])
    panels = {"even": (weights / 4, levels, torch.full((16,), 1 / 16)), "steep": (weights / 4, levels, steep)}
    tops = {ax.get_ylim()[1] for ax in pictures.levels_over_weights(panels).axes[1::2]}
    assert len(tops) == 1


def test_scales_are_compared_with_the_exact_one(shown):
    tables.by_scale({"any number": [0.1, 0.2], "a power of two": [0.117, 0.19]}, (16, 32), 0.45)
    assert cells(shown[0])[0] == ["scale", "error, blocks of 16", "error, blocks of 32"]
    assert cells(shown[0])[1:] == [
        ["any number", "10.00% (+0%)", "20.00% (+0%)"],
        ["a power of two", "11.70% (+17%)", "19.00% (-5%)"],
    ]
    assert "in 45% of the blocks of 16" in shown[1]


@pytest.mark.parametrize(("kl", "words"), [(1.04, "about as good as"), (0.9, "better than"), (1.1, "worse than")])
def test_costs_of_formats(shown, kl, words):
    found = {"a": Cost(4.25, 0.1134, kl), "b": Cost(4.5, 0.087, 1.0)}
    tables.costs(found, [("a", "b")])
    assert cells(shown[0])[1:] == [["a", "4.250", "11.34%", f"{kl:.4f}"], ["b", "4.500", "8.70%", "1.0000"]]
    assert shown[1] == f"- **a is {words} b**: {kl:.2f} times its KL, at 4.25 against 4.50 bits."
