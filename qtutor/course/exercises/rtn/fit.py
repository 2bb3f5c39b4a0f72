"""``rtn.fit``: find the scale and zero point of every group."""

import numpy as np
import torch

from qtutor.core.grid import IntGrid
from qtutor.course.exercises.adapting import tensor
from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.inputs import short
from qtutor.errors import QtutorError
from qtutor.methods.rtn import fit_groups as packages_own


def fit(weight, bits, group_size, symmetric):
    columns = weight.shape[1]
    scales, zeros = [], []
    for row in weight.tolist():
        groups = [row[start : start + group_size] for start in range(0, columns, group_size)]
        low, high = [min([0.0, *group]) for group in groups], [max([0.0, *group]) for group in groups]
        if symmetric:
            high = [max(-a, b) for a, b in zip(low, high)]
            low = [-b for b in high]
        scale = [float(np.float16((b - a) / (2**bits - 1))) or 1.0 for a, b in zip(low, high)]
        zeros.append([2 ** (bits - 1) if symmetric else min(round(-a / s), 2**bits - 1) for a, s in zip(low, scale)])
        scales.append(scale)
    return scales, zeros


def fit_cases():
    return [
        ("one group of four weights", (torch.tensor([[-0.1, 0.8, 0.3, 0.55]]), 4, 4, False)),
        ("two groups in each of two rows", (short(1, 2, 8), 4, 4, False)),
        ("weights that are all positive", (torch.tensor([[0.5, 0.7, 0.9, 0.6]]), 4, 4, False)),
        ("weights that are all negative", (torch.tensor([[-0.5, -0.7, -0.9, -0.6]]), 4, 4, False)),
        ("a group of nothing but zeros", (torch.tensor([[0.0, 0.0, 0.0, 0.3, -0.2, 0.1]]), 3, 3, False)),
        ("a symmetric grid, the largest weight positive", (torch.tensor([[-0.31, 0.82, 0.3, 0.0]]), 4, 4, True)),
        ("a symmetric grid, the largest weight negative", (torch.tensor([[-0.77, 0.31, 0.6, 0.2]]), 3, 4, True)),
        ("more groups than rows, 2 bits, symmetric", (short(2, 2, 12), 2, 2, True)),
        ("as many groups as weights in a group, 8 bits", (short(3, 3, 16), 8, 4, False)),
        ("8 bits: zero from the stored scale", (torch.tensor([[-0.261, 0.408, 0.1, -0.05]]), 8, 4, False)),
        ("an outlier in one group", (torch.cat([short(4, 2, 6), 40 * short(5, 2, 6)], dim=1), 5, 6, False)),
        ("a symmetric grid with zeros", (torch.tensor([[0.0, 0.0, -0.4, 0.25]]), 8, 2, True)),
        ("weights so small that a 16-bit scale has few digits left", (torch.tensor([[-1e-6, -4e-7]]), 4, 2, False)),
    ]


@solution
def right(weight, bits, group_size, symmetric):
    rows, groups = len(weight), weight.shape[1] // group_size
    grouped = weight.double().reshape(rows, groups, group_size)
    low = grouped.amin(dim=-1).clamp(max=0)
    high = grouped.amax(dim=-1).clamp(min=0)
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    exact = (high - low) / (2**bits - 1)
    scale = exact.half().double()
    scale = torch.where(scale == 0, 1.0, scale)
    zero = (-low / scale).round().clamp(0, 2**bits - 1)
    return scale, torch.full_like(zero, 2 ** (bits - 1)) if symmetric else zero


GROUPED, ZERO = ".reshape(rows, groups, group_size)", "(-low / scale).round().clamp(0, 2**bits - 1)"
LOW, HIGH, SYMMETRIC = ".clamp(max=0)", ".clamp(min=0)", "torch.maximum(-low, high)"
CHOSEN = "torch.full_like(zero, 2 ** (bits - 1)) if symmetric else zero"

