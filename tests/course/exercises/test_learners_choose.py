"""Chapter 12 as learners would write it: answers in different styles, and wrong answers that were not expected.

The wrong answers are refused. If a mistake has a name, the message contains it.
"""

import bisect
import math

import numpy as np
import torch

from qtutor.course.exercises.edits import solution
from tests.course.answers import assert_named, assert_right, each, verdict

# --- how many times smaller ---


@solution
def sizes_in_a_list(in_layers, elsewhere, bits, group, symmetric):
    weights = [16, bits + 16 / group + (0 if symmetric else bits / group)]
    small = np.dot([elsewhere, in_layers], weights)
    return float(16 * (elsewhere + in_layers) / small)


@solution
def share_by_share(in_layers, elsewhere, bits, group, symmetric):
    packed = in_layers / (in_layers + elsewhere)
    mean = packed * (bits + (16 if symmetric else 16 + bits) / group) + (1 - packed) * 16
    return 16 / mean


WRONG_TIMES = [
    sizes_in_a_list.edit("16 / group +", "16 +"),
    sizes_in_a_list.edit("bits / group)", "16 / group)"),
    sizes_in_a_list.edit("16 / group +", "16 * group +"),
    sizes_in_a_list.edit("[elsewhere, in_layers]", "[in_layers, elsewhere]"),
    sizes_in_a_list.edit("(elsewhere + in_layers)", "in_layers"),
    sizes_in_a_list.edit("float(16 *", "round(16 *"),
    sizes_in_a_list.edit("0 if symmetric else bits / group", "bits / group if symmetric else 0"),
    sizes_in_a_list.edit("[16, bits", "[bits, bits"),
    sizes_in_a_list.edit("[16, bits", "[8, bits"),
    sizes_in_a_list.edit("16 / group +", "8 / group +"),
    sizes_in_a_list.edit("16 / group +", "1 / group +"),
]

# --- the front ---


@solution
def swept_from_the_left(sizes, losses):
    least, front = math.inf, []
    for _, loss, number in sorted(zip(sizes, losses, range(len(sizes)))):
        if loss < least:
            least = loss
            front.append(number)
    return front


def with_a_set(sizes, losses):
    models = set(zip(sizes, losses))
    free = [m for m in models if not any(o != m and o[0] <= m[0] and o[1] <= m[1] for o in models)]
    return [list(zip(sizes, losses)).index(m) for m in sorted(free)]


def from_the_right(sizes, losses):
    """Take the model with the least loss, then the best of all smaller models, and so on."""
    left, front = list(range(len(sizes))), []
    while left:
        best = min(left, key=lambda i: (losses[i], sizes[i]))
        bisect.insort(front, (sizes[best], best))
        left = [i for i in left if sizes[i] < sizes[best]]
    return [number for _, number in front]


WRONG_FRONTS = [
    swept_from_the_left.edit("sorted(zip(", "list(zip("),
    swept_from_the_left.edit("loss < least", "loss <= least"),
    swept_from_the_left.edit("zip(sizes, losses, range", "zip(losses, sizes, range"),
    swept_from_the_left.edit("            least = loss\n", ""),
    swept_from_the_left.edit("least, front = math.inf", "least, front = min(losses)"),
    swept_from_the_left.edit("least = loss\n", "least = loss / 2\n"),
    swept_from_the_left.edit("front.append(number)", "front.append(loss)"),
    swept_from_the_left.edit("front.append(number)", "front.insert(0, number)"),
    swept_from_the_left.edit("return front", "return front[:2]"),
    swept_from_the_left.edit("return front", "return len(front)"),
    swept_from_the_left.edit("return front", "return set(front)"),
]

# --- what a step moves ---


@solution
def one_row_after_the_other(codes, scales, step, bits):
    size, changed = codes.shape[1] // scales.shape[1], 0
    for group in range(scales.shape[1]):
        own = slice(group * size, (group + 1) * size)
        old = codes[:, own].double()
        new = torch.round(old + step[:, own].double() / scales[:, group, None].double())
        changed += (new.clamp(0, 2**bits - 1) - old).ne(0).sum().item()
    return changed / codes.numel()


def by_weights(codes, scales, step, bits):
    scale = np.repeat(scales.double().numpy(), codes.shape[1] // scales.shape[1], axis=1)
    before = codes.numpy() * scale
    after = np.rint((before + step.double().numpy()) / scale)
    return (np.minimum(np.maximum(after, 0), 2**bits - 1) != codes.numpy()).mean()


WRONG_MOVES = [
    one_row_after_the_other.edit(".clamp(0, 2**bits - 1)", ".clamp(0, 2**bits)"),
    one_row_after_the_other.edit(".clamp(0, 2**bits - 1)", ".clamp(1, 2**bits - 1)"),
    one_row_after_the_other.edit("old + step", "old - step"),
    one_row_after_the_other.edit(".ne(0).sum()", ".abs().sum()"),
    one_row_after_the_other.edit("changed / codes.numel()", "changed / len(codes)"),
    one_row_after_the_other.edit("changed / codes.numel()", "changed / scales.numel()"),
    one_row_after_the_other.edit("scales[:, group, None]", "scales[:, -1, None]"),
    one_row_after_the_other.edit("torch.round", "torch.ceil"),
    one_row_after_the_other.edit("torch.round", "torch.trunc"),
    one_row_after_the_other.edit("scales[:, group, None].double()", "2"),
    one_row_after_the_other.edit(".ne(0).sum()", ".lt(0).sum()"),
]

RIGHT = {
    "choose.times": [sizes_in_a_list, share_by_share],
    "choose.front": [swept_from_the_left, with_a_set, from_the_right],
    "choose.moved": [one_row_after_the_other, by_weights],
}
WRONG = {"choose.times": WRONG_TIMES, "choose.front": WRONG_FRONTS, "choose.moved": WRONG_MOVES}
NAMED = {
    "choose.times": [
        (
            share_by_share.edit("(16 if symmetric else 16 + bits) / group", "(16 if symmetric else 16 + bits)"),
            "you counted a scale for every weight",
        ),
        (WRONG_TIMES[1], "A zero point is a code"),
    ],
    "choose.front": [
        (WRONG_FRONTS[1], "two models with the same loss are both kept"),
        (WRONG_FRONTS[7], "the largest comes first"),
    ],
    "choose.moved": [(WRONG_MOVES[3], "the mean distance of the codes")],
}


@each(RIGHT)
def test_other_styles_pass(name, function):
    assert_right(name, function)


@each(WRONG)
def test_wrong_answers_are_refused(name, function):
    assert not verdict(name, function).passed


@each(NAMED)
def test_those_with_a_name_are_told_it(name, function, phrase):
    assert_named(name, function, phrase)
