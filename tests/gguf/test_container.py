"""Writer and reader of the container: everything comes back with its type, and a damaged file gets a message."""

import os
import resource
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qtutor.gguf import encode, read
from qtutor.gguf.container import NUMBERS, GGUFError
from qtutor.gguf.layout import ALL_TYPES
from qtutor.gguf.writer import Tensor, write
from tests.gguf import inputs

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
dtypes = st.sampled_from(list(NUMBERS.values()))
numbers = dtypes.flatmap(lambda dtype: hnp.arrays(dtype, 1).map(lambda array: array[0]))
arrays = st.one_of(
    dtypes.flatmap(lambda dtype: hnp.arrays(dtype, st.integers(0, 9))),
    hnp.arrays(bool, st.integers(0, 9)),
    st.lists(text, max_size=9),
)
keys = text.filter(lambda key: key and key != "general.alignment")
metadata = st.dictionaries(keys, st.one_of(text, st.booleans(), numbers, arrays), max_size=8)


def same(a, b) -> bool:
    """Equal in value and in type, NaN included."""
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()
    return type(a) is type(b) and a == b


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(entries=metadata, alignment=st.sampled_from([None, 8, 32, 64]))
def test_metadata_of_every_type_comes_back(tmp_path, entries, alignment):
    if alignment:
        entries = {**entries, "general.alignment": alignment}
    size = write(tmp_path / "a.gguf", entries, [Tensor("t", (2,), "F32", np.arange(8, dtype=np.uint8))])
    file = read(tmp_path / "a.gguf")
    assert size == (tmp_path / "a.gguf").stat().st_size
    assert list(file.metadata) == list(entries)
    for key, value in entries.items():
        assert same(np.uint32(value) if key == "general.alignment" else value, file.metadata[key])
    assert file.tensors["t"].offset % (alignment or 32) == 0
    assert file.data("t").tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]


def test_python_numbers_become_what_llama_cpp_expects(tmp_path):
    entries = {"a": 1, "b": -1, "c": 2**40, "d": -(2**40), "e": 0.1, "f": [1, -2], "g": [0.5], "h": (True, False)}
    write(tmp_path / "a.gguf", entries)
    found = read(tmp_path / "a.gguf").metadata
    assert [type(found[key]) for key in "abcde"] == [np.uint32, np.int32, np.uint64, np.int64, np.float32]
    assert [str(found[key].dtype) for key in "fgh"] == ["int32", "float32", "bool"]


def weights_file(path, count=3):
    tensors = [
        Tensor(f"blk.{i}.weight", (4, 256), name, encode(inputs.gaussian(4, 256, i + 1), name))
        for i, name in enumerate(["Q4_0", "Q8_0", "F16", "MXFP4"][:count])
    ]
    entries = {"general.architecture": "llama", "llama.block_count": 2, "tokens": ["a", "b"], "scores": [0.5, 1.0]}
    write(path, entries, tensors)
    return path


def test_tensors_come_back(tmp_path):
    file = read(weights_file(tmp_path / "a.gguf"))
    assert {name: (info.shape, info.type.name) for name, info in file.tensors.items()} == {
        "blk.0.weight": ((4, 256), "Q4_0"), "blk.1.weight": ((4, 256), "Q8_0"), "blk.2.weight": ((4, 256), "F16")
    }  # fmt: skip
    assert np.array_equal(file.data("blk.0.weight"), encode(inputs.gaussian(4, 256, 1), "Q4_0"))
    assert np.abs(file.weight("blk.1.weight") - inputs.gaussian(4, 256, 2)).max() < 1e-3
    assert not file.data("blk.0.weight").flags.writeable
    with pytest.raises(GGUFError, match=r"no tensor is called 'x'. It has blk\.0"):
        file.data("x")


def test_shapes_and_types_without_a_decoder(tmp_path):
    data = np.arange(82, dtype=np.uint8)
    tensors = [
        Tensor("iq", (1, 256), "IQ2_S", data),
        Tensor("deep", (2, 1, 3, 4), "I8", lambda: np.arange(24, dtype=np.uint8)),
    ]
    write(tmp_path / "a.gguf", {}, tensors)
    file = read(tmp_path / "a.gguf")
    assert file.tensors["deep"].shape == (2, 1, 3, 4)
    assert file.data("deep").ravel().tolist() == list(range(24))
    assert file.data("iq").ravel().tolist() == data.tolist()
    with pytest.raises(GGUFError, match="'iq' is IQ2_S, which qtutor does not decode"):
        file.weight("iq")


