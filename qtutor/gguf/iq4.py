"""IQ4_NL and IQ4_XS: a code of four bits picks one of 16 unevenly spaced values.

    IQ4_NL  weight = d * VALUES[code]                      blocks of 32
    IQ4_XS  weight = d * (scale_code - 32) * VALUES[code]  super-blocks of 256 with a 6-bit scale for every 32

The values are llama.cpp's (``kvalues_iq4nl``). They are closer together near zero, where most weights are. The search
works as in :func:`~qtutor.gguf.search.signed`, with another rounding: it puts the weight of largest magnitude on 15
places near -127, one after the other, and keeps the scale that reduces the error most. Follows
``quantize_row_iq4_nl_impl``.
"""

import numpy as np

from qtutor.gguf.k_affine import weigh
from qtutor.gguf.lanes import LANES, f4, first_largest, fold, i4, jit, level, mean_squares, store_half, to_lanes
from qtutor.gguf.layout import IQ4_VALUES, SUPER
from qtutor.gguf.search import TINY

SIZE = 32
TRIES = 7  # places on either side of -127
VALUES = IQ4_VALUES.astype(f4)
STEPS = np.diff(VALUES)
MIDDLES = (VALUES[1:] + VALUES[:-1]) / f4(2)  # exact: multiples of one half


@jit
def nearest_value(x):
    """The value closest to ``x``; the upper one if two are equally close. Each middle below ``x`` adds a step."""
    value = VALUES[0]
    for step in range(15):
        value += STEPS[step] if x >= MIDDLES[step] else f4(0)
    return value


@jit
def nearest_code(x):
    """The code of that value: its index in the list."""
    code = 0
    for step in range(15):
        code += 1 if x >= MIDDLES[step] else 0
    return np.uint8(code)


@jit
def _projection(x, w, inv, sum_xv, sum_vv):
    """``sum(w x v)`` and ``sum(w v v)`` for the values ``v`` nearest to ``inv * x``."""
    for lane in range(LANES):
        sum_xv[lane] = sum_vv[lane] = 0
    for i in range(len(x)):
        for lane in range(LANES):
            value = nearest_value(inv[lane] * x[i, lane])
            sum_xv[lane] += w[i, lane] * value * x[i, lane]
            sum_vv[lane] += w[i, lane] * value * value


@jit
def search(x, w, scale):
    """Find the scales of 16 blocks that make ``scale * value`` closest to ``x``; ``x``, ``w`` ``[32, LANES]``."""
    room = np.zeros((6, LANES), f4)
    top, largest, best, inv, sum_xv, sum_vv = room[0], room[1], room[2], room[3], room[4], room[5]
    for i in range(len(x)):
        for lane in range(LANES):
            if abs(x[i, lane]) > largest[lane]:
                largest[lane], top[lane] = abs(x[i, lane]), x[i, lane]
    # The first try puts the largest magnitude on +127; it is then rounded to the last value, 113.
    for lane in range(LANES):
        inv[lane] = f4(1) / (-top[lane] / VALUES[0])
    _projection(x, w, inv, sum_xv, sum_vv)
    for lane in range(LANES):
        scale[lane] = sum_xv[lane] / sum_vv[lane] if sum_vv[lane] > 0 else f4(0)
        best[lane] = scale[lane] * sum_xv[lane]
    for t in range(-TRIES, TRIES + 1):  # then on -127 + t
        for lane in range(LANES):
            inv[lane] = (f4(t) + VALUES[0]) / top[lane]
        _projection(x, w, inv, sum_xv, sum_vv)
        for lane in range(LANES):
            # sum_xv**2 / sum_vv is the reduction of the error by the best scale for these values
            if sum_vv[lane] > 0 and sum_xv[lane] * sum_xv[lane] > best[lane] * sum_vv[lane]:
                scale[lane] = sum_xv[lane] / sum_vv[lane]
                best[lane] = scale[lane] * sum_xv[lane]
    for lane in range(LANES):
        if largest[lane] < TINY:
            scale[lane] = 0


@jit
def search_16(blocks, first, importance, per_mean, spread, scale):
    """Scales of the 16 blocks of 32 from ``first`` on; ``spread``: mean squares, one for every ``per_mean`` blocks."""
    room = np.empty((2, SIZE, LANES), f4)
    xs, w = room[0], room[1]
    means = np.empty(LANES, f4)
    to_lanes(blocks, first, xs)
    if len(importance):
        for lane in range(LANES):
            means[lane] = f4(2) * spread[(first + lane) // per_mean]
        weigh(xs, importance, first, means, False, w)
    else:
        for i in range(SIZE):
            for lane in range(LANES):
                w[i, lane] = xs[i, lane] * xs[i, lane]
    search(xs, w, scale)


@jit
def iq4_nl(x, importance, data):
    """``x [blocks, 32]`` -> ``data [blocks, 18]``: d 2, codes 16."""
    spread, scales = np.zeros(len(x), f4), np.empty(LANES, f4)
    codes = np.empty(SIZE, np.uint8)
    if len(importance):
        mean_squares(x, spread)
    for first in range(0, len(x), LANES):
        search_16(x, first, importance, 1, spread, scales)
        for lane in range(LANES):
            row = data[first + lane]
            inv = f4(1) / scales[lane] if scales[lane] != 0 else f4(0)  # llama.cpp codes with the unrounded scale
            for i in range(SIZE):
                codes[i] = nearest_code(inv * x[first + lane, i])
            store_half(scales[lane], row, 0)
            fold(codes, 0, 4, 16, row, 2)


@jit
def iq4_xs(x, importance, data):
    """``x [blocks, 256]`` -> ``data [blocks, 136]``: d 2, scales' high bits 2, scales' low nibbles 4, codes 128."""
    blocks, importance = x.reshape(-1, SIZE), importance.reshape(-1, SIZE)
    spread = np.zeros(len(x), f4)
    scales = np.empty((len(x) // 2, LANES), f4)
    codes, scale_codes = np.empty(SUPER, np.uint8), np.empty(8, np.uint8)
    if len(importance):
        mean_squares(x, spread)
    for group in range(len(x) // 2):
        search_16(blocks, group * LANES, importance, 8, spread, scales[group])
    by_block = scales.reshape(-1, 8)
    for b in range(len(x)):
        d = -first_largest(by_block[b]) / f4(32)
        inv = f4(1) / d if d != 0 else f4(0)
        for s in range(8):
            scale = level(inv * by_block[b, s], i4(-32), i4(31))
            scale_codes[s] = np.uint8(scale + f4(32))
            step = d * scale  # here, too, d is not rounded yet
            inv_step = f4(1) / step if step != 0 else f4(0)
            for i in range(SIZE):
                codes[s * SIZE + i] = nearest_code(inv_step * x[b, s * SIZE + i])
        store_half(d, data[b], 0)
        fold(scale_codes, 4, 2, 1, data[b], 2)
        fold(scale_codes, 0, 4, 1, data[b], 4)
        fold(codes, 0, 4, 16, data[b], 8)
