"""Files that are parts of a larger one: llama.cpp cuts them as NAME-00001-of-00003.gguf.

    file = read_whole("model-00002-of-00003.gguf")     # any of the parts

The first part has the metadata, and each part has some tensors. ``split.no`` (counted from 0) and ``split.count`` say
which part it is. A file without these keys is a whole one, whatever it is called.
"""

import re
from pathlib import Path

import numpy as np

from qtutor.errors import shown
from qtutor.gguf.container import GGUFError
from qtutor.gguf.reader import GGUFFile, read

PART = re.compile(r"(?P<name>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<end>\.gguf)", re.IGNORECASE | re.DOTALL)
MOST_NAMED = 6  # names of files in a message


class Whole:
    """Parts as one file, like a :class:`~.reader.GGUFFile`; a tensor's offset counts from the start of its part."""

    def __init__(self, parts: list[GGUFFile]):
        self.parts, first = parts, parts[0]
        self.path, self.metadata = first.path, first.metadata
        self.version, self.alignment = first.version, first.alignment
        self.part_of = {name: part for part in parts for name in part.tensors}
        self.tensors = {name: info for part in parts for name, info in part.tensors.items()}

    def data(self, name: str) -> np.ndarray:
        return self.part_of.get(name, self.parts[0]).data(name)

    def weight(self, name: str) -> np.ndarray:
        return self.part_of.get(name, self.parts[0]).weight(name)


def read_whole(path: str | Path) -> GGUFFile | Whole:
    """Open a GGUF file, and if it is a part of a larger one, all its parts.

    Raises :class:`GGUFError` as :func:`.reader.read` does, and if a part is missing or belongs to another file.
    """
    file = read(path)
    count = _number(file.metadata, "count", 1)
    if count == 1:
        return file
    names = names_of(path)
    if len(names) != count:
        raise GGUFError(
            f"{path} is {part_of('', file.metadata)}. Give all parts the names that they had, "
            f"NAME-00001-of-{count:05d}.gguf and so on, in one folder."
        )
    missing = [name.name for name in names if not name.is_file()]
    if missing:
        raise GGUFError(missing_parts(path))
    parts = [file if name == Path(path) else read(name) for name in names]
    for number, part in enumerate(parts):
        found = _number(part.metadata, "no", -1), _number(part.metadata, "count", 1)
        if found != (number, count):
            raise GGUFError(
                f"{part.path}: split.no and split.count are {found[0]} and {found[1]}, but by its name it is part "
                f"{number + 1} of {count}, which needs {number} and {count}. It belongs to another file: fetch all "
                "parts again."
            )
    whole = Whole(parts)
    if sum(len(part.tensors) for part in parts) != len(whole.tensors):
        twice = next(n for part in parts for n in part.tensors if part is not whole.part_of[n])
        raise GGUFError(f"{path}: tensor {shown(twice)} is in two parts of the file. Fetch all parts again.")
    wanted = _number(parts[0].metadata, "tensors.count", len(whole.tensors))
    if wanted != len(whole.tensors):
        raise GGUFError(
            f"{parts[0].path}: split.tensors.count is {wanted}, and the {count} parts hold {len(whole.tensors)} "
            "tensors. They do not belong together: fetch all parts again."
        )
    return whole


def read_here(path: str | Path) -> GGUFFile | Whole:
    """The parts of a file as one if all are here and belong together, otherwise only the file at ``path``."""
    file = read(path)
    try:
        return read_whole(path) if part_of(path, file.metadata) else file
    except GGUFError:
        return file


def names_of(path: str | Path) -> list[Path]:
    """The names of all parts, from the name of one; a file that is not named as a part has only its own name."""
    path = Path(path)
    match = PART.fullmatch(path.name)
    if not match or not 0 < int(match["number"]) <= int(match["count"]):
        return [path]
    return [path.with_name(_name(match, number)) for number in range(1, int(match["count"]) + 1)]


def missing_parts(path: str | Path) -> str | None:
    """A sentence that names the parts of a split file that are not here; ``None`` if all are here."""
    missing = [name.name for name in names_of(path) if not name.is_file()]
    if not missing:
        return None
    more = f" and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
    return (
        f"{path} is part of a split file, and of its {len(names_of(path))} parts these are not here: "
        f"{', '.join(missing[:MOST_NAMED])}{more}. Put them into the same folder."
    )


def part_of(path: str | Path, metadata: dict | None = None) -> str | None:
    """A text about a file that is a part: which part, and where the others are; ``None`` for a whole file.

    metadata: of the file, if it was read; it shows parts that were given other names, and whole files that were given
    the name of a part.

    >>> part_of("model-00001-of-00002.gguf")
    'part 1 of 2 of a split file; the other: model-00002-of-00002.gguf (not here)'
    """
    path = Path(path)
    match = PART.fullmatch(path.name)
    count = int(match["count"]) if match and metadata is None else _number(metadata or {}, "count", 1)
    if count <= 1:
        return None
    if not match or int(match["count"]) != count:
        number = _number(metadata, "no", 0) + 1
        return f"part {number} of {count} of a split file, under another name; the others are not known by name"
    others = [number for number in range(1, int(match["count"]) + 1) if number != int(match["number"])]
    some = others if len(others) <= MOST_NAMED else [*others[:3], *others[-2:]]
    here = [_name(match, number) for number in some]
    here = [name + ("" if path.with_name(name).is_file() else " (not here)") for name in here]
    if len(some) < len(others):
        here.insert(3, "...")
    word = "the other" if len(others) == 1 else "the others"
    return f"part {int(match['number'])} of {int(match['count'])} of a split file; {word}: {', '.join(here)}"


def _name(match: re.Match, number: int) -> str:
    return f"{match['name']}-{number:05d}-of-{match['count']}{match['end']}"


def _number(metadata: dict, key: str, default: int) -> int:
    """The number ``split.{key}``; ``default`` if it is missing or no number."""
    value = metadata.get(f"split.{key}", default)
    return int(value) if isinstance(value, int | np.integer) and not isinstance(value, bool) else default
