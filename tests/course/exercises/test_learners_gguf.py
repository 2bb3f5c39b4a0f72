"""Chapter 07 as learners would write it: more answers, and for each wrong one the message that names its mistake.

The answers are not written like the exercise's own solution. So check cannot recognise a mistake by its text.
"""

import io
import struct

import numpy as np
import pytest
import torch

from qtutor.course.exercises.edits import solution
from tests.course.answers import assert_mistakes_differ, assert_named, assert_right, each

# --- a tensor's info ---


@solution
def in_pieces(name, shape, number, offset):
    text = name.encode("utf-8")
    data = struct.pack("<Q", len(text)) + text
    data += struct.pack("<I", len(shape))
    for size in shape[::-1]:
        data += struct.pack("<Q", size)
    data += struct.pack("<I", number)
    return data + struct.pack("<Q", offset)


def info_written(name, shape, number, offset):
    file = io.BytesIO()
    text = bytes(name, "utf8")
    for value, size in (
        (len(text), 8),
        (text, 0),
        (len(shape), 4),
        *((s, 8) for s in reversed(shape)),
        (number, 4),
        (offset, 8),
    ):
        file.write(value.to_bytes(size, "little") if size else value)
    return file.getvalue()


def info_in_numpy(name, shape, number, offset):
    text = name.encode()
    parts = [np.uint64(len(text)).tobytes(), text, np.uint32(len(shape)).tobytes()]
    parts += [np.array(shape[::-1], "<u8").tobytes(), np.uint32(number).tobytes(), np.uint64(offset).tobytes()]
    return b"".join(parts)


@solution
def in_one(name, shape, number, offset):
    text = name.encode()
    head = struct.pack(f"<Q{len(text)}s", len(text), text)
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    return bytearray(head + dimensions + struct.pack("<IQ", number, offset))


LENGTH, COUNT, SIZE = '"<Q", len(text)', '"<I", len(shape)', '"<Q", size'
LAST = 'return data + struct.pack("<Q", offset)'
WRONG_INFOS = [
    (in_pieces.edit(LAST, 'return list(data + struct.pack("<Q", offset))'), "returned a list"),
    (in_pieces.edit(LAST, 'return tuple(data + struct.pack("<Q", offset))'), "returned a tuple"),
    (in_pieces.edit(LAST, 'return np.array([*data, *struct.pack("<Q", offset)])'), "returned a ndarray"),
    (in_pieces.edit(LAST, 'return (data + struct.pack("<Q", offset)).hex()'), "returned a str"),
    (in_pieces.edit(LAST, 'return torch.tensor([*data, *struct.pack("<Q", offset)])'), "returned a Tensor"),
    (in_pieces.edit("[::-1]", ""), "torch's order"),
    (in_pieces.edit(LENGTH, '"<I", len(text)'), "length of the name takes four bytes"),
    (in_pieces.edit(LENGTH, '"<Q", len(name)'), "you counted letters"),
    (in_pieces.edit(LENGTH, '"<Q", len(text) + 1'), "one too large"),
    (in_pieces.edit("+ text", "+ text + bytes(1)"), "a zero closes the name"),
    (in_pieces.edit(f"struct.pack({LENGTH}) + ", ""), "the name's length is missing"),
    (in_pieces.edit(COUNT, '"<Q", len(shape)'), "of dimensions takes eight bytes. It"),
    (in_pieces.edit(f"    data += struct.pack({COUNT})\n", ""), "the number of dimensions is missing"),
    (in_pieces.edit(COUNT, '"<I", 4'), "always 4"),
    (in_pieces.edit(SIZE, '"<I", size & 0xFFFFFFFF'), "dimensions take four bytes each"),
    (in_pieces.edit(SIZE, '"<I", size'), "dimensions take four bytes each"),
    (in_pieces.edit('"<I", number', '"<Q", number'), "type's number takes eight bytes. It"),
    (in_pieces.edit('"<Q", offset', '"<I", offset'), "the offset takes four bytes"),
    (in_pieces.edit(LAST, "return data"), "the offset is missing"),
    (in_pieces.edit('    data += struct.pack("<I", number)\n', ""), "the type is missing"),
    (in_pieces.edit('"utf-8"', '"utf-16-le"'), "the name is UTF-16"),
    (in_one.edit(("<Q{", "Q{"), ("<I{", "I{"), ("<IQ", "IQ")), "leaves gaps of four before a 'Q'"),
    (in_one.edit(("<I{", "I{"), ("<IQ", "IQ")), "leaves gaps of four before a 'Q'"),
    (in_one.edit("<I{", "I{"), "of dimensions takes eight bytes. It"),
    (in_one.edit("<IQ", "IQ"), "type's number takes eight bytes. It"),
    (in_one.edit(("<Q{", ">Q{"), ("<I{", ">I{"), ("<IQ", ">IQ")), "written with the highest byte first"),
    (
        in_one.edit('struct.pack("<IQ", number, offset)', 'struct.pack("<QI", offset, number)'),
        "the offset comes before",
    ),
    (
        in_one.edit(("dimensions + struct.pack", "struct.pack"), ("number, offset))", "number, offset) + dimensions)")),
        "before the number of dimensions",
    ),
]

