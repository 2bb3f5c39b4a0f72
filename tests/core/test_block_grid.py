"""MXFP4 and NVFP4 as grids: compared with blocks in plain Python, and properties that have to hold for any weights."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qtutor
from qtutor import awq, gptq, rtn
from qtutor.core.float_grid import FP8, MXFP4, NVFP4, BlockGrid
from qtutor.core.float_scales import FloatScales, PowerScales, as_stored, class_of_scales
from qtutor.core.numbers import E2M1, E4M3
from tests.reference import float_blocks as slow

GRIDS = [MXFP4, NVFP4]
SIX = replace(NVFP4, wider=())


def some(rows: int, columns: int, seed: int, size: float = 0.02) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * size


@settings(deadline=None, max_examples=30)
@given(
    rows=st.integers(1, 3), blocks=st.integers(1, 3), seed=st.integers(0, 999),
    size=st.sampled_from([1e-12, 1e-6, 0.02, 300.0, 1e12]), empty=st.booleans(),
)  # fmt: skip
def test_blocks_are_those_of_plain_python(rows, blocks, seed, size, empty):
    for grid, by_hand in ((MXFP4, slow.mxfp4), (NVFP4, None)):
        weight = some(rows, blocks * grid.block, seed, size)
        if empty:
            weight[0, : grid.block] = 0
        quantized = rtn.quantize(weight, grid, grid.block)
        unit = getattr(quantized.stored_scales, "of_all", torch.tensor(1.0)).item()
        grouped = weight.reshape(rows, blocks, grid.block)
        for row in range(rows):
            for block in range(blocks):
                weights = grouped[row, block].tolist()
                scale, codes = by_hand(weights) if by_hand else slow.nvfp4(weights, unit)
                own = quantized.codes.reshape(grouped.shape)[row, block]
                errors = [
                    sum((slow.value_of(c, s) - w) ** 2 for c, w in zip(some_codes, weights))
                    for some_codes, s in ((codes, scale), (own.tolist(), quantized.scales[row, block].item()))
                ]
                if scale == quantized.scales[row, block].item():
                    # Weights are divided in float32 first, so a weight in the middle between two levels may go either
                    # way.
                    assert (own == torch.tensor(codes)).float().mean() > 0.9
                assert errors[1] == pytest.approx(errors[0], rel=1e-4)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)
def test_codes_are_those_of_the_format_tie_for_tie(grid):
    ties = torch.tensor([0.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, 7.0, 1e30])
    dense = torch.linspace(-8, 8, 6401)
    values = torch.cat([ties, -ties, ties.nextafter(torch.tensor(0.0)), ties.nextafter(torch.tensor(9.0)), dense])
    assert torch.equal(grid.encode(values, torch.ones(())).long(), E2M1.encode(values.clamp(-6, 6)))
    assert torch.equal(grid.encode(values * 0.25, torch.tensor(0.25)), grid.encode(values, torch.ones(())))
    codes = torch.arange(16, dtype=torch.uint8)
    assert torch.equal(grid.encode(grid.levels(codes), torch.ones(())), codes)


def test_the_scale_of_mxfp4_doubles_at_seven_of_it():
    for largest, scale in ((4.0, 1), (6.0, 1), (6.99, 1), (7.0, 2), (8.0, 2), (13.9, 2), (14.0, 4), (0.0, 1)):
        found, zero = MXFP4.fit(torch.tensor([-largest]), torch.tensor([largest / 2]))
        assert found.tolist() == [scale] and zero.tolist() == [0], largest


def test_a_block_is_mapped_to_four_where_that_is_nearer():
    """The second row's weights are levels, the largest is 4. If 4 becomes level 4, nothing is lost; if it becomes
    level 6, the other weights are rounded."""
    fits_six = torch.tensor([6.0, 4.0, 3.0, 2.0, 1.5, 1.0, 0.5] + [0.0] * 9)
    fits_four = torch.tensor([4.0, 3.0, 3.0, 2.0, 1.5, 1.0, 0.5] + [0.0] * 9)
    weight = torch.stack([fits_six, fits_four])
    quantized = rtn.quantize(weight, NVFP4, 16)
    assert torch.equal(quantized.dequantize(), weight) and quantized.scales.tolist() == [[1.0], [1.0]]
    six = rtn.quantize(weight, SIX, 16)
    assert torch.equal(six.dequantize()[0], weight[0]) and not torch.equal(six.dequantize()[1], weight[1])


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 999), size=st.sampled_from([1e-12, 0.02, 1e12]))
def test_no_block_is_worse_than_with_six_alone(seed, size):
    weight = some(4, 64, seed, size).double()
    errors = [
        ((rtn.quantize(weight.float(), grid, 16).dequantize().double() - weight) / size).reshape(4, 4, 16).norm(dim=-1)
        for grid in (NVFP4, SIX)
    ]
    assert (errors[0] <= errors[1] * (1 + 1e-5)).all()


def test_four_over_six_helps_weights_that_are_about_normal():
    weight = some(256, 256, 0)
    both, six, power = ((rtn.quantize(weight, g, g.block).dequantize() - weight).norm() for g in (NVFP4, SIX, MXFP4))
    assert both < 0.98 * six and six < power


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)
def test_every_scale_is_stored_as_it_was_used(grid):
    for size in (1e-30, 0.02, 1e30):
        weight = some(5, 96, 1, size)
        weight[2, :32] *= 1e-6  # far below the others: E4M3 has no such scale
        quantized = rtn.quantize(weight, grid, grid.block)
        kept = quantized.stored_scales
        assert type(kept) is class_of_scales(grid) and kept.codes.dtype == torch.uint8
        fitted = grid.for_tensor(weight)
        assert torch.equal(fitted.round_scale(quantized.scales), quantized.scales)  # nothing is rounded twice
        again = as_stored(quantized.scales, fitted)
        assert all(torch.equal(a, b) for a, b in zip(again.tensors().values(), kept.tensors().values()))
        assert (quantized.scales > 0).all() and quantized.scales.isfinite().all()


def test_the_number_for_the_whole_tensor_leaves_room_for_four():
    for size in (1e-20, 0.02, 1.0, 448 * 4, 448 * 4 + 1, 1e30):
        unit = NVFP4.for_tensor(torch.tensor([[size, -size / 3]])).unit
        assert torch.frexp(torch.tensor(unit)).mantissa == 0.5  # a power of two, whose inverse is exact
        assert 224 < size / 4 / unit <= 448
    assert NVFP4.for_tensor(torch.zeros(2, 16)).unit == NVFP4.for_tensor(torch.zeros(0, 16)).unit == 1
    assert MXFP4.for_tensor(torch.ones(2, 32)) is MXFP4


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)
def test_zeros_and_matrices_without_weights(grid):
    quantized = rtn.quantize(torch.zeros(2, 64), grid, grid.block)
    assert not quantized.dequantize().any() and (quantized.scales == 1).all()
    for shape in ((0, 64), (4, 0)):
        assert rtn.quantize(torch.zeros(shape), grid, grid.block).dequantize().shape == shape


def test_true_bytes():
    weight = some(8, 64, 0)
    assert rtn.quantize(weight, MXFP4, 32).bits_per_weight == 4.25
    assert rtn.quantize(weight, NVFP4, 16).nbytes == 8 * 64 // 2 + 8 * 4 + 4


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)
def test_rows_and_parts_of_scales(grid):
    quantized = rtn.quantize(some(7, 64, 3), grid, grid.block)
    kept, whole = quantized.stored_scales, quantized.dequantize()
    assert torch.equal(kept.rows(slice(2, 5)), kept.decode()[2:5])
    assert torch.equal(kept.rows(torch.tensor([6, 0])), kept.decode()[[6, 0]])
    assert torch.equal(torch.cat([part.dequantize() for part in quantized.split([3, 4])]), whole)
    one = rtn.quantize(some(7, 64, 3), grid, 0)
    assert one.scales.shape == (1, 1)
    with pytest.raises(qtutor.QtutorError, match="they share 1 row of scales"):
        one.split([3, 4])


def test_stored_scales_by_hand():
    powers = PowerScales(torch.tensor([[0, 1, 126, 127, 130, 254]], dtype=torch.uint8))
    assert powers.decode().tolist() == [[2.0**-127, 2.0**-126, 0.5, 1.0, 8.0, 2.0**127]]
    assert not PowerScales(torch.tensor([[255]], dtype=torch.uint8)).decode().isfinite().any()
    floats = FloatScales(torch.tensor([[0x01, 0x38, 0x7E]], dtype=torch.uint8), torch.tensor(0.5))
    assert floats.decode().tolist() == [[2.0**-10, 0.5, 224.0]]
    codes = torch.arange(127, dtype=torch.uint8)
    assert torch.equal(FloatScales(codes[None], torch.tensor(1.0)).decode()[0].double(), E4M3.decode(codes))


def test_a_copy_is_the_same_grid_and_the_search_is_no_part_of_it():
    for grid in GRIDS:
        for other in (copy.deepcopy(grid), pickle.loads(pickle.dumps(grid)), grid.for_tensor(torch.ones(2, 64))):
            assert other == grid and hash(other) == hash(grid)
    assert SIX == NVFP4 and MXFP4 != NVFP4 and FP8 not in GRIDS and isinstance(MXFP4, BlockGrid)


@pytest.mark.parametrize("grid", [FP8, *GRIDS], ids=lambda grid: grid.name)
def test_gptq_and_awq_change_the_output_less_than_rounding_to_nearest(grid):
    size = getattr(grid, "block", -1)
    weight = some(24, 128, 0)
    x = some(512, 128, 1, 1.0) @ (torch.eye(128) + 0.3 * some(128, 128, 2, 1.0))  # correlated inputs
    x[:, :4] *= 8
    hessian = (x.T @ x).double()
    error = lambda quantized: (x @ (quantized.dequantize() - weight).T).norm()  # noqa: E731
    nearest = error(rtn.quantize(weight, grid, size))
    for clip in ("none", "mse", "output"):
        made = gptq.quantize(weight, hessian, grid, size, clip=clip)
        assert error(made) < 0.8 * nearest, clip
        assert type(made.stored_scales) is class_of_scales(grid)
    assert error(awq.quantize(weight, hessian, grid, size)) < 0.99 * nearest
    if size > 0:  # GPTQ's and AWQ's scales can be stored, too
        assert torch.equal(made.scales, grid.for_tensor(weight).round_scale(made.scales))
        static = gptq.quantize(weight, hessian, grid, size, act_order="columns")
        assert error(static) < nearest
