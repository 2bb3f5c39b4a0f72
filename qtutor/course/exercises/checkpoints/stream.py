"""``checkpoints.stream``: read codes from words that form one dense stream of bits."""

import torch

from qtutor.course.exercises.adapting import tensor, whole_codes
from qtutor.course.exercises.checkpoints.inputs import rows
from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.inputs import codes_of
from qtutor.formats.words import from_words, to_words


def stream(words, bits, count):
    codes = []
    for row in words.tolist():
        text = "".join(f"{word % 2**32:032b}"[::-1] for word in row)  # the lowest bit comes first
        codes.append([int(text[bits * i : bits * (i + 1)][::-1], 2) for i in range(count)])
    return codes


def cases():
    def file(codes: torch.Tensor, bits: int) -> tuple:
        return to_words(codes, bits), bits, codes.shape[1]

    return [
        ("3 bits, ten codes: they fit in one word", (file(rows([1, 2, 3, 4, 5, 6, 7, 0, 1, 2]), 3))),
        ("3 bits, eleven codes: the last has a bit in the next word", file(rows([0] * 10 + [7]), 3)),
        ("3 bits, 32 codes in three words", file(codes_of(31, 1, 32, bits=3), 3)),
        ("3 bits, two rows of 21 codes, which leave bits over", file(codes_of(32, 2, 21, bits=3), 3)),
        ("3 bits, three rows of 64 codes", file(codes_of(33, 3, 64, bits=3), 3)),
        ("4 bits: no code crosses a border", file(codes_of(34, 2, 16), 4)),
        ("5 bits, two rows of 32 codes", file(codes_of(35, 2, 32, bits=5), 5)),
        ("6 bits, words that are negative", file(torch.full((2, 16), 63, dtype=torch.uint8), 6)),
        ("7 bits, two rows of nine codes", file(codes_of(36, 2, 9, bits=7), 7)),
    ]


@solution
def right(words, bits, count):
    rows = []
    for row in words.tolist():
        row = [word & 0xFFFFFFFF for word in row] + [0]  # unsigned, and an empty word after the last
        codes = []
        for i in range(count):
            word, start = divmod(i * bits, 32)
            low = row[word] >> start
            high = row[word + 1] << 32 - start
            codes.append((low | high) & (1 << bits) - 1)
        rows.append(codes)
    return rows


