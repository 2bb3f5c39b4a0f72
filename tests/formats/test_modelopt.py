"""ModelOpt's W4A16_AWQ and FP8: bytes packed by hand, round trips, whole folders, and TensorRT-LLM's source."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import qtutor
from qtutor.core.float_grid import FP8
from qtutor.formats.converting import convert
from qtutor.formats.foreign import Layout
from qtutor.formats.modelopt import BY_ROW, FORMAT
from qtutor.runtime.fp8 import Fp8Linear
from qtutor.runtime.linear import QuantLinear
from tests.formats.foreign_folders import (
    check_comes_back,
    edit_settings,
    edit_tensors,
    exported,
    refused,
    round_trip,
    some,
)
from tests.gguf.small_tokenizers import letters
from tests.models import FAMILIES, some_ids
from tests.reference import layouts as slow

LAYER = "model.layers.1.mlp.down_proj"


def test_the_byte_of_the_docstring():
    quantized = some(4, True, 2, 1, 1)
    quantized.codes[:] = torch.tensor([[-1 + 8], [3 + 8]])
    assert FORMAT.encode(quantized, Layout(quantized.grid, 1, "joined"))["weight"].tolist() == [[0x3F]]


@settings(deadline=None, max_examples=40)
@given(
    pairs=st.integers(1, 20), groups=st.integers(1, 4), group_size=st.sampled_from([1, 7, 32]), seed=st.integers(0, 99)
)
def test_every_grid_comes_back_and_is_packed_as_by_hand(pairs, groups, group_size, seed):
    quantized = some(4, True, 2 * pairs, groups * group_size, group_size, seed)
    tensors = round_trip(FORMAT, quantized, Layout(quantized.grid, group_size, "alone"))
    assert tensors["weight"].tolist() == slow.modelopt(quantized.codes.tolist())


@pytest.mark.parametrize("family", FAMILIES)
def test_folders_come_back(tmp_path, family):
    check_comes_back(*exported(tmp_path / "out", "modelopt", family, symmetric=True))


def test_only_layers_that_the_engine_leaves_alone_have_an_input_scale(tmp_path):
    """TensorRT-LLM, tensorrt_llm/_torch/modules/linear.py at 00bbf71e, W4A16_AWQ_LinearMethod: load_weights_vanilla
    always reads pre_quant_scale; load_weights_fused_qkv_linear and load_weights_fused_gate_up_linear never read it.
    """
    folder = exported(tmp_path / "out", "modelopt", symmetric=True)[1]
    names = {name for name in load_file(folder / "model.safetensors") if name.endswith("pre_quant_scale")}
    ends = ("self_attn.o_proj", "mlp.down_proj")
    assert names == {f"model.layers.{block}.{end}.pre_quant_scale" for block in range(2) for end in ends}


def test_both_places_of_the_settings_are_read(tmp_path):
    model, folder = exported(tmp_path / "out", "modelopt", symmetric=True, layers={"*.0.*up_proj": "float"})
    about = json.loads((folder / "hf_quant_config.json").read_text())
    assert about["quantization"] == {
        "quant_algo": "W4A16_AWQ",
        "group_size": 32,
        "has_zero_point": False,
        "pre_quant_scale": True,
        "kv_cache_quant_algo": None,
        "exclude_modules": ["model.layers.0.mlp.up_proj", "lm_head"],
    }
    values = json.loads((folder / "config.json").read_text())
    del values["quantization_config"]
    (folder / "config.json").write_text(json.dumps(values))
    check_comes_back(model, folder)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({}, "q_proj has zero points, and the format 'modelopt' holds none: quantize with symmetric=True"),
        ({"symmetric": True, "group_size": -1}, "q_proj has one scale a row"),
        ({"symmetric": True, "bits": 8}, "q_proj has 8 bits"),
    ],
)
def test_what_it_cannot_hold_is_sent_elsewhere(tmp_path, recipe, message):
    with pytest.raises(qtutor.QtutorError, match=message):
        exported(tmp_path / "out", "modelopt", **recipe)


def test_what_is_wrong(tmp_path):
    folder = exported(tmp_path / "out", "modelopt", symmetric=True)[1]
    edit_tensors(folder, lambda tensors: tensors[f"{LAYER}.pre_quant_scale"][5:8].copy_(torch.tensor([0, 1, -2])))
    refused(folder, f"{LAYER}: pre_quant_scale holds 2 of 128 numbers that are not above 0, the least -2")
    edit_settings(folder, lambda values: values.update(group_size=64))
    refused(folder, "weight_scale is F16 [64, 2], expected F16 or BF16 or F32 [64, 1]")
    edit_settings(folder, lambda values: values.update(has_zero_point=True))
    refused(folder, "has_zero_point is True")
    edit_settings(folder, lambda values: values.update(quant_algo="NVFP4"))
    refused(folder, "quant_algo is 'NVFP4'; qtutor reads W4A16_AWQ, FP8_PER_CHANNEL_PER_TOKEN and FP8")


def scaled(folder, *ends: str) -> None:
    """Give a ``pre_quant_scale`` to every layer whose name ends in one of ``ends``, as ModelOpt's AWQ does."""

    def change(tensors):
        random = torch.Generator().manual_seed(0)
        for name in [name for name in tensors if name.endswith(tuple(f"{end}.weight_scale" for end in ends))]:
            layer = name.removesuffix(".weight_scale")
            columns = tensors[f"{layer}.weight"].shape[1]
            tensors[f"{layer}.pre_quant_scale"] = (0.2 + 3 * torch.rand(columns, generator=random)).half()

    edit_tensors(folder, change)


