"""The exercises of chapter 06: wrong answers are told which mistake it is, right ones pass however they are written."""

import numpy as np
import pytest
import torch

from qtutor import gptq
from qtutor.core.grid import IntGrid
from qtutor.course import exercises
from qtutor.course.workspace.replacing import replaced
from qtutor.errors import QtutorError
from tests.course.answers import assert_right, each, verdict

# --- one column pushed, wrong ---


def pushed_with_plus(weight, inverse, rounded):
    after = weight.clone()
    error = rounded - weight[:, 0]
    after[:, 1:] -= error[:, None] * inverse[0, 1:] / inverse[0, 0]
    after[:, 0] = rounded
    return after


def plus_everywhere(weight, inverse, rounded):
    return weight + torch.outer(weight[:, 0] - rounded, inverse[0] / inverse[0, 0])


def not_divided_anywhere(weight, inverse, rounded):
    return weight - torch.outer(weight[:, 0] - rounded, inverse[0])


def only_rounded(weight, inverse, rounded):
    return torch.cat([rounded[:, None], weight[:, 1:]], dim=1)


def not_divided(weight, inverse, rounded):
    after = weight - torch.outer(weight[:, 0] - rounded, inverse[0])
    after[:, 0] = rounded
    return after


def divided_by_root(weight, inverse, rounded):
    after = weight.numpy() - np.outer(weight[:, 0] - rounded, inverse[0].numpy()) / float(inverse[0, 0]) ** 0.5
    after[:, 0] = rounded
    return after


def divided_by_own(weight, inverse, rounded):
    return weight - torch.outer(weight[:, 0] - rounded, inverse[0] / inverse.diag())


def column_left_as_it_was(weight, inverse, rounded):
    after = weight.clone()
    after[:, 1:] = weight[:, 1:] - torch.outer(weight[:, 0] - rounded, inverse[0, 1:] / inverse[0, 0])
    return after


def rounded_then_moved(weight, inverse, rounded):
    after = weight.clone()
    after[:, 0] = rounded
    return after - torch.outer(weight[:, 0] - rounded, inverse[0] / inverse[0, 0])


def error_of_first_row(weight, inverse, rounded):
    after = weight - (weight[0, 0] - rounded[0]) * inverse[0] / inverse[0, 0]
    after[:, 0] = rounded
    return after


def hessian_for_inverse(weight, inverse, rounded):
    hessian = torch.linalg.inv(inverse)
    return weight - torch.outer(weight[:, 0] - rounded, hessian[0] / hessian[0, 0])


def shared_out(weight, inverse, rounded):
    others = weight.shape[1] - 1
    if not others:
        return rounded[:, None]
    return torch.cat([rounded[:, None], weight[:, 1:] + (weight[:, :1] - rounded[:, None]) / others], dim=1)


def rest_alone(weight, inverse, rounded):
    return (weight - torch.outer(weight[:, 0] - rounded, inverse[0] / inverse[0, 0]))[:, 1:]


def moves_alone(weight, inverse, rounded):
    return [[-float(w - r) * float(v / inverse[0, 0]) for v in inverse[0]] for w, r in zip(weight[:, 0], rounded)]


def into_the_argument(weight, inverse, rounded):
    weight -= torch.outer(weight[:, 0] - rounded, inverse[0] / inverse[0, 0])
    return weight


# --- one column pushed, right ---


def push_in_loops(weight, inverse, rounded):
    after = weight.tolist()
    for r, row in enumerate(after):
        e = row[0] - float(rounded[r])
        for j in range(len(row)):
            row[j] -= e * float(inverse[j, 0]) / float(inverse[0, 0])
    return after


def push_by_solving(weight, inverse, rounded):
    hessian = np.linalg.inv(inverse.double().numpy())
    first = rounded.double().numpy() - weight[:, 0].double().numpy()
    moves = -np.outer(first, hessian[0, 1:]) @ np.linalg.inv(hessian[1:, 1:])
    return np.column_stack([rounded, weight[:, 1:].double().numpy() + moves])


# --- the loop, wrong ---


def coded(column, scale, zero, bits):
    return (torch.round(column / scale.float()) + zero.float()).clamp(0, 2**bits - 1)


