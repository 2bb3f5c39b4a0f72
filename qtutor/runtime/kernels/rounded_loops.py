"""The loops of :mod:`.rounded`, compiled by numba: products of codes with inputs that are rounded to int8.

A word of 32 bits holds eight codes of 4 bits. One mask extracts the codes of the even columns as four bytes; after a
shift, the same mask extracts those of the odd columns. :mod:`.dots` multiplies them by instructions for bytes, if the
CPU has any. Other CPUs run plain loops, which LLVM optimizes as well as it can. All sums are whole numbers, and exact.
"""

from pathlib import Path

import numpy as np
from numba.extending import overload

from qtutor.compiling import cache_folder, compiled
from qtutor.runtime.kernels.dots import RUN, one_word, run_of_words, width
from qtutor.runtime.kernels.instructions import wide
from qtutor.runtime.kernels.loops import number
from qtutor.runtime.kernels.tiles import ROWS

f4, i4 = np.float32, np.int32
LARGEST = f4(127)  # the code of a group's largest input; -128 is left out, so that codes are symmetric
LEAST = f4(1e-30)  # groups of smaller inputs count as zeros: 127 / max would overflow
ORDER = 0, 2, 4, 6, 1, 3, 5, 7  # of eight columns, as the masks extract them

_FILES = "codes", "dots", "instructions", "loops", "rounded_loops", "tiles"
_CACHE = cache_folder("rounded", [Path(__file__).with_name(f"{name}.py") for name in _FILES])


def jit(function):
    """Compile ``function`` when it is first called, and keep the result on disk."""
    return compiled(function, _CACHE)


@jit
def quantize(x, codes, steps, sums):
    """Round x to whole multiples of a step for each token and group; return whether all of x is finite.

    x: float32 ``[tokens, columns / 8, 8]``. codes: int8, of the same shape, columns in :data:`ORDER`. steps: float32
    ``[tokens, groups]``. sums: of the codes of each group, int32, of the same shape.
    """
    tokens, groups = steps.shape
    size = x.shape[1] // groups
    finite = True
    for t in range(tokens):
        for g in range(groups):
            largest, total = f4(0), f4(0)
            for k in range(g * size, (g + 1) * size):
                for i in range(8):
                    value = abs(x[t, k, i])
                    largest = max(largest, value)
                    total += value
            finite &= bool(np.isfinite(total))  # a maximum would miss NaN
            used = finite and largest > LEAST
            steps[t, g] = largest / LARGEST if used else f4(0)
            inverse = LARGEST / largest if used else f4(0)
            added = i4(0)
            for k in range(g * size, (g + 1) * size):
                for i in range(8):
                    code = np.int8(np.rint(x[t, k, ORDER[i]] * inverse)) if used else np.int8(0)
                    codes[t, k, i] = code
                    added += i4(code)
            sums[t, g] = added
    return finite


def products(words, x, first, last, acc):
    """Add the products of the words ``first ... last - 1`` of every row to ``acc``.

    words: int32 ``[columns / 8, ROWS]``. x: int8 ``[columns / 8, 8]``, in :data:`ORDER`. acc: int32 ``[ROWS]``.
    """


@overload(products, inline="always")
def _products(words, x, first, last, acc):
    return _by_instructions if width() else _plain


def _by_instructions(words, x, first, last, acc):
    rest = last - (last - first) % RUN
    for k in range(first, rest, RUN):
        run_of_words(words, x, k, acc)
    for k in range(rest, last):
        one_word(words, x, k, acc)


def _plain(words, x, first, last, acc):
    for k in range(first, last):
        for r in range(ROWS):
            word, total = words[k, r], acc[r]
            for i in range(4):
                total += i4(i4((word >> i4(8 * i)) & i4(15)) * i4(x[k, i]))
                total += i4(i4((word >> i4(8 * i + 4)) & i4(15)) * i4(x[k, 4 + i]))
            acc[r] = total


@jit
def product(codes, steps, sums, words, scales, zeros, each, y, first, last):
    """The product for a few tokens, of the tiles ``first ... last - 1``.

    codes, steps, sums: the results of `quantize`. words, scales, zeros: see :class:`.tiles.Tiles`. each: 1, or 0 if one
    zero point serves all groups. y: float32 ``[tokens, tiles * ROWS]``.
    """
    wide()
    tokens, groups = steps.shape
    size = codes.shape[1] // groups
    acc, total = np.empty(ROWS, i4), np.empty((tokens, ROWS), f4)
    for tile in range(first, last):
        total[:] = 0
        for g in range(groups):
            scale, zero = scales[tile, g], zeros[tile * each, g * each]
            for t in range(tokens):
                acc[:] = 0
                products(words[tile], codes[t], g * size, (g + 1) * size, acc)
                step, sum_x = steps[t, g], sums[t, g]
                for r in range(ROWS):
                    total[t, r] += number(scale[r]) * (step * f4(i4(acc[r] - i4(i4(zero[r]) * sum_x))))
        for t in range(tokens):
            y[t, tile * ROWS : (tile + 1) * ROWS] = total[t]
