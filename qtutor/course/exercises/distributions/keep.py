"""``distributions.keep_columns``: some columns exact, all others rounded."""

import torch

from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.inputs import noise


def _keep(weight, rounded, channels):
    result = [list(row) for row in rounded.double().tolist()]
    for channel in channels.tolist():
        for row, original in zip(result, weight.double().tolist()):
            row[channel] = original[channel]
    return result


def _keep_cases():
    def pair(rows, columns, seed, dtype=torch.float32):
        weight = noise(rows, columns, seed=seed)
        return weight.to(dtype), (weight * 2).round().div(2).to(dtype)

    return [
        ("a 3 x 6 matrix and two of its input channels", (*pair(3, 6, 0), torch.tensor([1, 4]))),
        ("a square matrix", (*pair(4, 4, 1), torch.tensor([2]))),
        ("more rows than columns", (*pair(6, 3, 2), torch.tensor([0, 2]))),
        ("no channel at all", (*pair(2, 5, 3), torch.tensor([], dtype=torch.int64))),
        ("every channel", (*pair(2, 3, 4), torch.arange(3))),
        ("weights in bfloat16", (*pair(3, 8, 5, torch.bfloat16), torch.tensor([7]))),
    ]


@solution
def right(weight, rounded, channels):
    mixed = rounded.clone()
    mixed[:, channels] = weight[:, channels]
    return mixed


MISTAKES = {
    "rows were kept. Input channels are the columns of weight [out, in]: index the second dim, as in "
    "mixed[:, channels].": right.edit(
        "mixed[:, channels] = weight[:, channels]",
        "rows = channels[channels < len(weight)]; mixed[rows] = weight[rows]",
    ),
    "the other way round: the channels named are to stay exact, all others are rounded.": (
        right.edit(("rounded.clone()", "weight.clone()"), ("= weight[", "= rounded["))
    ),
    "nothing was kept: this is the rounded matrix.": right.edit("mixed[:, channels] = weight[:, channels]", "pass"),
    "the first columns were kept, as many as there are channels; channels holds the indices of those to keep.": (
        right.edit("mixed[", "channels = torch.arange(len(channels)); mixed[")
    ),
    "the columns were set to 0; they belong to the original weights.": right.edit("weight[:, channels]", "0"),
    "only the kept columns are left; all others have to be the rounded ones.": (
        right.edit("rounded.clone()", "torch.zeros_like(weight)")
    ),
    "the originals were added to the rounded columns; they take their place.": right.edit("= weight", "+= weight"),
    "these are the kept columns alone; return the whole matrix with them in their places.": (
        right.edit("return mixed", "return weight[:, channels]")
    ),
}

KEEP = Exercise(
    name="distributions.keep_columns",
    chapter="03_distributions",
    title="Some columns kept as they were",
    difficulty=1,
    minutes=5,
    reference=_keep,
    cases=_keep_cases,
    outputs=("mixed",),
    mistakes=MISTAKES,
    replaces="qtutor.measure.distributions.keep_channels",
    adapt=lambda mine: (
        lambda weight, quantized, channels: torch.as_tensor(
            mine(weight, quantized.dequantize(weight.dtype), channels)
        ).to(weight.dtype)
    ),
)
