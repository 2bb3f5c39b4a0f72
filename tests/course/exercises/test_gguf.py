"""The exercises of chapter 07: wrong answers are told which mistake it is, right ones pass however they are written."""

import struct

import numpy as np
import pytest
import torch

import qtutor
from qtutor import gguf
from qtutor.course import exercises
from qtutor.course.checking import comparing
from qtutor.course.workspace.replacing import replaced
from tests.course.answers import assert_right, verdict

# --- a tensor's info, wrong ---


def shape_as_it_is(name, shape, number, offset):
    data = len(name.encode()).to_bytes(8, "little") + name.encode() + len(shape).to_bytes(4, "little")
    for size in shape:
        data += size.to_bytes(8, "little")
    return data + number.to_bytes(4, "little") + offset.to_bytes(8, "little")


def network_order(name, shape, number, offset):
    text = name.encode()
    head = struct.pack("!Q", len(text)) + text + struct.pack("!I", len(shape))
    return head + b"".join(struct.pack("!Q", s) for s in shape[::-1]) + struct.pack("!IQ", number, offset)


def letters_not_bytes(name, shape, number, offset):
    head = struct.pack("<Q", len(name)) + name.encode()
    return head + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1]) + struct.pack("<IQ", number, offset)


def native_gaps(name, shape, number, offset):
    text = name.encode()
    return struct.pack(f"Q{len(text)}sI{len(shape)}QIQ", len(text), text, len(shape), *shape[::-1], number, offset)


def name_alone(name, shape, number, offset):
    return name.encode() + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], number, offset)


def sizes_in_four(name, shape, number, offset):
    text = name.encode()
    head = struct.pack("<Q", len(text)) + text + struct.pack(f"<I{len(shape)}I", len(shape), *shape[::-1])
    return head + struct.pack("<IQ", number, offset)


def name_in_four(name, shape, number, offset):
    text = name.encode()
    head = struct.pack("<I", len(text)) + text + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
    return head + struct.pack("<IQ", number, offset)


def only_the_end_native(name, shape, number, offset):
    data = info_in_pieces(name, shape, number, offset)
    return data[:-12] + struct.pack("IQ", number, offset)


# --- a tensor's info, right ---


def info_in_pieces(name, shape, number, offset):
    data = bytearray()
    for value, size in ((len(name.encode("utf8")), 8), (name, 0), (len(shape), 4)):
        data += value.encode("utf8") if size == 0 else value.to_bytes(size, "little")
    for size in reversed(shape):
        data.extend(size.to_bytes(8, "little"))
    return data + number.to_bytes(4, "little") + offset.to_bytes(8, "little")


def info_as_array(name, shape, number, offset):
    return np.frombuffer(info_in_pieces(name, shape, number, offset), np.uint8)


# --- Q4_0, wrong ---


def in_loops(blocks, extreme=None, code=None, pack=None, scale=np.float16, tail=False):
    """Loops over blocks in float32, as a learner may write them; each argument replaces a step."""
    lines = []
    for row in blocks:
        top = row[np.argmax(np.abs(row))] if extreme is None else extreme(row)
        d = np.float32(top) / np.float32(-8)
        steps = row / d if d else np.zeros(32, np.float32)
        codes = np.minimum((steps + np.float32(8.5)).astype(int), 15) if code is None else code(row, d, steps)
        packed = [codes[j] | codes[j + 16] << 4 for j in range(16)] if pack is None else pack(codes)
        first, last = list(np.array([d], scale).tobytes()), [int(byte) & 255 for byte in packed]
        lines.append(last + first if tail else first + last)
    return np.array(lines)


def positive_extreme(blocks):
    return in_loops(blocks, extreme=lambda row: np.abs(row).max())


def divided_by_plus_eight(blocks):
    return in_loops(blocks, extreme=lambda row: -row[np.argmax(np.abs(row))])


def pairs_of_neighbours(blocks):
    return in_loops(blocks, pack=lambda codes: [codes[2 * j] | codes[2 * j + 1] << 4 for j in range(16)])


