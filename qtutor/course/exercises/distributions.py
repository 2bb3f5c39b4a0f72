"""Exercises of chapter 03: a row's kurtosis, the channels with the largest inputs, and columns kept in 16 bits."""

import math
from functools import partial

import torch

from qtutor.course.exercise import Exercise

CHAPTER = "03_distributions"


def _noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- kurtosis ---


def _kurtosis(weight):
    result = []
    for row in weight.double().tolist():
        mean = math.fsum(row) / len(row)
        second = math.fsum((value - mean) ** 2 for value in row) / len(row)
        fourth = math.fsum((value - mean) ** 4 for value in row) / len(row)
        result.append(0.0 if max(row) == min(row) else fourth / second**2 - 3)
    return result


def _kurtosis_cases():
    ten = torch.tensor([[0.45, -0.13, 0.05, -0.38, 0.20, 0.00, -0.29, 0.10, 0.31, -0.07]])
    outlier = ten.clone()
    outlier[0, 0] = 4.5
    dead = _noise(3, 12)
    dead[1] = 0.25
    return [
        ("the ten numbers of the chapter", (ten,)),
        ("the same with an outlier", (outlier,)),
        ("four rows of different tails", (_noise(4, 16, seed=1) ** torch.tensor([[1], [3], [5], [1]]),)),
        ("rows that are not centred on zero", (_noise(3, 8, seed=2) + torch.tensor([[2.0], [-3.0], [0.5]]),)),
        ("a square matrix", (_noise(5, 5, seed=3) ** 3,)),
        ("a row of equal numbers, which has kurtosis 0 by definition", (dead,)),
        ("small weights in float16", ((0.01 * _noise(2, 24, seed=4)).half(),)),
        ("a single number", (torch.tensor([[0.7]]),)),
    ]


def _like_kurtosis(
    weight, dim=-1, centre=torch.mean, correction=0, power=4, divide=2, less=3, dead=True, to=torch.double
):
    """Kurtosis with a choice at every place where a mistake can be made; as it stands, a right version."""
    x = weight.to(to)
    deviation = x - centre(x, dim=dim, keepdim=True)
    count = x.shape[dim]
    variance = deviation.square().mean(dim=dim) * (count / max(count - correction, 1))
    flat = (x.amax(dim=dim) == x.amin(dim=dim)) & dead
    ratio = deviation.pow(power).mean(dim=dim) / torch.where(flat, torch.ones_like(variance), variance**divide)
    return torch.where(flat, torch.zeros_like(ratio), ratio - less)


def _zero(x, dim, keepdim):
    return torch.zeros(())


def _median(x, dim, keepdim):
    return x.quantile(0.5, dim=dim, keepdim=keepdim)


KURTOSIS = Exercise(
    name="distributions.kurtosis",
    chapter=CHAPTER,
    title="The excess kurtosis of every row",
    difficulty=1,
    minutes=10,
    reference=_kurtosis,
    cases=_kurtosis_cases,
    outputs=("kurtosis",),
    mistakes={
        "this is the kurtosis itself; the excess is what is left after subtracting 3, so that a bell has 0.": partial(
            _like_kurtosis, less=0
        ),
        "the mean of each row has to be subtracted first; it hardly shows where a row is centred on zero.": partial(
            _like_kurtosis, centre=_zero, dead=False
        ),
        "the median was subtracted where the mean belongs.": partial(_like_kurtosis, centre=_median),
        "the variance was divided by n - 1, as torch.std and torch.var do unless told correction=0. Both moments are "
        "plain means over n numbers.": partial(_like_kurtosis, correction=1),
        "the fourth moment was divided by the variance once; a fourth power needs the variance squared (or the "
        "standard deviation to the fourth), else the result changes with the unit of the weights.": partial(
            _like_kurtosis, divide=1
        ),
        "the fourth moment was divided by the standard deviation; it needs the standard deviation to the fourth (or "
        "the variance squared), else the result changes with the unit of the weights.": partial(
            _like_kurtosis, divide=0.5
        ),
        "this is one kurtosis of all numbers together; each row has its own: take means along the last dim.": (
            lambda weight: _like_kurtosis(weight.flatten())
        ),
        "this is the kurtosis of the columns; a row runs along the last dim (dim=-1).": partial(_like_kurtosis, dim=0),
        "this is the third power, the skewness, which says whether a row leans; tails are seen by the fourth.": partial(
            _like_kurtosis, power=3, divide=1.5, less=0
        ),
        "a row of equal numbers has variance 0, and 0 / 0 is nan; its kurtosis is 0 by the task's definition.": partial(
            _like_kurtosis, dead=False
        ),
        "this was computed in the 16 bits of the weights, where fourth powers of small weights vanish. Convert first, "
        "weight.float() or weight.double().": lambda weight: _like_kurtosis(weight, to=weight.dtype),
    },
    # Means in float32 are off by about 1e-7 of numbers around 3, of which 0.1 may be left after subtracting 3.
    tolerance=1e-4,
    replaces="qtutor.distributions.excess_kurtosis",
    adapt=lambda mine: lambda x, dim=-1, name="x": _along_any_dim(mine, x, dim),
)


