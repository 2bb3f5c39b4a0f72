"""``rtn.dequantize``: turn codes back into weights."""

import torch

from qtutor.core.grid import IntGrid
from qtutor.core.quantized import dequantize as packages_own
from qtutor.course.exercises.adapting import tensor
from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.inputs import codes_of
from qtutor.course.exercises.rtn.inputs import stored


def dequantize(codes, scale, zero):
    length = codes.shape[1] // scale.shape[1]
    weight = []
    for row, scales, zeros in zip(codes.tolist(), scale.tolist(), zero.tolist()):
        weight.append([scales[i // length] * (code - zeros[i // length]) for i, code in enumerate(row)])
    return weight


def cases():
    low = stored([[0.0123]], [[5]])
    return [
        ("one group, zero in the middle", (torch.tensor([[6, 8, 15, 0]], dtype=torch.uint8), *stored([[0.06]], [[8]]))),
        ("codes above the zero point only", (torch.tensor([[5, 9, 2]], dtype=torch.uint8), *stored([[0.25]], [[2]]))),
        ("two rows with a scale each", (codes_of(3, 2, 4, bits=3), *stored([[0.3], [0.05]], [[3], [4]]))),
        ("two groups in each row", (codes_of(4, 2, 8), *stored([[0.2, 0.05], [0.11, 0.4]], [[7, 3], [9, 6]]))),
        ("three groups of two", (codes_of(2, 1, 6, bits=2), *stored([[0.1, 0.2, 0.4]], [[1, 0, 2]]))),
        ("8-bit codes far from a low zero point", (torch.tensor([[255, 0, 200, 3]], dtype=torch.uint8), *low)),
        ("8-bit codes", (codes_of(8, 2, 6, bits=8), *stored([[0.0123], [0.0171]], [[128], [100]]))),
    ]


@solution
def right(codes, scale, zero):
    group_size = codes.shape[1] // scale.shape[1]
    scale, zero = (part.repeat_interleave(group_size, dim=1) for part in (scale, zero))
    return scale.double() * (codes.double() - zero.double())


WEIGHT = "scale.double() * (codes.double() - zero.double())"
SIGNED = "codes.to(torch.int8).double()"

MISTAKES = {
    "the scale is missing: weight = scale * (code - zero).": right.edit("scale.double() * ", ""),
    "only the zero point is multiplied by the scale: weight = scale * (code - zero), with brackets.": (
        right.edit(WEIGHT, "codes.double() - zero.double() * scale.double()")
    ),
    "the zero point is added again after scaling. It is a code: weight = scale * (code - zero).": (
        right.edit(WEIGHT, f"{WEIGHT} + zero.double()")
    ),
    "negative weights are lost: you clamped at 0, but codes below the zero point stand for negative weights.": (
        right.edit(WEIGHT, f"({WEIGHT}).clamp(min=0)")
    ),
    "signs are lost: code - zero may be negative, and so may the weight.": right.edit(WEIGHT, f"({WEIGHT}).abs()"),
    "the result is rounded to bfloat16, which has 7 mantissa bits. Return float32.": (
        right.edit(WEIGHT, f"({WEIGHT}).bfloat16()")
    ),
    "the result is truncated to whole numbers: use a float tensor for the weights.": right.edit(
        WEIGHT, f"({WEIGHT}).trunc()"
    ),
    "a zero point of 8 is used everywhere. Each group has its own.": right.edit("zero.double()", "8"),
    "as int8, codes above 127 become negative. They are uint8: use .float() or .int().": (
        right.edit("codes.double()", SIGNED)
    ),
    "as int8, codes and zero points above 127 become negative. They are uint8: use .float() or .int().": (
        right.edit(("codes.double()", SIGNED), ("zero.double()", "zero.to(torch.int8).double()"))
    ),
    "differences are kept in int8, which ends at 127: 255 - 5 comes out as -6. Use .float() or .int().": (
        right.edit("(codes.double() - zero.double())", "(codes.to(torch.int8) - zero.to(torch.int8)).double()")
    ),
    "all weights are one step too low: weight = scale * (code - zero).": right.edit(
        "zero.double()", "zero.double() - 1"
    ),
    "all weights are half a step too high. A code stands for its level, not for the middle of two.": (
        right.edit("zero.double()", "zero.double() + 0.5")
    ),
    "the result still has the shape of the groups. Bring it back to [out, in] at the end: reshape(codes.shape).": (
        right.edit(WEIGHT, f"({WEIGHT}).reshape(len(codes), -1, group_size)")
    ),
    "the result is transposed: it is [out, in], like the codes.": right.edit(WEIGHT, f"({WEIGHT}).T"),
    "the scales and zero points of the groups are used in reverse order.": (
        right.edit("part.repeat", "part.flip(1).repeat")
    ),
    "every group of a row gets the scale of its first group; its zero point is right.": (
        right.edit("scale.double()", "scale[:, :1].double()")
    ),
    "every group of a row gets its own scale, but the zero points of the first group.": (
        right.edit("zero.double()", "zero[:, :1].double()")
    ),
    "every row gets the scales of the first row; its zero points are right.": (
        right.edit("scale.double()", "scale[:1].double()")
    ),
    "every row gets its own scales, but the zero points of the first row.": (
        right.edit("zero.double()", "zero[:1].double()")
    ),
    "codes and zero points are uint8, which holds no negative numbers: 3 - 8 wraps around to 251. Convert both to "
    "float (or int) before you subtract.": right.edit("codes.double() - zero.double()", "codes - zero"),
    "you computed in float16: a 16-bit scale times whole numbers stays in 16 bits and is rounded again. Convert the "
    "scale to float32 first (scale.float()).": right.edit(WEIGHT, "scale * (codes.int() - zero.int())"),
    "you computed with numbers as they are stored. In uint8, 3 - 8 wraps around to 251, and in float16, the product is "
    "rounded again: convert all three to float32 (.float()).": right.edit(WEIGHT, "scale * (codes - zero)"),
    "the zero point is added. weight = scale * (code - zero).": right.edit("- zero", "+ zero"),
    "the zero point is missing: weight = scale * (code - zero).": right.edit(" - zero.double()", ""),
    "the zero point is subtracted after scaling, but it is a code: scale * (code - zero), with brackets.": (
        right.edit("(codes.double() - zero.double())", "codes.double() - zero.double()")
    ),
    "the sign is reversed: weight = scale * (code - zero).": (
        right.edit("codes.double() - zero.double()", "zero.double() - codes.double()")
    ),
    "you divide by the scale. weight = scale * (code - zero).": (
        right.edit("scale.double() * (", "1 / scale.double() * (")
    ),
    "scale and zero are those of the wrong group: repeat() lays groups out as a b a b, but neighbours share a group, "
    "a a b b. Use repeat_interleave(), or reshape the codes to [out, groups, group_size].": (
        right.edit("repeat_interleave(group_size, dim=1)", "repeat(1, group_size)")
    ),
    "every group of a row gets the scale and zero of its first group.": (
        right.edit("part.repeat_interleave(group_size, dim=1)", "part[:, :1]")
    ),
    "every row gets the scales and zeros of the first row.": right.edit("part.repeat", "part[:1].repeat"),
}


def adapt(theirs):
    """A learner's ``weights_of`` replaces :func:`qtutor.core.quantized.dequantize`."""

    def dequantize(codes, scales, zeros, grid, dtype=torch.float32):
        if not codes.numel():
            return codes.to(dtype)  # nothing to decode
        if not isinstance(grid, IntGrid):
            return packages_own(codes, scales, zeros, grid, dtype)  # lists of levels belong to another chapter
        zeros = torch.full_like(scales, grid.middle, dtype=torch.uint8) if zeros is None else zeros
        shape = (len(codes), scales.shape[1])  # if the whole matrix has one scale, every row gets it
        return tensor(theirs(codes, scales.expand(shape), zeros.expand(shape)), dtype, codes)

    return dequantize


DEQUANTIZE = Exercise(
    name="rtn.dequantize",
    title="From codes back to weights",
    difficulty=1,
    minutes=5,
    reference=dequantize,
    cases=cases,
    outputs=("weight",),
    mistakes=MISTAKES,
    # Tolerance 0: a scale of 11 bits times a difference of 9 bits fits exactly into the 24 bits of a float32.
    replaces="qtutor.core.quantized.dequantize",
    adapt=adapt,
)
