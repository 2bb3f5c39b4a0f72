"""The exercises of chapter 04: wrong answers are told which mistake it is, right ones pass however they are written."""

from statistics import NormalDist

import numpy as np
import pytest
import torch

import qtutor
from qtutor import bnb, pipeline, rtn
from qtutor.core.grid import IntGrid
from qtutor.course import exercises, mine
from qtutor.course.checking import examine
from qtutor.course.workspace import answers
from tests.course.answers import assert_right, assert_told, each
from tests.models import some_ids, tiny

quantile = NormalDist().inv_cdf


def shares(offset, count):
    return [offset + (0.5 - offset) * i / count for i in range(count)]


# --- levels, wrong ---


def levels_not_divided(offset, negatives, positives):
    return sorted([*(-quantile(s) for s in shares(offset, negatives)), 0, *map(quantile, shares(offset, positives))])


def levels_with_the_half(offset, negatives, positives):
    low = [-quantile(s) for s in np.linspace(offset, 0.5, negatives)] if negatives else []
    found = np.array(sorted([*low, 0.0, *(quantile(s) for s in np.linspace(offset, 0.5, positives))]))
    return found / found.max()


def levels_without_the_outermost(offset, negatives, positives):
    halves = [torch.linspace(offset, 0.5, count + 1).double()[1:] for count in (negatives, positives)]
    found = torch.cat([-torch.special.ndtri(halves[0]), torch.zeros(1).double(), torch.special.ndtri(halves[1])])
    return found.sort().values / found.max()


def levels_without_zero(offset, negatives, positives):
    found = [*(-quantile(s) for s in shares(offset, negatives)), *(quantile(s) for s in shares(offset, positives))]
    return [value / max(found) for value in sorted(found)]


def levels_exchanged(offset, negatives, positives):
    return levels_in_loops(offset, positives, negatives) if negatives != positives else None


def levels_all_positive(offset, negatives, positives):
    found = sorted(quantile(s) for s in [*shares(offset, negatives), 0.5, *shares(offset, positives)])
    return np.array(found) / found[-1]


def levels_as_they_come(offset, negatives, positives):
    found = [-quantile(s) for s in shares(offset, negatives)] + [0] + [quantile(s) for s in shares(offset, positives)]
    return torch.tensor(found) / max(found)


def levels_in_a_set(offset, negatives, positives):
    found = levels_in_loops(offset, negatives, positives)
    return [*found[negatives:], *found[:negatives]]


def levels_evenly(offset, negatives, positives):
    return [i / negatives for i in range(-negatives, 0)] + [i / positives for i in range(positives + 1)]


def levels_in_one_run(offset, negatives, positives):
    found = [quantile(s) for s in np.linspace(1 - offset, offset, negatives + positives + 1)]
    return [value / found[-1] for value in found]


def levels_of_areas(offset, negatives, positives):
    found = [-NormalDist().cdf(s) for s in shares(offset, negatives)]
    found += [0.0] + [NormalDist().cdf(s) for s in shares(offset, positives)]
    return np.sort(found) / max(found)


def levels_over_the_whole_range(offset, negatives, positives):
    found = levels_not_divided(offset, negatives, positives)
    return [value / (found[-1] - found[0]) for value in found]


def levels_with_three_zeros(offset, negatives, positives):
    halves = [torch.special.ndtri(torch.linspace(offset, 0.5, count + 1)) for count in (negatives, positives)]
    found = torch.cat([-halves[0], torch.zeros(1), halves[1]])
    return (found / found.max()).sort().values


def levels_with_two_zeros(offset, negatives, positives):
    low, high = (np.array([quantile(s) for s in [*shares(offset, n), 0.5]]) for n in (negatives, positives))
    return np.sort(np.concatenate([-low, high])) / high.max()


# --- levels, right ---


def levels_in_loops(offset, negatives, positives):
    found = levels_not_divided(offset, negatives, positives)
    return [value / found[-1] for value in found]


def levels_in_float32(offset, negatives, positives):
    above = torch.special.ndtri(torch.linspace(offset, 0.5, positives + 1)[:-1]).flip(0)
    below = -torch.special.ndtri(torch.linspace(offset, 0.5, negatives + 1)[:-1])
    return torch.cat([below, torch.zeros(1), above]) / above.max()


