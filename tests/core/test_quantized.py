"""The tensors of a stored packed matrix: their computed shapes, dtypes and bytes are those of the real tensors."""

import dataclasses

import pytest
import torch

from qtutor import bnb, rtn
from qtutor.core.codebooks import Codebook
from qtutor.core.grid import IntGrid
from qtutor.core.quantized import nbytes_of, scales_shape, shapes
from qtutor.core.scales import NestedScales, PlainScales
from qtutor.errors import QtutorError
from qtutor.runtime.linear import QuantLinear

GRIDS = [*(IntGrid(bits, symmetric) for bits in (2, 3, 4, 8) for symmetric in (False, True)), bnb.NF4, bnb.INT8]


@pytest.mark.parametrize("shape", [(5, 48), (40, 192), (1, 48), (0, 48), (4, 0)])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_shapes_are_those_of_the_data(grid, shape):
    for group_size in (16, -1, 0) if grid != bnb.INT8 else (-1,):
        for double in (False, True) if grid == bnb.NF4 else (False,):
            weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
            if isinstance(grid, Codebook):
                quantized = bnb.quantize(weight, grid, group_size, double)
            else:
                quantized = rtn.quantize(weight, grid, group_size)
            scales_as = type(quantized.stored_scales)
            assert scales_as is (NestedScales if double and quantized.scales.numel() else PlainScales)
            layer = QuantLinear.from_quantized(quantized)
            stored = {name: (tuple(t.shape), t.dtype) for name, t in layer.state_dict().items()}
            assert shapes(*shape, grid, group_size, scales_as) == stored
            assert nbytes_of(*shape, grid, group_size, scales_as) == quantized.nbytes == layer.nbytes
            assert scales_shape(*shape, group_size) == tuple(quantized.scales.shape)


def test_shapes_by_hand():
    assert shapes(64, 128, IntGrid(4), 32) == {
        "packed": ((64, 64), torch.uint8),
        "scales": ((64, 4), torch.float16),
        "zeros": ((64, 2), torch.uint8),
    }
    assert shapes(3, 80, bnb.NF4, 16, NestedScales) == {
        "packed": ((3, 40), torch.uint8),
        "scale_codes": ((3, 5), torch.uint8),
        "scale_absmax": ((1,), torch.float32),
        "scale_offset": ((), torch.float32),
    }
    assert nbytes_of(3, 80, bnb.NF4, 16, NestedScales) == 120 + 15 + 4 + 4
    assert nbytes_of(64, 256, IntGrid(3, symmetric=True), 0) == 64 * 96 + 2
    assert nbytes_of(3, 7, IntGrid(8, symmetric=True), 1) == 3 * 7 * (1 + 2)  # a scale for each weight
    assert nbytes_of(128256, 2**16, IntGrid(4, symmetric=True), -1) == 128256 * (2**15 + 2)  # no such tensor is made


def test_a_group_size_that_does_not_fit_is_refused():
    for refuse in (shapes, nbytes_of):
        with pytest.raises(QtutorError, match="groups of 64 do not divide rows of 96"):
            refuse(4, 96, IntGrid(4), 64)
        with pytest.raises(QtutorError, match=r"groups of -2 do not divide rows of 96 weights\. Choose 16, 32 or -1"):
            refuse(4, 96, IntGrid(4), -2)
        with pytest.raises(QtutorError, match="Choose 16, 32, 64, 128, 256 or -1"):
            refuse(4, 768, IntGrid(4), 48 + 1)


def test_scales_and_the_way_they_are_stored_cannot_come_to_differ():
    quantized = bnb.quantize(torch.randn(4, 128, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(quantized.scales, quantized.stored_scales.decode())
    with pytest.raises(dataclasses.FrozenInstanceError):
        quantized.scales = torch.ones(4, 2)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (0, 8), (3, 0)])
def test_bits_per_weight_counts_every_byte(shape):
    quantized = rtn.quantize(torch.ones(shape), IntGrid(8, symmetric=True), -1)
    weights = shape[0] * shape[1]
    assert quantized.bits_per_weight * max(weights, 1) == 8 * quantized.nbytes
    assert weights != 1 or quantized.bits_per_weight == 8 * (1 + 2)  # its code, and its scale in float16
