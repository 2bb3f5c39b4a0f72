"""``rtn.best``: find exactly the scale and offset of every group that give the least squared error.

Optional, and without hints. The check compares the squared errors of a learner's grids: if several grids are equally
good, any of them is right.
"""

import itertools

import numpy as np
import torch

from qtutor.course.checking.comparing import NotNumbers, to_array
from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.inputs import short

ZERO = 1e-9  # smaller squared errors are float32 rounding errors of an exact grid


def best(weight, bits, group_size):
    """The best line over all ways to assign ascending codes to ascending weights."""
    scales, offsets = [], []
    for row in weight.tolist():
        scales.append([])
        offsets.append([])
        for start in range(0, len(row), group_size):
            group = sorted(row[start : start + group_size])
            mean = sum(group) / group_size
            found = (sum((w - mean) ** 2 for w in group), 0.0, mean)  # one level for all
            for codes in itertools.combinations_with_replacement(range(2**bits), group_size):
                middle = sum(codes) / group_size
                spread = sum((k - middle) ** 2 for k in codes)
                if spread == 0:
                    continue
                scale = sum(w * (k - middle) for w, k in zip(group, codes)) / spread
                offset = mean - scale * middle
                error = sum((offset + scale * k - w) ** 2 for w, k in zip(group, codes))
                found = min(found, (error, scale, offset))
            scales[-1].append(found[1])
            offsets[-1].append(found[2])
    return scales, offsets


def cases():
    return [
        ("one group of five weights, 2 bits", (torch.tensor([[-0.31, 0.74, 0.12, 0.55, -0.08]]), 2, 5)),
        ("two groups in each of two rows", (short(1, 2, 12), 2, 6)),
        ("3 bits, groups of six", (short(2, 1, 18), 3, 6)),
        ("weights that are exactly on a grid, with one unused level", (torch.tensor([[0.5, 0.25, 1.0, 0.5]]), 2, 4)),
        ("a group of equal weights", (torch.tensor([[0.3, 0.3, 0.3, -0.4, 0.1, 0.35]]), 2, 3)),
        ("an outlier", (torch.tensor([[0.11, -0.42, 0.27, 4.0, -0.16, 0.33, 0.02]]), 2, 7)),
        ("two clusters", (torch.tensor([[-1.02, -0.95, -0.9, 0.61, 0.7, 0.76, 1.03]]), 2, 7)),
        ("groups of ten, more of them than rows", (short(3, 2, 30), 2, 10)),
        ("weights that are all negative", (torch.tensor([[-0.52, -0.71, -0.94, -0.6, -0.66, -1.3]]), 2, 6)),
        ("four rows of groups of eight", (short(4, 4, 16), 2, 8)),
    ]


def errors(returned, arguments):
    """The sum of squared errors of each group, ``[out, groups]``, with the scale and offset that were ``returned``."""
    weight, bits, group_size = arguments
    if returned is None:
        return None
    rows, groups = len(weight), weight.shape[1] // group_size
    wanted = f"return scale and offset, both of shape [{rows}, {groups}]"
    if not isinstance(returned, list | tuple) or len(returned) != 2:
        raise ValueError(f"{wanted}; found a {type(returned).__name__}")
    try:
        scale, offset = (to_array(part).astype(np.float64) for part in returned)
    except NotNumbers as problem:
        raise ValueError(f"{wanted}; found {problem}") from None
    if scale.shape != (rows, groups) or offset.shape != (rows, groups):
        raise ValueError(f"{wanted}; found {list(scale.shape)} and {list(offset.shape)}")
    levels = offset[..., None] + scale[..., None] * np.arange(2**bits)  # [out, groups, levels]
    grouped = weight.double().numpy().reshape(rows, groups, group_size)
    nearest = np.abs(grouped[..., None] - levels[:, :, None]).min(axis=-1)
    error = np.square(nearest).sum(axis=-1)
    return np.where(error < ZERO, 0, error)


