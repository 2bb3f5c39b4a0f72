"""The searches for scales, 16 sub-blocks at a time (see :mod:`qtutor.gguf.lanes`).

They choose the scale that makes ``sum(w * (x - reconstruction) ** 2)`` small, and follow llama.cpp's ``ggml-quants.c``
operation by operation: a sum added in another order is rounded differently, and another scale may win.

============== ============================ ===============================================================
here           there                        for
============== ============================ ===============================================================
:func:`affine` ``make_qkx2``, ``make_qkx3`` scale and lowest value: Q2_K, Q4_K, Q5_K; Q4_1, Q5_1 with importance
:func:`signed` ``make_qx``                  scale alone: Q6_K; Q3_K, Q4_0, Q5_0 with importance
============== ============================ ===============================================================

``x`` and ``w`` are ``[size, LANES]`` float32. Results are written to ``[LANES]`` arrays. Two of these, ``inv`` and
``origin``, are the grid that won: it gave the codes ``level(inv * (x - origin))``, to which the scale was then fitted.
Left out: the variants of these functions that no type here uses. :mod:`qtutor.gguf.descent` has the searches that
change one code at a time.
"""

import numpy as np

from qtutor.gguf.lanes import LANES, f4, i4, jit, level

TINY = f4(1e-15)  # a sub-block whose largest magnitude is below this counts as all zero


@jit
def affine(x, w, top, start, step, tries, absolute, scale, low, inv, origin):
    """Find ``scale`` and ``low <= 0`` so that ``scale * code + low`` is close to ``x``, with codes 0 ... top.

    Tries ``tries + 1`` grids, with ``top + start + step * t`` steps over the range of ``x``. Each grid gives codes, and
    least squares gives the best scale and lowest value *for these codes*. They are kept if their error is the smallest
    so far. absolute: compare the weighted absolute errors, not the squared ones.
    """
    room = np.zeros((5, LANES), f4)
    high, sum_w, sum_x, least, flat = room[0], room[1], room[2], room[3], room[4]
    room = np.zeros((4, LANES), f4)
    new_inv, new_scale, new_low, error = room[0], room[1], room[2], room[3]
    for lane in range(LANES):
        low[lane] = high[lane] = x[0, lane]
    for i in range(len(x)):
        for lane in range(LANES):
            low[lane], high[lane] = min(low[lane], x[i, lane]), max(high[lane], x[i, lane])
            sum_w[lane] += w[i, lane]
            sum_x[lane] += w[i, lane] * x[i, lane]
    # The first grid: top steps from the smallest value to the largest.
    for lane in range(LANES):
        low[lane] = min(low[lane], f4(0))  # the format stores -low without a sign
        flat[lane] = high[lane] == low[lane]
        inv[lane] = top / (high[lane] - low[lane])
        scale[lane], origin[lane] = f4(1) / inv[lane], low[lane]
    _error(x, w, top, absolute, inv, origin, scale, low, least)
    for t in range(tries + 1):
        # A stretched grid clips the largest values or leaves its last levels unused, but suits other values better.
        for lane in range(LANES):
            new_inv[lane] = (start + step * f4(t) + top) / (high[lane] - low[lane])
        _least_squares(x, w, top, sum_w, sum_x, new_inv, low, new_scale, new_low)
        _error(x, w, top, absolute, new_inv, low, new_scale, new_low, error)
        for lane in range(LANES):
            if error[lane] < least[lane]:  # false if least squares had no answer: then the error is NaN
                inv[lane], origin[lane], least[lane] = new_inv[lane], low[lane], error[lane]
                # The next grids start from the new lowest value, as in llama.cpp.
                scale[lane], low[lane] = new_scale[lane], new_low[lane]
    for lane in range(LANES):
        if flat[lane]:  # all values are equal and not positive: code 0 everywhere, and low is that value
            scale[lane], low[lane], inv[lane], origin[lane] = 0, high[lane], 0, 0


