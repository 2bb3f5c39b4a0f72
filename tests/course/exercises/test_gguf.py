"""The exercises of chapter 07: check names the mistake in a wrong answer, and right answers pass in any form.

A wrong answer is an edit of a right answer, or a separate function if no edit can make it. The right answers differ
from the course's solution.
"""

import struct

import numpy as np
import pytest
import torch

import qtutor
from qtutor import gguf
from qtutor.course import exercises
from qtutor.course.checking import comparing
from qtutor.course.exercises.edits import solution
from qtutor.course.workspace.replacing import replaced
from tests.course.answers import assert_mistakes_differ, assert_right, assert_told, each

# --- a tensor's info ---


@solution
def info(name, shape, number, offset):
    text = name.encode("utf8")
    data = bytearray(len(text).to_bytes(8, "little") + text + len(shape).to_bytes(4, "little"))
    for size in reversed(shape):
        data += size.to_bytes(8, "little")
    return data + number.to_bytes(4, "little") + offset.to_bytes(8, "little")


def info_as_array(name, shape, number, offset):
    return np.frombuffer(info(name, shape, number, offset), np.uint8)


def network_order(name, shape, number, offset):
    text = name.encode()
    head = struct.pack("!Q", len(text)) + text + struct.pack("!I", len(shape))
    return head + b"".join(struct.pack("!Q", s) for s in shape[::-1]) + struct.pack("!IQ", number, offset)


def native_gaps(name, shape, number, offset):
    text = name.encode()
    return struct.pack(f"Q{len(text)}sI{len(shape)}QIQ", len(text), text, len(shape), *shape[::-1], number, offset)


END = 'number.to_bytes(4, "little") + offset.to_bytes(8, "little")'
WRONG_INFOS = [
    (info.edit("reversed(shape)", "shape"), "dimensions are in torch's order"),
    (network_order, "written with the highest byte first"),
    (info.edit("len(text)", "len(name)"), "you counted letters"),
    (native_gaps, "struct.pack leaves gaps"),
    (info.edit('len(text).to_bytes(8, "little") + text', "text"), "the name's length is missing"),
    (info.edit('size.to_bytes(8, "little")', 'struct.pack("<I", size)'), "dimensions take four bytes each"),
    (info.edit("len(text).to_bytes(8", "len(text).to_bytes(4"), "length of the name takes four bytes"),
    (info.edit(END, 'struct.pack("IQ", number, offset)'), "Without '<', struct.pack leaves a gap"),
]

# --- Q4_0 ---


@solution
def in_loops(blocks):
    lines = []
    for row in blocks:
        extreme = row[np.argmax(np.abs(row))]
        d = extreme / np.float32(-8)
        steps = row * (1 / d) if d else np.zeros(32, np.float32)
        codes = [min(int(step + np.float32(8.5)), 15) for step in steps]
        packed = [codes[j] | codes[j + 16] << 4 for j in range(16)]
        lines.append([*np.array([d], "<f2").tobytes(), *packed])
    return np.array(lines)


def q4_0_in_torch(blocks):
    rows = torch.from_numpy(blocks)
    d = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True)) / -8
    codes = torch.where(d == 0, 8.5, rows * (1 / d) + 8.5).clamp(max=15).to(torch.uint8)
    return torch.cat([d.half().view(torch.uint8), codes[:, :16] + 16 * codes[:, 16:]], dim=1)


EXTREME, CODE, BYTE = (
    "row[np.argmax(np.abs(row))]",
    "min(int(step + np.float32(8.5)), 15)",
    "codes[j] | codes[j + 16] << 4",
)
first_half_high = in_loops.edit(BYTE, "codes[j] << 4 | codes[j + 16]")
WRONG_Q4_0 = [
    (in_loops.edit(CODE, "min(max(round(float(step)) + 8, 0), 15)"), "halfway between two levels went to the even one"),
    (in_loops.edit(EXTREME, "row.max()"), "you took the largest weight"),
    (in_loops.edit("float32(-8)", "float32(-7)"), "divided by -7"),
    (in_loops.edit(" << 4", ""), "second sixteen codes are not shifted"),
    (in_loops.edit(BYTE, "codes[j]"), "second sixteen codes are missing"),
    (in_loops.edit(EXTREME, "np.abs(row).max()"), "Keep its sign"),
    (in_loops.edit("float32(-8)", "float32(8)"), "d has the wrong sign"),
    (in_loops.edit(BYTE, "codes[2 * j] | codes[2 * j + 1] << 4"), "neighbours share a byte. Here weight j"),
    (first_half_high, "halves of the bytes are swapped"),
    (in_loops.edit((CODE, "int(step + np.float32(8.5))"), ("<< 4", "<< 4 & 255")), "The largest code is 15"),
    (
        in_loops.edit("row * (1 / d) if d", "row * (1 / np.float32(np.float16(d))) if np.float16(d)"),
        "divided by d after rounding it",
    ),
    (in_loops.edit("8.5", "8"), "add 8.5 before truncating"),
    (
        in_loops.edit(('*np.array([d], "<f2").tobytes(), *packed', '*packed, *np.array([d], "<f2").tobytes()')),
        "d comes after the codes",
    ),
    (in_loops.edit(EXTREME, "blocks.flat[np.argmax(np.abs(blocks))]"), "all blocks have one d"),
    (in_loops.edit("<f2", ">f2"), "two bytes of d are swapped"),
]

