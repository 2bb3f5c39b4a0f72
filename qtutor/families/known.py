"""The known families, one instance each; :data:`FAMILIES` has them by transformers' ``model_type``.

Most are Llama with a few differences. Differences in the numbers, and not in the names, are not described here: the
walk runs the model's own modules, with the positions and the mask that the model gives to each block. So the following
parts work as in the model: Gemma's windows and soft caps, Gemma 3's two ropes, SmolLM3's blocks without rope, Qwen2's
biases, Phi-3's partly rotated heads and Granite's attention multiplier.
"""

from dataclasses import replace

from qtutor.families.family import Family, Half, Pair

Q, K, V, O = (f"self_attn.{name}_proj" for name in "qkvo")  # noqa: E741
GATE, UP, DOWN = (f"mlp.{name}_proj" for name in ("gate", "up", "down"))
QKV, GATE_UP = "self_attn.qkv_proj", "mlp.gate_up_proj"
# v and o are scaled as a pair, and so are up and down: v's and up's outputs are only multiplied on the way.
INSIDE = Pair(V, (O,), O), Pair(UP, (DOWN,), DOWN)
QK_NORMS = "self_attn.q_norm", "self_attn.k_norm"


def _through_norms(attention: Half, mlp: Half, inside: tuple[Pair, Pair] = INSIDE) -> tuple[Pair, ...]:
    """The pairs of a block whose halves begin with a norm: one with each norm, and one ``inside`` each half."""
    first, second = (Pair(half.norm, half.readers, half.parent) for half in (attention, mlp))
    return first, inside[0], second, inside[1]


def _llama() -> Family:
    attention = Half("self_attn", "input_layernorm", (Q, K, V), O)
    mlp = Half("mlp", "post_attention_layernorm", (GATE, UP), DOWN)  # in spite of its name, this norm begins the MLP
    return Family("llama", (attention, mlp), _through_norms(attention, mlp))


def _gemma2() -> Family:
    """Norms before and after each half, which multiply by 1 + weight."""
    attention = Half("self_attn", "input_layernorm", (Q, K, V), O, "post_attention_layernorm")
    mlp = Half("mlp", "pre_feedforward_layernorm", (GATE, UP), DOWN, "post_feedforward_layernorm")
    return Family("gemma2", (attention, mlp), _through_norms(attention, mlp), norm_offset=1.0)


def _phi3() -> Family:
    """q, k and v in one matrix, gate and up in another."""
    attention = Half("self_attn", "input_layernorm", (QKV,), O)
    mlp = Half("mlp", "post_attention_layernorm", (GATE_UP,), DOWN)
    inside = Pair(QKV, (O,), O, parts=3), Pair(GATE_UP, (DOWN,), DOWN, parts=2)
    return Family("phi3", (attention, mlp), _through_norms(attention, mlp, inside))


def _olmo2() -> Family:
    """The readers read the stream itself; there is a norm after each half, and q and k have norms over all heads."""
    attention = Half("self_attn", None, (Q, K, V), O, "post_attention_layernorm")
    mlp = Half("mlp", None, (GATE, UP), DOWN, "post_feedforward_layernorm")
    return Family("olmo2", (attention, mlp), INSIDE, extra_norms=QK_NORMS)


LLAMA = _llama()
MISTRAL = replace(LLAMA, model_type="mistral")
QWEN2 = replace(LLAMA, model_type="qwen2")  # with biases in q, k and v
QWEN3 = replace(LLAMA, model_type="qwen3", extra_norms=QK_NORMS)
GEMMA2 = _gemma2()
GEMMA3 = replace(GEMMA2, model_type="gemma3_text", extra_norms=QK_NORMS)
PHI3 = _phi3()  # Phi-4 has this model_type, too
OLMO2 = _olmo2()
GRANITE = replace(LLAMA, model_type="granite", multiplier="residual_multiplier")
SMOLLM3 = replace(LLAMA, model_type="smollm3")

FAMILIES = {
    family.model_type: family
    for family in (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3, PHI3, OLMO2, GRANITE, SMOLLM3)
}
