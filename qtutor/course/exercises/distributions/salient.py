"""``distributions.salient_channels``: which input channels are loudest."""

import math

import torch

from qtutor.course.exercises.edits import solution
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
    mixed = 0.1 + 0.02 * noise(10, 6, seed=7).abs()
    mixed[:, 0] = 2  # the largest median
    mixed[3, 2] = -12  # the largest input
    mixed[:2, 3] = 9  # the largest mean of squares
    mixed[2:6, 5] = torch.tensor([6.0, -6, 6, -6])  # the largest mean of |x|
    near = torch.tensor([[0.5, 2.0, -1.0, 0.25, 2.0004, 1.0]] * 4)  # in float16 and bfloat16 both are 2
    equal = torch.tensor([[1.0, -4, 0, 2, 1], [1, 4, 2, 0, -1]])
    return [
        ("a channel whose inputs swing between -3 and 3", (swinging, 0.125)),
        ("a channel with a single large input", (spike, 0.125)),
        ("a token with large inputs, which is a row, not a channel", (square, 0.17)),
        ("1 % of 256 channels, rounded: three of them", (wide, 0.01)),
        ("1 % of 8 channels, which is still one", (swinging, 0.01)),
        ("half of the channels, in ascending order", (noise(7, 10, seed=4) * torch.arange(10, 0, -1), 0.5)),
        ("30 % of 8 channels, which rounds down to two", (noise(5, 8, seed=6), 0.3)),
        ("all channels", (noise(3, 4, seed=5), 1.0)),
        ("channels with one, two or four large inputs, or with only medium ones", (mixed, 0.17)),
        ("two channels that differ by a five-thousandth", (near, 0.17)),
        ("80 % of 256 channels", (wide, 0.8)),
        ("four channels of equal size, of which the lower indices come first", (equal, 0.4)),
        ("four channels of equal size, and two of them", (equal, 0.6)),
        ("64 channels of equal size, and half of them", (torch.ones(2, 64), 0.5)),
        ("inputs in bfloat16", (swinging.bfloat16(), 0.25)),
    ]


@solution
def right(x, share):
    size = x.double().abs().mean(dim=0)
    count = max(1, round(share * x.shape[1]))
    chosen = size.argsort(descending=True, stable=True)[:count]
    return chosen.sort().values


COUNT, STABLE, SORTED = "max(1, round(share * x.shape[1]))", "descending=True, stable=True", "chosen.sort().values"
CHOSEN = f"size.argsort({STABLE})[:count]"

MISTAKES = {
    "channels were ranked by the mean of x squared (or the norm), in which large inputs count more; rank them by the "
    "mean of |x|.": right.edit("abs()", "square()"),
    "channels were ranked by how far they spread (std, var), without their mean; rank them by the mean of |x|.": (
        right.edit("abs().mean(dim=0)", "var(dim=0, correction=0)")
    ),
    "channels were ranked by the median of |x|, which ignores a few large inputs; rank them by the mean.": (
        right.edit("mean(dim=0)", "median(dim=0).values")
    ),
    "channels were ranked by their largest input, without |x|; rank them by the mean of |x|.": (
        right.edit("abs().mean(", "amax(")
    ),
    "topk does not guarantee an order of equal values; of equals, the lower index comes first. Use "
    "sort(descending=True, stable=True).": right.edit(CHOSEN, "size.topk(count).indices"),
    "of channels of equal size, you took the higher index; take the lower one: sort(descending=True, stable=True).": (
        right.edit(f"size.argsort({STABLE})", "(len(size) - 1 - size.flip(0).argsort(descending=True, stable=True))")
    ),
    "too many channels are chosen if channels have equal sizes (>=). Of equals, take those with the lower index.": (
        right.edit(CHOSEN, "(size >= size.sort(descending=True).values[count - 1]).nonzero()[:, 0]")
    ),
    "the means were computed in 16 bits (float16), in which nearly equal ones become equal. Convert first, "
    "x.float().": right.edit("x.double().abs().mean(dim=0)", "x.half().abs().mean(dim=0)"),
    "channels above a quantile are chosen, which may be too many or too few: take `count` of them.": (
        right.edit(CHOSEN, "(size >= size.quantile(1 - share)).nonzero()[:, 0]")
    ),
    "share is a part, not a percentage: 0.01 is 1 %. Do not divide it by 100.": (
        right.edit("share * x", "share / 100 * x")
    ),
    "one channel too many is chosen: choose round(share * in), and add nothing.": right.edit(COUNT, f"{COUNT} + 1"),
    "only one channel is chosen, no matter what the share is: take round(share * in) of them.": right.edit(COUNT, "1"),
    "the count is a share of the tokens; take a share of the channels, x.shape[1].": right.edit(
        "x.shape[1]", "x.shape[0]"
    ),
    "the indices are in descending order; return them in ascending order.": (
        right.edit(SORTED, "chosen.sort(descending=True).values")
    ),
    "these are all other channels; return the channels with the largest inputs.": right.edit("[:count]", "[count:]"),
    "this is the number of channels; return their indices.": right.edit(SORTED, "len(chosen)"),
    "channels are counted from 1; indices begin at 0.": right.edit(SORTED, f"{SORTED} + 1"),
    "channels were ranked by the mean of x, in which positive and negative inputs cancel; take |x| first.": (
        right.edit(".abs()", "")
    ),
    "you took |x| after the mean, when positive and negative inputs had already cancelled; take it before.": (
        right.edit("abs().mean(dim=0)", "mean(dim=0).abs()")
    ),
    "channels were ranked by their largest input, so that a single token decides; rank them by the mean of |x|.": (
        right.edit("mean(", "amax(")
    ),
    "these are tokens: the mean was taken along each row. A channel is a column of x [tokens, in]: use dim=0.": (
        right.edit("dim=0", "dim=1")
    ),
    "these are tokens, and a share of the tokens. A channel is a column of x [tokens, in]: use dim=0.": (
        right.edit(("dim=0", "dim=1"), ("shape[1]", "shape[0]"))
    ),
    "these are the channels with the smallest inputs; return those with the largest (topk, or sort descending).": (
        right.edit("descending=True, ", "")
    ),
    "share * in was rounded down, so 1 % of a few channels is none: round, and take at least one.": right.edit(
        COUNT, "int(share * x.shape[1])"
    ),
    "share * in was rounded down; 1 % of 256 is 2.56, which rounds to 3.": right.edit("round", "int"),
    "share * in was rounded up; round to the nearest whole number.": right.edit("round", "math.ceil"),
    "1 % of a few channels rounds to none: take at least one.": right.edit(COUNT, "round(share * x.shape[1])"),
    "these are the right channels in the order of their importance; sort the indices ascending.": (
        right.edit(".sort().values", "")
    ),
    "this is a mask with a place for every channel; return the indices (mask.nonzero()[:, 0]).": (
        right.edit(SORTED, "torch.isin(torch.arange(len(size)), chosen)")
    ),
    "these are the means themselves; return the indices of these channels.": right.edit(SORTED, "size[chosen]"),
}

SALIENT = Exercise(
    name="distributions.salient_channels",
    title="The channels with the largest inputs",
    difficulty=2,
    minutes=10,
    reference=_salient,
    cases=_salient_cases,
    outputs=("channels",),
    mistakes=MISTAKES,
    replaces="qtutor.measure.distributions.top_channels",
    # A single row of sizes equals its own mean of |x|, because sizes (a mean, a sum or a norm) are never negative.
    adapt=lambda mine: lambda importance, share: torch.as_tensor(mine(importance[None, :], share)).long(),
)
