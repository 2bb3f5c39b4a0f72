"""The exercises of chapter 03: check names the mistake in a wrong answer, and right answers pass in any form.

Most wrong answers are edits of right answers that a learner may write. None of these right answers is the course's own
solution.
"""

import numpy as np
import torch

from qtutor import rtn
from qtutor.core.grid import IntGrid
from qtutor.course import exercises
from qtutor.course.exercises.edits import solution
from qtutor.measure import distributions
from tests.course.answers import assert_right, assert_told, each

# --- kurtosis ---


@solution
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


@solution
def kurtosis_of_z(weight):
    w = weight.double()
    z = (w - w.mean(1, keepdim=True)) / w.std(1, correction=0, keepdim=True)
    return (z**4).mean(1).nan_to_num(3) - 3


def in_half_precision(weight):
    deviation = weight - weight.mean(dim=-1, keepdim=True)
    second = (deviation * deviation).mean(dim=-1)
    fourth = (deviation * deviation * deviation * deviation).mean(dim=-1)
    flat = weight.amax(dim=-1) == weight.amin(dim=-1)
    return torch.where(flat, 0, fourth / torch.where(flat, 1, second * second) - 3)


KURTOSIS_WRONG = [
    (kurtosis_in_loops.edit(") - 3)", "))"), "subtracting 3"),
    (kurtosis_in_loops.edit("[value - mean for value in row]", "row"), "subtract the mean of each row"),
    (
        kurtosis_in_loops.edit(
            "sum(d * d for d in deviations) / len(row)", "sum(d * d for d in deviations) / (len(row) - 1 or 1)"
        ),
        "divided by n - 1",
    ),
    (kurtosis_in_loops.edit("(d * d / variance) ** 2", "d**4 / variance**0.5"), "divided by the standard deviation"),
    (kurtosis_in_loops.edit("(d * d / variance) ** 2", "(d * d) ** 2 / variance"), "divided by the variance once"),
    (
        kurtosis_in_loops.edit(
            ("weight.tolist()", "[weight.flatten().tolist()]"), ("return result", "return result[0]")
        ),
        "one kurtosis of all numbers",
    ),
    (kurtosis_in_loops.edit("weight.tolist()", "zip(*weight.tolist())"), "kurtosis of the columns"),
    (kurtosis_of_z.edit("(z**4).mean(1).nan_to_num(3) - 3", "(z**3).mean(1).nan_to_num(0)"), "the skewness"),
    (kurtosis_of_z.edit(".nan_to_num(3)", ""), "0 / 0 is nan"),
    (in_half_precision, "in the 16 bits of the weights"),
]

# --- salient channels ---


def salient_in_loops(x, share):
    width = x.shape[1]
    size = [sum(abs(value) for value in x[:, channel].tolist()) for channel in range(width)]
    chosen = []
    while len(chosen) < max(1, round(share * width)):
        chosen.append(max((c for c in range(width) if c not in chosen), key=lambda c: size[c]))
    return sorted(chosen)


@solution
def salient_in_numpy(x, share):
    size = np.abs(x.double().numpy()).mean(axis=0)
    return np.sort(np.argsort(-size, kind="stable")[: max(1, round(share * len(size)))])


@solution
def salient_by_sort(x, share):
    size = x.float().abs().mean(0)
    return sorted(size.sort(descending=True, stable=True).indices[: max(1, round(len(size) * share))].tolist())


def mask(x, share):
    size = x.float().abs().mean(0)
    return size >= size.topk(max(1, round(x.shape[1] * share))).values[-1]


