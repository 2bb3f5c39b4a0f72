"""What a command line names and the commands read: a decoder (SRC) with its tokenizer, and a text to calibrate with."""

from pathlib import Path

import torch
from transformers import AutoTokenizer

from qtutor import decoder, evaluate
from qtutor.errors import QtutorError
from qtutor.formats import gguf, load_quantized
from qtutor.gguf.reader import read
from qtutor.gguf.tokenizer_back import tokenizer_of
from qtutor.inspection import is_gguf


def load(source: str, dtype=None):
    """``(model, tokenizer)`` of whatever a user may name as SRC.

    dtype: what the embedded decoder is loaded in. Raises :class:`QtutorError` for what is missing, damaged or
    not known.
    """
    if source == "embedded":
        return decoder.load_decoder(dtype=dtype)
    path = gguf_file(source)
    if path is not None:
        return _load_gguf(path)
    if not (Path(source) / "qtutor.json").is_file():
        return decoder.load_decoder(source, dtype="auto")  # a large checkpoint in float32 would take twice the memory
    model = load_quantized(source)
    try:
        return model, AutoTokenizer.from_pretrained(source)
    except Exception as error:  # transformers raises many kinds for a tokenizer that is missing or damaged
        raise QtutorError(
            f"{source} holds a quantized model, but its tokenizer cannot be loaded "
            f"({(str(error).splitlines() or [type(error).__name__])[0]}). Copy tokenizer.json and "
            "tokenizer_config.json of the original model into the folder, or quantize it again with 'qtutor quantize'."
        ) from error


def gguf_file(source: str) -> Path | None:
    """The GGUF file that ``source`` names: itself, or the one in a folder that holds no other checkpoint."""
    path = Path(source)
    if path.is_dir():
        others = any((path / name).is_file() for name in ("qtutor.json", "config.json"))
        return path / gguf.NAME if (path / gguf.NAME).is_file() and not others else None
    return path if path.suffix == ".gguf" or (path.is_file() and is_gguf(path)) else None


def _load_gguf(path: Path):
    model = gguf.load(path)  # first, since it tells files that others wrote
    try:
        return model, tokenizer_of(read(path).metadata)
    except QtutorError as error:
        raise QtutorError(f"{path}: {error}") from error


def weight_bytes(source: str, model) -> int:
    """What the weights take: in memory, or where they come out of a GGUF file (as float32) in that."""
    path = gguf_file(source)
    return evaluate.model_bytes(model) if path is None else sum(info.nbytes for info in read(path).tensors.values())


def calibration_text(file: str, tokenizer, length: int = 256, samples: int = 128) -> torch.Tensor:
    """A text file as token ids, int64 ``[samples, length]``, evenly spread over the file where it is longer."""
    try:
        text = Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise QtutorError(f"{file} is no UTF-8 text ({error}): name a text like what the model will read.") from None
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    whole = len(ids) // length
    if not whole:
        raise QtutorError(f"{file} has {len(ids)} tokens; calibration takes at least {length}. Name a longer text.")
    chosen = torch.arange(min(whole, samples)) * whole // min(whole, samples)
    return ids[: whole * length].reshape(whole, length)[chosen]
