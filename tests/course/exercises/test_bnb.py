"""The exercises of chapter 04: check names the mistake in a wrong answer, and right answers pass in any form.

A wrong answer is an edit of a right answer, or a separate function if no edit can make it. The right answers differ
from the course's solution.
"""

from statistics import NormalDist

import numpy as np
import pytest
import torch

import qtutor
from qtutor import bnb, pipeline, rtn
from qtutor.core.grid import IntGrid
from qtutor.course import exercises, mine
from qtutor.course.checking import examine
from qtutor.course.exercises.edits import solution
from qtutor.course.workspace import answers
from tests.course.answers import assert_right, assert_told, each
from tests.models import groups_of, some_ids, tiny

# --- levels ---

quantile = NormalDist().inv_cdf


def shares(offset, count):
    return [offset + (0.5 - offset) * i / count for i in range(count)]


@solution
def quantiles(offset, negatives, positives):
    below = [-quantile(s) for s in shares(offset, negatives)]
    above = [quantile(s) for s in shares(offset, positives)]
    found = sorted([*below, 0.0, *above])
    return [value / found[-1] for value in found]


def levels_in_float32(offset, negatives, positives):
    above = torch.special.ndtri(torch.linspace(offset, 0.5, positives + 1)[:-1]).flip(0)
    below = -torch.special.ndtri(torch.linspace(offset, 0.5, negatives + 1)[:-1])
    return torch.cat([below, torch.zeros(1), above]) / above.max()


def levels_evenly(offset, negatives, positives):
    return [i / negatives for i in range(-negatives, 0)] + [i / positives for i in range(positives + 1)]


LOWER, UPPER, ZERO = "shares(offset, negatives)", "shares(offset, positives)", (" 0.0,", "")
WITH_THE_HALF = [(side, side.replace("shares(offset,", "np.linspace(offset, 0.5, 1 +")) for side in (LOWER, UPPER)]
WRONG_LEVELS = [
    (quantiles.edit("[value / found[-1] for value in found]", "found"), "not divided by the largest"),
    (
        quantiles.edit((LOWER, "np.linspace(offset, 0.5, negatives)"), (UPPER, "np.linspace(offset, 0.5, positives)")),
        "0.5 is not left out",
    ),
    (quantiles.edit((LOWER, f"[*{LOWER}, 0.5][1:]"), (UPPER, f"[*{UPPER}, 0.5][1:]")), "the wrong end is left out"),
    (quantiles.edit(ZERO), "there is no level 0"),
    (quantiles.edit("(offset, negatives, positives)", "(offset, positives, negatives)"), "the two sides are exchanged"),
    (quantiles.edit("-quantile", "quantile"), "the lower side is not below zero"),
    (quantiles.edit(("sorted(", "list("), ("found[-1]", "max(found)")), "do not ascend"),
    (
        quantiles.edit("for value in found]", "for value in found[negatives:] + found[:negatives]]"),
        "each above the one before",
    ),
    (levels_evenly, "evenly spaced"),
    (
        quantiles.edit(
            "sorted([*below, 0.0, *above])",
            "[quantile(s) for s in np.linspace(1 - offset, offset, negatives + positives + 1)]",
        ),
        "one run of shares",
    ),
    (quantiles.edit(("-quantile(s)", "-NormalDist().cdf(s)"), ("[quantile(s)", "[NormalDist().cdf(s)")), "(ndtr)"),
    (quantiles.edit("/ found[-1]", "/ (found[-1] - found[0])"), "from the lowest to the highest"),
    (quantiles.edit(*WITH_THE_HALF), "is there more than once"),
    (quantiles.edit(*WITH_THE_HALF, ZERO), "is there twice"),
]

# --- codes ---


