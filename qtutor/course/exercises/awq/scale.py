"""``awq.scale_of``: compute a scale for every channel from the sizes of the inputs and a ratio."""

import math

import numpy as np
import torch

from qtutor.course.exercises.adapting import tensor
from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.inputs import noise
from qtutor.methods.awq import scale_of as packages_own


def scale_of(mean_abs, ratio):
    powers = [math.pow(max(size, 1e-4), ratio) for size in mean_abs.double().tolist()]
    middle = math.sqrt(max(powers) * min(powers))
    return [power / middle for power in powers]


def cases():
    silent = noise(6, seed=1).abs()
    silent[3] = 0
    return [
        ("two channels, the second a hundred times as loud", (torch.tensor([1.0, 100.0]), 0.5)),
        ("ratio 0", (noise(5, seed=2).abs(), 0.0)),
        ("eight channels, ratio 0.35", (noise(8, seed=3).abs(), 0.35)),
        ("one loud channel, ratio 0.95", (torch.tensor([0.2, 0.3, 9.0, 0.25, 0.4]), 0.95)),
        ("a silent channel", (silent, 0.5)),
        ("a channel far below 1e-4", (torch.tensor([2.0, 1e-7, 0.5]), 0.75)),
        ("channels that are all alike", (torch.full((4,), 3.0), 0.6)),
        ("in float64, the dtype of statistics", (noise(7, seed=4).abs().double(), 0.2)),
    ]


@solution
def right(mean_abs, ratio):
    size = mean_abs.double().clamp(min=1e-4)
    scale = size**ratio
    middle = (scale.max() * scale.min()).sqrt()
    return scale / middle


NO_FLOOR = (".clamp(min=1e-4)", "")

