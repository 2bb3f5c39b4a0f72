"""MXFP4: four-bit floats (E2M1) in blocks of 32 that share a power of two.

    weight = 2**(e - 128) * VALUES[code]        VALUES: 0 1 2 3 4 6 8 12 and the same negative, twice what E2M1 holds

OCP Microscaling Formats 1.0, sections 5.2 and 5.4 (MXFP4, E8M0 scales). Section 6.3 chooses the exponent: that of the
largest magnitude, minus 2, which is the largest exponent of E2M1. Importance makes no difference. Follows llama.cpp's
``quantize_row_mxfp4_ref``.
"""

import numpy as np

from qtutor.gguf.lanes import f4, first_largest, fold, i4, jit
from qtutor.gguf.layout import MXFP4_VALUES

SIZE = 32
MIDDLES = ((MXFP4_VALUES[1:8].astype(f4)) + MXFP4_VALUES[:7]) / f4(2)


@jit
def exponent_of(largest):
    """The E8M0 code of the block's power of two; 0 for a block of zeros."""
    if largest == 0:
        return i4(0)
    # llama.cpp takes the logarithm in single precision, which rounds a value just below a large power of two up to it.
    return i4(np.floor(f4(np.log2(np.float64(largest)))) - f4(2) + f4(127)) & i4(255)


@jit
def power_of(exponent):
    """``2**(exponent - 128)`` as float32, exactly; the two smallest are subnormal."""
    bits = (exponent - 1) << 23 if exponent >= 2 else 0x200000 << exponent
    return i4(bits).view(np.float32)


@jit
def mxfp4(x, importance, data):
    """``x [blocks, 32]`` -> ``data [blocks, 17]``: e 1, codes 16."""
    codes = np.empty(SIZE, np.uint8)
    for b in range(len(x)):
        exponent = exponent_of(abs(first_largest(x[b])))
        scale = power_of(exponent)
        for i in range(SIZE):
            size = abs(x[b, i])
            code = i4(0)
            for k in range(7):  # if two values are equally close, the smaller magnitude wins
                code += i4(1) if size > MIDDLES[k] * scale else i4(0)
            codes[i] = code | (i4(8) if x[b, i] < 0 and code > 0 else i4(0))
        data[b, 0] = exponent
        fold(codes, 0, 4, 16, data[b], 1)
