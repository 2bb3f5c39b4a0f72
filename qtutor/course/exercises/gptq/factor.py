"""``gptq.factor``: compute U from the Hessian, with dead channels and damping."""

import numpy as np
import torch

from qtutor.course.exercises.adapting import tensor
from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.gptq.inputs import hessian
from qtutor.methods.gptq import factor as packages_own


def factor(hessian, damping):
    h = [row[:] for row in hessian.double().tolist()]
    live = [h[i][i] for i in range(len(h)) if h[i][i] != 0]
    mean = sum(live) / len(live)
    for i in range(len(h)):
        h[i][i] = h[i][i] + damping * mean if h[i][i] != 0 else mean
    inverse = _inverse(h)
    upper = [[0.0] * len(h) for _ in h]
    for i in range(len(h)):  # row by row: the inverse minus the part of the rows above
        for j in range(i, len(h)):
            rest = inverse[i][j] - sum(upper[k][i] * upper[k][j] for k in range(i))
            upper[i][j] = rest**0.5 if i == j else rest / upper[i][i]
    return upper


def _inverse(matrix: list) -> list:
    """Gauss-Jordan: the steps that turn the matrix into the identity turn the identity into its inverse."""
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
    # In float32 all four entries are the same number, so the matrix cannot be inverted.
    alike = 2.0**26 + torch.eye(2, dtype=torch.float64)
    faint = torch.outer(*[torch.tensor([1.0, 1e-6, 0.0, 2.0], dtype=torch.float64)] * 2) * hessian(7, 4)
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
        ("two inputs that float32 cannot tell apart, no damping", (alike, 0.0)),
        ("an input that is faint, not dead, beside one that is dead", (faint, 0.02)),
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
    "damping is used as a share of the largest diagonal entry; it is a share of the mean of the diagonal.": (
        right.edit("damping * mean", "damping * diagonal.max()")
    ),
    "damping is used as a share of the sum of the diagonal; it is a share of the mean.": (
        right.edit("damping * mean", "damping * diagonal.sum()")
    ),
    "every input got a share of its own diagonal entry. All get the same amount: damping times the mean.": (
        right.edit("damping * mean", "damping * diagonal")
    ),
    "the mean was taken over dead inputs too; only those that are not 0 count.": right.edit("[~dead]", ""),
    "a dead input got a 1 on the diagonal. Any positive number would work for the other inputs; this exercise uses the "
    "mean of the live ones.": right.edit("where(dead, mean,", "where(dead, 1,"),
    "damping was added to the dead input as well: it gets only the mean.": (
        right.edit(DIAGONAL, "torch.where(dead, mean, diagonal) + damping * mean")
    ),
    "you left float64. Inputs that are very much alike differ in digits that float32 does not have: invert and factor "
    "in float64, the dtype of hessian.": right.edit("hessian.clone()", "hessian.float()"),
    "damping was added to the whole matrix. It belongs on the diagonal alone.": right.edit(
        "inv(damped)", "inv(damped + damping * mean * (1 - torch.eye(len(damped), dtype=damped.dtype)))"
    ),
    "damping was added to the whole matrix, including the entries of dead inputs. It belongs on the diagonal alone, "
    "and only for live inputs.": right.edit(
        "inv(damped)", "inv(damped + damping * mean * (1 - torch.diag(1.0 - 1.0 * dead)))"
    ),
    "the mean is that of the whole matrix. Take it of the diagonal, of the inputs that are not dead.": (
        right.edit("damping * mean", "damping * hessian.mean()")
    ),
    "damping is used as a share of the median of the diagonal; it is a share of the mean.": (
        right.edit("damping * mean", "damping * diagonal[~dead].median()")
    ),
    "all of the mean was added to the diagonal; it is damping times the mean.": right.edit("damping * mean", "mean"),
    "damping was subtracted; add it, so that the diagonal outweighs the rest.": right.edit("+ damping", "- damping"),
    "the diagonal was mixed with its mean. Keep the diagonal as it is, and add damping * mean.": (
        right.edit("diagonal + damping", "diagonal * (1 - damping) + damping")
    ),
    "a dead input got the largest entry of the diagonal; this exercise uses the mean of the live ones.": (
        right.edit("where(dead, mean,", "where(dead, diagonal.max() + damping * mean,")
    ),
    "a dead input got the largest entry of the diagonal, before damping; this exercise uses the mean of the live "
    "ones.": right.edit("where(dead, mean,", "where(dead, diagonal.max(),"),
    "you treated a faint input as dead. An input is dead only if its entry is exactly 0: diagonal == 0.": (
        right.edit("diagonal == 0", "diagonal < 1e-8")
    ),
    "this is the inverse of the lower factor of H, a lower triangle. Invert H, then take the upper factor of that.": (
        right.edit(RESULT, "torch.linalg.inv(torch.linalg.cholesky(damped))")
    ),
    "this is the lower factor of H itself. Invert first, then take the upper factor: H^-1 = U^T U.": (
        right.edit(RESULT, "torch.linalg.cholesky(damped)")
    ),
    "the factor was inverted once more. With H^-1 = U^T U the factor of the inverse is U already.": (
        right.edit(RESULT, "torch.linalg.inv(torch.linalg.cholesky(inverse)).T")
    ),
    "this is R of a QR decomposition of the inverse. Return its Cholesky factor, with H^-1 = U^T U.": (
        right.edit(RESULT, "torch.linalg.qr(inverse)[1]")
    ),
    "this is the upper triangle of the inverse, cut out. Return its factor U, with H^-1 = U^T U.": (
        right.edit(RESULT, "inverse.triu()")
    ),
    "the rows of U are divided by their diagonal entry, which makes that 1. Leave U as it is: U^T U is the inverse.": (
        right.edit(RESULT, f"(lambda u: u / u.diagonal()[:, None])({RESULT})")
    ),
    "the diagonal of U is negative; take the U with a positive one.": right.edit("return ", "return -"),
    "this is the factor of H itself. Invert first: H^-1 = U^T U.": right.edit("cholesky(inverse", "cholesky(damped"),
    "this is the inverse; compute its upper triangular factor U: torch.linalg.cholesky(..., upper=True).": (
        right.edit(RESULT, "inverse")
    ),
    "this is the damped Hessian; invert it, and take the upper triangular factor of the inverse.": (
        right.edit(RESULT, "damped")
    ),
    "this is the transpose, a lower triangle. U is the upper one.": right.edit(", upper=True", ""),
    "this has H^-1 = U U^T, the factors the wrong way round: the inverse of the factor of H, transposed. Invert H, "
    "then factor.": right.edit(RESULT, "torch.linalg.inv(torch.linalg.cholesky(damped)).T"),
    "a dead input got only the damping. Without damping its 0 stays on the diagonal, and the matrix cannot be "
    "inverted: put the mean of the live ones there.": right.edit(DIAGONAL, "diagonal + damping * mean"),
}


