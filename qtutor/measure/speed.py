"""How fast a decoder writes for one reader, in tokens a second, one after the other; and what limits its speed.

To write a token, all weights are read, and little is computed with each. So no decoder writes faster than its bytes are
read: :func:`bytes_of_a_token` over :func:`copy_bandwidth` is about the shortest time for a token.
"""

import statistics
import time
from collections.abc import Callable

import torch

from qtutor.guards.running import check_measurable, in_eval
from qtutor.measure.losses import model_bytes
from qtutor.runtime.steps import quick_steps

PROMPT, TOKENS = 32, 32
WARM = 4  # first steps, in which memory is allocated and kernels are chosen


@torch.inference_mode()
def tokens_per_second(model, prompt: torch.Tensor | None = None, tokens: int = TOKENS) -> float:
    """Tokens a second in greedy decoding behind ``prompt``, int64 ``[count]``; reading the prompt is not counted.

    tokens: how many are timed. The median step counts, so that other programs on the machine disturb the result little.
    The content of the text does not matter, nor whether it would end: the steps cost the same. The default prompt is
    token 0, a few times. If ``tokens`` do not fit into the context, fewer are timed.
    """
    check_measurable(model)
    ids = torch.zeros(PROMPT, dtype=torch.int64) if prompt is None else prompt
    context = getattr(model.config, "max_position_embeddings", None) or len(ids) + tokens + WARM
    ids = ids[: max(1, context - tokens - WARM)]
    steps = min(tokens + WARM, context - len(ids))
    _, seconds = token_times(model, ids[None].to(model.device), max(1, steps))
    return 1 / statistics.median(seconds[WARM:] or seconds)


@torch.inference_mode()
def token_times(
    model, ids: torch.Tensor, steps: int, clock: Callable[[], float] | None = None
) -> tuple[float, list[float]]:
    """Seconds until the first token behind ``ids``, int64 ``[1, count]``, is known, and for each of ``steps`` more.

    Decoding is greedy, with a cache, by :func:`~qtutor.runtime.steps.quick_steps` if that knows the model. clock: a
    function that returns seconds, by default ``time.perf_counter``.
    """
    clock, each = clock or time.perf_counter, []
    with in_eval(model), quick_steps(model):
        begin = clock()
        out = model(ids, use_cache=True, logits_to_keep=1)
        out.logits[0, -1, 0].item()  # a GPU works in the background until a number is requested
        first = clock() - begin
        for _ in range(steps):
            begin = clock()
            following = out.logits[:, -1:].argmax(-1)
            out = model(following, past_key_values=out.past_key_values, use_cache=True)
            out.logits[0, -1, 0].item()
            each.append(clock() - begin)
    return first, each


def bytes_of_a_token(model) -> int:
    """The bytes of weights that one token reads: all; of an embedding that is not the output matrix, one row."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    held = list(table.state_dict().values())
    heads = {tensor.data_ptr() for tensor in head.state_dict().values()} if head is not None else set()
    size = sum(tensor.nbytes for tensor in held)
    if any(tensor.data_ptr() in heads for tensor in held):  # the embedding is the output matrix as well
        return model_bytes(model)
    return model_bytes(model) - size + size // max(held[0].shape[0], 1)


def copy_bandwidth(clock: Callable[[], float] = time.perf_counter, megabytes: int = 128, rounds: int = 5) -> float:
    """Bytes a second, read and written, with which torch copies memory on this CPU; the median of some copies.

    clock: a function that returns seconds; ``time.process_time`` leaves out other programs on a busy machine.
    """
    source, target, seconds = torch.ones(megabytes << 18), torch.empty(megabytes << 18), []
    for _ in range(rounds + 1):
        start = clock()
        target.copy_(source)
        seconds.append(clock() - start)
    return 2 * source.nbytes / statistics.median(seconds[1:])  # the first copy allocates memory


def pace(size: int, device: torch.device, asked: float, came: list[float]) -> str:
    """How fast a text was written, in words.

    size: :func:`bytes_of_a_token`. asked, came: when the prompt was given and when each token came, in seconds.
    """
    text = f"{len(came)} token{'' if len(came) == 1 else 's'}, the first after {came[0] - asked:.2f} s"
    if len(came) < 2 or came[-1] <= came[0]:
        return f"{text}."
    rate = (len(came) - 1) / (came[-1] - came[0])
    text += f", then {rate:.1f} a second. A token reads {size / 1e6:.1f} MB of weights, so {rate * size / 1e9:.2f} GB/s"
    if device.type != "cpu":
        return f"{text}."
    limit = copy_bandwidth()
    return f"{text}: {rate * size / limit:.0%} of the {limit / 1e9:.1f} GB/s with which this machine copies memory."
