"""Llama 3's scaling of positions: a few parameters in transformers' config, a tensor of factors in a GGUF file.

    factors_of(rope_parameters, 128)  # float32 [64], the divisor of each frequency of a head
    rope_of(factors, 5e5, 128, 131_072, "a.gguf")  # and back

Source: llama.cpp's ``conversion/llama.py``; transformers' ``modeling_rope_utils.py``.
"""

import math
from itertools import pairwise

import numpy as np

from qtutor.errors import QtutorError, shown

ROPE = "rope_freqs.weight"  # the tensor, which is no parameter of the model


def factors_of(rope: dict, dim: int) -> np.ndarray:
    """Llama 3's scaling: the divisor of each of the ``dim / 2`` frequencies of a head, float32.

    Slow frequencies, which turn less than ``low_freq_factor`` times in the original context, are divided by ``factor``.
    Fast frequencies, which turn more than ``high_freq_factor`` times, stay. Frequencies between the two limits get a
    mixture.
    """
    factor, frequency = rope["factor"], rope["rope_theta"] ** -(np.arange(0, dim, 2) / dim)
    turns = rope["original_max_position_embeddings"] * frequency / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    fast = ((turns - low) / (high - low)).clip(0, 1)
    return (1 / ((1 - fast) / factor + fast)).astype(np.float32)


def rope_of(factors: np.ndarray, base: float, dim: int, longest: int, where: str) -> dict:
    """The parameters of Llama 3's scaling for which :func:`factors_of` gives ``factors``.

    factors: float64 ``[dim / 2]``, the divisor of each frequency: 1 for fast frequencies, the largest for slow ones.
    Between them, the factors follow a line in the turns of a frequency in the original context. All factors stay the
    same if the context and both ends of the line are doubled, so the context can be chosen: Llama 3's 8192 tokens, or
    half of the model's own (``longest``) if that is less, because transformers expects a context shorter than the
    model's.
    """
    if np.allclose(factors, 1, rtol=1e-6):
        return {}
    largest, context = float(str(np.float32(factors.max()))), min(8192, max(1, longest // 2))
    turns = context * base ** -(np.arange(0, dim, 2) / dim) / (2 * math.pi)
    with np.errstate(all="ignore"):
        low, high = _ends_of_line(turns, (1 / factors - 1 / largest) / (1 - 1 / largest))
        found = {"factor": largest, "low_freq_factor": low, "high_freq_factor": high}
        found |= {"rope_type": "llama3", "original_max_position_embeddings": context}
        if low < high and np.allclose(factors_of(found | {"rope_theta": base}, dim), factors, rtol=1e-5):
            return found
    raise QtutorError(
        f"{where}: tensor {ROPE!r} divides frequencies by {shown(factors[:9].tolist(), 120)}, which is no scaling of "
        "Llama 3's, and no other one is known here. Run the file in llama.cpp."
    )


def _ends_of_line(turns: np.ndarray, fast: np.ndarray) -> tuple[float, float]:
    """``fast`` follows a line between 0 and 1: the turns at which the line is 0 and 1; NaN if there is no line.

    Differences of millionths are rounded off: a tensor made with 1 and 4 gives exactly 1 and 4.
    """
    between = np.flatnonzero((fast > 1e-6) & (fast < 1 - 1e-6))
    if len(between) >= 2:
        slope, at_zero = np.polyfit(turns[between], fast[between], 1)
    else:  # the steepest line through two neighbours of these points, which leaves both ends as they are
        points = [*np.flatnonzero(fast >= 1 - 1e-6)[-1:], *between, *np.flatnonzero(fast <= 1e-6)[:1]]
        slopes = [(fast[a] - fast[b]) / (turns[a] - turns[b]) for a, b in pairwise(points)]
        steepest = int(np.argmax(slopes)) if slopes else 0
        slope = slopes[steepest] if slopes else math.nan
        at_zero = fast[points[steepest]] - slope * turns[points[steepest]] if slopes else math.nan
    return round(float(-at_zero / slope), 6), round(float((1 - at_zero) / slope), 6)
