"""The algorithm of the package hqq (mobiusml/hqq, commit e0b1d00, hqq/core: Quantizer.quantize with axis=1, then
optimize_weights_proximal_legacy), in float64, for all groups at once. Knows nothing of qtutor.

Scales are those of the whole range. Zero points are floats: in each turn, the mean over a group of its codes minus its
scaled weights, whose slack is subtracted first. The loop stops at the first turn whose mean error is not below that of
the last turn.
"""

import numpy as np


def quantize(weight: np.ndarray, bits: int, group_size: int, whole: bool = False, turns: int = 20) -> np.ndarray:
    """Weights ``[out, in]``, rounded and decoded again, float64. whole: zero points are rounded to codes at the end."""
    grouped = weight.astype(np.float64).reshape(-1, group_size)
    top = 2**bits - 1
    low, high = grouped.min(1, keepdims=True), grouped.max(1, keepdims=True)
    inverse = np.minimum(np.where(high - low <= 1e-4, 1.0, top / (high - low)), 2e4)  # one over the scale
    zero, beta, best = -low * inverse, 10.0, np.inf
    for _ in range(turns):
        codes = np.clip(np.round(grouped * inverse + zero), 0, top)
        error = grouped - (codes - zero) / inverse
        size = np.maximum(np.abs(error), 1e-300)
        slack = np.sign(error) * np.maximum(np.abs(error) - size ** (0.7 - 1) / beta, 0)
        zero = (codes - (grouped - slack) * inverse).mean(1, keepdims=True)
        if not np.abs(error).mean() < best:  # of all groups together
            break
        best = np.abs(error).mean()
    zero = np.clip(np.round(zero), 0, top) if whole else zero
    codes = np.clip(np.round(grouped * inverse + zero), 0, top)
    return ((codes - zero) / inverse).reshape(weight.shape)