def first_half_high(blocks):
    return in_loops(blocks, pack=lambda codes: [codes[j] << 4 | codes[j + 16] for j in range(16)])


def never_clamped(blocks):
    return in_loops(blocks, code=lambda row, d, steps: (steps + np.float32(8.5)).astype(int))


def scale_rounded_before(blocks):
    def code(row, d, steps):
        half = np.float32(np.float16(d))
        return np.minimum(((row / half if half else 0 * row) + np.float32(8.5)).astype(int), 15)

    return in_loops(blocks, code=code)


def eight_added(blocks):
    return in_loops(blocks, code=lambda row, d, steps: np.minimum((steps + 8).astype(int), 15))


def codes_first(blocks):
    return in_loops(blocks, tail=True)


def of_all(blocks):
    return in_loops(blocks, extreme=lambda row: blocks.ravel()[np.argmax(np.abs(blocks))])


def swapped_bytes(blocks):
    return in_loops(blocks, scale=">f2")


def bankers_rounding(blocks):
    return in_loops(blocks, code=lambda row, d, steps: [int(min(max(round(float(s)) + 8, 0), 15)) for s in steps])


def greatest(blocks):
    return in_loops(blocks, extreme=np.max)


def divided_by_minus_seven(blocks):
    return in_loops(blocks, extreme=lambda row: row[np.argmax(np.abs(row))] * np.float32(8 / 7))


def both_low(blocks):
    return in_loops(blocks, pack=lambda codes: [codes[j] | codes[j + 16] for j in range(16)])


def sixteen_of_them(blocks):
    return in_loops(blocks, pack=lambda codes: codes[:16])


# --- Q4_0, right ---


def q4_0_in_torch(blocks):
    rows = torch.from_numpy(blocks)
    d = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True)) / -8
    codes = torch.where(d == 0, 8.5, rows / d + 8.5).clamp(max=15).to(torch.uint8)
    return torch.cat([d.half().view(torch.uint8), codes[:, :16] + 16 * codes[:, 16:]], dim=1)


# --- the fit, wrong ---


def sums(x, w, codes):
    return w.sum(), (w * codes).sum(), (w * codes**2).sum(), (w * x).sum(), (w * x * codes).sum()


def all_alike(x, w, codes):
    return polyfit(x, np.ones_like(w), codes)


def polyfit_with_squares(x, w, codes):
    scale, low = np.polyfit(codes, x, 1, w=w)  # numpy multiplies the residuals, so it takes roots
    return (scale, low) if low <= 0 else ((w * w * x * codes).sum() / (w * w * codes**2).sum(), 0.0)


def above_zero(x, w, codes):
    one, cs, cc, xs, xc = sums(x, w, codes)
    return (one * xc - xs * cs) / (one * cc - cs * cs), (cc * xs - cs * xc) / (one * cc - cs * cs)


def only_clamped(x, w, codes):
    scale, low = above_zero(x, w, codes)
    return scale, min(0.0, low)


def minimum_as_stored(x, w, codes):
    scale, low = polyfit(x, w, codes)
    return scale, -low


def low_then_scale(x, w, codes):
    scale, low = polyfit(x, w, codes)
    return low, scale


def numbers_counted(x, w, codes):
    one, cs, cc, xs, xc = sums(x, w, codes)
    one = len(x)
    scale, low = (one * xc - xs * cs) / (one * cc - cs * cs), (cc * xs - cs * xc) / (one * cc - cs * cs)
    return (scale, low) if low <= 0 else (xc / cc, 0.0)


def by_sums_without_codes(x, w, codes):
    scale, low = above_zero(x, w, codes)
    return (scale, low) if low <= 0 else ((w * x).sum() / (w * codes).sum(), 0.0)


def sign_in_low(x, w, codes):
    one, cs, cc, xs, xc = sums(x, w, codes)
    scale, low = (one * xc - xs * cs) / (one * cc - cs * cs), (cs * xc - cc * xs) / (one * cc - cs * cs)
    return (scale, low) if low <= 0 else (xc / cc, 0.0)


