"""A linear layer that multiplies int8 codes of its weights with int8 codes of its inputs: LLM.int8.

The arithmetic is :mod:`qtutor.methods.bnb`'s.
"""

import torch

from qtutor.core.packing import unpack
from qtutor.methods.bnb import THRESHOLD, mixed_product, quantize_rows
from qtutor.runtime.kernels.reference import BLOCK_ROWS
from qtutor.runtime.linear import QuantLinear


class Int8Linear(QuantLinear):
    """A :class:`QuantLinear` on the grid :data:`INT8` that quantizes its inputs too: LLM.int8.

    threshold: inputs of at least this size make their channel an outlier; ``None``: there are none.
    """

    threshold: float | None = THRESHOLD

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, self.columns)
        inputs = quantize_rows(flat, self.threshold)
        y = torch.empty(len(flat), self.rows, dtype=x.dtype, device=x.device)
        for start in range(0, self.rows, BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            weight = unpack(self.packed[rows], self.grid.bits, self.columns).double() - self.grid.middle
            y[:, rows] = mixed_product(flat, *inputs, weight, self.scales[rows, 0]).to(x.dtype)
        y = y.reshape(*x.shape[:-1], self.rows)
        return y if self.bias is None else y + self.bias.to(y.dtype)
