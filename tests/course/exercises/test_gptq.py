"""The exercises of chapter 06: check names the mistake in a wrong answer, and right answers pass in any form.

A wrong answer is an edit of a right answer, or a separate function if no edit can make it. The right answers differ
from the course's solution.
"""

import numpy as np
import pytest
import torch

from qtutor import gptq
from qtutor.core.grid import IntGrid
from qtutor.course import exercises
from qtutor.course.exercises.edits import solution
from qtutor.course.workspace.replacing import replaced
from qtutor.errors import QtutorError
from tests.course.answers import assert_mistakes_differ, assert_right, assert_told, each

# --- one column pushed ---


@solution
def pushed(weight, inverse, rounded):
    after = weight.double().numpy()
    first = inverse[0].double().numpy()
    for row, value in zip(after, rounded.tolist()):
        e = row[0] - value
        row -= e * first / first[0]
        row[0] = value
    return after


def push_by_solving(weight, inverse, rounded):
    hessian = np.linalg.inv(inverse.double().numpy())
    first = rounded.double().numpy() - weight[:, 0].double().numpy()
    moves = -np.outer(first, hessian[0, 1:]) @ np.linalg.inv(hessian[1:, 1:])
    return np.column_stack([rounded, weight[:, 1:].double().numpy() + moves])


LEFT_AS_MOVED = ("        row[0] = value\n", "")
WRONG_PUSHES = [
    (pushed.edit("row -=", "row +="), "moved the wrong way"),
    (pushed.edit(("row -=", "row +="), LEFT_AS_MOVED), "the sign is wrong"),
    (pushed.edit((" / first[0]", ""), LEFT_AS_MOVED), "divided by its first entry"),
    (pushed.edit("row -= e * first / first[0]", "pass"), "nothing was pushed"),
    (pushed.edit(" / first[0]", ""), "division by [H^-1]_00 is missing"),
    (pushed.edit("first[0]", "first[0] ** 0.5"), "square root of [H^-1]_00"),
    (pushed.edit("first[0]", "inverse.diag().numpy()"), "its own [H^-1]_jj"),
    (pushed.edit("row[0] = value", "row[0] += e"), "column 0 has not changed"),
    (pushed.edit("row[0] = value", "row[0] -= e"), "moved once more"),
    (pushed.edit("e = row[0] - value", "e = float(weight[0, 0] - rounded[0])"), "by the error of row 0"),
    (pushed.edit("inverse[0]", "torch.linalg.inv(inverse)[0]"), "you inverted the given matrix"),
    (pushed.edit("row -= e * first / first[0]", "row += e / max(len(row) - 1, 1)"), "shared out evenly"),
    (pushed.edit("return after", "return after[:, 1:]"), "the columns that are left"),
    (pushed.edit("return after", "return after - weight.numpy()"), "the moves alone"),
    (pushed.edit("weight.double().numpy()", "weight.numpy()"), "wrote into its argument"),
]

# --- the loop ---


