"""Which bit of a block belongs to what: the layout of every type as data, for views that take a block apart.

A block holds *items*: a code for every weight, a scale (and a minimum) for every sub-block, and a float16 for the whole
block. The items are stored in *strips*, the same bits of neighbouring bytes: in Q4_K, bits 6 and 7 of bytes 4 to 7 are
the upper bits of scales 4 to 7. :func:`parts_of` says what the bits of a byte are and which weights depend on them,
:func:`item_value` returns the value of an item, and :data:`FORMULAS` holds the formula of a weight for every type. The
decoders do not use this module: it is tested against them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from qtutor.gguf.layout import IQ4_VALUES, MXFP4_VALUES, NVFP4_SCALES, TYPES


@dataclass(frozen=True)
class Strip:
    """Byte ``at + j``, bits ``low`` to ``low + bits - 1``: bits ``shift`` and up of ``item`` number ``first + j``.

    trit: the byte is a number in which three-valued codes are digits, and this is the digit number ``trit``.
    """

    item: str
    at: int
    count: int
    low: int = 0
    bits: int = 8
    shift: int = 0
    first: int = 0
    trit: int | None = None


@dataclass(frozen=True)
class Part:
    """Some bits of one byte: they are bits ``shift`` and up of item ``number``, and ``weights`` depend on this item."""

    byte: int
    low: int
    bits: int
    item: str
    number: int
    shift: int
    trit: int | None
    weights: range


def _fold(item: str, bits: int, stride: int, size: int, shift: int = 0, at: int = 0) -> tuple[Strip, ...]:
    """Items over ``size`` bytes as :func:`qtutor.gguf.layout.unfold` finds them."""
    lows = range(0, 8, bits)
    return tuple(
        Strip(item, at + run * stride, stride, low, bits, shift, (run * len(lows) + k) * stride)
        for run in range(size // stride)
        for k, low in enumerate(lows)
    )


def _trits(at: int, stride: int, count: int, first: int) -> tuple[Strip, ...]:
    return tuple(Strip("code", at, stride, first=first + k * stride, trit=k) for k in range(count))


_NIBBLES = {"qs": _fold("code", 4, 16, 16)}
_FIFTH = {"qh": _fold("code", 1, 1, 4, shift=4)}
_PAIRS = {"qs": _fold("code", 2, 32, 64)}
# Four scales and four minima have six bits to themselves. Above those are the upper two bits of the others.
_SIX_BITS = {
    "scales": (
        Strip("scale", 0, 4, 0, 6),
        Strip("min", 4, 4, 0, 6),
        Strip("scale", 8, 4, 0, 4, first=4),
        Strip("scale", 0, 4, 6, 2, shift=4, first=4),
        Strip("min", 8, 4, 4, 4, first=4),
        Strip("min", 4, 4, 6, 2, shift=4, first=4),
    )
}
# By type and field, counted from where the field begins. Fields that are one number need no entry.
_STRIPS = {
    "Q4_0": _NIBBLES,
    "Q4_1": _NIBBLES,
    "Q5_0": _NIBBLES | _FIFTH,
    "Q5_1": _NIBBLES | _FIFTH,
    "Q8_0": {"qs": _fold("code", 8, 32, 32)},
    "Q2_K": _PAIRS | {"scales": (Strip("scale", 0, 16, 0, 4), Strip("min", 0, 16, 4, 4))},
    "Q3_K": _PAIRS
    | {"hmask": _fold("code", 1, 32, 32, shift=2)}
    | {"scales": _fold("scale", 4, 8, 8) + _fold("scale", 2, 4, 4, shift=4, at=8)},
    "Q4_K": _SIX_BITS | {"qs": _fold("code", 4, 32, 128)},
    "Q5_K": _SIX_BITS | {"qs": _fold("code", 4, 32, 128), "qh": _fold("code", 1, 32, 32, shift=4)},
    "Q6_K": {
        "ql": _fold("code", 4, 64, 128),
        "qh": _fold("code", 2, 32, 64, shift=4),
        "scales": _fold("scale", 8, 16, 16),
    },
    "IQ4_NL": _NIBBLES,
    "IQ4_XS": {
        "scales_h": _fold("scale", 2, 1, 2, shift=4),
        "scales_l": _fold("scale", 4, 1, 4),
        "qs": _fold("code", 4, 16, 128),
    },
    "TQ1_0": {"qs": _trits(0, 32, 5, 0) + _trits(32, 16, 5, 160), "qh": _trits(0, 4, 4, 240)},
    "TQ2_0": _PAIRS,
    "MXFP4": _NIBBLES,
    "NVFP4": {"d": _fold("scale", 8, 4, 4), "qs": _fold("code", 4, 8, 32)},
    "Q1_0": {"qs": _fold("code", 1, 1, 16)},
    "Q2_0": {"qs": _fold("code", 2, 1, 16)},
}

_K = "d * scale * code - dmin * min"
FORMULAS = {
    "F32": "value", "F16": "value", "BF16": "value", "Q4_0": "d * code", "Q4_1": "d * code + m", "Q5_0": "d * code",
    "Q5_1": "d * code + m", "Q8_0": "d * code", "Q2_K": _K, "Q3_K": "d * scale * code", "Q4_K": _K, "Q5_K": _K,
    "Q6_K": "d * scale * code", "IQ4_NL": "d * code", "IQ4_XS": "d * scale * code", "TQ1_0": "d * code",
    "TQ2_0": "d * code", "MXFP4": "e * code", "NVFP4": "scale * code", "Q1_0": "d * code", "Q2_0": "d * code",
}  # fmt: skip


def _less(offset: int) -> Callable[[int], int]:
    return lambda raw: raw - offset


def _int8(raw: int) -> int:
    return raw - 256 if raw > 127 else raw


# The value of an item, if it is not simply the whole number that its bits form.
_READINGS = {
    ("Q4_0", "code"): _less(8),
    ("Q5_0", "code"): _less(16),
    ("Q8_0", "code"): _int8,
    ("Q3_K", "code"): _less(4),
    ("Q3_K", "scale"): _less(32),
    ("Q6_K", "code"): _less(32),
    ("Q6_K", "scale"): _int8,
    ("IQ4_NL", "code"): lambda raw: int(IQ4_VALUES[raw]),
    ("IQ4_XS", "code"): lambda raw: int(IQ4_VALUES[raw]),
    ("IQ4_XS", "scale"): _less(32),
    ("TQ1_0", "code"): _less(1),
    ("TQ2_0", "code"): _less(1),
    ("MXFP4", "code"): lambda raw: int(MXFP4_VALUES[raw]),
    ("MXFP4", "e"): lambda raw: 2.0 ** (raw - 128),
    ("NVFP4", "code"): lambda raw: int(MXFP4_VALUES[raw]),
    ("NVFP4", "scale"): lambda raw: float(NVFP4_SCALES[raw]),
    ("Q1_0", "code"): lambda raw: 2 * raw - 1,
    ("Q2_0", "code"): _less(1),
}
_FLOATS = {
    "f16": lambda raw: float(np.uint16(raw).view(np.float16)),
    "bf16": lambda raw: float(np.uint32(raw << 16).view(np.float32)),
    "f32": lambda raw: float(np.uint32(raw).view(np.float32)),
}


@cache
def strips_of(name: str) -> tuple[Strip, ...]:
    """The strips of a block type, counted from the block's first byte; none for a type that qtutor cannot decode."""
    strips, at = [], 0
    for field in TYPES[name].fields if name in TYPES else ():
        inside = _STRIPS.get(name, {}).get(field.name)
        if inside is None:  # one number, lowest byte first
            inside = tuple(Strip(field.name, i, 1, shift=8 * i) for i in range(field.size))
        strips += [replace(strip, at=strip.at + at) for strip in inside]
        at += field.size
    return tuple(strips)


