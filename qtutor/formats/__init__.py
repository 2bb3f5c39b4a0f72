"""Checkpoint formats, a module each, with ``save``, ``target`` and ``load``: ours (:mod:`.native`) and those of others.

The package is not called ``export``, as the function is: the import of a submodule would hide ``qtutor.export``.
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
}  # formats of other tools, by what quant_method is called in a config.json -> module
FORMATS = {"qtutor": "native", "gguf": "gguf", **FOREIGN}  # name -> module
ENGINES = ("vllm", "vllm-cpu", "sglang", "tensorrt-llm", "transformers", "mlx", "llama.cpp")  # see .targets


def export(
    model: nn.Module, out: str | Path, format: str | None = None, tokenizer=None, target: str | None = None, **options
) -> Path:
    """Write ``model`` to ``out`` in a checkpoint format, and return what was written. What was there before stays until
    the new one is whole.

    "qtutor": the packed tensors of a quantized model, as a folder, with the tokenizer's files if there is one
    (:func:`qtutor.formats.native.save`).
    "gguf": llama.cpp's file, ``out`` if it ends in .gguf, else ``model.gguf`` in the folder ``out``; encodes from float
    weights (:func:`qtutor.formats.gguf.save`, with its options ``type``, ``importance``, ``pure`` and ``overwrite``).
    "compressed-tensors", "gptq", "awq", "bitsandbytes", "modelopt", "mlx": the packed layers of a quantized model as
    vLLM, SGLang, TensorRT-LLM, transformers or MLX read them, in a whole folder; each holds certain grids (its module
    says which).
    options: those of the format's ``save``; ``None`` stands for what it does by itself.
    target: the engine that is to read it, one of :data:`ENGINES`; it picks the format, and refuses layers that it does
    not take (:mod:`qtutor.formats.targets`). Without both the format is "qtutor".

    Raises :class:`QtutorError` for an unknown format, for options that another format has, for what the format cannot
    hold, where ``out`` cannot be written or holds what qtutor did not write, and for a model that is not as its config
    says (:mod:`qtutor.guards.model`).
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
    """Where :func:`export` would write, its links followed; refuses before any work what it would refuse after it.

    options: ``sources`` (what is read), ``need`` (bytes), and for "gguf" ``overwrite``; see :mod:`qtutor.files.target`.
    """
    return _of_format(format).target(out, **options)


def load_quantized(source: str | Path, device: str | None = None) -> nn.Module:
    """What :func:`export` wrote comes back, on ``device`` (by itself: the GPU if there is one).

    Our own layout, and those of other tools, with their packed codes; a GGUF file as the float32 weights that it stands
    for. Raises :class:`QtutorError` naming the file that is missing, damaged or does not fit.
    """
    import torch

    from qtutor.formats import foreign_reading, foreign_settings, gguf, native
    from qtutor.formats.documents import reading
    from qtutor.formats.gguf_files import file_in

    # Also where a caller is in inference mode: kernels keep nothing of tensors whose changes torch does not count.
    with reading(source), torch.inference_mode(False):
        ours = (Path(source) / native.ABOUT).is_file()
        if not ours and Path(source).is_dir() and foreign_settings.settings_in(Path(source)) is not None:
            return foreign_reading.load(source, device)
        file = None if ours else file_in(source, alone=False)
        return native.load(source, device) if file is None else gguf.load(file, device)


def _format_for(model: nn.Module, format: str | None, target: str | None) -> str:
    """The format that is given, or that an engine reads."""
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
