"""Decoders of every family as files: run by llama.cpp, read back without qtutor's keys, and refused."""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import gelu

import qtutor
from qtutor.errors import QtutorError
from qtutor.families import FAMILIES
from qtutor.gguf import read
from qtutor.gguf.architecture import OF_FAMILY
from qtutor.gguf.hyperparameters_back import config_values
from qtutor.gguf.mixes import tensor_types
from tests.families import small
from tests.gguf import llama_cpp
from tests.gguf.test_hyperparameters_back import without_our_keys
from tests.gguf.test_in_llama_cpp import assert_likeliest

IN_LLAMA_CPP = pytest.mark.skipif(
    llama_cpp.library() is None, reason="llama.cpp itself comes with xllamacpp, which is not installed here"
)
# llama.cpp has no windows in these, so they are switched off. The windows of 96 below are longer than the texts.
WITHOUT = {"use_sliding_window": False, "sliding_window": None}
# What llama.cpp computes, regardless of the file: which blocks have windows or positions, how queries are scaled.
AS_BUILT_IN = {
    **{"llama": {}, "mistral": {"sliding_window": 96}, "qwen2": WITHOUT, "qwen3": {}, "olmo2": {}, "granite": {}},
    "gemma2": {"query_pre_attn_scalar": 32},
    "gemma3_text": {"query_pre_attn_scalar": 32, "layer_types": None, "num_hidden_layers": 6},
    "phi3": {"sliding_window": 96},
    "smollm3": WITHOUT | {"no_rope_layers": None, "layer_types": None, "num_hidden_layers": 4},
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
    "long_factor": [2.0, 3.0, 4.0, 5.0, 6.0, 7.0],
}
VARIANTS = {
    **{family: (family, {}) for family in AS_BUILT_IN},
    "phi3, no groups": ("phi3", {"num_key_value_heads": 4, "tie_word_embeddings": False}),
    "phi3, long texts": ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 256,
                                  "max_position_embeddings": 1024, "sliding_window": None}),
    "olmo2, yarn": ("olmo2", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
                                                  "original_max_position_embeddings": 64}}),
    "granite, biases": ("granite", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
    "granite, wide heads": ("granite", {"head_dim": 32}),
    "smollm3, wide heads": ("smollm3", {"head_dim": 32, "tie_word_embeddings": False}),
    "gemma2, linear rope": ("gemma2", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "gemma3, a soft cap": ("gemma3_text", {"final_logit_softcapping": 6.0}),
}  # fmt: skip
PROMPTS = ("def mean(values):\n", "class Stack:\n    def __init__", ">>> 37 + 48\n", "import os\nimport sys\n\n")


@pytest.fixture(scope="module")
def tokenizer():
    return qtutor.load_decoder()[1]


def fitting(family: str, **changes) -> dict:
    return AS_BUILT_IN[family] | changes


def as_file(model, folder, tokenizer, type="F32"):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "sliding_window = 96")
        warnings.filterwarnings("ignore", "rope_parameters: llama.cpp chooses")
        return qtutor.export(model, folder / "model.gguf", format="gguf", type=type, tokenizer=tokenizer)


@torch.inference_mode()
def logits(model, ids: list[int]) -> np.ndarray:
    return model(torch.tensor([ids])).logits[0].float().numpy()


class TableOfGELU(nn.Module):
    """GELU as ggml computes it on a CPU: from a table with float16 inputs and outputs, except far from zero."""

    def forward(self, x):
        found = gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x >= 10, x, torch.where(x <= -10, 0.0, found))


def as_ggml(model):
    """The model, with ggml's GELU if it is a Gemma."""
    if "gemma" in model.config.model_type:
        model = copy.deepcopy(model)
        for block in model.model.layers:
            block.mlp.act_fn = TableOfGELU()
    return model


def test_all_families_have_an_architecture():
    assert OF_FAMILY.keys() == FAMILIES.keys() == AS_BUILT_IN.keys()


@IN_LLAMA_CPP
@pytest.mark.parametrize("family", AS_BUILT_IN)
def test_trained_ones_in_llama_cpp(tmp_path, tokenizer, family):
    """Logits agree to 1e-4 of the largest, and within this error every chosen token is the likeliest one."""
    model = small.trained(family, steps=90, rate=5e-3, **fitting(family))
    with llama_cpp.Model(as_file(model, tmp_path, tokenizer)) as engine:
        assert engine.warnings == "" or family in ("phi3", "mistral")  # these warn that the window is left out
        for ids in small.unseen()[:4].tolist():
            engine.forget()
            found, expected = engine.logits(ids), logits(as_ggml(model), ids)
            assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
            # The same without ggml's table, whose numbers have 11 bits:
            exact = logits(model, ids)
            assert np.abs(found - exact).max() < 2e-3 * np.abs(exact).max()
        for prompt in PROMPTS:
            ids = tokenizer(prompt).input_ids
            assert engine.tokenize(prompt) == ids
            chosen = engine.greedy(ids, 16)
            assert_likeliest(chosen, logits(as_ggml(model), ids + chosen)[len(ids) - 1 : -1])