# --- Q4_0 ---


@solution
def whole(blocks):
    rows = np.arange(len(blocks))
    extreme = blocks[rows, np.argmax(np.abs(blocks), axis=-1)]
    d = extreme / np.float32(-8)
    with np.errstate(divide="ignore"):
        inverse = np.where(d != 0, np.float32(1) / d, np.float32(0))
    q = blocks * inverse[:, None] + np.float32(8.5)
    q = np.clip(q.astype(np.int32), 0, 15).astype(np.uint8)
    data = np.empty((len(blocks), 18), np.uint8)
    data[:, :2] = d.astype(np.float16).view(np.uint8).reshape(-1, 2)
    data[:, 2:] = q[:, :16] | (q[:, 16:] << 4)
    return data


def q4_0_in_python(blocks):
    one, data = np.float32(1), []
    for block in blocks:
        extreme = np.float32(0)
        for x in block:
            if abs(x) > abs(extreme):
                extreme = x
        d = extreme / np.float32(-8)
        inverse = one / d if d != 0 else np.float32(0)
        codes = [min(15, int(x * inverse + np.float32(8.5))) for x in block]
        data.append(struct.pack("<e", d) + bytes(low | high << 4 for low, high in zip(codes[:16], codes[16:])))
    return data


def q4_0_with_sort(blocks):
    order = np.argsort(-np.abs(blocks), axis=1, kind="stable")[:, :1]
    d = np.take_along_axis(blocks, order, 1) * np.float32(-0.125)
    inverse = np.divide(1, d, out=np.zeros_like(d), where=d != 0)
    q = np.minimum(np.floor(blocks * inverse + np.float32(8.5)), 15).astype(int)
    return np.hstack([d.astype("<f2").view("u1"), q[:, :16] + 16 * q[:, 16:]])


def q4_0_in_torch(blocks):
    x = torch.tensor(blocks)
    d = x[torch.arange(len(x)), x.abs().max(1).indices] / -8
    inverse = torch.nan_to_num(1 / d, posinf=0, neginf=0)
    q = (x * inverse[:, None] + 8.5).int().clamp(max=15)
    return torch.cat(
        [d.half().view(torch.uint8).reshape(-1, 2), (q[:, :16] | q[:, 16:] << 4).to(torch.uint8)], 1
    ).numpy()


