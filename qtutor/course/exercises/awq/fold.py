"""``awq.fold``: divide a norm's gains, multiply the columns that read them, and keep the product the same."""

import numpy as np
import torch

from qtutor.course.exercises.adapting import tensor
from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.inputs import noise
from qtutor.methods.awq import fold as packages_own


def fold(gain, weight, scale, dtype):
    new_gain, columns = [], []
    for i, (g, s) in enumerate(zip(gain.double().tolist(), scale.double().tolist())):
        divided = torch.tensor(g / s, dtype=torch.float64).to(dtype).item()
        factor = 1.0 if g == 0 else g / divided
        new_gain.append(divided)
        columns.append([value * factor for value in weight[:, i].double().tolist()])
    return new_gain, [list(row) for row in zip(*columns)]


def cases():
    dead = 1 + 0.3 * noise(5, seed=8)
    dead[[1, 4]] = 0
    return [
        (
            "two channels, factors that are powers of two",
            (
                torch.tensor([1.0, 3.0]),
                torch.tensor([[0.5, -0.25], [1.0, 2.0]]),
                torch.tensor([4.0, 0.5]),
                torch.float32,
            ),
        ),
        ("a 3 x 6 matrix", (*_norm_and_reader(3, 6, 1), torch.float32)),
        ("a square matrix", (*_norm_and_reader(4, 4, 2), torch.float32)),
        ("a norm that is stored in bfloat16", (*_norm_and_reader(3, 8, 3), torch.bfloat16)),
        ("a norm that is stored in float16", (*_norm_and_reader(6, 4, 4), torch.float16)),
        ("scales of 1, with which nothing happens", (*_norm_and_reader(2, 3, 5)[:2], torch.ones(3), torch.float32)),
        (
            "gains below zero",
            (-1 - noise(4, seed=6).abs(), noise(2, 4, seed=7), torch.tensor([2.0, 0.3, 1.7, 5.0]), torch.bfloat16),
        ),
        ("two gains that are 0", (dead, noise(3, 5, seed=9), torch.tensor([0.7, 3.0, 1.3, 0.2, 0.6]), torch.bfloat16)),
    ]


