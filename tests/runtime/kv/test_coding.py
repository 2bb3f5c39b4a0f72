"""Codes of keys and values: comparison with a slow version, bytes, errors, and the growth of a stored tensor."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from qtutor import QtutorError
from qtutor.runtime.kv import KVFormat, QuantizedPool
from qtutor.runtime.kv.coding import decode, encode
from qtutor.runtime.kv.format import GRIDS, Coding
from qtutor.runtime.kv.rotation import hadamard, rotate
from qtutor.runtime.kv.stored import Stored
from tests.models import tiny
from tests.reference.kv_cache import cached, turned

FORMATS = [
    *[KVFormat(bits, rotate=rotate) for bits in (8, 4, 2, "fp8") for rotate in (False, True)],
    *[KVFormat(bits, keys="channel", group=8, rotate=rotate) for bits in (4, "fp8") for rotate in (False, True)],
]
TOKENWISE = [form for form in FORMATS if form.keys == "token"]


def some(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def coded(x: torch.Tensor, form: KVFormat) -> torch.Tensor:
    """``x``, stored as keys and decoded again."""
    return decode(encode(x, form.codings[0]))


@pytest.mark.parametrize("bits", [8, 4, 2, "fp8"])
@pytest.mark.parametrize("channel", [False, True])
@pytest.mark.parametrize("head", [64, 80, 24, 7])  # groups of 32: two; a shorter last one; a short one; odd
def test_codes_stand_for_what_the_slow_version_says(bits, channel, head):
    x = some(2, 16, head) * 3
    x[0, 3] = 0
    x[0, 4, 5] = 300.0
    x[1, :, 2] += 20.0  # a channel that is large in all tokens
    group = 8 if channel else head if bits in (8, "fp8") else 32
    coding = KVFormat(bits, keys="channel" if channel else "token", group=8 if channel else 32).codings[0]
    expected = torch.stack([cached(one, bits, group, channel) for one in x])
    found = encode(x, coding)
    assert torch.equal(decode(found), expected)
    stored = coding.shapes(head, x.dtype)
    assert found.nbytes == 2 * coding.nbytes(16, head, x.dtype)
    assert {name: (getattr(found, name).shape[-1], getattr(found, name).dtype) for name in stored} == stored
    assert len(found.tensors) == len(stored)


def test_bytes_of_a_token_by_hand():
    """Heads of 64. In 8 bits: 64 codes, a scale of 2 bytes, a zero point.

    In 4 bits: 32 bytes of codes, 2 scales, and a byte that holds 2 zero points.
    """
    bytes_of = {form: form.codings[0].nbytes(32, 64, torch.float16) / 32 for form in (KVFormat(b) for b in GRIDS)}
    assert list(bytes_of.values()) == [16 + 4 + 1, 32 + 4 + 1, 64 + 2 + 1, 64 + 4, 128]
    channel = KVFormat(4, keys="channel").codings[0]  # each channel: 16 bytes, 2 of a scale, half of a zero point
    assert channel.nbytes(32, 64, torch.float16) == 64 * (16 + 2) + 32
    assert channel.nbytes(63, 64, torch.float16) == 64 * (16 + 2) + 32 + 31 * 128


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(FORMATS),
    st.integers(1, 80),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.floats(1e-3, 1e3),
    st.integers(0, 1 << 16),
)
def test_no_number_is_off_by_more_than_half_a_step(form, head, dtype, size, seed):
    x = (some(2, 16, head, seed=seed) * size).to(dtype)
    coding = form.codings[0]
    numbers, back = rotate(x) if form.rotate else x.float(), decode(encode(x, coding), turn_back=False)
    if form.bits == "fp8":  # three bits after the point, and subnormal numbers near zero
        largest = numbers.abs().amax()
        assert ((back - numbers).abs() <= numbers.abs() / 16 + largest * 2**-10 / 448 + 1e-12).all()
        return
    if coding.channel:
        low, high = _range(numbers, 8)
    else:  # the range of the whole head: no group has a wider one
        low, high = numbers.amin(-1, keepdim=True), numbers.amax(-1, keepdim=True)
    step = (high.clamp(min=0) - low.clamp(max=0)) / (2**form.bits - 1)
    # Rounding the scale to 16 bits changes each step by 2**-11 of it, or by 2**-25 if float16 has no more digits for so
    # small a step. The last of 2**bits levels moves 2**bits times as far. The zero point is a level, too.
    slack = 2**form.bits * (step * 2**-11 + 2**-25)
    assert ((back - numbers).abs() <= step * (0.5 + 2**-6) + slack).all()


def _range(numbers: torch.Tensor, window: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The smallest and the largest number of each channel in each window of tokens, repeated for its tokens."""
    windows = numbers.unflatten(1, (-1, window))
    return tuple(edge(2).repeat_interleave(window, 1) for edge in (windows.amin, windows.amax))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_zeros_and_constants(form, dtype):
    zeros = torch.zeros(2, 8, 48, dtype=dtype)
    assert torch.equal(coded(zeros, form), zeros.float())
    constant = torch.full((2, 8, 48), -3.3, dtype=dtype)
    if not form.rotate:  # the range ends at 0, so a constant is the last level
        assert (coded(constant, form) - constant.float()).abs().max() <= 3.3 * 2**-10


