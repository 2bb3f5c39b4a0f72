"""``rtn.best``: answers that find the least squared error in different ways pass; plausible wrong ones are named.

The wrong answers are edits of these right answers, or separate functions. None of them comes from the course itself.
"""

import itertools

import numpy as np
import pytest
import torch

from qtutor.course import exercises
from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.rtn.best import cases, errors
from tests.course.answers import (
    assert_last_line,
    assert_likely,
    assert_mistakes_differ,
    assert_named,
    assert_right,
    each,
)

NAME = "rtn.best"


@solution
def by_places_of_steps(weight, bits, group_size):
    """From one sorted weight to the next, the code rises by 0, 1 or more: try all places of the 2**bits - 1 rises."""
    steps = 2**bits - 1
    scales = np.zeros((len(weight), weight.shape[1] // group_size))
    offsets = scales.copy()
    for o, g in np.ndindex(scales.shape):
        w = np.sort(weight[o, g * group_size : (g + 1) * group_size].numpy().astype(np.float64))
        least = np.inf
        for rises in itertools.combinations_with_replacement(range(group_size + 1), steps):
            codes = np.array([sum(place <= i for place in rises) for i in range(group_size)])
            spread = codes.var()
            scale = (codes * w).mean() - codes.mean() * w.mean()
            scale = scale / spread if spread else 0.0
            offset = w.mean() - scale * codes.mean()
            error = ((offset + scale * codes - w) ** 2).sum()
            if error < least:
                least, scales[o, g], offsets[o, g] = error, scale, offset
    return scales, offsets


@solution
def by_borders(weight, bits, group_size):
    """Try the points around every crossing of two lines.

    A code changes where a weight lies on the border between two levels. In the plane of scale and offset, these places
    form a line for each weight and each border.
    """
    borders = np.arange(2**bits - 1) + 0.5
    scales, offsets = [], []
    for row in weight.double().numpy():
        for w in row.reshape(-1, group_size):
            lines = [(x, b) for x in w for b in borders]  # offset + scale * b = x
            least, found = np.square(w - w.mean()).sum(), (0.0, w.mean())
            for (x, b), (y, d) in itertools.combinations(lines, 2):
                if b == d:
                    continue
                scale = (x - y) / (b - d)
                for nudge in (-1e-7, 1e-7):
                    for turn in (-1e-7, 1e-7):
                        near, at = scale + turn, x - scale * b + nudge
                        codes = np.abs(w[:, None] - at - near * np.arange(2**bits)).argmin(axis=1)
                        if len(set(codes)) > 1:
                            slope, start = np.polyfit(codes, w, 1)
                            cost = np.square(start + slope * codes - w).sum()
                            if cost < least:
                                least, found = cost, (slope, start)
            scales.append(found[0])
            offsets.append(found[1])
    shape = len(weight), weight.shape[1] // group_size
    return torch.tensor(scales).reshape(shape), torch.tensor(offsets).reshape(shape)


@solution
def by_halves(weight, bits, group_size):
    """The same search as the course's, but in float32, group by group, and with lists."""
    ways = torch.tensor(list(itertools.combinations_with_replacement(range(2**bits), group_size))).float()
    ways = ways[(ways != ways[:, :1]).any(1)]
    ones = torch.ones_like(ways)
    inverse = torch.linalg.pinv(torch.stack([ways, ones], dim=2))  # [ways, 2, group_size]
    scales, offsets = [], []
    for row in weight:
        scales.append([])
        offsets.append([])
        for group in row.split(group_size):
            group = group.sort().values
            line = inverse @ group
            off = line[:, :1] * ways + line[:, 1:] - group
            best = int((off**2).sum(1).argmin())
            scales[-1].append(line[best, 0].item())
            offsets[-1].append(line[best, 1].item())
    return scales, offsets


RIGHT = {NAME: [by_places_of_steps, by_halves]}
LEAST = "(off**2).sum(1).argmin()"
LINE = "scales[-1].append(line[best, 0].item())"

WRONG = {
    NAME: [
        (by_halves.edit(LEAST, "off.abs().sum(1).argmin()"), "the least sum of |error|"),
        (by_halves.edit(LEAST, "off.abs().amax(1).argmin()"), "largest error is least"),
        (by_halves.edit("range(2**bits)", "range(2**bits - 1)"), "one level too few"),
        (by_halves.edit("range(2**bits)", "range(2**bits + 1)"), "one level too many"),
        (by_halves.edit("return scales, offsets", "return offsets, scales"), "swapped"),
        (by_halves.edit("line[best, 1].item()", "-line[best, 1].item()"), "wrong sign"),
        (by_places_of_steps.edit("steps = 2**bits - 1", "steps = 2**bits"), "one level too many"),
        (by_halves.edit(LINE, "scales[-1].append(line[best, 0].item() * (2**bits - 1))"), "one step of it"),
        (
            by_halves.edit("line[best, 1].item()", "(line[best, 1] + line[best, 0] * (2**bits - 1) / 2).item()"),
            "middle of the levels",
        ),
        (
            by_halves.edit("(ways != ways[:, :1]).any(1)", "(ways[:, 0] == 0) & (ways[:, -1] == 2**bits - 1)"),
            "always gets code 0",
        ),
        (by_halves.edit("row.split(group_size)", "row.reshape(group_size, -1).T"), "every n-th weight"),
        (
            by_halves.edit(
                (LINE, "scales[-1].append(float(np.float16(line[best, 0])))"),
                ("line[best, 1].item()", "float(np.float16(line[best, 1]))"),
            ),
            "rounded to 16 bits",
        ),
    ]
}


def minimum_and_range(weight, bits, group_size):
    groups = weight.unflatten(1, (-1, group_size))
    low = groups.min(dim=2).values
    return (groups.max(dim=2).values - low) / (2**bits - 1), low


def lines_until_nothing_changes(weight, bits, group_size):
    scale, offset = (part.double() for part in minimum_and_range(weight, bits, group_size))
    groups = weight.double().unflatten(1, (-1, group_size))
    for o, g in np.ndindex(*scale.shape):
        before = None
        while True:
            levels = offset[o, g] + scale[o, g] * torch.arange(2**bits)
            codes = (groups[o, g][:, None] - levels).abs().argmin(dim=1)
            if (before is not None and torch.equal(codes, before)) or codes.min() == codes.max():
                break
            before = codes
            slope, start = np.polyfit(codes.numpy(), groups[o, g].numpy(), 1)
            scale[o, g], offset[o, g] = slope, start
    return scale, offset


OTHER_WRONG = {
    NAME: [
        (minimum_and_range, "the grid over the whole range"),
        (lines_until_nothing_changes, "back and forth"),
    ]
}


@each(RIGHT)
def test_right_answers_pass_however_they_are_written(name, function):
    assert_right(name, function)


def test_an_answer_by_geometry_passes_too():
    """It tries thousands of points, so this test uses only two small inputs."""
    for _, (weight, bits, group_size) in cases()[:1] + cases()[4:5]:
        expected = errors(by_halves(weight, bits, group_size), (weight, bits, group_size))
        found = errors(by_borders(weight, bits, group_size), (weight, bits, group_size))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)


@each(WRONG)
def test_a_wrong_answer_is_told_its_mistake(name, function, phrase):
    # Some messages only say "Perhaps": if two lines are equally good, an answer and the known mistake may start from
    # different ones.
    assert_last_line(name, function, phrase)


@each(OTHER_WRONG)
def test_so_is_one_written_in_another_way(name, function, phrase):
    assert_likely(name, function, phrase)


def test_no_two_mistakes_look_the_same():
    assert_mistakes_differ(NAME)


@pytest.mark.parametrize(
    "answer",
    [
        lambda w, b, s: minimum_and_range(w, b, s)[0],
        lambda w, b, s: (*minimum_and_range(w, b, s), 0),
        lambda w, b, s: tuple(part.flatten() for part in minimum_and_range(w, b, s)),
        lambda w, b, s: (None, 0),
    ],
)
def test_what_is_no_scale_and_offset_is_told_the_form(answer):
    assert_named(NAME, answer, "return scale and offset, both of shape [1, 1]")


def test_the_search_of_the_package_does_not_get_so_far():
    """On at least 8 of 10 inputs, the package's error is over 5 % above the least: so this is worth an hour."""
    from qtutor.core.grid import IntGrid
    from qtutor.methods import rtn

    above = []
    for _, (weight, bits, group_size) in cases():
        q = rtn.quantize(weight, IntGrid(bits), group_size, clip="mse")
        least = errors(exercises.find(NAME).reference(weight, bits, group_size), (weight, bits, group_size)).sum()
        above.append((q.dequantize() - weight).square().sum().item() > 1.05 * least + 1e-9)
    assert sum(above) >= 8
