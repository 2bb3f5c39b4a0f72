"""A text of the user's as token ids to calibrate with."""

from pathlib import Path

import torch

from qtutor.errors import QtutorError


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
