"""ModelOpt's W4A16_AWQ: bytes by hand, there and back, whole folders, and what TensorRT-LLM asks for by its source."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qtutor
from qtutor.formats.foreign import Layout
from qtutor.formats.modelopt import FORMAT
from tests.formats.foreign_folders import (
    check_comes_back,
    edit_settings,
    edit_tensors,
    exported,
    refused,
    round_trip,
    some,
)
from tests.models import FAMILIES
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
    reads pre_quant_scale without asking, load_weights_fused_qkv_linear and load_weights_fused_gate_up_linear never do.
    """
    from safetensors.torch import load_file

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
    edit_tensors(folder, lambda tensors: tensors[f"{LAYER}.pre_quant_scale"].fill_(0.5))
    refused(folder, f"{LAYER}: its inputs are multiplied by pre_quant_scale, 0.5 to 0.5")
    edit_settings(folder, lambda values: values.update(group_size=64))
    refused(folder, "weight_scale is F16 [64, 2], expected F16 or BF16 or F32 [64, 1]")
    edit_settings(folder, lambda values: values.update(has_zero_point=True))
    refused(folder, "has_zero_point is True")
    edit_settings(folder, lambda values: values.update(quant_algo="NVFP4"))
    refused(folder, "quant_algo is 'NVFP4'; read is 'W4A16_AWQ'")
