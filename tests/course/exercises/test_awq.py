"""The exercises of chapter 05: check names the mistake in a wrong answer, and right answers pass in any form.

A wrong answer is an edit of a right answer, or a separate function if no edit can make it. The right answers differ
from the course's solution.
"""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from qtutor import IntGrid, Recipe, awq, quantize
from qtutor.course import exercises
from qtutor.course.exercises.edits import solution
from qtutor.course.workspace.replacing import replaced
from tests.course.answers import assert_mistakes_differ, assert_right, assert_told, each
from tests.models import some_ids, tiny

# --- fold ---


@solution
def folded(gain, weight, scale, dtype):
    stored = (gain / scale).to(dtype).float()
    factor, live = torch.ones_like(gain), stored != 0
    factor[live] = gain[live] / stored[live]
    return stored.numpy(), (weight * factor).numpy()


def fold_in_loops(gain, weight, scale, dtype):
    stored = [float(torch.tensor(g / s).to(dtype)) for g, s in zip(gain.tolist(), scale.tolist())]
    factors = [g / d if g else 1.0 for g, d in zip(gain.tolist(), stored)]
    return stored, [[w * f for w, f in zip(row, factors)] for row in weight.tolist()]


def into_the_arguments(gain, weight, scale, dtype):
    before = gain.clone()
    gain.copy_((gain / scale).to(dtype))
    return gain, torch.where(gain == 0, weight, weight * before / gain)


FACTOR = "gain[live] / stored[live]"
WRONG_FOLDS = [
    (folded.edit("(gain / scale)", "(gain * scale)"), "it is the other way round: multiply the columns"),
    (
        folded.edit(("(gain / scale).to(dtype)", "(gain * scale)"), ("weight * factor", "weight / scale")),
        "other way round, and the gains are not rounded",
    ),
    (folded.edit(("(gain / scale)", "(gain * scale)"), (FACTOR, "scale[live]")), "both multiplied"),
    (folded.edit(FACTOR, "1 / scale[live]"), "both divided"),
    (folded.edit("(weight * factor)", "weight"), "only the gains have changed"),
    (folded.edit("return stored", "return gain"), "only the columns have changed"),
    (folded.edit(".to(dtype)", ""), "not rounded to the dtype in which they are stored"),
    (folded.edit(FACTOR, "scale[live]"), "the requested scale"),
    (folded.edit("* factor", "* factor.reshape(-1, 1)"), "rows are scaled"),
    (folded.edit("stored != 0", "stored == stored"), "0 / 0 is nan"),
    (folded.edit("(weight * factor)", "(weight * factor).to(dtype).float()"), "the weights are rounded to dtype"),
    (into_the_arguments, "work on a copy"),
]

# --- scales ---


@solution
def scales(mean_abs, ratio):
    powers = mean_abs.float().clamp(min=1e-4) ** ratio
    return powers / (powers.max() * powers.min()).sqrt()


def scales_in_logarithms(mean_abs, ratio):
    if ratio == 0:
        return torch.ones(len(mean_abs), dtype=torch.int64)
    logs = ratio * mean_abs.double().clamp(min=1e-4).log()
    return (logs - (logs.max() + logs.min()) / 2).exp()


MIDDLE = "(powers.max() * powers.min()).sqrt()"
WRONG_SCALES = [
    (scales.edit(".clamp(min=1e-4)", ""), "0 to any power is 0"),
    (scales.edit((".clamp(min=1e-4)", ""), ("** ratio", "** ratio\n    powers = powers.clamp(1e-4)")), "not after"),
    (scales.edit(f" / {MIDDLE}", ""), "the scales are not centred"),
    (scales.edit(".sqrt()", ""), "Divide by its root"),
    (scales.edit(MIDDLE, "powers.mean()"), "centred on their mean"),
    (scales.edit(MIDDLE, "powers.amax()"), "divide by the largest"),
    (scales.edit(MIDDLE, "powers.amin()"), "divide by the smallest"),
    (scales.edit("** ratio", "* ratio"), "multiplied by the ratio"),
    (scales.edit("mean_abs.float()", "1 / mean_abs.float()"), "loud channels get the smallest"),
    (scales.edit("** ratio", "** (1.0 - ratio)"), "(1 - ratio)"),
]

