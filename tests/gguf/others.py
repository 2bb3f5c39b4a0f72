"""GGUF files as other tools write them: with the ``gguf`` package and llama.cpp's own blocks, without qtutor's keys.

The names, the order of rows and the keys follow llama.cpp's conversion. They do not come from qtutor's code.
"""

from pathlib import Path

import numpy as np
import pytest

from tests.gguf import llama_cpp
from tests.gguf.small_tokenizers import letters

gguf = pytest.importorskip("gguf", reason="files of others are written with gguf, which is not installed here")

NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def tensors_of(model) -> dict[str, np.ndarray]:
    """llama.cpp's tensors of a decoder, float32. Its architecture "llama" interleaves the halves of q and k."""
    config, found = model.config, {}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        layer, _, kind = name.rpartition(".")
        rows = value.float().numpy()
        if layer.startswith("model.layers."):
            number, inner = layer.removeprefix("model.layers.").split(".", 1)
            if config.model_type in ("llama", "mistral") and inner in ("self_attn.q_proj", "self_attn.k_proj"):
                heads = config.num_attention_heads if "q_proj" in inner else config.num_key_value_heads
                rows = np.concatenate([interleaved(head) for head in np.split(rows, heads)])
            found[f"blk.{number}.{NAMES[inner]}.{kind}"] = rows
        else:
            found[f"{NAMES[layer]}.{kind}"] = rows
    return found


def interleaved(head: np.ndarray) -> np.ndarray:
    first, second = np.split(head, 2)
    out = np.empty_like(head)
    out[0::2], out[1::2] = first, second
    return out


def keys_of(model) -> dict:
    """Only the keys that llama.cpp needs."""
    config = model.config
    return {
        "context_length": config.max_position_embeddings, "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers, "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads, "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
    }  # fmt: skip


def write(
    path: Path, model=None, *, keys=(), general=(), tensors=None, types=(), tokenizer=None, split: int = 0
) -> Path:
    """Write a file and return its path. If the file is split, return the path of the first part.

    keys: keys of the architecture that are added to :func:`keys_of` or replace them (``None`` removes a key).
    general: complete keys. tensors: used in place of those of ``model``. types: part of a tensor's name -> block type.
    tokenizer: complete keys; the default is :func:`letters_keys`. split: the number of tensors per part.
    """
    name = {"mistral": "llama"}.get(model.config.model_type, model.config.model_type)
    writer = gguf.GGUFWriter(path, name, split_max_tensors=split)
    own = {f"{name}.{key}": value for key, value in (keys_of(model) | dict(keys)).items()}
    for key, value in (own | dict(general) | (letters_keys() if tokenizer is None else tokenizer)).items():
        add(writer, key, value)
    for name, rows in (tensors_of(model) if tensors is None else tensors).items():
        kind = next((kind for begin, kind in dict(types).items() if name.startswith(begin) or begin in name), None)
        if kind is None or rows.ndim == 1:
            writer.add_tensor(name, np.ascontiguousarray(rows))
        else:
            data = llama_cpp.encode(np.ascontiguousarray(rows, np.float32), kind)
            writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(path.parent.glob(f"{path.stem}*.gguf"))[0]


def add(writer, key: str, value) -> None:
    """Add a key with the type that llama.cpp's conversion gives it; ``None`` adds nothing."""
    if value is None:
        return
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def letters_keys() -> dict:
    """One token per byte. llama.cpp needs a merge, so a token of two letters replaces the last one."""
    tokenizer = letters()
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    tokens[-1] = tokens[1] + tokens[2]
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] + [1] * (len(tokens) - 1),
        "tokenizer.ggml.merges": [f"{tokens[1]} {tokens[2]}"],
        "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 0,
    }  # fmt: skip
