"""Folders that llm-compressor and GPTQModel wrote: weights are those that these tools decode, and folders are sound."""

import json
import shutil

import pytest

import qtutor
from qtutor.doctor import examine
from qtutor.runtime.linear import QuantLinear
from tests.formats.make_peer_folders import FOLDERS, MADE, WEIGHTS, digest
from tests.gguf.small_tokenizers import letters

weights = json.loads(WEIGHTS.read_text())


@pytest.fixture
def folder(request, tmp_path):
    """The name of a folder, and a copy of it with a tokenizer."""
    letters().save_pretrained(tmp_path / "out")
    shutil.copytree(FOLDERS / request.param, tmp_path / "out", dirs_exist_ok=True)
    return request.param, tmp_path / "out"


@pytest.mark.parametrize("folder", MADE, indirect=True)
def test_weights_are_those_that_the_tool_decodes(folder):
    name, path = folder
    model, _ = qtutor.load(path, device="cpu")
    ours = {f"{at}.weight": layer for at, layer in model.named_modules() if isinstance(layer, QuantLinear)}
    assert {at: digest(layer.dequantized(), name) for at, layer in ours.items()} == weights[name]
    assert len(ours) == 14


@pytest.mark.parametrize("folder", MADE, indirect=True)
def test_the_doctor_finds_them_sound(folder):
    found = examine(folder[1]).findings
    assert not [one for one in found if one.kind not in ("forward pass", "tokenizer")], found


def test_no_folder_is_forgotten():
    assert weights.keys() == MADE.keys() == {path.name for path in FOLDERS.iterdir() if path.is_dir()}
