"""The content of a decoder's GGUF file: metadata, and tensors that are encoded only when they are written.

:mod:`.gguf` writes it; :mod:`qtutor.budget.block_types` looks at it before. Shapes are enough until the bytes of a
tensor are needed.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import torch
from torch import nn

from qtutor.errors import QtutorError, naming, warn
from qtutor.families import family_of
from qtutor.formats.endings import generation_settings
from qtutor.formats.gguf_reading import CONFIG, GENERATION, Source, parameters
from qtutor.gguf import imatrix
from qtutor.gguf.architecture import architecture_of, tensor_name, to_file
from qtutor.gguf.coding import decode, encode, find_type
from qtutor.gguf.hyperparameters import metadata, rope_tensors
from qtutor.gguf.layout import ALL_TYPES
from qtutor.gguf.mixes import file_type, fitting, tensor_types
from qtutor.gguf.tokenizer import tokenizer_metadata
from qtutor.gguf.writer import Tensor
from qtutor.guards.promises import config_to_write

DEFAULT = "Q4_K_M"  # the mix
PHI3_TOKENS = {"<s>", "</s>", "<unk>", "<|endoftext|>"}
SMALL = 1e-3  # from this size on, no format's scales lose a weight


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
    """Metadata, and tensors whose bytes are computed on request. Shapes are enough.

    Arguments and errors are those of :func:`qtutor.formats.gguf.save`. guided: there will be an importance, which is
    not available yet.
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
    if not types:  # chosen types are no mix, so without this key readers look at the tensors
        keys["general.file_type"] = file_type(type, pure)
    if settings := generation_settings(model):
        keys[GENERATION] = json.dumps(settings)
    return keys, tensors


def _given(types: Mapping[str, str] | None, sources: Mapping[str, Source]) -> dict[str, str]:
    """The block types that a caller names, for each tensor that a pattern fits."""
    found = {}
    for pattern, kind in (types or {}).items():
        find_type(kind)
        fits = [name for name in sources if fnmatchcase(name, pattern) and len(sources[name][0]) == 2]
        if not fits:
            raise QtutorError(
                f"types names {pattern!r}, but no matrix of this model has this name. The names are those of the file, "
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


def _keys(config, tokenizer) -> dict:
    name = Path(str(getattr(config, "_name_or_path", ""))).name or config.model_type
    about = {"general.type": "model", "general.name": name, "general.quantization_version": 2}
    about[CONFIG] = _config_text(config)
    _check_special_ids(config, tokenizer)
    keys = metadata(config) | about | tokenizer_metadata(tokenizer, config.vocab_size, config)
    return keys | {"general.name": _name_for(name, keys.get("tokenizer.ggml.tokens", []))}


def _name_for(name: str, tokens: Iterable[str]) -> str:
    """``name``, but changed if it says Phi-3 and the vocabulary is another one.

    For a name with Phi-3, llama.cpp looks for Phi-3's tokens, and refuses the file if they are missing."""
    return name if set(tokens) >= PHI3_TOKENS else re.sub(r"(?i)(phi)-?(?=3)", r"\1 ", name)


def _check_special_ids(config, tokenizer) -> None:
    """bos and eos of the config are used for the file if the tokenizer has none: they have to be tokens."""
    for name in ("bos_token_id", "eos_token_id"):
        found = getattr(config, name, None)
        for number in found if isinstance(found, list) else [found]:
            if getattr(tokenizer, name, None) is None and number is not None and not 0 <= number < config.vocab_size:
                raise QtutorError(
                    f"config.{name} = {found}: the vocabulary has {config.vocab_size} tokens, 0 to "
                    f"{config.vocab_size - 1}. Set model.config.{name} to one of them, or to None."
                )


def _config_text(config) -> str:
    """transformers' own text without its version, so that the same model gives the same file for any version."""
    diff = json.loads(config.to_json_string(use_diff=True))
    diff.pop("transformers_version", None)
    return json.dumps(diff, indent=2, sort_keys=True) + "\n"


def _encoder(name: str, type: str, values: Callable, config, importance: Callable) -> Callable[[], np.ndarray]:
    """A function that computes the tensor's bytes when the tensor is written."""

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
    """Warn of blocks of small weights that become zero, since the format's scales have 16 bits."""
    kind = find_type(type)
    blocks = rows.reshape(-1, kind.values)
    largest = np.maximum(blocks.max(axis=1, initial=0), -blocks.min(axis=1, initial=0))
    small = np.flatnonzero((largest > 0) & (largest < SMALL))
    if type != "F32" and small.size:
        gone = small[~decode(data.reshape(-1, kind.nbytes)[small], type).any(axis=1)]
        if gone.size:
            warn(
                f"tensor {name!r} as {type}: {gone.size} of {len(blocks)} blocks became zero. Their weights, "
                f"{largest[gone].max():.2g} at most, are too small for the format's scales."
            )


def importance_by_name(importance, names: Collection[str]) -> Callable[[str, int], np.ndarray | None]:
    """The entries of ``importance`` by tensor: a function of (name, columns) to float32 ``[in]`` or None.

    importance: as :func:`qtutor.formats.gguf.save` accepts it. names: all tensors. Raises :class:`QtutorError` for an
    object that is no importance, or that belongs to another model.
    """
    if importance is None:
        return lambda name, columns: None
    if isinstance(importance, str | Path):
        importance = imatrix.read(importance)
    if hasattr(importance, "importance_of"):
        return importance.importance_of
    if not isinstance(importance, Mapping):
        raise QtutorError(
            f"importance is a {type(importance).__name__}; expected an Imatrix (qtutor.gguf.imatrix.importance makes "
            "one, read loads one), the name of its file, or a mapping of GGUF names to float32 [in]."
        )
    if not importance.keys() & set(names):
        raise QtutorError(
            f"importance has entries for {', '.join(map(repr, list(importance)[:3]))}, none of which is a tensor of "
            "this model. The names are those of the file: 'blk.0.attn_q.weight'."
        )
    return lambda name, columns: importance.get(name)
