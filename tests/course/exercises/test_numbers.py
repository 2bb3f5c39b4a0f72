"""The exercises of chapter 01: wrong answers are told which mistake it is, right ones pass however they are written."""

import math
import struct

import numpy as np
import pytest
import torch

from qtutor.course import exercises
from qtutor.course.checking import examine
from tests.course.answers import assert_right, each, verdict

# --- decode_float, wrong: each as a learner may write it ---


def parts(bits, exponent_bits):
    return int(bits[0]), int(bits[1 : exponent_bits + 1], 2), bits[exponent_bits + 1 :]


def no_sign(bits, exponent_bits, mantissa_bits):
    _, e, m = parts(bits, exponent_bits)
    bias = (1 << exponent_bits - 1) - 1
    if e == 0:
        return int(m, 2) * 2.0 ** (1 - bias - mantissa_bits)
    return (2**mantissa_bits + int(m, 2)) * 2.0 ** (e - bias - mantissa_bits)


def bias_is_half_the_exponents(bits, exponent_bits, mantissa_bits):
    s, e, m = parts(bits, exponent_bits)
    bias = 2**exponent_bits // 2
    m = int(m, 2) / 2**mantissa_bits
    return (-1) ** s * (m * 2.0 ** (1 - bias) if e == 0 else (1 + m) * 2.0 ** (e - bias))


def no_bias(bits, exponent_bits, mantissa_bits):
    s, e, m = parts(bits, exponent_bits)
    m = int(m, 2) / 2**mantissa_bits
    return (-1) ** s * (1 + m if e else m) * 2.0 ** (e if e else 1)


def no_hidden_one(bits, exponent_bits, mantissa_bits):
    s, e, m = parts(bits, exponent_bits)
    bias = 2 ** (exponent_bits - 1) - 1
    return (1 - 2 * s) * int(m, 2) / 2**mantissa_bits * 2.0 ** (max(e, 1) - bias)


def no_subnormals(bits, exponent_bits, mantissa_bits):
    s, e, m = parts(bits, exponent_bits)
    return math.copysign(math.ldexp(1 + int(m, 2) / 2**mantissa_bits, e + 1 - 2 ** (exponent_bits - 1)), -s or 1)


def subnormals_with_the_hidden_one(bits, exponent_bits, mantissa_bits):
    s, e, m = parts(bits, exponent_bits)
    e = 1 if e == 0 else e
    value = (1 + int(m, 2) / 2**mantissa_bits) * 2.0 ** (e - 2 ** (exponent_bits - 1) + 1)
    return -value if s else value


def subnormals_a_step_too_small(bits, exponent_bits, mantissa_bits):
    s, e, m = parts(bits, exponent_bits)
    value = (e > 0) + sum(int(bit) / 2 ** (i + 1) for i, bit in enumerate(m))
    return (-1.0) ** s * value * 2.0 ** (e - (2 ** (exponent_bits - 1) - 1))


def mantissa_from_the_right(bits, exponent_bits, mantissa_bits):
    s, e, m = parts(bits, exponent_bits)
    value = float(e > 0)
    for i in range(mantissa_bits):
        value += int(m[-1 - i]) * 0.5 ** (i + 1)
    return (-1.0) ** s * value * 2.0 ** ((e or 1) - (2 ** (exponent_bits - 1) - 1))


def mantissa_over_its_largest(bits, exponent_bits, mantissa_bits):
    s, e, m = parts(bits, exponent_bits)
    fraction = int(m, 2) / int("1" * mantissa_bits, 2)
    return (-1.0) ** s * ((1 if e else 0) + fraction) * 2.0 ** ((e or 1) - (2 ** (exponent_bits - 1) - 1))


WRONG_DECODE = {
    no_sign: "sign bit is ignored",
    bias_is_half_the_exponents: "bias is one too large",
    no_bias: "bias is not subtracted",
    no_hidden_one: "hidden 1 in front of the mantissa is missing",
    no_subnormals: "treated like all others",
    subnormals_with_the_hidden_one: "no hidden 1; their exponent is right",
    subnormals_a_step_too_small: "exponent of E = 1",
    mantissa_from_the_right: "wrong end",
    mantissa_over_its_largest: "divided by 2**mantissa_bits - 1",
}


