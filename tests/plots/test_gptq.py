"""Pictures of chapter 06: they draw the data that they get."""

import numpy as np
import pytest
import torch

from qtutor.plots import gptq as pictures
from qtutor.plots import png


def test_the_plane_shows_each_way_to_round_and_an_ellipse_through_its_end():
    weight = torch.tensor([0.40, 0.45])
    hessian = torch.tensor([[14.0, 13.0], [13.0, 14.0]])
    rtn, slid, rounded = torch.tensor([0.0, 0.0]), torch.tensor([0.0, 0.8214]), torch.tensor([0.0, 1.0])
    figure = pictures.plane({"alike": (hessian, rtn, slid, rounded), "again": (hessian, rtn, slid, rounded)}, weight)
    assert len(figure.axes) == 2
    points = {line.get_label(): line.get_xydata()[0] for line in figure.axes[0].lines if line.get_label()[0] != "_"}
    assert np.allclose(points["the two weights"], weight)
    assert np.allclose(points["nearest point (RTN)"], rtn) and np.allclose(points["GPTQ"], rounded)
    ellipses = figure.axes[0].collections[0]
    for point in (rtn, slid, rounded):
        d = (point - weight).double()
        assert any(abs(level - (d @ hessian.double() @ d).item()) < 1e-3 for level in ellipses.levels)


def test_the_staircase_frames_what_is_rounded_and_writes_every_weight():
    steps = torch.tensor([[0.4, 0.45, -0.3], [0.0, 0.7, -0.2], [0.0, 1.0, -0.1], [0.0, 1.0, -0.0]])
    ax = pictures.staircase(steps).axes[0]
    assert [text.get_text() for text in ax.texts[:6]] == ["0.40", "0.45", "-0.30", "0.00", "0.70", "-0.20"]
    assert ax.texts[-1].get_text() == "0.00"  # no minus zero
    assert len(ax.patches) == 6  # one, two and three rounded weights
    assert np.allclose(ax.images[0].get_array(), steps - steps[0])


def test_the_hessian_is_shown_as_correlations_and_sizes():
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)).double()
    x[:, 3] *= 10
    figure = pictures.hessian(x.T @ x, "layer")
    shown = np.asarray(figure.axes[0].images[0].get_array())
    assert np.allclose(np.diag(shown), 1) and abs(shown).max() <= 1 + 1e-9
    sizes = x.square().sum(dim=0).sqrt()
    assert shown[1, 3] == pytest.approx(((x[:, 1] * x[:, 3]).sum() / (sizes[1] * sizes[3])).item())
    right = next(ax for ax in figure.axes if ax.get_title() == "size of each input")
    assert np.allclose(right.patches[0].get_data().values, sizes / np.median(sizes))


def test_a_dead_input_breaks_no_picture():
    hessian = torch.diag(torch.tensor([4.0, 0.0, 1.0, 9.0]))
    assert png(pictures.hessian(hessian, "layer")).startswith(b"\x89PNG")
    assert png(pictures.orders({"as they are": torch.arange(4)}, hessian.diagonal(), 2)).startswith(b"\x89PNG")


def test_orders_are_dots_at_step_and_column():
    order = torch.tensor([2, 0, 3, 1])
    figure = pictures.orders({"by size": order, "as they are": torch.arange(4)}, torch.tensor([3.0, 1.0, 4.0, 2.0]), 2)
    assert np.array_equal(figure.axes[0].collections[0].get_offsets(), [[0, 2], [1, 0], [2, 3], [3, 1]])
    assert np.allclose(figure.axes[0].collections[0].get_array(), np.log10([4, 3, 2, 1]))
