"""Q2_K, Q4_K and Q5_K: every sub-block has a scale and a lowest value, and both are quantized in their super-block.

    weight = (d * scale_code) * code - (dmin * min_code)

A super-block is 256 weights; a sub-block is 16 (Q2_K) or 32 of them. Each sub-block has a scale and a minimum, found by
:func:`qtutor.gguf.search.affine`. They are rounded to 4 (Q2_K) or 6 bits, in units of ``d`` and ``dmin``, two float16
numbers that the whole super-block shares. At the end the weights are coded with the scale and minimum as *stored*, not
as found. Follows llama.cpp's ``quantize_row_q{2,4,5}_K_ref`` (without importance) and ``..._impl`` (with it).
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
    """How much the error of each weight counts: fills ``w [size, LANES]`` for the 16 sub-blocks from ``first`` on.

    Without importance large weights count more: ``|x|`` for Q2_K, ``rms + |x|`` for the others. With importance (the
    mean square of each input column): ``importance * sqrt(means + x**2)``, where ``means [LANES]`` is the mean square
    of the weights in the same super-block or row, for some types doubled.
    """
    size = len(x)
    spread = np.zeros(LANES, f4)
    if not len(importance) and not absolute:  # the root mean square of the sub-block; it stays 0 for Q2_K
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
    for lane in range(LANES):  # sub-blocks are in row order, and every row has the same columns
        column = importance[(first + lane) % len(importance)]
        for i in range(size):
            w[i, lane] = column[i]
    # The error of a large weight counts more. The mean under the root keeps small weights from counting nothing.
    for i in range(size):
        for lane in range(LANES):
            w[i, lane] *= np.sqrt(means[lane] + x[i, lane] * x[i, lane])


@jit
def share(values, weights, weighted, top, codes, shared):
    """Quantize the scales, or the minima, of sub-blocks: ``values [sub-block, LANES]``, a super-block in each lane.

    Writes codes 0 ... top, and ``shared [LANES]``, the one scale of these codes (``d`` or ``dmin``).
    """
    if weighted:  # with importance a search decides: a sub-block counts by the sum of its w
        positive(values, weights, top, shared, codes)
        return
    for lane in range(LANES):  # without importance: the greatest value gets the code top, the others are rounded
        greatest = f4(0)
        for s in range(len(values)):
            greatest = max(greatest, values[s, lane])
        inv = top / greatest if greatest > 0 else f4(0)  # all values are 0 if the greatest is 0
        for s in range(len(values)):
            # & 255: llama.cpp keeps these codes in a byte
            codes[s, lane] = min(nearest(inv * values[s, lane]) & 255, i4(top))
        shared[lane] = greatest / top


@jit
def settle(scales, mins, top):
    """Change the codes of scales and minima as llama.cpp's packing changes them when they do not fit.

    Where few columns have importance, least squares can give a scale just below zero. llama.cpp keeps codes in bytes,
    so -1 becomes 255, and its upper bits run into the code that shares the byte. Only Q5_K clips the codes first.
    """
    if top == 3:  # Q2_K: the upper four bits of the byte are the minimum
        mins[:] = (mins | scales >> 4) & 15
        scales[:] &= 15
    elif top == 15:  # Q4_K: the upper two bits of the byte belong to code 4 + s
        for codes in (scales, mins):
            codes[4:] = (codes[4:] | codes[:4] >> 6 << 4) & 63
            codes[:4] &= 63
    else:  # Q5_K
        scales[:], mins[:] = np.minimum(scales, 63), np.minimum(mins, 63)


@jit
def code_sub_block(x, step, low, found, top, codes):
    """Code one sub-block with its stored scale and minimum; ``found``: ``inv`` and ``origin`` of the search's grid."""
    for i in range(len(x)):
        if step != 0:
            codes[i] = np.uint8(level((x[i] + low) / step, i4(0), top))
        else:  # the scale was rounded to zero; llama.cpp keeps the codes of the search in this case
            codes[i] = np.uint8(level(found[0] * (x[i] - found[1]), i4(0), top))


@jit
def encode_16(x, importance, first, size, top, scale_top, grids, codes, scale_codes, min_codes, d, dmin):
    """Encode the 16 super-blocks ``x[first : first + 16]``.

    Writes codes ``[LANES, 256]``, codes of scales and minima ``[n, LANES]`` (n sub-blocks in each super-block), and
    ``d``, ``dmin`` ``[LANES]``, already rounded to float16. size: weights in a sub-block. top: the largest code of a
    weight; scale_top: of a scale. grids: start, step and number of the grids that the search tries.
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
    # Step 1: the scale and minimum of every sub-block. 16 super-blocks have n times 16 sub-blocks: n searches of 16.
    for g in range(n):
        start = g * LANES
        to_lanes(subs, first * n + start, xs)
        for lane in range(LANES):  # llama.cpp doubles the mean square, except for Q2_K
            means[lane] = spread[(start + lane) // n] * (f4(1) if n == 16 else f4(2))
        weigh(xs, importance, first * n + start, means, n == 16, w)
        absolute = n == 16 and not weighted
        affine(xs, w, top, grids[0], grids[1], i4(grids[2]), absolute, scale, low, inv[g], origin[g])
        for lane in range(LANES):  # sort by super-block b and sub-block s, as step 2 needs them
            b, s = (start + lane) // n, (start + lane) % n
            scales[s, b], mins[s, b] = scale[lane], -low[lane]
            for i in range(size):
                sums[s, b] += w[i, lane]
    # Step 2: quantize the scales and the minima of each super-block.
    share(scales, sums, weighted, scale_top, scale_codes, d)
    share(mins, sums, weighted, scale_top, min_codes, dmin)
    if weighted:
        settle(scale_codes, min_codes, top)
    # Step 3: code the weights with the scales that a decoder will read, so the codes compensate for their rounding.
    for b in range(LANES):
        d[b], dmin[b] = from_half(to_half(d[b])), from_half(to_half(dmin[b]))
        for s in range(n):
            k = b * n + s
            step, low_here = d[b] * f4(scale_codes[s, b]), dmin[b] * f4(min_codes[s, b])
            found = inv[k // LANES, k % LANES], origin[k // LANES, k % LANES]
            code_sub_block(subs[first * n + k], step, low_here, found, i4(top), codes[b, s * size : (s + 1) * size])


@jit
def store_scales(scales, mins, data, at):
    """Write eight scales and eight minima of 6 bits into 12 bytes.

    Bytes 0-3 hold the first four scales, bytes 4-7 the first four minima. Bytes 8-11 hold the lower four bits of the
    other four scales (low nibble) and minima (high nibble). The upper two bits of these are the upper two bits of bytes
    0-7.
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