def _along_any_dim(mine, x: torch.Tensor, dim: int | None) -> torch.Tensor:
    """The learner's function of rows, used along ``dim`` of a tensor of any shape."""
    last = x.reshape(-1) if dim is None else x.movedim(dim, -1)
    return torch.as_tensor(mine(last.reshape(-1, last.shape[-1]))).double().reshape(last.shape[:-1])


# --- salient channels ---


def _salient(x, share):
    rows = x.double().tolist()
    width = len(rows[0])
    mean_abs = [math.fsum(abs(row[channel]) for row in rows) / len(rows) for channel in range(width)]
    ranked = sorted(range(width), key=lambda channel: (-mean_abs[channel], channel))
    return sorted(ranked[: max(1, round(share * width))])


def _salient_cases():
    swinging = 0.1 * _noise(6, 8)
    swinging[:, 5] = torch.tensor([3.0, -3.0] * 3)  # its mean is 0, its size is not
    swinging[:, 2] = 0.4
    spike = 0.5 + 0.1 * _noise(10, 8, seed=1)
    spike[:, 1] *= 0.4
    spike[4, 1] = 3.0  # one large value in a channel that is small everywhere else
    spike[:, 6] += 0.4
    square = _noise(6, 6, seed=2).abs()
    square[2] *= 9  # a token with large inputs, not a channel
    square[:, 4] += 1.5
    wide = 0.3 * _noise(4, 256, seed=3)
    wide[:, [200, 17, 90]] = torch.tensor([2.0, -5.0, 3.0])
    return [
        ("a channel whose inputs swing between -3 and 3", (swinging, 0.125)),
        ("a channel with a single large input", (spike, 0.125)),
        ("a token with large inputs, which is a row and no channel", (square, 0.17)),
        ("1 % of 256 channels, rounded: three of them", (wide, 0.01)),
        ("1 % of 8 channels, which is still one", (swinging, 0.01)),
        ("half of the channels, in ascending order", (_noise(7, 10, seed=4) * torch.arange(10, 0, -1), 0.5)),
        ("30 % of 8 channels, which rounds down to two", (_noise(5, 8, seed=6), 0.3)),
        ("all of them", (_noise(3, 4, seed=5), 1.0)),
        ("inputs in bfloat16", (swinging.bfloat16(), 0.25)),
    ]


def _mean_abs(x):
    return x.abs().mean(dim=0)


def _nearest_at_least_one(count):
    return max(1, round(count))


def _ascending(chosen, size):
    return chosen.sort().values


def _like_salient(x, share, importance=_mean_abs, whole=_nearest_at_least_one, result=_ascending):
    """Salient channels with a choice at every place where a mistake can be made; as it stands, a right version."""
    size = importance(x.double())
    chosen = size.sort(descending=True, stable=True).indices[: whole(share * x.shape[1])]
    return result(chosen, size)