# --- search ---


@solution
def searched(weight, scales, rounded, output):
    target, best, errors = output(weight), None, []
    for s in scales:
        got = output(rounded(weight * s) / s)
        errors.append(torch.nn.functional.mse_loss(got, target).item())
        if best is None or errors[-1] < errors[best]:
            best = len(errors) - 1
    return best, torch.tensor(errors)


def search_in_float64(weight, scales, rounded, output):
    weight, scales = weight.double(), scales.double()
    errors = [output(rounded(weight * s[None]) / s[None]).sub(output(weight)).norm() ** 2 for s in scales]
    errors = torch.stack(errors).numpy() / output(weight).numel()
    return errors.argmin(), errors


def weight_spoilt(weight, scales, rounded, output):
    target, errors = output(weight), []
    keep = weight.clone()
    for s in scales:
        weight.copy_(rounded(keep * s) / s)
        errors.append((output(weight) - target).square().mean())
    return torch.stack(errors).argmin(), errors


TRIED, MEASURED = "rounded(weight * s) / s", "torch.nn.functional.mse_loss(got, target)"
WRONG_SEARCHES = [
    (searched.edit(TRIED, "rounded(weight)"), "without the scale"),
    (searched.edit(TRIED, "rounded(weight * s)"), "the scale is not removed"),
    (searched.edit(TRIED, "rounded(weight / s) * s"), "divide before rounding"),
    (searched.edit(TRIED, "rounded(weight * s[:, None]) / s[:, None]"), "rows are scaled"),
    (searched.edit(("output(weight)", "weight"), (f"output({TRIED})", TRIED)), "the error of the weights"),
    (searched.edit("output(weight)", "output(rounded(weight))"), "the output of rounded weights"),
    (searched.edit("mse_loss", "l1_loss"), "mean absolute"),
    (searched.edit(MEASURED, "((got - target) ** 2).sum()"), "the sum of the squared errors"),
    (searched.edit("errors[-1] <", "errors[-1] >"), "with the largest error"),
    (searched.edit("errors[-1] <", "errors[-1] <="), "equally good"),
    (searched.edit("best is None", "best in (None, 0)"), "never chosen"),
    (weight_spoilt, "work on a copy"),
]

# --- cost ---


@solution
def costs(error, hessian):
    groups, size = error.shape[1:]
    own = torch.stack([hessian[g * size : (g + 1) * size, g * size : (g + 1) * size] for g in range(groups)]).float()
    return torch.einsum("ogi,gij,ogj->og", error, own, error)


def cost_in_numpy(error, hessian):
    e, h = error.numpy(), hessian.numpy()
    size = e.shape[2]
    cells = [h[g * size : (g + 1) * size, g * size : (g + 1) * size] for g in range(e.shape[1])]
    return [[row[g] @ cells[g] @ row[g] for g in range(len(cells))] for row in e]


def neighbours_too(error, hessian):
    flat = error.reshape(len(error), -1)
    return ((flat @ hessian.float()) * flat).reshape(error.shape).sum(-1)


COST = 'torch.einsum("ogi,gij,ogj->og", error, own, error)'
WRONG_COSTS = [
    (costs.edit(COST, "(error**2 * own.diagonal(dim1=1, dim2=2)).sum(-1)"), "only the diagonal"),
    (costs.edit(COST, "(error**2).sum(-1)"), "X^T X, are not used"),
    (neighbours_too, "errors of other groups"),
    (costs.edit("own, error)", "own[:1].expand_as(own), error)"), "the first group's block"),
    (
        costs.edit("hessian[g * size : (g + 1) * size, g * size : (g + 1) * size]", "hessian[g::groups, g::groups]"),
        "every n-th input",
    ),
    (costs.edit(COST, 'torch.einsum("ogi,gij->og", error, own)'), "once more"),
    (costs.edit(COST, f"{COST}.clamp(min=0) ** 0.5"), "the root of the cost"),
    (costs.edit(COST, f"{COST} / size"), "not a mean"),
    (costs.edit(COST, '(torch.einsum("ogi,gij->ogj", error, own) * error).abs().sum(-1)'), "signs are lost"),
]

