"""Where a checkpoint may be written: all that can be said about OUT is said before the long work.

    path = checked("out", folder=True, sources=["path/to/llama"], need=5_000_000_000)

- OUT is not SRC nor inside of it, whatever links and names lead there.
- It is a folder where one is written, a file where one is, and can be replaced: no mount point, not the current folder,
  not write-protected.
- Its names fit, and the folder that holds it can be written to; that is tried, not asked.
- There is room for what will be written, as far as that is known (:func:`least_bytes`).

Whether what lies there is ours to replace, only its format can tell (``target`` of its module in
:mod:`qtutor.formats`).
"""

import math
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from qtutor.errors import QtutorError
from qtutor.files import told
from qtutor.files.staging import SUFFIX, stage

Shape = tuple[int, ...]


def checked(out: str | Path, folder: bool, sources: Iterable[str | Path] = (), need: int = 0) -> Path:
    """``out`` with its links followed, once it is found fit to be written.

    folder: whether a folder will be written there, or a file. sources: what is read; those that are no files here do
    not matter. need: bytes that it will take at least. Left-overs of killed runs for ``out`` are removed.
    Raises :class:`QtutorError` that says what is in the way.
    """
    try:
        path = Path(os.path.realpath(out))
        str(path).encode()  # the libraries in Rust take no other names
    except (OSError, ValueError) as error:  # the current folder is gone; a zero byte in the name; no UTF-8
        raise QtutorError(f"{str(out)!r} is no usable name ({error}): choose another one.") from None
    for source in sources:
        _apart(path, source)
    if not path.name:
        raise QtutorError(f"{path} is the root of all folders, and is not replaced: name a folder in it.")
    base = next(parent for parent in path.parents if os.path.lexists(parent))
    _names_fit(path, base)
    _replaceable(path, folder)
    if not base.is_dir():
        raise QtutorError(f"{base} is a file, and {path} needs a folder there: choose another place.")
    with told(path), stage(base / path.name):
        pass  # it can be made: so can what is to come
    disk = shutil.disk_usage(base)
    if need > disk.free and disk.total:  # some file systems tell nothing
        raise QtutorError(
            f"{path} will take at least {need:,} bytes, and {disk.free:,} are free on the disk of {base}. Make room, "
            "or choose a folder on another disk."
        )
    return path


def least_bytes(tensors: Iterable[tuple[str, Shape, int]], bits: float, everywhere: bool = False) -> int:
    """At least what a model will take whose matrices get ``bits`` a weight, before any work.

    tensors: name, shape, bytes. Matrices outside of the blocks keep their bytes, unless ``everywhere``. Scales are not
    counted: who has just enough room shall not be refused.
    """
    total = 0
    for name, shape, nbytes in tensors:
        rounded = len(shape) == 2 and (everywhere or ".layers." in name)
        total += min(nbytes, math.ceil(math.prod(shape) * bits / 8)) if rounded else nbytes
    return total


def tensors_in(source: str | Path) -> Iterator[tuple[str, Shape, int]]:
    """Name, shape and bytes of the tensors of a checkpoint in a folder, from its headers; none for a hub id."""
    from qtutor.formats.headers import read_header

    whole = Path(source) / "model.safetensors"
    files = [whole] if whole.is_file() else sorted(Path(source).glob("model-*-of-*.safetensors"))
    try:
        headers = [read_header(file) for file in files]
    except (QtutorError, OSError):
        return  # loading says what is wrong with it
    for header in headers:
        for name, stored in header.tensors.items():
            yield name, stored.shape, stored.nbytes


def _apart(path: Path, source: str | Path) -> None:
    """Refuse a target that is the source, or lies in it."""
    if not os.path.exists(source):
        return
    for at in (path, *path.parents):
        if os.path.exists(at) and os.path.samefile(at, source):
            where = "the same as" if at == path else "inside"
            raise QtutorError(
                f"{path} is {where} {source}, which is read: what is written there could replace what you have. "
                "Choose a place outside of it."
            )


def _names_fit(path: Path, base: Path) -> None:
    """Refuse names that the file system of ``base`` cannot hold; our own names there are shorter."""
    longest = os.pathconf(base, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
    for name in path.relative_to(base).parts:
        if len(os.fsencode(name)) > longest:
            raise QtutorError(
                f"the name {name[:40]}... has {len(os.fsencode(name))} bytes, and {base} allows {longest}: choose a "
                "shorter one."
            )
    if len(os.fsencode(path)) + 3 * len(SUFFIX) + 255 > 4096:  # with a stage and a file in it
        raise QtutorError(f"{path.name[:40]}: its path has {len(os.fsencode(path)):,} bytes: choose a shorter one.")


def _replaceable(path: Path, folder: bool) -> None:
    """Refuse what lies at ``path`` and is of another kind than what is to come, or cannot be replaced."""
    if not os.path.lexists(path):
        return
    if os.path.islink(path):  # realpath follows all that can be followed
        raise QtutorError(f"{path} is a link that leads nowhere: remove it or choose another name.")
    mode = path.stat().st_mode
    if folder and not stat.S_ISDIR(mode):
        raise QtutorError(f"{path} is a file, and a folder is to be written: choose another name.")
    if not folder and not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "no ordinary file"
        raise QtutorError(f"{path} is {kind}, and a file is to be written: choose another name.")
    if folder and _mounted(path):
        raise QtutorError(f"{path} is where a disk is mounted, and is not replaced: name a folder in it.")
    if folder and _around_us(path):
        raise QtutorError(f"{path} is the folder that you are in, and would be replaced: name another, or one in it.")
    holder = path.parent.stat()
    sticky = holder.st_mode & stat.S_ISVTX and os.name == "posix" and os.geteuid() not in (0, holder.st_uid)
    if not mode & 0o222 or not os.access(path, os.W_OK) or (sticky and os.geteuid() != path.stat().st_uid):
        raise QtutorError(f"{path} is write-protected, or another user's: choose another name, or allow writing to it.")


def _around_us(path: Path) -> bool:
    """Whether it is the current folder, or one above: a shell in it would go on in the folder that was removed."""
    try:
        here = Path.cwd()
    except OSError:  # removed already
        return False
    return path in (here, *here.parents)


def _mounted(path: Path) -> bool:
    """Whether a disk, or another folder, is mounted there; Linux tells also of the latter."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        lines = []
    return os.path.ismount(path) or str(path).replace(" ", "\\040") in (line.split()[4] for line in lines)
