"""The widgets of chapter 04: they show what the package computes, and what a layer in int8 does."""

import math

import pytest
import torch
from torch.nn.functional import linear

from qtutor import bnb, rtn
from qtutor.calibration import statistics
from qtutor.core.codebooks import Codebook
from qtutor.core.grid import IntGrid
from qtutor.course.widgets.bnb import (
    FORMATS,
    THRESHOLDS,
    levels_over_bell,
    outlier_threshold,
    product_errors,
    round_to,
    seen,
)
from qtutor.course.widgets.sampling import whole_bytes
from qtutor.errors import QtutorError
from qtutor.runtime.int8 import Int8Linear
from tests.course.widgets.test_widgets import cells, control, stored
from tests.models import some_ids, tiny


def some_weight(rows: int = 64, columns: int = 256) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("format", FORMATS)
def test_bytes_from_shapes_are_those_of_the_data(format):
    weight, grid = some_weight(), FORMATS[format]
    for block in (-1, 64, 32):
        for double in (False, True) if isinstance(grid, Codebook) else (False,):
            whole, some = round_to(weight, grid, block, double), round_to(weight[:3], grid, block, double)
            assert whole_bytes(weight.shape, some) == (whole.nbytes, whole.bits_per_weight)
    assert whole_bytes((3, 192), bnb.quantize(weight))[0] == bnb.quantize(some_weight(3, 192)).nbytes  # 9 scales


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_seen_are_the_weights_their_levels_and_how_often_each_is_used(format):
    weight = some_weight()
    quantized = round_to(weight, FORMATS[format], 64, double=False)
    relative, levels, shares = seen(weight, quantized)
    assert relative.abs().amax(dim=-1).allclose(torch.ones(64, 4))
    assert (levels.diff() >= 0).all() and len(levels) == len(shares) == 2**quantized.grid.bits
    assert shares.sum().item() == pytest.approx(1)
    # The share of the lowest level is the share of weights that were rounded to the lowest level of their block.
    lowest = quantized.codes == (0 if isinstance(quantized.grid, IntGrid) else quantized.grid.values.index(-1.0))
    assert shares[0].item() == pytest.approx(lowest.float().mean().item())


def test_the_levels_of_an_integer_grid_are_those_of_the_block_of_median_scale():
    weight = some_weight(1, 64)  # one block
    quantized = rtn.quantize(weight, IntGrid(4), 64)
    _, levels, _ = seen(weight, quantized)
    scale, zero = quantized.scales.float().item(), int(quantized.zeros)
    expected = scale * (torch.arange(16) - zero) / weight.abs().max()
    assert torch.allclose(levels, expected)


def test_the_table_says_what_the_package_computes():
    weight = some_weight()
    explorer = levels_over_bell({"layer": weight}, frames={})
    quantized = bnb.quantize(weight, double=False)
    error = (quantized.dequantize() - weight).norm() / weight.norm()
    shares = torch.bincount(quantized.codes.flatten().long(), minlength=16) / weight.numel()
    assert cells(explorer) == [
        f"{error:.2%}",
        f"{shares.max():.1%}",
        f"{shares.min():.1%}",
        "32 bits",
        f"{quantized.nbytes:,}",
        "4.500",
    ]
    control(explorer, "NF4, FP4: scales in 8 bits").value = True
    assert cells(explorer)[3:5] == ["8 bits, with scales of their own", f"{bnb.quantize(weight).nbytes:,}"]
    control(explorer, "format").value = "int4 asymmetric"  # this format has no such choice
    assert cells(explorer)[3:] == ["16 bits", f"{rtn.quantize(weight, IntGrid(4), 64).nbytes:,}", "4.312"]


def test_every_control_changes_what_is_shown():
    explorer = levels_over_bell({name: some_weight() * spread for name, spread in (("a", 1.0), ("b", 2.0))})
    moves = {"layer": "b", "format": "FP4", "block": 32, "NF4, FP4: scales in 8 bits": True}
    for name, value in moves.items():
        before = explorer.children[-1].value
        control(explorer, name).value = value
        assert explorer.children[-1].value != before, name
    assert len(stored(explorer.still)) == 20  # five formats, two sizes of blocks, scales not rounded or in 8 bits


def test_a_large_layer_is_sampled_and_its_bytes_are_not():
    weight = some_weight(2048, 1024)
    explorer = levels_over_bell({"layer": weight}, frames={})
    assert cells(explorer)[4:] == [f"{2048 * 1024 * 4.5 / 8:,.0f}", "4.500"]


def test_what_cannot_be_shown_is_said():
    with pytest.raises(QtutorError, match="there is no layer 'q'; the layers are layer"):
        levels_over_bell({"layer": some_weight()}, "q")
    explorer = levels_over_bell({"layer": some_weight(8, 96)}, block=32, frames={})
    control(explorer, "block").value = 64
    assert "layer: groups of 64 do not divide rows of 96" in explorer.children[-1].value


def test_errors_are_those_of_the_layer_in_int8():
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(16, 32, generator=generator), torch.randn(20, 32, generator=generator)
    x[:, 7] *= 30
    found = product_errors(weight, x, (6.0, math.inf))
    layer = Int8Linear.from_quantized(bnb.quantize(weight, bnb.INT8))
    exact = linear(x.double(), weight.double())
    for threshold, (count, error) in found.items():
        layer.threshold = threshold
        assert error == pytest.approx(((layer(x).double() - exact).norm() / exact.norm()).item(), rel=1e-5)
        assert count == int((x.abs() >= threshold).any(dim=0).sum())
    assert list(found) == [0.0, 6.0, math.inf] and [count for count, _ in found.values()] == [32, 1, 0]
    assert found[0.0][1] <= found[6.0][1] < found[math.inf][1]


def test_the_table_says_how_many_channels_stay():
    model, ids = tiny(), some_ids(rows=1, length=32)
    explorer = outlier_threshold(model, ids, frames={})
    control(explorer, "with add_outliers").value = False
    control(explorer, "layer").value = "1.mlp.down_proj"
    control(explorer, "threshold").value = 1.0
    x = statistics.layer_inputs(model, ids, samples=32)["model.layers.1.mlp.down_proj"].samples
    weight = model.model.layers[1].mlp.down_proj.weight.detach()
    found = product_errors(weight, x, THRESHOLDS)
    count, error = found[1.0]
    expected = [f"{count} of {x.shape[1]}", f"{count / x.shape[1]:.1%}"]
    assert cells(explorer) == [*expected, *(f"{e:.2%}" for e in (error, found[math.inf][1], found[0.0][1]))]
    assert len(stored(explorer.still)) == 1


def test_every_control_of_the_threshold_changes_what_is_shown():
    explorer = outlier_threshold(tiny(), some_ids(rows=1, length=32))
    for name, value in {"layer": "1.self_attn.q_proj", "with add_outliers": False, "threshold": math.inf}.items():
        before = explorer.children[-1].value
        control(explorer, name).value = value
        assert explorer.children[-1].value != before, name
    assert "without a threshold" in explorer.children[-1].value
