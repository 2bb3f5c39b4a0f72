"""Codes in 32-bit words: a row is one stream of bits, low bits first, cut into int32.

    4 bits: word = code0 | code1 << 4 | ... | code7 << 28
    3 bits: 32 codes fill 3 words; code 10 has two bits in the first word and one in the second

GPTQ and compressed-tensors pack like this, each along a dimension of its own. The stream is the one of bytes in
:mod:`qtutor.core.packing`, with four bytes in one number, so the last word of a row may be partly empty (zeros).
"""

import torch

from qtutor.core.packing import pack_rows, packed_width, unpack

WORD = 32  # bits
SAFE = 32  # codes; this number of codes fills whole words for every number of bits


def words_in(count: int, bits: int) -> int:
    """How many words ``count`` codes of ``bits`` bits need in one row."""
    return -(-count * bits // WORD)


def to_words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 codes ``[rows, count]`` below ``2**bits`` to int32 ``[rows, words_in(count, bits)]``.

    >>> to_words(torch.arange(8, dtype=torch.uint8)[None], 4)
    tensor([[1985229328]], dtype=torch.int32)

    That is 0x76543210: the first code is the lowest nibble.
    """
    rows, count = codes.shape
    padded = torch.nn.functional.pad(codes, (0, -count % SAFE))
    data = pack_rows(padded, bits, padded.shape[1] * bits // 8)
    return data.view(torch.int32)[:, : words_in(count, bits)].contiguous() if count else codes.new_empty(rows, 0).int()


def from_words(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The inverse of :func:`to_words`: int32 ``[rows, words_in(count, bits)]`` to uint8 codes ``[rows, count]``."""
    data = words.contiguous().view(torch.uint8)
    width = packed_width(count, bits)
    data = torch.nn.functional.pad(data, (0, max(width - data.shape[1], 0)))  # unpack needs whole groups of 8 codes
    return unpack(data[:, :width], bits, count)
