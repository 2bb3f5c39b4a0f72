"""The loops of :mod:`.cpu`, compiled by numba: products, and decoded weights, from tiles of 64 rows.

The rows of a tile are the lanes of vectors: ``x[k]`` is one number for all of them, and no loop has to add up across a
vector. A code stays at its place in its word: it is masked, converted and multiplied, and x was divided by
``2 ** (bits * i)`` beforehand. Zero points stay outside the sums, ``s (sum c x - z sum x)``. :mod:`.codes` has the
inner steps.

``fastmath={"contract"}`` allows fused multiply-adds and nothing else: sums keep their order, so the same call gives the
same bits every time, on any number of threads.
"""

from pathlib import Path

import numpy as np
from numba.core import types
from numba.extending import overload

from qtutor.compiling import cache_folder, compiled
from qtutor.runtime.kernels.codes import ahead, decode, dot, row
from qtutor.runtime.kernels.instructions import wide
from qtutor.runtime.kernels.tiles import ROWS

f4, i4 = np.float32, np.int32
AT_ONCE = 4  # words of a row that `weights` writes at once: two whole lines of the cache

_FILES = "codes", "instructions", "loops", "tiles"
_CACHE = cache_folder("products", [Path(__file__).with_name(f"{name}.py") for name in _FILES])


def jit(function):
    """Compile ``function`` when it is first called, and keep the result on disk."""
    return compiled(function, _CACHE, fastmath={"contract"})


def number(stored):
    """A scale as float32; it is stored as float32, or as float16, whose bits are given as uint16."""


@overload(number, inline="always")
def _number(stored):
    if stored == types.float32:
        return lambda stored: stored
    # A float16 has 10 bits of mantissa and a bias of 15, a float32 has 23 and 127. So the bits of a float16, moved up
    # by 13, are the number divided by 2 ** 112, whether it is subnormal or not. (Infinity and NaN do not occur here.)
    return lambda stored: (
        i4(i4(i4(i4(stored) & i4(0x7FFF)) << i4(13)) | i4(i4(i4(stored) & i4(0x8000)) << i4(16))).view(np.float32)
        * f4(2.0**112)
    )


@jit
def spread(x, factors, places, sums):
    """Write ``x * factors`` to ``places``, and the sums of x in every group to ``sums``; return if all are finite.

    x, places: float32 ``[tokens, columns / 8, 8]``. factors: float32 ``[period, 8]``; each word of eight columns uses
    the row of its place in the period. sums: float32 ``[tokens, groups]``.
    """
    tokens, groups = sums.shape
    size = x.shape[1] // groups
    eight = np.empty(8, f4)
    finite = True
    for t in range(tokens):
        for g in range(groups):
            eight[:] = 0  # eight sums side by side
            for k in range(g * size, (g + 1) * size):
                of_word = factors[k % len(factors)]
                for i in range(8):
                    eight[i] += x[t, k, i]
                    places[t, k, i] = x[t, k, i] * of_word[i]
            total = eight[0]
            for i in range(1, 8):
                total += eight[i]
            sums[t, g] = total
            finite &= bool(np.isfinite(total))
    return finite


@jit
def one(x, sums, planes, scales, zeros, each, y, first, last):
    """The product for one token, of the tiles ``first ... last - 1``.

    x, sums: the results of `spread`. planes, scales, zeros: see :class:`.tiles.Tiles`. each: 1, or 0 if one zero point
    serves all groups. y: float32 ``[1, tiles * ROWS]``.
    """
    wide()
    x, sums, y = x[0], sums[0], y[0]
    acc, total = np.empty(ROWS, f4), np.empty(ROWS, f4)
    groups = scales.shape[1]
    size = len(x) // groups
    for tile in range(first, last):
        total[:] = 0
        for g in range(groups):
            acc[:] = 0
            for k in range(g * size, (g + 1) * size):
                x0, x1, x2, x3, x4, x5, x6, x7 = x[k, 0], x[k, 1], x[k, 2], x[k, 3], x[k, 4], x[k, 5], x[k, 6], x[k, 7]
                words = row(planes, tile, k)
                ahead(words)
                for r in range(ROWS):
                    acc[r] = dot(words, r, acc[r], x0, x1, x2, x3, x4, x5, x6, x7)
            scale, zero, sum_x = scales[tile, g], zeros[tile * each, g * each], sums[g]
            for r in range(ROWS):
                total[r] += number(scale[r]) * (acc[r] - f4(zero[r]) * sum_x)
        y[tile * ROWS : (tile + 1) * ROWS] = total


@jit
def many(x, sums, planes, scales, zeros, each, y, first, last):
    """The product for a few tokens, or with levels of a codebook: words are decoded once for all tokens.

    The arguments are those of `one`, and y has a row for each token.
    """
    wide()
    tokens, groups = len(x), scales.shape[1]
    size = x.shape[1] // groups
    codes, acc, total = np.empty((8, ROWS), f4), np.empty((tokens, ROWS), f4), np.empty((tokens, ROWS), f4)
    for tile in range(first, last):
        total[:] = 0
        for g in range(groups):
            acc[:] = 0
            for k in range(g * size, (g + 1) * size):
                words = row(planes, tile, k)
                ahead(words)
                decode(words, codes)
                for t in range(tokens):
                    x0, x1, x2, x3 = x[t, k, 0], x[t, k, 1], x[t, k, 2], x[t, k, 3]
                    x4, x5, x6, x7 = x[t, k, 4], x[t, k, 5], x[t, k, 6], x[t, k, 7]
                    for r in range(ROWS):
                        value = acc[t, r] + codes[0, r] * x0
                        value += codes[1, r] * x1
                        value += codes[2, r] * x2
                        value += codes[3, r] * x3
                        value += codes[4, r] * x4
                        value += codes[5, r] * x5
                        value += codes[6, r] * x6
                        acc[t, r] = value + codes[7, r] * x7
            scale, zero = scales[tile, g], zeros[tile * each, g * each]
            for t in range(tokens):
                sum_x = sums[t, g]
                for r in range(ROWS):
                    total[t, r] += number(scale[r]) * (acc[t, r] - f4(zero[r]) * sum_x)
        for t in range(tokens):
            y[t, tile * ROWS : (tile + 1) * ROWS] = total[t]


@jit
def weights(planes, scales, zeros, each, out, first, last):
    """The weights of the tiles ``first ... last - 1``, float32 ``[rows, columns / 8, 8]``, exactly as by a grid.

    ``out`` may end within the last tile.
    """
    wide()
    groups, words = scales.shape[1], out.shape[1]
    size = words // groups
    columns = np.empty((AT_ONCE, 8, ROWS), f4)
    for tile in range(first, last):
        at = (tile - first) * ROWS
        count = min(ROWS, len(out) - at)
        for start in range(0, words, AT_ONCE):
            here = min(AT_ONCE, words - start)
            for j in range(here):
                g = (start + j) // size
                scale, zero, codes = scales[tile, g], zeros[tile * each, g * each], columns[j]
                decode(row(planes, tile, start + j), codes)
                for i in range(8):
                    for r in range(ROWS):
                        codes[i, r] = number(scale[r]) * (codes[i, r] - f4(zero[r]))
            for r in range(count):
                for j in range(here):
                    for i in range(8):
                        out[at + r, start + j, i] = columns[j, i, r]
