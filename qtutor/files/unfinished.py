"""The hidden folder of a long run: finished work is kept there, so that the same run can go on after a kill.

    .out.qtutor-unfinished/    lock        held by the run that writes, as long as it lives
                               work.json   what the run computes, and from what: another run must not go on with it
                               done.jsonl  a line for every piece of work that is finished and on disk
                               new         the folder to come; after the exchange, the old folder to be removed
                               old         the old folder, only if the system cannot exchange two names in one step
                               ...         everything else that the run needs when it goes on

Unlike a :func:`~.staging.stage`, the folder stays when the run is interrupted or fails, once a piece is finished. It is
removed when the new folder has taken its place, and when another run begins for the same target.
"""

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from qtutor.errors import QtutorError
from qtutor.files import put_folder
from qtutor.files.staging import UNFINISHED, locked, mark_of, remove_tree

WORK, DONE = "work.json", "done.jsonl"


class Unfinished:
    """The folder of a run. new: the folder to come. done: the pieces that an earlier run finished, as they were noted.

    differs: why the work of an earlier run cannot be continued, as the keys of ``work`` that differed; empty if it can,
    or if there was none.
    """

    def __init__(self, folder: Path, work: dict):
        self.folder, self.new, self.differs = folder, folder / "new", ()
        earlier = _read(folder / WORK)
        if earlier is not None and earlier != work:
            self.differs = tuple(key for key in sorted({*earlier, *work}) if earlier.get(key) != work.get(key))
        if earlier != work or not self.new.is_dir():
            _empty(folder)
            self.new.mkdir()
            _write(folder / WORK, json.dumps(work, indent=1))
        self.mode = stat.S_IMODE(self.new.stat().st_mode)
        self.done = _lines(folder / DONE)

    def note(self, piece: dict) -> None:
        """Note that one more piece is finished; its files have to be on disk already."""
        self.done.append(piece)
        with open(self.folder / DONE, "a", encoding="utf-8") as file:
            file.write(json.dumps(piece) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def keep_first(self, count: int) -> None:
        """Forget all pieces but the first ``count``."""
        self.done = self.done[:count]
        _write(self.folder / DONE, "".join(json.dumps(piece) + "\n" for piece in self.done))


@contextlib.contextmanager
def unfinished(path: Path, work: dict) -> Iterator[Unfinished]:
    """The folder of a run that writes the folder ``path``; ``new`` replaces ``path`` when the block ends.

    work: a description, in types that JSON can hold, of what is computed. Only a run with an equal one continues
    earlier work. If the block raises, or is interrupted, the old ``path`` stays as it was, and finished work is kept.
    Raises :class:`QtutorError` while another run for the same ``path`` is alive.
    """
    folder, made, new = folder_of(path), [], None
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(_taken(folder, path, made))
            _put_back(folder, path)
            run = Unfinished(folder, work)
            made.append(run)
            yield run
            new = run.new.stat()
            put_folder(run.new, path, run.mode, folder / "old")
            _remove(folder)
        except BaseException:
            in_place = new is not None and path.exists() and os.path.samestat(path.stat(), new)
            if in_place or (made and not _lines(folder / DONE)):
                _remove(folder)
            raise


def folder_of(path: Path) -> Path:
    """The folder in which a run for ``path`` keeps its finished work."""
    return path.parent / f".{mark_of(path)}{UNFINISHED}"


def bytes_in(folder: Path) -> int:
    """Bytes that the files in ``folder`` take on the disk now; 0 if there is no such folder."""
    files = [path.lstat() for path in folder.rglob("*")] if folder.is_dir() and not folder.is_symlink() else []
    return sum(512 * found.st_blocks if hasattr(found, "st_blocks") else found.st_size for found in files)


def bytes_kept(path: str | Path) -> int:
    """Bytes that an unfinished run for ``path`` has written of the folder to come."""
    with contextlib.suppress(OSError, ValueError):  # an invalid name is refused elsewhere
        return bytes_in(folder_of(Path(os.path.realpath(path))) / "new")
    return 0


def _taken(folder: Path, path: Path, made: list) -> contextlib.AbstractContextManager:
    """The lock on ``folder``. If there is no such folder, it is created, and added to ``made``."""
    for _ in range(100):
        with contextlib.suppress(FileExistsError):
            if not os.path.lexists(folder):
                made.append(folder)  # added first: an interrupt may come at any moment
                folder.mkdir(mode=0o700)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or (hasattr(os, "geteuid") and found.st_uid != os.geteuid()):
            made.clear()
            raise QtutorError(
                f"{folder} is no folder in which qtutor keeps unfinished work: remove it, or choose another OUT."
            )
        try:
            return locked(folder, needed=False)
        except FileNotFoundError:  # the run that had it has just ended
            made.clear()
            continue
        except BlockingIOError:
            made.clear()
            raise QtutorError(
                f"another run is writing {path} just now ({folder}): let it end, or choose another folder."
            ) from None
    raise QtutorError(
        f"{folder}: other runs remove what this run begins to write there. Wait until they have finished."
    )


def _put_back(folder: Path, path: Path) -> None:
    """Move the old folder back if a run was killed between its last two steps, before the new one took its place."""
    old = folder / "old"
    if old.is_dir() and (folder / "new").is_dir():
        if os.path.lexists(path):
            raise QtutorError(
                f"{old} is what {path} was before a run was killed, but now there is something else in its place: "
                f"move {old} elsewhere, and begin again."
            )
        os.rename(old, path)


def _remove(folder: Path) -> None:
    """Remove ``folder``; its work.json first, so that no run continues with the rest after a kill."""
    try:
        (folder / WORK).unlink(missing_ok=True)
        remove_tree(folder)
    except BaseException:  # an interrupt during the removal: finish it, then stop
        remove_tree(folder)
        raise


def _empty(folder: Path) -> None:
    (folder / WORK).unlink(missing_ok=True)
    for found in folder.iterdir():
        if found.is_dir() and not found.is_symlink():
            remove_tree(found)
        elif found.name != "lock":
            found.unlink()


def _write(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    with open(part, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _read(path: Path) -> dict | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _lines(path: Path) -> list[dict]:
    """The objects in a file of lines; the last line may be cut off."""
    found = []
    with contextlib.suppress(OSError, ValueError, RecursionError):
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            piece = json.loads(line)
            if not isinstance(piece, dict) or not line.endswith("\n"):
                break
            found.append(piece)
    return found
