"""The types with one scale for a block of 32: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0; and 16-bit floats.

    Q4_0, Q5_0, Q8_0  weight = d * (code - half)      d from the value of largest magnitude
    Q4_1, Q5_1        weight = d * code + m           d and m from the smallest and largest value

Without importance these types do not search: they only round, and each type rounds in its own way. Q4_0 adds half a
step and cuts off the fraction; Q8_0 rounds halves away from zero. The value of largest magnitude gets code 0 (the level
-half), so the scale is negative if that value is positive. With importance, :mod:`qtutor.gguf.search` finds the scale.
Follows llama.cpp's ``quantize_row_q*_ref`` and ``..._impl``.
"""

import numpy as np

from qtutor.gguf.k_affine import weigh
from qtutor.gguf.lanes import (
    LANES,
    extremes,
    f4,
    first_largest,
    fold,
    i4,
    jit,
    level,
    mean_squares,
    store_half,
    to_half,
    to_lanes,
)
from qtutor.gguf.search import affine, signed

SIZE = 32


@jit
def cut(value):
    """The whole part of a float, as int32."""
    return np.int32(value)


@jit
def store_codes(codes, bits, data, at):
    """Write 32 codes of 4 or 5 bits: the fifth bits in 4 bytes (for 5 bits only), then the low nibbles in 16 bytes."""
    if bits == 5:
        fold(codes, 4, 1, 1, data, at)
        at += 4
    fold(codes, 0, 4, 16, data, at)


@jit
def code_of(value, low, inv, shift, top):
    """The whole part of ``(value - low) * inv + shift``, at most ``top``; ``shift`` holds the half that rounds."""
    return min(i4(np.int8(cut((value - low) * inv + shift))), i4(top))


def store_rounded(x, low, inv, shift, top, bits, data, at):
    """Round 32 values and write their codes: the fifth bits in 4 bytes (for 5 bits only), then 16 bytes of nibbles."""
    nibbles, fifths = at + 4 * (bits == 5), i4(0)
    for j in range(16):  # byte j holds codes j and 16 + j; computing both at once saves storing the codes
        first, second = code_of(x[j], low, inv, shift, top), code_of(x[16 + j], low, inv, shift, top)
        data[nibbles + j] = (first & 15) | ((second & 15) << 4)
        # The fifth bit of code j is bit j of one 32-bit number. For 4 bits all of them are 0.
        fifths |= i4(((first >> 4) << j) | ((second >> 4) << (16 + j)))
    if bits == 5:
        for k in range(4):  # that number, its lowest byte first
            data[at + k] = (fifths >> (8 * k)) & 255


store_rounded = jit(store_rounded, inline="always")  # a third faster, because bits and top are then constants


def round_signed(x, half, bits, data):
    """Q4_0 and Q5_0 without importance: put the largest magnitude on the level -half, round the rest to that grid."""
    for b in range(len(x)):
        # The lowest level is -half, the highest half - 1: the largest value gets the longer side, whatever its sign.
        d = first_largest(x[b]) / -half
        inv = f4(1) / d if d != 0 else f4(0)  # a block of zeros has scale 0; every weight then gets the code of 0
        store_half(d, data[b], 0)
        # Codes begin at 0: shift by half. The 0.5 turns cutting off the fraction into rounding.
        store_rounded(x[b], f4(0), inv, half + f4(0.5), f4(2) * half - f4(1), bits, data[b], 2)


def round_affine(x, top, bits, data):
    """Q4_1 and Q5_1 without importance: ``top`` steps from the smallest value to the largest."""
    for b in range(len(x)):
        low, high = extremes(x[b])
        d = (high - low) / top  # there are top steps between the top + 1 levels
        inv = f4(1) / d if d != 0 else f4(0)  # equal values need no steps
        store_half(d, data[b], 0)
        store_half(low, data[b], 2)
        store_rounded(x[b], low, inv, f4(0.5), top, bits, data[b], 4)


round_signed, round_affine = jit(round_signed, inline="always"), jit(round_affine, inline="always")


