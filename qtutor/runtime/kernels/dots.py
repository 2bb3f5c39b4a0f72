"""Codes of 4 bits times int8, by instructions that LLVM does not find by itself: on x86, and on ARM.

On x86, PMADDUBSW multiplies bytes by bytes and adds pairs, 64 products in one instruction of 512 bits, and PMADDWD adds
the pairs. A sum of two products is at most 2 * 15 * 127 = 3810. So eight of these sums, from :data:`RUN` words of a
row, fit into 16 bits; then they are widened to 32 bits. Newer CPUs have VPDPBUSD, which multiplies and adds four
products in 32 bits at once.

On ARM, the counterpart is NEON's SDOT: 16 products, added up in fours in 32 bits. It is untested: no ARM CPU has run
it. LLVM compiles it for ARM, and with SDOT written out, the results are right on x86
(``tests/runtime/kernels/test_dots.py``).
"""

from collections.abc import Iterator

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from qtutor.runtime.kernels.instructions import AHEAD, LINE, at, constant, data, has, named, prefetch
from qtutor.runtime.kernels.tiles import ROWS

RUN = 4  # words of a row whose products are added in 16 bits
_NAMES = {256: ("avx2.pmadd.ub.sw", "avx2.pmadd.wd"), 512: ("avx512.pmaddubs.w.512", "avx512.pmaddw.d.512")}


def width() -> int:
    """The bits of the vectors of bytes that one instruction of this CPU multiplies, or 0; numba compiles for it."""
    return 512 if has("avx512bw") else 256 if has("avx2") else 128 if has("dotprod") else 0


def adds_by_fours(bits: int) -> bool:
    """Whether the CPU has VPDPBUSD for vectors of this many ``bits``."""
    if bits == 512:
        return has("avx512vnni")
    return has("avxvnni") or (has("avx512vnni") and has("avx512vl"))


def add_products(builder, words, x, acc, count: int, bits: int) -> None:
    """Write LLVM's code that adds the products of ``count`` words of every row to ``acc``.

    words: a pointer to int32 ``[count, ROWS]``. x: to int8 ``[count, 8]``. acc: to int32 ``[ROWS]``. bits: of a vector,
    512 or 256 for x86 and 128 for ARM.
    """
    whole, byte = _vector(32, bits), _vector(8, bits)

    def inputs(half: int):
        """Four inputs, the same for every row."""
        four = builder.load(at(builder, x, 4 * half, ir.IntType(32)), align=1)
        first = builder.insert_element(ir.Constant(whole, ir.Undefined), four, constant(0, 32))
        same = builder.shuffle_vector(first, ir.Constant(whole, ir.Undefined), _every_lane(0, whole))
        return builder.bitcast(same, byte)

    every_x = [inputs(half) for half in range(2 * count)]

    def factors(first: int) -> Iterator[tuple]:
        """The codes of some rows, and the inputs by which they are multiplied."""
        for k in range(count):
            word = builder.load(at(builder, words, 4 * (k * ROWS + first), whole), align=4)
            if 4 * first % LINE == 0:
                prefetch(builder, at(builder, words, 4 * (k * ROWS + first) + AHEAD, ir.IntType(8)))
            for half, moved in enumerate((word, builder.lshr(word, _every_lane(4, whole)))):
                codes = builder.bitcast(builder.and_(moved, _every_lane(0x0F0F0F0F, whole)), byte)
                yield codes, every_x[2 * k + half]

    add = _by_sdot if bits == 128 else _by_vpdpbusd if adds_by_fours(bits) else _by_pmadd
    for first in range(0, ROWS, bits // 32):
        added = add(builder, factors(first), bits)
        place = at(builder, acc, 4 * first, whole)
        builder.store(builder.add(builder.load(place, align=4), added), place, align=4)


def _by_pmadd(builder, factors: Iterator[tuple], bits: int):
    """The sums of products as int32, one for each lane, on x86; for at most :data:`RUN` words."""
    whole, short, byte = (_vector(of, bits) for of in (32, 16, 8))
    multiply = named(builder, f"llvm.x86.{_NAMES[bits][0]}", short, [byte, byte])
    widen = named(builder, f"llvm.x86.{_NAMES[bits][1]}", whole, [short, short])
    total = _every_lane(0, short)
    for codes, inputs in factors:
        total = builder.add(total, builder.call(multiply, [codes, inputs]))
    return builder.call(widen, [total, _every_lane(1, short)])


def _by_vpdpbusd(builder, factors: Iterator[tuple], bits: int):
    """The same if the CPU adds in fours. LLVM takes the bytes as vectors of 32 bits; newer versions also as bytes."""
    whole = _vector(32, bits)
    dot = named(builder, f"llvm.x86.avx512.vpdpbusd.{bits}", whole, [whole] * 3)
    total = _every_lane(0, whole)
    for codes, inputs in factors:
        total = builder.call(dot, [total, *(builder.bitcast(part, whole) for part in (codes, inputs))])
    return total


def _by_sdot(builder, factors: Iterator[tuple], bits: int):
    """The same on ARM: codes are below 16, so it does not matter that they count as signed."""
    whole, byte = _vector(32, 128), _vector(8, 128)
    dot = named(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", whole, [whole, byte, byte])
    total = _every_lane(0, whole)
    for codes, inputs in factors:
        total = builder.call(dot, [total, codes, inputs])
    return total


def _vector(of: int, bits: int) -> ir.VectorType:
    """A vector of ``bits`` bits, made of whole numbers of ``of`` bits."""
    return ir.VectorType(ir.IntType(of), bits // of)


def _every_lane(value: int, vector: ir.VectorType) -> ir.Constant:
    return ir.Constant(vector, [value] * vector.count)


def _instructions(count: int):
    """The code of :func:`.rounded_loops.products` for ``count`` words, for an intrinsic of numba."""

    def generate(context, builder, signature, arguments):
        words, x, start, acc = data(context, builder, signature, arguments)
        words = builder.gep(words, [builder.mul(start, ir.Constant(start.type, ROWS))])
        x = builder.gep(x, [builder.mul(start, ir.Constant(start.type, 8))])
        add_products(builder, words, x, acc, count, width())
        return context.get_dummy_value()

    return generate


@intrinsic
def run_of_words(context, words, x, first, acc):
    """:func:`.rounded_loops.products` for :data:`RUN` words."""
    return types.void(words, x, first, acc), _instructions(RUN)


@intrinsic
def one_word(context, words, x, first, acc):
    """:func:`.rounded_loops.products` for one word."""
    return types.void(words, x, first, acc), _instructions(1)
