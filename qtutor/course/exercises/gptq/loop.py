"""``gptq.loop``: round all columns of a matrix, one after the other, with the rows of U."""

import numpy as np
import torch

from qtutor.core.grid import IntGrid
from qtutor.course.exercises.adapting import tensor, whole_codes
from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.gptq.inputs import hessian
from qtutor.course.exercises.inputs import short
from qtutor.methods.gptq import round_block as packages_own


def loop(weight, upper, scale, zero, bits):
    u = upper.double().numpy()
    h = np.linalg.inv(u.T @ u)
    length = weight.shape[1] // scale.shape[1]
    codes = []
    for row, scales, zeros in zip(weight.double().numpy(), scale.tolist(), zero.tolist()):
        left, chosen = row.copy(), []
        for column in range(len(row)):
            s, z = scales[column // length], zeros[column // length]
            chosen.append(min(range(2**bits), key=lambda code: abs(s * (code - z) - left[column])))
            moved = s * (chosen[-1] - z) - left[column]
            inverse = np.linalg.inv(h[column:, column:])  # computed again, of the columns that are not rounded yet
            left[column:] += moved * inverse[0] / inverse[0, 0]
        codes.append(chosen)
    return codes


def triangle(matrix: torch.Tensor) -> torch.Tensor:
    """U, float32, with ``H^-1 = U^T U``."""
    return torch.linalg.cholesky(torch.linalg.inv(matrix.double()), upper=True).float()


def loop_cases():
    def of(seed, rows, width, bits, groups=1, shared=1.0, step=0.0):
        weight = short(seed, rows, width, digits=2)
        grouped = weight.reshape(rows, groups, -1)
        low, high = grouped.amin(dim=-1).clamp(max=0), grouped.amax(dim=-1).clamp(min=0)
        scale = torch.full_like(low, step) if step else (high - low) / (2**bits - 1)
        scale = scale.half()
        zero = (-low / scale.float()).round().clamp(0, 2**bits - 1).to(torch.uint8)
        return weight, triangle(hessian(seed, width, shared=shared)), scale, zero, bits

    two = torch.tensor([[0.40, 0.45]]), triangle(torch.tensor([[14.0, 13.0], [13.0, 14.0]]))
    ones, four = torch.ones(1, 1, dtype=torch.float16), torch.full((1, 1), 4, dtype=torch.uint8)
    return [
        ("the two weights of the chapter", (*two, ones, four, 3)),
        ("one row of eight weights", of(1, 1, 8, 3)),
        ("four rows of eight weights", of(2, 4, 8, 3)),
        ("two groups in each row", of(3, 3, 8, 3, groups=2)),
        ("inputs that are very much alike", of(4, 3, 6, 4, groups=3, shared=3.0)),
        ("weights that are pushed beyond the range", of(5, 3, 8, 2, shared=2.0, step=0.3)),
        (
            "independent inputs: nothing has to be pushed",
            (short(6, 2, 4, digits=2), torch.eye(4), *of(6, 2, 4, 3)[2:]),
        ),
        ("as many rows as columns", of(7, 6, 6, 4)),
        ("8 bits", of(8, 4, 12, 8, groups=2)),
    ]


@solution
def right(weight, upper, scale, zero, bits):
    work, u, codes = weight.double().clone(), upper.double(), torch.zeros(weight.shape, dtype=torch.float64)
    length = weight.shape[1] // scale.shape[1]
    for j in range(weight.shape[1]):
        g = j // length
        s, z = scale[:, g].double(), zero[:, g].double()
        codes[:, j] = ((work[:, j] / s).round() + z).clamp(0, 2**bits - 1)
        e = work[:, j] - s * (codes[:, j] - z)
        work[:, j + 1 :] -= torch.outer(e, u[j, j + 1 :] / u[j, j])
    return codes


MISTAKES = {
    "these are the codes of rounding to nearest: no error reaches a column before its turn. Go from left to right; the "
    "columns to the right move by row j of U, upper[j, j+1:] (column j holds zeros there), and the moved weights get "
    "rounded.": right.edit("u[j, j + 1 :]", "u[j + 1 :, j]"),
    "columns move the wrong way, so that errors add up: *subtract* e times the row of U.": right.edit("-=", "+="),
    "the error is not divided by U_jj, the diagonal of U, before it is pushed.": right.edit(" / u[j, j]", ""),
    "the error is divided by the square of U_jj. The row of U carries one U_jj already: divide once.": (
        right.edit("u[j, j])", "u[j, j].square())")
    ),
    "you push with the rows of H^-1 = U^T U. These are right only for column 0: after it, the inverse must forget the "
    "columns that are done. Use the row upper[j, j+1:] / upper[j, j], which does.": (
        right.edit("upper.double()", "upper.double().T @ upper.double()")
    ),
    "only the next column is moved. Every column to the right takes its share.": (
        right.edit(("work[:, j + 1 :]", "work[:, j + 1 : j + 2]"), ("u[j, j + 1 :]", "u[j, j + 1 : j + 2]"))
    ),
    "columns are moved only up to the end of the group. Scales stop there, but errors do not.": right.edit(
        ("work[:, j + 1 :]", "work[:, j + 1 : (g + 1) * length]"), ("u[j, j + 1 :]", "u[j, j + 1 : (g + 1) * length]")
    ),
    "the error is counted from the original weight. By now the column has been moved: the error is the *moved* weight "
    "minus its rounded value.": right.edit("e = work[:, j]", "e = weight[:, j].double()"),
    "the error is counted before the code was clamped. A weight beyond the range is off by more, and that has to be "
    "pushed as well.": right.edit("s * (codes[:, j] - z)", "s * (work[:, j] / s).round()"),
    "columns are rounded from right to left, and push to the left. Go from left to right: U has zeros to the left of "
    "its diagonal, and row j holds the shares of the columns to the right.": right.edit(
        ("range(weight.shape[1])", "reversed(range(weight.shape[1]))"),
        ("work[:, j + 1 :] -=", "work[:, :j] -="),
        ("u[j, j + 1 :]", "u[:j, j]"),
    ),
    "every row is moved by the error of row 0. Each row has an error of its own.": (
        right.edit("outer(e,", "outer(e[:1].expand(len(e)),")
    ),
    "all columns are rounded with the scale and zero of the first group: column j belongs to group j // group_size.": (
        right.edit("j // length", "0")
    ),
    "column j was given group j % groups. Neighbours share a group: j // group_size, with group_size = in // groups.": (
        right.edit("j // length", "j % scale.shape[1]")
    ),
    "all columns are rounded with the scale and zero of the last group: column j belongs to group j // group_size.": (
        right.edit("j // length", "-1")
    ),
    "the first columns were given one group each, and all others the last group: column j belongs to group j // "
    "group_size.": right.edit("j // length", "min(j, scale.shape[1] - 1)"),
    "the next group begins one column too early: column j belongs to group j // group_size, counted from 0.": (
        right.edit("j // length", "min((j + 1) // length, scale.shape[1] - 1)")
    ),
    "the next group begins one column too early, and the last column has the first group: column j belongs to group "
    "j // group_size, counted from 0.": right.edit("j // length", "(j + 1) // length % scale.shape[1]"),
    "the error is in steps. Multiply the code minus zero by the scale, and subtract that from the weight.": (
        right.edit("s * (codes[:, j] - z)", "(codes[:, j] - z)")
    ),
    "the error is in steps: weights over their scale, minus codes. Weights are not in steps, so multiply by the "
    "scale.": right.edit("work[:, j] - s * (codes[:, j] - z)", "work[:, j] / s - (codes[:, j] - z)"),
    "the zero point is missing when codes become weights: a code stands for scale * (code - zero).": (
        right.edit("s * (codes[:, j] - z)", "s * codes[:, j]")
    ),
    "zero is subtracted after the scale (are brackets missing?): a code stands for scale * (code - zero).": (
        right.edit("s * (codes[:, j] - z)", "(s * codes[:, j] - z)")
    ),
    "zero is added when codes become weights: a code stands for scale * (code - zero).": (
        right.edit("s * (codes[:, j] - z)", "s * (codes[:, j] + z)")
    ),
    "zero is subtracted when weights become codes; add it: (column / scale).round() + zero.": (
        right.edit("+ z)", "- z)")
    ),
    "zero is missing when weights become codes: (column / scale).round() + zero.": right.edit("+ z)", ")"),
    "everything is computed in float16, the dtype of the scales, which is too coarse for codes of 8 bits. Use "
    "weight.float(), scale.float() and zero.float().": right.edit(
        ("weight.double().clone(), upper.double()", "weight.half().clone(), upper.half()"),
        ("torch.zeros(weight.shape, dtype=torch.float64)", "torch.zeros(weight.shape, dtype=torch.float16)"),
        ("scale[:, g].double(), zero[:, g].double()", "scale[:, g].half(), zero[:, g].half()"),
    ),
    "codes are rounded down (floor). Take the nearest.": right.edit(".round()", ".floor()"),
    "codes are truncated (trunc, int). Take the nearest.": right.edit(".round()", ".trunc()"),
    "codes are rounded up (ceil). Take the nearest.": right.edit(".round()", ".ceil()"),
    "codes are clamped one too high: the largest is 2**bits - 1.": right.edit("2**bits - 1", "2**bits"),
    "only half of the codes are used: they run from 0 to 2**bits - 1.": right.edit(
        "2**bits - 1", "2 ** (bits - 1) - 1"
    ),
    "codes run from minus 2**(bits-1) up, and zero is still added. Here they run from 0 to 2**bits - 1.": (
        right.edit("clamp(0, 2**bits - 1)", "clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)")
    ),
    "code 0 is never used: codes run from 0.": right.edit("clamp(0,", "clamp(1,"),
    "the error is multiplied by U_jj; divide by it.": right.edit(" / u[j, j]", " * u[j, j]"),
    "the error is divided by the root of U_jj; divide by U_jj. (U is a factor, so it carries the root already.)": (
        right.edit("u[j, j])", "u[j, j].sqrt())")
    ),
    "the error is divided by U_00 in every column; divide by U_jj.": right.edit("u[j, j])", "u[0, 0])"),
    "every row is moved by the mean of the errors of all rows. Each row has an error of its own.": (
        right.edit("outer(e,", "outer(e.mean().expand(len(e)),")
    ),
    "every row is moved by the sum of the errors of all rows. Each row has an error of its own.": (
        right.edit("outer(e,", "outer(e.sum().expand(len(e)),")
    ),
    "row 0 of U moves the others in every step; take row j, upper[j, j+1:].": right.edit(
        "u[j, j + 1 :]", "u[0, j + 1 :]"
    ),
    "the row of U is shifted: column k moves by upper[j, k], so begin at j + 1 in both.": (
        right.edit("u[j, j + 1 :]", "u[j, 1 : weight.shape[1] - j]")
    ),
    "the next column is left out: begin at j + 1, not j + 2.": (
        right.edit(("work[:, j + 1 :]", "work[:, j + 2 :]"), ("u[j, j + 1 :]", "u[j, j + 2 :]"))
    ),
    "U was inverted. Use it as it is: row j of upper.": right.edit(
        "upper.double()", "torch.linalg.inv(upper.double())"
    ),
    "the error is squared. Push it as it is.": right.edit("outer(e,", "outer(e**2,"),
    "the error lost its sign (abs). Push it as it is.": right.edit("outer(e,", "outer(e.abs(),"),
    "codes have signs here. They are whole numbers from 0 to 2**bits - 1.": (
        right.edit("return codes", "return codes - 2 ** (bits - 1)")
    ),
    "the zero point is subtracted from the codes again; return them as they are, from 0 to 2**bits - 1.": (
        right.edit("return codes", "return codes - zero.repeat_interleave(length, dim=1)")
    ),
    "codes go beyond 0 ... 2**bits - 1: clamp them before you compute the error.": (
        right.edit(".clamp(0, 2**bits - 1)", "")
    ),
    "these are weights; return the codes.": right.edit(
        "return codes", "return ((codes.reshape(*scale.shape, -1) - zero[..., None]) * scale[..., None]).flatten(1)"
    ),
    "these are the weights as they were when their turn came; return the codes.": (
        right.edit("return codes", "return work")
    ),
}


def adapt_loop(theirs):
    """A learner's loop replaces :func:`qtutor.gptq.round_block`; each column is a group of its own.

    The loop's codes show what it pushed onto later columns: ``weight - rounded = E U``, where E holds all errors
    divided by the diagonal of U.
    """

    def round_block(work, upper, scale, zero, grid):
        if not isinstance(grid, IntGrid):
            return packages_own(work, upper, scale, zero, grid)  # lists of levels belong to another chapter
        count, rows = len(scale), work.shape[1]
        own, inside, behind = work[:count], upper[:count, :count], upper[:count, count:]
        stored = scale.expand(count, rows).T.to(grid.scale_dtype), zero.expand(count, rows).T.to(torch.uint8)
        codes = tensor(theirs(own.T.clone(), inside, *stored, grid.bits), torch.uint8, work).T
        rounded = grid.decode(codes, scale, zero)
        errors = torch.linalg.solve_triangular(inside.T, own - rounded, upper=False)
        own.copy_(rounded)
        work[count:] -= behind.T @ errors
        return codes, errors

    return round_block


LOOP = Exercise(
    name="gptq.loop",
    title="The loop of GPTQ",
    difficulty=3,
    minutes=20,
    reference=loop,
    cases=loop_cases,
    outputs=("codes",),
    mistakes=MISTAKES,
    properties=(whole_codes(4),),
    replaces="qtutor.methods.gptq.round_block",
    adapt=adapt_loop,
)
