"""``gguf.q4_0``: encode each block of 32 weights as the 18 bytes that llama.cpp writes."""

import struct

import numpy as np

from qtutor.course.checking.comparing import to_array
from qtutor.course.exercises.adapting import WHOLE_BYTES
from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.gguf.inputs import drawn
from qtutor.gguf import encode


def q4_0(blocks):
    data, f32 = [], np.float32  # every step is rounded to float32, as in C
    for block in blocks.tolist():
        extreme = 0.0
        for x in block:
            if abs(x) > abs(extreme):  # so of equal sizes, the first counts
                extreme = x
        d = f32(extreme) / f32(-8)
        inverse = f32(0) if d == 0 else f32(1) / d
        codes = [min(int(f32(x) * inverse + f32(8.5)), 15) for x in block]
        data.append([*struct.pack("<e", d), *(codes[j] + 16 * codes[16 + j] for j in range(16))])
    return data


def cases():
    def block(*first: float) -> np.ndarray:
        rest = np.linspace(-0.7, 0.55, 32, dtype=np.float32)
        rest[: len(first)] = first
        return rest[None]

    zeros = np.zeros((1, 32), np.float32)
    halves = np.arange(-16, 16, dtype=np.float32)[None] / 2  # from -8, so that d is 1, to 7.5
    return [
        ("a block whose largest weight is negative", (block(-0.8, 0.1, 0.2),)),
        ("a block whose largest weight is positive", (block(0.1, -0.3, 0.96),)),
        ("the largest size twice, first with plus", (block(0.88, 0.2, -0.88),)),
        ("the largest size twice, first with minus", (block(0.3, -0.88, 0.2, 0.88),)),
        ("three blocks of bell-shaped weights", (drawn(7, 3, 32),)),
        ("a weight nearly halfway between two levels", (block(-1.0003, 0.812619, 0.3),)),
        # Found by trial: in each of these blocks, one of the mistakes changes the code of a weight.
        ("a weight so near halfway that it matters to compute in float32", (block(0.96, 0.3),)),
        ("a weight so near halfway that it matters to multiply by 1 / d", (block(0.768, 0.624),)),
        ("a weight so near halfway that 1 / d in float64 misses it", (block(0.816, 0.663),)),
        ("weights halfway between two levels", (halves,)),
        ("weights so small that their scale is 0 in 16 bits", (drawn(9, 1, 32) * np.float32(1e-8),)),
        ("a block of zeros", (zeros,)),
        ("a block of zeros between two others", (np.concatenate([block(-0.8), zeros, block(0.9)]),)),
    ]


@solution
def right(blocks):
    blocks = blocks.astype(np.float32)
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1, keepdims=True), axis=1)
    d = extreme / np.float32(-8)
    inverse = 1 / np.where(d == 0, np.float32(np.inf), d)
    steps = blocks * inverse
    codes = np.trunc(steps + np.float32(8.5)).astype(np.int64).clip(max=15)
    packed = codes[:, :16] | codes[:, 16:] << 4
    scale = d.astype("<f2").view(np.uint8)
    return np.concatenate([scale, packed.astype(np.uint8)], axis=1)


D, ROUNDED = "extreme / np.float32(-8)", "np.trunc(steps + np.float32(8.5))"
RESULT = "np.concatenate([scale, packed.astype(np.uint8)], axis=1)"
LOW, HIGH = "codes[:, :16]", "codes[:, 16:]"

