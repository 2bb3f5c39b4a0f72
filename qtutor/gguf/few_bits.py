"""Q1_0 and Q2_0: one scale, and one or two bits a weight (Bonsai, 2026: models that were trained in this form).

    Q1_0  weight = d * sign              blocks of 128; d: the mean magnitude, which has the least error for signs alone
    Q2_0  weight = d * (code - 1)        blocks of 64; d: the largest magnitude

The levels of Q2_0 are -d, 0, d and 2 d. Its encoder rounds to the first three, so it never writes code 3. The file of a
model that was trained with four levels may contain code 3. Importance makes no difference. Follows llama.cpp's
``quantize_row_q{1,2}_0_ref``.
"""

import numpy as np

from qtutor.gguf.lanes import f4, first_largest, fold, jit, store_half

SIZE_1, SIZE_2 = 128, 64


@jit
def q1_0(x, importance, data):
    """``x [blocks, 128]`` -> ``data [blocks, 18]``: d 2, signs 16."""
    signs = np.empty(SIZE_1, np.uint8)
    for b in range(len(x)):
        total = f4(0)
        for i in range(SIZE_1):
            total += abs(x[b, i])
            signs[i] = x[b, i] >= 0  # of -0.0 as well
        store_half(total / f4(SIZE_1), data[b], 0)
        fold(signs, 0, 1, 1, data[b], 2)


@jit
def q2_0(x, importance, data):
    """``x [blocks, 64]`` -> ``data [blocks, 18]``: d 2, codes 16."""
    codes = np.empty(SIZE_2, np.uint8)
    for b in range(len(x)):
        d = abs(first_largest(x[b]))
        inv = f4(1) / d if d != 0 else f4(0)
        store_half(d, data[b], 0)
        for i in range(SIZE_2):
            value = x[b, i] * inv
            code = 1 + (value >= f4(0.5)) - (value <= f4(-0.5))
            codes[i] = code if np.isfinite(inv) else 0  # 1 / d overflows: C's conversion gives the least number then
        fold(codes, 0, 2, 1, data[b], 2)
