"""The capstone of chapter 11: a model within a limit of bytes, and as near to the float model as possible.

    check(attempt, of="smollm2", note="GPTQ, 3.5 bits")

An attempt is a model in memory, or the name of a folder or a .gguf file. A model in memory is first exported and read
back: only what can be saved counts. This module loads its own copy of the float model. So a learner who changes theirs
still measures against the right model.

The limit is 80 MB for SmolLM2, and for any other model the same number of bits for each of its weights. Only weights
count, and not a tokenizer's files. KL divergence is measured on held-out text that no calibration of ours reads.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

import qtutor
from qtutor.course.scores import table
from qtutor.course.your_model import attempts
from qtutor.course.your_model.attempts import Attempt
from qtutor.course.your_model.refusing import brought, check_numbers, check_shape, check_size
from qtutor.course.your_model.results import CHAT, stored_rows
from qtutor.errors import QtutorError
from qtutor.formats import smollm2
from qtutor.measure.against import compare
from qtutor.measure.losses import model_weights
from qtutor.measure.texts import text_of
from qtutor.runtime.linear import QuantWeight

LIMIT = 80_000_000  # bytes, for SmolLM2
WEIGHTS = 134_515_008  # of SmolLM2
TOKENS, WINDOW = 1536, 256  # measured in each check: half a minute on one core
GUESSING = 0.5  # times the logarithm of the vocabulary: with a larger KL, hardly anything of the float model is left


@dataclass(frozen=True)
class Verdict:
    """The result of :func:`examine`. attempt: the measured attempt, ``None`` if nothing was measured."""

    text: str
    attempt: Attempt | None = None


def check(attempt, of: str | Path = smollm2.WORD, note: str = "") -> None:
    """Measure an attempt at the model ``of``, print the result, keep it, and show all attempts. A bad attempt never
    raises an exception. note: the name of the attempt in the table.
    """
    verdict = examine(attempt, of, note)
    print(verdict.text)
    if verdict.attempt is None:
        return
    try:
        told = attempts.keep(verdict.attempt)
    except QtutorError as error:
        told = f"Measured, but not kept: {error}"
    if told:
        print(told)
    show(of)


def show(of: str | Path = smollm2.WORD) -> None:
    """The table and the picture of all attempts at the model ``of``; a sentence if there are none."""
    from qtutor.plots import show as show_figure
    from qtutor.plots.your_model import attempts_picture, attempts_words

    of, limit = name_of(of), limit_of(model_weights(reference(of)[0]))
    try:
        tried = attempts.kept(of)
    except QtutorError as error:
        print(f"Your attempts cannot be shown: {error}")
        return
    if not tried:
        print("No attempt yet.")
        return
    best = min(range(len(tried)), key=lambda number: tried[number].kl)
    rows = [_row(number, attempt, number == best) for number, attempt in enumerate(tried)]
    table(["attempt", "note", "bytes", "room left", "KL", "flips", "perplexity", ""], *[row(limit) for row in rows])
    known = stored_rows().values() if of == smollm2.WORD else ()
    others = {row.name: (row.nbytes, row.kl) for row in known if row.name != CHAT}  # its mark would hide another
    points = [(attempt.nbytes, attempt.kl) for attempt in tried]
    show_figure(attempts_picture(points, limit, others), alt=attempts_words(points, limit, others))


def _row(number: int, attempt: Attempt, best: bool) -> Callable[[int], list]:
    return lambda limit: [
        number + 1,
        attempt.note or "-",
        f"{attempt.nbytes:,}",
        f"{limit - attempt.nbytes:,}",
        f"{attempt.kl:.4f}" + (f" ± {attempt.kl_error:.4f}" if attempt.kl_error is not None else ""),
        f"{attempt.flips:.1%}",
        f"{attempt.perplexity:.2f}",
        "**best**" if best else "",
    ]


def examine(attempt, of: str | Path = smollm2.WORD, note: str = "") -> Verdict:
    """Measure an attempt; print and keep nothing."""
    try:
        float_model, tokenizer = reference(of)
    except QtutorError as error:
        return Verdict(f"The float model {str(of)!r} cannot be loaded, so nothing can be measured against it: {error}")
    limit = limit_of(model_weights(float_model))
    try:
        model, nbytes = brought(attempt, of)
        check_shape(model, float_model)
        check_numbers(model)
        check_size(model, nbytes, limit)
        found = compare(model, float_model, text_of(tokenizer, window=WINDOW, tokens=TOKENS).token_ids, WINDOW)
    except QtutorError as error:
        return Verdict(f"Not measured: {error}")
    if not (math.isfinite(found.kl) and math.isfinite(found.perplexity)):
        return Verdict(
            "Not measured: all of its weights are finite, but its predictions are not (NaN or infinity). Are scales "
            "so large that sums overflow? Look at the largest scale of each layer."
        )
    tried = Attempt(name_of(of), str(note)[:60], nbytes, found.kl, found.kl_error, found.flips, found.perplexity)
    share = nbytes / limit
    text = f"{nbytes:,} bytes of {limit:,} ({share:.1%}), KL {found.kl:.4f} nats a token, flips {found.flips:.1%}."
    if found.kl > GUESSING * math.log(float_model.config.vocab_size):
        text += (
            " That is so far from the float model that hardly anything of it is left. Was it made from the same "
            "weights?"
        )
    return Verdict(text, tried)


def limit_of(weights: int) -> int:
    """The bytes that a model with ``weights`` weights may take: as many for each weight as SmolLM2 in :data:`LIMIT`."""
    return LIMIT * weights // WEIGHTS


def name_of(source: str | Path) -> str:
    """The name of the model ``source`` in the table."""
    return str(source)


def reference(source: str | Path) -> tuple[nn.Module, object]:
    """The float model, which stays in memory, and its tokenizer. Raises :class:`QtutorError` for a quantized one."""
    return _loaded(str(source))


@lru_cache(maxsize=1)  # loading takes a good part of the time of a check
def _loaded(source: str) -> tuple[nn.Module, object]:
    model, tokenizer = qtutor.load(source, dtype=torch.float32, device="cpu")
    if any(isinstance(module, QuantWeight) for module in model.modules()):
        raise QtutorError("it is quantized already. Name the float model that yours was made from.")
    return model, tokenizer
