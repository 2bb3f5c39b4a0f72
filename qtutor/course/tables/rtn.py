"""Tables of chapter 02, rounding to nearest."""

from collections.abc import Mapping

from qtutor.course.scores import table
from qtutor.course.tables import deviation, say
from qtutor.measure.against import Comparison
from qtutor.report import Report

# Losses of a decoder: comparison with the float one; shares of right arithmetic, other answers, and valid Python.
Measured = tuple[Comparison, float, float, float]
FEWER = ("4", "3", "2")
POINTS = 5  # per cent that arithmetic has to lose more than the rest before a sentence says so


def bytes_of(report: Report, before: int, after: int) -> None:
    """The report of a quantized decoder, and how much its layers and the whole model shrank (before, after: bytes)."""
    print(report)
    say(
        f"The quantized layers shrank to {report.bytes_after / report.bytes_before:.1%} of their size, the whole model "
        f"to {after / before:.1%}: the parts that were not quantized count, too. In a model of billions of parameters, "
        "the embedding is a far smaller share."
    )


def losses_and_skills(measured: Mapping[str, Measured]) -> None:
    """A row for each number of bits: what the loss says, and what the decoder can still do."""
    rows = [
        [width, f"{c.perplexity:.3g}", f"{c.loss_percent:+.1f} %", f"{c.kl:.2g}", f"{c.flips:.1%}"]
        + [f"{share:.0%}" for share in shares]
        for width, (c, *shares) in measured.items()
    ]
    header = ["bits", "perplexity", "rise", "KL", "flips", "arithmetic right", "other answers right", "valid Python"]
    table(header, *rows)


def what_suffers_first(measured: Mapping[str, Measured], questions: int, functions: int) -> None:
    """How much arithmetic and the rest fell, as shares of float's right answers, and the effect of chance on shares.

    questions: the number of arithmetic questions. functions: the number of functions that the decoder wrote.
    """
    lines, more = [], []
    for width in FEWER:
        c, *shares = measured[width]
        arithmetic, rest, _ = (100 * (1 - now / before) for now, before in zip(shares, measured["float"][1:]))
        lines.append(
            f"- **{width} bits**: perplexity rises by {c.loss_percent:.1f} %, and {c.flips:.0%} of the most likely "
            f"tokens change; arithmetic lost {arithmetic:.0f} % of its right answers, the rest {rest:.0f} %."
        )
        if arithmetic > rest + POINTS:
            more.append(width)
    noise, noise_valid = (100 * deviation(count) for count in (questions, functions))
    say(
        *lines,
        f"Arithmetic loses clearly more than the rest (at least {POINTS} points) at: {', '.join(more) or 'none'} bits.",
        f"One standard deviation of the share of arithmetic is at most {noise:.0f} points, and of valid "
        f"Python {noise_valid:.0f}. Trust a difference of about three times that or more.",
    )


def group_size_row(bits: int, kind: str, size: str, report: Report, rise: float) -> list:
    """A row for :func:`group_sizes`. kind, size: the grid and the group size in words. rise: of the perplexity, %."""
    true_bits = 8 * report.bytes_after / sum(row.shape[0] * row.shape[1] for row in report.rows)
    error = sum(row.error for row in report.rows) / len(report.rows)
    return [bits, kind, size, f"{true_bits:.3f}", f"{error:.1%}", f"{rise:+.1f} %"]


def group_sizes(rows: list[list]) -> None:
    """The gain from smaller groups, zero points and clipping; ``rows`` are those of :func:`group_size_row`."""
    table(["bits", "grid", "group size", "true bits a weight", "mean error of the weights", "perplexity rise"], *rows)
