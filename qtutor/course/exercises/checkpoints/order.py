"""``checkpoints.order``: pack the codes of a matrix into AWQ's words, in AWQ's order."""

import torch

from qtutor.course.exercises.adapting import tensor
from qtutor.course.exercises.checkpoints.inputs import WHOLE_WORDS, as_words, rows
from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.inputs import codes_of


def order(codes):
    nibble_of = {0: 0, 1: 4, 2: 1, 3: 5, 4: 2, 5: 6, 6: 3, 7: 7}  # for each output of a word
    lines = []
    for by_output in zip(*codes.tolist()):
        digits = [["0"] * 8 for _ in range(0, len(by_output), 8)]
        for output, code in enumerate(by_output):
            digits[output // 8][7 - nibble_of[output % 8]] = f"{code:x}"  # the highest nibble is written first
        lines.append([int("".join(word), 16) for word in digits])
    return lines


def cases():
    eight = [[code] for code in (1, 2, 3, 4, 5, 6, 7, 8)]
    return [
        ("eight outputs with the codes 1 to 8, one input", (rows(*eight),)),
        ("the same, in the second of two inputs", (rows(*([0, code] for (code,) in eight)),)),
        ("sixteen outputs, one input", (rows(*([code % 16] for code in range(3, 19))),)),
        ("an output whose highest bit is set in the last nibble", (rows(*([15 * (o == 7)] for o in range(8))),)),
        ("eight outputs, eight inputs", (codes_of(11, 8, 8),)),
        ("sixteen outputs, three inputs", (codes_of(12, 16, 3),)),
        ("24 outputs, 16 inputs", (codes_of(13, 24, 16),)),
    ]


@solution
def right(codes):
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    rows = codes.tolist()
    lines = []
    for i in range(len(rows[0])):
        line = []
        for first in range(0, len(rows), 8):
            word = 0
            for n in range(8):
                code = rows[first + order[n]][i]
                word |= code << 4 * n
            line.append(word)
        lines.append(line)
    return lines


def along_in(codes):
    """Words along the inputs, as in GPTQ; zeros fill up the last word."""
    order, rows = (0, 2, 4, 6, 1, 3, 5, 7), torch.nn.functional.pad(codes.long(), (0, -codes.shape[1] % 8))
    grouped = rows.T.reshape(-1, 8, len(rows))[:, list(order)]
    return (grouped << 4 * torch.arange(8)[None, :, None]).sum(1)


ORDER, PLACE, PICKED = "(0, 2, 4, 6, 1, 3, 5, 7)", "code << 4 * n", "rows[first + order[n]][i]"

MISTAKES = {
    "the outputs are in plain order. Nibble n holds output (0, 2, 4, 6, 1, 3, 5, 7)[n] of the word.": (
        right.edit(ORDER, "(0, 1, 2, 3, 4, 5, 6, 7)")
    ),
    "this is the order the other way round: it says in which nibble an output is, (0, 4, 1, 5, 2, 6, 3, 7). Take the "
    "output of a nibble: (0, 2, 4, 6, 1, 3, 5, 7)[n].": right.edit(ORDER, "(0, 4, 1, 5, 2, 6, 3, 7)"),
    "a word holds neighbouring inputs of one output. In AWQ it holds neighbouring outputs of one input.": along_in,
    "the first nibble is in the highest bits. Nibble 0 is the lowest: shift by 4 * n.": (
        right.edit(PLACE, "code << 28 - 4 * n")
    ),
    "the odd outputs come first. The even ones do: (0, 2, 4, 6, 1, 3, 5, 7).": (
        right.edit(ORDER, "(1, 3, 5, 7, 0, 2, 4, 6)")
    ),
    "the result is transposed: it has a row for each word. Return a row for each input, [in, out / 8].": (
        lambda codes: list(zip(*right(codes)))
    ),
    "you used reshape instead of transpose: the numbers of the words are mixed up.": (
        lambda codes: right(codes.reshape(codes.shape[1], -1).T)
    ),
    "even and odd outputs are taken from the whole row. The order holds within every eight outputs.": (
        right.edit(PICKED, "(rows[::2] + rows[1::2])[first + n][i]")
    ),
    "a word holds outputs that are far apart. It holds eight neighbours: outputs 0 to 7, 8 to 15 ...": (
        right.edit(PICKED, "rows[first // 8 + order[n] * (len(rows) // 8)][i]")
    ),
    "codes are put together without being shifted. Nibble n is shifted by 4 * n.": right.edit(PLACE, "code"),
    "nibble n is shifted by n. A nibble has four bits: shift by 4 * n.": right.edit(PLACE, "code << n"),
    "uint8 has no room for bits beyond the eighth, so most codes are lost: convert them to int32 before you shift.": (
        right.edit(PLACE, "(code << 4 * n & 255)")
    ),
    "a code overwrites the bits that are already in its word (=). Put its bits beside them: |=.": (
        right.edit("word |= code", "word = code")
    ),
    "the last nibble of every word is missing: there are eight.": right.edit("range(8):", "range(7):"),
    "the highest bit of the words is lost. It belongs to the last nibble, and makes the word negative as an int32.": (
        right.edit("line.append(word)", "line.append(word & 0x7FFFFFFF)")
    ),
    "you subtracted 8. Codes are stored as they are, from 0 to 15.": right.edit(PICKED, f"{PICKED} - 8 & 15"),
    "you subtracted 1. GPTQ does so with zero points; AWQ subtracts nothing.": right.edit(PICKED, f"{PICKED} - 1 & 15"),
    "the halves are right, but the order in each half is not: outputs 2 and 4 are exchanged, and 3 and 5. The even "
    "outputs ascend in the lower half, the odd ones in the upper.": right.edit(ORDER, "(0, 4, 2, 6, 1, 5, 3, 7)"),
    "two things: the table says in which nibble an output is, and it is read from the highest nibble down. Nibble n, "
    "from the lowest up, holds output (0, 2, 4, 6, 1, 3, 5, "
    "7)[n].": right.edit(ORDER, "(0, 4, 1, 5, 2, 6, 3, 7)[::-1]"),
    "the bytes of the words are reversed. Nibbles 0 and 1 are in the lowest byte.": (
        right.edit("line.append(word)", 'line.append(int.from_bytes(word.to_bytes(4, "big"), "little"))')
    ),
    "the two nibbles of every byte are swapped. Nibble 0 is in the lowest four bits.": (
        right.edit(PLACE, "code << 4 * (n ^ 1)")
    ),
    "these are bytes, two nibbles each. Four bytes make one word of 32 bits.": (
        lambda codes: [[word >> 8 * b & 255 for word in line for b in range(4)] for line in right(codes)]
    ),
}


def adapt(theirs):
    """A learner's function writes both codes and zero points of an AWQ file."""
    return lambda codes: tensor(as_words(theirs(codes.T.contiguous()), ()), torch.int32, codes).contiguous()


ORDER_OF_NIBBLES = Exercise(
    name="checkpoints.order",
    title="AWQ's words, in AWQ's order",
    difficulty=1,
    minutes=10,
    reference=order,
    cases=cases,
    outputs=("words",),
    mistakes=MISTAKES,
    properties=(WHOLE_WORDS,),
    seen=as_words,
    replaces="qtutor.formats.awq._interleaved",
    adapt=adapt,
)
