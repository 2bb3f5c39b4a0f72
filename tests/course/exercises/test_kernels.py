"""The exercises of chapter 09: check names the mistake in a wrong answer, and right answers pass in any form.

Wrong answers are edits of right answers. The right answers differ from the course's solutions.
"""

import dataclasses

import numpy as np
import pytest
import torch

import qtutor
from qtutor.course import exercises
from qtutor.course.checking import examine
from qtutor.course.checking.limits import TimeUp
from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.kernels import inner_loop, racing, slow
from qtutor.course.workspace.replacing import replaced
from qtutor.runtime.linear import QuantLinear
from tests.course.answers import assert_mistakes_differ, assert_right, assert_told, each, verdict

numba = pytest.importorskip("numba")
f4, i4 = np.float32, np.int32
NAMES = [exercise.name for exercise in exercises.of_topic("kernels")]

# --- bytes a token ---


@solution
def by_layers(shapes, blocks, bits, group_size, head, kv_width, context):
    total = 0
    for rows, columns in shapes:
        codes = rows * columns * bits / 8
        scales = rows * columns / group_size * 2
        zeros = rows * columns / group_size * bits / 8
        total += codes + scales + zeros
    keys = values = context * kv_width * 2
    return (total + keys + values) * blocks + head * 2


WRONG_TOKEN = [
    (by_layers.edit("codes + scales + zeros", "codes"), "only the codes"),
    (by_layers.edit("scales + zeros", "scales"), "zero points are missing"),
    (by_layers.edit("keys + values) *", "keys) *"), "half of the keys and values"),
    (by_layers.edit("head * 2", "head"), "one byte for each weight of the output matrix"),
    (by_layers.edit("(total + keys + values) * blocks", "total * blocks + keys + values"), "of only one block"),
    (by_layers.edit("* bits / 8\n        scales", "* bits\n        scales"), None),
]

# --- the corner ---


@solution
def by_times(peak, bandwidth, bits, batch):
    reading, computing = bits / 8 / bandwidth, 2 / peak  # seconds for each weight
    seconds = max(reading, computing * batch)
    return 2 * batch / seconds, reading / computing


WRONG_CORNER = [
    (by_times.edit("max(reading", "min(reading"), "larger of two limits"),
    (by_times.edit("computing * batch", "0"), "no limit at the peak"),
    (by_times.edit("2 / peak", "1 / peak"), None),
    (by_times.edit("reading / computing", "computing / reading"), "upside down"),
    (by_times.edit("2 * batch / seconds", "2 / seconds"), "operations of one token"),
    (by_times.edit("reading / computing", "peak / bandwidth"), "in operations per byte"),
]

# --- zero points outside ---


