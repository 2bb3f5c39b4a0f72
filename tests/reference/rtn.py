"""Rounding to nearest, slow and obvious: one weight at a time, trying every level. Knows nothing of qtutor."""

import numpy as np


def levels(bits: int, symmetric: bool, low: float, high: float) -> np.ndarray:
    """All levels of a group with weights from ``low`` to ``high``, ascending, as float64."""
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    count = 2**bits
    if symmetric:
        largest = max(-low, high)
        scale = float(np.float16(2 * largest / (count - 1))) or 1.0
        zero = count // 2
    else:
        scale = float(np.float16((high - low) / (count - 1))) or 1.0
        zero = min(max(round(-low / scale), 0), count - 1)
    return np.array([scale * (code - zero) for code in range(count)])


def quantize(weight: np.ndarray, bits: int, symmetric: bool, group: int) -> np.ndarray:
    """The weights after quantization, float64 ``[out, in]``: for each weight, the nearest level."""
    result = np.zeros(weight.shape)
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], group):
            block = weight[row, start : start + group]
            grid = levels(bits, symmetric, block.min(), block.max())
            for i, value in enumerate(block):
                result[row, start + i] = min(grid, key=lambda level: abs(level - float(value)))
    return result
