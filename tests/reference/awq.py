"""AWQ, slow and obvious: number by number in Python floats, outputs out of tokens. Knows nothing of qtutor.

Weights are lists of rows, inputs lists of tokens, a grid is a number of bits (asymmetric, its step stored in 16 bits).
"""

import struct


def round_group(values: list[float], bits: int, kept: float = 1.0) -> list[float]:
    """Values of one group to the nearest level of a grid over ``kept`` of their range, 0 among the levels."""
    low, high = min([0.0, *values]) * kept, max([0.0, *values]) * kept
    (step,) = struct.unpack("e", struct.pack("e", (high - low) / (2**bits - 1) or 1.0))
    zero = min(round(-low / step), 2**bits - 1)
    levels = [step * (code - zero) for code in range(2**bits)]
    return [min(levels, key=lambda level: abs(level - value)) for value in values]


def round_scaled(weight: list[list[float]], scale: list[float], bits: int, size: int) -> list[list[float]]:
    """Every column times its scale, rounded in groups of ``size``, and divided again."""
    result = []
    for row in weight:
        scaled = [w * s for w, s in zip(row, scale)]
        back = [value for i in range(0, len(row), size) for value in round_group(scaled[i : i + size], bits)]
        result.append([value / s for value, s in zip(back, scale)])
    return result


def output(weight: list[list[float]], x: list[list[float]]) -> list[float]:
    return [sum(w * value for w, value in zip(row, token)) for token in x for row in weight]


def scales(x: list[list[float]], ratio: float) -> list[float]:
    """Mean |x| of every channel to the power of ``ratio``, largest times smallest 1."""
    powers = [max(sum(abs(token[i]) for token in x) / len(x), 1e-4) ** ratio for i in range(len(x[0]))]
    middle = (max(powers) * min(powers)) ** 0.5
    return [power / middle for power in powers]


def duo_scales(x: list[list[float]], weight: list[list[float]], ratio: float, size: int) -> list[float]:
    """The powers of mean |x|, divided by what a column's weights are of their groups' largest, on average, to the power
    of ``1 - ratio``; largest times smallest 1."""
    powers = []
    for i in range(len(x[0])):
        mean_abs = max(sum(abs(token[i]) for token in x) / len(x), 1e-4)
        start = i // size * size
        parts = [abs(row[i]) / max(*(abs(w) for w in row[start : start + size]), 1e-8) for row in weight]
        powers.append(mean_abs**ratio / max(sum(parts) / len(parts), 1e-4) ** (1 - ratio))
    middle = (max(powers) * min(powers)) ** 0.5
    return [power / middle for power in powers]


def errors(weight: list[list[float]], x: list[list[float]], ratios: list[float], bits: int, size: int) -> list[float]:
    """Mean squared change of the layer's output for every ratio."""
    target, found = output(weight, x), []
    for ratio in ratios:
        got = output(round_scaled(weight, scales(x, ratio), bits, size), x)
        found.append(sum((a - b) ** 2 for a, b in zip(got, target)) / len(target))
    return found


def cheapest(group: list[float], x: list[list[float]], bits: int, steps: int = 20) -> tuple[float, float]:
    """(what the group's errors change in the output, squared and summed over tokens ``x``; the share of the range kept)
    of the best of the whole range and ``steps`` narrower ones down to a half."""
    tried = []
    for step in range(steps + 1):
        kept = 1 - 0.5 * step / steps
        error = [b - w for b, w in zip(round_group(group, bits, kept), group)]
        tried.append((sum(sum(e * value for e, value in zip(error, token)) ** 2 for token in x), kept))
    return min(tried, key=lambda pair: pair[0])
