"""``rtn.encode``: find the nearest code of every weight."""

import torch

from qtutor.core.grid import IntGrid
from qtutor.course.exercises.adapting import tensor, whole_codes
from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.inputs import short
from qtutor.course.exercises.rtn.inputs import stored
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
    # Between two codes, and nearer to one of them by so little that float16 does not show it.
    between = torch.tensor([[100.48, -99.48, 80.52, -70.52, 120.49, -120.51]]) * torch.tensor(0.0123).half()
    # Here, 1 / scale in float16 does not show it either.
    beside = torch.tensor([[120.48, 120.52, -120.48, -120.52, 3.0, 0.0]]) * torch.tensor(0.0131).half()
    return [
        ("one group, zero in the middle", (ten, *stored([[0.06]], [[8]]), 4)),
        ("one group, zero point 2", (torch.tensor([[-0.1, 0.8, 0.34, 0.0]]), *stored([[0.06]], [[2]]), 4)),
        ("two rows with a scale each", (coarse, *stored([[0.3], [0.05]], [[3], [3]]), 3)),
        ("two groups in each row", (short(6, 2, 8), *stored([[0.2, 0.05], [0.11, 0.4]], [[7, 3], [9, 6]]), 4)),
        ("weights beyond both ends of the range", (torch.tensor([[-9.0, 9.0, 0.7, -0.7]]), *stored([[0.5]], [[4]]), 3)),
        ("8 bits", (short(7, 2, 6), *stored([[0.0123], [0.0171]], [[128], [100]]), 8)),
        ("8 bits, weights just beside the middle of two codes", (between, *stored([[0.0123]], [[128]]), 8)),
        ("8 bits, weights just beside the middle, another scale", (beside, *stored([[0.0131]], [[128]]), 8)),
        ("2 bits, zero point 0", (short(8, 1, 8).abs(), *stored([[0.3, 0.7]], [[0, 0]]), 2)),
        ("three groups of two", (short(9, 2, 6), *stored([[0.1, 0.2, 0.4], [0.3, 0.15, 0.6]], [[8] * 3] * 2), 4)),
    ]


@solution
def right(weight, scale, zero, bits):
    group_size = weight.shape[1] // scale.shape[1]
    scale, zero = (part.double().repeat_interleave(group_size, dim=1) for part in (scale, zero))
    steps = (weight.double() / scale).round()
    return (steps + zero).clamp(0, 2**bits - 1)


SPREAD, CLAMP = "repeat_interleave(group_size, dim=1)", ".clamp(0, 2**bits - 1)"
CODES = f"(steps + zero){CLAMP}"

