"""What a block computes between its products, for one token, compiled by numba.

A model in bfloat16 rounds the result of every operation. If ``half`` is set, these loops round at the same places: they
compute in float32, and :func:`cut` rounds. Sums may be added up in any order, so that a loop over a vector can become
vector instructions; the order is the same every time.
"""

import math
from pathlib import Path

import numpy as np
from numba.core import types
from numba.extending import overload, register_jitable

from qtutor.compiling import cache_folder, compiled
from qtutor.runtime.kernels import instructions, tiles
from qtutor.runtime.kernels.instructions import wide

f4, i4, u2 = np.float32, np.int32, np.uint16

_CACHE = cache_folder("steps", map(Path, (__file__, instructions.__file__, tiles.__file__)))


def jit(function):
    """Compile ``function`` when it is first called, and keep the result on disk."""
    return compiled(function, _CACHE, fastmath={"contract", "reassoc"})


@register_jitable(inline="always")
def cut(value, half):
    """A float32 as it is or, if ``half`` is set, rounded to bfloat16: to the nearest, and halves to even."""
    if not half:
        return value
    bits = f4(value).view(i4)
    # A bfloat16 is the upper half of a float32. Half of its last bit is 0x8000; if that bit is 0, one less is added.
    return i4(i4(bits + i4(0x7FFF) + i4((bits >> i4(16)) & i4(1))) & i4(-0x10000)).view(f4)


def load(stored):
    """A number of the cache as float32; it is stored as float32, or as bfloat16, whose bits are given as uint16."""


@overload(load, inline="always")
def _load(stored):
    if stored == types.float32:
        return lambda stored: stored
    return lambda stored: i4(i4(stored) << i4(16)).view(f4)


def store(row, i, value):
    """Write a float32 to place ``i`` of a row of the cache; for bfloat16 it is rounded already."""


@overload(store, inline="always")
def _store(row, i, value):
    if row.dtype == types.float32:
        return _store_float
    return _store_half


def _store_float(row, i, value):
    row[i] = value


def _store_half(row, i, value):
    row[i] = u2((f4(value).view(i4) >> i4(16)) & i4(0xFFFF))


@jit
def normed(x, weight, eps, half, out):
    """The RMS norm of every row: ``weight * x / sqrt(mean(x^2) + eps)``. x, out: float32 ``[rows, columns]``."""
    wide()
    rows, columns = x.shape
    for r in range(rows):
        total = f4(0)
        for i in range(columns):
            total += x[r, i] * x[r, i]
        inverse = f4(1) / f4(math.sqrt(total / f4(columns) + f4(eps)))
        for i in range(columns):
            out[r, i] = cut(weight[i] * cut(x[r, i] * inverse, half), half)


@jit
def finished(y, bias, half):
    """A product as its layer returns it: rounded, and with its bias, which may be empty. y: float32 ``[out]``."""
    wide()
    for i in range(len(y)):
        y[i] = cut(y[i], half)
    for i in range(len(bias)):
        y[i] = cut(y[i] + bias[i], half)


@jit
def joined(stream, y, multiplier, half):
    """Add ``y * multiplier`` to the residual stream, in place. Both: float32 ``[hidden]``."""
    wide()
    for i in range(len(stream)):
        stream[i] = cut(stream[i] + cut(y[i] * f4(multiplier), half), half)


@jit
def gated(gate, up, half, out):
    """``silu(gate) * up``, all of them float32 ``[intermediate]``."""
    wide()
    for i in range(len(out)):
        out[i] = cut(cut(gate[i] / (f4(1) + f4(math.exp(-gate[i]))), half) * up[i], half)


@register_jitable
def rotated_by_half(x, cos, sin, half, out):
    """Rotate a head by its position: the two halves of x ``[dim]`` are the coordinates of points in planes."""
    middle = len(x) // 2
    for i in range(middle):
        a, b = x[i], x[middle + i]
        out[i] = cut(cut(a * cos[i], half) - cut(b * sin[i], half), half)
        out[middle + i] = cut(cut(b * cos[middle + i], half) + cut(a * sin[middle + i], half), half)


@jit
def attended(q, k, v, cos, sin, scaling, keys, values, place, half, out, first, last):
    """Store the new token's keys and values at ``place``, and attend to all tokens up to it.

    q, out: float32 ``[heads, dim]``; k, v: ``[kv heads, dim]``, of which this call computes ``first ... last - 1``.
    cos, sin: float32 ``[dim]``, or empty for a block without rope. keys, values: ``[kv heads, room, dim]``, in a dtype
    that `load` reads.
    """
    wide()
    dim, share = q.shape[1], len(q) // len(k)
    head, scores = np.empty(dim, f4), np.empty(place + 1, f4)
    for h in range(first, last):
        head[:] = k[h]
        if len(cos):
            rotated_by_half(k[h], cos, sin, half, head)
        for i in range(dim):
            store(keys[h, place], i, head[i])
            store(values[h, place], i, v[h, i])
        for j in range(h * share, (h + 1) * share):
            head[:] = q[j]
            if len(cos):
                rotated_by_half(q[j], cos, sin, half, head)
            largest = f4(-np.inf)
            for t in range(place + 1):
                score = f4(0)
                for i in range(dim):
                    score += head[i] * load(keys[h, t, i])
                scores[t] = score * f4(scaling)
                largest = max(largest, scores[t])
            total, added = f4(0), out[j]
            added[:] = 0
            for t in range(place + 1):
                weight = f4(math.exp(scores[t] - largest))  # at most 1, and 1 at the largest
                total += weight
                for i in range(dim):
                    added[i] += weight * load(values[h, t, i])
            for i in range(dim):
                added[i] = cut(added[i] / total, half)
