"""Chapter 01 as learners would write it: more answers, and for each wrong one the message that names its mistake.

The answers are not written like the exercise's own solution. So check cannot recognise a mistake by its text.
"""

import math
import struct

import numpy as np
import torch

from qtutor.course.exercises.edits import solution
from tests.course.answers import assert_last_line, assert_right, each

# --- numbers.decode_float ---


@solution
def by_parts(bits, exponent_bits, mantissa_bits):
    sign = -1 if bits[0] == "1" else 1
    e = int(bits[1 : exponent_bits + 1], 2)
    m = int("0" + bits[exponent_bits + 1 :], 2)
    bias = (1 << (exponent_bits - 1)) - 1
    if e:
        return sign * (2**mantissa_bits + m) * 2.0 ** (e - bias - mantissa_bits)
    return sign * m * 2.0 ** (1 - bias - mantissa_bits)


def bit_after_bit(bits, exponent_bits, mantissa_bits):
    exponent, value = 0, 0.0
    for bit in bits[1 : 1 + exponent_bits]:
        exponent = 2 * exponent + (bit == "1")
    for bit in reversed(bits[1 + exponent_bits :]):
        value = (value + (bit == "1")) / 2
    value += exponent > 0
    value *= 2.0 ** (max(exponent, 1) + 1 - 2 ** (exponent_bits - 1))
    return -value if bits.startswith("1") else value


def by_widening(bits, exponent_bits, mantissa_bits):
    """Put the fields into a float64. They fit, except those of subnormal numbers, which are computed separately."""
    exponent, mantissa = bits[1 : 1 + exponent_bits], bits[1 + exponent_bits :]
    if "1" not in exponent:
        value = sum(2.0**-i for i, bit in enumerate(mantissa, 1) if bit == "1") * 2.0 ** (2 - 2 ** (exponent_bits - 1))
        return value * (1 - 2 * int(bits[0]))
    code = int(bits[0]) << 63 | int(exponent, 2) + 1024 - 2 ** (exponent_bits - 1) << 52
    code |= int(mantissa.ljust(52, "0"), 2)
    return struct.unpack("<d", struct.pack("<Q", code))[0]


