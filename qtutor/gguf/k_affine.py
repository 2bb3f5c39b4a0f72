"""Q2_K, Q4_K and Q5_K: a scale and a lowest value for every sub-block, themselves quantized within a super-block.

    weight = (d * scale_code) * code - (dmin * min_code)

256 weights make a super-block. Each of its 16 (Q2_K) or 8 sub-blocks has a scale and a minimum, found by
:func:`qtutor.gguf.search.affine`; those are rounded to 4 (Q2_K) or 6 bits against two float16 numbers, ``d`` and
``dmin``, that the whole super-block shares. In the end the weights are coded against what was *stored*, not against
what the search found. Follows llama.cpp's ``quantize_row_q{2,4,5}_K_ref`` (no importance) and ``..._impl`` (with it).
"""

import numpy as np

from qtutor.gguf.descent import positive
from qtutor.gguf.lanes import (
    LANES,
    f4,
    fold,
    from_half,
    i4,
    jit,
    level,
    mean_squares,
    nearest,
    store_half,
    to_half,
    to_lanes,
)
from qtutor.gguf.layout import SUPER
from qtutor.gguf.search import affine


@jit
def weigh(x, importance, first, means, absolute, w):
    """How much each weight's error counts, ``w [size, LANES]`` for the 16 sub-blocks from ``first`` on.

    Without importance large weights count more: ``|x|`` (Q2_K), or ``rms + |x|``. With importance (mean square of each
    input column) ``importance * sqrt(means + x**2)``; ``means [LANES]`` is the spread of each lane's super-block.
    """
    size = len(x)
    spread = np.zeros(LANES, f4)
    if not len(importance) and not absolute:
        for i in range(size):
            for lane in range(LANES):
                spread[lane] += x[i, lane] * x[i, lane]
        for lane in range(LANES):
            spread[lane] = np.sqrt(spread[lane] / f4(size))
    if not len(importance):
        for i in range(size):
            for lane in range(LANES):
                w[i, lane] = spread[lane] + abs(x[i, lane])
        return
    for lane in range(LANES):
        column = importance[(first + lane) % len(importance)]
        for i in range(size):
            w[i, lane] = column[i]
    for i in range(size):
        for lane in range(LANES):
            w[i, lane] *= np.sqrt(means[lane] + x[i, lane] * x[i, lane])


@jit
def share(values, weights, weighted, top, codes, shared):
    """The second level: ``values [sub-block, LANES]`` to codes 0 ... top and one ``shared`` scale a super-block."""
    if weighted:
        positive(values, weights, top, shared, codes)
        return
    for lane in range(LANES):
        greatest = f4(0)
        for s in range(len(values)):
            greatest = max(greatest, values[s, lane])
        inv = top / greatest if greatest > 0 else f4(0)
        for s in range(len(values)):
            codes[s, lane] = min(nearest(inv * values[s, lane]) & 255, i4(top))
        shared[lane] = greatest / top


@jit
def settle(scales, mins, top):
    """What becomes of the scales' codes when they are packed.

    Where few columns have importance, least squares can give a scale just below zero. llama.cpp keeps codes in bytes,
    so that -1 is 255, whose upper bits run into the code that shares the byte; only Q5_K clips first.
    """
    if top == 3:  # Q2_K: the minimum stands above the scale
        mins[:] = (mins | scales >> 4) & 15
        scales[:] &= 15
    elif top == 15:  # Q4_K: two bits of code 4 + s stand above code s
        for codes in (scales, mins):
            codes[4:] = (codes[4:] | codes[:4] >> 6 << 4) & 63
            codes[:4] &= 63
    else:
        scales[:], mins[:] = np.minimum(scales, 63), np.minimum(mins, 63)


@jit
def code_sub_block(x, step, low, found, top, codes):
    """The codes of one sub-block against the scale and minimum that are stored; ``found``: the search's grid."""
    for i in range(len(x)):
        if step != 0:
            codes[i] = np.uint8(level((x[i] + low) / step, i4(0), top))
        else:  # the scale was rounded to nothing; llama.cpp leaves the search's codes there
            codes[i] = np.uint8(level(found[0] * (x[i] - found[1]), i4(0), top))


