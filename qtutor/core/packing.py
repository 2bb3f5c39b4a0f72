"""Packing: codes of ``bits`` bits, written end to end into bytes, low bits first.

Eight codes of ``bits`` bits fill exactly ``bits`` bytes, for every number of bits. So the unit is a word of eight
codes: ``word = code0 | code1 << bits | code2 << 2*bits ...``, written as its lowest ``bits`` bytes. For 2, 4 and 8 bits
a byte then holds 4, 2 and 1 whole codes; for 3 bits this is the layout of GPTQ checkpoints (32 codes over 3 int32). A
row whose length is not a multiple of eight is padded with zeros.
"""

import torch

from qtutor.errors import QtutorError


def packed_width(count: int, bits: int) -> int:
    """The number of bytes that ``count`` codes of ``bits`` bits need in one row."""
    return -(-count // 8) * bits if bits not in (2, 4, 8) else -(-count * bits // 8)


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack uint8 codes ``[rows, count]`` below ``2**bits`` into uint8 bytes ``[rows, packed_width(count, bits)]``.

    >>> pack(torch.tensor([[1, 2, 3, 0]], dtype=torch.uint8), 4)
    tensor([[33,  3]], dtype=torch.uint8)

    Raises :class:`QtutorError` for a code that does not fit.
    """
    if bits not in range(2, 9):
        raise QtutorError(f"bits = {bits!r}: codes of 2 to 8 bits can be packed.")
    if codes.numel() and int(codes.max()) >= 2**bits:
        raise QtutorError(f"code {int(codes.max())} does not fit in {bits} bits, which hold 0 to {2**bits - 1}.")
    return pack_rows(codes, bits, packed_width(codes.shape[1], bits))


def pack_rows(codes: torch.Tensor, bits: int, width: int) -> torch.Tensor:
    """Write codes ``[rows, count]`` below ``2**bits`` end to end into ``width`` bytes per row; spare bits are 0."""
    rows, count = codes.shape
    padded = torch.nn.functional.pad(codes, (0, -count % 8)).reshape(rows, (count + 7) // 8, 8)
    word = torch.zeros(padded.shape[:2], dtype=torch.int64, device=codes.device)
    for i in range(8):
        word |= padded[:, :, i].long() << (bits * i)
    data = torch.stack([(word >> (8 * j)) & 255 for j in range(bits)], dim=-1).to(torch.uint8)
    return data.reshape(rows, data.shape[1] * bits)[:, :width].contiguous()


def unpack(data: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The inverse of :func:`pack`: bytes ``[rows, packed_width(count, bits)]`` to uint8 codes ``[rows, count]``."""
    rows, width = data.shape
    if width != packed_width(count, bits):
        raise QtutorError(
            f"{width} bytes a row cannot hold {count} codes of {bits} bits, which take {packed_width(count, bits)}."
        )
    if bits == 8:
        return data
    if bits in (2, 4):  # every byte holds whole codes, so there is a shorter way to the same result
        shifts = torch.arange(0, 8, bits, device=data.device, dtype=torch.uint8)
        codes = (data.unsqueeze(-1) >> shifts) & (2**bits - 1)
        return codes.reshape(rows, width * (8 // bits))[:, :count]
    data = data.reshape(rows, width // bits, bits).long()
    word = torch.zeros(data.shape[:2], dtype=torch.int64, device=data.device)
    for j in range(bits):
        word |= data[:, :, j] << (8 * j)
    codes = torch.stack([(word >> (bits * i)) & (2**bits - 1) for i in range(8)], dim=-1)
    return codes.to(torch.uint8).reshape(rows, word.shape[1] * 8)[:, :count]
