"""Every method's promises about its result: dtypes, shapes, contiguous memory. (equal() compares only values.)"""

import pytest
import torch

from qtutor import awq, bnb, gptq, rtn
from qtutor.core.float_grid import MXFP4, NVFP4
from qtutor.core.grid import IntGrid
from qtutor.core.quantized import PER_CHANNEL, PER_TENSOR
from qtutor.core.scales import NestedScales
from qtutor.errors import QtutorError
from qtutor.methods import hqq, sinq

GRIDS = [IntGrid(3), IntGrid(4, symmetric=True), bnb.NF4, bnb.INT8, MXFP4, NVFP4]
METHODS = {
    "rtn": lambda weight, hessian, grid, size: rtn.quantize(weight, grid, size),
    "rtn clipped": lambda weight, hessian, grid, size: rtn.quantize(weight, grid, size, clip="mse"),
    "gptq": gptq.quantize,
    "gptq static": lambda *arguments: gptq.quantize(*arguments, act_order="columns", clip="output"),
    "awq": awq.quantize,
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    ("shape", "size", "groups"),
    [
        ((6, 64), 16, (6, 4)),
        ((6, 64), PER_CHANNEL, (6, 1)),
        ((6, 64), PER_TENSOR, (1, 1)),
        ((1, 64), 64, (1, 1)),
        ((0, 64), 16, (0, 4)),
        ((6, 0), PER_CHANNEL, (6, 0)),
        ((6, 0), 16, (6, 0)),
        ((0, 64), PER_TENSOR, (1, 1)),
    ],
    ids=str,
)
def test_of_every_method(method, grid, dtype, shape, size, groups):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    x = torch.randn(128, shape[1], generator=torch.Generator().manual_seed(1))
    promised(METHODS[method](weight, x.T @ x, grid, size), shape, groups, grid)


@pytest.mark.parametrize("grid", [bnb.NF4, bnb.FP4, bnb.INT8], ids=str)
@pytest.mark.parametrize("shape", [(6, 128), (0, 128), (6, 0), (0, 0)], ids=str)
def test_of_bitsandbytes(grid, shape):
    quantized = bnb.quantize(torch.randn(shape, generator=torch.Generator().manual_seed(0)), grid)
    per_row = shape[1] and (1 if grid == bnb.INT8 else 2)
    promised(quantized, shape, (shape[0], per_row), grid)
    nested = quantized.stored_scales
    assert isinstance(nested, NestedScales) == (grid != bnb.INT8 and quantized.scales.numel() > 0)
    if isinstance(nested, NestedScales):
        assert (nested.codes.dtype, nested.absmax.dtype, nested.offset.dtype) == (torch.uint8, *[torch.float32] * 2)


def in_order(weight, hessian, grid, size, **options):
    """:func:`gptq.round_columns` by itself, with the clipping and the order of columns that recipes use."""
    prepared = gptq.prepare(hessian, size, act_order="groups")
    return gptq.round_columns(weight, prepared, grid, size, clip="output", **options)


WITHOUT_WEIGHTS = METHODS | {
    "gptq in order": in_order,
    "gptq in order, static": lambda *arguments: in_order(*arguments, static_groups=True),
    "hqq": lambda weight, hessian, grid, size: hqq.quantize(weight, grid, size),
    "sinq": lambda weight, hessian, grid, size: sinq.quantize(weight, grid, size)[0],
}


@pytest.mark.parametrize("method", WITHOUT_WEIGHTS)
@pytest.mark.parametrize("size", [1, 16, PER_CHANNEL, PER_TENSOR])
@pytest.mark.parametrize("shape", [(0, 64), (64, 0), (0, 0)], ids=str)
def test_of_matrices_without_weights(method, shape, size):
    for grid in GRIDS[:2] if method in ("hqq", "sinq") else GRIDS:
        groups = {1: shape[1], 16: shape[1] // 16, PER_CHANNEL: min(shape[1], 1)}
        shaped = (1, 1) if size == PER_TENSOR else (shape[0], groups[size])
        found = WITHOUT_WEIGHTS[method](torch.zeros(shape), torch.eye(shape[1]), grid, size)
        promised(found, shape, shaped, grid)
        assert (found.scales == 1).all() and (found.zeros is None or (found.zeros == grid.middle).all())


@pytest.mark.parametrize("method", WITHOUT_WEIGHTS)
def test_weights_that_are_no_finite_matrix_are_refused(method):
    weight, eye = torch.ones(4, 64), torch.eye(64)
    weight[2, 5] = float("nan")
    with pytest.raises(QtutorError, match=r"^1 of 256 weights are NaN or infinite, the first at \[2, 5\]"):
        WITHOUT_WEIGHTS[method](weight, eye, GRIDS[0], 16)
    for wrong in (torch.ones(64), torch.ones(4, 64, dtype=torch.int32)):
        with pytest.raises(QtutorError, match="a floating-point matrix"):
            WITHOUT_WEIGHTS[method](wrong, eye, GRIDS[0], 16)


def promised(quantized, shape, groups, grid) -> None:
    assert quantized.codes.dtype == torch.uint8 and quantized.codes.shape == shape
    assert quantized.scales.dtype == grid.scale_dtype and quantized.scales.shape == groups
    assert (quantized.zeros is None) == grid.symmetric
    parts = [quantized.codes, quantized.scales]
    if quantized.zeros is not None:
        assert quantized.zeros.dtype == torch.uint8 and quantized.zeros.shape == groups
        parts.append(quantized.zeros)
    assert all(part.is_contiguous() for part in parts)
    back = quantized.dequantize()
    assert back.dtype == torch.float32 and back.shape == shape and torch.isfinite(back).all()
