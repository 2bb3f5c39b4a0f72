"""Searches that change one code at a time: for Q3_K's scales, and for scales of scales (see :mod:`qtutor.gguf.search`).

For given codes the best scale is ``sum(w x code) / sum(w code code)``, and it reduces the error by
``sum(w x code)**2 / sum(w code code)``. One step of a search takes one value out of both sums. The scale of all the
others then gives that value a code, and the new code is kept if it makes the reduction larger. Follows llama.cpp's
``make_q3_quants`` (:func:`descent`) and ``make_qp_quants`` (:func:`positive`), operation by operation.
"""

import numpy as np

from qtutor.gguf.lanes import LANES, f4, i4, jit, level, nearest
from qtutor.gguf.search import TINY

# Every step needs the result of the one before it. With two sets of lanes the processor works on one while it waits for
# the other.
WIDE = 2 * LANES


@jit
def descent(x, half, scale, levels):
    """Find ``scale`` and ``levels`` so that ``scale * level`` is close to ``x``; errors count by ``x**2``.

    The search starts from the grid that puts the largest magnitude on the level -half, and visits all values up to five
    times. Levels from -half to half - 1 are written to ``levels [size, WIDE]``.
    """
    room = np.zeros((5, WIDE), f4)
    top, largest, sum_xl, sum_ll, inv = room[0], room[1], room[2], room[3], room[4]
    for i in range(len(x)):
        for lane in range(WIDE):
            if abs(x[i, lane]) > largest[lane]:
                largest[lane], top[lane] = abs(x[i, lane]), x[i, lane]
    for lane in range(WIDE):
        inv[lane] = -half / top[lane]
    # Round to the first grid, and add up the two sums that every step then updates.
    for i in range(len(x)):
        for lane in range(WIDE):
            code = level(inv[lane] * x[i, lane], i4(-half), i4(half - f4(1)))
            levels[i, lane] = code
            w = x[i, lane] * x[i, lane]
            sum_xl[lane] += w * x[i, lane] * code
            sum_ll[lane] += w * code * code
    for _ in range(5):
        changed = 0
        for i in range(len(x)):
            for lane in range(WIDE):
                w, old = x[i, lane] * x[i, lane], levels[i, lane]
                xl = sum_xl[lane] - w * x[i, lane] * old  # the sums of all other values
                ll = sum_ll[lane] - w * old * old
                new = level(x[i, lane] * ll / xl, i4(-half), i4(half - f4(1)))  # xl / ll is their best scale
                others_agree = xl > 0  # otherwise that scale is not positive, and its code is useless
                xl += w * x[i, lane] * new
                ll += w * new * new
                # Is xl**2 / ll, the reduction of the error, larger than before? Without divisions, as in llama.cpp.
                better = xl * xl * sum_ll[lane] > sum_xl[lane] * sum_xl[lane] * ll
                if others_agree and new != old and ll > 0 and better:
                    levels[i, lane], sum_xl[lane], sum_ll[lane] = new, xl, ll
                    changed += 1
        if changed == 0:  # nothing would change the next time either
            break
    for lane in range(WIDE):
        scale[lane] = sum_xl[lane] / sum_ll[lane] if sum_ll[lane] > 0 else f4(0)
        if largest[lane] < TINY:
            scale[lane] = 0
            for i in range(len(x)):
                levels[i, lane] = -half


@jit
def positive(x, w, top, scale, codes):
    """Find ``scale`` and ``codes`` so that ``scale * code`` is close to ``x``, which is not negative.

    codes: int32 ``[size, LANES]``, 0 ... top. The search compares nine grids, then changes codes one at a time as
    :func:`descent` does. ``& 255``: llama.cpp keeps these codes in a byte.
    """
    top_code = i4(top)
    room = np.zeros((7, LANES), f4)
    high, inv, new_inv, least, error, sum_xl, sum_ll = room[0], room[1], room[2], room[3], room[4], room[5], room[6]
    for i in range(len(x)):
        for lane in range(LANES):
            high[lane] = max(high[lane], x[i, lane])
    # The error of the grid that puts the largest value on top.
    for lane in range(LANES):
        inv[lane] = top / high[lane]
    for i in range(len(x)):
        for lane in range(LANES):
            off = x[i, lane] - f4(1) / inv[lane] * f4(nearest(inv[lane] * x[i, lane]) & 255)
            least[lane] += w[i, lane] * off * off
    for t in range(-4, 5):  # grids that put it up to 0.4 codes below top, or above top, where it is clipped
        if t == 0:
            continue
        for lane in range(LANES):
            new_inv[lane], error[lane] = (f4(0.1) * f4(t) + top) / high[lane], 0
        for i in range(len(x)):
            for lane in range(LANES):
                code = min(nearest(new_inv[lane] * x[i, lane]), top_code)
                off = x[i, lane] - f4(1) / new_inv[lane] * f4(code)
                error[lane] += w[i, lane] * off * off
        for lane in range(LANES):
            if error[lane] < least[lane]:
                least[lane], inv[lane] = error[lane], new_inv[lane]
    # Round to the best of these grids, and add up the two sums that every step then updates.
    for i in range(len(x)):
        for lane in range(LANES):
            code = min(nearest(inv[lane] * x[i, lane]), top_code)
            codes[i, lane] = code & 255
            sum_xl[lane] += w[i, lane] * x[i, lane] * f4(code)
            sum_ll[lane] += w[i, lane] * f4(code) * f4(code)
    _descend_positive(x, w, top_code, sum_xl, sum_ll, codes)
    for lane in range(LANES):
        scale[lane] = sum_xl[lane] / sum_ll[lane] if sum_ll[lane] > 0 else f4(0)
        if high[lane] < TINY:
            scale[lane] = 0
            for i in range(len(x)):
                codes[i, lane] = 0


@jit
def _descend_positive(x, w, top_code, sum_xl, sum_ll, codes):
    """Change one code at a time while that reduces the error; the steps are those of :func:`descent`."""
    for _ in range(5):
        changed = 0
        for i in range(len(x)):
            for lane in range(LANES):
                old = f4(codes[i, lane])
                xl = sum_xl[lane] - w[i, lane] * x[i, lane] * old  # the sums of all other values
                ll = sum_ll[lane] - w[i, lane] * old * old
                new = min(nearest(x[i, lane] * ll / xl), top_code)  # the code that their best scale gives this one
                others_agree = xl > 0 and ll > 0
                xl += w[i, lane] * x[i, lane] * f4(new)
                ll += w[i, lane] * f4(new) * f4(new)
                better = xl * xl * sum_ll[lane] > sum_xl[lane] * sum_xl[lane] * ll
                if others_agree and f4(new) != old and better:
                    codes[i, lane], sum_xl[lane], sum_ll[lane] = new & 255, xl, ll
                    changed += 1
        if changed == 0:
            break