@solution
def right(weight, bits, group_size):
    levels = 2**bits
    grouped = weight.double().reshape(len(weight), -1, group_size)
    w = grouped.sort(dim=-1).values[:, :, None]  # [out, groups, 1, group_size]
    codes = torch.tensor(list(itertools.combinations_with_replacement(range(levels), group_size))).double()
    codes = codes[codes[:, 0] < codes[:, -1]]  # [ways, group_size]
    mean, middle = w.mean(-1), codes.mean(-1)
    k = codes - middle[:, None]
    scale = (w * k).sum(-1) / k.square().sum(-1)  # [out, groups, ways]
    offset = mean - scale * middle
    off = offset[..., None] + scale[..., None] * codes - w
    error = off.square().sum(-1)
    least = error.argmin(-1, keepdim=True)
    scale, offset = scale.gather(-1, least)[..., 0], offset.gather(-1, least)[..., 0]
    return scale, offset


def whole_range(weight, bits, group_size):
    grouped = weight.double().reshape(len(weight), -1, group_size)
    low, high = grouped.amin(-1), grouped.amax(-1)
    return (high - low) / (2**bits - 1), low


def line_through(grouped, codes, scale, offset):
    """The least-squares line through weights over their codes; the old line if a group has only one code."""
    k = codes - codes.mean(-1, keepdim=True)
    spread = k.square().sum(-1)
    fitted = (grouped * k).sum(-1) / spread.clamp(min=1e-30)
    scale = torch.where(spread > 0, fitted, scale)
    return scale, torch.where(spread > 0, grouped.mean(-1) - scale * codes.mean(-1), offset)


def back_and_forth(weight, bits, group_size, rounds):
    grouped = weight.double().reshape(len(weight), -1, group_size)
    scale, offset = whole_range(weight, bits, group_size)
    for _ in range(rounds):
        step = torch.where(scale == 0, 1, scale)[..., None]
        codes = ((grouped - offset[..., None]) / step).round().clamp(0, 2**bits - 1)
        scale, offset = line_through(grouped, codes, scale, offset)
    return scale, offset


def cheapest(weight, bits, group_size, tried):
    """The cheapest grid of each group, out of the grids ``tried`` (pairs of scale and offset)."""
    costs = torch.stack([torch.from_numpy(errors(grid, (weight, bits, group_size))) for grid in tried])
    place = costs.argmin(0, keepdim=True)
    return tuple(torch.stack(part).gather(0, place)[0] for part in zip(*tried))


def shrunk(weight, bits, group_size, ends):
    """The best narrowed range: each pair in ``ends`` gives the hundredths cut off the lower and the upper end."""
    scale, low = whole_range(weight, bits, group_size)
    width = scale * (2**bits - 1)
    tried = [(scale * (1 - (a + b) / 100), low + width * a / 100) for a, b in ends]
    return cheapest(weight, bits, group_size, tried)


def alike(weight, bits, group_size):
    return shrunk(weight, bits, group_size, [(i, i) for i in range(40)])


def each_end(weight, bits, group_size):
    return shrunk(weight, bits, group_size, [(a, b) for a in range(0, 40, 5) for b in range(0, 40, 5)])


def whole_zero_points(weight, bits, group_size):
    grouped = weight.double().reshape(len(weight), -1, group_size).sort(dim=-1).values[:, :, None]
    ways = torch.tensor(list(itertools.combinations_with_replacement(range(2**bits), group_size))).double()
    tried = []
    for zero in range(2**bits):
        k = ways - zero
        scale = (grouped * k).sum(-1) / k.square().sum(-1).clamp(min=1e-30)  # [out, groups, ways]
        cost = (scale[..., None] * k - grouped).square().sum(-1)
        scale = scale.gather(-1, cost.argmin(-1, keepdim=True))[..., 0]
        tried.append((scale, -zero * scale))
    return cheapest(weight, bits, group_size, tried)


RETURN, ENDS = "return scale, offset", "codes[:, 0] < codes[:, -1]"
SQUARES = "off.square().sum(-1)"
SCALE, OFFSET = "(w * k).sum(-1) / k.square().sum(-1)", "mean - scale * middle"

