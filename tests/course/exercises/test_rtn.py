"""The exercises of chapter 02: check names the mistake in a wrong answer, and right answers pass in any form.

Most wrong answers are edits of right answers that a learner may write. None of these right answers is the course's own
solution.
"""

import math

import numpy as np
import torch

from qtutor.course.exercises.edits import solution
from tests.course.answers import assert_likely, assert_right, each

# --- rtn.fit ---


@solution
def fit_numpy(weight, bits, group_size, symmetric):
    w = weight.numpy().astype(np.float64).reshape(weight.shape[0], -1, group_size)
    low, high = w.min(axis=2, initial=0), w.max(axis=2, initial=0)
    span = 2 * np.maximum(-low, high) if symmetric else high - low
    scale = np.float16(span / (2**bits - 1))
    scale[scale == 0] = 1
    if symmetric:
        return scale, np.full(scale.shape, 1 << bits - 1, dtype=np.uint8)
    return scale, np.clip(np.rint(-low / scale.astype(np.float64)), 0, 2**bits - 1).astype(np.uint8)


@solution
def fit_loops(weight, bits, group_size, symmetric):
    scales, zeros = [], []
    for row in weight.tolist():
        scales.append([])
        zeros.append([])
        for start in range(0, len(row), group_size):
            group = row[start : start + group_size]
            low, high = min(0, *group), max(0, *group)
            if symmetric:
                exact = max(-low, high) / (2**bits / 2 - 0.5)
            else:
                exact = high / (2**bits - 1) - low / (2**bits - 1)
            scale = torch.tensor(exact).half().item() or 1.0
            scales[-1].append(scale)
            zeros[-1].append(2 ** (bits - 1) if symmetric else min(2**bits - 1, math.floor(-low / scale + 0.5)))
    return scales, zeros


def fit_divides_by_zero(weight, bits, group_size, symmetric):
    grouped = weight.reshape(len(weight), -1, group_size).numpy()
    low, high = np.minimum(grouped.min(-1), 0), np.maximum(grouped.max(-1), 0)
    if symmetric:
        high = np.maximum(high, -low)
        low = -high
    scale = ((high - low) / (2**bits - 1)).astype(np.float16).astype(np.float32)
    with np.errstate(invalid="ignore"):
        zero = np.clip(np.round(-low / scale), 0, 2**bits - 1)
    return scale, np.full_like(scale, 2 ** (bits - 1)) if symmetric else zero


FIT_WRONG = [
    (fit_numpy.edit("span / (2**bits - 1)", "span / 2**bits"), "2**bits - 1"),
    (
        fit_loops.edit(
            ("min(0, *group)", "min(group)"),
            ("max(0, *group)", "max(group)"),
            ("min(2**bits - 1, math.floor(-low / scale + 0.5))", "round(-low / scale)"),
        ),
        "does not contain 0",
    ),
    (fit_numpy.edit(("w.min(axis=2", "w.min(axis=1"), ("w.max(axis=2", "w.max(axis=1")), "wrong dim"),
    (
        fit_loops.edit("row[start : start + group_size]", "row[start // group_size :: len(row) // group_size]"),
        "every n-th weight",
    ),
    (fit_loops.edit("math.floor(-low / scale + 0.5)", "int(-low / scale)"), "zero point is truncated"),
    (fit_loops.edit("2**bits / 2 - 0.5", "2 ** (bits - 1) - 1"), "2**(bits-1) - 1"),
    (fit_loops.edit("torch.tensor(exact).half().item()", "exact"), "not rounded to 16 bits"),
    (fit_loops.edit("= row[start : start + group_size]", "= row"), "those of the whole row"),
    (fit_divides_by_zero, "nothing can be divided by it"),
]

# --- rtn.encode ---


@solution
def encode_numpy(weight, scale, zero, bits):
    length = weight.shape[1] // scale.shape[1]
    s = np.repeat(scale.numpy().astype(np.float32), length, axis=1)
    z = np.repeat(zero.numpy().astype(np.int32), length, axis=1)
    return np.clip(np.rint(weight.numpy() / s) + z, 0, 2**bits - 1).astype(np.uint8)


