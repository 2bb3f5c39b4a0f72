"""JSON files of a checkpoint: numbers and texts that somebody wrote, perhaps in bad faith, and read with this in mind.

Each has to be in its folder, be UTF-8, hold one object, and no key twice: readers differ in which value they take.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qtutor.errors import QtutorError, one_line, said, shown

LARGEST = 64 << 20  # bytes; the largest tokenizers have some 20 million
AGAIN = "Copy, download or export it again."


@contextmanager
def reading(source) -> Iterator[None]:
    """Report errors of the file system in the same way as every other fault of a checkpoint."""
    try:
        yield
    except OSError as error:
        path, reason = one_line(str(error.filename or source), 400), error.strerror or said(error)
        raise QtutorError(f"{path} cannot be read: {reason}. Check its name and who may read it.") from error


def file_in(folder: Path, name: str) -> Path | None:
    """The file ``name`` of a checkpoint's folder, ``None`` if there is none.

    Raises :class:`QtutorError` for a name that leads out of the folder, itself or by a link. In a cache of
    huggingface_hub, every file is a link to the folder ``blobs`` beside it, which is allowed.
    """
    path, home = folder / name, folder.resolve()
    homes = [home, home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [home]
    if not name or "\0" in name or not any(path.resolve().is_relative_to(home) for home in homes):
        raise QtutorError(
            f"{folder}: {shown(name)} leads out of the folder, and a checkpoint is read from its own folder only. Copy "
            "the file itself into the folder."
        )
    if path.exists() and not path.is_file():
        raise QtutorError(f"{path} is no file: the checkpoint is damaged. {AGAIN}")
    return path if path.is_file() else None


def read_json(path: Path) -> dict:
    """The object in a JSON file. Raises :class:`QtutorError` naming the file if it holds anything else."""
    size = path.stat().st_size
    if size > LARGEST:
        raise QtutorError(f"{path} has {size:,} bytes; expected at most {LARGEST:,}. {AGAIN}")
    return parse_json(path.read_bytes(), str(path))


def parse_json(data: bytes | str, subject: str) -> dict:
    """The object in the JSON text ``data``; messages begin with ``subject``."""
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        found = json.loads(text, object_pairs_hook=_no_key_twice)
    except RecursionError:
        raise QtutorError(
            f"{subject} is damaged: its lists are nested more than {sys.getrecursionlimit()} deep. {AGAIN}"
        ) from None
    except ValueError as error:  # no JSON, no UTF-8, or a number with more digits than Python reads
        raise QtutorError(f"{subject} is damaged and no JSON ({said(error)}). {AGAIN}") from None
    if not isinstance(found, dict):
        raise QtutorError(f"{subject} is damaged: it holds {shown(found)}, and has to hold an object. {AGAIN}")
    return found


def _no_key_twice(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in found if keys.count(key) > 1)
        raise ValueError(f"the key {shown(twice)} is there twice")
    return found
