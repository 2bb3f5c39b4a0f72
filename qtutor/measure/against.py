"""A quantized model against its float original, on the same tokens: KL divergence, flips, and the rise of perplexity.

KL divergence compares whole distributions of the next token, in nats a token: sum over the vocabulary of
``p_float * (log p_float - log p_quantized)``, the mean over all positions. It is what llama.cpp's
``llama-perplexity --kl-divergence`` prints. Flips are positions at which the most likely token differs (Dutta et al.
2024, "Accuracy is Not All You Need", arXiv 2407.09141, who count changed answers; llama.cpp prints the opposite as
"Same top p"). Both show what perplexity averages away: a model may become better at some tokens and worse at others.

Only the two models and the logits of one batch of windows are in memory at a time. llama.cpp instead writes the float
model's logits to a file first (a 16-bit number for every token of the vocabulary and every position, 1.6 GB for 16,384
tokens and a vocabulary of 49,152). So it needs one pass of the float model for any number of models. Here the float
model runs again with every model: twice the time and no file.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import kl_div, log_softmax

from qtutor.errors import QtutorError
from qtutor.guards.running import check_measurable, in_eval
from qtutor.measure.losses import WINDOW, batches, mean_and_error
from qtutor.runtime import use

ROWS = 1 << 22  # logarithms of this many numbers are computed at once: 16 MB in float32 for each model


@dataclass(frozen=True)
class Comparison:
    """A model against its float original on the same tokens.

    The ``..._error`` are standard errors over windows (:func:`qtutor.measure.losses.mean_and_error`), ``None`` if the
    text is a single window. The error of ``loss_percent`` is paired: both models stumble over the same passages, so the
    rise is known better than either perplexity.
    """

    perplexity: float
    reference_perplexity: float
    kl: float  # mean KL(reference || model) a token, in nats
    flips: float  # share of positions where the most likely next token differs
    perplexity_error: float | None
    reference_perplexity_error: float | None
    kl_error: float | None
    flips_error: float | None
    loss_percent_error: float | None
    tokens: int  # positions that were predicted
    windows: int

    @property
    def loss_percent(self) -> float:
        """The rise of perplexity in per cent."""
        return 100 * (self.perplexity / self.reference_perplexity - 1)


@torch.inference_mode()
def compare(model, reference, token_ids: torch.Tensor, window: int = WINDOW) -> Comparison:
    """Run both models over ``token_ids`` (as :func:`qtutor.evaluate.perplexity` does) and compare their predictions.

    token_ids: int64, ``[count]`` cut into windows or ``[samples, length]``. The models may be on different devices.
    Raises :class:`QtutorError` if their vocabularies differ in size.
    """
    check_comparable(model, reference)
    return _compare(model, reference, token_ids, window, lambda ids: model(ids, use_cache=False).logits)


def _compare(model, reference, token_ids, window: int, run: Callable[[torch.Tensor], torch.Tensor]) -> Comparison:
    """run: the logits of ``model``, ``[batch, tokens, vocabulary]``, for token ids that are on its device."""
    sums, counts = [], []
    with in_eval(model), in_eval(reference):
        for ids in batches((model, reference), token_ids, window):
            ours = run(ids.to(model.device))[:, :-1]
            theirs = reference(ids.to(reference.device), use_cache=False).logits[:, :-1]
            following = ids[:, 1:].to(model.device)
            for row in range(len(ids)):
                sums.append(_window(ours[row], theirs[row].to(model.device), following[row]))
                counts.append(following.shape[1])
    return _comparison(torch.stack(sums), torch.tensor(counts))


def cost_of_int8_inputs(model, token_ids: torch.Tensor, window: int = WINDOW) -> Comparison:
    """A packed model whose layers round their inputs to int8 (:func:`qtutor.runtime.use`) against itself without that.

    Raises :class:`QtutorError` if the model has no packed layer. The model itself stays as it is.
    """
    exact, rounded = copy.deepcopy(model), copy.deepcopy(model)
    use(exact)
    use(rounded, activations="int8")
    return compare(rounded, exact, token_ids, window)


@torch.inference_mode()
def cost_of_cache(model, form, token_ids: torch.Tensor, window: int = WINDOW, step: int | None = None) -> Comparison:
    """The cost of rounding keys and values: a model with a cache of ``form`` against the same model without.

    form: :class:`qtutor.runtime.kv.KVFormat`. step: how many tokens are read at once, by default a whole window. All
    tokens attend to the keys and values that the cache returns, so for most formats the step makes no difference. Only
    keys per channel stay unrounded until their window of tokens is full. If tokens come one by one, these are the
    newest keys; if all come in one step, hardly any.
    """
    from qtutor.runtime.kv import KVCache

    KVCache(model, form)  # refuses a format that it does not support before anything runs
    if step is not None and (type(step) is not int or step < 1):
        raise QtutorError(f"step = {step!r}: a whole number of tokens is needed, at least 1.")

    def run(ids: torch.Tensor) -> torch.Tensor:
        cache = KVCache(model, form)
        parts = ids.split(step or ids.shape[1], dim=1)
        return torch.cat([model(part, past_key_values=cache, use_cache=True).logits for part in parts], dim=1)

    return _compare(model, model, token_ids, window, run)


def check_comparable(model, reference) -> None:
    """Raise :class:`QtutorError` unless the vocabularies of both models have the same size."""
    for one in (model, reference):
        check_measurable(one)
    if model.config.vocab_size != reference.config.vocab_size:
        raise QtutorError(
            f"the model's vocabulary has {model.config.vocab_size} tokens, the reference's "
            f"{reference.config.vocab_size}: compare a model with the one that it was made of."
        )


def _window(ours: torch.Tensor, theirs: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    """Sums over one window, float64 ``[4]``: both losses, KL divergence, flips.

    ours, theirs: logits ``[tokens, vocabulary]`` of model and reference. following: the tokens that really follow.
    """
    total = torch.zeros(4, dtype=torch.float64)
    rows = max(1, ROWS // ours.shape[1])
    for mine, its, came in zip(ours.split(rows), theirs.split(rows), following.split(rows)):
        mine, its = log_softmax(mine.float(), dim=-1), log_softmax(its.float(), dim=-1)
        total[0] -= mine.gather(1, came[:, None]).sum().double().cpu()
        total[1] -= its.gather(1, came[:, None]).sum().double().cpu()
        total[2] += kl_div(mine, its, log_target=True, reduction="sum").double().cpu()
        total[3] += (mine.argmax(-1) != its.argmax(-1)).sum().double().cpu()
    return total


def _comparison(sums: torch.Tensor, counts: torch.Tensor) -> Comparison:
    """Means and errors of the sums of :func:`_window`: ``sums [windows, 4]``, ``counts [windows]``."""
    (loss, loss_error), (their_loss, their_error), kl, flips = (mean_and_error(one, counts) for one in sums.unbind(1))
    _, rise_error = mean_and_error(sums[:, 0] - sums[:, 1], counts)  # the error of the difference in every window
    perplexity, reference_perplexity = (torch.tensor([loss, their_loss], dtype=torch.float64).exp()).tolist()

    def times(factor: float, error: float | None) -> float | None:
        return None if error is None else factor * error  # if x changes a little, exp(x) changes by exp(x) times that

    return Comparison(
        perplexity=perplexity,
        reference_perplexity=reference_perplexity,
        kl=kl[0],
        flips=flips[0],
        perplexity_error=times(perplexity, loss_error),
        reference_perplexity_error=times(reference_perplexity, their_error),
        kl_error=kl[1],
        flips_error=flips[1],
        loss_percent_error=times(100 * perplexity / reference_perplexity, rise_error),
        tokens=int(counts.sum()),
        windows=len(counts),
    )
