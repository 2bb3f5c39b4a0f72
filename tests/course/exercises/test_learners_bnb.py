"""Chapter 04 as learners would write it: more answers, and for each wrong one the message that names its mistake.

The answers are not written like the exercise's own solution. So check cannot recognise a mistake by its text.
"""

import math

import numpy as np
import pytest
import torch

from qtutor.course.exercises.edits import solution
from tests.course.answers import assert_mistakes_differ, assert_named, assert_right, each

# --- levels ---


@solution
def halves(offset, negatives, positives):
    low = torch.linspace(offset, 0.5, negatives + 1, dtype=torch.float64)[:negatives]
    high = torch.linspace(offset, 0.5, positives + 1, dtype=torch.float64)[:positives]
    low, high = -torch.special.ndtri(low), torch.special.ndtri(high).flip(0)
    levels = torch.cat((low, torch.zeros(1, dtype=torch.float64), high))
    return levels / levels[-1]


def levels_by_erfinv(offset, negatives, positives):
    def side(count):
        return [
            math.sqrt(2) * torch.erfinv(torch.tensor(2 * (offset - i * (offset - 0.5) / count) - 1.0)).item()
            for i in range(count)
        ]

    found = [-q for q in side(negatives)] + [0.0] + side(positives)
    return sorted(q / max(found) for q in found)


def levels_of_negative_shares(offset, negatives, positives):
    low = torch.special.ndtri(torch.linspace(1 - offset, 0.5, negatives + 1, dtype=torch.float64)[:-1])
    high = torch.special.ndtri(torch.linspace(0.5, offset, positives + 1, dtype=torch.float64)[1:])
    found = torch.cat([low, torch.tensor([0.0]), high])
    return (found / found.abs().max()).float()


LOW, HIGH = "torch.special.ndtri(low)", "torch.special.ndtri(high).flip(0)"


def of_both(function, *pairs):
    """An edit of ``halves`` that uses ``function`` for the quantiles of both sides."""
    return halves.edit((LOW, function.format("low")), (HIGH, f"{function.format('high')}.flip(0)"), *pairs)


SHARES_LOW = "torch.linspace(offset, 0.5, negatives + 1, dtype=torch.float64)[:negatives]"
SHARES_HIGH = "torch.linspace(offset, 0.5, positives + 1, dtype=torch.float64)[:positives]"


def with_shares(text):
    return halves.edit((SHARES_LOW, text.format(n="negatives")), (SHARES_HIGH, text.format(n="positives")))


WRONG_LEVELS = [
    (halves.edit("/ levels[-1]", "/ offset"), "divided by offset"),
    (halves.edit("/ levels[-1]", "/ levels.sum()"), "the largest level is 1"),
    (halves.edit("/ levels[-1]", "/ levels.norm()"), "the largest level is 1"),
    (halves.edit("/ levels[-1]", ""), "not divided by the largest"),
    (halves.edit("/ levels[-1]", "/ (levels[-1] - levels[0])"), "from the lowest to the highest"),
    (of_both("torch.erfinv({})"), "erfinv is not the quantile"),
    (of_both("(math.sqrt(2) * torch.erfinv({}))"), "erfinv is not the quantile"),
    (of_both("torch.erf({})"), "erf is the share"),
    (of_both("torch.logit({})"), "another curve, not of the bell"),
    (of_both("({} - 0.5)"), "the levels are evenly spaced"),
    (with_shares("torch.linspace(offset, 0.5, {n} + 2, dtype=torch.float64)[1:-1]"), "both ends are left out"),
    (with_shares("torch.linspace(offset, 0.5, {n} + 1, dtype=torch.float64)[1:]"), "the wrong end is left out"),
    (with_shares("torch.linspace(offset, 0.5, {n}, dtype=torch.float64)"), "the share 0.5 is not left out"),
    (with_shares("(0.5 + (torch.arange({n}, 0, -1) - 0.5) / {n} * (offset - 0.5))"), "middles of the steps"),
    (with_shares("torch.linspace(1.0, 0.5, {n} + 2, dtype=torch.float64)[1:-1]"), "offset is not used"),
    (halves.edit(SHARES_HIGH, SHARES_HIGH.replace("positives", "negatives")), "as many levels as the lower one"),
    (halves.edit(SHARES_LOW, SHARES_LOW.replace("negatives", "positives")), "as many levels as the upper one"),
    (halves.edit("return levels / levels[-1]", "return (levels / levels[-1]).flip(0)"), "levels descend"),
    (halves.edit("return levels", "return -levels"), "the sign of every level is reversed"),
    (halves.edit("torch.zeros(1, dtype=torch.float64), ", ""), "there is no level 0"),
    (halves.edit("torch.zeros(1, dtype", "torch.zeros(2, dtype"), "0 is there twice"),
    (halves.edit("levels / levels[-1]", "(levels / levels[-1]).half()"), "rounded to 16 bits"),
    (halves.edit("levels / levels[-1]", "(levels / levels[-1]).round(decimals=4)"), "rounded to a few digits"),
]

