"""MXFP4 and NVFP4, one block at a time, in plain Python: it tries every candidate in lists of levels."""

import math

LEVELS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # by code; with the sign bit, 8, negative
E4M3 = sorted((1 + m / 8) * 2.0 ** (e - 7) if e else m / 8 * 2.0**-6 for e in range(16) for m in range(8))[:127]


def code_of(weight: float, scale: float) -> int:
    """The code of the nearest of 8 magnitudes (the even code if two are equally near), with the sign as a bit."""
    distances = [abs(abs(weight) / scale - level) for level in LEVELS]
    nearest = min(distances)
    found = [code for code, distance in enumerate(distances) if distance == nearest]
    code = next((code for code in found if code % 2 == 0), found[0])
    return code + (8 if math.copysign(1, weight) < 0 else 0)


def value_of(code: int, scale: float) -> float:
    return (-1 if code >= 8 else 1) * LEVELS[code % 8] * scale


def mxfp4(block: list[float]) -> tuple[float, list[int]]:
    """Scale and codes of 32 weights. The scale is the smallest power of two such that all are below 7 scales."""
    largest = max(map(abs, block))
    if not largest:
        return 1.0, [code_of(weight, 1.0) for weight in block]
    scale = 2.0**-126
    while largest >= 7 * scale:  # from below, the first that fits
        scale *= 2
    return scale, [code_of(weight, scale) for weight in block]


def nvfp4(block: list[float], unit: float) -> tuple[float, list[int]]:
    """Scale (E4M3 value times ``unit``) and codes of 16 weights. The largest gets level 6 or 4, whichever errs less."""
    largest = max(map(abs, block))
    tried = []
    for level in (6, 4):
        scale = rounded_scale(largest / level / unit) * unit if largest else unit
        codes = [code_of(weight, scale) for weight in block]
        error = sum((value_of(code, scale) - weight) ** 2 for code, weight in zip(codes, block))
        tried.append((error, scale, codes))
    first, second = tried
    return first[1:] if first[0] <= second[0] else second[1:]


def rounded_scale(wanted: float) -> float:
    """The nearest E4M3 value that is not 0."""
    return min(E4M3[1:], key=lambda value: abs(value - wanted))
