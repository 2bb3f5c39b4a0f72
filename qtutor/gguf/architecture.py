"""What llama.cpp calls the decoders that it knows, as a table: names of tensors, order of rows, what is built in.

    architecture_of(config).name                              # "llama"
    tensor_name("model.layers.3.self_attn.q_proj.weight")     # "blk.3.attn_q.weight"

A new one is a row in :data:`TABLE`; its metadata are in :mod:`.hyperparameters`, the way back from them in
:mod:`.hyperparameters_back`, which block types its matrices get in :mod:`.mixes`.

Some architectures rotate neighbours (rows 0 and 1 of a head, 2 and 3 ...), where transformers rotates the halves (rows
0 and d/2, 1 and d/2 + 1 ...), so the rows of q and k change places: :func:`permute`. All of them multiply by a norm's
weight as it is, where Gemma multiplies by ``1 + weight``, so that a file holds these norms with 1 added.

Source: llama.cpp's ``src/models/*.cpp`` for what is read, ``llama_model_rope_type`` for the rotation, its
``conversion/`` for what is done to weights. Left out: mixtures of experts.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from qtutor.errors import QtutorError
from qtutor.families import FAMILIES, QWEN3, Family


@dataclass(frozen=True)
class Names:
    """llama.cpp's names for the parts of a :class:`~qtutor.families.Half`; of those that a family lacks, no tensor."""

    norm: str
    readers: tuple[str, ...]
    last: str
    after: str


ATTENTION = Names("attn_norm", ("attn_q", "attn_k", "attn_v"), "attn_output", "post_attention_norm")
MLP = Names("ffn_norm", ("ffn_gate", "ffn_up"), "ffn_down", "post_ffw_norm")
QKV, OUTPUT = ATTENTION.readers, (ATTENTION.last,)


def _silu(values: Mapping) -> dict:
    return {"hidden_act": "silu"}


def _full_heads(values: Mapping) -> dict:
    return _silu(values) | {"head_dim": values["hidden_size"] // values["num_attention_heads"]}


def _gemma(values: Mapping, period: int, widest: int) -> dict:
    """Every ``period``-th block sees all of the text. Queries are scaled by the width of a head, but in the decoder of
    ``widest`` blocks, Google's largest."""
    share = values["hidden_size"] // values["num_attention_heads"]
    kinds = ["sliding_attention"] * (period - 1) + ["full_attention"]
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": share if values["num_hidden_layers"] == widest else values["head_dim"],
        "layer_types": [kinds[block % period] for block in range(values["num_hidden_layers"])],
        "attention_bias": False,
    }


def _gemma2(values: Mapping) -> dict:
    return _gemma(values, period=2, widest=46)


def _gemma3(values: Mapping) -> dict:
    return _gemma(values, period=6, widest=62)


def _smollm3(values: Mapping) -> dict:
    """Every fourth block has no positions, and none has a window."""
    blocks = range(values["num_hidden_layers"])
    plain = {"no_rope_layers": [int((block + 1) % 4 != 0) for block in blocks]}
    return _silu(values) | plain | {"layer_types": ["full_attention" for _ in blocks]}


