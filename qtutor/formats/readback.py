"""What was written is read back before it gets its name, by what will load it, and headers only: that takes a moment.

A model that is not as its config says is refused before (:mod:`qtutor.guards`). This is the net below: whatever a
writer lost or called by another name is found here, while the old file is still in its place, and not by who loads the
new one.
"""

from collections.abc import Callable
from pathlib import Path

from qtutor.errors import QtutorError


def read_back(place: Path, reading: Callable[[], object]) -> None:
    """Call ``reading``; where it raises :class:`QtutorError`, say of ``place`` that it was not written."""
    try:
        reading()
    except QtutorError as error:
        raise QtutorError(
            f"{place} was not written, since it could not be read back, and what was there before is untouched. What "
            f"was to be written says: {error}"
        ) from error
