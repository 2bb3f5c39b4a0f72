"""Chapter 05 as learners would write it: more answers, and for each wrong one the message that names its mistake.

The answers are not written like the exercise's own solution. So check cannot recognise a mistake by its text.
"""

import numpy as np
import pytest
import torch

from qtutor.course import exercises
from qtutor.course.exercises.edits import solution
from tests.course.answers import assert_mistakes_differ, assert_named, assert_right, each, verdict

# --- fold ---


@solution
def columns(gain, weight, scale, dtype):
    rounded = torch.div(gain, scale).type(dtype).type(torch.float64)
    new = weight.double().clone()
    for i in range(len(gain)):
        if gain[i] != 0:
            new[:, i] *= gain[i].double() / rounded[i]
    return rounded, new


def fold_by_nan_to_num(gain, weight, scale, dtype):
    stored = (gain.double() / scale.double()).to(dtype)
    return stored, weight * torch.nan_to_num(gain.double() / stored.double(), nan=1.0)


def fold_of_lists(gain, weight, scale, dtype):
    stored = (gain / scale).to(dtype).tolist()
    factors = np.array([g / s if s != 0 else 1 for g, s in zip(gain.tolist(), stored)])
    return stored, weight.numpy().astype(np.float64) * factors


def fold_by_a_diagonal(gain, weight, scale, dtype):
    stored = (gain / scale).to(dtype).float()
    factor = torch.ones(len(gain)).where(gain == 0, gain / stored)
    return stored, weight @ torch.diag(factor)


ROUNDED, FACTOR = "torch.div(gain, scale).type(dtype).type(torch.float64)", "gain[i].double() / rounded[i]"
WRONG_FOLDS = [
    (columns.edit(FACTOR, "scale[i]"), "multiplied by the requested scale"),
    (columns.edit((ROUNDED, "(gain / scale.to(dtype)).double()")), "numbers that dtype can store"),
    (columns.edit((ROUNDED, "(gain.to(dtype) / scale.to(dtype)).double()")), "gain and scale are rounded before"),
    (
        columns.edit((ROUNDED, "(gain.to(dtype) / scale).double()"), (FACTOR, "scale[i]")),
        "numbers that dtype can store",
    ),
    (
        columns.edit(
            (ROUNDED, "(gain.to(dtype) / scale).to(dtype).double()"),
            (FACTOR, "gain[i].to(dtype).double() / rounded[i]"),
        ),
        "the old gain is rounded, before",
    ),
    (columns.edit(FACTOR, "gain[i].to(dtype).double() / rounded[i]"), "comes from a rounded gain"),
    (columns.edit(FACTOR, "scale[i].to(dtype).double()"), "by the scale, rounded"),
    (columns.edit(FACTOR, "(gain[i] / rounded[i]).to(dtype).double()"), "the factor is rounded"),
    (columns.edit(FACTOR, "rounded[i] / gain[i].double()"), "the factor is upside down"),
    (columns.edit((ROUNDED, "(gain * scale).type(dtype).double()")), "it is the other way round: multiply the columns"),
    (columns.edit((ROUNDED, "(scale / gain).type(dtype).double()")), "the new gain is upside down"),
    (columns.edit("new[:, i]", "new[i]"), "rows are scaled"),
    (columns.edit("gain[i] != 0", "True"), "0 / 0 is nan"),
    (columns.edit("rounded, new", "new, rounded"), "the two results are exchanged"),
    (columns.edit(".clone()", ".to(dtype).double()"), "rounded to dtype before they are multiplied"),
    (columns.edit("rounded, new", "rounded, new.to(dtype)"), "weights are rounded to dtype as well"),
    (columns.edit("rounded, new", "torch.where(gain == 0, 1, rounded), new"), "a gain of 0 became 1"),
    (columns.edit("    return", "    new[:, gain == 0] = 0\n    return"), "the column becomes 0"),
    (columns.edit(("gain[i] != 0", "True"), (FACTOR, f"torch.nan_to_num({FACTOR})")), "the column becomes 0"),
    (columns.edit(("gain[i] != 0", "True"), (FACTOR, f"scale[i] if gain[i] == 0 else {FACTOR}")), "still multiplied"),
    (columns.edit(ROUNDED, "torch.div(gain, scale)"), "not rounded to the dtype in which they are stored"),
    (columns.edit("rounded, new", "gain, new"), "only the columns have changed"),
    (columns.edit("rounded, new", "rounded, weight"), "only the gains have changed"),
    (columns.edit(ROUNDED, "(gain / scale.sqrt()).type(dtype).double()"), "root of the scale"),
    (columns.edit("type(dtype)", "half()"), "rounded to float16"),
    (columns.edit("type(dtype)", "bfloat16()"), "rounded to bfloat16"),
]