@IN_LLAMA_CPP
@pytest.mark.parametrize("label", [name for name in VARIANTS if name not in AS_BUILT_IN])
def test_variants_in_llama_cpp(tmp_path, tokenizer, label):
    """Attention in random models weighs all positions alike, which hides mistakes. A few training steps change this."""
    family, changes = VARIANTS[label]
    model = small.trained(family, steps=30, rate=5e-3, **fitting(family, **changes))
    ids = small.unseen()[0].tolist()
    with llama_cpp.Model(as_file(model, tmp_path, tokenizer), context=256) as engine:
        found, expected = engine.logits(ids), logits(as_ggml(model), ids)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@IN_LLAMA_CPP
def test_positions_of_short_texts_and_of_long_ones(tmp_path, tokenizer):
    """llama.cpp chooses factors by the context that it was started with, transformers by the length of the text."""
    changes = {"original_max_position_embeddings": 256, "max_position_embeddings": 1024, "sliding_window": None}
    model = small.random("phi3", rope_parameters=LONGROPE, **changes)
    with pytest.warns(UserWarning, match=r"chooses .* by its context.* start it with a context of 256 tokens"):
        path = qtutor.export(model, tmp_path, format="gguf", type="F32", tokenizer=tokenizer)
    ids = small.unseen().flatten()[:320].tolist()
    differences = {}
    for context, length in ((256, 64), (512, 64), (512, 320)):
        with llama_cpp.Model(path, context) as engine:
            found, expected = engine.logits(ids[:length]), logits(model, ids[:length])
            differences[context, length] = np.abs(found - expected).max() / np.abs(expected).max()
    assert differences[256, 64] < 1e-4 and differences[512, 320] < 1e-4 and differences[512, 64] > 0.01, differences


@IN_LLAMA_CPP
@pytest.mark.parametrize("family", AS_BUILT_IN)
@pytest.mark.parametrize("mix", ["Q4_K_M", "Q2_K", "Q8_0"])
def test_mixes_load_and_talk(tmp_path, tokenizer, family, mix):
    model = small.random(family, **fitting(family))
    path = as_file(model, tmp_path, tokenizer, mix)
    ids = small.unseen()[0].tolist()
    with llama_cpp.Model(path) as engine:
        found = engine.logits(ids)
    back = qtutor.load_quantized(path, device="cpu")
    expected = logits(back, ids)
    assert np.isfinite(found).all() and np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.9


@IN_LLAMA_CPP
def test_a_model_that_is_called_phi_3_and_has_other_tokens(tmp_path, tokenizer):
    """In files with that name, llama.cpp looks for <s> and other tokens. Without them, it would not load the file."""
    for name in ("Phi-3-mini of ours", "phi3", "my-PHI3.5"):
        model = small.random("llama")
        model.config.name_or_path = name
        path = as_file(model, tmp_path, tokenizer)
        written = read(path).metadata["general.name"].lower()
        assert written.replace("phi ", "phi") == name.lower().replace("phi-", "phi")
        with llama_cpp.Model(path) as engine:
            assert engine.vocabulary == 1024


@pytest.mark.parametrize("label", VARIANTS)
def test_what_is_told_comes_back(tmp_path, tokenizer, label):
    """From llama.cpp's keys alone, as in files of other tools."""
    family, changes = VARIANTS[label]
    model = small.random(family, **fitting(family, **changes))
    path = as_file(model, tmp_path, tokenizer)
    ours, ids = qtutor.load(path, device="cpu")[0], small.unseen()[:2]
    found, _ = qtutor.load(without_our_keys(path), device="cpu")
    assert found.config.model_type == {"mistral": "llama"}.get(family, family)  # within the window they are the same
    for name, value in model.state_dict().items():
        # Gemma's norms are stored with 1 added, which rounds them.
        assert torch.allclose(found.state_dict()[name], value, rtol=0, atol=1e-7), name
    with torch.inference_mode():
        assert small.near(ours(ids).logits, model(ids).logits, 1e-3)
        assert small.near(found(ids).logits, model(ids).logits, 1e-3)


