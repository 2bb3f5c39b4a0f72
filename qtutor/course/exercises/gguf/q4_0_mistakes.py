"""Slips in ``gguf.q4_0``: each a function that makes exactly that mistake, and what is said of it."""

import struct

import numpy as np


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


def the_largest(blocks):
    return _data(blocks, extreme=lambda all_, first: all_.max(axis=1, keepdims=True) / -8)


def by_minus_seven(blocks):
    return _data(blocks, extreme=lambda all_, first: first / -7)


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


def halves_to_even(blocks):
    return _data(blocks, code=lambda all_, d, steps: np.clip(np.rint(steps) + 8, 0, 15))


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


def not_shifted(blocks):
    return _data(blocks, byte=lambda codes: codes[:, :16] | codes[:, 16:])


def first_half_only(blocks):
    return _data(blocks, byte=lambda codes: codes[:, :16])


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
    "you took the largest weight for the extreme. It is the one farthest from zero, on either side.": the_largest,
    "the extreme is divided by -7. There are eight levels below zero: divide by -8.": by_minus_seven,
    "of weights of equal size you took the last. llama.cpp keeps the first.": last_of_equals,
    "all blocks have one d. Each block has its own: the maximum is along the last axis.": one_for_all,
    "you divided by d after rounding it to 16 bits. llama.cpp computes codes with d as it was, and rounds it only to "
    "store it.": rounded_first,
    "weights are cut, not rounded: add 8.5 before cutting, not 8.": cut_only,
    "a weight halfway between two levels went to the even one, as np.rint and np.round have it. Add 8.5 and cut: then "
    "it goes up.": halves_to_even,
    "a code of 16 runs into the other half of its byte. The largest code is 15.": no_end,
    "a code of 16 became 0. The largest code is 15: clamp before you pack.": wrapped,
    "codes have signs. They are whole numbers from 0 to 15, and 8 is the level 0.": with_signs,
    "where d is 0, codes are 0. There every weight is 0 steps from zero, and that is code 8.": zeros_to_nothing,
    "neighbours share a byte. Here weight j shares its byte with weight 16 + j.": neighbours,
    "the halves of the bytes are swapped: the first 16 weights belong in the low four bits.": high_first,
    "neighbours share a byte, the first in the high bits. Weight j is in the low bits, 16 + j in the high ones.": (
        neighbours_high_first
    ),
    "the second sixteen codes are not shifted, so both fall on the low four bits: codes[:, 16:] << 4.": not_shifted,
    "the second sixteen codes are missing. They are the high four bits of the same bytes.": first_half_only,
    "every code has a byte to itself. Two share one: codes[:, :16] | codes[:, 16:] << 4.": codes_unpacked,
    "the two bytes of d are swapped: the low one comes first ('<e', or '<f2' in numpy).": big_endian,
    "d takes four bytes. It is stored as a float16, in two.": in_four_bytes,
    "d stands behind the codes. It comes first.": scale_behind,
}