# --- decode_float, right ---


def from_integers(bits, exponent_bits, mantissa_bits):
    code = int(bits, 2)
    exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1)
    steps = code & ((1 << mantissa_bits) - 1) | ((exponent > 0) << mantissa_bits)
    value = math.ldexp(steps, max(exponent, 1) - (1 << exponent_bits - 1) + 1 - mantissa_bits)
    return torch.tensor(-value if code >> (exponent_bits + mantissa_bits) else value, dtype=torch.float64)


def with_numpy(bits, exponent_bits, mantissa_bits):
    digits = np.array(list(bits), dtype=np.int64)
    exponent = digits[1 : 1 + exponent_bits] @ 2 ** np.arange(exponent_bits)[::-1]
    fraction = digits[1 + exponent_bits :] @ 0.5 ** np.arange(1, mantissa_bits + 1)
    bias = 2 ** (exponent_bits - 1) - 1
    value = fraction * 2.0 ** (1 - bias) if exponent == 0 else (1 + fraction) * 2.0 ** float(exponent - bias)
    return np.float64(-value if digits[0] else value)


# --- to_bfloat16, wrong ---


def cut_off(values):
    return (values.view(torch.int32) & -0x10000).view(torch.float32)


def half_away_from_zero(values):
    bits = values.numpy().view(np.uint32)
    return ((bits + np.uint32(0x8000)) & np.uint32(0xFFFF0000)).view(np.float32)


def half_towards_zero(values):
    return ((values.view(torch.int32) + 0x7FFF) & -0x10000).view(torch.float32)


def ties_to_odd(values):
    rounded = []
    for value in values.tolist():
        (bits,) = struct.unpack("<I", struct.pack("<f", value))
        kept, rest = divmod(bits, 65536)
        if rest > 0x8000 or (rest == 0x8000 and kept % 2 == 0):
            kept += 1
        rounded.append(struct.unpack("<f", struct.pack("<I", kept * 65536))[0])
    return rounded


def always_up(values):
    bits = values.view(torch.int32)
    rest = bits & 0xFFFF
    return torch.where(rest > 0, (bits - rest) + 0x10000, bits).view(torch.float32)


def six_bits(values):
    bits = values.view(torch.int32).long()
    bits = bits + 0xFFFF + ((bits >> 17) & 1)
    return (bits >> 17 << 17).to(torch.int32).view(torch.float32)


def eight_bits(values):
    bits = values.view(torch.int32).long()
    bits = bits + 0x3FFF + ((bits >> 15) & 1)
    return (bits >> 15 << 15).to(torch.int32).view(torch.float32)


def the_other_16_bits(values):
    return values.to(torch.float16)


def bits_as_a_number(values):
    bits = values.view(torch.int32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).float()


def not_moved_back(values):
    bits = values.view(torch.int32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).view(torch.float32)


WRONG_BFLOAT = {
    bits_as_a_number: "read as a whole number",
    not_moved_back: "moved up again",
    cut_off: "cut off, which rounds everything towards zero",
    half_away_from_zero: "rounded away from zero",
    half_towards_zero: "always rounded towards zero",
    ties_to_odd: "odd neighbour",
    always_up: "rounded up, away from zero",
    six_bits: "one mantissa bit too few",
    eight_bits: "one mantissa bit too many",
    the_other_16_bits: "this is fp16",
}


# --- to_bfloat16, right ---


def by_torch(values):
    return values.bfloat16()