def _norm_and_reader(rows: int, columns: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A norm's gains, the weights that read them, and a scale for each channel."""
    return (
        1 + 0.2 * noise(columns, seed=seed),
        noise(rows, columns, seed=seed + 50),
        noise(columns, seed=seed + 90).exp(),
    )


@solution
def right(gain, weight, scale, dtype):
    gain, weight, scale = gain.double(), weight.double(), scale.double()
    stored = (gain / scale).to(dtype).double()
    factor = torch.where(gain == 0, 1, gain / stored)  # a gain of 0 would make it 0 / 0
    return stored, weight * factor


MISTAKES = {
    "it is the other way round: multiply the columns by the scale, and divide the gains by it.": (
        right.edit("gain / scale", "gain * scale")
    ),
    "it is the other way round, and the gains are not rounded: gain / scale, stored in dtype, and the columns times "
    "the factor that then really applies.": right.edit(
        ("(gain / scale).to(dtype)", "(gain * scale)"), ("torch.where(gain == 0, 1, gain / stored)", "gain / stored")
    ),
    "gains and columns are both multiplied. One of the two has to undo the other: divide the gains.": (
        right.edit(("gain / scale", "gain * scale"), ("gain / stored", "scale"))
    ),
    "gains and columns are both divided. One of the two has to undo the other: multiply the columns.": (
        right.edit("gain / stored", "1 / scale")
    ),
    "gain and scale are rounded before they are divided. Divide first, then round once: (gain / scale).to(dtype).": (
        right.edit("(gain / scale).to(dtype)", "(gain.to(dtype) / scale.to(dtype))")
    ),
    "the gain is rounded before it is divided, too. Divide the unrounded gain, then round: (gain / scale).to(dtype).": (
        right.edit("(gain / scale).to(dtype)", "(gain.to(dtype).double() / scale).to(dtype)")
    ),
    "the factor comes from a rounded gain. It is the unrounded old gain over the stored one: gain / stored.": (
        right.edit("gain / stored", "gain.to(dtype) / stored")
    ),
    "two things: the old gain is rounded, before it is divided and in the factor. Only what is stored is rounded: "
    "stored = (gain / scale).to(dtype), factor = gain / stored.": right.edit(
        ("(gain / scale).to(dtype)", "(gain.to(dtype).double() / scale).to(dtype)"),
        ("gain / stored", "gain.to(dtype) / stored"),
    ),
    "the columns are multiplied by the scale, rounded to dtype. The gain is stored, not the scale: the factor that "
    "really applies is gain / stored gain.": right.edit("gain / stored", "scale.to(dtype).double()"),
    "the factor is rounded to dtype. The factor is not stored: multiply each column by gain / stored as it is.": (
        right.edit("gain / stored", "(gain / stored).to(dtype).double()")
    ),
    "the factor is upside down: it is old gain over stored gain, and makes up for what the gain lost.": (
        right.edit("gain / stored", "stored / gain")
    ),
    "the new gain is upside down: it is gain / scale, not scale / gain.": right.edit("gain / scale", "scale / gain"),
    "the two results are exchanged: return the gains, then the weights.": (
        right.edit("stored, weight * factor", "weight * factor, stored")
    ),
    "the weights are rounded to dtype before they are multiplied. Only the norm is stored in it.": (
        right.edit("weight * factor", "weight.to(dtype).double() * factor")
    ),
    "a gain of 0 became 1. That channel is silent and has to stay so: leave the gain 0, and the column as it is.": (
        right.edit("return stored", "return torch.where(gain == 0, 1, stored)")
    ),
    "if a gain is 0, the column becomes 0 as well. Leave it as it is: its factor is 1.": (
        right.edit("torch.where(gain == 0, 1,", "torch.where(gain == 0, 0,")
    ),
    "if a gain is 0, the column is still multiplied by the scale. Leave it as it is: its factor is 1.": (
        right.edit("torch.where(gain == 0, 1,", "torch.where(gain == 0, scale,")
    ),
    "gains are divided by the root of the scale. The whole scale moves from the gain to the column.": (
        right.edit("gain / scale", "gain / scale.sqrt()")
    ),
    "gains are rounded to float16, no matter what dtype is. Round to the given dtype.": (
        right.edit("to(dtype)", "half()")
    ),
    "gains are rounded to bfloat16, no matter what dtype is. Round to the given dtype.": (
        right.edit("to(dtype)", "bfloat16()")
    ),
    "only the gains have changed; the columns that read them have to make up for it.": right.edit(" * factor", ""),
    "only the columns have changed; the gains have to make up for it.": right.edit("return stored", "return gain"),
    "the new gains are not rounded to the dtype in which they are stored: (gain / scale).to(dtype).": right.edit(
        ".to(dtype)", ""
    ),
    "the columns are multiplied by the requested scale. The stored gain is rounded, so the factor that really applies "
    "is gain / stored gain; only with this factor does nothing change.": right.edit("gain / stored", "scale"),
    "rows are scaled. An input channel is a column of weight [out, in]: multiply by factor, not by factor[:, None].": (
        right.edit("* factor", "* factor[:, None]")
    ),
    "a gain of 0 stays 0, and 0 / 0 is nan: leave such a column as it is, with torch.where.": (
        right.edit("torch.where(gain == 0, 1, gain / stored)", "gain / stored")
    ),
    "the weights are rounded to dtype as well. Only the norm is stored in it; they are still to be quantized.": (
        right.edit("weight * factor", "(weight * factor).to(dtype)")
    ),
}


def _nothing_changes(arguments, results) -> bool:
    """Whether gains times columns are the same products as before."""
    gain, weight = (values.double().numpy() for values in arguments[:2])
    return np.allclose(results[0] * results[1], gain * weight, rtol=1e-5, atol=1e-12)


def _stored(arguments, results) -> bool:
    """Whether ``dtype`` can hold every gain exactly; gains for float32 may be returned in float64."""
    gain, dtype = torch.from_numpy(results[0]).double(), arguments[3]
    return dtype == torch.float32 or torch.equal(gain.to(dtype).double(), gain)


def adapt(theirs):
    """A learner's ``fold_scale`` replaces :func:`qtutor.awq.fold` for norms; the package folds linear layers itself."""

    @torch.no_grad()
    def fold(source, layers, scale, dtype=torch.float32, norm_offset=0.0):
        if source.weight.dim() != 1 or getattr(source, "bias", None) is not None or norm_offset:
            return packages_own(source, layers, scale, dtype, norm_offset)
        readers = torch.cat([layer.weight for layer in layers])
        gain, columns = theirs(source.weight.clone(), readers, scale.to(readers.device), dtype)
        columns = tensor(columns, torch.float32, readers).split([len(layer.weight) for layer in layers])
        source.weight.copy_(tensor(gain, torch.float32, readers))
        for layer, weight in zip(layers, columns):
            layer.weight.copy_(weight)

    return fold


FOLD = Exercise(
    name="awq.fold",
    title="A scale folded into a norm and its readers",
    difficulty=2,
    minutes=10,
    reference=fold,
    cases=cases,
    outputs=("gain", "weight"),
    mistakes=MISTAKES,
    properties=(
        ("the new gains are numbers that dtype can store: (gain / scale).to(dtype).", _stored),
        ("gain times column has changed: folding must not change it.", _nothing_changes),
    ),
    # Two divisions and a product in float32 are each off by 6e-8 at most.
    tolerance=1e-6,
    replaces="qtutor.methods.awq.fold",
    adapt=adapt,
)
