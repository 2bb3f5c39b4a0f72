"""Decides what a source names: a GGUF file, a folder of ours, a folder of other tools, or a float checkpoint."""

import os
from dataclasses import dataclass
from pathlib import Path

from qtutor.decoder import EMBEDDED
from qtutor.errors import QtutorError, naming
from qtutor.formats import foreign_settings, hub, native_reading
from qtutor.formats.gguf_files import file_in

Source = str | os.PathLike
GGUF, OURS, OTHERS, FLOAT = "a GGUF file", "a folder of qtutor", "a folder of another tool", "a float checkpoint"


@dataclass(frozen=True)
class Found:
    """kind: :data:`GGUF`, :data:`OURS`, :data:`OTHERS` or :data:`FLOAT`. path: of the GGUF file, or of the folder."""

    kind: str
    path: Path


def find(source: Source) -> Found:
    """What ``source`` names: "embedded", "smollm2", a GGUF file, a folder, or a hub id, whose files are downloaded.

    Raises :class:`QtutorError` for a file of another kind, and for a hub id that cannot be reached.
    """
    if source == "embedded":
        return Found(FLOAT, EMBEDDED)
    file = file_in(source)
    if file is not None:
        return Found(GGUF, file)
    folder = Path(source)
    if not folder.exists():
        folder = hub.folder_of(str(source))
    if not folder.is_dir():
        raise QtutorError(
            f"{source} is a file, and a checkpoint is a folder with config.json and *.safetensors: name that."
        )
    with naming(f"{source}: the checkpoint cannot be loaded"):
        return Found(kind_in(folder), folder)


def kind_in(folder: Path) -> str:
    """The kind of a folder without regard to GGUF files: :data:`OURS`, :data:`OTHERS`, or :data:`FLOAT` for the rest.

    Raises :class:`QtutorError` for settings of another tool that are damaged.
    """
    if (folder / native_reading.ABOUT).is_file():
        return OURS
    return FLOAT if foreign_settings.settings_in(folder) is None else OTHERS
