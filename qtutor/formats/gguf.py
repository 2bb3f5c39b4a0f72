"""A decoder as one GGUF file for llama.cpp, and back.

    qtutor.export(model, "out.gguf", format="gguf", type="Q4_K_M", tokenizer=tokenizer)
    model = qtutor.formats.gguf.load("out.gguf")    # float32, with the weights that the file stands for

The grids of GGUF's block types are part of the format, so weights are encoded from their float values, whatever a
recipe would have made of them. Two ways bring better rounding along: ``importance``, and AWQ's scales
(:func:`.scaling.fold_model`). A model that is quantized already is written as what its codes stand for, and
so rounded a second time.

One tensor is in memory at a time, as float32 and encoded: a checkpoint that transformers maps from its file
(``dtype="auto"``) is never there whole. Left out: files split into several, and reading those that others wrote, which
transformers does with ``gguf_file=``.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from qtutor.errors import QtutorError, naming, shown
from qtutor.families import family_of
from qtutor.files import is_gguf, parents_made, told
from qtutor.files.target import checked
from qtutor.formats import documents
from qtutor.formats.comparing import check_finite
from qtutor.formats.endings import generation_settings, give_back
from qtutor.formats.transformers_files import config_of, empty_model, filled
from qtutor.gguf.architecture import (
    architecture,
    metadata,
    permute,
    permuted_heads,
    rope_factors,
    tensor_name,
    unpermute,
)
from qtutor.gguf.coding import encode
from qtutor.gguf.container import GGUFError, TensorInfo
from qtutor.gguf.layout import ALL_TYPES
from qtutor.gguf.mixes import file_type, tensor_types
from qtutor.gguf.reader import GGUFFile, read
from qtutor.gguf.tokenizer import tokenizer_metadata
from qtutor.gguf.writer import Tensor, write
from qtutor.runtime.linear import QuantWeight

NAME = "model.gguf"  # of the file in a folder
ROPE = "rope_freqs.weight"  # a tensor without a parameter
DEFAULT = "Q4_K_M"  # the mix
GENERATION = "qtutor.generation_config"  # what transformers' config does not say of how texts end, if anything
CONFIG = "qtutor.config"  # a key of ours: transformers' config, which llama.cpp's keys do not give back whole
Source = tuple[tuple[int, ...], Callable[[], torch.Tensor]]  # shape, and a function that gives the values


def save(
    model: nn.Module,
    out: str | Path,
    tokenizer=None,
    *,
    type: str = DEFAULT,
    importance=None,
    pure: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write ``model`` with its ``tokenizer`` to ``out``, or ``out/model.gguf`` where ``out`` does not end in .gguf.

    type: a mix (:data:`qtutor.gguf.mixes.MIXES`), or with ``pure`` a block type for every matrix. importance: an
    :class:`~qtutor.gguf.imatrix.Imatrix`, or a mapping of GGUF names to float32 ``[in]``. overwrite: replace a file
    that is there even if qtutor did not write it. Returns the file's path.
    Raises :class:`QtutorError` for a family, a tokenizer or a tensor that the format cannot hold, and where the file
    cannot be written; the old one is then untouched.
    """
    family_of(model)
    config = model.config
    sources = {tensor_name(name, config): source for name, source in _parameters(model)}
    types = tensor_types(
        type,
        {name: shape for name, (shape, _) in sources.items()},
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        architecture=architecture(config),
        importance=importance is not None,
        pure=pure,
    )
    of_column = _importance(importance, sources)
    tensors = [
        Tensor(name, shape, types[name], _encoder(name, types[name], values, permuted_heads(name, config), of_column))
        for name, (shape, values) in sources.items()
    ]
    factors = rope_factors(config)
    if factors is not None:
        tensors.append(Tensor(ROPE, factors.shape, "F32", factors.astype("<f4").view(np.uint8)))
    keys = _keys(config, tokenizer) | {"general.file_type": file_type(type, pure)}
    if settings := generation_settings(model):
        keys[GENERATION] = json.dumps(settings)
    need = sum(TensorInfo(tensor.name, tensor.shape, ALL_TYPES[tensor.type], 0).nbytes for tensor in tensors)
    place = target(out, need=need, overwrite=overwrite)
    with told(place), parents_made(place), _progress(tensors) as counted:
        write(place, keys, counted)
    return _path(out)


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
def _progress(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors; where encoding them takes over a second and a person is looking, a bar counts their weights."""
    total = sum(math.prod(tensor.shape) for tensor in tensors)
    looks = {"unit": "weight", "unit_scale": True, "leave": False}
    with tqdm(total=total, desc="encoding", delay=1, disable=None, **looks) as bar:

        def counted(tensor: Tensor) -> np.ndarray:
            data = tensor.data()
            bar.update(math.prod(tensor.shape))
            return data

        yield [replace(t, data=partial(counted, t)) if callable(t.data) else t for t in tensors]


def file_in(source: str | Path, alone: bool = True) -> Path | None:
    """The GGUF file that ``source`` names: itself, or the one in a folder; alone: if no other checkpoint is there."""
    path = Path(source)
    if path.is_dir():
        others = alone and any((path / name).is_file() for name in ("qtutor.json", "config.json"))
        return None if others else documents.file_in(path, NAME)
    return path if is_gguf(path) else None


def _keys(config, tokenizer) -> dict:
    name = Path(str(getattr(config, "_name_or_path", ""))).name or config.model_type
    about = {"general.type": "model", "general.name": name, "general.quantization_version": 2}
    about[CONFIG] = _config_text(config)
    return metadata(config) | about | tokenizer_metadata(tokenizer, config.vocab_size, config)


def _config_text(config) -> str:
    """transformers' own, but for its version: the same model makes the same file whichever wrote it."""
    diff = json.loads(config.to_json_string(use_diff=True))
    diff.pop("transformers_version", None)
    return json.dumps(diff, indent=2, sort_keys=True) + "\n"


def _parameters(model: nn.Module) -> Iterator[tuple[str, Source]]:
    """Every parameter once, under transformers' name; a tied output is the embedding and not there a second time."""
    seen = set()
    for path, module in model.named_modules():
        if isinstance(module, QuantWeight):
            yield f"{path}.weight", ((module.rows, module.columns), lambda m=module: m.quantized().dequantize())
            if getattr(module, "bias", None) is not None:
                yield f"{path}.bias", (tuple(module.bias.shape), lambda m=module: m.bias)
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{path}.{name}", (tuple(parameter.shape), lambda p=parameter: p)


def _encoder(name: str, type: str, values: Callable, heads: int, importance: Callable) -> Callable[[], np.ndarray]:
    """A function that makes the tensor's bytes when its turn to be written comes."""

    def encoded() -> np.ndarray:
        weight = values().detach()
        if weight.is_meta:
            raise QtutorError(f"tensor {name!r} has a shape and no values: load the model whole, without a device_map.")
        rows = weight.to("cpu", torch.float32).numpy()
        rows = permute(rows, heads) if heads else rows
        rows = np.atleast_2d(rows)
        with naming(f"tensor {name!r} as {type}"):
            return encode(rows, type, importance(name, rows.shape[1]) if type not in ("F32", "F16", "BF16") else None)

    return encoded


def _importance(importance, sources: dict[str, Source]) -> Callable[[str, int], np.ndarray | None]:
    if importance is None:
        return lambda name, columns: None
    if hasattr(importance, "importance_of"):
        return importance.importance_of
    if not importance.keys() & sources.keys():
        raise QtutorError(
            f"importance has entries for {', '.join(map(repr, list(importance)[:3]))}, none of which is a tensor of "
            "this model. The names are those of the file: 'blk.0.attn_q.weight'."
        )
    return lambda name, columns: importance.get(name)


@torch.no_grad()
def load(path: str | Path, device: str | None = None) -> nn.Module:
    """The decoder in a file that :func:`save` wrote, its blocks decoded to float32.

    Raises :class:`QtutorError` for a file that is damaged, that others wrote, or whose tensors do not fit its config.
    """
    file = read(path)
    config = _config(file)
    model = empty_model(config, str(path))  # nothing is allocated before it was found in the file
    wanted = {tensor_name(parameter, config): (parameter, shape) for parameter, (shape, _) in _parameters(model)}
    found = {name: info.shape for name, info in file.tensors.items() if name != ROPE}
    for name in wanted | found:
        shape = wanted[name][1] if name in wanted else None
        if shape != found.get(name):
            raise QtutorError(
                f"{path}: tensor {shown(name)} is {found.get(name, 'not there')}, and its config says "
                f"{shape or 'that there is none'}. The file is damaged: fetch or export it again."
            )
    _compare_keys(file, config)
    tensors = {}
    for name, (parameter, shape) in wanted.items():
        rows, heads = file.weight(name).reshape(shape), permuted_heads(name, config)
        tensors[parameter] = torch.from_numpy(np.ascontiguousarray(unpermute(rows, heads) if heads else rows))
    check_finite(str(path), tensors)
    config.dtype = torch.float32
    model = filled(model, tensors, str(path), device)
    give_back(model, file.metadata.get(GENERATION), f"{path}: {GENERATION}")
    return model


def _config(file: GGUFFile):
    """transformers' config out of a file; the number of blocks is checked, the sizes of tensors are not yet."""
    text = file.metadata.get(CONFIG)
    if not isinstance(text, str):
        raise QtutorError(
            f"{file.path}: {CONFIG} is {'missing' if text is None else 'damaged'}, so qtutor did not write this file. "
            "transformers loads others: AutoModelForCausalLM.from_pretrained(folder, gguf_file=name)."
        )
    where = f"{CONFIG} in {file.path}"
    values = documents.parse_json(text, where)
    blocks = len({name.split(".")[1] for name in file.tensors if name.startswith("blk.")})
    return config_of(values, where, blocks)


def _compare_keys(file: GGUFFile, config) -> None:
    """llama.cpp's keys and our config say the same, each in its own words."""
    try:
        expected, factors = metadata(config), rope_factors(config)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:  # rope_parameters are free in what they hold
        if isinstance(error, QtutorError):
            raise
        raise QtutorError(
            f"{file.path}: rope_parameters in {CONFIG} are {shown(config.rope_parameters, 160)}, which say "
            "nothing whole of positions. The file is damaged: fetch or export it again."
        ) from error
    if factors is None and ROPE in file.tensors:
        raise QtutorError(
            f"{file.path}: tensor {ROPE!r} is there, and {CONFIG} has no use for it. Export the file again."
        )
    for key, value in expected.items():
        found = file.metadata.get(key, value)  # older exports have fewer
        if not _same(found, value):
            raise QtutorError(
                f"{file.path}: {key} is {shown(found)}, and by {CONFIG} it is {shown(value)}. The file is damaged: "
                "fetch or export it again."
            )


def _same(found, value) -> bool:
    if isinstance(value, str):
        return isinstance(found, str) and found == value
    found = found.item() if isinstance(found, np.number) else found  # whose differences may overflow
    return isinstance(found, int | float) and abs(found - value) <= 1e-6 * abs(value)