NORMAL, SUBNORMAL = (
    "(2**mantissa_bits + m) * 2.0 ** (e - bias - mantissa_bits)",
    "m * 2.0 ** (1 - bias - mantissa_bits)",
)
BIAS, MANTISSA = "(1 << (exponent_bits - 1)) - 1", 'int("0" + bits[exponent_bits + 1 :], 2)'
TOP = "    if e == 2**exponent_bits - 1:\n        return sign * math.inf if m == 0 else math.nan\n    if e:"
FN = "    if e == 2**exponent_bits - 1 and m == 2**mantissa_bits - 1:\n        return math.nan\n    if e:"
WRONG_DECODINGS = [
    (by_parts.edit('"0" + ', ""), "without mantissa bits"),
    (by_parts.edit(BIAS, "127"), "127 is the bias of 8 exponent bits"),
    (by_parts.edit(BIAS, "2**exponent_bits - 1"), "the bias is about twice too large"),
    (by_parts.edit(BIAS, "2 ** (exponent_bits - 1) - 2"), "the bias is one too small"),
    (by_parts.edit(BIAS, "1 - 2 ** (exponent_bits - 1)"), "the bias is added"),
    (
        by_parts.edit(
            ("2**mantissa_bits + m)", "2**mantissa_bits + 2 * m)"),
            (SUBNORMAL, f"2 * {SUBNORMAL}"),
        ),
        "2**(mantissa_bits - 1)",
    ),
    (by_parts.edit("    if e:", TOP), "infinity or nan"),
    (by_parts.edit("    if e:", "    if e == 2**exponent_bits - 1:\n        return math.nan\n    if e:"), "nan"),
    (
        by_parts.edit("    if e:", "    if e == 2**exponent_bits - 1:\n        return sign * math.inf\n    if e:"),
        "infinity",
    ),
    (by_parts.edit("    if e:", FN), "all ones"),
    (
        by_parts.edit(
            ("bits[1 : exponent_bits + 1]", "bits[mantissa_bits + 1 :]"),
            ("bits[exponent_bits + 1 :]", "bits[1 : mantissa_bits + 1]"),
        ),
        "the mantissa before the exponent",
    ),
    (lambda b, e, m: by_parts(b[::-1], e, m), "from the last bit"),
    (lambda b, e, m: by_parts(b[-1] + b[:-1], e, m), "the sign is taken from the last bit"),
    (
        by_parts.edit("int(bits[1 : exponent_bits + 1], 2)", "int(bits[1 : exponent_bits + 1][::-1], 2)"),
        "exponent are read from the wrong end",
    ),
    (by_parts.edit(('-1 if bits[0] == "1" else 1', '1 if bits[0] == "1" else -1')), "the sign is reversed"),
    (by_parts.edit(SUBNORMAL, "0.0"), "flushed to zero"),
    (by_parts.edit("    if e:", "    if e or m:"), "only zero itself"),
    (by_parts.edit("2**mantissa_bits + m", "1 + m"), "added to the mantissa's whole number"),
    (by_parts.edit(NORMAL, "(1 + m / 2**mantissa_bits * 2.0 ** (e - bias))"), "put brackets"),
    (
        by_parts.edit(
            ("bits[1 : exponent_bits + 1]", "bits[:exponent_bits]"),
            ("bits[exponent_bits + 1 :]", "bits[exponent_bits:]"),
        ),
        "you counted the sign bit as part of the exponent",
    ),
    (by_parts.edit((BIAS, "1 << (exponent_bits - 1)")), "one too large"),
    (by_parts.edit(("int(bits[1 : exponent_bits + 1], 2)", "int(bits[1 : exponent_bits + 1])")), "decimal"),
    (by_parts.edit((NORMAL, "m * 2.0 ** (e - bias - mantissa_bits)")), "hidden 1 in front"),
    (by_parts.edit((NORMAL, "(1 + m) * 2.0 ** (e - bias)"), (SUBNORMAL, "m * 2.0 ** (1 - bias)")), "never divided"),
]

# --- numbers.to_bfloat16 ---


@solution
def halves(values):
    code = values.numpy().view(np.uint32).astype(np.int64)
    kept, rest = code // 65536, code % 65536
    kept = kept + ((rest > 32768) | ((rest == 32768) & (kept % 2 == 1)))
    return torch.from_numpy((kept * 65536).astype(np.uint32).view(np.float32))


def with_frexp(values):
    mantissa, exponent = np.frexp(values.double().numpy())
    steps = np.maximum(exponent, -125) - 8
    rounded = np.ldexp(np.rint(np.ldexp(mantissa, exponent - steps)), steps)
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(rounded) >= 2.0**128, np.sign(rounded) * np.inf, rounded)


def by_comparing(values):
    """Compute the two neighbours, and take the nearer one."""
    code = values.view(torch.int32)
    low = code & -65536
    high = low + 65536
    up = (code - low > 32768) | ((code - low == 32768) & ((low >> 16) % 2 != 0))
    return torch.where(up, high, low).view(torch.float32).double()


def one_by_one(values):
    found = []
    for value in values.tolist():
        code = int.from_bytes(struct.pack("<f", value), "little")
        code += 0x7FFF + (code >> 16) % 2
        found.append(struct.unpack("<f", struct.pack("<I", code & 0xFFFF0000))[0])
    return found


UP, KEPT = "((rest > 32768) | ((rest == 32768) & (kept % 2 == 1)))", "(kept * 65536).astype(np.uint32).view(np.float32)"


def of_values(change):
    """Round the values themselves, not their bits, in steps of 2**-7 times the power of two."""

    def rounded(values):
        x = values.double()
        _, exponent = torch.frexp(x)
        step = 2.0 ** (exponent.clamp(min=-125) - 8).double()
        return torch.where(x.isfinite(), change(x / step) * step, x).float()

    return rounded


def to_and_back(values):
    bits = values.to(torch.int32)
    return (bits + 0x7FFF + (bits >> 16 & 1) >> 16 << 16).view(torch.float32)


