"""``gguf.scales``: read eight scales and eight minima of six bits from the 12 bytes of a Q4_K block."""

import numpy as np

from qtutor.course.checking.comparing import to_array
from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise


def scales(packed):
    found = [], []
    for block in packed.tolist():
        bits = [f"{byte:08b}" for byte in block]  # the high bit comes first
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


@solution
def right(packed):
    p = packed.astype(np.int64)
    first, upper = p[:, :8] & 63, p[:, :8] >> 6
    lower = np.concatenate([p[:, 8:] & 15, p[:, 8:] >> 4], axis=1)
    last = lower | upper << 4
    scales = np.concatenate([first[:, :4], last[:, :4]], axis=1)
    minima = np.concatenate([first[:, 4:], last[:, 4:]], axis=1)
    return scales, minima


def in_plain_order(packed):
    bits = np.unpackbits(packed, axis=1, bitorder="little").reshape(len(packed), 16, 6)
    numbers = (bits * (1 << np.arange(6))).sum(axis=2)
    return numbers[:, :8], numbers[:, 8:]


UPPER_BITS = "last = lower | upper << 4"


def last_of(scales: str, minima: str) -> str:
    """The line that computes the last four scales and the last four minima with these expressions."""
    return f"last = np.concatenate([{scales}, {minima}], axis=1)"


