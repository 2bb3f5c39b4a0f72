"""``rtn.encode``: the nearest code of every weight."""

import numpy as np
import torch

from qtutor.core.grid import IntGrid
from qtutor.course.exercises.adapting import tensor
from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.rtn.inputs import CHAPTER, random, stored
from qtutor.methods.rtn import encode_groups as packages_own


def encode(weight, scale, zero, bits):
    length = weight.shape[1] // scale.shape[1]
    codes = []
    for row, scales, zeros in zip(weight.tolist(), scale.tolist(), zero.tolist()):
        nearest = []
        for column, value in enumerate(row):
            s, z = scales[column // length], zeros[column // length]
            nearest.append(min(range(2**bits), key=lambda code: abs(s * (code - z) - value)))
        codes.append(nearest)
    return codes


def encode_cases():
    ten = torch.tensor([[0.44, -0.13, 0.05, -0.38, 0.20, 0.0, -0.29, 0.10, 0.31, -0.07]])
    coarse = torch.tensor([[0.9, -0.9, 1.3, 0.4], [0.05, -0.07, 0.21, -0.02]])
    return [
        ("one group, zero in the middle", (ten, *stored([[0.06]], [[8]]), 4)),
        ("one group, zero point 2", (torch.tensor([[-0.1, 0.8, 0.34, 0.0]]), *stored([[0.06]], [[2]]), 4)),
        ("two rows with a scale each", (coarse, *stored([[0.3], [0.05]], [[3], [3]]), 3)),
        ("two groups in each row", (random(6, 2, 8), *stored([[0.2, 0.05], [0.11, 0.4]], [[7, 3], [9, 6]]), 4)),
        ("weights beyond both ends of the range", (torch.tensor([[-9.0, 9.0, 0.7, -0.7]]), *stored([[0.5]], [[4]]), 3)),
        ("8 bits", (random(7, 2, 6), *stored([[0.0123], [0.0171]], [[128], [100]]), 8)),
        ("2 bits, zero point 0", (random(8, 1, 8).abs(), *stored([[0.3, 0.7]], [[0, 0]]), 2)),
        ("three groups of two", (random(9, 2, 6), *stored([[0.1, 0.2, 0.4], [0.3, 0.15, 0.6]], [[8] * 3] * 2), 4)),
    ]


@solution
def right(weight, scale, zero, bits):
    group_size = weight.shape[1] // scale.shape[1]
    scale, zero = (part.double().repeat_interleave(group_size, dim=1) for part in (scale, zero))
    steps = (weight.double() / scale).round()
    return (steps + zero).clamp(0, 2**bits - 1)


MISTAKES = {
    "the number of steps is cut off towards zero (.int(), .trunc()) where it should be rounded to the nearest.": (
        right.edit("round", "trunc")
    ),
    "the number of steps is rounded down (floor, //) where it should be rounded to the nearest.": (
        right.edit("round", "floor")
    ),
    "you clamp before adding the zero point, so all below 0 is lost. The clamp is on codes: it comes last.": (
        right.edit("(steps + zero).clamp(0, 2**bits - 1)", "steps.clamp(0, 2**bits - 1) + zero")
    ),
    "you clamp before adding the zero point, and in uint8 the sum then wraps past 255. The clamp comes last.": (
        right.edit("(steps + zero).clamp(0, 2**bits - 1)", "(steps.clamp(0, 2**bits - 1) + zero).long() & 255")
    ),
    "you clamp the steps to the signed range before adding the zero point. Only where zero is the middle code is that "
    "the same: clamp the codes, 0 to 2**bits - 1, at the end.": right.edit(
        "(steps + zero).clamp(0, 2**bits - 1)", "steps.clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) + zero"
    ),
    "nothing is clamped: weights beyond the range get codes below 0 or above 2**bits - 1, which no byte has room "
    "for.": right.edit(".clamp(0, 2**bits - 1)", ""),
    "nothing is clamped, and as uint8 the codes wrap around: -1 becomes 255. Clamp first, then make them bytes.": (
        right.edit(".clamp(0, 2**bits - 1)", ".long() & 255")
    ),
    "you clamp at 2**bits, one too many: counting from 0, the last of 2**bits codes is 2**bits - 1.": (
        right.edit("2**bits - 1", "2**bits")
    ),
    "you clamp at 2**bits - 2, one too few: the last of 2**bits codes is 2**bits - 1.": (
        right.edit("2**bits - 1", "2**bits - 2")
    ),
    "the zero point is subtracted. weight = scale * (code - zero), so code = weight / scale + zero.": (
        right.edit("+ zero", "- zero")
    ),
    "the zero point is missing: code = weight / scale + zero.": right.edit(" + zero", ""),
    "you multiply by the scale. weight = scale * (code - zero), so the weight is divided by it.": (
        right.edit("double() / scale", "double() * scale")
    ),
    "scale and zero are those of the wrong group: repeat() lays groups out as a b a b, but neighbours share a group, "
    "a a b b. Use repeat_interleave(), or reshape the weights to [out, groups, group_size].": (
        right.edit("repeat_interleave(group_size, dim=1)", "repeat(1, group_size)")
    ),
    "every group of a row is coded with the scale and zero of its first group.": (
        right.edit("part.double().repeat_interleave(group_size, dim=1)", "part.double()[:, :1]")
    ),
    "every row is coded with the scales and zeros of the first row.": right.edit("part.double()", "part.double()[:1]"),
}


def adapt_encode(theirs):
    """A learner's ``nearest_codes`` in place of :func:`qtutor.rtn.encode_groups`."""

    def encode_groups(grouped, scale, zero, grid):
        if not isinstance(grid, IntGrid):
            return packages_own(grouped, scale, zero, grid)  # levels that are listed are another chapter's
        codes = theirs(grouped.flatten(1), scale, zero, grid.bits)
        return tensor(codes, torch.uint8, grouped).reshape(grouped.shape)

    return encode_groups


ENCODE = Exercise(
    name="rtn.encode",
    chapter=CHAPTER,
    title="The nearest code of every weight",
    difficulty=2,
    minutes=10,
    reference=encode,
    cases=encode_cases,
    outputs=("codes",),
    mistakes=MISTAKES,
    properties=(
        (
            "a code is a whole number from 0 to 2**bits - 1.",
            lambda arguments, results: bool(np.isin(results[0], range(2 ** arguments[3])).all()),
        ),
    ),
    replaces="qtutor.methods.rtn.encode_groups",
    adapt=adapt_encode,
)
