"""``rtn.encode``: the nearest code of every weight."""

from functools import partial

import numpy as np
import torch

from qtutor.core.grid import IntGrid
from qtutor.course.exercises.adapting import tensor
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.rtn.inputs import CHAPTER, random, spread, stored
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


def _encode_with(
    weight,
    scale,
    zero,
    bits,
    rounding=torch.round,
    order="zero, clamp",
    top=0,
    sign=1,
    wrap=False,
    group="right",
    times=False,
):
    scale, zero = spread(scale, weight.shape[1], group), sign * spread(zero, weight.shape[1], group)
    steps = rounding(weight.double() * scale if times else weight.double() / scale)
    if order == "clamp, zero":
        codes = steps.clamp(0, 2**bits - 1) + zero
    elif order == "signed":
        codes = steps.clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) + zero
    elif order == "no clamp":
        codes = steps + zero
    else:
        codes = (steps + zero).clamp(0, 2**bits - 1 + top)
    return codes.long() & 255 if wrap else codes


ENCODE_MISTAKES = {
    "the number of steps is cut off towards zero (.int(), .trunc()) where it should be rounded to the nearest.": dict(
        rounding=torch.trunc
    ),
    "the number of steps is rounded down (floor, //) where it should be rounded to the nearest.": dict(
        rounding=torch.floor
    ),
    "you clamp before adding the zero point, so all below 0 is lost. The clamp is on codes: it comes last.": dict(
        order="clamp, zero"
    ),
    "you clamp before adding the zero point, and in uint8 the sum then wraps past 255. The clamp comes last.": dict(
        order="clamp, zero", wrap=True
    ),
    "you clamp the steps to the signed range before adding the zero point. Only where zero is the middle code is that "
    "the same: clamp the codes, 0 to 2**bits - 1, at the end.": dict(order="signed"),
    "nothing is clamped: weights beyond the range get codes below 0 or above 2**bits - 1, which no byte has room "
    "for.": dict(order="no clamp"),
    "nothing is clamped, and as uint8 the codes wrap around: -1 becomes 255. Clamp first, then make them bytes.": dict(
        order="no clamp", wrap=True
    ),
    "you clamp at 2**bits, one too many: counting from 0, the last of 2**bits codes is 2**bits - 1.": dict(top=1),
    "you clamp at 2**bits - 2, one too few: the last of 2**bits codes is 2**bits - 1.": dict(top=-1),
    "the zero point is subtracted. weight = scale * (code - zero), so code = weight / scale + zero.": dict(sign=-1),
    "the zero point is missing: code = weight / scale + zero.": dict(sign=0),
    "you multiply by the scale. weight = scale * (code - zero), so the weight is divided by it.": dict(times=True),
    "scale and zero are those of the wrong group: repeat() lays groups out as a b a b, but neighbours share a group, "
    "a a b b. Use repeat_interleave(), or reshape the weights to [out, groups, group_size].": dict(group="tiled"),
    "every group of a row is coded with the scale and zero of its first group.": dict(group="first group"),
    "every row is coded with the scales and zeros of the first row.": dict(group="first row"),
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
    mistakes={text: partial(_encode_with, **slip) for text, slip in ENCODE_MISTAKES.items()},
    properties=(
        (
            "a code is a whole number from 0 to 2**bits - 1.",
            lambda arguments, results: bool(np.isin(results[0], range(2 ** arguments[3])).all()),
        ),
    ),
    replaces="qtutor.methods.rtn.encode_groups",
    adapt=adapt_encode,
)
