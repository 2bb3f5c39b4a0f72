"""Tables of chapter 01, numbers."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from qtutor.course.scores import table
from qtutor.course.tables import SAME, say


def rounded(numbers: Sequence[tuple]) -> None:
    """What each number becomes in its format, with the bits of its fields separated; ``numbers``: (number, format)."""
    rows = []
    for i, (number, fmt) in enumerate(numbers, start=1):
        code = int(fmt.encode(number))
        back = float(fmt.decode(code))
        bits = f"{code:0{fmt.bits}b}"
        fields = f"`{bits[0]} {bits[1 : 1 + fmt.exponent_bits]} {bits[1 + fmt.exponent_bits :]}`"
        rows.append([i, f"{number:.7g}", fmt.name, fields, f"{back:.7g}", f"{abs(back - number) / number:.2%}"])
    table(["", "number", "in", "S E M", "becomes", "relative error"], *rows)


def ranges(formats: Sequence) -> None:
    """For float formats: the largest and smallest numbers, the step at 1, and how many codes are not numbers."""
    rows = [
        [
            fmt.name,
            f"{fmt.largest:.6g}",
            f"{fmt.smallest_normal:.3g}",
            f"{fmt.smallest_subnormal:.3g}",
            f"1/{2**fmt.mantissa_bits:,}",
            f"{2 * (2 ** (fmt.bits - 1) - 1 - fmt.largest_code):,} of {2**fmt.bits:,}",
        ]
        for fmt in formats
    ]
    header = ["format", "largest", "smallest normal", "smallest above zero", "step at 1"]
    table([*header, "codes for infinity or NaN"], *rows)


def decibels_by_bits(measured: Mapping[str, Sequence[float]], widths: Sequence[int]) -> None:
    """SQNR at a few of ``widths`` (1, 2, 3 ... bits), and how much it rises a bit, at few bits and at many."""
    rows = []
    for name, decibels in measured.items():
        early, late = (np.polyfit(widths[a:b], decibels[a:b], 1)[0] for a, b in ((2, 5), (10, 14)))
        rows.append([name, *[f"{decibels[b - 1]:.1f}" for b in (2, 4, 8, 12)], f"{early:.2f}", f"{late:.2f}"])
    header = ["signal", "2 bits", "4 bits", "8 bits", "12 bits"]
    table([*header, "dB a bit, at 3 to 5 bits", "at 11 to 14 bits"], *rows)


def decibels_by_size(series: Mapping[str, Sequence[float]], powers: Sequence[int], shown: Sequence[int]) -> None:
    """SQNR of each format for signals of size ``2**power``, at the powers ``shown``; NaN means infinite numbers."""
    rows = []
    for name, decibels in series.items():
        chosen = [decibels[powers.index(power)] for power in shown]
        rows.append([name, *["infinite numbers" if np.isnan(value) else f"{value:.1f}" for value in chosen]])
    table(["format", *[f"2^{power}" for power in shown]], *rows)


def near_and_from_afar(picture: np.ndarray, variants: Mapping[str, tuple[np.ndarray, float]], side: int = 4) -> None:
    """PSNR of each variant of ``picture`` (values 0 to 1): of its points, and of averages over ``side`` x ``side``.

    variants: name -> (picture of the same shape, true bits a value).
    """
    rows = []
    for name, (rounded, bits) in variants.items():
        near, afar = (_psnr(view(rounded), view(picture)) for view in (np.asarray, lambda x: _averages(x, side)))
        rows.append([name, bits, f"{near:.1f}", f"{afar:.1f}"])
    table(["", "true bits a value", "PSNR, dB", f"PSNR after averaging {side} × {side}, dB"], *rows)


def _averages(values: np.ndarray, side: int) -> np.ndarray:
    height, width, colours = values.shape
    return values.reshape(height // side, side, width // side, side, colours).mean(axis=(1, 3))


def _psnr(rounded: np.ndarray, exact: np.ndarray) -> float:
    return 10 * np.log10(1 / np.mean((rounded - exact) ** 2))


def costs(parameters: int, formats: Sequence[tuple[str, float, str]]) -> None:
    """The bytes of a model with ``parameters`` weights; ``formats``: (name, bits, where engines use it)."""
    table(
        ["format", "bits", "bytes a parameter", f"{parameters / 1e9:g} billion parameters", "where engines use it"],
        *[[name, bits, f"{bits / 8:g}", f"{parameters * bits / 8 / 1e9:.1f} GB", use] for name, bits, use in formats],
    )


def row_of_weights(
    name: str, original: torch.Tensor, rounded: torch.Tensor, decibels: float, perplexity: float, reference: float
) -> list[str]:
    """A row for :func:`weights_in`. original, rounded: all weights, of one shape; reference: the float perplexity."""
    changed = (rounded != original).double().mean().item()
    lost = ((rounded == 0) & (original != 0)).double().mean().item()
    rise = 100 * (perplexity / reference - 1)
    return [name, f"{changed:.2%}", f"{lost:.2%}", f"{decibels:.1f}", f"{perplexity:.4g}", f"{rise:+.2f} %"]


def weights_in(reference: float, rows: Sequence[list[str]]) -> None:
    """The decoder with its weights rounded to each format; ``rows`` are those of :func:`row_of_weights`."""
    header = ["weights in", "changed", "became zero", "SQNR, dB", "perplexity", "rise"]
    table(header, ["fp32, as loaded", "-", "-", "-", f"{reference:.4g}", ""], *rows)


def best_formats(
    original: torch.Tensor, decibels: Mapping[str, float], perplexities: Mapping[str, float], reference: float
) -> None:
    """Which of the 8-bit formats is the most exact, and which of the two 4-bit ones costs less perplexity."""
    largest = float(original.abs().max())
    spread = float(original.square().mean().sqrt())
    eight = ["fp8 e4m3", "fp8 e5m2", "fp8 e4m3, scaled", "int8, scaled"]
    best, worst = (choose(eight, key=decibels.get) for choose in (max, min))
    rises = {name: 100 * (perplexities[name] / reference - 1) for name in ("fp4 e2m1, scaled", "int4, scaled")}
    kinder, harsher = sorted(rises, key=rises.get)
    four = f"**{kinder}** costs less perplexity than {harsher}"
    if rises[kinder] > (1 - SAME) * rises[harsher]:
        four = f"{kinder} and {harsher} cost about the same perplexity"
    say(
        f"The largest weight is {largest:.2f}. A typical one (the root mean square) is {spread:.3f}, "
        f"{largest / spread:.0f} times less.",
        f"Of the 8-bit formats **{best}** is the most exact ({decibels[best]:.1f} dB), {worst} the least "
        f"({decibels[worst]:.1f} dB).",
        f"At 4 bits, with one scale a matrix, {four}: {rises[kinder]:+.1f} % against {rises[harsher]:+.1f} %.",
    )
