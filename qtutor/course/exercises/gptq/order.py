"""``gptq.order``: round one row in its own order, the cheapest weight first. This is OBQ, from which GPTQ came."""

import numpy as np
import torch

from qtutor.course.exercises.adapting import whole_codes
from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.gptq.inputs import hessian
from qtutor.course.exercises.inputs import short


def order(weight, hessian, scale, zero, bits):
    h, row = hessian.double().numpy(), weight.double().numpy().copy()
    chosen, codes, left = [], [0] * len(row), list(range(len(row)))
    while left:
        inverse = np.linalg.inv(h[np.ix_(left, left)])  # computed again, of the columns that are not rounded yet
        nearest = [min(range(2**bits), key=lambda code: abs(scale * (code - zero) - row[j])) for j in left]
        off = [row[j] - scale * (code - zero) for j, code in zip(left, nearest)]
        at = min(range(len(left)), key=lambda i: off[i] ** 2 / inverse[i, i])
        row[left] -= off[at] * inverse[at] / inverse[at, at]
        codes[left[at]] = nearest[at]
        chosen.append(left.pop(at))
    return chosen, codes


def cases():
    def of(seed, width, bits, shared=1.0, step=0.0):
        weight = short(seed, width, digits=2)
        low, high = min(weight.min().item(), 0), max(weight.max().item(), 0)
        scale = step or round((high - low) / (2**bits - 1), 3)
        zero = min(max(round(-low / scale), 0), 2**bits - 1)
        return weight, hessian(seed, width, shared=shared), scale, zero, bits

    small = of(16, 6, 3)
    two = torch.tensor([[14.0, 13.0], [13.0, 16.0]], dtype=torch.float64)
    return [
        ("two weights, of which the second costs less", (torch.tensor([0.40, 0.10]), two, 1.0, 4, 3)),
        ("four weights", of(11, 4, 3)),
        ("eight weights", of(12, 8, 3)),
        ("inputs that are very much alike", of(13, 6, 4, shared=3.0)),
        ("weights that are beyond the range", of(14, 8, 2, shared=2.0, step=0.31)),
        (
            "independent inputs: nothing has to be pushed",
            (short(15, 5, digits=2), torch.diag(torch.tensor([9.0, 1, 25, 4, 16])).double(), 0.5, 3, 3),
        ),
        ("a mean over tokens in place of the sum", (small[0], small[1] / 400, *small[2:])),
        ("a row of sixteen", of(17, 16, 3)),
    ]


@solution
def right(weight, hessian, scale, zero, bits):
    work, inverse = weight.double().clone(), torch.linalg.inv(hessian.double())
    codes, order, left = torch.zeros(len(weight)), [], list(range(len(weight)))
    while left:
        now = ((work / scale).round() + zero).clamp(0, 2**bits - 1)
        e = work - scale * (now - zero)
        q = min(left, key=lambda j: e[j] ** 2 / inverse[j, j])
        codes[q] = now[q]
        work = work - e[q] * inverse[q] / inverse[q, q]
        inverse = inverse - torch.outer(inverse[:, q], inverse[q]) / inverse[q, q]
        order.append(q)
        left.remove(q)
    return order, codes


