"""The places of weights in four formats, found by trials with the writers, agree with the formats' descriptions."""

import numpy as np
import pytest
import torch

from qtutor.core.grid import IntGrid
from qtutor.course import layouts
from qtutor.errors import QtutorError
from qtutor.methods import rtn

FORMATS = ("GGUF Q4_0", "GPTQ", "AWQ", "compressed-tensors")
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@pytest.fixture(scope="module")
def layer():
    weight = torch.randn(24, 96, generator=torch.Generator().manual_seed(5)) * 0.1
    return rtn.quantize(weight, layouts.GRID, layouts.INPUTS)


def expected_place(name: str, output: int, input: int) -> int:
    """The number of a weight's half byte, from the formats' descriptions; the low half of a byte comes first."""
    word, nibble = {
        "GPTQ": (input // 8 * 8 + output, input % 8),
        "AWQ": (input, ORDER.index(output)),
        "compressed-tensors": (output * 4 + input // 8, input % 8),
    }.get(name, (0, 0))
    return 36 * output + 4 + 2 * (input % 16) + input // 16 if name == "GGUF Q4_0" else 8 * word + nibble


@pytest.mark.parametrize("at", range(4), ids=FORMATS)
def test_every_weight_is_where_the_format_says(layer, at):
    laid = layouts.side_by_side(layouts.block_of(layer, 1, 2))[at]
    assert laid.format == FORMATS[at]
    expected = [expected_place(laid.format, o, i) for o in range(8) for i in range(32)]
    assert laid.places("codes")[:, 0].tolist() == expected


@pytest.mark.parametrize("at", range(4), ids=FORMATS)
def test_half_bytes_hold_the_codes_scales_and_zeros_of_the_block(layer, at):
    block = layouts.block_of(layer, 2, 1)
    laid = layouts.side_by_side(block)[at]
    assert np.array_equal(laid.part("codes").data[laid.places()[:, 0] // 2] >> 4 * (laid.places()[:, 0] % 2) & 15,
                          block.codes.flatten().numpy())  # fmt: skip
    scales = laid.part("scales").data[laid.places("scales")[:, ::2] // 2]  # each scale takes two bytes
    assert np.array_equal(scales.copy().view(np.float16).ravel(), block.scales.flatten().numpy())
    zeros = laid.part("zeros")
    assert (zeros is None) == (laid.format in ("GGUF Q4_0", "compressed-tensors"))
    if zeros is not None:
        assert zeros.data.tolist() == [0x77 if laid.format == "GPTQ" else 0x88] * 4
        order = list(range(8)) if laid.format == "GPTQ" else [ORDER.index(output) for output in range(8)]
        assert laid.places("zeros").ravel().tolist() == order


@pytest.mark.parametrize("at", range(4), ids=FORMATS)
def test_every_format_decodes_to_the_same_block(layer, at):
    block = layouts.block_of(layer, 0, 2)
    expected = layer.dequantize()[:8, 64:96].numpy()
    assert np.array_equal(layouts.weights_of(layouts.side_by_side(block)[at]), expected)


@pytest.mark.parametrize("grid, size", [(IntGrid(4), 32), (IntGrid(3, symmetric=True), 32), (layouts.GRID, 16)])
def test_another_grid_or_group_size_is_refused(grid, size):
    with pytest.raises(QtutorError, match="share symmetric 4 bits in groups of 32"):
        layouts.block_of(rtn.quantize(torch.randn(8, 32), grid, size))


@pytest.mark.parametrize("outputs, inputs", [(3, 0), (0, 3), (-1, 0)])
def test_a_block_that_is_not_there_is_refused(layer, outputs, inputs):
    with pytest.raises(QtutorError, match="this layer has 3 by 3 of them"):
        layouts.block_of(layer, outputs, inputs)
