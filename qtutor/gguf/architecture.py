"""What llama.cpp calls a decoder: the metadata that stand for its config, the names and the order of its tensors.

    metadata(config)                                          # {"general.architecture": "llama", ...}
    tensor_name("model.layers.3.self_attn.q_proj.weight")     # "blk.3.attn_q.weight"

Llama and Mistral are llama.cpp's architecture "llama", Qwen2 and Qwen3 have their own. For "llama" it rotates
neighbours (rows 0 and 1 of a head, 2 and 3 ...), where transformers rotates the halves (rows 0 and d/2, 1 and
d/2 + 1 ...), so the rows of q and k change places: :func:`permute`. Source: llama.cpp's
``src/models/{llama,qwen2,qwen3}.cpp`` for what is read, its ``conversion/llama.py`` for the permutation and Llama 3's
factors.

Left out: mixtures of experts, and sliding windows. llama.cpp has none in these architectures, so a model with one is
given a context that ends where the window does: there both compute the same.
"""

import math
import re

import numpy as np

from qtutor.errors import QtutorError
from qtutor.families import FAMILIES, QWEN3, Family

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}  # model_type -> llama.cpp's

# llama.cpp's names for the parts of a family's halves, in the order in which the family lists them.
_HALVES = (
    ("attn_norm", ("attn_q", "attn_k", "attn_v"), "attn_output"),
    ("ffn_norm", ("ffn_gate", "ffn_up"), "ffn_down"),
)
_EXTRA_NORMS = ("attn_q_norm", "attn_k_norm")
# Biases that llama.cpp adds; another one would be ignored in silence.
_BIASES = {
    "llama": ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"),
    "qwen2": ("attn_q", "attn_k", "attn_v"),
    "qwen3": ("attn_q", "attn_k", "attn_v"),
}


def architecture(config) -> str:
    """llama.cpp's name for the family of ``config``; :class:`QtutorError` for a family that is not known here."""
    family = getattr(config, "model_type", type(config).__name__)
    if family not in ARCHITECTURES:
        raise QtutorError(
            f"the model family {family!r} has no GGUF architecture here. Known: {', '.join(ARCHITECTURES)}. "
            "llama.cpp's own convert_hf_to_gguf.py knows more."
        )
    return ARCHITECTURES[family]


def tensor_name(parameter: str, config=None) -> str:
    """The GGUF name of a parameter; with ``config``, checked against what llama.cpp reads for that architecture.

    Raises :class:`QtutorError` for a parameter that has no place in a file.

    >>> tensor_name("model.layers.3.self_attn.q_proj.weight"), tensor_name("lm_head.weight")
    ('blk.3.attn_q.weight', 'output.weight')
    """
    family = QWEN3 if config is None else FAMILIES[config.model_type]  # Qwen3 has all parts that a name can be asked of
    layer, _, kind = parameter.rpartition(".")
    in_block = re.fullmatch(rf"{re.escape(family.blocks)}\.(\d+)\.(.+)", layer)
    if in_block and in_block[2] in _in_block(family) and kind in ("weight", "bias"):
        name = _in_block(family)[in_block[2]]
        if kind == "weight" or config is None or name in _BIASES[architecture(config)]:
            return f"blk.{in_block[1]}.{name}.{kind}"
    outside = {family.embedding: "token_embd", family.norm: "output_norm", family.head: "output"}
    if layer in outside and kind == "weight":
        return f"{outside[layer]}.weight"
    raise QtutorError(
        f"{parameter}: llama.cpp has no such tensor in this architecture, and would compute something else without it. "
        "This decoder cannot be written as GGUF."
    )


def _in_block(family: Family) -> dict[str, str]:
    """llama.cpp's names for the modules of a block."""
    names = dict(zip(family.extra_norms, _EXTRA_NORMS))
    for half, (norm, readers, last) in zip(family.halves, _HALVES):
        names |= {half.norm: norm, half.last: last, **dict(zip(half.readers, readers))}
    return names


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
    if architecture(config) != "llama":
        return 0
    return {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(name.split(".")[-2], 0)


def metadata(config) -> dict:
    """The keys that tell llama.cpp the sizes, in its order; :class:`QtutorError` for what it cannot compute."""
    arch, dim = architecture(config), head_dim(config)
    if config.hidden_act not in ("silu", "swish"):
        raise QtutorError(f"hidden_act = {config.hidden_act!r}: llama.cpp computes silu in {arch} models.")
    if arch == "qwen2" and dim * config.num_attention_heads != config.hidden_size:
        raise QtutorError(
            f"head_dim = {dim} with {config.num_attention_heads} heads and hidden_size = {config.hidden_size}: "
            "llama.cpp's qwen2 has heads that fill the hidden size exactly."
        )
    window = getattr(config, "sliding_window", None)
    keys = {
        "vocab_size": config.vocab_size,
        "context_length": min(config.max_position_embeddings, window or config.max_position_embeddings),
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": dim,
        "attention.value_length": dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": dim,
        **_rope(config),
    }
    if window and window < config.max_position_embeddings:
        keys["attention.sliding_window"] = window
    return {"general.architecture": arch} | {f"{arch}.{key}": value for key, value in keys.items()}


def head_dim(config) -> int:
    """Rows of a head; most configs leave it to be the hidden size over the heads."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _rope(config) -> dict:
    rope = {key: value for key, value in config.rope_parameters.items() if value is not None}
    kind, own = rope.get("rope_type", "default"), {"mscale", "mscale_all_dim", "attention_factor"} & rope.keys()
    # Llama 3's scaling is not told by a key, but by a tensor that only the architecture "llama" reads.
    known = kind in ("default", "linear") or (kind, architecture(config)) == ("llama3", "llama")
    if not (known or (kind == "yarn" and not own)) or rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise QtutorError(
            f"rope_parameters = {rope}: of the ways to scale positions, 'default', 'linear' and plain 'yarn' can be "
            "written as GGUF, and 'llama3' for Llama and Mistral, all for whole heads. With another one llama.cpp "
            "would compute other positions."
        )
    keys = {"freq_base": float(rope["rope_theta"])}
    if kind in ("linear", "yarn"):
        keys |= {"scaling.type": kind, "scaling.factor": float(rope["factor"])}
    if kind == "yarn":
        original = rope.get("original_max_position_embeddings", config.max_position_embeddings)
        betas = {f"scaling.yarn_{key}": float(rope[key]) for key in ("beta_fast", "beta_slow") if key in rope}
        keys |= {"scaling.original_context_length": original, **betas}
    return {f"rope.{key}": value for key, value in keys.items()}


def rope_factors(config) -> np.ndarray | None:
    """What llama.cpp divides each frequency by, float32 ``[head_dim / 2]``, for Llama 3's scaling; ``None`` for others.

    Slow frequencies, which turn less than ``low_freq_factor`` times in the original context, are slowed by ``factor``;
    fast ones (``high_freq_factor`` times) stay; between, the two are mixed.
    """
    rope = config.rope_parameters
    if rope.get("rope_type") != "llama3":
        return None
    dim, factor = head_dim(config), rope["factor"]
    frequency = rope["rope_theta"] ** -(np.arange(0, dim, 2) / dim)
    turns = rope["original_max_position_embeddings"] * frequency / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    fast = ((turns - low) / (high - low)).clip(0, 1)
    return (1 / ((1 - fast) / factor + fast)).astype(np.float32)