# --- the fit ---


@solution
def by_sums(x, w, codes):
    one, cs, cc, xs, xc = w.sum(), (w * codes).sum(), (w * codes**2).sum(), (w * x).sum(), (w * x * codes).sum()
    scale, low = (one * xc - xs * cs) / (one * cc - cs * cs), (cc * xs - cs * xc) / (one * cc - cs * cs)
    return (scale, low) if low <= 0 else (xc / cc, 0.0)


@solution
def polyfit(x, w, codes):
    scale, low = np.polyfit(codes.astype(float), x.astype(float), 1, w=np.sqrt(w.astype(float)))
    if low > 0:
        scale, low = (w * x * codes).sum() / (w * codes * codes).sum(), 0
    return scale, low


def fit_in_torch(x, w, codes):
    return tuple(torch.tensor(part) for part in by_sums(x, w, codes))


WRONG_FITS = [
    (by_sums.edit("one, cs,", "w = np.ones_like(w)\n    one, cs,"), "all errors count equally"),
    # np.polyfit multiplies the residuals by w before it squares them, so it needs the roots
    (
        polyfit.edit(("np.sqrt(w.astype(float))", "w"), ("(w * x", "(w * w * x"), ("(w * codes", "(w * w * codes")),
        "squares of w",
    ),
    (by_sums.edit(" if low <= 0 else (xc / cc, 0.0)", ""), "low is above 0"),
    (by_sums.edit("(xc / cc, 0.0)", "(scale, 0.0)"), "scale still belongs to the old low"),
    (polyfit.edit("return scale, low", "return scale, -low"), "low has the wrong sign"),
    (polyfit.edit("return scale, low", "return low, scale"), "scale and low are swapped"),
    (by_sums.edit("w.sum()", "len(x)"), "the number of weights as the sum of w"),
    (by_sums.edit("(xc / cc, 0.0)", "(xs / cs, 0.0)"), "scale comes from the second equation"),
    (by_sums.edit("(cc * xs - cs * xc)", "(cs * xc - cc * xs)"), "low's numerator has the wrong sign"),
]

# --- scales ---


@solution
def by_hand(packed):
    scales, minima = [], []
    for b in packed.tolist():
        scales.append([b[i] & 63 for i in range(4)] + [b[8 + i] & 15 | b[i] >> 6 << 4 for i in range(4)])
        minima.append([b[4 + i] & 63 for i in range(4)] + [b[8 + i] >> 4 | b[4 + i] >> 6 << 4 for i in range(4)])
    return scales, minima


