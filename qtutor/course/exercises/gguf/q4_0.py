"""``gguf.q4_0``: blocks of 32 weights to the 18 bytes that llama.cpp writes."""

import struct

import numpy as np

from qtutor.course.checking.comparing import to_array
from qtutor.course.exercises.adapting import WHOLE_BYTES
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.gguf.inputs import CHAPTER, drawn
from qtutor.course.exercises.gguf.q4_0_mistakes import MISTAKES
from qtutor.gguf import encode


def q4_0(blocks):
    data = []
    for block in blocks.tolist():
        extreme = 0.0
        for x in block:
            if abs(x) > abs(extreme):  # so of several it is the first
                extreme = x
        d = extreme / -8
        codes = [8 if d == 0 else min(int(x / d + 8.5), 15) for x in block]
        data.append([*struct.pack("<e", d), *(codes[j] + 16 * codes[16 + j] for j in range(16))])
    return data


def cases():
    def block(*first: float) -> np.ndarray:
        rest = np.linspace(-0.7, 0.55, 32, dtype=np.float32)
        rest[: len(first)] = first
        return rest[None]

    zeros = np.zeros((1, 32), np.float32)
    halves = np.arange(-16, 16, dtype=np.float32)[None] / 2  # -8, so that d is 1, up to 7.5
    return [
        ("a block whose largest weight is negative", (block(-0.8, 0.1, 0.2),)),
        ("a block whose largest weight is positive", (block(0.1, -0.3, 0.96),)),
        ("the largest size twice, first with plus", (block(0.88, 0.2, -0.88),)),
        ("the largest size twice, first with minus", (block(0.3, -0.88, 0.2, 0.88),)),
        ("three blocks of bell-shaped weights", (drawn(7, 3, 32),)),
        ("a weight nearly halfway between two levels", (block(-1.0003, 0.812619, 0.3),)),
        ("weights halfway between two levels", (halves,)),
        ("weights so small that their scale is 0 in 16 bits", (drawn(9, 1, 32) * np.float32(1e-8),)),
        ("a block of zeros", (zeros,)),
        ("a block of zeros between two others", (np.concatenate([block(-0.8), zeros, block(0.9)]),)),
    ]


def adapt(theirs):
    """A learner's ``q4_0`` in :func:`qtutor.gguf.encode`, for Q4_0 without importance; the rest stays the package's."""

    def encoded(rows, type, importance=None):
        if type != "Q4_0" or importance is not None:
            return encode(rows, type, importance)
        blocks = np.array(rows, np.float32).reshape(-1, 32)
        return to_array(theirs(blocks)).astype(np.uint8).reshape(len(rows), -1)

    return encoded


Q4_0 = Exercise(
    name="gguf.q4_0",
    chapter=CHAPTER,
    title="Blocks of Q4_0, as llama.cpp writes them",
    difficulty=2,
    minutes=15,
    reference=q4_0,
    cases=cases,
    outputs=("bytes",),
    mistakes=MISTAKES,
    properties=(WHOLE_BYTES,),
    replaces="qtutor.gguf.coding.encode",
    adapt=adapt,
)
