"""What quantization costs in numbers: perplexity, KL divergence, flips, true bytes.

Perplexity is ``exp`` of the mean negative log-likelihood of the next token. KL divergence to the float model and the
share of flipped top-1 tokens look at the whole distribution and notice what perplexity averages away (Dutta et al.
2024, "Accuracy is Not All You Need", arXiv 2407.09141).
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from qtutor.errors import QtutorError
from qtutor.guards.ids import ids_of
from qtutor.guards.model import check_measurable, in_eval

WINDOW = 512
BATCH = 8


def windows(token_ids: torch.Tensor, window: int, vocabulary: int) -> Iterator[torch.Tensor]:
    """Batches ``[batch, window]`` of consecutive windows; the tokens left over come last, as one row."""
    if token_ids.dtype not in (torch.int64, torch.int32):
        raise QtutorError(f"token ids have dtype {token_ids.dtype}; whole numbers (int64) are needed.")
    if token_ids.numel() < 2:
        raise QtutorError(f"{token_ids.numel()} tokens: at least 2 are needed, one to read and one to predict.")
    if int(token_ids.max()) >= vocabulary or int(token_ids.min()) < 0:
        raise QtutorError(
            f"token ids run from {int(token_ids.min())} to {int(token_ids.max())}, but the model's vocabulary has "
            f"{vocabulary}: 0 to {vocabulary - 1}. Was the text tokenized with another model's tokenizer?"
        )
    if token_ids.dim() == 2:
        yield from token_ids.split(BATCH)
        return
    whole = len(token_ids) // window * window
    if whole:
        yield from token_ids[:whole].reshape(-1, window).split(BATCH)
    if len(token_ids) - whole >= 2:
        yield token_ids[None, whole:]


def batches(models: tuple, token_ids: torch.Tensor, window: int) -> Iterator[torch.Tensor]:
    """:func:`windows` that all ``models`` can read: no longer than their contexts, which a warning says, once.

    token_ids: what :func:`qtutor.guards.ids.ids_of` takes, ``[count]`` or ``[samples, length]``.
    """
    token_ids = ids_of(token_ids)
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
        warnings.warn(
            f"the model reads {context} tokens at most (max_position_embeddings): windows have {context} tokens, not "
            f"{longest}.",
            stacklevel=4,
        )
        window = min(window, context)
        parts = token_ids.split(context, dim=1) if token_ids.dim() == 2 else parts
    for part in parts:
        if part.dim() == 1 or part.shape[1] >= 2:  # the last token of a sample may be left alone
            yield from windows(part, window, min(model.config.vocab_size for model in models))


@torch.inference_mode()
def perplexity(model, token_ids: torch.Tensor, window: int = WINDOW) -> float:
    """Perplexity of ``token_ids`` (int64, ``[count]`` cut into windows, or ``[samples, length]`` as they are).

    Every window starts with nothing before it; its first token is read, not predicted. None is longer than the model's
    context: where one would be, it is cut, with a warning.
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
class Comparison:
    """A model against its float original on the same tokens."""

    perplexity: float
    reference_perplexity: float
    kl: float  # mean KL(reference || model) a token, in nats
    flips: float  # share of positions where the most likely next token differs

    @property
    def loss_percent(self) -> float:
        """By how many per cent perplexity rose."""
        return 100 * (self.perplexity / self.reference_perplexity - 1)


@torch.inference_mode()
def compare(model, reference, token_ids: torch.Tensor, window: int = WINDOW) -> Comparison:
    """Run both models over ``token_ids`` (as :func:`perplexity` does) and compare their next-token distributions."""
    for one in (model, reference):
        check_measurable(one)
    if model.config.vocab_size != reference.config.vocab_size:
        raise QtutorError(
            f"the model's vocabulary has {model.config.vocab_size} tokens, the reference's "
            f"{reference.config.vocab_size}: compare a model with the one that it was made of."
        )
    sums = torch.zeros(4, dtype=torch.float64)
    count = 0
    with in_eval(model), in_eval(reference):
        for ids in batches((model, reference), token_ids, window):
            ids = ids.to(model.device)
            ours, theirs = (
                log_softmax(m(ids, use_cache=False).logits[:, :-1].float(), dim=-1).flatten(0, 1)
                for m in (model, reference)
            )
            following = ids[:, 1:].flatten()
            sums[0] -= ours.gather(1, following[:, None]).sum().double().cpu()
            sums[1] -= theirs.gather(1, following[:, None]).sum().double().cpu()
            sums[2] += kl_div(ours, theirs, log_target=True, reduction="sum").double().cpu()
            sums[3] += (ours.argmax(-1) != theirs.argmax(-1)).sum().double().cpu()
            count += following.numel()
    nll, reference_nll, kl, flips = sums / count
    return Comparison(nll.exp().item(), reference_nll.exp().item(), kl.item(), flips.item())


def model_bytes(model) -> int:
    """True bytes of a model's weights: parameters and persistent buffers, tied ones counted once."""
    seen = {}
    for tensor in model.state_dict(keep_vars=True).values():
        seen[(tensor.data_ptr(), tensor.nbytes)] = tensor.nbytes
    return sum(seen.values())