# --- through an activation ---


@solution
def passed(first, bias, second, scale, act):
    degree, tried = None, [s * 10**e for e in (-2, -1, 0, 1, 1.3) for s in (1.0, -1.0)]
    for z in tried:
        small, large = act(torch.tensor([z, 2 * z]).double()).tolist()
        if small == 0 or large / small <= 0:
            degree = degree if small == large else 0
        else:
            found = round(float(np.log2(large / small)), 5)
            degree = found if degree in (None, found) else 0
    if not degree:
        return first.clone(), bias.clone(), second.clone()
    part = (scale.double().log() / degree).exp()
    return (first.T / part).T, bias / part, second * scale


def through_in_loops(first, bias, second, scale, act):
    """Try a few degrees on random numbers."""
    z = torch.cat([torch.randn(200, generator=torch.manual_seed(0)) * size for size in (0.1, 1, 10)]).double()
    for k in (0.5, 1, 2, 3, 4):
        if all(torch.allclose(act(s * z), s**k * act(z), rtol=1e-6) for s in (0.3, 4.0)):
            rows = [[w / s ** (1 / k) for w in row] for row, s in zip(first.tolist(), scale.tolist())]
            biases = [b / s ** (1 / k) for b, s in zip(bias.tolist(), scale.tolist())]
            return rows, biases, [[w * s for w, s in zip(row, scale.tolist())] for row in second.tolist()]
    return first.numpy(), bias.numpy(), second.numpy()


ROWS, TRIED = "(first.T / part).T", "for e in (-2, -1, 0, 1, 1.3) for s in (1.0, -1.0)"
WRONG_THROUGHS = [
    (
        passed.edit("if not degree:", "degree = degree or 1\n    if not degree:"),
        "folded the scale through every activation",
    ),
    (passed.edit("if not degree:", "if True:"), "nothing is folded at all"),
    (passed.edit("if not degree:", "if degree != 1:"), "only degree 1"),
    (passed.edit("scale.double().log() / degree", "scale.double().log()"), "are divided by s, no matter"),
    (passed.edit(".log() / degree", ".log() * degree"), "by s to the power k"),
    (passed.edit("second * scale", "second * part"), "only the root of s"),
    (passed.edit(TRIED, "for e in (-2, -1, 0, 1, 1.3) for s in (1.0,)"), "only above zero"),
    (passed.edit(TRIED, "for e in (-2, -1, 0) for s in (1.0, -1.0)"), "only near zero"),
    (passed.edit(TRIED, "for e in (1.3, 1.5) for s in (1.0, -1.0)"), "only far from zero"),
    (passed.edit("bias / part", "bias"), "the bias was forgotten"),
    (
        passed.edit((ROWS, "(first.T * part).T"), ("bias / part", "bias * part"), ("second * scale", "second / scale")),
        "it is the other way round: multiply the columns of second",
    ),
    (passed.edit((ROWS, "(first.T * part).T"), ("bias / part", "bias * part")), "are both multiplied"),
    (passed.edit((ROWS, "first"), ("bias / part", "bias")), "only second has changed"),
    (passed.edit("second * scale", "second"), "only first and bias"),
    (passed.edit((ROWS, "first / part[torch.arange(first.shape[1]) % len(part)]")), "the columns of first"),
    (
        passed.edit("second * scale", "(second.T * scale[torch.arange(len(second)) % len(scale)]).T"),
        "the rows of second",
    ),
]

