"""Packed codes are compared with one big integer: code i is at bit ``i * bits``, and no other bit is set."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qtutor.core.packing import pack, packed_width, unpack
from qtutor.errors import QtutorError


@settings(deadline=None, max_examples=150)
@given(bits=st.integers(2, 8), rows=st.integers(0, 3), count=st.integers(0, 70), seed=st.integers(0, 10**6))
def test_equals_a_big_integer_and_comes_back(bits, rows, count, seed):
    codes = torch.randint(0, 2**bits, (rows, count), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    data = pack(codes, bits)
    assert data.shape == (rows, packed_width(count, bits)) and data.dtype == torch.uint8
    for row, line in zip(codes.tolist(), data.tolist(), strict=True):
        number = sum(code << (bits * i) for i, code in enumerate(row))
        assert bytes(line) == number.to_bytes(len(line), "little")
    back = unpack(data, bits, count)
    assert torch.equal(back, codes) and back.dtype == torch.uint8  # equal() alone takes any dtype


def test_three_bits_are_packed_as_gptq_checkpoints_do():
    codes = torch.arange(32, dtype=torch.uint8).remainder(8)[None]
    words = pack(codes, 3).view(torch.int32)[0].tolist()  # 32 codes over 3 words
    number = sum(int(code) << (3 * i) for i, code in enumerate(codes[0]))
    assert [word & 0xFFFFFFFF for word in words] == [(number >> (32 * i)) & 0xFFFFFFFF for i in range(3)]


def test_bad_input():
    with pytest.raises(QtutorError, match="code 16 does not fit in 4 bits"):
        pack(torch.tensor([[16]], dtype=torch.uint8), 4)
    with pytest.raises(QtutorError, match="2 to 8 bits"):
        pack(torch.zeros(1, 8, dtype=torch.uint8), 1)
    with pytest.raises(QtutorError, match="5 bytes a row cannot hold 8 codes of 4 bits"):
        unpack(torch.zeros(1, 5, dtype=torch.uint8), 4, 8)
