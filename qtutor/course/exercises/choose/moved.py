"""``choose.moved``: the share of codes that a training step changes when the weights are rounded again."""

import torch

from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.inputs import noise


def moved(codes, scales, step, bits):
    changed = total = 0
    group = codes.shape[1] // scales.shape[1]
    for row, (of_codes, of_step) in enumerate(zip(codes.tolist(), step.tolist(), strict=True)):
        for column, (code, change) in enumerate(zip(of_codes, of_step, strict=True)):
            scale = float(scales[row, column // group])
            new = round(code + change / scale)
            new = min(max(new, 0), 2**bits - 1)
            changed += new != code
            total += 1
    return changed / total


def cases():
    def some(rows, columns, groups, bits, size, seed):
        draw = torch.Generator().manual_seed(seed)
        codes = torch.randint(0, 2**bits, (rows, columns), generator=draw)
        scales = 0.02 + 0.08 * torch.rand(rows, groups, generator=draw)
        return codes, scales, size * noise(rows, columns, seed=seed + 1), bits

    one, two = torch.tensor([[0.1]]), torch.tensor([[0.1, 0.01]])
    edges = torch.tensor([[15, 0, 15, 0, 8, 8]])
    ends = edges, torch.tensor([[0.1]]), torch.tensor([[0.07, -0.07, -0.07, 0.07, 0.07, -0.07]]), 4
    negative = torch.tensor([[4, 9, 7, 3]]), torch.tensor([[0.1, 0.1]]), torch.tensor([[-0.06, -0.02, -0.16, -0.04]]), 4
    return [
        ("four weights, one group", (torch.tensor([[3, 8, 8, 12]]), one, torch.tensor([[0.06, 0.04, 0.0, -0.3]]), 4)),
        ("at the ends of the codes", ends),
        ("steps down", negative),
        ("two groups with different scales", (torch.tensor([[5, 5, 5, 5]]), two, torch.full((1, 4), 0.02), 4)),
        ("a usual learning rate: nothing moves", some(8, 64, 2, 4, 1e-4, 71)),
        ("steps of about a scale, 4 bits", some(8, 64, 2, 4, 0.04, 72)),
        ("3 bits, several groups", some(6, 48, 3, 3, 0.03, 73)),
        ("steps of several scales", some(5, 32, 1, 4, 0.5, 74)),
    ]  # fmt: skip


@solution
def right(codes, scales, step, bits):
    group = codes.shape[1] // scales.shape[1]
    scale = scales.repeat_interleave(group, dim=1)
    new = (codes + step / scale).round().clamp(0, 2**bits - 1)
    return (new != codes).double().mean()


SCALE, NEW = "scales.repeat_interleave(group, dim=1)", "(codes + step / scale).round().clamp(0, 2**bits - 1)"

MISTAKES = {
    "the codes are not rounded again: any step, however small, then counts as a change.": right.edit(
        ".round().clamp", ".clamp"
    ),
    "the new codes are not clamped. At the ends of the codes a step outwards changes nothing.": right.edit(
        ".clamp(0, 2**bits - 1)", ""
    ),
    "the step is not divided by the scale. A code moves by one when a weight moves by a scale.": right.edit(
        "step / scale", "step"
    ),
    "the step is multiplied by the scale. A code moves by one when a weight moves by a scale: divide.": right.edit(
        "step / scale", "step * scale"
    ),
    "the codes are rounded down (floor). Round to the nearest.": right.edit(".round()", ".floor()"),
    "you returned the share of codes that stay. Return the share that changes.": right.edit(
        "new != codes", "new == codes"
    ),
    "you returned the number of changed codes. Divide it by the number of all codes.": right.edit(".mean()", ".sum()"),
    "the first group's scale is used for all groups.": right.edit(SCALE, "scales[:, :1]"),
    "the share is a percentage. Return a share from 0 to 1.": right.edit(".double().mean()", ".double().mean() * 100"),
    "only steps up are counted.": right.edit("new != codes", "new > codes"),
    "a weight counts as moved if its step is larger than a whole scale. Half a scale is enough.": right.edit(
        NEW, "(codes + (step / scale).trunc()).clamp(0, 2**bits - 1)"
    ),
    "you returned the mean distance of the codes. Return the share of codes that change.": right.edit(
        "(new != codes).double()", "(new - codes).abs().double()"
    ),
}

MOVED = Exercise(
    name="choose.moved",
    title="What a step moves",
    difficulty=2,
    minutes=15,
    reference=moved,
    cases=cases,
    outputs=("share",),
    mistakes=MISTAKES,
    tolerance=1e-6,  # a mean in float32
)