def test_an_outlier_costs_its_own_group_alone():
    x = some(1, 16, 64)
    loud = x.clone()
    loud[..., 5] = 1000.0
    others = torch.arange(64) != 5
    token, channel = KVFormat(4), KVFormat(4, keys="channel", group=8)
    assert torch.equal(coded(x, token)[..., 32:], coded(loud, token)[..., 32:])
    assert not coded(loud, token)[..., :5].any()  # beside 1000 they all become zero
    assert torch.equal(coded(x, channel)[..., others], coded(loud, channel)[..., others])


def test_rotation_spreads_an_outlier():
    x = some(64, 64)
    x[:, 5] += 50.0
    off = {rotate: (coded(x, KVFormat(4, rotate=rotate)) - x).square().mean() for rotate in (False, True)}
    assert off[True] < 0.5 * off[False]


@pytest.mark.parametrize("width", [1, 2, 64, 80, 96, 100, 128, 7])
def test_the_rotation_is_its_own_inverse(width):
    matrix = hadamard(width)
    assert torch.allclose(matrix @ matrix, torch.eye(width), atol=1e-6) and torch.equal(matrix, matrix.T)
    if width & (width - 1) == 0:
        x = some(5, width)
        assert torch.allclose(rotate(x).double(), turned(x), atol=1e-5)
        assert torch.allclose(matrix.abs(), torch.full_like(matrix, width**-0.5), atol=1e-7)  # channels count equally


def test_blocks_of_a_width_that_is_no_power_of_two():
    matrix = hadamard(80)
    assert torch.equal(matrix[:64, :64], hadamard(64)) and torch.equal(matrix[64:, 64:], hadamard(16))
    assert not matrix[:64, 64:].any()


@pytest.mark.parametrize("head", [64, 80, 24])
def test_turned_queries_keys_and_values_leave_attention_as_it_is(head):
    query, key, value = some(2, 4, 9, head), some(2, 4, 9, head, seed=1), some(2, 4, 9, head, seed=2)
    plain = scaled_dot_product_attention(query, key, value, is_causal=True)
    inside = scaled_dot_product_attention(rotate(query), rotate(key), rotate(value), is_causal=True)
    assert (rotate(inside) - plain).abs().max() < 1e-5
    assert (inside - plain).abs().max() > 0.1  # inside, it is rotated


