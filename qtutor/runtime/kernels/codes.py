"""How the codes in words become numbers, for the compiled loops of :mod:`.loops`.

The type of ``planes`` (:mod:`.tiles`) says how codes are placed in words. So each loop is written once, and numba
compiles it for each type: :func:`row`, :func:`dot` and :func:`decode` have one version for each. The eight terms of a
word are written out: LLVM does not turn a loop over them into vector instructions.

Levels of a codebook are looked up. With AVX-512, one instruction (in :mod:`.instructions`) looks up 16 of them in a
register. Other CPUs read them from memory one by one, which is right, but slow.
"""

import numpy as np
from numba.core import types
from numba.extending import overload, register_jitable

from qtutor.runtime.kernels.instructions import fetch, has, permuted
from qtutor.runtime.kernels.tiles import ROWS

f4, i4, u4 = np.float32, np.int32, np.uint32


def row(planes, tile, k):
    """The words of the columns ``8 k ... 8 k + 7``, one or more per row, as views."""


def dot(words, r, total, x0, x1, x2, x3, x4, x5, x6, x7):
    """``total`` plus the products of row ``r``; codes stay in their places, and x was divided beforehand."""


def decode(words, out):
    """Write codes, or the levels that they stand for, to ``out``, float32 ``[8, ROWS]``."""


def ahead(words):
    """Fetch words that will be read soon: without this, the processor waits for memory between sums."""


@overload(ahead, inline="always")
def _ahead(words):
    if kind_of(words) in ("3 bits", "8 bits"):
        return _fetch_both
    return (lambda words: fetch(words[0])) if isinstance(words, types.BaseTuple) else (lambda words: fetch(words))


def _fetch_both(words):
    fetch(words[0])
    fetch(words[1])


def kind_of(words) -> str:
    """How codes are placed in words of this numba type, that of a whole matrix or of eight of its columns."""
    if isinstance(words, types.BaseTuple):
        if len(words) == 1 or isinstance(words[1], types.Integer):
            return "2 bits"
        return {types.float32: "levels", types.uint8: "3 bits", types.uint32: "8 bits"}[words[1].dtype]
    return {types.int32: "4 bits", types.uint32: "8 bits"}[words.dtype]


@overload(row, inline="always")
def _row(planes, tile, k):
    if kind_of(planes) == "2 bits":  # a word holds the codes of 16 columns
        return lambda planes, tile, k: (planes[0][tile, k >> 1], i4(16 * (k & 1)))
    if kind_of(planes) == "levels":
        return lambda planes, tile, k: (planes[0][tile, k], planes[1])
    if kind_of(planes) == "3 bits":
        return lambda planes, tile, k: (planes[0][tile, k], planes[1][tile, k])
    if kind_of(planes) == "8 bits":
        return lambda planes, tile, k: (planes[tile, 2 * k], planes[tile, 2 * k + 1])
    return lambda planes, tile, k: planes[tile, k]


@overload(dot, inline="always")
def _dot(words, r, total, x0, x1, x2, x3, x4, x5, x6, x7):
    return {"2 bits": _dot2, "3 bits": _dot3, "4 bits": _dot4, "8 bits": _dot8}[kind_of(words)]


def _dot2(words, r, total, x0, x1, x2, x3, x4, x5, x6, x7):
    word = words[0][r]
    if words[1]:  # the codes of the upper half; LLVM moves this condition out of the loop over rows
        total += f4(i4(word & i4(0x00030000))) * x0
        total += f4(i4(word & i4(0x000C0000))) * x1
        total += f4(i4(word & i4(0x00300000))) * x2
        total += f4(i4(word & i4(0x00C00000))) * x3
        total += f4(i4(word & i4(0x03000000))) * x4
        total += f4(i4(word & i4(0x0C000000))) * x5
        total += f4(i4(word & i4(0x30000000))) * x6
        total += f4(i4((word >> i4(30)) & i4(0x3))) * x7  # in its place it would be the sign
    else:
        total += f4(i4(word & i4(0x0003))) * x0
        total += f4(i4(word & i4(0x000C))) * x1
        total += f4(i4(word & i4(0x0030))) * x2
        total += f4(i4(word & i4(0x00C0))) * x3
        total += f4(i4(word & i4(0x0300))) * x4
        total += f4(i4(word & i4(0x0C00))) * x5
        total += f4(i4(word & i4(0x3000))) * x6
        total += f4(i4(word & i4(0xC000))) * x7
    return total