MISTAKES = {
    "the number of steps is computed in float16, the dtype of the scales, which is too coarse for codes of 8 bits. "
    "Leave the weights in float32, and use scale.float().": right.edit(
        "weight.double() / scale", "weight.half() / scale.half()"
    ),
    "1 / scale is computed in float16, the dtype of the scales, and codes of 8 bits may be off by a step. Use "
    "scale.float() first.": right.edit("weight.double() / scale", "weight.double() * (1 / scale.half()).double()"),
    "the steps are converted to uint8 before the zero point is added, and those below 0 wrap around: -1 becomes 255. "
    "Add and clamp first.": right.edit(CODES, "((steps.long() & 255) + zero.long() & 255).clamp(0, 2**bits - 1)"),
    "codes beyond the range wrap around (% 2**bits, or a bit mask). Clamp them: the nearest code is the last one.": (
        right.edit(CLAMP, ".long() % 2**bits")
    ),
    "codes are clamped at the top only. Those below 0 have to become 0.": right.edit(CLAMP, ".clamp(max=2**bits - 1)"),
    "codes are clamped at 0 only. Those above 2**bits - 1 have to become 2**bits - 1.": right.edit(
        CLAMP, ".clamp(min=0)"
    ),
    "codes are clamped at 2**(bits-1) - 1, and the upper half of the codes is never used.": (
        right.edit(CLAMP, ".clamp(0, 2 ** (bits - 1) - 1)")
    ),
    "codes are clamped at 15, no matter what `bits` is. 15 belongs to 4 bits: clamp at 2**bits - 1.": (
        right.edit(CLAMP, ".clamp(0, 15)")
    ),
    "codes are clamped as signed codes, from -2**(bits-1) upwards. Here they begin at 0 and end at 2**bits - 1.": (
        right.edit(CLAMP, ".clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)")
    ),
    "the middle was subtracted at the end, as for signed codes. Here codes begin at 0.": (
        right.edit(CLAMP, f"{CLAMP} - 2 ** (bits - 1)")
    ),
    "as int8, codes above 127 become negative. They are uint8.": right.edit(CLAMP, f"{CLAMP}.long().to(torch.int8)"),
    "all codes are one too large: code = round(weight / scale) + zero, from 0 to 2**bits - 1.": (
        right.edit(CODES, "(steps + zero + 1).clamp(1, 2**bits)")
    ),
    "the number of steps is not rounded. A code is a whole number.": right.edit(".round()", ""),
    "the number of steps is rounded up (ceil); round it to the nearest.": right.edit("round", "ceil"),
    "the zero point is added to the weight, before dividing. The zero point is a code: divide first, then add "
    "it.": right.edit(("(weight.double() / scale)", "((weight.double() + zero) / scale)"), ("steps + zero", "steps")),
    "the zero point is subtracted from the weight, before dividing. The zero point is a code: divide first, then add "
    "it.": right.edit(("(weight.double() / scale)", "((weight.double() - zero) / scale)"), ("steps + zero", "steps")),
    "the codes were multiplied by the scale at the end. Return the codes themselves.": right.edit(
        CODES, f"{CODES} * scale"
    ),
    "these are the weights again, rounded. Return the codes that stand for them.": (
        right.edit(CODES, f"({CODES} - zero) * scale")
    ),
    "the result still has the shape of the groups. Bring it back to the shape of weight at the end: "
    "reshape(weight.shape).": right.edit(CODES, f"{CODES}.reshape(len(weight), -1, group_size)"),
    "the scales and zero points of the groups are used in reverse order.": (
        right.edit("part.double()", "part.double().flip(1)")
    ),
    "every group of a row is coded with the scale of its first group; its zero point is right.": (
        right.edit("/ scale)", "/ scale[:, :1])")
    ),
    "every group of a row is coded with its own scale, but the zero points of the first group.": (
        right.edit("steps + zero", "steps + zero[:, :1]")
    ),
    "every row is coded with the scales of the first row; its zero points are right.": (
        right.edit("/ scale)", "/ scale[:1])")
    ),
    "every row is coded with its own scales, but the zero points of the first row.": (
        right.edit("steps + zero", "steps + zero[:1]")
    ),
    "the number of steps is truncated towards zero (.int(), .trunc()); round it to the nearest.": (
        right.edit("round", "trunc")
    ),
    "the number of steps is rounded down (floor, //); round it to the nearest.": right.edit("round", "floor"),
    "you clamp before adding the zero point, so everything below 0 is lost. Clamp the codes, at the end.": (
        right.edit(CODES, "steps.clamp(0, 2**bits - 1) + zero")
    ),
    "you clamp before adding the zero point, and in uint8 the sum then wraps past 255. The clamp comes last.": (
        right.edit(CODES, "(steps.clamp(0, 2**bits - 1) + zero).long() & 255")
    ),
    "you clamp the steps to the signed range before adding the zero point. That is the same only if zero is the middle "
    "code: clamp the codes, 0 to 2**bits - 1, at the end.": right.edit(
        CODES, "steps.clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) + zero"
    ),
    "nothing is clamped: weights beyond the range get codes below 0 or above 2**bits - 1, which `bits` bits "
    "cannot hold.": right.edit(CLAMP, ""),
    "nothing is clamped, and as uint8 the codes wrap around: -1 becomes 255. Clamp first, then convert to uint8.": (
        right.edit(CLAMP, ".long() & 255")
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
    "you multiply by the scale. weight = scale * (code - zero), so divide the weight by the scale.": (
        right.edit("double() / scale", "double() * scale")
    ),
    "scale and zero are those of the wrong group: repeat() lays groups out as a b a b, but neighbours share a group, "
    "a a b b. Use repeat_interleave(), or reshape the weights to [out, groups, group_size].": (
        right.edit(SPREAD, "repeat(1, group_size)")
    ),
    "every group of a row is coded with the scale and zero of its first group.": (
        right.edit("part.double().repeat_interleave(group_size, dim=1)", "part.double()[:, :1]")
    ),
    "every row is coded with the scales and zeros of the first row.": right.edit("part.double()", "part.double()[:1]"),
}


def adapt_encode(theirs):
    """A learner's ``nearest_codes`` replaces :func:`qtutor.rtn.encode_groups`."""

    def encode_groups(grouped, scale, zero, grid):
        if not isinstance(grid, IntGrid):
            return packages_own(grouped, scale, zero, grid)  # lists of levels belong to another chapter
        codes = theirs(grouped.flatten(1), scale, zero, grid.bits)
        return tensor(codes, torch.uint8, grouped).reshape(grouped.shape)

    return encode_groups


ENCODE = Exercise(
    name="rtn.encode",
    title="The nearest code of every weight",
    difficulty=2,
    minutes=10,
    reference=encode,
    cases=encode_cases,
    outputs=("codes",),
    mistakes=MISTAKES,
    properties=(whole_codes(3),),
    replaces="qtutor.methods.rtn.encode_groups",
    adapt=adapt_encode,
)