D, STEPS, CODES = "extreme / np.float32(-8)", "blocks * inverse[:, None]", "q.astype(np.int32)"
WHERE = "np.where(d != 0, np.float32(1) / d, np.float32(0))"
WRONG_Q4_0 = [
    (whole.edit(STEPS, "blocks / np.where(d == 0, np.inf, d)[:, None]"), "the weights are divided by d"),
    (
        whole.edit("rows = np.arange(len(blocks))", "rows, blocks = np.arange(len(blocks)), blocks.astype(float)"),
        "computed in float64",
    ),
    (whole.edit(STEPS, "blocks.astype(float) / np.where(d == 0, np.inf, d)[:, None]"), "by d in float64"),
    (whole.edit(D, "np.abs(extreme) / np.float32(8)"), "largest size / 8"),
    (whole.edit(D, "np.abs(blocks).max(axis=1) / np.float32(8)"), "largest size / 8"),
    (whole.edit(D, "np.abs(extreme) / np.float32(-8)"), "Keep its sign"),
    (whole.edit(D, "np.abs(extreme) / np.float32(7)"), "the largest size / 7."),
    (whole.edit(D, "extreme / np.float32(7)"), "the extreme is divided by 7"),
    (whole.edit(D, "extreme / np.float32(-7)"), "divided by -7. There"),
    (whole.edit(D, "extreme / np.float32(-7.5)"), "divided by -7.5"),
    (whole.edit(D, "extreme / np.float32(8)"), "d has the wrong sign"),
    (whole.edit(D, "(blocks.max(axis=1) - blocks.min(axis=1)) / np.float32(15)"), "the range over 15"),
    (whole.edit(D, "blocks.min(axis=1) / np.float32(-8)"), "you took the smallest weight"),
    (whole.edit(D, f"({D}).astype(np.float16).astype(np.float32)"), "by d after rounding it"),
    (
        whole.edit("np.argmax(np.abs(blocks), axis=-1)", "31 - np.argmax(np.abs(blocks)[:, ::-1], axis=-1)"),
        "took the last",
    ),
    (whole.edit("np.argmax(np.abs(blocks), axis=-1)", "np.argmax(blocks, axis=-1)"), "you took the largest weight"),
    (whole.edit("return data", "data[d == 0] = 0\n    return data"), "a block of zeros became"),
    (
        whole.edit("return data", "data[(blocks == 0).all(axis=1)] = 0\n    return data"),
        "a block of zeros became",
    ),
    (
        whole.edit("return data", "data[d.astype(np.float16) == 0] = 0\n    return data"),
        "in 16 bits became nothing",
    ),
    (whole.edit("d != 0, np.float32(1)", "d.astype(np.float16) != 0, np.float32(1)"), "got the codes of zeros"),
    (whole.edit("np.float32(8.5)", "np.float32(8)"), "add 8.5 before truncating"),
    (whole.edit("np.float32(8.5)", "np.float32(7.5)"), "one too small"),
    (whole.edit(CODES, "np.rint(q - np.float32(0.5)).astype(np.int32)"), "went to the even one"),
    (whole.edit(f"np.clip({CODES}, 0, 15)", f"({CODES} & 15)"), "a code of 16 became 0"),
    (whole.edit("q[:, :16] | (q[:, 16:] << 4)", "q[:, ::2] | (q[:, 1::2] << 4)"), "neighbours share a byte. Here"),
    (whole.edit("q[:, :16] | (q[:, 16:] << 4)", "q[:, 16:] | (q[:, :16] << 4)"), "the halves of the bytes are swapped"),
    (
        whole.edit(
            "    data[:, 2:]",
            "    d = d + 0\n    data[:, :2] = d.astype(np.float16).view(np.uint8).reshape(-1, 2)\n    data[:, 2:]",
        ),
        "which is -0: its",
    ),
    (whole.edit("q[:, :16] | (q[:, 16:] << 4)", "q[:, :16] & (q[:, 16:] << 4)"), "put together with &; use |"),
    (whole.edit("astype(np.float16)", 'astype(">f2")'), "two bytes of d are swapped"),
]

# --- the fit ---


