"""llama.cpp's own encoders and decoders, called in the shared library of the ``xllamacpp`` wheel through ctypes."""

import ctypes
import importlib.util
import os
from functools import cache
from pathlib import Path

import numpy as np

from qtutor.gguf import TYPES

os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # else a failing assertion there forks a debugger


@cache
def library() -> ctypes.CDLL | None:
    """The library, or ``None`` where xllamacpp is not installed."""
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None:
        return None
    loaded = ctypes.CDLL(str(next(Path(spec.origin).parent.glob("*.so"))))
    quantize = loaded.ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    return loaded


def encode(rows: np.ndarray, name: str, importance: np.ndarray | None = None) -> np.ndarray:
    """What ``ggml_quantize_chunk`` makes of ``rows`` (float32, contiguous), on one thread."""
    block_type = TYPES[name]
    data = np.zeros((len(rows), rows.shape[1] // block_type.values * block_type.nbytes), np.uint8)
    pointer = None if importance is None else importance.ctypes.data
    written = library().ggml_quantize_chunk(
        block_type.number, rows.ctypes.data, data.ctypes.data, 0, *rows.shape, pointer
    )
    assert written == data.size
    return data


def has_infinite_scale(data: np.ndarray, name: str) -> bool:
    """Whether a float16 in these blocks is infinite or NaN: llama.cpp writes such blocks, qtutor refuses to."""
    blocks = data.reshape(-1, TYPES[name].nbytes)
    return any((blocks[:, at + 1] & 0x7C == 0x7C).any() for at in TYPES[name].offsets("f16"))


def decode(data: np.ndarray, name: str) -> np.ndarray:
    """What ``dequantize_row_*`` makes of ``data`` (contiguous)."""
    block_type = TYPES[name]
    rows = np.zeros((len(data), data.shape[1] // block_type.nbytes * block_type.values), np.float32)
    function = getattr(library(), f"dequantize_row_{name.lower().replace('_k', '_K')}")
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
    function(data.ctypes.data, rows.ctypes.data, rows.size)
    return rows