REFUSED = {
    "gemma2, other blocks": ("gemma2", {"layer_types": [small.FULL] * 3}, "layer_types = .* llama.cpp computes"),
    "gemma2, other queries": ("gemma2", {"query_pre_attn_scalar": 16}, "query_pre_attn_scalar = 16: .* computes 32"),
    "gemma2, no cap": ("gemma2", {"final_logit_softcapping": None}, "final_logit_softcapping = None: .* of its own"),
    "gemma2, an activation": ("gemma2", {"hidden_activation": "silu"}, "hidden_activation = 'silu'"),
    "gemma2, not tied": ("gemma2", {"tie_word_embeddings": False}, "tie_word_embeddings = False"),
    "gemma3, other blocks": ("gemma3_text", {"layer_types": [small.FULL] * 6}, "layer_types = "),
    "gemma3, biases": ("gemma3_text", {"attention_bias": True}, "no such tensor in this architecture"),
    "gemma3, a rope": (
        "gemma3_text",
        {"rope_parameters": {small.FULL: {"rope_type": "default", "rope_theta": 1e5},
                             small.SLIDING: {"rope_type": "linear", "rope_theta": 1e3, "factor": 2.0}}},
        "rope_parameters of sliding_attention",
    ),
    "olmo2, tied": ("olmo2", {"tie_word_embeddings": True}, "tie_word_embeddings = True"),
    "olmo2, biases": ("olmo2", {"attention_bias": True}, "no such tensor in this architecture"),
    "phi3, wide heads": ("phi3", {"head_dim": 32}, "head_dim = 32"),
    "granite, an activation": ("granite", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    "smollm3, other blocks": ("smollm3", {"no_rope_layers": [1, 0, 1, 0]}, "no_rope_layers = "),
    "smollm3, windows": (
        "smollm3",
        {"use_sliding_window": True, "sliding_window": 8, "layer_types": [small.SLIDING] * 4},
        "layer_types = ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("label", REFUSED)
def test_what_llama_cpp_computes_otherwise_is_refused_with_the_reason(tmp_path, tokenizer, label):
    family, changes, words = REFUSED[label]
    model = small.random(family, **fitting(family, **changes))
    with pytest.raises(QtutorError, match=words):
        as_file(model, tmp_path, tokenizer)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family, key, value, words", [
    ("gemma2", "attention__sliding_window", np.uint32(0), "sliding_window is 0, expected a whole number from 1"),
    ("gemma2", "attention__sliding_window_pattern", np.uint32(3), "sliding_window_pattern is 3, expected 2"),
    ("gemma3_text", "attention__sliding_window", None, "sliding_window is not there, expected a whole number"),
    ("gemma3_text", "attention__sliding_window_pattern", np.uint32(2), "sliding_window_pattern is 2, expected 6"),
    ("gemma3_text", "rope__freq_base_swa", "1e4", "freq_base_swa is '1e4', expected a number"),
    ("granite", "logit_scale", "8", "logit_scale is '8', expected a number"),
])  # fmt: skip
def test_keys_of_others_that_cannot_be(tmp_path, tokenizer, family, key, value, words):
    path = as_file(small.random(family, **fitting(family)), tmp_path, tokenizer)
    with pytest.raises(QtutorError, match=words):
        qtutor.load(without_our_keys(path, **{key: value}), device="cpu")


def test_what_older_files_do_not_say_is_as_in_llama_cpp(tmp_path, tokenizer):
    left_out = {"attention__sliding_window": None, "attn_logit_softcapping": None, "final_logit_softcapping": None}
    path = as_file(small.random("gemma2", **fitting("gemma2")), tmp_path / "2", tokenizer)
    config = qtutor.load(without_our_keys(path, **left_out), device="cpu")[0].config
    assert (config.sliding_window, config.attn_logit_softcapping, config.final_logit_softcapping) == (4096, 50.0, 30.0)
    path = as_file(small.random("gemma3_text", **fitting("gemma3_text")), tmp_path / "3", tokenizer)
    values = config_values(read(without_our_keys(path, rope__freq_base_swa=None)))
    assert values["rope_parameters"]["sliding_attention"]["rope_theta"] == 10000.0


def test_q_k_and_v_in_one_matrix_have_the_type_of_values():
    kinds = ("attn_qkv", "attn_v", "ffn_up")
    shapes = {f"blk.{layer}.{kind}.weight": (256, 256) for layer in range(8) for kind in kinds}
    for mix in ("Q4_K_M", "Q3_K_M", "Q2_K", "Q4_K_S", "Q5_K_M", "IQ4_XS"):
        types = tensor_types(mix, shapes, heads=4, kv_heads=4, architecture="phi3")
        assert all(types[name] == types[name.replace("qkv", "v")] for name in shapes if "qkv" in name)
        assert mix == "IQ4_XS" or types["blk.0.attn_qkv.weight"] != types["blk.0.ffn_up.weight"]
