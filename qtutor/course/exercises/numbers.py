"""Exercises of chapter 01: a float from its bits, rounding to bfloat16, the ratio of signal to rounding error."""

import math
import struct

import torch

from qtutor.course.exercise import Exercise

# numbers.decode_float: bits as text, two widths -> a number. Every exponent is an ordinary one, as in FP4.


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


def _decode_wrongly(sign=True, bias=0, hidden="where E > 0", lowest=True, reverse=False, whole=False, biased=True):
    """A decoder with one thing wrong; with the arguments as they are it is right."""

    def decode(bits: str, exponent_bits: int, mantissa_bits: int) -> float:
        exponent, mantissa = int(bits[1 : 1 + exponent_bits], 2), bits[1 + exponent_bits :]
        shift = 2 ** (exponent_bits - 1) - 1 + bias if biased else 0
        mantissa = int(mantissa[::-1] if reverse else mantissa, 2)
        fraction = mantissa / (2**mantissa_bits - (1 if whole else 0))
        one = {"where E > 0": exponent > 0, "always": True, "never": False}[hidden]
        power = (max(exponent, 1) if lowest else exponent) - shift
        return (-1.0 if sign and bits[0] == "1" else 1.0) * (fraction + one) * 2.0**power

    return decode


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


DECODE_FLOAT = Exercise(
    name="numbers.decode_float",
    chapter="01_numbers",
    title="From bits to a number",
    difficulty=2,
    minutes=10,
    reference=_decode,
    cases=_decode_cases,
    outputs=("value",),
    mistakes={
        "the sign bit is ignored: where it is 1 the number is negative.": _decode_wrongly(sign=False),
        "the bias is one too large: it is 2**(exponent_bits - 1) - 1.": _decode_wrongly(bias=1),
        "the bias is not subtracted from the exponent.": _decode_wrongly(biased=False),
        "the hidden 1 in front of the mantissa is missing: where E > 0 the number is 1.M times a power of two.": (
            _decode_wrongly(hidden="never")
        ),
        "subnormal numbers (E = 0) have no hidden 1; here they were treated like all others.": _decode_wrongly(
            hidden="always", lowest=False
        ),
        "subnormal numbers (E = 0) have no hidden 1; their exponent is right.": _decode_wrongly(hidden="always"),
        "subnormal numbers (E = 0) have the exponent of E = 1, that is 1 - bias, not 0 - bias.": _decode_wrongly(
            lowest=False
        ),
        "the mantissa bits are read from the wrong end: the first is worth a half.": _decode_wrongly(reverse=True),
        "the mantissa is divided by 2**mantissa_bits - 1; M = all ones is not yet the next power of two, so divide by "
        "2**mantissa_bits.": _decode_wrongly(whole=True),
    },
)


# numbers.to_bfloat16: float32 tensor -> the nearest values that bf16 has, ties to even.


def _bits(value: float) -> int:
    return struct.unpack("<I", struct.pack("<f", value))[0]


def _float(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits & 0xFFFFFFFF))[0]


def _nearest(values: torch.Tensor) -> list[float]:
    """Both neighbours of every value are tried, and the nearer one taken; from a tie the one with an even last bit."""
    result = []
    for value in values.tolist():
        below = _bits(value) >> 16 << 16  # the neighbour towards zero
        above = below + 0x10000
        # Past the largest finite value comes what would be the next power of two, 2**128, which stands for infinity.
        sizes = [2.0**128 if (bits & 0x7FFFFFFF) == 0x7F800000 else abs(_float(bits)) for bits in (below, above)]
        if math.isinf(value) or abs(value) == sizes[0]:
            chosen = below
        elif sizes[1] - abs(value) == abs(value) - sizes[0]:
            chosen = above if below >> 16 & 1 else below
        else:
            chosen = above if sizes[1] - abs(value) < abs(value) - sizes[0] else below
        result.append(_float(chosen))
    return result


def _by_bits(change):
    """A function of tensors from one of a number's 32 bits."""
    return lambda values: [_float(change(_bits(value))) for value in values.tolist()]


def _round_bits(dropped: int):
    """Round to nearest even with ``dropped`` bits less."""

    def change(bits: int) -> int:
        return bits + (1 << dropped - 1) - 1 + (bits >> dropped & 1) >> dropped << dropped

    return change


def _bfloat_cases() -> list[tuple[str, tuple]]:
    step = 2.0**-7  # between 1 and 2
    tie = step / 2
    near = 2.0**-23
    cases = {
        "numbers that bf16 has": [1.0, -2.5, 0.15625, 0.0, -0.0],
        "ordinary numbers": [3.14159, -0.1, 1 / 3, 70000.0, -1e-3],
        "numbers just under and just over the middle of two neighbours": [
            1 + tie - near,
            1 + tie + near,
            -1 - tie - near,
        ],
        "ties: exactly in the middle, the even neighbour below": [1 + tie, -1 - tie, 257.0],
        "ties: exactly in the middle, the even neighbour above": [1 + step + tie, -1 - step - tie, 259.0],
        "numbers that round up to the next power of two": [1.999, -0.49999, 255.9],
        "subnormal numbers of float32": [1e-39, -3e-40, 9.2e-41],
        "numbers beyond the largest of bf16, and infinity": [3.4e38, -3.4e38, math.inf, 3.39e38],
    }
    return [(kind, (torch.tensor(values, dtype=torch.float32),)) for kind, values in cases.items()]