WRONG = {"awq.fold": WRONG_FOLDS, "awq.scale_of": WRONG_SCALES, "awq.search": WRONG_SEARCHES, "awq.cost": WRONG_COSTS}
WRONG["awq.through"] = WRONG_THROUGHS
RIGHT = {
    "awq.fold": [folded, fold_in_loops],
    "awq.scale_of": [scales, scales_in_logarithms],
    "awq.search": [searched, search_in_float64],
    "awq.cost": [costs, cost_in_numpy],
    "awq.through": [passed, through_in_loops],
}


@each(WRONG)
def test_a_wrong_answer_is_told_which_mistake_it_is(name, function, phrase):
    assert_told(WRONG, name, function, phrase)


@each(RIGHT)
def test_a_right_answer_passes_however_it_is_written(name, function):
    assert_right(name, function)


def test_the_mistakes_about_activations_differ_from_each_other():
    assert_mistakes_differ("awq.through")


def test_awq_runs_on_what_a_learner_wrote():
    """A learner's scales, search and folding replace the package's: the decoder is nearly the same."""
    plain, own = tiny(dtype=torch.bfloat16), tiny(dtype=torch.bfloat16)
    answers = {
        "awq.fold": folded,
        "awq.scale_of": scales_in_logarithms,
        "awq.search": searched,
    }
    called = []

    def noting(name, answer):
        return lambda *arguments: called.append(name) or answer(*arguments)

    recipe, calibration = Recipe(method="awq", bits=3, group_size=32), some_ids(4)
    quantize(plain, recipe, calibration, progress=False)
    with torch.no_grad():
        for name, answer in answers.items():
            exercise = exercises.find(name)
            answers[name] = replaced(exercise, noting(name, answer))
        with answers["awq.fold"], answers["awq.scale_of"], answers["awq.search"]:
            quantize(own, recipe, calibration, progress=False)
    assert set(called) == set(answers)
    with torch.inference_mode():
        ours, theirs = own(some_ids()).logits.float(), plain(some_ids()).logits.float()
    assert torch.allclose(ours, theirs, atol=0.02 * theirs.abs().max().item())


def test_a_learners_search_returns_what_the_packages_does():
    generator = torch.Generator().manual_seed(0)
    layers = [nn.Linear(32, rows, bias=False) for rows in (12, 20)]
    for made in layers:
        made.weight.data = torch.randn(made.weight.shape, generator=generator)
    x = torch.randn(3, 10, 32, generator=generator)
    x[..., 5] *= 20
    before = copy.deepcopy([made.weight.data for made in layers])

    def parent(x):
        return layers[0](x).sigmoid() * layers[1](x)[..., :12]

    theirs = exercises.find("awq.search").adapt(searched)
    given = layers, [x[:2], x[2:]], x.abs().mean(dim=(0, 1)), parent, IntGrid(3), 16
    ours, found = awq.search(*given), theirs(*given)
    assert found.ratio == ours.ratio > 0 and torch.equal(found.scale, ours.scale)
    assert found.errors == pytest.approx(ours.errors, rel=1e-4)
    assert all(torch.equal(made.weight.data, old) for made, old in zip(layers, before))


def test_what_stays_the_packages_own():
    """The exercise leaves linear sources, norms with a bias and scales that use the weights to the package."""
    linear, reader = nn.Linear(4, 4), nn.Linear(4, 3, bias=False)
    x, scale = torch.randn(5, 4), torch.tensor([2.0, 0.5, 3.0, 1.0])
    expected = reader(linear(x))
    fold = exercises.find("awq.fold").adapt(lambda *_arguments: pytest.fail("the exercise is about norms"))
    fold(linear, [reader], scale)
    assert torch.allclose(reader(linear(x)), expected, atol=1e-5)
    scale_of = exercises.find("awq.scale_of").adapt(lambda *_arguments: pytest.fail("weights have a say"))
    weights = [torch.randn(6, 8)]
    assert torch.equal(scale_of(torch.ones(8), 0.5, weights, 4), awq.scale_of(torch.ones(8), 0.5, weights, 4))
