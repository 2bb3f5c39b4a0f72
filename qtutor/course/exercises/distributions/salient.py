"""``distributions.salient_channels``: which input channels are loudest."""

import math
from functools import partial

import torch

from qtutor.course.exercises.distributions.inputs import CHAPTER
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.inputs import noise


def _salient(x, share):
    rows = x.double().tolist()
    width = len(rows[0])
    mean_abs = [math.fsum(abs(row[channel]) for row in rows) / len(rows) for channel in range(width)]
    ranked = sorted(range(width), key=lambda channel: (-mean_abs[channel], channel))
    return sorted(ranked[: max(1, round(share * width))])


def _salient_cases():
    swinging = 0.1 * noise(6, 8)
    swinging[:, 5] = torch.tensor([3.0, -3.0] * 3)  # its mean is 0, its size is not
    swinging[:, 2] = 0.4
    spike = 0.5 + 0.1 * noise(10, 8, seed=1)
    spike[:, 1] *= 0.4
    spike[4, 1] = 3.0  # one large value in a channel that is small everywhere else
    spike[:, 6] += 0.4
    square = noise(6, 6, seed=2).abs()
    square[2] *= 9  # a token with large inputs, not a channel
    square[:, 4] += 1.5
    wide = 0.3 * noise(4, 256, seed=3)
    wide[:, [200, 17, 90]] = torch.tensor([2.0, -5.0, 3.0])
    return [
        ("a channel whose inputs swing between -3 and 3", (swinging, 0.125)),
        ("a channel with a single large input", (spike, 0.125)),
        ("a token with large inputs, which is a row and no channel", (square, 0.17)),
        ("1 % of 256 channels, rounded: three of them", (wide, 0.01)),
        ("1 % of 8 channels, which is still one", (swinging, 0.01)),
        ("half of the channels, in ascending order", (noise(7, 10, seed=4) * torch.arange(10, 0, -1), 0.5)),
        ("30 % of 8 channels, which rounds down to two", (noise(5, 8, seed=6), 0.3)),
        ("all of them", (noise(3, 4, seed=5), 1.0)),
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
    replaces="qtutor.measure.distributions.top_channels",
    # A single row of sizes is its own mean of |x|: importance is a mean, a sum or a norm, and never negative.
    adapt=lambda mine: lambda importance, share: torch.as_tensor(mine(importance[None, :], share)).long(),
)
