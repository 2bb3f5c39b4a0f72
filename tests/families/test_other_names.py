"""A decoder whose modules have names of their own: code that asks the family for names works, any other code fails."""

import sys
from dataclasses import replace
from functools import cache

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import qtutor
from qtutor.calibration.walk import walk
from qtutor.families import FAMILIES, LLAMA, Family, Half, Pair, linear_layers
from qtutor.families.names import ends_half, is_head, reads_with
from qtutor.formats import awq, bitsandbytes, checkpoint, gptq
from qtutor.formats.shards import WEIGHTS
from qtutor.formats.targets import layer_shapes, pick
from qtutor.recipe import METHODS
from qtutor.runtime.linear import QuantLinear
from tests.models import groups_of, some_ids, tiny

OURS = {
    **{"model": "trunk", "layers": "stack", "embed_tokens": "table", "norm": "final", "lm_head": "readout"},
    **{"self_attn": "look", "input_layernorm": "before_look", "post_attention_layernorm": "before_think"},
    **{"mlp": "think", "q_proj": "ask", "k_proj": "key", "v_proj": "value", "o_proj": "told"},
    **{"gate_proj": "open", "up_proj": "wide", "down_proj": "narrow"},
}


def renamed(name: str) -> str:
    """``model.layers.0.mlp.up_proj`` in our names."""
    return ".".join(OURS.get(part, part) for part in name.split("."))


def half(of: Half) -> Half:
    return Half(renamed(of.parent), renamed(of.norm), tuple(map(renamed, of.readers)), renamed(of.last))


def pair(of: Pair) -> Pair:
    return Pair(renamed(of.source), tuple(map(renamed, of.readers)), renamed(of.parent))


OTHER: Family = replace(
    LLAMA,
    model_type="other",
    halves=tuple(map(half, LLAMA.halves)),
    pairs=tuple(map(pair, LLAMA.pairs)),
    **{part: renamed(getattr(LLAMA, part)) for part in ("blocks", "embedding", "norm", "head")},
)


def under_old_names(self, name):
    """Modules by the old names, but only for transformers' own code, which computes with them."""
    asked_by = sys._getframe(1).f_globals["__name__"]
    return nn.Module.__getattr__(self, OURS.get(name, name) if asked_by.startswith("transformers.") else name)


@cache
def answering(kind: type) -> type:
    return type(kind.__name__, (kind,), {"__getattr__": under_old_names})


class OtherConfig(LlamaConfig):
    model_type = OTHER.model_type


class OtherForCausalLM(LlamaForCausalLM):
    """A Llama under our names."""

    config_class = OtherConfig
    __getattr__ = under_old_names

    def __init__(self, config):
        super().__init__(config)
        for module in list(self.modules()):
            module._modules = {OURS.get(name, name): part for name, part in module._modules.items()}
            if type(module).__module__.startswith("transformers."):
                module.__class__ = answering(type(module))


@pytest.fixture
def models(monkeypatch):
    """The same decoder twice, with Llama's names and with ours."""
    monkeypatch.setitem(FAMILIES, OTHER.model_type, OTHER)
    monkeypatch.setitem(CONFIG_MAPPING._extra_content, OTHER.model_type, OtherConfig)
    monkeypatch.setitem(AutoModelForCausalLM._model_mapping._extra_content, OtherConfig, OtherForCausalLM)
    plain = tiny(tied=False)
    other = OtherForCausalLM(OtherConfig(**plain.config.to_diff_dict() | {"model_type": OTHER.model_type})).eval()
    other.load_state_dict({renamed(name): tensor for name, tensor in plain.state_dict().items()})
    return plain, other


def test_the_names_are_others_and_the_numbers_are_not(models):
    plain, other = models
    assert list(linear_layers(other)) == [renamed(name) for name in linear_layers(plain)]
    assert not {part for name, _ in other.named_modules() for part in name.split(".")} & OURS.keys()
    assert not hasattr(other, "lm_head") and torch.equal(other(some_ids()).logits, plain(some_ids()).logits)


def test_the_walk(models):
    for block, ours in zip(*(walk(model, some_ids(), twin=True) for model in models), strict=True):
        assert ours.name == renamed(block.name) and torch.equal(ours.states, block.states)
        for reading, own in zip(block.readings(), ours.readings(), strict=True):
            assert own.names == tuple(map(renamed, reading.names))
            assert torch.equal(own.moments().hessian, reading.moments().hessian)


