"""Check the place where a checkpoint will be written, OUT, before the long work begins.

    path = checked("out", folder=True, sources=["path/to/llama"], need=5_000_000_000)

- OUT is neither SRC nor inside SRC, even through links.
- The object at OUT is of the kind that will be written (a folder or a file), and can be replaced: it is not a mount
  point, not the current folder, and not write-protected.
- The name of OUT is not too long, and the folder that holds OUT can be written to; this is tried out.
- The disk has room for the new files, as far as their size is known (:func:`least_bytes`).

Only a format knows whether the object at OUT is ours to replace (``target`` of its module in :mod:`qtutor.formats`).
"""

import math
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from qtutor.errors import QtutorError
from qtutor.files import as_qtutor_error
from qtutor.files.staging import SUFFIX, stage

Shape = tuple[int, ...]


def checked(out: str | Path, folder: bool, sources: Iterable[str | Path] = (), need: int = 0) -> Path:
    """Check ``out`` and return its path, with links followed. Remove left-overs of killed runs for ``out``.

    folder: whether a folder or a file will be written. sources: what will be read; sources that do not exist here (hub
    ids) are ignored. need: the least number of bytes that will be written. Raises :class:`QtutorError`, which says what
    the obstacle is.
    """
    try:
        path = Path(os.path.realpath(out))
        str(path).encode()  # the Rust libraries need names in UTF-8
    except (OSError, ValueError) as error:  # the current folder was removed; a zero byte in the name; not UTF-8
        raise QtutorError(f"{str(out)!r} is not a usable name ({error}): choose another name.") from None
    for source in sources:
        _apart(path, source)
    if not path.name:
        raise QtutorError(f"{path} is the root of all folders and will not be replaced: name a folder in it.")
    base = next(parent for parent in path.parents if os.path.lexists(parent))
    _names_fit(path, base)
    _replaceable(path, folder)
    if not base.is_dir():
        raise QtutorError(f"{base} is a file, and {path} needs a folder there: choose another place.")
    with as_qtutor_error(path), stage(base / path.name):
        pass  # a stage can be made, so a file or folder can be made, too
    disk = shutil.disk_usage(base)
    if need > disk.free and disk.total:  # some file systems give no sizes
        raise QtutorError(
            f"{path} will take at least {need:,} bytes, and {disk.free:,} are free on the disk of {base}. Make room, "
            "or choose a folder on another disk."
        )
    return path


def least_bytes(tensors: Iterable[tuple[str, Shape, int]], bits: float, everywhere: bool = False) -> int:
    """The least number of bytes of a model whose matrices get ``bits`` for each weight.

    tensors: name, shape, bytes. Matrices outside the decoder blocks keep their bytes, unless ``everywhere``. Scales are
    not counted, so that a user with just enough room is not refused.
    """
    total = 0
    for name, shape, nbytes in tensors:
        rounded = len(shape) == 2 and (everywhere or ".layers." in name)
        total += min(nbytes, math.ceil(math.prod(shape) * bits / 8)) if rounded else nbytes
    return total


def tensors_in(source: str | Path) -> Iterator[tuple[str, Shape, int]]:
    """Name, shape and bytes of the tensors of a checkpoint, from the headers in its folder; nothing for a hub id."""
    from qtutor.formats.headers import read_header

    whole = Path(source) / "model.safetensors"
    files = [whole] if whole.is_file() else sorted(Path(source).glob("model-*-of-*.safetensors"))
    try:
        headers = [read_header(file) for file in files]
    except (QtutorError, OSError):
        return  # loading it will report the problem
    for header in headers:
        for name, stored in header.tensors.items():
            yield name, stored.shape, stored.nbytes


def _apart(path: Path, source: str | Path) -> None:
    """Refuse a target that is the source, or is inside it."""
    if not os.path.exists(source):
        return
    for at in (path, *path.parents):
        if os.path.exists(at) and os.path.samefile(at, source):
            where = "the same as" if at == path else "inside"
            raise QtutorError(
                f"{path} is {where} {source}, which is read: writing there could replace your files. Choose a place "
                "outside of it."
            )


def _names_fit(path: Path, base: Path) -> None:
    """Refuse names that are too long for the file system of ``base``; our own names there are shorter."""
    longest = os.pathconf(base, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
    for name in path.relative_to(base).parts:
        if len(os.fsencode(name)) > longest:
            raise QtutorError(
                f"the name {name[:40]}... has {len(os.fsencode(name))} bytes, and {base} allows {longest}: choose a "
                "shorter name."
            )
    if len(os.fsencode(path)) + 3 * len(SUFFIX) + 255 > 4096:  # the path of a file in the stage is longer
        raise QtutorError(f"{path.name[:40]}: its path has {len(os.fsencode(path)):,} bytes. Choose a shorter path.")


def _replaceable(path: Path, folder: bool) -> None:
    """Refuse a file or folder at ``path`` that cannot be replaced, or is not of the kind that will be written."""
    if not os.path.lexists(path):
        return
    if os.path.islink(path):  # realpath follows links as far as they lead
        raise QtutorError(f"{path} is a link that leads nowhere: remove it or choose another name.")
    mode = path.stat().st_mode
    if folder and not stat.S_ISDIR(mode):
        raise QtutorError(f"{path} is a file, and a folder is to be written: choose another name.")
    if not folder and not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "not an ordinary file"
        raise QtutorError(f"{path} is {kind}, and a file is to be written: choose another name.")
    if folder and _mounted(path):
        raise QtutorError(f"{path} is where a disk is mounted and will not be replaced: name a folder in it.")
    if folder and _around_us(path):
        raise QtutorError(f"{path} is the folder that you are in, and would be replaced: name another, or one in it.")
    holder = path.parent.stat()
    sticky = holder.st_mode & stat.S_ISVTX and os.name == "posix" and os.geteuid() not in (0, holder.st_uid)
    if not mode & 0o222 or not os.access(path, os.W_OK) or (sticky and os.geteuid() != path.stat().st_uid):
        raise QtutorError(f"{path} is write-protected, or another user's: choose another name, or allow writing to it.")


def _around_us(path: Path) -> bool:
    """Whether ``path`` is the current folder or one above it. A shell in it would be left in a removed folder."""
    try:
        here = Path.cwd()
    except OSError:  # removed already
        return False
    return path in (here, *here.parents)


def _mounted(path: Path) -> bool:
    """Whether a disk, or (found on Linux only) another folder, is mounted there."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        lines = []
    return os.path.ismount(path) or str(path).replace(" ", "\\040") in (line.split()[4] for line in lines)