def test_the_gguf_package_reads_it_too(tmp_path):
    gguf = pytest.importorskip("gguf", reason="the gguf package is not installed here")
    theirs = gguf.GGUFReader(weights_file(tmp_path / "a.gguf"))
    assert [tensor.name for tensor in theirs.tensors] == ["blk.0.weight", "blk.1.weight", "blk.2.weight"]
    assert np.array_equal(theirs.tensors[1].data, encode(inputs.gaussian(4, 256, 2), "Q8_0"))
    assert theirs.fields["tokens"].contents() == ["a", "b"]


bad_tensors = [
    ([Tensor("a" * 64, (1,), "F32", np.zeros(4, np.uint8))], "tensor name 'a+'"),
    ([Tensor("", (1,), "F32", np.zeros(4, np.uint8))], "tensor name ''"),
    ([Tensor("a", (1,), "F32", np.zeros(4, np.uint8))] * 2, "it has to be new"),
    ([Tensor("a", (1,), "Q9", np.zeros(4, np.uint8))], "type 'Q9' is not one of F32"),
    (
        [Tensor("a", (2, 100), "Q4_0", np.zeros(4, np.uint8))],
        r"shape \[2, 100\] cannot be stored as Q4_0.*multiple of 32",
    ),
    ([Tensor("a", (1,) * 5, "F32", np.zeros(4, np.uint8))], "1 to 4 dimensions"),
    ([Tensor("a", (0, 4), "F32", np.zeros(0, np.uint8))], "dimensions above 0"),
    ([Tensor("a", (2,), "F32", np.zeros(4, np.uint8))], "4 values of uint8 .* takes 8 bytes"),
    ([Tensor("a", (1,), "F32", np.zeros(4, np.float32))], "4 values of float32"),
]
bad_metadata = [
    ({"": 1}, "metadata key ''"),
    ({1: 1}, "metadata key 1"),
    ({"a": None}, "'a': a NoneType cannot be stored"),
    ({"a": 2**64}, "does not fit into 64 bits"),
    ({"a": [[1], [2]]}, "an array of int64 with 2 dimensions|no lists of lists"),
    ({"a": [[1], [2, 3]]}, "no lists of lists"),
    ({"a": ["x", 1]}, "an array of <U"),
    ({"a": np.zeros((2, 2), np.float32)}, "2 dimensions"),
    ({"a": np.zeros(2, np.complex64)}, "complex64"),
    ({"a": "\ud800"}, "half a surrogate pair"),
    ({"general.alignment": 24}, "power of two"),
    ({"general.alignment": 0}, "power of two"),
]


@pytest.mark.parametrize("tensors, message", bad_tensors)
def test_tensors_that_cannot_be_written(tmp_path, tensors, message):
    with pytest.raises(GGUFError, match=message):
        write(tmp_path / "a.gguf", {}, tensors)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("entries, message", bad_metadata)
def test_metadata_that_cannot_be_written(tmp_path, entries, message):
    with pytest.raises(GGUFError, match=message):
        write(tmp_path / "a.gguf", entries)
    assert os.listdir(tmp_path) == []


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = weights_file(tmp_path / "a.gguf")
    before = path.read_bytes()

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(path, {}, [Tensor("a", (1,), "F32", np.zeros(4, np.uint8)), Tensor("b", (1,), "F32", interrupted)])
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.gguf"]


