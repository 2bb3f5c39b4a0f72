"""``gptq.push``: round one column, and move the columns to its right."""

import numpy as np
import torch

from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.gptq.inputs import hessian
from qtutor.course.exercises.inputs import short


def push(weight, inverse, rounded):
    # Without the formula: column 0 is fixed, and the others move to minimise the squared output error d^T H d.
    h = np.linalg.inv(inverse.double().numpy())
    result = weight.double().numpy().copy()
    for row, value in zip(result, rounded.double().tolist()):
        first = value - row[0]
        if len(row) > 1:
            row[1:] += np.linalg.solve(h[1:, 1:], -h[1:, 0] * first)
        row[0] = value
    return result


def push_cases():
    def of(seed, rows, width, shared=1.0):
        weight = short(seed, rows, width, digits=2)
        return weight, torch.linalg.inv(hessian(seed, width, shared=shared)).float(), weight[:, 0].round()

    chapter = torch.tensor([[0.40, 0.45]]), torch.tensor([[14.0, -13.0], [-13.0, 14.0]]) / 27, torch.tensor([0.0])
    quarters, inverse, _ = of(8, 3, 4)
    opposed = torch.tensor([[14.0, 13.0], [13.0, 14.0]]) / 27
    return [
        ("the two weights of the chapter", chapter),
        ("a row of four weights", of(1, 1, 4)),
        ("three rows of four", of(2, 3, 4)),
        ("a square matrix", of(3, 4, 4, 2.0)),
        ("inputs that move against each other", (torch.tensor([[0.40, 0.45]]), opposed, torch.tensor([0.0]))),
        (
            "inputs that are independent of each other",
            (short(4, 2, 3, digits=2), torch.eye(3) / 5, torch.tensor([1.0, 0])),
        ),
        ("steps of a quarter, down from the weights", (quarters, inverse, (quarters[:, 0] * 4).floor() / 4)),
        (
            "a single column, the last one",
            (short(5, 3, 1, digits=2), torch.tensor([[0.2]]), torch.tensor([1.0, -1.0, 0.0])),
        ),
        ("a weight that is on a level already", (torch.tensor([[1.0, 0.3, -0.7]]), of(6, 1, 3)[1], torch.ones(1))),
    ]


@solution
def right(weight, inverse, rounded):
    weight, inverse, rounded = weight.double(), inverse.double(), rounded.double()
    e = weight[:, 0] - rounded
    after = weight - torch.outer(e, inverse[0] / inverse[0, 0])
    after[:, 0] = rounded
    return after


ADDED = ("weight - torch", "weight + torch")
NOT_DIVIDED = (" / inverse[0, 0]", "")
LEFT_TO_THE_FORMULA = ("    after[:, 0] = rounded\n", "")  # column 0 then comes from the formula, like the others

