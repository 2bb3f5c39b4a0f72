"""Kinds of models that cannot be quantized here: what they are, and what support would need.

A kind is recognized by the ``model_type`` alone, or by other keys of a config: a model with an unusual name still says
that it has experts. Only the words of an error depend on the kind: every model type that is not in
:data:`~qtutor.families.known.FAMILIES` is refused.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """what: completes "is ...". needed: a sentence. names: of families. parts: parts of names. keys: in a config."""

    what: str
    needed: str
    names: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()

    def fits(self, model_type: str, value: Callable[[str], object]) -> bool:
        """Whether a config is of this kind; ``value`` looks up a key of the config."""
        by_name = model_type in self.names or any(part in model_type for part in self.parts)
        return by_name or any(value(key) for key in self.keys)


# The first kind that fits counts: Qwen3-VL-MoE reads images, and also has experts.
KINDS = (
    Kind(
        "a model that reads images or sound besides text",
        "It would need calibration with images, and a path to blocks deeper inside the model. Its language part alone "
        "can be quantized if that part is of a known family: save it by itself, as a ...ForCausalLM with a config.json "
        "of its own.",
        names=("gemma3", "gemma3n", "gemma4", "llama4", "mistral3", "mllama", "fuyu", "florence2", "blip-2"),
        parts=(
            *("llava", "_vl", "vision", "idefics", "smolvlm", "pixtral", "multimodal", "omni", "audio", "internvl"),
            *("kosmos", "paligemma", "glm4v", "ovis"),
        ),
        keys=("vision_config", "audio_config"),
    ),
    Kind(
        "an encoder with a decoder",
        "It would need a third part in a block, the attention to the encoded text, and pairs of texts for calibration.",
        names=("whisper", "marian", "led", "m2m_100", "prophetnet", "encoder-decoder", "nllb-moe"),
        parts=("t5", "bart", "pegasus", "blenderbot", "switch_transformers"),
        keys=("is_encoder_decoder",),
    ),
    Kind(
        "a state space model, or has blocks of one",
        "It would need blocks whose parts are scans and convolutions, and a way to calibrate their projections.",
        names=("recurrent_gemma", "jamba", "bamba", "nemotron_h", "falcon_h1", "granitemoehybrid", "xlstm", "lfm2"),
        parts=("mamba", "rwkv", "zamba", "qwen3_next"),
        keys=("mamba_d_state", "ssm_state_size", "state_size"),
    ),
    Kind(
        "a mixture of experts",
        "It would need inputs collected for each expert alone, because a token uses only a few experts, and layers "
        "made from the tensors that hold all experts at once.",
        names=("mixtral", "gpt_oss", "dbrx", "llama4_text", "minimax"),
        parts=("moe", "deepseek"),
        keys=("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"),
    ),
    Kind(
        "an encoder",
        "It predicts tokens in the middle of a text, not the next one. It would need measures other than the loss "
        "of the next token, and a walk over blocks that see the whole text.",
        names=("electra", "mpnet", "xlm", "longformer", "big_bird", "funnel", "nystromformer"),
        parts=("bert", "roberta"),
        keys=("use_bidirectional_attention",),
    ),
    Kind(
        "a decoder with matrices of the kind Conv1D",
        "It would need nn.Linear in their place (they are stored as [in, out]), and norms that subtract the mean.",
        names=("gpt2", "openai-gpt", "gpt-sw3", "imagegpt", "ctrl"),
    ),
)


def why_not(model_type: str, value: Callable[[str], object]) -> str:
    """One or two sentences about an unknown ``model_type``; ``""`` if nothing at all is known about it."""
    name = model_type.lower()
    kind = next((kind for kind in KINDS if kind.fits(name, value)), None)
    return f"It is {kind.what}. {kind.needed} " if kind else ""