@solution
def nearest(weight, absmax, levels):
    spread = np.repeat(absmax.double().numpy(), weight.shape[1] // absmax.shape[1], axis=1)
    values, codes = levels.double().numpy(), np.zeros(weight.shape)
    for at, w in np.ndenumerate(weight.double().numpy()):
        relative = w / (spread[at] or 1)
        codes[at] = np.abs(values - relative).argmin()
    return codes


@solution
def by_borders(weight, absmax, levels):
    ascending, order = levels.sort()
    spread = absmax.repeat_interleave(weight.shape[1] // absmax.shape[1], dim=1)
    relative = weight.float() / torch.where(spread == 0, 1, spread)
    found = torch.bucketize(relative, (ascending[1:] + ascending[:-1]) / 2)
    return order[found].to(torch.uint8)


def codes_with_nan(weight, absmax, levels):
    relative = weight.reshape(*absmax.shape, -1) / absmax[..., None]
    return (relative[..., None] - levels).abs().argmin(-1).reshape(weight.shape)


def codes_without_division(weight, absmax, levels):
    """Scale the levels for every block: right, except for a block of zeros, where all scaled levels are the same."""
    scaled = absmax[..., None] * levels  # [out, blocks, levels]
    grouped = weight.float().reshape(*absmax.shape, -1)
    return (grouped[..., None] - scaled[:, :, None]).abs().argmin(-1).reshape(weight.shape)


NEAREST = "np.abs(values - relative).argmin()"
SPREAD = "np.repeat(absmax.double().numpy(), weight.shape[1] // absmax.shape[1], axis=1)"
FOUND = "torch.bucketize(relative, (ascending[1:] + ascending[:-1]) / 2)"
UNSORTED = ("levels.sort()", "levels, torch.arange(len(levels))")
NAN = ("torch.where(spread == 0, 1, spread)", "spread")
WRONG_CODES = [
    (nearest.edit(" / (spread[at] or 1)", ""), "not divided by the absmax"),
    (
        nearest.edit(NEAREST, "np.clip(round((len(values) - 1) * (relative + 1) / 2), 0, len(values) - 1)"),
        "as if the levels were evenly spaced",
    ),
    (
        by_borders.edit(FOUND, "(torch.searchsorted(ascending, relative, right=True) - 1).clamp(min=0)"),
        "gets the level below it",
    ),
    (
        by_borders.edit(FOUND, "torch.searchsorted(ascending, relative).clamp(max=len(levels) - 1)"),
        "gets the level above it",
    ),
    (nearest.edit("levels.double()", "levels.double().sort().values"), "places among the sorted levels"),
    (nearest.edit(NEAREST, f"values[{NEAREST}]"), "these are the levels themselves"),
    (nearest.edit("values - relative", "np.abs(values) - abs(relative)"), "only the sizes are compared"),
    (nearest.edit("return codes", "return codes + 1"), "counted from 1"),
    (codes_with_nan, "no matter what levels[0] is"),
    (codes_without_division, "no matter what levels[0] is"),
    (by_borders.edit(UNSORTED), "mistake: bucketize and searchsorted need borders that ascend"),
    (by_borders.edit(UNSORTED, NAN), "two things: bucketize"),
    (by_borders.edit(NAN), "all codes are the last one"),
    (
        nearest.edit(SPREAD, "np.tile(absmax.double().numpy(), weight.shape[1] // absmax.shape[1])"),
        "neighbours share an absmax",
    ),
    (nearest.edit("absmax.double()", "absmax[:1].expand_as(absmax).double()"), "absmax of the first row"),
    (nearest.edit("spread[at] or 1", "weight[at[0]].double().abs().max().item() or 1"), "the largest of their row"),
    (nearest.edit("spread[at] or 1", "absmax.max().item()"), "divided by the same number"),
    (nearest.edit(NEAREST, "(relative - values).argmin()"), "without .abs()"),
    (nearest.edit("argmin", "argmax"), "furthest away"),
    (nearest.edit(NEAREST, f"spread[at] * values[{NEAREST}]"), "the decoded weights"),
]

# --- inputs in int8 ---


@solution
def tokens(x, threshold):
    values = x.double().numpy()
    large = np.abs(values) >= threshold
    outliers = large.any(axis=0)
    kept = np.where(large, 0, values)
    absmax = np.abs(kept).max(axis=1)
    codes = np.rint(kept / np.where(absmax > 0, absmax, 1)[:, None] * 127)
    codes[:, outliers] = 0
    return codes, absmax, outliers


def tokens_in_loops(x, threshold):
    outliers = [bool((x[:, i].abs() >= threshold).any()) for i in range(x.shape[1])]
    codes = torch.zeros(x.shape, dtype=torch.int8)
    absmax = torch.zeros(len(x))
    for t, token in enumerate(x):
        small = token[token.abs() < threshold]
        if len(small) and small.abs().max() > 0:
            absmax[t] = small.abs().max()
            for i, out in enumerate(outliers):
                if not out:
                    codes[t, i] = round((127 * token[i] / absmax[t]).item())
    return [codes, absmax, outliers]


def tokens_kept(x, threshold):
    large = x.abs() >= threshold
    absmax = x.masked_fill(large, 0).abs().amax(dim=1)
    codes = (x.masked_fill(large, 0) * 127 / torch.where(absmax == 0, 1, absmax)[:, None]).round()
    return codes.masked_fill(large.any(dim=0), 0).tolist(), absmax.tolist(), large.any(dim=0).int()


NOT_HIDDEN = ("    codes[:, outliers] = 0\n", "")
OF_OTHER_CHANNELS = ("np.abs(kept)", "np.abs(np.where(outliers, 0, values))")
WRONG_TOKENS = [
    (tokens.edit("np.abs(values) >=", "values >="), "compare |x|"),
    (tokens.edit(">= threshold", "> threshold"), "exactly the threshold"),
    (
        tokens.edit(
            "np.abs(values) >= threshold", "np.broadcast_to(np.abs(values).mean(0) >= threshold, values.shape)"
        ),
        "the mean of |x| decides",
    ),
    (tokens.edit("np.abs(kept)", "np.abs(values)"), "absmax counts the outliers too"),
    (tokens.edit(OF_OTHER_CHANNELS), "The paper describes it this way"),
    (tokens.edit("np.abs(kept).max(axis=1)", "np.full(len(values), np.abs(kept).max())"), "one absmax for all tokens"),
    (tokens.edit("127", "128"), "go up to 128"),
    (tokens.edit("np.rint", "np.trunc"), "codes are truncated"),
    (tokens.edit("np.rint", ""), "not rounded to whole numbers"),
    (tokens.edit(NOT_HIDDEN), "only the large inputs have code 0"),
    (solution(tokens_kept).edit("torch.where(absmax == 0, 1, absmax)", "absmax"), "0 / 0 is nan"),
    (
        tokens.edit("codes, absmax, outliers", "codes, absmax, np.flatnonzero(outliers)"),
        "the indices of the outlier channels",
    ),
    (tokens.edit("codes, absmax, outliers", "codes, absmax, ~outliers"), "True for the channels that stay in int8"),
    (
        tokens.edit(("any(axis=0)", "any(axis=1)"), ("codes[:, outliers]", "codes[outliers]")),
        "outliers are tokens here",
    ),
    (tokens.edit("codes, absmax, ", "codes, absmax / 127, "), "already divided by 127"),
    (tokens.edit("codes, absmax, ", "codes, np.where(absmax == 0, 1, absmax), "), "Put 1 in its place only when"),
    (tokens.edit("np.where(large, 0, values)", "values.clip(-threshold, threshold)"), "clamped to the threshold"),
    (
        tokens.edit(OF_OTHER_CHANNELS, ("kept /", "values /"), NOT_HIDDEN),
        "two things: outlier channels still have codes",
    ),
    (tokens.edit("return codes", "return (codes + 128).astype(np.uint8)"), "128 is added"),
    (
        tokens.edit(("np.abs(kept).max(axis=1)", "np.abs(kept).max(axis=0)"), ("[:, None]", "")),
        "taken down the columns",
    ),
    (tokens.edit(NOT_HIDDEN, ("absmax, outliers", "absmax, large")), "outliers has one bool for every input"),
    (tokens.edit("codes, absmax, outliers", "outliers, absmax, codes"), "in the wrong order"),
]

# --- the product ---


@solution
def product(x, codes, absmax, outliers, weight, weight_absmax):
    x, absmax, weight_absmax = x.double().numpy(), absmax.double().numpy(), weight_absmax.double().numpy()
    codes, out, weight = codes.numpy().astype(np.int32), outliers.numpy(), weight.numpy().astype(np.int32)
    integers = (codes @ weight.T) * (absmax / 127)[:, None]
    floats = x[:, out] @ weight[:, out].T
    return (integers + floats) * (weight_absmax / 127)


def product_in_float32(x, codes, absmax, outliers, weight, weight_absmax):
    values = torch.where(outliers, x.float(), codes * (absmax / 127)[:, None])
    return values @ (weight * (weight_absmax / 127)[:, None]).T


def product_in_16_bits(x, codes, absmax, outliers, weight, weight_absmax):
    rest = x[:, outliers] @ weight[:, outliers].T.to(x.dtype)
    return (codes.double() @ weight.double().T * absmax[:, None] / 127 + rest) * weight_absmax / 127


def product_of_int8_tensors(x, codes, absmax, outliers, weight, weight_absmax):
    return (codes @ weight.T) * absmax[:, None] / 127 * weight_absmax / 127


BOTH = "(integers + floats) * (weight_absmax / 127)"
WRONG_PRODUCTS = [
    (product.edit("integers + floats", "integers"), "the outlier channels are missing"),
    (product.edit("integers + floats", "floats"), "only the outlier channels are left"),
    (product.edit("x[:, out] @ weight[:, out].T", "x @ weight.T"), "runs over all channels"),
    (product.edit(("x[:, out]", "x[:, ~out]"), ("weight[:, out]", "weight[:, ~out]")), "the wrong channels"),
    (
        product.edit(("(absmax / 127)", "absmax"), ("(weight_absmax / 127)", "weight_absmax")),
        "neither absmax nor weight_absmax is divided",
    ),
    (product.edit(" * (absmax / 127)[:, None]", ""), "the scale of the tokens is missing"),
    (product.edit(BOTH, "integers * (weight_absmax / 127) + floats"), "missing in the part of the outliers"),
    (product.edit("+ floats", "+ floats * (absmax / 127)[:, None]"), "multiplied by the token's scale as well"),
    (
        product.edit("(codes @ weight.T)", "(codes.astype(np.int8) @ weight.astype(np.int8).T)"),
        "mistake: the sums were computed in int8",
    ),
    (product_of_int8_tensors, "two things: the sums were computed in int8"),
    (
        product.edit(
            "    integers =",
            "    if len(x) == len(weight):\n        absmax, weight_absmax = weight_absmax, absmax\n    integers =",
        ),
        "the two scales are exchanged",
    ),
    (product.edit("(integers + floats)", "x @ weight.T"), "the codes are not used"),
    (
        product.edit(("(absmax / 127)", "(absmax / 128)"), ("weight_absmax / 127", "weight_absmax / 128")),
        "divided by 128",
    ),
    (product.edit(BOTH, "(integers / 127 + floats) * weight_absmax"), "weight_absmax is not divided by 127"),
    (product_in_16_bits, "rounded to the 16 bits of x"),
]

WRONG = {
    "bnb.levels": WRONG_LEVELS,
    "bnb.encode": WRONG_CODES,
    "bnb.quantize_tokens": WRONG_TOKENS,
    "bnb.product": WRONG_PRODUCTS,
}
RIGHT = {
    "bnb.levels": [quantiles, levels_in_float32],
    "bnb.encode": [nearest, by_borders],
    "bnb.quantize_tokens": [tokens, tokens_in_loops],
    "bnb.product": [product, product_in_float32],
}


@each(WRONG)
def test_a_wrong_answer_is_told_which_mistake_it_is(name, function, phrase):
    assert_told(WRONG, name, function, phrase)


@each(RIGHT)
def test_a_right_answer_passes_however_it_is_written(name, function):
    assert_right(name, function)


def test_no_input_lies_on_a_border():
    """The direction in which a tie is rounded must not decide whether an answer is right."""
    for _, (weight, absmax, levels) in exercises.find("bnb.encode").cases():
        spread = absmax.repeat_interleave(weight.shape[1] // absmax.shape[1], dim=1)
        relative = weight.double() / torch.where(spread == 0, 1, spread).double()
        ascending = levels.double().unique()  # FP4 lists 0 twice
        borders = (ascending[1:] + ascending[:-1]) / 2
        assert (relative[..., None] - borders).abs().min() > 1e-4
    for _, (x, threshold) in exercises.find("bnb.quantize_tokens").cases():
        kept = x.double().masked_fill(x.abs() >= threshold, 0)
        absmax = kept.abs().amax(dim=1, keepdim=True)
        codes = 127 * kept / torch.where(absmax == 0, 1, absmax)
        assert ((codes - codes.floor()) - 0.5).abs().min() > 1e-3


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    (tmp_path / ".qtutor.json").write_text('{"delivered": {}}')
    monkeypatch.chdir(tmp_path)
    before = rtn.encode_groups, bnb.quantize_rows, bnb.mixed_product
    yield tmp_path
    assert (rtn.encode_groups, bnb.quantize_rows, bnb.mixed_product) == before


def codes_kept(weight, absmax, levels):
    absmax = torch.where(absmax == 0, 1, absmax).repeat_interleave(weight.shape[1] // absmax.shape[1], dim=1)
    return ((weight / absmax)[..., None] - levels).abs().argmin(-1).numpy()


def product_kept(x, codes, absmax, outliers, weight, weight_absmax):
    values = torch.where(outliers, x.double(), codes.double() * (absmax.double() / 127)[:, None])
    return values @ (weight.double() * (weight_absmax.double() / 127)[:, None]).T


KEPT = {"bnb.encode": codes_kept, "bnb.quantize_tokens": tokens_kept, "bnb.product": product_kept}


def keep(name: str) -> None:
    exercise = exercises.find(name)
    note = answers.keep(exercise, KEPT[name], lambda again: examine(exercise, again).passed)
    assert note.startswith("Kept in"), note


def logits(method: str) -> torch.Tensor:
    model = tiny()
    pipeline.quantize(model, qtutor.Recipe(method=method, **groups_of(method)), progress=False)
    with torch.inference_mode():
        return model(some_ids()).logits


@pytest.mark.parametrize("method", ["nf4", "fp4", "int8"])
def test_a_decoder_runs_on_what_the_learner_wrote(workspace, capsys, method):
    expected = logits(method)
    for name in KEPT:
        keep(name)
    with mine("bnb") as own:
        assert own == list(KEPT)
        assert bnb.mixed_product.__module__ != "qtutor.bnb" and rtn.encode_groups.__module__ != "qtutor.rtn"
        got = logits(method)
    # The package multiplies by the reciprocal, so a weight on a border may get a different code: near, not equal.
    assert torch.allclose(got, expected, atol=2e-3 * expected.abs().max().item())
    assert torch.equal(logits(method), expected)


def test_grids_of_another_chapter_keep_what_was_written_there(workspace, capsys):
    """Integer grids and int8 do not use the learner's NF4, and NF4 does not replace chapter 02's function."""
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    integers, eight = rtn.quantize(weight, IntGrid(4), 32), bnb.quantize(weight, bnb.INT8)
    keep("bnb.encode")
    with mine("bnb"):
        assert torch.equal(rtn.quantize(weight, IntGrid(4), 32).codes, integers.codes)
        assert torch.equal(bnb.quantize(weight, bnb.INT8).codes, eight.codes)
        assert bnb.quantize(torch.zeros(0, 64)).codes.shape == (0, 64)
        assert (bnb.quantize(torch.zeros(2, 64)).codes == bnb.NF4.middle).all()
    seen = []

    def chapter_02(grouped, scale, zero, grid):
        seen.append(grid)
        return torch.zeros(grouped.shape, dtype=torch.uint8)

    original = rtn.encode_groups
    rtn.encode_groups = chapter_02
    try:
        with mine("bnb.encode"):
            assert (rtn.quantize(weight, IntGrid(4), 32).codes == 0).all() and seen == [IntGrid(4)]
            assert (bnb.quantize(weight).codes != 0).any() and len(seen) == 1
    finally:
        rtn.encode_groups = original
