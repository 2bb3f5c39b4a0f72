"""The product of LLM.int8: int8 codes of the weights times int8 codes of the inputs, in whole numbers.

:mod:`qtutor.methods.bnb` does the arithmetic in float64, in which these sums are exact. As in :mod:`.reference`, only
some rows are unpacked at any moment: in float64 the weights take eight times their bytes.
"""

from dataclasses import dataclass

import torch

from qtutor.core.packing import unpack
from qtutor.methods.bnb import mixed_product, quantize_rows
from qtutor.runtime.kernels import gradients
from qtutor.runtime.kernels.reference import BLOCK_ROWS


@dataclass(frozen=True)
class State:
    """packed: uint8 ``[out, bytes]``; absmax: float32 ``[out]``; zero: the code of 0; threshold: see Int8Linear."""

    packed: torch.Tensor
    columns: int
    bits: int
    zero: int
    absmax: torch.Tensor
    threshold: float | None


def prepare(layer) -> State:
    """References to the buffers of ``layer``, a :class:`~qtutor.runtime.int8.Int8Linear`."""
    absmax = layer.stored_scales.decode()[:, 0]
    return State(layer.packed, layer.columns, layer.grid.bits, layer.grid.middle, absmax, layer.threshold)


def run(x: torch.Tensor, state: State) -> torch.Tensor:
    """``x [..., in] @ weight.T`` -> ``[..., out]`` in x's dtype.

    All of x is one batch: a channel that is an outlier for one token is an outlier for all tokens.
    """
    flat, count = x.reshape(-1, state.columns), len(state.packed)
    inputs = quantize_rows(flat, state.threshold)
    y = torch.empty(len(flat), count, dtype=x.dtype, device=x.device)
    for start in range(0, count, BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        weight = unpack(state.packed[rows], state.bits, state.columns).double() - state.zero
        product = mixed_product(flat, *inputs, weight, state.absmax[rows])
        if gradients.wanted(x):
            exact = weight * state.absmax[rows].double()[:, None] / 127
            product = gradients.of_exact(product, flat, exact)
        y[:, rows] = product.to(x.dtype)
    return y.reshape(*x.shape[:-1], count)
