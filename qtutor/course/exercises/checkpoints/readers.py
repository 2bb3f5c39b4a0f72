"""The readers' answers about a folder, which ``checkpoints.folder`` compares.

The first reader is qtutor's own. If the package compressed-tensors is installed, transformers is the second.
"""

import hashlib
from pathlib import Path

import torch

import qtutor
from qtutor.errors import QtutorError, said, shown
from qtutor.formats.documents import read_json
from qtutor.formats.foreign_reading import opened
from qtutor.formats.foreign_settings import settings_in
from qtutor.formats.transformers_files import as_transformers_loads
from qtutor.installed import is_installed

LOADED = "it loads"
PROMPT = [[1, 5, 9, 3]]
TOKENS = 8


def tokens_of(model, ids: list[list[int]] = PROMPT, count: int = TOKENS) -> list[int]:
    """The ``count`` tokens that ``model`` writes greedily after ``ids``; the end of a text does not stop it."""
    ids = torch.tensor(ids)
    with torch.inference_mode():
        for _ in range(count):
            following = model(ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, following], dim=1)
    return ids[0, -count:].tolist()


def has_engine() -> bool:
    """Whether transformers can load the format here."""
    return is_installed("compressed_tensors")


def seen(returned, given: tuple) -> tuple[str, list[int]]:
    """(:data:`LOADED` or a reader's objection to the folder, the tokens that the folder's model writes)."""
    folder = given[0]
    key = _digest(folder)
    if key not in _answers:
        _answers[key] = _asked(folder)
    return _answers[key]


_answers: dict[str, tuple[str, list[int]]] = {}  # by a folder's contents: the same bytes get the same answer


def _digest(folder: Path) -> str:
    hashed = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        hashed.update(f"{path.relative_to(folder)} {path.stat().st_size} ".encode() + path.read_bytes())
    return hashed.hexdigest()


def _asked(folder: Path) -> tuple[str, list[int]]:
    try:
        problem = _missing(folder) or _misled(folder)
        model = None if problem else qtutor.load_quantized(folder, device="cpu")
    except QtutorError as error:
        problem = str(error).replace(str(folder), "folder")
    if problem:
        return problem, []
    tokens = tokens_of(model)
    if has_engine():
        try:
            theirs = tokens_of(as_transformers_loads(folder))
        except Exception as error:  # any error of transformers
            return f"transformers: {said(error)}", []
        if theirs != tokens:
            return "transformers loads it, but writes other tokens than qtutor's reader.", theirs
    return LOADED, tokens


def _missing(folder: Path) -> str:
    """What is missing altogether; the readers' own messages would say less."""
    names = sorted(path.name for path in folder.iterdir())
    if "config.json" not in names:
        return f"folder has no config.json; it holds {', '.join(names) or 'nothing'}."
    if settings_in(folder) is None:
        keys = list(read_json(folder / "config.json"))
        return f"config.json has no quantization_config; its first keys are {', '.join(map(shown, keys[:3]))}."
    return ""


def _misled(folder: Path) -> str:
    """What transformers would read differently from qtutor's reader, which is more tolerant; tried with both.

    Without the status, transformers assumes that the weights are not packed yet. It also looks for the words of a float
    linear layer if the settings do not ignore that layer.
    """
    found = opened(folder)
    if found.settings.get("quantization_status") != "compressed":
        status = shown(found.settings.get("quantization_status"))
        return f"quantization_status is {status}: engines treat the weights as packed only if it is 'compressed'."
    ignored = found.settings.get("ignore") or []
    linear = [name for name, module in found.model.named_modules() if isinstance(module, torch.nn.Linear)]
    left = [name for name in linear if name not in found.layouts and name not in ignored]
    if not left or found.model.config.tie_word_embeddings:
        return ""
    return f"{left[0]} is a linear layer in float, and quantization_config does not ignore it."
