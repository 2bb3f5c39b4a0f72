"""``serving.room``: the bytes of a cache of keys and values."""

from fractions import Fraction

from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise


def room(layers, heads, kv_heads, head, tokens, bits, group):
    bits_of_all = Fraction(0)
    for _ in range(layers):
        for _ in ("keys", "values"):
            numbers = tokens * kv_heads * head
            bits_of_all += numbers * bits
            if group:
                bits_of_all += Fraction(numbers, group) * (16 + bits)  # a scale and a zero point for each group
    return float(bits_of_all / 8)


def cases():
    return [
        ("one layer, one head of 64, one token, 16 bits", (1, 1, 1, 64, 1, 16, 0)),
        ("two layers", (2, 1, 1, 64, 1, 16, 0)),
        ("four heads that share one key and one value", (2, 4, 1, 64, 1, 16, 0)),
        ("ten tokens", (2, 4, 2, 64, 10, 16, 0)),
        ("8 bits, a scale and a zero point for each head", (2, 4, 2, 64, 10, 8, 64)),
        ("4 bits in groups of 32", (3, 6, 2, 64, 7, 4, 32)),
        ("an empty cache", (2, 4, 2, 64, 0, 8, 64)),
        ("Llama 3.1 8B, 8,192 tokens, 16 bits", (32, 32, 8, 128, 8192, 16, 0)),
        ("the same in 4 bits", (32, 32, 8, 128, 8192, 4, 32)),
    ]


@solution
def right(layers, heads, kv_heads, head, tokens, bits, group):
    numbers = 2 * layers * kv_heads * head * tokens
    shared = (16 + bits) / group if group else 0
    return numbers * (bits + shared) / 8


SHARED, RESULT = "(16 + bits) / group if group else 0", "(bits + shared) / 8"

MISTAKES = {
    "only keys or only values are counted. A token has both.": right.edit("2 * layers", "layers"),
    "all heads are counted. Queries are not kept: count the heads of keys and values, kv_heads.": (
        right.edit("kv_heads * head", "heads * head")
    ),
    "one layer is counted. Every layer has its own keys and values.": right.edit("2 * layers *", "2 *"),
    "one head is counted. Every one of the kv_heads has its own key and value.": right.edit("kv_heads * head", "head"),
    "one number for each head is counted. A head has `head` numbers.": right.edit("kv_heads * head *", "kv_heads *"),
    "one token is counted. Every token has its own key and value.": right.edit("head * tokens", "head"),
    "scales and zero points are missing.": right.edit(SHARED, "0"),
    "the zero points are missing. Each group has one, of `bits` bits.": right.edit("(16 + bits)", "16"),
    "the scales are missing. Each group has one, of 16 bits.": right.edit("(16 + bits)", "bits"),
    "you counted 16 bits for a zero point. A zero point is a code, of `bits` bits.": right.edit(
        "(16 + bits)", "(16 + 16)"
    ),
    "a scale and a zero point are counted for every number. `group` numbers share them.": (
        right.edit("/ group if", "if")
    ),
    "these are bits. 8 bits are a byte.": right.edit(RESULT, "(bits + shared)"),
    "you counted 2 bytes for each number. A number has `bits` bits.": right.edit(RESULT, "(16 + shared) / 8"),
    "bits / 8 is rounded down to whole bytes, but two codes of 4 bits share a byte.": (
        right.edit(RESULT, "(bits // 8 + shared / 8)")
    ),
    "you divided `head` by the number of query heads. `head` is already the width of one head.": (
        right.edit("kv_heads * head", "kv_heads * head / heads")
    ),
}

ROOM = Exercise(
    name="serving.room",
    title="The bytes of a cache",
    difficulty=1,
    minutes=10,
    reference=room,
    cases=cases,
    outputs=("bytes",),
    mistakes=MISTAKES,
    tolerance=1e-9,  # a few divisions in float64, in any order
)