@cache
def item_counts(name: str) -> dict[str, int]:
    """How many items of each kind a block holds: ``{"d": 1, "dmin": 1, "scale": 8, "min": 8, "code": 256}``."""
    counts = {}
    for strip in strips_of(name):
        counts[strip.item] = max(counts.get(strip.item, 0), strip.first + strip.count)
    return counts


@cache
def parts_of(name: str, byte: int) -> tuple[Part, ...]:
    """What the bits of a byte are, highest bits first."""
    parts = []
    for strip in strips_of(name):
        if strip.at <= byte < strip.at + strip.count:
            number = strip.first + byte - strip.at
            span = TYPES[name].values // item_counts(name)[strip.item]  # weights to an item
            weights = range(number * span, (number + 1) * span)
            parts.append(Part(byte, strip.low, strip.bits, strip.item, number, strip.shift, strip.trit, weights))
    return tuple(sorted(parts, key=lambda part: (-part.low, part.trit or 0)))


@cache
def _where(name: str) -> dict[tuple[str, int], list[Part]]:
    where = {}
    for byte in range(TYPES[name].nbytes):
        for part in parts_of(name, byte):
            where.setdefault((part.item, part.number), []).append(part)
    return where


def item_bits(name: str, block: np.ndarray, item: str, number: int = 0) -> int:
    """The whole number that the bits of an item form in a block, uint8 ``[nbytes]``."""
    raw = 0
    for part in _where(name)[item, number]:
        byte = int(block[part.byte])
        if part.trit is not None:
            return (byte * 3**part.trit & 255) * 3 >> 8
        raw |= (byte >> part.low & (1 << part.bits) - 1) << part.shift
    return raw


def item_value(name: str, block: np.ndarray, item: str, number: int = 0) -> float:
    """The value of an item: the number of a float16, a code minus its offset, or a value from a table."""
    raw = item_bits(name, block, item, number)
    kinds = {field.name: field.kind for field in TYPES[name].fields}
    reading = _FLOATS.get(kinds.get(item)) or _READINGS.get((name, item))
    return reading(raw) if reading else raw


def item_width(name: str, item: str, number: int = 0) -> int:
    """How many bits an item has."""
    return sum(part.bits for part in _where(name)[item, number])
