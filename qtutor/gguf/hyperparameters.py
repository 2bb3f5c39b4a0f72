"""The metadata that describe a decoder's config, so that llama.cpp computes what transformers does.

    metadata(config)       # {"general.architecture": "llama", ...}

Left out: ways to scale positions that llama.cpp does not have. If an architecture has no sliding window but the model
has one, the file gets a context that ends where the window does: within it both compute the same. Source: llama.cpp's
``llama_model_base::load_hparams`` and ``src/models/*.cpp`` for the keys that are read, its ``conversion/llama.py`` for
Llama 3's factors.
"""

import numpy as np

from qtutor.errors import QtutorError
from qtutor.families import head_dim
from qtutor.gguf import llama3_rope, longrope
from qtutor.gguf.architecture import Architecture, architecture_of

SAME = {"swish": "silu"}  # two names of one activation
YARN = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}  # llama.cpp uses these, and reads no others


def metadata(config) -> dict:
    """The keys that tell llama.cpp the sizes, in its order; :class:`QtutorError` for a model it cannot compute."""
    architecture, dim = architecture_of(config), head_dim(config)
    _check_built_in(architecture, config)
    window = window_of(config)
    shorter = window if window and not architecture.window else config.max_position_embeddings
    keys = {
        "vocab_size": config.vocab_size,
        "context_length": min(config.max_position_embeddings, shorter),
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": dim,
        "attention.value_length": dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        **_rope(architecture, config),
    }
    if window and (architecture.window or window < config.max_position_embeddings):
        keys["attention.sliding_window"] = window
    told = {key: getattr(config, ours, None) for key, ours in architecture.keys.items()}
    keys |= {key: float(value) for key, value in told.items() if value is not None}
    return {"general.architecture": architecture.name} | {f"{architecture.name}.{k}": v for k, v in keys.items()}


def window_of(config) -> int | None:
    """How many tokens a block with a window sees; ``None`` if all blocks see all tokens."""
    kinds = getattr(config, "layer_types", None)
    return getattr(config, "sliding_window", None) if kinds is None or "sliding_attention" in kinds else None


def _check_built_in(architecture: Architecture, config) -> None:
    """Check that the config agrees with all that llama.cpp has built in."""
    if architecture.output == "tied" and not config.tie_word_embeddings:
        raise _other(architecture, "tie_word_embeddings", False, True)
    if architecture.output == "own" and config.tie_word_embeddings:
        raise _other(architecture, "tie_word_embeddings", True, False)
    sizes = {"hidden_size": config.hidden_size, "num_attention_heads": config.num_attention_heads}
    sizes |= {"head_dim": head_dim(config), "num_hidden_layers": config.num_hidden_layers}
    for key in architecture.needed:
        if getattr(config, key) is None:
            raise _other(architecture, key, None, "with a number of its own")
    for key, value in architecture.built_in(sizes).items():
        found = head_dim(config) if key == "head_dim" else getattr(config, key, value)
        if (SAME.get(found, found) if isinstance(found, str) else found) != value:
            raise _other(architecture, key, found, value)


def _other(architecture: Architecture, key: str, found, value) -> QtutorError:
    return QtutorError(
        f"{key} = {found!r}: llama.cpp computes {value} in {architecture.name} models, whatever a file says. This "
        "decoder cannot be written as GGUF."
    )


def _rope(architecture: Architecture, config) -> dict:
    parameters, local = config.rope_parameters, {}
    if architecture.local_rope:
        parameters, of_window = parameters["full_attention"], parameters["sliding_attention"]
        if of_window.get("rope_type", "default") != "default":
            raise _other(architecture, "rope_parameters of sliding_attention", of_window, "plain ones there")
        local = {"freq_base_swa": float(of_window["rope_theta"])}
    rope = {key: value for key, value in parameters.items() if value is not None}
    kind, own = rope.get("rope_type", "default"), {"mscale", "mscale_all_dim", "attention_factor"} & rope.keys()
    part = rope.get("partial_rotary_factor", 1.0)
    # Llama 3's scaling is not in a key, but in a tensor that not all architectures read.
    if kind not in architecture.scalings or (kind == "yarn" and own) or (part != 1.0 and not architecture.partial):
        raise QtutorError(
            f"rope_parameters = {rope}: of the ways to scale positions, 'default', 'linear' and plain 'yarn' can be "
            "written as GGUF, 'llama3' for Llama and Mistral, 'longrope' and parts of a head for Phi-3. With any other "
            f"one llama.cpp would compute other positions, and so with any but {', '.join(architecture.scalings)} in "
            f"{architecture.name} models."
        )
    for key, value in YARN.items() if kind == "yarn" else ():
        if rope.get(key, value) != value:
            raise _other(architecture, f"{key} in rope_parameters", rope[key], value)
    keys = {"dimension_count": int(head_dim(config) * part), "freq_base": float(rope["rope_theta"]), **local}
    if kind == longrope.KIND:
        keys |= longrope.keys_of(rope, config.max_position_embeddings)
    if kind in ("linear", "yarn"):
        keys |= {"scaling.type": kind, "scaling.factor": float(rope["factor"])}
    if kind == "yarn":
        original = rope.get("original_max_position_embeddings", config.max_position_embeddings)
        betas = {f"scaling.yarn_{key}": float(rope[key]) for key in ("beta_fast", "beta_slow") if key in rope}
        keys |= {"scaling.original_context_length": original, **betas}
    return {f"rope.{key}": value for key, value in keys.items()}


def rope_tensors(config) -> dict[str, np.ndarray]:
    """The tensors of a file that hold a scaling of positions, float32, by name; none for most ways to scale."""
    rope = config.rope_parameters
    if rope.get("rope_type") == "llama3":
        return {llama3_rope.ROPE: llama3_rope.factors_of(rope, head_dim(config))}
    return longrope.tensors_of(rope) if rope.get("rope_type") == longrope.KIND else {}
