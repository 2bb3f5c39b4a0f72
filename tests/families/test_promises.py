"""The values that a family's modules take from the config, and the values that its config.json may have."""

import copy
import json
import math

import pytest
import torch
from transformers import AutoConfig

import qtutor
from qtutor.errors import QtutorError
from qtutor.formats.transformers_files import config_of
from tests.families import small
from tests.families.test_random import LONGROPE
from tests.models import some_ids

# Attributes of modules that do not show in the shape of any tensor. If the config is changed later, they stay the same.
CHANGED = {
    "model.layers.0.residual_multiplier": ("granite", {"residual_multiplier": 0.5}),
    "model.layers.0.self_attn.scaling": ("gemma2", {"query_pre_attn_scalar": 100}),
    "model.embedding_multiplier": ("granite", {"embedding_multiplier": 2.0}),
    "model.layers.0.self_attn.layer_type": ("gemma3_text", {"layer_types": [small.FULL] * 3}),
    "model.layers.0.self_attn.attn_logit_softcapping": ("gemma2", {"attn_logit_softcapping": None}),
    "model.layers.1.self_attn.use_rope": ("smollm3", {"no_rope_layers": [1, 1, 1]}),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_config_that_was_changed_afterwards_is_noticed(name):
    family, values = CHANGED[name]
    model = small.random(family)
    model.config = copy.deepcopy(model.config)  # the modules keep the config that they were made with
    for key, value in values.items():
        setattr(model.config, key, value)
    with pytest.raises(QtutorError, match=name.replace(".", r"\.") + " is .*, but the model's config"):
        qtutor.quantize(model, qtutor.Recipe(group_size=32), progress=False)


def test_the_scale_of_an_embedding_is_part_of_it():
    model = small.random("gemma2")
    model.model.embed_tokens.scalar_embed_scale = 2.0
    with pytest.raises(QtutorError, match=r"embed_tokens\.scalar_embed_scale is 2\.0, but .* says 8\.0"):
        qtutor.quantize(model, qtutor.Recipe(group_size=32), progress=False)


@pytest.mark.parametrize("kind", [small.SLIDING, small.FULL])
def test_each_of_two_ropes_is_compared(kind):
    model = small.random("gemma3_text")
    model.config = copy.deepcopy(model.config)
    model.config.rope_parameters[kind]["rope_theta"] = 123.0
    with pytest.raises(QtutorError, match=rf"rotary_emb\.{kind}_inv_freq is [0-9., ]+ \.\.\., but the model's config"):
        qtutor.quantize(model, qtutor.Recipe(group_size=32), progress=False)


def test_angles_are_still_the_config_s_after_a_long_text():
    """With longrope, the angles change while a long text is read, and a short text changes them back."""
    changes = {"rope_parameters": LONGROPE, "original_max_position_embeddings": 16}
    model = small.random("phi3", **changes)
    model(some_ids(1, 24))
    before = model(some_ids(1, 12)).logits
    model(some_ids(1, 24))
    qtutor.quantize(model, qtutor.Recipe("rtn", 8, 32), progress=False)
    assert (model(some_ids(1, 12)).logits - before).norm() < 0.05 * before.norm()


SIZES = {
    **{"vocab_size": 1024, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-6},
    **{"bos_token_id": 2, "eos_token_id": 1, "torch_dtype": "bfloat16", "use_cache": True, "attention_bias": False},
    **{"attention_dropout": 0.0, "initializer_range": 0.02, "transformers_version": "4.50.0.dev0"},
}
FACTORS6 = {"short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5], "long_factor": [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]}
# The keys of real checkpoints of these families, with their names at that time; the sizes are small.
AS_SHIPPED = {
    "gemma2": {
        **{"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "cache_implementation": "hybrid"},
        **{"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "head_dim": 32, "pad_token_id": 0},
        **{"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "rope_theta": 10000.0},
        **{"query_pre_attn_scalar": 256, "sliding_window": 16, "sliding_window_size": 16},
    },
    "gemma3_text": {
        **{"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "cache_implementation": "hybrid"},
        **{"attn_logit_softcapping": None, "final_logit_softcapping": None, "head_dim": 32, "pad_token_id": 0},
        **{"hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256, "sliding_window": 16},
        **{"rope_local_base_freq": 5000.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        **{"rope_theta": 500000, "sliding_window_pattern": 2, "eos_token_id": [1, 106]},
    },
    "phi3": {
        **{"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_act": "silu", "pad_token_id": 0},
        **{"embd_pdrop": 0.0, "resid_pdrop": 0.0, "rope_theta": 10000.0, "original_max_position_embeddings": 64},
        **{"rope_scaling": {"type": "longrope", **FACTORS6}, "partial_rotary_factor": 0.75, "sliding_window": 99},
        **{"tie_word_embeddings": True, "interpolate_factor": 1, "full_attn_mod": 1, "lm_head_bias": False},
    },
    "olmo2": {
        **{"architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", "hidden_act": "silu", "pad_token_id": 1},
        **{"rope_scaling": None, "rope_theta": 500000, "tie_word_embeddings": False},
    },
    "granite": {
        **{"architectures": ["GraniteForCausalLM"], "model_type": "granite", "hidden_act": "silu", "pad_token_id": 0},
        **{"attention_multiplier": 0.015625, "embedding_multiplier": 12.0, "logits_scaling": 8.0, "mlp_bias": False},
        **{"residual_multiplier": 0.22, "rope_scaling": None, "rope_theta": 5000000.0, "tie_word_embeddings": True},
    },
    "smollm3": {
        **{"architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3", "hidden_act": "silu", "pad_token_id": 4},
        **{"no_rope_layer_interval": 2, "no_rope_layers": [1, 0, 1], "max_window_layers": 28, "mlp_bias": False},
        **{"layer_types": [small.FULL] * 3, "rope_scaling": None, "rope_theta": 5000000.0, "sliding_window": None},
        **{"use_sliding_window": False, "pretraining_tp": 2, "tie_word_embeddings": True},
    },
}


@pytest.mark.parametrize("family", AS_SHIPPED)
def test_no_key_that_computes_is_lost(tmp_path, family):
    """The config from the keys that we accept equals the config that transformers makes from all keys."""
    values = SIZES | AS_SHIPPED[family]
    (tmp_path / "config.json").write_text(json.dumps(values))
    ours, theirs = config_of(values, "config.json", 3), AutoConfig.from_pretrained(tmp_path)
    found, expected = ours.to_dict(), theirs.to_dict()
    ignored = {"architectures", "transformers_version", "_name_or_path", "dtype"} | (expected.keys() - found.keys())
    assert {key: found[key] for key in found.keys() - ignored} == {key: expected[key] for key in found.keys() - ignored}
    unused = {"cache_implementation", "hidden_act", "sliding_window_size", "interpolate_factor", "full_attn_mod"}
    unused |= {"lm_head_bias", "attention_bias", "max_window_layers", "pretraining_tp", "architectures"}
    assert expected.keys() - found.keys() <= unused


@pytest.mark.parametrize(
    "family, values, words",
    [
        ("granite", {"residual_multiplier": math.nan}, "residual_multiplier is nan, expected a number above 0"),
        ("granite", {"logits_scaling": 0}, "logits_scaling is 0, expected a number above 0"),
        ("gemma2", {"query_pre_attn_scalar": -1}, "query_pre_attn_scalar is -1, expected"),
        ("gemma2", {"final_logit_softcapping": "30"}, "final_logit_softcapping is '30', expected"),
        ("gemma2", {"use_bidirectional_attention": True}, "it sees the whole text at once"),
        ("gemma3_text", {"layer_types": [small.FULL] * 2}, "no config that transformers understands"),
        ("gemma3_text", {"layer_types": ["chunky"] * 3}, "no config that transformers understands"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers is [1, 0], expected 0 or 1 for each of the 3 blocks"),
        ("smollm3", {"no_rope_layers": [1, 0, 7]}, "no_rope_layers is [1, 0, 7], expected"),
        ("phi3", {"partial_rotary_factor": 0.0}, "partial_rotary_factor is 0.0, expected"),
        ("phi3", {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}, "short_factor"),
        ("phi3", {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}, "no code from a checkpoint is ever run"),
        ("phi3", {"auto_map": {"AutoTokenizer": "Phi3Config"}}, "no code from a checkpoint is ever run"),
        ("phi3", {"auto_map": "modeling_phi3.Phi3ForCausalLM"}, "no code from a checkpoint is ever run"),
        ("granite", {"auto_map": {"AutoConfig": "x.Phi3Config"}}, "no code from a checkpoint is ever run"),
    ],
)
def test_numbers_with_which_nothing_can_be_computed(family, values, words):
    with pytest.raises(QtutorError) as caught:
        config_of(SIZES | AS_SHIPPED[family] | values, "config.json", 3)
    assert words in str(caught.value) and "config.json" in str(caught.value)


def test_code_that_is_a_copy_of_transformers_is_not_run_but_said():
    """Phi-3 and Phi-4 come with their own modeling_phi3.py; by now, transformers has this code itself."""
    auto_map = {"AutoConfig": "configuration_phi3.Phi3Config", "AutoTokenizer": "somebody/else"}
    auto_map["AutoModelForCausalLM"] = "somebody/else--modeling_phi3.Phi3ForCausalLM"
    with pytest.warns(UserWarning, match=r"config\.json has auto_map.*'configuration_phi3\.Phi3Config'.* is not run"):
        config = config_of(SIZES | AS_SHIPPED["phi3"] | {"auto_map": auto_map}, "config.json", 3)
    assert not hasattr(config, "auto_map")


def test_two_ropes_out_of_old_keys():
    config = config_of(SIZES | AS_SHIPPED["gemma3_text"], "config.json", 3)
    assert config.layer_types == [small.SLIDING, small.FULL, small.SLIDING]
    assert config.rope_parameters[small.SLIDING]["rope_theta"] == 5000.0
    assert config.rope_parameters[small.FULL] == {"rope_type": "linear", "factor": 8.0, "rope_theta": 500000}


def test_angles_of_either_rope_have_to_be_of_use():
    values = SIZES | AS_SHIPPED["gemma3_text"] | {"rope_scaling": {"rope_type": "linear", "factor": math.inf}}
    from qtutor.formats.transformers_files import empty_model, filled

    config = config_of(values, "config.json", 3)
    tensors = {name: torch.zeros(tensor.shape) for name, tensor in empty_model(config, "here").state_dict().items()}
    with pytest.raises(QtutorError, match=r"config\.json: rope_parameters = .* give"):
        filled(empty_model(config, "here"), tensors, "config.json", "cpu")