def by_adding(values):
    bits = values.numpy().view(np.uint32).astype(np.uint64)
    bits = bits + 0x7FFF + ((bits >> 16) & 1)
    return (bits.astype(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def by_scaling(values):
    """No bits at all: how many steps of its power of two, rounded as Python rounds (ties to even)."""
    result = []
    for value in values.double().tolist():
        if math.isinf(value):
            result.append(value)
            continue
        step = 2.0 ** (max(math.frexp(value)[1] - 1, -126) - 7)
        rounded = round(value / step) * step
        result.append(rounded if abs(rounded) < 2.0**128 else math.copysign(math.inf, value))
    return result


# --- sqnr, wrong ---


def upside_down(signal, rounded):
    return 10 * math.log10((rounded - signal).pow(2).mean() / signal.pow(2).mean())


def twenty_log_of_powers(signal, rounded):
    return 20 * torch.log10(torch.mean(signal**2) / torch.mean((signal - rounded) ** 2))


def ten_log_of_norms(signal, rounded):
    return 10 * torch.log10(signal.norm() / (signal - rounded).norm())


def the_ratio(signal, rounded):
    return ((signal**2).sum() / ((signal - rounded) ** 2).sum()).item()


def natural(signal, rounded):
    return 10 * (signal.square().sum() / (rounded - signal).square().sum()).log()


def bels(signal, rounded):
    return np.log10(np.sum(signal.numpy() ** 2.0) / np.sum((signal - rounded).numpy() ** 2.0))


def variances(signal, rounded):
    return 20 * torch.log10(signal.std() / (signal - rounded).std())


def centred_signal(signal, rounded):
    signal, rounded = signal.numpy(), rounded.numpy()
    return 10 * np.log10(np.var(signal) / np.mean((signal - rounded) ** 2))


def peak(signal, rounded):
    return 20 * torch.log10(signal.abs().max() / (signal - rounded).square().mean().sqrt())


def difference_of_squares(signal, rounded):
    power = (signal.double() ** 2).sum()
    return 10 * torch.log10(power / (power - (rounded.double() ** 2).sum()).abs())


def absolute(signal, rounded):
    return 10 * torch.log10(signal.abs().mean() / (signal - rounded).abs().mean())


def power_of_the_rounded(signal, rounded):
    return 10 * torch.log10((rounded**2).sum() / ((signal - rounded) ** 2).sum())


WRONG_SQNR = {
    upside_down: "upside down",
    twenty_log_of_powers: "20 · log10 belongs to a ratio of amplitudes",
    ten_log_of_norms: "of amplitudes (square roots, norms) take 20",
    the_ratio: "the ratio itself",
    natural: "natural logarithm",
    bels: "factor 10 is missing",
    variances: "squared distances from the mean",
    centred_signal: "mean was subtracted from the signal",
    peak: "the peak of the signal",
    difference_of_squares: "subtract first, then square",
    absolute: "in place of squares",
    power_of_the_rounded: "taken after rounding",
}


# --- sqnr, right ---


def with_norms(signal, rounded):
    return 20 * (torch.linalg.vector_norm(signal) / torch.linalg.vector_norm(rounded - signal)).log10()


def with_loops(signal, rounded):
    pairs = list(zip(signal.flatten().tolist(), rounded.flatten().tolist()))
    return 10 * math.log10(sum(s * s for s, _ in pairs)) - 10 * math.log10(sum((s - r) ** 2 for s, r in pairs))


WRONG = {
    "numbers.decode_float": WRONG_DECODE,
    "numbers.to_bfloat16": WRONG_BFLOAT,
    "numbers.sqnr": WRONG_SQNR,
}
RIGHT = {
    "numbers.decode_float": (from_integers, with_numpy),
    "numbers.to_bfloat16": (by_torch, by_adding, by_scaling),
    "numbers.sqnr": (with_norms, with_loops),
}


@each({name: list(answers.items()) for name, answers in WRONG.items()})
def test_a_wrong_answer_is_told_its_mistake(name, function, phrase):
    found = verdict(name, function)
    assert not found.passed
    assert phrase in found.text.splitlines()[-1], found.text
    assert found.text.splitlines()[-1].startswith("Likely mistake: "), found.text


@each(RIGHT)
def test_right_answers_pass_however_they_are_written(name, function):
    assert_right(name, function)


@pytest.mark.parametrize("name", list(WRONG))
def test_no_known_mistake_is_right(name):
    exercise = exercises.find(name)
    for said, mistake in exercise.mistakes.items():
        assert not examine(exercise, mistake).passed, said


def test_the_slow_rounding_is_torchs():
    """The reference of the exercise knows nothing of torch.bfloat16; here the two meet, on numbers of every size."""
    bits = torch.randint(0, 0x7F800000, (2000,), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    values = bits.view(torch.float32)
    values = torch.cat([values, -values, torch.tensor([3.38953139e38, 3.3961775e38, 3.4028235e38])])
    rounded = torch.tensor(exercises.find("numbers.to_bfloat16").reference(values))
    assert torch.equal(rounded, values.bfloat16().float())
