"""A decoder as one GGUF file for llama.cpp, and back.

    qtutor.export(model, "out.gguf", format="gguf", type="Q4_K_M", tokenizer=tokenizer)
    model = qtutor.formats.gguf.load("out.gguf")    # float32, with the weights that the file stands for; any file

The grids of GGUF's block types are part of the format, so weights are encoded from their float values, whatever a
recipe would have made of them. Two ways bring better rounding along: ``importance``, and AWQ's scales
(:func:`.scaling.fold_model`). A model that is quantized already is written as what its codes stand for, and
so rounded a second time.

One tensor is in memory at a time, as float32 and encoded: a checkpoint that transformers maps from its file
(``dtype="auto"``) is never there whole. Left out: writing a file in several parts.
"""

import json
import math
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from qtutor.errors import QtutorError, naming
from qtutor.families import family_of
from qtutor.files import parents_made, told
from qtutor.files.target import checked
from qtutor.formats.endings import generation_settings
from qtutor.formats.gguf_files import NAME
from qtutor.formats.gguf_reading import CONFIG, GENERATION, Source, decoded, load, opened, parameters  # noqa: F401 - the other half
from qtutor.formats.readback import read_back
from qtutor.gguf import imatrix, longrope
from qtutor.gguf.architecture import architecture_of, tensor_name, to_file
from qtutor.gguf.coding import decode, encode, find_type
from qtutor.gguf.container import GGUFError
from qtutor.gguf.hyperparameters import metadata, rope_tensors, window_of
from qtutor.gguf.layout import ALL_TYPES
from qtutor.gguf.mixes import file_type, fitting, tensor_types
from qtutor.gguf.reader import read
from qtutor.gguf.tokenizer import tokenizer_metadata
from qtutor.gguf.tokenizer_back import tokenizer_of
from qtutor.gguf.writer import Tensor, size_of, write
from qtutor.guards.promises import config_to_write

DEFAULT = "Q4_K_M"  # the mix
PHI3_TOKENS = {"<s>", "</s>", "<unk>", "<|endoftext|>"}
SMALL = 1e-3  # weights that no format's scales lose are larger


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
    """Write ``model`` with its ``tokenizer`` to ``out``, or ``out/model.gguf`` where ``out`` does not end in .gguf.

    type: a mix (:data:`qtutor.gguf.mixes.MIXES`), or with ``pure`` a block type for every matrix. types: block types of
    single matrices in place of the mix's, by GGUF name or a pattern of names (``{"blk.*.ffn_down.weight": "Q6_K"}``);
    :func:`qtutor.budget.block_types.choose` finds some for a size. importance: an
    :class:`~qtutor.gguf.imatrix.Imatrix`, a file that holds one, or a mapping of GGUF names to float32 ``[in]``.
    overwrite: replace a file that is there even if qtutor did not write it. progress: show a bar where it takes long.
    Returns the file's path.
    Raises :class:`QtutorError` for a family, a tokenizer or a tensor that the format cannot hold, and where the file
    cannot be written; the old one is then untouched.
    """
    keys, tensors = contents(model, tokenizer, type=type, types=types, importance=importance, pure=pure)
    _say_of_window(model.config)
    _say_of_positions(model.config)
    place = target(out, need=sum(tensor.nbytes for tensor in tensors), overwrite=overwrite)
    with told(place), parents_made(place), _progress(tensors, progress) as counted:
        write(place, keys, counted, lambda new: read_back(place, lambda: tokenizer_of(opened(new).file.metadata)))
    return _path(out)


def contents(
    model: nn.Module,
    tokenizer=None,
    *,
    type: str = DEFAULT,
    types=None,
    importance=None,
    guided: bool = False,
    pure: bool = False,
) -> tuple[dict, list[Tensor]]:
    """What :func:`save` writes: metadata, and tensors whose bytes are made when they are asked for. Shapes are enough.

    Arguments and errors are those of :func:`save`. guided: there will be an importance, which is not at hand yet.
    """
    family_of(model)
    config = config_to_write(model)
    sources = {tensor_name(name, config): source for name, source in parameters(model)}
    chosen = _types(sources, config, type, guided or importance is not None, pure) | _given(types, sources)
    of_column = importance_by_name(importance, sources)
    tensors = [
        Tensor(name, shape, chosen[name], _encoder(name, chosen[name], values, config, of_column))
        for name, (shape, values) in sources.items()
    ]
    for name, factors in rope_tensors(config).items():
        tensors.append(Tensor(name, factors.shape, "F32", factors.astype("<f4").view(np.uint8)))
    keys = _keys(config, tokenizer)
    if not types:  # of types that somebody chose, no mix is the name; readers then look for themselves
        keys["general.file_type"] = file_type(type, pure)
    if settings := generation_settings(model):
        keys[GENERATION] = json.dumps(settings)
    return keys, tensors


