"""How the encoders are made fast without changing a single byte.

llama.cpp's encoders add up floats one after the other, so a compiler may not reorder them: the same numbers added in
another order round differently, and one different bit in a sum can choose another scale. But the sub-blocks of a row
know nothing of each other. So :data:`LANES` of them are laid side by side, ``x [value, lane]``, and every step of a
search is written as ::

    for i in range(len(x)):
        for lane in range(LANES):
            total[lane] += x[i, lane]

Each lane still adds its values in order, with C's rounding (no ``fastmath``: no reordering, no fused multiply-add),
while the inner loop has no dependence in it and becomes one vector instruction. Everything else in the encoders is
their algorithm; :mod:`qtutor.gguf.pieces` shares the rows out among threads.

Scratch arrays are rows of one array, picked by index (``room[0], room[1]``): unpacking would do the same, but numba
would no longer know that each of them is contiguous, and there would be no vector instructions.
"""

import hashlib
import os
from pathlib import Path

import numba
import numpy as np

LANES = 16

f4, i4 = np.float32, np.int32


def _cache_folder() -> str | None:
    """A folder for compiled code that is named after this package's sources; ``None`` where none can be made.

    numba looks only at the file that a function stands in to see whether its cached code is stale. Our functions call
    each other across files, so code compiled from an older :mod:`~qtutor.gguf.search` would go on being used.
    """
    modules = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
    sources = b"".join(source for source in modules if b"jit" in source)
    home = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(home).expanduser() / "qtutor" / f"gguf-{hashlib.sha256(sources).hexdigest()[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # a read-only or unknown home: compile anew in every process
        return None
    return str(folder) if os.access(folder, os.W_OK) else None


_CACHE = _cache_folder()


def jit(function, inline: str = "never"):
    """Compile ``function`` when it is first called, and keep the result on disk; ``x / 0`` is inf or NaN, as in C.

    inline: "always" puts its body into the callers, where its arguments may be constants.
    """
    before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, _CACHE or numba.config.CACHE_DIR
    try:
        return numba.njit(error_model="numpy", nogil=True, cache=_CACHE is not None, inline=inline)(function)
    finally:
        numba.config.CACHE_DIR = before


ROUNDER = f4(3 << 22)  # 1.5 * 2**23: floats of this size are whole numbers


@jit
def nearest(value):
    """The nearest whole number (int32), halves to even, as llama.cpp finds it for every K type.

    Adding 1.5 * 2**23 leaves no bits behind the point, and the sum's low 23 bits are the whole number. Beyond 2**22
    that wraps round, in C as here; infinities and NaN give -2**22 and 0.
    """
    bits = f4(value + ROUNDER).view(np.int32)
    return i4(i4(bits & i4(0x7FFFFF)) - i4(0x400000))


@jit
def level(value, lowest, highest):
    """The whole number nearest to ``value`` between two int32 bounds, as float32."""
    return f4(min(max(nearest(value), lowest), highest))


@jit
def to_half(value):
    """float32 to the bits of the nearest float16, ties to even; what is too large becomes infinity."""
    word = f4(value).view(np.int32)
    bits, sign = word & 0x7FFFFFFF, (word >> 16) & 0x8000
    if bits > 0x7F800000:
        return np.uint16(0x7E00)  # NaN
    if abs(value) < f4(2.0**-14):  # subnormal: a whole multiple of 2**-24
        return np.uint16(sign | nearest(abs(value) * f4(2.0**24)))
    bits += 0xFFF + ((bits >> 13) & 1)  # round the 13 bits that go, then move the exponent's bias from 127 to 15
    return np.uint16(sign | min((bits - (112 << 23)) >> 13, 0x7C00))


@jit
def from_half(half):
    """The bits of a finite float16 to float32, exactly."""
    exponent, mantissa = (half >> 10) & 31, half & 0x3FF
    if exponent == 0:
        value = f4(mantissa) * f4(2.0**-24)
    else:
        value = i4(((exponent + 112) << 23) | (mantissa << 13)).view(np.float32)
    return -value if half & 0x8000 else value


@jit
def store_half(value, data, at):
    """Write ``value`` as float16 into two bytes of ``data``; returns what was written, as float32."""
    half = to_half(value)
    data[at] = half & 255
    data[at + 1] = half >> 8
    return from_half(half)


@jit
def to_lanes(blocks, first, lanes):
    """``blocks [count, size]`` from ``first`` on, side by side: ``lanes [size, LANES]`` (or more than LANES)."""
    for start in range(0, lanes.shape[1], LANES):
        for i in range(lanes.shape[0]):
            for lane in range(LANES):
                lanes[i, start + lane] = blocks[first + start + lane, i]


def fold(codes, shift, bits, stride, data, at):
    """Lay codes into bytes as every GGUF block does: ``stride`` bytes take ``8 / bits`` runs of ``stride`` codes.

    Code ``k * stride + j`` (its bits from ``shift`` on) goes to byte ``at + j``, bits ``k * bits`` and up. With 4 bits
    and stride 16 the first 16 codes are the low nibbles of 16 bytes and the next 16 the high ones; stride 1 packs codes
    in plain order. :func:`qtutor.gguf.layout.unfold` is the inverse.
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
    """The smallest and the largest value; of zeros with different signs the first."""
    low, high = f4(np.inf), f4(-np.inf)
    for i in range(len(values)):
        value = values[i]
        low = value if value < low else low
        high = value if value > high else high
    return low, high


@jit
def first_largest(values):
    """The value of largest magnitude, with its sign; of several the first."""
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
    """Mean of the squares of every row, added up in order, 16 rows side by side."""
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
    """The largest magnitude as the bits of a float32: magnitudes sort like whole numbers, infinity and NaN on top."""
    largest = i4(0)
    for row in range(rows.shape[0]):
        bits = rows[row].view(np.int32)
        for i in range(len(bits)):
            largest = max(largest, i4(bits[i] & i4(0x7FFFFFFF)))
    return largest
