"""The capstone of chapter 11: a model within so many bytes, and as near to the float one as possible.

    check(attempt, of="smollm2", note="GPTQ, 3.5 bits")

An attempt is a model in memory, or the name of a folder or a .gguf file. A model in memory is exported and read back
first: what counts is what can be saved. The float model is one that this module loads for itself, so a learner who
changes theirs still measures against the right one.

The size is SmolLM2's 80 MB, and of any other model the same number of bits for each of its weights. Only weights count;
a tokenizer's files take what they take. KL divergence is measured on held-out text that no calibration of ours reads.
"""

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

import qtutor
from qtutor.core.quantized import all_finite
from qtutor.course.scores import table
from qtutor.course.your_model import attempts
from qtutor.course.your_model.attempts import Attempt
from qtutor.course.your_model.results import CHAT, stored_rows
from qtutor.decoder import EMBEDDED
from qtutor.errors import QtutorError
from qtutor.formats import smollm2
from qtutor.formats.gguf_files import located
from qtutor.guards.model import decoder_of
from qtutor.loading import weight_bytes
from qtutor.measure.against import compare
from qtutor.measure.losses import model_bytes, model_weights
from qtutor.measure.texts import text_of
from qtutor.recipe import Recipe
from qtutor.report import Report
from qtutor.runtime.linear import QuantWeight

LIMIT = 80_000_000  # bytes, of SmolLM2's
WEIGHTS = 134_515_008  # that SmolLM2 has
TOKENS, WINDOW = 1536, 256  # measured in each check: half a minute on one core
# A config that differs in one of these belongs to another model.
SHAPE = (
    *("model_type", "num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size"),
    *("num_attention_heads", "num_key_value_heads"),
)
GUESSING = 0.5  # of the logarithm of the vocabulary: a model this far away has learned nothing that is left


class Refused(QtutorError):
    """Why an attempt is not measured, in words for the learner."""


@dataclass(frozen=True)
class Verdict:
    """The result of :func:`examine`. attempt: what was measured, ``None`` where nothing was."""

    text: str
    attempt: Attempt | None = None


