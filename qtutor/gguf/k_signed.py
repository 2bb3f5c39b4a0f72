"""Q3_K and Q6_K: every sub-block of 16 weights has a scale and no minimum, quantized within a super-block of 256.

    weight = d * (scale_code - half) * (code - half')

Codes and scales are signed. The searches (:func:`~qtutor.gguf.search.signed`; for Q3_K without importance
:func:`~qtutor.gguf.descent.descent`) may give a negative scale: they put the value of largest magnitude on the lowest
level, -half, which has no positive counterpart. Follows llama.cpp's ``quantize_row_q{3,6}_K_ref`` and ``..._impl``.
"""

import numpy as np

from qtutor.gguf.descent import WIDE, descent
from qtutor.gguf.k_affine import weigh
from qtutor.gguf.lanes import (
    LANES,
    f4,
    first_largest,
    fold,
    i4,
    jit,
    level,
    mean_squares,
    nearest,
    store_half,
    to_lanes,
)
from qtutor.gguf.layout import SUPER
from qtutor.gguf.search import TINY, signed

SIZE = 16  # values of a sub-block. A super-block has as many sub-blocks as there are lanes: 16 lanes hold one of them.


@jit
def code_block(x, steps, levels, half, codes):
    """Codes ``nearest(x / step) + half`` of a super-block; if a step is 0, the ``levels`` that the search found."""
    for s in range(SIZE):
        at, step = s * SIZE, steps[s]
        for i in range(SIZE):
            if step != 0:
                codes[at + i] = np.uint8(level(x[at + i] / step, -half, half - i4(1)) + f4(half))
            else:
                codes[at + i] = np.uint8(levels[i, s] + f4(half))


@jit
def levels_of(x, inv, origin, half, levels):
    """The levels with which :func:`~qtutor.gguf.search.signed` found its scales."""
    for i in range(len(x)):
        for lane in range(LANES):
            levels[i, lane] = level(inv[lane] * (x[i, lane] - origin[lane]), i4(-half), i4(half - f4(1)))


@jit
def q3_k(x, importance, data):
    """``x [blocks, 256]`` -> ``data [blocks, 110]``: third bits 32, low bits 64, scales 12, d 2."""
    subs, weights = x.reshape(-1, SIZE), importance.reshape(-1, SIZE)
    room = np.zeros((4, SIZE, LANES), f4)
    scales, sums, d, steps = room[0], room[1], room[2, 0], room[3, 0]
    levels = np.empty((LANES, SIZE, LANES), f4)  # [super-block, value, sub-block]
    scale_codes = np.empty((LANES, SIZE), np.uint8)
    codes = np.empty(SUPER, np.uint8)
    for first in range(0, len(x), LANES):
        if len(weights):
            _search_weighted(x, subs, weights, first, scales, sums, levels)
        else:
            _search(subs, first, scales, levels)
        _share_scales(scales, sums, len(weights) > 0, scale_codes, d)
        for b in range(LANES):
            row = data[first + b]
            d[b] = store_half(d[b], row, 108)  # from here on d is what a decoder will read
            for s in range(SIZE):
                steps[s] = d[b] * (f4(scale_codes[b, s]) - f4(32))
            code_block(x[first + b], steps, levels[b], i4(4), codes)
            fold(codes, 2, 1, 32, row, 0)
            fold(codes, 0, 2, 32, row, 32)
            fold(scale_codes[b], 0, 4, 8, row, 96)
            fold(scale_codes[b], 4, 2, 4, row, 104)


