"""Wrong answers of chapters 00 to 09 that check once accepted, or refused without naming the mistake.

Each now gets the right message. The answers are not written like the exercises' own solutions. So check cannot
recognise a mistake by its text.
"""

import struct

import numpy as np
import torch

from tests.course.answers import assert_likely, assert_mistakes_differ, each

PLACES = torch.arange(8)


# --- chapters 00 and 01 ---


def every_token_of_every_row(logits, token_ids):
    log_p = logits[:-1].double().log_softmax(-1)[:, token_ids[1:]]
    return float(torch.exp(-log_p.mean()))


def lower_median(logits, token_ids):
    log_p = logits[:-1].double().log_softmax(-1).gather(1, token_ids[1:, None])
    return float(torch.exp(-log_p.median()))


def never_divided(bits, exponent_bits, mantissa_bits):
    exponent, mantissa = int(bits[1 : 1 + exponent_bits], 2), int(bits[1 + exponent_bits :] or "0", 2)
    bias = 2 ** (exponent_bits - 1) - 1
    whole = mantissa if exponent == 0 else 2**mantissa_bits + mantissa
    return whole * 2.0 ** (max(exponent, 1) - bias) * (-1) ** int(bits[0])


# --- chapters 02 and 03 ---


def times_a_rounded_reciprocal(weight, scale, zero, bits):
    grouped = weight.reshape(*scale.shape, -1)
    return ((grouped * (1 / scale)[..., None]).round() + zero[..., None]).clamp(0, 2**bits - 1).flatten(1)


def differences_in_int8(codes, scale, zero):
    grouped = codes.reshape(*scale.shape, -1).to(torch.int8)
    return (scale.float()[..., None] * (grouped - zero.to(torch.int8)[..., None]).float()).reshape(codes.shape)


def with_an_epsilon(weight):
    deviation = weight.double() - weight.double().mean(-1, keepdim=True)
    variance = deviation.square().mean(-1)
    return torch.where(
        variance < 1e-6, torch.zeros_like(variance), deviation.pow(4).mean(-1) / (variance + 1e-8) ** 2 - 3
    )


# --- chapters 04 to 06 ---


def outliers_in_bfloat16(x, codes, absmax, outliers, weight, weight_absmax):
    integers = (codes.double() @ weight.double().T) * (absmax.double() / 127)[:, None]
    floats = (x[:, outliers].bfloat16() @ weight[:, outliers].bfloat16().T).double()
    return (integers + floats) * (weight_absmax.double() / 127)


def one_candidate_after_the_other(weight, scales, rounded, output):
    target, tried, errors = output(weight), weight, []
    for scale in scales:
        tried = rounded(tried * scale) / scale
        errors.append((output(tried) - target).square().mean().item())
    return errors.index(min(errors)), errors


def pushed_twice(weight, inverse, rounded):
    e = weight[:, 0] - rounded
    return torch.cat([rounded[:, None], (weight - 2 * torch.outer(e, inverse[0] / inverse[0, 0]))[:, 1:]], dim=1)


