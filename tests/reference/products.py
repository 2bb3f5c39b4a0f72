"""Products with quantized weights, slow and obvious: exact ones, and code by code. Knows nothing of kernels."""

import numpy as np
import torch


def exact(quantized, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``x @ weight.T`` in float64, and how large its terms are: ``|x| @ scale * (largest code or level)``."""
    weight = quantized.dequantize().double()
    rows, columns = weight.shape
    scales = quantized.scales.double().abs().expand(rows, -1)
    size = scales.repeat_interleave(columns // scales.shape[1], dim=1) * quantized.codes.max()
    return x.double() @ weight.T, x.double().abs() @ size.T


def slow(quantized, x: torch.Tensor) -> np.ndarray:
    """``x @ weight.T``, one code after the other, for an integer grid with zero points; x float32 ``[1, in]``."""
    rows, columns = quantized.codes.shape
    result = np.zeros((1, rows))
    for row in range(rows):
        for column in range(columns):
            group = column // quantized.group_size
            step, zero = float(quantized.scales[row, group]), int(quantized.zeros[row, group])
            result[0, row] += step * (int(quantized.codes[row, column]) - zero) * float(x[0, column])
    return result
