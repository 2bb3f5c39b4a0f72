"""GPTQ: words packed by hand, both versions, round trips of every grid, whole folders, and wrong folders."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import qtutor
from qtutor.formats.foreign import Layout
from qtutor.formats.gptq import BITS, FIRST, FORMAT, SECOND
from tests.formats.foreign_folders import (
    check_comes_back,
    edit_settings,
    edit_tensors,
    exported,
    refused,
    round_trip,
    some,
    words,
)
from tests.models import FAMILIES
from tests.reference import layouts as slow

LAYER = "model.layers.1.mlp.up_proj"


def test_the_word_of_the_docstring():
    quantized = some(4, True, 8, 8, 8)
    quantized.codes[:] = torch.arange(1, 9)
    tensors = FORMAT.encode(quantized, Layout(quantized.grid, 8, FIRST))
    assert words(tensors["qweight"]) == [[0x87654321] * 8]
    assert words(tensors["qzeros"]) == [[0x77777777]]  # symmetric: 8, minus one
    assert words(FORMAT.encode(quantized, Layout(quantized.grid, 8, SECOND))["qzeros"]) == [[0x88888888]]


@settings(deadline=None, max_examples=60)
@given(
    bits=st.sampled_from(BITS), symmetric=st.booleans(), rows=st.integers(1, 2), groups=st.integers(1, 4),
    group_size=st.sampled_from([32, 64, -1]), version=st.sampled_from([FIRST, SECOND]), seed=st.integers(0, 99),
)  # fmt: skip
def test_every_grid_comes_back_and_is_packed_as_by_hand(bits, symmetric, rows, groups, group_size, version, seed):
    quantized = some(bits, symmetric, 32 * rows, 32 * groups * (2 if group_size == 64 else 1), group_size, seed)
    if not symmetric and version == FIRST:
        quantized.zeros.clamp_(min=1)
    tensors = round_trip(FORMAT, quantized, Layout(quantized.grid, group_size, version))
    zeros = torch.full(quantized.scales.shape, quantized.grid.middle) if symmetric else quantized.zeros
    assert words(tensors["qweight"]) == slow.gptq_weight(quantized.codes.tolist(), bits)
    assert words(tensors["qzeros"]) == slow.gptq_zeros(zeros.tolist(), bits, minus=1 if version == FIRST else 0)
    length = quantized.shape[1] // quantized.scales.shape[1]
    assert tensors["g_idx"].tolist() == [i // length for i in range(quantized.shape[1])]


@pytest.mark.parametrize("recipe", [{"symmetric": True}, {"bits": 3}, {"bits": 8, "symmetric": True, "lm_head": True}])
@pytest.mark.parametrize("family", FAMILIES)
def test_folders_come_back(tmp_path, family, recipe):
    model, folder = exported(tmp_path / "out", "gptq", family, **recipe)
    check_comes_back(model, folder)
    values = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert values == json.loads((folder / "quantize_config.json").read_text())
    assert values["checkpoint_format"] == (FIRST if recipe.get("symmetric") else SECOND)
    assert values["lm_head"] is recipe.get("lm_head", False) and values["desc_act"] is False


@pytest.mark.parametrize(("act_order", "static"), [("columns", False), ("groups", False), ("groups", True)])
def test_an_order_of_columns_needs_no_index(tmp_path, act_order, static):
    from tests.models import some_ids, tiny

    model = tiny()
    recipe = qtutor.Recipe("gptq", group_size=32, symmetric=True, act_order=act_order, static_groups=static)
    qtutor.quantize(model, recipe, some_ids(16, 32), progress=False)
    folder = qtutor.export(model, tmp_path / "out", "gptq", tokenizer("ab"))
    check_comes_back(model, folder)
    indices = [tensor for name, tensor in load_file(folder / "model.safetensors").items() if name.endswith("g_idx")]
    assert len(indices) == 14 and all(index.tolist() == [i // 32 for i in range(len(index))] for index in indices)


def tokenizer(_):
    from tests.gguf.small_tokenizers import letters

    return letters()


def test_mixed_bits_are_rules(tmp_path):
    layers = {"*.down_proj": {"bits": 8, "group_size": 64}, "model.layers.0.*q_proj": "float"}
    model, folder = exported(tmp_path / "out", "gptq", symmetric=True, layers=layers)
    check_comes_back(model, folder)
    rules = json.loads((folder / "config.json").read_text())["quantization_config"]["dynamic"]
    assert rules == {
        r"+:^model\.layers\.0\.mlp\.down_proj$": {"bits": 8, "group_size": 64, "sym": True},
        r"+:^model\.layers\.1\.mlp\.down_proj$": {"bits": 8, "group_size": 64, "sym": True},
        r"-:^model\.layers\.0\.self_attn\.q_proj$": {},
    }


def test_an_older_folder_has_its_settings_beside_and_biases_of_zero(tmp_path):
    model, folder = exported(tmp_path / "out", "gptq", symmetric=True)
    values = json.loads((folder / "config.json").read_text())
    del values["quantization_config"]
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "quantize_config.json").write_text(
        json.dumps({"bits": 4, "group_size": 32, "desc_act": False, "sym": True, "damp_percent": 0.01})
    )
    edit_tensors(folder, lambda tensors: tensors.update({f"{LAYER}.bias": torch.zeros(128, dtype=torch.float16)}))
    check_comes_back(model, folder)
    edit_tensors(folder, lambda tensors: tensors[f"{LAYER}.bias"].fill_(0.5))
    refused(folder, f"{LAYER}.bias is not zero, and this decoder has no bias there")


def test_the_version_is_found_by_what_fits(tmp_path):
    with pytest.raises(qtutor.QtutorError, match=r"version = 3: choose one of None, 1, 2"):
        exported(tmp_path / "out", "gptq", options={"version": 3})
    model, folder = exported(tmp_path / "out", "gptq", options={"version": 2}, symmetric=True)
    check_comes_back(model, folder)
    edit_settings(folder, lambda values: values.update(checkpoint_format=FIRST))
    refused(folder, "q_proj", "all zero points are 8", "the first is 9", "the other one of 'gptq' and 'gptq_v2'")
    model, folder = exported(tmp_path / "first", "gptq", symmetric=True)
    edit_settings(folder, lambda values: values.update(checkpoint_format=SECOND))
    refused(folder, "the first is 7")


def test_a_zero_point_of_0_has_no_place_in_version_1(tmp_path):
    model = exported(tmp_path / "out", "gptq")[0]
    layer = model.get_submodule(LAYER)
    quantized = layer.quantized()
    quantized.zeros[3, 1] = 0
    layer.fill(quantized)
    check_comes_back(model, qtutor.export(model, tmp_path / "out", "gptq", tokenizer("")))
    with pytest.raises(qtutor.QtutorError, match=f"{LAYER}: 1 of 256 groups have the zero point 0.*version=2"):
        qtutor.export(model, tmp_path / "out", "gptq", tokenizer(""), version=1)


def ordered(tensors):
    tensors[f"{LAYER}.g_idx"] = tensors[f"{LAYER}.g_idx"].flip(0)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (ordered, [f"{LAYER}: its columns are grouped in another order"]),
        (lambda t: t.pop(f"{LAYER}.qzeros"), [f"{LAYER}.qzeros is missing"]),
        (lambda t: t[f"{LAYER}.scales"].fill_(float("inf")), [f"{LAYER}.scales", "infinite"]),
        (lambda t: t.update({f"{LAYER}.qweight": t[f"{LAYER}.qweight"].T}), ["I32 [128, 8], expected I32 [8, 128]"]),
        (lambda t: t.update({f"{LAYER}.qweight": t[f"{LAYER}.qweight"].long()}), ["I64 [8, 128], expected I32"]),
    ],
)
def test_tensors_that_are_wrong(tmp_path, change, parts):
    folder = exported(tmp_path / "out", "gptq", symmetric=True)[1]
    edit_tensors(folder, change)
    refused(folder, *parts)


def test_an_index_may_be_missing_where_nothing_is_ordered(tmp_path):
    model, folder = exported(tmp_path / "out", "gptq", symmetric=True)
    edit_tensors(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.endswith("g_idx")])
    check_comes_back(model, folder)
    edit_settings(folder, lambda values: values.update(desc_act=True))
    refused(folder, "g_idx is missing")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"bits": 5}, ["bits is 5; expected 2, 3, 4 or 8"]),
        ({"bits": None}, ["bits is None"]),
        ({"group_size": 48}, ["groups of 48 do not divide"]),
        ({"group_size": 0}, ["group_size is 0"]),
        ({"sym": "yes"}, ["sym is 'yes'"]),
        ({"checkpoint_format": "marlin"}, ["checkpoint_format is 'marlin'; qtutor reads gptq and gptq_v2"]),
        ({"dynamic": {"+:(a*)*$": {}}}, ["repeats too much"]),
        ({"dynamic": {"+:.*": 3}}, ["dynamic '+:.*' is 3"]),
        ({"dynamic": 3}, ["dynamic is 3"]),
        ({"bits": 3}, ["I32 [8, 64], expected I32 [6, 64]"]),
        ({"lm_head": 1}, ["lm_head is 1"]),
    ],
)
def test_settings_that_are_wrong(tmp_path, change, parts):
    folder = exported(tmp_path / "out", "gptq", symmetric=True)[1]
    edit_settings(folder, lambda values: values.update(change))
    refused(folder, *parts)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"bits": 5}, "q_proj has 5 bits, and the format 'gptq' holds 2, 3, 4, 8: take 'compressed-tensors'"),
        ({"method": "nf4"}, "q_proj has the levels of nf4"),
        ({"group_size": 0}, "q_proj has one scale for the whole matrix"),
        ({"embeddings": True}, "embed_tokens is a quantized embedding"),
    ],
)
def test_what_it_cannot_hold_is_sent_elsewhere(tmp_path, recipe, message):
    with pytest.raises(qtutor.QtutorError, match=message):
        exported(tmp_path / "out", "gptq", **recipe)
    assert not list(tmp_path.iterdir())
