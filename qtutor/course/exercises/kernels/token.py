"""``kernels.token_bytes``: the bytes that are read from memory to write one token."""

from fractions import Fraction

from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise

LLAMA = [(2048, 2048), (256, 2048), (256, 2048), (2048, 2048), (5632, 2048), (5632, 2048), (2048, 5632)]


def token_bytes(shapes, blocks, bits, group_size, head, kv_width, context):
    total = Fraction(0)
    for _ in range(blocks):
        for rows, columns in shapes:
            total += rows * Fraction(columns * bits, 8)  # codes
            total += rows * Fraction(columns, group_size) * Fraction(16 + bits, 8)  # scales and zero points
        total += context * 2 * (kv_width + kv_width)  # a key and a value of each earlier token
    return float(total + 2 * head)


def cases():
    return [
        ("one layer of one block, nothing else", ([(8, 64)], 1, 4, 64, 0, 0, 0)),
        ("8 bits", ([(8, 64)], 1, 8, 64, 0, 0, 0)),
        ("two groups in a row", ([(8, 64)], 1, 4, 32, 0, 0, 0)),
        ("two layers of different shapes, three blocks", ([(8, 64), (16, 128)], 3, 4, 64, 0, 0, 0)),
        ("an output matrix of 1,000 weights", ([(8, 64)], 2, 4, 64, 1_000, 0, 0)),
        ("keys and values of 10 earlier tokens", ([(8, 64)], 2, 4, 64, 0, 16, 10)),
        ("all of it, 3 bits", ([(64, 128), (32, 64)], 4, 3, 32, 5_000, 32, 100)),
        ("a model of 1.1 billion weights, 4 bits, an empty context", (LLAMA, 22, 4, 64, 65_536_000, 256, 0)),
        ("the same model after 2,048 tokens", (LLAMA, 22, 4, 64, 65_536_000, 256, 2048)),
    ]


@solution
def right(shapes, blocks, bits, group_size, head, kv_width, context):
    weights = sum(rows * columns for rows, columns in shapes)
    groups = weights / group_size
    block = (weights * bits + groups * (16 + bits)) / 8
    cache = context * 2 * kv_width * 2
    return blocks * (block + cache) + 2 * head


BLOCK, RESULT = "(weights * bits + groups * (16 + bits)) / 8", "blocks * (block + cache) + 2 * head"

MISTAKES = {
    "only the codes of the layers are counted. Scales and zero points are read, too.": (
        right.edit(BLOCK, "weights * bits / 8")
    ),
    "the zero points are missing. Each group has one, of `bits` bits.": right.edit("(16 + bits)", "16"),
    "the scales are missing. Each group has one, of 16 bits.": right.edit("(16 + bits)", "bits"),
    "you counted one scale for each row. A row has one for every group_size weights.": (
        right.edit("weights / group_size", "sum(rows for rows, _ in shapes)")
    ),
    "you counted 16 bits for a zero point. A zero point is a code, with `bits` bits.": right.edit(
        "(16 + bits)", "(16 + 16)"
    ),
    "these are bits. 8 bits are a byte.": right.edit(BLOCK, "weights * bits + groups * (16 + bits)"),
    "only one block is counted.": right.edit("blocks * (block + cache)", "block + cache"),
    "you counted the keys and values of only one block. Every block has its own.": (
        right.edit("blocks * (block + cache)", "blocks * block + cache")
    ),
    "keys and values are missing. Each earlier token has both in every block, and all are read.": (
        right.edit("(block + cache)", "block")
    ),
    "half of the keys and values of earlier tokens is missing. Each token has a key and a value in every block, with 2 "
    "bytes for each number.": right.edit("kv_width * 2", "kv_width"),
    "keys and values of one token are counted. Every earlier token has its own.": (
        right.edit("context * 2", "min(context, 1) * 2")
    ),
    "you counted `bits` bits for each number of keys and values. They are not weights: each number has 2 bytes.": (
        right.edit("context * 2 * kv_width * 2", "context * 2 * kv_width * bits / 8")
    ),
    "the keys and values of the token itself are counted. Only those of earlier tokens are read.": (
        right.edit("context * 2", "(context + 1) * 2")
    ),
    "you counted a whole byte for a zero point. A zero point is a code, with `bits` bits.": right.edit(
        "(16 + bits)", "(16 + 8)"
    ),
    "the embedding is counted as well. Only the token's row of the embedding is read; only the output matrix is read "
    "completely.": right.edit("2 * head", "4 * head"),
    "the output matrix is missing. It is read for every token.": right.edit(" + 2 * head", ""),
    "you counted `bits` bits for each weight of the output matrix. They stay in 16 bits.": right.edit(
        "2 * head", "head * bits / 8"
    ),
    "you counted one byte for each weight of the output matrix. They have 16 bits.": right.edit("2 * head", "head"),
    "the output matrix is counted once for every block. It comes only once, after the last block.": (
        right.edit(RESULT, "blocks * (block + cache + 2 * head)")
    ),
    "bits / 8 is rounded down to whole bytes, but two codes of 4 bits share a byte.": (
        right.edit(BLOCK, "weights * (bits // 8) + groups * (16 + bits) / 8")
    ),
    "you counted 16 bits for each weight. A weight has `bits` bits.": right.edit("weights * bits", "weights * 16"),
    "you added rows and columns. A layer has rows * columns weights.": (
        right.edit("rows * columns", "(rows + columns)")
    ),
}

TOKEN = Exercise(
    name="kernels.token_bytes",
    title="What a token reads",
    difficulty=1,
    minutes=10,
    reference=token_bytes,
    cases=cases,
    outputs=("bytes",),
    mistakes=MISTAKES,
    tolerance=1e-9,  # sums and divisions in float64, in any order
)