TO_BFLOAT16 = Exercise(
    name="numbers.to_bfloat16",
    chapter="01_numbers",
    title="Rounding to bfloat16",
    difficulty=3,
    minutes=15,
    reference=_nearest,
    cases=_bfloat_cases,
    outputs=("rounded",),
    mistakes={
        "the low 16 bits are cut off, which rounds everything towards zero. Round to the nearest: what was cut off may "
        "be more than a half.": _by_bits(lambda bits: bits >> 16 << 16),
        "ties are rounded away from zero (0x8000 is added before the cut). A number exactly in the middle goes to the "
        "neighbour whose last bit is 0.": _by_bits(lambda bits: bits + 0x8000 >> 16 << 16),
        "ties are always rounded towards zero (0x7FFF is added). They go to the neighbour whose last bit is 0: add one "
        "more where the last kept bit is 1.": _by_bits(lambda bits: bits + 0x7FFF >> 16 << 16),
        "ties go to the odd neighbour: add the one where the last kept bit is 1, not where it is 0.": _by_bits(
            lambda bits: bits + 0x7FFF + (1 - (bits >> 16 & 1)) >> 16 << 16
        ),
        "everything that was cut off is rounded up, away from zero, not to the nearest.": _by_bits(
            lambda bits: bits + 0xFFFF >> 16 << 16
        ),
        "one mantissa bit too few: bf16 has 7, and the hidden 1 is not among them.": _by_bits(_round_bits(17)),
        "one mantissa bit too many: bf16 has 7, and the hidden 1 comes besides.": _by_bits(_round_bits(15)),
        "this is fp16, which has 5 exponent bits and 10 mantissa bits; bf16 has 8 and 7.": lambda values: values.half(),
    },
)


# numbers.sqnr: two tensors -> decibels.


def _decibels(signal: torch.Tensor, rounded: torch.Tensor) -> float:
    power = noise = 0.0
    for exact, approximate in zip(signal.double().flatten().tolist(), rounded.double().flatten().tolist()):
        power += exact * exact
        noise += (approximate - exact) ** 2
    return 10 * math.log10(power / noise)


def _sqnr_cases() -> list[tuple[str, tuple]]:
    generator = torch.Generator().manual_seed(0)
    bell = torch.randn(64, generator=generator)
    matrix = torch.randn(4, 16, generator=generator)
    shifted = 3 + torch.rand(64, generator=generator)
    return [
        ("two numbers, each off by a tenth", (torch.tensor([3.0, -4.0]), torch.tensor([3.3, -4.4]))),
        ("bell-shaped numbers, rounded to quarters", (bell, (4 * bell).round() / 4)),
        ("a matrix, rounded to halves", (matrix, (2 * matrix).round() / 2)),
        ("numbers whose mean is not zero", (shifted, shifted.round())),
        ("numbers that came back doubled: more error than signal is possible", (bell, 3 * bell)),
        ("numbers that all came back a little too large", (bell, bell + 0.05)),
    ]


def _of(decibels):
    """A function of signal and rounded numbers from one of signal and error, all in float64."""
    return lambda signal, rounded: decibels(signal.double(), rounded.double() - signal.double())


def _ratio(signal: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
    return signal.square().sum() / error.square().sum()


def _differing_powers(signal: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    power, other = signal.double().square().sum(), rounded.double().square().sum()
    return 10 * torch.log10(power / (other - power).abs())


SQNR = Exercise(
    name="numbers.sqnr",
    chapter="01_numbers",
    title="Signal over rounding error, in decibels",
    difficulty=1,
    minutes=5,
    reference=_decibels,
    cases=_sqnr_cases,
    outputs=("decibels",),
    mistakes={
        "the ratio is upside down: the signal is divided by the error, so that more is better.": _of(
            lambda s, e: -10 * torch.log10(_ratio(s, e))
        ),
        "20 · log10 belongs to a ratio of amplitudes; for squares, which are powers, it is 10 · log10.": _of(
            lambda s, e: 20 * torch.log10(_ratio(s, e))
        ),
        "10 · log10 belongs to a ratio of powers; of amplitudes (square roots, norms) take 20 · log10.": _of(
            lambda s, e: 5 * torch.log10(_ratio(s, e))
        ),
        "this is the ratio itself, not yet in decibels: take 10 · log10 of it.": _of(_ratio),
        "this is the natural logarithm; decibels need the one to base 10.": _of(
            lambda s, e: 10 * torch.log(_ratio(s, e))
        ),
        "this is the logarithm to base 2, which counts bits; decibels need base 10.": _of(
            lambda s, e: 10 * torch.log2(_ratio(s, e))
        ),
        "the factor 10 is missing: log10 of the ratio is bels, and a decibel is a tenth of one.": _of(
            lambda s, e: torch.log10(_ratio(s, e))
        ),
        "the squares of the numbers count, not their squared distances from the mean (var and std subtract it).": _of(
            lambda s, e: 10 * torch.log10(s.var() / e.var())
        ),
        "the mean was subtracted from the signal: its power is the mean of its squares, not its variance.": _of(
            lambda s, e: 10 * torch.log10(s.var(unbiased=False) / e.square().mean())
        ),
        "absolute values were added up in place of squares.": _of(
            lambda s, e: 10 * torch.log10(s.abs().sum() / e.abs().sum())
        ),
        "this takes the peak of the signal (that is PSNR); its power is the mean of its squares.": _of(
            lambda s, e: 10 * torch.log10(s.abs().max() ** 2 / e.square().mean())
        ),
        "the power of the signal was taken after rounding; take it of the signal as it was.": _of(
            lambda s, e: 10 * torch.log10((s + e).square().sum() / e.square().sum())
        ),
        "subtract first, then square: the error is rounded - signal, number by number.": _differing_powers,
    },
    # Sums of squares in float32, as a learner may compute them, differ in the last digits from those in float64.
    tolerance=1e-4,
)

EXERCISES = (DECODE_FLOAT, TO_BFLOAT16, SQNR)
