"""A folder in which numba keeps compiled code, for every subpackage whose loops it compiles."""

import contextlib
import hashlib
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

SLOW = 2.0  # seconds after which a waiting user is told the reason


def cache_folder(name: str, sources: Iterable[Path]) -> str | None:
    """A folder for compiled code, named by ``name`` and a hash of ``sources``; ``None`` if it cannot be made.

    numba looks only at the function's own file to see whether its cached code is out of date. Our functions call each
    other across files, so numba would go on using code compiled from an older file beside it.
    """
    text = b"".join(path.read_bytes() for path in sorted(sources))
    home = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(home).expanduser() / "qtutor" / f"{name}-{hashlib.sha256(text).hexdigest()[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # a read-only or unknown home: every process compiles again
        return None
    return str(folder) if os.access(folder, os.W_OK) else None


def compiled(function, folder: str | None, **options):
    """``function``, compiled by numba when it is first called; the result is kept in ``folder``."""
    import numba

    before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, folder or numba.config.CACHE_DIR
    try:
        return numba.njit(error_model="numpy", nogil=True, cache=folder is not None, **options)(function)
    finally:
        numba.config.CACHE_DIR = before


@contextlib.contextmanager
def told_if_slow(what: str) -> Iterator[None]:
    """Say on a terminal that ``what`` is being compiled, if the work inside takes more than two seconds."""
    timer = threading.Timer(SLOW, _say, [what])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _say(what: str) -> None:
    if sys.stderr is not None and sys.stderr.isatty():
        print(f"qtutor: compiling {what} for this processor; this is done once.", file=sys.stderr)
