"""How the encoders are made fast without changing a single byte.

llama.cpp's encoders add floats one after the other. The order matters: in another order the sums are rounded
differently, and one different bit in a sum can choose another scale. But the sub-blocks of a row are independent. So
:data:`LANES` of them are laid side by side, ``x [value, lane]``, and every step of a search is written as ::

    for i in range(len(x)):
        for lane in range(LANES):
            total[lane] += x[i, lane]

Each lane still adds its values in order, with C's rounding (no ``fastmath``: no reordering, no fused multiply-add). The
iterations of the inner loop are independent, so it becomes one vector instruction. Everything else in the encoders is
the algorithm itself; :mod:`qtutor.threads` shares the rows among threads.

Scratch arrays are rows of one array, picked by index (``room[0], room[1]``). Unpacking would give the same arrays, but
numba would not know that each of them is contiguous, and would write no vector instructions.
"""

from pathlib import Path

import numpy as np

from qtutor.compiling import cache_folder, compiled

LANES = 16

f4, i4 = np.float32, np.int32


def _sources() -> list[Path]:
    """The files of this folder with compiled functions."""
    return [path for path in Path(__file__).parent.glob("*.py") if b"jit" in path.read_bytes()]


_CACHE = cache_folder("gguf", _sources())


def jit(function, inline: str = "never"):
    """Compile ``function`` when it is first called, and keep the result on disk; ``x / 0`` is inf or NaN, as in C.

    inline: "always" copies the function's body into its callers, where its arguments may be constants.
    """
    return compiled(function, _CACHE, inline=inline)


ROUNDER = f4(3 << 22)  # 1.5 * 2**23: floats of this size are whole numbers


@jit
def nearest(value):
    """The nearest whole number (int32), halves to even, computed as llama.cpp does for every K type.

    Floats of the size of 1.5 * 2**23 have no fraction, so adding it rounds; the low 23 bits of the sum hold the whole
    number. Beyond 2**22 the result wraps round, here as in C; infinities and NaN give -2**22 and 0.
    """
    bits = f4(value + ROUNDER).view(np.int32)
    return i4(i4(bits & i4(0x7FFFFF)) - i4(0x400000))


@jit
def level(value, lowest, highest):
    """The whole number nearest to ``value`` between two int32 bounds, as float32."""
    return f4(min(max(nearest(value), lowest), highest))


@jit
def to_half(value):
    """The bits of the float16 nearest to a float32, ties to even; values that are too large become infinity."""
    word = f4(value).view(np.int32)
    bits, sign = word & 0x7FFFFFFF, (word >> 16) & 0x8000
    if bits > 0x7F800000:
        return np.uint16(0x7E00)  # NaN
    if abs(value) < f4(2.0**-14):  # subnormal: a whole multiple of 2**-24
        return np.uint16(sign | nearest(abs(value) * f4(2.0**24)))
    bits += 0xFFF + ((bits >> 13) & 1)  # round away the lowest 13 bits, then change the exponent's bias from 127 to 15
    return np.uint16(sign | min((bits - (112 << 23)) >> 13, 0x7C00))


@jit
def from_half(half):
    """The float32 that equals the finite float16 with the bits ``half``."""
    exponent, mantissa = (half >> 10) & 31, half & 0x3FF
    if exponent == 0:
        value = f4(mantissa) * f4(2.0**-24)
    else:
        value = i4(((exponent + 112) << 23) | (mantissa << 13)).view(np.float32)
    return -value if half & 0x8000 else value


@jit
def store_half(value, data, at):
    """Write ``value`` as float16 into two bytes of ``data``; return the written value as float32."""
    half = to_half(value)
    data[at] = half & 255
    data[at + 1] = half >> 8
    return from_half(half)


@jit
def to_lanes(blocks, first, lanes):
    """Lay ``blocks [count, size]`` from ``first`` on side by side: ``lanes [size, LANES]``, or a multiple of LANES."""
    for start in range(0, lanes.shape[1], LANES):
        for i in range(lanes.shape[0]):
            for lane in range(LANES):
                lanes[i, start + lane] = blocks[first + start + lane, i]


def fold(codes, shift, bits, stride, data, at):
    """Write codes to bytes as every GGUF block does: ``stride`` bytes hold ``8 / bits`` runs of ``stride`` codes.

    Code ``k * stride + j`` (its bits from ``shift`` on) goes to byte ``at + j``, bits ``k * bits`` and up. With 4 bits
    and stride 16, the first 16 codes are the low nibbles of 16 bytes, and the next 16 codes are the high nibbles.
    Stride 1 packs codes in plain order. :func:`qtutor.gguf.layout.unfold` is the inverse.
    """
    for first in range(0, len(codes), stride * (8 // bits)):
        for j in range(stride):
            byte = (codes[first + j] >> shift) & ((1 << bits) - 1)
            for k in range(1, 8 // bits):
                byte |= ((codes[first + k * stride + j] >> shift) & ((1 << bits) - 1)) << (k * bits)
            data[at + j + first * bits // 8] = byte


fold = jit(fold, inline="always")  # six times as fast, because bits and stride are constants in every caller


@jit
def extremes(values):
    """The smallest and the largest value; if 0.0 and -0.0 tie, the first of them."""
    low, high = f4(np.inf), f4(-np.inf)
    for i in range(len(values)):
        value = values[i]
        low = value if value < low else low
        high = value if value > high else high
    return low, high


@jit
def first_largest(values):
    """The value of largest magnitude, with its sign; the first one if several tie."""
    low, high = extremes(values)
    if high > -low:
        return high
    if high < -low:
        return low
    for value in values:
        if value != 0 and abs(value) == high:
            return value
    return f4(0)  # not -0.0


@jit
def mean_squares(rows, means):
    """The mean of the squares of every row, added in order, with 16 rows side by side."""
    count, size = rows.shape
    for first in range(0, count, LANES):
        last = min(first + LANES, count)
        means[first:last] = 0
        for i in range(size):
            for row in range(first, last):
                means[row] += rows[row, i] * rows[row, i]
        for row in range(first, last):
            means[row] /= f4(size)


@jit
def largest_bits(rows):
    """The largest magnitude as the bits of a float32. They sort like whole numbers; infinity and NaN come last."""
    largest = i4(0)
    for row in range(rows.shape[0]):
        bits = rows[row].view(np.int32)
        for i in range(len(bits)):
            largest = max(largest, i4(bits[i] & i4(0x7FFFFFFF)))
    return largest