@jit
def encode_16(x, importance, first, size, top, scale_top, grids, codes, scale_codes, min_codes, d, dmin):
    """The 16 super-blocks ``x[first : first + 16]``: codes ``[LANES, 256]``, codes of scales and minima ``[n, LANES]``.

    size, top: values and largest code of a sub-block; scale_top: largest code of a scale. grids: start, step and number
    of the grids to try. ``d``, ``dmin`` ``[LANES]`` come back as the float16 that will be stored.
    """
    n = SUPER // size
    subs = x.reshape(-1, size)
    weighted = len(importance) > 0
    importance = importance.reshape(-1, size)
    room = np.empty((2, size, LANES), f4)
    xs, w = room[0], room[1]
    room = np.zeros((3, n, LANES), f4)
    scales, mins, sums = room[0], room[1], room[2]  # [sub-block, super-block]
    room = np.empty((2, n, LANES), f4)
    inv, origin = room[0], room[1]  # by sub-block, as `subs`
    room = np.zeros((3, LANES), f4)
    scale, low, means = room[0], room[1], room[2]
    spread = np.zeros(LANES, f4)
    if weighted:
        mean_squares(x[first : first + LANES], spread)
    for g in range(n):
        start = g * LANES
        to_lanes(subs, first * n + start, xs)
        for lane in range(LANES):
            means[lane] = spread[(start + lane) // n] * (f4(1) if n == 16 else f4(2))
        weigh(xs, importance, first * n + start, means, n == 16, w)
        absolute = n == 16 and not weighted
        affine(xs, w, top, grids[0], grids[1], i4(grids[2]), absolute, scale, low, inv[g], origin[g])
        for lane in range(LANES):
            b, s = (start + lane) // n, (start + lane) % n
            scales[s, b], mins[s, b] = scale[lane], -low[lane]
            for i in range(size):
                sums[s, b] += w[i, lane]
    share(scales, sums, weighted, scale_top, scale_codes, d)
    share(mins, sums, weighted, scale_top, min_codes, dmin)
    if weighted:
        settle(scale_codes, min_codes, top)
    for b in range(LANES):
        d[b], dmin[b] = from_half(to_half(d[b])), from_half(to_half(dmin[b]))
        for s in range(n):
            k = b * n + s
            step, low_here = d[b] * f4(scale_codes[s, b]), dmin[b] * f4(min_codes[s, b])
            found = inv[k // LANES, k % LANES], origin[k // LANES, k % LANES]
            code_sub_block(subs[first * n + k], step, low_here, found, i4(top), codes[b, s * size : (s + 1) * size])


@jit
def store_scales(scales, mins, data, at):
    """Eight scales and eight minima of 6 bits in 12 bytes.

    Bytes 0-3 and 4-7 hold the first four scales and minima; the last four have their low nibbles in bytes 8-11 (minimum
    high) and their upper two bits on top of the first eight bytes.
    """
    for s in range(4):
        data[at + s] = scales[s] | (scales[s + 4] >> 4) << 6
        data[at + 4 + s] = mins[s] | (mins[s + 4] >> 4) << 6
        data[at + 8 + s] = scales[s + 4] & 15 | (mins[s + 4] & 15) << 4


@jit
def q2_k(x, importance, data):
    """``x [blocks, 256]`` -> ``data [blocks, 84]``: scales and minima 16, codes 64, d 2, dmin 2."""
    grids = (f4(-0.9), f4(0.05), 36) if len(importance) else (f4(-0.5), f4(0.1), 15)
    codes = np.empty((LANES, SUPER), np.uint8)
    scales = np.empty((32, LANES), np.int32)  # 16 scales, then 16 minima
    room = np.empty((2, LANES), f4)
    d, dmin = room[0], room[1]
    for first in range(0, len(x), LANES):
        encode_16(x, importance, first, 16, f4(3), f4(15), grids, codes, scales[:16], scales[16:], d, dmin)
        for b in range(LANES):
            row = data[first + b]
            fold(scales[:, b], 0, 4, 16, row, 0)
            fold(codes[b], 0, 2, 32, row, 16)
            store_half(d[b], row, 80)
            store_half(dmin[b], row, 82)


@jit
def q4_k(x, importance, data):
    """``x [blocks, 256]`` -> ``data [blocks, 144]``: d 2, dmin 2, scales and minima 12, codes 128."""
    grids = (f4(-0.9), f4(0.05), 36) if len(importance) else (f4(-1), f4(0.1), 20)
    codes = np.empty((LANES, SUPER), np.uint8)
    room = np.empty((2, 8, LANES), np.int32)
    scales, mins = room[0], room[1]
    room = np.empty((2, LANES), f4)
    d, dmin = room[0], room[1]
    for first in range(0, len(x), LANES):
        encode_16(x, importance, first, 32, f4(15), f4(63), grids, codes, scales, mins, d, dmin)
        for b in range(LANES):
            row = data[first + b]
            store_half(d[b], row, 0)
            store_half(dmin[b], row, 2)
            store_scales(scales[:, b], mins[:, b], row, 4)
            fold(codes[b], 0, 4, 32, row, 16)


@jit
def q5_k(x, importance, data):
    """``x [blocks, 256]`` -> ``data [blocks, 176]``: d 2, dmin 2, scales and minima 12, fifth bits 32, codes 128."""
    grids = (f4(-0.9), f4(0.05), 36) if len(importance) else (f4(-0.5), f4(0.1), 15)
    codes = np.empty((LANES, SUPER), np.uint8)
    room = np.empty((2, 8, LANES), np.int32)
    scales, mins = room[0], room[1]
    room = np.empty((2, LANES), f4)
    d, dmin = room[0], room[1]
    for first in range(0, len(x), LANES):
        encode_16(x, importance, first, 32, f4(31), f4(63), grids, codes, scales, mins, d, dmin)
        for b in range(LANES):
            row = data[first + b]
            store_half(d[b], row, 0)
            store_half(dmin[b], row, 2)
            store_scales(scales[:, b], mins[:, b], row, 4)
            fold(codes[b], 4, 1, 32, row, 16)
            fold(codes[b], 0, 4, 32, row, 48)
