"""``checkpoints.words``: pack the codes of a matrix into the words of a GPTQ file."""

import torch

from qtutor.course.exercises.adapting import tensor
from qtutor.course.exercises.checkpoints.inputs import WHOLE_WORDS, as_words, rows
from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.inputs import codes_of
from qtutor.formats.words import SAFE, to_words, words_in


def words(codes, bits):
    columns = []
    for row in codes.tolist():  # one output; its words are one column of the file
        text = "".join(f"{code:0{bits}b}"[::-1] for code in row)  # the lowest bit comes first
        columns.append([int(text[start : start + 32][::-1], 2) for start in range(0, len(text), 32)])
    return [list(line) for line in zip(*columns)]


def cases():
    return [
        ("one output, eight inputs, 4 bits", (rows([1, 2, 3, 4, 5, 6, 7, 0]), 4)),
        ("two outputs", (rows([1, 2, 3, 4, 5, 6, 7, 0], [0, 9, 0, 0, 0, 0, 0, 1]), 4)),
        ("a last code whose highest bit is set", (rows([0, 0, 0, 0, 0, 0, 0, 15]), 4)),
        ("three outputs, sixteen inputs", (codes_of(1, 3, 16), 4)),
        ("eight outputs, eight inputs", (codes_of(2, 8, 8), 4)),
        ("2 bits: sixteen codes in a word", (codes_of(3, 2, 32, bits=2), 2)),
        ("8 bits: four codes in a word", (codes_of(4, 3, 8, bits=8), 8)),
        ("twelve outputs, 32 inputs", (codes_of(5, 12, 32), 4)),
    ]


@solution
def right(codes, bits):
    by_input = codes.T.tolist()  # a list of outputs for each input
    in_word = 32 // bits
    lines = []
    for start in range(0, len(by_input), in_word):
        line = []
        for o in range(len(by_input[0])):
            word = 0
            for i in range(in_word):
                code = by_input[start + i][o]
                word |= code << bits * i
            line.append(word)
        lines.append(line)
    return lines


def along_out(codes, bits):
    in_word, flat = 32 // bits, codes.T.long()
    flat = torch.nn.functional.pad(flat, (0, -flat.shape[1] % in_word)).reshape(len(flat), -1, in_word)
    return (flat << bits * torch.arange(in_word)).sum(-1)


def by_rows(codes, bits):
    return along_out(codes.T, bits)


PLACE = "code << bits * i"

MISTAKES = {
    "the first code of a word is in its highest bits. It belongs in the lowest: code i is shifted by bits * i.": (
        right.edit(PLACE, "code << bits * (in_word - 1 - i)")
    ),
    "neighbouring outputs share a word. Here a word holds the codes of neighbouring inputs of one output.": along_out,
    "the words are right, but arranged as in compressed-tensors: a row for each output. In a GPTQ file, outputs are "
    "side by side: transpose, [in * bits / 32, out].": by_rows,
    "the words have the right shape but the wrong order: you used reshape instead of transpose.": (
        lambda codes, bits: by_rows(codes, bits).reshape(-1, len(codes))
    ),
    "every code is shifted by a multiple of 4, no matter what `bits` is. Code i is shifted by bits * i.": (
        right.edit(PLACE, "code << 4 * i & 0xFFFFFFFF")
    ),
    "code i is shifted by i. It has `bits` bits, so code i begins at bit bits * i.": right.edit(PLACE, "code << i"),
    "codes are put together without being shifted. Code i is shifted by bits * i.": right.edit(PLACE, "code"),
    "uint8 has no room for bits beyond the eighth, so most codes are lost: convert them to int32 before you shift.": (
        right.edit(PLACE, "(code << bits * i & 255)")
    ),
    "a code overwrites the bits that are already in its word (=). Put its bits beside them: |=.": (
        right.edit("word |= code", "word = code")
    ),
    "& keeps only bits that are set in both, and a word begins as 0, so only 0 is left: put codes together with |.": (
        right.edit("word |= code", "word &= code")
    ),
    "the last code of every word is missing: a word holds 32 // bits codes.": (
        right.edit("for i in range(in_word)", "for i in range(in_word - 1)")
    ),
    "the highest bit of the words is lost. It belongs to the last code, and makes the word negative as an int32.": (
        right.edit("line.append(word)", "line.append(word & 0x7FFFFFFF)")
    ),
    "the bytes of the words are reversed. The first codes are in the lowest byte.": (
        right.edit("line.append(word)", 'line.append(int.from_bytes(word.to_bytes(4, "big"), "little"))')
    ),
    "a word holds codes that are far apart: inputs 0, n, 2n ... It holds neighbours: inputs 0, 1, 2 ...": (
        right.edit("by_input[start + i][o]", "by_input[start // in_word + i * (len(by_input) // in_word)][o]")
    ),
    "the codes are in AWQ's order. GPTQ stores them one after the other.": right.edit(
        "by_input[start + i][o]", "by_input[start + (i * 2 % in_word + i * 2 // in_word)][o]"
    ),
    "you subtracted the middle of the grid. Codes are stored as they are, from 0.": (
        right.edit("by_input[start + i][o]", "by_input[start + i][o] - (1 << bits - 1) & (1 << bits) - 1")
    ),
    "you subtracted 1 from every code. Only zero points are stored minus one, not codes.": (
        right.edit("by_input[start + i][o]", "by_input[start + i][o] - 1 & (1 << bits) - 1")
    ),
    "these are bytes, not words: eight bits each. A word holds 32 bits.": right.edit("32 // bits", "8 // bits"),
    "the inputs are in reverse order.": right.edit("codes.T.tolist()", "codes.T.tolist()[::-1]"),
}


def adapt(theirs):
    """A learner's function packs for every format whose words hold whole codes (:mod:`qtutor.formats.words`)."""

    def packed(codes, bits):
        if 32 % bits or not codes.numel():
            return to_words(codes, bits)
        count = codes.shape[1]
        padded = torch.nn.functional.pad(codes, (0, -count % SAFE))
        made = tensor(as_words(theirs(padded.contiguous(), bits), ()), torch.int32, codes)
        return made.T[:, : words_in(count, bits)].contiguous()

    return packed


WORDS = Exercise(
    name="checkpoints.words",
    title="Codes in the words of a GPTQ file",
    difficulty=1,
    minutes=10,
    reference=words,
    cases=cases,
    outputs=("words",),
    mistakes=MISTAKES,
    properties=(WHOLE_WORDS,),
    seen=as_words,
    replaces="qtutor.formats.words.to_words",
    adapt=adapt,
)