@solution
def five_sums(x, w, codes):
    x, w, c = x.astype(np.float64), w.astype(np.float64), codes.astype(np.float64)
    a, b, one = np.sum(w * c * c), np.sum(w * c), np.sum(w)
    p, q = np.sum(w * x * c), np.sum(w * x)
    det = one * a - b * b
    scale, low = (one * p - q * b) / det, (a * q - b * p) / det
    if low > 0:
        scale, low = p / a, 0.0
    return scale, low


def fit_by_solving(x, w, codes):
    matrix = np.array([[(w * codes * codes).sum(), (w * codes).sum()], [(w * codes).sum(), w.sum()]], float)
    right = np.array([(w * x * codes).sum(), (w * x).sum()], float)
    scale, low = np.linalg.solve(matrix, right)
    return [scale, low] if low <= 0 else [right[0] / matrix[0, 0], 0]


def fit_by_means(x, w, codes):
    mx, ml = np.average(x, weights=w), np.average(codes, weights=w)
    scale = (w * (x - mx) * (codes - ml)).sum() / (w * (codes - ml) ** 2).sum()
    low = mx - scale * ml
    if low > 0:
        return (w * x * codes).sum() / (w * codes**2).sum(), 0.0
    return scale, low


def fit_in_python(x, w, codes):
    rows = [(float(a), float(b), float(c)) for a, b, c in zip(x, w, codes)]
    one, c1, c2 = (sum(b * c**k for _, b, c in rows) for k in (0, 1, 2))
    s, sl = (sum(a * b * c**k for a, b, c in rows) for k in (0, 1))
    scale = (one * sl - s * c1) / (one * c2 - c1 * c1)
    low = (s - scale * c1) / one
    return (scale, low) if low < 0 else (sl / c2, 0.0)


RETURN = "return scale, low"
WRONG_FITS = [
    (five_sums.edit(RETURN, "return (x.max() - x.min()) / c.max(), min(x.min(), 0.0)"), "come from the range"),
    (
        five_sums.edit(RETURN, "return (x.max() - x.min()) / (c.max() - c.min()), x.min()"),
        "largest and the smallest weight alone",
    ),
    (five_sums.edit(RETURN, "return (x.max() - min(x.min(), 0)) / c.max(), min(x.min(), 0)"), "range with 0 in it"),
    (five_sums.edit(RETURN, "return (x.max() - x.min()) / 15, min(x.min(), 0)"), "range over 15"),
    (five_sums.edit("w * c * c", "c * c"), "w is missing in sum(w l l)"),
    (five_sums.edit("w * x * c", "x * c"), "w is missing in sum(w x l)"),
    (five_sums.edit("np.sum(w * c)", "np.sum(c)"), "w is missing in sum(w l)."),
    (five_sums.edit("np.sum(w * x)", "np.sum(x)"), "w is missing in sum(w x)."),
    (five_sums.edit("np.sum(w)\n", "len(w)\n"), "number of weights"),
    (five_sums.edit("np.sum(w * c * c)", "np.sum(w * c) ** 2"), "is not sum(w l)^2"),
    (five_sums.edit("np.sum(w * c * c)", "np.sum((w * c) ** 2)"), "w is squared in sum(w l l)"),
    (five_sums.edit("one * a - b * b", "one * a + b * b"), "the determinant adds"),
    (five_sums.edit("one * a - b * b", "b * b - one * a"), "the determinant has the wrong sign"),
    (five_sums.edit("one * a - b * b", "1.0"), "the determinant is missing"),
    (five_sums.edit("(one * p - q * b)", "(q * b - one * p)"), "scale has the wrong sign"),
    (five_sums.edit("(a * q - b * p)", "(b * p - a * q)"), "low's numerator has the wrong sign"),
    (five_sums.edit(", (a * q - b * p) / det", ", q / one"), "weighted mean of the weights"),
    (
        five_sums.edit("(one * p - q * b) / det, (a * q - b * p) / det", "p / a, (q - p / a * b) / one"),
        "the best one for low = 0",
    ),
    (five_sums.edit("low > 0", "False"), "low is above 0"),
    (five_sums.edit("low > 0", "low < 0"), "the two cases are exchanged"),
    (five_sums.edit("p / a, 0.0", "scale, 0.0"), "still belongs to the old low"),
    (five_sums.edit("p / a, 0.0", "q / b, 0.0"), "scale comes from the second equation"),
    (five_sums.edit(RETURN, "return low, scale"), "scale and low are swapped"),
    (five_sums.edit(RETURN, "return scale, -low"), "low has the wrong sign"),
    (five_sums.edit(RETURN, "return scale, low / scale"), "low is in steps"),
    (five_sums.edit(RETURN, "return 1 / scale, low"), "scale is upside down"),
    (five_sums.edit(RETURN, "return scale"), "2 values were expected"),
    (five_sums.edit("w.astype(np.float64)", "np.ones(len(x))"), "all errors count equally"),
    (five_sums.edit("w.astype(np.float64)", "np.sqrt(w)"), "by the roots of w"),
    (five_sums.edit("w.astype(np.float64)", "w * w"), "by the squares of w"),
]