# --- scales ---


@solution
def powers(mean_abs, ratio):
    floor = torch.full_like(mean_abs, 1e-4)
    sizes = torch.maximum(mean_abs, floor)
    raised = torch.pow(sizes, ratio)
    low, high = raised.min(), raised.max()
    return raised / torch.sqrt(low * high)


def scales_in_numpy(mean_abs, ratio):
    s = np.clip(mean_abs.numpy().astype(np.float64), 1e-4, None) ** ratio
    return s / np.sqrt(s.max() * s.min())


def scales_of_a_list(mean_abs, ratio):
    s = [max(float(m), 1e-4) ** ratio for m in mean_abs]
    return [v / (max(s) * min(s)) ** 0.5 for v in s]


def scales_centred_first(mean_abs, ratio):
    size = mean_abs.double().clamp(1e-4)
    return (size / (size.max() * size.min()).sqrt()) ** ratio


SIZES, CENTRE = "torch.maximum(mean_abs, floor)", "torch.sqrt(low * high)"
WRONG_SCALES = [
    (powers.edit(SIZES, "mean_abs"), "0 to any power is 0"),
    (powers.edit(SIZES, "mean_abs + floor"), "1e-4 is added"),
    (powers.edit("1e-4", "1e-5"), "channels up to 1e-4 count"),
    (powers.edit("1e-4", "1e-8"), "channels up to 1e-4 count"),
    (powers.edit("1e-4", "1e-3"), "channels up to 1e-4 count"),
    (powers.edit("1e-4", "1e-2"), "channels up to 1e-4 count"),
    (powers.edit(SIZES, "torch.minimum(mean_abs, floor)"), "clamped from above"),
    (powers.edit(SIZES, "torch.where(mean_abs == 0, floor, mean_abs)"), "only a channel of exactly 0"),
    (powers.edit(SIZES, "torch.where(mean_abs < 1e-4, 0.0, mean_abs)"), "channels up to 1e-4 count"),
    (powers.edit(f" / {CENTRE}", f" * {CENTRE}"), "multiplied by the middle"),
    (powers.edit(CENTRE, "torch.sqrt(low + high)"), "the root of a sum"),
    (powers.edit(CENTRE, "torch.sqrt(high / low)"), "sqrt(max / min)"),
    (powers.edit(CENTRE, "torch.sqrt(high)"), "by the root of the largest alone"),
    (powers.edit(CENTRE, "torch.sqrt(torch.prod(raised))"), "the product of all"),
    (powers.edit(CENTRE, "raised.median()"), "median"),
    (powers.edit(CENTRE, "raised.norm()"), "largest times the smallest is 1"),
    (powers.edit(CENTRE, "torch.sqrt(sizes.min() * sizes.max())"), "before they were raised"),
    (powers.edit("torch.pow(sizes, ratio)", "sizes.log() * ratio"), "exp() is missing"),
    (powers.edit("torch.pow(sizes, ratio)", "ratio**sizes"), "the ratio is raised"),
    (powers.edit("torch.pow(sizes, ratio)", "torch.pow(sizes, 1 / max(ratio, 1e-9))"), "1 / ratio"),
    (powers.edit("torch.pow(sizes, ratio)", "sizes"), "the ratio is not used"),
    (powers.edit("torch.pow(sizes, ratio)", "torch.pow(sizes, ratio / 2)"), "to half of the ratio"),
    (powers.edit("raised / torch.sqrt", "1 / raised * torch.sqrt"), "loud channels get the smallest"),
    (
        powers.edit("return raised / torch.sqrt(low * high)", "return (raised / torch.sqrt(low * high)).half()"),
        "rounded to 16 bits",
    ),
]