def test_a_disk_without_room_leaves_the_old_file(tmp_path):
    """A limit on the size of files replaces a full disk: write() fails half-way, as on a full disk."""
    path = weights_file(tmp_path / "a.gguf")
    before = path.read_bytes()
    program = (
        "import resource, signal, sys, numpy as np\nfrom qtutor.gguf.writer import *\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try: write(sys.argv[1], {}, [Tensor('a', (100_000,), 'I8', np.zeros(100_000, np.uint8))])\n"
        "except GGUFError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert "cannot be written: File too large" in done.stdout
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.gguf"]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(GGUFError, match="cannot be written: No such file or directory"):
        write(tmp_path / "no" / "a.gguf", {})
    with pytest.raises(GGUFError, match="cannot be read: No such file or directory"):
        read(tmp_path / "a.gguf")
    with pytest.raises(GGUFError, match="cannot be read: Is a directory"):
        read(tmp_path)


# Malformed files, built by hand: label -> the bytes of the file, and what the message has to name.


def pack(kind, *values):
    return struct.pack("<" + kind, *values)


def entry(key: bytes, kind: int, data: bytes) -> bytes:
    return pack("Q", len(key)) + key + pack("I", kind) + data


def info(name=b"t", sizes=(8,), kind=0, offset=0, dimensions=None) -> bytes:
    count = len(sizes) if dimensions is None else dimensions
    return pack("Q", len(name)) + name + pack(f"I{len(sizes)}Q", count, *sizes) + pack("IQ", kind, offset)


def build(entries=(), infos=(), data=b"", version=3, magic=b"GGUF", tensor_count=None, entry_count=None) -> bytes:
    head = magic + pack("IQQ", version, len(infos) if tensor_count is None else tensor_count,
                        len(entries) if entry_count is None else entry_count)  # fmt: skip
    head += b"".join(entries) + b"".join(infos)
    return head + bytes(-len(head) % 32) + data


HUGE = 2**64 - 1
ROOM = bytes(4096)
malformed = {
    "empty": (b"", "magic at byte 0 is cut off"),
    "one byte": (b"G", "magic at byte 0 is cut off"),
    "magic only": (b"GGUF", "version at byte 4 is cut off"),
    "another magic": (build(magic=b"GGML"), "magic at byte 0 is b'GGML'"),
    "a safetensors file": (pack("Q", 40) + b'{"a":1}' + ROOM, "magic at byte 0"),
    "version 0": (build(version=0), "version at byte 4 is version 0"),
    "version 1": (build(version=1), "version at byte 4 is version 1"),
    "version 4": (build(version=4), "version at byte 4 is version 4"),
    "big-endian": (build(version=3 << 24), "version at byte 4 is a big-endian file"),
    "no counts": (b"GGUF" + pack("I", 3), "number of tensors at byte 8 is cut off"),
    "half a count": (b"GGUF" + pack("IQI", 3, 0, 0), "number of metadata entries at byte 16 is cut off"),
    "huge tensor count": (build(tensor_count=HUGE), "number of tensors at byte 8 is 18446744073709551615"),
    "large tensor count": (build(tensor_count=10**9, data=ROOM), "number of tensors at byte 8 is 1000000000"),
    "huge entry count": (build(entry_count=HUGE), "number of metadata entries at byte 16"),
    "one tensor too many": (build(infos=[info()], tensor_count=2, data=bytes(32)), "name of tensor 1|dimensions of"),
    "one entry too many": (build([entry(b"a", 0, b"\1")], entry_count=2, data=ROOM), "key of metadata entry 1"),
    "key longer than the file": (build([pack("Q", 10**6)], data=ROOM), "length of key of metadata entry 0 at byte 24"),
    "key of 2**64": (build([pack("Q", HUGE)], data=ROOM), "length of key of metadata entry 0 at byte 24"),
    "key too long": (build([entry(b"k" * 65536, 0, b"\1")]), "length of key of metadata entry 0 at byte 24 is 65536"),
    "empty key": (build([entry(b"", 0, b"\1")], data=ROOM), "key of metadata entry 0 at byte 24 is ''"),
    "key twice": (build([entry(b"k", 0, b"\1")] * 2), "key of metadata entry 1 at byte 38 is 'k'"),
    "key not UTF-8": (build([entry(b"\xff\xfe", 0, b"\1")]), "key of metadata entry 0 at byte 24 is no UTF-8"),
    "value type 13": (build([entry(b"k", 13, ROOM)]), "type of k at byte 33 is 13"),
    "value type 2**32": (build([entry(b"k", 2**32 - 1, ROOM)]), "type of k at byte 33"),
    "value cut off": (build([entry(b"k", 10, b"")])[:40], "k at byte 37 is cut off"),
    "bool 2": (build([entry(b"k", 7, b"\2")]), "bool in k at byte 37 is 2"),
    "string longer than the file": (
        build([entry(b"k", 8, pack("Q", 5000))], data=ROOM), "length of k at byte 37 is 5000"),
    "string of 2**63": (build([entry(b"k", 8, pack("Q", 2**63))], data=ROOM), "length of k at byte 37"),
    "string not UTF-8": (build([entry(b"k", 8, pack("Q", 2) + b"\xc3\x28")]), "k at byte 37 is no UTF-8"),
    "array of arrays": (build([entry(b"k", 9, pack("IQ", 9, 1) + ROOM)]), "element type of k at byte 37 is 9"),
    "arrays a thousand deep": (build([entry(b"k", 9, pack("IQ", 9, 1) * 1000)]), "element type of k at byte 37 is 9"),
    "array of nothing known": (build([entry(b"k", 9, pack("IQ", 99, 1) + ROOM)]), "element type of k at byte 37 is 99"),
    "array of 2**64 bytes": (build([entry(b"k", 9, pack("IQ", 0, HUGE) + ROOM)]), "length of k at byte 41"),
    "array of 2**61 uint64": (build([entry(b"k", 9, pack("IQ", 10, 2**61) + ROOM)]), "length of k at byte 41"),
    "array of 1e9 strings": (
        build([entry(b"k", 9, pack("IQ", 8, 10**9) + ROOM)]), "length of k at byte 41 is 1000000000"),
    "array of 1e9 bools": (
        build([entry(b"k", 9, pack("IQ", 7, 10**9) + ROOM)]), "length of k at byte 41 is 1000000000"),
    "bool 3 in an array": (build([entry(b"k", 9, pack("IQ", 7, 3) + b"\0\1\3")]), "bool in k at byte 51 is 3"),
    "last string cut off": (build([entry(b"k", 9, pack("IQQ", 8, 1, 99))]), r"length of k\[0\] at byte 49"),
    "alignment 0": (
        build([entry(b"general.alignment", 4, pack("I", 0))]), "general.alignment at byte 53 is np.uint32.0"),
    "alignment 3": (build([entry(b"general.alignment", 4, pack("I", 3))]), "general.alignment at byte 53"),
    "alignment 2**31": (build([entry(b"general.alignment", 4, pack("I", 2**31))]), "general.alignment at byte 53"),
    "alignment as text": (build([entry(b"general.alignment", 8, pack("Q", 1) + b"8")]), "general.alignment at byte 53"),
    "alignment as uint64": (build([entry(b"general.alignment", 10, pack("Q", 32))]), "general.alignment at byte 53"),
    "no tensor name": (build(infos=[info(b"")], data=ROOM), "number of dimensions of ''"),
    "tensor name too long": (build(infos=[info(b"n" * 64)], data=ROOM), "length of name of tensor 0 at byte 24 is 64"),
    "tensor name of 2**64": (build(infos=[pack("Q", HUGE)], data=ROOM), "length of name of tensor 0 at byte 24"),
    "tensor name not UTF-8": (build(infos=[info(b"\xff")], data=ROOM), "name of tensor 0 at byte 24 is no UTF-8"),
    "tensor name twice": (
        build(infos=[info(), info(offset=32)], data=ROOM), "tensor name at byte 57 is 't'"),
    "no dimensions": (build(infos=[info(sizes=())], data=ROOM), "number of dimensions of 't' at byte 33 is 0"),
    "five dimensions": (build(infos=[info(sizes=(1,) * 5)], data=ROOM), "number of dimensions of 't' at byte 33 is 5"),
    "2**32 dimensions": (
        build(infos=[info(dimensions=2**32 - 1)], data=ROOM), "number of dimensions of 't' at byte 33"),
    "dimension 0": (build(infos=[info(sizes=(8, 0))], data=ROOM), r"dimensions of 't' at byte 37 is \[8, 0\]"),
    "dimension 2**64": (build(infos=[info(sizes=(HUGE,))], data=ROOM), "dimensions of 't' at byte 37"),
    "product beyond 64 bits": (build(infos=[info(sizes=(2**32, 2**32, 2))], data=ROOM), "dimensions of 't' at byte 37"),
    "half a block": (
        build(infos=[info(sizes=(48,), kind=2)], data=ROOM), "dimensions of 't' at byte 37 is .48.*of 32 .Q4_0"),
    "half a super-block": (build(infos=[info(sizes=(128,), kind=12)], data=ROOM), "of 256 .Q4_K"),
    "removed type 4": (build(infos=[info(kind=4)], data=ROOM), "tensor 't' is Q4_2, a type that llama.cpp removed"),
    "removed type 38": (build(infos=[info(kind=38)], data=ROOM), "tensor 't' is IQ4_NL_8_8, a type that llama.cpp"),
    "type 1000": (build(infos=[info(kind=1000)], data=ROOM), "type of tensor 't' at byte 45 is 1000"),
    "offset 32 for the first": (build(infos=[info(offset=32)], data=ROOM), "offset of tensor 't' at byte 24 is 32"),
    "offset not aligned": (
        build(infos=[info(), info(b"u", offset=40)], data=ROOM), "offset of tensor 'u' at byte 57 is 40"),
    "offsets overlap": (build(infos=[info(), info(b"u", offset=0)], data=ROOM), "offset of tensor 'u' at byte 57 is 0"),
    "offsets swapped": (
        build(infos=[info(offset=32), info(b"u", offset=0)], data=ROOM), "offset of tensor 't' at byte 24 is 32"),
    "a gap": (build(infos=[info(), info(b"u", offset=64)], data=ROOM), "offset of tensor 'u' at byte 57 is 64"),
    "offset 2**64": (build(infos=[info(offset=HUGE)], data=ROOM), "offset of tensor 't' at byte 24"),
    "no data": (build(infos=[info()]), "data of tensor 't' at byte 64 is 0 bytes, expected 32 bytes"),
    "data cut off": (build(infos=[info()], data=bytes(31)), "data of tensor 't' at byte 64 is 31 bytes"),
    "infos cut off": (build(infos=[info()])[:50], "number of tensors|cut off"),
}  # fmt: skip


@pytest.mark.parametrize("label", malformed)
def test_malformed_files_are_refused_by_field_and_offset(tmp_path, label):
    content, message = malformed[label]
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(GGUFError, match=message) as caught:
        read(tmp_path / "a.gguf")
    assert "a.gguf" in str(caught.value)
    assert len(str(caught.value)) < 800


def test_there_are_many_malformed_files():
    assert len(malformed) >= 60


FUZZ = """
import random, resource, sys, time
from pathlib import Path
from qtutor.gguf import read
from qtutor.gguf.container import GGUFError
limit = 2 << 30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
good, folder, count = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]), int(sys.argv[3])
generator, refused, slowest = random.Random(1), 0, 0.0
head = good.index(b"blk.2") + 60
for number in range(count):
    data = bytearray(good)
    for _ in range(generator.choice([1, 1, 2, 5])):
        at = generator.randrange(max(1, min(head, len(data))))
        kind = generator.randrange(5)
        if kind == 0: data[at:at + 1] = [generator.randrange(256)]
        elif kind == 1: data[at:at + 8] = generator.choice([b"\\xff" * 8, bytes(8), (2**31).to_bytes(8, "little")])
        elif kind == 2: del data[at:at + generator.randrange(1, 40)]
        elif kind == 3: data[at:at] = generator.randbytes(generator.randrange(1, 40))
        else: data = data[:generator.randrange(len(data))]
    path = folder / "mutated.gguf"
    path.write_bytes(data)
    start = time.perf_counter()
    try:
        file = read(path)
        for name in file.tensors: file.data(name).sum()
    except GGUFError as error:
        refused += 1
        assert str(path) in str(error)
    slowest = max(slowest, time.perf_counter() - start)
print(refused, slowest)
"""


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_files_give_nothing_but_gguf_errors(tmp_path, count):
    """The address space is limited to 2 GB. Any other exception or a crash ends the program and fails the test."""
    good = weights_file(tmp_path / "good.gguf")
    program = [sys.executable, "-c", FUZZ, str(good), str(tmp_path), str(count)]
    done = subprocess.run(
        program, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    refused, slowest = done.stdout.split()
    assert count * 0.5 < int(refused) < count  # some mutations only change a weight or a letter
    assert float(slowest) < 2


def test_reading_maps_and_does_not_load(tmp_path):
    """A sparse file of half a gigabyte is opened without loading its bytes into memory."""
    path = tmp_path / "big.gguf"
    size = 1 << 29
    path.write_bytes(build(infos=[info(sizes=(size,), kind=24)]))
    with open(path, "r+b") as file:
        file.truncate(64 + size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    opened = read(path)
    assert opened.data("t")[-1, -1] == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes
    assert ALL_TYPES["I8"].number == 24
