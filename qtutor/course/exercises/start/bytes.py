"""``start.true_bytes``: the bytes of a quantized layer, including scales and zero points."""

import math

from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise


def true_bytes(rows, columns, bits, group_size, symmetric):
    def of_a_row(count):
        room, taken = 0, 0
        for _ in range(count * bits):  # bit by bit; after a full byte, a new one begins
            if not room:
                room, taken = 8, taken + 1
            room -= 1
        return taken

    groups = len(range(0, columns, group_size))
    return rows * (of_a_row(columns) + sum(2 for _ in range(groups)) + (0 if symmetric else of_a_row(groups)))


def cases():
    return [
        ("one row, one group", (1, 8, 4, 8, False)),
        ("the same without a zero point", (1, 8, 4, 8, True)),
        ("several rows and groups", (16, 128, 4, 32, False)),
        ("rows that end within a byte", (3, 5, 4, 5, True)),
        ("zero points that end within a byte", (4, 12, 4, 4, False)),
        ("2 bits, both end within a byte", (10, 9, 2, 3, False)),
        ("8 bits", (64, 96, 8, 32, False)),
        ("a layer of a large model", (4096, 4096, 4, 64, False)),
        ("the same, symmetric", (4096, 4096, 4, 64, True)),
    ]


@solution
def right(rows, columns, bits, group_size, symmetric):
    groups = columns // group_size
    codes = math.ceil(columns * bits / 8)
    scales = 2 * groups
    zeros = 0 if symmetric else math.ceil(groups * bits / 8)
    return rows * (codes + scales + zeros)


CODES, ZEROS = "math.ceil(columns * bits / 8)", "math.ceil(groups * bits / 8)"
EXACT = (CODES, "columns * bits / 8"), (ZEROS, "groups * bits / 8")  # nothing is rounded
ALL = "rows * (codes + scales + zeros)"