# --- search ---


def by_rows(weight, scale):
    weight = weight.clone()
    for i in range(len(weight)):
        weight[i] *= scale[i]
    return weight


@solution
def tried(weight, scales, rounded, output):
    wanted = output(weight)
    losses = []
    for k in range(scales.shape[0]):
        s = scales[k].unsqueeze(0)
        candidate = rounded(weight * s) / s
        difference = output(candidate) - wanted
        losses.append(float((difference**2).mean()))
    best = int(np.argmin(losses))
    return best, losses


def search_by_columns(weight, scales, rounded, output):
    losses = []
    for s in scales.tolist():
        scaled = torch.stack([weight[:, i] * f for i, f in enumerate(s)], dim=1)
        back = torch.stack([column / f for column, f in zip(rounded(scaled).T, s)], dim=1)
        losses.append(torch.nn.functional.mse_loss(output(back), output(weight)))
    return min(range(len(losses)), key=lambda k: losses[k]), losses


def search_by_diagonals(weight, scales, rounded, output):
    y = output(weight.double())
    errors = [output(rounded(weight.double() @ s.double().diag()) @ (1 / s.double()).diag()) for s in scales]
    errors = torch.tensor([(e - y).pow(2).sum() / y.numel() for e in errors])
    return torch.argmin(errors), errors


def search_with_a_running_best(weight, scales, rounded, output):
    target, best, least, errors = output(weight).numpy(), 0, float("inf"), []
    for k, s in enumerate(scales):
        e = np.mean(np.square(output(rounded(weight.mul(s)).div(s)).numpy() - target))
        errors.append(e)
        if e < least:
            best, least = k, e
    return best, np.array(errors)


CANDIDATE, LOSS = "rounded(weight * s) / s", "float((difference**2).mean())"
WRONG_SEARCHES = [
    (tried.edit(CANDIDATE, "rounded(weight * s)"), "the scale is not removed"),
    (tried.edit(CANDIDATE, "rounded(weight * s) * s"), "multiply by the scale again"),
    (tried.edit(CANDIDATE, "rounded(weight / s) * s"), "divide before rounding"),
    (tried.edit(CANDIDATE, "rounded(weight) * s / s"), "without the scale"),
    (tried.edit(CANDIDATE, "rounded(weight)"), "without the scale"),
    # The errors are nearly equal, and their last bits decide which is the smallest. The mistake still has to get the
    # same name.
    (tried.edit(CANDIDATE, "rounded(weight) * (1 - 2e-7 * len(losses))"), "without the scale"),
    (tried.edit(CANDIDATE, "weight * s / s"), "never rounded"),
    (tried.edit(CANDIDATE, "rounded(weight * s / s)"), "without the scale"),
    (tried.edit(CANDIDATE, "rounded(weight * s.T) / s.T"), "rows are scaled. A"),
    (tried.edit(CANDIDATE, "by_rows(rounded(by_rows(weight, s[0])), 1 / s[0])"), "you scaled rows, with as many"),
    (tried.edit(CANDIDATE, "rounded(weight * s.max()) / s.max()"), "one number scales all columns"),
    (tried.edit("output(weight)", "output(rounded(weight))"), "output of rounded weights"),
    (tried.edit("output(candidate) - wanted", "candidate - weight"), "the error of the weights"),
    (
        tried.edit("output(candidate) - wanted", "output(candidate) - output(weight * s)"),
        "the output of scaled weights",
    ),
    (tried.edit("output(candidate) - wanted", "output(candidate - weight)"), "output of the difference"),
    (tried.edit("output(candidate) - wanted", "output(candidate)"), "nothing is compared"),
    (tried.edit(LOSS, "float((difference**2).sum())"), "the sum of the squared errors"),
    (tried.edit(LOSS, "float(difference.abs().mean())"), "mean absolute"),
    (tried.edit(LOSS, "float(difference.norm())"), "length of the difference"),
    (tried.edit(LOSS, "float((difference**2).mean().sqrt())"), "root of the mean"),
    (tried.edit(LOSS, "float((difference**2).mean() / (wanted**2).mean().clamp(min=1e-30))"), "relative to the size"),
    (tried.edit(LOSS, "float((difference**2).sum() / len(difference))"), "by the number of tokens"),
    (tried.edit(LOSS, "float((difference**2).max())"), "the largest squared error"),
    (tried.edit(LOSS, "float(difference.var())"), "variance"),
    (tried.edit(LOSS, "float((difference**2).mean() / 2)"), "half of the mean squared"),
    (tried.edit("best, losses", "best, losses[best]"), "of the best candidate alone"),
    (tried.edit("best, losses", "scales[best], losses"), "best is the scale itself"),
    (tried.edit("best, losses", "best + 1, losses"), "counted from 1"),
    (tried.edit("best, losses", "losses[best], losses"), "the smallest error itself"),
    (tried.edit("best, losses", "best / len(losses), losses"), "best is the ratio"),
    (tried.edit("np.argmin(losses)", "np.argmax(losses)"), "with the largest error"),
    (tried.edit("np.argmin(losses)", "len(losses) - 1 - np.argmin(losses[::-1])"), "equally good"),
    (tried.edit("np.argmin(losses)", "losses.index(sorted(losses)[1])"), "the second best"),
    (tried.edit("best, losses", "best, sorted(losses)"), "the errors are sorted"),
]