@solution
def looped(weight, upper, scale, zero, bits):
    work, length = weight.clone().float(), weight.shape[1] // scale.shape[1]
    codes = []
    for j in range(weight.shape[1]):
        s, z = scale[:, j // length].float(), zero[:, j // length].float()
        codes.append((torch.round(work[:, j] / s) + z).clamp(0, 2**bits - 1))
        e = (work[:, j] - s * (codes[-1] - z)) / upper[j, j]
        work[:, j + 1 :] -= torch.outer(e, upper[j, j + 1 :])
    return torch.stack(codes, dim=1).int()


def loop_all_at_the_end(weight, upper, scale, zero, bits):
    """When its turn comes, each column takes over the errors of all earlier columns at once."""
    length = weight.shape[1] // scale.shape[1]
    u, w = upper.double().numpy(), weight.double().numpy()
    codes, errors = np.zeros(w.shape, dtype=int), np.zeros(w.shape)
    for j in range(w.shape[1]):
        s, z = scale[:, j // length].double().numpy(), zero[:, j // length].double().numpy()
        now = w[:, j] - errors[:, :j] @ u[:j, j]
        codes[:, j] = np.clip(np.rint(now / s) + z, 0, 2**bits - 1)
        errors[:, j] = (now - s * (codes[:, j] - z)) / u[j, j]
    return codes.tolist()


nearest = looped.edit("        work[:, j + 1 :] -= torch.outer(e, upper[j, j + 1 :])\n", "")
WORK, ROW, CLAMPED = "work[:, j + 1 :]", "upper[j, j + 1 :]", ".clamp(0, 2**bits - 1)"
WRONG_LOOPS = [
    (nearest, "rounding to nearest"),
    (looped.edit(ROW, "upper[j + 1 :, j]"), "rounding to nearest"),  # column j of upper is zero there
    (looped.edit("-=", "+="), "so that errors add up"),
    (looped.edit(" / upper[j, j]", ""), "not divided by U_jj"),
    (looped.edit(ROW, f"{ROW} / upper[j, j]"), "by the square of U_jj"),
    (looped.edit("codes = []", "codes, upper = [], upper.T @ upper"), "must forget"),
    (looped.edit((WORK, "work[:, j + 1 : j + 2]"), (ROW, "upper[j, j + 1 : j + 2]")), "only the next column"),
    (
        looped.edit(
            (WORK, "work[:, j + 1 : j - j % length + length]"), (ROW, "upper[j, j + 1 : j - j % length + length]")
        ),
        "end of the group",
    ),
    (looped.edit("e = (work[:, j]", "e = (weight[:, j]"), "counted from the original weight"),
    (
        looped.edit(("scale[:, j // length]", "scale[:, 0]"), ("zero[:, j // length]", "zero[:, 0]")),
        "of the first group",
    ),
    (
        looped.edit(
            ("codes = []", "codes, levels = [], []"),
            ("    e = ", "    levels.append(s * (codes[-1] - z))\n        e = "),
            ("codes, dim=1).int()", "levels, dim=1)"),
        ),
        "these are weights",
    ),
    (looped.edit(CLAMPED, ""), "codes go beyond 0"),
    (looped.edit((CLAMPED, ""), (".int()", CLAMPED)), "before the code was clamped"),
]

# --- the factor ---


@solution
def factored(hessian, damping):
    live = hessian.diagonal() != 0
    mean = hessian.diagonal()[live].mean()
    damped = hessian + torch.diag(torch.where(live, damping * mean, mean))
    return torch.linalg.cholesky(damped.inverse(), upper=True)


def factor_by_qr(hessian, damping):
    """Compute a square root of H^-1 from eigenvectors, and make it triangular."""
    live = hessian.diagonal() != 0
    mean = hessian.diagonal()[live].mean()
    values, vectors = np.linalg.eigh((hessian + torch.diag(torch.where(live, damping * mean, mean))).numpy())
    triangle = np.linalg.qr((vectors / np.sqrt(values)).T)[1]
    return triangle * np.sign(np.diag(triangle))[:, None]


ADDED, FACTOR = "torch.where(live, damping * mean, mean)", "torch.linalg.cholesky(damped.inverse(), upper=True)"
factor_turned_around = factored.edit(FACTOR, "torch.linalg.inv(torch.linalg.cholesky(damped.flip(0, 1))).flip(0, 1)")
WRONG_FACTORS = [
    (factored.edit("damping * mean", "0.0"), "damping is missing"),
    (factored.edit("damping * mean", "damping"), "added as it is"),
    (factored.edit("damping * mean", "damping * hessian.diagonal().max()"), "share of the largest"),
    (factored.edit("damping * mean", "damping * hessian.trace()"), "share of the sum"),
    (factored.edit("damping * mean", "damping * hessian.diagonal()"), "its own diagonal entry"),
    (factored.edit("[live]", ""), "over dead inputs too"),
    (factored.edit("mean, mean)", "mean, 1.0)"), "got a 1 on the diagonal"),
    (factored.edit(ADDED, "(damping * mean).repeat(len(hessian))"), "got only the damping"),
    (factored.edit("damped.inverse()", "damped"), "factor of H itself"),
    (factored.edit(FACTOR, "damped.inverse()"), "this is the inverse"),
    (factored.edit(", upper=True", ""), "a lower triangle"),
    (factored.edit(FACTOR, "torch.linalg.cholesky(damped, upper=True).inverse()"), "wrong way round"),
    (factored.edit(f"hessian + torch.diag({ADDED})", f"hessian.add_(torch.diag({ADDED}))"), "wrote into its argument"),
]

# --- the order of a row ---


@solution
def ordered(weight, hessian, scale, zero, bits):
    """A loop over a list of the remaining columns, which inverts their Hessian again in each step."""
    w, h, left = weight.double().numpy().copy(), hessian.numpy(), list(range(len(weight)))
    order, codes = [], {}
    for _ in range(len(weight)):
        inv = np.linalg.inv(h[np.ix_(left, left)])
        code = np.clip(np.rint(w[left] / scale) + zero, 0, 2**bits - 1)
        off = w[left] - scale * (code - zero)
        i = int((off**2 / np.diag(inv)).argmin())
        w[left] = w[left] - off[i] * inv[i] / inv[i, i]
        order.append(left[i])
        codes[left[i]] = code[i]
        del left[i]
    return np.array(order), [codes[j] for j in range(len(weight))]


def order_by_least_squares(weight, hessian, scale, zero, bits):
    """Fix each free column in turn and solve for the others: this gives the column's cost, and the moved weights."""
    h, w, n = hessian.numpy(), weight.double().numpy(), len(weight)
    fixed, order = {}, []
    for _ in range(n):
        free = [j for j in range(n) if j not in fixed]
        now = solved(h, w, fixed)
        best = {}
        for j in free:
            code = np.clip(np.rint(now[j] / scale) + zero, 0, 2**bits - 1)
            d = solved(h, w, fixed | {j: scale * (code - zero)}) - w
            best[j] = d @ h @ d, code
        q = min(best, key=lambda j: best[j][0])
        fixed[q] = scale * (best[q][1] - zero)
        order.append(q)
    return order, [round(fixed[j] / scale) + zero for j in range(n)]


def solved(h, w, fixed):
    """The row with the least output error among those with the ``fixed`` weights."""
    row, free = w.copy(), [j for j in range(len(w)) if j not in fixed]
    for j, value in fixed.items():
        row[j] = value
    if fixed and free:
        held = list(fixed)
        row[free] -= np.linalg.solve(h[np.ix_(free, free)], h[np.ix_(free, held)] @ (row - w)[held])
    return row


OFF, LEAST = "off[i] * inv[i] / inv[i, i]", "(off**2 / np.diag(inv)).argmin()"
WRONG_ORDERS = [
    (ordered.edit("argmin", "argmax"), "the most expensive weight comes first"),
    (ordered.edit(LEAST, "(off**2).argmin()"), "the smallest rounding error comes first"),
    (ordered.edit(LEAST, "abs(off).argmin()"), "the smallest rounding error comes first"),
    (ordered.edit(LEAST, "(off**2 * np.diag(h)[left]).argmin()"), "if no other weight makes up for the error"),
    (ordered.edit(LEAST, "(off**2 * np.diag(inv)).argmin()"), "is multiplied by [H^-1]_qq; divide"),
    (ordered.edit(LEAST, "(abs(off) / np.diag(inv)).argmin()"), "needs e squared"),
    (ordered.edit(LEAST, "(off / np.diag(inv)).argmin()"), "keeps its sign"),
    (ordered.edit(LEAST, "np.diag(h)[left].argmax()"), "this is act-order"),
    (ordered.edit(LEAST, "(off * 0).argmin()"), "in which the row is stored"),
    (ordered.edit("np.linalg.inv(h[np.ix_(left, left)])", "np.linalg.inv(h)[np.ix_(left, left)]"), "never forgets"),
    (ordered.edit(LEAST, "(off**2 / np.diag(np.linalg.inv(h))[left]).argmin()"), "from the inverse of all columns"),
    (ordered.edit(f"        w[left] = w[left] - {OFF}\n", ""), "nothing is pushed"),
    (ordered.edit(f"w[left] - {OFF}", f"w[left] + {OFF}"), "the wrong way"),
    (ordered.edit(OFF, "off[i] * inv[i]"), "the push is not divided"),
    (
        ordered.edit("np.linalg.inv(h[np.ix_(left, left)])", "h[np.ix_(left, left)]"),
        "you used H in place of its inverse",
    ),
    (ordered.edit("scale * (code - zero)", "scale * np.rint(w[left] / scale)"), "before the code was clamped"),
    (
        ordered.edit("np.clip(np.rint(w[left] / scale) + zero, 0, 2**bits - 1)", "np.rint(w[left] / scale) + zero"),
        "go beyond 0",
    ),
    (ordered.edit("rint", "floor"), "rounded down"),
    (ordered.edit("np.array(order)", "np.argsort(order)"), "the place of each column"),
    (ordered.edit("order.append(left[i])", "order.append(i)"), "counts the columns that are *left*"),
    (ordered.edit("np.array(order)", "order[::-1]"), "order is reversed"),
    (ordered.edit("for j in range(len(weight))]", "for j in order]"), "the codes are in the order of rounding"),
    (ordered.edit("[codes[j] for", "[scale * (codes[j] - zero) for"), "these are weights"),
]

WRONG = {"gptq.push": WRONG_PUSHES, "gptq.loop": WRONG_LOOPS, "gptq.factor": WRONG_FACTORS, "gptq.order": WRONG_ORDERS}
RIGHT = {
    "gptq.push": [pushed, push_by_solving],
    "gptq.loop": [looped, loop_all_at_the_end],
    "gptq.factor": [factored, factor_turned_around, factor_by_qr],
    "gptq.order": [ordered, order_by_least_squares],
}


@each(WRONG)
def test_a_wrong_answer_is_told_which_mistake_it_is(name, function, phrase):
    assert_told(WRONG, name, function, phrase)


@each(RIGHT)
def test_a_right_answer_passes_however_it_is_written(name, function):
    assert_right(name, function)


def test_the_mistakes_of_the_order_differ_from_each_other():
    assert_mistakes_differ("gptq.order")


def test_no_choice_of_the_orders_inputs_is_a_close_one():
    """Otherwise two right answers that add in different orders could choose different columns."""
    watched = ordered.edit(
        ("order, codes = [], {}", "order, codes, margins = [], {}, []"),
        (
            "        i = int(",
            "        steps = w[left] / scale\n"
            "        margins.append(abs(steps - np.floor(steps) - 0.5).min())\n"
            "        costs = np.sort(off**2 / np.diag(inv))\n"
            "        margins += [(costs[1] - costs[0]) / costs[1]] if len(left) > 1 else []\n"
            "        i = int(",
        ),
        ("return np.array(order), [codes[j] for j in range(len(weight))]", "return margins"),
    )
    for what, arguments in exercises.find("gptq.order").cases():
        assert min(watched(*arguments)) > 1e-3, what


def test_no_weight_of_the_loops_inputs_lies_near_the_middle_of_two_levels():
    """Otherwise codes in float32 and float64 could differ, and a right answer could fail."""
    steps_of = looped.edit(
        ("codes = []", "codes, steps = [], []"),
        ("    codes.append", "    steps.append(work[:, j] / s)\n        codes.append"),
        ("torch.stack(codes, dim=1).int()", "torch.stack(steps)"),
    )
    for what, arguments in exercises.find("gptq.loop").cases():
        steps = steps_of(*arguments)
        assert ((steps - steps.floor() - 0.5).abs() > 5e-4).all(), what


@pytest.fixture
def layer():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 64, generator=generator) + torch.randn(200, 1, generator=generator)
    return torch.randn(24, 64, generator=generator), (x.T @ x).double()


@pytest.mark.parametrize(
    "settings",
    [
        {"bits": 4, "group_size": 16},
        {"bits": 3, "group_size": -1, "symmetric": True},
        {"bits": 3, "group_size": 16, "act_order": "groups", "clip": "output"},
        {"bits": 2, "group_size": 32, "act_order": "columns"},
        {"bits": 2, "group_size": 16, "static_groups": True, "clip": "mse", "symmetric": True},
        {"bits": 4, "group_size": 0},
    ],
    ids=str,
)
def test_the_package_runs_on_a_learners_loop_and_factor(layer, settings):
    settings = dict(settings)
    grid = IntGrid(settings.pop("bits"), settings.pop("symmetric", False))
    expected = gptq.quantize(*layer, grid, **settings)
    loop, factor = exercises.find("gptq.loop"), exercises.find("gptq.factor")
    widths = []

    def counted(weight, upper, scale, zero, bits):
        widths.append(weight.shape[1])
        assert len(upper) == weight.shape[1] and scale.shape == zero.shape and len(scale) == len(weight)
        assert (scale.dtype, zero.dtype) == (torch.float16, torch.uint8)  # as in the exercise
        return loop_all_at_the_end(weight, upper, scale, zero, bits)

    with replaced(loop, counted), replaced(factor, factor_by_qr):
        found = gptq.quantize(*layer, grid, **settings)
    assert sum(widths) == 64  # every column went through the learner's loop, once
    assert (found.scales.shape, found.codes.shape) == (expected.scales.shape, expected.codes.shape)
    assert (found.zeros is None) == (expected.zeros is None)
    torch.testing.assert_close(found.scales.float(), expected.scales.float(), rtol=2e-3, atol=0)
    # The errors that reach later groups are added in a different order, so a weight in the middle between two levels
    # may go either way.
    assert (found.codes != expected.codes).float().mean() < 0.01
    assert torch.equal(gptq.quantize(*layer, grid, **settings).codes, expected.codes)  # the package's own functions


def test_a_learners_loop_does_what_it_says(layer):
    """The learner's loop makes the codes: a loop that only rounds to nearest gives different ones."""
    grid = IntGrid(3)
    plain = gptq.quantize(*layer, grid, 16)
    with replaced(exercises.find("gptq.loop"), nearest):
        found = gptq.quantize(*layer, grid, 16)
    assert (found.codes != plain.codes).float().mean() > 0.05


def test_where_the_learners_factor_finds_none_the_package_raises_damping():
    few = torch.randn(8, 64, generator=torch.Generator().manual_seed(1)).double()
    with replaced(exercises.find("gptq.factor"), factored):
        assert gptq.prepare(few.T @ few, 16, damping=0.0).damping > 0
        assert gptq.prepare(torch.zeros(64, 64).double(), 16).upper.isfinite().all()
        with pytest.raises(QtutorError, match="not positive definite"):
            gptq.prepare(-(few.T @ few) - 100 * torch.eye(64).double(), 16)
