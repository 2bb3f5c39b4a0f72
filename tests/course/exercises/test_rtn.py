"""The exercises of chapter 02: wrong answers are told which mistake it is, right ones pass however they are written."""

import math

import numpy as np
import pytest
import torch

from tests.course.answers import assert_right, verdict

# --- rtn.fit, wrong ---


def fit_levels(weight, bits, group_size, symmetric):
    scale, zero = [], []
    for row in weight.numpy():
        parts = row.reshape(-1, group_size)
        low, high = np.minimum(parts.min(1), 0), np.maximum(parts.max(1), 0)
        if symmetric:
            high = np.maximum(-low, high)
            low = -high
        s = ((high - low) / 2**bits).astype(np.float16).astype(np.float32)  # should be one less
        s[s == 0] = 1
        scale.append(s)
        zero.append(np.full_like(s, 2 ** (bits - 1)) if symmetric else np.clip(np.rint(-low / s), 0, 2**bits - 1))
    return np.array(scale), np.array(zero)


def fit_range_without_zero(weight, bits, group_size, symmetric):
    groups = torch.stack(weight.split(group_size, dim=1), dim=1)
    low, high = groups.min(dim=2).values, groups.max(dim=2).values
    if symmetric:
        high = groups.abs().amax(dim=2)
        low = -high
    scale = ((high - low) / (2**bits - 1)).half().float()
    scale[scale == 0] = 1
    zero = torch.round(-low / scale)
    return scale, torch.full_like(zero, 2**bits // 2) if symmetric else zero


def fit_wrong_axis(weight, bits, group_size, symmetric):
    rows, columns = weight.shape
    grouped = weight.reshape(rows, columns // group_size, group_size)
    low, high = grouped.min(dim=1).values.clamp(max=0), grouped.max(dim=1).values.clamp(min=0)
    if symmetric:
        high = torch.maximum(high, low.abs())
        low = -high
    scale = ((high - low) / (2**bits - 1)).half().float()
    scale = torch.where(scale == 0, 1, scale)
    zero = (-low / scale).round().clamp(0, 2**bits - 1)
    return scale, torch.full_like(scale, 2 ** (bits - 1)) if symmetric else zero


def fit_scattered_groups(weight, bits, group_size, symmetric):
    count = weight.shape[1] // group_size
    scales, zeros = [], []
    for g in range(count):
        group = weight[:, g::count]  # every count-th weight, not neighbours
        low, high = group.amin(1).clamp(max=0), group.amax(1).clamp(min=0)
        if symmetric:
            high = group.abs().amax(1)
            low = -high
        scale = ((high - low) / (2**bits - 1)).half().float()
        scale[scale == 0] = 1
        scales.append(scale)
        zero = (-low / scale).round().clamp(0, 2**bits - 1)
        zeros.append(torch.full_like(scale, 2**bits // 2) if symmetric else zero)
    return torch.stack(scales, 1), torch.stack(zeros, 1)


def loop_over_groups(weight, bits, group_size, symmetric, scale_of, zero_of):
    scales, zeros = [], []
    for row in weight.tolist():
        scales.append([])
        zeros.append([])
        for start in range(0, len(row), group_size):
            group = row[start : start + group_size]
            low, high = min(0, *group), max(0, *group)
            scale = scale_of(low, high)
            scales[-1].append(scale)
            zeros[-1].append(2 ** (bits - 1) if symmetric else zero_of(low, scale))
    return scales, zeros


def fit_cut_zero(weight, bits, group_size, symmetric):
    def scale_of(low, high):
        span = 2 * max(-low, high) if symmetric else high - low
        return float(np.float16(span / (2**bits - 1))) or 1

    def zero_of(low, scale):
        return min(int(-low / scale), 2**bits - 1)

    return loop_over_groups(weight, bits, group_size, symmetric, scale_of, zero_of)


def fit_divide_by_seven(weight, bits, group_size, symmetric):
    def scale_of(low, high):
        exact = max(-low, high) / (2 ** (bits - 1) - 1) if symmetric else (high - low) / (2**bits - 1)
        return float(np.float16(exact)) or 1

    def zero_of(low, scale):
        return min(round(-low / scale), 2**bits - 1)

    return loop_over_groups(weight, bits, group_size, symmetric, scale_of, zero_of)


def fit_full_precision(weight, bits, group_size, symmetric):
    def scale_of(low, high):
        return (2 * max(-low, high) if symmetric else high - low) / (2**bits - 1) or 1

    def zero_of(low, scale):
        return min(round(-low / scale), 2**bits - 1)

    return loop_over_groups(weight, bits, group_size, symmetric, scale_of, zero_of)


def fit_scale_of_the_row(weight, bits, group_size, symmetric):
    low, high = weight.amin(1).clamp(max=0), weight.amax(1).clamp(min=0)
    if symmetric:
        high = weight.abs().amax(1)
        low = -high
    scale = ((high - low) / (2**bits - 1)).half().double()
    scale[scale == 0] = 1
    zero = torch.full_like(scale, 2 ** (bits - 1)) if symmetric else (-low / scale).round().clamp(0, 2**bits - 1)
    groups = weight.shape[1] // group_size
    return scale[:, None].repeat(1, groups), zero[:, None].repeat(1, groups)


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
    (fit_levels, "2**bits - 1"),
    (fit_range_without_zero, "does not contain 0"),
    (fit_wrong_axis, "wrong axis"),
    (fit_scattered_groups, "every n-th weight"),
    (fit_cut_zero, "zero point is cut off"),
    (fit_divide_by_seven, "2**(bits-1) - 1"),
    (fit_full_precision, "not rounded to 16 bits"),
    (fit_scale_of_the_row, "those of the whole row"),
    (fit_divides_by_zero, "nothing can be divided by it"),
]


# --- rtn.fit, right ---


def fit_numpy(weight, bits, group_size, symmetric):
    w = weight.numpy().astype(np.float64).reshape(weight.shape[0], -1, group_size)
    low, high = w.min(axis=2, initial=0), w.max(axis=2, initial=0)
    span = 2 * np.maximum(-low, high) if symmetric else high - low
    scale = np.float16(span / (2**bits - 1))
    scale[scale == 0] = 1
    if symmetric:
        return scale, np.full(scale.shape, 1 << bits - 1, dtype=np.uint8)
    return scale, np.clip(np.rint(-low / scale.astype(np.float64)), 0, 2**bits - 1).astype(np.uint8)


def fit_loops(weight, bits, group_size, symmetric):
    def scale_of(low, high):
        if symmetric:
            exact = max(-low, high) / (2**bits / 2 - 0.5)
        else:
            exact = high / (2**bits - 1) - low / (2**bits - 1)
        return torch.tensor(exact).to(torch.float16).item() or 1.0

    def zero_of(low, scale):
        return max(0, min(2**bits - 1, math.floor(-low / scale + 0.5)))

    return loop_over_groups(weight, bits, group_size, symmetric, scale_of, zero_of)


# --- rtn.encode, wrong ---


def each_weight(weight, scale, zero, code_of, group_of=lambda column, length, groups: column // length):
    rows, columns = weight.shape
    groups = scale.shape[1]
    codes = torch.zeros(rows, columns, dtype=torch.int64)
    for o in range(rows):
        for i in range(columns):
            g = group_of(i, columns // groups, groups)
            codes[o, i] = code_of(float(weight[o, i]), float(scale[o, g]), int(zero[o, g]))
    return codes


def clamped(code, bits):
    return min(max(code, 0), 2**bits - 1)


ENCODE_WRONG = [
    (
        lambda weight, scale, zero, bits: each_weight(
            weight, scale, zero, lambda w, s, z: clamped(int(w / s) + z, bits)
        ),
        "cut off towards zero",
    ),
    (
        lambda weight, scale, zero, bits: each_weight(weight, scale, zero, lambda w, s, z: clamped(w // s + z, bits)),
        "rounded down",
    ),
    (
        lambda weight, scale, zero, bits: each_weight(
            weight, scale, zero, lambda w, s, z: clamped(round(w / s), bits) + z
        ),
        "clamp before adding the zero point",
    ),
    (
        lambda weight, scale, zero, bits: each_weight(weight, scale, zero, lambda w, s, z: round(w / s) + z),
        "nothing is clamped",
    ),
    (
        lambda weight, scale, zero, bits: each_weight(
            weight, scale, zero, lambda w, s, z: min(max(round(w / s) + z, 0), 2**bits)
        ),
        "clamp at 2**bits, one too many",
    ),
    (
        lambda weight, scale, zero, bits: each_weight(
            weight, scale, zero, lambda w, s, z: clamped(round(w / s) + z, bits), lambda i, length, groups: i % groups
        ),
        "wrong group",
    ),
    (
        lambda weight, scale, zero, bits: each_weight(
            weight, scale, zero, lambda w, s, z: clamped(round(w / s) - z, bits)
        ),
        "zero point is subtracted",
    ),
    (
        lambda weight, scale, zero, bits: each_weight(
            weight, scale, zero, lambda w, s, z: clamped(round(w * s) + z, bits)
        ),
        "multiply by the scale",
    ),
    (
        lambda weight, scale, zero, bits: each_weight(
            weight, scale, zero, lambda w, s, z: min(max(round(w / s), -(2**bits) // 2), 2**bits // 2 - 1) + z
        ),
        "signed range",
    ),
]


# --- rtn.encode, right ---


def encode_numpy(weight, scale, zero, bits):
    length = weight.shape[1] // scale.shape[1]
    s = np.repeat(scale.numpy().astype(np.float32), length, axis=1)
    z = np.repeat(zero.numpy().astype(np.int32), length, axis=1)
    return np.clip(np.rint(weight.numpy() / s) + z, 0, 2**bits - 1).astype(np.uint8)


def encode_levels(weight, scale, zero, bits):
    levels = scale[..., None] * (torch.arange(2**bits) - zero[..., None].int())  # [out, groups, levels]
    levels = levels.float().repeat_interleave(weight.shape[1] // scale.shape[1], dim=1)
    return (levels - weight[..., None]).abs().argmin(dim=-1).tolist()


# --- rtn.dequantize ---


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
    (
        lambda codes, scale, zero: (scale[..., None] * (codes.reshape(*scale.shape, -1) - zero[..., None])).reshape(
            codes.shape
        ),
        "as they are stored",
    ),
    (weights_tiled, "wrong group"),
    (
        lambda codes, scale, zero: each_weight_back(codes, scale, zero, lambda c, s, z: s * (c + z)),
        "zero point is added",
    ),
    (lambda codes, scale, zero: each_weight_back(codes, scale, zero, lambda c, s, z: s * c - z), "with brackets"),
    (lambda codes, scale, zero: each_weight_back(codes, scale, zero, lambda c, s, z: c * s), "zero point is missing"),
    (
        lambda codes, scale, zero: each_weight_back(codes, scale, zero, lambda c, s, z: (c - z) / s),
        "divide by the scale",
    ),
]


def each_weight_back(codes, scale, zero, weight_of):
    length = codes.shape[1] // scale.shape[1]
    return [
        [weight_of(c, scale[o, i // length].item(), zero[o, i // length].item()) for i, c in enumerate(row)]
        for o, row in enumerate(codes.tolist())
    ]


def weights_numpy(codes, scale, zero):
    c, s, z = (part.numpy().astype(np.float32) for part in (codes, scale, zero))
    return (s[:, :, None] * (c.reshape(*s.shape, -1) - z[:, :, None])).reshape(c.shape)


# --- rtn.pack ---


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
        data[:, i * bits // 8] |= codes[:, i] << (i * bits % 8)  # what is shifted past the top is gone
    return data


def pack_whole_codes(codes, bits, width):
    data = np.zeros((len(codes), 2 * width + 8), dtype=np.int64)
    for i in range(codes.shape[1]):
        byte, place = divmod(i, 8 // bits)
        data[:, byte] |= codes.numpy()[:, i].astype(np.int64) << place * bits
    return data[:, :width]


def pack_without_the_rest(codes, bits, width):
    rows = []
    for row in codes.tolist():
        whole = [0] * width
        for byte in range(len(row) * bits // 8):
            for bit in range(8):
                code, position = divmod(8 * byte + bit, bits)
                if (code + 1) * bits <= 8 * (len(row) * bits // 8):
                    whole[byte] |= (row[code] >> position & 1) << bit
        rows.append(whole)
    return rows


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
    (pack_without_the_rest, "last byte of a row is left out"),
    (pack_shift_by_four, "multiple of 4"),
    (pack_one_stream, "one stream"),
]


def pack_numbers(codes, bits, width):
    return [
        list(sum(code << i * bits for i, code in enumerate(row)).to_bytes(width, "little")) for row in codes.tolist()
    ]


def pack_with_numpy(codes, bits, width):
    unpacked = np.unpackbits(codes.numpy()[:, :, None], axis=2, bitorder="little")[:, :, :bits].reshape(len(codes), -1)
    unpacked = np.pad(unpacked, ((0, 0), (0, 8 * width - unpacked.shape[1])))
    return np.packbits(unpacked, axis=1, bitorder="little")


WRONG = [
    *(("rtn.fit", *wrong) for wrong in FIT_WRONG),
    *(("rtn.encode", *wrong) for wrong in ENCODE_WRONG),
    *(("rtn.dequantize", *wrong) for wrong in DEQUANTIZE_WRONG),
    *(("rtn.pack", *wrong) for wrong in PACK_WRONG),
]
RIGHT = [
    ("rtn.fit", fit_numpy),
    ("rtn.fit", fit_loops),
    ("rtn.encode", encode_numpy),
    ("rtn.encode", encode_levels),
    ("rtn.encode", lambda w, s, z, bits: each_weight(w, s, z, lambda w, s, z: clamped(round(w / s + z), bits)).float()),
    ("rtn.dequantize", weights_numpy),
    ("rtn.dequantize", lambda *parts: each_weight_back(*parts, lambda c, s, z: s * c - s * z)),
    ("rtn.pack", pack_numbers),
    ("rtn.pack", pack_with_numpy),
]


@pytest.mark.parametrize(("name", "function", "words"), WRONG, ids=[f"{n}: {words}" for n, _, words in WRONG])
def test_wrong_answers_are_told_their_mistake(name, function, words):
    found = verdict(name, function)
    assert not found.passed
    assert words in found.text.splitlines()[-1] and "Likely mistake: " in found.text, found.text


@pytest.mark.parametrize(("name", "function"), RIGHT)
def test_right_answers_pass_however_they_are_written(name, function):
    assert_right(name, function)
