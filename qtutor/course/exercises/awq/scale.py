"""``awq.scale_of``: from the size of the inputs and a ratio to a scale for every channel."""

import math

import torch

from qtutor.course.exercises.adapting import tensor
from qtutor.course.exercises.awq.inputs import CHAPTER
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
        ("in float64, as statistics come", (noise(7, seed=4).abs().double(), 0.2)),
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
    "the scales are not centred: divide by the root of the largest times the smallest, sqrt(max * min).": (
        right.edit(" / middle", "")
    ),
    "you divide by max * min. It is the root of it, sqrt(max * min), so that the largest times the smallest becomes "
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
    "the size is multiplied by the ratio; it is raised to it: mean_abs ** ratio. (With ratio 0 all are then 1.)": (
        right.edit("size**ratio", "size * ratio")
    ),
    "loud channels get the smallest scales. Their columns are the ones to be multiplied: mean_abs ** ratio.": (
        right.edit("size**ratio", "size**-ratio")
    ),
    "this is mean_abs ** (1 - ratio). Ratio 0 is to leave everything as it is.": (
        right.edit("size**ratio", "size ** (1 - ratio)")
    ),
}


def adapt(theirs):
    """A learner's ``scales_of`` in place of :func:`qtutor.awq.scale_of`, where weights have no say."""

    def scale_of(mean_abs, ratio, weights=None, group_size=-1):
        if weights is not None:
            return packages_own(mean_abs, ratio, weights, group_size)
        return tensor(theirs(mean_abs, ratio), torch.float32, mean_abs)

    return scale_of


SCALE = Exercise(
    name="awq.scale_of",
    chapter=CHAPTER,
    title="The scales of a ratio",
    difficulty=1,
    minutes=5,
    reference=scale_of,
    cases=cases,
    outputs=("scale",),
    mistakes=MISTAKES,
    # pow() in float32 of numbers from 1e-4 to 100 is off by a few times 1e-7.
    tolerance=3e-6,
    replaces="qtutor.methods.awq.scale_of",
    adapt=adapt,
)
