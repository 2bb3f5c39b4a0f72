"""``numbers.sqnr``: the signal-to-quantization-noise ratio of two tensors in decibels."""

import math

import torch

from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise


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
    large = (20_000 + 1600 * torch.arange(16)).half()  # float16 has steps of 16 and more here
    return [
        ("two numbers, each off by a tenth", (torch.tensor([3.0, -4.0]), torch.tensor([3.3, -4.4]))),
        ("bell-shaped numbers, rounded to quarters", (bell, (4 * bell).round() / 4)),
        ("a matrix, rounded to halves", (matrix, (2 * matrix).round() / 2)),
        ("numbers whose mean is not zero", (shifted, shifted.round())),
        ("numbers that came back three times as large: more error than signal is possible", (bell, 3 * bell)),
        ("numbers that all came back a little too large", (bell, bell + 0.05)),
        ("numbers in float16, whose squares are too large for float16", (large, large + 32 * (-1) ** torch.arange(16))),
    ]


@solution
def right(signal, rounded):
    signal, rounded = signal.double(), rounded.double()
    error = rounded - signal
    ratio = signal.square().mean() / error.square().mean()
    return 10 * torch.log10(ratio)


CONVERTED, POWER, NOISE = (
    "signal, rounded = signal.double(), rounded.double()",
    "signal.square().mean()",
    "error.square().mean()",
)
DECIBELS = "10 * torch.log10(ratio)"
OF_ROWS = (POWER, "signal.square().mean(-1)"), (NOISE, "error.square().mean(-1)")

MISTAKES = {
    "this was computed in the numbers' own float16, which cannot hold their squares. Convert first: .float() or "
    ".double().": right.edit(CONVERTED, "pass"),
    "this is the mean of the decibels of the rows. Add up the squares of the whole tensor, and take one ratio.": (
        right.edit(*OF_ROWS, (DECIBELS, f"({DECIBELS}).mean()"))
    ),
    "this is the mean of the ratios of the rows. Add up the squares of the whole tensor, and take one ratio.": (
        right.edit(*OF_ROWS, ("log10(ratio", "log10(ratio.mean()"))
    ),
    "these are decibels, one for each row; the whole tensor has one number: add up over all dims.": (
        right.edit(*OF_ROWS)
    ),
    "these are decibels, one for each column; the whole tensor has one number: add up over all dims.": (
        right.edit((POWER, "signal.square().mean(0)"), (NOISE, "error.square().mean(0)"))
    ),
    "the result is rounded to whole decibels.": right.edit(DECIBELS, f"({DECIBELS}).round()"),
    "the signal's power is missing: this is 10 · log10 of 1 / mean squared error.": right.edit(POWER, "1"),
    "the signal's power is missing: this is 10 · log10 of 1 / sum of squared errors.": (
        right.edit((POWER, "1"), (NOISE, "error.square().sum()"))
    ),
    "you took the sum of the signal's squares, but the mean of the error's: take the sum of both, or the mean of "
    "both.": right.edit(POWER, "signal.square().sum()"),
    "you took the mean of the signal's squares, and the sum of the error's: take the sum, or the mean, of both.": (
        right.edit(NOISE, "error.square().sum()")
    ),
    "each error is divided by its own number, so small numbers count most. Divide the sums of squares.": right.edit(
        f"{POWER} / {NOISE}", "1 / (error / signal).square().mean()"
    ),
    "the errors are added before they are squared, so positive and negative errors cancel. Square first.": (
        right.edit((NOISE, "error.sum().square()"), (POWER, "signal.square().sum()"))
    ),
    "you used the rounded numbers as the noise. The noise is what rounding added: rounded - signal.": (
        right.edit("rounded - signal", "rounded")
    ),
    "you added up absolute values in place of squares, and took 20 · log10 of their ratio.": right.edit(
        ("signal.square()", "signal.abs()"), ("error.square()", "error.abs()"), ("10 *", "20 *")
    ),
    "these are the largest number and the largest error. Powers are means of squares.": (
        right.edit((POWER, "signal.square().max()"), (NOISE, "error.square().max()"))
    ),
    "only the largest error counts here. The power of the noise is the mean of all squared errors.": (
        right.edit(NOISE, "error.square().max()")
    ),
    "only the largest error counts here, but all of the signal's squares. Take the sum of both.": (
        right.edit((POWER, "signal.square().sum()"), (NOISE, "error.square().max()"))
    ),
    "one was added to the ratio before the logarithm.": right.edit("log10(ratio", "log10(1 + ratio"),
    "two logarithms are divided. The logarithm of a ratio is their difference.": right.edit(
        ("ratio = ", "power, noise = signal.square().sum(), error.square().sum(); ratio = "),
        ("torch.log10(ratio)", "torch.log10(power) / torch.log10(noise)"),
    ),
    "the ratio is upside down: the signal is divided by the error, so that more is better.": (
        right.edit("log10(ratio", "log10(1 / ratio")
    ),
    "20 · log10 belongs to a ratio of amplitudes; for squares, which are powers, it is 10 · log10.": (
        right.edit("10 *", "20 *")
    ),
    "10 · log10 belongs to a ratio of powers; for amplitudes (square roots, norms), take 20 · log10.": (
        right.edit("log10(ratio", "log10(ratio.sqrt()")
    ),
    "this is the ratio itself, not yet in decibels: take 10 · log10 of it.": right.edit(DECIBELS, "ratio"),
    "this is the natural logarithm; decibels need the logarithm to base 10.": right.edit("log10", "log"),
    "this is the logarithm to base 2, which counts bits; decibels need base 10.": right.edit("log10", "log2"),
    "the factor 10 is missing: log10 of the ratio is bels, and a decibel is a tenth of one.": right.edit("10 * ", ""),
    "the squares of the numbers count, not their squared distances from the mean (var and std subtract it).": (
        right.edit((POWER, "signal.var()"), (NOISE, "error.var()"))
    ),
    "the mean was subtracted from the signal: its power is the mean of its squares, not its variance.": (
        right.edit(POWER, "signal.var(correction=0)")
    ),
    "absolute values were added up in place of squares.": (
        right.edit(("signal.square()", "signal.abs()"), ("error.square()", "error.abs()"))
    ),
    "this takes the peak of the signal (that is PSNR); its power is the mean of its squares.": (
        right.edit(POWER, "signal.square().max()")
    ),
    "you computed the signal's power after rounding; compute it from the signal before rounding.": (
        right.edit("signal.square()", "rounded.square()")
    ),
    "subtract first, then square: the error is rounded - signal, number by number.": (
        right.edit(NOISE, "(rounded.square().mean() - signal.square().mean()).abs()")
    ),
}

SQNR = Exercise(
    name="numbers.sqnr",
    title="Signal over rounding error, in decibels",
    difficulty=1,
    minutes=5,
    reference=_decibels,
    cases=_sqnr_cases,
    outputs=("decibels",),
    mistakes=MISTAKES,
    # Sums of squares in float32, as a learner may compute them, differ in the last digits from those in float64.
    tolerance=1e-4,
)