@jit
def _least_squares(x, w, top, sum_w, sum_x, inv, origin, scale, low):
    """The scale and lowest value that reconstruct ``x`` best from the codes of ``inv * (x - origin)``."""
    top_code = i4(top)
    room = np.zeros((3, LANES), f4)
    sum_l, sum_ll, sum_xl = room[0], room[1], room[2]
    for i in range(len(x)):
        for lane in range(LANES):
            code = level(inv[lane] * (x[i, lane] - origin[lane]), i4(0), top_code)
            weighted = w[i, lane] * code
            sum_l[lane] += weighted
            sum_ll[lane] += weighted * code
            sum_xl[lane] += weighted * x[i, lane]
    # At the least error, the derivatives by scale and by low are 0: two equations, solved by Cramer's rule.
    for lane in range(LANES):
        determinant = sum_w[lane] * sum_ll[lane] - sum_l[lane] * sum_l[lane]
        scale[lane] = (sum_w[lane] * sum_xl[lane] - sum_x[lane] * sum_l[lane]) / determinant
        low[lane] = (sum_ll[lane] * sum_x[lane] - sum_l[lane] * sum_xl[lane]) / determinant
        if low[lane] > 0:  # the format cannot store it: take 0, and the best scale for that
            low[lane], scale[lane] = 0, sum_xl[lane] / sum_ll[lane]
        if not determinant > 0:  # all codes are equal, so they fix no scale: NaN makes this grid lose
            scale[lane] = np.nan


@jit
def _error(x, w, top, absolute, inv, origin, scale, low, error):
    """The weighted error of ``scale * code + low`` as an approximation of ``x``."""
    top_code = i4(top)
    for lane in range(LANES):
        error[lane] = 0
    for i in range(len(x)):
        for lane in range(LANES):
            code = level(inv[lane] * (x[i, lane] - origin[lane]), i4(0), top_code)
            off = scale[lane] * code + low[lane] - x[i, lane]
            error[lane] += w[i, lane] * (abs(off) if absolute else off * off)


@jit
def signed(x, w, half, scale, inv, origin):
    """Find ``scale`` so that ``scale * level`` is close to ``x``, with levels ``l`` from -half to half - 1.

    The first grid puts the value of largest magnitude on the level -half, which has no positive counterpart; 18 grids
    around it are tried, too. For given levels the best scale is ``sum(w x l) / sum(w l l)``, and it reduces the error
    by ``sum(w x l)**2 / sum(w l l)``. The grid with the largest reduction wins.
    """
    room = np.zeros((6, LANES), f4)
    top, largest, best, new_inv, sum_xl, sum_ll = room[0], room[1], room[2], room[3], room[4], room[5]
    for i in range(len(x)):
        for lane in range(LANES):
            if abs(x[i, lane]) > largest[lane]:
                largest[lane], top[lane] = abs(x[i, lane]), x[i, lane]
    for lane in range(LANES):
        inv[lane], origin[lane] = -half / top[lane], 0
    _projection(x, w, half, inv, sum_xl, sum_ll)
    for lane in range(LANES):
        scale[lane] = sum_xl[lane] / sum_ll[lane] if sum_ll[lane] != 0 else f4(0)
        best[lane] = scale[lane] * sum_xl[lane]  # the reduction of the error so far
    for t in range(-9, 10):
        if t == 0:  # the grid from above
            continue
        # The largest magnitude is up to 0.9 levels beyond -half, where it is clipped, or short of it.
        for lane in range(LANES):
            new_inv[lane] = -(half + f4(0.1) * f4(t)) / top[lane]
        _projection(x, w, half, new_inv, sum_xl, sum_ll)
        for lane in range(LANES):
            # sum_xl**2 / sum_ll > best, written without the division as in llama.cpp
            if sum_ll[lane] > 0 and sum_xl[lane] * sum_xl[lane] > best[lane] * sum_ll[lane]:
                inv[lane], scale[lane] = new_inv[lane], sum_xl[lane] / sum_ll[lane]
                best[lane] = scale[lane] * sum_xl[lane]
    for lane in range(LANES):
        if largest[lane] < TINY:  # all zero: scale 0. llama.cpp leaves code 0 there, so inv and origin give -half
            scale[lane], inv[lane], origin[lane] = 0, 1, half


@jit
def _projection(x, w, half, inv, sum_xl, sum_ll):
    """``sum(w x l)`` and ``sum(w l l)`` for the levels ``l`` nearest to ``inv * x``."""
    for lane in range(LANES):
        sum_xl[lane] = sum_ll[lane] = 0
    for i in range(len(x)):
        for lane in range(LANES):
            code = level(inv[lane] * x[i, lane], i4(-half), i4(half - f4(1)))
            sum_xl[lane] += w[i, lane] * x[i, lane] * code
            sum_ll[lane] += w[i, lane] * code * code
