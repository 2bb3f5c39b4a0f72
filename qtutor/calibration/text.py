"""A text from the user as token ids, to calibrate with or to measure on.

A file is plain text, or records (.jsonl, :mod:`.records`). A small file is read whole. From a large file, excerpts are
read that are evenly spread over it. So time and memory depend on the number of wanted tokens, not on the length of the
file.
"""

import codecs
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from qtutor.calibration.records import WHOLE as WHOLE_RECORDS
from qtutor.calibration.records import Records, check_records, is_jsonl
from qtutor.errors import QtutorError
from qtutor.files import kind_of
from qtutor.guards.ids import LENGTH, SAMPLES, evenly

SMALL = 1 << 20  # bytes: a file of up to this size is read whole,
WHOLE = 32  # or of up to this many bytes for each wanted token
EXCERPT = 16  # bytes for each wanted token that are tried first; most texts have a token per three to five bytes
MOST = 16  # this many times as much is read if the text has few tokens, like a page of spaces
BORDER = 1024  # an excerpt begins after the first end of a line within this many bytes
MARKS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16",
         codecs.BOM_UTF16_BE: "UTF-16"}  # fmt: skip


@dataclass(frozen=True)
class Text:
    """The part of a text that was read: token ids, int64 ``[samples, length]``, and in words how many of how many."""

    token_ids: torch.Tensor
    told: str


def calibration_text(file: str | Path, tokenizer, length: int = LENGTH, samples: int = SAMPLES) -> torch.Tensor:
    """The token ids of :func:`text_in`, int64 ``[samples, length]``."""
    return text_in(file, tokenizer, length, samples).token_ids


def text_in(file: str | Path, tokenizer, length: int = LENGTH, samples: int = SAMPLES) -> Text:
    """A text file, or a .jsonl file of texts and conversations, as samples of ``length`` tokens evenly spread over it.

    There are fewer samples if the text is short. A byte order mark of UTF-8 is not part of the text. Raises
    :class:`QtutorError` if :func:`check_text` does, for bytes that are not UTF-8, for lines that are not records, and
    for too little text.
    """
    check_text(file, length)
    size, records = os.path.getsize(file), Records(file, tokenizer) if is_jsonl(file) else None
    large = size > (WHOLE_RECORDS if records else max(SMALL, WHOLE * length * samples))
    if large:
        rows = _from_places(Path(file), tokenizer, length, samples, records)
    else:
        ids = records.all() if records else _whole(file, tokenizer)
        rows = evenly(torch.tensor(ids, dtype=torch.int64), length, samples)
        if not len(rows):
            raise QtutorError(f"{file} has {len(ids):,} tokens; one sample takes {length}. Name a longer text.")
    told = f"{rows.numel():,} tokens ({len(rows)} samples of {length})"
    if large:
        told += f" from all over the {size:,} bytes of {file}"
    elif records and records.every > 1:
        told += f" of the {len(ids):,} in one of every {records.every} records of {file}"
    else:
        told += f" of the {len(ids):,} in {file}"
    return Text(rows, told + (f", {records.told()}" if records else ""))


def check_text(file: str | Path, length: int = LENGTH) -> None:
    """Check a text before a model is loaded.

    Raises :class:`QtutorError` unless ``file`` is a regular file with enough bytes for ``length`` tokens, and its first
    kilobytes are UTF-8. In a .jsonl file, every line also has to be a record (:func:`.records.check_records`).
    """
    kind = kind_of(file)
    if kind != "a file":
        raise QtutorError(f"{file} is {kind}: name a text file, or write the text to one.")
    try:
        with open(file, "rb") as opened:
            data, size = opened.read(4096), os.fstat(opened.fileno()).st_size
    except OSError as error:
        raise QtutorError(f"the text {file} cannot be read: {error.strerror}. Name another.") from None
    if Path(file).suffix.lower() == ".json":
        raise QtutorError(
            f"{file} is one JSON document, and its brackets would be read as text. Write one record per line, as "
            "jq -c '.[]' FILE > NEW.jsonl does."
        )
    _decoded(data, file, 0, final=False)
    if is_jsonl(file):
        check_records(file)
    if size + 8 < length:  # a token has at least one byte, and the tokenizer may add a few tokens
        raise QtutorError(f"{file} has {size} bytes; one sample takes {length} tokens. Name a longer text.")


def _whole(file: str | Path, tokenizer) -> list[int]:
    """The token ids of a whole text file."""
    with open(file, "rb") as opened:
        text = _decoded(opened.read(), file, 0, final=True)
    return tokenizer(text, verbose=False)["input_ids"]


def _from_places(file: Path, tokenizer, length: int, samples: int, records: Records | None) -> torch.Tensor:
    """A row from each of ``samples`` parts of the file, all of the same size; none from parts with too few tokens."""
    size, rows = file.stat().st_size, []
    with open(file, "rb") as opened:
        for number in range(samples):
            begin, end = number * size // samples, (number + 1) * size // samples
            row = records.some(begin, end, length) if records else _excerpt(opened, tokenizer, begin, end, length)
            rows += [row[:length]] if len(row) >= length else []
    if not rows:
        most = size // samples if records else min(EXCERPT * MOST * length, size // samples)
        raise QtutorError(
            f"{file}: none of the {samples} places that were read has {length} tokens in {most:,} bytes. Name a "
            "text like the model's later input."
        )
    return torch.tensor(rows, dtype=torch.int64)


def _excerpt(opened, tokenizer, begin: int, end: int, length: int) -> list[int]:
    """``length`` token ids of the text from ``begin`` on, or none if there are too few before ``end``."""
    for times in (1, MOST):
        opened.seek(begin)
        data = opened.read(min(EXCERPT * length * times + BORDER, end - begin))
        skipped = _first_border(data) if begin else 0
        text = _decoded(data[skipped:], opened.name, begin + skipped, final=False)
        # No special tokens: rows from inside a file that is read whole have none, either.
        ids = tokenizer(text, verbose=False, add_special_tokens=False)["input_ids"]
        if len(ids) >= length:
            return ids[:length]
    return []


def _first_border(data: bytes) -> int:
    """Where the first whole line begins, or, if none begins soon, the first whole character."""
    line = data.find(b"\n", 0, BORDER)
    if line >= 0:
        return line + 1
    return next((at for at, byte in enumerate(data[:4]) if byte & 0xC0 != 0x80), 0)  # skip bytes inside a character


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
            f"{file} is no UTF-8 text: at byte {at + error.start:,} it has {found} ({error.reason}). Name a text "
            "like the model's later input, or convert it: iconv -f LATIN1 -t UTF-8 FILE > NEW."
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")