def planned(model: nn.Module, tokenizer=None, **options) -> dict[str, int]:
    """The bytes of the file that :func:`save` would write with these options, by block type; shapes are enough.

    "header" are those of the metadata, with the tokenizer, and of what aligns tensors.
    """
    keys, tensors = contents(model, tokenizer, **options)
    found = {}
    for tensor in tensors:
        found[tensor.type] = found.get(tensor.type, 0) + tensor.nbytes
    return found | {"header": size_of(keys, tensors) - sum(found.values())}


def _given(types: Mapping[str, str] | None, sources: Mapping[str, Source]) -> dict[str, str]:
    """The block types that a caller names, of each tensor that a pattern fits."""
    found = {}
    for pattern, kind in (types or {}).items():
        find_type(kind)
        fits = [name for name in sources if fnmatchcase(name, pattern) and len(sources[name][0]) == 2]
        if not fits:
            raise QtutorError(
                f"types names {pattern!r}, and no matrix of this model is called so. The names are those of the file, "
                "like 'blk.0.attn_q.weight'; a pattern may stand for several: 'blk.*.ffn_down.weight'."
            )
        for name in fits:
            width, values = sources[name][0][-1], ALL_TYPES[kind].values
            if width % values:
                raise QtutorError(
                    f"types gives {name!r} {kind}, whose blocks have {values} weights, and its rows have {width}. "
                    f"{fitting(kind, width)} fits."
                )
            found[name] = kind
    return found


def _types(sources: Mapping[str, Source], config, type: str, importance: bool, pure: bool) -> dict[str, str]:
    """The block type of each tensor, by its name."""
    return tensor_types(
        type,
        {name: shape for name, (shape, _) in sources.items()},
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        architecture=architecture_of(config).name,
        importance=importance,
        pure=pure,
    )


