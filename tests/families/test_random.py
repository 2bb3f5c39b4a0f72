"""Every family on small random decoders: the walk is the model, scales fold, and checkpoints come back."""

import copy
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

import qtutor
from qtutor import families
from qtutor.calibration.walk import walk
from qtutor.families import FAMILIES, LLAMA, Pair
from qtutor.methods import awq
from tests.families import small
from tests.models import some_ids, tiny

LONGROPE = {
    **{"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.75},
    **{"short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5], "long_factor": [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]},
}
# Other features of the families' checkpoints: attention without groups, so that v and o are a pair, too; and biases.
VARIANTS = {
    **{family: (family, {}) for family in small.FAMILIES},
    "phi3, no groups": ("phi3", {"num_key_value_heads": 4}),
    "phi3, long texts": ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 16}),
    "olmo2, no groups": ("olmo2", {"num_key_value_heads": 4, "attention_bias": True}),
    "gemma2, no groups": ("gemma2", {"num_key_value_heads": 4, "attention_bias": True}),
    "granite, biases": ("granite", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
    "smollm3, biases": ("smollm3", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4}),
}


@pytest.fixture(params=VARIANTS)
def model(request):
    family, changes = VARIANTS[request.param]
    return small.random(family, **changes)


def test_the_walk_computes_what_the_model_computes(model):
    ids = some_ids(5)
    with torch.no_grad():
        expected = model(ids, output_hidden_states=True).hidden_states
    states = []
    for block in walk(model, ids, twin=True):
        assert torch.equal(block.states, block.twin.states)
        states.append(block.states.clone())
        for reading in block.readings():
            assert torch.isfinite(reading.moments().hessian).all()
    with torch.no_grad():
        states.append(model.model.norm(block.states))
    assert len(states) == len(expected)
    for ours, theirs in zip(states, expected):
        assert small.near(ours, theirs, 2e-5)


@pytest.mark.parametrize("family", small.FAMILIES)
def test_what_makes_a_family_different_shows(family):
    """The comparison above notices mistakes: if any number of the config is changed, the logits are different."""
    told = [key for key in small.FAMILIES[family] if not key.startswith(("num_hidden", "pad_", "tie_", "head_dim"))]
    told = [key for key in told if key not in ("use_sliding_window", "max_window_layers")]
    changed = {
        **{"sliding_window": 5, "query_pre_attn_scalar": 100, "attn_logit_softcapping": 1.0, "no_rope_layers": [1] * 3},
        **{"final_logit_softcapping": 2.0, "residual_multiplier": 1.0, "attention_multiplier": 1.0},
        **{"embedding_multiplier": 1.0, "logits_scaling": 1.0, "layer_types": [small.FULL] * 3},
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    }
    if family == "gemma3_text":
        changed["rope_parameters"] = small.FAMILIES[family]["rope_parameters"] | {
            small.SLIDING: {"rope_type": "default", "rope_theta": 100.0}
        }
    ids = some_ids()
    with torch.no_grad():
        expected = small.random(family)(ids).logits
        for key in told:
            other = small.random(family, **{key: changed[key]})(ids).logits
            assert not small.near(other, expected, 0.01), key


def test_each_block_is_called_as_the_model_calls_it():
    """Every second block of Gemma 2 sees only a window, so its mask differs. In Gemma 3, the angles differ, too."""
    masks = [block.arguments["attention_mask"] for block in walk(small.random("gemma2"), some_ids(5))]
    assert [mask is None or torch.equal(mask, masks[1]) for mask in masks] == [False, True, False]
    turns = [block.arguments["position_embeddings"][0] for block in walk(small.random("gemma3_text"), some_ids(5))]
    assert [torch.equal(turn, turns[0]) for turn in turns] == [True, True, False]


def test_outliers_and_folded_scales_leave_the_logits(model):
    family, expected = FAMILIES[model.config.model_type], model(some_ids()).logits
    assert small.near(qtutor.add_outliers(copy.deepcopy(model), share=0.3)(some_ids()).logits, expected, 1e-4)
    folded = copy.deepcopy(model)
    for block in folded.model.layers:
        pairs = list(family.pairs_of(block))
        grouped = model.config.num_key_value_heads < model.config.num_attention_heads
        assert len(pairs) == len(family.pairs) - grouped
        for pair in pairs:
            layers = [block.get_submodule(name) for name in pair.readers]
            scale = torch.rand(layers[0].in_features) + 0.5
            awq.fold(block.get_submodule(pair.source), layers, scale, norm_offset=family.norm_offset)
    assert small.near(folded(some_ids()).logits, expected, 1e-4)
    scaled = {name for pair in pairs for name in (pair.source, *pair.readers)}
    before, after = (one.model.layers[1].state_dict() for one in (model, folded))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.removesuffix(".weight") for name in changed if not name.endswith(".bias")} == scaled


