"""Importance matrices: the numbers, files equal to llama.cpp's byte for byte, and everything that can be wrong."""

import ctypes
import struct
import warnings

import numpy as np
import pytest
import torch

from qtutor import load_decoder
from qtutor.errors import QtutorError
from qtutor.gguf import GGUFError, Tensor, decode, encode, imatrix, write
from qtutor.gguf.imatrix import Entry, Imatrix
from tests.gguf import inputs, llama_cpp
from tests.models import FAMILIES, some_ids, tiny

KEYS = {"imatrix.datasets": ["a.txt"], "imatrix.chunk_count": np.uint32(2), "imatrix.chunk_size": np.uint32(24)}
NAMES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def some_imatrix() -> Imatrix:
    entries = {
        f"blk.{i}.ffn_down.weight": Entry(inputs.gaussian(1, 64, i + 1) ** 2 * 48, np.array([48], np.float32))
        for i in (2, 10, 0)
    }
    return Imatrix(entries, ["a.txt", "größer.txt"], 2, 24)


@pytest.mark.parametrize("family", FAMILIES)
def test_means_are_those_of_the_inputs(family):
    model, ids = tiny(family), some_ids()
    seen = {}
    for block, layer in enumerate(model.model.layers):
        for name, module in (("attn_k", layer.self_attn.k_proj), ("attn_output", layer.self_attn.o_proj),
                             ("ffn_up", layer.mlp.up_proj), ("ffn_down", layer.mlp.down_proj)):  # fmt: skip
            key = f"blk.{block}.{name}.weight"
            module.register_forward_pre_hook(lambda _, x, key=key: seen.__setitem__(key, x[0].detach().double()))
    found = imatrix.importance(model, ids, dataset="ids")
    with torch.inference_mode():
        model(ids)
    assert set(found.entries) == {f"blk.{block}.{name}.weight" for block in (0, 1) for name in NAMES}
    for key, x in seen.items():
        expected = x.square().mean(dim=(0, 1)).numpy()
        assert np.allclose(
            found.importance_of(key, len(expected)), expected, rtol=1e-6
        )  # rounding errors of a sum and a quotient in float32
        assert found.entries[key].counts == ids.numel()
    assert (found.datasets, found.chunk_count, found.chunk_size) == (["ids"], *ids.shape)


def test_another_family_is_refused():
    with pytest.raises(QtutorError, match="Linear"):
        imatrix.importance(torch.nn.Linear(2, 2), some_ids())


def test_a_file_comes_back(tmp_path):
    given = some_imatrix()
    assert imatrix.write(tmp_path / "a.gguf", given) == (tmp_path / "a.gguf").stat().st_size
    found = imatrix.read(tmp_path / "a.gguf")
    assert (found.datasets, found.chunk_count, found.chunk_size) == (given.datasets, 2, 24)
    assert list(found.entries) == sorted(given.entries)
    for name, entry in given.entries.items():
        assert np.array_equal(found.entries[name].sums, entry.sums)
        assert np.array_equal(found.importance_of(name, 64), entry.sums[0] / entry.counts)


