"""MXFP4 and NVFP4 in compressed-tensors: bytes packed by hand, round trips, whole folders, and wrong folders."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qtutor
from qtutor.core.float_grid import MXFP4, NVFP4
from qtutor.formats.compressed_settings import POWERS, PRODUCTS
from qtutor.formats.compressed_tensors import FORMAT
from qtutor.formats.foreign import Layout
from qtutor.runtime.linear import QuantLinear
from tests.formats.foreign_folders import (
    check_comes_back,
    edit_settings,
    edit_tensors,
    exported,
    letters,
    refused,
    round_trip,
)
from tests.models import some_ids, tiny

KINDS = {"mxfp4": (MXFP4, POWERS), "nvfp4": (NVFP4, PRODUCTS)}
FIRST = "model.layers.0.self_attn.q_proj"


def layout_of(name: str) -> Layout:
    grid, kind = KINDS[name]
    return Layout(grid, grid.block, kind)


def test_bytes_by_hand():
    levels = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    weight = torch.cat([levels, -levels, levels, -levels])[None] / 4
    tensors = FORMAT.encode(qtutor.rtn.quantize(weight, MXFP4, 32), layout_of("mxfp4"))
    assert tensors["weight_packed"].tolist() == [[0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE] * 2]
    assert tensors["weight_scale"].tolist() == [[127 - 2]]  # a quarter
    tensors = FORMAT.encode(qtutor.rtn.quantize(weight, NVFP4, 16), layout_of("nvfp4"))
    assert tensors["weight_packed"].tolist() == [[0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE] * 2]
    # The largest weight is 1.5, and 1.5 / (4 * 448) is above 2^-11. So the unit is 2^-10, and a quarter is 256 units.
    assert tensors["weight_global_scale"].tolist() == [1024.0]
    assert tensors["weight_scale"].float().tolist() == [[256.0, 256.0]]


@settings(deadline=None, max_examples=30)
@given(
    name=st.sampled_from(list(KINDS)), rows=st.integers(1, 9), blocks=st.integers(1, 5), seed=st.integers(0, 999),
    size=st.sampled_from([1e-9, 0.02, 300.0]),
)  # fmt: skip
def test_every_matrix_comes_back(name, rows, blocks, seed, size):
    grid, _ = KINDS[name]
    weight = torch.randn(rows, 32 * blocks, generator=torch.Generator().manual_seed(seed)) * size
    weight[seed % rows] *= 0
    round_trip(FORMAT, qtutor.rtn.quantize(weight, grid, grid.block), layout_of(name))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("recipe", [{}, {"lm_head": True}, {"layers": {"*.down_proj": {"method": "rtn", "bits": 8}}}])
def test_folders_come_back(tmp_path, name, recipe):
    model, folder = exported(tmp_path / "out", "compressed-tensors", "qwen2", method=name, **recipe)
    check_comes_back(model, folder)
    written = json.loads((folder / "config.json").read_text())["quantization_config"]
    mixed = "layers" in recipe
    assert written["format"] == ("mixed-precision" if mixed else KINDS[name][1])
    weights = written["config_groups"]["group_0"]["weights"]
    assert (weights["num_bits"], weights["type"], weights["group_size"]) == (4, "float", KINDS[name][0].block)


@pytest.mark.parametrize("name", KINDS)
def test_our_own_folders_come_back(tmp_path, name):
    model, folder = exported(tmp_path / "out", "qtutor", method=name, embeddings=True)
    check_comes_back(model, folder)


@pytest.mark.parametrize("name", KINDS)
def test_scales_that_are_no_numbers_are_refused_in_our_own_folders(tmp_path, name):
    _, folder = exported(tmp_path / "out", "qtutor", method=name)
    edit_tensors(folder, lambda tensors: tensors[f"{FIRST}.scale_codes"][1, 1:].fill_(255 if name == "mxfp4" else 127))
    with pytest.raises(qtutor.QtutorError, match=f"{FIRST} has (scales that are no numbers|a scale of nan)"):
        qtutor.load(folder, device="cpu")


@pytest.mark.parametrize("levels", KINDS)
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_what_gptq_and_awq_round_comes_back(tmp_path, levels, method):
    model = tiny("llama")
    qtutor.quantize(model, qtutor.Recipe(method, levels=levels), some_ids(16, 32), progress=False)
    check_comes_back(model, qtutor.export(model, tmp_path / "out", "compressed-tensors", letters()))


def weights(**changes):
    return lambda values: values["config_groups"]["group_0"]["weights"].update(changes)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (weights(group_size=64), "group_size is 64, and nvfp4-pack-quantized has 16"),
        (weights(num_bits=8), "num_bits is 8, and nvfp4-pack-quantized has 4"),
        (weights(symmetric=False), "symmetric is False"),
        (weights(strategy="group"), "strategy is 'group', and nvfp4-pack-quantized has tensor_group"),
        (weights(scale_dtype="torch.uint8"), "scale_dtype is 'torch.uint8'"),
        (weights(type="int"), "type is 'int'"),
        (
            lambda values: values["config_groups"]["group_0"].update(input_activations={"num_bits": 4}),
            "the inputs of nvfp4-pack-quantized are rounded as well",
        ),
    ],
)
def test_settings_that_are_wrong(tmp_path, change, part):
    _, folder = exported(tmp_path / "out", "compressed-tensors", method="nvfp4")
    edit_settings(folder, change)
    refused(folder, part)


def test_settings_of_others_may_leave_out_what_is_usual(tmp_path):
    model, folder = exported(tmp_path / "out", "compressed-tensors", method="mxfp4")

    def shorten(values):
        for key in ("symmetric", "scale_dtype"):
            del values["config_groups"]["group_0"]["weights"][key]

    edit_settings(folder, shorten)
    check_comes_back(model, folder)


def test_a_global_scale_of_others_and_wrong_ones(tmp_path):
    """It can be any number above 0, not only a power of two."""
    model, folder = exported(tmp_path / "out", "compressed-tensors", method="nvfp4")
    key = f"{FIRST}.weight_global_scale"
    edit_tensors(folder, lambda tensors: tensors[key].fill_(2688 / 0.07))
    again = qtutor.load(folder, device="cpu")[0].get_submodule(FIRST).quantized()
    layer = model.get_submodule(FIRST).quantized()
    expected = layer.stored_scales.codes.view(torch.float8_e4m3fn).float() / torch.tensor(2688 / 0.07)
    assert torch.allclose(again.scales, expected, rtol=2.0**-22, atol=0)
    for wrong in (0.0, -1.0):
        edit_tensors(folder, lambda tensors, wrong=wrong: tensors[key].fill_(wrong))
        with pytest.raises(qtutor.QtutorError, match=r"weight_global_scale is .*expected a number above 0"):
            qtutor.load(folder, device="cpu")


def test_groups_of_another_size_are_refused():
    model, _ = qtutor.load_decoder()
    layer = model.get_submodule(FIRST)
    quantized = qtutor.rtn.quantize(layer.weight.detach(), MXFP4, 64)
    model.set_submodule(FIRST, QuantLinear.from_quantized(quantized))
    with pytest.raises(qtutor.QtutorError, match=r"groups of 64 on mxfp4.* groups of 32 only"):
        FORMAT.settings({FIRST: model.get_submodule(FIRST)}, [])
