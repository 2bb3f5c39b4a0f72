"""``qtutor.load(source)``: a decoder and its tokenizer, whatever names them.

The module is not called ``load``, as the function is: the import of a submodule would hide ``qtutor.load``.
"""

import os
from pathlib import Path

import torch
from torch import nn

from qtutor.decoder import EMBEDDED
from qtutor.errors import QtutorError, naming, shown
from qtutor.formats import checkpoint, foreign_reading, gguf, hub, load_quantized, native
from qtutor.formats.documents import reading
from qtutor.formats.gguf_files import file_in
from qtutor.formats.tokenizers_files import tokenizer_in, tried
from qtutor.gguf.parts import read_whole
from qtutor.gguf.tokenizer_back import tokenizer_of
from qtutor.measure.losses import model_bytes

Source = str | os.PathLike


def load(source: Source = "embedded", dtype: torch.dtype | str | None = None, device: str | None = None):
    """``(model, tokenizer)`` of whatever a person may name.

    source: ``"embedded"``, the decoder that comes with qtutor; ``"smollm2"``, the real model that another package
    brings (:mod:`qtutor.formats.smollm2`); a folder or a hub id, as others ship decoders; a folder that
    :func:`qtutor.export` wrote, with its packed layers; or a GGUF file by whomever, any part of a split one, or a
    folder with one, as the float32 weights that it stands for; or a folder or hub id that another tool quantized
    (:data:`qtutor.formats.FOREIGN`), with its packed layers. dtype: of a float checkpoint, and of what is not packed,
    ``"auto"`` for its own; by itself float32 for the embedded decoder (small models are computed in float32 so that
    results agree between CPUs) and for GGUF files, its own for any other. device: by itself the GPU if there is one. No
    code from a checkpoint is run and no pickle is read.
    Raises :class:`QtutorError` for a missing, truncated or damaged file, a hub id that cannot be reached, an unknown
    family, architecture, block type or tokenizer.
    """
    if not isinstance(source, str | os.PathLike):
        raise QtutorError(f"{shown(source)} names no checkpoint: give 'embedded', a folder, a file or a hub id.")
    with reading(source):
        return _load(source, dtype, device)


def _load(source: Source, dtype: torch.dtype | str | None, device: str | None):
    if source == "embedded":
        return _float_checkpoint(EMBEDDED, dtype or torch.float32, device)
    file = file_in(source)
    if file is not None:
        opened = gguf.opened(file)
        tokenizer = tokenizer_of_gguf(file, opened)
        dtype = torch.float32 if dtype in (None, "auto") else checkpoint.dtype_of(dtype)
        return gguf.decoded(opened, device, dtype), tokenizer
    if (Path(source) / native.ABOUT).is_file():
        model = load_quantized(source, device)
        return model, tokenizer_in(Path(source), model.config)
    return _float_checkpoint(source, dtype or "auto", device)


def tokenizer_of_gguf(file: Path, opened=None):
    """The tokenizer in a GGUF ``file``. opened: :func:`.gguf.opened` of it, if it is there already."""
    opened = opened or gguf.opened(file)
    with naming(str(file)):
        return tried(lambda: tokenizer_of(opened.file.metadata), opened.model.config, file)


def load_decoder(source: Source | None = None, dtype: torch.dtype | str | None = None, device: str | None = None):
    """:func:`load` with float32 for every float checkpoint, the embedded decoder if none is named."""
    return load("embedded" if source is None else source, dtype or torch.float32, device)


def weight_bytes(source: Source, model: nn.Module) -> int:
    """What the weights take: in memory, or where they come out of a GGUF file (as float32) in that."""
    file = file_in(source)
    return model_bytes(model) if file is None else sum(info.nbytes for info in read_whole(file).tensors.values())


def _float_checkpoint(source: Source, dtype: torch.dtype | str, device: str | None):
    """A checkpoint as others ship it. dtype: float32 takes twice the memory of 16 bits."""
    folder = Path(source)
    if not folder.exists():
        folder = hub.folder_of(str(source))
    if not folder.is_dir():
        raise QtutorError(
            f"{source} is a file, and a checkpoint is a folder with config.json and *.safetensors: name that."
        )
    with naming(f"{source}: the checkpoint cannot be loaded"):
        quantized = foreign_reading.settings_in(folder) is not None
        model = (foreign_reading.load if quantized else checkpoint.load)(folder, device=device, dtype=dtype)
        model.config.name_or_path = str(source)  # of a hub id, the folder is a cache's
        return model, tokenizer_in(folder, model.config)
