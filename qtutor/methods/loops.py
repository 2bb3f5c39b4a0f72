"""GPTQ's loop over columns and the search for ranges, compiled by numba: what torch does in ten passes, done in one.

The definitions are :func:`qtutor.methods.gptq.round_block` and :func:`qtutor.methods.clip.search`. These loops do the
same for grids of integers on a CPU, and take their place where numba is installed. They compute in float32 as torch
does, in another order, so that sums may differ in their last bits.

Rows of a matrix do not know of each other, so they are the lanes of vectors, and no loop has to add up across a vector.
:data:`ROWS` rows at a time stay in the nearest cache, together with all the columns of a block.
"""

from pathlib import Path

import numpy as np

from qtutor.compiling import cache_folder, compiled

ROWS = 64
MAGIC = np.float32(1.5 * 2**23)  # adding and subtracting it rounds to the nearest integer, halves to even, below 2^22

_CACHE = cache_folder("methods", [Path(__file__)])


def jit(function):
    """Compile ``function`` when it is first called, and keep the result on disk."""
    return compiled(function, _CACHE, fastmath={"contract"})


@jit
def round_block(work, upper, scale, zero, largest, codes, errors, first, last):
    """:func:`~qtutor.methods.gptq.round_block` for the rows ``first ... last - 1`` of the matrix.

    work: float32 ``[columns, out]``, changed. upper: float32 ``[columns, columns]``. scale, zero: float32
    ``[rounded, out]``. largest: the largest code. codes, errors: uint8 and float32 ``[rounded, out]``, written.
    """
    columns, rounded = len(work), len(scale)
    for begin in range(first, last, ROWS):
        end = min(begin + ROWS, last)
        for column in range(rounded):
            step = upper[column, column]
            own, error = work[column, begin:end], errors[column, begin:end]
            scales, zeros, coded = scale[column, begin:end], zero[column, begin:end], codes[column, begin:end]
            for r in range(end - begin):
                code = ((own[r] / scales[r] + MAGIC) - MAGIC) + zeros[r]
                code = min(max(code, np.float32(0)), largest)
                nearest = (code - zeros[r]) * scales[r]
                coded[r] = np.uint8(code)
                error[r] = (own[r] - nearest) / step
                own[r] = nearest
            for behind in range(column + 1, columns):
                factor, others = upper[column, behind], work[behind, begin:end]
                for r in range(end - begin):
                    others[r] -= factor * error[r]


@jit
def cheapest(weights, importance, scales, zeros, largest, costs, best, first, last):
    """Find the cheapest of some ranges for every group of the rows ``first ... last - 1``.

    weights: float32 ``[groups, group_size, out]``. importance: float32 ``[groups, group_size]``, what the square of an
    error costs. scales, zeros: float32 ``[ranges, groups, out]``. costs: float32 ``[groups, out]``, what a range has to
    be below; lowered. best: int64 ``[groups, out]``, the number of the cheapest range, written where there is one.
    """
    ranges, groups, _ = scales.shape
    cost = np.empty(ROWS, np.float32)
    for begin in range(first, last, ROWS):
        count = min(ROWS, last - begin)
        for g in range(groups):
            for tried in range(ranges):
                scale, zero = scales[tried, g, begin : begin + count], zeros[tried, g, begin : begin + count]
                cost[:] = 0
                for q in range(weights.shape[1]):
                    counts, weight = importance[g, q], weights[g, q, begin : begin + count]
                    for r in range(count):
                        code = ((weight[r] / scale[r] + MAGIC) - MAGIC) + zero[r]
                        code = min(max(code, np.float32(0)), largest)
                        error = (code - zero[r]) * scale[r] - weight[r]
                        cost[r] += counts * (error * error)
                for r in range(count):
                    if cost[r] < costs[g, begin + r]:  # not <=: of equals the first stays
                        costs[g, begin + r], best[g, begin + r] = cost[r], tried