COST = "e[j] ** 2 / inverse[j, j]"
PUSH = "        work = work - e[q] * inverse[q] / inverse[q, q]\n"
STRIKE = "        inverse = inverse - torch.outer(inverse[:, q], inverse[q]) / inverse[q, q]\n"
MISTAKES = {
    "the most expensive weight comes first. Take the one whose rounding costs *least*.": right.edit(
        "q = min(", "q = max("
    ),
    "the smallest rounding error comes first, no matter what it does to the output. The cost that remains when the "
    "others have moved is e^2 / [H^-1]_qq: divide.": right.edit(COST, "e[j] ** 2"),
    "the cost is e^2 H_qq, which is right if no other weight makes up for the error. The others do: e^2 / [H^-1]_qq.": (
        right.edit(COST, "e[j] ** 2 * hessian[j, j]")
    ),
    "e^2 is multiplied by [H^-1]_qq; divide by it.": right.edit(COST, "e[j] ** 2 * inverse[j, j]"),
    "the cost uses |e|; it needs e squared: e^2 / [H^-1]_qq.": right.edit(COST, "e[j].abs() / inverse[j, j]"),
    "the error keeps its sign in the cost, so that the most negative one wins. Square it: e^2 / [H^-1]_qq.": (
        right.edit(COST, "e[j] / inverse[j, j]")
    ),
    "the order is found once, at the beginning. Each step moves the weights and changes the inverse, so compare the "
    "costs again in each step.": right.edit(
        ("while left:", "first = {}\n    while left:"),
        (
            "q = min(left, key=lambda j: e[j] ** 2 / inverse[j, j])",
            "first = first or dict(enumerate(e**2 / inverse.diagonal()))\n        q = min(left, key=first.get)",
        ),
    ),
    "this is act-order: the largest input first. Here the weights count, too: the least e^2 / [H^-1]_qq first.": (
        right.edit(COST, "-hessian[j, j]")
    ),
    "this is the order in which the row is stored. Choose the least e^2 / [H^-1]_qq of all that are left.": (
        right.edit(COST, "j")
    ),
    "the inverse never forgets the columns that are done. To remove a column, subtract the outer product of its column "
    "and its row, over [H^-1]_qq, from all entries.": right.edit(STRIKE, ""),
    "the costs come from the inverse of all columns. Take the inverse of the columns that are left, as you do when you "
    "push.": right.edit(("while left:", "whole = inverse\n    while left:"), (COST, "e[j] ** 2 / whole[j, j]")),
    "nothing is pushed: the weights that are left never move. Each step moves them by -e [H^-1]_q: / [H^-1]_qq.": (
        right.edit(PUSH, "")
    ),
    "the weights move the wrong way, so that errors add up: *subtract* e [H^-1]_q: / [H^-1]_qq.": (
        right.edit("work = work - e[q]", "work = work + e[q]")
    ),
    "the push is not divided by [H^-1]_qq.": right.edit("e[q] * inverse[q] / inverse[q, q]", "e[q] * inverse[q]"),
    "you never inverted H: both the cost and the push need H^-1.": (
        right.edit("torch.linalg.inv(hessian.double())", "hessian.double().clone()")
    ),
    "you used H in place of its inverse: both the cost and the push need H^-1 of the columns that are left.": (
        right.edit(("torch.linalg.inv(hessian.double())", "hessian.double().clone()"), (STRIKE, ""))
    ),
    "the costs are those of the original weights. The weights have moved: take the errors of the moved "
    "weights.": right.edit(
        COST,
        "(weight[j] - scale * (((weight[j] / scale).round() + zero).clamp(0, 2**bits - 1)"
        " - zero)) ** 2 / inverse[j, j]",
    ),
    "the error is counted before the code was clamped. A weight beyond the range is off by more.": (
        right.edit("scale * (now - zero)", "scale * (work / scale).round()")
    ),
    "codes go beyond 0 ... 2**bits - 1: clamp them.": right.edit(".clamp(0, 2**bits - 1)", ""),
    "codes are rounded down (floor). Take the nearest.": right.edit(".round()", ".floor()"),
    "zero is missing: a weight's code is round(weight / scale) + zero, and a code stands for scale * (code - zero).": (
        right.edit((".round() + zero)", ".round())"), ("(now - zero)", "now"))
    ),
    "order holds the place of each column in the order. Return the columns themselves, the first rounded first.": (
        right.edit("return order, codes", "return torch.tensor(order).argsort(), codes")
    ),
    "order counts the columns that are *left*. Return the column's number in the row.": (
        right.edit("order.append(q)", "order.append(left.index(q))")
    ),
    "order is reversed: the column that was rounded first comes first.": (
        right.edit("return order, codes", "return order[::-1], codes")
    ),
    "the codes are in the order of rounding. Return them in the order of the row: codes[q] belongs to weight q.": (
        right.edit("return order, codes", "return order, codes[order]")
    ),
    "these are weights; return the codes.": right.edit("return order, codes", "return order, scale * (codes - zero)"),
}


ORDER = Exercise(
    name="gptq.order",
    title="A row in an order of its own",
    difficulty=4,
    minutes=30,
    reference=order,
    cases=cases,
    outputs=("order", "codes"),
    mistakes=MISTAKES,
    properties=(
        (
            "every column is rounded once: order holds each number from 0 to in - 1.",
            lambda arguments, results: sorted(results[0].tolist()) == list(range(len(arguments[0]))),
        ),
        whole_codes(4, returned=1),
    ),
)
