"""The exercises of chapter 03: wrong answers are told which mistake it is, right ones pass however they are written."""

import numpy as np
import pytest
import torch

from qtutor import rtn
from qtutor.core.grid import IntGrid
from qtutor.course import exercises
from qtutor.measure import distributions
from tests.course.answers import assert_right, assert_told, each, verdict

# --- kurtosis, wrong ---


def without_minus_3(weight):
    z = (weight.float() - weight.float().mean(1, keepdim=True)) / weight.float().std(1, correction=0, keepdim=True)
    return torch.nan_to_num((z**4).mean(1))


def not_centred(weight):
    w = weight.double()
    return (w**4).mean(1) / (w**2).mean(1) ** 2 - 3


def n_minus_1(weight):
    rows = weight.float().numpy()
    result = []
    for row in rows:
        spread = row.std(ddof=1) if len(row) > 1 else 0
        result.append(float(np.mean((row - row.mean()) ** 4) / spread**4 - 3) if spread > 0 else 0.0)
    return result


def std_only_once(weight):
    w = weight.double()
    mean = w.mean(-1)[:, None]
    std = torch.sqrt(((w - mean) ** 2).mean(-1))
    std = torch.where(std == 0, 1.0, std)
    result = ((w - mean) ** 4).mean(-1) / std - 3
    return torch.where(w.amax(-1) == w.amin(-1), 0.0, result)


def variance_not_squared(weight):
    w = weight.double()
    variance = w.var(-1, unbiased=False)
    result = (w - w.mean(-1, keepdim=True)).pow(4).mean(-1) / variance - 3
    return torch.where(variance == 0, torch.zeros(()).double(), result)


def whole_matrix(weight):
    w = weight.double().numpy()
    variance = w.var()
    return ((w - w.mean()) ** 4).mean() / variance**2 - 3 if variance else 0.0


def down_the_columns(weight):
    w = weight.float()
    spread = w.std(dim=0, correction=0)
    z = (w - w.mean(dim=0)) / torch.where(spread == 0, 1, spread)
    return torch.where(spread == 0, 0, (z**4).mean(dim=0) - 3)


def skewness(weight):
    w = weight.double()
    spread = w.std(dim=1, correction=0, keepdim=True)
    z = (w - w.mean(dim=1, keepdim=True)) / torch.where(spread == 0, 1.0, spread)
    return (z**3).mean(dim=1)


def nan_for_equal_numbers(weight):
    w = weight.double()
    z = (w - w.mean(dim=1, keepdim=True)) / w.std(dim=1, correction=0, keepdim=True)
    return (z**4).mean(dim=1) - 3


def in_half_precision(weight):
    deviation = weight - weight.mean(dim=-1, keepdim=True)
    second = (deviation * deviation).mean(dim=-1)
    fourth = (deviation * deviation * deviation * deviation).mean(dim=-1)
    flat = weight.amax(dim=-1) == weight.amin(dim=-1)
    return torch.where(flat, 0, fourth / torch.where(flat, 1, second * second) - 3)


# --- kurtosis, right ---


def kurtosis_in_loops(weight):
    result = []
    for row in weight.tolist():
        mean = sum(row) / len(row)
        deviations = [value - mean for value in row]
        variance = sum(d * d for d in deviations) / len(row)
        if variance < 1e-20:
            result.append(0)
            continue
        result.append(sum((d * d / variance) ** 2 for d in deviations) / len(row) - 3)
    return result


def kurtosis_in_numpy_float32(weight):
    w = weight.float().numpy()
    z = w - w.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        z = z / w.std(axis=1, keepdims=True)
    return np.nan_to_num((z**4).mean(axis=1) - 3, nan=0.0)


def kurtosis_in_torch_float32(weight):
    w = weight.float()
    deviation = w - w.mean(dim=-1, keepdim=True)
    variance = deviation.square().mean(dim=-1)
    alike = variance == 0
    return ((deviation**4).mean(dim=-1) / (variance**2 + alike) - 3) * ~alike


