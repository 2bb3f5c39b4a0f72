"""``numbers.decode_float``: bits as text, two widths -> a number. As in FP4, no exponent is special."""

import math  # noqa: F401 - the mistakes use it

from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise


def _decode(bits: str, exponent_bits: int, mantissa_bits: int) -> float:
    """The value as a sum: every mantissa bit adds half as much as the bit before it."""
    sign, exponent, mantissa = bits[0], bits[1 : 1 + exponent_bits], bits[1 + exponent_bits :]
    power = 1 - (2 ** (exponent_bits - 1) - 1)
    total = 0.0
    if "1" in exponent:
        power += sum(2**i for i, bit in enumerate(reversed(exponent)) if bit == "1") - 1
        total = 2.0**power
    for place, bit in enumerate(mantissa, start=1):
        if bit == "1":
            total += 2.0 ** (power - place)
    return -total if sign == "1" else total


def _decode_cases() -> list[tuple[str, tuple]]:
    return [
        ("0.15625 in fp32", ("00111110001000000000000000000000", 8, 23)),
        ("the number one in the format of FP4", ("0010", 2, 1)),
        ("a mantissa that is not symmetric", ("00111110", 4, 3)),
        ("a negative number", ("11000101", 5, 2)),
        ("the largest exponent, an ordinary one here", ("0111", 2, 1)),
        ("a subnormal number: E is 0", ("00000011", 4, 3)),
        ("a negative subnormal number", ("1001", 2, 1)),
        ("zero", ("00000000", 4, 3)),
        ("the smallest normal number", ("00001000", 4, 3)),
        ("no mantissa bits at all", ("0101", 3, 0)),
        ("a negative number without mantissa bits", ("11000", 4, 0)),
        ("all bits 1 except the sign, an ordinary number here", ("01111111", 4, 3)),
        ("the largest exponent and a mantissa of 0", ("0110", 2, 1)),
        ("a format that the course does not use: six exponent bits, five mantissa bits", ("101011010110", 6, 5)),
    ]


@solution
def right(bits, exponent_bits, mantissa_bits):
    exponent = int(bits[1 : 1 + exponent_bits], 2)
    fraction = int(bits[1 + exponent_bits :] or "0", 2) / 2**mantissa_bits
    bias = 2 ** (exponent_bits - 1) - 1
    if exponent > 0:
        value = (1 + fraction) * 2.0 ** (exponent - bias)
    else:
        value = fraction * 2.0 ** (1 - bias)
    return -value if bits[0] == "1" else value


EXPONENT, MANTISSA = "bits[1 : 1 + exponent_bits]", "bits[1 + exponent_bits :]"
BIAS = "2 ** (exponent_bits - 1) - 1"
FIRST = "exponent = int"


def at_largest(value: str, also: str = "True"):
    """The mistake of giving the largest exponent a special meaning if ``also`` holds."""
    special = f"if exponent == 2**exponent_bits - 1 and {also}:\n        value = {value}\n    elif exponent > 0:"
    return right.edit("if exponent > 0:", special)