def scales_in_torch(packed):
    p = torch.from_numpy(packed).int()
    scales = torch.cat([p[:, :4] % 64, p[:, 8:] % 16 + p[:, :4] // 64 * 16], dim=1)
    return scales, torch.cat([p[:, 4:8] % 64, p[:, 8:] // 16 + p[:, 4:8] // 64 * 16], dim=1)


def end_to_end(packed):
    numbers = []
    for block in packed.tolist():
        whole = int.from_bytes(bytes(block), "little")
        numbers.append([whole >> 6 * i & 63 for i in range(16)])
    return np.array(numbers)[:, :8], np.array(numbers)[:, 8:]


def plus_before_shift(packed):
    scales = np.concatenate([packed[:, :4] & 63, (packed[:, 8:] & 15) + (packed[:, :4] >> 6) << 4], axis=1)
    return scales, np.concatenate([packed[:, 4:8] & 63, (packed[:, 8:] >> 4) + (packed[:, 4:8] >> 6) << 4], axis=1)


UPPER, UPPER_OF_MINIMA = "b[i] >> 6 << 4", "b[4 + i] >> 6 << 4"
halves_swapped = by_hand.edit(("8 + i] & 15", "8 + i] >> 4 & 15"), ("8 + i] >> 4 |", "8 + i] & 15 |"))
WRONG_SCALES = [
    (plus_before_shift, "+ is evaluated before <<"),
    (by_hand.edit((UPPER, "b[i] >> 6"), (UPPER_OF_MINIMA, "b[4 + i] >> 6")), "onto the lowest two of the others"),
    (by_hand.edit("8 + i] >> 4", "8 + i] & 240"), "still in the upper half of their bytes"),
    (
        by_hand.edit("return scales, minima", "return np.roll(scales, 4, 1), np.roll(minima, 4, 1)"),
        "last four come before the first four",
    ),
    (by_hand.edit(("b[i] & 63", "b[i]"), ("b[4 + i] & 63", "b[4 + i]")), "Only the lower six bits of a byte"),
    (by_hand.edit((UPPER, "b[i] >> 6 << 6"), (UPPER_OF_MINIMA, "b[4 + i] >> 6 << 6")), "went too far up"),
    (halves_swapped, "It is the other way round"),
    (by_hand.edit((f" | {UPPER}", ""), (f" | {UPPER_OF_MINIMA}", "")), "upper bits of the last four are missing"),
    (end_to_end, "the six-bit numbers one after the other"),
    (by_hand.edit("return scales, minima", "return minima, scales"), "scales and minima are swapped"),
]

# --- Q6_K, whole ---


@solution
def q6_k_by_hand(data):
    rows = []
    for b in data.tolist():
        (d,) = struct.unpack_from("<e", bytes(b), 208)
        row = [0.0] * 256
        for half in (0, 1):
            for j in range(32):
                first, second, upper = b[64 * half + j], b[64 * half + 32 + j], b[128 + 32 * half + j]
                four = (first & 15, second & 15, first >> 4, second >> 4)
                for quarter, lower in enumerate(four):
                    at = 128 * half + 32 * quarter + j
                    scale = struct.unpack_from("b", bytes(b), 192 + at // 16)[0]
                    row[at] = d * scale * ((lower | (upper >> 2 * quarter & 3) << 4) - 32)
        rows.append(row)
    return rows


def q6_k_in_torch(data):
    t = torch.from_numpy(data)
    low = t[:, :128].view(-1, 2, 1, 64) >> torch.tensor([0, 4])[:, None] & 15
    high = t[:, 128:192].view(-1, 2, 1, 32) >> torch.tensor([0, 2, 4, 6])[:, None] & 3
    steps = low.reshape(-1, 256).float() + 16 * high.reshape(-1, 256).float() - 32
    step = t[:, 208:].contiguous().view(torch.float16).float() * t[:, 192:208].contiguous().view(torch.int8).float()
    return step.repeat_interleave(16, dim=1) * steps


def q6_k_by_its_places(data):
    """Find the places of the six bits of each weight separately, as a table of the format would list them."""
    bits = np.unpackbits(data, axis=1, bitorder="little").astype(np.int64)
    half, quarter, j = np.arange(256) // 128, np.arange(256) % 128 // 32, np.arange(256) % 32
    lower = 8 * (64 * half + 32 * (quarter % 2) + j) + 4 * (quarter // 2)
    upper = 8 * (128 + 32 * half + j) + 2 * quarter
    places = [lower, lower + 1, lower + 2, lower + 3, upper, upper + 1]
    codes = sum(bits[:, place] << i for i, place in enumerate(places))
    d = np.frombuffer(data[:, 208:].tobytes(), "<f2").astype(np.float32)
    return (codes - 32) * data[:, 192:208].view(np.int8).repeat(16, axis=1) * d[:, None]


LOWERS, STEPS = "(first & 15, second & 15, first >> 4, second >> 4)", "(upper >> 2 * quarter & 3) << 4"
WRONG_Q6_K = [
    (q6_k_by_hand.edit(") - 32)", "))"), "32 is not subtracted"),
    (q6_k_by_hand.edit('"b"', '"B"'), "read the scales as numbers from 0 to 255"),
    (q6_k_by_hand.edit("192 + at // 16", "192 + at // 32"), "a scale serves 32 weights"),
    (q6_k_by_hand.edit("192 + at // 16", "192 + at % 16"), "scales alternate"),
    (q6_k_by_hand.edit(LOWERS, "(first >> 4, second >> 4, first & 15, second & 15)"), "low and the high halves of ql"),
    (q6_k_by_hand.edit("2 * quarter & 3", "2 * (3 - quarter) & 3"), "read from the top"),
    (q6_k_by_hand.edit(STEPS, STEPS.replace("<< 4", "<< 5")), "one place too high"),
    (q6_k_by_hand.edit(f"lower | {STEPS}", "lower"), "bits of qh are missing"),
    (q6_k_by_hand.edit("<e", ">e"), "two bytes of d are swapped"),
    (q6_k_by_hand.edit("d * scale * (", "scale * ("), "d is missing"),
    (q6_k_by_hand.edit(LOWERS, "(first, second, first >> 4, second >> 4)"), "high halves above them"),
    (
        q6_k_by_hand.edit(("b[64 * half + j]", "b[j % 32 + 64 * half]"), (") - 32)", ") - 8)")),
        "8 is subtracted, as in Q4_0",
    ),
    (q6_k_by_hand.edit(f"lower | {STEPS}", "lower << 2 | upper >> 2 * quarter & 3"), "below the four of ql"),
]

WRONG = {
    "gguf.tensor_info": WRONG_INFOS,
    "gguf.q4_0": WRONG_Q4_0,
    "gguf.fit": WRONG_FITS,
    "gguf.scales": WRONG_SCALES,
    "gguf.q6_k": WRONG_Q6_K,
}
RIGHT = {
    "gguf.tensor_info": [info, info_as_array],
    "gguf.q4_0": [in_loops, q4_0_in_torch],
    "gguf.fit": [by_sums, polyfit, fit_in_torch],
    "gguf.scales": [by_hand, scales_in_torch],
    "gguf.q6_k": [q6_k_by_hand, q6_k_in_torch, q6_k_by_its_places],
}


@each(WRONG)
def test_a_wrong_answer_is_told_which_mistake_it_is(name, function, phrase):
    assert_told(WRONG, name, function, phrase)


@each(RIGHT)
def test_a_right_answer_passes_however_it_is_written(name, function):
    assert_right(name, function)


def test_the_exercise_asks_for_the_bytes_of_the_package():
    exercise = exercises.find("gguf.q4_0")
    for label, (blocks,) in exercise.cases():
        assert np.array_equal(exercise.reference(blocks), gguf.encode(blocks, "Q4_0")), label


def test_bytes_are_compared_as_numbers():
    assert comparing.to_array(b"\x00\xff").tolist() == [0, 255] and comparing.to_array(bytearray(b"")).size == 0
    assert comparing.show(b"GGUF") == "[71, 71, 85, 70]"


@pytest.fixture
def rows():
    return np.random.default_rng(0).standard_normal((8, 512)).astype(np.float32)


def test_the_package_encodes_with_a_learners_q4_0(rows):
    expected = gguf.encode(rows, "Q4_0")
    assert np.array_equal(in_loops(rows.reshape(-1, 32)).reshape(8, -1), expected)  # they have the same bytes
    with replaced(exercises.find("gguf.q4_0"), q4_0_in_torch):
        assert np.array_equal(qtutor.gguf.encode(rows, "Q4_0"), expected)
        assert qtutor.gguf.encode(rows, "Q4_0").dtype == np.uint8
    with replaced(exercises.find("gguf.q4_0"), first_half_high):
        assert not np.array_equal(qtutor.gguf.encode(rows, "Q4_0"), expected)
        assert np.array_equal(gguf.encode(rows, "Q8_0")[:, :2], gguf.encode(rows[:, :32], "Q8_0")[:, :2])  # as before
    assert np.array_equal(qtutor.gguf.encode(rows, "Q4_0"), expected)


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K"])
def test_the_package_decodes_with_a_learners_scales(rows, kind):
    data = gguf.encode(rows, kind)
    expected = gguf.decode(data, kind)
    with replaced(exercises.find("gguf.scales"), scales_in_torch):
        assert np.array_equal(gguf.decode(data, kind), expected)
    with replaced(exercises.find("gguf.scales"), halves_swapped):
        assert not np.array_equal(gguf.decode(data, kind), expected)
    assert np.array_equal(gguf.decode(data, kind), expected)


def test_the_package_decodes_with_a_learners_q6_k(rows):
    data = gguf.encode(rows, "Q6_K")
    expected = gguf.decode(data, "Q6_K")
    with replaced(exercises.find("gguf.q6_k"), q6_k_by_its_places):
        assert gguf.decode(data, "Q6_K") == pytest.approx(expected, rel=1e-6)
        assert gguf.decode(data, "Q6_K").dtype == np.float32
    with replaced(exercises.find("gguf.q6_k"), q6_k_by_hand.edit("<< 4) - 32", "<< 4) - 31")):
        assert not np.allclose(gguf.decode(data, "Q6_K"), expected)
    assert np.array_equal(gguf.decode(data, "Q6_K"), expected)


def test_the_reference_of_q6_k_is_the_packages_decoder():
    exercise = exercises.find("gguf.q6_k")
    for label, (data,) in exercise.cases():
        assert exercise.reference(data) == pytest.approx(gguf.decode(data, "Q6_K"), rel=1e-6), label
    assert_mistakes_differ("gguf.q6_k")