# --- salient channels, wrong ---


def by_mean(x, share):
    return x.float().mean(0).topk(max(1, round(x.shape[1] * share))).indices.sort().values


def by_size_of_mean(x, share):
    return x.float().mean(0).abs().topk(max(1, round(x.shape[1] * share))).indices.sort().values


def by_largest_input(x, share):
    return np.sort(np.argsort(-np.abs(x.float().numpy()).max(axis=0))[: max(1, round(x.shape[1] * share))])


def tokens(x, share):
    return x.float().abs().mean(1).topk(min(len(x), max(1, round(x.shape[1] * share)))).indices.sort().values


def a_share_of_tokens(x, share):
    size = x.float().abs().sum(dim=-1)
    return sorted(size.argsort(descending=True)[: max(1, round(len(size) * share))].tolist())


def smallest(x, share):
    return x.float().abs().mean(0).argsort()[: max(1, round(x.shape[1] * share))].sort().values


def nothing_left(x, share):
    return x.float().abs().mean(0).topk(int(x.shape[1] * share)).indices.sort().values


def cut_off(x, share):
    count = int(x.shape[1] * share) or 1
    return sorted(x.float().abs().mean(0).topk(count).indices.tolist())


def rounded_up(x, share):
    count = -int(-x.shape[1] * share // 1)
    return x.float().abs().mean(0).topk(count).indices.sort().values


def in_order_of_size(x, share):
    return x.float().abs().mean(0).topk(max(1, round(x.shape[1] * share))).indices


def mask(x, share):
    size = x.float().abs().mean(0)
    return size >= size.topk(max(1, round(x.shape[1] * share))).values[-1]


def the_sizes(x, share):
    size = x.double().abs().mean(0)
    return size[size.topk(max(1, round(x.shape[1] * share))).indices.sort().values]


# --- salient channels, right ---


def salient_in_loops(x, share):
    width = x.shape[1]
    size = [sum(abs(value) for value in x[:, channel].tolist()) for channel in range(width)]
    chosen = []
    while len(chosen) < max(1, round(share * width)):
        chosen.append(max((c for c in range(width) if c not in chosen), key=lambda c: size[c]))
    return sorted(chosen)


def salient_in_numpy(x, share):
    size = np.abs(x.double().numpy()).mean(axis=0)
    return np.flatnonzero(size >= np.sort(size)[-max(1, round(share * len(size)))])


# --- columns, wrong and right ---


def rows_kept(weight, rounded, channels):
    mixed = rounded.clone()
    mixed[[c for c in channels.tolist() if c < len(weight)]] = weight[[c for c in channels.tolist() if c < len(weight)]]
    return mixed


def others_kept(weight, rounded, channels):
    mixed = weight.clone()
    mixed[:, channels] = rounded[:, channels]
    return mixed


def none_kept(weight, rounded, channels):
    return rounded


def first_kept(weight, rounded, channels):
    return torch.cat([weight[:, : len(channels)], rounded[:, len(channels) :]], dim=1)


def zeros_kept(weight, rounded, channels):
    mixed = rounded.numpy(force=True).copy() if rounded.dtype == torch.float32 else rounded.float().numpy()
    mixed[:, channels.numpy()] = 0
    return mixed


def only_the_kept(weight, rounded, channels):
    keep = torch.zeros(weight.shape[1])
    keep[channels] = 1
    return weight.float() * keep


def both_added(weight, rounded, channels):
    keep = torch.zeros(weight.shape[1])
    keep[channels] = 1
    return rounded.float() + weight.float() * keep


def cut_out(weight, rounded, channels):
    return torch.stack([weight[:, c] for c in channels.tolist()], dim=1) if len(channels) else weight[:, :0]


def into_the_argument(weight, rounded, channels):
    rounded[:, channels] = weight[:, channels]
    return rounded


def columns_by_where(weight, rounded, channels):
    keep = torch.isin(torch.arange(weight.shape[1]), channels)
    return torch.where(keep, weight, rounded)


def columns_in_loops(weight, rounded, channels):
    chosen = set(channels.tolist())
    return [
        [w if column in chosen else r for column, (w, r) in enumerate(zip(wide, narrow))]
        for wide, narrow in zip(weight.tolist(), rounded.tolist())
    ]


WRONG = {
    "distributions.kurtosis": [
        (without_minus_3, "subtracting 3"),
        (not_centred, "mean of each row has to be subtracted"),
        (n_minus_1, "divided by n - 1"),
        (std_only_once, "divided by the standard deviation"),
        (variance_not_squared, "divided by the variance once"),
        (whole_matrix, "one kurtosis of all numbers"),
        (down_the_columns, "kurtosis of the columns"),
        (skewness, "the skewness"),
        (nan_for_equal_numbers, "0 / 0 is nan"),
        (in_half_precision, "in the 16 bits of the weights"),
    ],
    "distributions.salient_channels": [
        (by_mean, "take |x| first"),
        (by_size_of_mean, "after the mean"),
        (by_largest_input, "ranked by their largest input"),
        (tokens, "these are tokens:"),
        (a_share_of_tokens, "a share of the tokens"),
        (smallest, "smallest inputs"),
        (nothing_left, "1 % of a few channels is none"),
        (cut_off, "2.56, which rounds to 3"),
        (rounded_up, "rounded up"),
        (in_order_of_size, "sort the indices ascending"),
        (mask, "this is a mask"),
        (the_sizes, "return the indices of the channels"),
    ],
    "distributions.keep_columns": [
        (rows_kept, "rows were kept"),
        (others_kept, "the other way round"),
        (none_kept, "nothing was kept"),
        (first_kept, "the first columns were kept"),
        (zeros_kept, "the columns were set to 0"),
        (only_the_kept, "only the kept columns are left"),
        (both_added, "were added"),
        (cut_out, "the kept columns alone"),
        (into_the_argument, "work on a copy"),
    ],
}
RIGHT = {
    "distributions.kurtosis": [kurtosis_in_loops, kurtosis_in_numpy_float32, kurtosis_in_torch_float32],
    "distributions.salient_channels": [salient_in_loops, salient_in_numpy],
    "distributions.keep_columns": [columns_by_where, columns_in_loops],
}


@each(WRONG)
def test_a_wrong_answer_is_told_which_mistake_it_is(name, function, phrase):
    assert_told(WRONG, name, function, phrase)


@each(RIGHT)
def test_a_right_answer_passes_however_it_is_written(name, function):
    assert_right(name, function)


@pytest.mark.parametrize("name", WRONG)
def test_every_known_mistake_is_one(name):
    """A mistake that no input shows could never be diagnosed."""
    for text, mistake in exercises.find(name).mistakes.items():
        found = verdict(name, mistake)
        assert not found.passed and text in found.text, text


def test_the_package_gets_what_it_expects_from_a_learners_function():
    """What adapt makes of a right answer returns what the package's own function returns."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 6, 8, generator=generator)
    mine = exercises.find("distributions.kurtosis").adapt(kurtosis_in_loops)
    for dim in (-1, 0, 1, None):
        assert torch.allclose(mine(x, dim), distributions.excess_kurtosis(x, dim), rtol=1e-6, atol=1e-9)
    importance = torch.rand(256, generator=generator)
    mine = exercises.find("distributions.salient_channels").adapt(salient_in_numpy)
    assert torch.equal(mine(importance, 0.03), distributions.top_channels(importance, 0.03))
    weight = torch.randn(8, 16, generator=generator).bfloat16()
    quantized = rtn.quantize(weight, IntGrid(3), 16)
    mine = exercises.find("distributions.keep_columns").adapt(columns_in_loops)
    theirs = distributions.keep_channels(weight, quantized, torch.tensor([2, 5]))
    assert torch.equal(mine(weight, quantized, torch.tensor([2, 5])), theirs) and theirs.dtype == torch.bfloat16
