"""The loops of :mod:`.rounded`, compiled by numba: products of codes with inputs that are rounded to int8.

A word of 32 bits holds eight codes of 4 bits. One mask takes those of the even columns as four bytes, and the same mask
after a shift those of the odd ones. PMADDUBSW multiplies bytes by bytes and adds pairs, 64 products in one instruction
of 512 bits, and PMADDWD adds the pairs. LLVM finds neither by itself, so :func:`products` names them.

A sum of two products is at most 2 * 15 * 127 = 3810. So eight of these sums, the :data:`RUN` words of a row, fit 16
bits; then they move on to 32 bits. All sums are whole numbers, and exact.

CPUs without AVX2 have plain loops, of which LLVM makes what it can.
"""

from pathlib import Path

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload

from qtutor.compiling import cache_folder, compiled
from qtutor.runtime.kernels.instructions import AHEAD, LINE, at, constant, data, has, named, prefetch, wide
from qtutor.runtime.kernels.loops import number
from qtutor.runtime.kernels.tiles import ROWS

f4, i4 = np.float32, np.int32
RUN = 4  # words of a row whose products are added in 16 bits
LARGEST = f4(127)  # the code of a group's largest input; -128 is left out, so that codes are symmetric
LEAST = f4(1e-30)  # groups of smaller inputs count as zeros: 127 / max would overflow
ORDER = 0, 2, 4, 6, 1, 3, 5, 7  # of eight columns, as the masks take them

_FILES = "codes", "instructions", "loops", "rounded_loops", "tiles"
_CACHE = cache_folder("rounded", [Path(__file__).with_name(f"{name}.py") for name in _FILES])


def jit(function):
    """Compile ``function`` when it is first called, and keep the result on disk."""
    return compiled(function, _CACHE)


def width() -> int:
    """The bits of the vectors that are multiplied by an instruction of their own, or 0: numba compiles for this CPU."""
    return 512 if has("avx512bw") else 256 if has("avx2") else 0


@jit
def quantize(x, codes, steps, sums):
    """Round x to whole multiples of a step for each token and group; whether all of x is finite.

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


def _instructions(count: int):
    """The code of :func:`products` for ``count`` words, for an intrinsic of numba."""

    def generate(context, builder, signature, arguments):
        lanes = width() // 32
        whole, short, byte = (ir.VectorType(ir.IntType(b), lanes * 32 // b) for b in (32, 16, 8))
        names = {8: ("avx2.pmadd.ub.sw", "avx2.pmadd.wd"), 16: ("avx512.pmaddubs.w.512", "avx512.pmaddw.d.512")}
        multiply = named(builder, f"llvm.x86.{names[lanes][0]}", short, [byte, byte])
        widen = named(builder, f"llvm.x86.{names[lanes][1]}", whole, [short, short])
        words, x, start, acc = data(context, builder, signature, arguments)
        words = builder.gep(words, [builder.mul(start, ir.Constant(start.type, ROWS))])
        x = builder.gep(x, [builder.mul(start, ir.Constant(start.type, 8))])

        def every_lane(value, vector=whole):
            return ir.Constant(vector, [value] * vector.count)

        def inputs(half: int):
            """Four inputs, the same for every row."""
            four = builder.load(at(builder, x, 4 * half, ir.IntType(32)), align=1)
            first = builder.insert_element(ir.Constant(whole, ir.Undefined), four, constant(0, 32))
            same = builder.shuffle_vector(first, ir.Constant(whole, ir.Undefined), every_lane(0))
            return builder.bitcast(same, byte)

        every_x = [inputs(half) for half in range(2 * count)]
        for first in range(0, ROWS, lanes):
            total = every_lane(0, short)
            for k in range(count):
                word = builder.load(at(builder, words, 4 * (k * ROWS + first), whole), align=4)
                if 4 * first % LINE == 0:
                    prefetch(builder, at(builder, words, 4 * (k * ROWS + first) + AHEAD, ir.IntType(8)))
                for half, moved in enumerate((word, builder.lshr(word, every_lane(4)))):
                    codes = builder.bitcast(builder.and_(moved, every_lane(0x0F0F0F0F)), byte)
                    total = builder.add(total, builder.call(multiply, [codes, every_x[2 * k + half]]))
            place = at(builder, acc, 4 * first, whole)
            added = builder.add(builder.load(place, align=4), builder.call(widen, [total, every_lane(1, short)]))
            builder.store(added, place, align=4)
        return context.get_dummy_value()

    return generate


@intrinsic
def run_of_words(context, words, x, first, acc):
    """:func:`products` for :data:`RUN` words."""
    return types.void(words, x, first, acc), _instructions(RUN)


@intrinsic
def one_word(context, words, x, first, acc):
    """:func:`products` for one word."""
    return types.void(words, x, first, acc), _instructions(1)


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
