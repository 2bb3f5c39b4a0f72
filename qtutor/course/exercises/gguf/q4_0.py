"""``gguf.q4_0``: blocks of 32 weights to the 18 bytes that llama.cpp writes."""

import struct

import numpy as np

from qtutor.course.exercise import Exercise
from qtutor.course.exercises.gguf.inputs import CHAPTER, drawn
from qtutor.course.values import to_array
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
    return [
        ("a block whose largest weight is negative", (block(-0.8, 0.1, 0.2),)),
        ("a block whose largest weight is positive", (block(0.1, -0.3, 0.96),)),
        ("the largest size twice, first with plus", (block(0.88, 0.2, -0.88),)),
        ("the largest size twice, first with minus", (block(0.3, -0.88, 0.2, 0.88),)),
        ("three blocks of bell-shaped weights", (drawn(7, 3, 32),)),
        ("a weight nearly halfway between two levels", (block(-1.0003, 0.812619, 0.3),)),
        ("weights so small that their scale is 0 in 16 bits", (drawn(9, 1, 32) * np.float32(1e-8),)),
        ("a block of zeros", (zeros,)),
        ("a block of zeros between two others", (np.concatenate([block(-0.8), zeros, block(0.9)]),)),
    ]


def _data(blocks, *, extreme=None, code=None, byte=None, scale="<e", behind=False):
    """The same in numpy, float64; each slip replaces one step."""
    blocks = blocks.astype(np.float64)
    first = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1, keepdims=True), axis=1)
    d = extreme(blocks, first) if extreme else first / -8
    with np.errstate(all="ignore"):
        steps = np.where(d == 0, 0, blocks / d)
        codes = code(blocks, d, steps) if code else np.minimum(np.trunc(steps + 8.5), 15)
    codes = np.nan_to_num(codes, posinf=0, neginf=0).astype(np.int64)
    packed = byte(codes) if byte else codes[:, :16] | codes[:, 16:] << 4
    parts = [np.array([list(struct.pack(scale, float(one))) for one in d[:, 0]]), packed & 255]
    return np.concatenate(parts[::-1] if behind else parts, axis=1)


def without_sign(blocks):
    return _data(blocks, extreme=lambda all_, first: np.abs(first) / -8)


def plus_eight(blocks):
    return _data(blocks, extreme=lambda all_, first: first / 8)


def absmax_by_seven(blocks):
    return _data(blocks, extreme=lambda all_, first: np.abs(first) / 7)


def absmax_by_half(blocks):
    return _data(blocks, extreme=lambda all_, first: np.abs(first) / 7.5)


def the_smallest(blocks):
    return _data(blocks, extreme=lambda all_, first: all_.min(axis=1, keepdims=True) / -8)


def last_of_equals(blocks):
    size = np.abs(blocks).astype(np.float64)
    last = 31 - size[:, ::-1].argmax(axis=1, keepdims=True)
    return _data(blocks, extreme=lambda all_, first: np.take_along_axis(all_, last, axis=1) / -8)


def one_for_all(blocks):
    return _data(blocks, extreme=lambda all_, first: np.full_like(first, all_.flat[np.abs(all_).argmax()] / -8))


def rounded_first(blocks):
    def code(all_, d, steps):
        half = d.astype(np.float16).astype(np.float64)
        return np.minimum(np.trunc(np.where(half == 0, 0, all_ / half) + 8.5), 15)

    return _data(blocks, code=code)


def cut_only(blocks):
    return _data(blocks, code=lambda all_, d, steps: np.minimum(np.trunc(steps + 8), 15))


def no_end(blocks):
    return _data(blocks, code=lambda all_, d, steps: np.trunc(steps + 8.5))


def wrapped(blocks):
    return _data(blocks, code=lambda all_, d, steps: np.trunc(steps + 8.5) % 16)


def with_signs(blocks):
    return _data(blocks, code=lambda all_, d, steps: np.clip(np.rint(steps), -8, 7) % 16)


def zeros_to_nothing(blocks):
    return _data(blocks, code=lambda all_, d, steps: np.where(d == 0, 0, np.minimum(np.trunc(steps + 8.5), 15)))


def neighbours(blocks):
    return _data(blocks, byte=lambda codes: codes[:, ::2] + 16 * codes[:, 1::2])


def high_first(blocks):
    return _data(blocks, byte=lambda codes: 16 * codes[:, :16] + codes[:, 16:])


def neighbours_high_first(blocks):
    return _data(blocks, byte=lambda codes: 16 * codes[:, ::2] + codes[:, 1::2])


def codes_unpacked(blocks):
    return _data(blocks, byte=lambda codes: codes)


def big_endian(blocks):
    return _data(blocks, scale=">e")


def in_four_bytes(blocks):
    return _data(blocks, scale="<f")


def scale_behind(blocks):
    return _data(blocks, behind=True)


MISTAKES = {
    "d comes from the size of the largest weight. Keep its sign: d = extreme / -8, and the extreme gets code 0.": (
        without_sign
    ),
    "d has the wrong sign: it is extreme / -8, so that the extreme falls on the level -8, code 0.": plus_eight,
    "d is the largest size / 7. Here it is extreme / -8, with the sign of the extreme.": absmax_by_seven,
    "d is the largest size / 7.5, as in chapter 02. Here it is extreme / -8, with the sign of the extreme.": (
        absmax_by_half
    ),
    "you took the smallest weight for the extreme. It is the one farthest from zero, on either side.": the_smallest,
    "of weights of equal size you took the last. llama.cpp keeps the first.": last_of_equals,
    "all blocks have one d. Each block has its own: the maximum is along the last axis.": one_for_all,
    "you divided by d after rounding it to 16 bits. llama.cpp computes codes with d as it was, and rounds it only to "
    "store it.": rounded_first,
    "weights are cut, not rounded: add 8.5 before cutting, not 8.": cut_only,
    "a code of 16 runs into the other half of its byte. The largest code is 15.": no_end,
    "a code of 16 became 0. The largest code is 15: clamp before you pack.": wrapped,
    "codes have signs. They are whole numbers from 0 to 15, and 8 is the level 0.": with_signs,
    "where d is 0, codes are 0. There every weight is 0 steps from zero, and that is code 8.": zeros_to_nothing,
    "neighbours share a byte. Here weight j shares its byte with weight 16 + j.": neighbours,
    "the halves of the bytes are swapped: the first 16 weights belong in the low four bits.": high_first,
    "neighbours share a byte, the first in the high bits. Weight j is in the low bits, 16 + j in the high ones.": (
        neighbours_high_first
    ),
    "every code has a byte to itself. Two share one: codes[:, :16] | codes[:, 16:] << 4.": codes_unpacked,
    "the two bytes of d are swapped: the low one comes first ('<e', or '<f2' in numpy).": big_endian,
    "d takes four bytes. It is stored as a float16, in two.": in_four_bytes,
    "d stands behind the codes. It comes first.": scale_behind,
}


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
    properties=(
        (
            "a byte is a whole number from 0 to 255.",
            lambda arguments, results: bool(((results[0] >= 0) & (results[0] < 256)).all()),
        ),
    ),
    replaces="qtutor.gguf.coding.encode",
    adapt=adapt,
)
