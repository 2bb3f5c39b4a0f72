"""Chapter 02 as learners would write it: more answers, and for each wrong one the message that names its mistake.

The answers are not written like the exercise's own solution. So check cannot recognise a mistake by its text.
"""

import math  # noqa: F401 - the edits use it

import numpy as np
import torch

from qtutor.course.exercises.edits import solution
from tests.course.answers import assert_last_line, assert_right, each

# --- rtn.fit ---


@solution
def group_by_group(weight, bits, size, symmetric):
    out, width = weight.shape
    groups = width // size
    scale, zero = torch.zeros(out, groups), torch.zeros(out, groups)
    steps = 2**bits - 1
    for o in range(out):
        for g in range(groups):
            part = weight[o, g * size : (g + 1) * size]
            low, high = min(part.min().item(), 0.0), max(part.max().item(), 0.0)
            if symmetric:
                largest = part.abs().max().item()
                low, high = -largest, largest
            s = torch.tensor((high - low) / steps).to(torch.float16).item()
            s = s if s > 0 else 1.0
            z = min(max(round(-low / s), 0), steps)
            if symmetric:
                z = (steps + 1) // 2
            scale[o, g], zero[o, g] = s, z
    return scale, zero


def fit_by_unfold(weight, bits, size, symmetric):
    parts = weight.double().unfold(1, size, size)
    low, high = parts.min(-1).values.clamp_max(0), parts.max(-1).values.clamp_min(0)
    if symmetric:
        reach = torch.stack([-low, high]).amax(0)
        low, high = -reach, reach
    scale = ((high - low) / (2**bits - 1)).to(torch.float16)
    scale = scale.masked_fill(scale == 0, 1.0)
    zero = torch.round(low / -scale.double()).clamp(0, 2**bits - 1)
    if symmetric:
        zero.fill_(2**bits // 2)
    return scale, zero.to(torch.uint8)


def fit_of_lists(weight, bits, size, symmetric):
    found = [[], []]
    for row in weight.tolist():
        pairs = []
        for i in range(0, len(row), size):
            part = [*row[i : i + size], 0.0]
            reach = max(map(abs, part))
            low, high = (-reach, reach) if symmetric else (min(part), max(part))
            s = float(np.float16((high - low) / (2**bits - 1)))
            s = s or 1.0
            pairs.append((s, 2 ** (bits - 1) if symmetric else min(round(-low / s), 2**bits - 1)))
        for k in (0, 1):
            found[k].append([pair[k] for pair in pairs])
    return tuple(found)


def fit_in_numpy64(weight, bits, size, symmetric):
    w = np.asarray(weight, dtype=np.float64).reshape(len(weight), -1, size)
    high, low = np.maximum(w.max(2), 0), np.minimum(w.min(2), 0)
    half = np.abs(w).max(2)
    span = np.where(symmetric, 2 * half, high - low)
    scale = (span / (2**bits - 1)).astype(np.float16).astype(np.float64)
    scale = np.where(scale == 0, 1, scale)
    return scale, np.where(symmetric, 2 ** (bits - 1), np.rint(-low / scale).clip(0, 2**bits - 1))


PART, LOW = "weight[o, g * size : (g + 1) * size]", "min(part.min().item(), 0.0)"
HIGH, STORED = "max(part.max().item(), 0.0)", "torch.tensor((high - low) / steps).to(torch.float16).item()"
ZERO, MIDDLE = "min(max(round(-low / s), 0), steps)", "(steps + 1) // 2"
WRONG_FITS = [
    (group_by_group.edit((LOW, "part.min().item()"), (HIGH, "part.max().item()")), "does not contain 0"),
    (group_by_group.edit(LOW, "part.min().item()"), "does not contain 0"),
    (group_by_group.edit(HIGH, "part.max().item()"), "does not contain 0"),
    (
        group_by_group.edit(
            (PART, "weight.T.reshape(-1, out).T[o, g * size : (g + 1) * size]"),
            ("out, width = weight.shape", "out, width = weight.shape\n    weight = weight.T.reshape(out, width)"),
        ),
        "down the columns",
    ),
    (
        group_by_group.edit("weight[o, g * size : (g + 1) * size]", "weight[o, [i * groups + g for i in range(size)]]"),
        "every n-th weight",
    ),
    (group_by_group.edit(ZERO, "min(max(round(-low / s) + 1, 0), steps)"), "the zero point is one too large"),
    (group_by_group.edit(ZERO, "min(max(round(-low / s) - 1, 0), steps)"), "the zero point is one too small"),
    (group_by_group.edit(ZERO, "min(math.ceil(-low / s), steps)"), "rounded up"),
    (group_by_group.edit(ZERO, "round(-low / s)"), "from 0 to 2**bits - 1"),
    (group_by_group.edit(ZERO, "min(max(-low / s, 0), steps)"), "not rounded to a whole number"),
    (group_by_group.edit(ZERO, "low"), "the smallest weight itself"),
    (group_by_group.edit(MIDDLE, "steps // 2"), "one below the middle"),
    (group_by_group.edit(MIDDLE, "0"), "is 0 on the symmetric grid"),
    (group_by_group.edit("torch.float16", "torch.bfloat16"), "bfloat16"),
    (group_by_group.edit("low, high = -largest, largest", "low, high = 0, largest"), "half of the range"),
    (group_by_group.edit("part.abs().max().item()", "part.max().item()"), "largest positive weight"),
    (group_by_group.edit("part.abs().max().item()", "-part.min().item()"), "only the smallest weight"),
    (group_by_group.edit("return scale, zero", "return zero, scale"), "swapped"),
    (group_by_group.edit("s if s > 0 else 1.0", "max(s, 1e-8)"), "give it scale 1"),
    (group_by_group.edit("s if s > 0 else 1.0", "max(s, 1e-5)"), "give it scale 1"),
    (lambda w, b, n, s: group_by_group(w, b, n, not s), "symmetric is reversed"),
    (group_by_group.edit(STORED, "torch.tensor(high - low).half().item() / steps"), "the range is rounded to 16 bits"),
    (group_by_group.edit("(high - low) / steps", "(high - low) / (steps + 1)"), "one step fewer"),
    (group_by_group.edit((STORED, "torch.tensor((high - low) / 15).half().item()")), "15 belongs to 4 bits"),
    (group_by_group.edit("return scale, zero", "return scale.T, zero.T"), "transposed"),
]

# --- rtn.encode ---


@solution
def one_by_one(weight, scale, zero, bits):
    out, width = weight.shape
    size = width // scale.shape[1]
    codes = [[0] * width for _ in range(out)]
    for o in range(out):
        for i in range(width):
            g = i // size
            code = round(weight[o, i].item() / scale[o, g].item()) + zero[o, g].item()
            codes[o][i] = max(0, min(2**bits - 1, code))
    return codes


def codes_grouped(weight, scale, zero, bits):
    groups = weight.double().unflatten(1, (scale.shape[1], -1))
    steps = torch.round(groups / scale.double().unsqueeze(2))
    return torch.clamp(steps + zero.unsqueeze(2), min=0, max=2**bits - 1).flatten(1).to(torch.uint8)


def codes_by_kron(weight, scale, zero, bits):
    ones = torch.ones(1, weight.shape[1] // scale.shape[1])
    s, z = torch.kron(scale.float(), ones), torch.kron(zero.float(), ones)
    return torch.minimum(torch.maximum((weight / s + z).round(), torch.tensor(0.0)), torch.tensor(2.0**bits - 1)).int()


def codes_of_groups_in_turn(weight, scale, zero, bits):
    w, s, z = weight.numpy(), scale.numpy().astype("f8"), zero.numpy().astype("f8")
    parts = np.split(w.astype("f8"), s.shape[1], axis=1)
    return np.hstack([np.clip(np.rint(p / s[:, [g]]) + z[:, [g]], 0, 2**bits - 1) for g, p in enumerate(parts)])


CODE, CLAMPED = "round(weight[o, i].item() / scale[o, g].item()) + zero[o, g].item()", "max(0, min(2**bits - 1, code))"
STEPS = "round(weight[o, i].item() / scale[o, g].item())"


def codes_in_half(weight, scale, zero, bits):
    size = weight.shape[1] // scale.shape[1]
    return ((weight.half() / scale.repeat_interleave(size, 1)).round() + zero.repeat_interleave(size, 1)).clamp(
        0, 2**bits - 1
    )


def codes_wrapped(weight, scale, zero, bits):
    size = weight.shape[1] // scale.shape[1]
    steps = (weight / scale.float().repeat_interleave(size, 1)).round().long()
    return (steps.to(torch.uint8) + zero.repeat_interleave(size, 1)).clamp(0, 2**bits - 1)


WRONG_CODES = [
    (codes_in_half, "in float16"),
    (codes_wrapped, "converted to uint8 before"),
    (one_by_one.edit(CLAMPED, "min(2**bits - 1, code)"), "clamped at the top only"),
    (one_by_one.edit(CLAMPED, "max(0, code)"), "clamped at 0 only"),
    (one_by_one.edit(CLAMPED, "max(0, min(2 ** (bits - 1) - 1, code))"), "half of the codes"),
    (one_by_one.edit(CLAMPED, "max(0, min(15, code))"), "15 belongs to 4 bits"),
    (one_by_one.edit(CLAMPED, "max(-(2 ** (bits - 1)), min(2 ** (bits - 1) - 1, code))"), "signed codes"),
    (one_by_one.edit(STEPS, "(weight[o, i].item() / scale[o, g].item())"), "not rounded"),
    (one_by_one.edit("round(", "math.ceil("), "rounded up"),
    (one_by_one.edit(CODE, "round((weight[o, i].item() + zero[o, g].item()) / scale[o, g].item())"), "before dividing"),
    (
        one_by_one.edit(CODE, "round((weight[o, i].item() - zero[o, g].item()) / scale[o, g].item())"),
        "subtracted from the weight",
    ),
    (one_by_one.edit("zero[o, g]", "zero[o, 0]"), "but the zero points of the first group"),
    (one_by_one.edit("zero[o, g]", "zero[0, g]"), "but the zero points of the first row"),
    (one_by_one.edit("scale[o, g]", "scale[o, 0]"), "scale of its first group"),
    (one_by_one.edit("scale[o, g]", "scale[0, g]"), "scales of the first row"),
    (one_by_one.edit(CLAMPED, "max(1, min(2**bits, code + 1))"), "one too large"),
    (one_by_one.edit("i // size", "scale.shape[1] - 1 - i // size"), "in reverse order"),
    (one_by_one.edit(CLAMPED, "code % 2**bits"), "wrap around"),
    (one_by_one.edit(CLAMPED, "max(0, min(2**bits - 1, code)) - 2 ** (bits - 1)"), "middle was subtracted"),
    (
        one_by_one.edit(CLAMPED, "max(0, min(2**bits - 1, code)) * scale[o, g].item()"),
        "multiplied by the scale at the end",
    ),
    (
        one_by_one.edit(CLAMPED, "(max(0, min(2**bits - 1, code)) - zero[o, g].item()) * scale[o, g].item()"),
        "these are the weights again",
    ),
    (lambda *a: torch.tensor(one_by_one(*a)).reshape(len(a[0]), a[1].shape[1], -1), "back to the shape of weight"),
    (lambda *a: torch.tensor(one_by_one(*a)).to(torch.int8), "int8"),
]

# --- rtn.dequantize ---


@solution
def from_codes(codes, scale, zero):
    out, width = codes.shape
    size = width // scale.shape[1]
    weight = torch.empty(out, width)
    for o in range(out):
        for i in range(width):
            g = i // size
            weight[o, i] = scale[o, g].item() * (codes[o, i].item() - zero[o, g].item())
    return weight


def weights_of_groups(codes, scale, zero):
    groups = codes.double().unflatten(1, (scale.shape[1], -1))
    return torch.einsum("og,ogi->ogi", scale.double(), groups - zero.double().unsqueeze(2)).flatten(1)


def weights_of_lists(codes, scale, zero):
    size = codes.shape[1] // scale.shape[1]
    triples = zip(codes.tolist(), scale.tolist(), zero.tolist())
    return [[s[i // size] * (c - z[i // size]) for i, c in enumerate(row)] for row, s, z in triples]


def weights_in_numpy64(codes, scale, zero):
    size = codes.shape[1] // scale.shape[1]
    c, s, z = (np.asarray(part, dtype=np.float64) for part in (codes, scale, zero))
    return (c - z.repeat(size, 1)) * s.repeat(size, 1)


def weights_in_place(codes, scale, zero):
    weight = codes.float().reshape(len(codes), scale.shape[1], -1)
    weight -= zero.float()[:, :, None]
    weight *= scale.float()[:, :, None]
    return weight.view(codes.shape)


BACK = "scale[o, g].item() * (codes[o, i].item() - zero[o, g].item())"
WRONG_WEIGHTS = [
    (from_codes.edit(BACK, "codes[o, i].item() - zero[o, g].item()"), "the scale is missing"),
    (from_codes.edit(BACK, f"max(0, {BACK})"), "negative weights are lost"),
    (from_codes.edit(BACK, f"abs({BACK})"), "signs are lost"),
    (from_codes.edit("torch.empty(out, width)", "torch.empty(out, width, dtype=torch.bfloat16)"), "bfloat16"),
    (from_codes.edit("torch.empty(out, width)", "torch.empty(out, width, dtype=torch.float16)"), "float16"),
    (from_codes.edit("torch.empty(out, width)", "torch.empty(out, width, dtype=torch.int64)"), "whole numbers"),
    (from_codes.edit("zero[o, g].item()", "8"), "a zero point of 8"),
    (from_codes.edit("zero[o, g]", "zero[o, 0]"), "but the zero points of the first group"),
    (from_codes.edit("zero[o, g]", "zero[0, g]"), "but the zero points of the first row"),
    (from_codes.edit("scale[o, g]", "scale[o, 0]"), "scale of its first group"),
    (from_codes.edit("scale[o, g]", "scale[0, g]"), "scales of the first row"),
    (from_codes.edit("codes[o, i].item()", "codes.to(torch.int8)[o, i].item()"), "int8"),
    (
        from_codes.edit(
            ("codes[o, i].item()", "codes.to(torch.int8)[o, i].item()"),
            ("zero[o, g].item()", "zero.to(torch.int8)[o, g].item()"),
        ),
        "int8",
    ),
    (lambda c, s, z: from_codes(c, s, z).reshape(*s.shape, -1), "back to [out, in]"),
    (from_codes.edit("i // size", "scale.shape[1] - 1 - i // size"), "in reverse order"),
    (from_codes.edit(BACK, f"{BACK} + zero[o, g].item()"), "added again"),
    (
        from_codes.edit(BACK, "codes[o, i].item() - zero[o, g].item() * scale[o, g].item()"),
        "only the zero point is multiplied",
    ),
    (from_codes.edit(BACK, "(codes[o, i].item() - zero[o, g].item() - 1) * scale[o, g].item()"), "one step too low"),
    (from_codes.edit(BACK, "(codes[o, i].item() - zero[o, g].item() + 0.5) * scale[o, g].item()"), "half a step"),
    (lambda c, s, z: from_codes(c, s, z).T, "transposed"),
]

# --- rtn.pack ---


@solution
def columnwise(codes, bits, width):
    data = torch.zeros(len(codes), width, dtype=torch.int64)
    for i in range(codes.shape[1]):
        byte, shift = i * bits // 8, i * bits % 8
        code = codes[:, i].to(torch.int64) * 2**shift
        data[:, byte] |= code % 256
        if shift + bits > 8:
            data[:, byte + 1] |= code // 256
    return data.to(torch.uint8)


def pack_of_bits(codes, bits, width):
    rows = []
    for row in codes.tolist():
        flags = [code >> k & 1 for code in row for k in range(bits)]
        flags += [0] * (8 * width - len(flags))
        rows.append(bytes(sum(flag << k for k, flag in enumerate(flags[j : j + 8])) for j in range(0, len(flags), 8)))
    return rows


def pack_with_a_buffer(codes, bits, width):
    packed = []
    for row in codes.tolist():
        held, count, line = 0, 0, []
        for code in row:
            held |= code << count
            count += bits
            while count >= 8:
                line.append(held % 256)
                held //= 256
                count -= 8
        line += [held] * (count > 0)
        packed.append(line + [0] * (width - len(line)))
    return np.array(packed)


def pack_of_one_number(codes, bits, width):
    found = torch.empty(len(codes), width, dtype=torch.uint8)
    for r, row in enumerate(codes.numpy()):
        number = 0
        for code in row[::-1]:
            number = (number << bits) + int(code)
        for j in range(width):
            found[r, j] = number >> 8 * j & 255
    return found


LOWER, UPPER = "data[:, byte] |= code % 256", "data[:, byte + 1] |= code // 256"
CODED = "codes[:, i].to(torch.int64) * 2**shift"


def pack_halves(codes, bits, width):
    """The first part of a row is in the lowest bits of its bytes, the next part above it, as in some formats."""
    if 8 % bits:
        return columnwise(codes, bits, width)
    data = torch.zeros(len(codes), width, dtype=torch.int64)
    for i in range(codes.shape[1]):
        data[:, i % width] |= codes[:, i].long() << i // width * bits
    return data


def pack_in_int64(codes, bits, width):
    row = (codes.long() << torch.arange(codes.shape[1]) * bits).sum(1)
    return torch.stack([row >> 8 * j & 255 if j < 8 else 0 * row for j in range(width)], 1)


def pack_mirrored(codes, bits, width):
    return [
        [
            int("".join(f"{c:0{bits}b}" for c in row).ljust(8 * width, "0")[8 * j : 8 * j + 8][::-1], 2)
            for j in range(width)
        ]
        for row in codes.tolist()
    ]


WRONG_PACKS = [
    (columnwise.edit((LOWER, "data[:, byte] = code % 256"), (UPPER, "data[:, byte + 1] = code // 256")), "overwrites"),
    (columnwise.edit(LOWER, "data[:, byte] = code % 256"), "overwrites"),
    (columnwise.edit((LOWER, "data[:, byte] &= code % 256"), (UPPER, "data[:, byte + 1] &= code // 256")), "only 0"),
    (columnwise.edit((UPPER, "data[:, byte] |= code // 256")), "same byte"),
    (columnwise.edit(UPPER, "data[:, byte + 1] |= code % 256"), "low part is written a second time"),
    (columnwise.edit(UPPER, "pass"), "are lost"),
    (columnwise.edit("shift + bits > 8", "shift + bits >= 8"), "beyond the row"),
    (columnwise.edit("i * bits % 8", "i % 8"), "shifted by i % 8"),
    (columnwise.edit("i * bits // 8, i * bits % 8", "i // 2, i % 2 * 4"), "every code gets 4 bits"),
    (columnwise.edit((LOWER, "data[:, byte] |= code"), ("data.to(torch.uint8)", "data")), "not cut to 8 bits"),
    (lambda c, b, w: columnwise(c, b, w).flip(1), "in reverse order"),
    (pack_halves, "first half of a row"),
    (pack_in_int64, "do not fit into an int64"),
    (pack_mirrored, "mirrored"),
    (lambda c, b, w: columnwise(c.flip(1), b, w), "codes of a row are packed in reverse order"),
    (lambda c, b, w: [r + [0] * (w - len(r)) for r in [list(r.numpy())[:w] for r in c]], "nothing is packed"),
    (
        columnwise.edit(
            "i * bits // 8, i * bits % 8", "i * bits // 8, 8 - bits - i * bits % 8 if 8 % bits == 0 else i * bits % 8"
        ),
        "high bits of the byte",
    ),
    (
        columnwise.edit("data.to(torch.uint8)", "data.to(torch.uint8)[:, : codes.shape[1] * bits // 8]"),
        "last byte of a row",
    ),
    (columnwise.edit("data.to(torch.uint8)", "data.to(torch.int8)"), "int8"),
    (columnwise.edit((CODED, "codes[:, i].long()"), (UPPER, "pass")), "without being shifted"),
]

WRONG = {
    "rtn.fit": WRONG_FITS,
    "rtn.encode": WRONG_CODES,
    "rtn.dequantize": WRONG_WEIGHTS,
    "rtn.pack": WRONG_PACKS,
}
RIGHT = {
    "rtn.fit": [group_by_group, fit_by_unfold, fit_of_lists, fit_in_numpy64],
    "rtn.encode": [one_by_one, codes_grouped, codes_by_kron, codes_of_groups_in_turn],
    "rtn.dequantize": [from_codes, weights_of_groups, weights_of_lists, weights_in_numpy64, weights_in_place],
    "rtn.pack": [
        columnwise,
        columnwise.edit(LOWER, "data[:, byte] |= code"),
        pack_of_bits,
        pack_with_a_buffer,
        pack_of_one_number,
    ],
}


@each(WRONG)
def test_a_wrong_answer_is_told_its_mistake(name, function, phrase):
    assert_last_line(name, function, phrase)


@each(RIGHT)
def test_right_answers_pass_however_they_are_written(name, function):
    assert_right(name, function)
