"""``distributions.keep_columns``: keep some columns exact, and round all others."""

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


KEPT, OTHERS = "weight[:, channels]", "[i for i in range(weight.shape[1]) if i not in channels]"

MISTAKES = {
    "rows were kept, but there are fewer rows than channels. Input channels are the columns of weight [out, in]: index "
    "the second dim, as in mixed[:, channels].": right.edit(
        "mixed[:, channels] = weight[:, channels]", "mixed[channels] = weight[channels]"
    ),
    "channels were counted from 1; they are indices, which begin at 0.": right.edit(
        "mixed[:, channels] = weight[:, channels]", "mixed[:, channels - 1] = weight[:, channels - 1]"
    ),
    "only the first of the channels was kept; keep all of them.": right.edit(
        "mixed[:", "channels = channels[:1]; mixed[:"
    ),
    "only the last of the channels was kept; keep all of them.": right.edit(
        "mixed[:", "channels = channels[-1:]; mixed[:"
    ),
    "channels were kept only in the first row; keep whole columns: mixed[:, channels].": right.edit(
        "mixed[:, channels] = weight[:, channels]", "mixed[0, channels] = weight[0, channels]"
    ),
    "the kept columns are half-way between the original and the rounded ones; keep the original ones.": (
        right.edit(f"= {KEPT}", f"= ({KEPT} + mixed[:, channels]) / 2")
    ),
    "the kept columns were rounded to 16 bits (float16); leave them exactly as they are in weight.": (
        right.edit(f"= {KEPT}", f"= {KEPT}.half().to(weight.dtype)")
    ),
    "the kept columns were rounded to 16 bits (bfloat16); leave them exactly as they are in weight.": (
        right.edit(f"= {KEPT}", f"= {KEPT}.bfloat16().to(weight.dtype)")
    ),
    "nothing was rounded: these are the weights themselves.": right.edit("rounded.clone()", "weight.clone()"),
    "the originals were subtracted from the rounded columns; put them in the place of these columns.": right.edit(
        "= weight", "-= weight"
    ),
    "this is the error, the difference from weight; return the matrix itself.": (
        right.edit("return mixed", "return mixed - weight")
    ),
    "the result is transposed: it is [out, in], like the weights.": right.edit("return mixed", "return mixed.T"),
    "the kept columns are missing; return the whole matrix with them in their places.": (
        right.edit("return mixed", f"return mixed[:, {OTHERS}]")
    ),
    "the kept columns are moved to the front. They stay in their places.": (
        right.edit("return mixed", f"return torch.cat([{KEPT}, rounded[:, {OTHERS}]], dim=1)")
    ),
    "the kept columns are moved to the end. They stay in their places.": (
        right.edit("return mixed", f"return torch.cat([rounded[:, {OTHERS}], {KEPT}], dim=1)")
    ),
    "rows were kept. Input channels are the columns of weight [out, in]: index the second dim, as in "
    "mixed[:, channels].": right.edit(
        "mixed[:, channels] = weight[:, channels]",
        "rows = channels[channels < len(weight)]; mixed[rows] = weight[rows]",
    ),
    "it is the other way round: the given channels stay exact, and all others are rounded.": (
        right.edit(("rounded.clone()", "weight.clone()"), ("= weight[", "= rounded["))
    ),
    "nothing was kept: this is the rounded matrix.": right.edit("mixed[:, channels] = weight[:, channels]", "pass"),
    "the first columns were kept, as many as there are channels; channels holds the indices of those to keep.": (
        right.edit("mixed[", "channels = torch.arange(len(channels)); mixed[")
    ),
    "the columns were set to 0; set them to the original weights.": right.edit(KEPT, "0"),
    "only the kept columns are left; all others have to be the rounded ones.": (
        right.edit("rounded.clone()", "torch.zeros_like(weight)")
    ),
    "the originals were added to the rounded columns; put them in the place of these columns.": right.edit(
        "= weight", "+= weight"
    ),
    "these are the kept columns alone; return the whole matrix with them in their places.": (
        right.edit("return mixed", "return weight[:, channels]")
    ),
}

KEEP = Exercise(
    name="distributions.keep_columns",
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
