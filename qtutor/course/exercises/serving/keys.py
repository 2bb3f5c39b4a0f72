"""``serving.keys``: keys in eight bits, with a scale for each channel."""

import torch

from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.inputs import noise


def int8_keys(keys):
    rows = keys.tolist()
    scales, columns = [], []
    for channel in zip(*rows, strict=True):
        largest = max(abs(value) for value in channel)
        scale = largest / 127 if largest else 1.0
        scales.append(scale)
        columns.append([round(value / scale) for value in channel])
    return [list(row) for row in zip(*columns, strict=True)], scales


def cases():
    loud, silent, negative = noise(8, 4, seed=43), noise(5, 3, seed=44), noise(6, 4, seed=46) - 3
    loud[:, 2] *= 40
    silent[:, 1] = 0
    return [
        ("two tokens of two channels", (torch.tensor([[127.0, 2.0], [-50.0, -0.5]]),)),
        ("one token: each key is the largest of its channel", (torch.tensor([[3.0, -1.0, 0.25]]),)),
        ("five tokens of four channels", (noise(5, 4, seed=41),)),
        ("as many tokens as channels", (noise(6, 6, seed=42),)),
        ("one channel that is loud in all tokens", (loud,)),
        ("a channel that is 0 everywhere", (silent,)),
        ("keys that are mostly negative", (negative,)),
        ("32 tokens of 16 channels", (noise(32, 16, seed=45) * 2 + 0.3,)),
    ]


@solution
def right(keys):
    scales = keys.abs().amax(0) / 127
    scales[scales == 0] = 1
    codes = (keys / scales).round()
    return codes, scales


SCALES, CODES = "keys.abs().amax(0) / 127", "(keys / scales).round()"

MISTAKES = {
    "there is a scale for each token. Keys have channels that are loud in all tokens, so each channel needs its own "
    "scale, from the largest over the tokens.": (
        right.edit(
            (SCALES, "keys.abs().amax(1, keepdim=True) / 127"), ("return codes, scales", "return codes, scales[:, 0]")
        )
    ),
    "all channels share one scale.": right.edit(SCALES, "(keys.abs().amax() / 127).repeat(keys.shape[1])"),
    "you searched for the largest key without abs(), but the largest |key| may belong to a negative key: abs() "
    "first.": right.edit("keys.abs().amax(0)", "keys.amax(0).clamp(min=0)"),
    "the scale is the largest |key| / 128. Then the largest would be the code 128, which int8 does not have.": (
        right.edit("/ 127", "/ 128")
    ),
    "the scale is the largest |key| / 255. Codes go to both sides of 0, up to 127.": right.edit("/ 127", "/ 255"),
    "the scale is the range of a channel / 255. Here codes are symmetric: the largest |key| / 127.": (
        right.edit(SCALES, "(keys.amax(0) - keys.amin(0)) / 255")
    ),
    "the scale is the mean |key| / 127. Larger keys would not fit into eight bits.": right.edit("amax(0)", "mean(0)"),
    "the scales are 127 / the largest |key|: upside down. A scale is the length of a step.": (
        right.edit(("return codes, scales", "return codes, 1 / scales"))
    ),
    "keys are multiplied by the scale. A code is a number of steps: divide.": right.edit(
        "keys / scales", "keys * scales"
    ),
    "the codes are truncated to whole numbers. Round to the nearest.": right.edit(".round()", ".trunc()"),
    "the codes are rounded down (floor). Round to the nearest.": right.edit(".round()", ".floor()"),
    "the codes are not rounded.": right.edit(".round()", ""),
    "the codes are unsigned: 128 is added. Here they are signed, from -127 to 127.": (
        right.edit(CODES, "(keys / scales).round() + 128")
    ),
    "you returned keys instead of codes: the codes are multiplied by the scale again.": (
        right.edit(CODES, "(keys / scales).round() * scales")
    ),
    "codes go up to 7, as in four bits. In eight bits, they go up to 127.": right.edit("/ 127", "/ 7"),
    "a channel of zeros has the scale 0, and 0 / 0 is no number. Give it the scale 1.": (
        right.edit("scales[scales == 0] = 1", "pass")
    ),
    "codes and scales are exchanged: return codes, scales.": right.edit("return codes, scales", "return scales, codes"),
}

KEYS = Exercise(
    name="serving.keys",
    title="Keys in eight bits, channel by channel",
    difficulty=2,
    minutes=15,
    reference=int8_keys,
    cases=cases,
    outputs=("codes", "scales"),
    mistakes=MISTAKES,
    tolerance=1e-5,  # scales in float32
)