MISTAKES = {
    "the others moved the wrong way, so that they add to the error. With e = weight - rounded they move by *minus* e "
    "times the row of the inverse.": right.edit(ADDED),
    "nothing was pushed: only column 0 changed. That is rounding to nearest.": (
        right.edit("weight - torch.outer(e, inverse[0] / inverse[0, 0])", "weight.clone()")
    ),
    "the sign is wrong: with e = weight - rounded, *subtract* e times the row of the inverse. Column 0 shows it best, "
    "since it should come out rounded.": right.edit(ADDED, LEFT_TO_THE_FORMULA),
    "you multiplied by [H^-1]_00; divide by it, so that column 0 comes out rounded.": (
        right.edit("/ inverse[0, 0]", "* inverse[0, 0]")
    ),
    "you took the last row of the inverse. Column 0 was rounded: its row is the first.": (
        right.edit("inverse[0] / inverse[0, 0]", "inverse[-1] / inverse[-1, -1]")
    ),
    "you took the diagonal of the inverse. Its first row shows how column 0 and the others are related.": (
        right.edit("inverse[0] / inverse[0, 0]", "inverse.diagonal() / inverse[0, 0]")
    ),
    "you divided by the sum of the row; divide by its first entry, [H^-1]_00.": (
        right.edit("/ inverse[0, 0]", "/ inverse[0].sum()")
    ),
    "you divided by the length of the row; divide by its first entry, [H^-1]_00.": (
        right.edit("/ inverse[0, 0]", "/ inverse[0].norm()")
    ),
    "you divided by the trace of the inverse; divide by [H^-1]_00.": right.edit("/ inverse[0, 0]", "/ inverse.trace()"),
    "the signs of the row of the inverse are lost: if column 0 moves down, some columns move up, and others down.": (
        right.edit("inverse[0] / inverse[0, 0]", "inverse[0].abs() / inverse[0, 0]")
    ),
    "all rows of the inverse are added. Column 0 was rounded: only its row is needed, the first.": (
        right.edit("inverse[0] / inverse[0, 0]", "inverse.sum(dim=0) / inverse[0, 0]")
    ),
    "you took the mean over the rows of the inverse. Column 0 was rounded: only its row is needed, the first.": (
        right.edit("inverse[0] / inverse[0, 0]", "inverse.mean(dim=0) / inverse[0, 0]")
    ),
    "you took the mean over the rows of the inverse, over the mean of the whole inverse. Take the first row over "
    "[H^-1]_00.": right.edit("inverse[0] / inverse[0, 0]", "inverse.mean(dim=0) / inverse.mean()"),
    "every row was moved by the mean of the errors of all rows. Each row has an error of its own.": (
        right.edit("outer(e,", "outer(e.mean().expand(len(e)),")
    ),
    "every row was moved by the sum of the errors of all rows. Each row has an error of its own.": (
        right.edit("outer(e,", "outer(e.sum().expand(len(e)),")
    ),
    "the error lost its sign (abs): a weight that was rounded up pushes the other way.": (
        right.edit("outer(e,", "outer(e.abs(),")
    ),
    "the squared error is pushed. Push the error itself, weight minus rounded.": right.edit("outer(e,", "outer(e**2,"),
    "twice the error is pushed. The others take over all of it, once.": right.edit("outer(e,", "outer(2 * e,"),
    "half of the error is pushed. The others take over all of it.": right.edit("outer(e,", "outer(e / 2,"),
    "you rounded column 0 again, to whole numbers. Its rounded values are given: rounded.": right.edit(
        "weight.double(), inverse.double(), rounded.double()",
        "weight.double(), inverse.double(), weight[:, 0].double().round()",
    ),
    "the error was counted from weights that you rounded again, to whole numbers. It is weight minus rounded, which is "
    "given.": right.edit("weight[:, 0] - rounded", "weight[:, 0] - weight[:, 0].round()"),
    "you rounded column 0 again, to whole numbers, after the others had moved. It takes the values of rounded.": (
        right.edit("after[:, 0] = rounded", "after[:, 0] = weight[:, 0].round()")
    ),
    "e is the weight itself; the error is what rounding changed, weight minus rounded.": (
        right.edit("e = weight[:, 0] - rounded", "e = weight[:, 0]")
    ),
    "column 1 was left out. All columns but column 0 move.": (
        right.edit("after[:, 0] = rounded", "after[:, 0], after[:, 1:2] = rounded, weight[:, 1:2]")
    ),
    "only the next column moved. All columns to the right do.": (
        right.edit("after[:, 0] = rounded", "after[:, 0], after[:, 2:] = rounded, weight[:, 2:]")
    ),
    "the last column was left out. All columns but column 0 move.": (
        right.edit("after[:, 0] = rounded", "after[:, -1], after[:, 0] = weight[:, -1], rounded")
    ),
    "the other columns were replaced by their moves. Add them to the weights.": (
        right.edit("after = weight - torch", "after = -torch")
    ),
    "column 0 is 0. Set it to the rounded values.": right.edit("after[:, 0] = rounded", "after[:, 0] = 0"),
    "the result is transposed: it is [out, left], as weight is.": right.edit("return after", "return after.T"),
    "all columns were rounded. Only column 0 is; the others wait for their turn.": (
        right.edit("return after", "return after.round()")
    ),
    "the division by [H^-1]_00 is missing.": right.edit(NOT_DIVIDED),
    "the row of the inverse has to be divided by its first entry, [H^-1]_00; column 0 then comes out rounded.": (
        right.edit(NOT_DIVIDED, LEFT_TO_THE_FORMULA)
    ),
    "you divided by the square root of [H^-1]_00; the formula uses it as it is. (The root belongs to U, further "
    "down.)": right.edit("inverse[0, 0]", "inverse[0, 0].sqrt()"),
    "you divided by the square of [H^-1]_00; the formula uses it as it is.": (
        right.edit("inverse[0, 0]", "inverse[0, 0].square()")
    ),
    "every column was divided by its own [H^-1]_jj. The divisor is the one of the column that was rounded, "
    "[H^-1]_00.": right.edit("inverse[0, 0]", "inverse.diagonal()"),
    "column 0 has not changed: it has to take the rounded values.": (
        right.edit("after[:, 0] = rounded", "after[:, 0] = weight[:, 0]")
    ),
    "column 0 was moved once more after it was rounded. It is done: only those to its right move.": (
        right.edit("after[:, 0] = rounded", "after[:, 0] = rounded - e")
    ),
    "every row was moved by the error of row 0. Each row has an error of its own: torch.outer(e, ...).": (
        right.edit("outer(e,", "outer(e[:1].expand(len(e)),")
    ),
    "e is the rounded value itself; the error is what rounding changed, weight minus rounded.": (
        right.edit("e = weight[:, 0] - rounded", "e = rounded")
    ),
    "the error was shared out evenly. How much each column takes over is in the first row of the inverse.": (
        right.edit("inverse[0] / inverse[0, 0]", "torch.full_like(inverse[0], -1 / max(len(inverse) - 1, 1))")
    ),
    "these are the columns that are left; return all columns, with the rounded column in front.": (
        right.edit("return after", "return after[:, 1:]")
    ),
    "these are the moves alone; return the weights after them.": right.edit("return after", "return after - weight"),
    "you inverted the given matrix. It is H^-1 already: take its first row.": (
        right.edit("inverse.double()", "torch.linalg.inv(inverse.double())")
    ),
}


PUSH = Exercise(
    name="gptq.push",
    title="One column rounded, the others moved",
    difficulty=1,
    minutes=10,
    reference=push,
    cases=push_cases,
    outputs=("weight",),
    mistakes=MISTAKES,
    tolerance=1e-3,  # float32 is precise enough for weights, and some of these sums nearly cancel
)