def test_the_walk_names_the_embedding(models):
    models[1].get_submodule(OTHER.embedding).weight.data[some_ids()[0, 0]] = torch.inf
    with pytest.raises(qtutor.QtutorError, match=r"^trunk\.table: its output"):
        next(walk(models[1], some_ids()))


@pytest.mark.parametrize("method", METHODS)
def test_quantized_alike(models, method):
    recipe = qtutor.Recipe(method, **groups_of(method), embeddings=True, lm_head=True)
    plain, other = models
    for model in models:
        qtutor.quantize(model, recipe, some_ids(8) if recipe.needs_calibration else None, progress=False)
    layers = {name: layer for name, layer in plain.named_modules() if isinstance(layer, QuantLinear)}
    assert len(layers) == 15
    for name, layer in layers.items():
        assert torch.equal(other.get_submodule(renamed(name)).quantized().codes, layer.quantized().codes)
    assert torch.equal(other(some_ids()).logits, plain(some_ids()).logits)


def test_what_a_layer_is_by_its_name_alone(models):
    ask, key, value = (f"trunk.stack.1.look.{name}" for name in ("ask", "key", "value"))
    assert reads_with(key) == [ask, value] and reads_with("trunk.stack.1.look.told") == []
    assert [name for name in linear_layers(models[1]) if ends_half(name)] == [
        f"trunk.stack.{block}.{name}" for block in range(2) for name in ("look.told", "think.narrow")
    ]
    assert is_head("readout") and is_head("lm_head") and not is_head(ask)


@pytest.mark.parametrize(
    ("form", "settings"),
    [
        (awq, {"bits": 4, "group_size": 32}),
        (gptq, {"bits": 4, "group_size": 32}),
        (bitsandbytes, {"load_in_8bit": True}),
    ],
)
def test_settings_that_do_not_name_the_head_leave_it_in_float(models, form, settings):
    names = list(layer_shapes(models[1], qtutor.Recipe(lm_head=True)))
    assert "readout" in names and list(form.layouts(settings, names, "")) == list(linear_layers(models[1]))


def test_engines_join_the_same_layers(models):
    recipe = qtutor.Recipe(layers={"*.ask": {"bits": 8}}, lm_head=True)
    shapes = dict.fromkeys(layer_shapes(models[1], recipe), (256, 256))
    with pytest.raises(qtutor.QtutorError, match=r"7 of 15 layers.*joins it with layers.*the head is packed"):
        pick("vllm", shapes, recipe)


@pytest.mark.parametrize(
    ("form", "recipe"),
    {
        "qtutor": {"embeddings": True, "lm_head": True},
        "compressed-tensors": {"symmetric": True, "lm_head": True},
        "gptq": {"layers": {"*.think.*": {"bits": 8}, "*.told": "float"}},
        "awq": {},
        "bitsandbytes": {"method": "nf4"},
        "modelopt": {"symmetric": True, "layers": {key: {"method": "sinq"} for key in ("*.told", "*.narrow")}},
        "mlx": {"lm_head": True},
    }.items(),
)
def test_folders_come_back(models, tmp_path, form, recipe):
    recipe, other = qtutor.Recipe(**{"group_size": 32} | recipe), models[1]
    qtutor.quantize(other, recipe, progress=False)
    again = qtutor.load_quantized(qtutor.export(other, tmp_path / "out", form), device="cpu")
    assert torch.equal(again(some_ids()).logits, other(some_ids()).logits)


def test_a_float_folder_without_its_head_s_prefix_is_read(models, tmp_path):
    """Old checkpoints lack the first part of names, and hold position angles."""
    other = models[1]
    other.save_pretrained(tmp_path)
    tensors = {name.removeprefix("trunk."): tensor for name, tensor in load_file(tmp_path / WEIGHTS).items()}
    save_file(tensors | {"stack.0.look.rotary_emb.inv_freq": torch.ones(8)}, tmp_path / WEIGHTS)
    again = checkpoint.load(tmp_path, "auto", "cpu")
    assert torch.equal(again(some_ids()).logits, other(some_ids()).logits)