def test_inputs_are_multiplied_by_pre_quant_scale(tmp_path):
    folder = exported(tmp_path / "out", "modelopt", "mistral", symmetric=True)[1]
    before = qtutor.load(folder, device="cpu")[0]
    scaled(folder, "o_proj", "down_proj")
    model = qtutor.load(folder, device="cpu")[0]
    stored = load_file(folder / "model.safetensors")
    for name in (LAYER, "model.layers.0.self_attn.o_proj"):
        times, layer, plain = stored[f"{name}.pre_quant_scale"], model.get_submodule(name), before.get_submodule(name)
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(3, plain.columns, generator=torch.Generator().manual_seed(1)).to(dtype)
            assert torch.equal(layer(x), plain(times.float().mul(x).to(dtype)))
        assert torch.equal(layer.dequantized(), plain.dequantized() * times)
    assert type(model.model.layers[0].self_attn.q_proj) is QuantLinear
    kept = model.get_submodule(LAYER).input_scale
    assert torch.equal(model.to(torch.bfloat16).get_submodule(LAYER).input_scale, kept)


def test_what_multiplies_inputs_goes_where_it_can_be_held(tmp_path):
    folder = exported(tmp_path / "out", "modelopt", symmetric=True)[1]
    scaled(folder, "o_proj", "down_proj")
    model = qtutor.load(folder, device="cpu")[0]
    convert(folder, tmp_path / "again", "modelopt")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    convert(folder, tmp_path / "ours", "qtutor")
    for place in ("again", "ours"):
        again = qtutor.load(tmp_path / place, device="cpu")[0]
        assert torch.equal(again(some_ids()).logits, model(some_ids()).logits)
    for form in ("compressed-tensors", "gptq", "awq", "mlx"):
        with pytest.raises(qtutor.QtutorError) as caught:
            convert(folder, tmp_path / form, form)
        text = str(caught.value)
        assert "4 of 14 layers do not fit. model.layers.0.self_attn.o_proj has inputs that are each multiplied" in text
        assert "Formats that hold all of them as they are: modelopt, qtutor." in text and not (tmp_path / form).exists()
    with pytest.raises(qtutor.QtutorError, match="inputs that are each multiplied by a number"):
        qtutor.export(model, tmp_path / "out2", "compressed-tensors")


def test_tensorrt_llm_multiplies_no_inputs_of_layers_that_it_joins(tmp_path):
    """They are read, because the file says so. They are not written, because TensorRT-LLM would ignore them."""
    folder = exported(tmp_path / "out", "modelopt", symmetric=True)[1]
    scaled(folder, "q_proj")
    with pytest.raises(qtutor.QtutorError, match=r"q_proj has inputs .* allows this for o_proj and down_proj only"):
        convert(folder, tmp_path / "again", "modelopt")
    convert(folder, tmp_path / "ours", "qtutor")
    ours = qtutor.load(tmp_path / "ours", device="cpu")[0]
    assert torch.equal(ours(some_ids()).logits, qtutor.load(folder, device="cpu")[0](some_ids()).logits)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_fp8_folders_come_back(tmp_path, family):
    check_comes_back(*exported(tmp_path / "out", "modelopt", family, method="fp8"))


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(1, 9), columns=st.integers(1, 40), seed=st.integers(0, 999))
def test_every_fp8_matrix_comes_back(rows, columns, seed):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    weight[seed % rows] *= 0
    tensors = round_trip(FORMAT, qtutor.rtn.quantize(weight, FP8, -1), Layout(FP8, -1, BY_ROW))
    assert tensors["weight_scale"].shape == (rows,)


