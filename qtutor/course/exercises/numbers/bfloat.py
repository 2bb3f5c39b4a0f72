"""``numbers.to_bfloat16``: round a float32 tensor to the nearest values of bf16, ties to even."""

import math
import struct

import torch

from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise


def _bits(value: float) -> int:
    return struct.unpack("<I", struct.pack("<f", value))[0]


def _float(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits & 0xFFFFFFFF))[0]


def _nearest(values: torch.Tensor) -> list[float]:
    """Try both neighbours of every value, and take the nearer one; in a tie, the one whose last bit is 0."""
    result = []
    for value in values.tolist():
        below = _bits(value) >> 16 << 16  # the neighbour towards zero
        above = below + 0x10000
        # 2**128 follows the largest finite value, and stands for infinity.
        sizes = [2.0**128 if (bits & 0x7FFFFFFF) == 0x7F800000 else abs(_float(bits)) for bits in (below, above)]
        if math.isinf(value) or abs(value) == sizes[0]:
            chosen = below
        elif sizes[1] - abs(value) == abs(value) - sizes[0]:
            chosen = above if below >> 16 & 1 else below
        else:
            chosen = above if sizes[1] - abs(value) < abs(value) - sizes[0] else below
        result.append(_float(chosen))
    return result


def _bfloat_cases() -> list[tuple[str, tuple]]:
    step = 2.0**-7  # between 1 and 2
    tie = step / 2
    near = 2.0**-23
    cases = {
        "numbers that bf16 can represent": [1.0, -2.5, 0.15625, 0.0, -0.0],
        "ordinary numbers": [3.14159, -0.1, 1 / 3, 70000.0, -1e-3],
        "numbers just under and just over the middle of two neighbours": [
            1 + tie - near,
            1 + tie + near,
            -1 - tie - near,
        ],
        "numbers just under the middle, the neighbour below odd": [1 + step + tie - near, -1 - step - tie + near],
        "ties: exactly in the middle, the even neighbour below": [1 + tie, -1 - tie, 257.0],
        "ties: exactly in the middle, the even neighbour above": [1 + step + tie, -1 - step - tie, 259.0],
        "numbers that round up to the next power of two": [1.999, -0.49999, 255.9],
        "subnormal numbers of float32": [1e-39, -3e-40, 9.2e-41],
        "numbers beyond the largest of bf16, and infinity": [3.4e38, -3.4e38, math.inf, 3.39e38],
    }
    return [(kind, (torch.tensor(values, dtype=torch.float32),)) for kind, values in cases.items()]


@solution
def right(values):
    bits = values.view(torch.int32)
    bits = bits + 0x7FFF + (bits >> 16 & 1)
    return (bits >> 16 << 16).view(torch.float32)


ADDED, VIEWED = "0x7FFF + (bits >> 16 & 1)", "(bits >> 16 << 16).view(torch.float32)"


def in_steps(change):
    """A mistake that rounds values to multiples of 2**-7 times their power of 2; the right solution rounds bits."""

    def rounded(values):
        exact = values.double()
        step = 2.0 ** (torch.frexp(exact).exponent.clamp(min=-125) - 8).double()
        return torch.where(exact.isfinite(), change(exact / step) * step, exact).float()

    return rounded


