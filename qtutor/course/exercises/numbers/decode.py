"""``numbers.decode_float``: bits as text, two widths -> a number. Every exponent is an ordinary one, as in FP4."""

from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise


def _decode(bits: str, exponent_bits: int, mantissa_bits: int) -> float:
    """The value as a sum: every mantissa bit adds half of what the one before it adds."""
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
        ("one in the format of FP4", ("0010", 2, 1)),
        ("a mantissa that is not symmetric", ("00111110", 4, 3)),
        ("a negative number", ("11000101", 5, 2)),
        ("the largest exponent, an ordinary one here", ("0111", 2, 1)),
        ("a subnormal number: E is 0", ("00000011", 4, 3)),
        ("a negative subnormal number", ("1001", 2, 1)),
        ("zero", ("00000000", 4, 3)),
        ("the smallest normal number", ("00001000", 4, 3)),
        ("a format of no course: six exponent bits, five of mantissa", ("101011010110", 6, 5)),
    ]


@solution
def right(bits, exponent_bits, mantissa_bits):
    exponent = int(bits[1 : 1 + exponent_bits], 2)
    fraction = int(bits[1 + exponent_bits :], 2) / 2**mantissa_bits
    bias = 2 ** (exponent_bits - 1) - 1
    if exponent > 0:
        value = (1 + fraction) * 2.0 ** (exponent - bias)
    else:
        value = fraction * 2.0 ** (1 - bias)
    return -value if bits[0] == "1" else value


MISTAKES = {
    "the sign bit is ignored: where it is 1 the number is negative.": right.edit('-value if bits[0] == "1" else ', ""),
    "the bias is one too large: it is 2**(exponent_bits - 1) - 1.": right.edit("- 1) - 1", "- 1)"),
    "the bias is not subtracted from the exponent.": right.edit("2 ** (exponent_bits - 1) - 1", "0"),
    "the hidden 1 in front of the mantissa is missing: where E > 0 the number is 1.M times a power of two.": (
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
        right.edit("bits[1 + exponent_bits :]", "bits[:exponent_bits:-1]")
    ),
    "the mantissa is divided by 2**mantissa_bits - 1; M = all ones is not yet the next power of two, so divide by "
    "2**mantissa_bits.": right.edit("2**mantissa_bits", "(2**mantissa_bits - 1)"),
}

DECODE_FLOAT = Exercise(
    name="numbers.decode_float",
    chapter="01_numbers",
    title="From bits to a number",
    difficulty=2,
    minutes=10,
    reference=_decode,
    cases=_decode_cases,
    outputs=("value",),
    mistakes=MISTAKES,
)
