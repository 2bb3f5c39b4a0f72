"""Small decoders of every family, each with the special features of its family: random ones and trained ones.

A random net hides mistakes: its attention looks at all places alike, its norms are all one, and the output of one block
hardly changes the input of the next. So a decoder of each family is also trained for a few seconds on the embedded
decoder's text.
"""

import shutil
from functools import cache
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

from qtutor.decoder import EMBEDDED
from qtutor.decoder.text import calibration_tokens

VOCABULARY = 1024  # of the embedded decoder's tokenizer
PAD = 1023  # a row of zeros, so no token of the text may have it
WINDOW = 12  # shorter than any text here, so that its effect shows
SLIDING, FULL = "sliding_attention", "full_attention"

# What a config of each family has besides the sizes. Gemma's heads are wider than hidden / heads here: the real models
# also set head_dim by itself.
FAMILIES = {
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3": {"head_dim": 32},
    "gemma2": {
        **{"head_dim": 32, "sliding_window": WINDOW, "num_hidden_layers": 3, "pad_token_id": PAD},
        **{"query_pre_attn_scalar": 24, "attn_logit_softcapping": 4.0, "final_logit_softcapping": 12.0},
    },
    "gemma3_text": {
        **{"head_dim": 32, "sliding_window": WINDOW, "num_hidden_layers": 3, "pad_token_id": PAD},
        **{"query_pre_attn_scalar": 24, "layer_types": [SLIDING, SLIDING, FULL]},
        "rope_parameters": {
            SLIDING: {"rope_type": "default", "rope_theta": 1e3},
            FULL: {"rope_type": "linear", "rope_theta": 1e5, "factor": 4.0},
        },
    },
    "phi3": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.75},
        **{"sliding_window": WINDOW, "pad_token_id": PAD, "tie_word_embeddings": True},
    },
    "olmo2": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    "granite": {
        **{"residual_multiplier": 0.4, "attention_multiplier": 0.4, "embedding_multiplier": 6.0},
        **{"logits_scaling": 3.0, "tie_word_embeddings": True},
    },
    "smollm3": {
        **{"num_hidden_layers": 3, "no_rope_layers": [1, 0, 1], "pad_token_id": PAD},
        **{"use_sliding_window": True, "sliding_window": WINDOW},
    },
}


def new(family: str, seed: int = 0, **changes) -> nn.Module:
    """A decoder with random initial weights: hidden 64, 2 or 3 blocks, grouped-query attention (or see ``changes``)."""
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    sizes |= {"bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.1}
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes | FAMILIES[family] | changes)).eval()


@torch.no_grad()
def random(family: str, seed: int = 0, **changes) -> nn.Module:
    """A random decoder without parameters that are all zero or one; its attention prefers some places."""
    model = new(family, seed, **changes)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.add_(0.1 * torch.randn_like(parameter))
        elif "qkv" in name or "q_proj" in name or "k_proj" in name:
            parameter.mul_(8)
    return model


def near(found: torch.Tensor, expected: torch.Tensor, within: float) -> bool:
    """Whether every number is off by at most ``within`` times the largest expected number."""
    return bool((found - expected).abs().max() <= within * expected.abs().max())


def put_tokenizer(folder: Path) -> None:
    """Copy the embedded decoder's tokenizer to the checkpoint in ``folder``."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED / name, folder)


@cache
def _tokens() -> torch.Tensor:
    return calibration_tokens(376, 64)


def text() -> torch.Tensor:
    """The text for :func:`trained`: Python code and interpreter sessions, int64 ``[samples, length]``."""
    return _tokens()[:280]


def calibration() -> torch.Tensor:
    """More text of the same kind, 64 samples."""
    return _tokens()[280:344]


def unseen() -> torch.Tensor:
    """Text for measuring, 32 samples."""
    return _tokens()[344:]


def trained(family: str, steps: int = 48, rate: float = 1e-2, **changes) -> nn.Module:
    """A decoder that was trained on ``steps`` batches of 8 samples."""
    model = new(family, **changes).train()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.0)
    rows = text()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 10, 2 * (steps - step) / steps)
        ids = rows.roll(-8 * step, 0)[:8]
        logits = model(ids[:, :-1], use_cache=False).logits
        cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()
