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
    "the zero points are missing: on a grid that is not symmetric every group stores one.": right.edit(" + zeros", ""),
    "scales and zero points are both missing: every group stores them.": right.edit(" + scales + zeros", ""),
    "a scale is counted with 4 bytes. It is stored in 16 bits.": right.edit("2 * groups", "4 * groups"),
    "a scale is counted with 1 byte. It is stored in 16 bits, two bytes.": right.edit("2 * groups", "groups"),
    "a scale is counted with 16 bytes. It has 16 bits, two bytes.": right.edit("2 * groups", "16 * groups"),
    "a scale is counted like a code, with `bits` bits. It is stored in 16 bits.": (
        right.edit("2 * groups", "math.ceil(groups * bits / 8)")
    ),
    "only one scale for each row is counted: every group stores one.": right.edit("2 * groups", "2"),
    "only one scale for the whole matrix is counted: every group of every row stores one.": (
        right.edit(ALL, "rows * (codes + zeros) + 2")
    ),
    "only one zero point for each row is counted: every group stores one.": right.edit("groups * bits", "bits"),
    "a code is counted with a whole byte. Codes are packed, several to a byte.": right.edit(CODES, "columns"),
    "16 bits for each code are counted: those are the weights before quantization.": right.edit(CODES, "columns * 2"),
    "codes are counted in bits, the rest in bytes; a byte has 8 bits.": right.edit(CODES, "columns * bits"),
    "zero points are counted in bits, the rest in bytes; a byte has 8 bits.": right.edit(ZEROS, "groups * bits"),
    "a zero point is counted with a whole byte. It is a code, and takes as many bits as one.": (
        right.edit("groups * bits", "groups * 8")
    ),
    "a zero point is counted with 16 bits. It is a code, and takes as many bits as one.": (
        right.edit("groups * bits", "groups * 16")
    ),
    "zero points are counted on a symmetric grid as well, where they are always the middle and are not stored.": (
        right.edit("0 if symmetric else ", "")
    ),
    "symmetric is taken the wrong way round: the symmetric grid is the one without zero points.": (
        right.edit("if symmetric", "if not symmetric")
    ),
    "the last byte of a row is lost where codes do not fill it: round up, not down.": (
        right.edit(("ceil(columns", "floor(columns"), ("ceil(groups", "floor(groups"))
    ),
    "the last byte of the codes is lost where they do not fill it: round up, not down.": (
        right.edit("ceil(columns", "floor(columns")
    ),
    "the last byte of the zero points is lost where they do not fill it: round up, not down.": (
        right.edit("ceil(groups", "floor(groups")
    ),
    "nothing is rounded, but a byte is not cut into parts. Round up the codes and the zero points of a row.": (
        right.edit(*EXACT)
    ),
    "all is rounded up once, at the end. Every row begins with a new byte, so round up row by row.": (
        right.edit(*EXACT, (ALL, f"math.ceil({ALL})"))
    ),
    "the fraction is cut off at the end. Every row begins with a new byte, so round up row by row.": (
        right.edit(*EXACT, (ALL, f"int({ALL})"))
    ),
    "a byte too many is counted where codes fill the last one: (n + 7) // 8, not n // 8 + 1.": (
        right.edit((CODES, "columns * bits // 8 + 1"), (ZEROS, "groups * bits // 8 + 1"))
    ),
    "a byte too many is counted for codes that fill the last one: (n + 7) // 8, not n // 8 + 1.": (
        right.edit(CODES, "columns * bits // 8 + 1")
    ),
    "codes and zero points of a row are rounded up together. Each of the two begins with a byte of its own.": (
        right.edit(("columns * bits", "(columns + (0 if symmetric else groups)) * bits"), (" + zeros", ""))
    ),
    "all rows are packed as one stream. Every row begins with a new byte, so round up row by row.": right.edit(
        ("columns * bits", "rows * columns * bits"),
        ("groups * bits", "rows * groups * bits"),
        (ALL, "codes + rows * scales + zeros"),
    ),
    "scales are counted for one row only: every row has its own groups.": (
        right.edit("(codes + scales + zeros)", "codes + scales + zeros")
    ),
    "these are the bytes of one row: there are `rows` of them.": right.edit(ALL, "codes + scales + zeros"),
    "rows are counted twice: you took the groups of the whole matrix, and multiplied them by rows again.": (
        right.edit("columns // group_size", "rows * columns // group_size")
    ),
    "rows and columns are swapped. A row has `columns` weights, and its groups lie along it.": right.edit(
        ("groups = ", "rows, columns = columns, rows; group_size = min(group_size, columns); groups = ")
    ),
    "these are bits for each weight; asked for are the bytes of the whole layer.": right.edit(
        ALL, f"8 * {ALL} / (rows * columns)"
    ),
    "these are bytes for each weight; asked for are the bytes of the whole layer.": right.edit(
        ALL, f"{ALL} / (rows * columns)"
    ),
    "every row is taken for one group: it has columns / group_size of them.": right.edit("columns // group_size", "1"),
    "group_size is the number of weights in a group, not the number of groups, columns / group_size.": (
        right.edit("columns // group_size", "group_size")
    ),
    "these are the bytes before quantization, 2 a weight.": right.edit("(codes + scales + zeros)", "columns * 2"),
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
