"""FP8 as a grid: the codes are those of torch, and no level is nearer; zeros, single rows, huge or tiny weights."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qtutor
from qtutor import rtn
from qtutor.core.float_grid import FP8, FloatGrid
from qtutor.core.grid import IntGrid
from qtutor.core.numbers import E2M1, E4M3

LEVELS = E4M3.values()  # float64, ascending


def some(rows: int, columns: int, seed: int, size: float = 0.02) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * size


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 5), columns=st.integers(1, 40), seed=st.integers(0, 999),
    size=st.sampled_from([1e-38, 1e-6, 0.02, 300.0, 1e38]), whole=st.booleans(),
)  # fmt: skip
def test_codes_are_those_of_torch_and_no_level_is_nearer(rows, columns, seed, size, whole):
    weight = some(rows, columns, seed, size).clamp(-3e38, 3e38)
    quantized = rtn.quantize(weight, FP8, 0 if whole else -1)
    largest = weight.abs().max().reshape(1, 1) if whole else weight.abs().amax(1, keepdim=True)
    assert quantized.scales.dtype == torch.float32 and quantized.zeros is None
    assert torch.equal(quantized.scales, largest / 448)
    relative = (weight / quantized.scales).clamp(-448, 448)
    assert torch.equal(quantized.codes.view(torch.float8_e4m3fn).float(), relative.to(torch.float8_e4m3fn).float())
    assert torch.equal(quantized.codes.long(), E4M3.encode(relative))  # a second way, in float64; ties agree, too
    values = quantized.codes.view(torch.float8_e4m3fn).float()
    nearest = (relative.double().unsqueeze(-1) - LEVELS).abs().amin(-1)
    assert torch.equal((relative.double() - values.double()).abs(), nearest)
    assert torch.equal(quantized.dequantize(), quantized.scales * values)
    assert torch.equal(FP8.nearest(weight, quantized.scales), quantized.dequantize())


def test_the_largest_weight_becomes_448_and_ties_go_to_the_even_code():
    quantized = rtn.quantize(torch.tensor([[448.0, 17.0, 19.0, -448.0, 0.0]]), FP8, -1)
    assert quantized.scales.tolist() == [[1.0]]
    assert quantized.dequantize().tolist() == [[448.0, 16.0, 20.0, -448.0, 0.0]]  # 17 and 19 lie between 16, 18 and 20
    assert quantized.codes.tolist() == [[0x7E, 0x58, 0x5A, 0xFE, 0x00]]


def test_rows_of_zeros_single_rows_and_matrices_without_weights():
    weight = some(3, 16, 0)
    weight[1] = 0
    quantized = rtn.quantize(weight, FP8, -1)
    assert quantized.scales[1].item() == 1 and not quantized.codes[1].any() and not quantized.dequantize()[1].any()
    assert torch.equal(rtn.quantize(weight[:1], FP8, -1).codes, quantized.codes[:1])
    assert rtn.quantize(torch.zeros(2, 4), FP8, 0).scales.tolist() == [[1.0]]
    for shape in ((0, 4), (4, 0)):
        assert rtn.quantize(torch.zeros(shape), FP8, -1).dequantize().shape == shape
    assert quantized.nbytes == 3 * 16 + 3 * 4 and rtn.quantize(weight, FP8, 0).nbytes == 3 * 16 + 4


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused(wrong):
    weight = some(2, 8, 0)
    weight[1, 3] = wrong
    with pytest.raises(qtutor.QtutorError, match=r"NaN or infinite, the first at \[1, 3\]"):
        rtn.quantize(weight, FP8, -1)


def test_codes_of_a_file_that_are_no_numbers_are_refused():
    FP8.check_codes(torch.arange(127, dtype=torch.uint8))
    for code in (0x7F, 0xFF):
        with pytest.raises(
            qtutor.QtutorError, match=f"1 of 3 codes are no numbers in fp8 e4m3 .the first is {code:#x}"
        ):
            FP8.check_codes(torch.tensor([1, code, 2], dtype=torch.uint8))


def test_a_narrower_range_may_be_searched():
    weight = some(4, 64, 3)
    whole, narrowed = (rtn.quantize(weight, FP8, -1, clip) for clip in ("none", "mse"))
    error = lambda one: (one.dequantize() - weight).square().sum(1)  # noqa: E731
    assert (error(narrowed) <= error(whole)).all() and (narrowed.scales < whole.scales).any()


def test_a_copy_is_the_same_grid():
    for other in (copy.deepcopy(FP8), pickle.loads(pickle.dumps(FP8)), FloatGrid("fp8", E4M3)):
        assert other == FP8 and hash(other) == hash(FP8)
    assert IntGrid(8) != FP8 and FloatGrid("fp4", E2M1) != FP8 and FP8.bits == 8


def test_formats_without_a_cast_of_torch_are_rounded_as_well():
    grid = FloatGrid("e2m1", E2M1)
    weight = torch.tensor([[6.0, 2.4, -0.2, 5.0, -5.1]])
    quantized = rtn.quantize(weight, grid, -1)
    assert quantized.dequantize().tolist() == [[6.0, 2.0, 0.0, 4.0, -6.0]] and grid.bits == 4
