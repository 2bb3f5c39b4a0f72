"""GGUF files as others write them: with the ``gguf`` package and llama.cpp's own blocks, and without keys of ours.

Names, order of rows and keys are written here a second time, as in llama.cpp's conversion.
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
    """llama.cpp's tensors of a decoder, float32: q and k of its architecture "llama" with halves interleaved."""
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
    """The keys that llama.cpp cannot do without, and no others."""
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
    """Write a file, and return its path; of a split one that of the first part.

    keys: of the architecture, beyond or instead of :func:`keys_of` (``None``: not this one). general: whole keys.
    tensors: instead of those of ``model``. types: block types, beginning of a name -> type. tokenizer: whole keys, by
    itself one of single bytes. split: how many tensors a part has.
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
    """As the types that llama.cpp's conversion gives them."""
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
    """One token a byte, the last but one of them; llama.cpp wants a merge, so the last token is two letters."""
    tokenizer = letters()
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    tokens[-1] = tokens[1] + tokens[2]
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] + [1] * (len(tokens) - 1),
        "tokenizer.ggml.merges": [f"{tokens[1]} {tokens[2]}"],
        "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 0,
    }  # fmt: skip
