"""``rtn.fit``: the grid of every group."""

from functools import partial

import numpy as np
import torch

from qtutor.core.grid import IntGrid
from qtutor.course.exercises.adapting import tensor
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.rtn.inputs import CHAPTER, random
from qtutor.errors import QtutorError
from qtutor.methods.rtn import fit_groups as packages_own


def fit(weight, bits, group_size, symmetric):
    columns = weight.shape[1]
    scales, zeros = [], []
    for row in weight.tolist():
        groups = [row[start : start + group_size] for start in range(0, columns, group_size)]
        low, high = [min([0.0, *group]) for group in groups], [max([0.0, *group]) for group in groups]
        if symmetric:
            high = [max(-a, b) for a, b in zip(low, high)]
            low = [-b for b in high]
        scale = [float(np.float16((b - a) / (2**bits - 1))) or 1.0 for a, b in zip(low, high)]
        zeros.append([2 ** (bits - 1) if symmetric else min(round(-a / s), 2**bits - 1) for a, s in zip(low, scale)])
        scales.append(scale)
    return scales, zeros


def fit_cases():
    return [
        ("one group of four weights", (torch.tensor([[-0.1, 0.8, 0.3, 0.55]]), 4, 4, False)),
        ("two groups in each of two rows", (random(1, 2, 8), 4, 4, False)),
        ("weights that are all positive", (torch.tensor([[0.5, 0.7, 0.9, 0.6]]), 4, 4, False)),
        ("weights that are all negative", (torch.tensor([[-0.5, -0.7, -0.9, -0.6]]), 4, 4, False)),
        ("a group of nothing but zeros", (torch.tensor([[0.0, 0.0, 0.0, 0.3, -0.2, 0.1]]), 3, 3, False)),
        ("a symmetric grid, the largest weight positive", (torch.tensor([[-0.31, 0.82, 0.3, 0.0]]), 4, 4, True)),
        ("a symmetric grid, the largest weight negative", (torch.tensor([[-0.77, 0.31, 0.6, 0.2]]), 3, 4, True)),
        ("more groups than rows, 2 bits, symmetric", (random(2, 2, 12), 2, 2, True)),
        ("as many groups as weights in one, 8 bits", (random(3, 3, 16), 8, 4, False)),
        ("8 bits: zero from the stored scale", (torch.tensor([[-0.261, 0.408, 0.1, -0.05]]), 8, 4, False)),
        ("an outlier in one group", (torch.cat([random(4, 2, 6), 40 * random(5, 2, 6)], dim=1), 5, 6, False)),
        ("a symmetric grid with zeros", (torch.tensor([[0.0, 0.0, -0.4, 0.25]]), 8, 2, True)),
        ("weights so small that a 16-bit scale has few digits left", (torch.tensor([[-1e-6, -4e-7]]), 4, 2, False)),
    ]


def _fit_with(
    weight,
    bits,
    group_size,
    symmetric,
    levels=0,
    widen=True,
    half=True,
    cut=False,
    sign=-1,
    guard=True,
    divisor=None,
    computed=False,
    grouping="rows",
    zero_from_exact=False,
):
    """Scale and zero with one slip or another; without any it is right."""
    rows, columns = weight.shape
    groups = columns // group_size
    grouped = weight.double().reshape(rows, groups, group_size)
    if grouping == "strided":
        grouped = weight.double().reshape(rows, group_size, groups).transpose(1, 2)
    elif grouping == "row":
        grouped = weight.double().reshape(rows, 1, columns).expand(rows, groups, columns)
    elif grouping == "tensor":
        grouped = weight.double().reshape(1, 1, -1).expand(rows, groups, rows * columns)
    dim = 1 if grouping == "axis" else -1
    low, high = grouped.amin(dim=dim), grouped.amax(dim=dim)
    if widen:
        low, high = low.clamp(max=0), high.clamp(min=0)
    if symmetric and divisor != "ignored":
        high = torch.maximum(low.abs(), high.abs())
        low = -high
    exact = (high - low) / (2**bits - 1 + levels)
    if symmetric and callable(divisor):
        exact = high / divisor(bits)
    scale = exact.half().double() if half else exact
    if guard:
        scale = torch.where(scale == 0, 1.0, scale)
    zero = sign * low / (exact.clamp(min=1e-9) if zero_from_exact else scale)
    zero = zero.trunc() if cut else zero.round()
    if widen and sign == -1:
        zero = zero.clamp(0, 2**bits - 1)
    if symmetric and divisor != "ignored" and not computed:
        zero = torch.full_like(scale, 2 ** (bits - 1))
    return scale, zero


