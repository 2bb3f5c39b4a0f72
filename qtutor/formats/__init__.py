"""Files that others read too: one module per checkpoint format. Our own layout is :mod:`qtutor.formats.native`'s.

The package is not called ``export``, as the function is: the import of a submodule would hide ``qtutor.export``.
"""

from pathlib import Path

from torch import nn

from qtutor.errors import QtutorError
from qtutor.formats import gguf, native

FORMATS = ("qtutor", "gguf")


def export(
    model: nn.Module,
    out: str | Path,
    format: str = "qtutor",
    tokenizer=None,
    *,
    type: str | None = None,
    importance=None,
    pure: bool = False,
) -> Path:
    """Write ``model`` to ``out`` in a checkpoint format, and return what was written. What was there before stays until
    the new one is whole.

    "qtutor": the packed tensors of a quantized model, as a folder, with the tokenizer's files if there is one
    (:func:`qtutor.formats.native.save`).
    "gguf": llama.cpp's file, ``out`` if it ends in .gguf, else ``model.gguf`` in the folder ``out``
    (:func:`qtutor.formats.gguf.save`). Encodes from float weights, in the mix ``type`` ("Q4_K_M" if not given), with
    the ``importance`` of input columns if given; ``pure``: every matrix in the one block type ``type``.

    Raises :class:`QtutorError` for an unknown format, for options that another format has, and for what the format
    cannot hold.
    """
    if format not in FORMATS:
        raise QtutorError(f"format = {format!r} is not known; choose one of {', '.join(map(repr, FORMATS))}.")
    if format == "gguf":
        return gguf.save(model, out, tokenizer, type or "Q4_K_M", importance, pure)
    given = {"type": type, "importance": importance, "pure": pure or None}
    for name, value in given.items():
        if value is not None:
            raise QtutorError(
                f"{name} = {str(value)[:60]!r} belongs to format = 'gguf'. The format {format!r} holds what "
                "qtutor.quantize(model, recipe) has made; leave it out."
            )
    return native.save(model, out, tokenizer)


def load_quantized(source: str | Path, device: str | None = None) -> nn.Module:
    """What :func:`export` wrote comes back, on ``device`` (by itself: the GPU if there is one).

    Our own layout with its packed codes, a GGUF file as the float32 weights that it stands for. Raises
    :class:`QtutorError` naming the file that is missing, damaged or does not fit.
    """
    source = Path(source)
    if source.suffix == ".gguf":
        return gguf.load(source, device)
    if (source / gguf.NAME).is_file() and not (source / "qtutor.json").is_file():
        return gguf.load(source / gguf.NAME, device)
    return native.load_quantized(source, device)