MISTAKES = {
    ".to(torch.int32) and .int() convert the numbers to whole numbers, so 3.14 becomes 3. To read the same bits as a "
    "whole number, use .view(torch.int32).": right.edit("view(torch.int32)", "to(torch.int32)"),
    ".int() converts the numbers to whole numbers, so 3.14 becomes 3, and .float() converts them back. To read the "
    "same bits, use .view(torch.int32) and .view(torch.float32).": right.edit(
        ("view(torch.int32)", "int()"), ("view(torch.float32)", "float()")
    ),
    "you added 0x8000, and 1 more if the last kept bit is 1. This rounds up numbers just under the middle: add 0x7FFF, "
    "and 1 more if that bit is 1.": right.edit("0x7FFF", "0x8000"),
    "these are the kept bits, as whole numbers. Shift them up again (<< 16), and read them as a float32, "
    ".view(torch.float32).": right.edit(VIEWED, "bits >> 16"),
    "these are the kept bits, as whole numbers without a sign. Shift them up again (<< 16), and read them as a "
    "float32, .view(torch.float32).": right.edit(VIEWED, "bits >> 16 & 0xFFFF"),
    "you kept the lower half of the bits. bf16 is the upper half, with sign and exponent.": (
        right.edit((VIEWED, "(bits & 0xFFFF).view(torch.float32)"), (f" + {ADDED}", ""))
    ),
    "the carry is lost if all kept mantissa bits are 1: such numbers round up to the next power of two, which changes "
    "the exponent. Add to all of the bits, as one whole number.": right.edit(
        f"bits + {ADDED}", f"torch.where(bits >> 16 & 127 == 127, bits, bits + {ADDED})"
    ),
    "the carry out of the mantissa is lost: if all its bits are 1, rounding up makes them 0 and the exponent one "
    "larger. Add to all of the bits, as one whole number.": right.edit(
        f"bits + {ADDED}", f"(bits >> 23 << 23) + (bits + {ADDED} & 0x7FFFFF)"
    ),
    "numbers beyond the largest one of bf16 were clamped to it. Rounded to the nearest, they become infinity.": (
        right.edit(VIEWED, f"{VIEWED}.clamp(-3.3895314e38, 3.3895314e38)")
    ),
    "subnormal numbers (below 2**-126) become 0. bf16 has them, too, because it has the exponent of float32.": (
        right.edit(VIEWED, f"{VIEWED} * (values.abs() >= 2.0**-126)")
    ),
    "you rounded with the same step everywhere. The steps of a float grow with its exponent: round its bits.": (
        lambda values: (values * 128).round() / 128
    ),
    "everything is rounded down, towards minus infinity, not to the nearest.": in_steps(torch.floor),
    "everything is rounded up, towards infinity, not to the nearest.": in_steps(torch.ceil),
    "ties are rounded up, towards infinity. A number in the middle goes to the neighbour whose last bit is 0.": (
        in_steps(lambda steps: (steps + 0.5).floor())
    ),
    "nothing was rounded: these are the original numbers.": right.edit(VIEWED, "values"),
    "10 mantissa bits are kept (13 are cut off); bf16 has 7.": right.edit(
        ("0x7FFF", "0xFFF"), (">> 16 & 1", ">> 13 & 1"), (">> 16 << 16", ">> 13 << 13")
    ),
    "this went through fp16 first, which has only 5 exponent bits; bf16 has 8.": (
        lambda values: values.half().bfloat16()
    ),
    "the low 16 bits are cut off, which rounds everything towards zero. Round to the nearest: the part that was cut "
    "off may be more than half a step.": right.edit(" + 0x7FFF + (bits >> 16 & 1)", ""),
    "ties are rounded away from zero (0x8000 is added before the cut). A number exactly in the middle goes to the "
    "neighbour whose last bit is 0.": right.edit(ADDED, "0x8000"),
    "ties are always rounded towards zero (0x7FFF is added). They go to the neighbour whose last bit is 0: add 1 more "
    "if the last kept bit is 1.": right.edit(" + (bits >> 16 & 1)", ""),
    "ties go to the odd neighbour: add 1 more if the last kept bit is 1, not if it is 0.": (
        right.edit("(bits >> 16 & 1)", "(~bits >> 16 & 1)")
    ),
    "everything that was cut off is rounded up, away from zero, not to the nearest.": right.edit(ADDED, "0xFFFF"),
    "one mantissa bit too few: bf16 stores 7, and the hidden 1 is not one of them.": (
        right.edit(("0x7FFF", "0xFFFF"), (">> 16 & 1", ">> 17 & 1"), (">> 16 << 16", ">> 17 << 17"))
    ),
    "one mantissa bit too many: bf16 stores 7, in addition to the hidden 1.": (
        right.edit(("0x7FFF", "0x3FFF"), (">> 16 & 1", ">> 15 & 1"), (">> 16 << 16", ">> 15 << 15"))
    ),
    "these are the bits, read as a whole number: .float() converts the integer's value. To read the same bits as a "
    "float32, use .view(torch.float32).": right.edit("view(torch.float32)", "float()"),
    "the kept bits are at the wrong end: you shifted them down by 16, so shift them up again (<< 16) before you read "
    "them as a float32.": right.edit(" << 16", ""),
    "this is fp16, which has 5 exponent bits and 10 mantissa bits; bf16 has 8 and 7.": lambda values: values.half(),
}

TO_BFLOAT16 = Exercise(
    name="numbers.to_bfloat16",
    title="Rounding to bfloat16",
    difficulty=3,
    minutes=15,
    reference=_nearest,
    cases=_bfloat_cases,
    outputs=("rounded",),
    mistakes=MISTAKES,
)
