"""The readable reference product: unpack some rows, scale them, multiply, and go on with the next rows.

Only :data:`BLOCK_ROWS` rows of the matrix exist in floating point at any moment, so a layer never needs more memory
than its packed bytes and these rows. It is not fast: a fast kernel would keep the unpacked weights in registers.
"""

import math
from dataclasses import dataclass

import torch
from torch.nn.functional import linear

from qtutor.core.grid import Grid
from qtutor.core.packing import unpack
from qtutor.core.quantized import dequantize
from qtutor.core.scales import PlainScales, Scales, rows_of

BLOCK_ROWS = 4096
SMALL = 1 / 16  # scales or zero points up to this share of the packed codes are kept unpacked


@dataclass(frozen=True)
class State:
    """A packed matrix ``[out, in]``, of which only small parts are unpacked.

    packed: uint8 ``[out, bytes]``. scales, zeros: for ``groups`` groups in each row, or one for the whole matrix.
    zeros: uint8, packed, or one per byte if ``unpacked`` is true; ``None`` for a symmetric grid.
    """

    packed: torch.Tensor
    columns: int
    grid: Grid
    scales: Scales
    zeros: torch.Tensor | None
    unpacked: bool
    groups: int

    def zeros_of(self, rows: slice) -> torch.Tensor | None:
        """The zero points of these rows, uint8 ``[rows, groups]`` or ``[1, 1]``."""
        if self.zeros is None:
            return None
        zeros = rows_of(self.zeros, rows)
        return zeros if self.unpacked else unpack(zeros, self.grid.bits, self.groups)


def prepare(layer) -> State:
    """References to the buffers of ``layer`` (a :class:`~.linear.QuantWeight`); small buffers are decoded once.

    Zero points of 4 bits are small for groups of 32 weights or more. The nested scales of NF4 are small for groups of
    128 weights or more; for smaller groups, every run decodes them for the rows that it multiplies.
    """
    small = SMALL * layer.packed.nbytes
    scales, zeros = layer.stored_scales, layer.zeros
    count, groups = math.prod(layer.scales_shape), layer.scales_shape[1]
    if count * layer.grid.scale_dtype.itemsize <= small:
        scales = PlainScales(scales.decode())
    unpacked = zeros is not None and count <= small
    if unpacked:
        zeros = unpack(zeros, layer.grid.bits, groups)
    return State(layer.packed, layer.columns, layer.grid, scales, zeros, unpacked, groups)


def manner(batch: int, dtype: torch.dtype) -> str:
    """How a batch is multiplied, in words."""
    return f"{BLOCK_ROWS} rows at a time are unpacked and scaled by torch, step by step, and torch multiplies"


def run(x: torch.Tensor, state: State) -> torch.Tensor:
    """``x [..., in] @ weight.T`` -> ``[..., out]`` in x's dtype."""
    count = state.packed.shape[0]
    if not count:
        return x.new_zeros(*x.shape[:-1], 0)
    parts = []
    for start in range(0, count, BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        codes = unpack(state.packed[rows], state.grid.bits, state.columns)
        weight = dequantize(codes, state.scales.rows(rows), state.zeros_of(rows), state.grid, x.dtype)
        parts.append(linear(x, weight))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
