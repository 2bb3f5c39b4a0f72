"""The exercises of chapter 05: wrong answers are told which mistake it is, right ones pass however they are written."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from qtutor import IntGrid, Recipe, awq, quantize
from qtutor.course import exercises
from qtutor.course.workspace.replacing import replaced
from tests.course.answers import assert_right, assert_told, each
from tests.models import some_ids, tiny

# --- fold, wrong ---


def upside_down(gain, weight, scale, dtype):
    new = (gain * scale).to(dtype).float()
    return new, torch.where(gain == 0, weight, weight * torch.nan_to_num(gain / new))


def upside_down_and_not_stored(gain, weight, scale, dtype):
    return gain * scale, weight / scale


def multiplied_twice(gain, weight, scale, dtype):
    return (gain * scale).to(dtype), torch.where(gain == 0, weight, weight * scale)


def divided_twice(gain, weight, scale, dtype):
    return (gain / scale).to(dtype), torch.where(gain == 0, weight, weight / scale)


def readers_forgotten(gain, weight, scale, dtype):
    return (gain / scale).to(dtype).double(), weight.double()


def norm_forgotten(gain, weight, scale, dtype):
    stored = (gain / scale).to(dtype).float()
    return gain, torch.where(stored != 0, weight * gain / stored, weight)


def not_stored(gain, weight, scale, dtype):
    factor = torch.ones_like(gain)
    factor[gain != 0] = scale[gain != 0]
    return gain / scale, weight * factor


def scale_as_asked(gain, weight, scale, dtype):
    return (gain / scale).to(dtype), torch.where(gain == 0, weight, weight * scale)


def along_rows(gain, weight, scale, dtype):
    stored = (gain / scale).to(dtype).float()
    factor = torch.where(stored == 0, torch.ones_like(gain), gain / stored)
    return stored, weight * factor.reshape(-1, 1)


def zero_by_zero(gain, weight, scale, dtype):
    stored = (gain / scale).to(dtype).float().numpy()
    with np.errstate(invalid="ignore"):
        return stored, weight.numpy() * (gain.numpy() / stored)


def all_in_sixteen_bits(gain, weight, scale, dtype):
    stored = (gain / scale).to(dtype).float()
    return stored, torch.where(stored == 0, weight, weight * gain / stored).to(dtype).float()


def into_the_arguments(gain, weight, scale, dtype):
    before = gain.clone()
    gain.copy_((gain / scale).to(dtype))
    return gain, torch.where(gain == 0, weight, weight * before / gain)


# --- fold, right ---


def fold_in_loops(gain, weight, scale, dtype):
    stored = [float(torch.tensor(g / s).to(dtype)) for g, s in zip(gain.tolist(), scale.tolist())]
    factors = [g / d if g else 1.0 for g, d in zip(gain.tolist(), stored)]
    return stored, [[w * f for w, f in zip(row, factors)] for row in weight.tolist()]


def fold_in_numpy(gain, weight, scale, dtype):
    stored = (gain / scale).to(dtype).float().numpy().astype(np.float64)
    factor = np.divide(gain.numpy(), stored, out=np.ones_like(stored), where=stored != 0)
    return stored, weight.numpy() * factor[None, :]


# --- scales, wrong ---


def silent_stays_zero(mean_abs, ratio):
    powers = mean_abs**ratio
    return powers / torch.sqrt(powers.max() * powers.min())


def clamped_too_late(mean_abs, ratio):
    powers = (mean_abs.double() ** ratio).clamp(1e-4)
    return powers / torch.sqrt(powers.max() * powers.min())


def not_centred(mean_abs, ratio):
    return [max(size, 1e-4) ** ratio for size in mean_abs.tolist()]


def root_forgotten(mean_abs, ratio):
    powers = np.maximum(mean_abs.numpy(), 1e-4) ** ratio
    return powers / (powers.max() * powers.min())


def centred_on_the_mean(mean_abs, ratio):
    powers = mean_abs.clamp(min=1e-4).pow(ratio)
    return powers / powers.mean()


def at_most_one(mean_abs, ratio):
    powers = mean_abs.clamp(min=1e-4).pow(ratio)
    return powers / powers.amax()


def at_least_one(mean_abs, ratio):
    powers = mean_abs.clamp(min=1e-4).pow(ratio)
    return powers / powers.amin()


def times_the_ratio(mean_abs, ratio):
    scaled = mean_abs.clamp(min=1e-4) * ratio
    return scaled / (scaled.max() * scaled.min()).sqrt()


def loud_ones_small(mean_abs, ratio):
    powers = 1 / mean_abs.clamp(min=1e-4) ** ratio
    return powers / (powers.max() * powers.min()).sqrt()


def other_end_of_the_ratio(mean_abs, ratio):
    powers = mean_abs.clamp(min=1e-4) ** (1.0 - ratio)
    return powers / (powers.max() * powers.min()).sqrt()


# --- scales, right ---


def scales_in_logarithms(mean_abs, ratio):
    logs = ratio * mean_abs.double().clamp(min=1e-4).log()
    return (logs - (logs.max() + logs.min()) / 2).exp()


def scales_in_float32(mean_abs, ratio):
    if ratio == 0:
        return torch.ones(len(mean_abs), dtype=torch.int64)
    powers = mean_abs.float().clamp(min=1e-4) ** ratio
    return powers / powers.max().mul(powers.min()).sqrt()


# --- search, wrong ---


def tried(weight, scales, output, attempt):
    """Mean squared errors of ``attempt(scale)`` for all scales, and the first smallest."""
    errors = [((output(attempt(scale)) - output(weight)) ** 2).mean().item() for scale in scales]
    return int(np.argmin(errors)), errors


def never_scaled(weight, scales, rounded, output):
    return tried(weight, scales, output, lambda s: rounded(weight))


def never_scaled_back(weight, scales, rounded, output):
    return tried(weight, scales, output, lambda s: rounded(weight * s))


def inverse(weight, scales, rounded, output):
    return tried(weight, scales, output, lambda s: rounded(weight / s) * s)


def rows_scaled(weight, scales, rounded, output):
    return tried(weight, scales, output, lambda s: rounded(weight * s[:, None]) / s[:, None])


def error_of_weights(weight, scales, rounded, output):
    errors = [(rounded(weight * s) / s - weight).pow(2).mean() for s in scales]
    return torch.stack(errors).argmin(), torch.stack(errors)


def against_the_rounded(weight, scales, rounded, output):
    target = output(rounded(weight))
    errors = torch.stack([(output(rounded(weight * s) / s) - target).square().mean() for s in scales])
    return errors.argmin(), errors


def absolute(weight, scales, rounded, output):
    errors = [float((output(rounded(weight * s) / s) - output(weight)).abs().mean()) for s in scales]
    return errors.index(min(errors)), errors


def summed(weight, scales, rounded, output):
    errors = [float((output(rounded(weight * s) / s) - output(weight)).square().sum()) for s in scales]
    return errors.index(min(errors)), errors


def worst(weight, scales, rounded, output):
    _, errors = tried(weight, scales, output, lambda s: rounded(weight * s) / s)
    return errors.index(max(errors)), errors


def last_of_equals(weight, scales, rounded, output):
    best, least, errors = 0, float("inf"), []
    for i, s in enumerate(scales):
        errors.append((output(rounded(weight * s) / s) - output(weight)).square().mean().item())
        if errors[-1] <= least:
            best, least = i, errors[-1]
    return best, errors


def scaled_at_any_price(weight, scales, rounded, output):
    _, errors = tried(weight, scales, output, lambda s: rounded(weight * s) / s)
    return errors.index(min(errors[1:]), 1), errors


def weight_spoilt(weight, scales, rounded, output):
    target, errors = output(weight), []
    keep = weight.clone()
    for s in scales:
        weight.copy_(rounded(keep * s) / s)
        errors.append((output(weight) - target).square().mean())
    return torch.stack(errors).argmin(), errors


# --- search, right ---


def search_by_keeping_the_best(weight, scales, rounded, output):
    target, best, errors = output(weight), None, []
    for s in scales:
        errors.append(torch.nn.functional.mse_loss(output(rounded(weight * s) / s), target).item())
        if best is None or errors[-1] < errors[best]:
            best = len(errors) - 1
    return best, torch.tensor(errors)


def search_in_float64(weight, scales, rounded, output):
    weight, scales = weight.double(), scales.double()
    errors = [output(rounded(weight * s[None]) / s[None]).sub(output(weight)).norm() ** 2 for s in scales]
    errors = torch.stack(errors).numpy() / output(weight).numel()
    return errors.argmin(), errors


# --- cost, wrong ---


def blocks(hessian, groups):
    size = len(hessian) // groups
    return [hessian[g * size : (g + 1) * size, g * size : (g + 1) * size].float() for g in range(groups)]


def independent_inputs(error, hessian):
    own = hessian.diagonal().float().reshape(error.shape[1:])
    return (error**2 * own).sum(-1)


def inputs_ignored(error, hessian):
    return (error**2).sum(-1)


def neighbours_too(error, hessian):
    flat = error.reshape(len(error), -1)
    return ((flat @ hessian.float()) * flat).reshape(error.shape).sum(-1)


def first_block(error, hessian):
    own = blocks(hessian, error.shape[1])[0]
    return torch.einsum("ogi,ij,ogj->og", error, own, error)


def every_nth(error, hessian):
    groups = error.shape[1]
    own = torch.stack([hessian[g::groups, g::groups].float() for g in range(groups)])
    return torch.einsum("ogi,gij,ogj->og", error, own, error)


def once(error, hessian):
    own = torch.stack(blocks(hessian, error.shape[1]))
    return torch.einsum("ogi,gij->og", error, own)


def rooted(error, hessian):
    own = torch.stack(blocks(hessian, error.shape[1]))
    return torch.einsum("ogi,gij,ogj->og", error, own, error).clamp(min=0) ** 0.5


def averaged(error, hessian):
    own = torch.stack(blocks(hessian, error.shape[1]))
    return torch.einsum("ogi,gij,ogj->og", error, own, error) / error.shape[2]


def without_signs(error, hessian):
    own = torch.stack(blocks(hessian, error.shape[1]))
    return (torch.einsum("ogi,gij->ogj", error, own) * error).abs().sum(-1)


# --- cost, right ---


def cost_in_einsum(error, hessian):
    own = torch.stack(blocks(hessian, error.shape[1])).double()
    return torch.einsum("ogi,gij,ogj->og", error.double(), own, error.double())


def cost_in_numpy(error, hessian):
    e, h = error.numpy(), hessian.numpy()
    size = e.shape[2]
    cells = [h[g * size : (g + 1) * size, g * size : (g + 1) * size] for g in range(e.shape[1])]
    return [[row[g] @ cells[g] @ row[g] for g in range(len(cells))] for row in e]


WRONG = {
    "awq.fold": [
        (upside_down, "it is the other way round: the columns"),
        (upside_down_and_not_stored, "other way round, and the gains are not rounded"),
        (multiplied_twice, "both multiplied"),
        (divided_twice, "both divided"),
        (readers_forgotten, "only the gains have changed"),
        (norm_forgotten, "only the columns have changed"),
        (not_stored, "not rounded to what they are stored in"),
        (scale_as_asked, "the scale that was asked for"),
        (along_rows, "rows are scaled"),
        (zero_by_zero, "0 / 0 is nan"),
        (all_in_sixteen_bits, "the weights are rounded to dtype"),
        (into_the_arguments, "work on a copy"),
    ],
    "awq.scale_of": [
        (silent_stays_zero, "0 to any power is 0"),
        (clamped_too_late, "not after"),
        (not_centred, "the scales are not centred"),
        (root_forgotten, "It is the root of it"),
        (centred_on_the_mean, "centred on their mean"),
        (at_most_one, "divide by the largest"),
        (at_least_one, "divide by the smallest"),
        (times_the_ratio, "multiplied by the ratio"),
        (loud_ones_small, "loud channels get the smallest"),
        (other_end_of_the_ratio, "(1 - ratio)"),
    ],
    "awq.search": [
        (never_scaled, "without the scale"),
        (never_scaled_back, "not taken back"),
        (inverse, "divide before rounding"),
        (rows_scaled, "rows are scaled"),
        (error_of_weights, "the error of the weights"),
        (against_the_rounded, "the output of rounded weights"),
        (absolute, "mean absolute"),
        (summed, "the sum of the squared errors"),
        (worst, "with the largest error"),
        (last_of_equals, "equally good"),
        (scaled_at_any_price, "never chosen"),
        (weight_spoilt, "work on a copy"),
    ],
    "awq.cost": [
        (independent_inputs, "only the diagonal"),
        (inputs_ignored, "have no say"),
        (neighbours_too, "errors of other groups"),
        (first_block, "the first group's block"),
        (every_nth, "every n-th input"),
        (once, "once more"),
        (rooted, "the root of the cost"),
        (averaged, "not a mean"),
        (without_signs, "signs are lost"),
    ],
}
RIGHT = {
    "awq.fold": [fold_in_loops, fold_in_numpy],
    "awq.scale_of": [scales_in_logarithms, scales_in_float32],
    "awq.search": [search_by_keeping_the_best, search_in_float64],
    "awq.cost": [cost_in_einsum, cost_in_numpy],
}


@each(WRONG)
def test_a_wrong_answer_is_told_which_mistake_it_is(name, function, phrase):
    assert_told(WRONG, name, function, phrase)


@each(RIGHT)
def test_a_right_answer_passes_however_it_is_written(name, function):
    assert_right(name, function)


def test_awq_runs_on_what_a_learner_wrote():
    """Scales, search and folding of a learner in place of the package's: the same decoder comes out."""
    plain, own = tiny(dtype=torch.bfloat16), tiny(dtype=torch.bfloat16)
    answers = {
        "awq.fold": fold_in_numpy,
        "awq.scale_of": scales_in_logarithms,
        "awq.search": search_by_keeping_the_best,
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

    theirs = exercises.find("awq.search").adapt(search_by_keeping_the_best)
    given = layers, [x[:2], x[2:]], x.abs().mean(dim=(0, 1)), parent, IntGrid(3), 16
    ours, found = awq.search(*given), theirs(*given)
    assert found.ratio == ours.ratio > 0 and torch.equal(found.scale, ours.scale)
    assert found.errors == pytest.approx(ours.errors, rel=1e-4)
    assert all(torch.equal(made.weight.data, old) for made, old in zip(layers, before))


def test_what_stays_the_packages_own():
    """Linear sources and norms with a bias are no part of the exercise, and neither are scales that look at weights."""
    linear, reader = nn.Linear(4, 4), nn.Linear(4, 3, bias=False)
    x, scale = torch.randn(5, 4), torch.tensor([2.0, 0.5, 3.0, 1.0])
    expected = reader(linear(x))
    fold = exercises.find("awq.fold").adapt(lambda *_arguments: pytest.fail("the exercise is about norms"))
    fold(linear, [reader], scale)
    assert torch.allclose(reader(linear(x)), expected, atol=1e-5)
    scale_of = exercises.find("awq.scale_of").adapt(lambda *_arguments: pytest.fail("weights have a say"))
    weights = [torch.randn(6, 8)]
    assert torch.equal(scale_of(torch.ones(8), 0.5, weights, 4), awq.scale_of(torch.ones(8), 0.5, weights, 4))