MISTAKES = {
    "you divided the range by 2**bits. There are 2**bits levels, but one step fewer between them: 2**bits - 1.": (
        right.edit("/ (2**bits - 1)", "/ 2**bits")
    ),
    "you divided the range by 2**bits - 2, one step too few. 2**bits levels have 2**bits - 1 steps between them.": (
        right.edit("/ (2**bits - 1)", "/ (2**bits - 2)")
    ),
    "the range does not contain 0. Take low = min(low, 0) and high = max(high, 0): otherwise a group whose weights "
    "are all on one side of 0 gets a zero point outside the codes, and no code stands for 0.": (
        right.edit((LOW, ""), (HIGH, ""), (".clamp(0, 2**bits - 1)", ""))
    ),
    "the range does not contain 0, and its zero point is then clamped to a code that stands for another number. Take "
    "low = min(low, 0) and high = max(high, 0).": right.edit((LOW, ""), (HIGH, "")),
    "the range of weights that are all positive does not contain 0. Take low = min(low, 0).": right.edit(LOW, ""),
    "the range of weights that are all negative does not contain 0. Take high = max(high, 0).": right.edit(HIGH, ""),
    "you divided the range by 15. 15 belongs to 4 bits: there are 2**bits - 1 steps.": (
        right.edit("/ (2**bits - 1)", "/ 15")
    ),
    "the range is rounded to 16 bits, and then divided. The scale is stored, not the range: divide first.": (
        right.edit(("(high - low)", "(high - low).half().double()"), ("exact.half().double()", "exact"))
    ),
    "the scale is rounded to bfloat16, which has 7 mantissa bits. It is stored as float16, which has 10.": (
        right.edit("exact.half()", "exact.bfloat16()")
    ),
    "the scale is not rounded to 16 bits. It will be stored as float16, so round it (.half().float()) before the zero "
    "point is computed from it.": right.edit("exact.half().double()", "exact"),
    "the zero point is computed from the exact scale. Use the stored scale, of 16 bits.": (
        right.edit("-low / scale", "-low / exact.clamp(min=1e-9)")
    ),
    "the zero point is truncated (.int(), //); round it to the nearest whole number.": right.edit("round", "trunc"),
    "the zero point is rounded up; round it to the nearest whole number.": right.edit("round", "ceil"),
    "the zero point is not rounded to a whole number. It is a code.": right.edit(".round()", ""),
    "the zero point is one too large: zero = round(-low / scale), with nothing added.": (
        right.edit(".round()", ".round().add(1)")
    ),
    "the zero point is one too small: zero = round(-low / scale), with nothing subtracted.": (
        right.edit(".round()", ".round().sub(1)")
    ),
    "the zero point is not clamped. It is a code, from 0 to 2**bits - 1, and a scale that was rounded down may push it "
    "beyond that range.": right.edit(".round().clamp(0, 2**bits - 1)", ".round()"),
    "this is the smallest weight itself. The zero point is the code of 0: round(-low / scale).": right.edit(
        ZERO, "low"
    ),
    "scale and zero are swapped: return scale first.": right.edit(f"return scale, {CHOSEN}", f"return {CHOSEN}, scale"),
    "both results are transposed: they are [out, groups].": (
        right.edit(f"return scale, {CHOSEN}", f"return scale.T, ({CHOSEN}).T")
    ),
    "the zero point has the wrong sign: it is the code that means 0, so zero = round(-low / scale).": (
        right.edit(("-low / scale", "low / scale"), (".clamp(0, 2**bits - 1)", ""))
    ),
    "a group of nothing but zeros has scale 0, and nothing can be divided by it: give it scale 1.": (
        right.edit("torch.where(scale == 0, 1.0, scale)", "scale")
    ),
    "on the symmetric grid you divided the largest weight by 2**(bits-1) - 1. The lowest level is then never used; "
    "divide by 2**bits / 2 - 0.5, which is the range from -largest to largest over 2**bits - 1.": (
        right.edit("exact = ", "exact = high / (2 ** (bits - 1) - 1) if symmetric else ")
    ),
    "on the symmetric grid you divided the largest weight by 2**(bits-1). The last positive level is then a whole step "
    "below the largest weight; divide by 2**bits / 2 - 0.5.": (
        right.edit("exact = ", "exact = high / 2 ** (bits - 1) if symmetric else ")
    ),
    "the symmetric grid is treated like the asymmetric one. Make its range symmetric first: from -largest to "
    "largest.": (
        right.edit(("if symmetric:", "if False:"), ("torch.full_like(zero, 2 ** (bits - 1)) if symmetric else ", ""))
    ),
    "on the symmetric grid the zero point is not computed: it is always the middle code, 2**(bits-1).": (
        right.edit(CHOSEN, "zero")
    ),
    "symmetric is reversed.": right.edit("rows, groups =", "symmetric = not symmetric; rows, groups ="),
    "the zero point is 0 on the symmetric grid, as for codes with a sign. Here codes begin at 0, and the one in the "
    "middle, 2**(bits-1), stands for 0.": right.edit("2 ** (bits - 1)", "0"),
    "the zero point of the symmetric grid is one below the middle: it is 2**(bits-1).": (
        right.edit("2 ** (bits - 1)", "2 ** (bits - 1) - 1")
    ),
    "on the symmetric grid you took half of the range. It goes from -largest to largest.": (
        right.edit("low = -high", "low = 0 * high")
    ),
    "on the symmetric grid only the largest positive weight counts. Take the largest of |weight|.": (
        right.edit(SYMMETRIC, "high")
    ),
    "on the symmetric grid only the smallest weight counts. Take the largest of |weight|.": right.edit(
        SYMMETRIC, "-low"
    ),
    "number and size of groups are swapped: reshape to [out, groups, group_size].": (
        right.edit("groups, group_size)", "group_size, groups)")
    ),
    "smallest and largest are taken along dim 0, over the rows. Take the last dim of [out, groups, group_size].": (
        right.edit(("amin(dim=-1)", "amin(dim=0)"), ("amax(dim=-1)", "amax(dim=0)"))
    ),
    "groups run down the columns (.T before the reshape). A group consists of neighbours in a row.": (
        right.edit("weight.double()", "weight.double().T")
    ),
    "your groups consist of every n-th weight. Neighbours in a row form a group: reshape to [out, groups, group_size], "
    "in this order.": right.edit("groups, group_size)", "group_size, groups).transpose(1, 2)"),
    "smallest and largest are taken along the wrong dim. Take the last dim of [out, groups, group_size].": (
        right.edit(("amin(dim=-1)", "amin(dim=1)"), ("amax(dim=-1)", "amax(dim=1)"))
    ),
    "all groups of a row have the same scale: smallest and largest are those of the whole row.": (
        right.edit(GROUPED, "[:, None].expand(rows, groups, -1)")
    ),
    "all groups have the same scale: smallest and largest are those of the whole matrix.": (
        right.edit(GROUPED, ".flatten().expand(rows, groups, -1)")
    ),
}