@solution
def by_einsum(sums, x, scales, zeros):
    cut = x.reshape(sums.shape[1], len(x) // sums.shape[1])
    return torch.einsum("rg,rg->r", scales, sums) - torch.einsum("rg,rg,gk->r", scales, zeros.float(), cut)


WRONG_GROUP = [
    (by_einsum.edit("scales, sums) -", "scales, sums) +"), "you added the term"),
    (by_einsum.edit("scales, zeros.float()", "scales, 8 + 0 * zeros.float()"), "8 is subtracted"),
    (
        by_einsum.edit("scales, zeros.float()", "torch.ones_like(scales), zeros.float()"),
        "the scale is applied to the codes only",
    ),
    (by_einsum.edit(", zeros.float(), cut)", ", zeros.float(), cut.abs())"), "absolute values"),
    (
        by_einsum.edit("x.reshape(sums.shape[1], len(x) // sums.shape[1])", "x.reshape(-1, sums.shape[1]).T"),
        "the wrong way",
    ),
]

# --- in place ---


@solution
def by_columns(words, x):
    w = words.numpy().astype(np.int64)
    masked = np.stack([w & (15 << 4 * i) for i in range(7)] + [(w >> 28) & 15], axis=1)
    divided = [float(x[i]) / 2 ** (4 * i) for i in range(7)] + [float(x[7])]
    return masked, divided


WRONG_PLACE = [
    (by_columns.edit("float(x[i]) / 2 ** (4 * i)", "float(x[i])"), "x is not divided"),
    (by_columns.edit("float(x[i]) / 2 ** (4 * i)", "float(x[i]) * 2 ** (4 * i)"), "x is multiplied"),
    (by_columns.edit("2 ** (4 * i)", "2 ** i"), "divided by 2**i"),
    (by_columns.edit("w & (15 << 4 * i)", "(w >> 4 * i) & 15"), "x is divided as well"),
    (by_columns.edit("(w >> 28) & 15", "w >> 28"), "keeps the sign"),
    (by_columns.edit("[float(x[7])]", "[float(x[7]) / 16**7]"), "its x is still divided"),
]

# --- int8 inputs ---


@solution
def by_groups(codes, zeros, scales, x):
    size, total = x.numel() // scales.shape[1], torch.zeros(len(codes), dtype=torch.float64)
    for g in range(scales.shape[1]):
        own = x[g * size : (g + 1) * size].double()
        largest = own.abs().max()
        if largest == 0:
            continue
        q = torch.round(own / largest * 127)
        whole = ((codes[:, g * size : (g + 1) * size] - zeros[:, g : g + 1]) * q).sum(1)
        total += scales[:, g] * whole * largest / 127
    return total


WRONG_INT8 = [
    (by_groups.edit("torch.round(own / largest * 127)", "own / largest * 127"), "x was not rounded"),
    (by_groups.edit("own.abs().max()", "x.double().abs().max()"), "share one step"),
    (by_groups.edit("torch.round", "torch.trunc"), "truncated"),
    (by_groups.edit("torch.round", "torch.floor"), "floor"),
    (by_groups.edit(" - zeros[:, g : g + 1]", ""), "the zero points are missing"),
    (by_groups.edit("* largest / 127", ""), "step of x is missing"),
    (by_groups.edit(("* 127)", "* 128)"), ("largest / 127", "largest / 128")), "the largest |x| / 128"),
]

# --- the inner loop ---


@solution
def with_shifts(x, sums, words, scales, zeros):
    y = np.zeros(64, f4)
    for r in range(64):
        for g in range(len(sums)):
            total, size = f4(0), len(x) // len(sums)
            for k in range(g * size, (g + 1) * size):
                for i in range(7):
                    total += f4(((words[k, r] >> 4 * i) & 15) * 16**i) * x[k, i]
                total += f4((words[k, r] >> 28) & 15) * x[k, 7]
            y[r] += scales[g, r] * (total - zeros[g, r] * sums[g])
    return y


WRONG_LOOP = [
    (with_shifts.edit("(words[k, r] >> 28) & 15", "words[k, r] >> 28"), "keeps the sign"),
    (with_shifts.edit(" * 16**i", ""), "shifted down as well"),
    (with_shifts.edit("y[r] +=", "y[r] ="), "the groups overwrite"),
    (with_shifts.edit(" - zeros[g, r] * sums[g]", ""), "the zero points are missing"),
    (with_shifts.edit("zeros[g, r] * sums[g]", "zeros[g, r]"), "the zero point itself"),
    (with_shifts.edit("scales[g, r] * (total", "scales[0, r] * (total"), None),
]

LISTED = (WRONG_TOKEN, WRONG_CORNER, WRONG_GROUP, WRONG_PLACE, WRONG_INT8, WRONG_LOOP)
TOLD = {name: [answer for answer in wrong if answer[1]] for name, wrong in zip(NAMES, LISTED)}
REFUSED = {name: [function for function, phrase in wrong if not phrase] for name, wrong in zip(NAMES, LISTED)}
RIGHT = dict(zip(NAMES[:5], ([by_layers], [by_times], [by_einsum], [by_columns], [by_groups])))


@each(TOLD)
def test_a_wrong_answer_is_told_which_mistake_it_is(name, function, phrase):
    assert_told(TOLD, name, function, phrase)


@each(REFUSED)
def test_a_wrong_answer_without_a_diagnosis_is_refused(name, function):
    assert not verdict(name, function).passed


@each(RIGHT)
def test_a_right_answer_passes_however_it_is_written(name, function):
    assert_right(name, function)


@pytest.mark.parametrize("name", NAMES)
def test_no_two_mistakes_have_the_same_results(name):
    assert_mistakes_differ(name)


# --- how fast the inner loop is ---


def test_a_loop_along_the_rows_is_right_and_too_slow_with_the_reasons():
    found = examine(inner_loop.INNER_LOOP, with_shifts.__wrapped__)
    assert not found.passed
    assert "right on all 5 inputs. Compiled, it takes about" in found.text
    assert slow.STRIDED in found.text and slow.EIGHT in found.text


def test_the_courses_own_loop_passes_and_says_its_speed():
    found = examine(inner_loop.INNER_LOOP, inner_loop.right.__wrapped__)
    assert found.passed and "Compiled, it " in found.text


@pytest.mark.parametrize(
    ("ratio", "reasons", "expected"),
    [
        (0.9, ["- a"], "Compiled, it is as fast as the package's loop."),
        (0.7, ["- a"], "Compiled, it has about 0.7 of the package's speed."),
        (0.4, ["- a"], "Compiled, it takes about 2.5 times as long as the package's loop. Slow, because\n  - a"),
        (0.2, [], "about 5.0 times as long as the package's loop (an answer passes below 4 times). Its types and"),
    ],
)
def test_what_is_said_of_a_speed(ratio, reasons, expected):
    assert expected in racing._said(ratio, reasons)


MASKS = ("0xF", "0xF0", "0xF00", "0xF000", "0xF0000", "0xF00000", "0xF000000")
SUMS = "acc, y = np.zeros(64, f4), np.zeros(64, f4)"
REASONS = [
    (inner_loop.right.edit(*[(f"f4(i4(word & i4({m})))", f"f4(word & {m})") for m in MASKS]), {slow.INT64}),
    (inner_loop.right.edit(SUMS, "acc, y = np.zeros(64), np.zeros(64)"), {slow.FLOAT64}),
    (inner_loop.right.edit("acc[:] = 0", "acc = [f4(0) for _ in range(64)]"), {slow.LIST}),
    (inner_loop.right.edit("acc[:] = 0", "acc = np.zeros(64, f4)"), {slow.ARRAY}),
    (inner_loop.right.edit("word & i4(0xF0))) * x1", "word & i4(0xF0))) / (f4(1) / x1)"), {slow.DIVISION}),
    (inner_loop.right.__wrapped__, set()),
]


@pytest.mark.parametrize(("function", "expected"), REASONS, ids=range(len(REASONS)))
def test_what_makes_a_loop_slow_is_seen_in_its_types_and_its_source(function, expected):
    tile, problem = racing.compiled(function)
    assert not problem
    assert set(slow.reasons(function, tile)) == expected


def test_a_right_answer_that_is_not_done_in_time_does_not_pass():
    def late(function):
        raise TimeUp

    found = examine(dataclasses.replace(inner_loop.INNER_LOOP, speed=late), inner_loop.right.__wrapped__)
    assert not found.passed and found.text.startswith("kernels.inner_loop: right on all 5 inputs. But it could not be")
    fast = dataclasses.replace(inner_loop.INNER_LOOP, speed=lambda function: (True, "Fast."))
    assert examine(fast, inner_loop.right.__wrapped__).text == "kernels.inner_loop: right on all 5 inputs. Fast."


def test_what_numba_cannot_compile_is_told_in_a_sentence():
    def with_torch(x, sums, words, scales, zeros):
        return torch.zeros(64)

    def too_short(x, sums, words, scales, zeros):
        return x[0]

    passed, said = racing.raced(with_torch)
    assert not passed and said.startswith("It is right in plain Python, but numba cannot compile it")
    assert racing.raced(too_short) == (
        False, "It has to return a numpy array of 64 numbers, because the package continues with it."
    )  # fmt: skip


def test_without_numba_the_loop_is_not_timed(monkeypatch):
    monkeypatch.setattr(racing.cpu, "available", lambda: False)
    passed, said = racing.raced(with_shifts)
    assert passed and "not timed" in said


def test_a_loop_that_numba_computes_otherwise_is_refused(monkeypatch):
    monkeypatch.setattr(racing, "_theirs", lambda tile, *given: np.zeros((racing.TILES, 64)))
    passed, said = racing.raced(inner_loop.right.__wrapped__)
    assert not passed and "computes something else" in said


# --- the package with a learner's loop ---


def layer_of(bits: int, symmetric: bool = False) -> QuantLinear:
    weight = torch.randn(100, 128, generator=torch.Generator().manual_seed(bits))
    grid = qtutor.IntGrid(bits, symmetric=symmetric)
    return QuantLinear.from_quantized(qtutor.rtn.quantize(weight, grid, group_size=64))


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_package_multiplies_4_bits_with_a_learners_loop(symmetric):
    four, two, x = layer_of(4, symmetric), layer_of(2), torch.randn(1, 128)
    expected = four(x), two(x)

    def twice(x, sums, words, scales, zeros):
        return 2 * inner_loop_right(x, sums, words, scales, zeros)

    inner_loop_right = numba.njit(inner_loop.right.__wrapped__)
    with replaced(inner_loop.INNER_LOOP, twice):
        assert torch.allclose(four(x), 2 * expected[0], rtol=1e-4, atol=1e-4)
        assert torch.equal(two(x), expected[1])  # other widths still use the package's loop
    assert torch.equal(four(x), expected[0])
