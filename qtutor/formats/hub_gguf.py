"""Downloads a GGUF file from the hub, named ``owner/name:Q4_K_M`` as in llama.cpp's ``-hf`` and in ollama.

A file that was downloaded once is available without network. torch is not imported: the command line calls this before
anything else.
"""

import re
from functools import cache
from pathlib import Path

from qtutor.errors import QtutorError, said, shown

NAMES = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*):([A-Za-z0-9][\w.-]*)")
PART = "-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9]"  # of a split file


@cache
def file(source: str) -> Path | None:
    """The local file of ``owner/name:TYPE``, or the first part of a split one; ``None`` for a name of another form.

    Raises :class:`QtutorError` if it cannot be downloaded, and if not exactly one file has this type in its name.
    """
    found = NAMES.fullmatch(source)
    if not found or Path(source).exists():
        return None
    from huggingface_hub import snapshot_download

    name, type = found.groups()
    wanted = "".join(f"[{c.lower()}{c.upper()}]" if c.isalpha() else c for c in type)  # in upper or lower case
    ends = [f"{wanted}{part}.[gG][gG][uU][fF]" for part in ("", PART)]
    try:
        patterns = [f"{begin}{end}" for begin in ("", "*[-._/]") for end in ends]
        folder = Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # huggingface_hub and the network fail in many ways
        raise QtutorError(
            f"{source}: no such file here, and it could not be fetched from the hub ({said(error)}). Check the "
            "spelling; without network, name a GGUF file."
        ) from error
    from qtutor.formats.gguf_files import files_in

    folders = [folder, *(place for place in sorted(folder.rglob("*")) if place.is_dir())]
    files = [file for place in folders for file in files_in(place) if _is_of(file.name, type)]
    if len(files) == 1:
        return files[0]
    if files:
        raise QtutorError(
            f"{source}: {len(files)} files of the repository have this type in their names "
            f"({', '.join(shown(file.name) for file in files[:5])}): download the one that is meant, and name it."
        )
    raise QtutorError(f"{source}: {types_of(name)}")


def _is_of(name: str, type: str) -> bool:
    """Whether a file's name ends in the type; the second network of an image model (mmproj) is no decoder."""
    stem = re.sub(rf"({PART})?\.gguf$", "", name, flags=re.IGNORECASE)
    own = stem.lower() == type.lower() or re.search(rf"[-._]{re.escape(type)}$", stem, re.IGNORECASE)
    return bool(own) and not name.lower().startswith("mmproj")


def types_of(name: str) -> str:
    """A sentence about the GGUF files of a repository, for a user who named none of them."""
    from huggingface_hub import HfApi

    try:
        files = [file for file in HfApi().list_repo_files(name) if file.lower().endswith(".gguf")]
    except Exception:  # unknown without network
        files = []
    if not files:
        return f"No GGUF file of that type was found there. A file is named like {name}:Q4_K_M."
    some = ", ".join(shown(file) for file in files[:6]) + " ..." * (len(files) > 6)
    return f"It holds these GGUF files: {some}. Name one by its type, like {name}:Q4_K_M."
