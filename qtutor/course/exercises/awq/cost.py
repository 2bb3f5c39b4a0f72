"""``awq.cost``: what the rounding errors of a group change in the layer's output, from X^T X."""

from functools import partial

import torch

from qtutor.course.exercises.awq.inputs import CHAPTER
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.inputs import noise


def cost(error, hessian):
    rows, groups, size = error.shape
    values, products = error.double().tolist(), hessian.double().tolist()
    return [
        [
            sum(
                values[row][group][i] * products[group * size + i][group * size + j] * values[row][group][j]
                for i in range(size)
                for j in range(size)
            )
            for group in range(groups)
        ]
        for row in range(rows)
    ]


def cases():
    def pair(rows, groups, size, seed, mix=0.7):
        """Errors, and X^T X of inputs that are correlated: each is partly its left neighbour."""
        x = noise(3 * groups * size, groups * size, seed=seed)
        for channel in range(1, x.shape[1]):
            x[:, channel] += mix * x[:, channel - 1]
        return 0.1 * noise(rows, groups, size, seed=seed + 40), x.T @ x

    one = (torch.tensor([[[1.0, -1.0]]]), torch.tensor([[2.0, 1.0], [1.0, 3.0]]))
    silent = pair(3, 2, 3, 5)
    silent[1][:, 4] = silent[1][4] = 0
    return [
        ("one group of two errors", one),
        ("two groups in each of three rows", pair(3, 2, 4, 1)),
        ("as many rows as groups", pair(3, 3, 3, 2)),
        ("one row, four groups", pair(1, 4, 2, 3)),
        ("groups of one", pair(2, 3, 1, 4)),
        ("a silent input", silent),
        ("no errors at all", (torch.zeros(2, 2, 3), pair(2, 2, 3, 6)[1])),
        ("X^T X in float64", (noise(2, 2, 4, seed=7), pair(2, 2, 4, 8)[1].double())),
    ]


def _with(error, hessian, block="own", form="both sides", root=False, of="sum"):
    """Costs with one slip or another; without any it is right."""
    rows, groups, size = error.shape
    error, hessian = error.double(), hessian.double()
    result = []
    for group in range(groups):
        e = error[:, group]
        first = {"own": group, "first": 0, "last": groups - 1}.get(block, group) * size
        own = hessian[first : first + size, first : first + size]
        if block == "strided":
            own = hessian[group::groups, group::groups]
        if form == "diagonal":
            part = e.square() * own.diagonal()
        elif form == "one side":
            part = e @ own
        elif form == "plain":
            part = e.square()
        elif form == "row":
            part = (error.flatten(1) @ hessian)[:, group * size : (group + 1) * size] * e
        elif form == "squared":
            part = (e @ own).square()
        else:
            part = (e @ own) * e
        total = part.mean(dim=-1) if of == "mean" else part.abs().sum(dim=-1) if of == "sizes" else part.sum(dim=-1)
        result.append(total.sqrt() if root else total)
    costs = torch.stack(result, dim=1)
    return costs.sum(dim=1, keepdim=True).expand(rows, groups) if of == "row" else costs


MISTAKES = {
    "only the diagonal of X^T X is used, as if inputs were independent. Errors of two inputs that go up and down "
    "together add up or cancel: e H e^T takes the whole block.": dict(form="diagonal"),
    "this is the plain squared error of the weights; the inputs, X^T X, have no say in it.": dict(form="plain"),
    "the errors of other groups are in it (the whole row of X^T X). A group is judged by its own block alone.": dict(
        form="row"
    ),
    "every group is judged by the first group's block of X^T X; group g has rows and columns g * group_size onwards.": (
        dict(block="first")
    ),
    "every group is judged by the last group's block of X^T X; group g has rows and columns g * group_size onwards.": (
        dict(block="last")
    ),
    "the blocks are made of every n-th input. Neighbours share a group: rows and columns g * group_size onwards.": dict(
        block="strided"
    ),
    "this is e H alone, summed; it has to be multiplied by e once more: ((e @ H) * e).sum(-1).": dict(form="one side"),
    "this is the squared size of e H; it is e H e^T: ((e @ H) * e).sum(-1).": dict(form="squared"),
    "this is the root of the cost; leave it squared.": dict(root=True),
    "the cost is a sum over the group, not a mean.": dict(of="mean"),
    "all groups of a row have the same cost, the sum; each is to have its own.": dict(of="row"),
    "signs are lost before the sum: errors may cancel in an output, so their products keep their signs.": dict(
        of="sizes"
    ),
}


COST = Exercise(
    name="awq.cost",
    chapter=CHAPTER,
    title="What a group's errors cost",
    difficulty=2,
    minutes=10,
    reference=cost,
    cases=cases,
    outputs=("cost",),
    mistakes={text: partial(_with, **slip) for text, slip in MISTAKES.items()},
    # Sums in float32 of products that partly cancel.
    tolerance=1e-4,
)
