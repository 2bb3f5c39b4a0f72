"""A run's inputs in a few hashes: an unfinished run is continued only by a run that has the same hashes.

The recipe and the text count as a whole. A checkpoint is identified by the names and sizes of its files, by their
headers (names, shapes and places of all tensors), and by some of their content: pieces of 4 kB, evenly spread. Reading
all of a large checkpoint would take minutes. Two versions of a model are expected to differ in at least one piece.
"""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import torch

from qtutor.calibration.mapped import Weights
from qtutor.recipe import Recipe

LAYOUT = 1  # of the unfinished folder; the number changes when the content of that folder does
PIECES, PIECE = 256, 4096
BEGINNING = 1 << 20  # bytes that are read from the start of every file, or its whole header if that is longer


def fingerprint(weights: Weights, recipe: Recipe, token_ids: torch.Tensor | None) -> dict:
    """Values that JSON can hold, by "recipe", "checkpoint", "calibration text" and "version of qtutor"."""
    return {
        "recipe": json.loads(json.dumps(recipe.as_dict())),
        "checkpoint": {file.name: of_file(file) for file in weights.files} or _of_tensors(weights),
        "calibration text": None if token_ids is None else of_tokens(token_ids),
        "version of qtutor": f"{version('qtutor')}, layout {LAYOUT}",  # another version may round differently
    }


def of_file(path: Path) -> str:
    """The size of the file, and a hash of its beginning and of pieces spread over all of it."""
    size, found = path.stat().st_size, hashlib.sha256()
    with open(path, "rb") as file:
        header = int.from_bytes(file.read(8), "little") if path.suffix == ".safetensors" else 0
        file.seek(0)
        found.update(file.read(min(max(BEGINNING, 8 + header), size)))  # a damaged file may give any length
        for number in range(PIECES):
            file.seek(number * max(size - PIECE, 0) // (PIECES - 1))
            found.update(file.read(PIECE))
    return f"{size} bytes, sha256 {found.hexdigest()}"


def of_tokens(token_ids: torch.Tensor) -> str:
    """The number and the length of the samples in ``token_ids``, and a digest of them."""
    samples, length = token_ids.shape
    data = token_ids.to(device="cpu", dtype=torch.int64).contiguous().numpy().tobytes()
    return f"{samples} samples of {length} tokens, sha256 {hashlib.sha256(data).hexdigest()}"


def _of_tensors(weights: Weights) -> str:
    """For a model that was not loaded from files: a hash of all its numbers."""
    found = hashlib.sha256()
    for name, parameter in weights.model.named_parameters():
        found.update(f"{name} {parameter.dtype} {list(parameter.shape)}".encode())
        found.update(weights.tensor(name).cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return f"sha256 {found.hexdigest()}"
