"""The config in a written folder fits its tensors, and a folder is read back before it gets its name."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

import qtutor
from qtutor.formats import gguf, gguf_contents, gguf_reading, native
from qtutor.gguf import imatrix
from qtutor.gguf.reader import read
from tests.gguf.small_tokenizers import letters
from tests.models import FAMILIES, groups_of, some_ids, tiny

METHODS = ["rtn", "awq", "gptq", "awq+gptq", "nf4", "fp4", "int8"]
RECIPE = qtutor.Recipe(group_size=32)


def own_head(model, flag=True):
    """A separate output matrix, although the config says otherwise, as some trainers leave it."""
    model.lm_head.weight = nn.Parameter(model.model.embed_tokens.weight.detach().flip(0).clone())
    model.config.tie_word_embeddings = flag
    return model


def shared_head(model, flag=False):
    model.lm_head.weight = model.model.embed_tokens.weight
    model.config.tie_word_embeddings = flag
    return model


def same_memory(model):
    model.lm_head.weight = nn.Parameter(model.model.embed_tokens.weight.data)
    return model


HEADS = {
    "tied, and says so": (lambda family: tiny(family), True),
    "own, and says so": (lambda family: tiny(family, tied=False), False),
    "own, and says that it is tied": (lambda family: own_head(tiny(family)), False),
    "tied, and says that it is not": (lambda family: shared_head(tiny(family, tied=False)), True),
    "of one memory": (lambda family: same_memory(tiny(family, tied=False)), True),
    "equal": (lambda family: own_head(own_head(tiny(family))), False),
}


@pytest.mark.parametrize("label", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_tied_is_what_the_tensors_are(tmp_path, label, family):
    make, tied = HEADS[label]
    model = make(family)
    exact = model(some_ids()).logits
    path = qtutor.export(model, tmp_path / "a.gguf", format="gguf", type="F32", tokenizer=letters())
    again = gguf.load(path, device="cpu")
    assert torch.equal(again(some_ids()).logits, exact), (again(some_ids()).logits - exact).abs().max()
    assert again.config.tie_word_embeddings is tied and ("output.weight" in read(path).tensors) is not tied
    qtutor.quantize(model, RECIPE, progress=False)
    before = model.config.tie_word_embeddings
    qtutor.export(model, tmp_path / "out")
    again = qtutor.load_quantized(tmp_path / "out", device="cpu")
    assert torch.equal(again(some_ids()).logits, model(some_ids()).logits)
    assert again.config.tie_word_embeddings is tied and model.config.tie_word_embeddings == before
    assert (again.lm_head.weight is again.model.embed_tokens.weight) is tied


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("outside", [{"lm_head": True}, {"embeddings": True}, {"lm_head": True, "embeddings": True}])
@pytest.mark.parametrize("tied", [True, False])
def test_layers_outside_of_the_blocks_come_back_by_every_method(tmp_path, method, outside, tied):
    model = tiny(tied=tied)
    recipe = qtutor.Recipe(method, **groups_of(method), **outside)
    report = qtutor.quantize(model, recipe, some_ids(16, 32), progress=False)
    assert len(report.rows) == 14 + len(outside)
    qtutor.export(model, tmp_path / "out")
    again = qtutor.load_quantized(tmp_path / "out", device="cpu")
    assert torch.equal(again(some_ids()).logits, model(some_ids()).logits)
    assert again.config.tie_word_embeddings is False
    path = qtutor.export(model, tmp_path / "a.gguf", format="gguf", type="F32", tokenizer=letters())
    assert torch.allclose(gguf.load(path, device="cpu")(some_ids()).logits, model(some_ids()).logits, atol=2e-2)


def test_a_head_that_an_exception_leaves_in_float_stays_tied(tmp_path):
    model = tiny()
    qtutor.quantize(model, qtutor.Recipe(group_size=32, lm_head=True, layers={"lm_head": "float"}), progress=False)
    qtutor.export(model, tmp_path / "out")
    again = qtutor.load_quantized(tmp_path / "out", device="cpu")
    assert torch.equal(again(some_ids()).logits, model(some_ids()).logits)
    assert again.lm_head.weight is again.model.embed_tokens.weight


@pytest.mark.parametrize("place", ["model.norm", "model.embed_tokens", "lm_head"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_are_named_before_anything_is_written(tmp_path, place, value):
    model = tiny(tied=False)
    qtutor.quantize(model, RECIPE, progress=False)
    with torch.no_grad():
        model.get_submodule(place).weight.view(-1)[5] = value
    with pytest.raises(qtutor.QtutorError, match=rf"{place}\.weight: 1 of \d+ numbers are NaN or infinite"):
        qtutor.export(model, tmp_path / "out")
    with pytest.raises(qtutor.QtutorError, match=r"nan|inf"):
        qtutor.export(model, tmp_path / "a.gguf", format="gguf", type="F16", tokenizer=letters())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_writer_that_loses_a_tensor_is_found_before_the_old_export_is_replaced(tmp_path, monkeypatch, family):
    model = tiny(family)
    qtutor.quantize(model, RECIPE, progress=False)
    qtutor.export(model, tmp_path / "out")
    qtutor.export(model, tmp_path / "a.gguf", format="gguf", type="F32", tokenizer=letters())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    whole = native.stored_tensors
    monkeypatch.setattr(native, "stored_tensors", lambda model: dict(list(whole(model).items())[1:]))
    lost = r"out was not written, since it could not be read back.* missing: .*model\.embed_tokens\.weight"
    with pytest.raises(qtutor.QtutorError, match=lost):
        qtutor.export(model, tmp_path / "out")
    called = lambda model: {name.replace("mlp.", "ffn."): tensor for name, tensor in whole(model).items()}  # noqa: E731
    monkeypatch.setattr(native, "stored_tensors", called)
    with pytest.raises(qtutor.QtutorError, match=r"not expected: model\.layers\.0\.ffn"):
        qtutor.export(model, tmp_path / "out")
    monkeypatch.setattr(gguf_contents, "parameters", lambda model: list(gguf_reading.parameters(model))[:-1])
    with pytest.raises(
        qtutor.QtutorError, match=r"a\.gguf was not written, since .*1 tensor is missing: output_norm\.weight"
    ):
        qtutor.export(model, tmp_path / "a.gguf", format="gguf", type="F32", tokenizer=letters())
    monkeypatch.undo()
    monkeypatch.setattr(gguf_contents, "tokenizer_metadata", lambda *_: {"tokenizer.ggml.model": "gpt2"})
    with pytest.raises(qtutor.QtutorError, match=r"a\.gguf was not written, since .*token"):
        qtutor.export(model, tmp_path / "a.gguf", format="gguf", type="F32", tokenizer=letters())
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("name", "value"),
    [(f"{kind}_token_id", value) for kind in ("bos", "eos") for value in (128000, 256, -1)]
    + [("eos_token_id", [2, 128001])],
)
def test_special_ids_that_are_no_tokens_are_named(tmp_path, name, value):
    model, tokenizer = tiny(), letters()
    setattr(model.config, name, value)
    setattr(tokenizer, name.removesuffix("_id"), None)
    (tmp_path / "a.gguf").write_bytes(b"old")
    with pytest.raises(qtutor.QtutorError, match=rf"config\.{name} = .*the vocabulary has 256 tokens, 0 to 255"):
        qtutor.export(model, tmp_path / "a.gguf", format="gguf", type="F32", tokenizer=tokenizer)
    assert (tmp_path / "a.gguf").read_bytes() == b"old"
    qtutor.quantize(model, RECIPE, progress=False)
    qtutor.export(model, tmp_path / "out")  # our format keeps them unchanged and does not use them
    assert json.loads((tmp_path / "out" / "config.json").read_text())[name] == value


def test_special_ids_of_the_tokenizer_come_first(tmp_path):
    model, tokenizer = tiny(), letters()
    model.config.eos_token_id = 128001
    assert tokenizer.eos_token_id is not None
    path = qtutor.export(model, tmp_path / "a.gguf", format="gguf", type="F32", tokenizer=tokenizer)
    assert int(read(path).metadata["tokenizer.ggml.eos_token_id"]) == tokenizer.eos_token_id
    qtutor.load(path, device="cpu")


def test_importance_may_be_named_by_its_file(tmp_path):
    model = tiny()
    measured = imatrix.importance(model, some_ids(16, 32))
    imatrix.write(tmp_path / "imatrix.gguf", measured)
    files = {}
    for label, given in {"matrix": measured, "path": tmp_path / "imatrix.gguf"}.items():
        files[label] = qtutor.export(
            model,
            tmp_path / f"{label}.gguf",
            format="gguf",
            type="Q4_0",
            pure=True,
            tokenizer=letters(),
            importance=given,
        ).read_bytes()
    named = str(tmp_path / "imatrix.gguf")
    path = tmp_path / "c.gguf"
    qtutor.export(model, path, format="gguf", type="Q4_0", pure=True, tokenizer=letters(), importance=named)
    assert files["matrix"] == files["path"] == path.read_bytes()
    for given, message in [
        (tmp_path / "none.gguf", "none.gguf cannot be read"),
        (some_ids(), "importance is a Tensor; expected an Imatrix"),
        (np.ones(64), "importance is a ndarray"),
        (3, "importance is a int"),
    ]:
        with pytest.raises(qtutor.QtutorError, match=message):
            qtutor.export(model, path, format="gguf", type="Q4_0", tokenizer=letters(), importance=given)


def test_a_sliding_window_is_told(tmp_path):
    model = tiny("mistral")
    model.config.sliding_window = 48
    with pytest.warns(UserWarning, match=r"sliding_window = 48: .*the file's context is 48 tokens.*not 64"):
        path = qtutor.export(model, tmp_path / "a.gguf", format="gguf", type="F32", tokenizer=letters())
    assert int(read(path).metadata["llama.context_length"]) == 48


@pytest.mark.parametrize("type", ["Q4_0", "Q8_0", "Q4_K", "Q6_K", "F16"])
def test_blocks_that_became_zero_are_told(tmp_path, type):
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = tiny().config.__class__(**tiny().config.to_dict() | sizes | {"num_key_value_heads": 4, "head_dim": 64})
    model = tiny().__class__(config)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[7] = 1e-9  # a row of blocks
        model.model.layers[0].mlp.up_proj.weight[8] = 0
    blocks = 256 * 256 // qtutor.gguf.TYPES[type].values
    row = blocks // 256
    with pytest.warns(UserWarning, match=rf"'blk.0.ffn_up.weight' as {type}: {row} of {blocks} blocks became") as told:
        qtutor.export(model, tmp_path / "a.gguf", format="gguf", type=type, pure=True, tokenizer=letters())
    assert len(told) == 1


@pytest.mark.parametrize("load_in", ["load_in_4bit", "load_in_8bit"])
def test_models_of_bitsandbytes_are_refused(tmp_path, load_in):
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from qtutor.decoder import EMBEDDED

    packed = AutoModelForCausalLM.from_pretrained(
        EMBEDDED, quantization_config=BitsAndBytesConfig(**{load_in: True}), device_map="cpu"
    )
    bare = copy.copy(packed)
    for model, message in [(packed, "quantized already, by bitsandbytes"), (bare, "is a bitsandbytes.*Linear")]:
        if model is bare:  # such layers, put into a model by hand
            model.config = copy.deepcopy(packed.config)
            del model.config.quantization_config
            model.hf_quantizer = None
        with pytest.raises(qtutor.QtutorError, match=message):
            qtutor.quantize(model, RECIPE, progress=False)
        with pytest.raises(qtutor.QtutorError, match=message):
            qtutor.export(model, tmp_path / "a.gguf", format="gguf", tokenizer=letters())
        assert not list(tmp_path.iterdir())
