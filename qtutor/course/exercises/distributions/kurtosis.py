"""``distributions.kurtosis``: how heavy the tails of every row are."""

import math

import torch

from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.inputs import noise


def _kurtosis(weight):
    result = []
    for row in weight.double().tolist():
        mean = math.fsum(row) / len(row)
        second = math.fsum((value - mean) ** 2 for value in row) / len(row)
        fourth = math.fsum((value - mean) ** 4 for value in row) / len(row)
        result.append(0.0 if max(row) == min(row) else fourth / second**2 - 3)
    return result


def _kurtosis_cases():
    ten = torch.tensor([[0.45, -0.13, 0.05, -0.38, 0.20, 0.00, -0.29, 0.10, 0.31, -0.07]])
    outlier = ten.clone()
    outlier[0, 0] = 4.5
    dead = noise(3, 12)
    dead[1] = 0.25
    return [
        ("the ten numbers of the chapter", (ten,)),
        ("the same with an outlier", (outlier,)),
        ("four rows with different tails", (noise(4, 16, seed=1) ** torch.tensor([[1], [3], [5], [1]]),)),
        ("rows that are not centred on zero", (noise(3, 8, seed=2) + torch.tensor([[2.0], [-3.0], [0.5]]),)),
        ("a square matrix", (noise(5, 5, seed=3) ** 3,)),
        ("a row of equal numbers, which has kurtosis 0 by definition", (dead,)),
        ("small weights in float16", ((0.01 * noise(2, 24, seed=4)).half(),)),
        ("a single number", (torch.tensor([[0.7]]),)),
    ]


@solution
def right(weight):
    x = weight.double()
    deviation = x - x.mean(dim=-1, keepdim=True)
    variance = deviation.square().mean(dim=-1)
    fourth = deviation.pow(4).mean(dim=-1)
    return torch.where(variance > 0, fourth / variance**2 - 3, 0.0)


MEAN, FOURTH = "x.mean(dim=-1, keepdim=True)", "deviation.pow(4).mean(dim=-1)"
SQUARES, EXCESS = "deviation.square().mean(dim=-1)", "fourth / variance**2 - 3"
GUARDED = f"torch.where(variance > 0, {EXCESS}, 0.0)"

