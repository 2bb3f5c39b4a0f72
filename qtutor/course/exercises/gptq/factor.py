"""``gptq.factor``: from the Hessian to U, with dead channels and damping."""

import numpy as np
import torch

from qtutor.course.exercises.adapting import tensor
from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.gptq.inputs import CHAPTER, hessian
from qtutor.methods.gptq import factor as packages_own


def factor(hessian, damping):
    h = [row[:] for row in hessian.double().tolist()]
    live = [h[i][i] for i in range(len(h)) if h[i][i] != 0]
    mean = sum(live) / len(live)
    for i in range(len(h)):
        h[i][i] = h[i][i] + damping * mean if h[i][i] != 0 else mean
    inverse = _inverse(h)
    upper = [[0.0] * len(h) for _ in h]
    for i in range(len(h)):  # row by row: what rows above leave of the inverse
        for j in range(i, len(h)):
            rest = inverse[i][j] - sum(upper[k][i] * upper[k][j] for k in range(i))
            upper[i][j] = rest**0.5 if i == j else rest / upper[i][i]
    return upper


def _inverse(matrix: list) -> list:
    """Gauss and Jordan: whatever makes the matrix the identity makes the identity its inverse."""
    size = len(matrix)
    rows = [row + [float(i == j) for j in range(size)] for i, row in enumerate(matrix)]
    for i in range(size):
        rows[i] = [value / rows[i][i] for value in rows[i]]
        for k in range(size):
            if k != i:
                rows[k] = [a - rows[k][i] * b for a, b in zip(rows[k], rows[i])]
    return [row[size:] for row in rows]


def factor_cases():
    dead = hessian(3, 5)
    dead[2, :] = dead[:, 2] = 0
    sizes = torch.tensor([1.0, 3.0, 0.5, 2.0], dtype=torch.float64)
    return [
        ("the two inputs of the chapter, no damping", (torch.tensor([[14.0, 13.0], [13.0, 14.0]]).double(), 0.0)),
        ("four inputs, no damping", (hessian(1, 4), 0.0)),
        ("four inputs, damping 0.01", (hessian(2, 4), 0.01)),
        ("five inputs, one of them dead, damping 0.1", (dead, 0.1)),
        ("a dead input, no damping", (dead.clone(), 0.0)),
        ("inputs of different size, damping 0.05", (hessian(4, 4) * torch.outer(sizes, sizes), 0.05)),
        ("fewer tokens than inputs: singular without damping", (hessian(5, 6, tokens=4), 0.2)),
        ("inputs that are very much alike", (hessian(6, 5, shared=3.0), 0.01)),
        ("a single input", (torch.tensor([[5.0]]).double(), 0.5)),
    ]


@solution
def right(hessian, damping):
    diagonal, damped = hessian.diagonal(), hessian.clone()
    dead = diagonal == 0
    mean = diagonal[~dead].mean()
    damped.diagonal().copy_(torch.where(dead, mean, diagonal + damping * mean))
    inverse = torch.linalg.inv(damped)
    return torch.linalg.cholesky(inverse, upper=True)


DIAGONAL = "torch.where(dead, mean, diagonal + damping * mean)"
RESULT = "torch.linalg.cholesky(inverse, upper=True)"

MISTAKES = {
    "nothing was added to the diagonal: damping is missing.": right.edit(" + damping * mean", ""),
    "damping was added as it is. It is a share of the mean of the diagonal, so that it does not depend on how large "
    "the inputs are or how many tokens there were.": right.edit("damping * mean", "damping"),
    "damping is taken as a share of the largest diagonal entry; it is one of their mean.": (
        right.edit("damping * mean", "damping * diagonal.max()")
    ),
    "damping is taken as a share of the sum of the diagonal; it is one of their mean.": (
        right.edit("damping * mean", "damping * diagonal.sum()")
    ),
    "every input got a share of its own diagonal entry. All get the same amount: damping times the mean.": (
        right.edit("damping * mean", "damping * diagonal")
    ),
    "the mean was taken over dead inputs too; only those that are not 0 count.": right.edit("[~dead]", ""),
    "a dead input got a 1 on the diagonal. Any positive number would do for the others; agreed on is the mean of the "
    "live ones.": right.edit("where(dead, mean,", "where(dead, 1,"),
    "damping was added to the dead input as well: it gets the mean, and that is all.": (
        right.edit(DIAGONAL, "torch.where(dead, mean, diagonal) + damping * mean")
    ),
    "this is the factor of H itself. Invert first: H^-1 = U^T U.": right.edit("cholesky(inverse", "cholesky(damped"),
    "this is the inverse; its upper triangular factor U is still to come: torch.linalg.cholesky(..., upper=True).": (
        right.edit(RESULT, "inverse")
    ),
    "this is the damped Hessian; invert it, and take the upper triangular factor of the inverse.": (
        right.edit(RESULT, "damped")
    ),
    "this is the transpose, a lower triangle. U is the upper one.": right.edit(", upper=True", ""),
    "this has H^-1 = U U^T, the factors the wrong way round: the inverse of the factor of H, transposed. Invert H, "
    "then factor.": right.edit(RESULT, "torch.linalg.inv(torch.linalg.cholesky(damped)).T"),
    "a dead input got only the damping. Without damping its 0 stays on the diagonal, and nothing can be inverted: "
    "put the mean of the live ones there.": right.edit(DIAGONAL, "diagonal + damping * mean"),
}


def adapt_factor(theirs):
    """A learner's factor in place of :func:`qtutor.gptq.factor`, which also raises damping where it has to."""

    def factor(hessian, damping, order=None):
        hessian = hessian if order is None else hessian[order[:, None], order]
        if not hessian.diagonal().any():
            return packages_own(hessian, damping)  # there is no mean to take a share of
        try:
            upper = tensor(theirs(hessian.clone(), damping), torch.float64, hessian)
        except (torch.linalg.LinAlgError, np.linalg.LinAlgError):
            return packages_own(hessian, damping)  # not positive definite: how much damping it takes is its part
        return (upper, damping) if torch.isfinite(upper).all() else packages_own(hessian, damping)

    return factor


FACTOR = Exercise(
    name="gptq.factor",
    chapter=CHAPTER,
    title="From the Hessian to U",
    difficulty=2,
    minutes=10,
    reference=factor,
    cases=factor_cases,
    outputs=("upper",),
    mistakes=MISTAKES,
    tolerance=1e-3,  # an inverse loses digits, and float32 has few
    replaces="qtutor.methods.gptq.factor",
    adapt=adapt_factor,
)
