"""NVFP4: four-bit floats (E2M1) in sub-blocks of 16, each with a scale that is a float of 8 bits (E4M3).

    weight = scale * VALUES[code]        VALUES as in MXFP4, twice what E2M1 holds; so a scale is half of its E4M3

The largest magnitude of a sub-block becomes 6, the largest value of E2M1. Importance makes no difference. Follows
llama.cpp's ``quantize_row_nvfp4_ref``, including its changes to a scale: halves of the last bit are rounded up, scales
above 256 become 448, and scales below 2**-10 become 0.

The format has one more number, a float32 for the whole tensor, which brings the scales into E4M3's range. llama.cpp
reads it from a tensor of its own (``blk.0.attn_q.scale``) in files that were converted from ModelOpt's. Its encoder
does not use this number, and neither does ours. The scales of usual weights, about 0.01, are then subnormal, with 2 or
3 bits: the file is worse than :data:`qtutor.core.float_grid.NVFP4`, which has that number.
"""

import numpy as np

from qtutor.gguf.lanes import f4, first_largest, fold, i4, jit
from qtutor.gguf.layout import MXFP4_VALUES, NVFP4_SCALES

SIZE, SUB = 64, 16
VALUES = MXFP4_VALUES.astype(f4)


@jit
def scale_code(scale):
    """The E4M3 code closest to a float32 that is not negative, as llama.cpp rounds it."""
    bits = f4(scale).view(np.int32)
    exponent = (bits >> 23) - 120  # of E4M3, whose bias is 7
    if exponent <= 0:  # subnormal: whole multiples of 2**-9
        return min(i4(scale * f4(512) + f4(0.5)), i4(7))
    code = (exponent << 3 | (bits >> 20 & 7)) + (bits >> 19 & 1)  # a mantissa of 8 eighths carries into the exponent
    return i4(0x7E) if code >= 15 << 3 else i4(code)


@jit
def nearest_code(value, scale):
    """The code of least error, the first of several.

    So a tie gives the smaller magnitude, and code 0 is chosen if the scale is 0, or if the value is so large that all
    levels have the same error in float32.
    """
    best, least = i4(0), abs(VALUES[0] * scale - value)
    for code in range(1, 16):
        error = abs(VALUES[code] * scale - value)
        if error < least:
            best, least = i4(code), error
    return best


@jit
def nvfp4(x, importance, data):
    """``x [blocks, 64]`` -> ``data [blocks, 36]``: scales 4, codes 32."""
    codes = np.empty(SIZE, np.uint8)
    for b in range(len(x)):
        for s in range(SIZE // SUB):
            code = scale_code(abs(first_largest(x[b, s * SUB : (s + 1) * SUB])) / f4(6))
            data[b, s] = code
            for i in range(s * SUB, (s + 1) * SUB):
                codes[i] = nearest_code(x[b, i], NVFP4_SCALES[code])
        fold(codes, 0, 4, 8, data[b], 4)
