"""The stage: a hidden folder in which a new file or folder is made before it replaces its target.

    .out.1f2e3d4c.qtutor-partial/    lock   held by the run that writes, as long as that run lives
                                     new    the new file or folder; after the exchange, the old folder to be removed
                                     old    the old folder, only if the system cannot exchange two names in one step

An error or an interrupt removes the stage. A kill leaves it behind. The next run for the same target then removes it,
or moves the old folder back if the target is missing: a run that gets the lock knows that no other run writes there.
While a stage is removed, its name ends in .gone.qtutor-partial.
"""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from qtutor.errors import QtutorError, warn
from qtutor.files.stopping import interrupt_behind

try:
    import fcntl
except ImportError:  # Windows: without locks nothing shows which stages are left over, so they stay
    fcntl = None

SUFFIX = ".qtutor-partial"
GONE = ".gone" + SUFFIX
UNFINISHED = ".qtutor-unfinished"  # suffix of the folder of a long run, which is kept: see .unfinished
LONGEST_MARK = 100  # bytes of the longest name that a stage repeats; eCryptfs allows the shortest names, of 143 bytes


@contextlib.contextmanager
def stage(path: Path) -> Iterator[Path]:
    """A hidden folder beside ``path``, with a lock; removed at the end. Left-overs of killed runs are removed first."""
    remove_leftovers(path)
    made: list[Path] = []  # gets a name before the folder is made, because an interrupt may come at any moment
    with contextlib.ExitStack() as held:
        try:
            yield _new_stage(path, made, held)
        finally:
            try:
                _clear_all(made, path)
            except BaseException:  # an interrupt during the removal: finish it, then stop
                _clear_all(made, path)
                raise


def remove_leftovers(path: str | Path) -> None:
    """Remove the stages that killed runs for ``path`` left behind; stages of living runs stay."""
    path = Path(path)
    mine = re.compile(re.escape(f".{mark_of(path)}.") + f"[0-9a-f]{{8}}({re.escape(SUFFIX)}|{re.escape(GONE)})")
    try:
        names = [name for name in os.listdir(path.parent) if mine.fullmatch(name)]
    except OSError:  # the folder is missing or may not be listed: writing to it will report that
        return
    for folder in (path.parent / name for name in names):
        if folder.is_symlink():  # qtutor makes no links
            continue
        if folder.name.endswith(GONE):  # nothing in it is needed, and a lock would be a new file in it
            remove_tree(folder)
            continue
        try:
            lock = locked(folder)
        except (BlockingIOError, FileNotFoundError):  # its run is alive, or has just ended
            continue
        except OSError as why:
            _warn(folder, why)
            continue
        with lock:
            _clear(folder, path)


def mark_of(path: Path) -> str:
    """The part of a stage's name that names its target: the target's name, or a digest of it if it is long."""
    name = os.fsencode(path.name)
    return path.name if len(name) <= LONGEST_MARK else hashlib.sha256(name).hexdigest()[:32]


def _new_stage(path: Path, made: list[Path], held: contextlib.ExitStack) -> Path:
    """A new folder that only its owner may read. Its name is added to ``made``, and its lock to ``held``."""
    for _ in range(100):
        folder = path.parent / f".{mark_of(path)}.{secrets.token_hex(4)}{SUFFIX}"
        if folder.exists():
            continue
        made.append(folder)
        folder.mkdir(mode=0o700)
        try:
            held.enter_context(locked(folder, needed=False))
            return folder
        except (BlockingIOError, FileNotFoundError):  # another run removed it as a left-over before it had its lock
            continue
    raise QtutorError(f"{path}: other runs remove what this run begins to write there. Wait until they have finished.")


def locked(folder: Path, needed: bool = True) -> contextlib.AbstractContextManager:
    """Lock ``folder`` until the result is closed or this process ends. needed: raise if the system has no locks.

    Raises :class:`BlockingIOError` if another process has the lock.
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
        # Another run may have removed the folder before we got the lock. Then its name is gone, or is another file.
        if not os.path.samestat(os.fstat(handle), os.stat(folder / "lock")):
            raise BlockingIOError(errno.EAGAIN, "taken by another run", str(folder))
        closing.pop_all()
        return file


def remove_tree(folder: Path) -> None:
    """Remove ``folder`` as far as that is allowed.

    An interrupt inside of shutil.rmtree can make it close a folder a second time. That fails, and the failure would
    hide the interrupt.
    """
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise interrupt_behind(error) or error from None


def _clear_all(folders: list[Path], path: Path) -> None:
    for folder in folders:
        _clear(folder, path)


def _clear(folder: Path, path: Path) -> None:
    """Remove a stage. First, move back the old folder if it was moved into the stage and not replaced."""
    old = folder / "old"
    if old.is_dir() and (folder / "new").is_dir():  # the run ended between its two steps
        if os.path.lexists(path):
            return _warn(folder, f"{old} is what {path} was before")
        os.rename(old, path)  # if this fails, the stage stays, and the error names both
    gone = _set_apart(folder)
    remove_tree(gone)
    if gone.exists():
        _warn(gone, "parts of it may not be removed")


def _set_apart(folder: Path) -> Path:
    """Rename a stage before it is removed, and return its new name: another run may be about to ask for its lock.

    That run would put a new lock into the folder while it is being removed. Now it sees that the folder is gone.
    """
    gone = folder.with_name(folder.name.removesuffix(SUFFIX) + GONE)
    with contextlib.suppress(OSError):  # not allowed, or done before an interrupt
        os.rename(folder, gone)
    return gone if gone.exists() else folder


def _warn(folder: Path, why: object) -> None:
    warn(f"{folder} seems left over from a run that was killed ({why}): remove it yourself.")