def whole_codes_in_a_word(words, bits, count):
    in_word = 32 // bits
    words = torch.nn.functional.pad(words, (0, -(-count // in_word)))  # this mistake reads more words than there are
    return right_of(words, bits, count, in_word)


def right_of(words, bits, count, in_word):
    rows = words.tolist()
    return [[row[i // in_word] >> bits * (i % in_word) & (1 << bits) - 1 for i in range(count)] for row in rows]


def one_stream(words, bits, count):
    codes = right(words.reshape(1, -1), bits, words.numel() * 32 // bits)[0] + [0] * count * len(words)
    return [codes[start : start + count] for start in range(0, count * len(words), count)]


HIGH = "row[word + 1] << 32 - start"
RESULT, UNSIGNED = "(low | high) & (1 << bits) - 1", "[word & 0xFFFFFFFF for word in row]"

MISTAKES = {
    "you read whole codes in every word and skip the remaining bits. These files were like that before "
    "compressed-tensors 0.19; now the bits go on in the next word.": whole_codes_in_a_word,
    "the high bits of a code that crosses a border are missing. They are the lowest bits of the next word.": (
        right.edit(HIGH, "0")
    ),
    "the high bits of a code that crosses a border are one place too low. The word in which the code begins holds 32 - "
    "start of its bits: shift by that number.": right.edit(HIGH, "row[word + 1] << max(31 - start, 0)"),
    "the high bits of a code that crosses a border are not shifted. They belong above the bits from the first word: << "
    "32 - start.": right.edit(
        HIGH, "(row[word + 1] & (1 << max(start + bits - 32, 0)) - 1 if start + bits > 32 else 0)"
    ),
    "the high bits of a code that crosses a border come from the same word. They are the lowest of the next one.": (
        right.edit(HIGH, "row[word] << 32 - start")
    ),
    "the high bits of a code that crosses a border come from the top of the next word. They are its lowest bits.": (
        right.edit(
            HIGH,
            "(row[word + 1] >> 64 - start - bits << 32 - start if start + bits > 32 else 0)",
        )
    ),
    "a word with its highest bit set is negative as an int32: shifting it down fills in ones from the left, which hide "
    "the bits of the next word. Make the words unsigned first: & 0xFFFFFFFF.": right.edit(UNSIGNED, "list(row)"),
    "you put negative words into the large number as they are, which lowers everything above them by 1. Make them "
    "unsigned first: & 0xFFFFFFFF.": (
        lambda words, bits, count: [
            [sum(word << 32 * k for k, word in enumerate(row)) >> bits * i & (1 << bits) - 1 for i in range(count)]
            for row in words.tolist()
        ]
    ),
    "the sign of the words was removed with abs(), which changes nearly all bits of a negative word. Make the words "
    "unsigned: & 0xFFFFFFFF.": right.edit(UNSIGNED, "[abs(word) for word in row]"),
    "the stream is read from the highest bit of the first word. It begins with the lowest bit.": (
        lambda words, bits, count: [
            [
                int("".join(f"{word & 0xFFFFFFFF:032b}" for word in row)[bits * i : bits * (i + 1)], 2)
                for i in range(count)
            ]
            for row in words.tolist()
        ]
    ),
    "the bits above a code are not removed: & 2**bits - 1.": right.edit(RESULT, "(low | high) & 0xFFFFFFFF"),
    "the mask is one bit too short or too long: it is (1 << bits) - 1.": right.edit(
        "(1 << bits) - 1", "(1 << bits - 1) - 1"
    ),
    "the mask is 2**bits, which is a single bit. It is 2**bits - 1.": right.edit("(1 << bits) - 1", "(1 << bits)"),
    "you read 3 bits for every code. A code has `bits` bits.": (
        lambda words, bits, count: right(torch.nn.functional.pad(words, (0, count)), 3, count)
    ),
    "you read 4 bits for every code. A code has `bits` bits.": (
        lambda words, bits, count: right(torch.nn.functional.pad(words, (0, count)), 4, count)
    ),
    "codes are read from the highest bits of a word. The first code is in the lowest.": right.edit(
        UNSIGNED, "[int(f'{word & 0xFFFFFFFF:032b}'[::-1], 2) for word in row]"
    ),
    "the bytes of the words are reversed. The lowest byte comes first.": right.edit(
        UNSIGNED, '[int.from_bytes((word & 0xFFFFFFFF).to_bytes(4, "little"), "big") for word in row]'
    ),
    "the words of a row are read in reverse order.": right.edit(UNSIGNED, f"{UNSIGNED}[::-1]"),
    "all rows are read as one stream. Every row begins with a new word.": one_stream,
    "count is ignored: everything after the last code is padding, and must not be returned.": (
        lambda words, bits, count: right(words, bits, words.shape[1] * 32 // bits)
    ),
    "the bits of every code are mirrored: its lowest bit comes first.": right.edit(
        RESULT, 'int(f"{(low | high) & (1 << bits) - 1:0{bits}b}"[::-1], 2)'
    ),
    "the middle of the grid was subtracted. Codes are whole numbers from 0.": (
        right.edit(RESULT, f"({RESULT}) - (1 << bits - 1)")
    ),
    "the codes of a row are read in reverse order.": right.edit("range(count)", "range(count)[::-1]"),
    "code i is looked for at bit i. It begins at bit i * bits.": right.edit("i * bits", "i"),
    "the words are read as in a GPTQ file, down the columns. Here, each row has its own words.": (
        lambda words, bits, count: right(words.T.reshape(words.shape), bits, count)
    ),
    "code i is looked for one place too far: the first begins at bit 0.": (
        lambda words, bits, count: [row[1:] for row in right(torch.nn.functional.pad(words, (0, 1)), bits, count + 1)]
    ),
}


def adapt(theirs):
    """A learner's function reads the words of GPTQ, AWQ and compressed-tensors files."""

    def read(words, bits, count):
        if not words.numel():
            return from_words(words, bits, count)
        return tensor(theirs(words.contiguous(), bits, count), torch.uint8, words).contiguous()

    return read


STREAM = Exercise(
    name="checkpoints.stream",
    title="A dense stream of 3-bit codes",
    difficulty=2,
    minutes=15,
    reference=stream,
    cases=cases,
    outputs=("codes",),
    mistakes=MISTAKES,
    properties=(whole_codes(1),),
    replaces="qtutor.formats.words.from_words",
    adapt=adapt,
)
