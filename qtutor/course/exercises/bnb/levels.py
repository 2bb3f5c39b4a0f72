"""``bnb.levels``: compute the levels of NF4 from the normal distribution."""

from statistics import NormalDist

import torch

from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise


def levels(offset, negatives, positives):
    quantile = NormalDist().inv_cdf
    found = [0.0]
    for count, sign in ((negatives, -1), (positives, 1)):
        for i in range(count):  # count equal steps lead from offset to one half; one half itself is left out
            found.append(sign * quantile(offset - i * (offset - 0.5) / count))
    return [value / max(found) for value in sorted(found)]


def cases():
    return [
        ("2 bits: one level below zero, two above", (0.8, 1, 2)),
        ("3 bits: three below zero, four above", (0.9, 3, 4)),
        ("NF4: seven below zero, eight above", (0.9677083, 7, 8)),
        ("more levels below zero than above", (0.95, 4, 3)),
        ("as many below zero as above", (0.9, 5, 5)),
        ("none below zero", (0.9, 0, 4)),
    ]


@solution
def right(offset, negatives, positives):
    def side(count):
        shares = torch.linspace(offset, 0.5, count + 1, dtype=torch.float64)
        return torch.special.ndtri(shares[:-1])

    found = torch.cat([-side(negatives), torch.zeros(1), side(positives)])
    return (found / found.max()).sort().values


MISTAKES = {
    "the levels are not divided by the largest of them. The outermost have to be -1 and 1, since weights are divided "
    "by their block's absmax.": right.edit(" / found.max()", ""),
    "the levels are divided by the distance from the lowest to the highest. Divide by the largest, and the outermost "
    "are -1 and 1.": right.edit("found.max()", "(found.max() - found.min())"),
    "the share 0.5 is not left out. Its quantile is 0, which is a level already: take one step more, and leave "
    "the last one out.": right.edit(("count + 1", "count"), ("[:-1]", "")),
    "the wrong end is left out. The first share, offset, gives the outermost level; the last, 0.5, gives another "
    "0.": right.edit("[:-1]", "[1:]"),
    "both ends are left out. Leave out only 0.5: offset gives the outermost level.": (
        right.edit(("count + 1", "count + 2"), ("[:-1]", "[1:-1]"))
    ),
    "0.5 is still among the shares, so that 0, its quantile, is there more than once: [:-1] leaves it out, on both "
    "sides.": right.edit("[:-1]", ""),
    "0.5 is still among the shares, so that 0, its quantile, is there twice: leave 0.5 out on both sides, and put in a "
    "single 0.": right.edit(("[:-1]", ""), ("torch.zeros(1), ", "")),
    "there is no level 0.": right.edit("torch.zeros(1), ", ""),
    "the two sides are exchanged: the first number counts the levels below zero, the second those above.": (
        right.edit("(offset, negatives, positives)", "(offset, positives, negatives)")
    ),
    "both sides have as many levels as the upper one. The lower has its own number, so its shares are further "
    "apart.": right.edit("side(negatives)", "side(positives)"),
    "the lower side is not below zero: its quantiles have to be negated.": right.edit("-side", "side"),
    "the levels do not ascend. Quantiles from offset down to 0.5 descend: sort the levels, or reverse the upper "
    "side.": right.edit(".sort().values", ""),
    "the levels are evenly spaced. The shares are evenly spaced; the levels are their quantiles, "
    "torch.special.ndtri.": right.edit("torch.special.ndtri(shares[:-1])", "shares[:-1] - 0.5"),
    "you took one run of shares from 1 - offset to offset. Then 0 is a level only by chance: each side has a run of "
    "its own, and 0 is put in between.": right.edit(
        "torch.cat([-side(negatives), torch.zeros(1), side(positives)])",
        "torch.special.ndtri(torch.linspace(1 - offset, offset, negatives + 1 + positives, dtype=torch.float64))",
    ),
    "the levels are divided by offset. Divide by the largest of them, so that the outermost are -1 and 1.": (
        right.edit("found.max()", "offset")
    ),
    "erfinv is not the quantile: that is sqrt(2) * erfinv(2 * share - 1). torch.special.ndtri gives it directly.": (
        right.edit("torch.special.ndtri(", "torch.erfinv(")
    ),
    "erf is the share of a bell between two numbers; you need the number below which a share lies, "
    "torch.special.ndtri.": right.edit("torch.special.ndtri(", "torch.erf("),
    "these are quantiles of another curve, not of the bell (torch.logit belongs to the logistic curve): use "
    "torch.special.ndtri.": right.edit("torch.special.ndtri(", "torch.logit("),
    "the shares are the middles of the steps. The first is offset itself, and one step of (offset - 0.5) / count leads "
    "to the next.": right.edit("shares[:-1]", "(shares[:-1] + shares[1:]) / 2"),
    "offset is not used: the shares begin at 1. The quantile of 1 is infinite, which is why they begin at offset.": (
        right.edit(("linspace(offset, 0.5, count + 1", "linspace(1, 0.5, count + 2"), ("[:-1]", "[1:-1]"))
    ),
    "both sides have as many levels as the lower one. The upper has its own number, so its shares are closer "
    "together.": right.edit("side(positives)", "side(negatives)"),
    "the levels descend; return them from -1 up to 1.": right.edit("sort().values", "sort(descending=True).values"),
    "the sign of every level is reversed: the levels below zero are in the places of those above.": (
        right.edit("return (found / found.max()).sort().values", "return -(found / found.max()).sort().values")
    ),
    "the sides are exchanged in sign: negate the quantiles of the lower side, not those of the upper.": (
        right.edit(
            ("-side(negatives)", "side(negatives)"),
            (", side(positives)", ", -side(positives)"),
            ("found.max()", "found.abs().max()"),
        )
    ),
    "0 is there twice. Neither side contains it; put a single 0 in between.": right.edit("zeros(1)", "zeros(2)"),
    "the levels are rounded to 16 bits. Leave them in float32 or float64.": (
        right.edit("(found / found.max())", "(found / found.max()).half()")
    ),
    "the levels are rounded to a few digits (here, four decimal places). Leave them as they are.": (
        right.edit("(found / found.max())", "(found / found.max()).round(decimals=4)")
    ),
    "you took the share of the bell below a number (ndtr); you need its inverse, the number below which a share lies "
    "(ndtri).": right.edit("ndtri", "ndtr"),
}


LEVELS = Exercise(
    name="bnb.levels",
    title="Levels at quantiles of the bell",
    difficulty=2,
    minutes=15,
    reference=levels,
    cases=cases,
    outputs=("levels",),
    mistakes=MISTAKES,
    properties=(
        (
            "the levels ascend, each above the one before.",
            lambda arguments, results: bool((results[0][1:] > results[0][:-1]).all()),
        ),
        (
            "one of the levels is exactly 0.",
            lambda arguments, results: bool((results[0] == 0).any()),
        ),
        (
            "the largest level is 1: divide all of them by the largest.",
            lambda arguments, results: bool(abs(results[0].max() - 1) < 1e-5),
        ),
    ),
    # A probability in float32 is off by up to 6e-8, and the quantile next to 0 by about three times that: 2e-6 of 0.08.
    tolerance=1e-5,
)
