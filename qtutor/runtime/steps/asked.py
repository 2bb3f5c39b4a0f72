"""Whether a call of a model requests one more token of one text, and nothing else."""

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from qtutor.families import LLAMA

PLAIN = {"use_cache", "return_dict", "logits_to_keep", "cache_position"}  # arguments that change nothing in such a step


def tokens_before(model, windows: list[int | None], ids, cache, mask, positions, more: dict) -> int | None:
    """The number of tokens in the cache, at least one, if a step of :class:`.plan.Plan` can answer the call.

    ids, cache, mask, positions: the first arguments of the model's forward; more: all others. windows: the attention
    window of each block; no token may leave one. The result is ``None`` if the model's own forward has to run.
    """
    if torch.is_grad_enabled() or model.training or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return None
    if any(value is not None and value is not False and name not in PLAIN for name, value in more.items()):
        return None
    if more.get("use_cache") is False or more.get("return_dict") is False or not _asks_little(model.config):
        return None
    if isinstance(more.get("logits_to_keep", 0), torch.Tensor):
        return None
    if not _one_token(ids) or not (positions is None or _one_token(positions)):
        return None
    count = _held(cache, windows, model.get_submodule(LLAMA.norm).weight.dtype)
    if count is None or not (mask is None or _sees_all(mask, count + 1)):
        return None
    return count


def _asks_little(config) -> bool:
    switches = "output_attentions", "output_hidden_states"
    return config.use_cache and not any(getattr(config, name, False) for name in switches)


def _one_token(ids) -> bool:
    return isinstance(ids, torch.Tensor) and ids.shape == (1, 1) and ids.device.type == "cpu"


def _sees_all(mask, count: int) -> bool:
    """Whether ``mask`` hides none of ``count`` tokens."""
    return isinstance(mask, torch.Tensor) and mask.shape == (1, count) and bool(mask.all())


def _held(cache, windows: list[int | None], dtype: torch.dtype) -> int | None:
    """How many tokens are in a cache that may grow by one; ``None`` for others, and if a token would leave a window."""
    if type(cache) is not DynamicCache or getattr(cache, "offloading", False) or len(cache.layers) != len(windows):
        return None
    counts = set()
    for layer, window in zip(cache.layers, windows, strict=True):
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) or not layer.is_initialized:
            return None
        if layer.keys.dim() != 4 or len(layer.keys) != 1 or layer.keys.dtype != dtype or not layer.keys.is_cpu:
            return None
        count = layer.keys.shape[-2]
        if type(layer) is DynamicSlidingWindowLayer:
            window = min(window or layer.sliding_window, layer.sliding_window)
            if layer.record_past or layer.cumulative_length != count:
                return None
        if window is not None and count + 1 >= window:  # the cache keeps one token less than a window
            return None
        counts.add(count)
    return counts.pop() if len(counts) == 1 and 0 not in counts else None
