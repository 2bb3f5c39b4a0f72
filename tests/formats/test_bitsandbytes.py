"""bitsandbytes: bytes packed by hand, round trips of every codebook, whole folders, and wrong folders."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qtutor
from qtutor.core.codebooks import INT8
from qtutor.core.quantized import QuantizedTensor
from qtutor.formats.bitsandbytes import FORMAT, FOUR
from qtutor.formats.foreign import Layout
from qtutor.methods import bnb
from tests.formats.foreign_folders import check_comes_back, edit_settings, edit_tensors, exported, refused, round_trip
from tests.models import FAMILIES
from tests.reference import layouts as slow

LAYER = "model.layers.1.mlp.up_proj"
STATE = f"{LAYER}.weight.quant_state.bitsandbytes__nf4"


def test_the_byte_of_the_docstring():
    codes = torch.tensor([[1, 2] * 16], dtype=torch.uint8)
    quantized = QuantizedTensor(codes, torch.ones(1, 1), None, FOUR["nf4"], 32)
    assert FORMAT.encode(quantized, Layout(FOUR["nf4"], 32, "nf4"))["weight"].tolist() == [[0x12]] * 16


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(list(FOUR)), double=st.booleans(), rows=st.integers(1, 40), blocks=st.integers(1, 4),
    block=st.sampled_from([32, 64, 128]), seed=st.integers(0, 99),
)  # fmt: skip
def test_every_codebook_comes_back_and_is_packed_as_by_hand(kind, double, rows, blocks, block, seed):
    weight = torch.randn(rows, blocks * block, generator=torch.Generator().manual_seed(seed))
    quantized = bnb.quantize(weight, FOUR[kind], block, double)
    tensors = round_trip(FORMAT, quantized, Layout(FOUR[kind], block, kind, double))
    assert tensors["weight"].flatten().tolist() == slow.four_bit(quantized.codes.tolist())
    state = json.loads(bytes(tensors[f"weight.quant_state.bitsandbytes__{kind}"].tolist()))
    assert state["blocksize"] == block and state["shape"] == list(quantized.shape)


@settings(deadline=None, max_examples=20)
@given(rows=st.integers(1, 9), columns=st.integers(1, 70), seed=st.integers(0, 99))
def test_int8_comes_back(rows, columns, seed):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    quantized = bnb.quantize(weight, INT8)
    tensors = round_trip(FORMAT, quantized, Layout(INT8, -1, "int8"))
    assert (tensors["weight"].int() + 128).tolist() == quantized.codes.tolist()


@pytest.mark.parametrize(
    "recipe",
    [
        {"method": "nf4"},
        {"method": "fp4", "double": False, "lm_head": True},
        {"method": "int8", "layers": {"*.1.*up_proj": "float"}},
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_folders_come_back(tmp_path, family, recipe):
    check_comes_back(*exported(tmp_path / "out", "bitsandbytes", family, **recipe))


@pytest.mark.parametrize("threshold", [2.5, None])
def test_thresholds_of_int8_come_back(tmp_path, threshold):
    model = exported(tmp_path / "out", "bitsandbytes", method="int8")[0]
    layers = [layer for layer in model.modules() if hasattr(layer, "threshold")]
    for layer in layers:
        layer.threshold = threshold
    qtutor.export(model, tmp_path / "out", "bitsandbytes")
    assert qtutor.load_quantized(tmp_path / "out").get_submodule(LAYER).threshold == threshold
    layers[3].threshold = 1.0
    with pytest.raises(qtutor.QtutorError, match=r"o_proj has another kind of codes than the others .*threshold 1\.0"):
        qtutor.export(model, tmp_path / "out", "bitsandbytes")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({}, "q_proj has 4 bits, evenly spaced, and the format 'bitsandbytes' holds nf4, fp4 and int8"),
        ({"method": "nf4", "group_size": 16}, "q_proj has blocks of 16, .*holds blocks of 32, 64"),
        ({"method": "nf4", "layers": {"*.0.*up_proj": {"double": False}}}, "up_proj has another kind of codes"),
    ],
)
def test_what_it_cannot_hold_is_sent_elsewhere(tmp_path, recipe, message):
    with pytest.raises(qtutor.QtutorError, match=message):
        exported(tmp_path / "out", "bitsandbytes", **recipe)


def state(**values):
    def change(tensors):
        found = json.loads(bytes(tensors[STATE].tolist())) | values
        tensors[STATE] = torch.tensor(list(json.dumps(found).encode()), dtype=torch.uint8)

    return change


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (state(blocksize=48), ["blocksize is 48"]),
        (state(blocksize=128), ["blocks of 128 cross from row to row of 64"]),
        (state(blocksize=64), ["absmax has 256 scales, expected 128"]),
        (state(shape=[64, 128]), ["shape is [64, 128]; expected [128, 64]"]),
        (state(nested_offset="0"), ["nested_offset is '0'"]),
        (state(nested_blocksize=64), ["nested_blocksize is 64"]),
        (lambda t: t.update({STATE: t[STATE][:-3]}), ["quant_state is damaged"]),
        (lambda t: t[f"{LAYER}.weight.quant_map"].add_(0.1), ["quant_map holds other levels than nf4"]),
        (lambda t: t[f"{LAYER}.weight.nested_quant_map"].mul_(2), ["nested_quant_map holds other levels"]),
        (lambda t: t.pop(f"{LAYER}.weight.nested_absmax"), ["nested_absmax is missing"]),
        (lambda t: t.update({f"{LAYER}.weight.nested_absmax": torch.ones(7)}), ["nested_absmax is [7], expected [1]"]),
        (lambda t: t.update({f"{LAYER}.weight": t[f"{LAYER}.weight"][:-1]}), ["U8 [4095, 1], expected U8 [4096, 1]"]),
    ],
)
def test_tensors_that_are_wrong(tmp_path, change, parts):
    folder = exported(tmp_path / "out", "bitsandbytes", method="nf4")[1]
    edit_tensors(folder, change)
    refused(folder, LAYER, *parts)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"load_in_8bit": True}, ["load_in_4bit is True and load_in_8bit True"]),
        ({"bnb_4bit_quant_type": "int4"}, ["bnb_4bit_quant_type is 'int4'"]),
        ({"bnb_4bit_quant_storage": "bfloat16"}, ["bnb_4bit_quant_storage is 'bfloat16'"]),
        ({"llm_int8_skip_modules": 3}, ["llm_int8_skip_modules is 3"]),
        ({"bnb_4bit_use_double_quant": False}, ["absmax is U8 [128], expected F32"]),
    ],
)
def test_settings_that_are_wrong(tmp_path, change, parts):
    folder = exported(tmp_path / "out", "bitsandbytes", method="nf4")[1]
    edit_settings(folder, lambda values: values.update(change))
    refused(folder, *parts)
