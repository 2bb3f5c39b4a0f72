"""Small random decoders of every family, made from their configs."""

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from qtutor.recipe import METHODS, OWN_SIZES

FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),  # biases in q, k, v
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),  # norms on q and k
}
VOCABULARY = 256


def tiny(family: str = "llama", tied: bool = True, seed: int = 0, dtype: torch.dtype = torch.float32):
    """A decoder of 2 blocks, hidden 64, intermediate 128, grouped-query attention."""
    config_class, model_class = FAMILIES[family]
    extra = {"head_dim": 16} if family == "qwen3" else {}
    config = config_class(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        dtype=dtype,
        **extra,
    )
    torch.manual_seed(seed)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases start at zero: make them matter
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype)


def groups_of(method: str, size: int = 32) -> dict[str, int]:
    """A recipe's option for groups of ``size``; no option for a method whose group sizes are fixed."""
    return {} if METHODS[method].codebook in OWN_SIZES else {"group_size": size}


def some_ids(rows: int = 2, length: int = 24, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))
