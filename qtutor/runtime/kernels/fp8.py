"""The product of FP8 layers: E4M3 values of the weights times E4M3 values of the inputs, a scale for each row of both.

Engines compute in the same way: every token's largest |x| becomes the largest value, 448. Values are multiplied and
summed in float32, and both scales are applied after the sum. If weights have a scale for each group of a row (in blocks
of 128 x 128), so do tokens, and the sums of the groups are added. A product of two values is exact in float32, but sums
are not. As in :mod:`.reference`, only some rows are unpacked at any moment.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import linear

from qtutor.core.float_grid import FloatGrid
from qtutor.core.scales import rows_of
from qtutor.runtime.kernels import gradients
from qtutor.runtime.kernels.reference import BLOCK_ROWS


@dataclass(frozen=True)
class State:
    """packed: uint8 ``[out, in]``, one code per byte; scales: float32 ``[out, groups]`` or ``[1, 1]``."""

    packed: torch.Tensor
    grid: FloatGrid
    scales: torch.Tensor


def prepare(layer) -> State:
    """References to the buffers of ``layer``, a :class:`~qtutor.runtime.fp8.Fp8Linear`."""
    return State(layer.packed, layer.grid, layer.stored_scales.decode())


def run(x: torch.Tensor, state: State) -> torch.Tensor:
    """``x [..., in] @ weight.T`` -> ``[..., out]`` in x's dtype."""
    count, columns = state.packed.shape
    flat, groups = x.reshape(-1, columns), state.scales.shape[1]
    size = columns // max(groups, 1)  # spelled out, since there may be no tokens
    values, scale = rounded_tokens(flat.reshape(len(flat) * groups, size), state.grid)
    values, scale = values.reshape(len(flat), groups, size), scale.reshape(len(flat), groups, 1)
    y = torch.empty(len(flat), count, dtype=x.dtype, device=x.device)
    for start in range(0, count, BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        levels, scales = state.grid.levels(state.packed[rows]), rows_of(state.scales, rows)
        levels = levels.reshape(len(levels), groups, size)
        parts = (linear(values[:, g], levels[:, g]) * scale[:, g] * scales[:, g] for g in range(groups))
        product = sum(parts, start=next(parts))
        if gradients.wanted(x):
            product = gradients.of_exact(product, flat, (levels * scales.unsqueeze(-1)).flatten(1))
        y[:, rows] = product.to(x.dtype)
    return y.reshape(*x.shape[:-1], count)


def rounded_tokens(x: torch.Tensor, grid: FloatGrid) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens ``x [tokens, in]`` as values of ``grid`` (float32, same shape), and their scales ``[tokens, 1]``."""
    x = x.float()
    largest = x.abs().amax(dim=1, keepdim=True)
    scale, _ = FloatGrid.fit(grid, -largest, largest)  # each token has its own scale, even if rows of weights share one
    return grid.levels(grid.encode(x, scale)), scale
