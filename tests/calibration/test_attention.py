"""Attention in spans gives the same results as transformers' attention, wherever it replaces it."""

import copy

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from qtutor.calibration import attention, walk
from tests.families import small
from tests.models import some_ids, tiny


class Module:
    is_causal = True

    def __init__(self, groups: int):
        self.num_key_value_groups = groups


def given(length: int, heads: int, kv_heads: int, dtype=torch.float32, batch: int = 2):
    generator = torch.Generator().manual_seed(length)
    return [torch.randn(batch, n, length, 16, generator=generator).to(dtype) for n in (heads, kv_heads, kv_heads)]


@pytest.mark.parametrize("length", [1, 63, 64, 65, 128, 200])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_spans_are_what_the_whole_is(length, heads, kv_heads, dtype, near):
    tensors, module = given(length, heads, kv_heads, dtype), Module(heads // kv_heads)
    for scaling in (None, 0.4):
        found, no_weights = attention.causal_attention(module, *tensors, None, scaling=scaling)
        expected, _ = sdpa_attention_forward(module, *tensors, None, scaling=scaling)
        assert found.shape == (2, length, heads, 16) and found.dtype == dtype and no_weights is None
        assert torch.allclose(found.float(), expected.float(), atol=near)


def test_no_token_sees_what_comes_later():
    query, key, value = given(150, 4, 2)
    before, _ = attention.causal_attention(Module(2), query, key, value, None)
    key[:, :, 100:], value[:, :, 100:] = 7.0, -7.0
    after, _ = attention.causal_attention(Module(2), query, key, value, None)
    assert torch.equal(before[:, :100], after[:, :100])
    assert (before[:, 100:] != after[:, 100:]).any(dim=(0, 2, 3)).all()


def test_what_is_not_plainly_causal_is_left_to_transformers():
    query, key, value = given(100, 4, 2)
    mask = torch.rand(1, 1, 100, 100, generator=torch.Generator().manual_seed(0)) < 0.5
    mask |= torch.eye(100, dtype=torch.bool)
    module = Module(2)
    for tensors, told in (
        ((query, key, value, mask), {}),
        ((query, key, value, None), {"is_causal": False}),
        ((query[:, :, -1:], key, value, None), {}),  # one token after a text that was read before
    ):
        found, _ = attention.causal_attention(module, *tensors, **told)
        expected, _ = sdpa_attention_forward(module, *tensors, **told)
        assert torch.equal(found, expected)
    causal, _ = attention.causal_attention(module, query, key, value, None)
    assert not torch.allclose(causal, attention.causal_attention(module, query, key, value, mask)[0], atol=0.1)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "gemma2", "olmo2", "granite"])
def test_blocks_of_wide_models_attend_in_spans_and_the_model_as_before(family, monkeypatch):
    monkeypatch.setattr(attention, "SPAN", 8)
    model, ids = small.random(family), some_ids(3, 30)
    plain = model.config._attn_implementation
    with torch.no_grad():
        expected = model(ids, output_hidden_states=True).hidden_states[:-1]
    for wide, name in ((None, plain), (1, attention.NAME if plain == "sdpa" else plain)):
        for block, states in zip(walk.walk(model, ids, wide=wide), expected, strict=True):
            assert block.module.self_attn.config._attn_implementation == name
            # Wide blocks compute in bfloat16, so the states that they pass on differ by this rounding.
            assert (block.states - states).norm() <= (1e-5 if wide is None else 0.03) * states.norm()
    assert model.config._attn_implementation == plain
    assert all(layer.self_attn.config._attn_implementation == plain for layer in model.model.layers)


def test_a_block_in_spans_computes_what_it_did_in_one(monkeypatch):
    monkeypatch.setattr(attention, "SPAN", 8)
    model, ids = tiny(), some_ids(3, 30)
    block = next(walk.walk(model, ids))
    before = block.run(slice(None))
    changed = copy.deepcopy(block.module.self_attn)
    config = changed.config
    attention.attend_in_spans(changed)
    assert config._attn_implementation == attention.PLAIN  # unchanged: other modules may share this config
    block.module.self_attn = changed
    assert changed.config._attn_implementation == attention.NAME
    assert torch.allclose(block.run(slice(None)), before, atol=1e-5)


def test_eager_attention_stays():
    module = tiny().model.layers[0].self_attn
    module.config = copy.copy(module.config)
    module.config._attn_implementation = "eager"
    attention.attend_in_spans(module)
    assert module.config._attn_implementation == "eager"
    attention.attend_in_spans(torch.nn.Linear(2, 2))  # a module without a config is left alone
