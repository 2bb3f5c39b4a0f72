"""``gguf.scales``: eight scales and eight minima of six bits out of the 12 bytes of a Q4_K block."""

import numpy as np

from qtutor.course.checking.comparing import to_array
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.gguf.inputs import CHAPTER


def scales(packed):
    found = [], []
    for block in packed.tolist():
        bits = [f"{byte:08b}" for byte in block]  # the high bit stands first
        for which in (0, 1):
            first = [int(bits[4 * which + s][2:], 2) for s in range(4)]
            last = [int(bits[4 * which + s][:2] + bits[8 + s][4 * (1 - which) : 4 * (2 - which)], 2) for s in range(4)]
            found[which].append(first + last)
    return found


def cases():
    def block(*rows: list[int]) -> np.ndarray:
        return np.array(rows, np.uint8)

    return [
        ("the first four scales", (block([1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0]),)),
        ("the first four minima", (block([0, 0, 0, 0, 5, 6, 7, 63, 0, 0, 0, 0]),)),
        ("the low bits of the last four scales", (block([0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 15]),)),
        ("the low bits of the last four minima", (block([0, 0, 0, 0, 0, 0, 0, 0, 16, 32, 48, 240]),)),
        ("the upper bits of the last four scales", (block([64, 128, 192, 0, 0, 0, 0, 0, 0, 0, 0, 0]),)),
        ("the upper bits of the last four minima", (block([0, 0, 0, 0, 192, 0, 64, 128, 0, 0, 0, 0]),)),
        ("all of them 63", (block([255] * 12),)),
        ("three blocks of any bytes", (np.random.default_rng(3).integers(0, 256, (3, 12), np.uint8),)),
    ]


def _found(packed, *, mask=63, shift=4, low=True, swapped=False, crossed=False, upper=True):
    packed = packed.astype(np.int64)
    first, nibbles = packed[:, :8], [packed[:, 8:] & 15, packed[:, 8:] >> 4]
    last = np.concatenate(nibbles[::-1] if swapped else nibbles, axis=1) if low else 0
    above = first >> 6
    if crossed:
        above = np.concatenate([above[:, 4:], above[:, :4]], axis=1)
    last = last + (above << shift if upper else 0)
    first = first & mask
    return np.concatenate([first[:, :4], last[:, :4]], axis=1), np.concatenate([first[:, 4:], last[:, 4:]], axis=1)


def not_masked(packed):
    return _found(packed, mask=255)


def upper_forgotten(packed):
    return _found(packed, upper=False)


def upper_below(packed):
    packed = packed.astype(np.int64)
    scales_, minima = _found(packed, upper=False)
    scales_[:, 4:] = scales_[:, 4:] << 2 | packed[:, :4] >> 6
    minima[:, 4:] = minima[:, 4:] << 2 | packed[:, 4:8] >> 6
    return scales_, minima


def upper_at_six(packed):
    return _found(packed, shift=6)


def sum_before_shift(packed):
    # a + b << 4 is (a + b) << 4, and in uint8 what is above 255 is lost
    scales_, minima = _found(packed, upper=False)
    scales_[:, 4:] = scales_[:, 4:] + (packed[:, :4] >> 6) << 4 & 255
    minima[:, 4:] = minima[:, 4:] + (packed[:, 4:8] >> 6) << 4 & 255
    return scales_, minima


def upper_at_zero(packed):
    scales_, minima = _found(packed, upper=False)
    scales_[:, 4:] |= packed[:, :4] >> 6
    minima[:, 4:] |= packed[:, 4:8] >> 6
    return scales_, minima


def minima_not_shifted(packed):
    scales_, minima = _found(packed, low=False)
    scales_[:, 4:] += packed[:, 8:] & 15
    minima[:, 4:] |= packed[:, 8:] & 240
    return scales_, minima


def last_four_first(packed):
    return tuple(np.concatenate([part[:, 4:], part[:, :4]], axis=1) for part in _found(packed))


def nibbles_swapped(packed):
    return _found(packed, swapped=True)


def upper_crossed(packed):
    return _found(packed, crossed=True)


def minima_first(packed):
    return _found(packed)[::-1]


def in_plain_order(packed):
    bits = np.unpackbits(packed, axis=1, bitorder="little").reshape(len(packed), 16, 6)
    numbers = (bits * (1 << np.arange(6))).sum(axis=2)
    return numbers[:, :8], numbers[:, 8:]


def nibbles_as_pairs(packed):
    packed = packed.astype(np.int64)
    scales_, minima = _found(packed, low=False)
    nibbles = np.stack([packed[:, 8:] & 15, packed[:, 8:] >> 4], axis=2).reshape(len(packed), 8)
    scales_[:, 4:] += nibbles[:, :4]
    minima[:, 4:] += nibbles[:, 4:]
    return scales_, minima


def lost_in_a_byte(packed):
    return _found(packed, mask=15)


def interleaved(packed):
    both = np.stack(_found(packed), axis=2).reshape(len(packed), 16)
    return both[:, :8], both[:, 8:]


MISTAKES = {
    "the first four keep bits that belong to others. Only the lower six of a byte are theirs: & 63.": not_masked,
    "the upper bits of the last four are missing. They are the upper two of the first eight bytes.": upper_forgotten,
    "the two bits from the first bytes went below the four others. They are the upper ones: nibble | bits << 4.": (
        upper_below
    ),
    "the two bits from the first bytes went too far up. They stand above four bits: << 4.": upper_at_six,
    "+ is done before <<, so everything was shifted up by four. Write | in place of +, or put brackets around the "
    "shift.": sum_before_shift,
    "the two bits from the first bytes went onto the lowest two of the others. They stand above four bits: "
    "<< 4.": upper_at_zero,
    "the lower bits of the last four minima are still in the upper half of their bytes: >> 4.": minima_not_shifted,
    "the last four stand before the first four. Number 0 comes first.": last_four_first,
    "in the last four bytes you took scales from the upper half and minima from the lower. It is the other way "
    "round.": nibbles_swapped,
    "the upper bits are crossed: bytes 0 to 3 have those of the scales, 4 to 7 those of the minima.": upper_crossed,
    "scales and minima are swapped: return scales, minima.": minima_first,
    "you read six bits after six, end to end. The order is another: see the table.": in_plain_order,
    "the last bytes were taken for two neighbours each. The low half of byte 8 + s is scale 4 + s, the high half "
    "minimum 4 + s.": nibbles_as_pairs,
    "of the first four only four bits are left. They have six: & 63.": lost_in_a_byte,
    "scales and minima alternate in your result. Return the eight scales, then the eight minima.": interleaved,
}


def adapt(theirs):
    """A learner's function in place of the one that :func:`qtutor.gguf.decode` reads Q4_K and Q5_K with."""

    def six_bits(data):
        found = theirs(np.array(data))
        return tuple(to_array(part).astype(np.float32) for part in found)

    return six_bits


SCALES = Exercise(
    name="gguf.scales",
    chapter=CHAPTER,
    title="Sixteen numbers of six bits out of twelve bytes",
    difficulty=2,
    minutes=15,
    reference=scales,
    cases=cases,
    outputs=("scales", "minima"),
    mistakes=MISTAKES,
    properties=(
        (
            "six bits are a whole number from 0 to 63.",
            lambda arguments, results: all(bool(((part >= 0) & (part < 64)).all()) for part in results),
        ),
    ),
    replaces="qtutor.gguf.decoding._six_bits",
    adapt=adapt,
)
