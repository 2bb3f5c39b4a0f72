"""A different recipe, text or checkpoint has a different fingerprint; equal ones have the same fingerprint."""

import json
import random
from types import SimpleNamespace

import pytest
import torch

import qtutor
from qtutor.calibration.mapped import Weights
from qtutor.pipeline import fingerprints
from qtutor.pipeline.fingerprints import fingerprint, of_file
from tests.models import some_ids, tiny


def is_found(path, place: int) -> bool:
    """Whether the fingerprint of a file changes with the byte at ``place``."""
    data, before = path.read_bytes(), of_file(path)
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    changed = of_file(path) != before
    path.write_bytes(data)
    return changed


def test_a_change_anywhere_is_found_as_far_as_the_file_is_read(tmp_path, monkeypatch):
    """A file of up to a megabyte is read completely. Of a larger file, pieces from all over it are read."""
    monkeypatch.setattr(fingerprints, "BEGINNING", 64)
    path, chance = tmp_path / "a.safetensors", random.Random(0)
    data = chance.randbytes(900_000)
    path.write_bytes(data)
    before = of_file(path)
    assert before == of_file(path) and before.startswith("900000 bytes, sha256 ")
    for place in (0, 70, 899_999, *(chance.randrange(900_000) for _ in range(20))):
        assert is_found(path, place), place
    path.write_bytes(data[:-1])
    assert of_file(path) != before


def test_of_a_large_file_256_pieces_of_4_kb_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "BEGINNING", 64)
    path, size = tmp_path / "a.gguf", 4096 + 255 * 20_000  # a piece begins at every multiple of 20,000
    path.write_bytes(bytes(size))
    read = {0: True, 4095: True, 4096: False, 20_000: True, 24_095: True, 24_096: False, 39_999: False}
    for place, found in {**read, size - 4097: False, size - 4096: True, size - 1: True}.items():
        assert is_found(path, place) == found, place


def test_the_first_megabyte_is_read_as_a_whole(tmp_path):
    """GGUF files have their metadata there."""
    path, size = tmp_path / "a.gguf", 4096 + 255 * 20_000
    path.write_bytes(bytes(size))
    for place, found in ((12_345, True), (2**20 - 1, True), (2**20 + 10_000, False)):
        assert is_found(path, place) == found, place


def test_models_with_the_same_bytes_in_other_tensors_differ():
    """The name, dtype and shape of each tensor count, too."""

    def of(module, cast=torch.float32, name="a"):
        model = torch.nn.ModuleDict({name: module.to(cast)})
        return fingerprints._of_tensors(SimpleNamespace(model=model, tensor=model.get_parameter))

    def zeros(*shape):
        return torch.nn.ParameterDict({"weight": torch.zeros(shape)})

    same, others = of(zeros(2, 3)), [of(zeros(3, 2)), of(zeros(2, 3), name="b"), of(zeros(2, 6), torch.float16)]
    assert of(zeros(2, 3)) == same and len({same, *others}) == 4


def test_a_header_is_read_as_a_whole(tmp_path, monkeypatch):
    """It has the names and shapes of all tensors. A large model's is longer than the beginning that is always read."""
    monkeypatch.setattr(fingerprints, "BEGINNING", 64)
    monkeypatch.setattr(fingerprints, "PIECES", 2)  # the first and the last bytes: nothing else of the tensors
    path, length = tmp_path / "a.safetensors", 100_000
    data = length.to_bytes(8, "little") + bytes(3 * length)
    path.write_bytes(data)
    for place, found in ((length // 2, True), (length + 7, True), (length + 8, False), (2 * length, False)):
        assert is_found(path, place) == found, place


@pytest.mark.parametrize("size", [0, 5, 4096, 5000])
def test_small_files_have_one_as_well(tmp_path, size):
    for suffix in ("gguf", "safetensors"):
        (tmp_path / f"a.{suffix}").write_bytes(bytes(size))
        assert of_file(tmp_path / f"a.{suffix}").startswith(f"{size} bytes")


def test_what_is_in_it():
    weights, recipe, ids = Weights(tiny()), qtutor.Recipe("gptq", group_size=32), some_ids(2, 8)
    found = fingerprint(weights, recipe, ids)
    assert json.loads(json.dumps(found)) == found and list(found)[:3] == ["recipe", "checkpoint", "calibration text"]
    assert found == fingerprint(Weights(tiny()), qtutor.Recipe("gptq", group_size=32), ids.clone())
    other = fingerprint(Weights(tiny(seed=1)), recipe, ids)
    assert {key for key in found if found[key] != other[key]} == {"checkpoint"}
    for changed in (ids + 1, ids[:1], ids.reshape(4, 4), None):
        other = fingerprint(weights, recipe, changed)
        assert {key for key in found if found[key] != other[key]} == {"calibration text"}
    assert found == fingerprint(weights, recipe, ids.to(torch.int32))