SALIENT_WRONG = [
    (salient_by_sort.edit(".abs()", ""), "take |x| first"),
    (salient_by_sort.edit("abs().mean(0)", "mean(0).abs()"), "after the mean"),
    (salient_in_numpy.edit("mean(axis", "max(axis"), "ranked by their largest input"),
    (
        salient_by_sort.edit(
            ("mean(0)", "mean(1)"),
            ("max(1, round(len(size) * share))", "min(len(x), max(1, round(x.shape[1] * share)))"),
        ),
        "these are tokens:",
    ),
    (salient_by_sort.edit("mean(0)", "sum(dim=-1)"), "a share of the tokens"),
    (salient_in_numpy.edit("-size", "size"), "smallest inputs"),
    (
        salient_by_sort.edit("max(1, round(len(size) * share))", "int(len(size) * share)"),
        "1 % of a few channels is none",
    ),
    (
        salient_by_sort.edit("max(1, round(len(size) * share))", "int(len(size) * share) or 1"),
        "2.56, which rounds to 3",
    ),
    (salient_by_sort.edit("max(1, round(len(size) * share))", "-int(-len(size) * share // 1)"), "rounded up"),
    (salient_by_sort.edit("sorted(size.", "(size."), "sort the indices ascending"),
    (mask, "this is a mask"),
    (
        salient_by_sort.edit(("sorted(", "size[sorted("), (".tolist())", ".tolist())]")),
        "return the indices of these channels",
    ),
]

# --- columns ---


def columns_by_where(weight, rounded, channels):
    keep = torch.isin(torch.arange(weight.shape[1]), channels)
    return torch.where(keep, weight, rounded)


@solution
def columns_in_loops(weight, rounded, channels):
    chosen = set(channels.tolist())
    return [
        [w if column in chosen else r for column, (w, r) in enumerate(zip(wide, narrow))]
        for wide, narrow in zip(weight.tolist(), rounded.tolist())
    ]


@solution
def columns_one_by_one(weight, rounded, channels):
    mixed = rounded.clone()
    for channel in channels.tolist():
        mixed[:, channel] = weight[:, channel]
    return mixed


def cut_out(weight, rounded, channels):
    return torch.stack([weight[:, c] for c in channels.tolist()], dim=1) if len(channels) else weight[:, :0]


def into_the_argument(weight, rounded, channels):
    rounded[:, channels] = weight[:, channels]
    return rounded


KEEP_WRONG = [
    (
        columns_one_by_one.edit(
            "mixed[:, channel] = weight[:, channel]", "if channel < len(weight): mixed[channel] = weight[channel]"
        ),
        "rows were kept",
    ),
    (columns_in_loops.edit("w if column in chosen else r", "r if column in chosen else w"), "the other way round"),
    (lambda weight, rounded, channels: rounded, "nothing was kept"),
    (columns_in_loops.edit("column in chosen", "column < len(chosen)"), "the first columns were kept"),
    (columns_in_loops.edit("w if column", "0.0 if column"), "the columns were set to 0"),
    (columns_in_loops.edit("else r", "else 0.0"), "only the kept columns are left"),
    (columns_one_by_one.edit("= weight", "+= weight"), "were added"),
    (cut_out, "the kept columns alone"),
    (into_the_argument, "work on a copy"),
]


WRONG = {
    "distributions.kurtosis": KURTOSIS_WRONG,
    "distributions.salient_channels": SALIENT_WRONG,
    "distributions.keep_columns": KEEP_WRONG,
}
RIGHT = {
    "distributions.kurtosis": [kurtosis_in_loops, kurtosis_in_numpy_float32, kurtosis_in_torch_float32, kurtosis_of_z],
    "distributions.salient_channels": [salient_in_loops, salient_in_numpy, salient_by_sort],
    "distributions.keep_columns": [columns_by_where, columns_in_loops, columns_one_by_one],
}


@each(WRONG)
def test_a_wrong_answer_is_told_which_mistake_it_is(name, function, phrase):
    assert_told(WRONG, name, function, phrase)


@each(RIGHT)
def test_a_right_answer_passes_however_it_is_written(name, function):
    assert_right(name, function)


def test_the_package_gets_what_it_expects_from_a_learners_function():
    """``adapt`` turns a right answer into a function that returns the same as the package's own function."""
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
