"""``bnb.encode``: find the nearest level in a list for every weight."""

import torch

from qtutor.core.codebooks import FP4, NF4, Codebook
from qtutor.course.exercises.adapting import tensor
from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.inputs import short
from qtutor.methods import rtn


def encode(weight, absmax, levels):
    length = weight.shape[1] // absmax.shape[1]
    values, codes = levels.tolist(), []
    for row, largest in zip(weight.tolist(), absmax.tolist()):
        nearest = []
        for column, value in enumerate(row):
            relative = value / (largest[column // length] or 1.0)  # a block of zeros
            nearest.append(min(range(len(values)), key=lambda code: abs(values[code] - relative)))
        codes.append(nearest)
    return codes


def cases():
    five, nf4, fp4 = (torch.tensor(values) for values in ([-1.0, -0.45, 0.0, 0.2, 1.0], NF4.values, FP4.values))
    zeros = torch.tensor([[0.3, -0.2, 0.1, -0.05, 0.0, 0.0, 0.0, 0.0]])

    # Far below any number added to avoid 0 / 0, and far above the smallest float32, even when squared.
    tiny = torch.tensor([1.0] * 4 + [1e-15] * 4)
    # More than 5e-4 from a border, but bfloat16 cannot tell the two sides apart.
    near = torch.tensor([[-0.8471, -0.6079, -0.4591, 0.9]])

    def blocks(weight: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        return weight, weight.float().reshape(len(weight), -1, length).abs().amax(dim=-1)

    return [
        ("one block, five levels", (*blocks(torch.tensor([[0.50, -0.13, 0.08, -0.38]]), 4), five)),
        ("two rows with an absmax each", (*blocks(torch.tensor([[2.0, -0.9, 0.3], [0.02, -0.05, 0.01]]), 3), five)),
        ("two blocks in each row", (*blocks(short(21, 2, 8) * torch.tensor([[1.0], [3.0]]), 4), five)),
        ("NF4, one block in each row", (*blocks(short(22, 2, 16), 16), nf4)),
        ("FP4, whose levels do not ascend", (*blocks(short(23, 2, 16), 8), fp4)),
        ("a block of nothing but zeros", (*blocks(zeros, 4), nf4)),
        ("a largest weight that is negative", (*blocks(-short(24, 1, 8).abs(), 8), nf4)),
        (
            "weights beyond their absmax, which double quantization rounds a little",
            (torch.tensor([[0.52, -0.3, 0.05, -0.51]]), torch.tensor([[0.5]]), nf4),
        ),
        ("a block of very small weights beside another", (*blocks(short(26, 2, 8) * tiny, 4), nf4)),
        ("weights not far from the middle of two levels", (near, torch.ones(1, 1), nf4)),
        ("weights in bfloat16", (*blocks(short(25, 3, 8).bfloat16(), 4), nf4)),
    ]


@solution
def right(weight, absmax, levels):
    length = weight.shape[1] // absmax.shape[1]
    spread = absmax.double().repeat_interleave(length, dim=1)
    relative = weight.double() / torch.where(spread == 0, 1, spread)  # zeros over 1 are zeros
    differences = relative[..., None] - levels
    codes = differences.abs().argmin(dim=-1)
    return codes


@solution
def right_by_borders(weight, absmax, levels):
    spread = absmax.double().repeat_interleave(weight.shape[1] // absmax.shape[1], dim=1)
    relative = weight.double() / torch.where(spread == 0, 1, spread)
    ascending, order = levels.double().sort()
    borders = (ascending[1:] + ascending[:-1]) / 2
    return order[torch.bucketize(relative, borders)]


AS_THEY_COME = ("levels.double().sort()", "levels.double(), torch.arange(len(levels))")
OVER_ZERO = ("torch.where(spread == 0, 1, spread)", "spread")

MISTAKES = {
    "the weights are not divided by the absmax of their block. Levels reach from -1 to 1, weights do not.": (
        right.edit(" / torch.where(spread == 0, 1, spread)", "")
    ),
    "the weights are multiplied by the absmax; divide by it, and the largest of the block becomes 1 or -1.": (
        right.edit("/ torch.where(spread == 0, 1, spread)", "* spread")
    ),
    "codes are computed as if the levels were evenly spaced. They are listed: compare with each of them.": right.edit(
        "differences.abs().argmin(dim=-1)", "((relative + 1) / 2 * (len(levels) - 1)).round().clamp(0, len(levels) - 1)"
    ),
    "each weight gets the level below it; take the nearest (searchsorted finds one neighbour, but the other one may be "
    "nearer).": right_by_borders.edit(
        ("(ascending[1:] + ascending[:-1]) / 2", "ascending[1:]"), (", borders)", ", borders, right=True)")
    ),
    "each weight gets the level above it; take the nearest (searchsorted finds one neighbour, but the other one may be "
    "nearer).": right_by_borders.edit("(ascending[1:] + ascending[:-1]) / 2", "ascending[:-1]"),
    "these are places among the sorted levels. A code is the place in levels as they are given: with FP4 they do not "
    "ascend.": right.edit("- levels", "- levels.sort().values"),
    "these are the levels themselves; a code is the place of the level, a whole number.": (
        right.edit("return codes", "return levels[codes]")
    ),
    "these are the decoded weights, level times absmax; a code is the place of the level, a whole number.": (
        right.edit("return codes", "return spread * levels[codes]")
    ),
    "you added a small number to absmax, or clamped absmax from below. In a block of very small weights, that number "
    "is larger than absmax. Use another number only if absmax is 0: torch.where(absmax == 0, 1, absmax).": (
        right.edit(OVER_ZERO[0], "(spread + 1e-8)")
    ),
    "weights or levels are compared in bfloat16, which has too few digits near the middle of two levels. Stay in "
    "float32.": right.edit("relative[..., None] - levels", "relative.bfloat16()[..., None] - levels.bfloat16()"),
    "you added the levels; subtract them: the nearest has the smallest |weight - level|.": (
        right.edit("[..., None] - levels", "[..., None] + levels")
    ),
    "you lost the signs of the weights, so that all get levels above zero: .abs() belongs around the difference.": (
        right.edit("[..., None] - levels", "[..., None].abs() - levels")
    ),
    "these are the differences to the nearest levels; a code is the level's place: .argmin(), or .indices of "
    ".min().": right.edit("argmin(dim=-1)", "amin(dim=-1)"),
    "codes are counted from the middle of the levels; they are places, and the first level has code 0.": (
        right.edit("return codes", "return codes - len(levels) // 2")
    ),
    "all blocks of a row use the largest absmax of the row. Each block has its own: repeat_interleave.": right.edit(
        "absmax.double().repeat_interleave(length, dim=1)", "absmax.double().amax(dim=1, keepdim=True)"
    ),
    "the smallest difference wins; take the smallest |difference|: without .abs(), the largest level always "
    "wins.": right.edit(".abs()", ""),
    "the level that is furthest away wins: argmin, not argmax.": right.edit("argmin", "argmax"),
    "only the sizes are compared, so that negative weights get levels of the other sign: take the difference first, "
    "then its absolute value.": right.edit("[..., None] - levels", "[..., None].abs() - levels.abs()"),
    "codes are counted from 1; the first level has code 0.": right.edit("return codes", "return codes + 1"),
    "in a block of zeros, all codes are 0, no matter what levels[0] is. Its absmax is 0, and 0 / 0 is nan: divide by "
    "another number there, and the result is the code of the level 0.": right.edit(OVER_ZERO),
    "in a block of zeros, all codes are the last one. Its absmax is 0, and 0 / 0 is nan, which searchsorted and "
    "bucketize put after everything: divide by another number there, and the result is the code of the level 0.": (
        right_by_borders.edit(OVER_ZERO)
    ),
    "bucketize and searchsorted need borders that ascend, and FP4's levels do not: sort them, and use the sort order "
    "to find each level's code.": right_by_borders.edit(AS_THEY_COME),
    "two things: bucketize and searchsorted need borders that ascend, and FP4's levels do not; and in a block of "
    "zeros, 0 / 0 is nan, which they put after everything.": right_by_borders.edit(AS_THEY_COME, OVER_ZERO),
    "the blocks are spread the wrong way: neighbours share an absmax, a a b b and not a b a b "
    "(repeat_interleave).": right.edit("repeat_interleave(length, dim=1)", "repeat(1, length)"),
    "all blocks of a row use the absmax of its first block.": (
        right.edit(".repeat_interleave(length, dim=1)", "[:, :1]")
    ),
    "all rows use the absmax of the first row.": right.edit("absmax.double()", "absmax[:1].double()"),
    "the weights are divided by the largest of their row. A row may have several blocks, each with an absmax of its "
    "own: use the one that is given.": right.edit(
        "absmax.double().repeat_interleave(length, dim=1)", "weight.double().abs().amax(dim=1, keepdim=True)"
    ),
    "all weights are divided by the same number, the largest absmax. Each block has its own.": (
        right.edit(".repeat_interleave(length, dim=1)", ".max()")
    ),
}


def adapt(theirs):
    """A learner's function replaces :func:`qtutor.rtn.encode_groups`, for grids that list up to 16 levels."""
    # The current function: the package's own, or the learner's answer from chapter 02 for integer grids.
    otherwise = rtn.encode_groups

    def encode_groups(grouped, scale, zero, grid):
        if type(grid) is not Codebook or grid.bits > 4:
            return otherwise(grouped, scale, zero, grid)
        rows, groups, length = grouped.shape
        levels = torch.tensor(grid.values, device=grouped.device)
        codes = theirs(grouped.reshape(rows, groups * length), scale, levels)
        return tensor(codes, torch.uint8, grouped).reshape(grouped.shape)

    return encode_groups


ENCODE = Exercise(
    name="bnb.encode",
    title="The nearest level of every weight",
    difficulty=2,
    minutes=10,
    reference=encode,
    cases=cases,
    outputs=("codes",),
    mistakes=MISTAKES,
    replaces="qtutor.methods.rtn.encode_groups",
    adapt=adapt,
)