# --- encode, wrong ---


def per_weight(weight, absmax, rule):
    """``rule(weight over its absmax, weight, absmax)`` for every weight."""
    length = weight.shape[1] // absmax.shape[1]
    return [
        [rule(w / s if s else 0.0, w, s) for w, s in zip(row, np.repeat(largest, length))]
        for row, largest in zip(weight.tolist(), absmax.tolist())
    ]


def place(levels, value):
    return int((torch.as_tensor(levels) - value).abs().argmin())


def codes_of_raw_weights(weight, absmax, levels):
    return (weight.float().unsqueeze(-1) - levels).abs().argmin(-1)


def codes_evenly(weight, absmax, levels):
    top = len(levels) - 1
    return per_weight(weight, absmax, lambda r, w, s: min(max(round(top * (r + 1) / 2), 0), top))


def codes_rounded_down(weight, absmax, levels):
    order = np.argsort(levels.numpy(), kind="stable")
    ascending = levels.numpy()[order]
    return per_weight(
        weight, absmax, lambda r, w, s: order[max(int((ascending <= np.float64(r) + 1e-12).sum()) - 1, 0)]
    )


def codes_by_searchsorted(weight, absmax, levels):
    order = levels.argsort()
    spread = absmax.repeat_interleave(weight.shape[1] // absmax.shape[1], dim=1).clamp(min=1e-20)
    found = torch.searchsorted(levels[order], (weight / spread).float().contiguous())
    return order[found.clamp(max=len(levels) - 1)]


def codes_of_sorted_levels(weight, absmax, levels):
    return per_weight(weight, absmax, lambda r, w, s: place(sorted(levels.tolist()), r))


def the_levels_themselves(weight, absmax, levels):
    return per_weight(weight, absmax, lambda r, w, s: levels[place(levels, r)].item())


def codes_by_size(weight, absmax, levels):
    return per_weight(weight, absmax, lambda r, w, s: place(levels.abs(), abs(r)))


def codes_from_one(weight, absmax, levels):
    return np.array(codes_in_loops(weight, absmax, levels)) + 1


def codes_with_nan(weight, absmax, levels):
    relative = weight.reshape(*absmax.shape, -1) / absmax[..., None]
    return (relative[..., None] - levels).abs().argmin(-1).reshape(weight.shape)


def codes_without_division(weight, absmax, levels):
    """A scaled list for every block: right, but for a block of zeros, where all levels are the same."""
    scaled = absmax[..., None] * levels  # [out, blocks, levels]
    grouped = weight.float().reshape(*absmax.shape, -1)
    return (grouped[..., None] - scaled[:, :, None]).abs().argmin(-1).reshape(weight.shape)


def codes_by_bucketize(weight, absmax, levels):
    spread = absmax.repeat_interleave(weight.shape[1] // absmax.shape[1], dim=1)
    return torch.bucketize(weight.float() / torch.where(spread == 0, 1, spread), (levels[1:] + levels[:-1]) / 2)


def codes_by_bucketize_of_nan(weight, absmax, levels):
    spread = absmax.repeat_interleave(weight.shape[1] // absmax.shape[1], dim=1)
    return torch.bucketize(weight.float() / spread, (levels[1:] + levels[:-1]) / 2)


def codes_sorted_but_nan(weight, absmax, levels):
    ascending, order = levels.sort()
    spread = absmax.repeat_interleave(weight.shape[1] // absmax.shape[1], dim=1)
    return order[torch.bucketize(weight.float() / spread, (ascending[1:] + ascending[:-1]) / 2)]


def codes_tiled(weight, absmax, levels):
    spread = absmax.repeat(1, weight.shape[1] // absmax.shape[1])
    relative = weight / torch.where(spread == 0, 1, spread)
    return (relative[..., None] - levels).abs().argmin(-1)


def codes_of_the_first_row(weight, absmax, levels):
    spread = absmax[:1].repeat_interleave(weight.shape[1] // absmax.shape[1], dim=1)
    relative = weight / torch.where(spread == 0, 1, spread)
    return (relative[..., None] - levels).abs().argmin(-1)


def codes_over_the_row(weight, absmax, levels):
    largest = weight.float().abs().amax(dim=1, keepdim=True)
    return (weight.float() / torch.where(largest == 0, 1, largest))[..., None].sub(levels).abs().argmin(-1)


def codes_over_the_matrix(weight, absmax, levels):
    return (weight.float() / absmax.max())[..., None].sub(levels).abs().argmin(-1)


def codes_without_abs(weight, absmax, levels):
    return per_weight(weight, absmax, lambda r, w, s: int(np.argmin(r - levels.numpy())))


def codes_furthest(weight, absmax, levels):
    return per_weight(weight, absmax, lambda r, w, s: int(np.argmax(np.abs(r - levels.numpy()))))


def what_comes_back(weight, absmax, levels):
    return per_weight(weight, absmax, lambda r, w, s: s * levels[place(levels, r)].item())


# --- encode, right ---


def codes_in_loops(weight, absmax, levels):
    return per_weight(weight, absmax, lambda r, w, s: place(levels, r))


def codes_by_borders(weight, absmax, levels):
    values = levels.double().numpy()
    order = np.argsort(values)
    borders = (values[order][1:] + values[order][:-1]) / 2
    spread = np.repeat(absmax.double().numpy(), weight.shape[1] // absmax.shape[1], axis=1)
    return order[np.searchsorted(borders, weight.double().numpy() / np.where(spread == 0, 1, spread))].astype(np.uint8)


# --- tokens, wrong ---


def tokens_with(x, threshold, mark=None, largest=None, top=127.0, rounding=np.rint, hidden=True, guard=True):
    values = x.double().numpy()
    large = np.abs(values) >= threshold if mark is None else mark(values, threshold)
    outliers = large.any(axis=0)
    kept = np.where(large, 0, values)
    absmax = np.abs(kept).max(axis=1) if largest is None else largest(values, kept, outliers)
    with np.errstate(invalid="ignore", divide="ignore"):
        safe = np.where(absmax > 0, absmax, 1) if guard else absmax
        codes = rounding(kept / safe[:, None] * top)
    if hidden:
        codes = np.where(outliers, 0, codes)
    return codes, absmax, outliers


def tokens_signed(x, threshold):
    return tokens_with(x, threshold, mark=lambda v, t: v >= t)


def tokens_beyond(x, threshold):
    return tokens_with(x, threshold, mark=lambda v, t: np.abs(v) > t)


def tokens_by_mean(x, threshold):
    return tokens_with(x, threshold, mark=lambda v, t: np.broadcast_to(np.abs(v).mean(0) >= t, v.shape))


def tokens_with_outliers_in_absmax(x, threshold):
    return tokens_with(x, threshold, largest=lambda v, kept, out: np.abs(v).max(axis=1))


def tokens_as_in_the_paper(x, threshold):
    return tokens_with(x, threshold, largest=lambda v, kept, out: np.abs(np.where(out, 0, v)).max(axis=1))


def tokens_one_scale(x, threshold):
    return tokens_with(x, threshold, largest=lambda v, kept, out: np.full(len(v), np.abs(kept).max()))


def tokens_to_128(x, threshold):
    return tokens_with(x, threshold, top=128.0)


def tokens_cut_off(x, threshold):
    return tokens_with(x, threshold, rounding=np.trunc)


def tokens_not_rounded(x, threshold):
    return tokens_with(x, threshold, rounding=lambda codes: codes)


def tokens_large_inputs_only(x, threshold):
    return tokens_with(x, threshold, hidden=False)


def tokens_nan(x, threshold):
    codes, absmax, outliers = tokens_with(x, threshold, guard=False, hidden=False)
    codes[:, outliers] = 0
    return codes, absmax, outliers


def tokens_indices(x, threshold):
    codes, absmax, outliers = tokens_with(x, threshold)
    return codes, absmax, np.flatnonzero(outliers)


def tokens_turned_around(x, threshold):
    codes, absmax, outliers = tokens_with(x, threshold)
    return codes, absmax, ~outliers


def tokens_are_outliers(x, threshold):
    large = x.abs() >= threshold
    rows = large.any(dim=1)
    absmax = x.masked_fill(large, 0).abs().amax(dim=1)
    codes = (127 * x.masked_fill(large, 0) / torch.where(absmax == 0, 1, absmax)[:, None]).round()
    codes[rows] = 0
    return codes, absmax, rows


def tokens_step(x, threshold):
    codes, absmax, outliers = tokens_with(x, threshold)
    return codes, absmax / 127, outliers


def tokens_guard_kept(x, threshold):
    codes, absmax, outliers = tokens_with(x, threshold)
    return codes, np.where(absmax == 0, 1, absmax), outliers


def tokens_clamped(x, threshold):
    kept = x.clamp(-threshold, threshold)
    absmax = kept.abs().amax(dim=1)
    outliers = (x.abs() >= threshold).any(dim=0)
    codes = (kept * 127 / torch.where(absmax == 0, 1, absmax)[:, None]).round()
    return codes.masked_fill(outliers, 0), absmax, outliers


def tokens_without_hiding(x, threshold):
    outliers = (x.abs() >= threshold).any(dim=0)
    absmax = x.masked_fill(outliers, 0).abs().amax(dim=1)
    return (x * 127 / torch.where(absmax == 0, 1, absmax)[:, None]).round(), absmax, outliers


def tokens_in_bytes(x, threshold):
    codes, absmax, outliers = tokens_with(x, threshold)
    return (codes + 128).astype(np.uint8), absmax, outliers


def tokens_down_the_columns(x, threshold):
    codes, absmax, outliers = tokens_with(x.T, threshold, hidden=False)
    outliers = (x.abs() >= threshold).any(dim=0).numpy()
    return np.where(outliers, 0, codes.T), absmax, outliers


def tokens_every_input(x, threshold):
    codes, absmax, _ = tokens_with(x, threshold, hidden=False)
    return codes, absmax, x.abs() >= threshold


def tokens_backwards(x, threshold):
    codes, absmax, outliers = tokens_with(x, threshold)
    return outliers, absmax, codes


# --- tokens, right ---


def tokens_in_numpy(x, threshold):
    codes, absmax, outliers = tokens_with(x, threshold)
    return codes.astype(np.int8), absmax.astype(np.float32), outliers.astype(int)


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


# --- product, wrong ---


def product_of_codes(x, codes, absmax, outliers, weight, weight_absmax):
    return codes.float() @ weight.float().T * absmax[:, None] * weight_absmax / 127**2


def product_of_outliers(x, codes, absmax, outliers, weight, weight_absmax):
    return x[:, outliers].float() @ (weight[:, outliers].float() * weight_absmax[:, None] / 127).T


def product_counted_twice(x, codes, absmax, outliers, weight, weight_absmax):
    w = weight.float() * (weight_absmax / 127)[:, None]
    return codes.float() * (absmax / 127)[:, None] @ w.T + x.float() @ w.T


def product_other_channels(x, codes, absmax, outliers, weight, weight_absmax):
    w = weight.float() * (weight_absmax / 127)[:, None]
    return codes.float() * (absmax / 127)[:, None] @ w.T + x.float()[:, ~outliers] @ w[:, ~outliers].T


def product_without_127(x, codes, absmax, outliers, weight, weight_absmax):
    w = weight.float() * weight_absmax[:, None]
    return codes.float() * absmax[:, None] @ w.T + x.float()[:, outliers] @ w[:, outliers].T


def product_without_the_token_scale(x, codes, absmax, outliers, weight, weight_absmax):
    w = weight.double() * (weight_absmax / 127).double()[:, None]
    return codes.double() @ w.T + x.double()[:, outliers] @ w[:, outliers].T


def product_of_raw_weights(x, codes, absmax, outliers, weight, weight_absmax):
    w = weight.double()
    rest = x.double()[:, outliers] @ w[:, outliers].T
    return (codes.double() @ w.T) * (absmax / 127)[:, None] * (weight_absmax / 127) + rest


def product_scaled_twice(x, codes, absmax, outliers, weight, weight_absmax):
    w = weight.double()
    both = codes.double() @ w.T + x.double()[:, outliers] @ w[:, outliers].T
    return both * (absmax / 127)[:, None] * (weight_absmax / 127)


def product_in_int8(x, codes, absmax, outliers, weight, weight_absmax):
    sums = torch.zeros(len(codes), len(weight), dtype=torch.int8)
    for channel in range(codes.shape[1]):
        sums += codes[:, channel, None] * weight[:, channel]
    rest = x.double()[:, outliers] @ weight[:, outliers].double().T
    return (sums * (absmax.double() / 127)[:, None] + rest) * (weight_absmax.double() / 127)


def product_of_int8_tensors(x, codes, absmax, outliers, weight, weight_absmax):
    return (codes @ weight.T) * absmax[:, None] / 127 * weight_absmax / 127


def product_rows_for_columns(x, codes, absmax, outliers, weight, weight_absmax):
    w = weight.double()
    tokens, rows = absmax / 127, weight_absmax / 127
    if len(tokens) == len(rows):
        tokens, rows = rows, tokens
    return (codes.double() @ w.T * tokens[:, None] + x.double()[:, outliers] @ w[:, outliers].T) * rows


def product_in_float(x, codes, absmax, outliers, weight, weight_absmax):
    return x.float() @ (weight * (weight_absmax / 127)[:, None]).T


def product_by_128(x, codes, absmax, outliers, weight, weight_absmax):
    w = weight.double() * (weight_absmax.double() / 128)[:, None]
    return torch.where(outliers, x.double(), codes.double() * (absmax.double() / 128)[:, None]) @ w.T


def product_with_large_outliers(x, codes, absmax, outliers, weight, weight_absmax):
    rest = x.double()[:, outliers] @ (weight.double() * weight_absmax[:, None])[:, outliers].T
    return codes.double() @ weight.double().T * absmax[:, None] * weight_absmax / 127**2 + rest


def product_in_16_bits(x, codes, absmax, outliers, weight, weight_absmax):
    rest = x[:, outliers] @ weight[:, outliers].T.to(x.dtype)
    return (codes.double() @ weight.double().T * absmax[:, None] / 127 + rest) * weight_absmax / 127


# --- product, right ---


def product_in_float32(x, codes, absmax, outliers, weight, weight_absmax):
    values = torch.where(outliers, x.float(), codes * (absmax / 127)[:, None])
    return values @ (weight * (weight_absmax / 127)[:, None]).T


def product_in_integers(x, codes, absmax, outliers, weight, weight_absmax):
    sums = codes.numpy().astype(np.int32) @ weight.numpy().astype(np.int32).T
    out = np.flatnonzero(outliers.numpy())
    rest = x.double().numpy()[:, out] @ weight.numpy()[:, out].astype(float).T
    return (sums * absmax.double().numpy()[:, None] / 127 + rest) * weight_absmax.double().numpy() / 127


WRONG = {
    "bnb.levels": [
        (levels_not_divided, "not divided by the largest"),
        (levels_with_the_half, "0.5 is not left out"),
        (levels_without_the_outermost, "the wrong end is left out"),
        (levels_without_zero, "there is no level 0"),
        (levels_exchanged, "the two sides are exchanged"),
        (levels_all_positive, "the lower side is not below zero"),
        (levels_as_they_come, "do not ascend"),
        (levels_in_a_set, "each above the one before"),
        (levels_evenly, "evenly spaced"),
        (levels_in_one_run, "one run of shares"),
        (levels_of_areas, "(ndtr)"),
        (levels_over_the_whole_range, "from the lowest to the highest"),
        (levels_with_three_zeros, "is there more than once"),
        (levels_with_two_zeros, "is there twice"),
    ],
    "bnb.encode": [
        (codes_of_raw_weights, "not divided by the absmax"),
        (codes_evenly, "as if the levels were evenly spaced"),
        (codes_rounded_down, "gets the level below it"),
        (codes_by_searchsorted, "gets the level above it"),
        (codes_of_sorted_levels, "places among the sorted levels"),
        (the_levels_themselves, "these are the levels themselves"),
        (codes_by_size, "only the sizes are compared"),
        (codes_from_one, "counted from 1"),
        (codes_with_nan, "whatever levels[0] is"),
        (codes_without_division, "whatever levels[0] is"),
        (codes_by_bucketize, "mistake: bucketize and searchsorted need borders that ascend"),
        (codes_by_bucketize_of_nan, "two things: bucketize"),
        (codes_sorted_but_nan, "all codes are the last one"),
        (codes_tiled, "neighbours share an absmax"),
        (codes_of_the_first_row, "absmax of the first row"),
        (codes_over_the_row, "the largest of their row"),
        (codes_over_the_matrix, "divided by one number"),
        (codes_without_abs, "without .abs()"),
        (codes_furthest, "furthest away"),
        (what_comes_back, "the weights that come back"),
    ],
    "bnb.quantize_tokens": [
        (tokens_signed, "compare |x|"),
        (tokens_beyond, "exactly the threshold"),
        (tokens_by_mean, "the mean of |x| decides"),
        (tokens_with_outliers_in_absmax, "absmax counts the outliers too"),
        (tokens_as_in_the_paper, "how the paper tells it"),
        (tokens_one_scale, "one absmax for all tokens"),
        (tokens_to_128, "reach to 128"),
        (tokens_cut_off, "codes are cut off"),
        (tokens_not_rounded, "not rounded to whole numbers"),
        (tokens_large_inputs_only, "only the large inputs have code 0"),
        (tokens_nan, "0 / 0 is nan"),
        (tokens_indices, "the indices of the outlier channels"),
        (tokens_turned_around, "True for the channels that stay in int8"),
        (tokens_are_outliers, "outliers are tokens here"),
        (tokens_step, "already divided by 127"),
        (tokens_guard_kept, "Put 1 in its place only where"),
        (tokens_clamped, "cut off at the threshold"),
        (tokens_without_hiding, "two things: outlier channels still have codes"),
        (tokens_in_bytes, "128 is added"),
        (tokens_down_the_columns, "taken down the columns"),
        (tokens_every_input, "outliers tells it of every input"),
        (tokens_backwards, "come in another order"),
    ],
    "bnb.product": [
        (product_of_codes, "the outlier channels are missing"),
        (product_of_outliers, "only the outlier channels are left"),
        (product_counted_twice, "runs over all channels"),
        (product_other_channels, "the wrong channels"),
        (product_without_127, "neither absmax nor weight_absmax is divided"),
        (product_without_the_token_scale, "the scale of the tokens is missing"),
        (product_of_raw_weights, "missing in the part of the outliers"),
        (product_scaled_twice, "multiplied by the token's scale as well"),
        (product_in_int8, "mistake: the sums were made in int8"),
        (product_of_int8_tensors, "two things: the sums were made in int8"),
        (product_rows_for_columns, "the two scales are exchanged"),
        (product_in_float, "the codes are not used"),
        (product_by_128, "divided by 128"),
        (product_with_large_outliers, "weight_absmax is not divided by 127"),
        (product_in_16_bits, "rounded to the 16 bits of x"),
    ],
}
RIGHT = {
    "bnb.levels": [levels_in_loops, levels_in_float32],
    "bnb.encode": [codes_in_loops, codes_by_borders],
    "bnb.quantize_tokens": [tokens_in_numpy, tokens_in_loops],
    "bnb.product": [product_in_float32, product_in_integers],
}


@each(WRONG)
def test_a_wrong_answer_is_told_which_mistake_it_is(name, function, phrase):
    assert_told(WRONG, name, function, phrase)


@each(RIGHT)
def test_a_right_answer_passes_however_it_is_written(name, function):
    assert_right(name, function)


def test_no_input_lies_on_a_border():
    """Which way a tie goes must not decide over right and wrong."""
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


def tokens_kept(x, threshold):
    large = x.abs() >= threshold
    absmax = x.masked_fill(large, 0).abs().amax(dim=1)
    codes = (x.masked_fill(large, 0) * 127 / torch.where(absmax == 0, 1, absmax)[:, None]).round()
    return codes.masked_fill(large.any(dim=0), 0).tolist(), absmax.tolist(), large.any(dim=0).int()


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
    pipeline.quantize(model, qtutor.Recipe(method=method, group_size=32), progress=False)
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
    # A code on a border may go the other way (the package multiplies by the reciprocal), so near and not equal.
    assert torch.allclose(got, expected, atol=2e-3 * expected.abs().max().item())
    assert torch.equal(logits(method), expected)


def test_grids_of_another_chapter_keep_what_was_written_there(workspace, capsys):
    """Integer grids and int8 do not come to the learner's NF4; nor does NF4 push out chapter 02's function."""
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
