"""Shared by all formats that are folders when they are written: what may be replaced, and which tensors there are.

An export notes the names of its files in a file of its own (``about`` below). Files that are not noted there are not
ours, and are kept.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn

from qtutor.errors import QtutorError
from qtutor.families import family_of
from qtutor.files.target import checked
from qtutor.formats.shards import Kind
from qtutor.guards.promises import is_tied

LITTER = ".DS_Store"  # macOS puts it anywhere


def target(folder: str | Path, about: str, sources: Iterable[str | Path] = (), need: int = 0, usual=None) -> Path:
    """``folder`` with its links followed, if an export may be written there (:func:`qtutor.files.target.checked`).

    about, usual: see :func:`refuse_others`. Raises :class:`QtutorError` that names the obstacle.
    """
    if Path(folder).suffix == ".gguf":
        raise QtutorError(
            f"{folder} is the name of a GGUF file, and this format is a folder: choose another name, or the format "
            "'gguf'."
        )
    place = checked(folder, folder=True, sources=sources, need=need)
    refuse_others(place, about, usual)
    return place


def refuse_others(folder: Path, about: str, usual: Callable[[str], bool] | None = None) -> None:
    """Refuse a folder that holds files of others, since an export replaces all of it.

    about: the file in which our exports note their files. usual: whether a name is one of ours, for an ``about`` that
    does not say so; without ``usual``, such a folder is refused.
    """
    found = [name for name in files_in(folder) if Path(name).name != LITTER] if folder.exists() else []
    noted = _noted(folder / about)
    known = usual if noted is None else noted.__contains__
    if found and (known is None or not (folder / about).is_file()):
        raise QtutorError(f"{folder} exists and is not an export of qtutor; choose another folder or remove it.")
    others = [name for name in found if name != about and not known(name)]
    if others:
        raise QtutorError(
            f"{folder} holds files besides the export that qtutor wrote there ({', '.join(others[:3])}), and the next "
            "export would replace the whole folder: move them elsewhere, or choose another folder."
        )


def _noted(about: Path) -> set[str] | None:
    """The names of the files of an earlier export, as the export noted them; ``None`` if it did not."""
    try:
        return {*json.loads(about.read_text(encoding="utf-8"))["files"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def files_in(folder: Path) -> list[str]:
    """The names of all files in a folder and in those below it, links included."""
    found = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    return sorted(path.relative_to(folder).as_posix() for path in found)


def check_dtype(dtype: torch.dtype) -> None:
    """Raise :class:`QtutorError` for a model in a dtype that no checkpoint has."""
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise QtutorError(f"the model is in {dtype}, which no checkpoint holds: call model.float() first.")


def stored_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict without a tied output matrix."""
    tied = f"{family_of(model).head}.weight" if is_tied(model) else None
    return {name: tensor for name, tensor in model.state_dict().items() if name != tied}


def kinds(tensors: dict[str, torch.Tensor]) -> dict[str, Kind]:
    """Dtype and shape of each of ``tensors``."""
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