MISTAKES = {
    "the mean of the whole matrix was subtracted. Each row has a mean of its own: mean(dim=-1, keepdim=True).": (
        right.edit(MEAN, "x.mean()")
    ),
    "the variance of the whole matrix was taken. Each row has a variance of its own: mean(dim=-1).": right.edit(
        (SQUARES, "deviation.square().mean()"), ("variance > 0", "x.amax(dim=-1) > x.amin(dim=-1)")
    ),
    "the excess of a row of equal numbers is 0, not -3. A clamp, or a small number added to the variance, avoids nan, "
    "but then 3 is subtracted from 0.": right.edit(GUARDED, "fourth / variance.clamp(min=1e-12) ** 2 - 3"),
    "fourth powers are added up, but squares are averaged. Both moments are plain means over the numbers of the row.": (
        right.edit(FOURTH, "deviation.pow(4).sum(dim=-1)")
    ),
    "these are sums of both powers, which grow with the row. Both moments are plain means over its numbers.": (
        right.edit((FOURTH, "deviation.pow(4).sum(dim=-1)"), (SQUARES, "deviation.square().sum(dim=-1)"))
    ),
    "you took the square of the mean of squares; take the mean of the fourth powers.": (
        right.edit(FOURTH, "variance**2")
    ),
    "you took the third power of |deviation|; take the fourth.": right.edit("pow(4)", "abs().pow(3)"),
    "this is the crest factor, the largest deviation over the standard deviation.": (
        right.edit(EXCESS, "deviation.abs().amax(dim=-1) / variance.sqrt()")
    ),
    "the mean was not subtracted before taking fourth powers: both moments are of row - mean.": (
        right.edit("deviation.pow(4)", "x.pow(4)")
    ),
    "the mean was not subtracted before taking squares: both moments are of row - mean.": (
        right.edit(("deviation.square()", "x.square()"), ("variance > 0", "x.amax(dim=-1) > x.amin(dim=-1)"))
    ),
    "the ratio is upside down: the fourth moment is divided by the square of the variance.": (
        right.edit(EXCESS, "variance**2 / fourth - 3")
    ),
    "3 is added; a bell has kurtosis 3, so the excess is what is left after subtracting 3.": right.edit("- 3", "+ 3"),
    "3 is subtracted from the divisor. Divide first: fourth / variance**2 - 3, without brackets.": (
        right.edit(EXCESS, "fourth / (variance**2 - 3)")
    ),
    "the result has one dim too many: return one number for each row, of shape [out] (keepdim only for the mean).": (
        right.edit(GUARDED, f"{GUARDED}[:, None]")
    ),
    "a small number is added to the variance, which changes the excess of small weights. Divide by the variance "
    "itself, and leave rows of equal numbers to torch.where.": right.edit(
        "variance**2 - 3", "(variance + 1e-8) ** 2 - 3"
    ),
    "a small number is added to the square of the variance, which changes the excess of small weights. Divide by the "
    "square itself, and leave rows of equal numbers to torch.where.": right.edit(
        "variance**2 - 3", "(variance**2 + 1e-8) - 3"
    ),
    "this is the mean over the rows; return one kurtosis for each row.": right.edit(GUARDED, f"{GUARDED}.mean()"),
    "this is the kurtosis itself; the excess is what is left after subtracting 3, so that a bell has 0.": (
        right.edit(" - 3", "")
    ),
    "subtract the mean of each row first; without it, only rows that are centred on zero are nearly right.": (
        right.edit("x - x.mean(dim=-1, keepdim=True)", "x")
    ),
    "you subtracted the median (the lower one of two in the middle, as torch.median does) in place of the mean.": (
        right.edit(MEAN, "x.median(dim=-1, keepdim=True).values")
    ),
    "you subtracted the median in place of the mean.": right.edit("x.mean(", "x.quantile(0.5, "),
    "the variance was divided by n - 1, as torch.std and torch.var do unless told correction=0. Both moments are "
    "plain means over n numbers.": right.edit("square().mean(dim=-1)", "square().sum(dim=-1) / (x.shape[-1] - 1)"),
    "the fourth moment was divided by the variance once; a fourth power needs the variance squared (or the standard "
    "deviation to the fourth), otherwise the result changes with the unit of the weights.": (
        right.edit("variance**2", "variance")
    ),
    "the fourth moment was divided by the standard deviation; it needs the standard deviation to the fourth (or the "
    "variance squared), otherwise the result changes with the unit of the weights.": (
        right.edit("variance**2", "variance.sqrt()")
    ),
    "this is one kurtosis of all numbers together; each row has its own: take means along the last dim.": (
        right.edit("weight.double()", "weight.double().flatten()")
    ),
    "this is the kurtosis of the columns; a row runs along the last dim (dim=-1).": (
        right.edit("weight.double()", "weight.double().T")
    ),
    "this is the third power, the skewness, which says whether a row leans; the fourth power shows the tails.": (
        right.edit(("pow(4)", "pow(3)"), ("variance**2 - 3", "variance**1.5"))
    ),
    "a row of equal numbers has variance 0, and 0 / 0 is nan; its kurtosis is 0 by the task's definition.": (
        right.edit(GUARDED, "fourth / variance**2 - 3")
    ),
    "this was computed in the 16 bits of the weights, where fourth powers of small weights vanish. Convert first, "
    "weight.float() or weight.double().": right.edit(".double()", ""),
}


def _not_minus_three(arguments, results) -> bool:
    """Whether no row of equal numbers gives 0 / something - 3."""
    (weight,) = arguments
    equal = (weight.amax(dim=-1) == weight.amin(dim=-1)).numpy()
    return not (equal & (results[0] == -3)).any()


KURTOSIS = Exercise(
    name="distributions.kurtosis",
    title="The excess kurtosis of every row",
    difficulty=1,
    minutes=10,
    reference=_kurtosis,
    cases=_kurtosis_cases,
    outputs=("kurtosis",),
    mistakes=MISTAKES,
    properties=(
        (
            "the excess of a row of equal numbers is 0, not -3. A clamp, or a small number added to the variance, "
            "avoids nan, but then 3 is subtracted from 0 (and small weights come out wrong).",
            _not_minus_three,
        ),
    ),
    # Means in float32 have relative errors of about 1e-7. Their ratio is near 3; minus 3, only 0.1 may be left.
    tolerance=1e-4,
    replaces="qtutor.measure.distributions.excess_kurtosis",
    adapt=lambda mine: lambda x, dim=-1: _along_any_dim(mine, x, dim),
)


def _along_any_dim(mine, x: torch.Tensor, dim: int | None) -> torch.Tensor:
    """The learner's function of rows, applied along ``dim`` of a tensor of any shape."""
    last = x.reshape(-1) if dim is None else x.movedim(dim, -1)
    return torch.as_tensor(mine(last.reshape(-1, last.shape[-1]))).double().reshape(last.shape[:-1])
