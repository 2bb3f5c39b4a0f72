"""The exercises of chapter 01: check names the mistake in a wrong answer, and right answers pass in any form.

Most wrong answers are edits of right answers that a learner may write. None of these right answers is the course's own
solution.
"""

import math
import struct

import numpy as np
import torch

from qtutor.course import exercises
from qtutor.course.exercises.edits import solution
from tests.course.answers import assert_likely, assert_right, each

# --- decode_float ---


@solution
def from_integers(bits, exponent_bits, mantissa_bits):
    code = int(bits, 2)
    exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1)
    steps = code & ((1 << mantissa_bits) - 1) | ((exponent > 0) << mantissa_bits)
    value = math.ldexp(steps, max(exponent, 1) - (1 << exponent_bits - 1) + 1 - mantissa_bits)
    return torch.tensor(-value if code >> (exponent_bits + mantissa_bits) else value, dtype=torch.float64)


@solution
def with_numpy(bits, exponent_bits, mantissa_bits):
    digits = np.array(list(bits), dtype=np.int64)
    exponent = digits[1 : 1 + exponent_bits] @ 2 ** np.arange(exponent_bits)[::-1]
    fraction = digits[1 + exponent_bits :] @ 0.5 ** np.arange(1, mantissa_bits + 1)
    bias = 2 ** (exponent_bits - 1) - 1
    value = fraction * 2.0 ** (1 - bias) if exponent == 0 else (1 + fraction) * 2.0 ** float(exponent - bias)
    return np.float64(-value if digits[0] else value)


DECODE_WRONG = [
    (with_numpy.edit("-value if digits[0] else value", "value"), "sign bit is ignored"),
    (from_integers.edit("+ 1 - mantissa_bits", "- mantissa_bits"), "bias is one too large"),
    (with_numpy.edit("2 ** (exponent_bits - 1) - 1", "0"), "bias is not subtracted"),
    (from_integers.edit(" | ((exponent > 0) << mantissa_bits)", ""), "hidden 1 in front of the mantissa is missing"),
    (with_numpy.edit("fraction * 2.0 ** (1 - bias) if exponent == 0 else ", ""), "treated like all others"),
    (from_integers.edit("(exponent > 0)", "1"), "no hidden 1; their exponent is right"),
    (from_integers.edit("max(exponent, 1)", "exponent"), "exponent of E = 1"),
    (with_numpy.edit("1 + exponent_bits :]", ": exponent_bits : -1]"), "wrong end"),
    (
        with_numpy.edit(
            ("digits[1 + exponent_bits :] @", "float(digits[1 + exponent_bits :] @"),
            ("mantissa_bits + 1)", "mantissa_bits + 1)) / (1 - 0.5**mantissa_bits)"),
        ),
        "divided by 2**mantissa_bits - 1",
    ),
]

# --- to_bfloat16 ---


def by_torch(values):
    return values.bfloat16()