# --- cost ---


@solution
def block_by_block(error, hessian):
    rows, groups, size = error.shape
    error = error.to(hessian.dtype)
    result = torch.zeros(rows, groups, dtype=hessian.dtype)
    for r in range(rows):
        for g in range(groups):
            at = slice(g * size, g * size + size)
            e = error[r, g]
            result[r, g] = e @ hessian[at, at] @ e
    return result


def cost_without_conversion_of_hessian(error, hessian):
    e, size = error.double(), error.shape[2]
    parts = [
        ((e[:, g] @ hessian[g * size : (g + 1) * size, g * size : (g + 1) * size]) * e[:, g]).sum(1)
        for g in range(e.shape[1])
    ]
    return torch.stack(parts, 1)


def cost_by_reshaping(error, hessian):
    _, groups, size = error.shape
    h = hessian.numpy().reshape(groups, size, groups, size)
    e = error.numpy().astype(np.float64)
    return np.einsum("ogi,gigj,ogj->og", e, h, e)


def cost_of_factors(error, hessian):
    size = error.shape[2]
    masks = torch.block_diag(*[torch.ones(size, size)] * error.shape[1])
    flat = error.flatten(1).float()
    return ((flat @ (hessian.float() * masks)) * flat).reshape(error.shape).sum(2).tolist()


