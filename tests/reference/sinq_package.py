"""SINQ's own scales (huawei-csl/SINQ, commit 6930f78, sinq/sinkhorn.py: sinkhorn_log with 16 turns) and its rounding
(sinq/dual_shift.py: quantize_rtn), in float64. Keeps logarithms of scales, as the package does. Knows nothing of
qtutor.
"""

import numpy as np


def scales(weight: np.ndarray, turns: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Scales of rows ``[out]`` and columns ``[in]`` from the turn with the least imbalance."""
    weight = weight.astype(np.float64)
    rows, columns = np.zeros(weight.shape[0]), np.zeros(weight.shape[1])  # logarithms

    def spreads(matrix):
        return matrix.std(1, ddof=1), matrix.std(0, ddof=1)

    target = min(np.clip(spread, 1e-3, 1e3).min() for spread in spreads(weight)) + 1e-6
    best, found = np.inf, None
    for _ in range(turns):
        scaled = weight / np.exp(columns) / np.exp(rows)[:, None]
        of_rows, of_columns = spreads(scaled)
        imbalance = max(of_rows.max(), of_columns.max()) / max(min(of_rows.min(), of_columns.min()), 1e-12)
        if imbalance > best:  # the package changes nothing from here on
            break
        best, found = imbalance, (np.exp(rows), np.exp(columns))
        steps = (np.log(np.clip(np.clip(spread, 1e-3, 1e3) / target, 0.7, 2.0)) for spread in (of_rows, of_columns))
        rows, columns = (np.clip(log + step, -0.3, 10.0) for log, step in zip((rows, columns), steps))
    return found


def quantize(weight: np.ndarray, bits: int, group_size: int) -> np.ndarray:
    """Weights ``[out, in]``, balanced, rounded in groups of rows, and decoded again, float64."""
    rows, columns = scales(weight)
    grouped = (weight / columns / rows[:, None]).reshape(-1, group_size)
    top = 2**bits - 1
    low, high = grouped.min(1, keepdims=True), grouped.max(1, keepdims=True)
    step = np.maximum(high - low, 1e-4) / top
    zero = -np.round(low / step)
    back = (np.clip(np.round(grouped / step + zero), 0, top) - zero) * step
    return back.reshape(weight.shape) * columns * rows[:, None]
