"""The readable reference product: unpack some rows, scale them, multiply, go on.

Only :data:`BLOCK_ROWS` rows of the matrix exist in floating point at any moment, so a layer never needs more memory
than its packed bytes and one block. Fast it is not: a kernel would keep the unpacked weights in registers.
"""

import torch
from torch.nn.functional import linear

from qtutor.core.grid import Grid
from qtutor.core.packing import unpack
from qtutor.core.quantized import dequantize

BLOCK_ROWS = 4096


def matmul(
    x: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, grid: Grid, columns: int
) -> torch.Tensor:
    """``x [..., in] @ weight.T`` -> ``[..., out]`` in x's dtype, from packed rows ``[out, bytes]``.

    scales: ``[out, groups]`` or ``[1, 1]``; zeros: unpacked uint8 of the same shape, or ``None`` if symmetric.
    """
    if not packed.shape[0]:
        return x.new_zeros(*x.shape[:-1], 0)
    parts = []
    for start in range(0, packed.shape[0], BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        own = rows if scales.shape[0] > 1 else slice(None)  # one scale for the whole matrix
        codes = unpack(packed[rows], grid.bits, columns)
        weight = dequantize(codes, scales[own], None if zeros is None else zeros[own], grid, x.dtype)
        parts.append(linear(x, weight))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