MISTAKES = {
    "d comes from the size of the largest weight. Keep its sign: d = extreme / -8, and the extreme gets code 0.": (
        right.edit(D, "np.abs(extreme) / np.float32(-8)")
    ),
    "d has the wrong sign: it is extreme / -8, so that the extreme falls on the level -8, code 0.": (
        right.edit(D, "extreme / np.float32(8)")
    ),
    "d is the largest size / 7. Here it is extreme / -8, with the sign of the extreme.": (
        right.edit(D, "np.abs(extreme) / np.float32(7)")
    ),
    "d is the largest size / 7.5, as in chapter 02. Here it is extreme / -8, with the sign of the extreme.": (
        right.edit(D, "np.abs(extreme) / np.float32(7.5)")
    ),
    "you took the smallest weight as the extreme. It is the one farthest from zero, on either side.": (
        right.edit(D, "blocks.min(axis=1, keepdims=True) / np.float32(-8)")
    ),
    "you took the largest weight as the extreme. It is the one farthest from zero, on either side.": (
        right.edit(D, "blocks.max(axis=1, keepdims=True) / np.float32(-8)")
    ),
    "the extreme is divided by -7. There are eight levels below zero: divide by -8.": right.edit(
        D, "extreme / np.float32(-7)"
    ),
    "if weights have equal size, you took the last. llama.cpp keeps the first.": (
        right.edit("np.abs(blocks).argmax", "31 - np.abs(blocks)[:, ::-1].argmax")
    ),
    "all blocks have one d. Each block has its own: the maximum is along the last axis.": (
        right.edit(D, "np.full_like(extreme, blocks.flat[np.abs(blocks).argmax()]) / np.float32(-8)")
    ),
    "you divided by d after rounding it to 16 bits. llama.cpp computes codes with the unrounded d, and rounds d only "
    "to store it.": right.edit(D, f"({D}).astype(np.float16).astype(np.float32)"),
    "the weights are divided by d. llama.cpp multiplies them by 1 / d, which is rounded once more: a weight within a "
    "rounding error of halfway may get another code.": right.edit(
        "blocks * inverse", "blocks / np.where(d == 0, np.inf, d)"
    ),
    "codes are computed in float64. llama.cpp uses float32, also for 1 / d. This decides the code of a weight within a "
    "rounding error of halfway.": right.edit("blocks.astype(np.float32)", "blocks.astype(np.float64)"),
    "weights are divided by d in float64. llama.cpp multiplies them by 1 / d, both in float32. This decides the code "
    "of a weight within a rounding error of halfway.": (
        right.edit("blocks * inverse", "blocks.astype(np.float64) / np.where(d == 0, np.inf, d)")
    ),
    "d is the largest size / 8, without its sign. Here it is extreme / -8, and the extreme gets code 0.": (
        right.edit(D, "np.abs(extreme) / np.float32(8)")
    ),
    "the extreme is divided by 7. There are eight levels below zero, and it falls on the lowest: divide by -8.": (
        right.edit(D, "extreme / np.float32(7)")
    ),
    "the extreme is divided by -7.5. There are eight levels below zero, and it falls on the lowest: divide by -8.": (
        right.edit(D, "extreme / np.float32(-7.5)")
    ),
    "the extreme is divided by -16. It falls on the level -8: divide by -8.": right.edit(
        D, "extreme / np.float32(-16)"
    ),
    "d is the range over 15. Here it is extreme / -8, with the sign of the extreme.": right.edit(
        D, "(blocks.max(axis=1, keepdims=True) - blocks.min(axis=1, keepdims=True)) / np.float32(15)"
    ),
    "a block of zeros became nothing but zero bytes. Its d is 0 / -8, which is -0. Its weights are 0 steps from zero, "
    "which is code 8, and two codes of 8 are the byte 136.": (
        right.edit(RESULT, f"{RESULT} * (blocks != 0).any(axis=1, keepdims=True)")
    ),
    "a block whose d rounds to 0 in 16 bits became nothing but zero bytes. Codes come from the unrounded d; the codes "
    "of a block of zeros are 8.": right.edit(RESULT, f"{RESULT} * (d.astype(np.float16) != 0)"),
    "the d of a block of zeros is 0 / -8, which is -0: its sign bit is set, and llama.cpp writes it.": (
        right.edit("= d.astype", "= (d + 0).astype")
    ),
    "codes are put together with &; use |: & keeps only bits that are set in both.": right.edit(
        f"{LOW} | ", f"{LOW} & "
    ),
    "a block whose d rounds to 0 in 16 bits got the codes of zeros. Codes come from the unrounded d.": (
        right.edit("np.where(d == 0,", "np.where(d.astype(np.float16) == 0,")
    ),
    "steps are shifted by 7.5, so that all codes are one too small: add 8.5 before truncating.": right.edit(
        "8.5", "7.5"
    ),
    "weights are rounded up, not to the nearest: add 8.5 and truncate.": right.edit(ROUNDED, "np.ceil(steps + 8)"),
    "weights are truncated, not rounded: add 8.5 before truncating, not 8.": right.edit("8.5", "8"),
    "a weight halfway between two levels went to the even one, as np.rint and np.round do. Add 8.5 and truncate: then "
    "it goes up.": right.edit(ROUNDED, "(np.rint(steps) + 8)"),
    "a weight halfway between two levels, or as near to it as float32 can tell, went to the even one, as np.rint and "
    "np.round do. Add 8.5 and truncate: then it goes up.": right.edit(ROUNDED, "np.rint(steps + 8)"),
    "a code of 16 runs into the other half of its byte. The largest code is 15.": right.edit(".clip(max=15)", ""),
    "a code of 16 became 0. The largest code is 15: clamp before you pack.": right.edit(".clip(max=15)", " % 16"),
    "codes have signs. They are whole numbers from 0 to 15, and 8 is the level 0.": (
        right.edit((ROUNDED, "np.rint(steps)"), (".clip(max=15)", ".clip(max=7) % 16"))
    ),
    "if d is 0, your codes are 0. Every weight is then 0 steps from zero, which is code 8.": (
        right.edit(".clip(max=15)", ".clip(max=15) * (d != 0)")
    ),
    "neighbours share a byte. Here weight j shares its byte with weight 16 + j.": (
        right.edit((LOW, "codes[:, ::2]"), (HIGH, "codes[:, 1::2]"))
    ),
    "the halves of the bytes are swapped: the first 16 weights belong in the low four bits.": (
        right.edit(f"{LOW} | {HIGH}", f"{HIGH} | {LOW}")
    ),
    "neighbours share a byte, the first in the high bits. Weight j is in the low bits, 16 + j in the high ones.": (
        right.edit((LOW, "codes[:, 1::2]"), (HIGH, "codes[:, ::2]"))
    ),
    "the second sixteen codes are not shifted, so both fall on the low four bits: codes[:, 16:] << 4.": (
        right.edit(" << 4", "")
    ),
    "the second sixteen codes are missing. They are the high four bits of the same bytes.": (
        right.edit(f" | {HIGH} << 4", "")
    ),
    "every code has a byte of its own. Two codes share a byte: codes[:, :16] | codes[:, 16:] << 4.": (
        right.edit(f"{LOW} | {HIGH} << 4", "codes")
    ),
    "the two bytes of d are swapped: the low one comes first ('<e', or '<f2' in numpy).": right.edit("<f2", ">f2"),
    "d takes four bytes. It is stored as a float16, in two.": right.edit("<f2", "<f4"),
    "d comes after the codes. It has to come first.": (
        right.edit("[scale, packed.astype(np.uint8)]", "[packed.astype(np.uint8), scale]")
    ),
}


def adapt(theirs):
    """:func:`qtutor.gguf.encode` uses a learner's ``q4_0`` for Q4_0 without importance, and its own code otherwise."""

    def encoded(rows, type, importance=None):
        if type != "Q4_0" or importance is not None:
            return encode(rows, type, importance)
        blocks = np.array(rows, np.float32).reshape(-1, 32)
        return to_array(theirs(blocks)).astype(np.uint8).reshape(len(rows), -1)

    return encoded


Q4_0 = Exercise(
    name="gguf.q4_0",
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
