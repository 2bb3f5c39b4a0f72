"""Which GGUF file a source names: itself, the one in a folder, or the first of its parts.

Only names and first bytes are read, and torch is not imported: the command line calls this before anything else.
"""

from pathlib import Path

from qtutor.errors import QtutorError, shown
from qtutor.files import is_gguf
from qtutor.formats import documents, hub_gguf, smollm2

NAME = "model.gguf"  # our name for the file in a folder


def located(source: str | Path) -> str | Path:
    """``source``, or the file that the word "smollm2" or a name like ``owner/name:Q4_K_M`` refers to."""
    if source == smollm2.WORD:
        return smollm2.file()
    return hub_gguf.file(source) or source if isinstance(source, str) else source


def file_in(source: str | Path, alone: bool = True) -> Path | None:
    """The GGUF file that ``source`` names, ``None`` if it names something else; for a split file, its first part.

    alone: in a folder, only if no other weights are there. A folder may hold one file of any name, or several of which
    one is called ``model.gguf``, the name that we write. Raises :class:`QtutorError` for other folders with several.
    """
    path = Path(located(source))
    if not path.is_dir():
        return path if is_gguf(path) else None
    if alone and _other_weights(path):
        return None
    found = files_in(path)
    if len(found) > 1 and path / NAME not in found:
        raise QtutorError(
            f"{path} holds {len(found)} GGUF files ({', '.join(shown(file.name) for file in found[:5])}"
            f"{' ...' * (len(found) > 5)}): name the one that is meant, like {path / found[0].name}."
        )
    return None if not found else documents.file_in(path, NAME if path / NAME in found else found[0].name)


def files_in(folder: Path) -> list[Path]:
    """The GGUF files in a folder by name, with a suffix in any case; of the parts of a file, only the first."""
    from qtutor.gguf.parts import names_of

    found = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".gguf" and not path.is_dir())
    here, first = set(found), []
    for path in found:
        parts = [part for part in names_of(path) if part in here]
        if parts[0] == path:
            first.append(path)
    return first


def _other_weights(folder: Path) -> bool:
    """Whether a folder holds a checkpoint of another kind. A config.json alone comes with many GGUF files."""
    return (folder / "qtutor.json").is_file() or any(path.suffix.lower() == ".safetensors" for path in folder.iterdir())
