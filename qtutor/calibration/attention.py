"""Causal attention in spans of queries, for the blocks that are calibrated.

A token attends only to itself and the tokens before it, so half of all scores are never used. For texts of up to 512
tokens, torch's attention on a CPU computes them all. Here each span of queries gets only the keys before its end, so
most unused scores are left out: 1,024 tokens of SmolLM2 then take 11.4 ms instead of 16.6 ms. The sums are the same, in
another order.
"""

import copy

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

SPAN = 64  # queries: with more, more unused scores are computed; with fewer, the products are small
NAME = "qtutor_spans"
PLAIN = "sdpa"  # transformers' name for torch's attention


def attend_in_spans(attention: nn.Module) -> None:
    """Let ``attention``, a transformers module that uses torch's attention, call :func:`causal_attention`."""
    config = getattr(attention, "config", None)
    if getattr(config, "_attn_implementation", None) == PLAIN:
        # Imported here, since it takes half a second, and importing a recipe imports this module, too.
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        ALL_ATTENTION_FUNCTIONS.register(NAME, causal_attention)
        attention.config = copy.copy(config)  # the model's own config stays as it was
        attention.config._attn_implementation = NAME


def causal_attention(module, query, key, value, attention_mask, scaling=None, **others):
    """The attention function that transformers' layers call.

    query: ``[batch, heads, length, width]``; key and value have as many heads or fewer. Returns
    ``[batch, length, heads, width]``, and ``None`` for the attention weights. With a mask, or with keys of an earlier
    text, transformers' own function is called.
    """
    length = query.shape[2]
    is_causal = others.get("is_causal", getattr(module, "is_causal", True))
    if attention_mask is not None or not is_causal or key.shape[2] != length or query.device.type != "cpu":
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **others)
    found = []
    for begin in range(0, length, SPAN):
        end = min(begin + SPAN, length)
        seen = torch.ones(end - begin, end, dtype=torch.bool).tril(begin)  # itself and the keys before
        given = query[:, :, begin:end], key[:, :, :end], value[:, :, :end], seen
        enough = key.shape[1] == query.shape[1]
        found.append(scaled_dot_product_attention(*given, scale=scaling, enable_gqa=not enough).transpose(1, 2))
    return torch.cat(found, dim=1), None
