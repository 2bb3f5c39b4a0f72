"""Chapter 12's exercises: right answers in different styles, wrong ones that check names or refuses; the package."""

import numpy as np
import pytest
import torch

from qtutor.core.grid import IntGrid
from qtutor.course import exercises
from qtutor.course.choose.steps import moved as moved_in_package
from qtutor.course.exercises.edits import solution
from qtutor.methods import rtn
from qtutor.plots.comparison import Point, best
from tests.course.answers import assert_mistakes_differ, assert_right, assert_told, each, verdict

NAMES = [exercise.name for exercise in exercises.of_topic("choose")]

# --- how many times smaller ---


@solution
def by_bytes(in_layers, elsewhere, bits, group, symmetric):
    groups = in_layers / group
    packed = in_layers * bits / 8 + groups * 2
    if not symmetric:
        packed += groups * bits / 8
    return (in_layers + elsewhere) * 2 / (packed + elsewhere * 2)


WRONG_TIMES = [
    (by_bytes.edit("not symmetric", "False"), "zero points are missing"),
    (by_bytes.edit("if not symmetric", "if symmetric or not symmetric"), "for a symmetric grid, too"),
    (by_bytes.edit("groups * bits / 8", "groups * 2"), "16 bits for a zero point"),
    (by_bytes.edit("groups * 2", "groups * 4"), "32 bits for a scale"),
    (by_bytes.edit("(packed + elsewhere * 2)", "packed"), "missing in the size after quantization"),
    (by_bytes.edit("in_layers + elsewhere) * 2", "in_layers + elsewhere) * 4"), "32 bits for each weight"),
]

# --- the front ---


@solution
def by_arrays(sizes, losses):
    s, e = np.array(sizes), np.array(losses)
    as_good = (s[:, None] <= s) & (e[:, None] <= e)
    better = (s[:, None] < s) | (e[:, None] < e)
    beaten = (as_good & better).any(axis=0)
    return [int(i) for i in np.argsort(s, kind="stable") if not beaten[i]]


WRONG_FRONTS = [
    (by_arrays.edit("not beaten[i]", "beaten[i]"), "you returned the models that are beaten"),
    (by_arrays.edit("not beaten[i]", "True or beaten[i]"), "all models are kept"),
    (by_arrays.edit('np.argsort(s, kind="stable")', "range(len(s))"), "in the order of the list"),
    (by_arrays.edit("[int(i) for", "[int(s[i]) for"), "these are sizes"),
    (by_arrays.edit("[int(i) for", "[int(i) + 1 for"), "counted from 1"),
    (by_arrays.edit('np.argsort(s, kind="stable")', 'np.argsort(-s, kind="stable")'), "largest comes first"),
]

# --- what a step moves ---


@solution
def by_groups(codes, scales, step, bits):
    rows, groups = scales.shape
    change = step.numpy().reshape(rows, groups, -1) / scales.numpy()[:, :, None]
    before = codes.numpy().reshape(change.shape)
    after = np.clip(np.rint(before + change), 0, 2**bits - 1)
    return float(np.mean(after != before))


WRONG_MOVES = [
    (by_groups.edit("np.rint(before + change)", "before + change"), "not rounded again"),
    (by_groups.edit("np.clip(np.rint(before + change), 0, 2**bits - 1)", "np.rint(before + change)"), "not clamped"),
    (by_groups.edit("np.rint", "np.floor"), "rounded down"),
    (by_groups.edit("after != before", "after == before"), "the share of codes that stay"),
    (by_groups.edit("np.mean(", "np.sum("), "the number of changed codes"),
    (by_groups.edit("[:, :, None]", "[:, :1, None]"), "the first group's scale"),
    (by_groups.edit("after != before", "after > before"), "only steps up"),
]

RIGHT = {"choose.times": [by_bytes], "choose.front": [by_arrays], "choose.moved": [by_groups]}
WRONG = dict(zip(RIGHT, (WRONG_TIMES, WRONG_FRONTS, WRONG_MOVES)))


@each(RIGHT)
def test_right_in_another_way(name, function):
    assert_right(name, function)


@each(WRONG)
def test_wrong_answers_are_told_their_mistake(name, function, phrase):
    assert_told(WRONG, name, function, phrase)


@pytest.mark.parametrize("name", NAMES)
def test_mistakes_differ(name):
    assert_mistakes_differ(name)


# --- wrong answers for which no diagnosis was written ---


def at_most_each_other(sizes, losses):
    return [i for i in range(len(sizes)) if losses[i] == min(losses) or sizes[i] == min(sizes)]


UNKNOWN = {
    "choose.times": [
        by_bytes.edit("in_layers / group", "in_layers // 100"),
        by_bytes.edit("* bits / 8 +", "* bits / 16 +"),
    ],
    "choose.front": [at_most_each_other, by_arrays.edit("(as_good & better)", "(as_good | better)")],
    "choose.moved": [by_groups.edit("2**bits - 1", "2**bits"), by_groups.edit("before + change", "before - change")],
}  # fmt: skip


@each(UNKNOWN)
def test_others_are_refused(name, function):
    assert not verdict(name, function).passed


# --- what the exercises teach is what the package does ---


def test_bits_are_the_package_s():
    quantized = rtn.quantize(torch.randn(32, 128), IntGrid(4), 64)
    times = exercises.find("choose.times").reference(32 * 128, 0, 4, 64, False)
    assert times == pytest.approx(32 * 128 * 2 / quantized.nbytes)


def test_the_front_is_that_of_the_pictures():
    draw = np.random.default_rng(0)
    sizes, losses = draw.integers(1, 9, 30).tolist(), draw.random(30).tolist()
    points = [Point(str(i), size, loss) for i, (size, loss) in enumerate(zip(sizes, losses))]
    assert [int(point.name) for point in best(points)] == exercises.find("choose.front").reference(sizes, losses)


@pytest.mark.parametrize("symmetric", [True, False])
def test_steps_move_the_package_s_codes_as_often(symmetric):
    draw = torch.Generator().manual_seed(0)
    quantized = rtn.quantize(torch.randn(8, 64, generator=draw), IntGrid(4, symmetric), 32)
    step = 0.3 * torch.randn(8, 64, generator=draw)
    share = exercises.find("choose.moved").reference(quantized.codes, quantized.scales.float(), step, 4)
    assert moved_in_package(quantized, step) == pytest.approx(share, abs=2 / 512)  # weights on a border may differ
    assert 0.1 < share < 0.9