def check(attempt, of: str | Path = smollm2.WORD, note: str = "") -> None:
    """Measure an attempt at the model ``of``, print what came out, keep it, and show all attempts. It never raises
    because of an attempt. note: what to call it in the table.
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
    """The table and the picture of all attempts at the model ``of``; a sentence where there is none."""
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
        model, nbytes = _brought(attempt, of)
        _check_shape(model, float_model)
        _check_numbers(model)
        _check_size(model, nbytes, limit)
        found = compare(model, float_model, text_of(tokenizer, window=WINDOW, tokens=TOKENS).token_ids, WINDOW)
    except QtutorError as error:
        return Verdict(f"Not measured: {error}")
    if not (math.isfinite(found.kl) and math.isfinite(found.perplexity)):
        return Verdict(
            "Not measured: all of its weights are finite, but what it predicts is not (NaN or infinity). Are scales "
            "so large that sums overflow? Look at the largest scale of each layer."
        )
    tried = Attempt(name_of(of), str(note)[:60], nbytes, found.kl, found.kl_error, found.flips, found.perplexity)
    share = nbytes / limit
    text = f"{nbytes:,} bytes of {limit:,} ({share:.1%}), KL {found.kl:.4f} nats a token, flips {found.flips:.1%}."
    if found.kl > GUESSING * math.log(float_model.config.vocab_size):
        text += (
            " That is so far from the float model that hardly anything of it is left. Is it made of the same weights?"
        )
    return Verdict(text, tried)


def limit_of(weights: int) -> int:
    """The bytes that a model of so many weights may take: as many a weight as SmolLM2 in :data:`LIMIT`."""
    return LIMIT * weights // WEIGHTS


def name_of(source: str | Path) -> str:
    """What the model ``source`` is called in the table."""
    return str(source)


def reference(source: str | Path) -> tuple[nn.Module, object]:
    """The float model, which stays in memory, and its tokenizer. Raises :class:`QtutorError` for a quantized one."""
    return _loaded(str(source))


@lru_cache(maxsize=1)  # loading takes as long as a part of the measuring
def _loaded(source: str) -> tuple[nn.Module, object]:
    model, tokenizer = qtutor.load(source, dtype=torch.float32, device="cpu")
    if any(isinstance(module, QuantWeight) for module in model.modules()):
        raise QtutorError("it is quantized already. Name the float model that yours was made of.")
    return model, tokenizer


def _brought(attempt, of: str | Path) -> tuple[nn.Module, int]:
    """The model that an attempt names, as it comes back from the disk, and the bytes of its weights."""
    if isinstance(attempt, str | Path):
        if _place(attempt).exists() and _place(attempt).samefile(_place(of)):
            raise Refused(f"{attempt} is the float model itself. Quantize it, and name what you wrote.")
        model, _ = qtutor.load(attempt, device="cpu")
        return model, weight_bytes(attempt, model)
    model = decoder_of(_model_in(attempt))
    if not any(isinstance(module, QuantWeight) for module in model.modules()):
        raise Refused(
            f"this is a float model of {model_bytes(model):,} bytes: none of its layers is packed. Quantize it with "
            "qtutor.quantize(model, recipe). If it comes from a .gguf file, give the file's name: in memory its "
            "weights are float."
        )
    with tempfile.TemporaryDirectory() as folder:  # what counts is what can be saved
        back = qtutor.load_quantized(qtutor.export(model, Path(folder) / "attempt"), device="cpu")
        return back, model_bytes(back)


def _model_in(attempt) -> nn.Module:
    """``attempt`` if it is a model, else :class:`Refused` with the likely mistake."""
    if isinstance(attempt, nn.Module):
        return attempt
    likely = "Give the quantized model, or the name of a folder or a .gguf file."
    if attempt is None:
        likely = "Does your function end without a return?"
    elif isinstance(attempt, Report):
        likely = "qtutor.quantize returns a report and changes the model in place: give that model."
    elif isinstance(attempt, Recipe):
        likely = "A recipe is a plan: quantize a model by it, and give that model."
    elif isinstance(attempt, tuple | list) and any(isinstance(part, nn.Module) for part in attempt):
        likely = "qtutor.load returns model and tokenizer: give the model alone."
    elif isinstance(attempt, type):
        likely = "That is a class, not a model made of it."
    elif callable(attempt):
        likely = "That is a function: call it, with parentheses behind its name."
    elif isinstance(attempt, dict):
        likely = "Tensors by name are not a model: load them into one first."
    raise Refused(f"this is no model but {_called(attempt)}. {likely}")


def _called(thing) -> str:
    name = type(thing).__name__
    return "None" if thing is None else f"a{'n' * (name[0].lower() in 'aeio')} {name}"


def _place(source: str | Path) -> Path:
    return Path(EMBEDDED if source == "embedded" else located(source))


def _check_shape(model: nn.Module, float_model: nn.Module) -> None:
    """Refuse a model that was not made of this float model."""
    for name in SHAPE:
        mine, right = getattr(model.config, name, None), getattr(float_model.config, name, None)
        if mine != right:
            raise Refused(
                f"this is another model: its {name} is {mine}, and the float model's is {right}. The task is this "
                "model in fewer bytes, with all of its layers."
            )


def _check_numbers(model: nn.Module) -> None:
    """Refuse NaN and infinity, naming the tensor."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not all_finite(tensor):
            raise Refused(
                f"{name} holds NaN or infinity. A scale of 16 bits ends at 65,504, and 0 / 0 is NaN: look at how this "
                "tensor was made."
            )


def _check_size(model: nn.Module, nbytes: int, limit: int) -> None:
    """Refuse what takes too many bytes, and say where most of them are."""
    if nbytes <= limit:
        return
    raise Refused(f"it takes {nbytes:,} bytes, {nbytes - limit:,} too many: the limit is {limit:,}. {_largest(model)}")


def _largest(model: nn.Module) -> str:
    """A sentence about the float matrices that are left."""
    floats = {
        name.removesuffix(".weight"): tensor.nbytes
        for name, tensor in model.named_parameters()
        if tensor.is_floating_point() and tensor.dim() > 1
    }
    if not floats:
        return "All of its matrices are packed, so take fewer bits, or larger groups."
    if not any(isinstance(module, QuantWeight) for module in model.modules()):
        return "None of its layers is packed. Choose fewer bits, or a smaller type of file."
    name = max(floats, key=floats.get)
    return f"The largest matrix in float is {name}, with {floats[name]:,} bytes."