@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's architectures; what is called a config's is a key of transformers' config.

    name: in the file, ``general.architecture``. model_types: the families that are written as this one. halves: names
    in a block, attention and MLP. extra_norms: names of a family's extra norms, in its order. biases: the layers whose
    bias is added; another one would be ignored in silence. neighbours: whether it rotates neighbours. scalings: the
    ways to scale positions that it computes, by the config's ``rope_type``. partial: whether it can leave a part of
    each head as it is (the config's ``partial_rotary_factor``). window: one block in so many sees all of the text, and
    the others a sliding window; 0 where there are no windows: the context of a file then ends where the window does.
    local_rope: whether blocks with a window have positions of their own. output: "own" or "tied" where only one of the
    two is read, a matrix of its own behind the last norm, or the embedding. keys: what more of a config is told, key of
    the file -> key of the config, numbers all. needed: what has to be a number in the config, since llama.cpp has
    numbers of its own for where a file has none. built_in: what it computes whatever the file says: of the config's
    sizes (hidden size, blocks, heads ...), the config's keys and values.
    """

    name: str
    model_types: tuple[str, ...]
    halves: tuple[Names, Names] = (ATTENTION, MLP)
    extra_norms: tuple[str, ...] = ("attn_q_norm", "attn_k_norm")
    biases: tuple[str, ...] = QKV
    neighbours: bool = False
    scalings: tuple[str, ...] = ("default", "linear", "yarn")
    partial: bool = False
    window: int = 0
    local_rope: bool = False
    output: str = "either"
    keys: Mapping[str, str] = field(default_factory=dict)
    needed: tuple[str, ...] = ()
    built_in: Callable[[Mapping], dict] = _silu

    def names_in_block(self, family: Family) -> dict[str, str]:
        """llama.cpp's names of the modules of a block, by the family's."""
        names = dict(zip(family.extra_norms, self.extra_norms))
        for half, ours in zip(family.halves, self.halves):
            parts = {half.norm: ours.norm, half.last: ours.last, half.after: ours.after}
            names |= parts | dict(zip(half.readers, ours.readers, strict=True))
        names.pop(None, None)  # a norm that the family lacks
        return names


ALL = (*QKV, *OUTPUT, *MLP.readers, MLP.last)
SOFT_CAPS = {key: key for key in ("attn_logit_softcapping", "final_logit_softcapping")}
TABLE = (
    Architecture(
        "llama", ("llama", "mistral"), neighbours=True, biases=ALL, scalings=("default", "linear", "yarn", "llama3"),
    ),
    Architecture("qwen2", ("qwen2",), built_in=_full_heads),
    Architecture("qwen3", ("qwen3",)),
    Architecture(
        "gemma2", ("gemma2",), biases=(), scalings=("default", "linear"), window=2, output="tied", keys=SOFT_CAPS,
        needed=(*SOFT_CAPS, "sliding_window"), built_in=_gemma2,
    ),
    Architecture(
        "gemma3", ("gemma3_text",), biases=(), scalings=("default", "linear"), window=6, local_rope=True,
        keys={"final_logit_softcapping": "final_logit_softcapping"}, needed=("sliding_window",), built_in=_gemma3,
    ),
    Architecture(
        "phi3", ("phi3",), (replace(ATTENTION, readers=("attn_qkv",)), replace(MLP, readers=("ffn_up",))), biases=(),
        scalings=("default", "longrope"), partial=True, built_in=_full_heads,
    ),
    Architecture("olmo2", ("olmo2",), biases=(), output="own", built_in=_full_heads),
    Architecture(
        "granite", ("granite",), neighbours=True, biases=ALL, scalings=("default", "linear", "yarn"),
        keys={
            "logit_scale": "logits_scaling", "residual_scale": "residual_multiplier",
            "embedding_scale": "embedding_multiplier", "attention.scale": "attention_multiplier",
        },
    ),
    Architecture("smollm3", ("smollm3",), neighbours=True, built_in=_smollm3),
)  # fmt: skip
ARCHITECTURES = {row.name: row for row in TABLE}
OF_FAMILY = {model_type: row for row in TABLE for model_type in row.model_types}


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
    """The GGUF name of a parameter; with ``config``, checked against what llama.cpp reads for that architecture.

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
    family = QWEN3 if config is None else FAMILIES[config.model_type]  # Qwen3 has all parts that a name can be asked of
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
    """What a file holds for a tensor: rows in llama.cpp's order, the norms as what is multiplied by.

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
    """How many heads the tensor's rows are to be permuted in; 0 for all that stay as they are."""
    if not architecture_of(config).neighbours:
        return 0
    return {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(name.split(".")[-2], 0)


def norm_offset(name: str, config) -> float:
    """What is added to a norm's weight in the file; 0 for all other tensors."""
    return FAMILIES[config.model_type].norm_offset if name.endswith("_norm.weight") else 0.0
