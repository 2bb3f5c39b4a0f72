"""Each compiled part of a step, compared with torch and transformers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention, silu
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

pytest.importorskip("numba")
from qtutor.compiling import compiled
from qtutor.runtime.steps import loops

BF16 = 2**-8  # rounding to bfloat16 moves a number by at most half of this share of it


def noise(*shape: int, seed: int = 0, half: bool = False) -> torch.Tensor:
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return made.bfloat16().float() if half else made


def near(found: np.ndarray, expected: torch.Tensor, half: bool) -> bool:
    """Equal up to float32 rounding. In bfloat16 a number may round to its neighbour, one step of the last bit away."""
    expected = expected.float()
    return bool(((torch.from_numpy(found) - expected).abs() <= (BF16 if half else 2e-6) * (expected.abs() + 1)).all())


cut = compiled(lambda value, half: loops.cut(value, half), None)


@settings(max_examples=300, deadline=None)
@given(st.floats(width=32, allow_nan=False))
def test_rounding_is_torchs(value):
    assert cut(np.float32(value), True) == torch.tensor(value).bfloat16().float().item()
    assert cut(np.float32(value), False) == np.float32(value)


def test_rounding_of_halves_and_of_what_is_no_number():
    for bits in (0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, 0x7F7FFFFF, 0x80000001):
        value = np.uint32(bits).view(np.float32)
        assert cut(value, True) == torch.tensor(value).bfloat16().float().item()
    assert np.isnan(cut(np.float32("nan"), True))


@pytest.mark.parametrize("half", [False, True])
def test_norm(half):
    norm = LlamaRMSNorm(40, eps=1e-3)
    norm.weight.data = noise(40, half=half)
    x, out = noise(3, 40, seed=1, half=half), np.empty((3, 40), np.float32)
    loops.normed(x.numpy(), norm.weight.detach().numpy(), 1e-3, half, out)
    expected = norm.bfloat16()(x.bfloat16()) if half else norm(x)
    assert near(out, expected.detach(), half)
    loops.normed(x.numpy(), norm.weight.detach().float().numpy(), 1e-3, half, x.numpy())  # in place, as for heads
    assert np.array_equal(x.numpy(), out)


@pytest.mark.parametrize("half", [False, True])
def test_sums_gates_and_biases(half):
    dtype = torch.bfloat16 if half else torch.float32
    a, b = noise(50, seed=2, half=half), noise(50, seed=3, half=half)
    stream = a.clone().numpy()
    loops.joined(stream, b.numpy(), 0.4, half)
    assert near(stream, a.to(dtype) + b.to(dtype) * 0.4, half)
    out = np.empty(50, np.float32)
    gate = (10 * a).to(dtype)  # with large values
    loops.gated(gate.float().numpy(), b.numpy(), half, out)
    assert near(out, silu(gate) * b.to(dtype), half)
    y = noise(50, seed=4)
    found = y.clone().numpy()
    loops.finished(found, np.empty(0, np.float32), half)
    assert np.array_equal(found, y.to(dtype).float().numpy())
    loops.finished(found, b.numpy(), half)
    assert np.array_equal(found, (y.to(dtype) + b.to(dtype)).float().numpy())


@pytest.mark.parametrize("rope", [True, False])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("heads", [1, 2, 6])
@pytest.mark.parametrize("place", [0, 1, 30])
def test_attention(heads, place, half, rope):
    dtype, dim, kv = torch.bfloat16 if half else torch.float32, 24, 2 if heads > 1 else 1
    q, k, v = (noise(count, dim, seed=seed, half=half) for seed, count in enumerate((heads, kv, kv)))
    angles = noise(dim // 2, seed=5)
    cos, sin = (torch.cat([part, part]).to(dtype) for part in (angles.cos(), angles.sin()))
    stored = noise(2, 1, kv, place + 3, dim, seed=6).to(dtype)
    keys, values = stored.clone()
    # The slow way: rotate, put the new token after the others, and let torch compute attention.
    turned = [part.to(dtype)[None, :, None] for part in (q, k)]
    if rope:
        turned = apply_rotary_pos_emb(*turned, cos[None, None], sin[None, None], unsqueeze_dim=0)
    seen_keys = torch.cat([keys[:, :, :place], turned[1].reshape(1, kv, 1, dim)], 2)
    seen_values = torch.cat([values[:, :, :place], v.to(dtype).reshape(1, kv, 1, dim)], 2)
    query = turned[0].reshape(1, heads, 1, dim)
    expected = scaled_dot_product_attention(query, seen_keys, seen_values, scale=0.3, enable_gqa=True)

    rooms = [room[0].view(torch.uint16).numpy() if half else room[0].numpy() for room in (keys, values)]
    angle = [part.float().numpy() if rope else np.empty(0, np.float32) for part in (cos, sin)]
    out = np.full((heads, dim), np.nan, np.float32)
    for first in range(kv):  # one head after the other, like threads
        loops.attended(q.numpy(), k.numpy(), v.numpy(), *angle, 0.3, *rooms, place, half, out, first, first + 1)
    assert near(out, expected.reshape(heads, dim), half)
    assert near(keys[0, :, place].float().numpy(), seen_keys[0, :, place], half)
    assert torch.equal(values[0, :, place], v.to(dtype))
    for room, before in zip((keys, values), stored, strict=True):  # nothing else is written
        room[:, :, place] = before[:, :, place]
        assert torch.equal(room, before)
