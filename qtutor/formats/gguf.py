"""A decoder as one GGUF file for llama.cpp, and back.

    qtutor.export(model, "out.gguf", format="gguf", type="Q4_K_M", tokenizer=tokenizer)
    model = qtutor.formats.gguf.load("out.gguf")    # float32 weights, decoded from the file; any GGUF file

The grids of GGUF's block types are part of the format. So weights are encoded from their float values, and the rounding
of a recipe is not used. Two ways still improve the rounding: ``importance``, and AWQ's scales
(:func:`.scaling.fold_model`). A model that is quantized already is decoded first, and so rounded a second time.

One tensor at a time is in memory, as float32 and encoded: a checkpoint that transformers maps from its file
(``dtype="auto"``) is never in memory as a whole. Left out: writing a file in several parts.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn
from tqdm.auto import tqdm

from qtutor.errors import QtutorError, warn
from qtutor.files import as_qtutor_error, parents_made
from qtutor.files.target import checked
from qtutor.formats.gguf_contents import DEFAULT, contents
from qtutor.formats.gguf_files import NAME
from qtutor.formats.gguf_reading import CONFIG, load, opened  # noqa: F401 - load is the other half
from qtutor.formats.readback import read_back
from qtutor.gguf import longrope
from qtutor.gguf.architecture import architecture_of
from qtutor.gguf.container import GGUFError
from qtutor.gguf.hyperparameters import window_of
from qtutor.gguf.reader import read
from qtutor.gguf.tokenizer_back import tokenizer_of
from qtutor.gguf.writer import Tensor, size_of, write


def save(
    model: nn.Module,
    out: str | Path,
    tokenizer=None,
    *,
    type: str = DEFAULT,
    types: Mapping[str, str] | None = None,
    importance=None,
    pure: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Write ``model`` with its ``tokenizer`` to ``out``, or to ``out/model.gguf`` if ``out`` does not end in .gguf.

    type: a mix (:data:`qtutor.gguf.mixes.MIXES`), or with ``pure`` a block type for every matrix. types: block types of
    single matrices that replace the mix's, by GGUF name or a pattern of names (``{"blk.*.ffn_down.weight": "Q6_K"}``);
    :func:`qtutor.budget.block_types.choose` finds some for a size. importance: an
    :class:`~qtutor.gguf.imatrix.Imatrix`, a file that holds one, or a mapping of GGUF names to float32 ``[in]``.
    overwrite: replace an existing file even if qtutor did not write it. progress: show a bar if encoding takes long.
    Returns the file's path.
    Raises :class:`QtutorError` for a family, a tokenizer or a tensor that the format cannot hold, and if the file
    cannot be written; the old file is then untouched.
    """
    keys, tensors = contents(model, tokenizer, type=type, types=types, importance=importance, pure=pure)
    _say_of_window(model.config)
    _say_of_positions(model.config)
    place = target(out, need=sum(tensor.nbytes for tensor in tensors), overwrite=overwrite)
    with as_qtutor_error(place), parents_made(place), _progress(tensors, progress) as counted:
        write(place, keys, counted, lambda new: read_back(place, lambda: tokenizer_of(opened(new).file.metadata)))
    return _path(out)


def planned(model: nn.Module, tokenizer=None, **options) -> dict[str, int]:
    """The bytes of the file that :func:`save` would write with these options, by block type; shapes are enough.

    "header" counts the bytes of the metadata, with the tokenizer, and of the padding that aligns tensors.
    """
    keys, tensors = contents(model, tokenizer, **options)
    found = {}
    for tensor in tensors:
        found[tensor.type] = found.get(tensor.type, 0) + tensor.nbytes
    return found | {"header": size_of(keys, tensors) - sum(found.values())}


def target(out: str | Path, sources: Iterable[str | Path] = (), need: int = 0, overwrite: bool = False) -> Path:
    """The path that :func:`save` would write, its links followed, if allowed (:func:`qtutor.files.target.checked`)."""
    place = checked(_path(out), folder=False, sources=sources, need=need)
    if place.exists() and place.stat().st_size and not overwrite and not _ours(place):
        raise QtutorError(
            f"{place} exists, and qtutor did not write it (it is no complete GGUF file with {CONFIG}). Choose another "
            "name, or replace it with --force (in Python: overwrite=True)."
        )
    return place


def _path(out: str | Path) -> Path:
    return Path(out) if Path(out).suffix.lower() == ".gguf" else Path(out) / NAME


def _ours(path: Path) -> bool:
    try:
        return CONFIG in read(path).metadata
    except GGUFError:  # damaged, or no GGUF file at all
        return False


@contextmanager
def _progress(tensors: list[Tensor], shown: bool) -> Iterator[list[Tensor]]:
    """The tensors; if encoding them takes over a second, a bar on the terminal counts their weights."""
    total = sum(math.prod(tensor.shape) for tensor in tensors)
    looks = {"unit": "weight", "unit_scale": True, "leave": False}
    with tqdm(total=total, desc="encoding", delay=1, disable=None if shown else True, **looks) as bar:

        def counted(tensor: Tensor) -> np.ndarray:
            data = tensor.data()
            bar.update(math.prod(tensor.shape))
            return data

        yield [replace(t, data=partial(counted, t)) if callable(t.data) else t for t in tensors]


def _say_of_window(config) -> None:
    window = window_of(config)
    if window and window < config.max_position_embeddings and not architecture_of(config).window:
        warn(
            f"sliding_window = {window}: llama.cpp has no sliding window in this architecture, so the file's context "
            f"is {window} tokens, up to which both compute the same, not {config.max_position_embeddings}."
        )


def _say_of_positions(config) -> None:
    rope = config.rope_parameters
    if rope.get("rope_type") == longrope.KIND:
        original = rope["original_max_position_embeddings"]
        warn(
            "rope_parameters: llama.cpp chooses between the short and the long factors by its context, transformers by "
            f"the length of the text. For texts within {original} tokens, start it with a context of {original} tokens "
            f"(-c {original})."
        )
