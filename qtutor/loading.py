"""What a command line names and the commands read: a decoder (SRC) with its tokenizer, and a text to calibrate with."""

from pathlib import Path

from transformers import AutoTokenizer

from qtutor import decoder
from qtutor.errors import QtutorError, naming
from qtutor.formats import gguf, load_quantized
from qtutor.gguf.reader import read
from qtutor.gguf.tokenizer_back import tokenizer_of
from qtutor.inspection import is_gguf
from qtutor.measure.losses import model_bytes


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
    with naming(str(path)):
        return model, tokenizer_of(read(path).metadata)


def weight_bytes(source: str, model) -> int:
    """What the weights take: in memory, or where they come out of a GGUF file (as float32) in that."""
    path = gguf_file(source)
    return model_bytes(model) if path is None else sum(info.nbytes for info in read(path).tensors.values())