def target(out: str | Path, sources: Iterable[str | Path] = (), need: int = 0, overwrite: bool = False) -> Path:
    """The file that :func:`save` would write, its links followed, if it may (:func:`qtutor.files.target.checked`)."""
    place = checked(_path(out), folder=False, sources=sources, need=need)
    if place.exists() and place.stat().st_size and not overwrite and not _ours(place):
        raise QtutorError(
            f"{place} exists, and qtutor did not write it (it is no whole GGUF file with {CONFIG}). Choose another "
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
    """The tensors; where encoding them takes over a second and a person is looking, a bar counts their weights."""
    total = sum(math.prod(tensor.shape) for tensor in tensors)
    looks = {"unit": "weight", "unit_scale": True, "leave": False}
    with tqdm(total=total, desc="encoding", delay=1, disable=None if shown else True, **looks) as bar:

        def counted(tensor: Tensor) -> np.ndarray:
            data = tensor.data()
            bar.update(math.prod(tensor.shape))
            return data

        yield [replace(t, data=partial(counted, t)) if callable(t.data) else t for t in tensors]


def _keys(config, tokenizer) -> dict:
    name = Path(str(getattr(config, "_name_or_path", ""))).name or config.model_type
    about = {"general.type": "model", "general.name": name, "general.quantization_version": 2}
    about[CONFIG] = _config_text(config)
    _check_special_ids(config, tokenizer)
    keys = metadata(config) | about | tokenizer_metadata(tokenizer, config.vocab_size, config)
    return keys | {"general.name": _name_for(name, keys.get("tokenizer.ggml.tokens", []))}


def _name_for(name: str, tokens: Iterable[str]) -> str:
    """``name``, but not Phi-3's with a vocabulary that is not: by that name llama.cpp looks for tokens of Phi-3's, and
    refuses the file where they are not there."""
    return name if set(tokens) >= PHI3_TOKENS else re.sub(r"(?i)(phi)-?(?=3)", r"\1 ", name)


def _say_of_window(config) -> None:
    window = window_of(config)
    if window and window < config.max_position_embeddings and not architecture_of(config).window:
        warnings.warn(
            f"sliding_window = {window}: llama.cpp has no sliding window in this architecture, so the file's context "
            f"is {window} tokens, where both compute the same, not {config.max_position_embeddings}.",
            stacklevel=4,
        )


def _say_of_positions(config) -> None:
    rope = config.rope_parameters
    if rope.get("rope_type") == longrope.KIND:
        original = rope["original_max_position_embeddings"]
        warnings.warn(
            "rope_parameters: llama.cpp chooses between the short and the long factors by its context, transformers by "
            f"the length of the text. For texts within {original} tokens, start it with one of {original} tokens (-c "
            f"{original}).",
            stacklevel=4,
        )


def _check_special_ids(config, tokenizer) -> None:
    """bos and eos of the config are those of the file where the tokenizer has none: they have to be tokens."""
    for name in ("bos_token_id", "eos_token_id"):
        found = getattr(config, name, None)
        for number in found if isinstance(found, list) else [found]:
            if getattr(tokenizer, name, None) is None and number is not None and not 0 <= number < config.vocab_size:
                raise QtutorError(
                    f"config.{name} = {found}: the vocabulary has {config.vocab_size} tokens, 0 to "
                    f"{config.vocab_size - 1}. Set model.config.{name} to one of them, or to None."
                )


def _config_text(config) -> str:
    """transformers' own, but for its version: the same model makes the same file whichever wrote it."""
    diff = json.loads(config.to_json_string(use_diff=True))
    diff.pop("transformers_version", None)
    return json.dumps(diff, indent=2, sort_keys=True) + "\n"


def _encoder(name: str, type: str, values: Callable, config, importance: Callable) -> Callable[[], np.ndarray]:
    """A function that makes the tensor's bytes when its turn to be written comes."""

    def encoded() -> np.ndarray:
        weight = values().detach()
        if weight.is_meta:
            raise QtutorError(f"tensor {name!r} has a shape and no values: load the model whole, without a device_map.")
        rows = np.atleast_2d(to_file(name, weight.to("cpu", torch.float32).numpy(), config))
        with naming(f"tensor {name!r} as {type}"):
            data = encode(rows, type, importance(name, rows.shape[1]) if type not in ("F32", "F16", "BF16") else None)
        _say_what_is_lost(name, type, rows, data)
        return data

    return encoded


def _say_what_is_lost(name: str, type: str, rows: np.ndarray, data: np.ndarray) -> None:
    """Blocks of small weights may become zero without a word, since the format's scales have 16 bits."""
    kind = find_type(type)
    blocks = rows.reshape(-1, kind.values)
    largest = np.maximum(blocks.max(axis=1, initial=0), -blocks.min(axis=1, initial=0))
    small = np.flatnonzero((largest > 0) & (largest < SMALL))
    if type != "F32" and small.size:
        gone = small[~decode(data.reshape(-1, kind.nbytes)[small], type).any(axis=1)]
        if gone.size:
            warnings.warn(
                f"tensor {name!r} as {type}: {gone.size} of {len(blocks)} blocks became zero. Their weights, "
                f"{largest[gone].max():.2g} at most, are too small for the format's scales.",
                stacklevel=2,
            )


def importance_by_name(importance, names: Collection[str]) -> Callable[[str, int], np.ndarray | None]:
    """What an ``importance``, as :func:`save` takes it, says of a tensor: (name, columns) to float32 ``[in]`` or None.

    names: all tensors. Raises :class:`QtutorError` for what is no importance, or that of another model.
    """
    if importance is None:
        return lambda name, columns: None
    if isinstance(importance, str | Path):
        importance = imatrix.read(importance)
    if hasattr(importance, "importance_of"):
        return importance.importance_of
    if not isinstance(importance, Mapping):
        raise QtutorError(
            f"importance is a {type(importance).__name__}; an Imatrix (qtutor.gguf.imatrix.importance makes one, read "
            "loads one), the name of its file, or a mapping of GGUF names to float32 [in] is needed."
        )
    if not importance.keys() & set(names):
        raise QtutorError(
            f"importance has entries for {', '.join(map(repr, list(importance)[:3]))}, none of which is a tensor of "
            "this model. The names are those of the file: 'blk.0.attn_q.weight'."
        )
    return lambda name, columns: importance.get(name)
