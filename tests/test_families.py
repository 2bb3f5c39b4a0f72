"""A family is one instance: Gemma 2, Phi-3 and OLMo 2 are described here, and methods that read inputs work on them."""

import copy
from dataclasses import replace

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

import qtutor
from qtutor import families
from qtutor.calibration.walk import walk
from qtutor.families import LLAMA, Family, Half, Pair
from qtutor.methods import scaling
from tests.models import VOCABULARY, some_ids, tiny

Q, K, V, O = (f"self_attn.{name}_proj" for name in "qkvo")  # noqa: E741
GATE, UP, DOWN = (f"mlp.{name}_proj" for name in ("gate", "up", "down"))

# Norms multiply by 1 + weight, and there is one behind attention and one behind the MLP.
GEMMA2 = Family(
    "gemma2",
    (
        Half("self_attn", "input_layernorm", (Q, K, V), O, "post_attention_layernorm"),
        Half("mlp", "pre_feedforward_layernorm", (GATE, UP), DOWN, "post_feedforward_layernorm"),
    ),
    (
        Pair("input_layernorm", (Q, K, V), "self_attn"),
        Pair("pre_feedforward_layernorm", (GATE, UP), "mlp"),
        Pair(UP, (DOWN,), DOWN),
    ),
    norm_offset=1.0,
)
# One matrix for q, k and v, one for gate and up.
PHI3 = Family(
    "phi3",
    (
        Half("self_attn", "input_layernorm", ("self_attn.qkv_proj",), O),
        Half("mlp", "post_attention_layernorm", ("mlp.gate_up_proj",), DOWN),
    ),
    (
        Pair("input_layernorm", ("self_attn.qkv_proj",), "self_attn"),
        Pair("post_attention_layernorm", ("mlp.gate_up_proj",), "mlp"),
        Pair("mlp.gate_up_proj", (DOWN,), DOWN),
    ),
)
# No norm before the readers, one behind each half.
OLMO2 = Family(
    "olmo2",
    (
        Half("self_attn", None, (Q, K, V), O, "post_attention_layernorm"),
        Half("mlp", None, (GATE, UP), DOWN, "post_feedforward_layernorm"),
    ),
    (Pair(UP, (DOWN,), DOWN),),
)
OTHERS = {
    "gemma2": (GEMMA2, Gemma2Config, Gemma2ForCausalLM, {"head_dim": 16}),
    "phi3": (PHI3, Phi3Config, Phi3ForCausalLM, {"pad_token_id": 0}),
    "olmo2": (OLMO2, Olmo2Config, Olmo2ForCausalLM, {}),
}


@pytest.fixture(params=OTHERS)
def other(request, monkeypatch):
    """A small decoder of a family that the package does not know, described to it."""
    family, config, model, extra = OTHERS[request.param]
    monkeypatch.setitem(families.FAMILIES, family.model_type, family)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    made = config(vocab_size=VOCABULARY, num_key_value_heads=2, max_position_embeddings=64, **sizes, **extra)
    decoder = model(made).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return decoder


def test_the_walk_computes_what_the_model_computes(other):
    ids = some_ids(5)
    with torch.no_grad():
        expected = other(ids, output_hidden_states=True).hidden_states
    states = []
    for block in walk(other, ids):
        states.append(block.states.clone())
        for reading in block.readings():
            assert torch.isfinite(reading.moments().hessian).all()
    for ours, theirs in zip(states, expected):
        assert torch.allclose(ours, theirs, atol=1e-4 * theirs.abs().max())


def test_each_block_is_called_as_the_model_calls_it(monkeypatch):
    """Every other block of Gemma 2 sees a window only: its mask is another."""
    monkeypatch.setitem(families.FAMILIES, "gemma2", GEMMA2)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = Gemma2Config(vocab_size=VOCABULARY, num_key_value_heads=2, head_dim=16, sliding_window=3, **sizes)
    torch.manual_seed(0)
    model, ids = Gemma2ForCausalLM(config).eval(), some_ids(5)
    with torch.no_grad():
        expected = model(ids, output_hidden_states=True).hidden_states
    masks = []
    for states, block in zip(expected, walk(model, ids, twin=True)):
        assert torch.allclose(block.states, states, atol=1e-4 * states.abs().max())
        assert torch.allclose(block.twin.states, states, atol=1e-4 * states.abs().max())
        masks.append(block.arguments["attention_mask"])
    assert [mask is None or torch.equal(mask, masks[1]) for mask in masks] == [False, True, False]


def test_outliers_and_folded_scales_leave_the_logits(other):
    expected = other(some_ids()).logits
    harder = qtutor.add_outliers(copy.deepcopy(other), share=0.3)
    assert torch.allclose(harder(some_ids()).logits, expected, atol=1e-4)
    before = copy.deepcopy(harder.state_dict())
    folded = scaling.fold_model(harder, some_ids(16, 32), qtutor.IntGrid(3), 32)
    assert any(not torch.equal(value, before[name]) for name, value in folded.state_dict().items())
    assert torch.allclose(folded(some_ids()).logits, expected, atol=1e-4)


@pytest.mark.parametrize("method", ["gptq", "awq", "awq+gptq"])
def test_methods_lower_the_error_of_logits_against_rounding_to_nearest(other, method):
    model, errors = qtutor.add_outliers(other), {}
    for tried in ("rtn", method):
        candidate = copy.deepcopy(model)
        report = qtutor.quantize(candidate, qtutor.Recipe(tried, 3, 32), some_ids(16, 32), progress=False)
        assert len(report.rows) == 2 * sum(map(len, families.family_of(model).shared))
        with torch.inference_mode():
            ids = some_ids(8, 32, seed=9)
            errors[tried] = (candidate(ids).logits - model(ids).logits).square().sum().item()
    assert errors[method] < 0.9 * errors["rtn"]


def test_what_a_family_says():
    assert LLAMA.shared == ((Q, K, V), (O,), (GATE, UP), (DOWN,))
    grouped = tiny().model.layers[0]
    assert [pair.readers for pair in LLAMA.pairs_of(grouped)] == [(Q, K, V), (GATE, UP), (DOWN,)]
    equal = replace(LLAMA, pairs=LLAMA.pairs[1:2])
    assert not list(equal.pairs_of(grouped))
    assert list(families.linear_layers(tiny()))[:2] == [f"model.layers.0.{name}" for name in (Q, K)]
    assert len(families.linear_layers(tiny())) == 14


def test_a_family_that_is_not_known_is_refused_by_name():
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=32))
    with pytest.raises(qtutor.QtutorError, match=r"family 'gpt2' is not known here.*llama, mistral, qwen2, qwen3"):
        qtutor.quantize(model, qtutor.Recipe(), progress=False)
    with pytest.raises(qtutor.QtutorError, match="family 'Linear' is not known"):
        families.decoder_blocks(torch.nn.Linear(2, 2))
