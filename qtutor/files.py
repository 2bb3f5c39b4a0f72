"""Files are written whole or not at all; and which kind a file is."""

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_beside(path: str | Path) -> Iterator[Path]:
    """A new, empty file in the folder of ``path`` to write to; when the block ends, it takes the place of ``path``.

    Whoever reads ``path`` sees the old file or the whole new one. Where the block raises, or is interrupted, the new
    file is removed and the old one stays; a kill may leave the new one behind, under a name that begins with a dot.

        with written_beside(path) as new:
            new.write_bytes(content)
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.", suffix=".part")
    os.close(handle)
    new = Path(name)
    try:
        os.chmod(new, 0o644)  # mkstemp lets only the owner read
        yield new
        with open(new, "rb+") as file:
            os.fsync(file.fileno())  # the content has to be on disk before the name is
        os.replace(new, path)
    except BaseException:
        with contextlib.suppress(OSError):  # what went wrong first is what has to be told
            new.unlink(missing_ok=True)
        raise


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