def _dot3(words, r, total, x0, x1, x2, x3, x4, x5, x6, x7):
    word = i4(i4(words[0][r]) | i4(i4(words[1][r]) << i4(16)))
    total += f4(i4(word & i4(0o7))) * x0
    total += f4(i4(word & i4(0o70))) * x1
    total += f4(i4(word & i4(0o700))) * x2
    total += f4(i4(word & i4(0o7000))) * x3
    total += f4(i4(word & i4(0o70000))) * x4
    total += f4(i4(word & i4(0o700000))) * x5
    total += f4(i4(word & i4(0o7000000))) * x6
    total += f4(i4(word & i4(0o70000000))) * x7
    return total


def _dot4(words, r, total, x0, x1, x2, x3, x4, x5, x6, x7):
    word = words[r]
    total += f4(i4(word & i4(0x0000000F))) * x0
    total += f4(i4(word & i4(0x000000F0))) * x1
    total += f4(i4(word & i4(0x00000F00))) * x2
    total += f4(i4(word & i4(0x0000F000))) * x3
    total += f4(i4(word & i4(0x000F0000))) * x4
    total += f4(i4(word & i4(0x00F00000))) * x5
    total += f4(i4(word & i4(0x0F000000))) * x6
    total += f4(i4((word >> i4(28)) & i4(0xF))) * x7  # in its place it would be the sign
    return total


def _dot8(words, r, total, x0, x1, x2, x3, x4, x5, x6, x7):
    word, other = words[0][r], words[1][r]
    total += f4(i4(word & u4(0x0000FF))) * x0
    total += f4(i4(word & u4(0x00FF00))) * x1
    total += f4(i4(word & u4(0xFF0000))) * x2
    total += f4(i4(word >> u4(24))) * x3  # in its place it would be the sign
    total += f4(i4(other & u4(0x0000FF))) * x4
    total += f4(i4(other & u4(0x00FF00))) * x5
    total += f4(i4(other & u4(0xFF0000))) * x6
    total += f4(i4(other >> u4(24))) * x7
    return total


@overload(decode, inline="always")
def _decode(words, out):
    if kind_of(words) == "levels":
        return _decode_levels_512 if has("avx512f") else _decode_levels
    return {"2 bits": _decode2, "3 bits": _decode3, "4 bits": _decode4, "8 bits": _decode8}[kind_of(words)]


@register_jitable(inline="always")
def _spread(word, bits, r, out):
    mask = i4((1 << bits) - 1)
    out[0, r] = f4(i4(word & mask))
    out[1, r] = f4(i4((word >> i4(bits)) & mask))
    out[2, r] = f4(i4((word >> i4(2 * bits)) & mask))
    out[3, r] = f4(i4((word >> i4(3 * bits)) & mask))
    out[4, r] = f4(i4((word >> i4(4 * bits)) & mask))
    out[5, r] = f4(i4((word >> i4(5 * bits)) & mask))
    out[6, r] = f4(i4((word >> i4(6 * bits)) & mask))
    out[7, r] = f4(i4((word >> i4(7 * bits)) & mask))


def _decode2(words, out):
    for r in range(ROWS):
        _spread(i4(words[0][r] >> words[1]), 2, r, out)


def _decode3(words, out):
    for r in range(ROWS):
        _spread(i4(i4(words[0][r]) | i4(i4(words[1][r]) << i4(16))), 3, r, out)


def _decode4(words, out):
    for r in range(ROWS):
        _spread(words[r], 4, r, out)


def _decode8(words, out):
    for j in range(2):
        for r in range(ROWS):
            word = words[j][r]
            out[4 * j, r] = f4(i4(word & u4(0xFF)))
            out[4 * j + 1, r] = f4(i4((word >> u4(8)) & u4(0xFF)))
            out[4 * j + 2, r] = f4(i4((word >> u4(16)) & u4(0xFF)))
            out[4 * j + 3, r] = f4(i4(word >> u4(24)))


def _decode_levels(words, out):
    for r in range(ROWS):
        for i in range(8):
            out[i, r] = words[1][(words[0][r] >> i4(4 * i)) & i4(0xF)]


def _decode_levels_512(words, out):
    permuted(words[0], words[1], out)
