"""The embedded decoder: a small Llama that writes Python, and how to load it or any other.

Corpus and questions: :mod:`.corpus`, :mod:`.tasks`; training: :mod:`.train`; what it is and is not:
``weights/README.md``.
"""

import os
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from qtutor.errors import QtutorError
from qtutor.families import decoder_blocks

EMBEDDED = Path(__file__).parent / "weights"


def load_decoder(source: str | os.PathLike | None = None, dtype: torch.dtype | None = None, device: str | None = None):
    """``(model, tokenizer)``: the embedded decoder, or the checkpoint ``source`` as transformers takes it.

    source: ``None`` for the embedded one, a folder, or a hub id. dtype: float32 if not given (bf16 is what ships; small
    models are computed in float32 so that results agree between CPUs), ``"auto"`` for the checkpoint's own.
    device: by itself the GPU if there is one. No code from a checkpoint is run and no pickle is read.
    Raises :class:`QtutorError` for a missing or truncated file, a hub id that cannot be reached, an unknown family.
    """
    where = EMBEDDED if source is None else source
    shown = logging.is_progress_bar_enabled()
    if source is None:
        logging.disable_progress_bar()  # the embedded decoder loads in a fraction of a second
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            where, dtype=dtype or torch.float32, trust_remote_code=False, use_safetensors=True
        )
    except Exception as error:  # transformers raises OSError, ValueError, SafetensorError and more for bad checkpoints
        raise QtutorError(_explain(where, error)) from error
    finally:
        if shown:
            logging.enable_progress_bar()
    decoder_blocks(model)  # refuse a family that quantize() would refuse later
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval(), tokenizer


def _explain(where, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if not Path(where).exists():
        return (
            f"{where}: no such folder here, and it could not be had as a hub id ({reason}). Check the spelling; "
            "without network, pass a folder with config.json, tokenizer.json and *.safetensors."
        )
    have = sorted(p.name for p in Path(where).iterdir()) if Path(where).is_dir() else ["a file, not a folder"]
    return (
        f"{where}: the checkpoint cannot be loaded ({reason}). Found {', '.join(have[:12])}; needed are config.json, "
        "tokenizer.json and whole *.safetensors files. Copy or download it again."
    )
