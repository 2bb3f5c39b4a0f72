"""Formats bit by bit: every code of the small formats is compared with torch's view of the same bits, and all rounding
with torch's cast."""

import math
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import qtutor
from qtutor.core import numbers
from qtutor.core.numbers import BF16, E2M1, E3M0, E4M3, E5M2, FP16, FP32, FloatFormat, IntFormat

# Each with torch's dtype and the integer type of its width.
AS_TORCH = {
    "e4m3": (E4M3, torch.float8_e4m3fn, torch.uint8),
    "e5m2": (E5M2, torch.float8_e5m2, torch.uint8),
    "fp16": (FP16, torch.float16, torch.int16),
    "bf16": (BF16, torch.bfloat16, torch.int16),
    "fp32": (FP32, torch.float32, torch.int32),
}
SMALL = ["e4m3", "e5m2", "fp16", "bf16"]


def same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Equal values, NaN equal to NaN, and -0.0 not equal to 0.0."""
    both_nan = torch.isnan(ours) & torch.isnan(theirs)
    return bool((both_nan | ((ours == theirs) & (torch.signbit(ours) == torch.signbit(theirs)))).all())


def torchs_codes(values: torch.Tensor, dtype: torch.dtype, width: torch.dtype) -> torch.Tensor:
    return values.to(dtype).view(width).long() & (2 ** (8 * dtype.itemsize) - 1)


@pytest.mark.parametrize("name", SMALL)
def test_every_code_stands_for_what_torch_says(name):
    fmt, dtype, width = AS_TORCH[name]
    codes = torch.arange(2**fmt.bits)
    theirs = codes.to(width).view(dtype).double()
    assert same(fmt.decode(codes), theirs)
    assert theirs[torch.isfinite(theirs)].max() == fmt.largest
    assert theirs[theirs > 0].min() == fmt.smallest_subnormal


@given(st.integers(0, 2**32 - 1))
def test_fp32_codes_stand_for_what_struct_says(code):
    theirs = struct.unpack("<f", struct.pack("<I", code))[0]
    assert same(FP32.decode(code), torch.tensor(theirs, dtype=torch.float64))


@pytest.mark.parametrize("code", [0, 2**31, 1, 0x7FFFFF, 0x800000, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000])
def test_fp32_at_its_edges(code):
    theirs = struct.unpack("<f", struct.pack("<I", code))[0]
    assert same(FP32.decode(code), torch.tensor(theirs, dtype=torch.float64))


@pytest.mark.parametrize("name", SMALL)
def test_rounding_is_torchs_cast_at_every_value_and_around_every_tie(name):
    fmt, dtype, width = AS_TORCH[name]
    positive = fmt.values()[fmt.values() >= 0]
    beyond = positive[-1] + (positive[-1] - positive[-2]) * torch.tensor([0.5, 1.0, 2.0])  # the first is the last tie
    ties = torch.cat([(positive[1:] + positive[:-1]) / 2, beyond])
    exact = ties.float()
    assert name == "bf16" or same(exact.double(), ties)  # all but those of bf16's last step are floats of 32 bits
    up, down = (torch.nextafter(exact, torch.tensor(towards)) for towards in (torch.inf, -torch.inf))
    for values in (positive.float(), exact, up, down):
        values = torch.cat([values, -values])
        assert torch.equal(fmt.encode(values), torchs_codes(values, dtype, width))


@pytest.mark.parametrize("name", list(AS_TORCH))
@given(values=st.lists(st.floats(width=32), min_size=1, max_size=20))
def test_rounding_is_torchs_cast_anywhere(name, values):
    fmt, dtype, _ = AS_TORCH[name]
    values = torch.tensor(values, dtype=torch.float32)
    assert same(fmt.round(values), values.to(dtype).double())


@given(st.floats(allow_nan=False))
def test_python_numbers_are_rounded_once(value):
    """Rounded from 64 bits directly to fp32, as in numpy and struct; a format in between could round a second time."""
    try:
        theirs = struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        theirs = math.copysign(math.inf, value)
    assert same(FP32.round(value), torch.tensor(theirs, dtype=torch.float64))


@pytest.mark.parametrize("fmt", [E4M3, E5M2, FP16, BF16, E2M1, E3M0, FloatFormat("fp6", 3, 2, "none")])
def test_values_come_back_as_they_are_and_codes_are_in_their_order(fmt):
    values = fmt.values()
    assert (values.diff() > 0).all()
    assert (fmt.round(values) == values).all()
    assert (fmt.encode(values[values >= 0]) == torch.arange(fmt.largest_code + 1)).all()
    assert values.min() == -fmt.largest


def test_small_formats_have_the_values_of_their_papers():
    # OCP MX v1.0, table of FP4. The values of the power-of-two format are just powers of two.
    assert E2M1.values()[7:].tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert E3M0.values()[7:].tolist() == [0, 0.25, 0.5, 1, 2, 4, 8, 16]
    # Micikevicius et al. 2022, table 1
    assert (E4M3.bias, E4M3.largest, E4M3.smallest_normal, E4M3.smallest_subnormal) == (7, 448, 2**-6, 2**-9)
    assert (E5M2.bias, E5M2.largest, E5M2.smallest_normal, E5M2.smallest_subnormal) == (15, 57344, 2**-14, 2**-16)


def test_what_does_not_fit():
    """Infinity if the format has it; otherwise the largest value, as in torch since 2.13 and in hardware."""
    assert FP16.round(65519.0) == 65504 and FP16.round(65520.0) == math.inf
    assert E5M2.round(-1e9) == -math.inf
    assert E4M3.round(1e9) == 448 and E4M3.round(-math.inf) == -448
    assert E2M1.round([7.0, -100.0, math.inf]).tolist() == [6, -6, 6]
    assert torch.isnan(E4M3.round(math.nan))
    with pytest.raises(qtutor.QtutorError, match="fp4 e2m1 has no code for NaN; 1 of 2 values"):
        E2M1.encode([1.0, math.nan])


def test_fields_and_layout():
    assert [int(field) for field in FP32.fields(FP32.encode(0.15625))] == [0, 124, 2**21]
    assert [int(field) for field in E4M3.fields(0b1_0110_101)] == [1, 0b0110, 0b101]
    assert E4M3.layout == "SEEEEMMM" and len(FP32.layout) == 32


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_twos_complement_is_pythons(bits):
    codes = torch.arange(2**bits)
    length = (bits + 7) // 8
    theirs = [
        int.from_bytes((c << (8 * length - bits)).to_bytes(length, "little"), "little", signed=True)
        for c in codes.tolist()
    ]
    theirs = [t >> (8 * length - bits) for t in theirs]
    assert IntFormat(bits).decode(codes).tolist() == theirs
    assert torch.equal(IntFormat(bits).encode(IntFormat(bits).decode(codes)), codes)
    assert IntFormat(bits).values().tolist() == sorted(theirs)


def test_an_integer_with_a_scale():
    int4 = IntFormat(4, scale=0.5)
    assert int4.round([0.7, -0.7, 3.4, 99.0, -99.0, 0.25]).tolist() == [0.5, -0.5, 3.5, 3.5, -4.0, 0.0]
    assert int4.encode(-0.5) == 0b1111
    assert int4.levels(-0.6, 1.1).tolist() == [-0.5, 0, 0.5, 1]
    with pytest.raises(qtutor.QtutorError, match="no code for NaN"):
        int4.encode(math.nan)


@given(low=st.floats(-600, 600), width=st.floats(0, 50))
def test_levels_are_the_values_in_between(low, width):
    values = E4M3.values()
    expected = values[(values >= low) & (values <= low + width)]
    assert torch.equal(E4M3.levels(low, low + width), expected)


def test_levels_of_a_fine_format_near_a_number():
    assert FP32.levels(1.0, 1.0 + 2**-22).tolist() == [1.0, 1.0 + 2**-23, 1.0 + 2**-22]
    assert FP32.levels(-1.0, 1.0, limit=1000) is None
    with pytest.raises(qtutor.QtutorError, match="fp32 has 2\\*\\*32 codes"):
        FP32.values()


def test_decibels():
    signal = torch.tensor([3.0, -4.0])
    assert numbers.sqnr_db(signal, signal) == math.inf
    assert numbers.sqnr_db(signal, signal * 0.9) == pytest.approx(20)  # the error is a tenth of the signal
    assert numbers.sqnr_db(signal, signal * 1.01) == pytest.approx(40)
    with pytest.raises(qtutor.QtutorError, match=r"\[2\] .* \[1\]"):
        numbers.sqnr_db(signal, signal[:1])


def test_other_bad_input():
    for make, said in [
        (lambda: FloatFormat("x", 0, 3), "0 exponent and 3 mantissa"),
        (lambda: FloatFormat("x", 4, 0), "at least 1 exponent and 1 mantissa"),
        (lambda: FloatFormat("x", 11, 52), "at most 32"),
        (lambda: FloatFormat("x", 4, 3, "inf"), "specials = 'inf'"),
        (lambda: IntFormat(1), "2 to 32 bits"),
        (lambda: IntFormat(8, 0.0), "positive scale"),
        (lambda: E4M3.decode([0, 256]), "codes run from 0 to 256; 8 bits hold 0 to 255"),
        (lambda: E4M3.decode([1.5]), "whole numbers"),
        (lambda: IntFormat(4).decode(-1), "codes run from -1 to -1"),
    ]:
        with pytest.raises(qtutor.QtutorError, match=said.replace("*", r"\*")):
            make()