def _zeros_have_scale_1(arguments, results) -> bool:
    weight, _, group_size, _ = arguments
    dead = (weight.reshape(len(weight), -1, group_size) == 0).all(dim=-1).numpy()
    return bool((results[0][dead] == 1).all())


def adapt_fit(theirs):
    """A learner's ``scale_and_zero`` replaces :func:`qtutor.rtn.fit_groups`."""

    def fit_groups(grouped, grid):
        if not isinstance(grid, IntGrid):
            return packages_own(grouped, grid)  # lists of levels belong to another chapter
        rows, groups, length = grouped.shape
        scale, zero = theirs(grouped.reshape(rows, groups * length), grid.bits, length, grid.symmetric)
        scale, zero = tensor(scale, torch.float16, grouped), tensor(zero, torch.uint8, grouped)
        if not torch.isfinite(scale).all():
            raise QtutorError("your rtn.fit made a scale that float16 (up to 65504) cannot hold. Check the weights.")
        return scale, zero

    return fit_groups


FIT = Exercise(
    name="rtn.fit",
    title="Scale and zero point of every group",
    difficulty=2,
    minutes=15,
    reference=fit,
    cases=fit_cases,
    outputs=("scale", "zero"),
    mistakes=MISTAKES,
    properties=(
        ("a group of nothing but zeros has scale 1, not some small number: give it scale 1.", _zeros_have_scale_1),
        (
            "a zero point is itself a code, from 0 to 2**bits - 1.",
            lambda arguments, results: bool(((results[1] >= 0) & (results[1] < 2 ** arguments[1])).all()),
        ),
    ),
    replaces="qtutor.methods.rtn.fit_groups",
    adapt=adapt_fit,
)
