"""Pictures of chapter 04: they draw the data that they get."""

import math

import numpy as np
import pytest
import torch

from qtutor import bnb
from qtutor.plots import png
from qtutor.plots.bnb import (
    error_against_bits,
    levels_over_weights,
    outlier_channels,
    quantile_levels,
    scales_and_map,
)

LEVELS = torch.tensor(bnb.NF4.values)


def bell(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def ends(collection) -> list[tuple[float, float]]:
    """(place, height) of vertical lines."""
    return [(float(line[0][0]), float(line[1][1])) for line in collection.get_segments()]


@pytest.mark.parametrize("count", [1, 3])
def test_levels_stand_over_the_weights_and_their_shares_beside_them(count):
    weights = bell(64, 64)
    weights = weights / weights.abs().amax(dim=1, keepdim=True)
    shares = torch.arange(1.0, 17.0) / 136
    figure = levels_over_weights({f"format {i}": (weights, LEVELS, shares) for i in range(count)})
    assert len(figure.axes) == 2 * count
    left, right = figure.axes[:2]
    assert left.patches[0].get_data().values.sum() == pytest.approx(100)  # every weight is in some bar
    assert [x for x, _ in ends(left.collections[0])] == pytest.approx(LEVELS.tolist())
    assert np.allclose(ends(right.collections[0]), list(zip(LEVELS.tolist(), (100 * shares).tolist())))
    assert right.lines[0].get_ydata()[0] == 6.25
    assert png(figure)[:4] == b"\x89PNG"


def test_the_slices_of_the_bell_end_at_the_levels():
    (ax,) = quantile_levels(LEVELS, 1.85).axes
    lines = next(c for c in ax.collections if hasattr(c, "get_segments"))
    assert [x for x, _ in ends(lines)] == pytest.approx((1.85 * LEVELS).tolist(), abs=1e-6)
    assert [text.get_text() for text in ax.texts][::5] == ["-1.00", "-0.18", "0.25", "1.00"]
    assert "-0.00" not in [text.get_text() for text in ax.texts]


def test_a_line_a_format_through_its_block_sizes():
    series = {"NF4": [(4.5, 0.09, "64"), (4.25, 0.1, "128")], "int4": [(4.3, 0.08, "64")]}
    (ax,) = error_against_bits(series, "error").axes
    assert [line.get_label() for line in ax.lines] == list(series)
    assert ax.lines[0].get_xdata().tolist() == [4.25, 4.5]  # in the order of bits
    assert sorted(text.get_text() for text in ax.texts) == ["128", "64", "64"]


def test_scales_less_their_mean_lie_on_the_map():
    scales = 1 + 0.1 * bell(8, 32)
    mean = scales.mean().item()
    left, right = scales_and_map(scales, mean, (scales - mean).abs().max().item(), torch.linspace(-1, 1, 256)).axes
    assert left.patches[0].get_data().values.sum() == right.patches[0].get_data().values.sum() == 256
    assert len(right.collections[0].get_segments()) == 256
    assert left.lines[0].get_xdata()[0] == mean


@pytest.mark.parametrize("threshold", [6.0, math.inf, 0.5])
def test_channels_that_reach_the_threshold_are_marked(threshold):
    largest = torch.tensor([1.0, 0.0, 7.0, 6.0, 2.0])
    left, right = outlier_channels(largest, threshold, [0.4, 0.0, 1.0], [0.02, 0.08, 0.01], "inputs").axes
    expected = [i for i, size in enumerate(largest.tolist()) if size >= threshold]
    assert left.lines[0].get_xdata().tolist() == expected
    assert (len(left.lines) == 2) == math.isfinite(threshold)
    assert right.lines[0].get_xdata().tolist() == [0.0, 40.0, 100.0]
    assert np.allclose([*right.lines[1].get_xdata(), *right.lines[1].get_ydata()], [40.0, 2.0])  # this one
