"""Chapter 06 as learners would write it: more answers, and for each wrong one the message that names its mistake.

The answers are not written like the exercise's own solution. So check cannot recognise a mistake by its text.
"""

import numpy as np
import pytest
import torch

from qtutor.course.exercises.edits import solution
from tests.course.answers import assert_mistakes_differ, assert_named, assert_right, each

# --- one column pushed ---


@solution
def shifted(weight, inverse, rounded):
    e = weight[:, 0] - rounded
    ratio = inverse[0] / inverse[0, 0]
    new = weight.clone()
    new[:, 0] = rounded
    for j in range(1, weight.shape[1]):
        new[:, j] -= e * ratio[j]
    return new


def push_in_numpy(weight, inverse, rounded):
    w, h, q = weight.numpy(), inverse.numpy(), rounded.numpy()
    return w - (w[:, 0] - q)[:, None] * h[None, 0] / h[0, 0]


def push_in_float64_lists(weight, inverse, rounded):
    h = inverse.double().tolist()
    return [
        [w - (row[0] - q) * h[0][j] / h[0][0] for j, w in enumerate(row)]
        for row, q in zip(weight.double().tolist(), rounded.tolist())
    ]


def push_by_einsum(weight, inverse, rounded):
    delta = (rounded - weight[:, 0]) / inverse[0, 0]
    moved = weight + torch.einsum("i,j->ij", delta, inverse[:, 0])
    return torch.cat([rounded[:, None], moved[:, 1:]], dim=1)


E, RATIO = "weight[:, 0] - rounded", "inverse[0] / inverse[0, 0]"
WRONG_PUSHES = [
    (shifted.edit(RATIO, "inverse[0] / inverse[0, 0].sqrt()"), "square root of [H^-1]_00"),
    (shifted.edit(RATIO, "inverse[0] / inverse[0, 0] ** 2"), "the square of [H^-1]_00"),
    (shifted.edit(RATIO, "inverse[0]"), "division by [H^-1]_00 is missing"),
    (shifted.edit(RATIO, "inverse[0] * inverse[0, 0]"), "you multiplied by [H^-1]_00"),
    (shifted.edit(RATIO, "inverse[-1] / inverse[-1, -1]"), "the last row of the inverse"),
    (shifted.edit(RATIO, "inverse.diagonal() / inverse[0, 0]"), "the diagonal of the inverse"),
    (shifted.edit(RATIO, "inverse[0] / inverse[0].sum()"), "by the sum of the row"),
    (shifted.edit(RATIO, "inverse[0] / inverse[0].norm()"), "by the length of the row"),
    (shifted.edit(RATIO, "inverse[0] / inverse.trace()"), "by the trace"),
    (shifted.edit(RATIO, "inverse[0].abs() / inverse[0, 0]"), "the signs of the row"),
    (shifted.edit(RATIO, "inverse.sum(0) / inverse[0, 0]"), "all rows of the inverse"),
    (shifted.edit(RATIO, "inverse.mean(0) / inverse.mean()"), "over the mean of the whole inverse"),
    (
        shifted.edit(RATIO, "torch.linalg.inv(inverse)[0] / torch.linalg.inv(inverse)[0, 0]"),
        "you inverted the given matrix",
    ),
    (shifted.edit(RATIO, "torch.linalg.cholesky(inverse, upper=True)[0]"), "square root of [H^-1]_00"),
    (shifted.edit(E, f"({E}).mean()"), "the mean of the errors of all rows"),
    (shifted.edit(E, f"({E}).sum()"), "the sum of the errors of all rows"),
    (shifted.edit(E, f"({E})[0]"), "by the error of row 0"),
    (shifted.edit(E, f"({E}).abs()"), "lost its sign"),
    (shifted.edit(E, f"({E}) ** 2"), "the squared error"),
    (shifted.edit(E, f"({E}) / 2"), "half of the error is pushed"),
    (shifted.edit(E, "rounded - weight[:, 0]"), "moved the wrong way"),
    (shifted.edit(E, "weight[:, 0] - weight[:, 0].round()"), "that you rounded again"),
    (shifted.edit(E, "weight[:, 0]"), "e is the weight itself"),
    (shifted.edit(" = rounded", " = weight[:, 0].round()"), "after the others had moved"),
    (shifted.edit(("range(1,", "range(2,")), "column 1 was left out"),
    (shifted.edit("range(1, weight.shape[1])", "range(1, min(2, weight.shape[1]))"), "only the next column moved"),
    (shifted.edit("range(1, weight.shape[1])", "range(1, weight.shape[1] - 1)"), "the last column was left out"),
    (shifted.edit("new[:, j] -=", "new[:, j] = -"), "replaced by their moves"),
    (shifted.edit("new[:, 0] = rounded", "new[:, 0] = 0"), "column 0 is 0"),
    (shifted.edit("return new", "return new.T"), "the result is transposed"),
    (shifted.edit("return new", "return new.round()"), "all columns were rounded"),
]

