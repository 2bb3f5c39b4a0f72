"""llama.cpp's architectures for the decoders that it knows: the names of their tensors, the order of their rows.

    architecture_of(config).name                              # "llama"
    tensor_name("model.layers.3.self_attn.q_proj.weight")     # "blk.3.attn_q.weight"

A new architecture is a row in :mod:`.architectures`. Its metadata are in :mod:`.hyperparameters`, the way back from
them is in :mod:`.hyperparameters_back`, and :mod:`.mixes` chooses the block types of its matrices.

Some architectures rotate neighbours (rows 0 and 1 of a head, 2 and 3 ...), while transformers rotates the halves (rows
0 and d/2, 1 and d/2 + 1 ...), so the rows of q and k change places: :func:`permute`. All architectures multiply by the
weight of a norm as it is, while Gemma multiplies by ``1 + weight``. So a file holds the norms of Gemma with 1 added.

Source: llama.cpp's ``conversion/`` for the changes to the weights. Left out: mixtures of experts.
"""

import re

import numpy as np

from qtutor.errors import QtutorError
from qtutor.families import FAMILIES, QWEN3
from qtutor.gguf.architectures import ARCHITECTURES, OF_FAMILY, QKV, Architecture  # noqa: F401 - imported from here


def architecture_of(config) -> Architecture:
    """The architecture of the family of ``config``; :class:`QtutorError` for a family that is not known here."""
    family = getattr(config, "model_type", type(config).__name__)
    if family not in OF_FAMILY:
        raise QtutorError(
            f"the model family {family!r} has no GGUF architecture here. Known: {', '.join(OF_FAMILY)}. "
            "llama.cpp's own convert_hf_to_gguf.py knows more."
        )
    return OF_FAMILY[family]


def tensor_name(parameter: str, config=None) -> str:
    """The GGUF name of a parameter; with ``config``, checked against the tensors of its architecture.

    Raises :class:`QtutorError` for a parameter that has no place in a file.

    >>> tensor_name("model.layers.3.self_attn.q_proj.weight"), tensor_name("lm_head.weight")
    ('blk.3.attn_q.weight', 'output.weight')
    """
    found = place_of(parameter, config)
    if found is None:
        raise QtutorError(
            f"{parameter}: llama.cpp has no such tensor in this architecture, and would compute something else without "
            "it. This decoder cannot be written as GGUF."
        )
    return found


def place_of(parameter: str, config=None) -> str | None:
    """:func:`tensor_name`, or ``None`` for a parameter that has no place in a file."""
    family = QWEN3 if config is None else FAMILIES[config.model_type]  # Qwen3 has every part that has a name
    architecture = OF_FAMILY[family.model_type] if config is None else architecture_of(config)
    layer, _, kind = parameter.rpartition(".")
    in_block = re.fullmatch(rf"{re.escape(family.blocks)}\.(\d+)\.(.+)", layer)
    names = architecture.names_in_block(family)
    if in_block and in_block[2] in names and kind in ("weight", "bias"):
        name = names[in_block[2]]
        if kind == "weight" or config is None or name in architecture.biases:
            return f"blk.{in_block[1]}.{name}.{kind}"
    outside = {family.embedding: "token_embd", family.norm: "output_norm", family.head: "output"}
    return f"{outside[layer]}.weight" if layer in outside and kind == "weight" else None


def to_file(name: str, values: np.ndarray, config) -> np.ndarray:
    """What a file holds for a tensor: its rows are in llama.cpp's order, and the norms can be multiplied by directly.

    name: the GGUF name. values: the parameter, ``[out, in]`` or ``[out]``, float32; returned in the same shape.
    """
    heads, offset = permuted_heads(name, config), norm_offset(name, config)
    if heads:
        return permute(values, heads)
    return values + np.float32(offset) if offset else values


def from_file(name: str, values: np.ndarray, config) -> np.ndarray:
    """The inverse of :func:`to_file`."""
    heads, offset = permuted_heads(name, config), norm_offset(name, config)
    if heads:
        return unpermute(values, heads)
    return values - np.float32(offset) if offset else values


def permute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k, ``[heads * head_dim, ...]``, in the order in which llama.cpp rotates them: halves interleaved.

    >>> permute(np.arange(8), 2)
    array([0, 2, 1, 3, 4, 6, 5, 7])
    """
    halves = rows.reshape(heads, 2, -1, *rows.shape[1:])  # [heads, half, head_dim / 2, ...]
    return halves.swapaxes(1, 2).reshape(rows.shape)


def unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of :func:`permute`."""
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def permuted_heads(name: str, config) -> int:
    """The number of heads in which the rows of the tensor are permuted; 0 for all tensors that stay as they are."""
    if not architecture_of(config).neighbours:
        return 0
    return {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(name.split(".")[-2], 0)


def norm_offset(name: str, config) -> float:
    """The number added to a norm's weight in the file; 0 for all other tensors."""
    return FAMILIES[config.model_type].norm_offset if name.endswith("_norm.weight") else 0.0
