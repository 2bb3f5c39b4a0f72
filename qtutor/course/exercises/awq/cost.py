"""``awq.cost``: how much the rounding errors of a group change the layer's output, computed from X^T X."""

import torch

from qtutor.course.exercises.edits import solution
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
        """Errors, and X^T X of correlated inputs: each input partly equals its left neighbour."""
        x = noise(3 * groups * size, groups * size, seed=seed)
        for channel in range(1, x.shape[1]):
            x[:, channel] += mix * x[:, channel - 1]
        return 0.1 * noise(rows, groups, size, seed=seed + 40), (x.T @ x).double()

    one = (torch.tensor([[[1.0, -1.0]]]), torch.tensor([[2.0, 1.0], [1.0, 3.0]]).double())
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
        ("errors as large as weights", (noise(2, 2, 4, seed=7), pair(2, 2, 4, 8)[1])),
        ("inputs that move against each other", pair(2, 2, 3, 9, mix=-0.8)),
    ]


@solution
def right(error, hessian):
    error, hessian, costs = error.double(), hessian.double(), []
    groups, size = error.shape[1:]
    for group in range(groups):
        e, first = error[:, group], group * size
        own = hessian[first : first + size, first : first + size]
        costs.append(((e @ own) * e).sum(dim=-1))
    return torch.stack(costs, dim=1)


MISTAKES = {
    "only the diagonal of X^T X is used, as if inputs were independent. Errors of two inputs that go up and down "
    "together add up or cancel: e H e^T takes the whole block.": (
        right.edit("(e @ own) * e", "e.square() * own.diagonal()")
    ),
    "this is the plain squared error of the weights; the inputs, X^T X, are not used.": (
        right.edit("(e @ own) * e", "e.square()")
    ),
    "the errors of other groups are included (the whole row of X^T X). A group is judged by its own block alone.": (
        right.edit("(e @ own) * e", "(error.flatten(1) @ hessian)[:, first : first + size] * e")
    ),
    "every group is judged by the first group's block of X^T X; group g has rows and columns g * group_size onwards.": (
        right.edit("group * size", "0")
    ),
    "every group is judged by the last group's block of X^T X; group g has rows and columns g * group_size onwards.": (
        right.edit("group * size", "(groups - 1) * size")
    ),
    "the blocks are made of every n-th input. Neighbours share a group: rows and columns g * group_size onwards.": (
        right.edit("[first : first + size, first : first + size]", "[group::groups, group::groups]")
    ),
    "this is e H alone, summed; it has to be multiplied by e once more: ((e @ H) * e).sum(-1).": (
        right.edit("(e @ own) * e", "e @ own")
    ),
    "this is the squared size of e H; it is e H e^T: ((e @ H) * e).sum(-1).": (
        right.edit("(e @ own) * e", "(e @ own).square()")
    ),
    "this is half of the cost: e H e^T has no factor before it.": right.edit("sum(dim=-1)", "sum(dim=-1) / 2"),
    "this is twice the cost: e H e^T has no factor before it.": right.edit("sum(dim=-1)", "sum(dim=-1) * 2"),
    "the costs are summed over the rows. Each row has its own: [out, groups].": (
        right.edit("torch.stack(costs, dim=1)", "torch.stack(costs, dim=1).sum(dim=0)")
    ),
    "the costs are summed over the groups. Each group has its own: [out, groups].": (
        right.edit("torch.stack(costs, dim=1)", "torch.stack(costs, dim=1).sum(dim=1)")
    ),
    "the costs are averaged over the rows. Each row has its own: [out, groups].": (
        right.edit("torch.stack(costs, dim=1)", "torch.stack(costs, dim=1).mean(dim=0)")
    ),
    "this is one number, the sum of all costs. Each group of each row has its own: [out, groups].": (
        right.edit("torch.stack(costs, dim=1)", "sum(costs).sum()")
    ),
    "every row has the cost of all rows together; each row has its own.": (
        right.edit("sum(dim=-1)", "sum().expand(len(e))")
    ),
    "the result is transposed: it is [out, groups]. Stack along dim=1.": (
        right.edit("torch.stack(costs, dim=1)", "torch.stack(costs, dim=0)")
    ),
    "the cost is divided by the size of the inputs (the trace of H_g); return e H e^T itself.": (
        right.edit("sum(dim=-1)", "sum(dim=-1) / own.trace()")
    ),
    "the signs of the errors are lost before the product with H: errors of different signs may cancel in an output.": (
        right.edit("error.double()", "error.double().abs()")
    ),
    "the signs of X^T X are lost: errors may cancel if inputs move against each other.": (
        right.edit("hessian.double()", "hessian.double().abs()")
    ),
    "only half of X^T X is used, its upper triangle. Each pair of inputs counts twice: take the whole block.": (
        right.edit("e @ own", "e @ own.triu()")
    ),
    "the inverse of X^T X is used. Use X^T X itself.": right.edit("e @ own", "e @ torch.linalg.pinv(own)"),
    "the blocks of X^T X begin at g; they begin at g * group_size.": right.edit("group * size", "group"),
    "the blocks of X^T X are used in reverse order; group g has rows and columns g * group_size onwards.": (
        right.edit("group * size", "(groups - 1 - group) * size")
    ),
    "every row has the errors of the first row. Each row has its own.": (
        right.edit("error[:, group]", "error[:1, group].expand(len(error), -1)")
    ),
    "this is the root of the cost; leave it squared.": right.edit("sum(dim=-1)", "sum(dim=-1).sqrt()"),
    "the cost is a sum over the group, not a mean.": right.edit("sum(dim=-1)", "mean(dim=-1)"),
    "all groups of a row have the same cost, the sum; each group has its own.": (
        right.edit("torch.stack(costs, dim=1)", "torch.stack([sum(costs)] * groups, dim=1)")
    ),
    "signs are lost before the sum: errors may cancel in an output, so their products keep their signs.": (
        right.edit(".sum(dim=-1)", ".abs().sum(dim=-1)")
    ),
}


COST = Exercise(
    name="awq.cost",
    title="What a group's errors cost",
    difficulty=2,
    minutes=10,
    reference=cost,
    cases=cases,
    outputs=("cost",),
    mistakes=MISTAKES,
    # Sums in float32 of products that partly cancel.
    tolerance=1e-4,
)
