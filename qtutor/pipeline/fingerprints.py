"""What a run is made of, in a few hashes: an unfinished run is gone on with only by one that has the same.

The recipe and the text are told whole. A checkpoint is told by the names and sizes of its files, by their headers
(names, shapes and places of all tensors), and by some of their content: pieces of 4 kB, evenly spread. Reading all of a
large checkpoint would take minutes; two versions of a model that differ in no such piece are not expected.
"""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import torch

from qtutor.calibration.mapped import Weights
from qtutor.recipe import Recipe

LAYOUT = 1  # of the unfinished folder; another number when what is kept there changes
PIECES, PIECE = 256, 4096
BEGINNING = 1 << 20  # bytes that are read of every file, if its header is not longer


def fingerprint(weights: Weights, recipe: Recipe, token_ids: torch.Tensor | None) -> dict:
    """By "recipe", "checkpoint", "calibration text" and "version of qtutor", what JSON can hold."""
    return {
        "recipe": json.loads(json.dumps(recipe.as_dict())),
        "checkpoint": {file.name: of_file(file) for file in weights.files} or _of_tensors(weights),
        "calibration text": None if token_ids is None else of_tokens(token_ids),
        "version of qtutor": f"{version('qtutor')}, layout {LAYOUT}",  # others may round in other ways
    }


def of_file(path: Path) -> str:
    """Size and hash of the file's beginning and of pieces all over it."""
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
    """How many samples of which length ``token_ids`` are, and a digest of them."""
    samples, length = token_ids.shape
    data = token_ids.to(device="cpu", dtype=torch.int64).contiguous().numpy().tobytes()
    return f"{samples} samples of {length} tokens, sha256 {hashlib.sha256(data).hexdigest()}"


def _of_tensors(weights: Weights) -> str:
    """Of a model that came from nowhere: all its numbers."""
    found = hashlib.sha256()
    for name, parameter in weights.model.named_parameters():
        found.update(f"{name} {parameter.dtype} {list(parameter.shape)}".encode())
        found.update(weights.tensor(name).cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return f"sha256 {found.hexdigest()}"
