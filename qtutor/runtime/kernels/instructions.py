"""Instructions that LLVM does not find by itself, for the compiled loops: wide vectors, prefetching, looking up.

An *intrinsic* of numba is a function whose machine code is written by hand, in LLVM's terms.
"""

from llvmlite import ir
from numba.core import types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from qtutor.runtime.kernels.tiles import ROWS

AHEAD = 2048  # bytes from the words read to the words fetched; processors by themselves look ahead within 4 KB at most
LINE = 64  # bytes of a line of the cache


def has(feature: str) -> bool:
    """Whether numba compiles for a CPU with ``feature``, such as ``"avx512f"``."""
    return f"+{feature}" in cpu_target.target_context.codegen().magic_tuple()[2].split(",")


def constant(value: int, bits: int = 64) -> ir.Constant:
    """A whole number of ``bits`` bits."""
    return ir.Constant(ir.IntType(bits), value)


def at(builder, pointer, offset: int, kind):
    """``pointer`` moved by ``offset`` bytes, as a pointer to ``kind``."""
    start = builder.bitcast(pointer, ir.IntType(8).as_pointer())
    return builder.bitcast(builder.gep(start, [constant(offset)]), kind.as_pointer())


def named(builder, name: str, result, arguments: list):
    """LLVM's function ``name``."""
    found = builder.module.globals.get(name)
    return found or ir.Function(builder.module, ir.FunctionType(result, arguments), name)


def data(context, builder, signature, arguments) -> list:
    """A pointer to the first number of each array among ``arguments``; other arguments stay as they are."""
    return [
        context.make_array(kind)(context, builder, given).data if isinstance(kind, types.Array) else given
        for kind, given in zip(signature.args, arguments)
    ]


def prefetch(builder, pointer) -> None:
    """Fetch the cache line at ``pointer``; if there is no memory at this address, nothing happens."""
    function = named(builder, "llvm.prefetch.p0", ir.VoidType(), [pointer.type, *[ir.IntType(32)] * 3])
    builder.call(function, [pointer, *(constant(value, 32) for value in (0, 3, 1))])  # read, keep, data


@intrinsic
def wide(context):
    """Compile the function around this call with vectors of 512 bits, if the CPU has them.

    Many CPUs have them, but LLVM still prefers 256 bits, because older CPUs lowered their clock for 512 bits.
    """

    def generate(context, builder, signature, arguments):
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')  # this set's own add() knows too few names
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def fetch(context, words):
    """Fetch the words that are :data:`AHEAD` bytes after ``words``, an array ``[ROWS]``."""

    def generate(context, builder, signature, arguments):
        (start,) = data(context, builder, signature, arguments)
        for line in range(0, ROWS * signature.args[0].dtype.bitwidth // 8, LINE):
            prefetch(builder, at(builder, start, AHEAD + line, ir.IntType(8)))
        return context.get_dummy_value()

    return types.void(words), generate


@intrinsic
def permuted(context, words, levels, out):
    """`decode` for 16 levels: int32 ``[ROWS]``, float32 ``[16]``, float32 ``[8, ROWS]``.

    VPERMPS picks 16 numbers out of a register by the lowest four bits of 16 words; the bits above do not matter.
    """

    def generate(context, builder, signature, arguments):
        numbers, whole = ir.VectorType(ir.FloatType(), 16), ir.VectorType(ir.IntType(32), 16)
        words, levels, out = data(context, builder, signature, arguments)
        lookup = named(builder, "llvm.x86.avx512.permvar.sf.512", numbers, [numbers, whole])
        table = builder.load(at(builder, levels, 0, numbers), align=4)
        for first in range(0, ROWS, 16):
            word = builder.load(at(builder, words, 4 * first, whole), align=4)
            for i in range(8):
                shifted = builder.lshr(word, ir.Constant(whole, [4 * i] * 16))
                found = builder.call(lookup, [table, shifted])
                builder.store(found, at(builder, out, 4 * (i * ROWS + first), numbers), align=4)
        return context.get_dummy_value()

    return types.void(words, levels, out), generate
