"""Text for the embedded decoder: calibration uses text from its training, measures use text that it never saw."""

import random

import torch

from qtutor.decoder import EMBEDDED, corpus
from qtutor.formats import checkpoint

# More than in training (9 of 16): measures use code, and sessions are much alike, so a few of them are enough.
CODE_SHARE = 7 / 8


def calibration_tokens(samples: int = 128, length: int = 512, seed: int = 0) -> torch.Tensor:
    """Token ids, int64 ``[samples, length]``: excerpts of training modules, and beginnings of interpreter sessions.

    Every excerpt is from a random place of a random module. The same arguments give the same tokens.
    """
    tokenizer = checkpoint.tokenizer(EMBEDDED)
    rng = random.Random(f"calibration {seed}")
    long_enough = [text for text in corpus.training_modules() if len(text) > 8 * length]
    sessions = iter(corpus.training_sessions(samples, seed + 1, examples=length // 8))
    rows = []
    for number in range(samples):
        if (number + 1) * CODE_SHARE % 1 < CODE_SHARE:  # spread evenly, so the first samples have the same share
            text = rng.choice(long_enough)
            start = rng.randrange(len(text) - 8 * length)
            text = text[start : start + 8 * length]
        else:
            text = tokenizer.eos_token + next(sessions)
        ids = tokenizer(text, verbose=False)["input_ids"]
        while len(ids) < length:  # the excerpt is little more than spaces
            ids = ids + ids
        rows.append(ids[:length])
    return torch.tensor(rows)


def held_out_tokens(tokenizer, limit: int | None = None) -> torch.Tensor:
    """Token ids, int64 ``[count]``, of the standard-library modules that the embedded decoder never saw."""
    return torch.tensor(tokenizer(corpus.held_out_code(), verbose=False)["input_ids"][:limit])