def to_both_ways(values):
    bits = values.int()
    return (bits + 0x7FFF + (bits >> 16 & 1) >> 16 << 16).float()


WRONG_ROUNDINGS = [
    (to_and_back, "so 3.14 becomes 3"),
    (to_both_ways, "so 3.14 becomes 3"),
    (halves.edit(UP, "(rest + 0x7FFF + (rest >> 15 & 1) >> 16)"), "rounded away from zero"),
    (halves.edit(UP, "(rest + 0x8000 + (kept & 1) >> 16)"), "you added 0x8000, and 1 more"),
    (halves.edit(KEPT, "kept"), "whole numbers without a sign"),
    (halves.edit(KEPT, "kept.astype(np.int16)"), "the kept bits, as whole numbers."),
    (halves.edit(UP, "np.where(kept % 128 == 127, 0, " + UP + ")"), "carry"),
    (halves.edit("kept = kept + " + UP, "kept = kept // 128 * 128 + (kept + " + UP + ") % 128"), "carry"),
    (lambda v: v.bfloat16().float().clamp(-3.3895314e38, 3.3895314e38), "beyond the largest one of bf16"),
    (lambda v: torch.where(v.abs() < 2.0**-126, 0 * v, v.bfloat16().float()), "become 0"),
    (lambda v: (v * 128).round() / 128, "the same step everywhere"),
    (of_values(torch.floor), "down, towards minus infinity"),
    (of_values(torch.ceil), "everything is rounded up, towards infinity"),
    (of_values(lambda x: (x + 0.5).floor()), "ties are rounded up, towards infinity"),
    (of_values(torch.trunc), "cut off, which rounds everything towards zero"),
    (halves.edit(KEPT, "rest.astype(np.uint32).view(np.float32)"), "the lower half"),
    (
        lambda v: (v.view(torch.int32) + 0xFFF + (v.view(torch.int32) >> 13 & 1) >> 13 << 13).view(torch.float32),
        "10 mantissa bits",
    ),
    (lambda v: v.half().bfloat16(), "fp16"),
    (lambda v: v, "nothing was rounded"),
    (halves.edit(UP, "(rest > 32767)"), "rounded away from zero"),
    (halves.edit(UP, "(rest > 32768)"), "always rounded towards zero"),
    (halves.edit("kept % 2 == 1", "kept % 2 == 0"), "odd neighbour"),
]

# --- numbers.sqnr ---


@solution
def ratio_of_sums(signal, rounded):
    s, r = signal.double().numpy(), rounded.double().numpy()
    noise = ((s - r) ** 2).sum()
    power = (s**2).sum()
    return 10 * math.log10(power / noise)


def sqnr_with_natural_logarithms(signal, rounded):
    s = signal.flatten().to(torch.float64)
    e = rounded.flatten().to(torch.float64) - s
    return 10 / math.log(10) * ((s @ s).log() - (e @ e).log())


def sqnr_of_lists(signal, rounded):
    s, r = signal.flatten().tolist(), rounded.flatten().tolist()
    return -10 * math.log10(math.fsum((a - b) ** 2 for a, b in zip(s, r)) / math.fsum(a**2 for a in s))


def sqnr_in_float32(signal, rounded):
    signal, rounded = signal.float(), rounded.float()
    return 20 * (signal.norm().log10() - torch.dist(signal, rounded).log10())


def sqnr_of_mse(signal, rounded):
    return (
        -10 * torch.nn.functional.mse_loss(rounded.double(), signal.double()).div(signal.double().pow(2).mean()).log10()
    )


POWER, NOISE, DECIBELS = "(s**2).sum()", "((s - r) ** 2).sum()", "10 * math.log10(power / noise)"


def in_its_dtype(signal, rounded):
    return 10 * torch.log10(signal.square().sum() / (rounded - signal).square().sum())


def means_in_its_dtype(signal, rounded):
    return 10 * torch.log10(signal.pow(2).mean() / (rounded - signal).pow(2).mean())