# --- the loop ---


@solution
def column_by_column(weight, upper, scale, zero, bits):
    w = weight.double().numpy().copy()
    u, s, z = upper.double().numpy(), scale.double().numpy(), zero.double().numpy()
    rows, columns = w.shape
    groups = s.shape[1]
    size = columns // groups
    q = np.zeros((rows, columns))
    for j in range(columns):
        g = j // size
        code = np.clip(np.rint(w[:, j] / s[:, g]) + z[:, g], 0, 2**bits - 1)
        q[:, j] = code
        level = s[:, g] * (code - z[:, g])
        error = (w[:, j] - level) / u[j, j]
        w[:, j + 1 :] -= np.outer(error, u[j, j + 1 :])
    return q


def loop_row_by_row(weight, upper, scale, zero, bits):
    size, u = weight.shape[1] // scale.shape[1], upper.double().tolist()
    result = []
    for row, s, z in zip(weight.tolist(), scale.float().tolist(), zero.tolist()):
        codes = []
        for j in range(len(row)):
            g = j // size
            codes.append(min(max(round(row[j] / s[g]) + z[g], 0), 2**bits - 1))
            e = (row[j] - s[g] * (codes[j] - z[g])) / u[j][j]
            for k in range(j + 1, len(row)):
                row[k] -= e * u[j][k]
        result.append(codes)
    return result


def loop_over_all_columns(weight, upper, scale, zero, bits):
    work, size = weight.float().clone(), weight.shape[1] // scale.shape[1]
    s, z = (part.float().repeat_interleave(size, dim=1) for part in (scale, zero))
    codes = torch.empty_like(work)
    for j in range(work.shape[1]):
        codes[:, j] = (torch.round(work[:, j] / s[:, j]) + z[:, j]).clamp(0, 2**bits - 1)
        e = work[:, j] - (codes[:, j] - z[:, j]) * s[:, j]
        work -= e[:, None] * upper[j] / upper[j, j]
    return codes.to(torch.uint8)


