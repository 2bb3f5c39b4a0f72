"""Grid, rounding to nearest and storage: compared with a slow version, and properties that must always hold."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qtutor
from qtutor import rtn
from qtutor.core.codebooks import INT8, NF4
from qtutor.core.quantized import PER_CHANNEL, PER_TENSOR
from tests.reference import rtn as reference

BITS = range(2, 9)


def crafted() -> torch.Tensor:
    """Rows of 32 weights that break careless code."""
    rows = torch.randn(12, 32, generator=torch.Generator().manual_seed(0))
    rows[0] = 0
    rows[1] = 0.7  # constant
    rows[2] = -0.3
    rows[3] = rows[3].abs() + 0.5  # one-sided
    rows[4] = -rows[4].abs()
    rows[5] = 0
    rows[5, 7] = 100.0  # a single outlier
    rows[6] = 1e-30  # far below float16
    rows[7, 3] = -60000.0
    rows[8] = torch.tensor([1.0, -1.0]).repeat(16)
    rows[9] = -0.0
    rows[10] *= 1e-4
    return rows


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", [8, 32])
def test_equals_the_slow_version(bits, symmetric, group):
    weight = crafted()
    ours = rtn.quantize(weight, qtutor.IntGrid(bits, symmetric), group).dequantize().double().numpy()
    slow = reference.quantize(weight.numpy(), bits, symmetric, group)
    scale = np.abs(slow).max(axis=1, keepdims=True) + 1e-12
    # A weight in the middle between two levels may go either way, so errors are compared, not levels.
    ours_error, slow_error = np.abs(ours - weight.double().numpy()), np.abs(slow - weight.double().numpy())
    assert (np.abs(ours_error - slow_error) <= 1e-6 * scale).all()


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    grid=st.sampled_from([*(qtutor.IntGrid(b, s) for b in BITS for s in (True, False)), NF4, INT8]),
    magnitude=st.sampled_from([1e-6, 1.0, 1e4]),
)
def test_nearest_is_what_decoding_the_code_gives(seed, grid, magnitude):
    weight = torch.randn(5, 16, generator=torch.Generator().manual_seed(seed)) * magnitude
    weight[0] = 0
    scale, zero = rtn.fit_groups(weight[:, None, :8], grid)  # half the row, so that some weights are out of range
    back = grid.decode(grid.encode(weight, scale, zero), scale, zero)
    assert torch.equal(grid.nearest(weight, scale, zero), back)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    bits=st.sampled_from(BITS),
    symmetric=st.booleans(),
    group=st.sampled_from([4, 16, PER_CHANNEL, PER_TENSOR]),
    magnitude=st.sampled_from([1e-3, 1.0, 1e3]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_no_weight_is_further_than_half_a_step(seed, bits, symmetric, group, magnitude, dtype):
    weight = (torch.randn(5, 16, generator=torch.Generator().manual_seed(seed)) * magnitude).to(dtype)
    quantized = rtn.quantize(weight, qtutor.IntGrid(bits, symmetric), group)
    error = (quantized.dequantize() - weight.float()).abs()
    per_group = error.reshape(*quantized.scales.shape, -1) if group != PER_TENSOR else error.reshape(1, 1, -1)
    scale = quantized.scales.float().unsqueeze(-1)
    # A float16 scale has a relative error of up to 2**-11 (below 2**-14, float16 is subnormal, with an error of up to
    # 2**-25). At the end of the range, the errors of up to 2**bits steps add up. The zero point is a whole code, so it
    # can shift a range by half a step.
    drift = 2**bits * (scale * 2**-11).clamp(min=2**-25)
    assert (per_group <= (0.5 if symmetric else 1.0) * scale + drift).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_zero_stays_zero(bits, symmetric):
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(1)) + 2
    weight[:, ::5] = 0
    restored = rtn.quantize(weight, qtutor.IntGrid(bits, symmetric), 16).dequantize()
    assert (restored[:, ::5] == 0).all()


@pytest.mark.parametrize("symmetric", [True, False])
def test_finer_groups_and_more_bits_cost_less_error(symmetric):
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(2))

    def error(bits, group):
        return (rtn.quantize(weight, qtutor.IntGrid(bits, symmetric), group).dequantize() - weight).norm().item()

    by_bits = [error(bits, 64) for bits in BITS]
    assert by_bits == sorted(by_bits, reverse=True)
    by_group = [error(4, group) for group in (PER_TENSOR, PER_CHANNEL, 128, 64, 32, 16)]
    assert by_group == sorted(by_group, reverse=True)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_clipping_never_raises_the_error_of_a_group(bits, symmetric):
    weight = crafted()
    grid = qtutor.IntGrid(bits, symmetric)
    plain = (rtn.quantize(weight, grid, 16).dequantize() - weight).reshape(12, 2, 16).norm(dim=-1)
    clipped = (rtn.quantize(weight, grid, 16, clip="mse").dequantize() - weight).reshape(12, 2, 16).norm(dim=-1)
    assert (clipped <= plain * (1 + 1e-6)).all()
    assert (clipped < plain * 0.99).any()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_clipping_tries_every_hundredth_of_the_range_down_to_a_fifth_of_it(bits, symmetric):
    """Compared with brute force. Half of the groups have two weights so large that an even smaller range is better."""
    weight = 0.05 * torch.randn(12, 8192, generator=torch.Generator().manual_seed(bits))
    grid = qtutor.IntGrid(bits, symmetric)
    weight[::2, 17], weight[::2, 18] = 1.5, -1.5
    low, high = weight.amin(dim=1, keepdim=True), weight.amax(dim=1, keepdim=True)
    tried = [grid.fit(low * (percent / 100), high * (percent / 100)) for percent in range(100, 10, -1)]
    errors = [(grid.decode(grid.encode(weight, *t), *t) - weight).square().sum(dim=1) for t in tried]
    found = rtn.quantize(weight, grid, 8192, clip="mse")
    beyond = 0
    for row in range(12):
        costs = [error[row].item() for error in errors]
        best = costs.index(min(costs[:81]))  # 100 % to 20 %; the first of equals
        assert found.scales[row] == tried[best][0][row]
        assert symmetric or found.zeros[row] == tried[best][1][row]
        beyond += costs[81] < costs[best]
    assert beyond > 0  # so the test would notice a search that goes one step further


def test_of_two_ranges_of_equal_error_the_wider_one_stays():
    """At 2 bits, the share s of the range of [300, 75, 0, 0] has the scale 100 s. All numbers are whole, so exact.

    300 gets code 3, 75 gets code 1. Scale 98 leaves (300 - 294)^2 + (75 - 98)^2 = 565, and scale 97 leaves
    9^2 + 22^2 = 565 as well.
    """
    weight, grid = torch.tensor([[300.0, 75.0, 0.0, 0.0]]), qtutor.IntGrid(2)
    found = rtn.quantize(weight, grid, 4, clip="mse")
    assert found.scales.item() == 98.0
    errors = {}
    for scale in range(20, 101):
        fitted = grid.fit(torch.zeros(1, 1), torch.full((1, 1), 3.0 * scale))
        assert fitted[0].item() == scale
        errors[scale] = (grid.nearest(weight, *fitted) - weight).square().sum().item()
    assert [scale for scale, error in errors.items() if error == min(errors.values())] == [97, 98]


def test_true_bytes_count_scales_and_zero_points():
    weight = torch.randn(8, 128)
    # 8 * 128 codes of half a byte, 16 float16 scales, 16 zero points of half a byte
    assert rtn.quantize(weight, qtutor.IntGrid(4), 64).nbytes == 512 + 32 + 8
    assert rtn.quantize(weight, qtutor.IntGrid(4, symmetric=True), 64).nbytes == 512 + 32
    assert rtn.quantize(weight, qtutor.IntGrid(4, symmetric=True), 64).bits_per_weight == 4.25


@pytest.mark.parametrize("shape", [(0, 8), (8, 0), (1, 8), (1, 1)])
@pytest.mark.parametrize("group", [PER_CHANNEL, PER_TENSOR])
def test_empty_and_one_row(shape, group):
    quantized = rtn.quantize(torch.randn(shape), qtutor.IntGrid(4), group)
    assert quantized.dequantize().shape == shape
    assert torch.isfinite(quantized.dequantize()).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_broken_weight_is_named(bad):
    weight = torch.zeros(4, 16)
    weight[2, 5] = bad
    with pytest.raises(qtutor.QtutorError, match=r"^1 of 64 weights are NaN or infinite, the first at \[2, 5\]"):
        rtn.quantize(weight, qtutor.IntGrid(4), 8)


def test_other_bad_input():
    grid = qtutor.IntGrid(4)
    with pytest.raises(qtutor.QtutorError, match=r"^groups of 48 do not divide rows of 64 .* 16, 32, 64"):
        rtn.quantize(torch.zeros(2, 64), grid, 48)
    for wrong in ("best", "output", None):
        for rows in (0, 2):
            with pytest.raises(qtutor.QtutorError, match=f"clip = {wrong!r}: choose one of 'none', 'mse'"):
                rtn.quantize(torch.zeros(rows, 64), grid, 64, clip=wrong)
    with pytest.raises(qtutor.QtutorError, match="int64"):
        rtn.quantize(torch.zeros(2, 64, dtype=torch.int64), grid, 64)
    with pytest.raises(qtutor.QtutorError, match="more than float16 holds"):
        rtn.quantize(torch.full((1, 8), 1e9), grid, 8)
    for bits in (1, 9, 4.5, "4"):
        with pytest.raises(qtutor.QtutorError, match="from 2 to 8"):
            qtutor.IntGrid(bits)


def test_the_largest_finite_weights_do_not_overflow():
    weight = torch.tensor([[65504.0, -65504.0, 0.0, 1.0]]).to(torch.float16)
    restored = rtn.quantize(weight, qtutor.IntGrid(2), 4).dequantize()
    assert torch.isfinite(restored).all()


@pytest.mark.parametrize("symmetric", [True, False])
def test_split_cuts_a_matrix_into_rows(symmetric):
    weights = [torch.randn(rows, 32) for rows in (3, 1, 4)]
    together = rtn.quantize(torch.cat(weights), qtutor.IntGrid(4, symmetric), 16)
    for part, weight in zip(together.split([3, 1, 4]), weights, strict=True):
        alone = rtn.quantize(weight, qtutor.IntGrid(4, symmetric), 16)
        assert torch.equal(part.codes, alone.codes) and torch.equal(part.scales, alone.scales)
        assert (part.zeros is None) == symmetric and part.nbytes == alone.nbytes
        assert torch.equal(part.dequantize(), alone.dequantize())