def test_turning_queries_is_the_same_as_turning_keys_back():
    query, x, coding = some(3, 64), some(9, 64, seed=1), KVFormat(4, rotate=True).codings[0]
    there, back = decode(encode(x, coding), turn_back=False), decode(encode(x, coding))
    assert (rotate(query) @ there.T - query @ back.T).abs().max() < 1e-5


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_refused(bad):
    x = some(2, 8, 64)
    x[1, 3, 5] = bad
    for form in FORMATS:
        with pytest.raises(QtutorError, match=r"1 of 1024 numbers are NaN or infinite.*cache of 16 bits"):
            encode(x, form.codings[0])
    assert torch.equal(decode(encode(x, Coding(None))), x) or bad != bad


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([KVFormat(16), *FORMATS]),
    st.lists(st.integers(0, 21), min_size=1, max_size=6),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_tokens_in_pieces_are_stored_as_at_once(form, pieces, dtype):
    x, coding = some(2, 3, sum(pieces), 16).to(dtype), form.codings[0]
    whole, grown = Stored(x, coding), Stored(x, coding)
    whole.append(x)
    for piece in x.split(pieces, dim=2):
        grown.append(piece)
    assert len(grown) == x.shape[2] and grown.read().dtype == dtype
    assert torch.equal(grown.read(), whole.read())
    assert grown.nbytes == whole.nbytes == 6 * coding.nbytes(x.shape[2], 16, dtype)
    full = x.shape[2] // coding.unit * coding.unit
    assert torch.equal(grown.read()[:, :, full:], x[:, :, full:])  # keys of a window that is not full are exact


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([KVFormat(16), *FORMATS]), st.integers(0, 40), st.integers(0, 40))
@example(KVFormat(4), 5, 1)
@example(KVFormat(4, keys="channel", group=8), 15, 1)
@example(KVFormat(4, keys="channel", group=8), 16, 0)
def test_crop_takes_the_newest_back(form, tokens, more):
    x, coding = some(2, 3, tokens + more, 16), form.codings[0]
    stored = Stored(x, coding)
    stored.append(x)
    before = stored.read()
    stored.crop(more)
    assert torch.equal(stored.read(), before[:, :, :tokens])
    assert stored.nbytes == 6 * coding.nbytes(tokens, 16, x.dtype)
    stored.append(x[:, :, tokens:])
    assert len(stored) == tokens + more
    if not coding.channel:
        assert torch.equal(stored.read(), before)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([KVFormat(16), *FORMATS]), st.lists(st.integers(1, 19), min_size=1, max_size=5), st.integers(1, 12)
)
def test_forgotten_tokens_are_not_read_and_hold_no_whole_unit(form, pieces, keep):
    x, coding = some(1, 2, sum(pieces), 16), form.codings[0]
    all_of_it, sliding = Stored(x, coding), Stored(x, coding)
    for piece in x.split(pieces, dim=2):
        all_of_it.append(piece)
        sliding.append(piece)
        sliding.forget(keep)
        kept = min(keep, len(all_of_it))
        assert torch.equal(sliding.read(), all_of_it.read()[:, :, len(all_of_it) - kept :])
        held = len(all_of_it) - (len(all_of_it) - kept) // coding.unit * coding.unit
        assert sliding.nbytes == 2 * coding.nbytes(held, 16, x.dtype)


def test_rows_are_chosen_and_repeated():
    x = some(3, 2, 19, 16)
    for form in (KVFormat(16), *FORMATS):
        stored = Stored(x, form.codings[0])
        stored.append(x)
        before = stored.read()
        stored.select(torch.tensor([2, 0, 0, 1]))
        assert torch.equal(stored.read(), before[[2, 0, 0, 1]])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 5}, r"bits = 5: choose one of 2, 4, 8, 'fp8', 16\."),
        ({"bits": True}, "bits = True"),
        ({"bits": [4]}, r"bits = \[4\]"),
        ({"bits": 8.0}, "bits = 8.0"),
        ({"value_bits": "int4"}, "value_bits = 'int4'"),
        ({"keys": "head"}, "keys = 'head': choose one of 'token', 'channel'"),
        ({"rotate": 2}, "rotate = 2"),
        ({"group": 12}, "group = 12: a multiple of 8"),
        ({"group": 0}, "group = 0"),
        ({"bits": 16, "keys": "channel"}, "not rounded have no scales"),
        ({"bits": 16, "rotate": True}, "rotation gains nothing"),
    ],
)
def test_formats_that_are_none(settings, message):
    with pytest.raises(QtutorError, match=message):
        KVFormat(**settings)


@pytest.mark.parametrize("form", [KVFormat(16), *TOKENWISE, KVFormat(4, value_bits="fp8", rotate=True)])
def test_a_pool_gives_back_what_codes_stand_for(form):
    config = tiny().config
    pool = QuantizedPool(config, 5, 4, torch.float32, "cpu", form)
    keys, values = some(7, 2, 16), some(7, 2, 16, seed=1)
    slots = torch.tensor([8, 9, 10, 11, 0, 1, 2])  # blocks 2 and 0
    pool.write(1, slots, keys, values)
    found = pool.read(1, torch.tensor([[2, 0], [0, 4]]))
    for numbers, coding, read in zip((keys, values), form.codings, found):
        expected = decode(encode(numbers.transpose(0, 1), coding))
        assert read.shape == (2, 2, 8, 16) and torch.equal(read[0, :, :7], expected)
        assert torch.equal(read[1, :, :3], expected[:, 4:]) and not read[1, :, 4:].any()
    assert not any(one.any() for one in pool.read(0, torch.tensor([[2, 0]])))
    assert pool.nbytes == 2 * 2 * sum(coding.nbytes(5 * 4, 16, torch.float32) for coding in form.codings)


def test_a_pool_refuses_keys_per_channel():
    with pytest.raises(QtutorError, match="its blocks token by token"):
        QuantizedPool(tiny().config, 5, 4, torch.float32, "cpu", KVFormat(4, keys="channel"))
