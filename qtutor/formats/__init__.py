"""Checkpoint formats, one module each: our own (:mod:`.native`), llama.cpp's, and those of other tools.

The package is not called ``export``, since the import of a submodule with that name would hide the function
``qtutor.export``.
"""

from __future__ import annotations  # nn.Module below: headers are read without waiting for torch

import importlib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING

from qtutor.errors import QtutorError

if TYPE_CHECKING:
    from torch import nn

FOREIGN = {
    "compressed-tensors": "compressed_tensors",
    "gptq": "gptq",
    "awq": "awq",
    "bitsandbytes": "bitsandbytes",
    "modelopt": "modelopt",
    "mlx": "mlx",
}  # formats of other tools: quant_method in a config.json -> module
FORMATS = {"qtutor": "native", "gguf": "gguf", **FOREIGN}  # name -> module
ENGINES = ("vllm", "vllm-cpu", "sglang", "tensorrt-llm", "transformers", "mlx", "llama.cpp")  # see .targets


def export(
    model: nn.Module, out: str | Path, format: str | None = None, tokenizer=None, target: str | None = None, **options
) -> Path:
    """Write ``model`` to ``out`` in a checkpoint format, and return the path that was written.

    Anything that was there before stays until the new checkpoint is whole.

    "qtutor": the packed tensors of a quantized model, as a folder, with the tokenizer's files if there is one
    (:func:`qtutor.formats.native.save`).
    "gguf": llama.cpp's file, ``out`` if it ends in .gguf, else ``model.gguf`` in the folder ``out``; encodes from float
    weights (:func:`qtutor.formats.gguf.save`, with its options ``type``, ``importance``, ``pure`` and ``overwrite``).
    "compressed-tensors", "gptq", "awq", "bitsandbytes", "modelopt", "mlx": the packed layers of a quantized model, in a
    whole folder, as vLLM, SGLang, TensorRT-LLM, transformers or MLX read them. Each format holds certain grids, which
    its module lists.
    options: those of the format's ``save``; ``None`` means the format's default.
    target: the engine that will read the checkpoint, one of :data:`ENGINES`. It picks the format, and refuses layers
    that the engine does not accept (:mod:`qtutor.formats.targets`). Without ``format`` and ``target``, the format is
    "qtutor".

    Raises :class:`QtutorError` for an unknown format, for options of another format, for layers that the format cannot
    hold, and for a model that is not as its config says (:mod:`qtutor.guards.model`); also if ``out`` cannot be
    written, or holds files that qtutor did not write.
    """
    from qtutor.guards.model import decoder_of

    model = decoder_of(model)
    format = _format_for(model, format, target)
    save = _of_format(format).save
    options = {name: value for name, value in options.items() if value is not None}
    for name in options.keys() - _options(save):
        others = [other for other in FORMATS if name in _options(_of_format(other).save)]
        known = ", ".join(sorted(_options(save))) or "none"
        belongs = f" It belongs to format = {' and '.join(map(repr, others))}." if others else ""
        raise QtutorError(
            f"{name} = {str(options[name])[:60]!r}: the format {format!r} has no such option (it has {known})."
            f"{belongs} Leave it out."
        )
    return save(model, out, tokenizer, **options)


def target(out: str | Path, format: str = "qtutor", **options) -> Path:
    """The path that :func:`export` would write, its links followed; raises export's errors about it before the work.

    options: ``sources`` (what is read), ``need`` (bytes), and for "gguf" ``overwrite``; see :mod:`qtutor.files.target`.
    """
    return _of_format(format).target(out, **options)


def load_quantized(source: str | Path, device: str | None = None) -> nn.Module:
    """Load what :func:`export` wrote, on ``device`` (the default is the GPU, if there is one).

    Our own layout and those of other tools keep their packed codes; a GGUF file becomes the float32 weights that its
    codes represent. Raises :class:`QtutorError` naming the file that is missing, damaged or does not fit.
    """
    import torch

    from qtutor.formats import foreign_reading, gguf, native
    from qtutor.formats.documents import reading
    from qtutor.formats.gguf_files import file_in
    from qtutor.formats.sources import OTHERS, OURS, kind_in

    # Even if the caller is in inference mode: kernels cache nothing of tensors whose changes torch does not count.
    with reading(source), torch.inference_mode(False):
        kind = kind_in(Path(source)) if Path(source).is_dir() else None
        if kind == OTHERS:
            return foreign_reading.load(source, device)
        # Not `find`: a GGUF file beside float weights is read, too, and no hub id is downloaded.
        file = None if kind == OURS else file_in(source, alone=False)
        return native.load(source, device) if file is None else gguf.load(file, device)


def _format_for(model: nn.Module, format: str | None, target: str | None) -> str:
    """The given format, or one that the engine ``target`` reads."""
    if target is None:
        return format or "qtutor"
    from qtutor.formats.foreign import packed_layers
    from qtutor.formats.targets import pick_for, ways_into

    ways = ways_into(target.lower() if isinstance(target, str) else target, format)
    return pick_for(target.lower(), packed_layers(model), format).format if ways else "gguf"


def _of_format(name: str):
    """The module of a format."""
    if name not in FORMATS:
        raise QtutorError(f"format = {name!r} is not known; choose one of {', '.join(map(repr, FORMATS))}.")
    return importlib.import_module(f"qtutor.formats.{FORMATS[name]}")


def _options(save) -> set[str]:
    """The options of a format's ``save``: its keyword-only arguments."""
    return {name for name, given in inspect.signature(save).parameters.items() if given.kind is given.KEYWORD_ONLY}