@pytest.mark.parametrize("variant", ["llama", "granite, biases", "smollm3, biases"])
def test_the_stream_s_drift_is_made_up_for_by_what_is_really_added(variant):
    """Granite adds only a share of a half's output to the stream.

    At the least squares solution, the gradient of the error after this addition is nearly zero.
    """
    family, changes = VARIANTS[variant]
    model = small.random(family, **changes)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    blocks = walk(model, some_ids(16, 32), twin=True, token_weights=False)
    first = next(blocks)
    with torch.no_grad():
        first.module.mlp.down_proj.weight.mul_(0.5)
    block = next(blocks)
    by = getattr(block.module, "residual_multiplier", 1.0)
    assert (by == 1) == (family != "granite")
    for reading in block.readings():
        name = reading.names[0]
        if not name.endswith(("o_proj", "down_proj")):
            continue
        x, state = block.reach(name, slice(None)).double(), block.states.double()
        moments, weight = reading.moments(), reading.layers[0].weight.double()
        fit = moments.target @ torch.linalg.inv(moments.hessian)
        bias = 0.0 if reading.layers[0].bias is None else reading.layers[0].bias.double()
        errors = [block.twin.states.double() - (state + by * (x @ tried.T + bias)) for tried in (weight, fit)]
        slopes = [(error.flatten(0, 1).T @ x.flatten(0, 1)).norm() for error in errors]
        assert slopes[1] < 1e-3 * slopes[0]


def test_an_embedding_in_codes_is_scaled_as_the_float_one_is(tmp_path, model):
    """Gemma multiplies its embeddings by the square root of the width; at 8 bits, a missing factor would show."""
    quantized, ids = copy.deepcopy(model), some_ids()
    recipe = qtutor.Recipe("rtn", 8, 32, embeddings=True, lm_head=True)
    qtutor.quantize(quantized, recipe, progress=False)
    with torch.inference_mode():
        assert small.near(quantized.model.embed_tokens(ids), model.model.embed_tokens(ids), 0.01)
        qtutor.export(quantized, tmp_path / "out")
        again = qtutor.load_quantized(tmp_path / "out", device="cpu")
        assert torch.equal(again(ids).logits, quantized(ids).logits)


def test_an_embedding_in_codes_rounds_its_scale_as_the_float_one_does():
    model = small.random("gemma2", hidden_size=96).bfloat16()  # 16 bits cannot hold the square root of 96
    table, ids = model.model.embed_tokens, some_ids()
    qtutor.quantize(model, qtutor.Recipe("rtn", 8, 32, embeddings=True), progress=False)
    rows = model.model.embed_tokens.quantized().dequantize().to(torch.bfloat16)
    table.weight.data = rows
    assert torch.equal(model.model.embed_tokens(ids), table(ids))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_float_checkpoint_is_read_as_transformers_reads_it(tmp_path, model, dtype):
    model.to(dtype).save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    small.put_tokenizer(tmp_path)
    ours = qtutor.load(tmp_path, device="cpu")[0]
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert ours.dtype == dtype and ours.config.to_dict() == theirs.config.to_dict()
    with torch.inference_mode():
        assert torch.equal(ours(some_ids()).logits, theirs(some_ids()).logits)


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "phi3", "olmo2", "granite", "smollm3"])
def test_block_by_block_into_a_folder_the_bytes_are_the_same(tmp_path, family):
    source = small.random(family).bfloat16()
    source.save_pretrained(tmp_path / "source")
    small.put_tokenizer(tmp_path / "source")
    recipe, ids = qtutor.Recipe("gptq", 4, 32, embeddings=True), some_ids(8, 32)
    model, tokenizer = qtutor.load(tmp_path / "source", device="cpu")
    qtutor.quantize(model, recipe, ids, progress=False)
    qtutor.export(model, tmp_path / "whole", tokenizer=tokenizer)
    qtutor.quantize_to(tmp_path / "source", tmp_path / "out", recipe, ids, device="cpu", progress=False, tell=[].append)
    name = "model.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    again = qtutor.load_quantized(tmp_path / "out", device="cpu")
    assert torch.equal(again(some_ids()).logits, model(some_ids()).logits)


def test_what_a_family_says():
    q, k, v, o = (f"self_attn.{name}_proj" for name in "qkvo")
    gate, up, down = (f"mlp.{name}_proj" for name in ("gate", "up", "down"))
    assert LLAMA.shared == ((q, k, v), (o,), (gate, up), (down,))
    grouped = tiny().model.layers[0]
    assert [pair.readers for pair in LLAMA.pairs_of(grouped)] == [(q, k, v), (gate, up), (down,)]
    equal = replace(LLAMA, pairs=LLAMA.pairs[1:2])
    assert not list(equal.pairs_of(grouped))
    assert families.PHI3.pairs[1] == Pair("self_attn.qkv_proj", (o,), o, parts=3)
    assert list(families.linear_layers(tiny()))[:2] == [f"model.layers.0.{name}" for name in (q, k)]
    assert len(families.linear_layers(tiny())) == 14
