"""Files and folders are written whole or not at all; and which kind a file is.

What is new is made in a :func:`~.staging.stage` beside its target, goes to disk, and takes the target's place in one
step. Whatever happens before that, a full disk, an interrupt, a kill, leaves the old one as it was.
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
    """A new, empty file to write to; when the block ends, it takes the place of ``path``.

    Whoever reads ``path`` sees the old file or the whole new one. Where the block raises, or is interrupted, the new
    file is removed and the old one stays. It may be read by whom the user's umask lets.

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
    """:func:`written_beside` for a folder with all its files; an old folder ``path`` is removed after the new one is
    in its place.
    """
    path = Path(path)
    with stage(path) as folder:
        new = folder / "new"
        new.mkdir()
        mode = stat.S_IMODE(new.stat().st_mode)
        yield new
        put_folder(new, path, mode, folder / "old")


def put_folder(new: Path, path: Path, mode: int, old: Path) -> None:
    """The folder ``new`` takes the place of ``path`` once all of it is on disk, readable as ``mode`` has it.

    Afterwards a folder that was at ``path`` is at ``new``, or at ``old`` where the system cannot exchange two names.
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
    """Make the folders above ``path``; those that were missing go again where the block raises."""
    missing = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for parent in missing:
            with contextlib.suppress(OSError):  # somebody else's files may be in it by now
                parent.rmdir()
        raise


@contextlib.contextmanager
def told(path: str | Path, error: type[QtutorError] = QtutorError) -> Iterator[None]:
    """What the system refuses while ``path`` is written becomes an ``error`` that names it: a full disk, no permission.

    The libraries in Rust raise exceptions of their own for it, with the system's number in the text.
    """
    try:
        yield
    except Exception as found:
        text = re.search(r"os error (\d+)", str(found))
        if isinstance(found, QtutorError) or not (text or isinstance(found, OSError)):
            raise
        reason = os.strerror(int(text[1])) if text else getattr(found, "strerror", None) or str(found)
        where = str(getattr(found, "filename", None) or path)
        for suffix in (SUFFIX, UNFINISHED):  # of our own hidden folders only where they should have been
            if suffix in where:
                where = str(Path(where.partition(suffix)[0]).parent)
        at = "" if where == str(path) else f" ({where})"
        raise error(
            f"{path} cannot be written: {reason}{at}. Whatever was there before is untouched; make room or choose "
            "another folder."
        ) from found


def is_gguf(path: Path) -> bool:
    """By its name or its first bytes: report a damaged .gguf file as a damaged one."""
    if path.suffix.lower() == ".gguf" or not path.is_file():
        return path.suffix.lower() == ".gguf"
    with open(path, "rb") as file:
        return file.read(4) == b"GGUF"


def kind_of(path: str | Path) -> str:
    """What lies at ``path``, in words: "a file", "a folder", "a pipe" ...; nothing is opened, nothing waited for."""
    kinds = {stat.S_ISREG: "a file", stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISCHR: "a device",
             stat.S_ISBLK: "a device", stat.S_ISSOCK: "a socket"}  # fmt: skip
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        return f"nothing that can be read ({getattr(error, 'strerror', None) or error})"
    return next((name for is_kind, name in kinds.items() if is_kind(mode)), "no ordinary file")


def _settle(path: Path, mode: int) -> None:
    """Give a file the mode that any new one has, and have its content on disk before its name is."""
    if path.is_symlink():
        return
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
    if stat.S_IMODE(path.stat().st_mode) != mode:
        os.chmod(path, mode)  # safetensors lets only the owner read


def _flush_folder(path: Path) -> None:
    """Have the names in a folder on disk, where the system can do that."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _put(new: Path, path: Path, old: Path) -> None:
    """``new`` takes the place of the folder ``path``, in one step where the system can do that.

    Else the old folder is moved to ``old`` first; whatever happens before the second step, the stage moves it back.
    """
    if path.is_dir():
        if _exchange(new, path):
            return
        os.rename(path, old)
    os.rename(new, path)


def _exchange(one: Path, other: Path) -> bool:
    """Two names change places in one step; ``False`` where the system or the file system cannot do that."""
    if sys.platform not in ("linux", "darwin"):
        return False
    system = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    exchange = ctypes.c_uint(2)  # RENAME_EXCHANGE, and macOS's RENAME_SWAP
    if hasattr(system, "renameat2"):
        here = -100  # AT_FDCWD: as any name, from the current folder
        failed = system.renameat2(here, names[0], here, names[1], exchange)
    elif hasattr(system, "renamex_np"):
        failed = system.renamex_np(*names, exchange)
    else:
        return False
    number = ctypes.get_errno()
    if failed and number not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP):
        raise OSError(number, os.strerror(number), str(one), None, str(other))
    return not failed
