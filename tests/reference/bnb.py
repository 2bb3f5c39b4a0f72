"""LLM.int8, slow and obvious: one product at a time, with Python's own integers. Knows nothing of qtutor."""

import numpy as np


def int8(values: list[float]) -> tuple[list[int], float]:
    """Codes of ``values``, from -127 to 127, and the largest absolute value, which gets code 127."""
    largest = max((abs(value) for value in values), default=0.0)
    return [round(127 * value / largest) if largest else 0 for value in values], largest


def layer(x: np.ndarray, weight: np.ndarray, threshold: float) -> np.ndarray:
    """``x [tokens, in]`` times ``weight [out, in]``; channels with an input of ``threshold`` or more are in floats."""
    tokens, width = x.shape
    outliers = [c for c in range(width) if any(abs(float(x[t, c])) >= threshold for t in range(tokens))]
    y = np.zeros((tokens, len(weight)))
    for t in range(tokens):
        small = [float(value) if abs(value) < threshold else 0.0 for value in x[t]]
        codes, largest = int8(small)
        for o, row in enumerate(weight):
            row_codes, row_largest = int8([float(value) for value in row])
            total = sum(codes[c] * row_codes[c] for c in range(width) if c not in outliers)  # a sum of integers
            y[t, o] = total * (largest / 127) * (row_largest / 127)
            y[t, o] += sum(float(x[t, c]) * row_codes[c] for c in outliers) * (row_largest / 127)
    return y
