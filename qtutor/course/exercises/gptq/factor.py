"""``gptq.factor``: from the Hessian to U, with dead channels and damping."""

from functools import partial

import numpy as np
import torch

from qtutor.course.exercises.adapting import tensor
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


def _factor_with(hessian, damping, added="mean", dead="mean", live=True, result="U"):
    """U with one slip or another; without any it is right."""
    h = hessian.double().clone()
    diagonal = h.diagonal().clone()
    gone = diagonal == 0
    known = diagonal[~gone] if live else diagonal
    amount = {
        "mean": damping * known.mean(),
        "nothing": 0.0,
        "as it is": damping,
        "largest": damping * known.max(),
        "sum": damping * known.sum(),
        "own": damping * diagonal,
    }[added]
    damped = diagonal + amount
    fill = {"mean": known.mean(), "one": 1.0, "nothing": 0.0, "damped mean": (1 + damping) * known.mean()}[dead]
    h.diagonal().copy_(torch.where(gone, fill if dead != "damping" else damped, damped))
    if result == "H":
        return h
    if result == "inverse":
        return torch.linalg.inv(h)
    if result == "of H":
        return torch.linalg.cholesky(h, upper=True)
    if result == "U U^T":
        return torch.linalg.inv(torch.linalg.cholesky(h)).T
    upper = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    return upper.T if result == "lower" else upper


def _only_damping(hessian, damping):
    """A dead input treated like all others."""
    h = hessian.double().clone()
    diagonal = h.diagonal()
    diagonal += damping * diagonal[diagonal != 0].mean()
    return torch.linalg.cholesky(torch.linalg.inv(h), upper=True)


FACTOR_MISTAKES = {
    "nothing was added to the diagonal: damping is missing.": dict(added="nothing"),
    "damping was added as it is. It is a share of the mean of the diagonal, so that it does not depend on how large "
    "the inputs are or how many tokens there were.": dict(added="as it is"),
    "damping is taken as a share of the largest diagonal entry; it is one of their mean.": dict(added="largest"),
    "damping is taken as a share of the sum of the diagonal; it is one of their mean.": dict(added="sum"),
    "every input got a share of its own diagonal entry. All get the same amount: damping times the mean.": dict(
        added="own"
    ),
    "the mean was taken over dead inputs too; only those that are not 0 count.": dict(live=False),
    "a dead input got a 1 on the diagonal. Any positive number would do for the others; agreed on is the mean of the "
    "live ones.": dict(dead="one"),
    "damping was added to the dead input as well: it gets the mean, and that is all.": dict(dead="damped mean"),
    "this is the factor of H itself. Invert first: H^-1 = U^T U.": dict(result="of H"),
    "this is the inverse; its upper triangular factor U is still to come: torch.linalg.cholesky(..., upper=True).": (
        dict(result="inverse")
    ),
    "this is the damped Hessian; invert it, and take the upper triangular factor of the inverse.": dict(result="H"),
    "this is the transpose, a lower triangle. U is the upper one.": dict(result="lower"),
    "this has H^-1 = U U^T, the factors the wrong way round: the inverse of the factor of H, transposed. Invert H, "
    "then factor.": dict(result="U U^T"),
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
    mistakes={text: partial(_factor_with, **slip) for text, slip in FACTOR_MISTAKES.items()}
    | {
        "a dead input got only the damping. Without damping its 0 stays on the diagonal, and nothing can be inverted: "
        "put the mean of the live ones there.": _only_damping,
    },
    tolerance=1e-3,  # an inverse loses digits, and float32 has few
    replaces="qtutor.methods.gptq.factor",
    adapt=adapt_factor,
)