# --- scales ---


@solution
def six(packed):
    a, b, c = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.zeros((len(packed), 8), np.uint8)
    minima = np.zeros((len(packed), 8), np.uint8)
    scales[:, :4] = a & 63
    minima[:, :4] = b & 63
    scales[:, 4:] = (c & 15) | ((a >> 6) << 4)
    minima[:, 4:] = (c >> 4) | ((b >> 6) << 4)
    return scales, minima


def scales_by_division(packed):
    p = packed.astype(int)
    low, high = p % 64, p // 64 * 16
    return (
        np.hstack([low[:, :4], p[:, 8:] % 16 + high[:, :4]]).astype(float),
        np.hstack([low[:, 4:8], p[:, 8:] // 16 + high[:, 4:8]]).astype(float),
    )


def scales_as_llama_cpp(packed):
    def one(j, q):
        if j < 4:
            return q[j] & 63, q[j + 4] & 63
        return (q[j + 4] & 0xF) | ((q[j - 4] >> 6) << 4), (q[j + 4] >> 4) | ((q[j] >> 6) << 4)

    found = np.array([[one(j, block) for j in range(8)] for block in packed.tolist()])
    return found[..., 0], found[..., 1]


def scales_by_bits(packed):
    bits = np.unpackbits(packed, axis=1).reshape(-1, 12, 8)

    def number(*parts):
        return np.concatenate(parts, axis=2) @ (1 << np.arange(6)[::-1])

    last = [number(bits[:, k : k + 4, :2], bits[:, 8:, part]) for k, part in ((0, slice(4, 8)), (4, slice(0, 4)))]
    return [np.concatenate([number(bits[:, k : k + 4, 2:]), end], axis=1) for k, end in zip((0, 4), last)]


UPPER, UPPER_B = "(c & 15) | ((a >> 6) << 4)", "(c >> 4) | ((b >> 6) << 4)"


def both(scales, minima):
    return six.edit((f"{UPPER}\n", f"{scales}\n"), (f"    minima[:, 4:] = {UPPER_B}", f"    minima[:, 4:] = {minima}"))


WRONG_SCALES = [
    (both("(c & 15) + (a >> 6) << 4", "(c >> 4) + (b >> 6) << 4"), "+ is evaluated before <<"),
    (both("c & 15 + (a >> 6 << 4)", "c >> 4 | b >> 6 << 4"), "+ is evaluated before &, so"),
    (both("c & 15 + (a >> 6 << 4)", "c >> 4 + (b >> 6 << 4)"), "+ is evaluated before & and >>"),
    (both("c & 15 + a >> 6 << 4", "c >> 4 + b >> 6 << 4"), "+ is evaluated before everything else"),
    (both("(c & 15) + a >> 6 << 4", "(c >> 4) + b >> 6 << 4"), "the sum of both parts was shifted"),
    (both("c & 15 + (a >> 6) << 4", "c >> 4 + (b >> 6) << 4"), "the two bits were added to 15 or 4"),
    (both("(c | (a >> 6) << 4) & 15", "(c >> 4 | (b >> 6) << 4) & 15"), "removed them again"),
    (both("(c & 15) | (a >> 6)", "(c >> 4) | (b >> 6)"), "lowest two of the others"),
    (both("(c & 15) | (a & 192)", "(c >> 4) | (b & 192)"), "went too far up"),
    (both("(c & 15) << 2 | a >> 6", "(c >> 4) << 2 | b >> 6"), "went below the four others"),
    (both("c & 15", "c >> 4"), "removed them again"),
    (both("(c >> 4) | ((a >> 6) << 4)", "(c & 15) | ((b >> 6) << 4)"), "scales from the upper half"),
    (both("(c & 15) | ((b >> 6) << 4)", "(c >> 4) | ((a >> 6) << 4)"), "the upper bits are crossed"),
    (six.edit(UPPER_B, "(c & 240) | ((b >> 6) << 4)"), "still in the upper half"),
    (both("(c & 15) | ((a & 3) << 4)", "(c >> 4) | ((b & 3) << 4)"), "the lower two bits of the first bytes"),
    (both("(c & 15) | ((a >> 7) << 4)", "(c >> 4) | ((b >> 7) << 4)"), "only one of the upper two bits is left"),
    (both("(c & 15) | ((a >> 6) << 5)", "(c >> 4) | ((b >> 6) << 5)"), "one place too high"),
    (both(UPPER_B, UPPER), "the last four scales and the last four minima are exchanged"),
    (six.edit(("= a & 63", "= a"), ("= b & 63", "= b")), "Only the lower six"),
    (six.edit(("= a & 63", "= a & 15"), ("= b & 63", "= b & 15")), "only four bits of each"),
    (six.edit(("= a & 63", "= a >> 2"), ("= b & 63", "= b >> 2")), "lost their lowest bits"),
    (
        six.edit(("= a & 63", "= b & 63"), ("= b & 63\n    scales[:, 4", "= a & 63\n    scales[:, 4")),
        "the first four scales and the first four minima",
    ),
    (six.edit("return scales, minima", "return minima, scales"), "scales and minima are swapped"),
    (six.edit("return scales, minima", "return scales / 63, minima / 63"), "divided by 63"),
    (six.edit("return scales, minima", "return scales, -minima.astype(int)"), "the minima are negative"),
    (
        six.edit("return scales, minima", "return np.roll(scales, 4, 1), np.roll(minima, 4, 1)"),
        "come before the first four",
    ),
    (six.edit("return scales, minima", "return np.concatenate([scales, minima], 1)"), "2 values were expected"),
]

WRONG = {"gguf.tensor_info": WRONG_INFOS, "gguf.q4_0": WRONG_Q4_0, "gguf.fit": WRONG_FITS, "gguf.scales": WRONG_SCALES}
RIGHT = {
    "gguf.tensor_info": [in_pieces, info_written, info_in_numpy, in_one],
    "gguf.q4_0": [whole, q4_0_in_python, q4_0_with_sort, q4_0_in_torch],
    "gguf.fit": [five_sums, fit_by_solving, fit_by_means, fit_in_python],
    "gguf.scales": [six, scales_by_division, scales_as_llama_cpp, scales_by_bits],
}


@each(WRONG)
def test_a_wrong_answer_is_told_which_mistake_it_is(name, function, phrase):
    assert_named(name, function, phrase)


@each(RIGHT)
def test_a_right_answer_passes_however_it_is_written(name, function):
    assert_right(name, function)


@pytest.mark.parametrize("name", WRONG)
def test_no_mistake_can_be_told_in_the_words_of_another(name):
    assert_mistakes_differ(name)
