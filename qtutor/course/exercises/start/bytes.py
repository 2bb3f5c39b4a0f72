"""``start.true_bytes``: what a quantized layer weighs, scales and zero points counted."""

import math

from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise


def true_bytes(rows, columns, bits, group_size, symmetric):
    def of_a_row(count):
        room, taken = 0, 0
        for _ in range(count * bits):  # bit after bit, a new byte where the last one is full
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


MISTAKES = {
    "these are bits; a byte has 8 of them.": right.edit("rows * (", "8 * rows * ("),
    "the scales are missing: every group stores one, in 16 bits.": right.edit(" + scales", ""),
    "the zero points are missing: on a grid that is not symmetric every group stores one.": right.edit(" + zeros", ""),
    "scales and zero points are both missing: every group stores them.": right.edit(" + scales + zeros", ""),
    "a scale is counted with 4 bytes. It is stored in 16 bits.": right.edit("2 * groups", "4 * groups"),
    "a scale is counted with 1 byte. It is stored in 16 bits, two bytes.": right.edit("2 * groups", "groups"),
    "a zero point is counted with a whole byte. It is a code, and takes as many bits as one.": (
        right.edit("groups * bits", "groups * 8")
    ),
    "a zero point is counted with 16 bits. It is a code, and takes as many bits as one.": (
        right.edit("groups * bits", "groups * 16")
    ),
    "zero points are counted on a symmetric grid as well, where they are always the middle and are not stored.": (
        right.edit("0 if symmetric else ", "")
    ),
    "the last byte of a row is lost where codes do not fill it: round up, not down.": (
        right.edit(("ceil(columns", "floor(columns"), ("ceil(groups", "floor(groups"))
    ),
    "codes and zero points of a row are rounded up together. Each of the two begins with a byte of its own.": (
        right.edit(("columns * bits", "(columns + (0 if symmetric else groups)) * bits"), (" + zeros", ""))
    ),
    "all rows are packed as one stream. Every row begins with a new byte, so round up row by row.": right.edit(
        ("columns * bits", "rows * columns * bits"),
        ("groups * bits", "rows * groups * bits"),
        ("rows * (codes + scales + zeros)", "codes + rows * scales + zeros"),
    ),
    "scales are counted for one row only: every row has its own groups.": (
        right.edit("(codes + scales + zeros)", "codes + scales + zeros")
    ),
    "every row is taken for one group: it has columns / group_size of them.": right.edit("columns // group_size", "1"),
    "group_size is the number of weights in a group, not the number of groups, columns / group_size.": (
        right.edit("columns // group_size", "group_size")
    ),
    "these are the bytes before quantization, 2 a weight.": right.edit("(codes + scales + zeros)", "columns * 2"),
}

BYTES = Exercise(
    name="start.true_bytes",
    chapter="00_start_here",
    title="The true bytes of a quantized layer",
    difficulty=1,
    minutes=10,
    reference=true_bytes,
    cases=cases,
    outputs=("bytes",),
    mistakes=MISTAKES,
)