@pytest.mark.skipif(llama_cpp.library() is None, reason="needs llama.cpp: xllamacpp is not installed here")
@pytest.mark.parametrize("experts", [1, 3])
def test_the_file_is_the_one_that_llama_cpp_writes(tmp_path, experts):
    """The calls of ``save_imatrix`` in tools/imatrix/imatrix.cpp, with our numbers."""
    sums, counts = inputs.uniform(64 * experts, 5).astype(np.float32), np.arange(1, experts + 1, dtype=np.float32)
    given = Imatrix({"blk.0.ffn_up.weight": Entry(sums.reshape(experts, 64), counts)}, ["a", "b"], 7, 512)
    imatrix.write(tmp_path / "ours.gguf", given)

    class Parameters(ctypes.Structure):
        _fields_ = [("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]

    lib, pointer, text = llama_cpp.library(), ctypes.c_void_p, ctypes.c_char_p
    for name, result, *arguments in (
        ("ggml_init", pointer, Parameters),
        ("gguf_init_empty", pointer),
        ("gguf_set_val_str", None, pointer, text, text),
        ("gguf_set_val_u32", None, pointer, text, ctypes.c_uint32),
        ("gguf_set_arr_str", None, pointer, text, pointer, ctypes.c_size_t),
        ("ggml_new_tensor_2d", pointer, pointer, ctypes.c_int, ctypes.c_int64, ctypes.c_int64),
        ("ggml_set_name", pointer, pointer, text),
        ("ggml_get_data", pointer, pointer),
        ("gguf_add_tensor", None, pointer, pointer),
        ("gguf_write_to_file", ctypes.c_bool, pointer, text, ctypes.c_bool),
        ("gguf_free", None, pointer),
        ("ggml_free", None, pointer),
    ):
        getattr(lib, name).restype, getattr(lib, name).argtypes = result, arguments
    context, file = lib.ggml_init(Parameters(1 << 20, None, False)), lib.gguf_init_empty()
    lib.gguf_set_val_str(file, b"general.type", b"imatrix")
    lib.gguf_set_arr_str(file, b"imatrix.datasets", (text * 2)(b"a", b"b"), 2)
    lib.gguf_set_val_u32(file, b"imatrix.chunk_count", 7)
    lib.gguf_set_val_u32(file, b"imatrix.chunk_size", 512)
    for suffix, values, columns in ((b"in_sum2", sums, 64), (b"counts", counts, 1)):
        tensor = lib.ggml_new_tensor_2d(context, 0, columns, experts)
        lib.ggml_set_name(tensor, b"blk.0.ffn_up.weight." + suffix)
        ctypes.memmove(lib.ggml_get_data(tensor), values.ctypes.data, values.nbytes)
        lib.gguf_add_tensor(file, tensor)
    assert lib.gguf_write_to_file(file, str(tmp_path / "theirs.gguf").encode(), False)
    lib.gguf_free(file)
    lib.ggml_free(context)
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_the_matrix_lowers_the_error_of_what_the_layer_computes():
    model, tokenizer = load_decoder()
    ids = torch.tensor(tokenizer("def mean(values):\n    return sum(values) / len(values)\n" * 30)["input_ids"])[None]
    importance = imatrix.importance(model, ids).importance_of("blk.1.ffn_down.weight", 512)
    rows = model.model.layers[1].mlp.down_proj.weight.detach().float().numpy()

    def error(data):
        return ((decode(data, "Q3_K") - rows) ** 2 * importance).sum()

    weighed = encode(rows, "Q3_K", importance)
    assert error(weighed) < error(encode(rows, "Q3_K"))
    if llama_cpp.library() is not None:
        assert np.array_equal(weighed, llama_cpp.encode(rows, "Q3_K", importance))


def entry_of(values, count=1.0) -> Imatrix:
    return Imatrix({"t": Entry(np.array([values], np.float32), np.array([count], np.float32))})


@pytest.mark.parametrize(
    ("values", "expected", "said"),
    [
        ([0, 2, 4, 0], [3, 2, 4, 3], "t: the importance of column 0 is 0.0, and that of 2 of 4 columns"),
        ([1, np.nan, 3, 5], [1, 3, 3, 5], "column 1 is nan, and that of 1 of 4"),
        ([1, np.inf, -3, 5], [1, 3, 3, 5], "column 1 is inf, and that of 2 of 4"),
        (
            [0, 0, 0, 0],
            [1, 1, 1, 1],
            "that of 4 of 4 columns is zero, negative, NaN or infinite; they count 1 each",
        ),
        ([np.nan] * 4, [1, 1, 1, 1], "all alike"),
    ],
)
def test_what_cannot_be_an_importance_is_named_and_replaced(values, expected, said):
    with pytest.warns(UserWarning) as caught:
        found = entry_of(values).importance_of("t", 4)
    assert found.tolist() == expected and found.dtype == np.float32
    assert len(caught) == 1 and said in str(caught[0].message)
    assert caught[0].filename == __file__  # the warning points at the caller


def test_a_missing_entry_is_named_unless_llama_cpp_has_none_either():
    with pytest.warns(UserWarning, match=r"blk\.0\.attn_q\.weight: the importance matrix has no entry"):
        assert entry_of([1]).importance_of("blk.0.attn_q.weight", 1) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert entry_of([1]).importance_of("token_embd.weight", 1) is None
        assert entry_of([1]).importance_of("output.weight", 1) is None
        assert entry_of([3, 6], count=3).importance_of("t", 2).tolist() == [1, 2]
    with pytest.warns(UserWarning, match="t: the importance matrix counted no token"):
        assert entry_of([3, 6], count=0).importance_of("t", 2).tolist() == [1, 1]  # as in llama-quantize
    with pytest.warns(UserWarning, match="t: the importance of column 0 is nan"):
        assert entry_of([3, 6], count=np.nan).importance_of("t", 2).tolist() == [1, 1]


def test_a_matrix_of_another_model_is_refused():
    with pytest.raises(QtutorError, match="has 2 columns, the tensor has 3"):
        entry_of([1, 2]).importance_of("t", 3)
    experts = Imatrix({"t": Entry(np.ones((4, 2), np.float32), np.ones(4, np.float32))})
    with pytest.raises(QtutorError, match="for each of 4 experts"):
        experts.importance_of("t", 2)


def test_files_of_other_writers(tmp_path):
    gguf = pytest.importorskip("gguf")
    file = gguf.GGUFWriter(tmp_path / "a.gguf", arch="")
    file.kv_data[0].clear()
    file.add_string("general.type", "imatrix")
    file.add_array("imatrix.datasets", ["a.txt"])
    file.add_uint32("imatrix.chunk_count", 2)
    file.add_uint32("imatrix.chunk_size", 24)
    file.add_tensor("b.counts", np.array([[2], [4.4]], np.float32))  # in reverse order; 4.4 is rounded as in llama.cpp
    file.add_tensor("b.in_sum2", np.array([[2, 4], [4, 8]], np.float32))
    for step in ("header", "kv_data", "tensors"):
        getattr(file, f"write_{step}_to_file")()
    file.close()
    found = imatrix.read(tmp_path / "a.gguf")
    assert found.entries["b"].mean_square.tolist() == [[1, 2], [1, 2]]
    assert (found.datasets, found.chunk_count, found.chunk_size) == (["a.txt"], 2, 24)


F4 = np.float32


@pytest.mark.parametrize(
    ("entries", "tensors", "said"),
    [
        ({"general.type": "model"}, {"t": F4([1])}, r"imatrix.datasets is None, .* \(general.type is 'model'\)"),
        (KEYS | {"imatrix.chunk_count": "2"}, {}, "imatrix.chunk_count is '2', expected a uint32"),
        (KEYS, {}, "holds no entry"),
        (KEYS, {"t.in_sum2": F4([1])}, "tensor 't.counts' is not there"),
        (KEYS, {"t.in_sum2": np.float16([1]), "t.counts": F4([1])}, "tensor 't.in_sum2' is F16, expected F32"),
        (KEYS, {"t.in_sum2": F4([1, 2, 3]), "t.counts": F4([1, 2])}, "'t' has 3 sums for 2 counts"),
        (KEYS, {"t": F4([1])}, "tensor 't.in_sum2' is not there"),
    ],
)
def test_gguf_files_that_are_no_importance_matrix(tmp_path, entries, tensors, said):
    kinds = {"float32": "F32", "float16": "F16"}
    written = [Tensor(name, (len(v),), kinds[str(v.dtype)], v.view(np.uint8)) for name, v in tensors.items()]
    write(tmp_path / "a.gguf", entries, written)
    with pytest.raises(GGUFError, match=said) as caught:
        imatrix.read(tmp_path / "a.gguf")
    assert str(tmp_path / "a.gguf") in str(caught.value)


def older_file() -> bytes:
    """Two entries as ``save_imatrix_legacy`` writes them: means times calls."""
    data = struct.pack("<i", 2)
    for name, calls, values in ((b"blk.0.attn_q.weight", 4, [4, 8]), (b"t", 0, [3, 5, 7])):
        data += struct.pack("<i", len(name)) + name + struct.pack(f"<ii{len(values)}f", calls, len(values), *values)
    return data


def test_older_files_are_read(tmp_path):
    path = tmp_path / "imatrix.dat"
    for end, expected in ((b"", ([], 0)), (struct.pack("<ii", 4, 5) + b"a.txt", (["a.txt"], 4))):
        path.write_bytes(older_file() + end)
        found = imatrix.read(path)
        assert found.importance_of("blk.0.attn_q.weight", 2).tolist() == [1, 2]
        assert found.importance_of("t", 3).tolist() == [3, 5, 7]
        assert (found.datasets, found.chunk_count) == expected


def test_older_files_that_are_cut_off(tmp_path):
    path, whole = tmp_path / "imatrix.dat", older_file()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(GGUFError, match=r"imatrix.dat"):
            imatrix.read(path)
    for count in (-1, 0):
        path.write_bytes(struct.pack("<i", count))
        with pytest.raises(GGUFError, match="holds no entry"):
            imatrix.read(path)
    path.write_bytes(struct.pack("<ii", 2**31 - 1, 2**31 - 1))
    with pytest.raises(GGUFError, match="name 0 at byte 8 takes 2147483647 of the 0 bytes"):
        imatrix.read(path)
    with pytest.raises(GGUFError, match="cannot be read: No such file"):
        imatrix.read(tmp_path / "nothing.dat")
