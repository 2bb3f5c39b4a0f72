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
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from qtutor.errors import QtutorError
from qtutor.families import family_of
from qtutor.files import is_gguf
from qtutor.formats.readback import check_gguf
from qtutor.gguf import imatrix
from qtutor.gguf.architecture import (
    architecture,
    metadata,
    permute,
    permuted_heads,
    rope_factors,
    tensor_name,
    unpermute,
)
from qtutor.gguf.coding import decode, encode, find_type
from qtutor.gguf.container import GGUFError
from qtutor.gguf.mixes import file_type, tensor_types
from qtutor.gguf.reader import GGUFFile, read
from qtutor.gguf.tokenizer import tokenizer_metadata
from qtutor.gguf.writer import Tensor, write
from qtutor.guards.promises import config_of, is_tied
from qtutor.runtime.linear import QuantWeight

NAME = "model.gguf"  # of the file in a folder
SMALL = 1e-3  # weights that no format's scales lose are larger
CONFIG = "qtutor.config"  # a key of ours: transformers' config, which llama.cpp's keys do not give back whole
Source = tuple[tuple[int, ...], Callable[[], torch.Tensor]]  # shape, and a function that gives the values


def save(
    model: nn.Module, out: str | Path, tokenizer=None, *, type: str = "Q4_K_M", importance=None, pure: bool = False
) -> Path:
    """Write ``model`` with its ``tokenizer`` to ``out``, or ``out/model.gguf`` where ``out`` does not end in .gguf.

    type: a mix (:data:`qtutor.gguf.mixes.MIXES`), or with ``pure`` a block type for every matrix. importance: an
    :class:`~qtutor.gguf.imatrix.Imatrix`, a file that holds one, or a mapping of GGUF names to float32 ``[in]``.
    Returns the file's path.
    Raises :class:`QtutorError` for a family, a tokenizer or a tensor that the format cannot hold, and where the file
    cannot be written; the old one is then untouched.
    """
    family_of(model)
    config, path = config_of(model), Path(out)
    if path.suffix != ".gguf":
        path = path / NAME
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
    _say_of_window(config)
    factors = rope_factors(config)
    if factors is not None:
        tensors.append(Tensor("rope_freqs.weight", factors.shape, "F32", factors.astype("<f4").view(np.uint8)))
    keys = _keys(config, tokenizer) | {"general.file_type": file_type(type, pure)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GGUFError(f"{path.parent} cannot be made: {error.strerror}. Choose another folder.") from error
    write(path, keys, tensors, lambda new: check_gguf(new, tensors))
    return path


def file_in(source: str | Path, alone: bool = True) -> Path | None:
    """The GGUF file that ``source`` names: itself, or the one in a folder; alone: if no other checkpoint is there."""
    path = Path(source)
    if path.is_dir():
        others = alone and any((path / name).is_file() for name in ("qtutor.json", "config.json"))
        return path / NAME if (path / NAME).is_file() and not others else None
    return path if is_gguf(path) else None


def _keys(config, tokenizer) -> dict:
    name = Path(str(getattr(config, "_name_or_path", ""))).name or config.model_type
    about = {"general.type": "model", "general.name": name, "general.quantization_version": 2}
    about[CONFIG] = config.to_json_string(use_diff=True)
    _check_special_ids(config, tokenizer)
    return metadata(config) | about | tokenizer_metadata(tokenizer, config.vocab_size, config)


def _say_of_window(config) -> None:
    window = getattr(config, "sliding_window", None)
    if window and window < config.max_position_embeddings:
        warnings.warn(
            f"sliding_window = {window}: llama.cpp has no sliding window in this architecture, so the file's context "
            f"is {window} tokens, where both compute the same, not {config.max_position_embeddings}.",
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


def _parameters(model: nn.Module) -> Iterator[tuple[str, Source]]:
    """Every parameter once, under transformers' name; a tied output is the embedding and not there a second time."""
    tied = family_of(model).head if is_tied(model) else None
    for path, module in model.named_modules(remove_duplicate=False):
        if path == tied:
            continue
        if isinstance(module, QuantWeight):
            yield f"{path}.weight", ((module.rows, module.columns), lambda m=module: m.quantized().dequantize())
            if getattr(module, "bias", None) is not None:
                yield f"{path}.bias", (tuple(module.bias.shape), lambda m=module: m.bias)
            continue
        for name, parameter in module.named_parameters(recurse=False):
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
        try:
            data = encode(rows, type, importance(name, rows.shape[1]) if type not in ("F32", "F16", "BF16") else None)
        except QtutorError as error:
            raise QtutorError(f"tensor {name!r} as {type}: {error}") from error
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


def _importance(importance, sources: dict[str, Source]) -> Callable[[str, int], np.ndarray | None]:
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
    with torch.device("meta"):  # shapes alone: nothing is allocated before they are found in the file
        wanted = {
            tensor_name(parameter, config): shape
            for parameter, (shape, _) in _parameters(AutoModelForCausalLM.from_config(config))
        }
    found = {name: info.shape for name, info in file.tensors.items() if name != "rope_freqs.weight"}
    for name in wanted | found:
        if wanted.get(name) != found.get(name):
            raise QtutorError(
                f"{path}: tensor {name!r} is {found.get(name, 'not there')}, and its config says "
                f"{wanted.get(name, 'that there is none')}. The file is damaged: fetch or export it again."
            )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter, (shape, values) in _parameters(model):
        name = tensor_name(parameter, config)
        rows, heads = file.weight(name).reshape(shape), permuted_heads(name, config)
        values().copy_(torch.from_numpy(unpermute(rows, heads) if heads else rows))
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()


def _config(file: GGUFFile):
    """transformers' config out of a file; the number of blocks is checked, the sizes of tensors are not yet."""
    try:
        config = AutoConfig.for_model(**json.loads(file.metadata[CONFIG]))
    except (KeyError, ValueError, TypeError) as error:
        raise QtutorError(
            f"{file.path}: {CONFIG} is missing or damaged ({error!r}), so qtutor did not write this file. transformers "
            "loads others: AutoModelForCausalLM.from_pretrained(folder, gguf_file=name)."
        ) from None
    architecture(config)
    blocks = len({name.split(".")[1] for name in file.tensors if name.startswith("blk.")})
    if config.num_hidden_layers != blocks:
        raise QtutorError(
            f"{file.path}: there are {blocks} blocks, and its config says {config.num_hidden_layers}. The file is "
            "damaged: fetch or export it again."
        )
    return config