# --- the fit, right ---


def polyfit(x, w, codes):
    scale, low = np.polyfit(codes.astype(float), x.astype(float), 1, w=np.sqrt(w.astype(float)))
    if low > 0:
        return float((w * x * codes).sum() / (w * codes * codes).sum()), 0
    return scale, low


def in_float32(x, w, codes):
    one, cs, cc, xs, xc = sums(*(torch.from_numpy(part) for part in (x, w, codes)))
    scale = (one * xc - xs * cs) / (one * cc - cs * cs)
    low = (xs - scale * cs) / one
    return (scale, low) if low <= 0 else (xc / cc, torch.zeros(()))


# --- scales, wrong ---


def by_hand(packed, keep=63, at=4, minima_high=True):
    scales, minima = [], []
    for block in packed.tolist():
        s, m = [], []
        for i in range(4):
            s.append(block[i] & keep)
            m.append(block[4 + i] & keep)
        for i in range(4):
            low, high = block[8 + i] & 15, block[8 + i] >> 4
            s.append((low if minima_high else high) + (block[i] >> 6 << at))
            m.append((high if minima_high else low) + (block[4 + i] >> 6 << at))
        scales.append(s)
        minima.append(m)
    return scales, minima


def unmasked(packed):
    return by_hand(packed, keep=255)


def too_far_up(packed):
    return by_hand(packed, at=6)


def halves_swapped(packed):
    return by_hand(packed, minima_high=False)


def four_bits_only(packed):
    scales, minima = (np.array(part) for part in by_hand(packed))
    scales[:, 4:] &= 15
    minima[:, 4:] &= 15
    return scales, minima


def end_to_end(packed):
    numbers = []
    for block in packed.tolist():
        whole = int.from_bytes(bytes(block), "little")
        numbers.append([whole >> 6 * i & 63 for i in range(16)])
    return np.array(numbers)[:, :8], np.array(numbers)[:, 8:]


def the_other_way(packed):
    scales, minima = by_hand(packed)
    return minima, scales


def plus_before_shift(packed):
    scales = np.concatenate([packed[:, :4] & 63, (packed[:, 8:] & 15) + (packed[:, :4] >> 6) << 4], axis=1)
    return scales, np.concatenate([packed[:, 4:8] & 63, (packed[:, 8:] >> 4) + (packed[:, 4:8] >> 6) << 4], axis=1)


def at_the_bottom(packed):
    p, last = packed, packed[:, :8] >> 6
    low, high = p[:, 8:] & 15 | last[:, :4], p[:, 8:] >> 4 | last[:, 4:]
    return np.concatenate([p[:, :4] & 63, low], axis=1), np.concatenate([p[:, 4:8] & 63, high], axis=1)


def minima_left_high(packed):
    scales, minima = (np.array(part) for part in by_hand(packed))
    minima[:, 4:] = packed[:, 8:] & 240 | packed[:, 4:8] >> 6 << 4
    return scales, minima


def last_before_first(packed):
    return [np.roll(np.array(part), 4, axis=1) for part in by_hand(packed)]


# --- scales, right ---