def any_loop(weight, upper, scale, zero, bits, move, value=None):
    """The frame of a loop; ``move(e, j, work, start of the next group)`` is where the answers below differ."""
    scale, zero = scale.float(), zero.float()
    work, codes, length = weight.clone().float(), [], weight.shape[1] // scale.shape[1]
    for j in range(weight.shape[1]):
        s, z = scale[:, j // length], zero[:, j // length]
        codes.append(coded(work[:, j], s, z, bits))
        e = (work[:, j] if value is None else value(weight, work, j)) - s * (codes[-1] - z)
        move(e, j, work, (j // length + 1) * length)
    return torch.stack(codes, dim=1)


def nearest(weight, upper, scale, zero, bits):
    length = weight.shape[1] // scale.shape[1]
    scale, zero = scale.repeat_interleave(length, 1), zero.repeat_interleave(length, 1)
    return coded(weight, scale, zero, bits).numpy()


def column_of_u(weight, upper, scale, zero, bits):
    def move(e, j, work, _):
        work[:, j + 1 :] -= torch.outer(e, upper[j + 1 :, j]) / upper[j, j]

    return any_loop(weight, upper, scale, zero, bits, move)


def added(weight, upper, scale, zero, bits):
    def move(e, j, work, _):
        work[:, j + 1 :] += torch.outer(e / upper[j, j], upper[j, j + 1 :])

    return any_loop(weight, upper, scale, zero, bits, move)


def undivided(weight, upper, scale, zero, bits):
    def move(e, j, work, _):
        work[:, j + 1 :] -= torch.outer(e, upper[j, j + 1 :])

    return any_loop(weight, upper, scale, zero, bits, move)


def divided_twice(weight, upper, scale, zero, bits):
    def move(e, j, work, _):
        work[:, j + 1 :] -= torch.outer(e / upper[j, j], upper[j, j + 1 :] / upper[j, j])

    return any_loop(weight, upper, scale, zero, bits, move)


def whole_inverse(weight, upper, scale, zero, bits):
    inverse = upper.T @ upper

    def move(e, j, work, _):
        work[:, j + 1 :] -= torch.outer(e / inverse[j, j], inverse[j, j + 1 :])

    return any_loop(weight, upper, scale, zero, bits, move)


def one_neighbour(weight, upper, scale, zero, bits):
    def move(e, j, work, _):
        if j + 1 < work.shape[1]:
            work[:, j + 1] -= e * upper[j, j + 1] / upper[j, j]

    return any_loop(weight, upper, scale, zero, bits, move)


def inside_groups(weight, upper, scale, zero, bits):
    def move(e, j, work, end):
        work[:, j + 1 : end] -= torch.outer(e / upper[j, j], upper[j, j + 1 : end])

    return any_loop(weight, upper, scale, zero, bits, move)


def right_move(upper):
    def move(e, j, work, _):
        work[:, j + 1 :] -= torch.outer(e / upper[j, j], upper[j, j + 1 :])

    return move


def from_the_original(weight, upper, scale, zero, bits):
    return any_loop(weight, upper, scale, zero, bits, right_move(upper), lambda weight, work, j: weight[:, j])


def first_group_only(weight, upper, scale, zero, bits):
    return any_loop(weight, upper, scale[:, :1], zero[:, :1], bits, right_move(upper))


def weights_of_codes(weight, upper, scale, zero, bits):
    codes = any_loop(weight, upper, scale, zero, bits, right_move(upper)).reshape(*scale.shape, -1)
    return (scale.float()[..., None] * (codes - zero.float()[..., None])).reshape(weight.shape)


def never_clamped(weight, upper, scale, zero, bits):
    work, codes, length = weight.double().numpy().copy(), [], weight.shape[1] // scale.shape[1]
    u, scale, zero = upper.double().numpy(), scale.double().numpy(), zero.double().numpy()
    for j in range(work.shape[1]):
        s, z = scale[:, j // length], zero[:, j // length]
        codes.append(np.rint(work[:, j] / s) + z)
        work[:, j + 1 :] -= np.outer((work[:, j] - s * (codes[-1] - z)) / u[j, j], u[j, j + 1 :])
    return np.stack(codes, axis=1)


def clamped_at_the_end(weight, upper, scale, zero, bits):
    return never_clamped(weight, upper, scale, zero, bits).clip(0, 2**bits - 1)


# --- the loop, right ---


def loop_in_float32(weight, upper, scale, zero, bits):
    return any_loop(weight, upper, scale, zero, bits, right_move(upper)).to(torch.uint8)


def loop_all_at_the_end(weight, upper, scale, zero, bits):
    """Every column collects what all before it push, when its turn comes."""
    length = weight.shape[1] // scale.shape[1]
    u, w = upper.double().numpy(), weight.double().numpy()
    codes, errors = np.zeros(w.shape, dtype=int), np.zeros(w.shape)
    for j in range(w.shape[1]):
        s, z = scale[:, j // length].double().numpy(), zero[:, j // length].double().numpy()
        now = w[:, j] - errors[:, :j] @ u[:j, j]
        codes[:, j] = np.clip(np.rint(now / s) + z, 0, 2**bits - 1)
        errors[:, j] = (now - s * (codes[:, j] - z)) / u[j, j]
    return codes.tolist()


# --- the factor, wrong ---


def damped(hessian, amount):
    live = hessian.diagonal() != 0
    mean = hessian.diagonal()[live].mean()
    return hessian + torch.diag(torch.where(live, amount * torch.ones_like(hessian[0]), mean))


def upper_of(matrix):
    return torch.linalg.cholesky(matrix.inverse(), upper=True)


def share_of_mean(hessian, damping):
    return damping * hessian.diagonal()[hessian.diagonal() != 0].mean()


def not_damped(hessian, damping):
    return upper_of(damped(hessian, 0.0))


def damping_as_it_is(hessian, damping):
    return upper_of(damped(hessian, damping))


def share_of_largest(hessian, damping):
    return upper_of(damped(hessian, damping * hessian.diagonal().max()))


def share_of_trace(hessian, damping):
    return upper_of(damped(hessian, damping * hessian.trace()))


def mean_with_the_dead(hessian, damping):
    everything = hessian.diagonal().mean()
    matrix = hessian + damping * everything * torch.eye(len(hessian))
    for i in range(len(hessian)):
        if hessian[i, i] == 0:
            matrix[i, i] = everything
    return upper_of(matrix)


def dead_channels_get_one(hessian, damping):
    matrix = hessian + share_of_mean(hessian, damping) * torch.eye(len(hessian))
    matrix.diagonal()[hessian.diagonal() == 0] = 1
    return upper_of(matrix)


def dead_channels_like_all(hessian, damping):
    return upper_of(hessian + share_of_mean(hessian, damping) * torch.eye(len(hessian)))


def factor_of_h(hessian, damping):
    return torch.linalg.cholesky(damped(hessian, share_of_mean(hessian, damping)), upper=True)


def inverse_itself(hessian, damping):
    return damped(hessian, share_of_mean(hessian, damping)).inverse()


def lower_factor(hessian, damping):
    return np.linalg.cholesky(inverse_itself(hessian, damping).numpy())


def factors_swapped(hessian, damping):
    matrix = damped(hessian, share_of_mean(hessian, damping))
    return torch.linalg.cholesky(matrix, upper=True).inverse()


def relative_damping(hessian, damping):
    diagonal = hessian.diagonal()
    return upper_of(damped(hessian, 0.0) + torch.diag(damping * diagonal))


def written_into_the_argument(hessian, damping):
    right = right_factor(hessian, damping)
    hessian.diagonal().add_(damping)
    return right


# --- the factor, right ---


def right_factor(hessian, damping):
    return upper_of(damped(hessian, share_of_mean(hessian, damping)))


def factor_turned_around(hessian, damping):
    matrix = damped(hessian, share_of_mean(hessian, damping)).flip(0, 1)
    return torch.linalg.inv(torch.linalg.cholesky(matrix)).flip(0, 1)


def factor_by_qr(hessian, damping):
    """A square root of H^-1 from its eigenvectors, made triangular."""
    values, vectors = np.linalg.eigh(damped(hessian, share_of_mean(hessian, damping)).numpy())
    triangle = np.linalg.qr((vectors / np.sqrt(values)).T)[1]
    return triangle * np.sign(np.diag(triangle))[:, None]


WRONG = {
    "gptq.push": [
        (pushed_with_plus, "moved the wrong way"),
        (plus_everywhere, "the sign is wrong"),
        (not_divided_anywhere, "divided by its first entry"),
        (only_rounded, "nothing was pushed"),
        (not_divided, "division by [H^-1]_00 is missing"),
        (divided_by_root, "square root of [H^-1]_00"),
        (divided_by_own, "its own [H^-1]_jj"),
        (column_left_as_it_was, "still what it was"),
        (rounded_then_moved, "moved once more"),
        (error_of_first_row, "by the error of row 0"),
        (hessian_for_inverse, "you inverted what you were given"),
        (shared_out, "shared out evenly"),
        (rest_alone, "the columns that are left"),
        (moves_alone, "the moves alone"),
        (into_the_argument, "wrote into its argument"),
    ],
    "gptq.loop": [
        (nearest, "rounding to nearest"),
        (column_of_u, "column j holds zeros there"),
        (added, "so that errors add up"),
        (undivided, "not divided by U_jj"),
        (divided_twice, "by the square of U_jj"),
        (whole_inverse, "must forget"),
        (one_neighbour, "only the next column"),
        (inside_groups, "end of the group"),
        (from_the_original, "counted from the original weight"),
        (first_group_only, "of the first group"),
        (weights_of_codes, "these are weights"),
        (never_clamped, "codes leave 0"),
        (clamped_at_the_end, "before the code was clamped"),
    ],
    "gptq.factor": [
        (not_damped, "damping is missing"),
        (damping_as_it_is, "added as it is"),
        (share_of_largest, "share of the largest"),
        (share_of_trace, "share of the sum"),
        (relative_damping, "its own diagonal entry"),
        (mean_with_the_dead, "over dead inputs too"),
        (dead_channels_get_one, "got a 1 on the diagonal"),
        (dead_channels_like_all, "got only the damping"),
        (factor_of_h, "factor of H itself"),
        (inverse_itself, "this is the inverse"),
        (lower_factor, "a lower triangle"),
        (factors_swapped, "wrong way round"),
        (written_into_the_argument, "wrote into its argument"),
    ],
}
RIGHT = {
    "gptq.push": [push_in_loops, push_by_solving],
    "gptq.loop": [loop_in_float32, loop_all_at_the_end],
    "gptq.factor": [right_factor, factor_turned_around, factor_by_qr],
}


@each(WRONG)
def test_a_wrong_answer_is_told_which_mistake_it_is(name, function, phrase):
    found = verdict(name, function)
    assert not found.passed
    assert phrase in found.text, found.text


@each(RIGHT)
def test_a_right_answer_passes_however_it_is_written(name, function):
    assert_right(name, function)


def test_no_weight_of_the_loops_inputs_lies_near_the_middle_of_two_levels():
    """Else float32 and float64 could differ, and a right answer fail."""
    for what, (weight, upper, scale, zero, bits) in exercises.find("gptq.loop").cases():
        length = weight.shape[1] // scale.shape[1]

        def steps(weight, work, j, scale=scale, length=length):
            parts = work[:, j] / scale[:, j // length].float()
            assert ((parts - parts.floor() - 0.5).abs() > 5e-4).all(), what  # noqa: B023
            return work[:, j]

        any_loop(weight, upper, scale, zero, bits, right_move(upper), steps)


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
    # Errors reach later groups in another order of adding up: a weight in the middle of two levels may go either way.
    assert (found.codes != expected.codes).float().mean() < 0.01
    assert torch.equal(gptq.quantize(*layer, grid, **settings).codes, expected.codes)  # the package's own again


def test_a_learners_loop_does_what_it_says(layer):
    """Not the package's codes by chance: one that rounds to nearest shows in the result."""
    grid = IntGrid(3)
    plain = gptq.quantize(*layer, grid, 16)
    with replaced(exercises.find("gptq.loop"), nearest):
        found = gptq.quantize(*layer, grid, 16)
    assert (found.codes != plain.codes).float().mean() > 0.05


def test_where_the_learners_factor_finds_none_the_package_raises_damping():
    few = torch.randn(8, 64, generator=torch.Generator().manual_seed(1)).double()
    with replaced(exercises.find("gptq.factor"), right_factor):
        assert gptq.prepare(few.T @ few, 16, damping=0.0).damping > 0
        assert gptq.prepare(torch.zeros(64, 64).double(), 16).upper.isfinite().all()
        with pytest.raises(QtutorError, match="not positive definite"):
            gptq.prepare(-(few.T @ few) - 100 * torch.eye(64).double(), 16)
