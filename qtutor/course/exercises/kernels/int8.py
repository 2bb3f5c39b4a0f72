"""``kernels.int8``: a product with inputs of eight bits, in whole numbers within each group."""

import torch

from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.inputs import codes_of, noise


def int8_product(codes, zeros, scales, x):
    groups, values = scales.shape[1], x.double().tolist()
    size = len(values) // groups
    products = [0.0] * len(codes)
    for group in range(groups):
        own = slice(group * size, (group + 1) * size)
        largest = max(abs(value) for value in values[own])
        if not largest:
            continue
        rounded = [round(value / (largest / 127)) for value in values[own]]
        for row in range(len(codes)):
            zero = int(zeros[row, group])
            whole = sum((code - zero) * q for code, q in zip(codes[row, own].tolist(), rounded))
            products[row] += float(scales[row, group]) * (largest / 127) * whole
    return products


def cases():
    def case(seed: int, rows: int, groups: int, size: int, loud: bool = False) -> tuple:
        x = noise(groups * size, seed=seed)
        x[0] = 30.0 if loud else x[0]
        scales = 0.01 + noise(rows, groups, seed=seed + 1).abs() / 10
        return codes_of(seed, rows, groups * size).long(), codes_of(seed + 2, rows, groups).long(), scales, x

    by_hand = torch.tensor([[5, 2]]), torch.tensor([[3]]), torch.tensor([[0.5]])
    silent = case(35, 2, 2, 8)
    silent[3][:8] = 0
    return [
        ("two weights, x 127 and -1", (*by_hand, torch.tensor([127.0, -1.0]))),
        ("x 254 and 100, so that a step is 2", (*by_hand, torch.tensor([254.0, 101.0 - 1]))),
        ("one group of eight", case(31, 1, 1, 8)),
        ("two groups, one of which is 20 times as loud", case(32, 2, 2, 8, loud=True)),
        ("three rows of four groups", case(33, 3, 4, 16)),
        ("the largest x is negative", (*by_hand, torch.tensor([-3.0, 1.0]))),
        ("a group in which x is 0", silent),
        ("four rows of two groups of 32", case(34, 4, 2, 32)),
    ]


@solution
def right(codes, zeros, scales, x):
    groups = scales.shape[1]
    cut = x.double().reshape(groups, -1)
    step = (cut.abs().amax(1) / 127).clamp(min=1e-30)
    rounded = (cut / step.unsqueeze(1)).round()
    of_codes = (codes.double().reshape(len(codes), groups, -1) * rounded).sum(-1)
    whole = of_codes - zeros.double() * rounded.sum(1)
    return (scales.double() * step * whole).sum(1)


STEP, WHOLE = "(cut.abs().amax(1) / 127)", "of_codes - zeros.double() * rounded.sum(1)"
RESULT = "(scales.double() * step * whole).sum(1)"

MISTAKES = {
    "x was not rounded. This is the exact product; the task is the product with inputs rounded to int8.": (
        right.edit(".round()", "")
    ),
    "all groups share one step. Each group has its own: its largest |x| / 127.": (
        right.edit("cut.abs().amax(1)", "cut.abs().amax().expand(groups)")
    ),
    "the step is the largest |x| / 128. Then the largest would be the code 128, which int8 does not have.": (
        right.edit("/ 127", "/ 128")
    ),
    "the step is the largest |x| / 255. Codes go to both sides of 0, up to 127.": right.edit("/ 127", "/ 255"),
    "the step is the range (largest - smallest) / 255. Here the codes of x are symmetric: largest |x| / 127.": (
        right.edit(STEP, "((cut.amax(1) - cut.amin(1)) / 255)")
    ),
    "the step comes from the largest x, but the largest |x| may be a negative one: abs() first.": (
        right.edit("cut.abs().amax(1)", "cut.amax(1)")
    ),
    "the step of x is missing in the result. A code of x is a number of steps.": right.edit("* step *", "*"),
    "the result is divided by the step of x. Multiply by it.": right.edit("* step *", "/ step *"),
    "the scales of the weights are missing.": right.edit("scales.double() * step", "step"),
    "the zero points are missing.": right.edit(WHOLE, "of_codes"),
    "the zero point is multiplied by the sum of x before rounding, but the other sum uses x after rounding: take the "
    "sum of the codes of x.": right.edit("rounded.sum(1)", "cut.sum(1) / step"),
    "the zero point itself is subtracted. Each code of x was multiplied by it.": (
        right.edit(WHOLE, "of_codes - zeros.double()")
    ),
    "you added the term with the zero point. Subtract it.": right.edit("of_codes - zeros", "of_codes + zeros"),
    "codes of x are truncated to whole numbers. Round to the nearest.": right.edit(".round()", ".trunc()"),
    "codes of x are rounded down (floor). Round to the nearest.": right.edit(".round()", ".floor()"),
    "products of codes were kept in int8, which wraps around past 127. Convert the codes to larger integers first.": (
        right.edit(
            "(codes.double().reshape(len(codes), groups, -1) * rounded)",
            "((codes.double().reshape(len(codes), groups, -1) * rounded + 128) % 256 - 128)",
        )
    ),
    "the step is the largest |x| / 127.5. Codes go up to 127: divide by that.": right.edit(
        ("/ 127", "/ 127.5"), (".round()", ".round().clamp(-128, 127)")
    ),
    "the step is rounded to float16, which has 10 mantissa bits. Leave it in float32.": (
        right.edit("/ 127)", "/ 127).half().double()")
    ),
    "the codes of x go up to 7, as in 4 bits. In eight bits, they go up to 127.": right.edit("/ 127", "/ 7"),
    "the groups are not added up. A row has one product.": right.edit(RESULT, "scales.double() * step * whole"),
    "the codes of x are taken modulo 256, as unsigned bytes: negative ones come out large.": (
        right.edit(".round()", ".round() % 256")
    ),
}

INT8 = Exercise(
    name="kernels.int8",
    title="Inputs of eight bits",
    difficulty=2,
    minutes=15,
    reference=int8_product,
    cases=cases,
    outputs=("products",),
    mistakes=MISTAKES,
    tolerance=1e-5,  # steps and scales in float32
)