WRONG_RATIOS = [
    (in_its_dtype, "float16"),
    (means_in_its_dtype, "float16"),
    (lambda s, r: 20 * torch.log10(s.norm() / (s - r).norm()), "float16"),
    (
        ratio_of_sums.edit(
            (POWER, "(s**2).sum(-1)"),
            (NOISE, "((s - r) ** 2).sum(-1)"),
            (DECIBELS, "(10 * np.log10(power / noise)).mean()"),
        ),
        "mean of the decibels of the rows",
    ),
    (
        ratio_of_sums.edit(
            (POWER, "(s**2).sum(-1)"),
            (NOISE, "((s - r) ** 2).sum(-1)"),
            (DECIBELS, "10 * np.log10((power / noise).mean())"),
        ),
        "mean of the ratios of the rows",
    ),
    (
        ratio_of_sums.edit(
            (POWER, "(s**2).sum(-1)"), (NOISE, "((s - r) ** 2).sum(-1)"), (DECIBELS, "10 * np.log10(power / noise)")
        ),
        "one for each row",
    ),
    (
        ratio_of_sums.edit(
            (POWER, "(s**2).sum(0)"), (NOISE, "((s - r) ** 2).sum(0)"), (DECIBELS, "10 * np.log10(power / noise)")
        ),
        "one for each column",
    ),
    (ratio_of_sums.edit(DECIBELS, "round(10 * math.log10(power / noise))"), "whole decibels"),
    (ratio_of_sums.edit(DECIBELS, "-10 * math.log10(noise / s.size)"), "the signal's power is missing"),
    (ratio_of_sums.edit(DECIBELS, "-10 * math.log10(noise)"), "the signal's power is missing"),
    (ratio_of_sums.edit(NOISE, "((s - r) ** 2).mean()"), "but the mean of the error's"),
    (ratio_of_sums.edit(POWER, "(s**2).mean()"), "the mean of the signal's squares, and the sum"),
    (
        ratio_of_sums.edit(DECIBELS, "-10 * math.log10((((s - r) / s) ** 2).mean())"),
        "each error is divided by its own number",
    ),
    (ratio_of_sums.edit(NOISE, "(s - r).sum() ** 2"), "the errors are added before they are squared"),
    (ratio_of_sums.edit(NOISE, "(r**2).sum()"), "you used the rounded numbers as the noise"),
    (
        ratio_of_sums.edit((POWER, "np.abs(s).sum()"), (NOISE, "np.abs(s - r).sum()"), ("10 *", "20 *")),
        "in place of squares",
    ),
    (ratio_of_sums.edit((NOISE, "((s - r) ** 2).max()"), (POWER, "(s**2).max()")), "the largest"),
    (ratio_of_sums.edit(NOISE, "((s - r) ** 2).max()"), "only the largest error"),
    (ratio_of_sums.edit("10 *", "-10 *"), "upside down"),
    (ratio_of_sums.edit(DECIBELS, "10 * math.log10(1 + power / noise)"), "one was added"),
    (ratio_of_sums.edit(DECIBELS, "10 * math.log10(power) / math.log10(noise)"), "The logarithm of a ratio"),
]

WRONG = {
    "numbers.decode_float": WRONG_DECODINGS,
    "numbers.to_bfloat16": WRONG_ROUNDINGS,
    "numbers.sqnr": WRONG_RATIOS,
}
RIGHT = {
    "numbers.decode_float": [by_parts, bit_after_bit, by_widening, lambda *a: np.float32(by_parts(*a))],
    "numbers.to_bfloat16": [halves, with_frexp, by_comparing, one_by_one],
    "numbers.sqnr": [
        ratio_of_sums,
        sqnr_with_natural_logarithms,
        sqnr_of_lists,
        sqnr_in_float32,
        sqnr_of_mse,
    ],
}


@each(WRONG)
def test_a_wrong_answer_is_told_its_mistake(name, function, phrase):
    assert_last_line(name, function, phrase)


@each(RIGHT)
def test_right_answers_pass_however_they_are_written(name, function):
    assert_right(name, function)
