"""Block types, tested without llama.cpp: digests of its output, a slow decoder, and properties."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qtutor import threads
from qtutor.errors import QtutorError
from qtutor.gguf import TYPES, coding, decode, encode
from qtutor.gguf.layout import ALL_TYPES, BY_NUMBER, REMOVED, unfold
from tests.gguf import inputs
from tests.gguf.make_golden import GOLDEN, REFUSED, cases, digest
from tests.reference import gguf_blocks

golden = json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("name", TYPES)
def test_digests_of_what_llama_cpp_wrote(name):
    seen = {}
    for label, rows, importance in cases(name):
        if golden[name][label] == REFUSED:
            with pytest.raises(QtutorError, match="is too large for"):
                encode(rows, name, importance)
            seen[label] = REFUSED
        else:
            seen[label] = digest(encode(rows, name, importance), name)
    assert len(seen) >= 4
    assert seen == golden[name]


@pytest.mark.parametrize("name", TYPES)
def test_decoder_equals_the_slow_one(name):
    assert gguf_blocks.SIZES[name] == (TYPES[name].values, TYPES[name].nbytes)
    rows = np.concatenate([inputs.crafted(256)[3:8], inputs.gaussian(2, 256), inputs.large(256)[:1]])
    for data in (encode(rows, name), random_blocks(name, 6)):
        expected = gguf_blocks.decode(data, name)
        assert np.array_equal(decode(data, name).view(np.int32), expected.view(np.int32))


def random_blocks(name, rows):
    data = (inputs.uniform(rows * TYPES[name].nbytes, 9) * 256).astype(np.uint8).reshape(rows, TYPES[name].nbytes)
    for field in TYPES[name].fields:
        if field.kind in ("f16", "bf16", "f32"):  # no infinities, no NaN
            at = sum(other.size for other in TYPES[name].fields[: TYPES[name].fields.index(field)])
            data[:, at + field.size - 1] &= 0xBF
    if name == "NVFP4":
        data[:, :4][data[:, :4] == 0x7F] = 0x38  # the same for its scales
    return data


# The largest error that a type may make, as a share of the largest magnitude in the block.
WORST = {
    "F32": 0, "F16": 2**-11, "BF16": 2**-8, "Q4_0": 1 / 8, "Q4_1": 1 / 14, "Q5_0": 1 / 16, "Q5_1": 1 / 30,
    "Q8_0": 1 / 220, "Q2_K": 0.9, "Q3_K": 0.6, "Q4_K": 0.3, "Q5_K": 0.16, "Q6_K": 0.1, "IQ4_NL": 0.2, "IQ4_XS": 0.3,
    "TQ1_0": 0.51, "TQ2_0": 0.51, "MXFP4": 0.35,
    "NVFP4": 0.35, "Q1_0": 1, "Q2_0": 0.51,
}  # fmt: skip


@pytest.mark.parametrize("name", TYPES)
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), size=st.floats(1e-6, 1000), share=st.floats(0, 1), shift=st.floats(-3, 3))
@example(seed=3181, size=4.0, share=0.75, shift=0.0001)  # two opposite extremes, which differ only in the fifth digit
def test_what_comes_back_is_close(name, seed, size, share, shift):
    generator = np.random.default_rng(seed)
    size = min(size, 200) if name == "NVFP4" else size  # its scales end at 448
    rows = (generator.standard_normal((3, 256)) + shift) * size * (generator.random((3, 256)) <= share)
    rows = rows.astype(np.float32)
    back = decode(encode(rows, name), name)
    largest = np.abs(rows.reshape(len(rows), -1, TYPES[name].values)).max(axis=2)
    # WORST assumes exact scales. A scale that is rounded to float16 is off by up to 2^-11, and so is the largest level.
    # An example is Q5_0, which ends at 15 steps on one side. A weight at 16 steps is then off by one step, and by
    # 15 / 16 * 2^-11 of its size in addition.
    rounding = 2**-11 if TYPES[name].offsets("f16") else 0
    allowed = np.repeat(largest, TYPES[name].values, axis=1) * (WORST[name] + rounding)
    smallest = 1e-3 if name not in ("F32", "BF16", "MXFP4") else 1e-37  # the resolution of float16 scales
    smallest = 6 * 2.0**-10 if name == "NVFP4" else smallest  # half of its smallest scale, times the largest level
    assert (np.abs(back - rows) <= allowed + smallest).all()


@pytest.mark.parametrize("name", ["Q4_0", "Q4_K", "Q6_K", "IQ4_XS"])
def test_rows_do_not_know_of_each_other(name):
    """Lanes and threads do not change the result: rows that are encoded together or one by one give the same bytes."""
    rows = np.concatenate([inputs.gaussian(19, 768), inputs.crafted(768)])
    for importance in (None, inputs.importances(768)["uneven"]):
        together = encode(rows, name, importance)
        alone = np.concatenate([encode(rows[i : i + 1], name, importance) for i in range(len(rows))])
        assert np.array_equal(together, alone)


def test_threads_change_nothing(monkeypatch):
    rows = inputs.gaussian(70, 512)
    expected = encode(rows, "Q4_K")
    monkeypatch.setattr(coding, "PIECE", 16 * 512)
    monkeypatch.setattr(coding, "thread_count", lambda: 3)
    assert np.array_equal(encode(rows, "Q4_K"), expected)


@pytest.mark.parametrize("count", [1, 3])
def test_of_several_broken_pieces_the_first_is_named(monkeypatch, count):
    monkeypatch.setattr(coding, "PIECE", 16 * 256)
    monkeypatch.setattr(coding, "thread_count", lambda: count)
    rows = inputs.gaussian(160, 256)
    rows[[21, 35, 120], 7] = np.nan
    for _ in range(20):
        with pytest.raises(QtutorError, match="row 21, column 7"):
            encode(rows, "Q8_0")


def test_a_thread_that_comes_late_keeps_nobody_waiting(monkeypatch):
    """The calling thread does all the work if its helpers do not start."""
    monkeypatch.setattr(threads, "_pool", None)
    monkeypatch.setattr(threads.ThreadPoolExecutor, "_adjust_thread_count", lambda self: None)
    done = []
    threads.in_steps(lambda first, last: done.append((first, last)), 40, 16, 2)
    assert done == [(0, 16), (16, 32), (32, 40)]


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "IQ4_NL", "Q4_0"])
def test_importance_lowers_the_error_where_it_says_so(name):
    rows = inputs.gaussian(32, 512)
    importance = np.where(np.arange(512) % 8 == 0, 100, 0.01).astype(np.float32)

    def weighted_error(data):
        return ((decode(data, name) - rows) ** 2 * importance).sum()

    assert weighted_error(encode(rows, name, importance)) < 0.9 * weighted_error(encode(rows, name))


def test_empty_and_views():
    assert encode(np.zeros((0, 256), np.float32), "Q4_K").shape == (0, 144)
    assert encode(np.zeros((3, 0), np.float32), "Q4_K").shape == (3, 0)
    assert decode(np.zeros((0, 144), np.uint8), "Q4_K").shape == (0, 256)
    assert decode(np.zeros((3, 0), np.uint8), "Q4_K").shape == (3, 0)
    rows = inputs.gaussian(8, 512)
    view = rows[::2, 256:]
    assert np.array_equal(encode(view, "Q5_K"), encode(view.copy(), "Q5_K"))
    before = rows.copy()
    rows.flags.writeable = False
    encode(rows, "Q4_0")
    assert np.array_equal(rows, before)


def test_sizes_of_all_types():
    for block_type in TYPES.values():
        assert sum(field.size for field in block_type.fields) == block_type.nbytes
    assert len(BY_NUMBER) == len(ALL_TYPES) and not BY_NUMBER.keys() & REMOVED.keys()
    bits = {name: TYPES[name].bits_per_weight for name in ("Q4_0", "Q2_K", "Q3_K", "Q6_K", "IQ4_XS", "TQ1_0", "MXFP4")}
    assert bits == {
        "Q4_0": 4.5, "Q2_K": 2.625, "Q3_K": 3.4375, "Q6_K": 6.5625, "IQ4_XS": 4.25, "TQ1_0": 1.6875, "MXFP4": 4.25
    }  # fmt: skip


def test_fold_is_the_inverse_of_unfold():
    lanes = pytest.importorskip("qtutor.gguf.lanes")
    data = (inputs.uniform(128, 3) * 256).astype(np.uint8)
    for bits in (1, 2, 4):
        for stride in (1, 4, 8, 16):
            codes = unfold(data, bits, stride)
            assert codes.max() == 2**bits - 1
            back = np.zeros_like(data)
            lanes.fold(codes, 0, bits, stride, back, 0)
            assert np.array_equal(back, data)


def test_half_precision_equals_numpys():
    lanes = pytest.importorskip("qtutor.gguf.lanes")
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    between = (halves[:-1] + halves[1:]) / 2  # ties, exact in float32
    values = np.concatenate([halves, between, np.nextafter(between, np.float32(0)), [65519.9, 65520, 1e30]])
    values = np.concatenate([values, -values]).astype(np.float32)[:, None]
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16).view(np.uint16)
    assert [lanes.to_half(value) for value in values[::7, 0]] == expected[::7, 0].tolist()
    finite = np.abs(values[:, 0]) < 65520
    assert np.array_equal(encode(values[finite].T.copy(), "F16").view(np.uint16)[0], expected[finite, 0])


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_broken_weights_are_named(name, broken):
    rows = inputs.gaussian(40, 256)
    rows[33, 77] = broken
    with pytest.raises(QtutorError, match=f"row 33, column 77 is {broken}"):
        encode(rows, name)


@pytest.mark.parametrize("name", [name for name in TYPES if name not in ("F32", "MXFP4", "NVFP4", "BF16")])
def test_weights_that_float16_scales_cannot_hold_are_named(name):
    rows = inputs.gaussian(40, 256)
    rows[21, 99] = -1e20
    with pytest.raises(QtutorError, match=rf"-1e\+20 in row 21, column 99 is too large for {name}"):
        encode(rows, name)


def test_float32_that_overflow_when_added_up():
    """F32 looks for broken values with a sum. It overflows for these finite values; inf and -inf make it NaN."""
    rows = np.full((40, 256), np.finfo(np.float32).max, np.float32)
    assert np.array_equal(encode(rows, "F32"), rows.view(np.uint8))
    assert np.shares_memory(encode(rows, "F32"), rows) and not encode(rows, "F32").flags.writeable
    rows[33, 77], rows[33, 78] = np.inf, -np.inf
    with pytest.raises(QtutorError, match="row 33, column 77 is inf"):
        encode(rows, "F32")


def test_largest_bfloat16():
    rows = np.full((1, 2), 3.3895e38, np.float32)
    assert np.isfinite(decode(encode(rows, "BF16"), "BF16")).all()
    rows[0, 1] = np.finfo(np.float32).max
    with pytest.raises(QtutorError, match="row 0, column 1 is too large for BF16"):
        encode(rows, "BF16")


def test_bad_arguments():
    rows = inputs.gaussian(2, 256)
    with pytest.raises(QtutorError, match=r"type = 'Q4_X'.*Choose from F32, .*Q4_K.*MXFP4"):
        encode(rows, "Q4_X")
    with pytest.raises(QtutorError, match="type = 'IQ2_S'"):
        decode(np.zeros((1, 82), np.uint8), "IQ2_S")
    with pytest.raises(QtutorError, match=r"288 weights cannot be cut into Q4_K blocks of 256.*Q4_0.*IQ4_NL"):
        encode(inputs.gaussian(2, 288), "Q4_K")
    with pytest.raises(QtutorError, match=r"float64 of shape \[2, 256\]"):
        encode(rows.astype(np.float64), "Q4_K")
    with pytest.raises(QtutorError, match=r"float32 of shape \[256\]"):
        encode(rows[0], "Q4_K")
    with pytest.raises(QtutorError, match=r"importance has shape \[255\], the rows have 256 columns"):
        encode(rows, "Q4_K", np.ones(255, np.float32))
    for bad in (np.nan, np.inf, -1.0):
        importance = np.ones(256, np.float32)
        importance[[9, 10]] = bad
        with pytest.raises(QtutorError, match=rf"importance of column 9 is {bad}.*2 of 256"):
            encode(rows, "Q4_K", importance)
    with pytest.raises(QtutorError, match="rows of 143 bytes do not consist of whole Q4_K blocks"):
        decode(np.zeros((1, 143), np.uint8), "Q4_K")
    with pytest.raises(QtutorError, match=r"float32 of shape \[1, 144\]"):
        decode(np.zeros((1, 144), np.float32), "Q4_K")


def test_numba_is_imported_by_the_first_encoder_only():
    code = (
        "import sys, numpy as np, qtutor.gguf as g; g.decode(np.zeros((1, 144), np.uint8), 'Q4_K'); "
        "g.encode(np.zeros((1, 4), np.float32), 'F32'); assert 'numba' not in sys.modules; "
        "sys.modules['numba'] = None\n"
        "try: g.encode(np.zeros((1, 32), np.float32), 'Q4_0')\n"
        "except g.coding.QtutorError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'qtutor[gguf]'" in done.stdout


def test_blocks_of_few_bits_by_hand():
    row = np.array([[3.0, -1.0, -0.0, 0.0] + [-0.5] * 124], np.float32)
    data = encode(row, "Q1_0")
    assert data[0, :2].view(np.float16)[0] == np.float16((4 + 62) / 128)
    assert data[0, 2:].tolist() == [0b1101] + [0] * 15  # -0.0 counts as plus
    row = np.array([[2.0, -1.0, 1.0, 0.999, -0.999, -2.0] + [0.0] * 58], np.float32)
    data = encode(row, "Q2_0")
    assert data[0, :2].view(np.float16)[0] == 2
    assert data[0, 2:4].tolist() == [0b01_10_00_10, 0b01_01_00_01] and (data[0, 4:] == 0b01010101).all()
    assert decode(np.array([[0, 0x3C, 0b11100100, *[0] * 15]], np.uint8), "Q2_0")[0, :4].tolist() == [-1, 0, 1, 2]


def test_scales_of_nvfp4_by_hand():
    """Ties are rounded up, scales that round to 256 or more become 448, and scales below 2**-10 become 0."""
    rows = np.zeros((8, 64), np.float32)
    rows[:, 0] = 6 * np.array([1, 1.0625, 1.06, 256, 255, 2.0**-10, 2.0**-11, 7.6 * 2.0**-9])
    assert encode(rows, "NVFP4")[:, 0].tolist() == [0x38, 0x39, 0x38, 0x7E, 0x7E, 1, 0, 7]
    back = decode(encode(rows, "NVFP4"), "NVFP4")[:, 0]
    assert back.tolist() == [6, 6.75, 6, 3 * 448, 3 * 448, 3 / 512, 0, 42 / 512]


@pytest.mark.parametrize("name", [name for name in TYPES if name != "F32"])
def test_decoders_equal_those_of_the_gguf_package(name):
    quants = pytest.importorskip("gguf.quants", reason="the gguf package is not installed here")
    if name in ("Q1_0", "Q2_0"):
        pytest.skip(f"the gguf package has no decoder of {name}; llama.cpp's own is compared with elsewhere")
    kind = quants.GGMLQuantizationType[name]
    data = random_blocks(name, 32)
    assert np.array_equal(decode(data, name).view(np.int32), quants.dequantize(data, kind).view(np.int32))