def _upper(arguments, results) -> bool:
    """Whether U is an upper triangle with a positive diagonal.

    If Cholesky was not used, rounding may leave tiny numbers below the diagonal.
    """
    rest = 1e-6 * np.abs(results[0]).max()
    return bool((np.abs(np.tril(results[0], -1)) <= rest).all() and (np.diag(results[0]) > 0).all())


def adapt_factor(theirs):
    """A learner's factor replaces :func:`qtutor.gptq.factor`, which also raises the damping if necessary."""

    def factor(hessian, damping, order=None):
        hessian = hessian if order is None else hessian[order[:, None], order]
        if not hessian.diagonal().any():
            return packages_own(hessian, damping)  # all inputs are dead: there is no mean for the damping
        try:
            upper = tensor(theirs(hessian.clone(), damping), torch.float64, hessian)
        except (torch.linalg.LinAlgError, np.linalg.LinAlgError):
            return packages_own(hessian, damping)  # not positive definite: the package raises the damping
        return (upper, damping) if torch.isfinite(upper).all() else packages_own(hessian, damping)

    return factor


FACTOR = Exercise(
    name="gptq.factor",
    title="From the Hessian to U",
    difficulty=2,
    minutes=10,
    reference=factor,
    cases=factor_cases,
    outputs=("upper",),
    mistakes=MISTAKES,
    properties=(("U is an upper triangle with a positive diagonal.", _upper),),
    tolerance=1e-3,  # an inverse loses digits: eight of float64's sixteen if inputs are nearly the same
    replaces="qtutor.methods.gptq.factor",
    adapt=adapt_factor,
)
