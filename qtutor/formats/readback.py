"""A written checkpoint is read back by its own reader before it gets its name.

A model that is not as its config says is refused before (:mod:`qtutor.guards`). This check is the safety net: a tensor
that a writer lost or called by another name is found here, while the old file is still in its place, and not when
somebody loads the new one.
"""

from collections.abc import Callable
from pathlib import Path

from qtutor.errors import QtutorError


def read_back(place: Path, reading: Callable[[], object]) -> None:
    """Call ``reading``; if it raises :class:`QtutorError`, say that ``place`` was not written."""
    try:
        reading()
    except QtutorError as error:
        raise QtutorError(
            f"{place} was not written, since it could not be read back; the files that were there before are "
            f"untouched. The error on reading it: {error}"
        ) from error
