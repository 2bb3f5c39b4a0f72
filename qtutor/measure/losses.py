"""The cost of quantization in numbers: perplexity, true bytes, bits a weight; :mod:`.against` has more measures.

Perplexity is ``exp`` of the mean negative log-likelihood of the next token. The standard error over windows
(:func:`mean_and_error`) shows how exactly a text of finite length determines it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from qtutor.errors import QtutorError, warn
from qtutor.guards.ids import ids_of
from qtutor.guards.running import check_measurable, in_eval
from qtutor.runtime.packed import Packed

WINDOW = 512
BATCH = 8  # windows that are read together,
LOGITS = 1 << 25  # or fewer, if their logits would be more numbers than this (128 MB in float32)


def windows(token_ids: torch.Tensor, window: int, vocabulary: int) -> Iterator[torch.Tensor]:
    """Batches ``[batch, window]`` of consecutive windows; the tokens left over come last, as one row.

    A batch has :data:`BATCH` windows, or fewer if the vocabulary is large, so that the logits fit into memory.
    """
    if token_ids.dtype not in (torch.int64, torch.int32):
        raise QtutorError(f"token ids have dtype {token_ids.dtype}; whole numbers (int64) are needed.")
    if token_ids.numel() < 2:
        raise QtutorError(f"{token_ids.numel()} tokens: at least 2 are needed, one to read and one to predict.")
    if int(token_ids.max()) >= vocabulary or int(token_ids.min()) < 0:
        raise QtutorError(
            f"token ids run from {int(token_ids.min())} to {int(token_ids.max())}, but the model's vocabulary has "
            f"{vocabulary}: 0 to {vocabulary - 1}. Was the text tokenized with another model's tokenizer?"
        )
    longest = token_ids.shape[1] if token_ids.dim() == 2 else window
    batch = min(BATCH, max(1, LOGITS // (longest * vocabulary)))
    if token_ids.dim() == 2:
        yield from token_ids.split(batch)
        return
    whole = len(token_ids) // window * window
    if whole:
        yield from token_ids[:whole].reshape(-1, window).split(batch)
    if len(token_ids) - whole >= 2:
        yield token_ids[None, whole:]


def batches(models: tuple, token_ids: torch.Tensor, window: int) -> Iterator[torch.Tensor]:
    """:func:`windows` that all ``models`` can read: no longer than their contexts; a warning says so, once.

    token_ids: an argument of :func:`qtutor.guards.ids.ids_of`, ``[count]`` or ``[samples, length]``.
    """
    token_ids = ids_of(token_ids)
    if not isinstance(window, int):
        raise QtutorError(f"window = {window!r}: a whole number of tokens is needed, at least 2.")
    if window < 2 or token_ids.dim() not in (1, 2) or (token_ids.dim() == 2 and token_ids.shape[1] < 2):
        raise QtutorError(
            f"token ids of shape {list(token_ids.shape)} in windows of {window}: [count] or [samples, length] is "
            "needed, and at least 2 tokens in each, one to read and one to predict."
        )
    contexts = [getattr(model.config, "max_position_embeddings", None) for model in models]
    context = min(filter(None, contexts), default=window)
    longest = token_ids.shape[1] if token_ids.dim() == 2 else min(window, len(token_ids))
    parts = [token_ids]
    if longest > context:
        warn(
            f"the model reads {context} tokens at most (max_position_embeddings): windows have {context} tokens, not "
            f"{longest}."
        )
        window = min(window, context)
        parts = token_ids.split(context, dim=1) if token_ids.dim() == 2 else parts
    for part in parts:
        if part.dim() == 1 or part.shape[1] >= 2:  # the last token of a sample may be left alone
            yield from windows(part, window, min(model.config.vocab_size for model in models))


@torch.inference_mode()
def perplexity(model, token_ids: torch.Tensor, window: int = WINDOW) -> float:
    """Perplexity of ``token_ids`` (int64, ``[count]`` cut into windows, or ``[samples, length]`` as they are).

    Every window starts without context; its first token is read, not predicted. A window longer than the model's
    context is cut to it, with a warning.
    """
    total, count = 0.0, 0
    check_measurable(model)
    with in_eval(model):
        for ids in batches((model,), token_ids, window):
            ids = ids.to(model.device)
            logits = model(ids, use_cache=False).logits[:, :-1].float()
            total += cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").item()
            count += ids[:, 1:].numel()
    return float(torch.tensor(total / count, dtype=torch.float64).exp())


@dataclass(frozen=True)
class Measured:
    """Perplexity on a text. error: its standard error, ``None`` for a single window. tokens: number of predictions."""

    perplexity: float
    error: float | None
    tokens: int
    windows: int


@torch.inference_mode()
def perplexity_with_error(model, token_ids: torch.Tensor, window: int = WINDOW) -> Measured:
    """:func:`perplexity` with its standard error; arguments and errors are the same."""
    check_measurable(model)
    sums, counts = [], []
    with in_eval(model):
        for ids in batches((model,), token_ids, window):
            ids = ids.to(model.device)
            logits = model(ids, use_cache=False).logits[:, :-1].float()
            losses = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
            sums += losses.reshape(len(ids), -1).double().sum(1).tolist()
            counts += [ids.shape[1] - 1] * len(ids)
    mean, error = mean_and_error(torch.tensor(sums, dtype=torch.float64), torch.tensor(counts))
    value = float(torch.tensor(mean, dtype=torch.float64).exp())
    return Measured(value, None if error is None else value * error, sum(counts), len(counts))


def mean_and_error(sums: torch.Tensor, counts: torch.Tensor) -> tuple[float, float | None]:
    """The mean per token and its standard error, from each window's sum over its tokens.

    sums: float64 ``[windows]``. counts: tokens in each, ``[windows]``. Neighbouring tokens depend on each other, so an
    error that counts every token as an observation of its own would come out too small. Windows are almost independent:
    their deviations from the mean, ``sums - mean * counts``, are the observations. So for ``n`` windows of equal
    length, the error of the mean is the standard deviation of the windows' means over the root of ``n`` (for windows of
    several lengths, the error of a ratio: Cochran 1977, "Sampling Techniques", section 2.11). ``None`` for one window.
    Left out: the dependence between windows of one document, and how the text was chosen.

    >>> mean_and_error(torch.tensor([2.0, 4.0], dtype=torch.float64), torch.tensor([2, 2]))
    (1.5, 0.5)
    """
    mean = (sums.sum() / counts.sum()).item()
    windows = len(sums)
    if windows < 2:
        return mean, None
    off = sums - mean * counts
    variance = off.square().sum() * windows / (windows - 1)
    return mean, (variance.sqrt() / counts.sum()).item()


def model_bytes(model) -> int:
    """True bytes of a model's weights: parameters and persistent buffers, tied ones counted once."""
    seen = {}
    for tensor in model.state_dict(keep_vars=True).values():
        seen[(tensor.data_ptr(), tensor.nbytes)] = tensor.nbytes
    return sum(seen.values())


def model_weights(model) -> int:
    """How many weights a model has, packed or not: parameters and persistent buffers, tied ones counted once."""
    packed = [module for module in model.modules() if isinstance(module, Packed)]
    stored = {buffer.data_ptr() for module in packed for name, buffer in module.named_buffers() if name != "bias"}
    rest = {
        (tensor.data_ptr(), tensor.nbytes): tensor.numel()
        for tensor in model.state_dict(keep_vars=True).values()
        if tensor.data_ptr() not in stored
    }
    return sum(module.rows * module.columns for module in packed) + sum(rest.values())


def bits_per_weight(model, nbytes: int | None = None) -> float:
    """True bits per weight, including scales, zero points and all parts that stay in float.

    nbytes: the size of the weights elsewhere, as in a file; by default :func:`model_bytes`.
    """
    return 8 * (model_bytes(model) if nbytes is None else nbytes) / model_weights(model)
