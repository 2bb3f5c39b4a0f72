"""Statistics of weights and inputs, slow and obvious: number by number in Python floats. Knows nothing of qtutor."""

import math


def excess_kurtosis(values: list[float]) -> float:
    """Fourth moment divided by squared variance, minus 3, with exactly rounded sums."""
    mean = math.fsum(values) / len(values)
    second = math.fsum((v - mean) ** 2 for v in values) / len(values)
    fourth = math.fsum((v - mean) ** 4 for v in values) / len(values)
    return fourth / second**2 - 3


def median(values: list[float]) -> float:
    """The middle one of the sorted values, or the mean of the two in the middle."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def crest_factor(values: list[float]) -> float:
    return max(abs(v) for v in values) / math.sqrt(math.fsum(v * v for v in values) / len(values))


def top(values: list[float], count: int) -> list[int]:
    """Indices of the ``count`` largest values, ascending: take the largest, remove it, repeat."""
    left = dict(enumerate(values))
    chosen = []
    for _ in range(count):
        best = None
        for index, value in left.items():
            if best is None or value > left[best]:
                best = index
        chosen.append(best)
        del left[best]
    return sorted(chosen)
