"""A text of the user's as token ids to calibrate with.

A small file is read whole. Of a large one excerpts are read that lie evenly spread over it, so that time and memory
depend on how many tokens are wanted, not on how long the file is.
"""

import codecs
import os
from pathlib import Path

import torch

from qtutor.errors import QtutorError
from qtutor.files import kind_of

LENGTH, SAMPLES = 256, 128
SMALL = 1 << 20  # bytes: a file of so many is read whole,
WHOLE = 32  # or of so many for each wanted token
EXCERPT = 16  # bytes for each wanted token that are tried first; most texts have one in three to five bytes
MOST = 16  # as many times that are read where text has few tokens, like a page of spaces
BORDER = 1024  # bytes in which an excerpt looks for the end of a line to begin after
MARKS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16",
         codecs.BOM_UTF16_BE: "UTF-16"}  # fmt: skip


def calibration_text(file: str | Path, tokenizer, length: int = LENGTH, samples: int = SAMPLES) -> torch.Tensor:
    """A text file as token ids, int64 ``[samples, length]``, evenly spread over the file where it is longer.

    Fewer samples where the text is short. A byte order mark of UTF-8 is no part of the text. Raises
    :class:`QtutorError` where :func:`check_text` does, for bytes that are no UTF-8, and for too little text.
    """
    check_text(file, length)
    if os.path.getsize(file) > max(SMALL, WHOLE * length * samples):
        return _excerpts(Path(file), tokenizer, length, samples)
    with open(file, "rb") as opened:
        text = _decoded(opened.read(), file, 0, final=True)
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"], dtype=torch.int64)
    whole = len(ids) // length
    if not whole:
        raise QtutorError(f"{file} has {len(ids)} tokens; calibration takes at least {length}. Name a longer text.")
    chosen = torch.arange(min(whole, samples)) * whole // min(whole, samples)
    return ids[: whole * length].reshape(whole, length)[chosen]


def check_text(file: str | Path, length: int = LENGTH) -> None:
    """What can be said of a calibration text before a model is loaded: raises :class:`QtutorError` unless ``file`` is
    a regular file of bytes enough for ``length`` tokens, whose first kilobytes are UTF-8.
    """
    kind = kind_of(file)
    if kind != "a file":
        raise QtutorError(f"{file} is {kind}; calibration reads a text file. Name one, or write the text to one.")
    try:
        with open(file, "rb") as opened:
            data, size = opened.read(4096), os.fstat(opened.fileno()).st_size
    except OSError as error:
        raise QtutorError(f"the calibration text {file} cannot be read: {error.strerror}. Name another.") from None
    _decoded(data, file, 0, final=False)
    if size + 8 < length:  # a token is a byte at least, and some may come in front
        raise QtutorError(f"{file} has {size} bytes; calibration takes at least {length} tokens. Name a longer text.")


def _excerpts(file: Path, tokenizer, length: int, samples: int) -> torch.Tensor:
    """One row from each of ``samples`` parts of the file."""
    size, rows = file.stat().st_size, []
    with open(file, "rb") as opened:
        for number in range(samples):
            begin, end = number * size // samples, (number + 1) * size // samples
            row = _excerpt(opened, tokenizer, begin, end, length)
            rows += [row] if row else []
    if not rows:
        raise QtutorError(
            f"{file}: of {samples} places looked at none has {length} tokens in {EXCERPT * MOST * length:,} bytes. "
            "Name a text like what the model will read."
        )
    return torch.tensor(rows, dtype=torch.int64)


def _excerpt(opened, tokenizer, begin: int, end: int, length: int) -> list[int] | None:
    """``length`` token ids of what stands at ``begin``, or ``None`` if there are not that many before ``end``."""
    for times in (1, MOST):
        opened.seek(begin)
        data = opened.read(min(EXCERPT * length * times + BORDER, end - begin))
        skipped = _first_border(data) if begin else 0
        text = _decoded(data[skipped:], opened.name, begin + skipped, final=False)
        # No special tokens: the rows of a file that is read whole are cuts out of it, too.
        ids = tokenizer(text, verbose=False, add_special_tokens=False)["input_ids"]
        if len(ids) >= length:
            return ids[:length]
    return None


def _first_border(data: bytes) -> int:
    """Where the first line begins, or else, where none does soon, the first character."""
    line = data.find(b"\n", 0, BORDER)
    if line >= 0:
        return line + 1
    return next((at for at, byte in enumerate(data[:4]) if byte & 0xC0 != 0x80), 0)  # no byte inside a character


def _decoded(data: bytes, file: str | Path, at: int, final: bool) -> str:
    """Bytes from ``at`` on as text with plain line ends; an unfinished character at the end counts if ``final``."""
    if at == 0:
        mark = next((name for mark, name in MARKS.items() if data.startswith(mark)), None)
        if mark or data[:4096].count(0) * 8 > len(data[:4096]):
            what = f"its first bytes mark it as {mark}" if mark else "it has many zero bytes, like UTF-16 and like data"
            raise QtutorError(
                f"{file} is no UTF-8 text: {what}. Name a text, or convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW."
            )
        if data.startswith(codecs.BOM_UTF8):
            data, at = data[len(codecs.BOM_UTF8) :], len(codecs.BOM_UTF8)
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(data, final)
    except UnicodeDecodeError as error:
        found = " ".join(f"{byte:02x}" for byte in data[error.start : error.start + 4])
        raise QtutorError(
            f"{file} is no UTF-8 text: at byte {at + error.start:,} stands {found} ({error.reason}). Name a text like "
            "what the model will read, or convert it: iconv -f LATIN1 -t UTF-8 FILE > NEW."
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")