MISTAKES = {
    "this is the grid over the whole range, from the smallest weight to the largest. That grid is best for the worst "
    "weight; find the one with the least sum of squares.": whole_range,
    "you rounded on the whole range, and fitted one least-squares line through the codes. With the new line, some "
    "codes change, and another line is better.": lambda w, b, s: back_and_forth(w, b, s, 1),
    "you went back and forth, codes then line, until nothing changed. This ends in the valley nearest to the start, "
    "but another valley is deeper.": lambda w, b, s: back_and_forth(w, b, s, 60),
    "the offset is always the smallest weight, so that weight is met exactly. The best offset need not be a "
    "weight.": right.edit(
        (SCALE, "((w - w[..., :1]) * codes).sum(-1) / codes.square().sum(-1)"), (OFFSET, "w[..., 0] + 0 * scale")
    ),
    "only the offset is searched: the scale is that of the whole range.": right.edit(
        SCALE, "(w[..., -1] - w[..., 0]) / (levels - 1) + 0 * middle"
    ),
    "the offset is a whole number of scales, as if a zero point were stored. Here it may be any number.": (
        whole_zero_points
    ),
    "the range is narrowed step by step, by the same amount at both ends, as in the package's search. The best grid "
    "may need a different amount at each end, and is usually between such steps.": alike,
    "you tried ranges step by step, each end by itself. This comes near the best grid but does not reach it: for given "
    "codes, a formula gives the best scale and offset.": each_end,
    "you took the line with the least sum of |error|. Take the one with the least sum of squares.": right.edit(
        SQUARES, "off.abs().sum(-1)"
    ),
    "you took the line whose largest error is least. Take the one with the least sum of squares.": right.edit(
        SQUARES, "off.abs().amax(-1)"
    ),
    "you took the line with the largest error.": right.edit("argmin", "argmax"),
    "the smallest weight always gets code 0, and the largest weight the last code. In the best grid, a level at an end "
    "may be unused.": right.edit(ENDS, "(codes[:, 0] == 0) & (codes[:, -1] == levels - 1)"),
    "you did not allow empty levels between two used ones: this excludes the best grid if the weights form clusters.": (
        right.edit(ENDS, "(codes[:, 0] < codes[:, -1]) & (codes.diff(dim=1) <= 1).all(dim=1)")
    ),
    "you used every level for some weight. The best grid may leave any of them empty.": right.edit(
        ENDS, "(codes[:, 0] == 0) & (codes[:, -1] == levels - 1) & (codes.diff(dim=1) <= 1).all(dim=1)"
    ),
    "there is one level too few: codes run from 0 to 2**bits - 1.": right.edit("2**bits", "2**bits - 1"),
    "there is one level too many: codes run from 0 to 2**bits - 1.": right.edit("2**bits", "2**bits + 1"),
    "you gave ascending codes to the weights in their stored order. Sort them first.": right.edit(
        "grouped.sort(dim=-1).values", "grouped"
    ),
    "your groups consist of every n-th weight. Neighbours in a row form a group.": right.edit(
        "reshape(len(weight), -1, group_size)", "reshape(len(weight), group_size, -1).transpose(1, 2)"
    ),
    "scale and offset are swapped: return scale first.": right.edit(RETURN, "return offset, scale"),
    "the offset is given in steps. A level is offset + scale * code: the offset has the unit of the weights.": (
        right.edit(RETURN, "return scale, offset / scale.clamp(min=1e-9)")
    ),
    "the offset has the wrong sign: a level is offset + scale * code.": right.edit(RETURN, "return scale, -offset"),
    "the offset is the middle of the levels. It is the lowest level, that of code 0.": right.edit(
        RETURN, "return scale, offset + scale * (levels - 1) / 2"
    ),
    "this is the range of the levels, from the first to the last. The scale is one step of it: divide by "
    "2**bits - 1.": right.edit(RETURN, "return scale * (levels - 1), offset"),
    "scale and offset are rounded to 16 bits. Here nothing is stored: keep all digits.": right.edit(
        RETURN, "return scale.half(), offset.half()"
    ),
}

BEST = Exercise(
    name="rtn.best",
    title="The best grid of a group, exactly",
    difficulty=4,
    minutes=60,
    reference=best,
    cases=cases,
    outputs=("squared error of each group",),
    mistakes=MISTAKES,
    tolerance=1e-5,  # the error of a squared error in float32; the next best valley differs by more
    seen=errors,
)