def scales_in_torch(packed):
    p = torch.from_numpy(packed).int()
    scales = torch.cat([p[:, :4] % 64, p[:, 8:] % 16 + p[:, :4] // 64 * 16], dim=1)
    return scales, torch.cat([p[:, 4:8] % 64, p[:, 8:] // 16 + p[:, 4:8] // 64 * 16], dim=1)


WRONG = [
    ("gguf.tensor_info", shape_as_it_is, "dimensions stand in torch's order"),
    ("gguf.tensor_info", network_order, "written from their high end"),
    ("gguf.tensor_info", letters_not_bytes, "you counted letters"),
    ("gguf.tensor_info", native_gaps, "struct.pack leaves gaps"),
    ("gguf.tensor_info", name_alone, "the name's length is missing"),
    ("gguf.tensor_info", sizes_in_four, "dimensions take four bytes each"),
    ("gguf.tensor_info", name_in_four, "length of the name takes four bytes"),
    ("gguf.tensor_info", only_the_end_native, "Without '<', struct.pack leaves a gap"),
    ("gguf.q4_0", bankers_rounding, "halfway between two levels went to the even one"),
    ("gguf.q4_0", greatest, "you took the largest weight"),
    ("gguf.q4_0", divided_by_minus_seven, "divided by -7"),
    ("gguf.q4_0", both_low, "second sixteen codes are not shifted"),
    ("gguf.q4_0", sixteen_of_them, "second sixteen codes are missing"),
    ("gguf.q4_0", positive_extreme, "Keep its sign"),
    ("gguf.q4_0", divided_by_plus_eight, "d has the wrong sign"),
    ("gguf.q4_0", pairs_of_neighbours, "neighbours share a byte. Here weight j"),
    ("gguf.q4_0", first_half_high, "halves of the bytes are swapped"),
    ("gguf.q4_0", never_clamped, "The largest code is 15"),
    ("gguf.q4_0", scale_rounded_before, "divided by d after rounding it"),
    ("gguf.q4_0", eight_added, "add 8.5 before cutting"),
    ("gguf.q4_0", codes_first, "d stands behind the codes"),
    ("gguf.q4_0", of_all, "all blocks have one d"),
    ("gguf.q4_0", swapped_bytes, "two bytes of d are swapped"),
    ("gguf.fit", all_alike, "all errors count alike"),
    ("gguf.fit", polyfit_with_squares, "squares of w"),
    ("gguf.fit", above_zero, "low is above 0"),
    ("gguf.fit", only_clamped, "scale is still the one that went with the other low"),
    ("gguf.fit", minimum_as_stored, "low has the wrong sign"),
    ("gguf.fit", low_then_scale, "scale and low are swapped"),
    ("gguf.fit", numbers_counted, "taken for the number of weights"),
    ("gguf.fit", by_sums_without_codes, "scale comes from the second equation"),
    ("gguf.fit", sign_in_low, "look for a sign that is wrong"),
    ("gguf.scales", plus_before_shift, "+ is done before <<"),
    ("gguf.scales", at_the_bottom, "onto the lowest two of the others"),
    ("gguf.scales", minima_left_high, "still in the upper half of their bytes"),
    ("gguf.scales", last_before_first, "last four stand before the first four"),
    ("gguf.scales", unmasked, "Only the lower six of a byte"),
    ("gguf.scales", too_far_up, "went too far up"),
    ("gguf.scales", halves_swapped, "It is the other way round"),
    ("gguf.scales", four_bits_only, "upper bits of the last four are missing"),
    ("gguf.scales", end_to_end, "six bits after six"),
    ("gguf.scales", the_other_way, "scales and minima are swapped"),
]
RIGHT = [
    ("gguf.tensor_info", info_in_pieces),
    ("gguf.tensor_info", info_as_array),
    ("gguf.q4_0", in_loops),
    ("gguf.q4_0", q4_0_in_torch),
    ("gguf.fit", polyfit),
    ("gguf.fit", in_float32),
    ("gguf.scales", by_hand),
    ("gguf.scales", scales_in_torch),
]


@pytest.mark.parametrize(("name", "answer", "phrase"), WRONG, ids=[f"{n}-{f.__name__}" for n, f, _ in WRONG])
def test_wrong_answers_are_told_what_is_wrong(name, answer, phrase):
    found = verdict(name, answer)
    assert not found.passed and phrase in found.text.splitlines()[-1], found.text


@pytest.mark.parametrize(("name", "answer"), RIGHT, ids=[f"{n}-{f.__name__}" for n, f in RIGHT])
def test_right_answers_pass_however_they_are_written(name, answer):
    assert_right(name, answer)


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
    assert np.array_equal(in_loops(rows.reshape(-1, 32)).reshape(8, -1), expected)  # the reference is the real thing
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
