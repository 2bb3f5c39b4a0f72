"""The bytes are those that llama.cpp writes: for every type, with and without importance, for many kinds of weights."""

import ctypes

import numpy as np
import pytest
import torch

from qtutor import load_decoder
from qtutor.errors import QtutorError
from qtutor.gguf import TYPES, decode, encode
from qtutor.gguf.layout import ALL_TYPES, REMOVED
from tests.gguf import inputs, llama_cpp

pytestmark = pytest.mark.skipif(
    llama_cpp.library() is None, reason="llama.cpp's encoders come with xllamacpp, which is not installed here"
)


def assert_equal(rows, name, importance, label):
    theirs = llama_cpp.encode(rows, name, importance)
    if llama_cpp.has_infinite_scale(theirs, name):
        with pytest.raises(QtutorError, match="is too large for"):
            encode(rows, name, importance)
        return theirs
    ours = encode(rows, name, importance)
    different = np.flatnonzero((ours != theirs).any(axis=1))
    assert different.size == 0, f"{name}, {label}: {(ours != theirs).sum()} bytes differ, first in row {different[0]}"
    return theirs


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("columns", [256, 768])  # 768: super-blocks of several rows share the lanes
def test_crafted_rows(name, columns):
    for kind, importance in inputs.importances(columns).items():
        assert_equal(inputs.crafted(columns), name, importance, f"crafted, importance {kind}")
        assert_equal(inputs.gaussian(7, columns), name, importance, f"gaussian, importance {kind}")
        assert_equal(inputs.heavy_tailed(7, columns), name, importance, f"heavy-tailed, importance {kind}")
    data = assert_equal(inputs.large(columns), name, None, "large")
    if name not in ("F32", "F16", "BF16"):
        assert np.array_equal(decode(data, name).view(np.int32), llama_cpp.decode(data, name).view(np.int32))


@pytest.mark.parametrize("name", TYPES)
def test_weights_of_the_embedded_decoder(name):
    model, _ = load_decoder()
    checked = 0
    for label, parameter in model.named_parameters():
        if parameter.ndim == 2 and parameter.shape[1] % TYPES[name].values == 0:
            rows = parameter.detach().to(torch.float32).numpy()[:256].copy()
            importance = (inputs.uniform(rows.shape[1], 5) ** 2).astype(np.float32)
            assert_equal(rows, name, None, label)
            assert_equal(rows, name, importance, f"{label}, importance")
            checked += rows.size
    assert checked > 100_000


@pytest.mark.slow
@pytest.mark.parametrize("name", TYPES)
def test_four_million_weights(name):
    rows = inputs.gaussian(1024, 4096)
    assert_equal(rows, name, None, "gaussian")
    assert_equal(rows[:, ::-1].copy(), name, inputs.importances(4096)["uneven"], "gaussian, importance")
    assert_equal(inputs.heavy_tailed(256, 4096), name, None, "heavy-tailed")


@pytest.mark.parametrize("name", TYPES)
def test_decoders_on_any_bytes(name):
    """Random bytes hold scales and codes that no encoder writes, but a reader can meet them."""
    if name in ("F32", "F16", "BF16"):
        pytest.skip("llama.cpp exports no row decoder for plain floats")
    block_type = TYPES[name]
    data = (inputs.uniform(64 * block_type.nbytes, 9) * 256).astype(np.uint8).reshape(64, block_type.nbytes)
    for at in block_type.offsets("f16"):
        data[:, at + 1] &= 0xBF  # no infinities, no NaN
    assert np.array_equal(decode(data, name).view(np.int32), llama_cpp.decode(data, name).view(np.int32))


@pytest.mark.parametrize("name", [name for name, block_type in TYPES.items() if block_type.offsets("f16")])
def test_refused_exactly_where_llama_cpp_writes_an_infinite_scale(name):
    block_type = TYPES[name]
    limit = 65520.0 * block_type.largest
    seen = set()
    for factor in np.geomspace(0.02, 2.1, 61):
        rows = np.zeros((1, 256), np.float32)
        rows[0, 3], rows[0, 9] = limit * factor, -limit * factor * 0.9
        theirs = llama_cpp.encode(rows, name)
        infinite = llama_cpp.has_infinite_scale(theirs, name)
        seen.add(infinite)
        if infinite:
            with pytest.raises(QtutorError, match="row 0, column 3 is too large"):
                encode(rows, name)
        else:
            assert np.array_equal(encode(rows, name), theirs)
    assert seen == {True, False}


def test_every_type_is_as_large_as_there():
    sizes = llama_cpp.library()
    sizes.ggml_blck_size.restype, sizes.ggml_type_size.restype = ctypes.c_int64, ctypes.c_size_t
    sizes.ggml_type_name.restype = ctypes.c_char_p
    for block_type in ALL_TYPES.values():
        found = sizes.ggml_blck_size(block_type.number), sizes.ggml_type_size(block_type.number)
        assert found == (block_type.values, block_type.nbytes), block_type.name
        assert sizes.ggml_type_name(block_type.number).decode().upper() == block_type.name
    assert all(sizes.ggml_type_size(number) == 0 for number in REMOVED)


def test_exponents_of_mxfp4_just_below_powers_of_two():
    """llama.cpp's logarithm is in single precision, which rounds up there. Ours has to round up, too."""
    powers = 2.0 ** np.arange(-126, 127)
    near = np.stack([np.nextafter(powers.astype(np.float32), np.float32(0)), powers.astype(np.float32)], axis=1)
    for _ in range(40):
        near = np.concatenate([np.nextafter(near[:, :1], np.float32(0)), near], axis=1)
    rows = np.zeros((near.size, 32), np.float32)
    rows[:, 5] = near.ravel()
    rows[:, 6] = near.ravel() * np.float32(0.3)
    assert_equal(rows, "MXFP4", None, "below powers of two")