FIT_MISTAKES = {
    "you divided the range by 2**bits. There are 2**bits levels, but one step fewer between them: 2**bits - 1.": dict(
        levels=1
    ),
    "you divided the range by 2**bits - 2, one step too few. 2**bits levels have 2**bits - 1 steps between them.": dict(
        levels=-1
    ),
    "the range does not contain 0. Take low = min(low, 0) and high = max(high, 0): otherwise a group on one side of 0 "
    "gets a zero point outside of the codes, and 0 is not met.": dict(widen=False),
    "the scale is not rounded to 16 bits. It will be stored as float16, so round it (.half().float()) before the zero "
    "point is computed from it.": dict(half=False),
    "the zero point is computed from the exact scale. The one that counts is the stored one, of 16 bits.": dict(
        zero_from_exact=True
    ),
    "the zero point is cut off (.int(), //) where it should be rounded to the nearest whole number.": dict(cut=True),
    "the zero point has the wrong sign: it is the code that means 0, so zero = round(-low / scale).": dict(sign=1),
    "a group of nothing but zeros has scale 0, and nothing can be divided by it: give it scale 1.": dict(guard=False),
    "on the symmetric grid you divided the largest weight by 2**(bits-1) - 1. The lowest level is then never used; "
    "divide by 2**bits / 2 - 0.5, which is the range from -largest to largest over 2**bits - 1.": dict(
        divisor=lambda bits: 2 ** (bits - 1) - 1
    ),
    "on the symmetric grid you divided the largest weight by 2**(bits-1). The last positive level then lies a whole "
    "step below it; divide by 2**bits / 2 - 0.5.": dict(divisor=lambda bits: 2 ** (bits - 1)),
    "the symmetric grid is treated like the other one. Make its range symmetric first: from -largest to largest.": dict(
        divisor="ignored"
    ),
    "on the symmetric grid the zero point is not computed: it is always the middle code, 2**(bits-1).": dict(
        computed=True
    ),
    "a group is made of every n-th weight. Neighbours in a row belong together: reshape to [out, groups, group_size], "
    "in this order.": dict(grouping="strided"),
    "smallest and largest are taken along the wrong axis. In [out, groups, group_size] it is the last.": dict(
        grouping="axis"
    ),
    "all groups of a row have the same scale: smallest and largest are those of the whole row.": dict(grouping="row"),
    "all groups have the same scale: smallest and largest are those of the whole matrix.": dict(grouping="tensor"),
}


def adapt_fit(theirs):
    """A learner's ``scale_and_zero`` in place of :func:`qtutor.rtn.fit_groups`."""

    def fit_groups(grouped, grid):
        if not isinstance(grid, IntGrid):
            return packages_own(grouped, grid)  # levels that are listed are another chapter's
        rows, groups, length = grouped.shape
        scale, zero = theirs(grouped.reshape(rows, groups * length), grid.bits, length, grid.symmetric)
        scale, zero = tensor(scale, torch.float16, grouped), tensor(zero, torch.uint8, grouped)
        if not torch.isfinite(scale).all():
            raise QtutorError("your rtn.fit made a scale that float16 (up to 65504) does not hold. Check the weights.")
        return scale, zero

    return fit_groups


FIT = Exercise(
    name="rtn.fit",
    chapter=CHAPTER,
    title="Scale and zero point of every group",
    difficulty=2,
    minutes=15,
    reference=fit,
    cases=fit_cases,
    outputs=("scale", "zero"),
    mistakes={text: partial(_fit_with, **slip) for text, slip in FIT_MISTAKES.items()},
    properties=(
        (
            "a zero point is itself a code, from 0 to 2**bits - 1.",
            lambda arguments, results: bool(((results[1] >= 0) & (results[1] < 2 ** arguments[1])).all()),
        ),
    ),
    replaces="qtutor.methods.rtn.fit_groups",
    adapt=adapt_fit,
)