@jit
def weigh_lanes(x, importance, first, spread, xs, w):
    """Lay 16 blocks side by side in ``xs``, with weights of their errors in ``w``; ``spread``: rows' mean squares."""
    means = np.empty(LANES, f4)
    to_lanes(x, first, xs)
    for lane in range(LANES):  # one block may end a row and the next one begin another
        means[lane] = spread[(first + lane) // len(importance)]
    weigh(xs, importance, first, means, False, w)


@jit
def search_signed(x, importance, half, bits, data):
    """Q4_0 and Q5_0 with importance: search for the scale, then code the weights with the grid that won."""
    room = np.empty((2, SIZE, LANES), f4)
    xs, w = room[0], room[1]
    room = np.empty((3, LANES), f4)
    scale, inv, origin = room[0], room[1], room[2]
    spread = row_spread(x, importance)
    codes = np.empty(SIZE, np.uint8)
    for first in range(0, len(x), LANES):
        weigh_lanes(x, importance, first, spread, xs, w)
        signed(xs, w, half, scale, inv, origin)
        for lane in range(LANES):
            for i in range(SIZE):
                # inv belongs to the grid that gave the best codes; 1 / scale could give others.
                at = inv[lane] * (x[first + lane, i] - origin[lane])
                codes[i] = np.uint8(level(at, i4(-half), i4(half - f4(1))) + half)
            store_half(scale[lane], data[first + lane], 0)
            store_codes(codes, bits, data[first + lane], 2)


@jit
def search_affine(x, importance, top, bits, data):
    """Q4_1 and Q5_1 with importance: search for scale and lowest value, then code with the grid that won."""
    room = np.empty((2, SIZE, LANES), f4)
    xs, w = room[0], room[1]
    room = np.empty((4, LANES), f4)
    scale, low, inv, origin = room[0], room[1], room[2], room[3]
    spread = row_spread(x, importance)
    codes = np.empty(SIZE, np.uint8)
    for first in range(0, len(x), LANES):
        weigh_lanes(x, importance, first, spread, xs, w)
        # 37 grids, from top - 0.9 to top + 0.9 steps over the range
        affine(xs, w, top, f4(-0.9), f4(0.05), i4(36), False, scale, low, inv, origin)
        for lane in range(LANES):
            for i in range(SIZE):
                codes[i] = np.uint8(level(inv[lane] * (x[first + lane, i] - origin[lane]), i4(0), i4(top)))
            store_half(scale[lane], data[first + lane], 0)
            store_half(low[lane], data[first + lane], 2)
            store_codes(codes, bits, data[first + lane], 4)


@jit
def row_spread(x, importance):
    """The mean square of every whole row; padding after the last row gets 0."""
    blocks = len(importance)
    rows = len(x) // blocks
    spread = np.zeros(rows + LANES, f4)
    mean_squares(x[: rows * blocks].reshape(rows, blocks * SIZE), spread[:rows])
    return spread


@jit
def q4_0(x, importance, data):
    """``x [blocks, 32]`` -> ``data [blocks, 18]``: d 2, codes 16."""
    if len(importance):
        search_signed(x, importance, f4(8), 4, data)
    else:
        round_signed(x, f4(8), 4, data)


@jit
def q5_0(x, importance, data):
    """``x [blocks, 32]`` -> ``data [blocks, 22]``: d 2, fifth bits 4, low nibbles 16."""
    if len(importance):
        search_signed(x, importance, f4(16), 5, data)
    else:
        round_signed(x, f4(16), 5, data)


@jit
def q4_1(x, importance, data):
    """``x [blocks, 32]`` -> ``data [blocks, 20]``: d 2, m 2, codes 16."""
    if len(importance):
        search_affine(x, importance, f4(15), 4, data)
    else:
        round_affine(x, f4(15), 4, data)


@jit
def q5_1(x, importance, data):
    """``x [blocks, 32]`` -> ``data [blocks, 24]``: d 2, m 2, fifth bits 4, low nibbles 16."""
    if len(importance):
        search_affine(x, importance, f4(31), 5, data)
    else:
        round_affine(x, f4(31), 5, data)


@jit
def q8_0(x, importance, data):
    """``x [blocks, 32]`` -> ``data [blocks, 34]``: d 2, codes (int8) 32. Importance makes no difference."""
    for b in range(len(x)):
        d = abs(first_largest(x[b])) / f4(127)
        inv = f4(1) / d if d != 0 else f4(0)
        store_half(d, data[b], 0)
        for i in range(SIZE):
            value = x[b, i] * inv
            whole = cut(value)
            rest = value - f4(whole)  # exact; it is beyond 1 only if 1 / d overflows, and then C gives code 0
            # C's round(): halves go away from zero
            data[b, 2 + i] = (whole + (f4(0.5) <= rest < f4(1)) - (f4(-1) < rest <= f4(-0.5))) & 255


@jit
def f16(x, importance, data):
    """``x [values, 1]`` -> ``data [values, 2]``: the nearest float16."""
    values, halves = x.reshape(-1), data.reshape(-1).view(np.uint16)
    for i in range(len(values)):
        halves[i] = to_half(values[i])


@jit
def bf16(x, importance, data):
    """``x [values, 1]`` -> ``data [values, 2]``: the upper half of a float32, ties to even."""
    words, halves = x.reshape(-1).view(np.uint32), data.reshape(-1).view(np.uint16)
    for i in range(len(words)):
        halves[i] = (words[i] + np.uint32(0x7FFF) + ((words[i] >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
