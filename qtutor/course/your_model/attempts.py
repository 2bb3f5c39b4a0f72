"""A learner's attempts at the capstone, in ``WORKSPACE/mine/your_model.json``: every one is kept, none is changed.

The file is replaced whole or not at all. Two notebooks that write at once wait for each other. A file that cannot be
read is moved aside and never overwritten, so even then nothing is lost. Outside of a workspace, attempts are kept only
until the kernel stops.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from qtutor.course import workspace
from qtutor.course.workspace.answers import FOLDER
from qtutor.errors import QtutorError
from qtutor.files import as_qtutor_error

try:
    import fcntl
except ImportError:  # Windows: there, two notebooks that write in the same second do not wait for each other
    fcntl = None

FILE = "your_model.json"
LOCK = ".your_model.lock"
_here: list["Attempt"] = []  # of this kernel, outside of a workspace


@dataclass(frozen=True)
class Attempt:
    """One measured attempt. model: the float model that it was made from. The numbers are those of a Comparison."""

    model: str
    note: str
    nbytes: int
    kl: float
    kl_error: float | None
    flips: float
    perplexity: float


def keep(attempt: Attempt) -> str:
    """Keep an attempt. Returns a line for the learner, or ``""`` outside of a workspace.

    Raises :class:`QtutorError` if the workspace cannot be written, or belongs to another user.
    """
    path = path_in(workspace.find())
    if path is None:
        _here.append(attempt)
        return ""
    with as_qtutor_error(path):
        path.parent.mkdir(exist_ok=True)
        with _alone(path.with_name(LOCK)):
            rows, damaged = _read(path)
            aside = f" The old file could not be read; it is now {_set_aside(path).name}." if damaged else ""
            content = json.dumps({"attempts": [*rows, asdict(attempt)]}, indent=1, allow_nan=False)
            workspace.write_beside(path, content.encode())
    return f"Kept in {FOLDER}/{path.name}, attempt {len(rows) + 1}.{aside}"


def kept(model: str) -> list[Attempt]:
    """The attempts at ``model`` so far, the oldest first."""
    path = path_in(workspace.find())
    rows = [asdict(attempt) for attempt in _here] if path is None else _read(path)[0]
    return [Attempt(**row) for row in rows if _whole(row) and row["model"] == model]


def path_in(folder: Path | None) -> Path | None:
    """The file in a workspace, ``None`` outside of one. Raises :class:`QtutorError` for another user's workspace."""
    if folder is None:
        return None
    path = folder / FOLDER / FILE
    parts = (folder, folder / workspace.RECORD, *(part for part in (path.parent, path) if part.exists()))
    strange = workspace.of_another(*parts)
    if strange:
        raise QtutorError(strange)
    return path


def _read(path: Path) -> tuple[list[dict], bool]:
    """The rows of a file, unchanged, and whether the file is damaged. A missing file has no rows."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)["attempts"]
    except FileNotFoundError:
        return [], False
    except (ValueError, KeyError, TypeError, RecursionError):
        return [], True
    return (rows, False) if isinstance(rows, list) else ([], True)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON, and we never write it")


def _whole(row) -> bool:
    """Whether a row of the file is an attempt of ours; others stay in the file and are not shown."""
    if not isinstance(row, dict) or set(row) != set(Attempt.__annotations__):
        return False
    numbers = [row[name] for name in ("nbytes", "kl", "flips", "perplexity")]
    numbers += [row["kl_error"]] if row["kl_error"] is not None else []
    return all(isinstance(row[name], str) for name in ("model", "note")) and all(
        isinstance(number, int | float) and math.isfinite(number) for number in numbers
    )


def _set_aside(path: Path) -> Path:
    """Rename a damaged file to a free name."""
    for number in range(1, 1000):
        aside = path.with_name(f"{path.stem}.damaged-{number}{path.suffix}")
        if not aside.exists():
            os.rename(path, aside)
            return aside
    raise QtutorError(f"{path.parent} holds 999 damaged files of attempts: look at them, and delete some.")


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Wait until no other process is inside."""
    if fcntl is None:
        yield
        return
    with open(lock, "a") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)  # the lock ends when the file is closed, or with the process
        yield
