"""The text that is used if none is named: half English and half Python, for any model.

English: ``english.txt`` beside this module, 58 short pieces that were written for this package: general ones (a story,
a recipe, minutes of a meeting, a conversation with an assistant ...) and prose from the course, with form feeds between
them. Python: the running interpreter's standard library, which does not have to be shipped
(:mod:`qtutor.decoder.corpus`).

The text has two parts without overlap: every third English piece and ten modules are for measuring; the others are for
calibration. The held-out pieces are still by the same authors, so a loss measured on them is too good for a model that
the others calibrated.

This text is only a fallback: text like the model's later inputs gives better results
(``benchmarks/calibration_text.py`` measures by how much). Left out: other languages, and conversations in the model's
own template.
"""

import random
from pathlib import Path

import torch

from qtutor.calibration.text import Text
from qtutor.guards.ids import LENGTH, SAMPLES, evenly

ENGLISH = Path(__file__).with_name("english.txt")
HELD_OUT = 3  # every third piece is for measuring
WINDOW, WINDOWS = 512, 32  # the default for measuring: about 16,000 tokens


def builtin_calibration(tokenizer, length: int = LENGTH, samples: int = SAMPLES) -> Text:
    """Samples to calibrate with: every second one is English, as long as there is enough, and the others are Python.

    The same tokenizer and Python give the same tokens.
    """
    english = _english(tokenizer, held_out=False, length=length, samples=(samples + 1) // 2)
    python = _python(tokenizer, length, samples - len(english))
    rows = _in_turns(english, python)
    return Text(rows, f"{_told(rows)} of the built-in text, {len(english)} in English and {len(python)} in Python")


def builtin_held_out(tokenizer, length: int = WINDOW, samples: int = WINDOWS) -> Text:
    """Samples to measure on, alternately English and Python, which :func:`builtin_calibration` never uses."""
    from qtutor.decoder.corpus import held_out_code

    english = _english(tokenizer, held_out=True, length=length, samples=(samples + 1) // 2)
    ids = torch.tensor(tokenizer(held_out_code(), verbose=False)["input_ids"], dtype=torch.int64)
    python = evenly(ids, length, samples - len(english))
    rows = _in_turns(english, python)
    return Text(rows, f"{_told(rows)} of the built-in held-out text, English and Python")


def pieces(held_out: bool) -> list[str]:
    """The English pieces of one part."""
    texts = ENGLISH.read_text(encoding="utf-8").split("\f")
    return [text.strip("\n") for at, text in enumerate(texts) if (at % HELD_OUT == HELD_OUT - 1) == held_out]


def _english(tokenizer, held_out: bool, length: int, samples: int) -> torch.Tensor:
    text = "\n\n\n".join(pieces(held_out))
    return evenly(torch.tensor(tokenizer(text, verbose=False)["input_ids"], dtype=torch.int64), length, samples)


def _python(tokenizer, length: int, samples: int) -> torch.Tensor:
    """Excerpts of randomly chosen modules, always the same, each from a random place on."""
    from qtutor.decoder.corpus import training_modules

    rng = random.Random("calibration")
    long_enough = [text for text in training_modules() if len(text) > 8 * length]
    rows = []
    for _ in range(4 * samples if long_enough else 0):
        text = rng.choice(long_enough)
        begin = text.rfind("\n", 0, rng.randrange(len(text) - 8 * length) + 1) + 1  # begin with a whole line
        ids = tokenizer(text[begin : begin + 8 * length], verbose=False, add_special_tokens=False)["input_ids"]
        rows += [ids[:length]] if len(ids) >= length else []  # skip excerpts of mostly spaces
    return torch.tensor(rows[:samples], dtype=torch.int64).reshape(-1, length)


def _in_turns(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Rows of both, alternately; the surplus rows of the longer one come last."""
    both = min(len(first), len(second))
    turns = torch.stack([first[:both], second[:both]], 1).flatten(0, 1)
    return torch.cat([turns, first[both:], second[both:]])


def _told(rows: torch.Tensor) -> str:
    return f"{rows.numel():,} tokens ({len(rows)} samples of {rows.shape[1]})"