E_H_E, AT = "e @ hessian[at, at] @ e", "slice(g * size, g * size + size)"
WRONG_COSTS = [
    (block_by_block.edit(E_H_E, f"0.5 * ({E_H_E})"), "this is half of"),
    (block_by_block.edit(E_H_E, f"2 * ({E_H_E})"), "this is twice"),
    (block_by_block.edit("return result", "return result.sum(0)"), "summed over the rows"),
    (block_by_block.edit("return result", "return result.sum(1)"), "summed over the groups"),
    (
        block_by_block.edit("return result", "return result.sum(0, keepdim=True).expand(rows, -1)"),
        "cost of all rows together",
    ),
    (block_by_block.edit("return result", "return result.mean(0)"), "averaged over the rows"),
    (block_by_block.edit("return result", "return result.sum()"), "this is one number"),
    (block_by_block.edit("return result", "return result.T"), "the result is transposed"),
    (block_by_block.edit(E_H_E, f"({E_H_E}) / size"), "not a mean"),
    (block_by_block.edit(E_H_E, f"({E_H_E}) / hessian[at, at].trace().clamp(min=1e-30)"), "by the size of the inputs"),
    (block_by_block.edit(E_H_E, f"({E_H_E}).clamp(min=0).sqrt()"), "the root of the cost"),
    (block_by_block.edit(E_H_E, "(e**2 * hessian.diagonal()[at]).sum()"), "only the diagonal"),
    (block_by_block.edit(E_H_E, "e @ e"), "X^T X, are not used"),
    (block_by_block.edit(E_H_E, "(hessian[at, at] @ e).norm() ** 2"), "the squared size of e H"),
    (block_by_block.edit(E_H_E, "(hessian[at, at] @ e).sum()"), "once more"),
    (block_by_block.edit(E_H_E, "e.abs() @ hessian[at, at] @ e.abs()"), "signs of the errors"),
    (block_by_block.edit(E_H_E, "e @ hessian[at, at].abs() @ e"), "signs of X^T X"),
    (block_by_block.edit(E_H_E, "e @ torch.triu(hessian[at, at]) @ e"), "only half of X^T X"),
    (block_by_block.edit(E_H_E, "e @ torch.linalg.pinv(hessian[at, at]) @ e"), "inverse of X^T X"),
    (block_by_block.edit(AT, "slice(g, g + size)"), "begin at g * group_size"),
    (block_by_block.edit(AT, "slice(0, size)"), "judged by the first group"),
    (block_by_block.edit(AT, "slice(g, None, groups)"), "every n-th input"),
    (block_by_block.edit(AT, "slice((groups - 1 - g) * size, (groups - g) * size)"), "in reverse order"),
    (block_by_block.edit(E_H_E, "error[r].flatten() @ hessian[:, at] @ e"), "errors of other groups"),
    (
        block_by_block.edit("e = error[r, g]", "e = error[0, g]"),
        "the errors of the first row",
    ),
]

WRONG = {"awq.fold": WRONG_FOLDS, "awq.scale_of": WRONG_SCALES, "awq.search": WRONG_SEARCHES, "awq.cost": WRONG_COSTS}
RIGHT = {
    "awq.fold": [columns, fold_by_nan_to_num, fold_of_lists, fold_by_a_diagonal],
    "awq.scale_of": [powers, scales_in_numpy, scales_of_a_list, scales_centred_first],
    "awq.search": [tried, search_by_columns, search_by_diagonals, search_with_a_running_best],
    "awq.cost": [block_by_block, cost_without_conversion_of_hessian, cost_by_reshaping, cost_of_factors],
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


def test_an_exception_alone_is_no_diagnosis():
    """Scaled rows raise RuntimeError if the matrix is not square, but so do many other mistakes."""
    of_other_dtype = tried.edit(CANDIDATE, "(rounded(weight * s) / s).double() @ weight.T")
    found = verdict("awq.search", of_other_dtype)
    assert not found.passed and "RuntimeError" in found.text
    assert "Likely" not in found.text and "Perhaps" not in found.text


def test_mistakes_are_recognised_in_numpy_as_well():
    """The mistake is the same, although numpy raises ValueError where torch raises RuntimeError."""
    in_numpy = columns.edit(
        "    for i in range(len(gain)):\n",
        "    return rounded, new.numpy() * (gain.double() / rounded).nan_to_num(nan=1.0).numpy()[:, None]\n"
        "    for i in range(len(gain)):\n",
    )
    found = verdict("awq.fold", in_numpy)
    assert found.text.splitlines()[-1].startswith("Likely mistake: rows are scaled")


def test_no_weight_of_the_search_lies_near_the_middle_of_two_steps():
    """Otherwise results in float32 and float64 could differ, and a right answer could fail."""
    ((weight, scales, rounded, _),) = [a for label, a in exercises.find("awq.search").cases() if "one grid" in label]
    for scale in scales.double():
        up, down = (rounded(weight.double() * scale * factor) for factor in (1 + 1e-5, 1 - 1e-5))
        assert torch.equal(up, down)