# --- codes ---


@solution
def nearest(weight, absmax, levels):
    blocks = weight.float().reshape(len(weight), absmax.shape[1], -1)
    top = torch.where(absmax > 0, absmax, torch.ones_like(absmax))
    scaled = blocks / top.unsqueeze(2)
    distance = (scaled.unsqueeze(3) - levels).abs()
    return distance.min(dim=3).indices.flatten(1)


def codes_by_squares(weight, absmax, levels):
    length = weight.shape[1] // absmax.shape[1]
    rows = []
    for r in range(weight.shape[0]):
        row = []
        for c in range(weight.shape[1]):
            top = float(absmax[r, c // length])
            w = float(weight[r, c]) / top if top else 0.0
            squares = [(w - float(level)) ** 2 for level in levels]
            row.append(squares.index(min(squares)))
        rows.append(row)
    return np.array(rows, np.uint8)


def codes_by_nan_to_num(weight, absmax, levels):
    relative = torch.nan_to_num(
        weight.double() / absmax.double().repeat_interleave(weight.shape[1] // absmax.shape[1], 1)
    )
    return torch.cdist(relative.reshape(-1, 1), levels.double()[:, None], p=1).argmin(1).reshape(weight.shape)


def codes_of_scaled_levels(weight, absmax, levels):
    near = torch.isclose(levels, torch.tensor(0.0)).nonzero()[0, 0]
    spread = torch.kron(absmax.double(), torch.ones(1, weight.shape[1] // absmax.shape[1], dtype=torch.float64))
    codes = (weight.double()[..., None] - spread[..., None] * levels.double()).abs().argmin(-1)
    return torch.where(spread == 0, near, codes).tolist()


DISTANCE, TOP = "(scaled.unsqueeze(3) - levels).abs()", "torch.where(absmax > 0, absmax, torch.ones_like(absmax))"
WRONG_CODES = [
    (nearest.edit(TOP, "absmax + 1e-8"), "you added a small number to absmax"),
    (nearest.edit(TOP, "absmax + 1e-12"), "you added a small number to absmax"),
    (nearest.edit(TOP, "absmax.clamp(min=1e-8)"), "you added a small number to absmax"),
    (nearest.edit(TOP, "absmax.clamp(min=1e-5)"), "you added a small number to absmax"),
    (nearest.edit(TOP, "torch.where(absmax > 1e-8, absmax, 1.0)"), "you added a small number to absmax"),
    (nearest.edit(TOP, "absmax"), "no matter what levels[0] is"),
    (nearest.edit(DISTANCE, "(scaled.unsqueeze(3) + levels).abs()"), "you added the levels"),
    (nearest.edit(DISTANCE, "(scaled.unsqueeze(3) - levels)"), "without .abs()"),
    (nearest.edit(DISTANCE, "(scaled.abs().unsqueeze(3) - levels).abs()"), "lost the signs of the weights"),
    (nearest.edit("min(dim=3)", "max(dim=3)"), "furthest away"),
    (nearest.edit("min(dim=3).indices", "min(dim=3).values"), "the differences to the nearest levels"),
    (nearest.edit("distance.min(dim=3).indices", "levels[distance.min(dim=3).indices]"), "the levels themselves"),
    (nearest.edit(".flatten(1)", ".flatten(1) - len(levels) // 2"), "counted from the middle"),
    (nearest.edit(".flatten(1)", ".flatten(1) + 1"), "counted from 1"),
    (nearest.edit(".flatten(1)", ""), "is shape"),
    (nearest.edit(TOP, f"{TOP}.amax(dim=1, keepdim=True)"), "use the largest absmax of the row"),
    (nearest.edit(DISTANCE, "(scaled.bfloat16().unsqueeze(3) - levels.bfloat16()).abs()"), "compared in bfloat16"),
]

# --- inputs in int8 ---


@solution
def eight(x, threshold):
    big = torch.abs(x) >= threshold
    columns = big.sum(0) > 0
    small = torch.where(big, torch.zeros_like(x), x)
    top = small.abs().max(1).values
    step = top / 127
    ratio = small / torch.where(step > 0, step, 1.0)[:, None]
    codes = torch.round(ratio)
    codes[:, columns] = 0
    return codes.to(torch.int8), top, columns


def tokens_in_float64(x, threshold):
    v = x.numpy().astype(np.float64)
    outliers = (np.abs(v) >= threshold).any(0)
    absmax = np.array([max([abs(n) for n in row if abs(n) < threshold], default=0) for row in v])
    scale = np.divide(127, absmax, out=np.zeros_like(absmax), where=absmax > 0)
    return np.where(outliers, 0, np.round(v * scale[:, None])).tolist(), absmax.tolist(), outliers.tolist()


def tokens_one_by_one(x, threshold):
    outliers = x.abs().amax(0) >= threshold
    rows, tops = [], []
    for token in x:
        kept = token * (token.abs() < threshold)
        tops.append(kept.abs().max())
        rows.append(torch.nan_to_num(kept * 127 / tops[-1]).round() * ~outliers)
    return torch.stack(rows), torch.stack(tops), outliers


def in_floats(*pair):
    """An edit of ``eight`` without the conversion to int8, because codes that are out of range would wrap around."""
    return eight.edit(pair, ("codes.to(torch.int8)", "codes"))


BIG, MOST = "torch.abs(x) >= threshold", "small.abs().max(1).values"
SAFE = "torch.where(step > 0, step, 1.0)[:, None]"
WRONG_TOKENS = [
    (eight.edit("big.sum(0) > 0", "big.all(0)"), "all of its inputs are large"),
    (eight.edit("big.sum(0) > 0", "big.all(1)"), "outliers are tokens here"),
    (eight.edit("big.sum(0) > 0", "big.any(1)"), "two things: outliers are tokens"),
    (
        eight.edit(("big.sum(0) > 0", "big.any(1)"), ("codes[:, columns]", "codes[columns]")),
        "mistake: outliers are tokens here",
    ),
    (eight.edit("big.sum(0) > 0", "big.any().expand(x.shape[1])"), "any() of all inputs"),
    (eight.edit("big.sum(0) > 0", "big[0]"), "only the first token decides"),
    (eight.edit(BIG, "x >= threshold"), "compare |x|"),
    (eight.edit(BIG, "torch.abs(x) > threshold"), "exactly the threshold"),
    (eight.edit(MOST, "x.abs().max(1).values"), "absmax counts the outliers too"),
    (in_floats(MOST, "small.abs().max(0).values"), "taken down the columns"),
    (in_floats(MOST, "small.max(1).values"), "not the largest |x|"),
    (in_floats(MOST, "small.abs().mean(1)"), "the mean of |x|"),
    (eight.edit(MOST, "small.abs().max().repeat(len(x))"), "one absmax for all tokens"),
    (eight.edit(MOST, f"{MOST}.clamp(min=1e-8)"), "if a token has nothing but zeros"),
    (eight.edit(SAFE, "(step[:, None] + 1e-8)"), "you added a small number"),
    (eight.edit(SAFE, "step[:, None].clamp(min=1e-8)"), "you added a small number"),
    (in_floats(SAFE, "step[:, None]"), "0 / 0 is nan"),
    (eight.edit("torch.round(ratio)", "torch.floor(ratio)"), "rounded down"),
    (eight.edit("torch.round(ratio)", "torch.ceil(ratio)"), "rounded up"),
    (eight.edit("torch.round(ratio)", "torch.trunc(ratio)"), "codes are truncated"),
    (in_floats("torch.round(ratio)", "torch.floor(ratio + 0.5) + 128"), "128 is added"),
    (in_floats(f"small / {SAFE}", "small * 127.5 / torch.where(top > 0, top, 1.0)[:, None]"), "127.5"),
    (eight.edit("top / 127", "top / 128"), "go up to 128"),
    (eight.edit("codes[:, columns] = 0", "pass"), "only the large inputs have code 0"),
    (eight.edit("top, columns", "top[:, None], columns"), "is shape"),
    (eight.edit("top, columns", "step, columns"), "already divided by 127"),
    (eight.edit("top, columns", "columns, top"), "mistake: absmax and outliers are"),
    (eight.edit("top, columns", "top"), "3 values were expected"),
    (eight.edit("codes.to(torch.int8), top", "codes * step[:, None], top"), "the decoded values"),
]

# --- the product ---


@solution
def mixed(x, codes, absmax, outliers, weight, weight_absmax):
    x, c, w = x.double(), codes.double(), weight.double()
    t, r = absmax.double() / 127, weight_absmax.double() / 127
    whole = torch.einsum("ti,oi->to", c, w)
    rest = torch.einsum("ti,oi->to", x[:, outliers], w[:, outliers])
    return whole * t[:, None] * r[None, :] + rest * r[None, :]


def product_of_masked(x, codes, absmax, outliers, weight, weight_absmax):
    x = x.float().numpy() * outliers.numpy()
    y = np.diag(absmax.numpy()) @ (codes.numpy().astype(np.int64) @ weight.numpy().astype(np.int64).T) / 127
    return (y + x @ weight.numpy().T.astype(float)) * weight_absmax.numpy() / 127


def product_in_int32(x, codes, absmax, outliers, weight, weight_absmax):
    y = (codes.int() @ weight.int().T).float() * torch.outer(absmax, weight_absmax) / (127 * 127)
    dense = weight.float() * weight_absmax[:, None] / 127
    return (y + x[:, outliers].float() @ dense[:, outliers].T).tolist()


def product_token_by_token(x, codes, absmax, outliers, weight, weight_absmax):
    rows = []
    for t in range(len(x)):
        values = torch.where(outliers, x[t].double(), codes[t].double() * absmax[t].double() / 127)
        rows.append(
            [float(values @ (weight[o].double() * weight_absmax[o].double() / 127)) for o in range(len(weight))]
        )
    return rows


TO_END = "whole * t[:, None] * r[None, :] + rest * r[None, :]"
REST = 'torch.einsum("ti,oi->to", x[:, outliers], w[:, outliers])'
WRONG_PRODUCTS = [
    (mixed.edit(TO_END, "whole * t[None, :] * r[:, None] + rest * r[:, None]"), "along the wrong axes: absmax"),
    (mixed.edit(TO_END, "whole * t[None, :] * r[:, None] + rest * r[None, :]"), "wrong axes in the part of the codes"),
    (mixed.edit(TO_END, "whole * t[:, None] * r[:, None] + rest * r"), "rows of the result in the part of the codes"),
    (
        mixed.edit(TO_END, "whole * t[None, :] * r[None, :] + rest * r[None, :]"),
        "applied along the columns of the result",
    ),
    (
        mixed.edit(TO_END, "whole * t[:, None] * r[:, None] + rest * r[:, None]"),
        "applied along the rows of the result. It",
    ),
    (
        mixed.edit(TO_END, "whole * t[:, None] * r[None, :] + rest * r[:, None]"),
        "rows of the result in the part of the outliers",
    ),
    (mixed.edit(TO_END, "whole * t[:, None] * r[None, :]"), "the outlier channels are missing"),
    (mixed.edit(TO_END, "rest * r[None, :]"), "only the outlier channels are left"),
    (mixed.edit(TO_END, "whole * t[:, None] * r[None, :] - rest * r[None, :]"), "subtracted"),
    (mixed.edit(TO_END, "(whole + rest) * t[:, None] * r[None, :]"), "multiplied by the token's scale as well"),
    (mixed.edit(TO_END, "whole * t[:, None] * r[None, :] + rest"), "missing in the part of the outliers"),
    (mixed.edit(TO_END, "whole * t[:, None] + rest * r[None, :]"), "missing in the part of the codes"),
    (mixed.edit(TO_END, "whole * r[None, :] + rest * r[None, :]"), "the scale of the tokens is missing"),
    (mixed.edit(TO_END, "whole + rest * r[None, :]"), "to the product of the codes"),
    (mixed.edit(TO_END, "whole + rest"), "in either part"),
    (mixed.edit(TO_END, "whole * t[:, None] * r[None, :] + rest * r[None, :].square()"), "applied twice"),
    (mixed.edit(REST, 'torch.einsum("ti,oi->to", x, w)'), "runs over all channels"),
    (mixed.edit(REST, 'torch.einsum("ti,oi->to", x[:, ~outliers], w[:, ~outliers])'), "the wrong channels"),
    (mixed.edit(REST, 'torch.einsum("ti,oi->to", x[:, outliers].round(), w[:, outliers])'), "x is rounded"),
    (mixed.edit("absmax.double() / 127, weight", "absmax.double(), weight"), "the token's absmax is not divided"),
    (mixed.edit("weight_absmax.double() / 127", "weight_absmax.double()"), "the row's weight_absmax is not divided"),
    (
        mixed.edit(("absmax.double() / 127,", "absmax.double() / 128,"), ("max.double() / 127", "max.double() / 128")),
        "divided by 128",
    ),
    (
        mixed.edit(("absmax.double() / 127,", "absmax.double() / 255,"), ("max.double() / 127", "max.double() / 255")),
        "divided by 255",
    ),
    (mixed.edit(TO_END, f"({TO_END}).T"), "transposed"),
    (mixed.edit(TO_END, f"({TO_END}).round()"), "the result is rounded"),
]

WRONG = {
    "bnb.levels": WRONG_LEVELS,
    "bnb.encode": WRONG_CODES,
    "bnb.quantize_tokens": WRONG_TOKENS,
    "bnb.product": WRONG_PRODUCTS,
}
RIGHT = {
    "bnb.levels": [
        halves,
        levels_by_erfinv,
        levels_of_negative_shares,
        halves.edit("levels / levels[-1]", "[float(v) for v in levels / levels[-1]]"),
    ],
    "bnb.encode": [nearest, codes_by_squares, codes_by_nan_to_num, codes_of_scaled_levels],
    "bnb.quantize_tokens": [
        eight,
        tokens_in_float64,
        tokens_one_by_one,
        eight.edit("codes.to(torch.int8)", "codes.double()"),
    ],
    "bnb.product": [mixed, product_of_masked, product_in_int32, product_token_by_token],
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
