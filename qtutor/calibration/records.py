"""Texts and conversations from a .jsonl file: one JSON object per line, the form of most data sets for training.

    {"text": "Once upon a time ..."}
    {"messages": [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}]}
    {"conversations": [{"from": "human", "value": "What is 2 + 2?"}, {"from": "gpt", "value": "4"}]}

A text is tokenized as it is; a conversation is first written out by the model's chat template (:mod:`.chat`). Lines are
read one after the other, so memory does not depend on the file's length. From a large file, whole lines are read at
places evenly spread over it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qtutor.calibration.chat import messages_of, rendered
from qtutor.errors import QtutorError, said, shown

WHOLE = 1 << 25  # bytes: a file of up to this size is read from the first line to the last
TOKENIZED = 1 << 22  # at most about this many of its bytes become tokens, which takes a second or two per megabyte
LONGEST = 1 << 24  # bytes in a line
CHARACTERS = 256  # read for each wanted token: pages of spaces have few tokens
NAMED = 5  # bad lines that a message names; the others are only counted
KEYS = ("text", "messages", "conversations")


def is_jsonl(file: str | Path) -> bool:
    """Whether the file's name says that it holds one record per line."""
    return Path(file).suffix.lower() in (".jsonl", ".ndjson")


def check_records(file: str | Path) -> None:
    """Refuse lines without a text or a conversation, by number; in a large file, check the first :data:`WHOLE` bytes.

    Whether the tokenizer has a template, and whether it accepts every conversation, only shows when they are read.
    """
    bad, good = [], 0
    with open(file, "rb") as opened:
        for line in _lines(opened, 0, WHOLE):
            try:
                _record(line.data)
                good += 1
            except QtutorError as error:
                bad.append((line.number, error))
    _refuse(file, bad, good)


@dataclass(frozen=True)
class Line:
    """A line of a file: its number, counted from 1 at the place where reading began, and its bytes."""

    number: int
    data: bytes


class Records:
    """The records of a .jsonl file as token ids, and the number of each kind that was read so far."""

    def __init__(self, file: str | Path, tokenizer):
        self.file, self.tokenizer = Path(file), tokenizer
        self.texts = self.conversations = 0
        self.every = 1  # one record of this many becomes tokens

    def all(self) -> list[int]:
        """The token ids of all records in order; above TOKENIZED bytes, only of every second, third ... record.

        All lines have to be records.
        """
        ids, bad, size = [], [], self.file.stat().st_size
        self.every, good = -(-size // TOKENIZED), 0
        with open(self.file, "rb") as opened:
            for line in _lines(opened, 0, size):
                try:
                    if good % self.every == 0:
                        ids += self._ids(line.data, TOKENIZED)
                    else:
                        _record(line.data)
                    good += 1
                except QtutorError as error:
                    bad.append((line.number, error))
        _refuse(self.file, bad, good)
        return ids

    def some(self, begin: int, end: int, length: int) -> list[int]:
        """At least ``length`` token ids of the records that begin at bytes ``begin`` to ``end``; all if fewer."""
        ids = []
        with open(self.file, "rb") as opened:
            for line in _lines(opened, begin, end):
                try:
                    ids += self._ids(line.data, CHARACTERS * length)
                except QtutorError as error:
                    number = line.number + _lines_before(self.file, begin)
                    raise QtutorError(f"{self.file}, line {number:,}: {error}") from error
                if len(ids) >= length:
                    break
        return ids

    def told(self) -> str:
        """How many texts and conversations were read, in words."""
        kinds = {"text": self.texts, "conversation": self.conversations}
        return " and ".join(f"{n:,} {kind}{'s' * (n != 1)}" for kind, n in kinds.items() if n) or "no records"

    def _ids(self, data: bytes, most: int) -> list[int]:
        """The token ids of one record's first ``most`` characters."""
        given = _record(data)
        if isinstance(given, str):
            self.texts += 1
            return self.tokenizer(given[:most], verbose=False)["input_ids"]
        text = rendered(self.tokenizer, given)
        self.conversations += 1
        # No special tokens are added: the template wrote them.
        return self.tokenizer(text[:most], verbose=False, add_special_tokens=False)["input_ids"]


def _record(data: bytes) -> str | list[dict[str, str]]:
    """The text or the messages in a line. Raises :class:`QtutorError` for anything else."""
    if len(data) >= LONGEST:
        raise QtutorError(f"it has more than {LONGEST:,} bytes, so it is not a record. Is there one record per line?")
    try:
        record = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # no UTF-8 is a ValueError, too
        raise QtutorError(f"it is no JSON ({said(error)}): {shown(data[:60].decode('utf-8', 'replace'))}") from None
    key = next((key for key in KEYS if isinstance(record, dict) and key in record), None)
    if key is None:
        found = f"the keys {', '.join(map(shown, list(record)[:5]))}" if isinstance(record, dict) else shown(record)
        raise QtutorError(f"it has {found}; a record has one of {', '.join(map(repr, KEYS))}.")
    given = record[key]
    if key == "text" and not isinstance(given, str):
        raise QtutorError(f"its 'text' is {shown(given)}, not a string.")
    found = given if key == "text" else messages_of(given)
    for text in [found] if key == "text" else [message["content"] for message in found]:
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise QtutorError(f"{shown(text)} has half a character (a lone surrogate), which no tokenizer accepts.")
    return found


def _lines(opened, begin: int, end: int) -> Iterator[Line]:
    """Lines that are not empty and begin at bytes ``begin`` to ``end``, without ``end``."""
    opened.seek(max(begin - 1, 0))
    if begin:
        _skip(opened, opened.readline(LONGEST))  # a line that begins before; if one ends here, only its line end
    number = 0
    while opened.tell() < end and (data := opened.readline(LONGEST)):
        number += 1
        _skip(opened, data)
        if data.strip(b" \t\r\n\xef\xbb\xbf"):
            yield Line(number, data)


def _skip(opened, data: bytes) -> None:
    """Go to the end of the line that begins with ``data``."""
    while data and not data.endswith(b"\n"):
        data = opened.readline(LONGEST)


def _lines_before(file: Path, begin: int) -> int:
    """How many lines begin before byte ``begin``: to be added to a line number that is counted from there."""
    count = 0
    with open(file, "rb") as opened:
        while opened.tell() < begin and (data := opened.read(min(1 << 20, begin - opened.tell()))):
            count += data.count(b"\n")
            inside = not data.endswith(b"\n")
    return count + (inside if begin else 0)


def _refuse(file: str | Path, bad: list, good: int) -> None:
    """Raise :class:`QtutorError` for bad lines, and for a file without records."""
    if not bad and not good:
        raise QtutorError(f'{file} holds no records: a .jsonl file has an object on each line, like {{"text": ...}}.')
    if not bad:
        return
    (first, error), *others = bad
    more = ""
    if others:
        numbers = ", ".join(f"{number:,}" for number, _ in others[:NAMED])
        left = f" and {len(others) - NAMED:,} more" if len(others) > NAMED else ""
        more = f" Other bad lines: {numbers}{left}; {good:,} are good."
    raise QtutorError(f"{file}, line {first:,}: {error}{more} Repair them, or remove them.")
