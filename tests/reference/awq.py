"""AWQ, slow and obvious: number by number in Python floats, with outputs computed from tokens. Knows nothing of qtutor.

Weights are lists of rows, inputs are lists of tokens, a grid is a number of bits (asymmetric, with its step in 16
bits).
"""

import struct


def round_group(values: list[float], bits: int, kept: float = 1.0) -> list[float]:
    """The values of one group, rounded to a grid over the share ``kept`` of their range; 0 is one of the levels."""
    low, high = min([0.0, *values]) * kept, max([0.0, *values]) * kept
    (step,) = struct.unpack("e", struct.pack("e", (high - low) / (2**bits - 1) or 1.0))
    zero = min(round(-low / step), 2**bits - 1)
    levels = [step * (code - zero) for code in range(2**bits)]
    return [min(levels, key=lambda level: abs(level - value)) for value in values]


def round_scaled(weight: list[list[float]], scale: list[float], bits: int, size: int) -> list[list[float]]:
    """Every column times its scale, rounded in groups of ``size``, and divided by its scale again."""
    result = []
    for row in weight:
        scaled = [w * s for w, s in zip(row, scale)]
        back = [value for i in range(0, len(row), size) for value in round_group(scaled[i : i + size], bits)]
        result.append([value / s for value, s in zip(back, scale)])
    return result


def output(weight: list[list[float]], x: list[list[float]]) -> list[float]:
    return [sum(w * value for w, value in zip(row, token)) for token in x for row in weight]


def scales(x: list[list[float]], ratio: float) -> list[float]:
    """Mean |x| of every channel to the power of ``ratio``; the largest scale times the smallest is 1."""
    powers = [max(sum(abs(token[i]) for token in x) / len(x), 1e-4) ** ratio for i in range(len(x[0]))]
    middle = (max(powers) * min(powers)) ** 0.5
    return [power / middle for power in powers]


def duo_scales(x: list[list[float]], weight: list[list[float]], ratio: float, size: int) -> list[float]:
    """The powers of mean |x|, divided by the mean of a column's |weight| / (largest |weight| of its group) to the power
    of ``1 - ratio``; the largest scale times the smallest is 1."""
    powers = []
    for i in range(len(x[0])):
        mean_abs = max(sum(abs(token[i]) for token in x) / len(x), 1e-4)
        start = i // size * size
        parts = [abs(row[i]) / max(*(abs(w) for w in row[start : start + size]), 1e-8) for row in weight]
        powers.append(mean_abs**ratio / max(sum(parts) / len(parts), 1e-4) ** (1 - ratio))
    middle = (max(powers) * min(powers)) ** 0.5
    return [power / middle for power in powers]


def errors(weight: list[list[float]], x: list[list[float]], ratios: list[float], bits: int, size: int) -> list[float]:
    """The mean squared change of the layer's output, for every ratio."""
    target, found = output(weight, x), []
    for ratio in ratios:
        got = output(round_scaled(weight, scales(x, ratio), bits, size), x)
        found.append(sum((a - b) ** 2 for a, b in zip(got, target)) / len(target))
    return found


def cheapest(group: list[float], x: list[list[float]], bits: int, steps: int = 20) -> tuple[float, float]:
    """(cost, kept share of the range) of the best of the whole range and ``steps`` narrower ones down to a half.

    The cost is the change of the output by the group's errors, squared and summed over tokens ``x``.
    """
    tried = []
    for step in range(steps + 1):
        kept = 1 - 0.5 * step / steps
        error = [b - w for b, w in zip(round_group(group, bits, kept), group)]
        tried.append((sum(sum(e * value for e, value in zip(error, token)) ** 2 for token in x), kept))
    return min(tried, key=lambda pair: pair[0])


def stored(step: float) -> float:
    """The step as 16 bits hold it."""
    return struct.unpack("e", struct.pack("e", step))[0]


def on_grid(group: list[float], step: float, zero: int, bits: int) -> list[float]:
    """The values of the group, rounded to the nearest level; the level of code ``zero`` is 0."""
    levels = [step * (code - zero) for code in range(2**bits)]
    return [min(levels, key=lambda level: abs(level - value)) for value in group]


def in_turns(row: list[float], x: list[list[float]], bits: int, size: int, tries: list[list[tuple[float, int]]]):
    """(step, zero) of every group of one row: groups take turns, and are judged by the output of the whole row.

    tries: for every round, factors of the step and shifts of the zero; each group tries them on its present step and
    zero. The cheapest then gets the step that is best for the present levels of its weights, if this is cheaper still.
    If all shifts are 0, grids are symmetric, except for their first range.
    """
    groups = [row[start : start + size] for start in range(0, len(row), size)]
    found = []
    for group in groups:
        low, high = min([0.0, *group]), max([0.0, *group])
        step = stored((high - low) / (2**bits - 1) or 1.0)
        found.append((step, min(round(-low / step), 2**bits - 1)))
    back = [on_grid(group, *grid, bits) for group, grid in zip(groups, found)]

    def change(number: int, values: list[float]) -> float:
        """Change of the output, squared and summed over tokens, if one group has ``values`` and the others stay."""
        all_values = [value for i, part in enumerate(back) for value in (values if i == number else part)]
        return sum(sum((b - w) * t for b, w, t in zip(all_values, row, token)) ** 2 for token in x)

    def best_factor(number: int) -> float:
        """The factor of the group's present levels that brings the row's output closest: one unknown, least squares."""
        start, parts = number * size, []
        for token in x:
            own = sum(b * t for b, t in zip(back[number], token[start : start + size]))
            everything = sum(b * t for part, at in zip(back, range(0, len(row), size))
                             for b, t in zip(part, token[at : at + size]))  # fmt: skip
            parts.append((own, sum(w * t for w, t in zip(row, token)) - (everything - own)))
        return sum(own * rest for own, rest in parts) / max(sum(own * own for own, _ in parts), 1e-30)

    for once in tries:
        for number, group in enumerate(groups):
            step, zero = found[number]
            around = [(stored(step * factor), min(max(zero + shift, 0), 2**bits - 1)) for factor, shift in once]
            found[number] = min(around, key=lambda grid: change(number, on_grid(group, *grid, bits)))
            back[number] = on_grid(group, *found[number], bits)
            step, zero = found[number]
            better = stored(step * min(max(best_factor(number), 0.8), 1.2)), zero
            values = on_grid(group, *better, bits)
            if change(number, values) < change(number, back[number]):
                found[number], back[number] = better, values
    return found
