"""Products by CPU instructions. Those of x86 run in test_asked.py. NEON's is compiled for ARM, and emulated here."""

import ctypes

import numpy as np
import pytest

pytest.importorskip("numba")
from llvmlite import binding, ir

from qtutor.runtime.kernels.dots import RUN, add_products
from qtutor.runtime.kernels.tiles import ROWS

SDOT = "llvm.aarch64.neon.sdot.v4i32.v16i8"
# SDOT as ARM defines it, in single steps: multiply signed bytes as int32, and add the four products of each lane.
WRITTEN_OUT = """
define <4 x i32> @"sdot"(<4 x i32> %acc, <16 x i8> %a, <16 x i8> %b) {
  %wide_a = sext <16 x i8> %a to <16 x i32>
  %wide_b = sext <16 x i8> %b to <16 x i32>
  %all = mul <16 x i32> %wide_a, %wide_b
  %s0 = shufflevector <16 x i32> %all, <16 x i32> %all, <4 x i32> <i32 0, i32 4, i32 8, i32 12>
  %s1 = shufflevector <16 x i32> %all, <16 x i32> %all, <4 x i32> <i32 1, i32 5, i32 9, i32 13>
  %s2 = shufflevector <16 x i32> %all, <16 x i32> %all, <4 x i32> <i32 2, i32 6, i32 10, i32 14>
  %s3 = shufflevector <16 x i32> %all, <16 x i32> %all, <4 x i32> <i32 3, i32 7, i32 11, i32 15>
  %s4 = add <4 x i32> %s0, %s1
  %s5 = add <4 x i32> %s2, %s3
  %s6 = add <4 x i32> %s4, %s5
  %sum = add <4 x i32> %acc, %s6
  ret <4 x i32> %sum
}
"""


def neon(count: int) -> str:
    """LLVM code for ARM of a function ``add(words, x, acc)``."""
    module = ir.Module()
    pointers = [ir.IntType(bits).as_pointer() for bits in (32, 8, 32)]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), pointers), "add")
    builder = ir.IRBuilder(function.append_basic_block())
    add_products(builder, *function.args, count, 128)
    builder.ret_void()
    return str(module)


@pytest.mark.parametrize("count", [1, RUN])
def test_neons_twin_compiles_for_arm(count):
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    try:
        target = binding.Target.from_triple("aarch64-linux-gnu")
    except RuntimeError as error:
        pytest.skip(f"this LLVM does not compile for ARM: {error}")
    machine = target.create_target_machine(cpu="generic", features="+neon,+dotprod", opt=3)
    text = machine.emit_assembly(binding.parse_assembly(neon(count)))
    assert text.count("sdot") == 2 * count * ROWS // 4  # two for the eight codes of a word, each for four rows


@pytest.mark.parametrize("count", [1, RUN])
def test_neons_twin_is_right_if_sdot_is(count):
    """On this CPU, SDOT runs in single steps. Masks, shifts and places are those for ARM."""
    lines = [line for line in neon(count).splitlines() if not (line.startswith("declare") and SDOT in line)]
    module = binding.parse_assembly("\n".join(lines).replace(SDOT, "sdot") + WRITTEN_OUT)
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    engine = binding.create_mcjit_compiler(module, binding.Target.from_default_triple().create_target_machine())
    engine.finalize_object()
    random = np.random.default_rng(0)
    for codes, x in (
        (random.integers(0, 16, (count, ROWS, 8)), random.integers(-127, 128, (count, 8))),
        (np.full((count, ROWS, 8), 15), np.full((count, 8), -127)),
    ):
        words = (codes.astype(np.uint32) << np.arange(0, 32, 4, dtype=np.uint32)).sum(2, dtype=np.uint32)
        inputs = np.ascontiguousarray(x[:, [0, 2, 4, 6, 1, 3, 5, 7]], np.int8)  # the order in which masks take columns
        acc = random.integers(-9999, 9999, ROWS).astype(np.int32)
        expected = acc + np.einsum("krc,kc->r", codes, x)
        add = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3)(engine.get_function_address("add"))
        add(words.ctypes.data, inputs.ctypes.data, acc.ctypes.data)
        assert (acc == expected).all()
