"""TQ1_0 and TQ2_0: weights of -1, 0 or 1 times the scale of their block of 256 weights (BitNet b1.58, TriLMs).

    weight = d * (trit - 1)        d: the largest magnitude; trits 0, 1, 2

A trit is a digit 0, 1 or 2. TQ2_0 spends two bits on each. TQ1_0 puts five into a byte (3**5 = 243 < 256) as a
fraction: the byte is ``ceil(number * 256 / 243)``. A decoder multiplies by 3 to get one trit after the other, and needs
no division. Importance makes no difference. Follows llama.cpp's ``quantize_row_tq{1,2}_0_ref``.
"""

import numpy as np

from qtutor.gguf.lanes import f4, first_largest, fold, i4, jit, store_half
from qtutor.gguf.layout import SUPER

BYTES = ((np.arange(243) * 256 + 242) // 243).astype(np.uint8)


@jit
def to_trits(x, trits):
    """Round ``x / d`` to -1, 0 or 1, halves away from zero, and add 1; return ``d``."""
    d = abs(first_largest(x))
    inv = f4(1) / d if d != 0 else f4(0)
    for i in range(len(x)):
        value = x[i] * inv
        # The value is beyond 2 only if 1 / d overflows, and then C's conversion gives 0.
        trits[i] = i4(1) + (f4(0.5) <= value < f4(2)) - (f4(-2) < value <= f4(-0.5))
    return d


@jit
def pack_trits(trits, first, stride, count, data, at):
    """Write ``stride`` bytes, each of ``count`` (4 or 5) trits that are ``stride`` apart, the first one on top."""
    for j in range(stride):
        number = i4(0)
        for n in range(count):
            number = i4(number * i4(3) + i4(trits[first + j + n * stride]))
        data[at + j] = BYTES[number if count == 5 else i4(number * i4(3))]


@jit
def tq1_0(x, importance, data):
    """``x [blocks, 256]`` -> ``data [blocks, 54]``: five trits a byte 48, four trits a byte 4, d 2."""
    trits = np.empty(SUPER, np.uint8)
    for b in range(len(x)):
        store_half(to_trits(x[b], trits), data[b], 52)
        pack_trits(trits, 0, 32, 5, data[b], 0)
        pack_trits(trits, 160, 16, 5, data[b], 32)
        pack_trits(trits, 240, 4, 4, data[b], 48)


@jit
def tq2_0(x, importance, data):
    """``x [blocks, 256]`` -> ``data [blocks, 66]``: codes 64, d 2."""
    trits = np.empty(SUPER, np.uint8)
    for b in range(len(x)):
        store_half(to_trits(x[b], trits), data[b], 64)
        fold(trits, 0, 2, 32, data[b], 0)