def loop_with_the_inverse(weight, upper, scale, zero, bits):
    h, w = torch.linalg.inv(upper.double().T @ upper.double()), weight.double().clone()
    size, codes = weight.shape[1] // scale.shape[1], torch.zeros(weight.shape, dtype=torch.int64)
    for j in range(w.shape[1]):
        s, z = scale[:, j // size].double(), zero[:, j // size].double()
        codes[:, j] = ((w[:, j] / s).round() + z).clamp(0, 2**bits - 1).long()
        inverse = torch.linalg.inv(h[j:, j:])
        w[:, j:] -= torch.outer(w[:, j] - s * (codes[:, j] - z), inverse[0] / inverse[0, 0])
    return codes


CODE, ERROR = "np.clip(np.rint(w[:, j] / s[:, g]) + z[:, g], 0, 2**bits - 1)", "(w[:, j] - level) / u[j, j]"
PUSHED = "w[:, j + 1 :] -= np.outer(error, u[j, j + 1 :])"
WRONG_LOOPS = [
    (column_by_column.edit("j // size", "j % groups"), "given group j % groups"),
    (column_by_column.edit("j // size", "0"), "of the first group"),
    (column_by_column.edit("j // size", "-1"), "of the last group"),
    (column_by_column.edit("j // size", "min(j, groups - 1)"), "the first columns were given"),
    (column_by_column.edit("g = j // size", "g = (j + 1) // size % groups"), "one column too early, and the last"),
    (
        column_by_column.edit("level = s[:, g] * (code - z[:, g])", "level = code - z[:, g]"),
        "in steps. Multiply the code",
    ),
    (column_by_column.edit(ERROR, "(w[:, j] / s[:, g] - (code - z[:, g])) / u[j, j]"), "in steps: weights over"),
    (column_by_column.edit("(code - z[:, g])", "code"), "the zero point is missing"),
    (column_by_column.edit("(code - z[:, g])", "code - z[:, g]"), "are brackets missing"),
    (column_by_column.edit("(code - z[:, g])", "(code + z[:, g])"), "zero is added"),
    (
        column_by_column.edit("np.rint(w[:, j] / s[:, g]) + z[:, g]", "np.rint(w[:, j] / s[:, g]) - z[:, g]"),
        "zero is subtracted when",
    ),
    (
        column_by_column.edit("np.rint(w[:, j] / s[:, g]) + z[:, g]", "np.rint(w[:, j] / s[:, g])"),
        "zero is missing when weights",
    ),
    (column_by_column.edit("np.rint", "np.floor"), "rounded down"),
    (column_by_column.edit("np.rint", "np.trunc"), "truncated"),
    (column_by_column.edit("np.rint", "np.ceil"), "rounded up"),
    (column_by_column.edit("2**bits - 1", "2**bits"), "clamped one too high"),
    (column_by_column.edit("0, 2**bits - 1", "0, 2 ** (bits - 1) - 1"), "half of the codes"),
    (column_by_column.edit("0, 2**bits - 1", "1, 2**bits - 1"), "code 0 is never used"),
    (column_by_column.edit(ERROR, "w[:, j] - level"), "not divided by U_jj"),
    (column_by_column.edit(ERROR, "(w[:, j] - level) / u[j, j] ** 2"), "by the square of U_jj"),
    (column_by_column.edit(ERROR, "(w[:, j] - level) * u[j, j]"), "multiplied by U_jj"),
    (column_by_column.edit(ERROR, "(w[:, j] - level) / np.sqrt(u[j, j])"), "the root of U_jj"),
    (column_by_column.edit(ERROR, "(w[:, j] - level) / u[0, 0]"), "by U_00"),
    (column_by_column.edit(ERROR, "(level - w[:, j]) / u[j, j]"), "so that errors add up"),
    (column_by_column.edit(ERROR, "(weight[:, j].double().numpy() - level) / u[j, j]"), "from the original weight"),
    (column_by_column.edit(ERROR, "((w[:, j] - level) / u[j, j]).mean()"), "the mean of the errors of all rows"),
    (column_by_column.edit("np.rint(w[:, j] ", "np.rint(weight[:, j].double().numpy() "), "rounding to nearest"),
    (column_by_column.edit(PUSHED, ""), "rounding to nearest"),
    (column_by_column.edit("u[j, j + 1 :]", "u[j + 1 :, j]"), "rounding to nearest"),
    (column_by_column.edit("u[j, j + 1 :]", "u[0, j + 1 :]"), "row 0 of U"),
    (column_by_column.edit(PUSHED, "w[:, j + 1 :] -= np.outer(error, u[j, 1 : columns - j])"), "is shifted"),
    (column_by_column.edit(PUSHED, "w[:, j + 2 :] -= np.outer(error, u[j, j + 2 :])"), "the next column is left out"),
    (column_by_column.edit("range(columns)", "reversed(range(columns))"), "rounding to nearest"),
    (
        column_by_column.edit("u, s, z = upper.double().numpy()", "u, s, z = np.linalg.inv(upper.double().numpy())"),
        "U was inverted",
    ),
    (column_by_column.edit("return q", "return q - 2 ** (bits - 1)"), "codes have signs here"),
    (column_by_column.edit("return q", "return w"), "when their turn came"),
    (
        column_by_column.edit(("q[:, j] = code", "pass"), ("error =", "q[:, j] = level\n        error =")),
        "these are weights",
    ),
    (column_by_column.edit("w = weight.double().numpy().copy()", "w = weight.numpy()"), "wrote into its argument"),
]

# --- the factor ---


@solution
def damp_invert_factor(hessian, damping):
    h = hessian.clone()
    d = torch.diagonal(h)
    alive = d > 0
    mean = d[alive].sum() / alive.sum()
    d[alive] += damping * mean
    d[~alive] = mean
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    return torch.linalg.cholesky(inverse).T


def factor_in_numpy(hessian, damping):
    h = hessian.numpy().copy()
    dead = np.diag(h) == 0
    mean = np.diag(h)[~dead].mean()
    h[np.diag_indices_from(h)] = np.where(dead, mean, np.diag(h) + damping * mean)
    return np.linalg.cholesky(np.linalg.inv(h)).T


def factor_without_an_inverse(hessian, damping):
    """Factor the reversed H, reverse the factor and invert it: H itself is never inverted."""
    d = hessian.diagonal()
    mean = d[d != 0].mean()
    h = hessian + torch.diag(torch.where(d == 0, mean, damping * mean))
    lower = torch.linalg.cholesky(h.flip(0, 1)).flip(0, 1)
    return torch.linalg.solve_triangular(lower, torch.eye(len(h), dtype=h.dtype), upper=True)


def factor_by_elimination(hessian, damping):
    d = [hessian[i, i].item() for i in range(len(hessian))]
    live = [v for v in d if v]
    mean = sum(live) / len(live)
    h = hessian.numpy() + np.diag([damping * mean if v else mean for v in d])
    left, rows = np.linalg.inv(h), []
    while len(left):
        rows.append(np.concatenate([np.zeros(len(h) - len(left)), left[0] / np.sqrt(left[0, 0])]))
        left = left[1:, 1:] - np.outer(left[1:, 0], left[0, 1:]) / left[0, 0]
    return [row.tolist() for row in rows]


DAMP, DEAD, FACTOR = "d[alive] += damping * mean", "d[~alive] = mean", "torch.linalg.cholesky(inverse).T"
INVERSE = "torch.cholesky_inverse(torch.linalg.cholesky(h))"
WRONG_FACTORS = [
    (damp_invert_factor.edit("hessian.clone()", "hessian.float()"), "you left float64"),
    (damp_invert_factor.edit(INVERSE, "torch.linalg.inv(h.float())"), "you left float64"),
    (damp_invert_factor.edit(INVERSE, f"{INVERSE}.float()"), "that float32 cannot tell apart"),
    (damp_invert_factor.edit(DAMP, "h += damping * mean"), "to the whole matrix. It"),
    (
        damp_invert_factor.edit((DAMP, ""), (INVERSE, "torch.linalg.inv(h + damping * mean)")),
        "including the entries of dead inputs",
    ),
    (damp_invert_factor.edit(DAMP, "d[alive] += damping * h.mean()"), "the mean is that of the whole matrix"),
    (damp_invert_factor.edit(DAMP, "d[alive] += damping * d[alive].median()"), "share of the median"),
    (damp_invert_factor.edit(DAMP, "d[alive] += damping * d.max()"), "share of the largest"),
    (damp_invert_factor.edit(DAMP, "d[alive] += damping * d.sum()"), "share of the sum"),
    (damp_invert_factor.edit(DAMP, "d[alive] *= 1 + damping"), "its own diagonal entry"),
    (damp_invert_factor.edit(DAMP, "d[alive] += damping"), "added as it is"),
    (damp_invert_factor.edit(DAMP, "d[alive] += mean"), "all of the mean"),
    (damp_invert_factor.edit(DAMP, "d[alive] -= damping * mean"), "damping was subtracted"),
    (damp_invert_factor.edit(DAMP, "pass"), "damping is missing"),
    (damp_invert_factor.edit(DAMP, "d[alive] = d[alive] * (1 - damping) + damping * mean"), "mixed with its mean"),
    (damp_invert_factor.edit(DEAD, "d[~alive] = damping * mean"), "got only the damping"),
    (damp_invert_factor.edit(DEAD, "d[~alive] = 1"), "got a 1 on the diagonal"),
    (damp_invert_factor.edit(DEAD, "d[~alive] = mean + damping * mean"), "added to the dead input as well"),
    (damp_invert_factor.edit(DEAD, "d[~alive] = d.max()"), "got the largest entry of the diagonal"),
    (damp_invert_factor.edit(DEAD, "d[~alive] = d[alive].mean()"), "added to the dead input as well"),
    (damp_invert_factor.edit("d[alive].sum() / alive.sum()", "d.mean()"), "over dead inputs too"),
    (damp_invert_factor.edit("d > 0", "d > 1e-6"), "you treated a faint input as dead"),
    (damp_invert_factor.edit("d > 0", "d > 1e-8"), "you treated a faint input as dead"),
    (damp_invert_factor.edit(FACTOR, "torch.linalg.cholesky(inverse)"), "this is the transpose, a lower"),
    (damp_invert_factor.edit(FACTOR, "torch.linalg.inv(torch.linalg.cholesky(h))"), "the inverse of the lower factor"),
    (damp_invert_factor.edit(FACTOR, "torch.linalg.inv(torch.linalg.cholesky(h)).T"), "wrong way round"),
    (damp_invert_factor.edit(FACTOR, "torch.linalg.cholesky(h).T"), "factor of H itself"),
    (damp_invert_factor.edit(FACTOR, "torch.linalg.cholesky(h)"), "lower factor of H"),
    (damp_invert_factor.edit(FACTOR, "inverse"), "this is the inverse"),
    (
        damp_invert_factor.edit(FACTOR, "torch.linalg.inv(torch.linalg.cholesky(inverse)).T"),
        "the factor was inverted once more",
    ),
    (damp_invert_factor.edit(FACTOR, "torch.linalg.qr(inverse)[1]"), "QR"),
    (damp_invert_factor.edit(FACTOR, "torch.triu(inverse)"), "upper triangle of the inverse"),
    (
        damp_invert_factor.edit(FACTOR, f"(lambda u: u / u.diagonal()[:, None])({FACTOR})"),
        "which makes that 1",
    ),
    (damp_invert_factor.edit(FACTOR, f"-{FACTOR}"), "is negative"),
    (damp_invert_factor.edit("hessian.clone()", "hessian"), "wrote into its argument"),
]

WRONG = {"gptq.push": WRONG_PUSHES, "gptq.loop": WRONG_LOOPS, "gptq.factor": WRONG_FACTORS}
RIGHT = {
    "gptq.push": [shifted, push_in_numpy, push_in_float64_lists, push_by_einsum],
    "gptq.loop": [column_by_column, loop_row_by_row, loop_over_all_columns, loop_with_the_inverse],
    "gptq.factor": [damp_invert_factor, factor_in_numpy, factor_without_an_inverse, factor_by_elimination],
}


@each(WRONG)
def test_a_wrong_answer_is_told_which_mistake_it_is(name, function, phrase):
    assert_named(name, function, phrase)


@each(RIGHT)
def test_a_right_answer_passes_however_it_is_written(name, function):
    assert_right(name, function)


@pytest.mark.parametrize("name", WRONG)
def test_no_mistake_can_be_told_in_the_words_of_another(name):
    assert_mistakes_differ(name)
