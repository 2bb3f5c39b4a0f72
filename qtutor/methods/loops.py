"""GPTQ's loop over columns and the searches for ranges, compiled by numba: one pass instead of torch's ten.

The definitions are :func:`qtutor.methods.gptq.round_block`, :func:`qtutor.methods.clip.search` and
:meth:`qtutor.methods.clip.Judge.judged`. These loops do the same for integer grids on a CPU, and replace them if numba
is installed. They compute in float32 as torch does, but in another order, so sums may differ in their last bits.

Rows of a matrix are independent of each other. So each lane of a vector is a row, and no loop has to add up across a
vector. :data:`ROWS` rows at a time stay in the fastest cache, together with all the columns of a block.
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
def _code(weight, scale, zero, largest):
    """The code nearest to ``weight``, as a number."""
    code = ((weight / scale + MAGIC) - MAGIC) + zero
    return min(max(code, np.float32(0)), largest)


@jit
def round_block(work, upper, scale, zero, largest, codes, errors, first, last):
    """:func:`~qtutor.methods.gptq.round_block` for the rows ``first ... last - 1`` of the matrix.

    work: float32 ``[columns, out]``, changed. upper: float32 ``[columns, columns]``. scale, zero: float32
    ``[rounded, out]``. largest: the largest code. codes, errors: uint8 and float32 ``[rounded, out]``, written.
    """
    columns, rounded = len(work), len(scale)
    for begin in range(first, last, ROWS):  # few rows at once, since every column is read again and again
        end = min(begin + ROWS, last)
        for column in range(rounded):  # in turn: each column includes the corrections from all before it
            step = upper[column, column]
            own, error = work[column, begin:end], errors[column, begin:end]
            scales, zeros, coded = scale[column, begin:end], zero[column, begin:end], codes[column, begin:end]
            for r in range(end - begin):
                code = _code(own[r], scales[r], zeros[r], largest)
                nearest = (code - zeros[r]) * scales[r]
                coded[r] = np.uint8(code)
                error[r] = (own[r] - nearest) / step  # divided by U_qq: times a row of U, this is the correction
                own[r] = nearest
            for later in range(column + 1, columns):  # the columns that are left compensate for the error
                factor, others = upper[column, later], work[later, begin:end]
                for r in range(end - begin):
                    others[r] -= factor * error[r]


@jit
def cheapest(weights, importance, scales, zeros, largest, costs, best, first, last):
    """Find the cheapest of some ranges for every group of the rows ``first ... last - 1``.

    weights: float32 ``[groups, group_size, out]``. importance: float32 ``[groups, group_size]``, the cost factors of
    squared errors. scales, zeros: float32 ``[ranges, groups, out]``. costs: float32 ``[groups, out]``; a range has to
    cost less, and then its cost is written here. best: int64 ``[groups, out]``, the number of the cheapest range,
    written if there is one.
    """
    ranges, groups, _ = scales.shape
    cost = np.empty(ROWS, np.float32)
    for begin in range(first, last, ROWS):
        count = min(ROWS, last - begin)
        for g in range(groups):
            for tried in range(ranges):  # all ranges of a group in turn, while its weights are in the cache
                scale, zero = scales[tried, g, begin : begin + count], zeros[tried, g, begin : begin + count]
                cost[:] = 0  # a lane for each row, as everywhere here
                for q in range(weights.shape[1]):
                    counts, weight = importance[g, q], weights[g, q, begin : begin + count]
                    for r in range(count):
                        code = _code(weight[r], scale[r], zero[r], largest)
                        error = (code - zero[r]) * scale[r] - weight[r]  # not stored: only its square counts
                        cost[r] += counts * (error * error)
                for r in range(count):
                    if cost[r] < costs[g, begin + r]:  # not <=: if equal, the first stays
                        costs[g, begin + r], best[g, begin + r] = cost[r], tried


@jit
def _errors(weights, scale, zero, largest, errors, begin, count):
    """Write into ``errors`` what rounding adds to ``weights [group_size, out]``: ``count`` rows from ``begin`` on."""
    for q in range(len(weights)):
        weight, error = weights[q, begin : begin + count], errors[q]
        for r in range(count):
            code = _code(weight[r], scale[r], zero[r], largest)
            error[r] = (code - zero[r]) * scale[r] - weight[r]


@jit
def _add_products(factors, values, upto, sums, count):
    """Add ``factors[p] * values[p]`` to ``sums`` for p below ``upto``, eight at once: so sums are loaded less often."""
    whole = upto // 8 * 8
    for p in range(0, whole, 8):
        a, b, c, d = factors[p], factors[p + 1], factors[p + 2], factors[p + 3]
        e, f, g, h = factors[p + 4], factors[p + 5], factors[p + 6], factors[p + 7]
        s, t, u, v = values[p], values[p + 1], values[p + 2], values[p + 3]
        w, x, y, z = values[p + 4], values[p + 5], values[p + 6], values[p + 7]
        for r in range(count):
            first = (a * s[r] + b * t[r]) + (c * u[r] + d * v[r])
            sums[r] += first + ((e * w[r] + f * x[r]) + (g * y[r] + h * z[r]))
    for p in range(whole, upto):
        a, v = factors[p], values[p]
        for r in range(count):
            sums[r] += a * v[r]


@jit
def judge(weights, hessian, others, scales, zeros, largest, costs, best, shares, first, last):
    """Find the cheapest range of one group for each of the rows ``first ... last - 1``, given all other groups.

    weights, others: float32 ``[group_size, out]``; others as :class:`~qtutor.methods.clip.Judge` has them. hessian:
    float32 ``[group_size, group_size]``, symmetric. scales, zeros: float32 ``[ranges, out]``. The results are written
    to costs, best and shares, ``[out]`` each. costs: float32, the least cost. best: int64, its range. shares: float32,
    the share by which its scale is too large for its codes; only written if there is more than one range.
    """
    length = len(weights)
    errors, products = np.empty((length, ROWS), np.float32), np.empty(ROWS, np.float32)
    levels, slope, curvature = np.empty_like(errors), np.empty_like(products), np.empty_like(products)
    scale, zero, cost = np.empty_like(products), np.empty_like(products), np.empty_like(products)
    for begin in range(first, last, ROWS):
        count = min(ROWS, last - begin)
        for tried in range(len(scales)):
            scale[:count], zero[:count] = scales[tried, begin : begin + count], zeros[tried, begin : begin + count]
            _errors(weights, scale, zero, largest, errors, begin, count)
            cost[:] = 0
            for q in range(length):
                # The Hessian is symmetric: if the part left of its diagonal counts twice, one half of it is enough.
                half, own, other = np.float32(0.5) * hessian[q, q], errors[q], others[q, begin : begin + count]
                for r in range(count):
                    products[r] = half * own[r] + other[r]
                _add_products(hessian[q], errors, q, products, count)
                for r in range(count):
                    cost[r] += 2 * own[r] * products[r]
            for r in range(count):
                if tried == 0 or cost[r] < costs[begin + r]:  # not <=: if equal, the first stays
                    costs[begin + r], best[begin + r] = cost[r], tried
        if len(scales) == 1:  # the caller only asks for its cost
            continue
        for r in range(count):  # each row goes on with its own cheapest range, whose errors were overwritten
            scale[r], zero[r] = scales[best[begin + r], begin + r], zeros[best[begin + r], begin + r]
        _errors(weights, scale, zero, largest, errors, begin, count)
        slope[:], curvature[:] = 0, 0  # of the cost, a parabola in the share; see Judge.too_large
        for q in range(length):  # what the codes stand for
            levels[q, :count] = weights[q, begin : begin + count] + errors[q, :count]
        for q in range(length):
            own, error, other = levels[q], errors[q], others[q, begin : begin + count]
            products[:] = 0
            _add_products(hessian[q], levels, length, products, count)
            for r in range(count):
                slope[r] += error[r] * products[r] + own[r] * other[r]
                curvature[r] += own[r] * products[r]
        for r in range(count):
            shares[begin + r] = slope[r] / max(curvature[r], np.float32(1e-30))
