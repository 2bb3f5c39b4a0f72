"""``serving.slots``: find the slots of a text's tokens with its block table."""

from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise


def slots(table, size, start, end):
    places = []
    for block in table:  # all places of the text, in the order of the text
        places += range(block * size, (block + 1) * size)
    return places[start:end]


def cases():
    return [
        ("one block of four, from the beginning", ([2], 4, 0, 3)),
        ("two blocks, the second before the first in memory", ([5, 1], 4, 0, 8)),
        ("from the middle of one block into the next", ([5, 1, 3], 4, 2, 7)),
        ("one token, the first of a block", ([4, 0, 2], 4, 8, 9)),
        ("one token, the last of a block", ([4, 0, 2], 4, 7, 8)),
        ("blocks of 16", ([7, 3, 9], 16, 10, 40)),
        ("blocks of one token", ([3, 1, 2], 1, 0, 3)),
        ("no new token", ([3, 1], 4, 5, 5)),
    ]


@solution
def right(table, size, start, end):
    found = []
    for position in range(start, end):
        block = table[position // size]
        found.append(block * size + position % size)
    return found


PLACE = "block * size + position % size"

MISTAKES = {
    "the table is not used: the blocks of a text may be anywhere in memory, and the table says where.": (
        right.edit("table[position // size]", "position // size")
    ),
    "all tokens are looked for in the first block.": right.edit("table[position // size]", "table[0]"),
    "the blocks are used in their order in memory. The table has the order of the text.": (
        right.edit("table[position // size]", "sorted(table)[position // size]")
    ),
    "these are the numbers of blocks. A slot is block * size + the place in the block.": right.edit(PLACE, "block"),
    "these are places in blocks. A slot is block * size + the place in the block.": (
        right.edit(PLACE, "position % size")
    ),
    "the place in the block is missing: all tokens of a block would be in its first place.": (
        right.edit(PLACE, "block * size")
    ),
    "the number of the block is added, but a block has `size` places: multiply.": (
        right.edit(PLACE, "block + position % size")
    ),
    "you added the position in the text to the block's first slot. Add the position in the block: % size.": (
        right.edit(PLACE, "block * size + position")
    ),
    "the position is counted from `start`. Block and place depend on the token's position in the whole text.": (
        right.edit("range(start, end)", "range(end - start)")
    ),
    "the last token is missing, or there is one too many: go from start to end, without end.": (
        right.edit("range(start, end)", "range(start, end + 1) if end < size * len(table) else range(start, end - 1)")
    ),
    "you used blocks of 16 tokens. They have `size` tokens.": (
        right.edit(
            ("table[position // size]", "table[position // 16]"),
            (PLACE, "block * 16 + position % 16"),
        )
    ),
    "division and remainder are swapped: // size says which block, % size which place.": (
        right.edit(
            ("table[position // size]", "table[position % size % len(table)]"),
            ("+ position % size", "+ position // size"),
        )
    ),
    "the tokens of a block are in reverse order. They have to be in the order of the text.": (
        right.edit("position % size", "size - 1 - position % size")
    ),
}

SLOTS = Exercise(
    name="serving.slots",
    title="Looking up a block table",
    difficulty=1,
    minutes=10,
    reference=slots,
    cases=cases,
    outputs=("slots",),
    mistakes=MISTAKES,
)
