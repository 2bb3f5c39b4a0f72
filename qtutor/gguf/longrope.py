"""Phi-3's scaling of positions for long texts: two lists of factors, and a number that sharpens attention.

    tensors_of(rope_parameters)            # {"rope_factors_short.weight": float32 [n], "rope_factors_long.weight": ...}
    keys_of(rope_parameters, 131_072)      # {"scaling.original_context_length": 4096, "scaling.attn_factor": 1.19}
    rope_of(file, ...)                     # and back

The divisor of each frequency depends on the length of the text. transformers uses the second list if the text is longer
than the original context, llama.cpp if it was started with a longer context. So the two agree on texts within the
original context if llama.cpp was started with no more than that context, and on longer texts.

Source: llama.cpp's ``conversion/phi.py``; ``llama_model::get_rope_factors``; transformers' ``modeling_rope_utils.py``.
"""

import math
from collections.abc import Mapping

import numpy as np

KIND = "longrope"  # transformers' name
TENSORS = {"rope_factors_short.weight": "short_factor", "rope_factors_long.weight": "long_factor"}
CONTEXT, SHARPER = "scaling.original_context_length", "scaling.attn_factor"  # behind "rope."


def tensors_of(rope: Mapping) -> dict[str, np.ndarray]:
    """The tensors, which are no parameters of the model, by name."""
    return {name: np.array(rope[key], np.float32) for name, key in TENSORS.items()}


def keys_of(rope: Mapping, longest: int) -> dict:
    """The keys of a file beside the tensors. longest: the model's context."""
    context = rope["original_max_position_embeddings"]
    factor = rope.get("factor") or longest / context
    sharper = rope.get("attention_factor")
    if sharper is None:
        sharper = math.sqrt(1 + math.log(factor) / math.log(context)) if factor > 1 else 1.0
    return {CONTEXT: int(context), SHARPER: float(sharper)}


def rope_of(factors: Mapping[str, np.ndarray], context: int, sharper: float) -> dict:
    """transformers' parameters beside ``rope_theta``. factors: the tensors by name."""
    lists = {key: [float(str(number)) for number in factors[name]] for name, key in TENSORS.items()}
    return {"rope_type": KIND, "original_max_position_embeddings": context, "attention_factor": sharper} | lists
