"""A file's layout is fixed before its tensors exist, and it has the bytes that the safetensors library writes."""

import itertools
import json
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from safetensors.torch import load_file
from safetensors.torch import save_file as theirs

from qtutor.formats.headers import read_header
from qtutor.formats.shards import NAMES, ShardFile, Shards, bytes_of, index_text, is_begun, laid_out, save_file

DTYPES = list(NAMES)
SHAPES = some.lists(some.integers(0, 5), max_size=3).map(tuple)
NAMED = some.text('ab.é"\\_0', min_size=1, max_size=5)
KINDS = some.dictionaries(NAMED, some.tuples(some.sampled_from(DTYPES), SHAPES), min_size=1, max_size=6)


def filled(kinds, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randint(0, 99, shape, generator=generator).to(dtype) for name, (dtype, shape) in kinds.items()}


@settings(max_examples=60, deadline=None)
@given(KINDS)
def test_a_file_has_the_bytes_of_the_library(tmp_path_factory, kinds):
    folder, tensors = tmp_path_factory.mktemp("both"), filled(kinds)
    theirs(tensors, folder / "theirs.safetensors", metadata={"format": "pt"})
    save_file(tensors, folder / "ours.safetensors")
    assert (folder / "ours.safetensors").read_bytes() == (folder / "theirs.safetensors").read_bytes()


@settings(max_examples=60, deadline=None)
@given(KINDS, some.integers(1, 200))
def test_several_files_hold_every_tensor_once_and_none_is_larger_than_it_must_be(tmp_path_factory, kinds, largest):
    folder, tensors = tmp_path_factory.mktemp("shards"), filled(kinds)
    files = laid_out(kinds, largest)
    with Shards(folder, files) as shards:
        for name in reversed(kinds):  # in any order
            shards.write(name, tensors[name])
    found = {}
    for number, file in enumerate(files, 1):
        count = len(files)
        assert file.name == ("model.safetensors" if count == 1 else f"model-{number:05}-of-{count:05}.safetensors")
        held = {name: stored.nbytes for name, stored in read_header(folder / file.name).tensors.items()}
        assert set(held) == set(file.places) and (
            sum(held.values()) <= largest or len(held) - list(held.values()).count(0) <= 1
        )
        assert (folder / file.name).stat().st_size == file.size
        found |= load_file(folder / file.name)
    sizes = [[bytes_of(kind) for name, kind in kinds.items() if name in file.places] for file in files]
    for held, following in itertools.pairwise(sizes):
        assert sum(held) + following[0] > largest  # a file ends only where the next tensor has no room
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert list(kinds) == [name for file in files for name in kinds if name in file.places]  # in their order
    index = index_text(files)
    assert (index is None) == (len(files) == 1)
    if index:
        told = json.loads(index)
        assert index == json.dumps(told, indent=2) + "\n"  # for people, as transformers writes it
        assert told["metadata"]["total_size"] == sum(map(bytes_of, kinds.values()))
        assert told["weight_map"] == {name: file.name for file in files for name in file.places}


def test_a_file_holds_5_gb_unless_one_tensor_is_larger():
    sizes = {"a": 4 * 10**9, "b": 10**9, "c": 1, "d": 6 * 10**9, "e": 5 * 10**9}
    files = laid_out({name: (torch.uint8, (size,)) for name, size in sizes.items()})
    assert [list(file.places) for file in files] == [["a", "b"], ["c"], ["d"], ["e"]]


def test_what_is_written_stays_when_files_are_opened_again(tmp_path):
    kinds = {"a": (torch.float32, (3, 4)), "b": (torch.uint8, (5,)), "c": (torch.bfloat16, ())}
    tensors, files = filled(kinds), laid_out(kinds)
    (tmp_path / "model.safetensors").write_bytes(b"x" * files[0].size)  # no such file: it is begun anew
    for names in ("a", "cb"):
        with Shards(tmp_path, files) as shards:
            for name in names:
                shards.write(name, tensors[name])
    with Shards(tmp_path, files) as shards:
        assert all(torch.equal(shards.read(name, kinds[name]), tensors[name]) for name in kinds)
        assert shards.digest(kinds) == shards.digest(dict(reversed(kinds.items())))
        before = shards.digest({"a": kinds["a"]})
        shards.write("b", tensors["b"] + 1)
        assert shards.digest({"a": kinds["a"]}) == before != shards.digest(kinds)
    assert all(torch.equal(t, tensors[n] + (n == "b")) for n, t in load_file(tmp_path / "model.safetensors").items())


def test_flushed_bytes_are_in_the_files_before_these_are_closed(tmp_path):
    kinds = {"a": (torch.uint8, (50,)), "b": (torch.uint8, (70,))}
    tensors = filled(kinds)
    with Shards(tmp_path, laid_out(kinds, largest=50)) as shards:
        for name, tensor in tensors.items():
            shards.write(name, tensor)
        handles = shards.flush()
        found = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
        assert [content[-tensor.numel() :] for content, tensor in zip(found, tensors.values(), strict=True)] == [
            bytes(tensor.tolist()) for tensor in tensors.values()
        ]
        assert {os.fstat(handle).st_ino for handle in handles} == {path.stat().st_ino for path in tmp_path.iterdir()}


def test_values_are_converted_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr("qtutor.formats.shards.CHUNK", 7)
    values = torch.randn(5, 9)
    with Shards(tmp_path, laid_out({"a": (torch.bfloat16, (5, 9))})) as shards:
        shards.write("a", values, torch.bfloat16)
        assert torch.equal(shards.read("a", (torch.bfloat16, (5, 9))), values.bfloat16())
        for strided in (values.T.contiguous().T, values.bfloat16().T.contiguous().T):  # stored column by column
            assert not strided.is_contiguous()
            shards.write("a", torch.zeros(5, 9), torch.bfloat16)
            shards.write("a", strided, torch.bfloat16)
            assert torch.equal(shards.read("a", (torch.bfloat16, (5, 9))), values.bfloat16())


@pytest.mark.parametrize("what", ["shorter", "another header", "a link", "a folder"])
def test_only_the_same_file_is_gone_on_with(tmp_path, what):
    (file,) = laid_out({"a": (torch.float32, (9,))})
    path = tmp_path / file.name
    with Shards(tmp_path, [file]):
        pass
    assert is_begun(path, file)
    if what == "shorter":
        path.write_bytes(path.read_bytes()[:-1])
    elif what == "another header":
        file = ShardFile(file.name, file.header.replace(b'"a"', b'"b"'), {"b": file.places["a"]}, file.size)
    elif what == "a link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.unlink()
        path.mkdir()
    assert not is_begun(path, file)


def test_every_dtype_has_its_name():
    for dtype in DTYPES:
        (file,) = laid_out({"a": (dtype, (2,))})
        assert NAMES[dtype].encode() in file.header
