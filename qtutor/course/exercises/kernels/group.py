"""``kernels.group``: a matrix product whose zero points stay outside the sums over codes."""

import torch

from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.inputs import codes_of, noise


def zeros_outside(sums, x, scales, zeros):
    rows, groups = sums.shape
    size, values = len(x) // groups, x.tolist()
    products = []
    for row in range(rows):
        total = 0.0
        for group in range(groups):
            of_codes = float(sums[row, group])
            for value in values[group * size : (group + 1) * size]:
                of_codes -= float(zeros[row, group]) * value
            total += float(scales[row, group]) * of_codes
        products.append(total)
    return products


def case(seed: int, rows: int, groups: int, size: int) -> tuple:
    """Sums of codes times x in every group, x, scales and zero points of a random matrix."""
    codes, x = codes_of(seed, rows, groups, size).long(), noise(groups * size, seed=seed) + 0.5
    sums = (codes * x.reshape(groups, size)).sum(-1)
    return sums, x, 0.01 + noise(rows, groups, seed=seed + 1).abs() / 10, codes_of(seed + 2, rows, groups).long()


def cases():
    by_hand = torch.tensor([[25.0]]), torch.tensor([1.0, 10.0]), torch.tensor([[0.5]])
    return [
        ("codes 5 and 2, x 1 and 10", (*by_hand, torch.tensor([[3]]))),
        ("the same with a zero point of 0", (*by_hand, torch.tensor([[0]]))),
        ("two rows of one group", case(11, 2, 1, 4)),
        ("one row of three groups", case(12, 1, 3, 8)),
        ("three rows of two groups", case(13, 3, 2, 32)),
        ("four rows of four groups", case(14, 4, 4, 16)),
    ]


@solution
def right(sums, x, scales, zeros):
    groups = sums.shape[1]
    of_x = x.double().reshape(groups, -1).sum(1)
    products = scales.double() * (sums.double() - zeros * of_x)
    return products.sum(1)


PRODUCTS, OF_X = "scales.double() * (sums.double() - zeros * of_x)", "x.double().reshape(groups, -1).sum(1)"

MISTAKES = {
    "the zero points are missing. Each code stands for scale * (code - zero).": (
        right.edit("sums.double() - zeros * of_x", "sums.double()")
    ),
    "the zero point itself is subtracted from the sum. Every x of the group was multiplied by it: zero * (the sum of "
    "the group's x).": right.edit("zeros * of_x", "zeros"),
    "the zero point times the number of weights is subtracted. Each of them has its own x: zero * (the sum of the "
    "group's x).": right.edit("zeros * of_x", "zeros * (len(x) // groups)"),
    "the sum of all x is taken. Each group has a zero point of its own, and a sum of its own.": (
        right.edit(OF_X, "x.double().sum()")
    ),
    "you added the term with the zero point. A weight is scale * (code - zero): subtract it.": (
        right.edit("sums.double() - zeros", "sums.double() + zeros")
    ),
    "the scale is applied to the codes only. It belongs outside the brackets: scale * (code - zero).": (
        right.edit(PRODUCTS, "scales.double() * sums.double() - zeros * of_x")
    ),
    "the scales are missing.": right.edit("scales.double() * (sums", "(sums"),
    "you divided by the scale. A code is a number of steps, and the scale is the length of one: multiply.": (
        right.edit(PRODUCTS, "(sums.double() - zeros * of_x) / scales.double()")
    ),
    "the groups of a row are not added up. A row has one product.": right.edit("products.sum(1)", "products"),
    "you added up rows; add up the groups of a row.": right.edit("products.sum(1)", "products.sum(0)"),
    "you returned the mean over the groups. The product of a row is their sum.": (
        right.edit("products.sum(1)", "products.mean(1)")
    ),
    "the mean of the group's x is taken. Each x was multiplied by the zero point, so take their sum.": (
        right.edit(OF_X, "x.double().reshape(groups, -1).mean(1)")
    ),
    "x is cut into groups the wrong way: a group is a run of neighbours.": (
        right.edit(OF_X, "x.double().reshape(-1, groups).sum(0)")
    ),
    "absolute values of x are added up. Its signs count.": right.edit("x.double()", "x.double().abs()"),
    "only the first group is counted.": right.edit("products.sum(1)", "products[:, 0]"),
    "only the last group is counted: the groups overwrite each other.": right.edit(
        "products.sum(1)", "products[:, -1]"
    ),
    "8 is subtracted, as on the symmetric grid. Here each group has a zero point.": (
        right.edit("zeros * of_x", "8 * of_x")
    ),
    "1 is added to the zero points, as in a GPTQ file. These zero points are stored as they are.": (
        right.edit("zeros * of_x", "(zeros + 1) * of_x")
    ),
}

GROUP = Exercise(
    name="kernels.group",
    title="Zero points outside of the sum",
    difficulty=1,
    minutes=10,
    reference=zeros_outside,
    cases=cases,
    outputs=("products",),
    mistakes=MISTAKES,
    tolerance=1e-5,  # sums in float32, in any order
)
