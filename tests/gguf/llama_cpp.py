"""llama.cpp's own encoders and decoders, called with ctypes in the shared library of the ``xllamacpp`` wheel."""

import ctypes
import importlib.util
import os
from functools import cache
from pathlib import Path

import numpy as np

from qtutor.gguf import TYPES

os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # otherwise a failing assertion there starts a debugger


@cache
def library() -> ctypes.CDLL | None:
    """The library, or ``None`` if xllamacpp is not installed."""
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


class _Parameters(ctypes.Structure):
    """llama.cpp's parameter structures, passed by value. Their size may differ; fields that are set are checked."""

    _fields_ = [("raw", ctypes.c_ubyte * 512)]

    def at(self, offset: int) -> ctypes.c_int32:
        return ctypes.c_int32.from_buffer(self, offset)


class _Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.c_void_p),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.c_void_p),  # null: positions in order
        ("n_seq_id", ctypes.c_void_p),
        ("seq_id", ctypes.c_void_p),  # null: all tokens are of one sequence
        ("logits", ctypes.c_void_p),
    ]


# Offset and default of the fields that are set below. If a library has them elsewhere, Model stops with a message.
_CONTEXT = {"n_ctx": (0, 512), "n_threads": (28, 4), "n_threads_batch": (32, 4), "flash_attention": (52, -1)}
_CONTEXT |= {"type_k": (104, 1), "type_v": (108, 1)}
_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


@cache
def _model_functions() -> ctypes.CDLL:
    loaded = library()
    pointer, int32, flag = ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool
    signatures = {
        "llama_model_default_params": (_Parameters, []),
        "llama_context_default_params": (_Parameters, []),
        "llama_model_load_from_file": (pointer, [ctypes.c_char_p, _Parameters]),
        "llama_init_from_model": (pointer, [pointer, _Parameters]),
        "llama_model_get_vocab": (pointer, [pointer]),
        "llama_vocab_n_tokens": (int32, [pointer]),
        "llama_vocab_bos": (int32, [pointer]),
        "llama_vocab_eos": (int32, [pointer]),
        "llama_vocab_is_eog": (flag, [pointer, int32]),
        "llama_model_chat_template": (ctypes.c_char_p, [pointer, ctypes.c_char_p]),
        "llama_tokenize": (int32, [pointer, ctypes.c_char_p, int32, pointer, int32, flag, flag]),
        "llama_detokenize": (int32, [pointer, pointer, int32, pointer, int32, flag, flag]),
        "llama_decode": (int32, [pointer, _Batch]),
        "llama_get_logits": (ctypes.POINTER(ctypes.c_float), [pointer]),
        "llama_get_memory": (pointer, [pointer]),
        "llama_memory_clear": (None, [pointer, flag]),
        "llama_free": (None, [pointer]),
        "llama_model_free": (None, [pointer]),
        "llama_log_set": (None, [_LOG, pointer]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    loaded.llama_backend_init()
    loaded.llama_log_set(_note, None)
    return loaded


_log = []


@_LOG
def _note(level: int, text: bytes, _data) -> None:
    _log.append((level, text.decode(errors="replace")))


class Model:
    """A GGUF file run by llama.cpp on one thread, with a float32 KV cache and without flash attention.

    ``warnings``: llama.cpp's messages of the levels warning and error while it loaded the file.
    """

    def __init__(self, path: Path, context: int = 512):
        self.lib = _model_functions()
        _log.clear()
        self.model = self.lib.llama_model_load_from_file(str(path).encode(), self.lib.llama_model_default_params())
        self.warnings = "".join(text for level, text in _log if level in (3, 4))
        assert self.model, f"llama.cpp refuses {path}: {self.warnings}"
        self.vocab = self.lib.llama_model_get_vocab(self.model)
        self.vocabulary = self.lib.llama_vocab_n_tokens(self.vocab)
        parameters = self.lib.llama_context_default_params()
        for name, (offset, default) in _CONTEXT.items():
            assert parameters.at(offset).value == default, f"llama.cpp's {name} is not at byte {offset} any more"
            parameters.at(offset).value = {"n_ctx": context, "n_threads": 1, "n_threads_batch": 1}.get(name, 0)
        self.context = self.lib.llama_init_from_model(self.model, parameters)
        assert self.context, "".join(text for _, text in _log)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.lib.llama_free(self.context)
        self.lib.llama_model_free(self.model)

    def tokenize(self, text: str, special: bool = True, parse: bool = True) -> list[int]:
        """Token ids. special: add bos and eos if the file says so. parse: recognise special tokens in the text."""
        data = text.encode()
        ids = np.zeros(len(data) + 8, np.int32)
        count = self.lib.llama_tokenize(self.vocab, data, len(data), ids.ctypes.data, len(ids), special, parse)
        assert count >= 0
        return ids[:count].tolist()

    def detokenize(self, ids: list[int]) -> str:
        given, text = np.array(ids, np.int32), ctypes.create_string_buffer(64 * len(ids) + 8)
        count = self.lib.llama_detokenize(self.vocab, given.ctypes.data, len(given), text, len(text), False, True)
        assert count >= 0
        return text.raw[:count].decode(errors="replace")

    def chat_template(self) -> str | None:
        template = self.lib.llama_model_chat_template(self.model, None)
        return template and template.decode()

    def special(self) -> tuple[int, int]:
        """Ids of bos and eos."""
        return self.lib.llama_vocab_bos(self.vocab), self.lib.llama_vocab_eos(self.vocab)

    def ends(self, token: int) -> bool:
        """Whether a text ends at a token."""
        return self.lib.llama_vocab_is_eog(self.vocab, token)

    def forget(self) -> None:
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)

    def logits(self, ids: list[int]) -> np.ndarray:
        """float32 ``[tokens, vocabulary]`` for tokens that continue what was read since :meth:`forget`."""
        given, wanted = np.array(ids, np.int32), np.ones(len(ids), np.int8)
        batch = _Batch(len(ids), token=given.ctypes.data, logits=wanted.ctypes.data)
        assert self.lib.llama_decode(self.context, batch) == 0
        found = self.lib.llama_get_logits(self.context)
        return np.ctypeslib.as_array(found, (len(ids), self.vocabulary)).copy()

    def greedy(self, ids: list[int], count: int) -> list[int]:
        """``count`` tokens after ``ids``, each time the likeliest one."""
        self.forget()
        chosen = [int(self.logits(ids)[-1].argmax())]
        while len(chosen) < count:
            chosen.append(int(self.logits(chosen[-1:])[-1].argmax()))
        return chosen