def _loop(weight, upper, scale, zero, bits, columns, behind):
    work, codes, size = weight.clone(), torch.zeros(weight.shape), weight.shape[1] // scale.shape[1]
    for j in columns(weight.shape[1]):
        s, z = scale[:, j // size].to(work.dtype), zero[:, j // size].to(work.dtype)
        codes[:, j] = ((work[:, j] / s).round() + z).clamp(0, 2**bits - 1)
        e = (work[:, j] - s * (codes[:, j].to(work.dtype) - z)) / upper[j, j]
        where, row = behind(j, upper)
        work[:, where] -= torch.outer(e, row)
    return codes


def from_right_to_left(weight, upper, scale, zero, bits):
    back = lambda count: range(count - 1, -1, -1)  # noqa: E731
    return _loop(weight, upper, scale, zero, bits, back, lambda j, u: (slice(0, j), u[:j, j]))


def loop_in_float16(weight, upper, scale, zero, bits):
    right = lambda j, u: (slice(j + 1, None), u[j, j + 1 :])  # noqa: E731
    return _loop(weight.half(), upper.half(), scale, zero, bits, range, right)


# --- chapter 07 ---


def _info(name, shape, number, offset, dimensions=None):
    dimensions = [*reversed(shape)] if dimensions is None else dimensions
    layout = f"<I{len(dimensions)}QIQ"
    return struct.pack("<Q", len(name)) + name + struct.pack(layout, len(shape), *dimensions, number, offset)


def closed_by_a_zero(name, shape, number, offset):
    return _info(name.encode() + b"\0", shape, number, offset)


def always_four_dimensions(name, shape, number, offset):
    return _info(name.encode(), shape, number, offset, [*reversed(shape), *[1] * (4 - len(shape))])


def alternating(packed):
    last_scales = packed[:, 8:] & 15 | packed[:, :4] >> 6 << 4
    last_minima = packed[:, 8:] >> 4 | packed[:, 4:8] >> 6 << 4
    pairs = ((packed[:, :4] & 63, last_scales), (packed[:, 4:8] & 63, last_minima))
    return tuple(np.stack(pair, axis=2).reshape(-1, 8) for pair in pairs)


# --- chapter 08 ---


def far_apart(codes):
    eights = codes.T.long().reshape(codes.shape[1], 8, -1)
    return sum(eights[:, output] << 4 * n for n, output in enumerate((0, 2, 4, 6, 1, 3, 5, 7)))


def zeros_of_absolute_words(qzeros, checkpoint_format):
    numbers = torch.stack([qzeros.long().abs() // 16**n % 16 for n in range(8)], -1).reshape(len(qzeros), -1).T
    return numbers + 1 if checkpoint_format == "gptq" else numbers


def _codes(words, bits, count, number):
    return [[number(row) >> bits * i & 2**bits - 1 for i in range(count)] for row in words.tolist()]


def negative_parts(words, bits, count):
    return _codes(words, bits, count, lambda row: sum(word << 32 * k for k, word in enumerate(row)))


def absolute_parts(words, bits, count):
    return _codes(words, bits, count, lambda row: sum(abs(word) << 32 * k for k, word in enumerate(row)))


def from_the_highest_bit(words, bits, count):
    texts = ["".join(f"{word & 0xFFFFFFFF:032b}" for word in row) for row in words.tolist()]
    return [[int(text[bits * i : bits * i + bits], 2) for i in range(count)] for text in texts]


# --- chapter 09 ---


def _token(shapes, blocks, bits, group_size, head, cache, zero=None):
    weights = sum(rows * columns for rows, columns in shapes)
    return blocks * (weights * bits / 8 + weights / group_size * (2 + (zero or bits / 8)) + cache) + 2 * head


def cache_in_codes(shapes, blocks, bits, group_size, head, kv_width, context):
    return _token(shapes, blocks, bits, group_size, head, 2 * context * kv_width * bits / 8)


def its_own_keys(shapes, blocks, bits, group_size, head, kv_width, context):
    return _token(shapes, blocks, bits, group_size, head, 4 * (context + 1) * kv_width)


def zeros_in_bytes(shapes, blocks, bits, group_size, head, kv_width, context):
    return _token(shapes, blocks, bits, group_size, head, 4 * context * kv_width, zero=1)


def embedding_too(shapes, blocks, bits, group_size, head, kv_width, context):
    return _token(shapes, blocks, bits, group_size, 2 * head, 4 * context * kv_width)


def times_added(peak, bandwidth, bits, batch):
    return 2 * batch / (bits / 8 / bandwidth + 2 * batch / peak), peak * bits / 16 / bandwidth


def corner_not_below_one(peak, bandwidth, bits, batch):
    return min(peak, batch * 16 / bits * bandwidth), max(1, peak * bits / 16 / bandwidth)


def last_group_alone(sums, x, scales, zeros):
    of_x, y = x.reshape(sums.shape[1], -1).sum(1), None
    for g in range(sums.shape[1]):
        y = scales[:, g] * (sums[:, g] - zeros[:, g] * of_x[g])
    return y


def last_in_its_place_too(words, x):
    return words.long()[:, None] & 15 << 4 * PLACES, x / 16.0**PLACES


def _int8_inputs(codes, zeros, scales, x, most, wrap=None):
    groups = scales.shape[1]
    cut = x.reshape(groups, -1)
    step = (cut.abs().amax(1) / most).clamp(min=1e-30)
    q = (cut / step[:, None]).round().clamp(-128, 127)
    products = codes.reshape(len(codes), groups, -1) * q
    products = products.to(wrap).long() if wrap else products
    return (scales * step * (products.sum(-1) - zeros * q.sum(1))).sum(1)


def products_in_int8(codes, zeros, scales, x):
    groups = scales.shape[1]
    cut = x.reshape(groups, -1)
    step = (cut.abs().amax(1) / 127).clamp(min=1e-30)
    q = (cut / step[:, None]).round().to(torch.int8)
    whole = (codes.reshape(len(codes), groups, -1).to(torch.int8) * q).long().sum(-1) - zeros * q.long().sum(1)
    return (scales * step * whole).sum(1)


def steps_of_127_and_a_half(codes, zeros, scales, x):
    return _int8_inputs(codes, zeros, scales, x, 127.5)


def zero_of_every_word(x, sums, words, scales, zeros):
    y, size = np.zeros(64, np.float32), len(x) // len(sums)
    for k in range(len(words)):
        codes = np.stack([words[k] & np.int32(15 << 4 * i) for i in range(7)] + [words[k] >> 28 & 15], axis=1)
        y += scales[k // size] * (codes @ x[k] - zeros[k // size] * sums[k // size])
    return y


WRONG = {
    "start.perplexity": [
        (every_token_of_every_row, "picks from every row the tokens of all other rows"),
        (lower_median, "median of log p"),
    ],
    "numbers.decode_float": [(never_divided, "2**mantissa_bits times too large")],
    "rtn.encode": [(times_a_rounded_reciprocal, "1 / scale is computed in float16")],
    "rtn.dequantize": [(differences_in_int8, "differences are kept in int8")],
    "distributions.kurtosis": [
        (with_an_epsilon, "a small number is added to the variance"),
    ],
    "bnb.product": [(outliers_in_bfloat16, "rounded to bfloat16, even if x is float32")],
    "awq.search": [(one_candidate_after_the_other, "goes on with the rounded weights of the one before")],
    "gptq.push": [(pushed_twice, "twice the error is pushed")],
    "gptq.loop": [
        (from_right_to_left, "from right to left"),
        (loop_in_float16, "everything is computed in float16"),
    ],
    "gguf.tensor_info": [
        (closed_by_a_zero, "a zero closes the name, and is counted"),
        (always_four_dimensions, "you wrote four dimensions"),
    ],
    "gguf.scales": [(alternating, "the first four and the last four alternate")],
    "checkpoints.order": [(far_apart, "outputs that are far apart")],
    "checkpoints.zeros": [(zeros_of_absolute_words, "removed with abs()")],
    "checkpoints.stream": [
        (negative_parts, "lowers everything above them by 1"),
        (absolute_parts, "removed with abs()"),
        (from_the_highest_bit, "from the highest bit of the first word"),
    ],
    "kernels.token_bytes": [
        (cache_in_codes, "you counted `bits` bits for each number of keys and values"),
        (its_own_keys, "the keys and values of the token itself"),
        (zeros_in_bytes, "you counted a whole byte for a zero point"),
        (embedding_too, "the embedding is counted as well"),
    ],
    "kernels.corner": [
        (times_added, "the times of reading and computing are added"),
        (corner_not_below_one, "raised to 1"),
    ],
    "kernels.group": [(last_group_alone, "only the last group is counted")],
    "kernels.in_place": [(last_in_its_place_too, "stays in its place, as the others do")],
    "kernels.int8": [
        (products_in_int8, "kept in int8"),
        (steps_of_127_and_a_half, "the largest |x| / 127.5"),
    ],
    "kernels.inner_loop": [(zero_of_every_word, "subtracted once for every word")],
}


@each(WRONG)
def test_mistake_has_its_name(name, function, phrase):
    assert_likely(name, function, phrase)


@each({name: [lambda: None] for name in WRONG})
def test_mistakes_differ(name, function):
    assert_mistakes_differ(name)
