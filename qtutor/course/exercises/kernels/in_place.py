"""``kernels.in_place``: use the eight codes of a word without shifts, because x was divided beforehand."""

import torch

from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.inputs import codes_of, noise


def in_place(words, x):
    masked = []
    for word in words.tolist():
        digits = f"{word % 2**32:08x}"[::-1]  # the lowest code first
        row = [int(digit + "0" * place, 16) for place, digit in enumerate(digits)]
        row[7] = int(digits[7], 16)
        masked.append(row)
    divided = [value / 16**place for place, value in enumerate(x.tolist())]
    divided[7] = float(x[7])
    return masked, divided


def cases():
    def word(*codes: int) -> torch.Tensor:
        return torch.tensor([sum(code << 4 * i for i, code in enumerate(codes))]).to(torch.int32)

    def drawn(seed: int, rows: int) -> tuple:
        codes = codes_of(seed, rows, 8).long()
        return (codes << 4 * torch.arange(8)).sum(1).to(torch.int32), noise(8, seed=seed)

    ones = torch.ones(8)
    return [
        ("the codes 1 to 7, and 0", (word(1, 2, 3, 4, 5, 6, 7, 0), ones)),
        ("the codes 0 to 7: the last one is in the highest bits", (word(0, 1, 2, 3, 4, 5, 6, 7), ones)),
        ("a last code of 15, whose highest bit is the sign", (word(3, 0, 0, 9, 0, 0, 0, 15), ones)),
        ("15 everywhere, and all x different", (word(*[15] * 8), torch.arange(1.0, 9.0))),
        ("three random words", drawn(21, 3)),
        ("64 words, as in a tile", drawn(22, 64)),
    ]


@solution
def right(words, x):
    word = words.long().unsqueeze(-1)
    masks = 15 << 4 * torch.arange(8)
    masked = word & masks
    masked[:, 7] = word[:, 0] >> 28 & 15
    factors = 16.0 ** -torch.arange(8)
    factors[7] = 1
    return masked, x * factors


SHIFTED = "masked[:, 7] = word[:, 0] >> 28 & 15"

MISTAKES = {
    "all codes are shifted down. They should stay where they are: mask them, and divide x instead.": (
        right.edit(
            ("masked = word & masks", "masked = word >> 4 * torch.arange(8) & 15"),
            ("-torch", "(0 * torch"),
            ("8)\n    factors[7]", "8))\n    factors[7]"),
        )
    ),
    "the codes are shifted down, and x is divided as well. Do only one of the two.": (
        right.edit("masked = word & masks", "masked = word >> 4 * torch.arange(8) & 15")
    ),
    "x is not divided. Code i in its place is 16**i times too large, so x[i] has to be 16**i times smaller.": (
        right.edit("16.0 ** -torch.arange(8)", "torch.ones(8)")
    ),
    "x is multiplied by 16**i. The masked code is too large already: divide.": right.edit("** -torch", "** torch"),
    "x[i] is divided by 2**i. A code has four bits, so each place is worth 16.": right.edit("16.0 **", "2.0 **"),
    "x[i] is divided by 4 * i, or something similar. Shifting by four bits multiplies by 16, so divide by 16**i.": (
        right.edit("16.0 ** -torch.arange(8)", "1 / (4.0 * torch.arange(8)).clamp(min=1)")
    ),
    "the last code stays in its place, where its highest bit is the sign: from 8 on it comes out negative. Shift this "
    "one down, & 15.": right.edit((SHIFTED, "masked[:, 7] = (word[:, 0] >> 28) << 28"), ("factors[7] = 1", "pass")),
    "the last code is shifted down, but its x is still divided.": right.edit("factors[7] = 1", "pass"),
    "the last code is shifted down and keeps the sign: & 15 after the shift.": right.edit(">> 28 & 15", ">> 28"),
    "the last code stays in its place, as the others do. In int64, its highest bit is not the sign, but the words are "
    "int32: shift this one down, and leave its x as it is.": right.edit((SHIFTED, "pass"), ("factors[7] = 1", "pass")),
    "the last code is left in its place, and its x is not divided.": (
        right.edit(SHIFTED, "masked[:, 7] = (word[:, 0] >> 28 & 15) << 28")
    ),
    "the masks go from the highest bits to the lowest. Code 0 is in the lowest four.": (
        right.edit("15 << 4 * torch.arange(8)", "15 << 28 - 4 * torch.arange(8)")
    ),
    "the masks have three bits. A code has four: 15.": right.edit("15 << 4", "7 << 4"),
    "the masks are three bits apart. A code has four bits.": right.edit("15 << 4 *", "15 << 3 *"),
    "the words come back whole. & with a mask leaves one code.": right.edit("word & masks", "word | 0 * masks"),
    "| adds the bits of the mask; use &, which keeps only these bits.": right.edit("word & masks", "word | masks"),
    "the zero point was subtracted. It stays outside; return only codes.": (
        right.edit("return masked", "return masked - 8")
    ),
}

IN_PLACE = Exercise(
    name="kernels.in_place",
    title="Codes that stay in their place",
    difficulty=2,
    minutes=15,
    reference=in_place,
    cases=cases,
    outputs=("masked", "divided"),
    mistakes=MISTAKES,
    tolerance=1e-6,  # divisions by powers of two are exact; x is float32
)