MISTAKES = {
    "a silent channel has size 0, and 0 to any power is 0: take at least 1e-4 (clamp) before raising to the ratio.": (
        right.edit(NO_FLOOR)
    ),
    "1e-4 is the least *size* of a channel: clamp before raising to the ratio, not after.": (
        right.edit(NO_FLOOR, ("size**ratio", "(size**ratio).clamp(min=1e-4)"))
    ),
    "channels below 1e-4 get the scale 1; they count as 1e-4, and are then raised to the ratio like the others.": (
        right.edit(NO_FLOOR, ("size**ratio", "torch.where(size < 1e-4, 1, size**ratio)"))
    ),
    "1e-4 is added to every channel. Only those below count as 1e-4: clamp(min=1e-4).": (
        right.edit("mean_abs.double().clamp(min=1e-4)", "mean_abs.double() + 1e-4")
    ),
    "channels are clamped from above, so that all but the silent ones are alike. Clamp from below: min=1e-4.": (
        right.edit("min=1e-4", "max=1e-4")
    ),
    "only a channel of exactly 0 counts as 1e-4. Every channel below 1e-4 does: clamp(min=1e-4).": (
        right.edit((".clamp(min=1e-4)", ""), ("size**ratio", "torch.where(size == 0, 1e-4, size) ** ratio"))
    ),
    "the scales are multiplied by the middle; divide by it.": right.edit("/ middle", "* middle"),
    "the middle is the root of a sum. Take the root of a product, sqrt(max * min).": right.edit(
        "* scale.min()", "+ scale.min()"
    ),
    "the middle is sqrt(max / min). It is sqrt(max * min), so that the largest times the smallest becomes 1.": (
        right.edit("* scale.min()", "/ scale.min()")
    ),
    "you divide by the root of the largest alone; the middle is sqrt(max * min).": right.edit(" * scale.min()", ""),
    "you divide by the root of the product of all scales; only the largest and the smallest count.": (
        right.edit("scale.max() * scale.min()", "scale.prod()")
    ),
    "the scales are centred on their median; the middle is sqrt(max * min).": (
        right.edit("/ middle", "/ scale.median()")
    ),
    "you computed the middle of the sizes, before they were raised to the ratio. Compute the middle of the scales.": (
        right.edit("scale.max() * scale.min()", "size.max() * size.min()")
    ),
    "these are logarithms times the ratio; exp() is missing, or compute size ** ratio directly.": (
        right.edit("size**ratio", "size.log() * ratio")
    ),
    "the ratio is raised to the size; raise the size to the ratio: mean_abs ** ratio.": (
        right.edit("size**ratio", "ratio**size")
    ),
    "sizes are raised to 1 / ratio; it is mean_abs ** ratio.": right.edit(
        "size**ratio", "size ** (1 / max(ratio, 1e-9))"
    ),
    "the ratio is not used: raise the sizes to it. (With ratio 0 all scales are 1.)": right.edit("size**ratio", "size"),
    "sizes are raised to half of the ratio: the root is only for the middle.": (
        right.edit("size**ratio", "size ** (ratio / 2)")
    ),
    "the scales are rounded to 16 bits. Leave them in float32 or float64.": (
        right.edit("return scale / middle", "return (scale / middle).half()")
    ),
    "the scales are not centred: divide by the root of the largest times the smallest, sqrt(max * min).": (
        right.edit(" / middle", "")
    ),
    "you divide by max * min. Divide by its root, sqrt(max * min), so that the largest times the smallest becomes "
    "1.": right.edit(".sqrt()", ""),
    "the scales are centred on their mean; the middle here is sqrt(max * min).": (
        right.edit("/ middle", "/ scale.mean()")
    ),
    "the scales are centred on their geometric mean; here only the two ends count, sqrt(max * min).": (
        right.edit("/ middle", "/ scale.log().mean().exp()")
    ),
    "you divide by the largest scale; the middle is sqrt(max * min).": right.edit("/ middle", "/ scale.max()"),
    "you divide by the smallest scale; the middle is sqrt(max * min).": right.edit("/ middle", "/ scale.min()"),
    "the scales are centred halfway between largest and smallest. In a product the middle is sqrt(max * min).": (
        right.edit("* scale.min()).sqrt()", "+ scale.min()) / 2")
    ),
    "the size is multiplied by the ratio; raise it to the ratio: mean_abs ** ratio. (With ratio 0, all scales are then "
    "1.)": right.edit("size**ratio", "size * ratio"),
    "loud channels get the smallest scales. Their columns need the largest ones: mean_abs ** ratio.": (
        right.edit("size**ratio", "size**-ratio")
    ),
    "this is mean_abs ** (1 - ratio). Ratio 0 has to leave everything as it is.": (
        right.edit("size**ratio", "size ** (1 - ratio)")
    ),
}


def _floor_holds(arguments, results) -> bool:
    """Whether all channels up to 1e-4 have the scale of a channel of exactly 1e-4, relative to the loudest channel."""
    size, (scale,) = arguments[0].double().numpy(), results
    loudest = size.argmax()
    expected = scale[loudest] * (1e-4 / size[loudest]) ** arguments[1]
    return np.allclose(scale[size <= 1e-4], expected, rtol=1e-4)


def adapt(theirs):
    """A learner's ``scales_of`` replaces :func:`qtutor.awq.scale_of`, unless the weights decide, too."""

    def scale_of(mean_abs, ratio, weights=None, group_size=-1):
        if weights is not None:
            return packages_own(mean_abs, ratio, weights, group_size)
        return tensor(theirs(mean_abs, ratio), torch.float32, mean_abs)

    return scale_of


SCALE = Exercise(
    name="awq.scale_of",
    title="The scales of a ratio",
    difficulty=1,
    minutes=5,
    reference=scale_of,
    cases=cases,
    outputs=("scale",),
    mistakes=MISTAKES,
    properties=(
        ("channels up to 1e-4 count as 1e-4: clamp them before you raise to the ratio.", _floor_holds),
        (
            "the largest times the smallest is 1: divide by sqrt(max * min).",
            lambda arguments, results: bool(abs(results[0].max() * results[0].min() - 1) < 1e-4),
        ),
    ),
    # pow() in float32 of numbers from 1e-4 to 100 is off by a few times 1e-7.
    tolerance=3e-6,
    replaces="qtutor.methods.awq.scale_of",
    adapt=adapt,
)
