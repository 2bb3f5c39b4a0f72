"""AWQ: a word packed by hand, round trips of every grid, whole folders, and wrong folders."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qtutor
from qtutor.formats.awq import FORMAT
from qtutor.formats.foreign import Layout
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


def test_the_word_of_the_docstring():
    quantized = some(4, False, 8, 1, 1)
    quantized.codes[:, 0] = torch.arange(1, 9)
    quantized.zeros[:, 0] = torch.arange(1, 9)
    tensors = FORMAT.encode(quantized, Layout(quantized.grid, 1, "gemm"))
    assert words(tensors["qweight"]) == words(tensors["qzeros"]) == [[0x86427531]]


@settings(deadline=None, max_examples=60)
@given(
    symmetric=st.booleans(), eights=st.integers(1, 5), groups=st.integers(1, 4),
    group_size=st.sampled_from([1, 16, -1]), seed=st.integers(0, 99),
)  # fmt: skip
def test_every_grid_comes_back_and_is_packed_as_by_hand(symmetric, eights, groups, group_size, seed):
    quantized = some(4, symmetric, 8 * eights, groups * (11 if group_size == -1 else group_size), group_size, seed)
    tensors = round_trip(FORMAT, quantized, Layout(qtutor.IntGrid(4), group_size, "gemm"))
    assert words(tensors["qweight"]) == slow.awq(quantized.codes.tolist())
    zeros = torch.full(quantized.scales.shape, 8) if symmetric else quantized.zeros
    assert words(tensors["qzeros"]) == slow.awq(zeros.tolist())


@pytest.mark.parametrize("recipe", [{}, {"symmetric": True, "layers": {"*.1.*up_proj": "float"}}])
@pytest.mark.parametrize("family", FAMILIES)
def test_folders_come_back(tmp_path, family, recipe):
    check_comes_back(*exported(tmp_path / "out", "awq", family, **recipe))


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"bits": 3}, "q_proj has 3 bits, and the format 'awq' holds 4"),
        ({"lm_head": True}, "lm_head has packed weights, and the format 'awq' keeps the head in float"),
        ({"layers": {"*.0.*up_proj": {"group_size": 64}}}, "layers.0.mlp.up_proj has groups of 64, .*q_proj of 32"),
        ({"method": "int8"}, "q_proj has the levels of int8"),
    ],
)
def test_what_it_cannot_hold_is_sent_elsewhere(tmp_path, recipe, message):
    with pytest.raises(qtutor.QtutorError, match=message):
        exported(tmp_path / "out", "awq", **recipe)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"bits": 8}, ["bits is 8; expected 4"]),
        ({"version": "gemv"}, ["version is 'gemv'"]),
        ({"zero_point": False}, ["zero_point is False"]),
        ({"group_size": 64}, ["qzeros is I32 [2, 8], expected I32 [1, 8]"]),
        ({"modules_to_not_convert": "lm_head"}, ["modules_to_not_convert is 'lm_head'"]),
        ({"modules_to_not_convert": ["up_proj"]}, ["missing: model.layers.0.mlp.up_proj.weight"]),
    ],
)
def test_settings_that_are_wrong(tmp_path, change, parts):
    folder = exported(tmp_path / "out", "awq")[1]
    edit_settings(folder, lambda values: values.update(change))
    refused(folder, *parts)


def test_settings_beside_may_name_their_own_method(tmp_path):
    """quantize_config.json is GPTQ's file, if it does not say anything else."""
    model, folder = exported(tmp_path / "out", "awq")
    values = json.loads((folder / "config.json").read_text())
    (folder / "quantize_config.json").write_text(json.dumps(values.pop("quantization_config")))
    (folder / "config.json").write_text(json.dumps(values))
    check_comes_back(model, folder)


def test_a_tensor_that_is_missing(tmp_path):
    folder = exported(tmp_path / "out", "awq")[1]
    edit_tensors(folder, lambda tensors: tensors.pop("model.layers.0.mlp.up_proj.scales"))
    refused(folder, "model.layers.0.mlp.up_proj.scales is missing")