MISTAKES = {
    "these are bits; a byte has 8 of them.": right.edit("rows * (", "8 * rows * ("),
    "the scales are missing: every group stores one, in 16 bits.": right.edit(" + scales", ""),
    "the zero points are missing: on a grid that is not symmetric, every group stores one.": right.edit(" + zeros", ""),
    "scales and zero points are both missing: every group stores them.": right.edit(" + scales + zeros", ""),
    "you counted 4 bytes for a scale. A scale is stored in 16 bits.": right.edit("2 * groups", "4 * groups"),
    "you counted 1 byte for a scale. A scale has 16 bits, which are 2 bytes.": right.edit("2 * groups", "groups"),
    "you counted 16 bytes for a scale. A scale has 16 bits, which are 2 bytes.": right.edit(
        "2 * groups", "16 * groups"
    ),
    "you counted `bits` bits for a scale, as for a code. A scale is stored in 16 bits.": (
        right.edit("2 * groups", "math.ceil(groups * bits / 8)")
    ),
    "you counted only one scale for each row: every group stores one.": right.edit("2 * groups", "2"),
    "you counted only one scale for the whole matrix: every group of every row stores one.": (
        right.edit(ALL, "rows * (codes + zeros) + 2")
    ),
    "you counted only one zero point for each row: every group stores one.": right.edit("groups * bits", "bits"),
    "you counted a whole byte for a code. Codes are packed, several in a byte.": right.edit(CODES, "columns"),
    "you counted 16 bits for each code: that is the size of a weight before quantization.": right.edit(
        CODES, "columns * 2"
    ),
    "codes are counted in bits, the rest in bytes; a byte has 8 bits.": right.edit(CODES, "columns * bits"),
    "zero points are counted in bits, the rest in bytes; a byte has 8 bits.": right.edit(ZEROS, "groups * bits"),
    "you counted a whole byte for a zero point. A zero point is a code, and takes as many bits as a code.": (
        right.edit("groups * bits", "groups * 8")
    ),
    "you counted 16 bits for a zero point. A zero point is a code, and takes as many bits as a code.": (
        right.edit("groups * bits", "groups * 16")
    ),
    "you counted zero points for a symmetric grid, too. They are always the middle code there, and are not stored.": (
        right.edit("0 if symmetric else ", "")
    ),
    "symmetric is reversed: the symmetric grid stores no zero points.": (
        right.edit("if symmetric", "if not symmetric")
    ),
    "the last byte of a row is lost if codes or zero points do not fill it: round up, not down.": (
        right.edit(("ceil(columns", "floor(columns"), ("ceil(groups", "floor(groups"))
    ),
    "the last byte of the codes is lost if they do not fill it: round up, not down.": (
        right.edit("ceil(columns", "floor(columns")
    ),
    "the last byte of the zero points is lost if they do not fill it: round up, not down.": (
        right.edit("ceil(groups", "floor(groups")
    ),
    "nothing is rounded, but only whole bytes are stored. Round up the bytes of a row's codes and of its zero "
    "points.": right.edit(*EXACT),
    "you rounded up once, at the end. Every row begins with a new byte, so round up row by row.": (
        right.edit(*EXACT, (ALL, f"math.ceil({ALL})"))
    ),
    "you rounded down once, at the end. Every row begins with a new byte, so round up row by row.": (
        right.edit(*EXACT, (ALL, f"int({ALL})"))
    ),
    "you counted a byte too many if codes or zero points exactly fill the last one: (n + 7) // 8, not n // 8 + 1.": (
        right.edit((CODES, "columns * bits // 8 + 1"), (ZEROS, "groups * bits // 8 + 1"))
    ),
    "you counted a byte too many for codes that exactly fill the last one: (n + 7) // 8, not n // 8 + 1.": (
        right.edit(CODES, "columns * bits // 8 + 1")
    ),
    "codes and zero points of a row are rounded up together. Each of the two begins with a new byte.": (
        right.edit(("columns * bits", "(columns + (0 if symmetric else groups)) * bits"), (" + zeros", ""))
    ),
    "all rows are packed as one stream. Every row begins with a new byte, so round up row by row.": right.edit(
        ("columns * bits", "rows * columns * bits"),
        ("groups * bits", "rows * groups * bits"),
        (ALL, "codes + rows * scales + zeros"),
    ),
    "you counted scales and zero points for one row only: every row has its own groups.": (
        right.edit("(codes + scales + zeros)", "codes + scales + zeros")
    ),
    "these are the bytes of one row: multiply by `rows`.": right.edit(ALL, "codes + scales + zeros"),
    "rows are counted twice: you counted the groups of the whole matrix, and multiplied by rows again.": (
        right.edit("columns // group_size", "rows * columns // group_size")
    ),
    "rows and columns are swapped. A row has `columns` weights, and is divided into groups.": right.edit(
        ("groups = ", "rows, columns = columns, rows; group_size = min(group_size, columns); groups = ")
    ),
    "these are bits per weight; return the bytes of the whole layer.": right.edit(ALL, f"8 * {ALL} / (rows * columns)"),
    "these are bytes per weight; return the bytes of the whole layer.": right.edit(ALL, f"{ALL} / (rows * columns)"),
    "you treated every row as one group. A row has columns / group_size groups.": right.edit(
        "columns // group_size", "1"
    ),
    "group_size is the number of weights in a group, not the number of groups in a row, which is columns / "
    "group_size.": right.edit("columns // group_size", "group_size"),
    "these are the bytes before quantization, 2 for each weight.": right.edit(
        "(codes + scales + zeros)", "columns * 2"
    ),
}

BYTES = Exercise(
    name="start.true_bytes",
    title="The true bytes of a quantized layer",
    difficulty=1,
    minutes=10,
    reference=true_bytes,
    cases=cases,
    outputs=("bytes",),
    mistakes=MISTAKES,
)
