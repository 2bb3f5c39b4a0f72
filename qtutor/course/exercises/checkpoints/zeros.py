"""``checkpoints.zeros``: read the zero points of a GPTQ file, of either version."""

import torch

from qtutor.course.exercises.adapting import tensor
from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.inputs import codes_of
from qtutor.formats.gptq import FIRST, zeros_of
from qtutor.formats.words import to_words


def zeros(qzeros, checkpoint_format):
    by_group = []
    for words in qzeros.tolist():
        digits = "".join(f"{word % 2**32:08x}"[::-1] for word in words)  # the lowest nibble first
        by_group.append([int(digit, 16) + (1 if checkpoint_format == "gptq" else 0) for digit in digits])
    return [list(column) for column in zip(*by_group)]


def cases():
    def file(zeros: torch.Tensor, version: str) -> tuple:
        return to_words((zeros - int(version == FIRST)).T.contiguous(), 4), version

    middle = torch.full((8, 1), 8, dtype=torch.uint8)
    steps = torch.arange(1, 9, dtype=torch.uint8)[:, None]
    return [
        ("a symmetric file of version 1: 7 everywhere", file(middle, "gptq")),
        ("the same zero points in version 2", file(middle, "gptq_v2")),
        ("eight outputs with the zero points 1 to 8, version 1", file(steps, "gptq")),
        ("eight outputs with the zero points 1 to 8, version 2", file(steps, "gptq_v2")),
        ("two groups, sixteen outputs, version 1", file(codes_of(21, 16, 2, least=1), "gptq")),
        ("three groups, eight outputs, version 2", file(codes_of(22, 8, 3), "gptq_v2")),
        ("eight groups, eight outputs, version 1", file(codes_of(23, 8, 8, least=1), "gptq")),
        ("zero points of 15, which need the highest bit", file(torch.full((8, 2), 15, dtype=torch.uint8), "gptq_v2")),
        ("32 outputs, four groups, version 1", file(codes_of(24, 32, 4, least=1), "gptq")),
    ]


@solution
def right(qzeros, checkpoint_format):
    shifts = 4 * torch.arange(8)
    nibbles = qzeros.long().unsqueeze(-1) >> shifts & 15
    stored = nibbles.reshape(len(qzeros), -1)
    less = 1 if checkpoint_format == "gptq" else 0
    return (stored + less).T


LESS, RESULT = '1 if checkpoint_format == "gptq" else 0', "(stored + less).T"

MISTAKES = {
    'nothing is added. Version 1 ("gptq") stores every zero point minus one, so add 1 there.': right.edit(LESS, "0"),
    '1 is always added. Version 2 ("gptq_v2") stores the zero point itself.': right.edit(LESS, "1"),
    'the versions are exchanged: it is the first ("gptq") that stores the zero point minus one.': (
        right.edit(LESS, '0 if checkpoint_format == "gptq" else 1')
    ),
    "1 is subtracted. The numbers are stored minus one, so add 1.": right.edit(LESS, LESS.replace("1", "-1", 1)),
    "1 is added to the word, which changes only its lowest nibble. Add it to each of the eight numbers.": (
        lambda qzeros, checkpoint_format: right(qzeros + (checkpoint_format == "gptq"), "gptq_v2")
    ),
    "the result is transposed. Return a row for each output, [out, groups].": right.edit(RESULT, "stored + less"),
    "you used reshape instead of transpose: the numbers of outputs and groups are mixed up.": (
        right.edit(RESULT, "(stored + less).reshape(stored.shape[::-1])")
    ),
    "a word with its highest bit set is negative as an int32, and shifting it down fills in ones from the left: & "
    "15.": right.edit(">> shifts & 15", ">> shifts"),
    "the sign of the words was removed with abs(), which changes nearly all bits of a negative word. Shift the word as "
    "it is, and take & 15.": right.edit("qzeros.long()", "qzeros.long().abs()"),
    "the nibbles are read from the highest to the lowest. The first output is in the lowest four bits.": (
        right.edit("torch.arange(8)", "torch.arange(7, -1, -1)")
    ),
    "the nibbles are read in AWQ's order. GPTQ has them one after the other.": (
        right.edit("torch.arange(8)", "torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])")
    ),
    "you returned 8 everywhere. That is right for a symmetric file; others have a zero point for every group.": (
        right.edit(RESULT, "(stored * 0 + 8).T")
    ),
    "8 was subtracted. A zero point is a code, from 0 to 15.": right.edit(RESULT, "(stored + less - 8).T"),
    "only three bits of every number are left. It has four: & 15.": right.edit("& 15", "& 7"),
    "only the lowest nibble of every word is read. A word holds eight.": (
        lambda qzeros, checkpoint_format: (qzeros & 15).T + (checkpoint_format == "gptq")
    ),
    "the outputs are in reverse order.": right.edit(RESULT, "(stored + less).T.flip(0)"),
    "you read 8 bits for each stored number. Zero points have as many bits as codes, here four.": (
        lambda qzeros, checkpoint_format: (
            (
                (qzeros.long().unsqueeze(-1) >> 8 * torch.arange(4) & 255).reshape(len(qzeros), -1)
                + (checkpoint_format == "gptq")
            ).T
        )
    ),
    "1 is added, and the sum is then cut to three bits.": right.edit(RESULT, "((stored + less) % 8).T"),
    "nibble n is read at bit n. A nibble has four bits: it begins at bit 4 * n.": (
        right.edit("4 * torch.arange(8)", "torch.arange(8)")
    ),
    "the numbers are halved or doubled: shift by exactly 4 * n bits.": (
        right.edit(">> shifts & 15", "* 2 >> shifts & 15")
    ),
    "the zero points are negative. They are codes, and weight = scale * (code - zero) subtracts them later.": (
        right.edit(RESULT, "-(stored + less).T")
    ),
}


def adapt(theirs):
    """A learner's function reads the 4-bit zero points of every GPTQ file."""

    def read(words, bits, rows, version):
        if bits != 4 or not words.numel():
            return zeros_of(words, bits, rows, version)
        return tensor(theirs(words.contiguous(), version), torch.uint8, words).contiguous()

    return read


ZEROS = Exercise(
    name="checkpoints.zeros",
    title="The zero point that is stored minus one",
    difficulty=2,
    minutes=10,
    reference=zeros,
    cases=cases,
    outputs=("zero points",),
    mistakes=MISTAKES,
    properties=(
        (
            "a zero point of 4 bits is a whole number from 0 to 15.",
            lambda arguments, results: bool(((results[0] >= 0) & (results[0] < 16)).all()),
        ),
    ),
    replaces="qtutor.formats.gptq.zeros_of",
    adapt=adapt,
)