SALIENT = Exercise(
    name="distributions.salient_channels",
    chapter=CHAPTER,
    title="The channels with the largest inputs",
    difficulty=2,
    minutes=10,
    reference=_salient,
    cases=_salient_cases,
    outputs=("channels",),
    mistakes={
        "channels were ranked by the mean of x, in which positive and negative inputs cancel; take |x| first.": partial(
            _like_salient, importance=lambda x: x.mean(dim=0)
        ),
        "|x| was taken after the mean, when positive and negative inputs have cancelled; take it before.": partial(
            _like_salient, importance=lambda x: x.mean(dim=0).abs()
        ),
        "channels were ranked by their largest input, so that a single token decides; asked for is the mean of |x|.": (
            partial(_like_salient, importance=lambda x: x.abs().amax(dim=0))
        ),
        "these are tokens: the mean was taken along each row. A channel is a column of x [tokens, in]: use dim=0.": (
            partial(_like_salient, importance=lambda x: x.abs().mean(dim=1))
        ),
        "these are tokens, and a share of the tokens. A channel is a column of x [tokens, in]: use dim=0.": (
            lambda x, share: _like_salient(x.T, share)
        ),
        "these are the channels with the smallest inputs; the largest are wanted (topk, or sort descending).": partial(
            _like_salient, importance=lambda x: -_mean_abs(x)
        ),
        "share * in was cut off to a whole number, so that 1 % of a few channels is none: round, and take at least "
        "one.": partial(_like_salient, whole=int),
        "share * in was cut off; 1 % of 256 is 2.56, which rounds to 3.": partial(
            _like_salient, whole=lambda count: max(1, int(count))
        ),
        "share * in was rounded up; asked for is the nearest whole number.": partial(_like_salient, whole=math.ceil),
        "1 % of few channels rounds to none: take at least one.": partial(_like_salient, whole=round),
        "these are the right channels in the order of their importance; sort the indices ascending.": partial(
            _like_salient, result=lambda chosen, size: chosen
        ),
        "this is a mask with a place for every channel; return the indices (mask.nonzero()[:, 0]).": partial(
            _like_salient, result=lambda chosen, size: torch.isin(torch.arange(len(size)), chosen)
        ),
        "these are the means themselves; return the indices of the channels that have them.": partial(
            _like_salient, result=lambda chosen, size: size[chosen]
        ),
    },
    replaces="qtutor.distributions.top_channels",
    # A single row of sizes is its own mean of |x|: importance is a mean, a sum or a norm, and never negative.
    adapt=lambda mine: lambda importance, share: torch.as_tensor(mine(importance[None, :], share)).long(),
)


# --- columns kept ---


def _keep(weight, rounded, channels):
    result = [list(row) for row in rounded.double().tolist()]
    for channel in channels.tolist():
        for row, original in zip(result, weight.double().tolist()):
            row[channel] = original[channel]
    return result


def _keep_cases():
    def pair(rows, columns, seed, dtype=torch.float32):
        weight = _noise(rows, columns, seed=seed)
        return weight.to(dtype), (weight * 2).round().div(2).to(dtype)

    return [
        ("a 3 x 6 matrix and two of its input channels", (*pair(3, 6, 0), torch.tensor([1, 4]))),
        ("a square matrix", (*pair(4, 4, 1), torch.tensor([2]))),
        ("more rows than columns", (*pair(6, 3, 2), torch.tensor([0, 2]))),
        ("no channel at all", (*pair(2, 5, 3), torch.tensor([], dtype=torch.int64))),
        ("every channel", (*pair(2, 3, 4), torch.arange(3))),
        ("weights in bfloat16", (*pair(3, 8, 5, torch.bfloat16), torch.tensor([7]))),
    ]


def _put(start, columns, values):
    """A copy of ``start`` with ``values`` in its ``columns``."""
    result = start.clone()
    result[:, columns] = values
    return result


def _keep_rows(weight, rounded, channels):
    rows = channels[channels < len(weight)]
    return rounded.index_copy(0, rows, weight[rows])


KEEP = Exercise(
    name="distributions.keep_columns",
    chapter=CHAPTER,
    title="Some columns kept as they were",
    difficulty=1,
    minutes=5,
    reference=_keep,
    cases=_keep_cases,
    outputs=("mixed",),
    mistakes={
        "rows were kept. Input channels are the columns of weight [out, in]: index the second dim, as in "
        "mixed[:, channels].": _keep_rows,
        "the other way round: the channels named are to stay exact, all others are rounded.": (
            lambda weight, rounded, channels: _put(weight, channels, rounded[:, channels])
        ),
        "nothing was kept: this is the rounded matrix.": lambda weight, rounded, channels: rounded.clone(),
        "the first columns were kept, as many as there are channels; channels holds the indices of those to keep.": (
            lambda weight, rounded, channels: _put(rounded, torch.arange(len(channels)), weight[:, : len(channels)])
        ),
        "the columns were set to 0; they belong to the original weights.": (
            lambda weight, rounded, channels: _put(rounded, channels, 0)
        ),
        "only the kept columns are left; all others have to be the rounded ones.": (
            lambda weight, rounded, channels: _put(torch.zeros_like(weight), channels, weight[:, channels])
        ),
        "the originals were added to the rounded columns; they take their place.": (
            lambda weight, rounded, channels: _put(rounded, channels, (rounded + weight)[:, channels])
        ),
        "these are the kept columns alone; return the whole matrix with them in their places.": (
            lambda weight, rounded, channels: weight[:, channels]
        ),
    },
    replaces="qtutor.distributions.keep_channels",
    adapt=lambda mine: (
        lambda weight, quantized, channels: torch.as_tensor(
            mine(weight, quantized.dequantize(weight.dtype), channels)
        ).to(weight.dtype)
    ),
)

EXERCISES = (KURTOSIS, SALIENT, KEEP)
