"""Write files and folders whole or not at all; and find out which kind a file is.

A new file is made in a :func:`~.staging.stage` beside its target, goes to disk, and replaces the target in one step. A
full disk, an interrupt or a kill before that step leaves the old file unchanged.
"""

import contextlib
import ctypes
import errno
import os
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from qtutor.errors import QtutorError
from qtutor.files.staging import SUFFIX, UNFINISHED, stage


@contextlib.contextmanager
def written_beside(path: str | Path) -> Iterator[Path]:
    """A new, empty file to write to; at the end of the ``with`` block it replaces ``path``.

    A reader of ``path`` sees the old file or the whole new one. If the ``with`` block raises, or is interrupted, the
    new file is removed and the old one stays. The user's umask decides who may read the new file.

        with written_beside(path) as new:
            new.write_bytes(content)
    """
    path = Path(path)
    with stage(path) as folder:
        new = folder / "new"
        new.touch()
        mode = stat.S_IMODE(new.stat().st_mode)
        yield new
        _settle(new, mode)
        os.replace(new, path)
        _flush_folder(path.parent)


@contextlib.contextmanager
def folder_written_beside(path: str | Path) -> Iterator[Path]:
    """Like :func:`written_beside`, for a folder with all its files. The old folder is removed after the exchange."""
    path = Path(path)
    with stage(path) as folder:
        new = folder / "new"
        new.mkdir()
        mode = stat.S_IMODE(new.stat().st_mode)
        yield new
        put_folder(new, path, mode, folder / "old")


def put_folder(new: Path, path: Path, mode: int, old: Path) -> None:
    """Put the folder ``new`` in the place of ``path`` once all of it is on disk. mode: its permissions from then on.

    Afterwards, a folder that was at ``path`` is at ``new``, or at ``old`` if the system cannot exchange two names.
    """
    for found in new.rglob("*"):
        if not found.is_dir():
            _settle(found, mode & 0o666)
    for found in (new, *new.rglob("*")):
        if found.is_dir():
            _flush_folder(found)
    _put(new, path, old)
    _flush_folder(path.parent)


@contextlib.contextmanager
def parents_made(path: Path) -> Iterator[None]:
    """Make the folders above ``path``; if the ``with`` block raises, remove those that were missing before."""
    missing = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for parent in missing:
            with contextlib.suppress(OSError):  # by now it may hold somebody else's files
                parent.rmdir()
        raise


@contextlib.contextmanager
def as_qtutor_error(path: str | Path, error: type[QtutorError] = QtutorError) -> Iterator[None]:
    """Turn errors of the system while ``path`` is written (a full disk, no permission) into an ``error`` that names it.

    The Rust libraries raise exceptions of their own for these, with the system's error number in the text.
    """
    try:
        yield
    except Exception as found:
        text = re.search(r"os error (\d+)", str(found))
        if isinstance(found, QtutorError) or not (text or isinstance(found, OSError)):
            raise
        reason = os.strerror(int(text[1])) if text else getattr(found, "strerror", None) or str(found)
        where = str(getattr(found, "filename", None) or path)
        for suffix in (SUFFIX, UNFINISHED):  # do not show our own hidden folder, but the folder that holds it
            if suffix in where:
                where = str(Path(where.partition(suffix)[0]).parent)
        at = "" if where == str(path) else f" ({where})"
        raise error(
            f"{path} cannot be written: {reason}{at}. Whatever was there before is untouched; make room or choose "
            "another folder."
        ) from found


def is_gguf(path: Path) -> bool:
    """Whether it is a GGUF file by its name or its first bytes, so that a damaged .gguf file is reported as damaged."""
    if path.suffix.lower() == ".gguf" or not path.is_file():
        return path.suffix.lower() == ".gguf"
    with open(path, "rb") as file:
        return file.read(4) == b"GGUF"


def kind_of(path: str | Path) -> str:
    """What is at ``path``, in words: "a file", "a folder", "a pipe" ... It opens nothing, so it never waits."""
    kinds = {stat.S_ISREG: "a file", stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISCHR: "a device",
             stat.S_ISBLK: "a device", stat.S_ISSOCK: "a socket"}  # fmt: skip
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        return f"not readable ({getattr(error, 'strerror', None) or error})"
    return next((name for is_kind, name in kinds.items() if is_kind(mode)), "no ordinary file")


def _settle(path: Path, mode: int) -> None:
    """Give a file the mode of any new file, and bring its content to disk before its name."""
    if path.is_symlink():
        return
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
    if stat.S_IMODE(path.stat().st_mode) != mode:
        os.chmod(path, mode)  # safetensors lets only the owner read


def _flush_folder(path: Path) -> None:
    """Bring the names in a folder to disk, if the system can do that."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _put(new: Path, path: Path, old: Path) -> None:
    """Replace the folder ``path`` by ``new``, in one step if the system can do that.

    Otherwise the old folder is moved to ``old`` first; if the second step fails, the stage moves it back.
    """
    if path.is_dir():
        if _exchange(new, path):
            return
        os.rename(path, old)
    os.rename(new, path)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; return ``False`` if the system or the file system cannot do that."""
    if sys.platform not in ("linux", "darwin"):
        return False
    system = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    exchange = ctypes.c_uint(2)  # RENAME_EXCHANGE, and macOS's RENAME_SWAP
    if hasattr(system, "renameat2"):
        here = -100  # AT_FDCWD: names count from the current folder, as usual
        failed = system.renameat2(here, names[0], here, names[1], exchange)
    elif hasattr(system, "renamex_np"):
        failed = system.renamex_np(*names, exchange)
    else:
        return False
    number = ctypes.get_errno()
    if failed and number not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP):
        raise OSError(number, os.strerror(number), str(one), None, str(other))
    return not failed