def encode_levels(weight, scale, zero, bits):
    levels = scale[..., None] * (torch.arange(2**bits) - zero[..., None].int())  # [out, groups, levels]
    levels = levels.float().repeat_interleave(weight.shape[1] // scale.shape[1], dim=1)
    return (levels - weight[..., None]).abs().argmin(dim=-1).tolist()


@solution
def encode_loops(weight, scale, zero, bits):
    rows, columns = weight.shape
    codes = torch.zeros(rows, columns, dtype=torch.int64)
    for o in range(rows):
        for i in range(columns):
            g = i // (columns // scale.shape[1])
            w, s, z = float(weight[o, i]), float(scale[o, g]), int(zero[o, g])
            steps = round(w / s)
            codes[o, i] = min(max(steps + z, 0), 2**bits - 1)
    return codes


ENCODE_WRONG = [
    (encode_loops.edit("round(", "int("), "truncated towards zero"),
    (encode_loops.edit("round(w / s)", "w // s"), "rounded down"),
    (
        encode_loops.edit("steps + z, 0), 2**bits - 1)", "steps, 0), 2**bits - 1) + z"),
        "clamp before adding the zero point",
    ),
    (encode_loops.edit("min(max(steps + z, 0), 2**bits - 1)", "steps + z"), "nothing is clamped"),
    (encode_loops.edit("2**bits - 1", "2**bits"), "clamp at 2**bits, one too many"),
    (encode_loops.edit("i // (columns // scale.shape[1])", "i % scale.shape[1]"), "wrong group"),
    (encode_loops.edit("+ z", "- z"), "zero point is subtracted"),
    (encode_loops.edit("w / s", "w * s"), "multiply by the scale"),
    (
        encode_loops.edit("steps + z, 0), 2**bits - 1)", "steps, -(2 ** (bits - 1))), 2 ** (bits - 1) - 1) + z"),
        "signed range",
    ),
]

# --- rtn.dequantize ---


@solution
def weights_numpy(codes, scale, zero):
    c, s, z = (part.numpy().astype(np.float32) for part in (codes, scale, zero))
    return (s[:, :, None] * (c.reshape(*s.shape, -1) - z[:, :, None])).reshape(c.shape)


@solution
def weights_loops(codes, scale, zero):
    length = codes.shape[1] // scale.shape[1]
    weight = torch.zeros(codes.shape)
    for (o, i), c in np.ndenumerate(codes.numpy()):
        s, z = scale[o, i // length].item(), zero[o, i // length].item()
        weight[o, i] = s * (int(c) - z)
    return weight


def weights_wrapped(codes, scale, zero):
    length = codes.shape[1] // scale.shape[1]
    return scale.float().repeat_interleave(length, 1) * (codes - zero.repeat_interleave(length, 1))  # uint8 - uint8


def weights_in_half(codes, scale, zero):
    length = codes.shape[1] // scale.shape[1]
    return scale.repeat_interleave(length, 1) * (codes.int() - zero.int().repeat_interleave(length, 1))


def weights_tiled(codes, scale, zero):
    times = (1, codes.shape[1] // scale.shape[1])
    return np.tile(scale.float().numpy(), times) * (
        codes.numpy().astype(int) - np.tile(zero.numpy().astype(int), times)
    )


DEQUANTIZE_WRONG = [
    (weights_wrapped, "wraps around"),
    (weights_in_half, "float16"),
    (weights_numpy.edit(".astype(np.float32)", ""), "as they are stored"),
    (weights_tiled, "wrong group"),
    (weights_loops.edit("- z", "+ z"), "zero point is added"),
    (weights_loops.edit("(int(c) - z)", "int(c) - z"), "with brackets"),
    (weights_loops.edit(" - z", ""), "zero point is missing"),
    (weights_loops.edit("s * (int(c) - z)", "(int(c) - z) / s"), "divide by the scale"),
]

# --- rtn.pack ---


@solution
def pack_with_numpy(codes, bits, width):
    unpacked = np.unpackbits(codes.numpy()[:, :, None], axis=2, bitorder="little")[:, :, :bits].reshape(len(codes), -1)
    unpacked = np.pad(unpacked, ((0, 0), (0, 8 * width - unpacked.shape[1])))
    return np.packbits(unpacked, axis=1, bitorder="little")


@solution
def pack_bit_by_bit(codes, bits, width):
    rows = []
    for row in codes.tolist():
        data = [0] * width
        for i, code in enumerate(row):
            for bit in range(bits):
                place = i * bits + bit
                data[place // 8] |= (code >> bit & 1) << place % 8
        rows.append(data)
    return rows


def pack_high_nibble_first(codes, bits, width):
    per_byte = 8 // bits if bits in (2, 4, 8) else None
    rows = []
    for row in codes.tolist():
        if per_byte is None:
            rows.append(list(sum(c << i * bits for i, c in enumerate(row)).to_bytes(width, "little")))
            continue
        row = row + [0] * (-len(row) % per_byte)
        rows.append([])
        for start in range(0, len(row), per_byte):
            byte = 0
            for code in row[start : start + per_byte]:
                byte = byte << bits | code
            rows[-1].append(byte)
    return rows


def pack_big_number(codes, bits, width):
    rows = []
    for row in codes.tolist():
        number = 0
        for code in row:
            number = number << bits | code
        rows.append(list((number << 8 * width - bits * len(row)).to_bytes(width, "big")))
    return rows


def pack_in_uint8(codes, bits, width):
    data = torch.zeros(len(codes), width, dtype=torch.uint8)
    for i in range(codes.shape[1]):
        data[:, i * bits // 8] |= codes[:, i] << (i * bits % 8)  # bits shifted past the top are lost
    return data


def pack_whole_codes(codes, bits, width):
    data = np.zeros((len(codes), 2 * width + 8), dtype=np.int64)
    for i in range(codes.shape[1]):
        byte, place = divmod(i, 8 // bits)
        data[:, byte] |= codes.numpy()[:, i].astype(np.int64) << place * bits
    return data[:, :width]


def pack_shift_by_four(codes, bits, width):
    rows = []
    for row in codes.tolist():
        number = 0
        for i, code in enumerate(row):
            number |= code << 4 * i if bits <= 4 else 0
            number += code << 4 * i if bits > 4 else 0
        rows.append([number >> 8 * j & 255 for j in range(width)])
    return rows


def pack_one_stream(codes, bits, width):
    number = sum(code << i * bits for i, code in enumerate(codes.flatten().tolist()))
    data = number.to_bytes(width * len(codes), "little")
    return torch.tensor(list(data)).reshape(len(codes), width)


PACK_WRONG = [
    (pack_high_nibble_first, "high bits of the byte"),
    (pack_big_number, "from the high end"),
    (pack_in_uint8, "crosses the border"),
    (pack_whole_codes, "only whole codes"),
    (
        pack_bit_by_bit.edit("enumerate(row)", "enumerate(row[: len(row) * bits // 8 * 8 // bits])"),
        "last byte of a row is left out",
    ),
    (pack_shift_by_four, "multiple of 4"),
    (pack_one_stream, "one stream"),
]


WRONG = {
    "rtn.fit": FIT_WRONG,
    "rtn.encode": ENCODE_WRONG,
    "rtn.dequantize": DEQUANTIZE_WRONG,
    "rtn.pack": PACK_WRONG,
}
RIGHT = {
    "rtn.fit": [fit_numpy, fit_loops],
    "rtn.encode": [
        encode_numpy,
        encode_levels,
        encode_loops,
        encode_loops.edit(("round(w / s)", "w / s"), ("steps + z, 0", "round(steps + z), 0")),
    ],
    "rtn.dequantize": [weights_numpy, weights_loops, weights_loops.edit("s * (int(c) - z)", "s * int(c) - s * z")],
    "rtn.pack": [pack_bit_by_bit, pack_with_numpy],
}


@each(WRONG)
def test_a_wrong_answer_is_told_its_mistake(name, function, phrase):
    assert_likely(name, function, phrase)


@each(RIGHT)
def test_right_answers_pass_however_they_are_written(name, function):
    assert_right(name, function)
