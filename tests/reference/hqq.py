"""One turn of HQQ on one group, weight by weight, in plain Python floats."""


def shrink(error: float, beta: float, p: float = 0.7) -> float:
    if error == 0:
        return 0.0
    size = abs(error)
    left = max(size - size ** (p - 1) / beta, 0.0)
    return left if error > 0 else -left


def turn(weights: list[float], scale: float, zero: int, bits: int, beta: float, symmetric: bool = False):
    """``(scale, zero)`` after one turn; the scale is not yet rounded to 16 bits."""
    largest = 2**bits - 1
    codes = [min(max(round(weight / scale) + zero, 0), largest) for weight in weights]
    fitted = []
    for weight, code in zip(weights, codes):
        error = weight / scale - (code - zero)
        fitted.append(weight / scale - shrink(error, beta))
    if not symmetric:
        mean = sum(code - target for code, target in zip(codes, fitted)) / len(codes)
        zero = min(max(round(mean), 0), largest)
    levels = [code - zero for code in codes]
    squares = max(sum(level**2 for level in levels), 1)
    factor = sum(target * level for target, level in zip(fitted, levels)) / squares
    return scale * min(max(factor, 0.5), 2.0), zero


def cost(weights: list[float], scale: float, zero: int, bits: int, p: float = 0.7) -> float:
    total = 0.0
    for weight in weights:
        code = min(max(round(weight / scale) + zero, 0), 2**bits - 1)
        total += abs(scale * (code - zero) - weight) ** p
    return total / len(weights)
