"""``qtutor.load(source)``: a decoder and its tokenizer, whatever names them.

The module is not called ``load``, as the function is: the import of a submodule would hide ``qtutor.load``.
"""

import os
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from qtutor.decoder import EMBEDDED
from qtutor.errors import QtutorError, naming
from qtutor.families import family_of
from qtutor.formats import gguf, load_quantized, native
from qtutor.gguf.reader import read
from qtutor.gguf.tokenizer_back import tokenizer_of
from qtutor.measure.losses import model_bytes

Source = str | os.PathLike


def load(source: Source = "embedded", dtype: torch.dtype | str | None = None, device: str | None = None):
    """``(model, tokenizer)`` of whatever a person may name.

    source: ``"embedded"``, the decoder that comes with qtutor; a folder or a hub id, as transformers takes it; or what
    :func:`qtutor.export` wrote: a folder of ours, with its packed layers, or a GGUF file, as the float32 weights that
    it stands for. dtype: of a float checkpoint, ``"auto"`` for its own; by itself float32 for the embedded decoder
    (small models are computed in float32 so that results agree between CPUs), its own for any other. device: by itself
    the GPU if there is one. No code from a checkpoint is run and no pickle is read.
    Raises :class:`QtutorError` for a missing, truncated or damaged file, a hub id that cannot be reached, an unknown
    family.
    """
    if source == "embedded":
        return _float_checkpoint(EMBEDDED, dtype or torch.float32, device)
    file = gguf.file_in(source)
    if file is not None:
        model = gguf.load(file, device)  # first, since it tells files that others wrote
        with naming(str(file)):
            return model, tokenizer_of(read(file).metadata)
    if (Path(source) / native.ABOUT).is_file():
        return load_quantized(source, device), _tokenizer_beside(source)
    return _float_checkpoint(source, dtype or "auto", device)


def load_decoder(source: Source | None = None, dtype: torch.dtype | str | None = None, device: str | None = None):
    """:func:`load` with float32 for every float checkpoint, the embedded decoder if none is named."""
    return load("embedded" if source is None else source, dtype or torch.float32, device)


def weight_bytes(source: Source, model: nn.Module) -> int:
    """What the weights take: in memory, or where they come out of a GGUF file (as float32) in that."""
    file = gguf.file_in(source)
    return model_bytes(model) if file is None else sum(info.nbytes for info in read(file).tensors.values())


def _float_checkpoint(source: Source, dtype: torch.dtype | str, device: str | None):
    """A checkpoint that transformers loads. dtype: float32 takes twice the memory of 16 bits."""
    shown = logging.is_progress_bar_enabled()
    if source == EMBEDDED:
        logging.disable_progress_bar()  # the embedded decoder loads in a fraction of a second
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, trust_remote_code=False, use_safetensors=True)
    except Exception as error:  # transformers raises OSError, ValueError, SafetensorError and more for bad checkpoints
        raise QtutorError(_explain(source, error)) from error
    finally:
        if shown:
            logging.enable_progress_bar()
    family_of(model)  # refuse a family that quantize() would refuse later
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval(), tokenizer


def _tokenizer_beside(folder: Source):
    """The tokenizer in a folder of ours."""
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds for a tokenizer that is missing or damaged
        raise QtutorError(
            f"{folder} holds a quantized model, but its tokenizer cannot be loaded ({_first_line(error)}). Copy "
            "tokenizer.json and tokenizer_config.json of the original model into the folder, or quantize it again with "
            "'qtutor quantize'."
        ) from error


def _explain(source: Source, error: Exception) -> str:
    if not Path(source).exists():
        return (
            f"{source}: no such folder here, and it could not be had as a hub id ({_first_line(error)}). Check the "
            "spelling; without network, pass a folder with config.json, tokenizer.json and *.safetensors."
        )
    have = sorted(p.name for p in Path(source).iterdir()) if Path(source).is_dir() else ["a file, not a folder"]
    return (
        f"{source}: the checkpoint cannot be loaded ({_first_line(error)}). Found {', '.join(have[:12])}; needed are "
        "config.json, tokenizer.json and whole *.safetensors files. Copy or download it again."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
