"""The hidden folder in which something new is made before it takes its target's place.

    .out.1f2e3d4c.qtutor-partial/    lock   held by the run that writes, as long as it lives
                                     new    the file or folder to come; after the step, the old folder to be removed
                                     old    the old folder, only where the system cannot exchange two names in one step

An error or an interrupt removes the stage. A kill leaves it behind, and the next run for the same target removes it, or
puts the old folder back where there is none: whoever gets the lock knows that nobody writes there any more.
"""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

from qtutor.errors import QtutorError
from qtutor.files.stopping import interrupt_behind

try:
    import fcntl
except ImportError:  # Windows: nobody can tell there what is left over, so it stays
    fcntl = None

SUFFIX = ".qtutor-partial"
UNFINISHED = ".qtutor-unfinished"  # of the folder of a long run, which is another thing: see .unfinished
LONGEST_MARK = 100  # bytes of a target's name that its stage repeats; eCryptfs, the narrowest, allows 143 in all


@contextlib.contextmanager
def stage(path: Path) -> Iterator[Path]:
    """A hidden folder beside ``path``, with a lock; it is removed at the end, as are those that killed runs left."""
    remove_leftovers(path)
    made: list[Path] = []  # a folder's name is here before the folder is: an interrupt may come at any moment
    with contextlib.ExitStack() as held:
        try:
            yield _new_stage(path, made, held)
        finally:
            try:
                _clear_all(made, path)
            except BaseException as error:  # an interrupt that came now, when all else was done
                _clear_all(made, path)
                raise interrupt_behind(error) or error from None


def remove_leftovers(path: str | Path) -> None:
    """Remove the stages that killed runs for ``path`` left; those of runs that are alive stay."""
    path = Path(path)
    mine = re.compile(re.escape(f".{mark_of(path)}.") + "[0-9a-f]{8}" + re.escape(SUFFIX))
    try:
        names = [name for name in os.listdir(path.parent) if mine.fullmatch(name)]
    except OSError:  # no such folder, or one that may not be listed: then whoever writes will hear of it
        return
    for folder in (path.parent / name for name in names):
        if folder.is_symlink():  # nothing that qtutor makes
            continue
        try:
            lock = locked(folder)
        except (BlockingIOError, FileNotFoundError):  # a run that is alive, or has just ended
            continue
        except OSError as why:
            _warn(folder, why)
            continue
        with lock:
            _clear(folder, path)


def mark_of(path: Path) -> str:
    """The target's name in that of its stage; of a long one a digest, since names end at 255 bytes or earlier."""
    name = os.fsencode(path.name)
    return path.name if len(name) <= LONGEST_MARK else hashlib.sha256(name).hexdigest()[:32]


def _new_stage(path: Path, made: list[Path], held: contextlib.ExitStack) -> Path:
    """A new folder into which only its owner may look, also noted in ``made``; ``held`` gets the lock in it."""
    for _ in range(100):
        folder = path.parent / f".{mark_of(path)}.{secrets.token_hex(4)}{SUFFIX}"
        if folder.exists():
            continue
        made.append(folder)
        folder.mkdir(mode=0o700)
        try:
            held.enter_context(locked(folder, needed=False))
            return folder
        except (BlockingIOError, FileNotFoundError):  # another run took it for a left-over before it had its lock
            continue
    raise QtutorError(f"{path}: other runs remove what this one begins to write there. Let one finish first.")


def locked(folder: Path, needed: bool = True) -> contextlib.AbstractContextManager:
    """A lock on ``folder``, until it is closed or this process ends. needed: raise where there are no locks.

    Raises :class:`BlockingIOError` where another process has it.
    """
    if fcntl is None:
        if needed:
            raise OSError(errno.ENOTSUP, "no locks here")
        return contextlib.nullcontext()
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    with contextlib.ExitStack() as closing:
        file = closing.enter_context(open(handle, "r+b"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as why:
            if needed or isinstance(why, BlockingIOError):
                raise
        # Another run may have removed the folder before the lock was ours: then the name is gone, or another file's.
        if not os.path.samestat(os.fstat(handle), os.stat(folder / "lock")):
            raise BlockingIOError(errno.EAGAIN, "taken by another run", str(folder))
        closing.pop_all()
        return file


def _clear_all(folders: list[Path], path: Path) -> None:
    for folder in folders:
        _clear(folder, path)


def _clear(folder: Path, path: Path) -> None:
    """Remove a stage; an old folder that was moved into it and not replaced goes back first."""
    old = folder / "old"
    if old.is_dir() and (folder / "new").is_dir():  # the run ended between its two steps
        if os.path.lexists(path):
            return _warn(folder, f"{old} is what {path} was before")
        os.rename(old, path)  # where this fails, the stage stays, and the error names both
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        _warn(folder, "not all of it may be removed")


def _warn(folder: Path, why: object) -> None:
    warnings.warn(f"{folder} seems left over from a run that was killed ({why}): remove it yourself.", stacklevel=3)