def test_an_fp8_folder_is_what_tensorrt_llm_reads(tmp_path):
    """TensorRT-LLM, tensorrt_llm/_torch/modules/linear.py at 00bbf71e, FP8RowwiseLinearMethod: create_weights has a
    float8_e4m3fn weight [out, in] and a float32 weight_scale [out]; load_weights_fused_qkv_linear joins those of q, k
    and v in this order; apply rounds inputs token by token, so no input_scale is needed.
    """
    model, folder = exported(tmp_path / "out", "modelopt", method="fp8", layers={"*.0.*up_proj": "float"})
    found = {path.name for path in folder.iterdir()}
    assert found - {"generation_config.json"} == {
        *("config.json", "hf_quant_config.json", "model.safetensors"),
        *("qtutor_files.json", "tokenizer.json", "tokenizer_config.json"),
    }
    assert json.loads((folder / "hf_quant_config.json").read_text()) == {
        "producer": {"name": "qtutor", "version": "0"},
        "quantization": {
            "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN",
            "kv_cache_quant_algo": None,
            "exclude_modules": ["model.layers.0.mlp.up_proj", "lm_head"],
        },
    }
    tensors = load_file(folder / "model.safetensors")
    begin = "model.layers.1.self_attn."
    names = {name.removeprefix(begin) for name in tensors if name.startswith(begin)}
    layers = ("q_proj", "k_proj", "v_proj", "o_proj")
    assert names == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "weight_scale")}
    parts = [[tensors[f"{begin}{layer}.{kind}"] for layer in layers[:3]] for kind in ("weight", "weight_scale")]
    assert {part.dtype for part in parts[0]} == {torch.float8_e4m3fn} and {part.dtype for part in parts[1]} == {
        torch.float32
    }
    weight, scale = torch.cat([part.float() for part in parts[0]]), torch.cat(parts[1])
    attention = model.model.layers[1].self_attn
    exact = torch.cat([getattr(attention, layer).quantized().dequantize() for layer in layers[:3]])
    assert torch.equal(weight * scale[:, None], exact)
    assert tensors["model.layers.0.mlp.up_proj.weight"].dtype == torch.float32


def one_scale(tensors):
    """What ModelOpt writes as FP8: one scale per tensor, scales of inputs, and scales of the KV cache."""
    for name in [name for name in tensors if name.endswith("weight_scale")]:
        tensors[name] = tensors[name].max()
        tensors[name.replace("weight_scale", "input_scale")] = torch.tensor(0.1)
        if "k_proj" in name:
            tensors[name.replace("weight_scale", "k_scale")] = torch.tensor(0.2)


def test_fp8_of_modelopt_with_scales_of_inputs(tmp_path):
    folder = exported(tmp_path / "out", "modelopt", method="fp8")[1]
    edit_tensors(folder, one_scale)
    edit_settings(folder, lambda values: values.update(quant_algo="FP8"))
    with pytest.warns(UserWarning, match="round the inputs of every layer by a scale that was measured"):
        model = qtutor.load(folder, device="cpu")[0]
    stored = load_file(folder / "model.safetensors")
    layer = model.get_submodule(LAYER)
    weight = stored[f"{LAYER}.weight"].float() * stored[f"{LAYER}.weight_scale"]
    assert isinstance(layer, Fp8Linear) and layer.group_size == 0
    assert torch.equal(layer.quantized().dequantize(), weight)
    with pytest.raises(qtutor.QtutorError, match=r"one FP8 scale for the matrix, .* group_size=-1"):
        qtutor.export(model, tmp_path / "again", "modelopt")
    qtutor.export(model, tmp_path / "again", "compressed-tensors", letters())
    back = qtutor.load(tmp_path / "again", device="cpu")[0].get_submodule(LAYER)
    assert torch.equal(back.quantized().dequantize(), weight)


def test_fp8_that_is_wrong(tmp_path):
    folder = exported(tmp_path / "out", "modelopt", method="fp8")[1]
    edit_settings(folder, lambda values: values.update(quant_algo="FP8"))
    refused(folder, "q_proj: weight_scale has 64 numbers, and FP8 has 1 for this layer")
    edit_settings(folder, lambda values: values.update(quant_algo="FP8_PER_CHANNEL_PER_TOKEN"))
    edit_tensors(folder, lambda tensors: tensors[f"{LAYER}.weight"].view(torch.uint8)[0].fill_(0xFF))
    refused(folder, f"{LAYER}.weight", "NaN")


def test_a_mixture_with_fp8_is_refused(tmp_path):
    with pytest.raises(qtutor.QtutorError, match=r"down_proj has the levels of fp8.*take 'compressed-tensors'"):
        exported(tmp_path / "out", "modelopt", symmetric=True, layers={"*.down_proj": {"method": "fp8"}})
