"""One forward pass: are the logits numbers, does the model predict text better than guessing, how does it go on."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from qtutor.doctor.finding import Finding
from qtutor.doctor.patient import Patient
from qtutor.measure.generation import generate_batch
from qtutor.measure.losses import perplexity
from qtutor.measure.texts import text_of

WINDOW, WINDOWS = 128, 4
PROMPT, WRITTEN = 12, 24  # tokens
WORSE = 1.1  # times the perplexity of guessing: a model of random weights guesses evenly, and may be a little worse


@dataclass(frozen=True)
class Run:
    """perplexity: on a text of ours. vocabulary: the perplexity of guessing.

    before, after: a beginning, and its greedy continuation.
    """

    perplexity: float | None
    vocabulary: int
    text: str
    before: str
    after: str
    findings: tuple[Finding, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        value = "no number" if self.perplexity is None else f"{self.perplexity:,.1f}"
        return (
            f"One forward pass: perplexity {value} on {self.text}; guessing would "
            f"have {self.vocabulary:,}.\nIt goes on: {self.before!r} -> {self.after!r}"
        )


def run(patient: Patient, explained: bool) -> Run:
    """Load the model, and let it read and write. explained: whether there are findings already.

    Raises :class:`QtutorError` if the model cannot be loaded.
    """
    model, tokenizer = patient.loaded
    window = min(WINDOW, model.config.max_position_embeddings)
    text = text_of(tokenizer, None, window, WINDOWS * window)
    ids = text.token_ids.reshape(-1)[: WINDOWS * window].reshape(-1, window)
    with torch.inference_mode():
        finite = bool(model(ids[:1].to(model.device)).logits.isfinite().all())
    value = perplexity(model, ids) if finite else float("nan")
    before = tokenizer.decode(ids[0, : min(PROMPT, window // 2)], skip_special_tokens=True)
    after = generate_batch(model, tokenizer, [before], WRITTEN)[0][len(before) :] if finite else ""
    known = value if math.isfinite(value) else None
    done = Run(known, model.config.vocab_size, text.told, before, after)
    return Run(**(vars(done) | {"findings": tuple(_findings(patient, done, finite, explained))}))


def _findings(patient: Patient, done: Run, finite: bool, explained: bool) -> Iterator[Finding]:
    if not finite or done.perplexity is None:
        text = (
            f"{patient.name}: the logits are no numbers, so the model writes no text (engines print '!!!!'): look for "
            "weights or scales that are too large for the dtype in config.json."
        )
    elif done.perplexity > WORSE * done.vocabulary:
        text = (
            f"{patient.name}: on plain text its perplexity is {done.perplexity:,.0f}, and guessing among "
            f"{done.vocabulary:,} tokens is better: some weights are in wrong places or have wrong sizes"
        )
        known = explained or patient.float_weights is not None
        text += "." if known else "; name the float checkpoint with --against to see which."
    else:
        return
    yield Finding("forward pass", patient.name, text)
