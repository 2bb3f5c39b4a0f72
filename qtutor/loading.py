"""``qtutor.load(source)``: a decoder and its tokenizer, from a name, a folder, a file or a hub id.

The module does not have the function's name, ``load``: importing a submodule ``load`` would hide ``qtutor.load``.
"""

import os

import torch
from torch import nn

from qtutor.errors import QtutorError, naming, shown
from qtutor.formats import checkpoint, foreign_reading, gguf_reading, load_quantized
from qtutor.formats.documents import reading
from qtutor.formats.gguf_files import file_in
from qtutor.formats.sources import FLOAT, GGUF, OURS, Source, find
from qtutor.formats.tokenizers_files import tokenizer_in, tokenizer_in_gguf
from qtutor.gguf.parts import read_whole
from qtutor.measure.losses import model_bytes


@torch.inference_mode(False)  # torch does not count changes of inference tensors, so kernels would keep nothing
def load(source: Source = "embedded", dtype: torch.dtype | str | None = None, device: str | None = None):
    """``(model, tokenizer)`` from a name, a folder, a file or a hub id.

    source: ``"embedded"``, the decoder that comes with qtutor; ``"smollm2"``, the real model that another package
    brings (:mod:`qtutor.formats.smollm2`); a folder or a hub id with a float checkpoint; a folder that
    :func:`qtutor.export` wrote, with its packed layers; a GGUF file from any tool, any part of a split one, a folder
    with one, or ``owner/name:Q4_K_M`` on the hub, decoded to float32 weights; or a folder or hub id that another tool
    quantized (:data:`qtutor.formats.FOREIGN`), with its packed layers. dtype: that of a float checkpoint, and of the
    tensors of another tool's folder that are not packed; ``"auto"`` is the checkpoint's own, and float32 for GGUF
    files. The default is float32 for the embedded decoder (small models are computed in float32 so that results agree
    between CPUs) and for GGUF files, and the checkpoint's own for all others. Folders that :func:`qtutor.export` wrote
    always keep their own. device: the default is the GPU if there is one. No code from a checkpoint is run and no
    pickle is read.
    Raises :class:`QtutorError` for a missing, truncated or damaged file, a hub id that cannot be reached, an unknown
    family, architecture, block type or tokenizer.
    """
    if not isinstance(source, str | os.PathLike):
        raise QtutorError(f"{shown(source)} names no checkpoint: give 'embedded', a folder, a file or a hub id.")
    with reading(source):
        return _load(source, dtype, device)


def _load(source: Source, dtype: torch.dtype | str | None, device: str | None):
    found = find(source)
    if found.kind == GGUF:
        opened = gguf_reading.opened(found.path)
        tokenizer = tokenizer_in_gguf(opened, found.path)
        dtype = torch.float32 if dtype in (None, "auto") else checkpoint.dtype_of(dtype)
        return gguf_reading.decoded(opened, device, dtype), tokenizer
    if found.kind == OURS:
        model = load_quantized(found.path, device)
        return model, tokenizer_in(found.path, model.config)
    usual = torch.float32 if source == "embedded" else "auto"
    with naming(f"{source}: the checkpoint cannot be loaded"):
        reads = checkpoint.load if found.kind == FLOAT else foreign_reading.load
        model = reads(found.path, device=device, dtype=dtype or usual)
        model.config.name_or_path = str(found.path if source == "embedded" else source)  # a hub id's folder is a cache
        return model, tokenizer_in(found.path, model.config)


def load_decoder(source: Source | None = None, dtype: torch.dtype | str | None = None, device: str | None = None):
    """:func:`load` with float32 for every float checkpoint, the embedded decoder if none is named."""
    return load("embedded" if source is None else source, dtype or torch.float32, device)


def weight_bytes(source: Source, model: nn.Module) -> int:
    """The bytes of the weights: in memory, or in the GGUF file if they were decoded from one (to float32)."""
    file = file_in(source)
    return model_bytes(model) if file is None else sum(info.nbytes for info in read_whole(file).tensors.values())
