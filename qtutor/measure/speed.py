"""How fast a decoder writes, for one reader: tokens a second, one after the other."""

import statistics
import time

import torch

from qtutor.guards.model import check_measurable, in_eval

PROMPT, TOKENS = 32, 32
WARM = 4  # first steps, in which memory is taken and kernels are chosen


@torch.inference_mode()
def tokens_per_second(model, prompt: torch.Tensor | None = None, tokens: int = TOKENS) -> float:
    """Tokens a second in greedy decoding behind ``prompt``, int64 ``[count]``; reading the prompt is not counted.

    tokens: how many are timed. The median step counts, so that what else runs on the machine disturbs it little. What
    is written does not matter, nor whether it would end: the steps cost the same. By itself the prompt is token 0, a
    few times. The context is kept: where ``tokens`` do not fit into it, fewer are timed.
    """
    check_measurable(model)
    ids = torch.zeros(PROMPT, dtype=torch.int64) if prompt is None else prompt
    context = getattr(model.config, "max_position_embeddings", None) or len(ids) + tokens + WARM
    ids = ids[: max(1, context - tokens - WARM)]
    steps = min(tokens + WARM, context - len(ids))
    seconds = []
    with in_eval(model):
        out = model(ids[None].to(model.device), use_cache=True)
        for _ in range(max(1, steps)):
            begin = time.perf_counter()
            following = out.logits[:, -1:].argmax(-1)
            out = model(following, past_key_values=out.past_key_values, use_cache=True)
            out.logits[0, -1, 0].item()  # a GPU works on in the background until somebody wants a number
            seconds.append(time.perf_counter() - begin)
    return 1 / statistics.median(seconds[WARM:] or seconds)