MISTAKES = {
    "the first four keep bits that belong to others. Only the lower six bits of a byte belong to them: & 63.": (
        right.edit(" & 63", "")
    ),
    "the upper bits of the last four are missing (or an & 15 around the whole expression removed them again). They are "
    "the upper two of the first eight bytes.": right.edit(" | upper << 4", ""),
    "the two bits from the first bytes went below the four others. They are the upper ones: nibble | bits << 4.": (
        right.edit("lower | upper << 4", "lower << 2 | upper")
    ),
    "the two bits from the first bytes went too far up. They belong above four bits: << 4.": (
        right.edit("upper << 4", "upper << 6")
    ),
    "+ is evaluated before <<, so everything was shifted up by four. Write | in place of +, or put brackets around the "
    "shift.": right.edit("lower | upper << 4", "(lower + upper << 4) % 256"),  # uint8 keeps 8 bits
    "the two bits from the first bytes went onto the lowest two of the others. They belong above four bits: << "
    "4.": right.edit("upper << 4", "upper"),
    "+ is evaluated before &, so & is applied to the sum. Write | in place of +, or put brackets around the "
    "&.": right.edit(
        ("p[:, 8:] & 15,", "p[:, 8:] & (15 + (p[:, :4] >> 6 << 4)),"),
        ("p[:, 8:] >> 4]", "p[:, 8:] >> 4 | p[:, 4:8] >> 6 << 4]"),
        (UPPER_BITS, "last = lower"),
    ),
    "+ is evaluated before & and >>, so these are applied to the sum. Write | in place of +, or put brackets around & "
    "and >>.": right.edit(
        ("p[:, 8:] & 15,", "p[:, 8:] & (15 + (p[:, :4] >> 6 << 4)),"),
        ("p[:, 8:] >> 4]", "p[:, 8:] >> (4 + (p[:, 4:8] >> 6 << 4))]"),
        (UPPER_BITS, "last = lower"),
    ),
    "+ is evaluated before everything else here, so 15 and a whole byte were added, and the sum was shifted. Write | "
    "in place of +, or put brackets around both parts.": right.edit(
        UPPER_BITS,
        last_of("p[:, 8:] & ((15 + p[:, :4]) % 256 >> 6 << 4)", "p[:, 8:] >> (4 + p[:, 4:8]) % 256 >> 6 << 4"),
    ),
    "+ is evaluated before >> and <<, so the sum of both parts was shifted. Write | in place of +, or put brackets "
    "around the shifts.": right.edit(
        UPPER_BITS,
        last_of("((p[:, 8:] & 15) + p[:, :4]) % 256 >> 6 << 4", "((p[:, 8:] >> 4) + p[:, 4:8]) % 256 >> 6 << 4"),
    ),
    "+ is evaluated before <<, and << before &: the two bits were added to 15 or 4, and the sum was shifted. Write | "
    "in place of +, or put brackets around both parts.": right.edit(
        UPPER_BITS, last_of("p[:, 8:] & (15 + (p[:, :4] >> 6) << 4)", "(p[:, 8:] >> 4 + (p[:, 4:8] >> 6) << 4) % 256")
    ),
    "the upper two bits are one place too high. They are worth 16 and 32: << 4.": (
        right.edit("upper << 4", "upper << 5")
    ),
    "only one of the upper two bits is left: they are bytes >> 6.": right.edit("p[:, :8] >> 6", "p[:, :8] >> 7"),
    "you took the lower two bits of the first bytes for the last four. Take the upper two: >> 6.": (
        right.edit("p[:, :8] >> 6", "p[:, :8] & 3")
    ),
    "the first four scales and the first four minima are exchanged: bytes 0 to 3 hold scales, 4 to 7 "
    "minima.": right.edit(
        ("[first[:, :4], last[:, :4]]", "[first[:, 4:], last[:, :4]]"),
        ("[first[:, 4:], last[:, 4:]]", "[first[:, :4], last[:, 4:]]"),
    ),
    "the last four scales and the last four minima are exchanged.": right.edit(
        ("[first[:, :4], last[:, :4]]", "[first[:, :4], last[:, 4:]]"),
        ("[first[:, 4:], last[:, 4:]]", "[first[:, 4:], last[:, :4]]"),
    ),
    "the first four lost their lowest bits: they are bytes & 63, not bytes >> 2.": right.edit(
        "p[:, :8] & 63", "p[:, :8] >> 2"
    ),
    "the numbers are divided by 63. Return whole numbers from 0 to 63.": (
        right.edit("return scales, minima", "return scales / 63, minima / 63")
    ),
    "the minima are negative. Here they are whole numbers from 0 to 63; they are subtracted later.": (
        right.edit("return scales, minima", "return scales, -minima")
    ),
    "the lower bits of the last four minima are still in the upper half of their bytes: >> 4.": (
        right.edit("p[:, 8:] >> 4", "p[:, 8:] & 240")
    ),
    "the last four come before the first four. Number 0 has to come first.": right.edit(
        ("[first[:, :4], last[:, :4]]", "[last[:, :4], first[:, :4]]"),
        ("[first[:, 4:], last[:, 4:]]", "[last[:, 4:], first[:, 4:]]"),
    ),
    "the first four and the last four alternate. All of the first four belong before the last four.": right.edit(
        ("[first[:, :4], last[:, :4]], axis=1)", "[first[:, :4], last[:, :4]], axis=1)[:, [0, 4, 1, 5, 2, 6, 3, 7]]"),
        ("[first[:, 4:], last[:, 4:]], axis=1)", "[first[:, 4:], last[:, 4:]], axis=1)[:, [0, 4, 1, 5, 2, 6, 3, 7]]"),
    ),
    "in the last four bytes you took scales from the upper half and minima from the lower. It is the other way "
    "round.": right.edit("[p[:, 8:] & 15, p[:, 8:] >> 4]", "[p[:, 8:] >> 4, p[:, 8:] & 15]"),
    "the upper bits are crossed: bytes 0 to 3 have those of the scales, 4 to 7 those of the minima.": (
        right.edit("upper << 4", "np.roll(upper, 4, axis=1) << 4")
    ),
    "scales and minima are swapped: return scales, minima.": right.edit(
        "return scales, minima", "return minima, scales"
    ),
    "you read the six-bit numbers one after the other. Their order is different: see the table.": in_plain_order,
    "you read two neighbours from each of the last bytes. The low half of byte 8 + s is scale 4 + s, the high half "
    "minimum 4 + s.": (
        right.edit(
            ("lower = np.concatenate", "lower = np.stack"), (">> 4], axis=1)", ">> 4], axis=2).reshape(len(p), 8)")
        )
    ),
    "only four bits of each of the first four are left. They have six: & 63.": right.edit("& 63", "& 15"),
    "scales and minima alternate in your result. Return the eight scales, then the eight minima.": right.edit(
        "return scales, minima", "return np.split(np.stack([scales, minima], axis=2).reshape(len(p), 16), 2, axis=1)"
    ),
}


def adapt(theirs):
    """A learner's function replaces the one that :func:`qtutor.gguf.decode` uses for Q4_K and Q5_K."""

    def six_bits(data):
        found = theirs(np.array(data))
        return tuple(to_array(part).astype(np.float32) for part in found)

    return six_bits


SCALES = Exercise(
    name="gguf.scales",
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