@solution
def by_adding(values):
    bits = values.numpy().view(np.uint32).astype(np.uint64)
    bits = bits + 0x7FFF + ((bits >> 16) & 1)
    return (bits.astype(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


@solution
def by_scaling(values):
    """Without bits: count the steps of the value's power of two, and round the count as Python does (ties to even)."""
    result = []
    for value in values.double().tolist():
        if math.isinf(value):
            result.append(value)
            continue
        step = 2.0 ** (max(math.frexp(value)[1] - 1, -126) - 7)
        rounded = round(value / step) * step
        result.append(rounded if abs(rounded) < 2.0**128 else math.copysign(math.inf, value))
    return result


def ties_to_odd(values):
    rounded = []
    for value in values.tolist():
        (bits,) = struct.unpack("<I", struct.pack("<f", value))
        kept, rest = divmod(bits, 65536)
        if rest > 0x8000 or (rest == 0x8000 and kept % 2 == 0):
            kept += 1
        rounded.append(struct.unpack("<f", struct.pack("<I", kept * 65536))[0])
    return rounded


def of_sizes(change):
    """``by_scaling`` with a different rounding, which is the same for both signs."""
    return by_scaling.edit("round(value / step)", f"math.copysign({change}, value)")


BFLOAT_WRONG = [
    (by_scaling.edit("round(", "int("), "cut off, which rounds everything towards zero"),
    (of_sizes("math.floor(abs(value) / step + 0.5)"), "rounded away from zero"),
    (of_sizes("math.ceil(abs(value) / step - 0.5)"), "always rounded towards zero"),
    (ties_to_odd, "odd neighbour"),
    (of_sizes("math.ceil(abs(value) / step)"), "rounded up, away from zero"),
    (by_scaling.edit("- 7", "- 6"), "one mantissa bit too few"),
    (by_scaling.edit("- 7", "- 8"), "one mantissa bit too many"),
    (lambda values: values.to(torch.float16), "this is fp16"),
    (by_adding.edit("view(np.float32)", "view(np.int32)"), "read as a whole number"),
    (lambda values: (values.bfloat16().float().view(torch.int32) >> 16).view(torch.float32), "shift them up again"),
]

# --- sqnr ---


def with_norms(signal, rounded):
    signal, rounded = signal.float(), rounded.float()
    return 20 * (torch.linalg.vector_norm(signal) / torch.linalg.vector_norm(rounded - signal)).log10()


def with_loops(signal, rounded):
    pairs = list(zip(signal.flatten().tolist(), rounded.flatten().tolist()))
    return 10 * math.log10(sum(s * s for s, _ in pairs)) - 10 * math.log10(sum((s - r) ** 2 for s, r in pairs))


def power(numbers):
    return numbers.square().mean()


WRONG_OF_DOUBLES = [
    (lambda s, r: 10 * math.log10(power(r - s) / power(s)), "upside down"),
    (lambda s, r: 20 * torch.log10(power(s) / power(s - r)), "20 · log10 belongs to a ratio of amplitudes"),
    (lambda s, r: 10 * torch.log10(s.norm() / (s - r).norm()), "for amplitudes (square roots, norms), take 20"),
    (lambda s, r: ((s**2).sum() / ((s - r) ** 2).sum()).item(), "the ratio itself"),
    (lambda s, r: 10 * (power(s) / power(r - s)).log(), "natural logarithm"),
    (lambda s, r: np.log10(np.sum(s.numpy() ** 2.0) / np.sum((s - r).numpy() ** 2.0)), "factor 10 is missing"),
    (lambda s, r: 20 * torch.log10(s.std() / (s - r).std()), "squared distances from the mean"),
    (lambda s, r: 10 * np.log10(np.var(s.numpy()) / power(s - r).item()), "mean was subtracted from the signal"),
    (lambda s, r: 20 * torch.log10(s.abs().max() / power(s - r).sqrt()), "the peak of the signal"),
    (
        lambda s, r: 10 * (power(s) / (power(s) - power(r)).abs()).log10(),
        "subtract first, then square",
    ),
    (lambda s, r: 10 * torch.log10(s.abs().mean() / (s - r).abs().mean()), "in place of squares"),
    (lambda s, r: 10 * torch.log10((r**2).sum() / ((s - r) ** 2).sum()), "the signal's power after rounding"),
]
# The inputs are converted first, because computing in float16 is a separate mistake.
SQNR_WRONG = [(lambda s, r, of=of: of(s.double(), r.double()), phrase) for of, phrase in WRONG_OF_DOUBLES]


WRONG = {"numbers.decode_float": DECODE_WRONG, "numbers.to_bfloat16": BFLOAT_WRONG, "numbers.sqnr": SQNR_WRONG}
RIGHT = {
    "numbers.decode_float": [from_integers, with_numpy],
    "numbers.to_bfloat16": [by_torch, by_adding, by_scaling],
    "numbers.sqnr": [with_norms, with_loops],
}


@each(WRONG)
def test_a_wrong_answer_is_told_its_mistake(name, function, phrase):
    assert_likely(name, function, phrase)


@each(RIGHT)
def test_right_answers_pass_however_they_are_written(name, function):
    assert_right(name, function)


def test_the_slow_rounding_is_torchs():
    """The exercise's reference does not use torch.bfloat16. Here both round numbers of every size."""
    bits = torch.randint(0, 0x7F800000, (2000,), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    values = bits.view(torch.float32)
    values = torch.cat([values, -values, torch.tensor([3.38953139e38, 3.3961775e38, 3.4028235e38])])
    rounded = torch.tensor(exercises.find("numbers.to_bfloat16").reference(values))
    assert torch.equal(rounded, values.bfloat16().float())