MISTAKES = {
    'without mantissa bits, the text of the mantissa is empty, and int() fails. Use 0 then, as in int(text or "0", '
    "2).": right.edit(' or "0"', ""),
    "127 is the bias of 8 exponent bits; in general, the bias is 2**(exponent_bits - 1) - 1.": (
        right.edit(BIAS, "127")
    ),
    "the bias is about twice too large: it is 2**(exponent_bits - 1) - 1, not 2**exponent_bits - 1.": (
        right.edit(BIAS, "2**exponent_bits - 1")
    ),
    "the bias is one too small: it is 2**(exponent_bits - 1) - 1.": right.edit(BIAS, "2 ** (exponent_bits - 1) - 2"),
    "the bias is added to the exponent. It is subtracted: E - bias.": right.edit(BIAS, "1 - 2 ** (exponent_bits - 1)"),
    "the mantissa is divided by 2**(mantissa_bits - 1), so that its first bit is worth 1. It is worth a half: divide "
    "by 2**mantissa_bits.": right.edit("2**mantissa_bits", "2.0 ** (mantissa_bits - 1)"),
    "the mantissa is divided by 2**(mantissa_bits + 1). Its first bit is worth a half: divide by 2**mantissa_bits.": (
        right.edit("2**mantissa_bits", "2 ** (mantissa_bits + 1)")
    ),
    "the mantissa is never divided: the fraction is the mantissa's whole number / 2**mantissa_bits.": (
        right.edit(" / 2**mantissa_bits", "")
    ),
    "the hidden 1 is added to the mantissa's whole number. Divide that number by 2**mantissa_bits first, then add 1.": (
        right.edit("(1 + fraction)", "(1 / 2**mantissa_bits + fraction)")
    ),
    "the value is 2**mantissa_bits times too large: neither the mantissa nor the 1 in front of it was divided.": (
        right.edit(
            ("(1 + fraction) *", "2**mantissa_bits * (1 + fraction) *"),
            ("value = fraction", "value = 2**mantissa_bits * fraction"),
        )
    ),
    "the power of two multiplies only the fraction: put brackets around 1 + fraction.": (
        right.edit("(1 + fraction) *", "1 + fraction *")
    ),
    "you read the largest exponent as infinity or nan, as in IEEE 754. In this exercise, it is an ordinary exponent.": (
        at_largest("math.nan if fraction else math.inf")
    ),
    "you read the largest exponent as infinity. In this exercise, it is an ordinary exponent.": at_largest("math.inf"),
    "you read the largest exponent as nan. In this exercise, it is an ordinary exponent.": at_largest("math.nan"),
    "you read all ones as nan. In this exercise, they are an ordinary number, the largest.": (
        at_largest("math.nan", "fraction == 1 - 0.5**mantissa_bits")
    ),
    "you read the mantissa before the exponent. The order is sign, exponent, mantissa.": right.edit(
        (EXPONENT, "bits[1 + mantissa_bits :]"), (MANTISSA, "bits[1 : 1 + mantissa_bits]")
    ),
    "the bits are read from the last bit to the first. The sign is the first.": (
        right.edit(FIRST, "bits = bits[::-1]; exponent = int")
    ),
    "the sign is taken from the last bit. It is the first.": (
        right.edit(FIRST, "bits = bits[-1] + bits[:-1]; exponent = int")
    ),
    "you counted the sign bit as part of the exponent, so everything is cut one place too early: E is bits[1 : 1 + "
    "exponent_bits].": right.edit((EXPONENT, "bits[:exponent_bits]"), (MANTISSA, "bits[exponent_bits:]")),
    "the bits of the exponent are read from the wrong end: the first is worth most.": (
        right.edit(EXPONENT, "bits[1 : 1 + exponent_bits][::-1]")
    ),
    "the exponent is read as a decimal number: int(text, 2) reads a binary one.": (
        right.edit(f"int({EXPONENT}, 2)", f"int({EXPONENT})")
    ),
    "the mantissa is read as a decimal number: int(text, 2) reads a binary one.": right.edit(' or "0", 2', ' or "0"'),
    "exponent and mantissa are read as decimal numbers: int(text, 2) reads a binary one.": (
        right.edit((f"int({EXPONENT}, 2)", f"int({EXPONENT})"), (' or "0", 2', ' or "0"'))
    ),
    "the sign is reversed: a number is negative if the sign bit is 1.": right.edit('== "1"', '== "0"'),
    "subnormal numbers (E = 0) are flushed to zero. Their value is fraction * 2.0 ** (1 - bias).": (
        right.edit("fraction * 2.0 ** (1 - bias)", "0.0")
    ),
    "only zero itself is a special case here. All numbers with E = 0 have no hidden 1, and the exponent 1 - bias.": (
        right.edit("exponent > 0", "exponent > 0 or fraction > 0")
    ),
    "the sign bit is ignored: if it is 1, the number is negative.": right.edit('-value if bits[0] == "1" else ', ""),
    "the bias is one too large: it is 2**(exponent_bits - 1) - 1.": right.edit("- 1) - 1", "- 1)"),
    "the bias is not subtracted from the exponent.": right.edit(BIAS, "0"),
    "the hidden 1 in front of the mantissa is missing: if E > 0, the number is 1.M times a power of two.": (
        right.edit("1 + fraction", "fraction")
    ),
    "subnormal numbers (E = 0) have no hidden 1; here they were treated like all others.": (
        right.edit("exponent > 0", "True")
    ),
    "subnormal numbers (E = 0) have no hidden 1; their exponent is right.": (
        right.edit("value = fraction", "value = (1 + fraction)")
    ),
    "subnormal numbers (E = 0) have the exponent of E = 1, that is 1 - bias, not 0 - bias.": (
        right.edit("1 - bias", "0 - bias")
    ),
    "the mantissa bits are read from the wrong end: the first is worth a half.": (
        right.edit(MANTISSA, "bits[:exponent_bits:-1]")
    ),
    "the mantissa is divided by 2**mantissa_bits - 1; a mantissa of all ones is not yet the next power of two, so "
    "divide by 2**mantissa_bits.": right.edit("2**mantissa_bits", "(2**mantissa_bits - 1)"),
}

DECODE_FLOAT = Exercise(
    name="numbers.decode_float",
    title="From bits to a number",
    difficulty=2,
    minutes=10,
    reference=_decode,
    cases=_decode_cases,
    outputs=("value",),
    mistakes=MISTAKES,
)