@jit
def _search(subs, first, scales, levels):
    """Without importance: scales ``[super-block, sub-block]`` and levels of the 16 super-blocks from ``first`` on."""
    room = np.empty((2, SIZE, WIDE), f4)
    xs, wide_levels = room[0], room[1]
    wide_scales = scales.reshape(-1, WIDE)
    for pair in range(LANES // 2):  # descent takes two super-blocks at a time
        to_lanes(subs, (first + 2 * pair) * SIZE, xs)
        descent(xs, f4(4), wide_scales[pair], wide_levels)
        for i in range(SIZE):
            for lane in range(LANES):
                levels[2 * pair, i, lane] = wide_levels[i, lane]
                levels[2 * pair + 1, i, lane] = wide_levels[i, LANES + lane]


@jit
def _search_weighted(x, subs, weights, first, scales, sums, levels):
    """The same with importance; ``sums``: the sum of ``w`` for every sub-block, the weight of its scale later."""
    room = np.empty((2, SIZE, LANES), f4)
    xs, w = room[0], room[1]
    room = np.empty((4, LANES), f4)
    inv, origin, spread, means = room[0], room[1], room[2], room[3]
    mean_squares(x[first : first + LANES], spread)
    for b in range(LANES):
        to_lanes(subs, (first + b) * SIZE, xs)
        means[:] = f4(2) * spread[b]
        weigh(xs, weights, (first + b) * SIZE, means, False, w)
        signed(xs, w, f4(4), scales[b], inv, origin)
        levels_of(xs, inv, origin, f4(4), levels[b])
        for lane in range(LANES):
            sums[b, lane] = 0
        for i in range(SIZE):
            for lane in range(LANES):
                sums[b, lane] += w[i, lane]


@jit
def _share_scales(scales, sums, weighted, codes, d):
    """Quantize scales ``[super-block, sub-block]``: codes 0 ... 63 (level + 32), and one ``d`` for each super-block."""
    half = f4(32)
    if weighted:
        room = np.empty((3, SIZE, LANES), f4)
        values, w, levels = room[0], room[1], room[2]
        room = np.empty((2, LANES), f4)
        inv, origin = room[0], room[1]
        to_lanes(scales, 0, values)
        to_lanes(sums, 0, w)
        signed(values, w, half, d, inv, origin)
        levels_of(values, inv, origin, half, levels)
        for b in range(LANES):
            for s in range(SIZE):
                codes[b, s] = np.uint8(levels[s, b] + half)
        return
    for b in range(LANES):  # without importance: the largest scale gets the lowest level, the others are rounded
        largest = first_largest(scales[b])
        inv_scale = -half / largest
        d[b] = f4(1) / inv_scale if largest != 0 else f4(0)
        for s in range(SIZE):
            code = level(inv_scale * scales[b, s], i4(-32), i4(31)) + half
            codes[b, s] = np.uint8(code) if largest != 0 else np.uint8(0)


@jit
def q6_k(x, importance, data):
    """``x [blocks, 256]`` -> ``data [blocks, 210]``: low nibbles 128, high bits 64, scales (int8) 16, d 2."""
    subs, weights = x.reshape(-1, SIZE), importance.reshape(-1, SIZE)
    room = np.zeros((3, SIZE, LANES), f4)
    xs, w, levels = room[0], room[1], room[2]
    room = np.zeros((3, LANES), f4)
    scales, inv, origin = room[0], room[1], room[2]
    steps, codes = np.empty(SIZE, f4), np.empty(SUPER, np.uint8)
    for block in range(len(x)):
        row = data[block]
        to_lanes(subs, block * SIZE, xs)
        if len(weights):  # the importance itself; every other type multiplies it by the size of the weights
            to_lanes(weights, block * SIZE % len(weights), w)
        else:
            for i in range(SIZE):
                for lane in range(LANES):
                    w[i, lane] = xs[i, lane] * xs[i, lane]
        signed(xs, w, f4(32), scales, inv, origin)
        largest = first_largest(scales)
        if abs(largest) < TINY:
            row[:] = 0
            continue
        levels_of(xs, inv, origin, f4(32), levels)
        inv_scale = f4(-128) / largest  # the largest scale gets the code -128, the lowest of an int8
        d = store_half(f4(1) / inv_scale, row, 208)
        for s in range(SIZE):
            code = min(nearest(inv_scale * scales[s]), i4(127))
            row[192 + s] = code & 255
            steps[s] = d * f4(code)
        code_block(x[block], steps, levels, i4(32), codes)
        fold(codes, 0, 4, 64, row, 0)
        fold(codes, 4, 2, 32, row, 128)
