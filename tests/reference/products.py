"""Products with quantized weights, slow and obvious: exact, or code by code. Knows nothing of kernels."""

import numpy as np
import torch


def exact(quantized, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``x @ weight.T`` in float64, and the size of its terms: ``|x| @ scale * (largest code or level)``."""
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


def rounded_inputs(quantized, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The product, group after group, with x rounded to int8 in the groups of the weights; and the codes of x, int64.

    Only for integer grids; x is float32 ``[tokens, in]``. Sums of codes are whole numbers; their scaling is float64.
    """
    codes, values = quantized.codes.numpy().astype(np.int64), x.numpy()
    rows, columns = codes.shape
    scales = np.broadcast_to(quantized.scales.double().numpy(), (rows, quantized.scales.shape[1]))
    zeros = quantized.grid.middle if quantized.zeros is None else quantized.zeros.numpy()
    zeros = np.broadcast_to(np.asarray(zeros, np.int64), scales.shape)
    size = columns // scales.shape[1]
    result, rounded = np.zeros((len(values), rows)), np.zeros(values.shape, np.int64)
    for token in range(len(values)):
        for group in range(scales.shape[1]):
            columns_here = slice(group * size, (group + 1) * size)
            part = values[token, columns_here]
            largest = np.abs(part).max()
            if largest <= 1e-30:
                continue
            whole = np.rint(part * (np.float32(127) / largest)).astype(np.int64)
            rounded[token, columns_here] = whole
            sums = (codes[:, columns_here] - zeros[:, group : group + 1]) @ whole
            result[token] += scales[:, group] * float(largest / np.float32(127)) * sums
    return result, rounded
